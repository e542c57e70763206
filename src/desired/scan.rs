//! Finds the files that declare something: `setpoint.toml`, every `app.yaml` below `apps/`, `snapshots/*.yaml` and `templates/*.yaml`; and of two
//! revisions, what of that differs. Folders of equal ids are not entered.
//!
//! What might hide an app (a symbolic link or a submodule where its folder should be) is reported, since its absence would
//! otherwise read as its removal.

use std::cmp::Ordering;
use std::sync::Arc;

use setpoint_schema::diagnostic::Diagnostic;
use setpoint_schema::id::BlobId;
use setpoint_schema::name::RepoPath;
use setpoint_vmm::driver::FileKind;

use crate::source::{Folder, Item, join};

/// The file with the settings of the whole repository.
const PROJECT_FILE: &str = "setpoint.toml";
/// The file that declares apps.
const APP_FILE: &str = "app.yaml";
/// The folder of all apps.
const APPS: &str = "apps";
/// The folder of all templates.
const TEMPLATES: &str = "templates";
/// The folder of snapshots that are declared apart from apps.
const SNAPSHOTS: &str = "snapshots";

/// A file and its content.
pub(super) type Key = (RepoPath, BlobId);

/// The settings, or why they cannot be read; nothing where there are none.
pub(super) fn settings(root: &Folder) -> Option<Result<Key, Box<Diagnostic>>> {
    root.child(PROJECT_FILE).map(|item| declaration(PROJECT_FILE, item))
}

/// The files of templates.
pub(super) fn templates(root: &Folder) -> Vec<Key> {
    let mut changes = Changes::default();
    in_files(&mut changes.templates, TEMPLATES, None, root.child(TEMPLATES).and_then(folder_of));
    changes.declarations().cloned().collect()
}

/// Each path that differs, in path order, with what stands there now.
pub(super) type Differing = Vec<(String, Option<Found>)>;

/// What differs between two revisions.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Where apps and snapshots can be declared.
    pub apps: Differing,
    /// The same, where templates can be declared.
    pub templates: Differing,
    /// The folders whose content differs, those that came or went among them.
    pub folders: Vec<String>,
}

/// What stands where something can be declared.
#[derive(Debug, PartialEq)]
pub(super) enum Found {
    /// A file of declarations.
    Declarations(Key),
    /// Something that cannot be read, and may hide what is declared there.
    Hiding(Diagnostic),
}

impl Changes {
    /// What to do to know `new`, where `old` is known; all of `new` where nothing is.
    pub fn between(old: Option<&Folder>, new: &Folder) -> Self {
        let mut changes = Self::default();
        let (was, is) = (old.and_then(|old| old.child(APPS)), new.child(APPS));
        note(
            &mut changes.apps,
            APPS,
            was.and_then(|item| misplaced(APPS, item)),
            is.and_then(|item| misplaced(APPS, item)),
        );
        changes.in_apps(Side::top(was), Side::top(is), APPS);
        let of = |top| (old.and_then(|old| old.child(top)), new.child(top));
        let (was, is) = of(SNAPSHOTS);
        let found = |item: Option<&Item>| misplaced(SNAPSHOTS, item?);
        note(&mut changes.apps, SNAPSHOTS, found(was), found(is));
        in_files(&mut changes.apps, SNAPSHOTS, was.and_then(folder_of), is.and_then(folder_of));
        let (was, is) = of(TEMPLATES);
        let found = |item: Option<&Item>| misplaced(TEMPLATES, item?);
        note(&mut changes.templates, TEMPLATES, found(was), found(is));
        in_files(&mut changes.templates, TEMPLATES, was.and_then(folder_of), is.and_then(folder_of));
        changes
    }

    /// Every file of declarations that is new or changed.
    pub fn declarations(&self) -> impl Iterator<Item = &Key> {
        self.apps.iter().chain(&self.templates).filter_map(|(_, found)| match found {
            Some(Found::Declarations(key)) => Some(key),
            Some(Found::Hiding(_)) | None => None,
        })
    }

    /// Adds the folders beside those of apps whose content differs.
    pub fn add_other_folders(&mut self, old: &Folder, new: &Folder) {
        for (name, was, is) in pairs(Some(old), Some(new)) {
            if name != APPS {
                self.in_folder(was.and_then(folder_of), is.and_then(folder_of), name);
            }
        }
    }

    fn in_apps(&mut self, was: Option<Side<'_>>, is: Option<Side<'_>>, path: &str) {
        if Side::are_same(was, is) {
            return;
        }
        self.folders.push(path.to_owned());
        let (was, is) = (was.map(Side::entered), is.map(Side::entered));
        for (name, old, new) in pairs(was.map(|side| &**side.folder), is.map(|side| &**side.folder)) {
            let (old_below, new_below) = (Side::below(was, old), Side::below(is, new));
            if old_below.is_some() && Side::are_same(old_below, new_below) {
                continue;
            }
            // Most files are workspace files, whose paths need not be spelled out to say nothing of them.
            let is_apps_own = |side: Option<Side<'_>>| side.is_none_or(|side| side.within == Within::App);
            let is_folder = old_below.is_some() || new_below.is_some();
            if !is_folder && name != APP_FILE && is_apps_own(was) && is_apps_own(is) {
                continue;
            }
            let below = join(path, name);
            let found = |side: Option<Side<'_>>, item: Option<&Item>| found_in_apps(&below, name, side?.within, item?);
            note(&mut self.apps, &below, found(was, old), found(is, new));
            self.in_apps(old_below, new_below, &below);
        }
    }

    fn in_folder(&mut self, was: Option<&Arc<Folder>>, is: Option<&Arc<Folder>>, path: &str) {
        if are_same(was, is) {
            return;
        }
        self.folders.push(path.to_owned());
        for (name, old, new) in pairs(was.map(|folder| &**folder), is.map(|folder| &**folder)) {
            self.in_folder(old.and_then(folder_of), new.and_then(folder_of), &join(path, name));
        }
    }
}

impl Found {
    fn of(declaration: Result<Key, Box<Diagnostic>>) -> Self {
        declaration.map_or_else(|problem| Self::Hiding(*problem), Self::Declarations)
    }
}

/// A folder below `apps/` in one of the revisions.
#[derive(Debug, Clone, Copy)]
struct Side<'a> {
    folder: &'a Arc<Folder>,
    within: Within,
}

/// Whether a folder belongs to an app, in which case what stands in it is the app's affair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Within {
    Team,
    App,
}

impl<'a> Side<'a> {
    fn top(item: Option<&'a Item>) -> Option<Self> {
        Some(Self { folder: folder_of(item?)?, within: Within::Team })
    }

    /// What is true of everything in the folder.
    fn entered(self) -> Self {
        let within = if self.folder.child(APP_FILE).is_some() { Within::App } else { self.within };
        Self { within, ..self }
    }

    fn below(side: Option<Self>, item: Option<&'a Item>) -> Option<Self> {
        Some(Self { folder: folder_of(item?)?, within: side?.within })
    }

    fn are_same(was: Option<Self>, is: Option<Self>) -> bool {
        let within = |side: Option<Self>| side.map(|side| side.within);
        within(was) == within(is) && are_same(was.map(|side| side.folder), is.map(|side| side.folder))
    }
}

fn folder_of(item: &Item) -> Option<&Arc<Folder>> {
    match item {
        Item::Folder(folder) => Some(folder),
        Item::File { .. } | Item::Refused(_) => None,
    }
}

fn are_same(was: Option<&Arc<Folder>>, is: Option<&Arc<Folder>>) -> bool {
    match (was, is) {
        (None, None) => true,
        (Some(was), Some(is)) => Arc::ptr_eq(was, is) || was.id == is.id,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

/// Each name in either folder, with what stands there in each.
fn pairs<'a>(
    was: Option<&'a Folder>,
    is: Option<&'a Folder>,
) -> impl Iterator<Item = (&'a str, Option<&'a Item>, Option<&'a Item>)> {
    let mut was = was.into_iter().flat_map(Folder::entries).peekable();
    let mut is = is.into_iter().flat_map(Folder::entries).peekable();
    std::iter::from_fn(move || {
        let order = match (was.peek(), is.peek()) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((was, _)), Some((is, _))) => was.cmp(is),
        };
        let old = if order.is_le() { was.next() } else { None };
        let new = if order.is_ge() { is.next() } else { None };
        let name = old.or(new).map(|(name, _)| name)?;
        Some((name, old.map(|(_, item)| item), new.map(|(_, item)| item)))
    })
}

/// The files of declarations that stand in a folder itself. Folders below `templates/` hold root file systems, in which any file may be
/// called anything.
fn in_files(changes: &mut Differing, top: &str, was: Option<&Arc<Folder>>, is: Option<&Arc<Folder>>) {
    if are_same(was, is) {
        return;
    }
    for (name, old, new) in pairs(was.map(|folder| &**folder), is.map(|folder| &**folder)) {
        if name.ends_with(".yaml") {
            let path = join(top, name);
            let found = |item: Option<&Item>| item.map(|item| Found::of(declaration(&path, item)));
            note(changes, &path, found(old), found(new));
        }
    }
}

fn note(changes: &mut Differing, path: &str, was: Option<Found>, is: Option<Found>) {
    if was != is {
        changes.push((path.to_owned(), is));
    }
}

/// Something that is no folder, where a folder of declarations is expected.
fn misplaced(path: &str, item: &Item) -> Option<Found> {
    match item {
        Item::Folder(_) => None,
        Item::File { .. } | Item::Refused(_) => Some(Found::Hiding(problem_of(path, item))),
    }
}

fn found_in_apps(path: &str, name: &str, within: Within, item: &Item) -> Option<Found> {
    match (item, within) {
        (Item::Folder(_), _) => None,
        (Item::File { .. } | Item::Refused(_), _) if name == APP_FILE => Some(Found::of(declaration(path, item))),
        (Item::File { .. } | Item::Refused(_), Within::App) => None,
        (Item::File { kind: FileKind::Regular | FileKind::Executable, .. }, Within::Team) => {
            let problem = || Diagnostic::new(printable(path), "is not read");
            let hint = "rename it: declarations of apps are named app.yaml";
            (name == "app.yml").then(|| Found::Hiding(problem().hint(hint)))
        }
        (Item::File { kind: FileKind::Symlink, .. } | Item::Refused(_), Within::Team) => {
            Some(Found::Hiding(problem_of(path, item)))
        }
    }
}

/// The file at `path`, if it is one that can be read as a declaration.
fn declaration(path: &str, item: &Item) -> Result<Key, Box<Diagnostic>> {
    match item {
        Item::File { blob, kind: FileKind::Regular | FileKind::Executable } => match RepoPath::new(path) {
            Ok(path) => Ok((path, blob.clone())),
            Err(error) => Err(Box::new(Diagnostic::new(printable(path), format!("cannot be read: its path {error}")))),
        },
        Item::File { kind: FileKind::Symlink, .. } | Item::Folder(_) | Item::Refused(_) => {
            Err(Box::new(problem_of(path, item)))
        }
    }
}

fn problem_of(path: &str, item: &Item) -> Diagnostic {
    let problem = match item {
        Item::Folder(_) => "is a folder, where a file is expected".to_owned(),
        Item::File { kind: FileKind::Symlink, .. } => "is a symbolic link, which is not followed".to_owned(),
        Item::File { kind: FileKind::Regular | FileKind::Executable, .. } => {
            "is a file, where a folder is expected".to_owned()
        }
        Item::Refused(refusal) => refusal.to_string(),
    };
    Diagnostic::new(printable(path), problem)
}

/// `path` as far as it can be spelled: names in a git tree are any bytes.
pub(super) fn printable(path: &str) -> RepoPath {
    RepoPath::new(path).unwrap_or_else(|_| {
        let parts = path.split('/').map(|part| match part {
            "" | "." | ".." => "_".to_owned(),
            part => part.replace(['\\', '\0'], "_"),
        });
        let spelled: String = parts.collect::<Vec<_>>().join("/").chars().take(1000).collect();
        RepoPath::new(spelled.trim_end_matches('/'))
            .expect("no component is empty, dotted or holds a refused character")
    })
}
