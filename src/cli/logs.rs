//! `setpoint logs [-f] APP [PROCESS]`: what a process inside a microVM printed.

use std::process::ExitCode;

use setpoint_schema::name::AppKey;
use setpoint_schema::wire;

use super::client::ClientError;
use super::get::kinds::path_of_app;
use super::get::no_such;
use super::{Failure, Server, follow};
use crate::config::Config;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which app, as NAME or TEAM/NAME
    app: AppKey,
    /// `web`, `build`, or a worker's name
    #[arg(default_value = "web")]
    process: String,
    /// Go on with new lines as they come
    #[arg(short, long)]
    follow: bool,
    /// How many lines to begin with
    #[arg(long, default_value_t = 100, value_name = "LINES")]
    tail: u32,
    #[command(flatten)]
    server: Server,
}

pub async fn run(config: Config, args: Args) -> Result<ExitCode, Failure> {
    let client = args.server.client(&config);
    let app: Option<wire::App> = follow::find(&client, &path_of_app(&args.app)).await?;
    let app = app.ok_or_else(|| no_such::<wire::App>(&args.app.to_string()))?;
    let (process, tail, follow) = (&args.process, args.tail, args.follow);
    if app.preview == wire::Preview::None && process == "web" {
        return Err(Failure::new(format!("{} has no web process", args.app), Some(processes_of(&args.app))));
    }
    let path = format!("{}/processes/{process}/logs?tail={tail}&follow={follow}", path_of_app(&args.app));
    match client.stream(&path, print_raw).await {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error @ ClientError::Refused(_)) => Err(Failure::new(error, Some(processes_of(&args.app)))),
        Err(error) => Err(error.into()),
    }
}

fn processes_of(app: &AppKey) -> String {
    format!("`setpoint describe app {app}` lists its processes")
}

/// Guests print what they like: on a terminal, bytes that would steer it are shown instead of obeyed.
fn print_raw(data: &[u8]) {
    use std::io::{IsTerminal as _, Write as _};
    let mut out = std::io::stdout();
    let written = if out.is_terminal() {
        let harmless = |c: char| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c };
        let text: String = String::from_utf8_lossy(data).chars().map(harmless).collect();
        out.write_all(text.as_bytes())
    } else {
        out.write_all(data)
    };
    if written.and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}
