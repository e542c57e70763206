//! Traces of a write: everything about the files below a directory that one would change.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use setpoint_schema::id::sha256_hex;

/// One file, folder or link. The time of the last status change moves with every write, rename and change of rights; reading
/// leaves it alone.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    inode: u64,
    mode: u32,
    changed: (i64, i64),
    content: String,
}

/// All that is below some directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traces(BTreeMap<PathBuf, Entry>);

impl Traces {
    /// Looks at everything below these directories, which are part of it.
    pub fn of(dirs: &[PathBuf]) -> Self {
        let mut entries = BTreeMap::new();
        dirs.iter().for_each(|dir| look(dir, &mut entries));
        Self(entries)
    }

    /// The paths that are new, gone or different.
    pub fn differences(&self, later: &Self) -> Vec<PathBuf> {
        let paths = self.0.keys().chain(later.0.keys().filter(|path| !self.0.contains_key(*path)));
        paths.filter(|path| self.0.get(*path) != later.0.get(*path)).cloned().collect()
    }
}

fn look(path: &Path, entries: &mut BTreeMap<PathBuf, Entry>) {
    let found = fs::symlink_metadata(path).unwrap();
    let content = if found.is_dir() {
        let inside = fs::read_dir(path).unwrap();
        inside.for_each(|entry| look(&entry.unwrap().path(), entries));
        "a folder".to_owned()
    } else if found.is_symlink() {
        fs::read_link(path).unwrap().display().to_string()
    } else if !found.is_file() {
        "a socket, or whatever else cannot be read".to_owned()
    } else {
        sha256_hex(&[&fs::read(path).unwrap()])
    };
    let changed = (found.ctime(), found.ctime_nsec());
    entries.insert(path.to_owned(), Entry { inode: found.ino(), mode: found.mode(), changed, content });
}
