//! The lock that keeps a state directory to one process: an advisory lock on the file `lock`, which also names its holder.
//! The kernel releases it with the process, however that ends.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::{Result, StateError};

/// A process that is being started holds its parent's locks until it has become its own program, and so may outlive a parent
/// that was killed, by about a millisecond. A holder that is still there after this long is a real one.
const PATIENCE: Duration = Duration::from_millis(250);

/// Held while the state is open.
#[derive(Debug)]
pub(crate) struct LockFile {
    file: File,
}

impl LockFile {
    /// Takes the lock of `dir`, or says who has it.
    pub(crate) fn take(dir: &Path) -> Result<Self> {
        let path = dir.join("lock");
        let io = |operation| move |e| StateError::io(dir, operation, &dir.join("lock"), e);
        let mut options = OpenOptions::new();
        let mut file = options.read(true).write(true).create(true).truncate(false).open(&path).map_err(io("open"))?;
        if !lock_within(&file, PATIENCE).map_err(io("lock"))? {
            return Err(StateError::Locked { dir: dir.to_owned(), pid: read_pid(&mut file) });
        }
        write_pid(&mut file).map_err(io("write"))?;
        Ok(Self { file })
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        // Closing alone would leave the lock with a process that is just being started. If unlocking fails, closing is next.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

fn lock_within(file: &File, patience: Duration) -> std::io::Result<bool> {
    let deadline = Instant::now() + patience;
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) if Instant::now() >= deadline => return Ok(false),
            Err(Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_millis(5)),
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn write_pid(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}
