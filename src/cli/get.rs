//! `setpoint get KIND [NAME...]`: what the daemon knows, as a table or as the API's documents, once or as it changes.

use std::process::ExitCode;

use serde_json::Value;
use setpoint_schema::wire;

pub mod kinds;
mod settings;
pub mod snapshots;
pub mod watch;

use super::client::{Client, ClientError};
use super::output::{self, Form, Object, Output};
use super::select::Selection;
use super::{Failure, Server, follow, print};
use crate::config::Config;
use kinds::Resource;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to show
    kind: Kind,
    /// Only these: apps as NAME or TEAM/NAME, sandboxes by id or app, snapshots by name, app or id, revisions by their commit, settings by key or section
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Go on with a line for each that changes
    #[arg(short, long)]
    watch: bool,
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
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
    /// Moments of apps that are kept, of each name the newest first
    #[value(alias = "snapshot")]
    Snapshots,
    /// What microVMs start from
    #[value(alias = "template")]
    Templates,
    /// Revisions that were tried, the newest first
    #[value(alias = "revision")]
    Revisions,
    /// What happened, the oldest first
    #[value(alias = "event")]
    Events,
    /// The daemon's configuration that is in force
    #[value(alias = "setting")]
    Settings,
}

pub async fn run(config: Config, args: Args) -> Result<ExitCode, Failure> {
    let client = args.server.client(&config);
    let Args { kind, names, watch, selection, server: _, output } = args;
    match kind {
        Kind::Apps => get::<wire::App>(client, Wanted { names, selection }, watch, output).await,
        Kind::Sandboxes => get::<wire::Sandbox>(client, Wanted { names, selection }, watch, output).await,
        Kind::Snapshots => get::<wire::Snapshot>(client, Wanted { names, selection }, watch, output).await,
        Kind::Templates => get::<wire::Template>(client, Wanted { names, selection }, watch, output).await,
        Kind::Revisions => get::<wire::Revision>(client, Wanted { names, selection }, watch, output).await,
        Kind::Settings if watch || !selection.is_empty() => {
            let hint = "they are chosen by key or section alone, as `setpoint get settings converge`".to_owned();
            Err(Failure::new("settings are not watched, and not chosen by team, phase or label", Some(hint)))
        }
        Kind::Settings => settings::get(&client, &names, output).await,
        Kind::Events => super::events::get(client, Wanted { names, selection }, watch, output).await,
    }
}

/// Which objects are meant.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// By what somebody typed; all where nothing was.
    pub names: Vec<String>,
    /// By what they are.
    pub selection: Selection,
}

impl Wanted {
    /// Whether this object is meant.
    #[must_use]
    pub fn admits<R: Resource>(&self, object: &R) -> bool {
        let named = self.names.is_empty() || self.names.iter().any(|name| object.answers_to(name));
        named && self.selection.admits(object.traits())
    }

    /// Refuses a choice that this kind cannot be chosen by.
    ///
    /// # Errors
    /// When there is one.
    pub fn check<R: Resource>(&self) -> Result<(), Failure> {
        match self.selection.beyond(R::kind_traits()) {
            None => Ok(()),
            Some(flag) => {
                let hint = "`setpoint get -h` says what each flag is for".to_owned();
                Err(Failure::new(format!("{flag} does not choose among {}", many::<R>()), Some(hint)))
            }
        }
    }

    /// A name that matches nothing is a mistake; an empty list is not.
    fn refuse_missing<R: Resource>(&self, found: &[Object<R>]) -> Result<(), Failure> {
        let missing = self.names.iter().find(|name| !found.iter().any(|object| object.typed.answers_to(name)));
        match missing {
            None => Ok(()),
            Some(name) => Err(no_such::<R>(name)),
        }
    }
}

/// There is no object of this name.
pub fn no_such<R: Resource>(name: &str) -> Failure {
    let hint = format!("`setpoint get {}` lists what there is", many::<R>());
    Failure::new(format!("there is no {} {name}", R::ONE), Some(hint))
}

/// All of them, in a word.
fn many<R: Resource>() -> &'static str {
    R::PATH.trim_start_matches("/v1/")
}

async fn get<R: Resource>(client: Client, wanted: Wanted, watch: bool, output: Output) -> Result<ExitCode, Failure> {
    wanted.check::<R>()?;
    if watch {
        return watch::run::<R>(&client, &wanted, output).await;
    }
    let found = find::<R>(&client, &wanted).await?;
    show(&found, &wanted, output);
    wanted.refuse_missing(&found)?;
    Ok(ExitCode::SUCCESS)
}

/// The objects that are meant. One that has a path of its own is asked for there: a list of ten thousand is not read for it.
async fn find<R: Resource>(client: &Client, wanted: &Wanted) -> Result<Vec<Object<R>>, ClientError> {
    if let [name] = &wanted.names[..]
        && let Some(path) = R::path_of(name)
    {
        let found: Option<Object<R>> = follow::find(client, &path).await?;
        return Ok(found.into_iter().filter(|object| wanted.selection.admits(object.typed.traits())).collect());
    }
    let mut objects: Vec<Object<R>> = follow::list(client, R::PATH, &R::query(wanted), None).await?;
    objects.retain(|object| wanted.admits(&object.typed));
    Ok(objects)
}

/// The one object that a name means.
///
/// # Errors
/// When there is none, and as [`Client::get`].
pub async fn the_one<R: Resource>(client: &Client, name: String) -> Result<Object<R>, Failure> {
    let wanted = Wanted { names: vec![name], selection: Selection::default() };
    let found = find(client, &wanted).await?;
    wanted.refuse_missing(&found)?;
    found.into_iter().next().ok_or_else(|| no_such::<R>(&wanted.names[0]))
}

/// Prints objects: the one that was named as its document, many as a list.
fn show<R: Resource>(found: &[Object<R>], wanted: &Wanted, output: Output) {
    match (output.form, found) {
        (Form::Json | Form::Yaml, [one]) if wanted.names.len() == 1 => {
            output::print_document(output.form, &one.document);
        }
        (Form::Json | Form::Yaml, found) => {
            if found.is_empty() && !wanted.names.is_empty() {
                return;
            }
            let documents: Vec<Value> = found.iter().map(|object| object.document.clone()).collect();
            output::print_document(output.form, &output::list(documents));
        }
        (Form::Name, found) => {
            let names: String = found.iter().map(|object| format!("{}\n", object.typed.name())).collect();
            print(&names);
        }
        (Form::Table | Form::Wide, found) => {
            if found.is_empty() && !wanted.names.is_empty() {
                return;
            }
            let now = jiff::Timestamp::now();
            output.print_table(R::COLUMNS, found.iter().map(|object| object.typed.cells(now)).collect());
        }
    }
}
