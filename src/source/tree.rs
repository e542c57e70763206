//! The tree of one revision, as plain data: folders that share what they have in common with other revisions.

use std::sync::Arc;

use setpoint_schema::id::BlobId;
use setpoint_schema::name::RepoPath;
use setpoint_vmm::driver::FileKind;

use super::walk::hex;

/// One folder. Equal ids hold equal content, so that whatever is derived from a folder can be kept by its id.
#[derive(Debug)]
pub struct Folder {
    /// Git's id of the tree.
    pub id: FolderId,
    /// By name.
    entries: Box<[(Box<str>, Item)]>,
    pub(super) totals: Totals,
}

/// Git's id of a tree, in hex.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FolderId(pub String);

impl FolderId {
    pub(super) fn of(tree: git2::Oid) -> Self {
        Self(hex(tree))
    }
}

/// What stands in a folder under one name.
#[derive(Debug, Clone)]
pub enum Item {
    /// A folder.
    Folder(Arc<Folder>),
    /// A file or a symbolic link.
    File {
        /// Its content.
        blob: BlobId,
        /// What it is.
        kind: FileKind,
    },
    /// Something that is never read, and why.
    Refused(Refusal),
}

/// Why an entry is never read. Whatever would need it is in error; the rest of the tree is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Mode 160000.
    #[error("is a submodule, and submodules are not followed")]
    Submodule,
    /// Its name is not UTF-8; the name in the folder is a printable likeness.
    #[error("has a name that is not valid UTF-8")]
    NotUtf8,
    /// Its name would mean something else outside git.
    #[error("has a name that no file can have")]
    BadName,
    /// A mode that git does not use.
    #[error("is neither a file, a folder nor a symbolic link")]
    BadMode,
}

/// What the limits are about, summed over a folder and all below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Totals {
    /// Files; an empty folder counts as one.
    pub files: u64,
    /// Levels of folders below.
    pub depth: u32,
    /// The longest relative path, in bytes.
    pub longest: u32,
}

impl Folder {
    /// A folder of these entries, in any order; or the name that two of them have.
    pub(super) fn new(id: FolderId, mut entries: Vec<(Box<str>, Item)>) -> Result<Self, Box<str>> {
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        if let Some(twice) = entries.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(twice[0].0.clone());
        }
        let mut totals = Totals::default();
        for (name, item) in &entries {
            let name_length = u32::try_from(name.len()).unwrap_or(u32::MAX);
            match item {
                Item::Folder(folder) => {
                    let below = folder.totals;
                    totals.files = totals.files.saturating_add(below.files);
                    totals.depth = totals.depth.max(below.depth.saturating_add(1));
                    totals.longest = totals.longest.max(name_length.saturating_add(1).saturating_add(below.longest));
                }
                Item::File { .. } | Item::Refused(_) => {
                    totals.files = totals.files.saturating_add(1);
                    totals.longest = totals.longest.max(name_length);
                }
            }
        }
        totals.files = totals.files.max(1);
        Ok(Self { id, entries: entries.into(), totals })
    }

    /// The entries, by name.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Item)> {
        self.entries.iter().map(|(name, item)| (&**name, item))
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entry of this name.
    #[must_use]
    pub fn child(&self, name: &str) -> Option<&Item> {
        let index = self.entries.binary_search_by(|(other, _)| (**other).cmp(name)).ok()?;
        Some(&self.entries[index].1)
    }

    /// The entry at this path. Symbolic links are not followed, so that a path through one leads nowhere.
    #[must_use]
    pub fn get(&self, path: &RepoPath) -> Option<&Item> {
        let mut components = path.as_str().split('/');
        let mut item = self.child(components.next()?)?;
        for component in components {
            let Item::Folder(folder) = item else { return None };
            item = folder.child(component)?;
        }
        Some(item)
    }

    /// The folder at this path.
    #[must_use]
    pub fn folder(&self, path: &RepoPath) -> Option<&Arc<Folder>> {
        match self.get(path)? {
            Item::Folder(folder) => Some(folder),
            Item::File { .. } | Item::Refused(_) => None,
        }
    }

    /// Everything below that is not a folder, with its path below `prefix`, in path order by component.
    pub fn walk<'a>(&'a self, prefix: &str, visit: &mut dyn FnMut(String, &'a Item)) {
        for (name, item) in self.entries() {
            let path = join(prefix, name);
            match item {
                Item::Folder(folder) => folder.walk(&path, visit),
                Item::File { .. } | Item::Refused(_) => visit(path, item),
            }
        }
    }
}

/// `prefix/name`, or `name` at the top.
#[must_use]
pub(crate) fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") }
}

/// Whether `name` can stand in a folder: git trees are bytes that anybody can craft.
pub(super) fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.eq_ignore_ascii_case(".git") && !name.contains(['/', '\0'])
}
