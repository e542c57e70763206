//! The workspace as git wants it, brought up to date by differences.
//!
//! The manifest lists what git put here. Only that is ever removed or replaced: what a build or the app itself made stays. A sync
//! records its manifest last, once everything is in place and durable, so that one cut short is simply done again.
//!
//! The app can change the workspace at any moment and cannot be trusted with it. Every path is therefore walked from the
//! workspace's own descriptor without following a symbolic link, and files are moved into place whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::ops::DerefMut;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::limits;
use crate::proto::FileKind;

use super::Owner;
use path::{Link, WorkspacePath};

pub mod leave_out;
pub mod path;

/// Why a change of the workspace was refused.
#[derive(Debug, thiserror::Error)]
pub enum WorkspaceError {
    /// A path that is not a plain relative one.
    #[error("path {path:?} {rule}")]
    Path {
        /// As it came.
        path: String,
        /// What is wrong with it.
        rule: &'static str,
    },
    /// A symbolic link out of the workspace.
    #[error("symbolic link {path} leaves the workspace")]
    LinkLeaves {
        /// The link.
        path: String,
    },
    /// Something that git never had is in the way, and is not empty.
    #[error("{path} is a directory with files that git never had")]
    Occupied {
        /// Where.
        path: String,
    },
    /// Parts in an order that makes no sense.
    #[error("{0}")]
    Order(&'static str),
    /// The file system refused.
    #[error("could not {operation} {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: String,
        /// The cause.
        source: io::Error,
    },
}

type Result<T> = std::result::Result<T, WorkspaceError>;

/// What git put into the workspace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Manifest {
    /// The content that was last received in full; empty before the first.
    pub tree: String,
    /// The files.
    pub files: BTreeMap<String, Entry>,
}

/// One file that git put into the workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its content.
    pub blob: String,
    /// What it is.
    pub kind: Kind,
}

/// What a file is, after git's modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// 100644.
    Regular,
    /// 100755.
    Executable,
    /// 120000.
    Symlink,
}

impl From<FileKind> for Kind {
    fn from(kind: FileKind) -> Self {
        match kind {
            FileKind::Regular => Self::Regular,
            FileKind::Executable => Self::Executable,
            FileKind::Symlink => Self::Symlink,
        }
    }
}

impl From<Kind> for FileKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Regular => Self::Regular,
            Kind::Executable => Self::Executable,
            Kind::Symlink => Self::Symlink,
        }
    }
}

/// The workspace and what is recorded about it.
#[derive(Debug)]
pub struct Workspace {
    root: OwnedFd,
    stage: OwnedFd,
    state: PathBuf,
    owner: Option<Owner>,
    manifest: Manifest,
}

const STAGE: &str = "incoming";
const MANIFEST: &str = "manifest.json";
const STARTED: &str = "started";
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Workspace {
    /// Opens or makes the workspace at `root`, recorded in the directory `state`. Both must lie on one mount, because files
    /// are written in the latter and renamed into the former.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn open(root: &Path, state: &Path, owner: Option<Owner>) -> io::Result<Self> {
        fs::create_dir_all(state)?;
        fs::create_dir_all(root)?;
        if let Some(Owner { uid, gid }) = owner {
            // That of a new disk belongs to it already.
            let there = fs::metadata(root)?;
            if (there.uid(), there.gid()) != (uid, gid) {
                std::os::unix::fs::chown(root, Some(uid), Some(gid))?;
            }
        }
        let stage = state.join("stage");
        fs::create_dir_all(&stage)?;
        let open = |path: &Path| rustix::fs::open(path, DIRECTORY, Mode::empty());
        let manifest = read_manifest(&state.join(MANIFEST))?;
        Ok(Self { root: open(root)?, stage: open(&stage)?, state: state.to_owned(), owner, manifest })
    }

    /// What git put here, as far as it is recorded.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The directory that holds `path`, made where it is missing if `missing` says so.
    fn parent(&self, path: &WorkspacePath<'_>, missing: Missing) -> Result<Option<OwnedFd>> {
        let mut directory = self.root.try_clone().map_err(|source| path.error("open", source))?;
        for name in path.parents() {
            directory = match (open_directory(&directory, name), missing) {
                (Ok(next), _) => next,
                (Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP), Missing::Leave) => return Ok(None),
                (Err(Errno::NOENT), Missing::Make) => self.make_directory(&directory, name, path)?,
                (Err(Errno::NOTDIR | Errno::LOOP), Missing::Make) => {
                    rustix::fs::unlinkat(&directory, name, AtFlags::empty()).map_err(|e| path.error("replace", e))?;
                    self.make_directory(&directory, name, path)?
                }
                (Err(error), _) => return Err(path.error("open", error)),
            };
        }
        Ok(Some(directory))
    }

    fn make_directory(&self, parent: &OwnedFd, name: &str, path: &WorkspacePath<'_>) -> Result<OwnedFd> {
        let make = || {
            rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
            self.give_to_owner(parent, name)?;
            open_directory(parent, name)
        };
        make().map_err(|error| path.error("make a directory for", error))
    }

    fn give_to_owner(&self, directory: &OwnedFd, name: &str) -> rustix::io::Result<()> {
        let Some(Owner { uid, gid }) = self.owner else { return Ok(()) };
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        rustix::fs::chownat(directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Removes a file or link, and nothing else: a directory that took its place is not git's.
    fn remove_file(&self, path: &WorkspacePath<'_>) -> Result<()> {
        let Some(parent) = self.parent(path, Missing::Leave)? else { return Ok(()) };
        match rustix::fs::unlinkat(&parent, path.name(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => Ok(()),
            Err(error) => Err(path.error("remove", error)),
        }
    }

    /// Removes a directory if it is there and empty.
    fn remove_empty_directory(&self, path: &WorkspacePath<'_>) -> Result<()> {
        let Some(parent) = self.parent(path, Missing::Leave)? else { return Ok(()) };
        match rustix::fs::unlinkat(&parent, path.name(), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
            Err(error) => Err(path.error("remove", error)),
        }
    }
}

/// What to do about directories that are not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    Leave,
    Make,
}

fn open_directory(parent: &OwnedFd, name: &str) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(parent, name, DIRECTORY, Mode::empty(), resolve)
}

/// One sync under way. Dropped before [`Self::commit`], it leaves the old manifest.
#[derive(Debug)]
pub struct Sync<W> {
    workspace: W,
    next: Manifest,
    /// Paths that this or an earlier, unfinished sync put here; those that are not in the end's manifest must go again.
    started: BTreeSet<String>,
    started_file: File,
    /// Directories that lost a file.
    emptied: BTreeSet<String>,
    incoming: Option<Incoming>,
}

/// The file whose content is arriving.
#[derive(Debug)]
struct Incoming {
    path: String,
    entry: Entry,
    content: Content,
}

#[derive(Debug)]
enum Content {
    File(File),
    Link(Vec<u8>),
}

impl<W: DerefMut<Target = Workspace>> Sync<W> {
    /// Begins to bring `workspace` to `tree`.
    ///
    /// # Errors
    /// The state directory cannot be written.
    pub fn begin(workspace: W, tree: String) -> Result<Self> {
        let journal = workspace.state.join(STARTED);
        let io = |source| WorkspaceError::Io { operation: "open", path: journal.display().to_string(), source };
        let started_file = File::options().read(true).append(true).create(true).open(&journal).map_err(io)?;
        let text = fs::read_to_string(&journal).map_err(io)?;
        let started = text.split_terminator('\0').map(str::to_owned).collect();
        let next = Manifest { tree, files: workspace.manifest.files.clone() };
        Ok(Self { workspace, next, started, started_file, emptied: BTreeSet::new(), incoming: None })
    }

    /// Removes a file that is gone from git. One that git never had is left alone.
    ///
    /// # Errors
    /// The path is not a plain relative one, or the file system refuses.
    pub fn remove(&mut self, path: &str) -> Result<()> {
        self.finish_file()?;
        let parsed = WorkspacePath::parse(path)?;
        if self.next.files.remove(path).is_some() {
            self.workspace.remove_file(&parsed)?;
            self.emptied.extend(parsed.ancestors().map(str::to_owned));
        }
        Ok(())
    }

    /// Begins a file; its content follows.
    ///
    /// # Errors
    /// The path is not a plain relative one, or the file system refuses.
    pub fn file(&mut self, path: String, entry: Entry) -> Result<()> {
        self.finish_file()?;
        let parsed = WorkspacePath::parse(&path)?;
        let content = match entry.kind {
            Kind::Symlink => Content::Link(Vec::new()),
            Kind::Regular | Kind::Executable => Content::File(self.stage_file(&parsed)?),
        };
        self.incoming = Some(Incoming { path, entry, content });
        Ok(())
    }

    /// The next bytes of the file that was begun last.
    ///
    /// # Errors
    /// There is none, it is a link with too long a target, or the file system refuses.
    pub fn chunk(&mut self, data: &[u8]) -> Result<()> {
        let Some(incoming) = &mut self.incoming else {
            return Err(WorkspaceError::Order("content without a file"));
        };
        match &mut incoming.content {
            Content::File(file) => file.write_all(data).map_err(|source| WorkspaceError::Io {
                operation: "write",
                path: incoming.path.clone(),
                source,
            }),
            Content::Link(target) if target.len() + data.len() > limits::LINK_TARGET => {
                let (path, rule) = (incoming.path.clone(), "is a symbolic link with too long a target");
                Err(WorkspaceError::Path { path, rule })
            }
            Content::Link(target) => {
                target.extend_from_slice(data);
                Ok(())
            }
        }
    }

    /// Records that all of the tree is in place.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn commit(mut self) -> Result<()> {
        self.finish_file()?;
        self.remove_leftovers()?;
        self.prune_directories("")?;
        let write = || {
            // The files first: a manifest must not promise what a crash could still take back.
            rustix::fs::syncfs(File::open(&self.workspace.state)?)?;
            write_durably(&self.workspace.state.join(MANIFEST), &serde_json::to_vec(&self.next)?)?;
            fs::remove_file(self.workspace.state.join(STARTED))
        };
        write().map_err(|source| WorkspaceError::Io { operation: "write", path: MANIFEST.to_owned(), source })?;
        self.workspace.manifest = std::mem::take(&mut self.next);
        Ok(())
    }

    fn stage_file(&self, path: &WorkspacePath<'_>) -> Result<File> {
        self.clear_stage(path)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.workspace.stage, STAGE, flags, Mode::from_raw_mode(0o600));
        file.map(File::from).map_err(|error| path.error("write", error))
    }

    fn clear_stage(&self, path: &WorkspacePath<'_>) -> Result<()> {
        match rustix::fs::unlinkat(&self.workspace.stage, STAGE, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(path.error("write", error)),
        }
    }

    /// Moves the file whose content has arrived into place.
    fn finish_file(&mut self) -> Result<()> {
        let Some(Incoming { path, entry, content }) = self.incoming.take() else { return Ok(()) };
        let parsed = WorkspacePath::parse(&path)?;
        match content {
            Content::File(file) => {
                let mode = Mode::from_raw_mode(if entry.kind == Kind::Executable { 0o755 } else { 0o644 });
                rustix::fs::fchmod(&file, mode).map_err(|error| parsed.error("write", error))?;
            }
            Content::Link(target) => {
                let target = Link { path: &parsed, target: &target }.check()?;
                self.clear_stage(&parsed)?;
                rustix::fs::symlinkat(target, &self.workspace.stage, STAGE).map_err(|e| parsed.error("write", e))?;
            }
        }
        self.workspace.give_to_owner(&self.workspace.stage, STAGE).map_err(|error| parsed.error("write", error))?;
        self.note_started(&parsed)?;
        self.place(&parsed)?;
        self.next.files.insert(path, entry);
        Ok(())
    }

    fn place(&mut self, path: &WorkspacePath<'_>) -> Result<()> {
        let parent = self.workspace.parent(path, Missing::Make)?.expect("a missing parent was made");
        let rename = |stage: &OwnedFd| rustix::fs::renameat(stage, STAGE, &parent, path.name());
        match rename(&self.workspace.stage) {
            Ok(()) => return Ok(()),
            Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(error) => return Err(path.error("place", error)),
        }
        // A directory is in the way. If git's files were all that it held, it is empty by now.
        self.prune_directories(path.as_str())?;
        self.workspace.remove_empty_directory(path)?;
        match rename(&self.workspace.stage) {
            Ok(()) => Ok(()),
            Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => {
                Err(WorkspaceError::Occupied { path: path.as_str().to_owned() })
            }
            Err(error) => Err(path.error("place", error)),
        }
    }

    /// Remembers, before it happens, that a path is about to appear which the recorded manifest does not have.
    fn note_started(&mut self, path: &WorkspacePath<'_>) -> Result<()> {
        let known = self.workspace.manifest.files.contains_key(path.as_str()) || self.started.contains(path.as_str());
        if known {
            return Ok(());
        }
        let record = format!("{}\0", path.as_str());
        self.started_file.write_all(record.as_bytes()).map_err(|source| path.error("note", source))?;
        self.started.insert(path.as_str().to_owned());
        Ok(())
    }

    /// Removes what an unfinished sync put here and no manifest ever listed.
    fn remove_leftovers(&mut self) -> Result<()> {
        for path in self.started.iter().filter(|path| !self.next.files.contains_key(*path)) {
            let parsed = WorkspacePath::parse(path)?;
            self.workspace.remove_file(&parsed)?;
            self.emptied.extend(parsed.ancestors().map(str::to_owned));
        }
        Ok(())
    }

    /// Removes the directories below `under` (all, if empty) that lost their last file, the deepest first.
    fn prune_directories(&self, under: &str) -> Result<()> {
        let below = |path: &str| under.is_empty() || path.strip_prefix(under).is_some_and(|rest| rest.starts_with('/'));
        // A directory sorts before all that it holds.
        for path in self.emptied.iter().rev().filter(|path| below(path)) {
            self.workspace.remove_empty_directory(&WorkspacePath::parse(path)?)?;
        }
        Ok(())
    }
}

fn read_manifest(path: &Path) -> io::Result<Manifest> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).or_else(|error| {
            // An empty manifest makes the host send everything again, and nothing is removed for it.
            eprintln!("setpoint-agent: the workspace's manifest is damaged and counts as empty: {error}");
            Ok(Manifest::default())
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Manifest::default()),
        Err(error) => Err(error),
    }
}

/// Replaces a file by `content` so that a crash leaves one or the other.
fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    let directory = path.parent().expect("a state file lies in a directory");
    File::open(directory)?.sync_all()
}
