//! Puts together what the planner plans with: the inventory, and what drivers and agents answered about each row of it.
//!
//! The loop keeps one [`World`] and brings it up to date by what has changed; a preview looks once, with [`assemble`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use setpoint_schema::id::{SandboxId, SnapshotId};
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{
    DiskRecord, DiskState, GuestState, Limits, Machine, Observed, ObservedSandbox, SandboxRecord, VmState,
};
use setpoint_schema::quantity::ByteSize;
use setpoint_schema::shared::SharedMap;
use setpoint_vmm::driver::{Driver, VmmError};

use crate::host;
use crate::ledger::{Changes, Inventory, Ledger};
use crate::observe::{Observer, View};

/// A driver that has not answered about a sandbox after this long is not waited for any more.
const FIRST_ANSWER: Duration = Duration::from_secs(5);

/// The observed world, kept up to date in place: what did not change is not looked at again.
pub struct World {
    observer: Observer,
    ledger: Ledger,
    observed: Observed,
    /// Sandboxes about which the driver has not answered. They stand here as recorded and as if they had just begun to boot, so
    /// that they keep their memory, their disks and their names; nothing is done about them.
    unasked: BTreeSet<SandboxId>,
    /// Sandboxes whose agent does not answer, and whose they are: all that time alone can change a plan for.
    quiet: BTreeMap<SandboxId, AppKey>,
    /// Data disks that are kept until a time.
    retained: BTreeMap<setpoint_schema::id::DiskId, Timestamp>,
    /// How many sandboxes and disks in use each app has.
    uses: BTreeMap<AppKey, usize>,
    /// Rows that an action on its way is about to write: until they are there, nothing else counts what the action takes.
    expected: BTreeMap<SandboxId, Arc<SandboxRecord>>,
    unrecorded: Vec<Machine>,
    /// Snapshots that the driver holds and no row knows, as far as that was said.
    strange_snapshots: BTreeSet<SnapshotId>,
    has_looked: bool,
}

impl World {
    /// Knows nothing yet.
    #[must_use]
    pub fn new(observer: Observer, ledger: Ledger, limits: Limits) -> Self {
        Self {
            observer,
            ledger,
            observed: nothing(limits),
            unasked: BTreeSet::new(),
            quiet: BTreeMap::new(),
            retained: BTreeMap::new(),
            uses: BTreeMap::new(),
            expected: BTreeMap::new(),
            unrecorded: Vec::new(),
            strange_snapshots: BTreeSet::new(),
            has_looked: false,
        }
    }

    /// Takes in every row and every answer that has changed. Drivers have time for their first answers, once.
    pub async fn look(&mut self) {
        let Changes { mut sandboxes, disks, apps, snapshots } = self.ledger.take_changes();
        sandboxes.extend(self.observer.take_changed());
        sandboxes.extend(self.unasked.iter().cloned());
        if !self.has_looked {
            let recorded = self.ledger.sandboxes();
            let answers = recorded.keys().map(|id| self.observer.view_after(id, FIRST_ANSWER));
            futures_util::future::join_all(answers).await;
            self.has_looked = true;
        }
        sandboxes.iter().for_each(|id| self.look_at(id));
        for id in disks {
            self.put_disk(&id, self.ledger.disk(&id));
        }
        for key in apps {
            match self.ledger.app(&key) {
                Some(record) => drop(self.observed.apps.insert(key, record)),
                None => drop(self.observed.apps.remove(&key)),
            }
        }
        for id in snapshots {
            match self.ledger.snapshot(&id) {
                Some(record) => drop(self.observed.snapshots.insert(id, record)),
                None => drop(self.observed.snapshots.remove(&id)),
            }
        }
        if !self.unrecorded.is_empty() || !self.observed.unrecorded.is_empty() {
            let recorded = &self.observed.sandboxes;
            let unrecorded = self.unrecorded.iter().filter(|machine| !recorded.contains_key(&machine.sandbox));
            self.observed.unrecorded = unrecorded.cloned().collect();
        }
    }

    /// All of it.
    #[must_use]
    pub fn observed(&self) -> &Observed {
        &self.observed
    }

    /// Whether the driver has answered about this sandbox, so that something may be done about it.
    #[must_use]
    pub fn is_asked(&self, sandbox: &SandboxId) -> bool {
        !self.unasked.contains(sandbox)
    }

    /// The sandboxes whose agent does not answer.
    pub fn quiet(&self) -> impl Iterator<Item = &ObservedSandbox> {
        self.quiet.keys().filter_map(|id| self.observed.sandboxes.get(id)).map(|sandbox| &**sandbox)
    }

    /// The apps whose agent does not answer.
    #[must_use]
    pub fn quiet_apps(&self) -> BTreeSet<&AppKey> {
        self.quiet.values().collect()
    }

    /// Until when each data disk that is kept is kept.
    pub fn retained(&self) -> impl Iterator<Item = Timestamp> {
        self.retained.values().copied()
    }

    /// Whether an app has a sandbox, or a data disk in use.
    #[must_use]
    pub fn is_in_use(&self, app: &AppKey) -> bool {
        self.uses.contains_key(app)
    }

    /// Counts a sandbox that an action on its way is about to record.
    pub fn expect(&mut self, record: &SandboxRecord) {
        if !self.observed.sandboxes.contains_key(&record.id) {
            self.expected.insert(record.id.clone(), Arc::new(record.clone()));
            self.look_at(&record.id);
        }
    }

    /// The action that was to record this sandbox has ended, whether or not it has.
    pub fn expect_no_more(&mut self, sandbox: &SandboxId) {
        if self.expected.remove(sandbox).is_some() {
            self.look_at(sandbox);
        }
    }

    /// Other limits hold from now on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.observed.limits = limits;
    }

    /// MicroVMs that the driver was found to hold and the inventory did not.
    pub fn set_unrecorded(&mut self, machines: Vec<Machine>) {
        self.unrecorded = machines;
    }

    /// Snapshots that the driver was found to hold: of those that no row knows it is said once. Nobody removes them, since an error
    /// may be why the row is gone.
    pub fn note_snapshots(&mut self, found: Vec<(SnapshotId, ByteSize)>) {
        let strange = found.into_iter().filter(|(id, _)| self.ledger.snapshot(id).is_none());
        let strange: BTreeMap<_, _> = strange.collect();
        for (snapshot, size) in strange.iter().filter(|(id, _)| !self.strange_snapshots.contains(*id)) {
            tracing::warn!(%snapshot, %size, "the inventory does not know this snapshot; it stays");
        }
        self.strange_snapshots = strange.into_keys().collect();
    }

    fn look_at(&mut self, id: &SandboxId) {
        let record = self.ledger.sandbox(id);
        if let Some(record) = &record {
            self.expected.remove(id);
            let applied = record.applied.as_ref().map(|applied| applied.spec.app.timeouts.unresponsive);
            applied.into_iter().for_each(|limit| self.observer.set_unresponsive(id, limit));
        }
        let sandbox = match (record, self.expected.get(id)) {
            (Some(record), _) => {
                let (sandbox, answer) = observed(record, self.observer.view(id), self.observer.now());
                match answer {
                    Answer::Given => self.unasked.remove(id),
                    Answer::Awaited => self.unasked.insert(id.clone()),
                };
                Some(sandbox)
            }
            (None, Some(expected)) => {
                let (vm, guest) = (VmState::Absent, GuestState::Absent);
                Some(ObservedSandbox { record: Arc::clone(expected), vm, guest })
            }
            (None, None) => {
                self.unasked.remove(id);
                None
            }
        };
        self.put_sandbox(id, sandbox);
    }

    fn put_sandbox(&mut self, id: &SandboxId, sandbox: Option<ObservedSandbox>) {
        // What is as it was stays the same value, of which others have copies.
        if sandbox.is_some() && self.observed.sandboxes.get(id).map(|known| &**known) == sandbox.as_ref() {
            return;
        }
        match &sandbox {
            Some(ObservedSandbox { guest: GuestState::Answering(_), .. }) | None => drop(self.quiet.remove(id)),
            Some(quiet) => drop(self.quiet.insert(id.clone(), quiet.record.app.clone())),
        }
        if let Some(sandbox) = &sandbox {
            self.count(&sandbox.record.app.clone(), 1);
        }
        let before = match sandbox {
            Some(sandbox) => self.observed.sandboxes.insert(id.clone(), Arc::new(sandbox)),
            None => self.observed.sandboxes.remove(id),
        };
        if let Some(before) = before {
            self.count(&before.record.app, -1);
        }
    }

    fn put_disk(&mut self, id: &setpoint_schema::id::DiskId, disk: Option<Arc<DiskRecord>>) {
        match disk.as_ref().map(|disk| &disk.state) {
            Some(DiskState::Retained { until }) => drop(self.retained.insert(id.clone(), *until)),
            Some(DiskState::InUse) | None => drop(self.retained.remove(id)),
        }
        let is_used = |disk: &Arc<DiskRecord>| disk.state == DiskState::InUse;
        if let Some(disk) = disk.as_ref().filter(|disk| is_used(disk)) {
            self.count(&disk.app.clone(), 1);
        }
        let before = match disk {
            Some(disk) => self.observed.disks.insert(id.clone(), disk),
            None => self.observed.disks.remove(id),
        };
        if let Some(before) = before.filter(is_used) {
            self.count(&before.app, -1);
        }
    }

    fn count(&mut self, app: &AppKey, difference: isize) {
        let uses = self.uses.entry(app.clone()).or_default();
        *uses = uses.saturating_add_signed(difference);
        if *uses == 0 {
            self.uses.remove(app);
        }
    }
}

/// Whether the driver has answered about a sandbox.
enum Answer {
    Given,
    Awaited,
}

/// A row and what was answered about it; for want of an answer it stands as it is recorded.
fn observed(record: Arc<SandboxRecord>, view: View, now: Timestamp) -> (ObservedSandbox, Answer) {
    let View { vm, guest, agent: _ } = view;
    match vm {
        Some(vm) => (ObservedSandbox { record, vm, guest }, Answer::Given),
        None => {
            let vm = VmState::Running { nonce: record.machine.nonce.clone(), since: now };
            (ObservedSandbox { record, vm, guest: GuestState::Connecting { since: now } }, Answer::Awaited)
        }
    }
}

/// The observed world, looked at once.
pub async fn assemble(observer: &Observer, inventory: Inventory, unrecorded: &[Machine], limits: Limits) -> Observed {
    let Inventory { sandboxes, disks, apps, snapshots } = inventory;
    let recorded: BTreeSet<_> = sandboxes.iter().map(|record| record.id.clone()).collect();
    let views = sandboxes.iter().map(|record| observer.view_after(&record.id, FIRST_ANSWER));
    let views = futures_util::future::join_all(views).await;
    let sandboxes = sandboxes.into_iter().zip(views).map(|(record, view)| {
        let (sandbox, _) = observed(Arc::new(record), view, observer.now());
        (sandbox.record.id.clone(), Arc::new(sandbox))
    });
    Observed {
        sandboxes: sandboxes.collect(),
        unrecorded: unrecorded.iter().filter(|machine| !recorded.contains(&machine.sandbox)).cloned().collect(),
        disks: disks.into_iter().map(|disk| (disk.id.clone(), Arc::new(disk))).collect(),
        apps: apps.into_iter().map(|app| (app.key.clone(), Arc::new(app))).collect(),
        snapshots: snapshots.into_iter().map(|record| (record.id.clone(), Arc::new(record))).collect(),
        ..nothing(limits)
    }
}

/// A world in which nothing exists yet.
#[must_use]
pub fn nothing(limits: Limits) -> Observed {
    Observed {
        host: host::id(),
        limits,
        sandboxes: SharedMap::new(),
        unrecorded: Vec::new(),
        disks: SharedMap::new(),
        apps: SharedMap::new(),
        snapshots: SharedMap::new(),
    }
}

/// Gives the guests of running microVMs time to answer, for somebody who looks only once.
pub async fn let_guests_answer(observer: &Observer, inventory: &Inventory) {
    let answers = inventory.sandboxes.iter().map(|record| async {
        let view = observer.first_view(&record.id).await;
        if matches!(view.vm, Some(VmState::Running { .. })) {
            // What does not answer is part of what is observed.
            drop(observer.answering(&record.id, &record.machine.nonce, FIRST_ANSWER).await);
        }
    });
    futures_util::future::join_all(answers).await;
}

/// MicroVMs that the driver holds and the inventory does not.
///
/// # Errors
/// When the driver cannot list them.
pub async fn unrecorded(driver: &dyn Driver, ledger: &Ledger) -> Result<Vec<Machine>, VmmError> {
    // What is recorded after this look and found by the driver is sorted out when the list is used.
    let recorded = ledger.sandboxes().into_keys().collect();
    driver.list_beyond(&recorded).await
}
