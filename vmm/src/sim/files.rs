//! Small JSON files that are replaced as a whole, and the lock under which a world changes.
//!
//! Readers need no lock: a file appears, changes and goes by one rename or unlink.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, FlockOperation, RenameFlags, renameat_with};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::sim_error;
use crate::driver::{Result, VmmError};

/// Holds every other writer of the same world off, in this process and in others, until dropped.
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Makes the lock file at `path`, which stays empty. Whoever finds it may rely on what was made before it.
    pub(super) fn make(path: &Path) -> Result<()> {
        OpenOptions::new().create(true).append(true).open(path).map(drop).map_err(failed("create", path))
    }

    /// Waits for the lock file at `path`; `None` if there is none. The wait is short: nothing is awaited under the lock.
    pub(super) fn acquire(path: &Path) -> Result<Option<Self>> {
        let Some(file) = absent_is_none(File::open(path)).map_err(failed("open", path))? else { return Ok(None) };
        rustix::fs::flock(&file, FlockOperation::LockExclusive).map_err(|e| failed("lock", path)(e.into()))?;
        Ok(Some(Self { _file: file }))
    }

    /// Replaces the file at `path`. One name serves all that is being written, because the lock admits one writer.
    pub(super) fn write(&self, path: &Path, next: &Path, content: &[u8]) -> Result<()> {
        fs::write(next, content).map_err(failed("write", next))?;
        // Exchanging two files spares the write to the device that ext4 puts before replacing one. It needs a file to exchange
        // with, and a file system that can.
        match renameat_with(CWD, next, CWD, path, RenameFlags::EXCHANGE) {
            Ok(()) => self.remove(next),
            Err(_) => fs::rename(next, path).map_err(failed("replace", path)),
        }
    }

    /// Appends a line.
    pub(super) fn append(&self, path: &Path, line: &str) -> Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(path).map_err(failed("open", path))?;
        writeln!(file, "{line}").map_err(failed("append to", path))
    }

    /// Removes the file at `path` if it is there.
    pub(super) fn remove(&self, path: &Path) -> Result<()> {
        absent_is_none(fs::remove_file(path)).map(|_| ()).map_err(failed("remove", path))
    }
}

/// Several ticks of the kernel's clock for files.
const TICK: Duration = Duration::from_millis(50);

/// What tells one content of a file from another without reading it, once it [settles](Self::is_settled). Files are replaced as a
/// whole, so that a new content has a new inode, or one that was free again, at a new time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl Stamp {
    /// Of the file at `path`, if there is one.
    pub fn of(path: &Path) -> Result<Option<Self>> {
        let metadata = absent_is_none(fs::metadata(path)).map_err(failed("read", path))?;
        Ok(metadata.map(|m| Self { inode: m.ino(), length: m.len(), modified: (m.mtime(), m.mtime_nsec()) }))
    }

    /// Whether the file was last replaced so long ago that whatever replaces it now gets another time. The kernel's clock for files
    /// ticks every few milliseconds, and an inode can be free and taken again within one.
    pub fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (seconds, nanos) = self.modified;
        let modified = Duration::new(seconds.try_into().unwrap_or(0), nanos.try_into().unwrap_or(0));
        now > modified + TICK
    }
}

/// The names, without their ending, of all files in the directory at `path`; none if there is no directory.
pub(super) fn names(path: &Path) -> Result<Vec<String>> {
    let Some(entries) = absent_is_none(fs::read_dir(path)).map_err(failed("list", path))? else {
        return Ok(Vec::new());
    };
    let name = |entry: fs::DirEntry| Some(entry.path().file_stem()?.to_str()?.to_owned());
    let names: std::io::Result<Vec<_>> = entries.map(|entry| entry.map(name)).collect();
    Ok(names.map_err(failed("list", path))?.into_iter().flatten().collect())
}

/// The value that the file at `path` holds, if there is one.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Some(bytes) = absent_is_none(fs::read(path)).map_err(failed("read", path))? else { return Ok(None) };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| sim_error(format!("cannot understand {}: {e}", path.display())))
}

/// The values of all files in the directory at `path`, in the order of their names; none if there is no directory.
pub(super) fn read_all<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let Some(entries) = absent_is_none(fs::read_dir(path)).map_err(failed("list", path))? else {
        return Ok(Vec::new());
    };
    let paths: std::io::Result<Vec<_>> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut paths = paths.map_err(failed("list", path))?;
    paths.sort();
    // A file that went between listing and reading is not there.
    paths.iter().filter_map(|path| read_json(path).transpose()).collect()
}

/// The form in which values stand in files: readable, since people look at them.
pub(super) fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec_pretty(value).expect("world files hold only maps with text keys")
}

/// Separates "not there" from failures.
pub(super) fn absent_is_none<T>(result: std::io::Result<T>) -> std::io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Says what was tried on which path.
pub(super) fn failed(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> VmmError {
    let path = path.to_owned();
    move |source| VmmError::Io { operation, path, source }
}
