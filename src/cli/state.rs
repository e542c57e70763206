//! `setpoint state`: what the store holds, and making it anew from what runs.

use std::process::ExitCode;

use setpoint_schema::observed::Machine;
use setpoint_schema::quantity::Span;
use setpoint_state::{FoundDisk, Rebuild, Store};

use super::{Failure, print, print_json};
use crate::config::Config;
use crate::ledger::Inventory;
use crate::report::count;
use crate::{daemon, drivers, host};

/// How long disks are kept whose declarations are not known any more: long enough for somebody to notice.
const RETAIN_UNKNOWN: Span = Span::secs(30 * 24 * 3600);

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print the inventory as JSON, also beside a running daemon
    Show,
    /// Set a damaged state aside and make a new one from the microVMs and disks that exist
    Rebuild,
}

pub async fn run(config: Config, args: Args) -> Result<ExitCode, Failure> {
    match args.command {
        Command::Show => show(&config),
        Command::Rebuild => rebuild(&config).await,
    }
}

fn show(config: &Config) -> Result<ExitCode, Failure> {
    let Inventory { sandboxes, disks, apps, snapshots } = Inventory::of_copy(&config.store_dir())?;
    print_json(&serde_json::json!({ "sandboxes": sandboxes, "disks": disks, "apps": apps, "snapshots": snapshots }));
    Ok(ExitCode::SUCCESS)
}

/// The old state is kept beside the new one: nothing is lost by rebuilding.
async fn rebuild(config: &Config) -> Result<ExitCode, Failure> {
    if let Some(daemon) = daemon::running(&config.state.dir) {
        let hint = "stop it first: its microVMs go on".to_owned();
        return Err(Failure::new(format!("a daemon (process {}) has this state", daemon.pid), Some(hint)));
    }
    let driver = drivers::driver(config).map_err(|error| Failure::new(error, None))?;
    let machines: Vec<Machine> = driver.list().await.map_err(|error| Failure::new(error, None))?;
    let disks = driver.list_disks().await.map_err(|error| Failure::new(error, None))?;
    let store_dir = config.store_dir();
    if store_dir.exists() {
        let aside = Store::quarantine(&store_dir)?;
        print(&format!("the old state is kept in {}\n", aside.display()));
    }
    let disks: Vec<_> = disks.into_iter().map(|(id, size)| FoundDisk { id, size }).collect();
    let found = Rebuild { host: host::id(), machines, disks, retain: RETAIN_UNKNOWN };
    Store::open(&store_dir)?.rebuild(&found)?;
    let Rebuild { machines, disks, .. } = found;
    let (machines, disks) = (count(machines.len(), "microVM"), count(disks.len(), "disk"));
    print(&format!("made a new state from {machines} and {disks}\n"));
    Ok(ExitCode::SUCCESS)
}
