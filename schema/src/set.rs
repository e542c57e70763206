//! What only all declarations together can show: objects declared twice, references that lead nowhere or in a circle, names
//! that two apps claim. Every mistake names the app that cannot be used, so that the others go on.
//!
//! The loader keeps a [`Set`] from revision to revision and tells it which files come and go. What that costs goes with the
//! change and with who refers to what changed, never with the size of the set.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;
use std::sync::Arc;

use crate::app::{Beginning, SnapshotRef};
use crate::diagnostic::{Diagnostic, Location, Place};
use crate::document::{AppDocument, Parsed, SnapshotDocument, TemplateDocument};
use crate::name::{AppKey, RepoPath, SnapshotKey, TemplateName, Uid};
use crate::names::{HashMap, HashSet};
use crate::project::{HostPattern, Project};

mod advice;
mod cycle;
mod snapshots;

use cycle::Cycle;

/// All declarations of a revision, findable by what they refer to.
#[derive(Debug, Default)]
pub struct Set {
    hosts: HostPattern,
    /// The moves that each app is an end of.
    moves: HashMap<AppKey, Vec<Move>>,
    /// Each app, with every document that declares it, in the order of their places; usually one.
    apps: HashMap<AppKey, Vec<Arc<AppDocument>>>,
    /// Apps that are declared with mistakes, and in how many files.
    broken: HashMap<AppKey, usize>,
    templates: BTreeMap<TemplateName, Vec<TemplateDocument>>,
    broken_templates: HashMap<TemplateName, usize>,
    /// Who starts from each template, the built-in one apart.
    users: HashMap<TemplateName, BTreeSet<AppKey>>,
    /// Each snapshot, with every document that declares it, in the order of their places.
    snapshots: BTreeMap<SnapshotKey, Vec<Arc<SnapshotDocument>>>,
    /// Snapshots that are declared with mistakes, with what is wrong, of each file.
    broken_snapshots: BTreeMap<SnapshotKey, Vec<String>>,
    /// Who names each snapshot.
    snapshot_users: HashMap<SnapshotKey, BTreeSet<AppKey>>,
    /// Who depends on each app.
    dependents: HashMap<AppKey, BTreeSet<AppKey>>,
    /// Who claims each thing of which there can be one.
    claims: HashMap<Claim, BTreeSet<AppKey>>,
    /// The circle that each app is in.
    cycles: HashMap<AppKey, Arc<Cycle<AppKey>>>,
    /// What the apps that changed since the last [`Self::settle`] were before.
    changed: HashMap<AppKey, Before>,
    /// The apps that are to be looked at again because of others.
    touched: HashSet<AppKey>,
}

/// An app under its old key and its new one.
#[derive(Debug, Clone)]
struct Move {
    from: AppKey,
    to: AppKey,
}

/// What others may have relied on.
#[derive(Debug)]
struct Before {
    was_declared: bool,
    awaited: BTreeSet<AppKey>,
}

/// Something of which there can be one in the world.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Claim {
    Uid(Uid),
    /// The domain is the daemon's to know, and the same for all.
    Host(String),
}

impl Set {
    /// The set of no files, under these settings.
    #[must_use]
    pub fn new(project: &Project) -> Self {
        let mut moves: HashMap<AppKey, Vec<Move>> = HashMap::default();
        for (from, to) in &project.moved {
            for end in [from, to] {
                moves.entry(end.clone()).or_default().push(Move { from: from.clone(), to: to.clone() });
            }
        }
        Self { hosts: project.hosts.pattern.clone(), moves, ..Self::default() }
    }

    /// Adds what a file declares.
    pub fn insert(&mut self, file: &Parsed) {
        self.insert_snapshots(file);
        for app in &file.apps {
            self.disturb(&app.metadata.key);
            let documents = self.apps.entry(app.metadata.key.clone()).or_default();
            documents.push(Arc::clone(app));
            // The same order whatever order the files came in.
            documents.sort_by(|a, b| place_order(a).cmp(&place_order(b)));
        }
        for key in file.broken_apps() {
            self.insert_broken(key);
        }
        for document in &file.templates {
            let name = &document.template.name;
            let documents = self.templates.entry(name.clone()).or_default();
            documents.push(document.clone());
            documents.sort_by(|a, b| (&a.path, a.name_place.at).cmp(&(&b.path, b.name_place.at)));
            self.touch_users(name);
        }
        for name in &file.broken_templates {
            *self.broken_templates.entry(name.clone()).or_default() += 1;
            self.touch_users(name);
        }
    }

    /// Takes out what a file declared that was inserted before.
    pub fn remove(&mut self, file: &Parsed) {
        self.remove_snapshots(file);
        for app in &file.apps {
            let key = &app.metadata.key;
            self.disturb(key);
            if let Some(documents) = self.apps.get_mut(key) {
                documents.retain(|document| !Arc::ptr_eq(document, app));
                if documents.is_empty() {
                    self.apps.remove(key);
                }
            }
        }
        for key in file.broken_apps() {
            self.remove_broken(key);
        }
        for document in &file.templates {
            let name = &document.template.name;
            if let Some(documents) = self.templates.get_mut(name) {
                documents.retain(|other| other != document);
                if documents.is_empty() {
                    self.templates.remove(name);
                }
            }
            self.touch_users(name);
        }
        for name in &file.broken_templates {
            count_down(&mut self.broken_templates, name);
            self.touch_users(name);
        }
    }

    /// Counts an app as declared, with mistakes.
    pub fn insert_broken(&mut self, app: &AppKey) {
        self.disturb(app);
        *self.broken.entry(app.clone()).or_default() += 1;
    }

    /// Takes back one [`Self::insert_broken`].
    pub fn remove_broken(&mut self, app: &AppKey) {
        self.disturb(app);
        count_down(&mut self.broken, app);
    }

    /// Looks again at all apps that start from a template.
    pub fn touch_users(&mut self, template: &TemplateName) {
        self.touched.extend(self.users.get(template).into_iter().flatten().cloned());
    }

    /// Ends a series of changes. The apps whose mistakes may be others than before, those that are gone among them.
    /// In no order; some may come twice.
    pub fn settle(&mut self) -> Vec<AppKey> {
        let changed = std::mem::take(&mut self.changed);
        for key in changed.keys() {
            self.index(key);
        }
        let mut rewired = Vec::new();
        for (key, before) in &changed {
            let documents = self.apps.get(key);
            let is_declared = documents.is_some() || self.broken.contains_key(key);
            if before.was_declared != is_declared {
                self.touched.extend(self.dependents.get(key).into_iter().flatten().cloned());
                self.touched.extend(self.moves.get(key).into_iter().flatten().map(|one| one.to.clone()));
            }
            let first = documents.and_then(|documents| documents.first());
            if first.map_or(!before.awaited.is_empty(), |app| self.awaited(app) != before.awaited) {
                rewired.push(key.clone());
            }
        }
        self.find_cycles(rewired);
        changed.into_keys().chain(std::mem::take(&mut self.touched)).collect()
    }

    /// Makes room for so many more apps.
    pub fn expect(&mut self, apps: usize) {
        self.apps.reserve(apps);
        self.changed.reserve(apps);
    }

    /// The documents that declare an app, in the order of their places.
    #[must_use]
    pub fn documents(&self, app: &AppKey) -> &[Arc<AppDocument>] {
        self.apps.get(app).map_or(&[], Vec::as_slice)
    }

    /// Whether an app is declared, with or without mistakes.
    #[must_use]
    pub fn is_declared(&self, app: &AppKey) -> bool {
        self.apps.contains_key(app) || self.broken.contains_key(app)
    }

    /// How many apps are declared, those with mistakes and without counted apart.
    #[must_use]
    pub fn len(&self) -> usize {
        self.apps.len() + self.broken.len()
    }

    /// Whether no app is declared, not even with mistakes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.apps.is_empty() && self.broken.is_empty()
    }

    /// Every app that is declared, with or without mistakes, in no order; one with mistakes may come twice.
    pub fn declared(&self) -> impl Iterator<Item = &AppKey> {
        self.apps.keys().chain(self.broken.keys())
    }

    /// Every template that is declared without mistakes, by name.
    pub fn templates(&self) -> impl Iterator<Item = &TemplateDocument> {
        self.templates.values().flatten()
    }

    /// What is wrong between an app and the other declarations, in the order of the places.
    #[must_use]
    pub fn mistakes_of(&self, app: &AppKey) -> Vec<Diagnostic> {
        let mut mistakes = Vec::new();
        let documents = self.documents(app);
        let Some((first, again)) = documents.split_first() else { return mistakes };
        for app in again {
            let message = format!("app `{}` is declared twice, first in {}", app.metadata.key, place_of(first));
            mistakes.push(app.mistake(None, message).hint("rename or remove one of them"));
        }
        mistakes.extend(documents.iter().filter_map(|app| self.template_mistake(app)));
        for app in documents {
            self.check_dependencies(app, &mut mistakes);
            self.check_snapshots(app, &mut mistakes);
        }
        mistakes.extend(self.cycle_mistake(first));
        self.check_claims(first, &mut mistakes);
        mistakes.extend(self.move_mistakes(first));
        mistakes.sort_by(|a, b| (&a.path, a.at).cmp(&(&b.path, b.at)));
        mistakes
    }

    /// Templates that are declared twice. That breaks the apps that start from them, not each other.
    #[must_use]
    pub fn template_mistakes(&self) -> Vec<Diagnostic> {
        let mut mistakes = Vec::new();
        for (name, documents) in &self.templates {
            let Some((first, again)) = documents.split_first() else { continue };
            for template in again {
                let (line, column) = (first.name_place.at.line, first.name_place.at.column);
                let message = format!("template `{name}` is declared twice, first in {}:{line}:{column}", first.path);
                mistakes.push(Diagnostic::new(template.path.clone(), message).at(template.name_place.clone()));
            }
        }
        mistakes
    }

    fn first(&self, app: &AppKey) -> Option<&Arc<AppDocument>> {
        self.apps.get(app)?.first()
    }

    /// Before an app changes: remembers what others may rely on, and takes the app out of the indexes.
    fn disturb(&mut self, key: &AppKey) {
        if self.changed.contains_key(key) {
            return;
        }
        // Of what nothing declared, there is nothing in any index.
        let Some(documents) = self.apps.get(key).cloned() else {
            let was_declared = self.broken.contains_key(key);
            self.changed.insert(key.clone(), Before { was_declared, awaited: BTreeSet::new() });
            return;
        };
        let awaited = documents.first().map(|app| self.awaited(app)).unwrap_or_default();
        self.changed.insert(key.clone(), Before { was_declared: true, awaited });
        for app in &documents {
            take_out(&mut self.users, &app.spec.template, key);
            for dependency in referred(app) {
                take_out(&mut self.dependents, dependency, key);
            }
            for snapshot in snapshots::named(&app.spec) {
                take_out(&mut self.snapshot_users, snapshot, key);
            }
        }
        let Some(first) = documents.first() else { return };
        for (claim, _) in claims_of(&self.hosts, first) {
            take_out(&mut self.claims, &claim, key);
            self.touched.extend(self.claims.get(&claim).into_iter().flatten().cloned());
        }
    }

    /// After an app changed: puts it back into the indexes.
    fn index(&mut self, key: &AppKey) {
        let Some(documents) = self.apps.get(key) else { return };
        for app in documents {
            if app.spec.template != TemplateName::minimal() {
                self.users.entry(app.spec.template.clone()).or_default().insert(key.clone());
            }
            for dependency in referred(app) {
                self.dependents.entry(dependency.clone()).or_default().insert(key.clone());
            }
            for snapshot in snapshots::named(&app.spec) {
                self.snapshot_users.entry(snapshot.clone()).or_default().insert(key.clone());
            }
        }
        let Some(first) = documents.first() else { return };
        for (claim, _) in claims_of(&self.hosts, first) {
            let claimants = self.claims.entry(claim).or_default();
            claimants.insert(key.clone());
            if claimants.len() > 1 {
                self.touched.extend(claimants.iter().cloned());
            }
        }
    }

    fn template_mistake(&self, app: &AppDocument) -> Option<Diagnostic> {
        let name = &app.spec.template;
        if *name == TemplateName::minimal() {
            return None;
        }
        let wrong = match self.templates.get(name).map(Vec::len) {
            _ if self.broken_templates.contains_key(name) => format!("template `{name}` has mistakes"),
            None => format!("template `{name}` is not declared"),
            Some(1) => return None,
            Some(_) => format!("template `{name}` is declared twice"),
        };
        let mistake = app.mistake(app.places.template.as_deref(), wrong);
        Some(match app.places.template {
            Some(_) => mistake,
            None => mistake.hint("it is named by `[defaults]` of setpoint.toml"),
        })
    }

    fn check_dependencies(&self, app: &AppDocument, out: &mut Vec<Diagnostic>) {
        for (dependency, place) in &app.places.depends_on {
            if *dependency == app.metadata.key {
                out.push(app.mistake(Some(place), format!("app `{dependency}` depends on itself")));
            } else if !self.is_declared(dependency) {
                out.push(app.mistake(Some(place), format!("app `{dependency}` is not declared")));
            }
        }
    }

    fn cycle_mistake(&self, app: &AppDocument) -> Option<Diagnostic> {
        let cycle = self.cycles.get(&app.metadata.key)?;
        let within = |(key, _): &&(AppKey, Place)| cycle.members.binary_search(key).is_ok();
        let place = app.places.depends_on.iter().find(within).map(|(_, place)| place);
        let place = place.or(app.places.from.as_ref()).or(app.places.restore.as_ref());
        Some(app.mistake(place, format!("these apps wait for each other: {}", cycle::show(&cycle.example))))
    }

    /// Finds the circles anew that lead through apps whose dependencies changed. Such a circle lies within what these apps
    /// reach, and a circle that was known lies wholly within that or wholly outside.
    fn find_cycles(&mut self, rewired: Vec<AppKey>) {
        let mut to_visit = rewired;
        let dissolved = to_visit.iter().filter_map(|key| self.cycles.get(key)).flat_map(|cycle| cycle.members.clone());
        to_visit.extend(dissolved.collect::<Vec<_>>());
        let mut graph: BTreeMap<AppKey, Vec<AppKey>> = BTreeMap::new();
        while let Some(key) = to_visit.pop() {
            if graph.contains_key(&key) {
                continue;
            }
            if let Some(cycle) = self.cycles.remove(&key) {
                self.touched.extend(cycle.members.iter().cloned());
            }
            let Some(app) = self.first(&key) else { continue };
            let leads_to = self.awaited(app).into_iter().filter(|key| self.apps.contains_key(key));
            let leads_to: Vec<AppKey> = leads_to.collect();
            to_visit.extend(leads_to.iter().cloned());
            graph.insert(key, leads_to);
        }
        for cycle in cycle::among(&graph) {
            let cycle = Arc::new(cycle);
            for member in &cycle.members {
                self.touched.insert(member.clone());
                self.cycles.insert(member.clone(), Arc::clone(&cycle));
            }
        }
    }

    /// Reports what another app claims, too: which of them is wrong is not for a program to say.
    fn check_claims(&self, app: &AppDocument, out: &mut Vec<Diagnostic>) {
        for (claim, place) in claims_of(&self.hosts, app) {
            let Some(claimants) = self.claims.get(&claim) else { continue };
            // The first names the second, all others name the first.
            let Some(other) = claimants.iter().find(|other| **other != app.metadata.key) else { continue };
            let what = match &claim {
                Claim::Uid(uid) => format!("the uid `{uid}`"),
                Claim::Host(host) => format!("the host name `{host}`"),
            };
            let mistake = app.mistake(place, format!("{what} is claimed by app `{other}` too"));
            out.push(match self.first(other) {
                Some(other) => mistake.hint(format!("see {}", place_of(other))),
                None => mistake,
            });
        }
    }

    fn move_mistakes(&self, app: &AppDocument) -> impl Iterator<Item = Diagnostic> {
        let moves = self.moves.get(&app.metadata.key).into_iter().flatten();
        moves.filter(|Move { from, .. }| self.is_declared(from)).map(|Move { from, to }| {
            let message =
                format!("setpoint.toml says that app `{from}` moved to `{to}`, but `{from}` is still declared");
            app.mistake(None, message)
        })
    }
}

/// The apps that an app names where it says what has to be there.
fn referred(app: &AppDocument) -> impl Iterator<Item = &AppKey> {
    let source = match &app.spec.from {
        Some(Beginning::App(app)) => Some(app),
        Some(Beginning::Snapshot(_)) | None => None,
    };
    app.places.depends_on.iter().map(|(dependency, _)| dependency).chain(source)
}

/// What an app claims, and where it does. Its own host name is among that only where the pattern can give two apps the same:
/// without the team in it, names and teams, which hold no dots, end up apart by dots.
fn claims_of<'a>(hosts: &HostPattern, app: &'a AppDocument) -> impl Iterator<Item = (Claim, Option<&'a Place>)> {
    let uid = app.metadata.uid.iter().map(|uid| (Claim::Uid(uid.clone()), app.places.uid.as_deref()));
    let own = hosts.names_team().then(|| (Claim::Host(hosts.host(&app.metadata.key, "{domain}")), None));
    let declared = app.places.hosts.iter().map(|(host, place)| (Claim::Host(host.to_string()), Some(place)));
    uid.chain(own).chain(declared)
}

fn place_order(app: &AppDocument) -> (&RepoPath, Location) {
    (&app.path, app.places.name.at)
}

fn place_of(app: &AppDocument) -> String {
    format!("{}:{}:{}", app.path, app.places.name.at.line, app.places.name.at.column)
}

fn take_out<K: Eq + Hash>(index: &mut HashMap<K, BTreeSet<AppKey>>, of: &K, app: &AppKey) {
    if let Some(apps) = index.get_mut(of) {
        apps.remove(app);
        if apps.is_empty() {
            index.remove(of);
        }
    }
}

fn count_down<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests;
