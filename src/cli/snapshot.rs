//! `setpoint snapshot APP`: asks the daemon on this host to keep a moment of an app.

use std::process::ExitCode;

use setpoint_schema::app::Retain;
use setpoint_schema::name::{AppKey, SnapshotName};
use setpoint_schema::wire::SnapshotWanted;

use super::get::kinds::Resource as _;
use super::{Failure, print};
use crate::admin::{Verb, client};
use crate::config::Config;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The app, as NAME or TEAM/NAME
    app: AppKey,
    /// What the snapshot is called; each that is asked for under one name is another generation of it [default: the app's name]
    #[arg(long, value_name = "NAME")]
    name: Option<SnapshotName>,
    /// Keep the disk alone: what begins from it boots
    #[arg(long)]
    disk_only: bool,
    /// How long to keep it, as `7d`, or `none` [default: 30d]
    #[arg(long, value_name = "TIME")]
    retain: Option<Retain>,
}

pub async fn run(config: Config, args: Args) -> Result<ExitCode, Failure> {
    let wanted: SnapshotWanted = client::ask_with(&config.state.dir, &args.app, Verb::Snapshot, &query(&args)).await?;
    print(&format!("{}\n", sentence(&wanted)));
    Ok(ExitCode::SUCCESS)
}

/// Names and times need no encoding.
fn query(Args { app: _, name, disk_only, retain }: &Args) -> String {
    let name = name.iter().map(|name| format!("&name={name}"));
    let content = disk_only.then(|| "&content=disk".to_owned());
    let retain = retain.iter().map(|retain| format!("&retain={retain}"));
    let query: String = name.chain(content).chain(retain).collect();
    query.strip_prefix('&').map(|query| format!("?{query}")).unwrap_or_default()
}

fn sentence(SnapshotWanted { changed, snapshot }: &SnapshotWanted) -> String {
    let (app, name) = (&snapshot.app, snapshot.name());
    if *changed {
        format!("a moment of {app} is to be kept as {name}; `setpoint get snapshots {name}` shows when it is")
    } else {
        format!("a moment of {app} is to be kept as {name} already: {}", snapshot.message)
    }
}
