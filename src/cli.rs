//! The command line: one subcommand a module. Data goes to standard output, everything else to standard error.
//!
//! Exit codes are those of `EXIT_CODES`; clap's 2 for wrong usage is turned into 1, so that 2 always means changes.

mod age;
pub mod client;
mod describe;
mod doctor;
mod events;
mod follow;
mod get;
mod history;
mod init;
mod keepalive;
mod logs;
mod output;
mod pages;
mod power;
mod reconcile;
mod run;
mod schema;
mod select;
mod snapshot;
mod state;
mod style;
mod suspend;
mod table;
mod token;
mod tree;
mod validate;
mod version;
mod wait;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::admin::Verb;
use crate::config::{Config, Overrides};
use crate::{daemon, report};

/// What the program's exit says. docs/cli.md says the same.
const EXIT_CODES: &str = "\
Exit codes:
  0  done, or nothing to do
  1  an error: wrong usage, no daemon, a mistake in declarations, a check that failed, a wait that took too long
  2  only with `reconcile --dry-run --exit-code`: the plan holds changes";

/// A GitOps reconciler for microVMs.
///
/// Watches a git repository of declarations, compares what they declare with the microVMs that exist, and converges.
#[derive(Debug, Parser)]
#[command(name = "setpoint", version, arg_required_else_help = true, after_long_help = EXIT_CODES)]
struct Cli {
    /// Print without colours, as with NO_COLOR=1
    #[arg(long, global = true)]
    no_color: bool,
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
    /// Print the JSON Schema of a declaration file, for editors
    Schema(schema::Args),
    /// Show apps, sandboxes, snapshots, templates, revisions, events or settings, once or as they change
    Get(get::Args),
    /// Show everything that is known of one app, sandbox, snapshot, template or revision
    Describe(describe::Args),
    /// Show apps above what they depend on
    Tree(tree::Args),
    /// Wait until apps are ready, gone, or in a condition
    Wait(wait::Args),
    /// Show the log of an app's process
    Logs(logs::Args),
    /// Show what happened, and what happens
    Events(events::Args),
    /// Show the revisions that were tried, or what was done to an app
    History(history::Args),
    /// Freeze an app on this host: nothing is changed, healed or removed
    Suspend(suspend::Args),
    /// End what `suspend` began
    Resume(suspend::Args),
    /// Let an app rest on this host, with its memory kept, until another power is declared or it is woken
    Pause(suspend::Args),
    /// Let an app run that rests
    Wake(suspend::Args),
    /// Keep an app on this host from resting by itself for a while
    Keepalive(keepalive::Args),
    /// Keep a moment of an app on this host, its memory and its disk
    Snapshot(snapshot::Args),
    /// Find and explain what is wrong with this machine, or with a daemon
    Doctor(doctor::Args),
    /// Look at the daemon's state, or rebuild it
    State(state::Args),
    /// Make tokens for the status API
    Token(token::Args),
    /// Print the version, and the daemon's
    Version(version::Args),
    /// Print a shell's completions
    Completions(pages::CompletionsArgs),
    /// Write manual pages; for packages
    #[command(hide = true)]
    Man(pages::ManArgs),
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
    crate::preview::saved::CarryOutError,
    crate::source::SourceError,
    client::ClientError,
    crate::admin::client::AdminError,
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
            eprintln!("{}", labelled(&report::page(error.as_ref(), hint.as_deref())));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(Cli { overrides, no_color, command }: Cli) -> Result<ExitCode, Failure> {
    if no_color {
        style::refuse_colour();
    }
    match command {
        Command::VmShim { args } => Ok(setpoint_vmm::shim::main(args)),
        Command::RenderChild => render_child(),
        Command::Completions(args) => Ok(pages::completions(&args)),
        Command::Man(args) => pages::man(&args),
        Command::Init(args) => init::run(&args),
        Command::Validate(args) => validate::run(&args),
        Command::Schema(args) => schema::run(&args),
        Command::Token(args) => token::run(args),
        Command::Run => block_on(run::run(Config::load(&overrides)?, overrides)),
        Command::Reconcile(args) => block_on(reconcile::run(Config::load(&overrides)?, args)),
        Command::Get(args) => block_on(get::run(Config::load(&overrides)?, args)),
        Command::Describe(args) => block_on(describe::run(Config::load(&overrides)?, args)),
        Command::Tree(args) => block_on(tree::run(Config::load(&overrides)?, args)),
        Command::Wait(args) => block_on(wait::run(Config::load(&overrides)?, args)),
        Command::History(args) => block_on(history::run(Config::load(&overrides)?, args)),
        Command::Version(args) => block_on(version::run(Config::load(&overrides)?, args)),
        Command::Logs(args) => block_on(logs::run(Config::load(&overrides)?, args)),
        Command::Events(args) => block_on(events::run(Config::load(&overrides)?, args)),
        Command::Suspend(args) => block_on(suspend::run(Config::load(&overrides)?, args, Verb::Suspend)),
        Command::Resume(args) => block_on(suspend::run(Config::load(&overrides)?, args, Verb::Resume)),
        Command::Pause(args) => block_on(power::run(Config::load(&overrides)?, &args.app, Verb::Pause)),
        Command::Wake(args) => block_on(power::run(Config::load(&overrides)?, &args.app, Verb::Wake)),
        Command::Keepalive(args) => block_on(keepalive::run(Config::load(&overrides)?, args)),
        Command::Snapshot(args) => block_on(snapshot::run(Config::load(&overrides)?, args)),
        Command::Doctor(args) => block_on(doctor::run(Config::load(&overrides)?, args)),
        Command::State(args) => block_on(state::run(Config::load(&overrides)?, args)),
    }
}

/// The page of an error with its labels in colour, where standard error has colours.
fn labelled(page: &str) -> String {
    let tones = [("error:", style::Tone::Bad), ("caused by:", style::Tone::Quiet), ("hint:", style::Tone::Good)];
    let paint = style::stderr();
    let line = |line: &str| match tones.iter().find(|(label, _)| line.starts_with(label)) {
        Some((label, tone)) => format!("{}{}", paint.paint(*tone, label), &line[label.len()..]),
        None => line.to_owned(),
    };
    page.lines().map(line).collect::<Vec<_>>().join("\n")
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
    /// The daemon's status API: HOST:PORT, http://, https:// or unix:/PATH [default: that of the daemon on the state directory,
    /// else 127.0.0.1:7878]
    #[arg(long, env = "SETPOINT_SERVER", value_name = "ADDR")]
    server: Option<String>,
    /// File with the token for it; or set SETPOINT_TOKEN to the token itself
    #[arg(long, env = "SETPOINT_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Certificate authorities to trust for https://, in place of the system's
    #[arg(long, env = "SETPOINT_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
}

impl Server {
    /// Whether somebody said which one.
    fn is_named(&self) -> bool {
        self.server.is_some()
    }

    fn client(&self, config: &Config) -> client::Client {
        let client = match (&self.server, daemon::running(&config.state.dir)) {
            (Some(server), _) => client::Client::new(server),
            (None, Some(running)) => client::Client::of(&running),
            (None, None) => client::Client::new(&config.api.listen.to_string()),
        };
        client.with(client::Credentials::new(self.token_file.clone(), self.ca.clone()))
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

fn print_json(value: &impl serde::Serialize) {
    let text = serde_json::to_string_pretty(value).expect("what is printed holds only maps with text keys");
    print(&format!("{text}\n"));
}
