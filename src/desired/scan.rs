//! Finds the files that declare something: `setpoint.toml`, every `app.yaml` below `apps/`, and `templates/*.yaml`.
//!
//! What might hide an app (a symbolic link or a submodule where its folder should be) is reported, since its absence would
//! otherwise read as its removal.

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

/// A file and its content.
pub(super) type Key = (RepoPath, BlobId);

/// The files of a tree that declare something.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// The settings, or why they cannot be read.
    pub project: Option<Result<Key, Box<Diagnostic>>>,
    /// Files of apps and templates, in path order.
    pub declarations: Vec<Key>,
    /// What stands where apps could be declared, and cannot be read.
    pub hiding_apps: Vec<Diagnostic>,
    /// What stands where templates could be declared, and cannot be read.
    pub hiding_templates: Vec<Diagnostic>,
}

/// Whether a folder belongs to an app, in which case what stands in it is the app's affair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Within {
    Team,
    App,
}

impl Scan {
    pub fn of(root: &Folder) -> Self {
        let project = root.child(PROJECT_FILE).map(|item| declaration(PROJECT_FILE, item));
        let mut scan = Self { project, ..Self::default() };
        match root.child(APPS) {
            Some(Item::Folder(folder)) => scan.apps(folder, APPS, Within::Team),
            Some(item @ (Item::File { .. } | Item::Refused(_))) => scan.hiding_apps.push(problem_of(APPS, item)),
            None => {}
        }
        match root.child(TEMPLATES) {
            Some(Item::Folder(folder)) => scan.template_files(folder),
            Some(item @ (Item::File { .. } | Item::Refused(_))) => {
                scan.hiding_templates.push(problem_of(TEMPLATES, item));
            }
            None => {}
        }
        scan
    }

    /// The files of templates alone.
    pub fn templates(self) -> Vec<Key> {
        let below = format!("{TEMPLATES}/");
        self.declarations.into_iter().filter(|(path, _)| path.as_str().starts_with(&below)).collect()
    }

    fn apps(&mut self, folder: &Folder, path: &str, within: Within) {
        let within = if folder.child(APP_FILE).is_some() { Within::App } else { within };
        for (name, item) in folder.entries() {
            let below = join(path, name);
            match (item, within) {
                (Item::Folder(folder), _) => self.apps(folder, &below, within),
                (Item::File { .. } | Item::Refused(_), _) if name == APP_FILE => match declaration(&below, item) {
                    Ok(found) => self.declarations.push(found),
                    Err(problem) => self.hiding_apps.push(*problem),
                },
                (Item::File { .. } | Item::Refused(_), Within::App) => {}
                (Item::File { kind: FileKind::Regular | FileKind::Executable, .. }, Within::Team) => {
                    if name == "app.yml" {
                        let problem = Diagnostic::new(printable(&below), "is not read");
                        self.hiding_apps.push(problem.hint("rename it: declarations of apps are named app.yaml"));
                    }
                }
                (Item::File { kind: FileKind::Symlink, .. } | Item::Refused(_), Within::Team) => {
                    self.hiding_apps.push(problem_of(&below, item));
                }
            }
        }
    }

    /// Folders below hold root file systems, in which any file may be called anything.
    fn template_files(&mut self, folder: &Folder) {
        for (name, item) in folder.entries().iter().filter(|(name, _)| name.ends_with(".yaml")) {
            match declaration(&join(TEMPLATES, name), item) {
                Ok(found) => self.declarations.push(found),
                Err(problem) => self.hiding_templates.push(*problem),
            }
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
