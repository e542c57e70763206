//! Logs with a bound: a file and its predecessor, rotated by size.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::qemu::files::beside;

/// A log and its predecessor hold this much each: days of a quiet guest, and nothing to a host.
const MAX_BYTES: u64 = 1 << 20;

/// A console line longer than this is no message of a kernel.
const MAX_LINE: usize = 512;

/// How a Linux guest says that it has panicked.
const PANIC: &str = "Kernel panic - not syncing";

/// A file that becomes `<name>.1` when it is full.
pub(super) struct RotatingLog {
    path: PathBuf,
    file: File,
    written: u64,
}

impl RotatingLog {
    /// Begins a new log; that of the boot before becomes `<name>.1`.
    pub fn create(path: &Path) -> io::Result<Self> {
        match fs::rename(path, beside(path, "1")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        Ok(Self { path: path.to_owned(), file: File::create(path)?, written: 0 })
    }

    /// Appends, rotating first when it does not fit.
    pub fn write(&mut self, data: &[u8]) -> io::Result<()> {
        if self.written + data.len() as u64 > MAX_BYTES {
            *self = Self::create(&self.path)?;
        }
        self.file.write_all(data)?;
        self.written += data.len() as u64;
        Ok(())
    }
}

/// The guest's console: logged, and watched for the kernel's last words.
pub(super) struct ConsoleLog {
    log: RotatingLog,
    line: Vec<u8>,
    panic: Option<String>,
}

impl ConsoleLog {
    /// Begins a new log.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self { log: RotatingLog::create(path)?, line: Vec::new(), panic: None })
    }

    /// Appends.
    pub fn write(&mut self, data: &[u8]) -> io::Result<()> {
        for byte in data {
            match byte {
                b'\n' | b'\r' => self.end_line(),
                byte if self.line.len() < MAX_LINE => self.line.push(*byte),
                _ => {}
            }
        }
        self.log.write(data)
    }

    /// The line in which the kernel said that it panicked, as far as it came.
    pub fn panic_line(&mut self) -> Option<String> {
        self.end_line();
        self.panic.take()
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&self.line);
        if let Some(at) = line.find(PANIC) {
            let plain = line[at..].chars().filter(|c| !c.is_control());
            // The last one: what a process of the guest printed before cannot stand in for it.
            self.panic = Some(plain.collect());
        }
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing step is a failing test")]

    use super::*;

    #[test]
    fn a_log_and_its_predecessor_stay_under_their_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = RotatingLog::create(&path).unwrap();
        for _ in 0..5 * MAX_BYTES / 4096 {
            log.write(&[b'x'; 4096]).unwrap();
        }
        let sizes: Vec<_> = [path.clone(), beside(&path, "1")].iter().map(|p| fs::metadata(p).unwrap().len()).collect();
        assert!(sizes.iter().all(|size| *size <= MAX_BYTES), "{sizes:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_panic_is_found_across_reads_and_without_colours() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = ConsoleLog::create(&dir.path().join("console.log")).unwrap();
        log.write(b"[    1.0] Kernel pa").unwrap();
        log.write(b"nic - not syncing: Attempted to kill init!\x1b\r\n[ 1.1] CPU: 0").unwrap();
        assert_eq!(log.panic_line().unwrap(), "Kernel panic - not syncing: Attempted to kill init!");
    }

    #[test]
    fn an_endless_line_takes_no_memory() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = ConsoleLog::create(&dir.path().join("console.log")).unwrap();
        log.write(&[b'x'; 100_000]).unwrap();
        assert!(log.line.len() <= MAX_LINE);
    }
}
