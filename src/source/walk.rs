//! Reads git trees into [`Folder`]s, each distinct tree once, under limits.
//!
//! A tree of a few kilobytes can describe more files than there are atoms, by naming the same subtree again and again. The
//! walk visits each distinct tree once and adds up what it already knows of the others, so that such a tree is refused at once.

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Weak};

use git2::{ObjectType, Oid};
use setpoint_schema::id::BlobId;
use setpoint_schema::names::{HashMap, HashSet};
use setpoint_vmm::driver::FileKind;

use crate::parallel;

use super::SourceLimits;
use super::error::{Cause, Excess, SourceError};
use super::objects::{Kind, ObjectId, Objects};
use super::tree::{Folder, FolderId, Item, Refusal, is_plain_name};

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
    pub fn read(&mut self, git: &git2::Repository, tree: Oid, limits: &SourceLimits) -> Result<Walked, SourceError> {
        let ahead = Ahead::of(git, tree, limits, &self.known);
        // Held until the walk is at its end: nothing else holds them yet.
        self.known.extend(ahead.folders.iter().map(|(id, folder)| (*id, Arc::downgrade(folder))));
        let (files, trees_read) = (0, ahead.trees_read);
        let trees = Trees { objects: &ahead.objects, handle: Handle::Lent(git) };
        let mut walk =
            Walk { trees: &trees, limits, known: &mut self.known, listings: ahead.listings, files, trees_read };
        let folder = walk.folder(tree, &mut String::new(), 0)?;
        let trees_read = walk.trees_read;
        // Who reads one revision again and again must not push out the others.
        if !self.recent.iter().any(|recent| Arc::ptr_eq(recent, &folder)) {
            self.recent.push_back(Arc::clone(&folder));
        }
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
        // Looking at all of them each time would take longer than reading what a commit changed.
        if self.known.len() > 2 * self.kept_at_last_look.max(MANY) {
            self.known.retain(|_, folder| folder.strong_count() > 0);
            self.kept_at_last_look = self.known.len();
        }
        Ok(Walked { folder, trees_read, objects: ahead.objects })
    }
}

/// What a walk comes to.
pub(super) struct Walked {
    pub folder: Arc<Folder>,
    pub trees_read: u64,
    /// The objects, where much was new.
    pub objects: Objects,
}

/// Where trees are read from.
struct Trees<'a> {
    objects: &'a Objects,
    /// For what is not in these.
    handle: Handle<'a>,
}

enum Handle<'a> {
    Lent(&'a git2::Repository),
    /// One thread's own, opened when it is needed: that takes as long as reading some hundreds of trees.
    Own(&'a Path, &'a OnceCell<Option<git2::Repository>>),
}

impl Trees<'_> {
    /// The tree as git stores it. Parsed here, because libgit2 would keep each one that it parses, too.
    fn load(&self, id: Oid, path: &str, limits: &SourceLimits) -> Result<Vec<u8>, SourceError> {
        let known = ObjectId::try_from(id.as_bytes()).ok();
        if let Some(listing) = known.and_then(|id| self.objects.read(id, Kind::Tree, limits.listing_bytes)) {
            return Ok(listing);
        }
        let git = match &self.handle {
            Handle::Lent(git) => git,
            Handle::Own(git_dir, own) => {
                own.get_or_init(|| own_handle(git_dir)).as_ref().ok_or_else(|| damaged(id, &"it cannot be read"))?
            }
        };
        let odb = git.odb().map_err(|error| damaged(id, &error.message()))?;
        let (size, kind) = odb.read_header(id).map_err(|error| damaged(id, &error.message()))?;
        if kind != ObjectType::Tree {
            return Err(damaged(id, &"it is not a tree"));
        }
        if size as u64 > limits.listing_bytes {
            return Err(limit(path, Excess::Listing { limit: limits.listing_bytes }));
        }
        Ok(odb.read(id).map_err(|error| damaged(id, &error.message()))?.data().to_vec())
    }
}

struct Walk<'a> {
    trees: &'a Trees<'a>,
    limits: &'a SourceLimits,
    known: &'a mut HashMap<Oid, Weak<Folder>>,
    /// Trees that were read and not yet taken apart.
    listings: HashMap<Oid, Vec<u8>>,
    files: u64,
    trees_read: u64,
}

impl Walk<'_> {
    fn folder(&mut self, id: Oid, path: &mut String, depth: u32) -> Result<Arc<Folder>, SourceError> {
        if let Some(folder) = self.known.get(&id).and_then(Weak::upgrade) {
            self.count(folder.totals.files, path)?;
            let longest = path.len() as u64 + 1 + u64::from(folder.totals.longest);
            self.check(depth.saturating_add(folder.totals.depth), longest, path)?;
            return Ok(folder);
        }
        self.check(depth, path.len() as u64, path)?;
        let listing = match self.listings.remove(&id) {
            Some(listing) => listing,
            None => {
                self.trees_read += 1;
                self.trees.load(id, path, self.limits)?
            }
        };
        let mut entries = Vec::new();
        let mut rest = &*listing;
        while !rest.is_empty() {
            let (entry, behind) = Entry::first_of(rest).ok_or_else(|| damaged(id, &"the tree breaks off"))?;
            let name = String::from_utf8_lossy(entry.name);
            let outer = path.len();
            if outer > 0 {
                path.push('/');
            }
            path.push_str(&name);
            let item = self.item(&entry, path, depth)?;
            path.truncate(outer);
            entries.push((name.into(), item));
            rest = behind;
        }
        if entries.is_empty() {
            self.count(1, path)?;
        }
        let folder = Folder::new(FolderId::of(id), entries);
        let folder = Arc::new(folder.map_err(|_| damaged(id, &"the tree names one entry twice"))?);
        self.known.insert(id, Arc::downgrade(&folder));
        Ok(folder)
    }

    fn item(&mut self, entry: &Entry<'_>, path: &mut String, depth: u32) -> Result<Item, SourceError> {
        let refusal = match std::str::from_utf8(entry.name) {
            Ok(name) if is_plain_name(name) => None,
            Ok(_) => Some(Refusal::BadName),
            Err(_) => Some(Refusal::NotUtf8),
        };
        let item = match (refusal, entry.mode) {
            (Some(refusal), _) => Item::Refused(refusal),
            (None, FOLDER) => return Ok(Item::Folder(self.folder(entry.id, path, depth + 1)?)),
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

/// Folders that were read before the walk comes to them.
///
/// A walk of many folders takes most of a first look at a repository, and goes on one processor. So the top of the tree is read
/// ahead, and what is below of it on all of them. What goes wrong is left to the walk, which finds it again in its order, and which
/// checks the limits of the whole: here they bound what each thread reads.
#[derive(Default)]
struct Ahead {
    folders: Vec<(Oid, Arc<Folder>)>,
    /// The trees above those folders.
    listings: HashMap<Oid, Vec<u8>>,
    trees_read: u64,
    objects: Objects,
}

/// Fewer folders than this are read by the walk itself: threads, and the indexes of objects, take longer than that.
const WORTH_THREADS: usize = 64;

impl Ahead {
    fn of(git: &git2::Repository, tree: Oid, limits: &SourceLimits, known: &HashMap<Oid, Weak<Folder>>) -> Self {
        let is_new = |id: &Oid| known.get(id).is_none_or(|folder| folder.strong_count() == 0);
        let (mut ahead, none) = (Self::default(), Objects::default());
        let trees = Trees { objects: &none, handle: Handle::Lent(git) };
        let mut level: Vec<Oid> = Some(tree).filter(is_new).into_iter().collect();
        while !level.is_empty() && level.len() < WORTH_THREADS {
            let mut below = HashSet::default();
            for id in level {
                let Ok(listing) = trees.load(id, "", limits) else { return ahead };
                ahead.trees_read += 1;
                below.extend(folders_of(&listing).filter(&is_new));
                ahead.listings.insert(id, listing);
            }
            // Of what is nested in itself without end there is no level without news.
            if ahead.listings.len() > WORTH_THREADS * limits.depth as usize {
                return ahead;
            }
            level = below.into_iter().filter(|id| !ahead.listings.contains_key(id)).collect();
        }
        if !level.is_empty() {
            ahead.objects = Objects::of(git.commondir());
            ahead.read(git.path(), level, limits);
        }
        ahead
    }

    /// Reads these folders with all below them, on all processors.
    fn read(&mut self, git_dir: &Path, level: Vec<Oid>, limits: &SourceLimits) {
        let objects = &self.objects;
        let own = || {
            let (git, held, known) = (OnceCell::new(), Vec::new(), HashMap::default());
            Some(Share { objects, git_dir, git, held, known, trees_read: 0, files: 0 })
        };
        for share in parallel::each_with(&level, own, |share, id| share.read(*id, limits)) {
            self.trees_read += share.trees_read;
            self.folders.extend(share.known.into_iter().filter_map(|(id, folder)| Some((id, folder.upgrade()?))));
        }
    }
}

/// What one thread reads ahead.
struct Share<'a> {
    objects: &'a Objects,
    git_dir: &'a Path,
    git: OnceCell<Option<git2::Repository>>,
    held: Vec<Arc<Folder>>,
    known: HashMap<Oid, Weak<Folder>>,
    trees_read: u64,
    files: u64,
}

impl Share<'_> {
    fn read(&mut self, tree: Oid, limits: &SourceLimits) {
        if self.files > limits.files {
            return;
        }
        let (known, listings) = (&mut self.known, HashMap::default());
        let (files, trees_read) = (self.files, self.trees_read);
        let trees = Trees { objects: self.objects, handle: Handle::Own(self.git_dir, &self.git) };
        let mut walk = Walk { trees: &trees, limits, known, listings, files, trees_read };
        let folder = walk.folder(tree, &mut String::new(), 1);
        (self.files, self.trees_read) = (walk.files, walk.trees_read);
        self.held.extend(folder);
    }
}

/// A handle for one thread: git2's may be used by one at a time.
pub(super) fn own_handle(git_dir: &Path) -> Option<git2::Repository> {
    let none: [&str; 0] = [];
    git2::Repository::open_ext(git_dir, git2::RepositoryOpenFlags::NO_SEARCH, none).ok()
}

/// The folders that a tree names, as far as it can be read.
fn folders_of(mut listing: &[u8]) -> impl Iterator<Item = Oid> {
    let entries = std::iter::from_fn(move || {
        let (entry, behind) = Entry::first_of(listing)?;
        listing = behind;
        Some(entry)
    });
    entries.filter(|entry| entry.mode == FOLDER).map(|entry| entry.id)
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

/// The mode of a folder in a tree.
const FOLDER: i32 = 0o040_000;

/// The id as git spells it, without the detour over a formatter: there are as many as files.
pub(super) fn hex(id: Oid) -> String {
    setpoint_schema::id::hex(id.as_bytes())
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
