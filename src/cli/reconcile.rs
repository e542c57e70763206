//! `setpoint reconcile`: converge once, carry out a saved plan, or with `--dry-run` show what would be done.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use setpoint_plan::model::Hold;
use setpoint_plan::render::{Color, json, markdown, text};

use super::style::{self, Paint};
use super::{Failure, print, print_json, run};
use crate::config::Config;
use crate::converge::Pass;
use crate::converge::follow::Rewind;
use crate::preview::saved::SavedPlan;
use crate::preview::{Declarations, Ids, Preview, PreviewBasis, compare, preview};
use crate::report::count;
use crate::{daemon, source};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Saved plan to carry out, and nothing else
    #[arg(value_name = "PLAN", conflicts_with_all = ["dry_run", "allow_rewind"])]
    plan: Option<PathBuf>,
    /// Show the plan and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Revision to preview: a commit, a branch, a tag
    #[arg(long, requires = "dry_run", conflicts_with = "worktree")]
    rev: Option<String>,
    /// Preview the files as they are, uncommitted edits included
    #[arg(long, requires = "dry_run")]
    worktree: bool,
    /// Compare with another revision, as if that were carried out, instead of with what exists
    #[arg(long, value_name = "REV", requires = "dry_run")]
    against: Option<String>,
    /// Write the plan to a file, to be carried out by `setpoint reconcile PLAN`
    #[arg(long, value_name = "PLAN", requires = "dry_run", conflicts_with_all = ["worktree", "against"])]
    save_plan: Option<PathBuf>,
    /// Output format of the plan
    #[arg(short, long, value_enum, default_value = "text", requires = "dry_run")]
    output: Format,
    /// Exit with 2 when the plan holds changes
    #[arg(long, requires = "dry_run")]
    exit_code: bool,
    /// Follow the branch to a revision that does not descend from the last accepted one
    #[arg(long, conflicts_with = "dry_run")]
    allow_rewind: bool,
}

/// How a plan is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// For people at a terminal.
    Text,
    /// For programs.
    Json,
    /// For a pull request, at most 60,000 bytes.
    Markdown,
}

pub async fn run(config: Config, args: Args) -> Result<ExitCode, Failure> {
    match &args.plan {
        Some(plan) => carry_out(config, plan).await,
        None if args.dry_run => dry_run(config, &args).await,
        None => converge(config, &args).await,
    }
}

async fn dry_run(config: Config, args: &Args) -> Result<ExitCode, Failure> {
    let declarations = declarations(&config, args)?;
    let preview = match &args.against {
        Some(against) => compare(&config, &declarations, against).await?,
        None => {
            let ids = if args.save_plan.is_some() { Ids::Kept } else { Ids::Shown };
            preview(&config, &declarations, ids).await?
        }
    };
    for diagnostic in &preview.diagnostics {
        eprintln!("error: {diagnostic}");
    }
    if let PreviewBasis::Revision { revision, unknown } = &preview.basis
        && let Some(first) = unknown.first()
    {
        let (apps, revision) = (count(unknown.len(), "app"), revision.short());
        eprintln!("warning: {apps} with mistakes at {revision} count as not there before: {first} is the first");
    }
    match args.output {
        Format::Json => print_json(&json(preview.review())),
        Format::Text => print(&text(preview.review(), color())),
        Format::Markdown => print(&markdown(preview.review())),
    }
    if let Some(path) = &args.save_plan {
        save(&preview, &declarations, path)?;
    }
    Ok(if !preview.diagnostics.is_empty() {
        ExitCode::FAILURE
    } else if args.exit_code && !preview.plan.actions.is_empty() {
        ExitCode::from(2)
    } else {
        ExitCode::SUCCESS
    })
}

fn save(preview: &Preview, declarations: &Declarations, path: &Path) -> Result<(), Failure> {
    let Declarations::Revision { repo, .. } = declarations else { return Ok(()) };
    if !preview.diagnostics.is_empty() {
        let hint = "mend them first: a plan that is carried out later should be all that was meant".to_owned();
        return Err(Failure::new("the plan is not saved, because the declarations have mistakes", Some(hint)));
    }
    if let Some(saved) = SavedPlan::of(preview, repo)? {
        saved.write(path)?;
        eprintln!("saved; carry it out with `setpoint reconcile {}`", path.display());
    }
    Ok(())
}

/// What to preview: in a checkout and without flags, its HEAD; elsewhere the configured repository.
fn declarations(config: &Config, args: &Args) -> Result<Declarations, Failure> {
    let here = std::env::current_dir().map_err(|error| Failure::new(error, None))?;
    let checkout = source::discover(&here);
    if args.worktree {
        return match config.source.url.as_ref().map(PathBuf::from).filter(|path| path.is_dir()).or(checkout) {
            Some(dir) => Ok(Declarations::Worktree(dir)),
            None => Err(no_declarations(&here)),
        };
    }
    let rev = args.rev.clone().unwrap_or_else(|| "HEAD".to_owned());
    match (&config.source.url, checkout) {
        (Some(repo), _) => Ok(Declarations::Revision { repo: repo.clone(), branch: config.source.branch.clone(), rev }),
        (None, Some(checkout)) => {
            Ok(Declarations::Revision { repo: checkout.display().to_string(), branch: None, rev })
        }
        (None, None) => Err(no_declarations(&here)),
    }
}

fn no_declarations(here: &Path) -> Failure {
    let hint = "run this inside a checkout, or pass --repo PATH_OR_URL".to_owned();
    Failure::new(format!("{} is not in a git repository, and no other is named", here.display()), Some(hint))
}

/// Carries out a saved plan. In a checkout and without flags, that of its repository.
async fn carry_out(mut config: Config, plan: &Path) -> Result<ExitCode, Failure> {
    let saved = SavedPlan::read(plan)?;
    refuse_beside_daemon(
        &config,
        "it carries out by itself what is committed; stop it to carry out a saved plan instead",
    )?;
    if config.source.url.is_none() {
        let here = std::env::current_dir().map_err(|error| Failure::new(error, None))?;
        config.source.url = source::discover(&here).map(|checkout| checkout.display().to_string());
    }
    let mut progress = Progress::default();
    let pass = daemon::carry_out(&config, &saved, run::shutdown_on_signal()?, |pass| progress.show(pass)).await?;
    match pass {
        Some(pass) => conclude(&pass),
        None => Err(Failure::new("interrupted before the first look around", None)),
    }
}

fn refuse_beside_daemon(config: &Config, hint: &str) -> Result<(), Failure> {
    match daemon::running(&config.state.dir) {
        Some(daemon) => {
            let message = format!("a daemon (process {}) has this state directory", daemon.pid);
            Err(Failure::new(message, Some(hint.to_owned())))
        }
        None => Ok(()),
    }
}

async fn converge(config: Config, args: &Args) -> Result<ExitCode, Failure> {
    refuse_beside_daemon(&config, "commit, and it converges; `setpoint reconcile --dry-run` previews")?;
    let rewind = if args.allow_rewind || config.source.allow_rewind { Rewind::Allowed } else { Rewind::Refused };
    let mut progress = Progress::default();
    let pass = daemon::converge_once(&config, rewind, run::shutdown_on_signal()?, |pass| progress.show(pass)).await?;
    match pass {
        Some(pass) => conclude(&pass),
        None => Err(Failure::new("interrupted before the first look around", None)),
    }
}

/// Says how the convergence ended: success is nothing left to do and nothing broken.
fn conclude(pass: &Pass) -> Result<ExitCode, Failure> {
    let trouble = pass.followed.trouble.iter().map(|trouble| trouble.message.clone());
    let mistakes = pass.followed.diagnostics.iter().map(ToString::to_string);
    let undone = pass.plan.actions.iter().map(|action| {
        let why: Vec<_> = action.blocked.iter().map(ToString::to_string).collect();
        format!("{} of {} is not done: {}", action.kind, action.app, why.join("; "))
    });
    let unready = pass.plan.held.iter().filter_map(|held| match &held.reason {
        Hold::Unready(reason) => Some(format!("{} is not ready: {reason}", held.app)),
        Hold::Unresumable(_) => Some(format!("{} {}", held.app, held.reason)),
        Hold::Suspended | Hold::SuspendedHere(_) | Hold::PruneDisabled | Hold::PruneUnsafe(_) | Hold::Stalled(_) => {
            None
        }
    });
    let untaken = pass.plan.snapshots.iter().map(|held| format!("snapshot {}: {}", held.snapshot, held.reason));
    let problems: Vec<_> = trouble.chain(mistakes).chain(undone).chain(unready).chain(untaken).collect();
    for problem in &problems {
        eprintln!("error: {problem}");
    }
    let revision = pass.followed.desired.revision.short();
    let apps = count(pass.followed.desired.apps.len(), "app");
    eprintln!("{apps} at revision {revision}, {}", count(problems.len(), "problem"));
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Says on a terminal what is being worked on; quiet elsewhere.
#[derive(Default)]
struct Progress {
    last: String,
}

impl Progress {
    fn show(&mut self, pass: &Pass) {
        if !std::io::stderr().is_terminal() {
            return;
        }
        let busy: Vec<_> = pass.busy.iter().map(ToString::to_string).collect();
        let waiting = pass.plan.actions.len().saturating_sub(busy.len());
        let line = match (busy.is_empty(), waiting) {
            (true, 0) => "waiting for apps to get ready".to_owned(),
            (true, waiting) => format!("{waiting} actions wait"),
            (false, waiting) => format!("working on {}; {waiting} more", busy.join(", ")),
        };
        if line != self.last {
            eprintln!("{line}");
            self.last = line;
        }
    }
}

fn color() -> Color {
    match style::stdout() {
        Paint::Plain => Color::Never,
        Paint::Colour => Color::Always,
    }
}
