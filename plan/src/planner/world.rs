//! The observed world, looked up by app. Renames are resolved here: a sandbox belongs to the app that it is declared as now.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use setpoint_schema::app::{DesiredApp, PinnedSpec, Retain};
use setpoint_schema::id::{DiskId, Generation, SandboxId};
use setpoint_schema::name::{AppKey, Uid};
use setpoint_schema::observed::{
    AppRecord, DiskRecord, DiskState, Intent, Machine, Observed, ObservedSandbox, Suspension,
};
use setpoint_schema::quantity::Span;

use super::{Entropy, Inputs};
use crate::desired::{Completeness, Desired};

/// The longest chain of renames that is followed; a longer one is a mistake or a circle.
const MAX_MOVES: usize = 32;

/// Everything that decisions look things up in.
pub(super) struct World<'a> {
    pub desired: &'a Desired,
    pub observed: &'a Observed,
    pub now: Timestamp,
    pub entropy: Entropy,
    sandboxes: BTreeMap<&'a AppKey, Vec<&'a ObservedSandbox>>,
    strays: BTreeMap<&'a AppKey, Vec<&'a Machine>>,
    users: BTreeMap<&'a DiskId, Vec<&'a SandboxId>>,
    spare_disks: BTreeMap<&'a AppKey, Vec<&'a DiskRecord>>,
}

impl<'a> World<'a> {
    pub fn new(inputs: Inputs<'a>) -> Self {
        let Inputs { desired, observed, parent: _, now, entropy } = inputs;
        let mut renames = Renames::new(desired, observed);
        let mut sandboxes: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let mut users: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for sandbox in observed.sandboxes.values() {
            let record = &sandbox.record;
            sandboxes.entry(renames.owner(&record.app, record.uid.as_ref())).or_default().push(&**sandbox);
            users.entry(&record.disk).or_default().push(&record.id);
        }
        let mut strays: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for machine in &observed.unrecorded {
            strays.entry(renames.owner(&machine.app, machine.uid.as_ref())).or_default().push(machine);
            users.entry(&machine.disk).or_default().push(&machine.sandbox);
        }
        let mut spare_disks: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for disk in observed.disks.values().map(|disk| &**disk).filter(|disk| !users.contains_key(&disk.id)) {
            spare_disks.entry(renames.owner(&disk.app, None)).or_default().push(disk);
        }
        Self { desired, observed, now, entropy, sandboxes, strays, users, spare_disks }
    }

    /// The sandboxes of an app; more than one only after a pass that did not finish.
    pub fn sandboxes(&self, app: &AppKey) -> &[&'a ObservedSandbox] {
        self.sandboxes.get(app).map_or(&[], Vec::as_slice)
    }

    /// The microVMs of an app that the inventory does not know.
    pub fn strays(&self, app: &AppKey) -> &[&'a Machine] {
        self.strays.get(app).map_or(&[], Vec::as_slice)
    }

    /// Apps that are not declared and are not nothing: they exist, or their declaration is broken.
    pub fn undeclared(&self) -> impl Iterator<Item = &'a AppKey> {
        let existing = self.sandboxes.keys().chain(self.strays.keys()).copied();
        let all: BTreeSet<_> = existing.chain(self.desired.stalled.keys()).collect();
        all.into_iter().filter(|key| !self.desired.apps.contains_key(*key))
    }

    /// Every app that exists.
    pub fn existing(&self) -> impl Iterator<Item = &'a AppKey> {
        self.sandboxes.keys().copied()
    }

    /// The disks of an app that no sandbox uses.
    pub fn spare_disks(&self) -> impl Iterator<Item = (&'a AppKey, &[&'a DiskRecord])> {
        self.spare_disks.iter().map(|(key, disks)| (*key, disks.as_slice()))
    }

    /// The disk that a new sandbox of the app takes up again: one that was in use, else the one retained longest.
    pub fn returning_disk(&self, app: &AppKey) -> Option<&'a DiskRecord> {
        let disks = self.spare_disks.get(app)?;
        disks.iter().copied().max_by_key(|disk| match disk.state {
            DiskState::InUse => (1, Timestamp::MAX),
            DiskState::Retained { until } => (0, until),
        })
    }

    /// Whether a sandbox other than these uses the disk.
    pub fn is_used_by_others(&self, disk: &DiskId, these: &[&SandboxId]) -> bool {
        self.users.get(disk).is_some_and(|users| users.iter().any(|user| !these.contains(user)))
    }

    /// A disk of the inventory.
    pub fn disk(&self, id: &DiskId) -> Option<&'a DiskRecord> {
        self.observed.disks.get(id).map(|disk| &**disk)
    }

    /// What is remembered of an app.
    pub fn memory(&self, app: &AppKey) -> Option<&'a AppRecord> {
        self.observed.apps.get(app).map(|record| &**record)
    }

    /// Whether somebody on this host has frozen the app, also under the name that its sandbox had before a rename.
    pub fn suspension(&self, app: &AppKey) -> Option<&'a Suspension> {
        let of = |key: &AppKey| self.memory(key)?.suspended.as_ref();
        of(app).or_else(|| self.sandboxes(app).iter().find_map(|sandbox| of(&sandbox.record.app)))
    }

    /// The newest spec that is known of an app: declared, remembered, or applied.
    pub fn last_spec(&self, app: &AppKey) -> Option<&'a PinnedSpec> {
        let declared = self.desired.apps.get(app).map(|app| &app.spec);
        let remembered = || self.memory(app).map(|memory| &memory.last_good.spec);
        let applied = || {
            let mut sandboxes = self.sandboxes(app).iter();
            sandboxes.find_map(|sandbox| sandbox.record.applied.as_ref()).map(|applied| &applied.spec)
        };
        declared.or_else(remembered).or_else(applied)
    }

    /// Which generation of `app` its declared spec is; `previous` is its key before a rename.
    pub fn generation(&self, app: &DesiredApp, previous: Option<&AppKey>) -> Generation {
        let memory = self.memory(&app.metadata.key).or_else(|| previous.and_then(|key| self.memory(key)));
        match memory {
            None => Generation(1),
            Some(memory) if memory.digest == *app.spec.digest() => memory.generation,
            Some(memory) => memory.generation.next(),
        }
    }

    /// What becomes of a disk of `app` that nothing uses any more: kept for its retention, which nothing known makes the default.
    pub fn keep(&self, app: &AppKey) -> Option<DiskState> {
        let default = || setpoint_schema::app::AppSpec::default().retain;
        match self.last_spec(app).map_or_else(default, |spec| spec.app.retain) {
            Retain::None => None,
            Retain::For(span) => Some(DiskState::Retained { until: later(self.now, span) }),
        }
    }

    /// Why nothing that is missing from the declarations may be removed.
    pub fn incompleteness(&self) -> Option<String> {
        match &self.desired.completeness {
            Completeness::Complete => None,
            Completeness::Partial(reason) => Some(reason.clone()),
            Completeness::EmptyRefused => Some("the declarations are empty, and `allow_empty` is not set".to_owned()),
        }
    }

    /// Whether removing the app has begun.
    pub fn is_leaving(&self, app: &AppKey) -> bool {
        self.sandboxes(app).iter().any(|sandbox| sandbox.record.intent == Intent::Delete)
    }
}

/// `span` after `at`, or the end of time.
pub(super) fn later(at: Timestamp, span: Span) -> Timestamp {
    let millis = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
    at.checked_add(SignedDuration::from_millis(millis)).unwrap_or(Timestamp::MAX)
}

/// Finds the app that a sandbox is declared as now: by its lasting identity first, then by declared moves.
struct Renames<'a> {
    desired: &'a Desired,
    by_uid: BTreeMap<&'a Uid, &'a AppKey>,
    /// Keys that hold a sandbox which stays: nothing moves onto those.
    settled: BTreeSet<&'a AppKey>,
    /// Moves that were granted, new key to old: two apps never become one.
    granted: BTreeMap<&'a AppKey, &'a AppKey>,
}

impl<'a> Renames<'a> {
    fn new(desired: &'a Desired, observed: &'a Observed) -> Self {
        let mut by_uid = BTreeMap::new();
        for (key, app) in &desired.apps {
            if let Some(uid) = &app.metadata.uid {
                by_uid.entry(uid).or_insert(key);
            }
        }
        let mut renames = Self { desired, by_uid, settled: BTreeSet::new(), granted: BTreeMap::new() };
        let records = observed.sandboxes.values().map(|sandbox| (&sandbox.record.app, sandbox.record.uid.as_ref()));
        let strays = observed.unrecorded.iter().map(|machine| (&machine.app, machine.uid.as_ref()));
        let all = records.chain(strays);
        renames.settled = all.filter(|(app, uid)| renames.target(app, *uid) == *app).map(|(app, _)| app).collect();
        renames
    }

    fn owner(&mut self, app: &'a AppKey, uid: Option<&'a Uid>) -> &'a AppKey {
        let target = self.target(app, uid);
        if target == app || self.settled.contains(target) {
            return app;
        }
        if *self.granted.entry(target).or_insert(app) == app { target } else { app }
    }

    fn target(&self, app: &'a AppKey, uid: Option<&'a Uid>) -> &'a AppKey {
        if let Some(key) = uid.and_then(|uid| self.by_uid.get(uid)) {
            return key;
        }
        let mut key = app;
        for _ in 0..MAX_MOVES {
            if self.is_known(key) {
                return key;
            }
            match self.desired.moved.get(key) {
                Some(next) => key = next,
                None => break,
            }
        }
        if self.is_known(key) { key } else { app }
    }

    fn is_known(&self, key: &AppKey) -> bool {
        self.desired.apps.contains_key(key) || self.desired.stalled.contains_key(key)
    }
}
