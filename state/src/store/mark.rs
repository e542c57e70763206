//! The store's generation, written down outside the engine: an engine that came back with older data than it had acknowledged
//! is found out by it.
//!
//! The mark is overwritten in place after each durable commit and is not synced itself, so after a power failure it may lag
//! behind the engine, never lead. One line of fixed length fits in a disk sector, which is written whole or not at all.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::envelope::Checksum;
use crate::error::{Result, StateError};

const NAME: &str = "generation";

/// The open mark file.
#[derive(Debug)]
pub(crate) struct Mark {
    dir: PathBuf,
    file: File,
}

impl Mark {
    /// The generation that the mark in `dir` tells, or `None` when there is no mark.
    pub(crate) fn read(dir: &Path) -> Result<Option<u64>> {
        let path = dir.join(NAME);
        match std::fs::read(&path) {
            Ok(bytes) => match parse(&bytes) {
                Some(generation) => Ok(Some(generation)),
                None => Err(StateError::damaged(dir, format!("{} is not a generation mark", path.display()))),
            },
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StateError::io(dir, "read", &path, e)),
        }
    }

    /// Opens the mark of `dir` for writing and sets it; makes it, whole or not at all, where there is none.
    pub(crate) fn open(dir: &Path, generation: u64) -> Result<Self> {
        let path = dir.join(NAME);
        let io = |operation| move |e: io::Error| StateError::io(dir, operation, &dir.join(NAME), e);
        if Self::read(dir)?.is_none() {
            let temporary = dir.join("generation.new");
            let mut file = File::create(&temporary).map_err(io("make"))?;
            file.write_all(line(generation).as_bytes()).map_err(io("write"))?;
            file.sync_all().map_err(io("sync"))?;
            std::fs::rename(&temporary, &path).map_err(io("rename"))?;
            super::sync_dir(dir).map_err(io("sync the directory of"))?;
        }
        let file = OpenOptions::new().write(true).open(&path).map_err(io("open"))?;
        let mark = Self { dir: dir.to_owned(), file };
        mark.set(generation)?;
        Ok(mark)
    }

    /// Writes `generation`, which the engine has made durable.
    pub(crate) fn set(&self, generation: u64) -> Result<()> {
        self.file
            .write_all_at(line(generation).as_bytes(), 0)
            .map_err(|e| StateError::io(&self.dir, "write", &self.dir.join(NAME), e))
    }
}

/// `generation <20 digits> <64 hex digits of checksum>`.
fn line(generation: u64) -> String {
    let text = format!("generation {generation:020}");
    format!("{text} {}\n", Checksum::of(text.as_bytes()))
}

fn parse(bytes: &[u8]) -> Option<u64> {
    let generation = std::str::from_utf8(bytes.get(11..31)?).ok()?.parse().ok()?;
    (bytes == line(generation).as_bytes()).then_some(generation)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn a_mark_reads_back_and_any_flipped_bit_is_noticed() {
        let bytes = line(42).into_bytes();
        assert_eq!(parse(&bytes), Some(42));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse(&flipped), None, "bit {bit}");
        }
    }

    #[test]
    fn the_newest_generation_is_the_one_that_is_read() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Mark::read(dir.path()).unwrap(), None);
        let mark = Mark::open(dir.path(), 1).unwrap();
        mark.set(7).unwrap();
        assert_eq!(Mark::read(dir.path()).unwrap(), Some(7));
    }
}
