//! `setpoint suspend APP` and `setpoint resume APP`: freezes an app on this host, whatever its declaration says, and ends that.

use std::process::ExitCode;

use setpoint_schema::name::AppKey;
use setpoint_schema::wire::OverrideChange;

use super::{Failure, print};
use crate::admin::{Verb, client};
use crate::config::Config;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The app, as NAME or TEAM/NAME
    pub app: AppKey,
}

pub async fn run(config: Config, args: Args, verb: Verb) -> Result<ExitCode, Failure> {
    let change = client::ask(&config.state.dir, &args.app, verb).await?;
    print(&format!("{}\n", sentence(&change)));
    Ok(ExitCode::SUCCESS)
}

fn sentence(OverrideChange { app, changed, now }: &OverrideChange) -> String {
    match (now, changed) {
        (Some(_), true) => format!("{app} is suspended here until `setpoint resume {app}`"),
        (Some(now), false) => format!("{app} has been suspended here since {:.0} by {}", now.suspended_since, now.by),
        (None, true) => format!("{app} is no longer suspended here"),
        (None, false) => format!("{app} is not suspended here"),
    }
}
