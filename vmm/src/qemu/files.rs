//! Small files that another process reads while this one may die: written whole or not at all.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::driver::VmmError;

/// Larger than any record that is kept here; a damaged file does not fill the memory.
const MAX_RECORD: u64 = 1 << 20;

/// Wraps the cause of a failed file operation.
pub(crate) fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VmmError {
    let path = path.to_owned();
    move |source| VmmError::Io { operation, path, source }
}

/// Replaces `path` by a whole new content. Survives the death of this process at any point; the data is on disk on return.
pub(crate) fn write_atomic(path: &Path, content: &[u8]) -> io::Result<()> {
    // Nobody else writes under this name, in this process or another.
    static WRITES: AtomicU64 = AtomicU64::new(0);
    let unique = format!("{}-{}.tmp", std::process::id(), WRITES.fetch_add(1, Ordering::Relaxed));
    let temporary = beside(path, &unique);
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_data()?;
    fs::rename(&temporary, path)
}

/// [`write_atomic`] of a record.
pub(crate) fn write_json(path: &Path, record: &impl Serialize) -> io::Result<()> {
    write_atomic(path, &serde_json::to_vec_pretty(record)?)
}

/// Reads a record; `None` when there is no such file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut content = Vec::new();
    file.take(MAX_RECORD).read_to_end(&mut content)?;
    Ok(Some(serde_json::from_slice(&content)?))
}

/// The last bytes of a file, at most `limit`; nothing when there is no such file.
pub(crate) fn tail(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(limit as u64)))?;
    let mut content = Vec::new();
    file.take(limit as u64).read_to_end(&mut content)?;
    Ok(content)
}

/// Removes a file; none being there is as good.
pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// `path` with one more suffix, for what is being made beside it.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}
