//! Where declarations come from: one branch of a git repository, read from its object database and never checked out.
//!
//! The only module that knows git2. A local repository is opened in place and never written; a remote one is fetched into a
//! bare mirror. The daemon asks for the [`tip`](Repository::tip), takes its [`snapshot`](Repository::snapshot) and reads blobs;
//! [`watch`] tells it when to ask again. Calls block, so that async callers wrap them in `spawn_blocking`.

mod error;
mod libgit;
mod location;
mod objects;
mod remote;
mod snapshot;
mod tree;
mod walk;
pub mod watch;
mod workspace;
mod worktree;

use std::ops::{Deref, DerefMut};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use git2::{ErrorCode, ObjectType, Oid};
use setpoint_schema::id::{BlobId, CommitId};
use setpoint_schema::name::RepoPath;

pub use error::{Cause, Excess, RemoteFault, SourceError};
pub use location::{Location, redacted};
pub use snapshot::Snapshot;
pub(crate) use tree::join;
pub use tree::{Folder, FolderId, Item, Refusal};
pub use workspace::{Links, Listing, is_app_folder};
pub use worktree::Worktree;

use walk::{Folders, Walked, damaged, limit};

/// Which branch of which repository, and how much of it is read.
#[derive(Debug, Clone)]
pub struct SourceConfig {
    /// A local path, or a file, ssh or https URL.
    pub url: String,
    /// The branch; absent for whatever HEAD names.
    pub branch: Option<String>,
    /// The folder that holds the declarations; absent for the top.
    pub path: Option<RepoPath>,
    /// Where the mirror of a remote is kept. Not touched for a local repository.
    pub state_dir: PathBuf,
    /// How much is read.
    pub limits: SourceLimits,
}

/// How much of one revision is read at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceLimits {
    /// Bytes of one declaration file.
    pub declaration_bytes: u64,
    /// Bytes of one workspace file.
    pub file_bytes: u64,
    /// Bytes of one workspace.
    pub workspace_bytes: u64,
    /// Files below the declarations' root.
    pub files: u64,
    /// Folders within folders.
    pub depth: u32,
    /// Bytes of one path.
    pub path_bytes: u32,
    /// Bytes of one folder's listing, as git stores it.
    pub listing_bytes: u64,
}

impl Default for SourceLimits {
    fn default() -> Self {
        // Generous for declarations written by people, and small enough that a commit within them fits in memory.
        Self {
            declaration_bytes: 1 << 20,
            file_bytes: 32 << 20,
            workspace_bytes: 1 << 30,
            files: 50_000,
            depth: 32,
            path_bytes: 1024,
            listing_bytes: 16 << 20,
        }
    }
}

/// What a commit says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitInfo {
    /// The commit.
    pub id: CommitId,
    /// Its author's name, at most 200 characters.
    pub author: String,
    /// When it was committed, as it claims.
    pub committed_at: jiff::Timestamp,
    /// The first line of its message, at most 200 characters.
    pub summary: String,
}

/// What declarations are read from: one revision of a repository, or a working directory.
///
/// Read from several threads at once while much is new.
pub trait Files: Sync {
    /// The folder that holds `apps/`.
    fn root(&self) -> &Arc<Folder>;

    /// The size of a blob, without reading it.
    ///
    /// # Errors
    /// When it is damaged or missing.
    fn size(&self, blob: &BlobId) -> Result<u64, SourceError>;

    /// The content of a blob, which is not read if it is larger than `max` bytes; `path` is for the error.
    ///
    /// # Errors
    /// When it is too large, damaged or missing.
    fn read(&self, blob: &BlobId, path: &str, max: u64) -> Result<Vec<u8>, SourceError>;

    /// The limits under which it is read.
    fn limits(&self) -> &SourceLimits;
}

/// A branch of a git repository. Shared freely between threads: calls take turns.
pub struct Repository {
    config: SourceConfig,
    location: Location,
    /// Absent until the repository was there for the first time.
    opened: Mutex<Option<Opened>>,
    blobs_read: AtomicU64,
    trees_read: AtomicU64,
}

/// What is behind the lock: git2's handle, which only one thread may use at a time, and what was read with it.
struct Opened {
    git: git2::Repository,
    /// Device and inode of the git directory: another pair at the same path is another repository.
    identity: (u64, u64),
    folders: Folders,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repository").field("place", &self.place()).field("branch", &self.config.branch).finish()
    }
}

impl Repository {
    /// Opens a local repository in place, or the mirror of a remote one, which is made if needed and not fetched yet.
    ///
    /// # Errors
    /// When there is no repository, or one that cannot be read, each kind apart.
    pub fn open(config: &SourceConfig) -> Result<Self, SourceError> {
        let repository = Self::expect(config)?;
        repository.current()?;
        Ok(repository)
    }

    /// The same, for a repository that need not be there yet: every call tries to open it, and says what is wrong with it.
    ///
    /// # Errors
    /// When the URL is of no kind that can be read.
    pub fn expect(config: &SourceConfig) -> Result<Self, SourceError> {
        libgit::set_limits();
        Ok(Self {
            config: config.clone(),
            location: Location::parse(&config.url)?,
            opened: Mutex::new(None),
            blobs_read: AtomicU64::new(0),
            trees_read: AtomicU64::new(0),
        })
    }

    /// The newest commit of the branch, for who only wants to know whether it can be read: a remote is asked, and nothing of it is
    /// kept.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn look(config: &SourceConfig) -> Result<CommitId, SourceError> {
        libgit::set_limits();
        match Location::parse(&config.url)? {
            Location::Local(_) => Self::open(config)?.poll(),
            Location::Remote(url) => Ok(CommitId(remote::ask(&url, config.branch.as_deref())?.to_string().into())),
        }
    }

    /// The path or URL, without credentials.
    #[must_use]
    pub fn place(&self) -> String {
        redacted(&self.config.url)
    }

    /// Where it is.
    #[must_use]
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// What it was opened with.
    #[must_use]
    pub fn config(&self) -> &SourceConfig {
        &self.config
    }

    /// The newest commit of the branch, after asking the remote if there is one. One request where nothing moved.
    ///
    /// # Errors
    /// When the repository or branch cannot be read; this never means that nothing is declared.
    pub fn poll(&self) -> Result<CommitId, SourceError> {
        match &self.location {
            Location::Local(_) => self.tip(),
            // On a handle of its own, so that nobody waits for the network to read what is here already.
            Location::Remote(url) => {
                let mirror = remote::open_mirror(&remote::mirror_dir(&self.config.state_dir), url)?;
                remote::poll(&mirror, url, self.config.branch.as_deref()).map(commit_id)
            }
        }
    }

    /// The newest commit of the branch that is on this machine.
    ///
    /// # Errors
    /// When the repository or branch is gone, or a remote was never fetched.
    pub fn tip(&self) -> Result<CommitId, SourceError> {
        let opened = self.current()?;
        let tip = match &self.location {
            Location::Local(_) => local_tip(&opened.git, self.config.branch.as_deref(), &self.place()),
            Location::Remote(url) => remote::mirrored_tip(&opened.git, url, self.config.branch.as_deref()),
        };
        tip.map(commit_id)
    }

    /// The commit that people call `rev`: a hash, a branch, a tag, `HEAD~1`.
    ///
    /// # Errors
    /// When there is none.
    pub fn resolve(&self, rev: &str) -> Result<CommitId, SourceError> {
        let unknown = || SourceError::UnknownRevision { rev: rev.chars().take(200).collect(), place: self.place() };
        if matches!((&self.location, rev), (Location::Remote(_), "HEAD")) {
            return self.tip();
        }
        let opened = self.current()?;
        let object = opened.git.revparse_single(rev).map_err(|_| unknown())?;
        let commit = object.peel_to_commit().map_err(|_| unknown())?;
        Ok(commit_id(commit.id()))
    }

    /// Whether `new` is `old` or has it among its ancestors. If `old` is not in the repository any more, it is not.
    ///
    /// # Errors
    /// When history cannot be read far enough to know.
    pub fn is_descendant(&self, old: &CommitId, new: &CommitId) -> Result<bool, SourceError> {
        if old == new {
            return Ok(true);
        }
        let opened = self.current()?;
        let (old, new) = (oid(old.as_str())?, oid(new.as_str())?);
        if opened.git.find_commit(old).is_err() {
            return Ok(false);
        }
        let descends = opened.git.graph_descendant_of(new, old).map_err(|error| damaged(new, &error.message()))?;
        if !descends && opened.git.is_shallow() {
            return Err(SourceError::Shallow { place: self.place() });
        }
        Ok(descends)
    }

    /// What a commit says about itself.
    ///
    /// # Errors
    /// When it is damaged or missing.
    pub fn commit_info(&self, commit: &CommitId) -> Result<CommitInfo, SourceError> {
        let opened = self.current()?;
        let id = oid(commit.as_str())?;
        let found = opened.git.find_commit(id).map_err(|error| damaged(id, &error.message()))?;
        let first = |text: &[u8]| String::from_utf8_lossy(text).chars().take(200).collect::<String>();
        Ok(CommitInfo {
            id: commit.clone(),
            author: first(found.author().name_bytes()),
            committed_at: jiff::Timestamp::from_second(found.time().seconds()).unwrap_or_default(),
            summary: first(found.message_bytes().split(|byte| *byte == b'\n').next().unwrap_or_default()),
        })
    }

    /// The id of the tree that a revision's declarations are in.
    ///
    /// # Errors
    /// When the commit is damaged or missing.
    pub fn tree(&self, commit: &CommitId) -> Result<FolderId, SourceError> {
        let opened = self.current()?;
        self.tree_of(&opened.git, commit).map(FolderId::of)
    }

    fn tree_of(&self, git: &git2::Repository, commit: &CommitId) -> Result<Oid, SourceError> {
        let id = oid(commit.as_str())?;
        let top = git.find_commit(id).map_err(|error| damaged(id, &error.message()))?.tree_id();
        match &self.config.path {
            None => Ok(top),
            Some(path) => folder_in(git, top, path)?
                .ok_or_else(|| SourceError::FolderMissing { path: path.clone(), commit: commit.clone() }),
        }
    }

    /// The tree of a revision. Folders that another recent snapshot holds too are not read again.
    ///
    /// # Errors
    /// When the commit or one of its trees is damaged, or beyond the limits.
    pub fn snapshot(&self, commit: &CommitId) -> Result<Snapshot<'_>, SourceError> {
        let mut opened = self.current()?;
        let Opened { git, folders, .. } = &mut *opened;
        let tree = self.tree_of(git, commit)?;
        let Walked { folder, trees_read, objects } = folders.read(git, tree, &self.config.limits)?;
        self.trees_read.fetch_add(trees_read, Ordering::Relaxed);
        Ok(Snapshot::new(self, commit.clone(), folder, git.path(), objects))
    }

    /// The content of a blob, which is not read if it is larger than `max` bytes; `path` is for the error.
    ///
    /// # Errors
    /// When it is too large, damaged or missing.
    pub fn read_blob(&self, blob: &BlobId, path: &str, max: u64) -> Result<Vec<u8>, SourceError> {
        self.blob_with(&self.current()?.git, blob, path, max)
    }

    fn blob_with(&self, git: &git2::Repository, blob: &BlobId, path: &str, max: u64) -> Result<Vec<u8>, SourceError> {
        let id = oid(blob.as_str())?;
        let odb = git.odb().map_err(|error| damaged(id, &error.message()))?;
        let size = blob_size(&odb, id)?;
        if size > max {
            return Err(limit(path, Excess::FileSize { size, limit: max }));
        }
        self.blobs_read.fetch_add(1, Ordering::Relaxed);
        Ok(odb.read(id).map_err(|error| damaged(id, &error.message()))?.data().to_vec())
    }

    /// How many blobs were read since it was opened.
    #[must_use]
    pub fn blobs_read(&self) -> u64 {
        self.blobs_read.load(Ordering::Relaxed)
    }

    /// How many trees were read since it was opened.
    #[must_use]
    pub fn trees_read(&self) -> u64 {
        self.trees_read.load(Ordering::Relaxed)
    }

    /// The git directory and the common directory, which differ in a linked work tree.
    pub(crate) fn git_dirs(&self) -> (PathBuf, PathBuf) {
        let opened = self.lock();
        match (&*opened, &self.location) {
            (Some(opened), _) => (opened.git.path().to_owned(), opened.git.commondir().to_owned()),
            // Where most repositories will have it, once there is one; until then the clock gives the hints.
            (None, Location::Local(path)) => (path.join(".git"), path.join(".git")),
            (None, Location::Remote(_)) => {
                let mirror = remote::mirror_dir(&self.config.state_dir);
                (mirror.clone(), mirror)
            }
        }
    }

    /// The handle, opened where it was not yet, and again where another repository stands at the same path by now.
    fn current(&self) -> Result<Current<'_>, SourceError> {
        let mut opened = self.lock();
        let same = |opened: &Opened| identity(opened.git.path()) == Some(opened.identity);
        if !opened.as_ref().is_some_and(same) {
            let git = match &self.location {
                Location::Local(path) => open_local(path)?,
                Location::Remote(url) => remote::open_mirror(&remote::mirror_dir(&self.config.state_dir), url)?,
            };
            let identity = identity(git.path()).ok_or_else(|| missing(git.path()))?;
            *opened = Some(Opened { git, identity, folders: Folders::default() });
        }
        Ok(Current(opened))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Opened>> {
        // A panic while the lock was held leaves git2's handle usable: every call goes to the disk anew.
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The handle while it is held: open, unlike what the lock guards.
struct Current<'a>(MutexGuard<'a, Option<Opened>>);

impl Deref for Current<'_> {
    type Target = Opened;
    fn deref(&self) -> &Opened {
        self.0.as_ref().expect("it is made from an open handle")
    }
}

impl DerefMut for Current<'_> {
    fn deref_mut(&mut self) -> &mut Opened {
        self.0.as_mut().expect("it is made from an open handle")
    }
}

/// The repository that `start` is inside of: its work tree's top, or the repository itself where it is bare.
#[must_use]
pub fn discover(start: &Path) -> Option<PathBuf> {
    libgit::set_limits();
    let git = git2::Repository::discover(start).ok()?;
    Some(git.workdir().unwrap_or_else(|| git.path()).to_owned())
}

fn open_local(path: &Path) -> Result<git2::Repository, SourceError> {
    let place = path.display().to_string();
    if !path.exists() {
        return Err(SourceError::Missing { place });
    }
    let none: [&str; 0] = [];
    match git2::Repository::open_ext(path, git2::RepositoryOpenFlags::NO_SEARCH, none) {
        Ok(git) => match unsupported(git.commondir()) {
            Some(feature) => Err(SourceError::Unsupported { place, feature }),
            None => Ok(git),
        },
        Err(error) if error.code() == ErrorCode::Owner => Err(SourceError::UnsafeOwner { place }),
        Err(error) => Err([path.join(".git"), path.to_owned()]
            .iter()
            .find_map(|dir| unsupported(dir))
            .map(|feature| SourceError::Unsupported { place: place.clone(), feature })
            .unwrap_or_else(|| match error.code() {
                ErrorCode::NotFound => SourceError::NotARepository { place },
                _ => SourceError::Git { operation: "open", place, cause: Cause::of(&error.message()) },
            })),
    }
}

/// The format of this git directory that libgit2 cannot read, if it has one.
fn unsupported(git_dir: &Path) -> Option<&'static str> {
    let config = git2::Config::open(&git_dir.join("config")).ok()?;
    let is = |key: &str, value: &str| config.get_string(key).is_ok_and(|found| found.eq_ignore_ascii_case(value));
    if is("extensions.refstorage", "reftable") {
        Some("the reftable format")
    } else if is("extensions.objectformat", "sha256") {
        Some("SHA-256 objects")
    } else {
        None
    }
}

fn local_tip(git: &git2::Repository, branch: Option<&str>, place: &str) -> Result<Oid, SourceError> {
    let reference = match branch {
        Some(branch) => git.find_reference(&format!("refs/heads/{branch}")),
        None => git.head(),
    };
    match reference {
        Ok(reference) => match reference.peel_to_commit() {
            Ok(commit) => Ok(commit.id()),
            Err(error) => Err(SourceError::Object {
                id: reference.target().map_or_else(|| "of the branch".to_owned(), |id| id.to_string()),
                cause: Cause::of(&error.message()),
            }),
        },
        Err(error)
            if matches!(error.code(), ErrorCode::NotFound | ErrorCode::UnbornBranch | ErrorCode::InvalidSpec) =>
        {
            Err(no_such_branch(git, branch, place))
        }
        Err(error) => Err(SourceError::Git {
            operation: "read the branch of",
            place: place.to_owned(),
            cause: Cause::of(&error.message()),
        }),
    }
}

/// A missing branch of a repository without any is a repository without commits.
fn no_such_branch(git: &git2::Repository, branch: Option<&str>, place: &str) -> SourceError {
    let branches = git.branches(Some(git2::BranchType::Local));
    let known: Vec<String> = branches
        .into_iter()
        .flatten()
        .filter_map(|branch| Some(String::from_utf8_lossy(branch.ok()?.0.name_bytes().ok()?).into_owned()))
        .take(5)
        .collect();
    let place = place.to_owned();
    if known.is_empty() {
        return SourceError::Empty { place };
    }
    let head = || git.find_reference("HEAD").ok()?.symbolic_target().ok()?.map(str::to_owned);
    let branch = branch.map(str::to_owned).or_else(head).unwrap_or_else(|| "HEAD".to_owned());
    SourceError::BranchMissing { branch: branch.trim_start_matches("refs/heads/").to_owned(), place, known }
}

/// The tree at `path` below `top`.
fn folder_in(git: &git2::Repository, top: Oid, path: &RepoPath) -> Result<Option<Oid>, SourceError> {
    let tree = git.find_tree(top).map_err(|error| damaged(top, &error.message()))?;
    match tree.get_path(Path::new(path.as_str())) {
        Ok(entry) => Ok((entry.kind() == Some(ObjectType::Tree)).then_some(entry.id())),
        Err(error) if error.code() == ErrorCode::NotFound => Ok(None),
        Err(error) => Err(damaged(top, &error.message())),
    }
}

fn blob_size(odb: &git2::Odb<'_>, id: Oid) -> Result<u64, SourceError> {
    match odb.read_header(id) {
        Ok((size, ObjectType::Blob)) => Ok(size as u64),
        Ok(_) => Err(damaged(id, &"it is not a blob")),
        Err(error) => Err(damaged(id, &error.message())),
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

fn missing(path: &Path) -> SourceError {
    SourceError::Missing { place: path.display().to_string() }
}

fn commit_id(id: Oid) -> CommitId {
    CommitId(id.to_string().into())
}

fn oid(hex: &str) -> Result<Oid, SourceError> {
    Oid::from_str(hex).map_err(|error| SourceError::Object { id: hex.to_owned(), cause: Cause::of(&error.message()) })
}
