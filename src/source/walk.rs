//! Reads git trees into [`Folder`]s, each distinct tree once, under limits.
//!
//! A tree of a few kilobytes can describe more files than there are atoms, by naming the same subtree again and again. The
//! walk visits each distinct tree once and adds up what it already knows of the others, so that such a tree is refused at once.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

use git2::{ObjectType, Oid};
use setpoint_schema::id::BlobId;
use setpoint_vmm::driver::FileKind;

use super::SourceLimits;
use super::error::{Cause, Excess, SourceError};
use super::tree::{Folder, FolderId, Item, Refusal, is_plain_name, join};

/// How many of the last revisions keep their folders in memory: the current one, the one before, and two previews.
const RECENT: usize = 4;

/// Fewer known folders than this are not worth a look at which of them are still in use.
const MANY: usize = 1000;

/// The folders of the last few revisions, by tree id.
#[derive(Debug, Default)]
pub(super) struct Folders {
    known: HashMap<Oid, Weak<Folder>>,
    recent: VecDeque<Arc<Folder>>,
    /// How many of the known ones were in use when those that were not were forgotten last.
    kept_at_last_look: usize,
}

impl Folders {
    /// The folder of `tree`, with all below it.
    pub fn read(
        &mut self,
        git: &git2::Repository,
        tree: Oid,
        limits: &SourceLimits,
    ) -> Result<(Arc<Folder>, u64), SourceError> {
        let odb = git.odb().map_err(|error| damaged(tree, &error.message()))?;
        let mut walk = Walk { odb: &odb, limits, known: &mut self.known, files: 0, trees_read: 0 };
        let folder = walk.folder(tree, "", 0)?;
        let trees_read = walk.trees_read;
        self.recent.push_back(Arc::clone(&folder));
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
        // Looking at all of them each time would take longer than reading what a commit changed.
        if self.known.len() > 2 * self.kept_at_last_look.max(MANY) {
            self.known.retain(|_, folder| folder.strong_count() > 0);
            self.kept_at_last_look = self.known.len();
        }
        Ok((folder, trees_read))
    }
}

struct Walk<'a> {
    odb: &'a git2::Odb<'a>,
    limits: &'a SourceLimits,
    known: &'a mut HashMap<Oid, Weak<Folder>>,
    files: u64,
    trees_read: u64,
}

impl<'a> Walk<'a> {
    fn folder(&mut self, id: Oid, path: &str, depth: u32) -> Result<Arc<Folder>, SourceError> {
        if let Some(folder) = self.known.get(&id).and_then(Weak::upgrade) {
            self.count(folder.totals.files, path)?;
            let longest = path.len() as u64 + 1 + u64::from(folder.totals.longest);
            self.check(depth.saturating_add(folder.totals.depth), longest, path)?;
            return Ok(folder);
        }
        self.check(depth, path.len() as u64, path)?;
        let tree = self.load(id, path)?;
        let mut entries = Vec::new();
        let mut rest = tree.data();
        while !rest.is_empty() {
            let (entry, behind) = Entry::first_of(rest).ok_or_else(|| damaged(id, &"the tree breaks off"))?;
            let name: Box<str> = String::from_utf8_lossy(entry.name).into();
            let item = self.item(&entry, &join(path, &name), depth)?;
            entries.push((name, item));
            rest = behind;
        }
        if entries.is_empty() {
            self.count(1, path)?;
        }
        let folder = Folder::new(FolderId(hex(id)), entries);
        let folder = Arc::new(folder.map_err(|_| damaged(id, &"the tree names one entry twice"))?);
        self.known.insert(id, Arc::downgrade(&folder));
        Ok(folder)
    }

    fn item(&mut self, entry: &Entry<'_>, path: &str, depth: u32) -> Result<Item, SourceError> {
        let refusal = match std::str::from_utf8(entry.name) {
            Ok(name) if is_plain_name(name) => None,
            Ok(_) => Some(Refusal::BadName),
            Err(_) => Some(Refusal::NotUtf8),
        };
        let item = match (refusal, entry.mode) {
            (Some(refusal), _) => Item::Refused(refusal),
            (None, 0o040_000) => return Ok(Item::Folder(self.folder(entry.id, path, depth + 1)?)),
            // 100664 is what git wrote in its first years.
            (None, 0o100_644 | 0o100_664) => file(entry, FileKind::Regular),
            (None, 0o100_755) => file(entry, FileKind::Executable),
            (None, 0o120_000) => file(entry, FileKind::Symlink),
            (None, 0o160_000) => Item::Refused(Refusal::Submodule),
            (None, _) => Item::Refused(Refusal::BadMode),
        };
        self.count(1, path)?;
        self.check(depth, path.len() as u64, path)?;
        Ok(item)
    }

    /// The tree as git stores it. Parsed here, because libgit2 would keep each one that it parses, too.
    fn load(&mut self, id: Oid, path: &str) -> Result<git2::OdbObject<'a>, SourceError> {
        self.trees_read += 1;
        let (size, kind) = self.odb.read_header(id).map_err(|error| damaged(id, &error.message()))?;
        if kind != ObjectType::Tree {
            return Err(damaged(id, &"it is not a tree"));
        }
        if size as u64 > self.limits.listing_bytes {
            return Err(limit(path, Excess::Listing { limit: self.limits.listing_bytes }));
        }
        self.odb.read(id).map_err(|error| damaged(id, &error.message()))
    }

    fn count(&mut self, files: u64, path: &str) -> Result<(), SourceError> {
        self.files = self.files.saturating_add(files);
        if self.files > self.limits.files {
            return Err(limit(path, Excess::Files { limit: self.limits.files }));
        }
        Ok(())
    }

    fn check(&self, depth: u32, length: u64, path: &str) -> Result<(), SourceError> {
        if depth > self.limits.depth {
            return Err(limit(path, Excess::Depth { limit: self.limits.depth }));
        }
        if length > u64::from(self.limits.path_bytes) {
            return Err(limit(path, Excess::PathLength { limit: self.limits.path_bytes }));
        }
        Ok(())
    }
}

fn file(entry: &Entry<'_>, kind: FileKind) -> Item {
    Item::File { blob: BlobId(hex(entry.id)), kind }
}

/// One entry of a tree: the mode in octal digits, a blank, the name, a zero byte, and the id in 20 bytes (git's
/// Documentation/gitformat-pack and `tree-walk.c`).
struct Entry<'t> {
    mode: i32,
    name: &'t [u8],
    id: Oid,
}

impl<'t> Entry<'t> {
    /// The first entry of a tree, and the rest of it.
    fn first_of(tree: &'t [u8]) -> Option<(Self, &'t [u8])> {
        let (head, rest) = tree.split_at(tree.iter().position(|byte| *byte == 0)?);
        let (id, rest) = rest.get(1..)?.split_first_chunk::<20>()?;
        let (mode, name) = head.split_at(head.iter().position(|byte| *byte == b' ')?);
        let mode = i32::from_str_radix(std::str::from_utf8(mode).ok()?, 8).ok()?;
        Some((Self { mode, name: name.get(1..)?, id: Oid::from_bytes(id).ok()? }, rest))
    }
}

/// The id as git spells it, without the detour over a formatter: there are as many as files.
pub(super) fn hex(id: Oid) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = |byte: &u8| [byte >> 4, byte & 15].map(|digit| char::from(DIGITS[usize::from(digit)]));
    id.as_bytes().iter().flat_map(digits).collect()
}

/// The error about `path`, whose spelling is bounded because its length may be what is wrong with it.
pub(super) fn limit(path: &str, excess: Excess) -> SourceError {
    let path = match path.char_indices().nth(200) {
        _ if path.is_empty() => "the top folder".to_owned(),
        Some((end, _)) => format!("{}…", &path[..end]),
        None => path.to_owned(),
    };
    SourceError::Limit { path, excess }
}

pub(super) fn damaged(id: Oid, problem: &impl ToString) -> SourceError {
    SourceError::Object { id: id.to_string(), cause: Cause::of(problem) }
}
