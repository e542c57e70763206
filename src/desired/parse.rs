//! Reads, renders and parses files, each content once.
//!
//! Results are kept by path and blob for as long as `setpoint.toml` stays the same, since defaults and variables go into all of
//! them. What a load did not use is forgotten at its end.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use setpoint_schema::diagnostic::{Diagnostic, Location, SourceText};
use setpoint_schema::document::{self, AppDocument, Coverage, Parsed};
use setpoint_schema::id::BlobId;
use setpoint_schema::name::RepoPath;
use setpoint_schema::project::Project;
use setpoint_schema::runtime::Runtime;
use setpoint_schema::sandbox;
use setpoint_vmm::driver::FileKind;

use crate::render::{RenderError, Renderer};
use crate::source::{Files, Item, SourceError};

use super::pin::folder_of;
use super::scan::{Key, printable};

/// The file that says what runs.
const SANDBOX_FILE: &str = "sandbox.yaml";

/// What a file comes to, or everything that is wrong with it.
type Checked<T> = Result<T, Vec<Diagnostic>>;
/// The text of a file, or why it has none.
type Text = Result<Arc<str>, Box<Diagnostic>>;

/// Parses files, and keeps the results.
pub(super) struct Parser {
    renderer: Renderer,
    project: Option<(BlobId, Checked<Project>)>,
    /// The settings that what is kept was parsed with.
    parsed_with: Project,
    declarations: HashMap<Key, Arc<Parsed>>,
    runtimes: HashMap<Key, Arc<Checked<Runtime>>>,
}

/// Where an app's runtime stands.
pub(super) enum RuntimeOf {
    /// In its declaration.
    Inline(Runtime),
    /// In this file.
    File(Arc<Checked<Runtime>>),
    /// In this file, which cannot be one.
    Unreadable(RepoPath),
    /// Nowhere.
    Nowhere,
}

impl Parser {
    pub fn new(renderer: Renderer) -> Self {
        Self {
            renderer,
            project: None,
            parsed_with: Project::default(),
            declarations: HashMap::new(),
            runtimes: HashMap::new(),
        }
    }

    /// The settings, which are not rendered: the variables for rendering are in them.
    pub fn project(
        &mut self,
        files: &dyn Files,
        file: Option<&Result<Key, Box<Diagnostic>>>,
    ) -> Result<Checked<Project>, SourceError> {
        let (path, blob) = match file {
            None => return Ok(Ok(Project::default())),
            Some(Err(problem)) => return Ok(Err(vec![Diagnostic::clone(problem)])),
            Some(Ok(key)) => key,
        };
        if let Some((known, project)) = &self.project
            && known == blob
        {
            return Ok(project.clone());
        }
        let project = match text(files, path, blob)? {
            Ok(text) => Project::parse(path, &text),
            Err(mistake) => Err(vec![*mistake]),
        };
        self.project = Some((blob.clone(), project.clone()));
        Ok(project)
    }

    /// What these files declare, in their order.
    pub fn declarations(
        &mut self,
        files: &dyn Files,
        wanted: &[Key],
        project: &Project,
    ) -> Result<Vec<(RepoPath, Arc<Parsed>)>, SourceError> {
        self.forget_if_changed(project);
        let new: Vec<&Key> = wanted.iter().filter(|key| !self.declarations.contains_key(key)).collect();
        for (key, text) in self.texts(files, new, project)? {
            let parsed = match text {
                Ok(text) => document::parse(&key.0, &text, project),
                Err(mistake) => unreadable(*mistake),
            };
            self.declarations.insert(key, Arc::new(parsed));
        }
        Ok(wanted.iter().map(|key| (key.0.clone(), Arc::clone(&self.declarations[key]))).collect())
    }

    /// Where each of these apps has its runtime, and what stands beside declarations that make no app because of mistakes: what
    /// is wrong with that is to be reported with them.
    pub fn runtimes(
        &mut self,
        files: &dyn Files,
        apps: &[&AppDocument],
        broken: &[&RepoPath],
        project: &Project,
    ) -> Result<(Vec<RuntimeOf>, Vec<RuntimeOf>), SourceError> {
        let places: Vec<Place> = apps.iter().map(|app| Place::of(files, app)).collect();
        let beside: Vec<Place> = broken.iter().map(|path| Place::in_folders(files, [folder_of(path)])).collect();
        let wanted: BTreeSet<&Key> = places.iter().chain(&beside).filter_map(Place::key).collect();
        self.runtimes.retain(|key, _| wanted.contains(key));
        let new: Vec<&Key> = wanted.into_iter().filter(|key| !self.runtimes.contains_key(key)).collect();
        for (key, text) in self.texts(files, new, project)? {
            let runtime = match text {
                Ok(text) => sandbox::parse(&key.0, &text),
                Err(mistake) => Err(vec![*mistake]),
            };
            self.runtimes.insert(key, Arc::new(runtime));
        }
        let found = |places: Vec<Place>| places.into_iter().map(|place| self.runtime(place)).collect();
        Ok((found(places), found(beside)))
    }

    /// Forgets all declarations but these.
    pub fn retain(&mut self, declarations: &[Key]) {
        let used: BTreeSet<&Key> = declarations.iter().collect();
        self.declarations.retain(|key, _| used.contains(key));
    }

    fn runtime(&self, place: Place) -> RuntimeOf {
        match place {
            Place::Inline(runtime) => RuntimeOf::Inline(runtime),
            Place::File(key) => RuntimeOf::File(Arc::clone(&self.runtimes[&key])),
            Place::Unreadable(path) => RuntimeOf::Unreadable(path),
            Place::Nowhere => RuntimeOf::Nowhere,
        }
    }

    fn forget_if_changed(&mut self, project: &Project) {
        if self.parsed_with != *project {
            self.parsed_with = project.clone();
            self.declarations.clear();
            self.runtimes.clear();
        }
    }

    /// The rendered text of each file, or what is wrong with it.
    fn texts(&self, files: &dyn Files, keys: Vec<&Key>, project: &Project) -> Result<Vec<(Key, Text)>, SourceError> {
        let mut done = Vec::with_capacity(keys.len());
        let mut to_render = Vec::new();
        let mut rendering = Vec::new();
        for key in keys {
            match text(files, &key.0, &key.1)? {
                Ok(text) => {
                    rendering.push(key.clone());
                    to_render.push((key.0.clone(), text));
                }
                Err(mistake) => done.push((key.clone(), Err(mistake))),
            }
        }
        let vars = serde_json::Value::Object(project.vars.clone());
        for (key, rendered) in rendering.into_iter().zip(self.renderer.render(to_render, &vars)) {
            match rendered {
                Ok(text) => done.push((key, Ok(text))),
                Err(RenderError::Mistake(mistake)) => done.push((key, Err(mistake))),
                Err(RenderError::Unavailable(reason)) => return Err(SourceError::Unrendered { reason }),
            }
        }
        Ok(done)
    }
}

/// Where an app's runtime stands, before it is read.
enum Place {
    Inline(Runtime),
    File(Key),
    Unreadable(RepoPath),
    Nowhere,
}

impl Place {
    /// In the declaration, else beside it, else in the app's source.
    fn of(files: &dyn Files, app: &AppDocument) -> Self {
        if let Some(runtime) = &app.spec.runtime {
            return Self::Inline(runtime.clone());
        }
        Self::in_folders(files, [folder_of(&app.path)].into_iter().chain(app.spec.source.path.clone()))
    }

    /// In the first of these folders that has one.
    fn in_folders(files: &dyn Files, folders: impl IntoIterator<Item = RepoPath>) -> Self {
        for folder in folders {
            let path = printable(&format!("{folder}/{SANDBOX_FILE}"));
            match files.root().get(&path) {
                Some(Item::File { blob, kind: FileKind::Regular | FileKind::Executable }) => {
                    return Self::File((path, blob.clone()));
                }
                Some(Item::File { kind: FileKind::Symlink, .. } | Item::Folder(_) | Item::Refused(_)) => {
                    return Self::Unreadable(path);
                }
                None => {}
            }
        }
        Self::Nowhere
    }

    fn key(&self) -> Option<&Key> {
        match self {
            Self::File(key) => Some(key),
            Self::Inline(_) | Self::Unreadable(_) | Self::Nowhere => None,
        }
    }
}

/// A file of declarations that could not be read: anything may stand in it.
pub(super) fn unreadable(mistake: Diagnostic) -> Parsed {
    Parsed {
        apps: Vec::new(),
        templates: Vec::new(),
        broken_templates: BTreeSet::new(),
        diagnostics: vec![mistake],
        coverage: Coverage::Partial,
    }
}

/// The text of a declaration. What is wrong with the file is a mistake of its author; what is wrong with the repository is an
/// error of the source.
fn text(files: &dyn Files, path: &RepoPath, blob: &BlobId) -> Result<Text, SourceError> {
    let bytes = match files.read(blob, path.as_str(), files.limits().declaration_bytes) {
        Ok(bytes) => bytes,
        Err(SourceError::Limit { excess, .. }) => {
            return Ok(Err(Box::new(Diagnostic::new(path.clone(), excess.to_string()))));
        }
        Err(error) => return Err(error),
    };
    Ok(match String::from_utf8(bytes) {
        Ok(text) => Ok(text.into()),
        Err(error) => Err(Box::new(not_utf8(path, error.as_bytes(), error.utf8_error().valid_up_to()))),
    })
}

fn not_utf8(path: &RepoPath, bytes: &[u8], valid_up_to: usize) -> Diagnostic {
    let text = String::from_utf8_lossy(bytes);
    // What comes before is valid, so that lines and characters can be counted in it.
    let before = std::str::from_utf8(&bytes[..valid_up_to]).unwrap_or_default();
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let count = |n: usize| u32::try_from(n + 1).unwrap_or(u32::MAX);
    let at = Location {
        line: count(before.matches('\n').count()),
        column: count(before[line_start..].chars().count()),
        length: 1,
    };
    SourceText { path, text: &text }.diagnostic(at, "this is not valid UTF-8").hint("save the file as UTF-8")
}
