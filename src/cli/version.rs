//! `setpoint version`: this program's version, and that of the daemon that it talks to, where there is one.

use std::process::ExitCode;

use setpoint_schema::wire;

use super::client::Client;
use super::{Failure, Server, print, print_json};
use crate::config::Config;
use crate::daemon;

/// This program's version.
pub const OWN: &str = env!("CARGO_PKG_VERSION");

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    server: Server,
    /// Output format
    #[arg(short, long, value_enum, default_value = "text")]
    output: super::Output,
}

pub async fn run(config: Config, args: Args) -> Result<ExitCode, Failure> {
    // Without a daemon in sight it says what it knows by itself; one that was named has to answer.
    let asked = args.server.is_named() || daemon::running(&config.state.dir).is_some();
    let daemon = if asked { Some(ask(&args.server.client(&config)).await?) } else { None };
    match args.output {
        super::Output::Text => {
            let daemon = daemon.map(|version| format!("daemon   {version}\n")).unwrap_or_default();
            print(&format!("setpoint {OWN}\n{daemon}"));
        }
        super::Output::Json => print_json(&serde_json::json!({ "version": OWN, "daemon": daemon })),
    }
    Ok(ExitCode::SUCCESS)
}

/// A daemon that has not looked around yet does not say its version.
async fn ask(client: &Client) -> Result<String, Failure> {
    let status: wire::Status = client.get("/v1/status").await?;
    Ok(status.version)
}
