//! What a copy of a disk leaves out of its workspace: directories that anybody can make again, as `node_modules`.
//!
//! The host copies the disk as a whole, since it never looks into a guest's file system. The agent of the machine that begins with the
//! copy removes them, before anything of the app runs. It notes for which snapshot it has, so that what the app makes later stays. The logs
//! of the machine that the disk was of go with them.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use crate::limits;

use super::{MANIFEST, Manifest, Result, Workspace, WorkspaceError, write_durably};

/// The file in the agent's own directory that says for which snapshot directories were left out.
const LEFT_OUT: &str = "left-out";

/// What to leave out, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    snapshot: String,
    names: BTreeSet<OsString>,
}

impl LeftOut {
    /// The host sends none that is wrong; names become paths here.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(snapshot: String, names: Vec<String>) -> std::result::Result<Self, &'static str> {
        if !(1..=64).contains(&snapshot.len()) || !snapshot.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err("the snapshot must be 1 to 64 letters or digits");
        }
        if names.len() > limits::LEFT_OUT {
            return Err("too many names to leave out");
        }
        let is_name = |name: &String| {
            (1..=255).contains(&name.len()) && name != "." && name != ".." && !name.contains(['/', '\0'])
        };
        if !names.iter().all(is_name) {
            return Err("what is left out must be the name of a directory");
        }
        Ok(Self { snapshot, names: names.into_iter().map(OsString::from).collect() })
    }

    /// The snapshot that the disk is a copy of.
    #[must_use]
    pub fn snapshot(&self) -> &str {
        &self.snapshot
    }

    /// Whether a file of git lies in such a directory.
    fn holds(&self, path: &str) -> bool {
        let directories = Path::new(path).parent().into_iter().flat_map(Path::iter);
        directories.into_iter().any(|name| self.names.contains::<OsStr>(name))
    }
}

impl Workspace {
    /// For which snapshot directories were left out last.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn left_out(&self) -> Result<Option<String>> {
        match fs::read_to_string(self.state.join(LEFT_OUT)) {
            Ok(snapshot) => Ok(Some(snapshot)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(WorkspaceError::Io { operation: "read", path: LEFT_OUT.to_owned(), source }),
        }
    }

    /// Removes the directories, unless that was done for this snapshot before. Cut short, it is simply done again.
    ///
    /// # Errors
    /// Something was applied already, or the file system refuses.
    pub fn leave_out(&mut self, left_out: &LeftOut, is_new: bool) -> Result<()> {
        if self.left_out()?.as_ref() == Some(&left_out.snapshot) {
            return Ok(());
        }
        if !is_new {
            return Err(WorkspaceError::Order("directories are left out before anything is applied"));
        }
        let failed = |path: &str, source| WorkspaceError::Io { operation: "leave out", path: path.to_owned(), source };
        // What git put into them counts as missing from now on, and comes again.
        let files = self.manifest.files.iter().filter(|(path, _)| !left_out.holds(path));
        let files: std::collections::BTreeMap<_, _> =
            files.map(|(path, entry)| (path.clone(), entry.clone())).collect();
        if files.len() < self.manifest.files.len() {
            let manifest = Manifest { tree: String::new(), files };
            let write = || write_durably(&self.state.join(MANIFEST), &serde_json::to_vec(&manifest)?);
            write().map_err(|source| failed(MANIFEST, source))?;
            self.manifest = manifest;
        }
        let root = PathBuf::from(format!("/proc/self/fd/{}", self.root.as_raw_fd()));
        remove_directories(&root, &left_out.names)
            .map_err(|(path, source)| failed(&path.strip_prefix(&root).unwrap_or(&path).to_string_lossy(), source))?;
        let note = || {
            rustix::fs::syncfs(File::open(&self.state)?)?;
            write_durably(&self.state.join(LEFT_OUT), left_out.snapshot.as_bytes())
        };
        note().map_err(|source| failed(LEFT_OUT, source))
    }
}

/// Removes every directory of these names below `root`. Nothing of the app runs, so that paths stay what they are; a symbolic link is
/// no directory.
fn remove_directories(root: &Path, names: &BTreeSet<OsString>) -> std::result::Result<(), (PathBuf, io::Error)> {
    let mut left = vec![root.to_owned()];
    while let Some(directory) = left.pop() {
        let failed = |error| (directory.clone(), error);
        for entry in fs::read_dir(&directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if !entry.file_type().map_err(failed)?.is_dir() {
                continue;
            }
            let path = entry.path();
            if names.contains(&entry.file_name()) {
                fs::remove_dir_all(&path).map_err(|error| (path, error))?;
            } else {
                left.push(path);
            }
        }
    }
    Ok(())
}
