//! What is known of the revision that was loaded last, and how the next one changes it.
//!
//! The loader asks for the [`News`] of a revision, takes them in, and reads the result. There is no other way to load: the first
//! revision is news from beginning to end. Every app is judged by itself, from its own declaration and what that refers to; an
//! app is judged again when something changed that its judgement may have read.
//!
//! ```text
//!   tree ids ──▶ files that changed ──parse──▶ Set ──settle──▶ apps to judge ──▶ good, with all that it refers to
//!                folders that changed ──whose?──────────────────┘           └──▶ broken, with every mistake
//! ```

mod judge;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use setpoint_schema::app::DesiredApp;
use setpoint_schema::diagnostic::Diagnostic;
use setpoint_schema::document::{AppDocument, Coverage, Parsed};
use setpoint_schema::id::{CommitId, TemplateDigest};
use setpoint_schema::name::{AppKey, RepoPath};
use setpoint_schema::names::{HashMap, HashSet};
use setpoint_schema::project::Project;
use setpoint_schema::set::Set;
use setpoint_schema::shared::SharedMap;

use crate::source::{Files, Folder, Item, SourceError};

use super::Remembered;
use super::cache::Entry;
use super::parse::{Parser, unreadable};
use super::pin::{PinnedTemplates, Pins};
use super::scan::{Changes, Differing, Found, Key};
use judge::Judgement;

/// The file that declares apps, for finding it by its folder.
const APP_FILE: &str = "app.yaml";

/// A revision, taken apart.
pub(super) struct Known {
    /// The settings that all of it was read with.
    project: Project,
    root: Option<Arc<Folder>>,
    set: Set,
    files: HashMap<RepoPath, Arc<Parsed>>,
    /// The files in which there are mistakes.
    faulty: BTreeMap<RepoPath, Arc<Parsed>>,
    /// Where the mistakes of an app stand.
    faults: HashMap<AppKey, BTreeSet<RepoPath>>,
    /// What stands where apps could be declared and cannot be read, by its path in the tree.
    hiding_apps: BTreeMap<String, Hidden>,
    hiding_templates: BTreeMap<String, Diagnostic>,
    /// Apps that stood where something cannot be made out now, and what is wrong there.
    lost: BTreeMap<AppKey, Vec<Lost>>,
    /// Which apps take their files from a folder that they name.
    sources: HashMap<RepoPath, BTreeSet<AppKey>>,
    templates: PinnedTemplates,
    /// The apps without a mistake.
    good: SharedMap<AppKey, Arc<DesiredApp>>,
    /// What was known of apps before anything was known here; empty once something is.
    had: SharedMap<AppKey, Arc<DesiredApp>>,
    /// How many of these start from each template.
    uses: HashMap<TemplateDigest, usize>,
    /// The apps with mistakes.
    broken: BTreeMap<AppKey, Vec<Diagnostic>>,
}

/// Something that may hide apps.
struct Hidden {
    path: RepoPath,
    file: Parsed,
}

/// What is wrong where an app stood.
struct Lost {
    path: RepoPath,
    mistakes: Vec<Diagnostic>,
}

/// What a revision changes, read and parsed.
pub(super) struct News {
    changes: Changes,
    /// What the files declare that differ, in their order.
    files: Vec<Parsed>,
    /// How many of these files were parsed for it.
    parsed: usize,
}

impl News {
    /// How many files were parsed for them.
    pub fn parsed(&self) -> usize {
        self.parsed
    }
}

/// What reading takes.
pub(super) struct Tools<'a> {
    pub files: &'a dyn Files,
    pub revision: &'a CommitId,
    pub parser: &'a mut Parser,
    pub pins: &'a mut Pins,
    pub remembered: &'a dyn Remembered,
}

impl Known {
    /// Nothing, under these settings. Apps that come to what was `had` of them before are the same values.
    pub fn nothing(project: Project, had: SharedMap<AppKey, Arc<DesiredApp>>) -> Self {
        Self {
            root: None,
            set: Set::new(&project),
            files: HashMap::default(),
            faulty: BTreeMap::new(),
            faults: HashMap::default(),
            hiding_apps: BTreeMap::new(),
            hiding_templates: BTreeMap::new(),
            lost: BTreeMap::new(),
            sources: HashMap::default(),
            templates: PinnedTemplates::default(),
            good: SharedMap::new(),
            had,
            uses: HashMap::default(),
            broken: BTreeMap::new(),
            project,
        }
    }

    /// The settings that all of it was read with.
    pub fn project(&self) -> &Project {
        &self.project
    }

    /// Reads what a revision changes. Changes nothing itself, so that an error leaves what was known before.
    ///
    /// What is in `kept` needs no parsing, and is taken out.
    pub fn news(
        &self,
        files: &dyn Files,
        parser: &Parser,
        kept: &mut HashMap<Key, Parsed>,
    ) -> Result<News, SourceError> {
        let mut changes = Changes::between(self.root.as_deref(), files.root());
        if let (Some(root), false) = (&self.root, self.sources.is_empty()) {
            changes.add_other_folders(root, files.root());
        }
        let mut taken = |key: &Key| if kept.is_empty() { None } else { kept.remove(key) };
        let found: Vec<Option<Parsed>> = changes.declarations().map(&mut taken).collect();
        let new = changes.declarations().zip(&found).filter(|(_, found)| found.is_none());
        let new: Vec<&Key> = new.map(|(key, _)| key).collect();
        let parsed = new.len();
        let mut read = parser.declarations(files, &new, &self.project)?.into_iter();
        let files = found.into_iter().filter_map(|found| found.or_else(|| read.next())).collect();
        Ok(News { changes, files, parsed })
    }

    /// Takes the news in. After an error, what is known is of no revision and must be forgotten.
    pub fn take_in(&mut self, news: News, tools: &mut Tools<'_>) -> Result<(), SourceError> {
        let News { changes: Changes { apps, templates, folders }, files, parsed: _ } = news;
        let documents: Vec<Arc<AppDocument>> = files.iter().flat_map(|file| file.apps.iter().cloned()).collect();
        let mut touched = Vec::new();
        // Of the first revision, everything is touched already.
        if self.root.is_some() {
            self.touch_folders(&folders, &mut touched);
        }
        for key in self.lost.keys() {
            self.set.remove_broken(key);
        }
        touched.extend(std::mem::take(&mut self.lost).into_keys());
        let remembered = tools.remembered;
        let ahead = judge::reading_ahead(&documents, self.set.len() + documents.len(), tools, || {
            self.put_in_place(apps, templates, files);
            self.find_lost(remembered);
            touched.extend(self.set.settle());
        });
        self.pin_templates(tools)?;
        touched.extend(self.set.settle());
        touched.sort_unstable();
        touched.dedup();
        self.judge(touched, tools, &ahead)?;
        let had = std::mem::take(&mut self.had);
        if had == self.good {
            self.good = had;
        }
        self.root = Some(Arc::clone(tools.files.root()));
        Ok(())
    }

    /// The files without a mistake, for keeping.
    pub fn kept(&self) -> impl Iterator<Item = Entry<'_>> {
        let sound = self.files.iter().filter(|(path, _)| !self.faulty.contains_key(*path));
        sound.filter_map(|(path, file)| match self.root.as_ref()?.get(path)? {
            Item::File { blob, .. } => {
                let Parsed { apps, templates, snapshots, .. } = &**file;
                Some(Entry::Declarations { path, blob, apps, templates, snapshots })
            }
            Item::Folder(_) | Item::Refused(_) => None,
        })
    }

    /// How many files declare something.
    pub fn files(&self) -> usize {
        self.files.len()
    }

    /// The apps without a mistake.
    pub fn good(&self) -> &SharedMap<AppKey, Arc<DesiredApp>> {
        &self.good
    }

    /// The apps with mistakes, and these.
    pub fn broken(&self) -> &BTreeMap<AppKey, Vec<Diagnostic>> {
        &self.broken
    }

    /// The declarations, findable by what they refer to.
    pub fn set(&self) -> &Set {
        &self.set
    }

    /// The templates.
    pub fn templates(&self) -> &PinnedTemplates {
        &self.templates
    }

    /// Whether an app without a mistake starts from the template of this content.
    pub fn uses(&self, template: &TemplateDigest) -> bool {
        self.uses.contains_key(template)
    }

    /// Everything that is wrong, in no order; some of it may come twice.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        let given: HashSet<&RepoPath> = self.lost.values().flatten().map(|lost| &lost.path).collect();
        let left = self.faulty_files().filter(|(path, _)| !given.contains(path));
        let unowned = left.flat_map(|(_, file)| file.diagnostics.iter().filter(|mistake| mistake.object.is_none()));
        let owned = self.broken.values().flatten();
        let mut diagnostics: Vec<Diagnostic> =
            unowned.chain(owned).chain(self.hiding_templates.values()).cloned().collect();
        diagnostics.extend(self.set.template_mistakes());
        diagnostics.extend(self.set.snapshot_mistakes());
        diagnostics.extend(self.templates.mistakes());
        diagnostics
    }

    /// The first file of which it is not known which apps it declares, with what is wrong there.
    pub fn in_doubt(&self) -> Option<(&RepoPath, &[Diagnostic])> {
        let (path, file) = self.files_in_doubt().next()?;
        Some((path, &file.diagnostics))
    }

    fn faulty_files(&self) -> impl Iterator<Item = (&RepoPath, &Parsed)> {
        let hidden = self.hiding_apps.values().map(|hidden| (&hidden.path, &hidden.file));
        self.faulty.iter().map(|(path, file)| (path, &**file)).chain(hidden)
    }

    fn files_in_doubt(&self) -> impl Iterator<Item = (&RepoPath, &Parsed)> {
        self.faulty_files().filter(|(_, file)| match file.coverage {
            Coverage::Whole => false,
            Coverage::Partial => true,
        })
    }

    /// Notes the apps whose files, or whose runtime's file, are in these folders.
    fn touch_folders(&self, folders: &[String], touched: &mut Vec<AppKey>) {
        for folder in folders {
            // Nothing can be declared at a path that cannot be spelled.
            let Ok(path) = RepoPath::new(folder.as_str()) else { continue };
            touched.extend(self.sources.get(&path).into_iter().flatten().cloned());
            let Ok(declaration) = RepoPath::new(format!("{folder}/{APP_FILE}")) else { continue };
            if let Some(file) = self.files.get(&declaration) {
                touched.extend(file.apps.iter().map(|app| app.metadata.key.clone()));
                touched.extend(file.broken_apps().into_iter().cloned());
            }
        }
    }

    /// Puts what stands at these paths now in the place of what was there.
    fn put_in_place(&mut self, apps: Differing, templates: Differing, files: Vec<Parsed>) {
        self.files.reserve(files.len());
        self.set.expect(files.iter().map(|file| file.apps.len()).sum());
        let mut files = files.into_iter();
        for (path, found) in apps {
            self.hiding_apps.remove(&path);
            if let Some(problem) = self.replace(&path, found, &mut files) {
                let hidden = Hidden { path: problem.path.clone(), file: unreadable(problem) };
                self.hiding_apps.insert(path, hidden);
            }
        }
        for (path, found) in templates {
            self.hiding_templates.remove(&path);
            let problem = self.replace(&path, found, &mut files);
            self.hiding_templates.extend(problem.map(|problem| (path, problem)));
        }
    }

    /// Puts what is at a path now in the place of what was there. What cannot be read is given back.
    fn replace(
        &mut self,
        path: &str,
        found: Option<Found>,
        files: &mut impl Iterator<Item = Parsed>,
    ) -> Option<Diagnostic> {
        if let Some(Found::Declarations((path, _))) = found {
            self.remove(&path);
            self.insert(path, Arc::new(files.next().expect("every file that was found has been parsed")));
            return None;
        }
        if let Ok(path) = RepoPath::new(path) {
            self.remove(&path);
        }
        match found? {
            Found::Hiding(problem) => Some(problem),
            Found::Declarations(_) => None,
        }
    }

    fn remove(&mut self, path: &RepoPath) {
        let Some(file) = self.files.remove(path) else { return };
        self.set.remove(&file);
        self.faulty.remove(path);
        for app in file.broken_apps() {
            if let Some(paths) = self.faults.get_mut(app) {
                paths.remove(path);
                if paths.is_empty() {
                    self.faults.remove(app);
                }
            }
        }
        for (app, source) in file.apps.iter().filter_map(|app| Some((app, app.spec.source.path.as_ref()?))) {
            if let Some(apps) = self.sources.get_mut(source) {
                apps.remove(&app.metadata.key);
                if apps.is_empty() {
                    self.sources.remove(source);
                }
            }
        }
    }

    fn insert(&mut self, path: RepoPath, file: Arc<Parsed>) {
        self.set.insert(&file);
        for app in file.broken_apps() {
            self.faults.entry(app.clone()).or_default().insert(path.clone());
        }
        for (app, source) in file.apps.iter().filter_map(|app| Some((app, app.spec.source.path.as_ref()?))) {
            self.sources.entry(source.clone()).or_default().insert(app.metadata.key.clone());
        }
        if !file.diagnostics.is_empty() || file.coverage == Coverage::Partial {
            self.faulty.insert(path.clone(), Arc::clone(&file));
        }
        self.files.insert(path, file);
    }

    /// Gives the mistakes of files that cannot be made out to the apps that were declared there before and nowhere now, so that
    /// those count as broken and not as gone.
    fn find_lost(&mut self, remembered: &dyn Remembered) {
        let mut lost: BTreeMap<AppKey, Vec<Lost>> = BTreeMap::new();
        for (path, file) in self.files_in_doubt() {
            let unowned: Vec<&Diagnostic> =
                file.diagnostics.iter().filter(|mistake| mistake.object.is_none()).collect();
            if unowned.is_empty() {
                continue;
            }
            for key in remembered.below(path).into_iter().filter(|key| !self.set.is_declared(key)) {
                let mistakes = unowned.iter().map(|mistake| Diagnostic::clone(mistake).of(key.clone())).collect();
                lost.entry(key).or_default().push(Lost { path: path.clone(), mistakes });
            }
        }
        for key in lost.keys() {
            self.set.insert_broken(key);
        }
        self.lost = lost;
    }

    fn pin_templates(&mut self, tools: &mut Tools<'_>) -> Result<(), SourceError> {
        let templates = tools.pins.templates(tools.files, tools.revision, self.set.templates())?;
        for name in templates.differing(&self.templates) {
            self.set.touch_users(name);
        }
        self.templates = templates;
        Ok(())
    }

    fn note(&mut self, key: AppKey, judgement: Judgement) {
        match judgement {
            Judgement::Good(app) => {
                self.broken.remove(&key);
                // The same value stays the same allocation, which tells whoever compares revisions that it need not look.
                if self.good.get(&key).is_some_and(|known| *known == app) {
                    return;
                }
                self.count_use(&app.spec.template);
                let before = self.good.insert(key, app);
                self.forget_use(before);
            }
            Judgement::Broken(mistakes) => {
                let before = self.good.remove(&key);
                self.forget_use(before);
                self.broken.insert(key, mistakes);
            }
            Judgement::Gone => {
                let before = self.good.remove(&key);
                self.forget_use(before);
                self.broken.remove(&key);
            }
        }
    }

    /// The very value that was had of this app before, where it is equal.
    fn as_it_was(&self, key: &AppKey, app: DesiredApp) -> Arc<DesiredApp> {
        self.had.get(key).filter(|had| ***had == app).cloned().unwrap_or_else(|| Arc::new(app))
    }

    fn count_use(&mut self, template: &TemplateDigest) {
        match self.uses.get_mut(template) {
            Some(count) => *count += 1,
            None => drop(self.uses.insert(template.clone(), 1)),
        }
    }

    fn forget_use(&mut self, before: Option<Arc<DesiredApp>>) {
        let Some(template) = before.map(|app| app.spec.template.clone()) else { return };
        if let Some(count) = self.uses.get_mut(&template) {
            *count -= 1;
            if *count == 0 {
                self.uses.remove(&template);
            }
        }
    }
}
