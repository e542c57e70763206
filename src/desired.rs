//! From a revision to what it wants: finds the declarations, renders and parses them, and fills in what they refer to.
//!
//! The follower of the branch calls [`Loader::load`] for every new revision; `validate` and previews call
//! [`Loader::load_files`] for a working directory. What a commit did not change is neither read nor parsed again.
//!
//! An error is never an absence. An app whose declaration is broken stays as it was last declared without a mistake; a file
//! that cannot be made out keeps everything that was declared in it, and says that nothing may be removed at all.

mod parse;
mod pin;
mod scan;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use setpoint_plan::desired::{Completeness, Desired};
use setpoint_schema::app::DesiredApp;
use setpoint_schema::diagnostic::{self, Diagnostic};
use setpoint_schema::document::{Coverage, Parsed};
use setpoint_schema::id::CommitId;
use setpoint_schema::name::{AppKey, RepoPath};
use setpoint_schema::observed::LastGood;
use setpoint_schema::project::Project;
use setpoint_schema::set;
use setpoint_schema::shared::SharedMap;

use crate::render::Renderer;
use crate::source::{Files, Repository, SourceError};

use parse::{Parser, RuntimeOf, unreadable};
use pin::{PinnedTemplates, Pins};
use scan::Scan;

/// The revision that a working directory is given.
pub const WORKTREE: &str = "worktree";

/// Loads revisions, and keeps what it read of the last one.
pub struct Loader {
    parser: Parser,
    pins: Pins,
    /// The settings that were last read without a mistake.
    project: Option<Project>,
}

/// What one revision wants.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The desired state.
    pub desired: Desired,
    /// Every mistake in the declarations, by file and line.
    pub diagnostics: Vec<Diagnostic>,
    /// The settings of the repository; while they are broken, those before.
    pub project: Project,
}

/// The files of a revision with what they declare.
type Declarations = Vec<(RepoPath, Arc<Parsed>)>;

impl Loader {
    /// A loader that has read nothing yet.
    #[must_use]
    pub fn new(renderer: Renderer) -> Self {
        Self { parser: Parser::new(renderer), pins: Pins::default(), project: None }
    }

    /// What `commit` wants. `last_good` holds each app as it was last declared without a mistake.
    ///
    /// # Errors
    /// When the revision cannot be read; mistakes in declarations are part of the result instead.
    pub fn load(
        &mut self,
        repository: &Repository,
        commit: &CommitId,
        last_good: &BTreeMap<AppKey, LastGood>,
    ) -> Result<Loaded, SourceError> {
        let mut loaded = self.load_files(&repository.snapshot(commit)?, commit, last_good)?;
        self.recover_templates(repository, &mut loaded);
        Ok(loaded)
    }

    /// What `files` want, as if they were the revision `revision`.
    ///
    /// # Errors
    /// When they cannot be read; mistakes in declarations are part of the result instead.
    pub fn load_files(
        &mut self,
        files: &dyn Files,
        revision: &CommitId,
        last_good: &BTreeMap<AppKey, LastGood>,
    ) -> Result<Loaded, SourceError> {
        let scan = Scan::of(files.root());
        let settings = self.settings(files, &scan)?;
        let mut declarations = self.parser.declarations(files, &scan.declarations, settings.project())?;
        let hidden = scan.hiding_apps.into_iter().map(|problem| (problem.path.clone(), Arc::new(unreadable(problem))));
        declarations.extend(hidden);
        attribute(&mut declarations, last_good);
        self.parser.retain(&scan.declarations);

        let mut outcome = Outcome::of(&declarations);
        outcome.diagnostics.extend(scan.hiding_templates);
        outcome.diagnostics.extend(set::check(settings.project(), declarations.iter().map(|(_, file)| &**file)));
        let templates = self.pins.templates(files, revision, declarations.iter().map(|(_, file)| &**file))?;
        outcome.diagnostics.extend(templates.mistakes());
        for app in self.resolve(files, &declarations, settings.project(), &templates)? {
            match app {
                Ok(app) => drop(outcome.apps.insert(app.metadata.key.clone(), Arc::new(app))),
                Err(mistakes) => outcome.diagnostics.extend(mistakes),
            }
        }
        Ok(outcome.finish(settings, templates, revision, last_good))
    }

    /// The settings of this revision; while they have mistakes, those that came before.
    fn settings(&mut self, files: &dyn Files, scan: &Scan) -> Result<Settings, SourceError> {
        Ok(match (self.parser.project(files, scan.project.as_ref())?, self.project.clone()) {
            (Ok(project), _) => {
                self.project = Some(project.clone());
                Settings::Good(project)
            }
            (Err(mistakes), Some(before)) => Settings::Broken { before, mistakes },
            (Err(mistakes), None) => Settings::Unknown { assumed: Project::default(), mistakes },
        })
    }

    /// Every app whose declaration stands on its own, with what it refers to, or what is wrong with that.
    fn resolve(
        &mut self,
        files: &dyn Files,
        declarations: &Declarations,
        project: &Project,
        templates: &PinnedTemplates,
    ) -> Result<Vec<Result<DesiredApp, Vec<Diagnostic>>>, SourceError> {
        let documents: Vec<_> = declarations.iter().flat_map(|(_, file)| &file.apps).collect();
        let broken: Vec<_> = declarations
            .iter()
            .filter(|(_, file)| file.apps.is_empty() && declared_in(file).next().is_some())
            .collect();
        let broken_paths: Vec<_> = broken.iter().map(|(path, _)| path).collect();
        let (runtimes, beside) = self.parser.runtimes(files, &documents, &broken_paths, project)?;
        let apps = documents.into_iter().zip(runtimes);
        let apps = apps.map(|(document, runtime)| self.pins.app(files, document, runtime, templates));
        let mut apps: Vec<_> = apps.collect::<Result<_, _>>()?;
        for ((_, file), runtime) in broken.into_iter().zip(beside) {
            apps.extend(mistakes_in(&runtime, file).map(Err));
        }
        Ok(apps)
    }

    /// Finds out again how templates come to be that only kept apps still start from. After a restart they are not in memory,
    /// but they are in the revision that such an app was read in.
    fn recover_templates(&mut self, repository: &Repository, loaded: &mut Loaded) {
        let Loaded { desired, project, .. } = loaded;
        let wanted: Vec<_> = desired
            .apps
            .values()
            .filter(|app| !desired.templates.contains_key(&app.spec.template))
            .map(|app| (app.spec.template.clone(), desired.revision_of(&app.metadata.key).clone()))
            .collect();
        for (digest, revision) in wanted {
            let known = self.pins.known_template(&digest).or_else(|| {
                self.templates_of(repository, &revision, project)
                    .inspect_err(|error| tracing::warn!(%revision, %error, "template of a kept app cannot be read"))
                    .ok()?
                    .root(&digest)
            });
            desired.templates.extend(known.map(|root| (digest, root)));
        }
    }

    fn templates_of(
        &mut self,
        repository: &Repository,
        commit: &CommitId,
        project: &Project,
    ) -> Result<PinnedTemplates, SourceError> {
        let files = repository.snapshot(commit)?;
        let templates = Scan::of(files.root()).templates();
        let parsed = self.parser.declarations(&files, &templates, project)?;
        self.pins.templates(&files, commit, parsed.iter().map(|(_, file)| &**file))
    }
}

/// The mistakes in the runtime of a declaration that has mistakes of its own, given to the apps that it declares.
fn mistakes_in(runtime: &RuntimeOf, declaration: &Parsed) -> Option<Vec<Diagnostic>> {
    let RuntimeOf::File(checked) = runtime else { return None };
    let mistakes = checked.as_ref().as_ref().err()?;
    let keys: BTreeSet<_> = declared_in(declaration).collect();
    Some(keys.into_iter().flat_map(|key| mistakes.iter().map(|mistake| mistake.clone().of(key.clone()))).collect())
}

/// With which settings a revision is read.
enum Settings {
    Good(Project),
    /// Its own have mistakes. Apps are made out with those before, and none is changed.
    Broken {
        before: Project,
        mistakes: Vec<Diagnostic>,
    },
    /// Its own have mistakes, and none were read before. Apps are made out as far as they can be.
    Unknown {
        assumed: Project,
        mistakes: Vec<Diagnostic>,
    },
}

impl Settings {
    fn project(&self) -> &Project {
        match self {
            Self::Good(project) | Self::Broken { before: project, .. } | Self::Unknown { assumed: project, .. } => {
                project
            }
        }
    }
}

/// Gives the mistakes of files that cannot be made out to the apps that were declared there before and nowhere now, so that
/// those count as broken and not as gone.
fn attribute(declarations: &mut Declarations, last_good: &BTreeMap<AppKey, LastGood>) {
    let declared: BTreeSet<AppKey> = declarations.iter().flat_map(|(_, file)| declared_in(file).cloned()).collect();
    for (path, file) in declarations {
        match file.coverage {
            Coverage::Whole => {}
            Coverage::Partial => {
                let was_here =
                    |(key, app): &(&AppKey, &LastGood)| is_at_or_below(&app.path, path) && !declared.contains(*key);
                let lost: Vec<&AppKey> = last_good.iter().filter(was_here).map(|(key, _)| key).collect();
                give_to(Arc::make_mut(file), &lost);
            }
        }
    }
}

fn give_to(file: &mut Parsed, lost: &[&AppKey]) {
    let Some((first, others)) = lost.split_first() else { return };
    let unowned: Vec<usize> = (0..file.diagnostics.len()).filter(|n| file.diagnostics[*n].object.is_none()).collect();
    for n in unowned {
        let copies: Vec<_> = others.iter().map(|key| file.diagnostics[n].clone().of((*key).clone())).collect();
        file.diagnostics[n].object = Some((*first).clone());
        file.diagnostics.extend(copies);
    }
}

/// Every app that is declared in a file, with or without mistakes.
fn declared_in(file: &Parsed) -> impl Iterator<Item = &AppKey> {
    let broken = file.diagnostics.iter().filter_map(|mistake| mistake.object.as_ref());
    file.apps.iter().map(|app| &app.metadata.key).chain(broken)
}

/// What is found out on the way to [`Loaded`].
#[derive(Default)]
struct Outcome {
    /// The apps that can be used.
    apps: SharedMap<AppKey, Arc<DesiredApp>>,
    /// Every app that is declared somewhere, with or without mistakes.
    declared: BTreeSet<AppKey>,
    diagnostics: Vec<Diagnostic>,
    /// Why the set of apps is not the whole truth.
    trouble: Option<String>,
}

impl Outcome {
    fn of(declarations: &Declarations) -> Self {
        let mut outcome = Self::default();
        for (path, file) in declarations {
            outcome.declared.extend(declared_in(file).cloned());
            outcome.diagnostics.extend(file.diagnostics.iter().cloned());
            match file.coverage {
                Coverage::Whole => {}
                Coverage::Partial => {
                    let reason = || summary(&file.diagnostics.iter().collect::<Vec<_>>());
                    outcome.trouble.get_or_insert_with(|| format!("{path} cannot be made out: {}", reason()));
                }
            }
        }
        outcome
    }

    fn finish(
        mut self,
        settings: Settings,
        templates: PinnedTemplates,
        revision: &CommitId,
        last_good: &BTreeMap<AppKey, LastGood>,
    ) -> Loaded {
        let mut stalled: BTreeMap<AppKey, String> = diagnostic::by_app(&self.diagnostics)
            .into_iter()
            .map(|(key, mistakes)| (key, summary(&mistakes)))
            .collect();
        let project = match settings {
            Settings::Good(project) => project,
            Settings::Broken { before, mistakes } => {
                self.stall_all(&mut stalled, &mistakes);
                self.diagnostics.extend(mistakes);
                before
            }
            // Without its variables and defaults, most other mistakes would not be any.
            Settings::Unknown { assumed, mistakes } => {
                self.stall_all(&mut stalled, &mistakes);
                self.diagnostics = mistakes;
                assumed
            }
        };
        let mut kept = BTreeMap::new();
        for key in stalled.keys() {
            self.apps.remove(key);
            if let Some(known) = last_good.get(key) {
                self.apps.insert(key.clone(), Arc::clone(&known.app));
                kept.insert(key.clone(), known.revision.clone());
            }
        }
        let completeness = match self.trouble {
            Some(reason) => Completeness::Partial(reason),
            None if self.declared.is_empty() && !project.policies.allow_empty => Completeness::EmptyRefused,
            None => Completeness::Complete,
        };
        self.diagnostics.sort_by(|a, b| (&a.path, a.at, &a.message).cmp(&(&b.path, b.at, &b.message)));
        self.diagnostics.dedup();
        let templates = templates.used_by(&self.apps);
        let (revision, moved) = (revision.clone(), project.moved.clone());
        let desired = Desired { revision, apps: self.apps, kept, stalled, templates, moved, completeness };
        Loaded { desired, diagnostics: self.diagnostics, project }
    }

    /// Holds every app as it is, because of mistakes that are not its own.
    fn stall_all(&mut self, stalled: &mut BTreeMap<AppKey, String>, mistakes: &[Diagnostic]) {
        let reason = summary(&mistakes.iter().collect::<Vec<_>>());
        for key in &self.declared {
            stalled.insert(key.clone(), reason.clone());
        }
        self.trouble = Some(reason);
    }
}

/// The first of several mistakes, and how many more there are.
fn summary(mistakes: &[&Diagnostic]) -> String {
    match mistakes {
        [] => "it has mistakes".to_owned(),
        [one] => one.headline(),
        [first, rest @ ..] => format!("{} (and {} more)", first.headline(), rest.len()),
    }
}

fn is_at_or_below(path: &RepoPath, top: &RepoPath) -> bool {
    path.as_str().strip_prefix(top.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
