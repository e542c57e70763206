//! From a revision to what it wants: finds the declarations, renders and parses them, and fills in what they refer to.
//!
//! The follower of the branch calls [`Loader::load`] for every new revision; `validate` and previews call
//! [`Loader::load_files`] for a working directory. What a commit did not change is neither read nor parsed again.
//!
//! An error is never an absence. An app whose declaration is broken stays as it was last declared without a mistake; a file
//! that cannot be made out keeps everything that was declared in it, and says that nothing may be removed at all.

mod cache;
mod known;
mod parse;
mod pin;
mod scan;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use setpoint_plan::desired::{Completeness, Desired, DesiredTemplateRoot};
use setpoint_schema::diagnostic::Diagnostic;
use setpoint_schema::document::Parsed;
use setpoint_schema::id::{CommitId, TemplateDigest};
use setpoint_schema::name::{AppKey, RepoPath, SnapshotKey};
use setpoint_schema::names::HashMap;
use setpoint_schema::observed::{AppRecord, LastGood};
use setpoint_schema::project::Project;
use setpoint_schema::shared::SharedMap;

use crate::render::Renderer;
use crate::source::{Files, Repository, SourceError};

pub use cache::Cache;
use cache::{End, Entry, Kept, Whole};
use known::{Known, Tools};
use parse::Parser;
use pin::{PinnedTemplates, Pins};
use scan::Key;

/// The revision that a working directory is given.
pub const WORKTREE: &str = "worktree";

/// So many files are parsed in the time that it takes to write a file.
const FEW_FILES: usize = 50;

/// Loads revisions, and keeps what it read of the last one.
pub struct Loader {
    parser: Parser,
    pins: Pins,
    /// The settings that were last read without a mistake.
    project: Option<Project>,
    /// The revision that was loaded last; absent at first, and after one that could not be read to its end.
    known: Option<Known>,
    /// Where parsed declarations are kept over restarts.
    cache: Option<Cache>,
    /// How many files were parsed that are not in it.
    unkept: usize,
    /// The revision that was loaded last, if it is one to keep whole.
    whole: Option<Whole>,
    /// The revision that is kept whole, and where the file of it ends.
    kept_whole: Option<(Whole, End)>,
    /// The revision that was had whole, and of which nothing more is known.
    unknown: Option<CommitId>,
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
    /// The templates that are to be warm before anything begins from them.
    pub prewarmed: BTreeMap<TemplateDigest, DesiredTemplateRoot>,
}

/// Each app as it was last declared without a mistake. Asked only where something is broken.
pub trait Remembered {
    /// The app of this key.
    fn app(&self, key: &AppKey) -> Option<LastGood>;

    /// The apps that were declared in a file at this path or below.
    fn below(&self, path: &RepoPath) -> Vec<AppKey>;
}

impl Remembered for BTreeMap<AppKey, LastGood> {
    fn app(&self, key: &AppKey) -> Option<LastGood> {
        self.get(key).cloned()
    }

    fn below(&self, path: &RepoPath) -> Vec<AppKey> {
        let apps = self.iter().filter(|(_, known)| known.app.path.is_at_or_below(path));
        apps.map(|(key, _)| key.clone()).collect()
    }
}

impl Remembered for SharedMap<AppKey, Arc<AppRecord>> {
    fn app(&self, key: &AppKey) -> Option<LastGood> {
        Some(self.get(key)?.last_good.clone())
    }

    fn below(&self, path: &RepoPath) -> Vec<AppKey> {
        let apps = self.iter().filter(|(_, record)| record.last_good.path.is_at_or_below(path));
        apps.map(|(key, _)| key.clone()).collect()
    }
}

impl Loader {
    /// A loader that has read nothing yet.
    #[must_use]
    pub fn new(renderer: Renderer) -> Self {
        let (parser, pins) = (Parser::new(renderer), Pins::default());
        let (whole, kept_whole, unknown) = (None, None, None);
        Self { parser, pins, project: None, known: None, cache: None, unkept: 0, whole, kept_whole, unknown }
    }

    /// The same, with what an earlier one kept.
    #[must_use]
    pub fn with_cache(renderer: Renderer, cache: Cache) -> Self {
        Self { cache: Some(cache), ..Self::new(renderer) }
    }

    /// What can wait until nobody waits for a load: comes to know in its parts what was had whole, so that the next commit costs
    /// what it changes, and keeps for the next start what is new. To be called between loads.
    pub fn settle(&mut self, repository: &Repository, remembered: &dyn Remembered) {
        if let Some(commit) = self.unknown.take()
            && let Err(error) = self.load(repository, &commit, remembered)
        {
            tracing::debug!(%commit, %error, "kept revision cannot be read in its parts");
        }
        self.keep();
    }

    /// Keeps what was parsed if much of it is not kept yet: a file that has to be parsed again costs a start less than writing all of
    /// them costs a commit. What a revision wants is kept whole in any case.
    fn keep(&mut self) {
        let Some(cache) = &self.cache else { return };
        let is_kept = |whole: &Whole| self.kept_whole.as_ref().is_some_and(|(kept, _)| kept == whole);
        if let Some(whole) = self.whole.take_if(|whole| !is_kept(whole)) {
            // What cannot be kept is not tried again before there is something else to keep.
            self.kept_whole = cache.keep_whole(self.kept_whole.take(), &whole);
            self.whole = self.kept_whole.as_ref().map(|(kept, _)| kept.clone());
        }
        let Some(known) = &self.known else { return };
        if self.unkept <= FEW_FILES + known.files() / 10 {
            return;
        }
        let entries: Vec<Entry<'_>> = known.kept().chain(self.parser.known()).chain(self.pins.known()).collect();
        cache.write(known.project(), &entries);
        self.unkept = 0;
    }

    /// What `commit` wants.
    ///
    /// # Errors
    /// When the revision cannot be read; mistakes in declarations are part of the result instead.
    pub fn load(
        &mut self,
        repository: &Repository,
        commit: &CommitId,
        remembered: &dyn Remembered,
    ) -> Result<Loaded, SourceError> {
        if let Some(loaded) = self.load_whole(repository, commit)? {
            return Ok(loaded);
        }
        let mut loaded = self.load_files(&repository.snapshot(commit)?, commit, remembered)?;
        self.recover_templates(repository, &mut loaded);
        Ok(loaded)
    }

    /// What a revision wants that is kept whole. Asked once, at the start.
    fn load_whole(&mut self, repository: &Repository, commit: &CommitId) -> Result<Option<Loaded>, SourceError> {
        let (Some(cache), None, None) = (&self.cache, &self.known, &self.whole) else { return Ok(None) };
        let kept = cache.whole(&repository.tree(commit)?, repository.config().limits);
        let Some((whole, end)) = kept.filter(|(whole, _)| pin::are_as_they_were(&whole.hosts)) else {
            return Ok(None);
        };
        let loaded = whole.loaded(commit);
        self.project = Some(whole.project.clone());
        self.unknown = Some(commit.clone());
        self.whole = Some(whole.clone());
        self.kept_whole = Some((whole, end));
        Ok(Some(loaded))
    }

    /// What `files` want, as if they were the revision `revision`.
    ///
    /// # Errors
    /// When they cannot be read; mistakes in declarations are part of the result instead.
    pub fn load_files(
        &mut self,
        files: &dyn Files,
        revision: &CommitId,
        remembered: &dyn Remembered,
    ) -> Result<Loaded, SourceError> {
        let settings = self.settings(files)?;
        self.know(files, revision, remembered, settings.project())?;
        let known = self.known.as_ref().expect("a revision that was read to its end is known");
        let loaded = finish(known, settings, revision, remembered);
        self.unknown = None;
        self.whole = self.cache.as_ref().and_then(|_| Whole::of(&loaded, known.templates(), files));
        Ok(loaded)
    }

    /// Adds to the mistakes of the revision that was loaded last which names may have been meant, for people who read them.
    pub fn advise(&self, loaded: &mut Loaded) {
        if let Some(known) = &self.known {
            known.set().advise(&mut loaded.diagnostics);
        }
    }

    /// Comes to know a revision, from what is known of the one before.
    fn know(
        &mut self,
        files: &dyn Files,
        revision: &CommitId,
        remembered: &dyn Remembered,
        project: &Project,
    ) -> Result<(), SourceError> {
        // Defaults and variables go into everything, so that other settings make everything new.
        let mut kept = HashMap::default();
        if self.known.as_ref().is_none_or(|known| known.project() != project) {
            self.parser.forget_rendered();
            kept = self.recall(project);
            // An app that comes to the same under other settings, or in its parts, is the same value.
            let had = self.known.take().map(|known| known.good().clone());
            let had = had.or_else(|| self.whole.as_ref().map(|whole| whole.apps.clone()));
            self.known = Some(Known::nothing(project.clone(), had.unwrap_or_default()));
        }
        let known = self.known.as_ref().expect("it has just been made sure of");
        let news = known.news(files, &self.parser, &mut kept)?;
        self.unkept += news.parsed();
        // Out of its place until all went well: half a revision must not be taken for one.
        let Some(mut known) = self.known.take() else { return Ok(()) };
        let (parser, pins) = (&mut self.parser, &mut self.pins);
        known.take_in(news, &mut Tools { files, revision, parser, pins, remembered })?;
        self.known = Some(known);
        Ok(())
    }

    /// What is kept for these settings. Without any, there is only what was read since the start.
    fn recall(&mut self, project: &Project) -> HashMap<Key, Parsed> {
        let Some(cache) = &self.cache else { return HashMap::default() };
        let Kept { declarations, runtimes, workspaces } = cache.read(project);
        self.parser.know(runtimes);
        self.pins.know(workspaces);
        declarations
    }

    /// The settings of this revision; while they have mistakes, those that came before.
    fn settings(&mut self, files: &dyn Files) -> Result<Settings, SourceError> {
        let file = scan::settings(files.root());
        Ok(match (self.parser.project(files, file.as_ref())?, self.project.clone()) {
            (Ok(project), _) => {
                self.project = Some(project.clone());
                Settings::Good(project)
            }
            (Err(mistakes), Some(before)) => Settings::Broken { before, mistakes },
            (Err(mistakes), None) => Settings::Unknown { assumed: Project::default(), mistakes },
        })
    }

    /// Finds out again how templates come to be that only kept apps still start from. After a restart they are not in memory,
    /// but they are in the revision that such an app was read in.
    fn recover_templates(&mut self, repository: &Repository, loaded: &mut Loaded) {
        let Loaded { desired, project, .. } = loaded;
        let kept = desired.kept.iter().filter_map(|(key, revision)| Some((desired.apps.get(key)?, revision)));
        let wanted: Vec<(TemplateDigest, CommitId)> = kept
            .filter(|(app, _)| !desired.templates.contains_key(&app.spec.template))
            .map(|(app, revision)| (app.spec.template.clone(), revision.clone()))
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
        let templates = scan::templates(files.root());
        let parsed = self.parser.declarations(&files, &templates.iter().collect::<Vec<_>>(), project)?;
        self.pins.templates(&files, commit, parsed.iter().flat_map(|file| &file.templates))
    }
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

/// What a known revision wants, with the apps that have mistakes as they were last declared without.
fn finish(known: &Known, settings: Settings, revision: &CommitId, remembered: &dyn Remembered) -> Loaded {
    let mut stalled: BTreeMap<AppKey, String> =
        known.broken().iter().map(|(app, mistakes)| (app.clone(), summary(mistakes))).collect();
    let mut doubt = known.in_doubt().map(|(path, why)| format!("{path} cannot be made out: {}", summary(why)));
    let mut diagnostics = known.diagnostics();
    let mut stalled_snapshots: BTreeMap<SnapshotKey, String> =
        known.set().broken_snapshots().map(|(key, why)| (key.clone(), why)).collect();
    // Holds every app as it is, because of mistakes that are not its own.
    let mut stall_all = |mistakes: &[Diagnostic]| {
        let reason = summary(mistakes);
        stalled.extend(known.set().declared().map(|app| (app.clone(), reason.clone())));
        stalled_snapshots.extend(known.set().declared_snapshots().map(|key| (key.clone(), reason.clone())));
        doubt = Some(reason);
    };
    let project = match settings {
        Settings::Good(project) => project,
        Settings::Broken { before, mistakes } => {
            stall_all(&mistakes);
            diagnostics.extend(mistakes);
            before
        }
        // Without its variables and defaults, most other mistakes would not be any.
        Settings::Unknown { assumed, mistakes } => {
            stall_all(&mistakes);
            diagnostics = mistakes;
            assumed
        }
    };
    let (mut apps, mut kept) = (known.good().clone(), BTreeMap::new());
    for key in stalled.keys() {
        apps.remove(key);
        if let Some(LastGood { app, revision }) = remembered.app(key) {
            apps.insert(key.clone(), app);
            kept.insert(key.clone(), revision);
        }
    }
    let completeness = match doubt {
        Some(reason) => Completeness::Partial(reason),
        None => completeness(known.set().len(), &project),
    };
    diagnostics.sort_by(|a, b| (&a.path, a.at, &a.message, &a.object).cmp(&(&b.path, b.at, &b.message, &b.object)));
    diagnostics.dedup();
    let of_kept: BTreeSet<&TemplateDigest> =
        kept.keys().filter_map(|key| apps.get(key)).map(|app| &app.spec.template).collect();
    // Where every app is kept, what the declarations would use does not count.
    let all_stalled = stalled.len() == known.good().len() + known.broken().len();
    let is_used = |digest: &TemplateDigest| of_kept.contains(digest) || (!all_stalled && known.uses(digest));
    let (templates, moved) = (known.templates().of(is_used), project.moved.clone());
    let sound = known.set().snapshots().filter(|document| !stalled_snapshots.contains_key(document.key()));
    let snapshots = sound.map(|document| (document.key().clone(), Arc::clone(&document.snapshot))).collect();
    let revision = revision.clone();
    let desired =
        Desired { revision, apps, kept, stalled, templates, moved, snapshots, stalled_snapshots, completeness };
    Loaded { desired, diagnostics, project, prewarmed: known.templates().prewarmed() }
}

/// Whether a revision that was read through is the whole truth, where it declares so many apps.
fn completeness(apps: usize, project: &Project) -> Completeness {
    match apps {
        0 if !project.policies.allow_empty => Completeness::EmptyRefused,
        _ => Completeness::Complete,
    }
}

/// The first of several mistakes, and how many more there are.
pub(crate) fn summary(mistakes: &[Diagnostic]) -> String {
    match mistakes {
        [] => "it has mistakes".to_owned(),
        [one] => one.headline(),
        [first, rest @ ..] => format!("{} (and {} more)", first.headline(), rest.len()),
    }
}
