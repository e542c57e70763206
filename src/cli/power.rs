//! `setpoint pause APP` and `setpoint wake APP`: the power state that holds on this host in place of the declared one.

use std::process::ExitCode;

use setpoint_schema::app::Power;
use setpoint_schema::name::AppKey;
use setpoint_schema::wire::PowerChange;

use super::{Failure, print};
use crate::admin::{Verb, client};
use crate::config::Config;

pub async fn run(config: Config, app: &AppKey, verb: Verb) -> Result<ExitCode, Failure> {
    let change = client::ask(&config.state.dir, app, verb).await?;
    print(&format!("{}\n", sentence(&change, verb)));
    Ok(ExitCode::SUCCESS)
}

fn sentence(PowerChange { app, changed, now }: &PowerChange, verb: Verb) -> String {
    let state = match (now.as_ref().map(|now| now.state), verb) {
        (Some(Power::Running), _) | (None, Verb::Wake) => "running",
        (Some(Power::Paused), _) | (None, Verb::Pause) => "paused",
        (Some(Power::Stopped), _) | (None, Verb::Suspend | Verb::Resume | Verb::Keepalive | Verb::Snapshot) => {
            "stopped"
        }
    };
    match (now, changed) {
        (Some(_), true) => format!("{app} is to be {state} here until another power is declared"),
        (None, true) => format!("{app} is to be {state} here, as it is declared"),
        (Some(now), false) => format!("{app} has been {state} here since {:.0}", now.since),
        (None, false) => format!("{app} is declared {state}"),
    }
}
