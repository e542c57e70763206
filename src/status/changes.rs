//! What a pass may show otherwise than the pass before: found by comparing what both share, not by looking at every app.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use setpoint_plan::model::{Action, Block, Hold, Plan};
use setpoint_schema::app::{DesiredApp, Power};
use setpoint_schema::id::SandboxId;
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{AppRecord, ObservedSandbox, PowerOverride, SnapshotRecord};
use setpoint_schema::shared::{Difference, SharedMap};
use setpoint_schema::wire;

use super::facts::{AppFacts, Before, Busy};
use crate::api::Place;
use crate::converge::Pass;
use crate::ingress::same_hosts;

/// What may be shown otherwise than before.
pub struct Changes {
    /// These apps, some of which may have come or gone.
    pub apps: BTreeSet<AppKey>,
    /// These sandboxes, likewise.
    pub sandboxes: BTreeSet<SandboxId>,
    /// These snapshots, likewise.
    pub snapshots: BTreeSet<Place>,
    /// Which host names there are.
    pub names: Names,
    /// What all apps share: templates, and how much of the host is taken.
    pub(super) sums: Sums,
}

/// Whether there are other host names than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// There are not.
    Same,
    /// There may be.
    Changed,
}

/// Whether what is summed up over all apps has to be summed up anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sums {
    Same,
    Changed,
}

/// Remembers the newest pass, and which sandboxes each app has in it.
#[derive(Default)]
pub struct Tracker {
    newest: Option<Arc<Pass>>,
    sandboxes: BTreeMap<AppKey, Vec<SandboxId>>,
}

impl Tracker {
    /// Makes this the newest pass; returns what it may show otherwise than the one before.
    pub fn advance(&mut self, pass: &Arc<Pass>) -> Changes {
        let before = self.newest.replace(Arc::clone(pass));
        let no_sandboxes = SharedMap::new();
        let known = before.as_ref().map_or(&no_sandboxes, |before| &before.observed.sandboxes);
        let mut changes = Changes {
            apps: BTreeSet::new(),
            sandboxes: BTreeSet::new(),
            snapshots: BTreeSet::new(),
            names: Names::Same,
            sums: Sums::Same,
        };
        let mut settled = BTreeMap::new();
        for (id, difference) in known.differences(&pass.observed.sandboxes) {
            changes.sandboxes.insert(id.clone());
            let (old, new) = sides(&difference);
            for app in [old, new].into_iter().flatten().map(|sandbox| &sandbox.record.app) {
                settled.entry(app.clone()).or_insert_with(|| self.sandboxes.contains_key(app));
            }
            self.reindex(id, old.map(|old| &old.record.app), new.map(|new| &new.record.app));
        }
        changes.apps.extend(settled.keys().cloned());
        let same_naming = |before: &Pass| before.followed.project.hosts == pass.followed.project.hosts;
        if let Some(before) = &before {
            // Also where everything is another anyway: what is gone is seen by comparing alone.
            changes.compare(before, pass, self, &settled);
        }
        if !before.as_deref().is_some_and(same_naming) {
            changes.everything(pass, self);
        }
        Self::note_snapshots(before.as_deref(), pass, &mut changes);
        changes
    }

    /// Which snapshots may be shown otherwise: of each that waits, the plan says for what.
    fn note_snapshots(before: Option<&Pass>, pass: &Pass, changes: &mut Changes) {
        let none = SharedMap::new();
        let known = before.map_or(&none, |before| &before.observed.snapshots);
        for (_, difference) in known.differences(&pass.observed.snapshots) {
            let (old, new) = sides(&difference);
            changes.snapshots.extend([old, new].into_iter().flatten().map(Place::of));
        }
        let held = before.map_or(&[][..], |before| &before.plan.snapshots);
        if *held != pass.plan.snapshots[..] {
            let held: BTreeSet<_> = held.iter().chain(&pass.plan.snapshots).map(|held| &held.snapshot).collect();
            let records = pass.observed.snapshots.values().filter(|record| held.contains(&record.key));
            changes.snapshots.extend(records.map(|record| Place::of(record)));
        }
    }

    /// The newest pass, looked up by app.
    #[must_use]
    pub fn view<'a>(&'a self, pass: &'a Pass) -> View<'a> {
        View {
            pass,
            sandboxes: &self.sandboxes,
            actions: actions(&pass.plan),
            held: pass.plan.held.iter().map(|held| (&held.app, &held.reason)).collect(),
        }
    }

    fn reindex(&mut self, id: &SandboxId, old: Option<&AppKey>, new: Option<&AppKey>) {
        if let Some(old) = old
            && let Some(ids) = self.sandboxes.get_mut(old)
        {
            ids.retain(|known| known != id);
            if ids.is_empty() {
                self.sandboxes.remove(old);
            }
        }
        if let Some(new) = new {
            let ids = self.sandboxes.entry(new.clone()).or_default();
            if let Err(place) = ids.binary_search(id) {
                ids.insert(place, id.clone());
            }
        }
    }
}

impl Changes {
    fn everything(&mut self, pass: &Pass, tracker: &Tracker) {
        self.apps.extend(pass.followed.desired.apps.keys().cloned());
        self.apps.extend(tracker.sandboxes.keys().cloned());
        self.names = Names::Changed;
        self.sums = Sums::Changed;
    }

    /// `settled` says which of the apps whose sandboxes changed had any before.
    fn compare(&mut self, before: &Pass, after: &Pass, tracker: &Tracker, settled: &BTreeMap<AppKey, bool>) {
        let (old, new) = (&before.followed.desired, &after.followed.desired);
        self.apps.extend(old.apps.differences(&new.apps).map(|(key, _)| key.clone()));
        self.apps.extend(differing(&old.stalled, &new.stalled));
        if before.followed.attempted != after.followed.attempted {
            self.apps.extend(new.stalled.keys().cloned());
        }
        self.apps.extend(before.observed.apps.differences(&after.observed.apps).map(|(key, _)| key.clone()));
        for (_, difference) in before.observed.disks.differences(&after.observed.disks) {
            let (old, new) = sides(&difference);
            for disk in [old, new].into_iter().flatten() {
                self.sandboxes.extend(tracker.sandboxes.get(&disk.app).into_iter().flatten().cloned());
            }
            self.sums = Sums::Changed;
        }
        self.apps.extend(before.busy.symmetric_difference(&after.busy).cloned());
        self.compare_plans(&before.plan, &after.plan);
        let same_templates = old.templates == new.templates && old.kept == new.kept && old.apps.is_same(&new.apps);
        let same_limits = before.observed.limits == after.observed.limits;
        if !same_templates || !same_limits || !self.sandboxes.is_empty() {
            self.sums = Sums::Changed;
        }
        let same_names = |key: &AppKey| {
            let has_sandbox = tracker.sandboxes.contains_key(key);
            let had_sandbox = settled.get(key).copied().unwrap_or(has_sandbox);
            match (shown(before, had_sandbox, key), shown(after, has_sandbox, key)) {
                (Some(old), Some(new)) => same_hosts(old, new),
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => false,
            }
        };
        if !self.apps.iter().all(same_names) {
            self.names = Names::Changed;
        }
    }

    fn compare_plans(&mut self, before: &Plan, after: &Plan) {
        let (old, new) = (actions(before), actions(after));
        let same = |action: &Arc<Action>, other: Option<&&Arc<Action>>| {
            other.is_some_and(|other| Arc::ptr_eq(action, other) || looks_the_same(action, other))
        };
        let gone = old.iter().filter(|(key, _)| !new.contains_key(*key));
        let changed = new.iter().filter(|(key, action)| !same(action, old.get(*key)));
        self.apps.extend(gone.chain(changed).map(|(key, _)| (*key).clone()));
        let holds = |plan: &Plan| -> BTreeMap<AppKey, Hold> {
            plan.held.iter().map(|held| (held.app.clone(), held.reason.clone())).collect()
        };
        if before.held != after.held {
            self.apps.extend(differing(&holds(before), &holds(after)));
        }
        // Since when an app waits for another is since when that other one is not ready.
        let waiting = after.actions.iter().filter(|action| {
            action.blocked.iter().any(|block| matches!(block, Block::Dependency { app, .. } if self.apps.contains(app)))
        });
        let waiting: Vec<_> = waiting.map(|action| action.app.clone()).collect();
        self.apps.extend(waiting);
    }
}

/// A pass, looked up by app.
pub struct View<'a> {
    /// The pass.
    pub pass: &'a Pass,
    sandboxes: &'a BTreeMap<AppKey, Vec<SandboxId>>,
    actions: BTreeMap<&'a AppKey, &'a Arc<Action>>,
    held: BTreeMap<&'a AppKey, &'a Hold>,
}

impl<'a> View<'a> {
    /// Declared apps, and those that are not any more but still have a sandbox.
    pub fn apps(&self) -> impl Iterator<Item = &'a AppKey> {
        let declared = &self.pass.followed.desired.apps;
        let kept = self.sandboxes.keys().filter(|key| !declared.contains_key(*key));
        declared.keys().chain(kept)
    }

    /// An app as it is declared, or was last, if it still has a sandbox.
    #[must_use]
    pub fn shown(&self, key: &AppKey) -> Option<&'a DesiredApp> {
        shown(self.pass, self.sandboxes.contains_key(key), key)
    }

    /// The sandbox of an app; the last, where a pass that was cut short has left several.
    #[must_use]
    pub fn sandbox(&self, key: &AppKey) -> Option<&'a ObservedSandbox> {
        let id = self.sandboxes.get(key)?.last()?;
        self.pass.observed.sandboxes.get(id).map(|sandbox| &**sandbox)
    }

    /// The power state that holds for an app here, and what it holds by in place of the declared one.
    #[must_use]
    pub fn power(&self, key: &AppKey, app: &DesiredApp) -> (Power, Option<&'a PowerOverride>) {
        let declared = app.spec.app.power.state;
        let held = self.record(key).and_then(|record| record.power_over(declared));
        (held.map_or(declared, |held| held.state), held)
    }

    /// What is remembered of an app.
    #[must_use]
    pub fn record(&self, key: &AppKey) -> Option<&'a AppRecord> {
        self.pass.observed.apps.get(key).map(|record| &**record)
    }

    /// Whether an app is being worked on.
    #[must_use]
    pub fn is_busy(&self, key: &AppKey) -> bool {
        self.pass.busy.contains(key)
    }

    /// A snapshot as people see it.
    pub(super) fn snapshot(&self, place: &Place) -> Option<wire::Snapshot> {
        let record = self.pass.observed.snapshots.get(place.id()).filter(|record| Place::of(record) == *place)?;
        Some(wire::Snapshot::of(record, self.waits_for(record)))
    }

    /// Why a snapshot is not taken yet, or not let go, as far as the plan knows.
    fn waits_for(&self, record: &SnapshotRecord) -> Option<String> {
        let held =
            self.pass.plan.snapshots.iter().find(|held| held.snapshot == record.key && held.app == record.app)?;
        Some(held.reason.to_string())
    }

    pub(super) fn busy(&self, key: &AppKey) -> Busy {
        if self.pass.busy.contains(key) { Busy::Yes } else { Busy::No }
    }

    pub(super) fn facts(&self, key: &AppKey) -> Option<AppFacts<'a>> {
        let followed = &self.pass.followed;
        Some(AppFacts {
            declared: self.shown(key)?,
            stalled: followed.desired.stalled.get(key).map(String::as_str),
            record: self.record(key),
            sandbox: self.sandbox(key),
            action: self.actions.get(key).map(|action| &***action),
            held: self.held.get(key).copied(),
            busy: self.busy(key),
            before: Before::Unready,
            attempted: followed.attempted.as_ref(),
        })
    }
}

fn shown<'a>(pass: &'a Pass, has_sandbox: bool, key: &AppKey) -> Option<&'a DesiredApp> {
    let remembered = || pass.observed.apps.get(key).filter(|_| has_sandbox).map(|record| &*record.last_good.app);
    pass.followed.desired.apps.get(key).map(|app| &**app).or_else(remembered)
}

/// Whether two actions of one app are shown alike. The ids and times in them are made anew with every plan, so a thousand apps that
/// wait their turn would otherwise be described anew with every pass.
fn looks_the_same(action: &Action, other: &Action) -> bool {
    let Action { app: _, sandbox: _, kind, reasons: _, changes: _, steps: _, blocked } = action;
    *kind == other.kind && *blocked == other.blocked
}

fn actions(plan: &Plan) -> BTreeMap<&AppKey, &Arc<Action>> {
    plan.actions.iter().map(|action| (&action.app, action)).collect()
}

fn sides<'a, V>(difference: &Difference<'a, Arc<V>>) -> (Option<&'a V>, Option<&'a V>) {
    match difference {
        Difference::Added(new) => (None, Some(new)),
        Difference::Removed(old) => (Some(old), None),
        Difference::Changed { before, after } => (Some(before), Some(after)),
    }
}

/// The keys that only one of two maps has, or each with another value.
fn differing<'a, K: Ord + Clone, V: PartialEq>(a: &'a BTreeMap<K, V>, b: &'a BTreeMap<K, V>) -> Vec<K> {
    let gone = a.keys().filter(|key| !b.contains_key(*key));
    let changed = b.iter().filter(|(key, value)| a.get(*key) != Some(*value)).map(|(key, _)| key);
    gone.chain(changed).cloned().collect()
}
