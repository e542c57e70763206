//! Judges apps: each by itself, from its own declaration and what that refers to.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;

use setpoint_schema::app::DesiredApp;
use setpoint_schema::diagnostic::Diagnostic;
use setpoint_schema::document::{AppDocument, Parsed};
use setpoint_schema::name::{AppKey, RepoPath};
use setpoint_schema::names::HashMap;

use crate::parallel;
use crate::source::{Files, SourceError};

use super::super::parse::{Parser, Place, Runtimes};
use super::super::pin::{Declared, Pins, Workspace};
use super::super::scan::Key;
use super::{Known, Tools};

/// Fewer documents than this refer to less than starting a thread is worth.
const WORTH_A_THREAD: usize = 64;

/// What an app comes to.
pub(super) enum Judgement {
    Good(Arc<DesiredApp>),
    Broken(Vec<Diagnostic>),
    /// Nothing declares it any more.
    Gone,
}

/// What documents refer to, by where they are in memory: each holds its own there.
pub(super) type Ahead<'f> = HashMap<usize, Arc<Declared<'f>>>;

fn place_of(document: &Arc<AppDocument>) -> usize {
    Arc::as_ptr(document).addr()
}

/// Does `work`, and reads meanwhile what these documents refer to, of a revision with so many apps in all: setting a revision up is work
/// for one processor. What goes wrong with that is found again by the judgement.
pub(super) fn reading_ahead<'f>(
    documents: &[Arc<AppDocument>],
    all: usize,
    tools: &mut Tools<'f>,
    work: impl FnOnce(),
) -> Ahead<'f> {
    if documents.len() < WORTH_A_THREAD {
        work();
        return Ahead::default();
    }
    let Tools { files, parser, pins, revision: _, remembered: _ } = tools;
    thread::scope(|scope| {
        let ahead = scope.spawn(|| read_ahead(documents, all, *files, parser, pins));
        work();
        ahead.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

fn read_ahead<'f>(
    documents: &[Arc<AppDocument>],
    all: usize,
    files: &'f dyn Files,
    parser: &mut Parser,
    pins: &mut Pins,
) -> Ahead<'f> {
    let declared = parallel::map(documents, |document| Arc::new(Declared::of(files, document)));
    let runtimes: Vec<&Key> = declared.iter().filter_map(|declared| declared.runtime.key()).collect();
    parser.read_ahead(files, &runtimes);
    let workspaces = declared.iter().filter_map(|declared| declared.workspace.as_ref());
    if let Err(error) = pins.workspaces(files, workspaces, all) {
        tracing::debug!(%error, "workspaces cannot be read ahead");
    }
    declared.into_iter().map(|declared| (place_of(&declared.document), declared)).collect()
}

impl Known {
    /// Judges these apps anew.
    pub(super) fn judge(
        &mut self,
        apps: Vec<AppKey>,
        tools: &mut Tools<'_>,
        ahead: &Ahead<'_>,
    ) -> Result<(), SourceError> {
        let (files, all) = (tools.files, self.set.len());
        let cases = parallel::map(&apps, |app| self.case(app, files, ahead));
        let wanted: Vec<&Key> = cases.iter().flat_map(Case::keys).collect();
        let runtimes = tools.parser.runtimes(files, &wanted, &self.project, all)?;
        tools.pins.workspaces(files, cases.iter().flat_map(Case::workspaces), all)?;
        let pins = &*tools.pins;
        let judgements = parallel::map(&cases, |case| self.judgement(case, files, pins, &runtimes));
        let judgements: Vec<Judgement> = judgements.into_iter().collect::<Result<_, _>>()?;
        let first = self.good.is_empty();
        let mut good = Vec::new();
        for (key, judgement) in apps.into_iter().zip(judgements) {
            match judgement {
                // Made of all of them at once, the map is made in a fraction of the time.
                Judgement::Good(app) if first => {
                    self.broken.remove(&key);
                    self.count_use(&app.spec.template);
                    good.push((key, app));
                }
                Judgement::Good(_) | Judgement::Broken(_) | Judgement::Gone => self.note(key, judgement),
            }
        }
        if first {
            self.good = good.into_iter().collect();
        }
        Ok(())
    }

    /// What an app's judgement takes: what is wrong with its declaration, and where its runtime stands.
    fn case<'f>(&self, app: &AppKey, files: &'f dyn Files, ahead: &Ahead<'f>) -> Case<'f> {
        let is_its = |mistake: &&Diagnostic| mistake.object.as_ref() == Some(app);
        let faulty = self.faults.get(app).into_iter().flatten().map(|path| (path, &self.files[path]));
        let faulty: Vec<(&RepoPath, &Arc<Parsed>)> = faulty.collect();
        let lost = self.lost.get(app).map_or(&[][..], Vec::as_slice);
        let of_files = faulty.iter().flat_map(|(_, file)| file.diagnostics.iter().filter(is_its));
        let mut mistakes: Vec<Diagnostic> =
            of_files.chain(lost.iter().flat_map(|lost| &lost.mistakes)).cloned().collect();
        mistakes.extend(self.set.mistakes_of(app));
        let referred = |document| match ahead.get(&place_of(document)) {
            Some(declared) => Arc::clone(declared),
            None => Arc::new(Declared::of(files, document)),
        };
        let without_apps = faulty.iter().filter(|(_, file)| file.apps.is_empty()).map(|(path, _)| *path);
        let beside = without_apps.chain(lost.iter().map(|lost| &lost.path));
        Case {
            app: app.clone(),
            mistakes,
            declared: self.set.documents(app).iter().map(referred).collect(),
            beside: beside.map(|path| Place::beside(files, path)).collect(),
        }
    }

    fn judgement(
        &self,
        case: &Case<'_>,
        files: &dyn Files,
        pins: &Pins,
        runtimes: &Runtimes<'_>,
    ) -> Result<Judgement, SourceError> {
        let mut mistakes = case.mistakes.clone();
        let mut good = None;
        for declared in &case.declared {
            match pins.app(files, declared, runtimes, &self.templates)? {
                Ok(app) => good = Some(app),
                Err(found) => mistakes.extend(found),
            }
        }
        for runtime in case.beside.iter().filter_map(Place::key).map(|key| runtimes.get(key)) {
            let found = runtime.err().into_iter().flatten();
            mistakes.extend(found.map(|mistake| mistake.clone().of(case.app.clone())));
        }
        Ok(match good {
            Some(app) if mistakes.is_empty() => Judgement::Good(self.as_it_was(&case.app, app)),
            None if mistakes.is_empty() => Judgement::Gone,
            Some(_) | None => Judgement::Broken(mistakes),
        })
    }
}

/// What the judgement of an app takes.
struct Case<'f> {
    app: AppKey,
    /// What is wrong that takes no further reading to know.
    mistakes: Vec<Diagnostic>,
    declared: Vec<Arc<Declared<'f>>>,
    /// Where a runtime stands beside declarations that make no app.
    beside: Vec<Place>,
}

impl<'f> Case<'f> {
    fn keys(&self) -> impl Iterator<Item = &Key> {
        self.declared.iter().map(|declared| &declared.runtime).chain(&self.beside).filter_map(Place::key)
    }

    fn workspaces(&self) -> impl Iterator<Item = &Workspace<'f>> {
        self.declared.iter().filter_map(|declared| declared.workspace.as_ref())
    }
}
