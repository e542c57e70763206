//! `setpoint validate PATH`: every mistake in a directory of declarations at once. Needs no daemon and no commit.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use setpoint_schema::id::CommitId;

use super::{Failure, print};
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
    match loaded.diagnostics.len() {
        0 => {
            print(&format!("{} apps, no mistakes\n", loaded.desired.apps.len()));
            Ok(ExitCode::SUCCESS)
        }
        1 => Err(Failure::new("1 mistake", None)),
        many => Err(Failure::new(format!("{many} mistakes"), None)),
    }
}
