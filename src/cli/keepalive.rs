//! `setpoint keepalive APP TIME`: for so long an app does not rest by itself on this host, however little it is used.

use std::process::ExitCode;

use setpoint_schema::name::AppKey;
use setpoint_schema::power::IdleAction;
use setpoint_schema::quantity::Span;
use setpoint_schema::wire::KeepaliveChange;

use super::{Failure, print};
use crate::admin::{Verb, client};
use crate::config::Config;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The app, as NAME or TEAM/NAME
    app: AppKey,
    /// For how long, such as `2h`, at most 24h; `0` ends what was asked for before
    #[arg(value_parser = time, required_unless_present = "end")]
    time: Option<Span>,
    /// End what was asked for before
    #[arg(long, conflicts_with = "time")]
    end: bool,
}

/// A time; nothing needs no unit.
fn time(text: &str) -> Result<Span, String> {
    if text == "0" { Ok(Span::default()) } else { text.parse::<Span>().map_err(|rule| rule.to_string()) }
}

pub async fn run(config: Config, args: Args) -> Result<ExitCode, Failure> {
    let span = args.time.unwrap_or_default();
    let query = format!("?for={span}");
    let change = client::ask_with(&config.state.dir, &args.app, Verb::Keepalive, &query).await?;
    print(&format!("{}\n", sentence(&change, span)));
    Ok(ExitCode::SUCCESS)
}

fn sentence(KeepaliveChange { app, changed, now, action }: &KeepaliveChange, span: Span) -> String {
    match (now, changed, action) {
        (Some(_), _, Some(IdleAction::Pause)) => format!("{app} is not paused for want of use for {span}"),
        (Some(_), _, Some(IdleAction::Stop)) => format!("{app} is not stopped for want of use for {span}"),
        (Some(_), _, None) => {
            format!("{app} does not rest by itself anyway, as it declares no `power.idle`; noted for {span}")
        }
        (None, true, _) => format!("{app} is no longer kept from resting"),
        (None, false, _) => format!("{app} is not kept from resting"),
    }
}
