//! Pins what declarations refer to: the content of workspaces and of templates, as digests.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use setpoint_plan::desired::DesiredTemplateRoot;
use setpoint_schema::app::{DesiredApp, SandboxSpec};
use setpoint_schema::diagnostic::Diagnostic;
use setpoint_schema::document::{AppDocument, TemplateDocument};
use setpoint_schema::id::{CommitId, TemplateDigest, TreeDigest, sha256_hex};
use setpoint_schema::name::{RepoPath, TemplateName};
use setpoint_schema::names::{HashMap, HashSet};
use setpoint_schema::runtime::Runtime;
use setpoint_schema::template::TemplateRoot;
use setpoint_vmm::driver::FileKind;

use crate::parallel;
use crate::source::{Files, Folder, FolderId, Item, Listing, SourceError, is_app_folder};

use super::cache::Entry;
use super::parse::{Place, Runtimes};

/// The most files of a template on the host, whose listing is walked on every load.
const MAX_HOST_FILES: usize = 200_000;
/// How many workspaces are kept, whatever the number of apps.
const FEW_WORKSPACES: usize = 1000;

/// What was pinned already, by content.
#[derive(Default)]
pub(super) struct Pins {
    /// Workspaces, by folder and by whether it is an app's own.
    workspaces: HashMap<(FolderId, bool), TreeDigest>,
    /// Template roots in the repository that are known to be within the limits.
    checked_roots: HashSet<FolderId>,
    /// How every template came to be that was seen so far.
    templates: HashMap<TemplateDigest, DesiredTemplateRoot>,
}

/// The templates of one revision.
#[derive(Debug, Clone, Default)]
pub(super) struct PinnedTemplates {
    by_name: BTreeMap<TemplateName, Result<(TemplateDigest, DesiredTemplateRoot), Diagnostic>>,
    /// Those that are to be warm ahead.
    prewarmed: BTreeSet<TemplateName>,
}

impl Pins {
    /// The content of every template, the built-in one included.
    pub fn templates<'a>(
        &mut self,
        files: &dyn Files,
        revision: &CommitId,
        documents: impl Iterator<Item = &'a TemplateDocument>,
    ) -> Result<PinnedTemplates, SourceError> {
        let minimal = DesiredTemplateRoot { root: TemplateRoot::Minimal, revision: revision.clone() };
        let mut by_name = BTreeMap::from([(TemplateName::minimal(), Ok((minimal_digest(), minimal)))]);
        let mut prewarmed = BTreeSet::new();
        for document in documents {
            if document.template.prewarm {
                prewarmed.insert(document.template.name.clone());
            }
            let pinned = match self.root(files, &document.template.root)? {
                Ok(digest) => {
                    let root = document.template.root.clone();
                    let root = DesiredTemplateRoot { root, revision: revision.clone() };
                    self.templates.insert(digest.clone(), root.clone());
                    Ok((digest, root))
                }
                Err(problem) => Err(mistake_of(document, &problem)),
            };
            by_name.insert(document.template.name.clone(), pinned);
        }
        Ok(PinnedTemplates { by_name, prewarmed })
    }

    /// Knows these workspaces already.
    pub fn know(&mut self, workspaces: HashMap<(String, bool), TreeDigest>) {
        let workspaces = workspaces.into_iter().map(|((folder, of_app), digest)| ((FolderId(folder), of_app), digest));
        self.workspaces.extend(workspaces);
    }

    /// The workspaces that are known, for keeping.
    pub fn known(&self) -> impl Iterator<Item = Entry<'_>> {
        let workspaces = self.workspaces.iter();
        workspaces.map(|((folder, of_app), digest)| Entry::Workspace { folder: &folder.0, of_app: *of_app, digest })
    }

    /// How a template came to be that an earlier revision had.
    pub fn known_template(&self, digest: &TemplateDigest) -> Option<DesiredTemplateRoot> {
        self.templates.get(digest).cloned()
    }

    /// Pins these workspaces, those of a revision with so many apps in all.
    pub fn workspaces<'a, 'f: 'a>(
        &mut self,
        files: &dyn Files,
        wanted: impl Iterator<Item = &'a Workspace<'f>>,
        all: usize,
    ) -> Result<(), SourceError> {
        // To find out which of them no app uses any more would take longer than to read the others again.
        if self.workspaces.len() > FEW_WORKSPACES.max(2 * all) {
            self.workspaces.clear();
        }
        let mut seen = HashSet::default();
        let is_new = |one: &&Workspace<'_>| !self.workspaces.contains_key(&one.key);
        let new: Vec<&Workspace<'_>> = wanted.filter(is_new).filter(|one| seen.insert(&one.key)).collect();
        let pinned = parallel::map(&new, |workspace| workspace.pin(files));
        for (workspace, digest) in new.into_iter().zip(pinned) {
            // What is wrong with one is found again when its app is looked at.
            if let Ok(digest) = digest? {
                self.workspaces.insert(workspace.key.clone(), digest);
            }
        }
        Ok(())
    }

    /// The app with everything that it refers to, or all that is wrong with that.
    pub fn app(
        &self,
        files: &dyn Files,
        Declared { document, runtime, workspace }: &Declared<'_>,
        runtimes: &Runtimes<'_>,
        templates: &PinnedTemplates,
    ) -> Result<Result<DesiredApp, Vec<Diagnostic>>, SourceError> {
        let mut mistakes = Vec::new();
        let runtime = runtime_of(document, runtime, runtimes, &mut mistakes);
        let template = templates.digest(document, &mut mistakes);
        let workspace = self.workspace(files, document, workspace.as_ref(), &mut mistakes)?;
        // A template that is not declared is reported by the checks of the whole set.
        let (Some(runtime), Some(template), Some(workspace)) = (runtime, template, workspace) else {
            return Ok(Err(mistakes));
        };
        let mut app = document.spec.clone();
        app.runtime = Some(runtime);
        Ok(Ok(DesiredApp {
            metadata: document.metadata.clone(),
            spec: SandboxSpec { app, template, files: workspace }.into(),
            path: document.path.clone(),
        }))
    }

    fn workspace(
        &self,
        files: &dyn Files,
        document: &AppDocument,
        workspace: Option<&Workspace<'_>>,
        mistakes: &mut Vec<Diagnostic>,
    ) -> Result<Option<TreeDigest>, SourceError> {
        let place = document.places.source_path.as_deref();
        let Some(workspace) = workspace else {
            let path = Workspace::path_of(document);
            mistakes.push(document.mistake(place, format!("there is no folder `{path}` in the repository")));
            return Ok(None);
        };
        if let Some(digest) = self.workspaces.get(&workspace.key) {
            return Ok(Some(digest.clone()));
        }
        match workspace.pin(files)? {
            Ok(digest) => Ok(Some(digest)),
            Err(problem) => {
                mistakes.push(document.mistake(place, format!("its workspace cannot be used: {problem}")));
                Ok(None)
            }
        }
    }

    fn root(&mut self, files: &dyn Files, root: &TemplateRoot) -> Result<Result<TemplateDigest, String>, SourceError> {
        let path = match root {
            TemplateRoot::Minimal => return Ok(Ok(minimal_digest())),
            TemplateRoot::HostRootfs { path } => return Ok(host_digest(Path::new(path))),
            TemplateRoot::RepoRootfs { path } => path,
        };
        Ok(match files.root().get(path) {
            Some(Item::Folder(folder)) => self
                .checked_root(files, path, folder)?
                .map(|()| TemplateDigest(sha256_hex(&[b"folder", folder.id.0.as_bytes()]).into())),
            Some(Item::File { blob, kind: FileKind::Regular | FileKind::Executable }) => {
                let most = files.limits().file_bytes;
                match files.size(blob)? {
                    size if size > most => Err(format!("{path} has {size} bytes, and at most {most} are read")),
                    _ => Ok(TemplateDigest(sha256_hex(&[b"file", blob.as_str().as_bytes()]).into())),
                }
            }
            Some(Item::File { kind: FileKind::Symlink, .. }) => {
                Err(format!("{path} is a symbolic link, which is not followed"))
            }
            Some(Item::Refused(refusal)) => Err(format!("{path} {refusal}")),
            None => Err(format!("there is no `{path}` in the repository")),
        })
    }

    fn checked_root(
        &mut self,
        files: &dyn Files,
        path: &RepoPath,
        folder: &Folder,
    ) -> Result<Result<(), String>, SourceError> {
        if self.checked_roots.contains(&folder.id) {
            return Ok(Ok(()));
        }
        let checked = at_fault(Listing::of_rootfs(files, path, folder))?;
        if checked.is_ok() {
            self.checked_roots.insert(folder.id.clone());
        }
        Ok(checked.map(drop))
    }
}

/// A document that declares an app, with the places of what it refers to.
pub(super) struct Declared<'a> {
    pub document: Arc<AppDocument>,
    pub runtime: Place,
    /// Absent where there is no such folder.
    pub workspace: Option<Workspace<'a>>,
}

impl<'a> Declared<'a> {
    pub fn of(files: &'a dyn Files, document: &Arc<AppDocument>) -> Self {
        let (runtime, workspace) = (Place::of(files, document), Workspace::of(files, document));
        Self { document: Arc::clone(document), runtime, workspace }
    }
}

/// Where an app's files are.
pub(super) struct Workspace<'a> {
    key: (FolderId, bool),
    path: RepoPath,
    folder: &'a Arc<Folder>,
}

impl<'a> Workspace<'a> {
    fn of(files: &'a dyn Files, document: &AppDocument) -> Option<Self> {
        let path = Self::path_of(document);
        let folder = files.root().folder(&path)?;
        Some(Self { key: (folder.id.clone(), is_app_folder(&path, folder)), path, folder })
    }

    fn path_of(document: &AppDocument) -> RepoPath {
        document.spec.source.path.clone().unwrap_or_else(|| folder_of(&document.path))
    }

    fn pin(&self, files: &dyn Files) -> Result<Result<TreeDigest, String>, SourceError> {
        let listing = at_fault(Listing::of_workspace(files, &self.path, self.folder))?;
        Ok(listing.map(|listing| listing.digest()))
    }
}

impl PinnedTemplates {
    /// What is wrong with the templates themselves.
    pub fn mistakes(&self) -> impl Iterator<Item = Diagnostic> {
        self.by_name.values().filter_map(|pinned| pinned.as_ref().err().cloned())
    }

    /// How the template of this content comes to be.
    pub fn root(&self, digest: &TemplateDigest) -> Option<DesiredTemplateRoot> {
        let mut pinned = self.by_name.values().filter_map(|pinned| pinned.as_ref().ok());
        pinned.find(|(found, _)| found == digest).map(|(_, root)| root.clone())
    }

    /// Those of these contents.
    pub fn of(&self, is_used: impl Fn(&TemplateDigest) -> bool) -> BTreeMap<TemplateDigest, DesiredTemplateRoot> {
        let pinned = self.by_name.values().filter_map(|pinned| pinned.as_ref().ok());
        pinned.filter(|(digest, _)| is_used(digest)).cloned().collect()
    }

    /// Those that are to be warm before anything begins from them.
    pub fn prewarmed(&self) -> BTreeMap<TemplateDigest, DesiredTemplateRoot> {
        let pinned = self.prewarmed.iter().filter_map(|name| self.by_name.get(name));
        pinned.filter_map(|pinned| pinned.as_ref().ok()).cloned().collect()
    }

    /// What templates stood on the host, by path.
    pub fn hosts(&self) -> BTreeMap<String, TemplateDigest> {
        let pinned = self.by_name.values().filter_map(|pinned| pinned.as_ref().ok());
        let on_host = pinned.filter_map(|(digest, DesiredTemplateRoot { root, .. })| match root {
            TemplateRoot::HostRootfs { path } => Some((path.clone(), digest.clone())),
            TemplateRoot::Minimal | TemplateRoot::RepoRootfs { .. } => None,
        });
        on_host.collect()
    }

    /// The templates that mean something else here than there, those that only one of both has among them.
    pub fn differing<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a TemplateName> {
        let content = |templates: &'a Self, name: &TemplateName| {
            templates.by_name.get(name).map(|pinned| pinned.as_ref().map(|(digest, _)| digest))
        };
        let only_there = other.by_name.keys().filter(|name| !self.by_name.contains_key(*name));
        let names = self.by_name.keys().chain(only_there);
        names.filter(move |name| content(self, name) != content(other, name))
    }

    fn digest(&self, document: &AppDocument, mistakes: &mut Vec<Diagnostic>) -> Option<TemplateDigest> {
        match self.by_name.get(&document.spec.template)? {
            Ok((digest, _)) => Some(digest.clone()),
            Err(mistake) => {
                let message = format!("its template cannot be used: {}", mistake.headline());
                mistakes.push(document.mistake(document.places.template.as_deref(), message));
                None
            }
        }
    }
}

/// The folder that a file stands in; an `app.yaml` always stands in one.
pub(super) fn folder_of(file: &RepoPath) -> RepoPath {
    let folder = file.as_str().rsplit_once('/').map_or(file.as_str(), |(folder, _)| folder);
    RepoPath::new(folder).expect("the beginning of a path, up to a slash, is a path")
}

fn runtime_of(
    document: &AppDocument,
    place: &Place,
    runtimes: &Runtimes<'_>,
    mistakes: &mut Vec<Diagnostic>,
) -> Option<Arc<Runtime>> {
    let runtime = match place {
        Place::Inline => document.spec.runtime.clone()?,
        Place::File(key) => match runtimes.get(key) {
            Ok(runtime) => Arc::clone(runtime),
            Err(found) => {
                mistakes.extend(found.iter().cloned().map(|mistake| mistake.of(document.metadata.key.clone())));
                return None;
            }
        },
        Place::Unreadable(path) => {
            let mistake = Diagnostic::new(path.clone(), "is not a plain file").of(document.metadata.key.clone());
            mistakes.push(mistake.hint("symbolic links are not followed in declarations"));
            return None;
        }
        Place::Nowhere => {
            let message = format!("nothing says what app `{}` runs", document.metadata.key);
            let hint = "write `spec.runtime`, or a sandbox.yaml beside this file or in the app's source";
            mistakes.push(document.mistake(None, message).hint(hint));
            return None;
        }
    };
    let nothing = document.check_runs_something(&runtime);
    let runs = nothing.is_none();
    mistakes.extend(nothing);
    runs.then_some(runtime)
}

fn minimal_digest() -> TemplateDigest {
    TemplateDigest("minimal".into())
}

/// Whether templates on the host are what they were.
pub(super) fn are_as_they_were(hosts: &BTreeMap<String, TemplateDigest>) -> bool {
    hosts.iter().all(|(path, digest)| host_digest(Path::new(path)).as_ref() == Ok(digest))
}

/// A template on the host is known by its listing: reading all of it on every load would take too long.
fn host_digest(path: &Path) -> Result<TemplateDigest, String> {
    let mut hash = Vec::new();
    let (mut to_visit, mut count) = (vec![path.to_owned()], 0);
    while let Some(place) = to_visit.pop() {
        let cannot = |error: std::io::Error| format!("could not read {}: {error}", place.display());
        let found = std::fs::symlink_metadata(&place).map_err(cannot)?;
        count += 1;
        if count > MAX_HOST_FILES {
            return Err(format!("{} holds more than {MAX_HOST_FILES} files", path.display()));
        }
        let relative = place.strip_prefix(path).unwrap_or(&place);
        let size = if found.is_dir() { 0 } else { found.size() };
        let facts = format!("{relative:?} {} {size} {}.{}\n", found.mode(), found.mtime(), found.mtime_nsec());
        hash.push(facts);
        if found.is_dir() {
            for entry in std::fs::read_dir(&place).map_err(cannot)? {
                to_visit.push(entry.map_err(cannot)?.path());
            }
        }
    }
    hash.sort();
    let parts: Vec<&[u8]> = std::iter::once(&b"host"[..]).chain(hash.iter().map(String::as_bytes)).collect();
    Ok(TemplateDigest(sha256_hex(&parts).into()))
}

fn mistake_of(document: &TemplateDocument, problem: &str) -> Diagnostic {
    Diagnostic::new(document.path.clone(), problem).at(document.root_place.clone())
}

/// Parts what the declarations are to blame for from what the repository is.
fn at_fault<T>(result: Result<T, SourceError>) -> Result<Result<T, String>, SourceError> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(error @ (SourceError::Limit { .. } | SourceError::Refused { .. })) => Ok(Err(error.to_string())),
        Err(error) => Err(error),
    }
}
