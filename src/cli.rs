//! The command line: one subcommand a module. Data goes to standard output, everything else to standard error.
//!
//! Exit codes: 0 done or nothing to do, 1 error, 2 only for `reconcile --dry-run --exit-code` when there are changes; clap's 2
//! for wrong usage is turned into 1, so that 2 always means changes.

pub mod client;
mod doctor;
mod events;
mod get;
mod init;
mod logs;
mod reconcile;
mod run;
mod state;
mod table;
mod validate;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{Config, Overrides};
use crate::{daemon, report};

/// A GitOps reconciler for microVMs.
///
/// Watches a git repository of declarations, compares what they declare with the microVMs that exist, and converges.
#[derive(Debug, Parser)]
#[command(name = "setpoint", version, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    overrides: Overrides,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a declarations repository with one example app
    Init(init::Args),
    /// Run the daemon
    Run,
    /// Converge once on a revision, or preview it with --dry-run
    Reconcile(reconcile::Args),
    /// Check declarations, uncommitted edits included
    Validate(validate::Args),
    /// Show apps or sandboxes
    Get(get::Args),
    /// Show the log of an app's process
    Logs(logs::Args),
    /// Show what happened
    Events(events::Args),
    /// Find and explain what this machine lacks
    Doctor,
    /// Look at the daemon's state, or rebuild it
    State(state::Args),
    /// Print the version
    Version,
    /// Run and outlive one VMM; for the daemon's own use
    #[command(hide = true, disable_help_flag = true)]
    VmShim {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Render untrusted declarations; for the daemon's own use
    #[command(hide = true)]
    RenderChild,
}

/// Why a command failed: an error with its causes, and what to do about it.
#[derive(Debug)]
pub struct Failure {
    error: Box<dyn std::error::Error + Send + Sync>,
    hint: Option<String>,
}

impl Failure {
    /// An error with a hint.
    pub fn new(error: impl Into<Box<dyn std::error::Error + Send + Sync>>, hint: Option<String>) -> Self {
        Self { error: error.into(), hint }
    }
}

/// Errors that know their own hint become failures with `?`.
macro_rules! failures {
    ($($error:ty),* $(,)?) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                let hint = error.hint();
                Self::new(error, hint)
            }
        }
    )*};
}
failures!(
    crate::config::ConfigError,
    crate::daemon::DaemonError,
    crate::preview::PreviewError,
    crate::source::SourceError,
    client::ClientError,
);

impl From<setpoint_state::StateError> for Failure {
    fn from(error: setpoint_state::StateError) -> Self {
        let hint = Some(error.hint());
        Self::new(error, hint)
    }
}

/// Runs the command that the arguments name.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A reader that has gone, as in `setpoint --help | head -1`, is no error.
            drop(error.print());
            return if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    match dispatch(cli) {
        Ok(code) => code,
        Err(Failure { error, hint }) => {
            eprintln!("{}", report::page(error.as_ref(), hint.as_deref()));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(Cli { overrides, command }: Cli) -> Result<ExitCode, Failure> {
    match command {
        Command::VmShim { args } => Ok(setpoint_vmm::shim::main(args)),
        Command::RenderChild => render_child(),
        Command::Version => {
            println!("setpoint {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
        Command::Init(args) => init::run(&args),
        Command::Validate(args) => validate::run(&args),
        Command::Run => block_on(run::run(Config::load(&overrides)?)),
        Command::Reconcile(args) => block_on(reconcile::run(Config::load(&overrides)?, args)),
        Command::Get(args) => block_on(get::run(Config::load(&overrides)?, args)),
        Command::Logs(args) => block_on(logs::run(Config::load(&overrides)?, args)),
        Command::Events(args) => block_on(events::run(Config::load(&overrides)?, args)),
        Command::Doctor => block_on(doctor::run(Config::load(&overrides)?)),
        Command::State(args) => block_on(state::run(Config::load(&overrides)?, args)),
    }
}

fn render_child() -> Result<ExitCode, Failure> {
    crate::render::serve_child().map_err(|error| Failure::new(error, None))?;
    Ok(ExitCode::SUCCESS)
}

fn block_on(command: impl Future<Output = Result<ExitCode, Failure>>) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|error| Failure::new(error, None))?.block_on(command)
}

/// Which daemon a command asks.
#[derive(Debug, clap::Args)]
struct Server {
    /// Address of the daemon's status API [default: that of the daemon on the state directory, else 127.0.0.1:7878]
    #[arg(long, env = "SETPOINT_SERVER", value_name = "HOST:PORT")]
    server: Option<String>,
}

impl Server {
    fn client(&self, config: &Config) -> client::Client {
        match (&self.server, daemon::running(&config.state.dir)) {
            (Some(server), _) => client::Client::new(server),
            (None, Some(running)) => client::Client::local(running.api),
            (None, None) => client::Client::local(config.api.listen),
        }
    }
}

/// How a command prints objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Prints to standard output; a reader that has gone ends the program quietly, as `head` expects.
fn print(text: &str) {
    use std::io::Write as _;
    if std::io::stdout().write_all(text.as_bytes()).is_err() {
        std::process::exit(0);
    }
}

/// `1 app`, `2 apps`.
fn count(number: usize, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

fn print_json(value: &impl serde::Serialize) {
    let text = serde_json::to_string_pretty(value).expect("what is printed holds only maps with text keys");
    print(&format!("{text}\n"));
}
