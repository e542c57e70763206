//! `setpoint validate PATH`: every mistake in a directory of declarations at once. Needs no daemon and no commit.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use setpoint_plan::desired::Completeness;
use setpoint_schema::id::CommitId;

use super::{Failure, count, print};
use crate::desired::WORKTREE;
use crate::preview;
use crate::source::{SourceLimits, Worktree};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The directory that holds `apps/`
    #[arg(default_value = ".")]
    path: PathBuf,
}

pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let worktree = Worktree::read(&args.path, SourceLimits::default())?;
    let loaded = preview::loader().load_files(&worktree, &CommitId(WORKTREE.to_owned()), &BTreeMap::new())?;
    for diagnostic in &loaded.diagnostics {
        eprintln!("error: {diagnostic}\n");
    }
    if !loaded.diagnostics.is_empty() {
        return Err(Failure::new(count(loaded.diagnostics.len(), "mistake"), None));
    }
    // A directory without apps is more often the wrong one than an empty one.
    if loaded.desired.completeness == Completeness::EmptyRefused {
        let hint = "name the directory that holds `apps/`; where no apps are meant, its setpoint.toml says `allow_empty = \
                    true` under [policies]";
        return Err(Failure::new(format!("{} declares no apps", args.path.display()), Some(hint.to_owned())));
    }
    print(&format!("{}, no mistakes\n", count(loaded.desired.apps.len(), "app")));
    Ok(ExitCode::SUCCESS)
}
