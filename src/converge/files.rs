//! Carries workspace files and template roots from the repository to where they are used.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use setpoint_plan::desired::DesiredTemplateRoot;
use setpoint_schema::id::{CommitId, TreeDigest};
use setpoint_schema::name::RepoPath;
use setpoint_schema::template::TemplateRoot;
use setpoint_vmm::driver::{FileKind, Guest, Manifest, ManifestEntry, TemplateSource, VmmError, WorkspaceFile};

use crate::source::{Repository, SourceError};
use crate::task::{blocking, reading};

/// Why files did not arrive; the cause is the source.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The repository could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The guest could not be asked or refused.
    #[error(transparent)]
    Guest(#[from] VmmError),
    /// The template's files could not be written out.
    #[error("could not write out {path}")]
    Export {
        /// Which file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// Brings a guest's workspace to the content of `folder` at `revision`, by the difference to what git put there before.
///
/// # Errors
/// When the folder cannot be read or the guest refuses; the guest then still has its old manifest, so that a second try
/// starts from what is really known.
pub async fn sync(
    source: &Arc<Repository>,
    guest: &dyn Guest,
    revision: &CommitId,
    folder: &RepoPath,
    tree: &TreeDigest,
) -> Result<(), FilesError> {
    let (commit, path) = (revision.clone(), folder.clone());
    let wanted = reading(source, move |source| source.workspace(&commit, &path)).await?;
    let Difference { changed, removed } = Difference::new(&guest.manifest().await?, wanted);
    Ok(guest.sync(tree, contents(Arc::clone(source), changed), removed).await?)
}

/// Files are read until they are this many bytes together: to hand each small one over to another thread takes longer than to read
/// it.
const AT_ONCE: usize = 256 << 10;

/// What has to be sent and removed to get from one manifest to another.
#[derive(Debug, PartialEq, Eq)]
struct Difference {
    changed: Vec<(String, ManifestEntry)>,
    removed: Vec<String>,
}

impl Difference {
    fn new(present: &Manifest, wanted: BTreeMap<String, ManifestEntry>) -> Self {
        let removed = present.files.keys().filter(|path| !wanted.contains_key(*path)).cloned().collect();
        let changed = wanted.into_iter().filter(|(path, entry)| present.files.get(path) != Some(entry)).collect();
        Self { changed, removed }
    }
}

/// Reads files as the guest takes them, some at a time, so that a workspace is never whole in memory.
fn contents(
    source: Arc<Repository>,
    files: Vec<(String, ManifestEntry)>,
) -> BoxStream<'static, Result<WorkspaceFile, VmmError>> {
    let read = |unread: Unread| async move {
        if unread.files.as_slice().is_empty() { None } else { Some(blocking(move || unread.some()).await) }
    };
    let unread = Unread { source, files: files.into_iter() };
    futures_util::stream::unfold(unread, read).flat_map(futures_util::stream::iter).boxed()
}

/// Files that are still to be read.
struct Unread {
    source: Arc<Repository>,
    files: std::vec::IntoIter<(String, ManifestEntry)>,
}

impl Unread {
    /// The next of them, and those that are left.
    fn some(mut self) -> (Vec<Result<WorkspaceFile, VmmError>>, Self) {
        let (mut read, mut bytes) = (Vec::new(), 0);
        while bytes < AT_ONCE
            && let Some((path, entry)) = self.files.next()
        {
            let content = self.source.workspace_blob(&entry.blob).map_err(|error| unreadable(&path, error));
            bytes += content.as_ref().map_or(AT_ONCE, Vec::len);
            read.push(content.map(|content| WorkspaceFile { path, entry, content }));
        }
        (read, self)
    }
}

fn unreadable(path: &str, error: SourceError) -> VmmError {
    VmmError::Io { operation: "read", path: path.into(), source: std::io::Error::other(error) }
}

/// A template's root on the host's file system, removed again when dropped if it was written there for this purpose.
pub struct Exported {
    source: TemplateSource,
    _directory: Option<tempfile::TempDir>,
}

impl Exported {
    /// What a driver makes the image from.
    #[must_use]
    pub fn source(&self) -> TemplateSource {
        self.source.clone()
    }
}

/// Where the driver finds a template's root; `None` for the built-in one.
///
/// # Errors
/// When it cannot be read from the repository or written out.
pub async fn template_source(
    source: &Arc<Repository>,
    root: &DesiredTemplateRoot,
) -> Result<Option<Exported>, FilesError> {
    match &root.root {
        TemplateRoot::Minimal => Ok(None),
        TemplateRoot::HostRootfs { path } => {
            let path = PathBuf::from(path);
            let source = if path.is_dir() { TemplateSource::Directory(path) } else { TemplateSource::Tar(path) };
            Ok(Some(Exported { source, _directory: None }))
        }
        TemplateRoot::RepoRootfs { path } => {
            let (source, revision, path) = (Arc::clone(source), root.revision.clone(), path.clone());
            blocking(move || export(&source, &revision, &path)).await.map(Some)
        }
    }
}

fn export(source: &Repository, revision: &CommitId, path: &RepoPath) -> Result<Exported, FilesError> {
    let temporary = tempfile::Builder::new().prefix("setpoint-template-").tempdir();
    let directory = temporary.map_err(|source| FilesError::Export { path: std::env::temp_dir(), source })?;
    if let Some(blob) = source.file(revision, path)? {
        let archive = directory.path().join("root.tar");
        write(&archive, &source.workspace_blob(&blob)?, FileKind::Regular)?;
        return Ok(Exported { source: TemplateSource::Tar(archive), _directory: Some(directory) });
    }
    let root = directory.path().join("root");
    for (file, entry) in source.folder(revision, path)? {
        write(&root.join(file), &source.workspace_blob(&entry.blob)?, entry.kind)?;
    }
    Ok(Exported { source: TemplateSource::Exported(root), _directory: Some(directory) })
}

/// Writes one file of a git tree into a fresh directory. Names of a tree hold no `/`, `.` or `..`, and a tree cannot hold both a
/// link and something below it, so no link that was written earlier is followed.
fn write(path: &Path, content: &[u8], kind: FileKind) -> Result<(), FilesError> {
    let export = |source| FilesError::Export { path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(export)?;
    }
    let mode = match kind {
        FileKind::Symlink => return symlink(OsStr::from_bytes(content), path).map_err(export),
        FileKind::Regular => 0o644,
        FileKind::Executable => 0o755,
    };
    std::fs::write(path, content).map_err(export)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(export)
}

#[cfg(test)]
mod tests {
    use super::*;
    use setpoint_schema::id::BlobId;

    fn entry(blob: &str) -> ManifestEntry {
        ManifestEntry { blob: BlobId(blob.to_owned()), kind: FileKind::Regular }
    }

    fn files(list: &[(&str, &str)]) -> BTreeMap<String, ManifestEntry> {
        list.iter().map(|(path, blob)| ((*path).to_owned(), entry(blob))).collect()
    }

    #[test]
    fn only_what_differs_is_sent_and_only_what_git_had_is_removed() {
        let present = Manifest { tree: None, files: files(&[("same", "1"), ("edited", "1"), ("gone", "1")]) };
        let difference = Difference::new(&present, files(&[("same", "1"), ("edited", "2"), ("new", "1")]));
        let changed = vec![("edited".to_owned(), entry("2")), ("new".to_owned(), entry("1"))];
        assert_eq!(difference, Difference { changed, removed: vec!["gone".to_owned()] });
    }
}
