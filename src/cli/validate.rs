//! `setpoint validate PATH`: every mistake in a directory of declarations at once, for people, programs and forges. Needs no
//! daemon and no commit.

mod annotations;
mod sarif;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use setpoint_plan::desired::Completeness;
use setpoint_schema::diagnostic::Diagnostic;
use setpoint_schema::id::CommitId;
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::LastGood;

use super::{Failure, print, print_json};
use crate::desired::{Loaded, WORKTREE};
use crate::preview;
use crate::report::count;
use crate::source::{self, SourceLimits, Worktree};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The directory that holds `apps/`
    #[arg(default_value = ".")]
    path: PathBuf,
    /// Output format of the mistakes
    #[arg(short, long, value_enum, default_value = "text")]
    output: Format,
    /// The most files that are read
    #[arg(long, value_name = "N", default_value_t = SourceLimits::default().files)]
    max_files: u64,
}

/// How mistakes are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// For people, with the lines that they stand on.
    Text,
    /// For programs.
    Json,
    /// GitHub's workflow commands, which annotate a pull request.
    Github,
    /// SARIF 2.1.0, for code scanning.
    Sarif,
}

pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let worktree = Worktree::read(&args.path, SourceLimits { files: args.max_files, ..SourceLimits::default() })?;
    let nothing_known = BTreeMap::<AppKey, LastGood>::new();
    let mut loader = preview::loader();
    let mut loaded = loader.load_files(&worktree, &CommitId(WORKTREE.into()), &nothing_known)?;
    loader.advise(&mut loaded);
    report(args, &loaded);
    if !loaded.diagnostics.is_empty() {
        return Err(Failure::new(count(loaded.diagnostics.len(), "mistake"), None));
    }
    // A directory without apps is more often the wrong one than an empty one.
    if loaded.desired.completeness == Completeness::EmptyRefused {
        let hint = "name the directory that holds `apps/`; where no apps are meant, its setpoint.toml says `allow_empty = \
                    true` under [policies]";
        return Err(Failure::new(format!("{} declares no apps", args.path.display()), Some(hint.to_owned())));
    }
    if args.output == Format::Text {
        print(&format!("{}, no mistakes\n", count(loaded.desired.apps.len(), "app")));
    }
    Ok(ExitCode::SUCCESS)
}

fn report(args: &Args, loaded: &Loaded) {
    let mistakes: &[Diagnostic] = &loaded.diagnostics;
    match args.output {
        Format::Text => mistakes.iter().for_each(|mistake| eprintln!("error: {mistake}\n")),
        Format::Json => print_json(&serde_json::json!({
            "format_version": "1.0",
            "apps": loaded.desired.apps.len(),
            "diagnostics": mistakes,
        })),
        Format::Github => print(&annotations::github(mistakes, &from_top(&args.path))),
        Format::Sarif => print_json(&sarif::sarif(mistakes, &from_top(&args.path))),
    }
}

/// The directory as seen from the top of its repository, by which forges name files; as it was named where there is none.
fn from_top(dir: &Path) -> PathBuf {
    let within = || {
        let top = source::discover(dir)?.canonicalize().ok()?;
        Some(dir.canonicalize().ok()?.strip_prefix(top).ok()?.to_owned())
    };
    within().unwrap_or_else(|| dir.to_owned())
}
