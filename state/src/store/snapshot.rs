//! Looking at a state without touching it: its files are copied into a temporary directory and the copy is opened. It needs no
//! lock and leaves no trace, so it works beside a running daemon.
//!
//! A copy that a commit ran into may not fit together. The generation mark, read before and after, tells of most such commits
//! and the checks of every opening tell of the others; either way the copy is made again.

use std::io;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;

use crate::error::{Result, StateError};
use crate::store::Store;
use crate::store::engine::{DIRECTORY, Engine};
use crate::store::mark::Mark;
use crate::store::verify::verify;
use crate::store::view::View;

/// Copying takes milliseconds, so this many collisions with commits mean a daemon that does nothing but write.
const ATTEMPTS: u32 = 50;
/// Damage that is still there when nothing was written meanwhile is damage; a few tries more cost nothing.
const DAMAGED_ATTEMPTS: u32 = 5;

/// A state as it was at one moment.
#[derive(Debug)]
pub struct Snapshot {
    view: View,
    /// Removed after the view is closed.
    _copy: TempDir,
}

impl Deref for Snapshot {
    type Target = View;
    fn deref(&self) -> &View {
        &self.view
    }
}

impl Store {
    /// Reads the state in `dir` as it is now, without a lock and without writing to `dir`. A directory without a state, or none
    /// at all, reads as an empty state.
    ///
    /// # Errors
    /// As [`Store::open`], but never [`StateError::Locked`]; [`StateError::Busy`] when commits never ceased.
    pub fn snapshot_read(dir: &Path) -> Result<Snapshot> {
        let mut damaged = 0;
        for _ in 0..ATTEMPTS {
            let before = Mark::read(dir)?;
            let copied = copy(dir);
            let quiet = Mark::read(dir)? == before;
            match copied.and_then(|copy| open(dir, copy)) {
                Ok(snapshot) if quiet => return Ok(snapshot),
                Err(error) if quiet && !matches!(error, StateError::Damaged { .. }) => return Err(error),
                Err(error) if quiet => {
                    damaged += 1;
                    if damaged == DAMAGED_ATTEMPTS {
                        return Err(error);
                    }
                }
                Ok(_) | Err(_) => {}
            }
        }
        Err(StateError::Busy { dir: dir.to_owned(), attempts: ATTEMPTS })
    }
}

fn open(dir: &Path, copy: TempDir) -> Result<Snapshot> {
    let engine = Engine::open(copy.path(), dir)?;
    verify(&engine, copy.path(), dir)?;
    Ok(Snapshot { view: View { engine: Arc::new(engine), dir: dir.to_owned() }, _copy: copy })
}

/// The mark first: a copy may be newer than its mark, never older.
fn copy(dir: &Path) -> Result<TempDir> {
    let io = |operation| move |e| StateError::io(dir, operation, dir, e);
    let copy = tempfile::Builder::new().prefix("setpoint-state-").tempdir().map_err(io("make a temporary copy of"))?;
    copy_file(&dir.join("generation"), &copy.path().join("generation")).map_err(io("copy"))?;
    copy_files(&dir.join(DIRECTORY), &copy.path().join(DIRECTORY)).map_err(io("copy"))?;
    Ok(copy)
}

fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(from) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    std::fs::create_dir_all(to)?;
    for entry in entries {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_files(&entry.path(), &target)?,
            false => copy_file(&entry.path(), &target)?,
        }
    }
    Ok(())
}

/// A file that is gone by now was in the way of a commit; whether the rest fits together is checked later.
fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::copy(from, to) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}
