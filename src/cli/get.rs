//! `setpoint get apps|sandboxes`: what the daemon knows, as a table or as JSON.

use std::process::ExitCode;

use setpoint_schema::wire::{self, ConditionKind, Phase};

use super::table::table;
use super::{Failure, Output, Server, print, print_json};
use crate::config::Config;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to show
    kind: Kind,
    /// Only the app with this name, as NAME or TEAM/NAME
    name: Option<setpoint_schema::name::AppKey>,
    #[command(flatten)]
    server: Server,
    /// Output format
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// Apps and how they are
    #[value(alias = "app")]
    Apps,
    /// MicroVMs
    #[value(alias = "sandbox")]
    Sandboxes,
}

pub async fn run(config: Config, args: Args) -> Result<ExitCode, Failure> {
    let client = args.server.client(&config);
    let wanted = |key: &setpoint_schema::name::AppKey| args.name.as_ref().is_none_or(|name| name == key);
    match args.kind {
        Kind::Apps => {
            let mut apps: Vec<wire::App> = client.list("/v1/apps").await?;
            apps.retain(|app| wanted(&app.key()));
            refuse_none(&args, apps.is_empty())?;
            show(args.output, &apps, |apps| {
                table(["NAME", "PHASE", "READY", "PREVIEW", "URL", "MESSAGE"], &app_rows(apps))
            });
        }
        Kind::Sandboxes => {
            let mut sandboxes: Vec<wire::Sandbox> = client.list("/v1/sandboxes").await?;
            sandboxes.retain(|sandbox| wanted(&sandbox.app));
            refuse_none(&args, sandboxes.is_empty())?;
            let heading = ["ID", "APP", "VM", "VCPUS", "MEMORY", "DISK", "BOOT"];
            show(args.output, &sandboxes, |sandboxes| table(heading, &sandbox_rows(sandboxes)));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A name that matches nothing is a mistake; an empty list is not.
fn refuse_none(args: &Args, none: bool) -> Result<(), Failure> {
    match &args.name {
        Some(name) if none => {
            let hint = "`setpoint get apps` lists what there is".to_owned();
            Err(Failure::new(format!("there is no app {name}"), Some(hint)))
        }
        Some(_) | None => Ok(()),
    }
}

fn show<T: serde::Serialize>(output: Output, items: &[T], text: impl FnOnce(&[T]) -> String) {
    match output {
        Output::Json => print_json(&serde_json::json!({ "items": items, "next": null })),
        Output::Text => print(&text(items)),
    }
}

fn app_rows(apps: &[wire::App]) -> Vec<[String; 6]> {
    let row = |app: &wire::App| {
        let preview = match app.preview {
            wire::Preview::None => "none",
            wire::Preview::Starting => "starting",
            wire::Preview::Up => "up",
            wire::Preview::Down => "down",
        };
        let url = app.urls.first().cloned().unwrap_or_else(|| "-".to_owned());
        let ready = if app.ready { "yes" } else { "no" };
        [app.key().to_string(), app.phase.to_string(), ready.to_owned(), preview.to_owned(), url, message(app)]
    };
    apps.iter().map(row).collect()
}

/// The condition that says most about an app that is not simply ready.
fn message(app: &wire::App) -> String {
    let telling = match app.phase {
        Phase::Ready | Phase::Stopped | Phase::Suspended => return String::new(),
        Phase::Stalled => ConditionKind::Stalled,
        Phase::Unready => ConditionKind::Ready,
        Phase::Pending | Phase::Blocked | Phase::Reconciling | Phase::Deleting => ConditionKind::Reconciling,
    };
    let condition = app.conditions.iter().find(|condition| condition.kind == telling);
    condition.map(|condition| condition.message.clone()).unwrap_or_default()
}

fn sandbox_rows(sandboxes: &[wire::Sandbox]) -> Vec<[String; 7]> {
    let row = |sandbox: &wire::Sandbox| {
        let boot = match &sandbox.vm {
            wire::Vm::Running { nonce, since: _ } => nonce.as_str().chars().take(8).collect(),
            wire::Vm::Absent | wire::Vm::Exited { .. } => "-".to_owned(),
        };
        [
            sandbox.id.to_string(),
            sandbox.app.to_string(),
            sandbox.vm.as_str().to_owned(),
            sandbox.vcpus.to_string(),
            sandbox.memory.to_string(),
            sandbox.disk.as_ref().map_or_else(|| "-".to_owned(), |disk| disk.size.to_string()),
            boot,
        ]
    };
    sandboxes.iter().map(row).collect()
}
