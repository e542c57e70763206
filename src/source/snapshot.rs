//! The tree of one revision, read from as many threads as want to.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use setpoint_schema::id::{BlobId, CommitId};

use super::error::SourceError;
use super::objects::{Kind, ObjectId, Objects};
use super::walk::{damaged, own_handle};
use super::{Files, Folder, Repository, SourceLimits, blob_size, oid};

/// The tree of one revision.
pub struct Snapshot<'a> {
    repository: &'a Repository,
    /// The revision.
    pub commit: CommitId,
    root: Arc<Folder>,
    git_dir: PathBuf,
    /// Where much of it was new, which means that many blobs will be read.
    objects: Objects,
    /// Further handles, which nobody reads with at the moment: one may be used by one thread at a time.
    spare: Mutex<Vec<git2::Repository>>,
}

impl<'a> Snapshot<'a> {
    pub(super) fn new(
        repository: &'a Repository,
        commit: CommitId,
        root: Arc<Folder>,
        git_dir: &Path,
        objects: Objects,
    ) -> Self {
        Self { repository, commit, root, git_dir: git_dir.to_owned(), objects, spare: Mutex::default() }
    }

    /// Reads with the handle that the snapshot was made with, or with one of its own while another thread has that. Nobody looks
    /// whether another repository stands there by now: what it does not have is an error, and a snapshot is read blob by blob.
    fn reading<T>(&self, read: impl Fn(&git2::Repository) -> Result<T, SourceError>) -> Result<T, SourceError> {
        if let Ok(opened) = self.repository.opened.try_lock()
            && let Some(opened) = &*opened
        {
            return read(&opened.git);
        }
        let spare = || self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let handle = spare().pop();
        match handle.or_else(|| own_handle(&self.git_dir)) {
            Some(handle) => {
                let result = read(&handle);
                spare().push(handle);
                result
            }
            None => read(&self.repository.current()?.git),
        }
    }
}

impl Files for Snapshot<'_> {
    fn root(&self) -> &Arc<Folder> {
        &self.root
    }

    fn size(&self, blob: &BlobId) -> Result<u64, SourceError> {
        if let Some(size) = object_id(blob).and_then(|id| self.objects.size(id, Kind::Blob)) {
            return Ok(size);
        }
        self.reading(|git| {
            let id = oid(blob.as_str())?;
            let odb = git.odb().map_err(|error| damaged(id, &error.message()))?;
            blob_size(&odb, id)
        })
    }

    fn read(&self, blob: &BlobId, path: &str, max: u64) -> Result<Vec<u8>, SourceError> {
        if let Some(content) = object_id(blob).and_then(|id| self.objects.read(id, Kind::Blob, max)) {
            self.repository.blobs_read.fetch_add(1, Ordering::Relaxed);
            return Ok(content);
        }
        self.reading(|git| self.repository.blob_with(git, blob, path, max))
    }

    fn limits(&self) -> &SourceLimits {
        &self.repository.config.limits
    }
}

fn object_id(blob: &BlobId) -> Option<ObjectId> {
    ObjectId::from_hex(blob.as_str().as_bytes()).ok()
}
