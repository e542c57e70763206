//! What was loaded, kept over restarts in the state directory: what the newest revision wants, whole (`whole.rs`), and here what was
//! parsed, for a start at another one. That is one file, read by the first load of a daemon and written again when much of it is new.
//!
//! Everything in it can be had from git, and is found by the ids of what it was made from. The file is used as a whole or not at
//! all: only by the very program and for the very settings that it was written by and for, and only if its content has the digest
//! that stands at its end. Anything else is as good as no file. Files with mistakes are not in it, so that what is said about
//! mistakes is never from memory.
//!
//! ```text
//!   magic · what it is for (32 bytes) · chunks: length (4 bytes), postcard of entries · SHA-256 of all before
//! ```

mod file;
mod whole;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use setpoint_schema::document::{AppDocument, Parsed, SnapshotDocument, TemplateDocument};
use setpoint_schema::id::{BlobId, TreeDigest};
use setpoint_schema::name::RepoPath;
use setpoint_schema::names::HashMap;
use setpoint_schema::project::Project;
use setpoint_schema::runtime::Runtime;
use sha2::{Digest as _, Sha256};

use crate::parallel;

use super::scan::Key;

pub(super) use whole::{End, Whole};

/// Changes with the layout.
const MAGIC: &[u8; 16] = b"setpoint parse 2";
const DIGEST_BYTES: usize = 32;
/// Entries that are written, and read by one thread, together.
const CHUNK: usize = 256;

/// Where the cache is.
#[derive(Debug, Clone)]
pub struct Cache {
    directory: PathBuf,
}

/// What a cache holds.
#[derive(Default)]
pub(super) struct Kept {
    /// The files of declarations without a mistake.
    pub declarations: HashMap<Key, Parsed>,
    /// The runtimes without a mistake, by content.
    pub runtimes: HashMap<BlobId, Arc<Runtime>>,
    /// The workspaces, by folder and by whether it is an app's own.
    pub workspaces: HashMap<(String, bool), TreeDigest>,
}

/// One thing in it, as it is written.
#[derive(Serialize)]
pub(super) enum Entry<'a> {
    Declarations {
        path: &'a RepoPath,
        blob: &'a BlobId,
        apps: &'a [Arc<AppDocument>],
        templates: &'a [TemplateDocument],
        snapshots: &'a [Arc<SnapshotDocument>],
    },
    Runtime {
        blob: &'a BlobId,
        runtime: &'a Runtime,
    },
    Workspace {
        folder: &'a str,
        of_app: bool,
        digest: &'a TreeDigest,
    },
}

/// The same, as it is read.
#[derive(Deserialize)]
enum Stored {
    Declarations {
        path: RepoPath,
        blob: BlobId,
        apps: Vec<Arc<AppDocument>>,
        templates: Vec<TemplateDocument>,
        snapshots: Vec<Arc<SnapshotDocument>>,
    },
    Runtime {
        blob: BlobId,
        runtime: Arc<Runtime>,
    },
    Workspace {
        folder: String,
        of_app: bool,
        digest: TreeDigest,
    },
}

impl Cache {
    /// The cache in a daemon's state directory.
    #[must_use]
    pub fn of(state_dir: &Path) -> Self {
        Self { directory: state_dir.join("cache") }
    }

    fn declarations(&self) -> PathBuf {
        self.directory.join("declarations")
    }

    /// What is kept for these settings: nothing where the file is not there, not ours, of another program or damaged.
    pub(super) fn read(&self, project: &Project) -> Kept {
        match self.try_read(project) {
            Ok(Some(kept)) => kept,
            Ok(None) => Kept::default(),
            Err(error) => {
                tracing::debug!(file = %self.declarations().display(), %error, "kept declarations cannot be used");
                Kept::default()
            }
        }
    }

    fn try_read(&self, project: &Project) -> io::Result<Option<Kept>> {
        let Some(bytes) = file::read(&self.declarations())? else { return Ok(None) };
        let Some((content, digest)) = bytes.split_last_chunk::<DIGEST_BYTES>() else { return Ok(None) };
        let Some(chunks) = content.strip_prefix(MAGIC).and_then(|rest| rest.strip_prefix(&purpose(project)?)) else {
            return Ok(None);
        };
        if *digest != <[u8; DIGEST_BYTES]>::from(Sha256::digest(content)) {
            return Err(io::Error::other("its content is damaged"));
        }
        let decoded = parallel::each(&parted(chunks)?, |chunk| postcard::from_bytes::<Vec<Stored>>(chunk));
        let mut kept = Kept::default();
        for entries in decoded {
            kept.take(entries.map_err(io::Error::other)?);
        }
        Ok(Some(kept))
    }

    /// Writes these entries in the place of what was there. What cannot be written is not missed.
    pub(super) fn write(&self, project: &Project, entries: &[Entry<'_>]) {
        if let Err(error) = self.try_write(project, entries) {
            tracing::warn!(file = %self.declarations().display(), %error, "parsed declarations cannot be kept");
        }
    }

    fn try_write(&self, project: &Project, entries: &[Entry<'_>]) -> io::Result<()> {
        let Some(purpose) = purpose(project) else { return Ok(()) };
        let chunks: Vec<&[Entry<'_>]> = entries.chunks(CHUNK).collect();
        let mut content = [&MAGIC[..], &purpose].concat();
        for encoded in parallel::each(&chunks, postcard::to_stdvec) {
            let encoded = encoded.map_err(io::Error::other)?;
            content.extend(u32::try_from(encoded.len()).map_err(io::Error::other)?.to_le_bytes());
            content.extend(encoded);
        }
        let digest = Sha256::digest(&content);
        content.extend(digest);
        file::replace(&self.declarations(), &content)
    }
}

impl Kept {
    fn take(&mut self, entries: Vec<Stored>) {
        for entry in entries {
            match entry {
                Stored::Declarations { path, blob, apps, templates, snapshots } => {
                    let parsed = Parsed { apps, templates, snapshots, ..Parsed::nothing() };
                    self.declarations.insert((path, blob), parsed);
                }
                Stored::Runtime { blob, runtime } => drop(self.runtimes.insert(blob, runtime)),
                Stored::Workspace { folder, of_app, digest } => drop(self.workspaces.insert((folder, of_app), digest)),
            }
        }
    }
}

/// What a cache is for: this very program, since any change of it may parse differently, and what of the settings goes into what
/// is parsed.
fn purpose(project: &Project) -> Option<[u8; DIGEST_BYTES]> {
    let settings = serde_json::to_vec(&(&project.defaults, &project.vars)).ok()?;
    let mut hash = Sha256::new();
    hash.update(file::program()?);
    hash.update([0]);
    hash.update(settings);
    Some(hash.finalize().into())
}

/// The chunks, each of which stands behind its length.
fn parted(mut bytes: &[u8]) -> io::Result<Vec<&[u8]>> {
    let cut_off = || io::Error::other("it ends within a chunk");
    let mut chunks = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk() {
        let length = u32::from_le_bytes(*length) as usize;
        let (chunk, rest) = rest.split_at_checked(length).ok_or_else(cut_off)?;
        chunks.push(chunk);
        bytes = rest;
    }
    if bytes.is_empty() { Ok(chunks) } else { Err(cut_off()) }
}
