//! `setpoint events`: what happened, oldest first.

use std::process::ExitCode;

use setpoint_schema::name::AppKey;
use setpoint_schema::wire;

use super::table::table;
use super::{Failure, Output, Server, print, print_json};
use crate::config::Config;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only events of this app, as NAME or TEAM/NAME
    app: Option<AppKey>,
    #[command(flatten)]
    server: Server,
    /// Output format
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

pub async fn run(config: Config, args: Args) -> Result<ExitCode, Failure> {
    let mut events: Vec<wire::Event> = args.server.client(&config).list("/v1/events").await?;
    events.retain(|event| args.app.is_none() || event.app == args.app);
    match args.output {
        Output::Json => print_json(&serde_json::json!({ "items": events, "next": null })),
        Output::Text => print(&table(["TIME", "KIND", "APP", "REASON", "MESSAGE"], &rows(&events))),
    }
    Ok(ExitCode::SUCCESS)
}

fn rows(events: &[wire::Event]) -> Vec<[String; 5]> {
    let row = |event: &wire::Event| {
        let time = event.at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let app = event.app.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        [time, event.kind.clone(), app, event.reason.clone(), event.message.clone()]
    };
    events.iter().map(row).collect()
}
