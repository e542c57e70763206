//! A working directory read as if it were committed, for `validate` and for previews of edits. The daemon never does this.
//!
//! Folders get the very ids that git would give them, so that everything keyed by id is shared with committed revisions. Files
//! that git would ignore are left out: a commit would not hold them either.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use git2::{ObjectType, Oid};
use setpoint_schema::id::BlobId;
use setpoint_vmm::driver::FileKind;

use super::error::{Cause, Excess, SourceError};
use super::tree::{Folder, FolderId, Item, Refusal, is_plain_name, join};
use super::walk::limit;
use super::{Files, SourceLimits, libgit};

/// The content of a directory at one moment.
#[derive(Debug)]
pub struct Worktree {
    root: Arc<Folder>,
    places: HashMap<BlobId, Place>,
    limits: SourceLimits,
}

/// Where the content of a blob is found.
#[derive(Debug)]
enum Place {
    File {
        path: PathBuf,
        size: u64,
    },
    /// The target of a symbolic link.
    Text(Vec<u8>),
}

impl Worktree {
    /// Walks `dir`, which holds `apps/`.
    ///
    /// # Errors
    /// When it cannot be read or is beyond the limits.
    pub fn read(dir: &Path, limits: SourceLimits) -> Result<Self, SourceError> {
        libgit::set_limits();
        if !dir.is_dir() {
            return Err(SourceError::NoDirectory { place: dir.display().to_string() });
        }
        let ignores = git2::Repository::discover(dir).ok().and_then(|git| Ignores::of(git, dir));
        let mut walk = Walk { dir, limits: &limits, ignores, places: HashMap::new(), files: 0 };
        let root = walk.folder("", 0)?;
        let places = walk.places;
        Ok(Self { root, places, limits })
    }
}

impl Files for Worktree {
    fn root(&self) -> &Arc<Folder> {
        &self.root
    }

    fn size(&self, blob: &BlobId) -> Result<u64, SourceError> {
        match self.place(blob)? {
            Place::File { size, .. } => Ok(*size),
            Place::Text(text) => Ok(text.len() as u64),
        }
    }

    fn read(&self, blob: &BlobId, path: &str, max: u64) -> Result<Vec<u8>, SourceError> {
        let size = self.size(blob)?;
        if size > max {
            return Err(limit(path, Excess::FileSize { size, limit: max }));
        }
        match self.place(blob)? {
            Place::File { path, .. } => std::fs::read(path).map_err(|error| io("read", path, &error)),
            Place::Text(text) => Ok(text.clone()),
        }
    }

    fn limits(&self) -> &SourceLimits {
        &self.limits
    }
}

impl Worktree {
    fn place(&self, blob: &BlobId) -> Result<&Place, SourceError> {
        self.places
            .get(blob)
            .ok_or_else(|| SourceError::Object { id: blob.to_string(), cause: Cause::of(&"no file has this content") })
    }
}

/// What git would ignore below a directory.
struct Ignores {
    git: git2::Repository,
    index: Option<git2::Index>,
    /// From the work tree's top to the directory.
    prefix: String,
}

impl Ignores {
    fn of(git: git2::Repository, dir: &Path) -> Option<Self> {
        let top = git.workdir()?.canonicalize().ok()?;
        let prefix = dir.canonicalize().ok()?.strip_prefix(top).ok()?.to_str()?.to_owned();
        let index = git.index().ok();
        Some(Self { git, index, prefix })
    }

    /// A tracked file counts even where a pattern matches it, as in git.
    fn leave_out(&self, path: &str) -> bool {
        let path = join(&self.prefix, path);
        let tracked = self.index.as_ref().is_some_and(|index| index.get_path(Path::new(&path), 0).is_some());
        !tracked && self.git.is_path_ignored(&path).unwrap_or(false)
    }
}

struct Walk<'a> {
    dir: &'a Path,
    limits: &'a SourceLimits,
    ignores: Option<Ignores>,
    places: HashMap<BlobId, Place>,
    files: u64,
}

impl Walk<'_> {
    fn folder(&mut self, path: &str, depth: u32) -> Result<Arc<Folder>, SourceError> {
        if depth > self.limits.depth {
            return Err(limit(path, Excess::Depth { limit: self.limits.depth }));
        }
        let mut entries: Vec<(Box<str>, Item)> = Vec::new();
        let dir = self.dir.join(path);
        for entry in std::fs::read_dir(&dir).map_err(|error| io("list", &dir, &error))? {
            let entry = entry.map_err(|error| io("list", &dir, &error))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.eq_ignore_ascii_case(".git") {
                continue;
            }
            let below = join(path, &name);
            let item = if entry.file_name().to_str().is_none_or(|name| !is_plain_name(name)) {
                Some(Item::Refused(Refusal::NotUtf8))
            } else if self.ignores.as_ref().is_some_and(|ignores| ignores.leave_out(&below)) {
                None
            } else {
                self.item(&entry, &below, depth)?
            };
            if let Some(item) = item {
                entries.push((name.into(), item));
            }
        }
        // Two names that are no UTF-8 can look the same; one of them says as much as both.
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        entries.dedup_by(|(a, _), (b, _)| a == b);
        let folder = Folder::new(folder_id(&entries), entries);
        Ok(Arc::new(folder.expect("names that come twice have been taken out")))
    }

    /// What git would commit of this entry; nothing for what it cannot, such as sockets and empty folders.
    fn item(&mut self, entry: &std::fs::DirEntry, path: &str, depth: u32) -> Result<Option<Item>, SourceError> {
        let place = entry.path();
        let found = entry.metadata().map_err(|error| io("read", &place, &error))?;
        if found.is_dir() {
            if place.join(".git").exists() {
                return Ok(Some(Item::Refused(Refusal::Submodule)));
            }
            let folder = self.folder(path, depth + 1)?;
            return Ok((!folder.is_empty()).then_some(Item::Folder(folder)));
        }
        self.files += 1;
        if self.files > self.limits.files {
            return Err(limit(path, Excess::Files { limit: self.limits.files }));
        }
        if path.len() as u64 > u64::from(self.limits.path_bytes) {
            return Err(limit(path, Excess::PathLength { limit: self.limits.path_bytes }));
        }
        if found.is_symlink() {
            let target = std::fs::read_link(&place).map_err(|error| io("read", &place, &error))?;
            let text = target.as_os_str().as_bytes().to_vec();
            let blob = hashed(path, Oid::hash_object(ObjectType::Blob, &text))?;
            self.places.insert(blob.clone(), Place::Text(text));
            return Ok(Some(Item::File { blob, kind: FileKind::Symlink }));
        }
        if !found.is_file() {
            return Ok(None);
        }
        let blob = hashed(path, Oid::hash_file(ObjectType::Blob, &place))?;
        self.places.insert(blob.clone(), Place::File { path: place, size: found.len() });
        let executable = found.permissions().mode() & 0o100 != 0;
        let kind = if executable { FileKind::Executable } else { FileKind::Regular };
        Ok(Some(Item::File { blob, kind }))
    }
}

fn hashed(path: &str, id: Result<Oid, git2::Error>) -> Result<BlobId, SourceError> {
    id.map(|id| BlobId(id.to_string())).map_err(|error| SourceError::Io {
        operation: "read",
        path: path.to_owned(),
        cause: Cause::of(&error.message()),
    })
}

/// The id that git gives a tree of these entries; of a tree with refused ones, one that no other tree has.
fn folder_id(entries: &[(Box<str>, Item)]) -> FolderId {
    let mut lines: Vec<(Vec<u8>, Vec<u8>)> = entries
        .iter()
        .map(|(name, item)| {
            let (mode, id, is_folder) = match item {
                Item::Folder(folder) => ("40000", folder.id.0.as_str(), true),
                Item::File { blob, kind: FileKind::Regular } => ("100644", blob.as_str(), false),
                Item::File { blob, kind: FileKind::Executable } => ("100755", blob.as_str(), false),
                Item::File { blob, kind: FileKind::Symlink } => ("120000", blob.as_str(), false),
                Item::Refused(_) => ("0", "", false),
            };
            // Git sorts a folder as if its name ended in a slash.
            let sort_key = if is_folder { format!("{name}/") } else { name.to_string() }.into_bytes();
            let mut line = format!("{mode} {name}\0").into_bytes();
            line.extend(Oid::from_str(id).map(|id| id.as_bytes().to_vec()).unwrap_or_default());
            (sort_key, line)
        })
        .collect();
    lines.sort();
    let bytes: Vec<u8> = lines.into_iter().flat_map(|(_, line)| line).collect();
    let id = Oid::hash_object(ObjectType::Tree, &bytes).expect("hashing bytes in memory needs nothing that can fail");
    FolderId(id.to_string())
}

fn io(operation: &'static str, path: &Path, error: &std::io::Error) -> SourceError {
    SourceError::Io { operation, path: path.display().to_string(), cause: Cause::of(error) }
}
