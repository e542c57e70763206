//! The world as decisions look things up in it.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use setpoint_schema::app::{DesiredApp, PinnedSpec, Power, Retain};
use setpoint_schema::id::{DiskId, Generation, SandboxId};
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{
    AppRecord, DiskRecord, DiskState, Intent, Machine, Observed, ObservedSandbox, PowerOverride, Suspension,
};
use setpoint_schema::quantity::Span;
use setpoint_schema::shared::Finger;

use super::capacity::Amount;
use super::index::Index;
use super::shelf::Shelf;
use super::{Entropy, Inputs};
use crate::desired::{Completeness, Desired};

/// Everything that decisions look things up in.
pub(super) struct World<'a> {
    pub desired: &'a Desired,
    pub observed: &'a Observed,
    pub now: Timestamp,
    pub entropy: Entropy,
    /// The snapshots.
    pub shelf: Shelf<'a>,
    index: &'a Index,
}

impl<'a> World<'a> {
    pub fn new(inputs: Inputs<'a>, index: &'a Index) -> Self {
        let Inputs { desired, observed, parent: _, now, entropy } = inputs;
        Self { desired, observed, now, entropy, shelf: Shelf::new(desired, observed), index }
    }

    /// Looks things up for one app after the other.
    pub fn reader(&self) -> Reader<'a> {
        Reader {
            apps: self.desired.apps.finger(),
            sandboxes: self.index.sandboxes.finger(),
            memories: self.observed.apps.finger(),
        }
    }

    /// The sandboxes of an app; more than one only after a pass that did not finish.
    pub fn sandboxes(&self, app: &AppKey) -> &'a [Arc<ObservedSandbox>] {
        self.index.sandboxes.get(app).map_or(&[], Vec::as_slice)
    }

    /// The microVMs of an app that the inventory does not know.
    pub fn strays(&self, app: &AppKey) -> &'a [Machine] {
        self.index.strays.get(app).map_or(&[], Vec::as_slice)
    }

    /// Whether there is anything of an app.
    pub fn exists(&self, app: &AppKey) -> bool {
        self.index.exists(app)
    }

    /// Whether there is something to decide about an app: it is declared, or its declaration is broken, or it exists.
    pub fn is_known(&self, app: &AppKey) -> bool {
        self.desired.apps.contains_key(app) || self.desired.stalled.contains_key(app) || self.exists(app)
    }

    /// Every app that has a sandbox.
    pub fn existing(&self) -> impl Iterator<Item = &'a AppKey> {
        self.index.sandboxes.keys()
    }

    /// The disks of an app that no sandbox uses.
    pub fn spare_disks(&self) -> impl Iterator<Item = (&'a AppKey, &'a [Arc<DiskRecord>])> {
        self.index.spare_disks.iter().map(|(key, disks)| (key, disks.as_slice()))
    }

    /// What runs, and what exists.
    pub fn in_use(&self) -> Amount {
        self.index.in_use.amount()
    }

    /// The disk that a new sandbox of the app takes up again: one that was in use, else the one retained longest.
    pub fn returning_disk(&self, app: &AppKey) -> Option<&'a DiskRecord> {
        let disks = self.index.spare_disks.get(app)?;
        disks.iter().map(|disk| &**disk).max_by_key(|disk| match disk.state {
            DiskState::InUse => (1, Timestamp::MAX),
            DiskState::Retained { until } => (0, until),
        })
    }

    /// Whether a sandbox other than these uses the disk.
    pub fn is_used_by_others(&self, disk: &DiskId, these: &[&SandboxId]) -> bool {
        self.index.users.get(disk).is_some_and(|users| users.iter().any(|user| !these.contains(&user)))
    }

    /// A disk of the inventory.
    pub fn disk(&self, id: &DiskId) -> Option<&'a DiskRecord> {
        self.observed.disks.get(id).map(|disk| &**disk)
    }

    /// What is remembered of an app.
    pub fn memory(&self, app: &AppKey) -> Option<&'a AppRecord> {
        self.observed.apps.get(app).map(|record| &**record)
    }

    /// The power state that holds for a declared app here, and what it holds by in place of the declaration.
    pub fn power(&self, app: &DesiredApp) -> (Power, Option<&'a PowerOverride>) {
        self.reader().about(&app.metadata.key).power(self, app)
    }

    /// The newest spec that is known of an app: declared, remembered, or applied.
    pub fn last_spec(&self, app: &AppKey) -> Option<&'a PinnedSpec> {
        self.reader().about(app).last_spec()
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
        is_leaving(self.sandboxes(app))
    }
}

fn is_leaving(sandboxes: &[Arc<ObservedSandbox>]) -> bool {
    sandboxes.iter().any(|sandbox| sandbox.record.intent == Intent::Delete)
}

/// Looks up apps, best in the order of their keys: each is then found beside the one before it.
pub(super) struct Reader<'a> {
    apps: Finger<'a, AppKey, Arc<DesiredApp>>,
    sandboxes: Finger<'a, AppKey, Vec<Arc<ObservedSandbox>>>,
    memories: Finger<'a, AppKey, Arc<AppRecord>>,
}

impl<'a> Reader<'a> {
    /// All of an app.
    pub fn about<'k>(&mut self, key: &'k AppKey) -> About<'a, 'k> {
        About { key, app: self.app(key), sandboxes: self.sandboxes(key), memory: self.memory(key) }
    }

    /// An app as it is declared.
    pub fn app(&mut self, key: &AppKey) -> Option<&'a DesiredApp> {
        self.apps.find(key).map(|app| &**app)
    }

    /// The sandboxes of an app.
    pub fn sandboxes(&mut self, key: &AppKey) -> &'a [Arc<ObservedSandbox>] {
        self.sandboxes.find(key).map_or(&[], Vec::as_slice)
    }

    /// What is remembered of an app.
    pub fn memory(&mut self, key: &AppKey) -> Option<&'a AppRecord> {
        self.memories.find(key).map(|record| &**record)
    }
}

/// What there is of one app.
pub(super) struct About<'a, 'k> {
    pub key: &'k AppKey,
    /// As it is declared.
    pub app: Option<&'a DesiredApp>,
    /// Its sandboxes; more than one only after a pass that did not finish.
    pub sandboxes: &'a [Arc<ObservedSandbox>],
    /// What is remembered of it.
    pub memory: Option<&'a AppRecord>,
}

impl<'a> About<'a, '_> {
    /// Whether somebody on this host has frozen the app, also under the name that its sandbox had before a rename.
    pub fn suspension(&self, world: &World<'a>) -> Option<&'a Suspension> {
        let of = |memory: Option<&'a AppRecord>| memory?.suspended.as_ref();
        let former = self.sandboxes.iter().map(|sandbox| &sandbox.record.app).filter(|app| *app != self.key);
        of(self.memory).or_else(|| former.map(|app| world.memory(app)).find_map(of))
    }

    /// The power state that holds for the app, declared as `app`, and what it holds by in place of the declaration; also under the
    /// name that its sandbox had before a rename.
    pub fn power(&self, world: &World<'a>, app: &DesiredApp) -> (Power, Option<&'a PowerOverride>) {
        let declared = app.spec.app.power.state;
        let of = |memory: Option<&'a AppRecord>| memory?.power_over(declared);
        let former = self.sandboxes.iter().map(|sandbox| &sandbox.record.app).filter(|app| *app != self.key);
        // What held under its former name is remembered under the new one, once anything is.
        let held = match self.memory {
            Some(_) => of(self.memory),
            None => former.map(|app| world.memory(app)).find_map(of),
        };
        let held = held.filter(|held| held.state != declared);
        (held.map_or(declared, |held| held.state), held)
    }

    /// Whether removing the app has begun.
    pub fn is_leaving(&self) -> bool {
        is_leaving(self.sandboxes)
    }

    /// The newest spec that is known of the app: declared, remembered, or applied.
    pub fn last_spec(&self) -> Option<&'a PinnedSpec> {
        let declared = self.app.map(|app| &app.spec);
        let remembered = || self.memory.map(|memory| &memory.last_good.spec);
        let applied = || self.sandboxes.iter().find_map(|sandbox| sandbox.record.applied.as_ref());
        declared.or_else(remembered).or_else(|| applied().map(|applied| &applied.spec))
    }
}

/// `span` after `at`, or the end of time.
pub(super) fn later(at: Timestamp, span: Span) -> Timestamp {
    let millis = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
    at.checked_add(SignedDuration::from_millis(millis)).unwrap_or(Timestamp::MAX)
}
