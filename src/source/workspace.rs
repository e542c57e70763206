//! The files below one folder: an app's workspace, or a template's root. Which they are, and what cannot be among them.

use std::collections::BTreeMap;

use setpoint_schema::id::{BlobId, CommitId, TreeDigest, sha256_hex};
use setpoint_schema::name::RepoPath;
use setpoint_vmm::driver::{FileKind, ManifestEntry};

use super::error::{Excess, SourceError};
use super::tree::{Folder, Item};
use super::walk::limit;
use super::{Files, Repository, join};

/// The longest target of a symbolic link, as in Linux.
const MAX_LINK_BYTES: u64 = 4096;
/// The files that declare an app and are not part of its workspace.
const DECLARATION_FILES: [&str; 2] = ["app.yaml", "sandbox.yaml"];

/// The files below one folder, by relative path.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// The files.
    pub files: BTreeMap<String, ManifestEntry>,
}

/// Where symbolic links may lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// Nowhere outside the folder: a workspace stands among other files of its guest.
    Inside,
    /// Anywhere: a root file system is a world of its own.
    Anywhere,
}

/// Whether the folder at `path` declares an app, whose `app.yaml` and `sandbox.yaml` then are not workspace files.
#[must_use]
pub fn is_app_folder(path: &RepoPath, folder: &Folder) -> bool {
    path.as_str().starts_with("apps/") && folder.child("app.yaml").is_some()
}

impl Listing {
    /// The workspace that the folder at `path` holds.
    ///
    /// # Errors
    /// When it holds a submodule, a name that is not UTF-8, a symbolic link that may leave it, or is beyond the limits.
    pub fn of_workspace(files: &dyn Files, path: &RepoPath, folder: &Folder) -> Result<Self, SourceError> {
        let left_out: &[&str] = if is_app_folder(path, folder) { &DECLARATION_FILES } else { &[] };
        Self::read(files, path, folder, Links::Inside, left_out)
    }

    /// Everything below the folder at `path`, for a template's root file system.
    ///
    /// # Errors
    /// When it holds a submodule or a name that is not UTF-8, or is beyond the limits.
    pub fn of_rootfs(files: &dyn Files, path: &RepoPath, folder: &Folder) -> Result<Self, SourceError> {
        Self::read(files, path, folder, Links::Anywhere, &[])
    }

    fn read(
        files: &dyn Files,
        path: &RepoPath,
        folder: &Folder,
        links: Links,
        left_out: &[&str],
    ) -> Result<Self, SourceError> {
        let mut items = Vec::new();
        folder.walk("", &mut |name, item| items.push((name, item)));
        let (mut listing, mut bytes) = (Self::default(), 0_u64);
        let limits = files.limits();
        for (name, item) in items.into_iter().filter(|(name, _)| !left_out.contains(&name.as_str())) {
            let full = join(path.as_str(), &name);
            let (blob, kind) = match item {
                // `walk` goes into folders.
                Item::Folder(_) => continue,
                Item::Refused(refusal) => {
                    return Err(SourceError::Refused { path: full, problem: refusal.to_string() });
                }
                Item::File { blob, kind } => (blob, *kind),
            };
            match (kind, links) {
                (FileKind::Symlink, Links::Inside) => check_link(files, &full, &name, blob)?,
                (FileKind::Symlink, Links::Anywhere) | (FileKind::Regular | FileKind::Executable, _) => {}
            }
            let size = files.size(blob)?;
            if size > limits.file_bytes {
                return Err(limit(&full, Excess::FileSize { size, limit: limits.file_bytes }));
            }
            bytes = bytes.saturating_add(size);
            listing.files.insert(name, ManifestEntry { blob: blob.clone(), kind });
        }
        if bytes > limits.workspace_bytes {
            return Err(limit(path.as_str(), Excess::TotalSize { limit: limits.workspace_bytes }));
        }
        Ok(listing)
    }

    /// The hash over path, kind and content of every file.
    #[must_use]
    pub fn digest(&self) -> TreeDigest {
        let parts: Vec<&[u8]> = self
            .files
            .iter()
            .flat_map(|(path, entry)| {
                let kind: &[u8] = match entry.kind {
                    FileKind::Regular => b"file",
                    FileKind::Executable => b"executable",
                    FileKind::Symlink => b"symlink",
                };
                [path.as_bytes(), kind, entry.blob.as_str().as_bytes()]
            })
            .collect();
        TreeDigest(sha256_hex(&parts).into())
    }
}

impl Repository {
    /// The workspace files of the folder at `path` in `commit`, for bringing a guest to them.
    ///
    /// # Errors
    /// When the folder is not there, or as [`Listing::of_workspace`].
    pub fn workspace(
        &self,
        commit: &CommitId,
        path: &RepoPath,
    ) -> Result<BTreeMap<String, ManifestEntry>, SourceError> {
        let snapshot = self.snapshot(commit)?;
        let folder = snapshot.root().folder(path).ok_or_else(|| no_folder(commit, path))?;
        Ok(Listing::of_workspace(&snapshot, path, folder)?.files)
    }

    /// Everything below the folder at `path` in `commit`, for building a template's root from it.
    ///
    /// # Errors
    /// When the folder is not there, or as [`Listing::of_rootfs`].
    pub fn folder(&self, commit: &CommitId, path: &RepoPath) -> Result<BTreeMap<String, ManifestEntry>, SourceError> {
        let snapshot = self.snapshot(commit)?;
        let folder = snapshot.root().folder(path).ok_or_else(|| no_folder(commit, path))?;
        Ok(Listing::of_rootfs(&snapshot, path, folder)?.files)
    }

    /// The plain file at `path` in `commit`, if that is what stands there.
    ///
    /// # Errors
    /// When the revision cannot be read.
    pub fn file(&self, commit: &CommitId, path: &RepoPath) -> Result<Option<BlobId>, SourceError> {
        Ok(match self.snapshot(commit)?.root().get(path) {
            Some(Item::File { blob, kind: FileKind::Regular | FileKind::Executable }) => Some(blob.clone()),
            Some(Item::File { kind: FileKind::Symlink, .. } | Item::Folder(_) | Item::Refused(_)) | None => None,
        })
    }

    /// The content of a workspace file or of a file of a template's root.
    ///
    /// # Errors
    /// When it is too large, damaged or missing.
    pub fn workspace_blob(&self, blob: &BlobId) -> Result<Vec<u8>, SourceError> {
        self.read_blob(blob, blob.as_str(), self.config().limits.file_bytes)
    }
}

fn no_folder(commit: &CommitId, path: &RepoPath) -> SourceError {
    SourceError::FolderMissing { path: path.clone(), commit: commit.clone() }
}

fn check_link(files: &dyn Files, full: &str, name: &str, blob: &BlobId) -> Result<(), SourceError> {
    let target = files.read(blob, full, MAX_LINK_BYTES)?;
    if stays_inside(name, &target) {
        return Ok(());
    }
    let target = String::from_utf8_lossy(&target).into_owned();
    let problem = format!("is a symbolic link to `{target}`, which may leave the workspace");
    Err(SourceError::Refused { path: full.to_owned(), problem })
}

/// Whether following the link `name` cannot lead out of its tree, whatever other links of the tree say.
///
/// `..` may only come first: there it counts against the real folders that the link stands in. After another component it
/// would be taken from wherever that component leads, should it be a link itself.
fn stays_inside(name: &str, target: &[u8]) -> bool {
    let Ok(target) = std::str::from_utf8(target) else { return false };
    if target.is_empty() || target.starts_with('/') || target.contains('\0') {
        return false;
    }
    let folders_above = name.matches('/').count();
    let components: Vec<&str> = target.split('/').filter(|c| !c.is_empty() && *c != ".").collect();
    let ups = components.iter().take_while(|c| **c == "..").count();
    ups <= folders_above && !components[ups..].contains(&"..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_within_the_workspace_stay() {
        for (name, target) in [("a", "b"), ("a", "./b/c"), ("bin/a", "../lib/a"), ("x/y/z", "../../w"), ("a", ".")] {
            assert!(stays_inside(name, target.as_bytes()), "{name} -> {target}");
        }
    }

    #[test]
    fn links_that_could_leave_the_workspace_are_refused() {
        // The last but one leaves if `s` is a link to the workspace itself.
        for (name, target) in [("a", "/etc/passwd"), ("a", ".."), ("bin/a", "../../b"), ("t", "s/.."), ("a", "")] {
            assert!(!stays_inside(name, target.as_bytes()), "{name} -> {target}");
        }
        assert!(!stays_inside("a", b"\xff"));
    }
}
