//! Reads, renders and parses files, each on whichever processor is free.
//!
//! Called by [`super::known`] with what a commit changed. Runtimes are kept by content, since many apps run the same and a change
//! of an app's other files asks for its runtime again.

use std::sync::Arc;

use setpoint_schema::diagnostic::{Diagnostic, Location, SourceText};
use setpoint_schema::document::{self, AppDocument, Coverage, Parsed};
use setpoint_schema::id::BlobId;
use setpoint_schema::name::RepoPath;
use setpoint_schema::names::{HashMap, HashSet};
use setpoint_schema::project::Project;
use setpoint_schema::runtime::Runtime;
use setpoint_schema::sandbox;
use setpoint_vmm::driver::FileKind;

use crate::parallel;
use crate::render::{RenderError, Renderer, is_template};
use crate::source::{Files, Item, SourceError};

use super::cache::Entry;
use super::pin::folder_of;
use super::scan::{Key, printable};

/// The file that says what runs.
const SANDBOX_FILE: &str = "sandbox.yaml";
/// How many runtimes are kept, whatever the number of apps.
const FEW_RUNTIMES: usize = 1000;

/// What a file comes to, or everything that is wrong with it.
type Checked<T> = Result<T, Vec<Diagnostic>>;
/// The text of a file, or why it has none.
type Text = Result<String, Box<Diagnostic>>;

/// Parses files, and keeps some of the results.
pub(super) struct Parser {
    renderer: Renderer,
    project: Option<(BlobId, Checked<Project>)>,
    /// The runtimes without a mistake, by content.
    runtimes: HashMap<BlobId, Arc<Runtime>>,
}

/// Where an app's runtime stands.
#[derive(Debug)]
pub(super) enum Place {
    /// In its declaration.
    Inline,
    /// In this file.
    File(Key),
    /// In this file, which cannot be one.
    Unreadable(RepoPath),
    /// Nowhere.
    Nowhere,
}

/// The runtimes that some files hold.
pub(super) struct Runtimes<'a> {
    /// By content.
    sound: &'a HashMap<BlobId, Arc<Runtime>>,
    broken: HashMap<Key, Vec<Diagnostic>>,
}

impl Runtimes<'_> {
    /// What runs, as a file says that has been read, or what is wrong with it.
    pub fn get(&self, key: &Key) -> Result<&Arc<Runtime>, &[Diagnostic]> {
        match self.broken.get(key) {
            Some(mistakes) => Err(mistakes),
            None => Ok(self.sound.get(&key.1).expect("every file that a place names has been read")),
        }
    }
}

impl Parser {
    pub fn new(renderer: Renderer) -> Self {
        Self { renderer, project: None, runtimes: HashMap::default() }
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
        &self,
        files: &dyn Files,
        keys: &[&Key],
        project: &Project,
    ) -> Result<Vec<Parsed>, SourceError> {
        self.parsed(files, keys, project, |key, text| match text {
            Ok(text) => document::parse(&key.0, &text, project),
            Err(mistake) => unreadable(*mistake),
        })
    }

    /// What runs, as these files say.
    pub fn runtimes(
        &mut self,
        files: &dyn Files,
        wanted: &[&Key],
        project: &Project,
        apps: usize,
    ) -> Result<Runtimes<'_>, SourceError> {
        // To find out which of them no app uses any more would take longer than to read the others again.
        if self.runtimes.len() > FEW_RUNTIMES.max(2 * apps) {
            self.runtimes.clear();
        }
        let mut broken = HashMap::default();
        let mut seen = HashSet::default();
        let unknown = wanted.iter().copied().filter(|(_, blob)| !self.runtimes.contains_key(blob));
        let firsts: Vec<&Key> = unknown.filter(|(_, blob)| seen.insert(blob)).collect();
        self.read_runtimes(files, &firsts, project, &mut broken)?;
        // What is wrong with a file names it, so that each of several equal ones is read.
        let mut seen = HashSet::default();
        let is_broken = |key: &&Key| !self.runtimes.contains_key(&key.1) && !broken.contains_key(*key);
        let others: Vec<&Key> = wanted.iter().copied().filter(|key| is_broken(key) && seen.insert(*key)).collect();
        self.read_runtimes(files, &others, project, &mut broken)?;
        Ok(Runtimes { sound: &self.runtimes, broken })
    }

    /// Reads what runs, where that takes no rendering and nothing is wrong with it; the rest is for whoever asks for it.
    pub fn read_ahead(&mut self, files: &dyn Files, wanted: &[&Key]) {
        let mut seen = HashSet::default();
        let unknown = wanted.iter().copied().filter(|(_, blob)| !self.runtimes.contains_key(blob));
        let firsts: Vec<&Key> = unknown.filter(|(_, blob)| seen.insert(blob)).collect();
        let read = parallel::map(&firsts, |(path, blob)| {
            let text = text(files, path, blob).ok()?.ok().filter(|text| !is_template(text))?;
            sandbox::parse(path, &text).ok().map(Arc::new)
        });
        let read = firsts.iter().zip(read).filter_map(|((_, blob), runtime)| Some((blob.clone(), runtime?)));
        self.runtimes.extend(read);
    }

    fn read_runtimes(
        &mut self,
        files: &dyn Files,
        keys: &[&Key],
        project: &Project,
        broken: &mut HashMap<Key, Vec<Diagnostic>>,
    ) -> Result<(), SourceError> {
        let parsed = self.parsed(files, keys, project, |key, text| match text {
            Ok(text) => sandbox::parse(&key.0, &text).map(Arc::new),
            Err(mistake) => Err(vec![*mistake]),
        })?;
        for (key, runtime) in keys.iter().zip(parsed) {
            match runtime {
                Ok(runtime) => drop(self.runtimes.insert(key.1.clone(), runtime)),
                Err(mistakes) => drop(broken.insert(Key::clone(key), mistakes)),
            }
        }
        Ok(())
    }

    /// Knows these runtimes already.
    pub fn know(&mut self, runtimes: HashMap<BlobId, Arc<Runtime>>) {
        self.runtimes.extend(runtimes);
    }

    /// The runtimes that are known, for keeping.
    pub fn known(&self) -> impl Iterator<Item = Entry<'_>> {
        self.runtimes.iter().map(|(blob, runtime)| Entry::Runtime { blob, runtime })
    }

    /// Forgets what depends on the settings.
    pub fn forget_rendered(&mut self) {
        self.runtimes.clear();
    }

    /// What `parse` makes of each file's rendered text, in their order.
    fn parsed<T: Send>(
        &self,
        files: &dyn Files,
        keys: &[&Key],
        project: &Project,
        parse: impl Fn(&Key, Text) -> T + Sync,
    ) -> Result<Vec<T>, SourceError> {
        let read = |key: &&Key| -> Result<Stage<T>, SourceError> {
            Ok(match text(files, &key.0, &key.1)? {
                Ok(text) if is_template(&text) => Stage::Template(text),
                text => Stage::Done(parse(key, text)),
            })
        };
        let stages: Vec<Stage<T>> = parallel::map(keys, read).into_iter().collect::<Result<_, _>>()?;
        let mut rendered = self.rendered(keys, &stages, project)?.into_iter();
        let finish = |(key, stage): (&&Key, _)| match stage {
            Stage::Done(done) => Some(done),
            Stage::Template(_) => rendered.next().map(|text| parse(key, text)),
        };
        Ok(keys.iter().zip(stages).filter_map(finish).collect())
    }

    /// The rendered texts of those files that are templates.
    fn rendered<T>(&self, keys: &[&Key], stages: &[Stage<T>], project: &Project) -> Result<Vec<Text>, SourceError> {
        let templates = keys.iter().zip(stages).filter_map(|(key, stage)| match stage {
            Stage::Done(_) => None,
            Stage::Template(text) => Some((key.0.clone(), text.as_str().into())),
        });
        let templates: Vec<_> = templates.collect();
        if templates.is_empty() {
            return Ok(Vec::new());
        }
        let vars = serde_json::Value::Object(project.vars.clone());
        let rendered = self.renderer.render(templates, &vars).into_iter().map(|rendered| match rendered {
            Ok(text) => Ok(Ok(text.as_ref().to_owned())),
            Err(RenderError::Mistake(mistake)) => Ok(Err(mistake)),
            Err(RenderError::Unavailable(reason)) => Err(SourceError::Unrendered { reason }),
        });
        rendered.collect()
    }
}

/// How far a file has come.
enum Stage<T> {
    Done(T),
    /// It is to be rendered first, which is done for all of them together.
    Template(String),
}

impl Place {
    /// In the declaration, else beside it, else in the app's source.
    pub fn of(files: &dyn Files, app: &AppDocument) -> Self {
        if app.spec.runtime.is_some() {
            return Self::Inline;
        }
        Self::in_folders(files, [folder_of(&app.path)].into_iter().chain(app.spec.source.path.clone()))
    }

    /// Beside a declaration that makes no app because of mistakes: what is wrong with that is to be reported with them.
    pub fn beside(files: &dyn Files, declaration: &RepoPath) -> Self {
        Self::in_folders(files, [folder_of(declaration)])
    }

    /// The file to read.
    pub fn key(&self) -> Option<&Key> {
        match self {
            Self::File(key) => Some(key),
            Self::Inline | Self::Unreadable(_) | Self::Nowhere => None,
        }
    }

    /// In the first of these folders that has one.
    fn in_folders(files: &dyn Files, folders: impl IntoIterator<Item = RepoPath>) -> Self {
        for folder in folders {
            let Some(item) = files.root().folder(&folder).and_then(|folder| folder.child(SANDBOX_FILE)) else {
                continue;
            };
            let path = printable(&format!("{folder}/{SANDBOX_FILE}"));
            return match item {
                Item::File { blob, kind: FileKind::Regular | FileKind::Executable } => Self::File((path, blob.clone())),
                Item::File { kind: FileKind::Symlink, .. } | Item::Folder(_) | Item::Refused(_) => {
                    Self::Unreadable(path)
                }
            };
        }
        Self::Nowhere
    }
}

/// A file of declarations that could not be read: anything may stand in it.
pub(super) fn unreadable(mistake: Diagnostic) -> Parsed {
    Parsed { diagnostics: vec![mistake], coverage: Coverage::Partial, ..Parsed::nothing() }
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
        Ok(text) => Ok(text),
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
