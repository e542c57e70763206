//! Pins what declarations refer to: the content of workspaces and of templates, as digests.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use setpoint_plan::desired::DesiredTemplateRoot;
use setpoint_schema::app::{DesiredApp, PinnedSpec, SandboxSpec};
use setpoint_schema::diagnostic::Diagnostic;
use setpoint_schema::document::{AppDocument, Parsed, TemplateDocument};
use setpoint_schema::id::{CommitId, TemplateDigest, TreeDigest, sha256_hex};
use setpoint_schema::name::{AppKey, RepoPath, TemplateName};
use setpoint_schema::runtime::Runtime;
use setpoint_schema::shared::SharedMap;
use setpoint_schema::template::TemplateRoot;
use setpoint_vmm::driver::FileKind;

use crate::source::{Files, Folder, FolderId, Item, Listing, SourceError, is_app_folder};

use super::parse::RuntimeOf;

/// The most files of a template on the host, whose listing is walked on every load.
const MAX_HOST_FILES: usize = 200_000;

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
pub(super) struct PinnedTemplates {
    by_name: BTreeMap<TemplateName, Result<(TemplateDigest, DesiredTemplateRoot), Diagnostic>>,
}

impl Pins {
    /// The content of every template, the built-in one included.
    pub fn templates<'a>(
        &mut self,
        files: &dyn Files,
        revision: &CommitId,
        parsed: impl Iterator<Item = &'a Parsed>,
    ) -> Result<PinnedTemplates, SourceError> {
        let minimal = DesiredTemplateRoot { root: TemplateRoot::Minimal, revision: revision.clone() };
        let mut by_name = BTreeMap::from([(TemplateName::minimal(), Ok((minimal_digest(), minimal)))]);
        for document in parsed.flat_map(|file| &file.templates) {
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
        Ok(PinnedTemplates { by_name })
    }

    /// How a template came to be that an earlier revision had.
    pub fn known_template(&self, digest: &TemplateDigest) -> Option<DesiredTemplateRoot> {
        self.templates.get(digest).cloned()
    }

    /// The app with everything that it refers to, or all that is wrong with that.
    pub fn app(
        &mut self,
        files: &dyn Files,
        document: &AppDocument,
        runtime: RuntimeOf,
        templates: &PinnedTemplates,
    ) -> Result<Result<DesiredApp, Vec<Diagnostic>>, SourceError> {
        let mut mistakes = Vec::new();
        let runtime = runtime_of(document, runtime, &mut mistakes);
        let template = templates.digest(document, &mut mistakes);
        let workspace = self.workspace(files, document, &mut mistakes)?;
        // A template that is not declared is reported by the checks of the whole set.
        let (Some(runtime), Some(template), Some(workspace)) = (runtime, template, workspace) else {
            return Ok(Err(mistakes));
        };
        let mut app = document.spec.clone();
        app.runtime = Some(runtime);
        Ok(Ok(DesiredApp {
            metadata: document.metadata.clone(),
            spec: PinnedSpec::new(SandboxSpec { app, template, files: workspace }),
            path: document.path.clone(),
        }))
    }

    fn workspace(
        &mut self,
        files: &dyn Files,
        document: &AppDocument,
        mistakes: &mut Vec<Diagnostic>,
    ) -> Result<Option<TreeDigest>, SourceError> {
        let path = document.spec.source.path.clone().unwrap_or_else(|| folder_of(&document.path));
        let place = document.places.source_path.as_ref();
        let Some(folder) = files.root().folder(&path) else {
            mistakes.push(document.mistake(place, format!("there is no folder `{path}` in the repository")));
            return Ok(None);
        };
        let key = (folder.id.clone(), is_app_folder(&path, folder));
        if let Some(digest) = self.workspaces.get(&key) {
            return Ok(Some(digest.clone()));
        }
        match at_fault(Listing::of_workspace(files, &path, folder))? {
            Ok(listing) => {
                let digest = listing.digest();
                self.workspaces.insert(key, digest.clone());
                Ok(Some(digest))
            }
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
                .map(|()| TemplateDigest(sha256_hex(&[b"folder", folder.id.0.as_bytes()]))),
            Some(Item::File { blob, kind: FileKind::Regular | FileKind::Executable }) => {
                let most = files.limits().file_bytes;
                match files.size(blob)? {
                    size if size > most => Err(format!("{path} has {size} bytes, and at most {most} are read")),
                    _ => Ok(TemplateDigest(sha256_hex(&[b"file", blob.as_str().as_bytes()]))),
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

    /// The templates that these apps start from.
    pub fn used_by(self, apps: &SharedMap<AppKey, Arc<DesiredApp>>) -> BTreeMap<TemplateDigest, DesiredTemplateRoot> {
        let used: BTreeSet<_> = apps.values().map(|app| &app.spec.template).collect();
        self.by_name.into_values().flatten().filter(|(digest, _)| used.contains(digest)).collect()
    }

    fn digest(&self, document: &AppDocument, mistakes: &mut Vec<Diagnostic>) -> Option<TemplateDigest> {
        match self.by_name.get(&document.spec.template)? {
            Ok((digest, _)) => Some(digest.clone()),
            Err(mistake) => {
                let message = format!("its template cannot be used: {}", mistake.headline());
                mistakes.push(document.mistake(document.places.template.as_ref(), message));
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

fn runtime_of(document: &AppDocument, runtime: RuntimeOf, mistakes: &mut Vec<Diagnostic>) -> Option<Runtime> {
    let runtime = match runtime {
        RuntimeOf::Inline(runtime) => runtime,
        RuntimeOf::File(parsed) => match &*parsed {
            Ok(runtime) => runtime.clone(),
            Err(found) => {
                mistakes.extend(found.iter().cloned().map(|mistake| mistake.of(document.metadata.key.clone())));
                return None;
            }
        },
        RuntimeOf::Unreadable(path) => {
            let mistake = Diagnostic::new(path, "is not a plain file").of(document.metadata.key.clone());
            mistakes.push(mistake.hint("symbolic links are not followed in declarations"));
            return None;
        }
        RuntimeOf::Nowhere => {
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
    TemplateDigest("minimal".to_owned())
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
    Ok(TemplateDigest(sha256_hex(&parts)))
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
