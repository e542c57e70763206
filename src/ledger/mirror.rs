//! The inventory in memory, which rows of it have changed, and whose turn it is to write a row.
//!
//! Locks are held for a look or a change of a map, and [`Mirror::turn`] for one durable write on a blocking thread: never across
//! an await.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use setpoint_schema::app::DesiredApp;
use setpoint_schema::id::{CommitId, DiskId, HostId, SandboxId, SnapshotId, TemplateDigest};
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{AppRecord, DiskRecord, Machine, SandboxRecord, SnapshotRecord};
use setpoint_schema::shared::SharedMap;
use tokio::sync::Notify;

use super::{Inventory, Row};

/// Rows share a turn with one in this many others: enough that concurrent actions seldom meet, and still share their syncs.
const TURNS: usize = 64;

/// The keys of rows that were written or removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Of sandboxes.
    pub sandboxes: BTreeSet<SandboxId>,
    /// Of data disks.
    pub disks: BTreeSet<DiskId>,
    /// Of apps.
    pub apps: BTreeSet<AppKey>,
    /// Of snapshots.
    pub snapshots: BTreeSet<SnapshotId>,
}

pub(super) struct Mirror {
    rows: Mutex<Rows>,
    changed: Notify,
    turns: [Mutex<()>; TURNS],
    turn_of_apps: Mutex<()>,
    hasher: RandomState,
}

/// Every row of the inventory.
#[derive(Default)]
pub(super) struct Rows {
    pub sandboxes: BTreeMap<SandboxId, Arc<SandboxRecord>>,
    pub disks: BTreeMap<DiskId, Arc<DiskRecord>>,
    pub apps: BTreeMap<AppKey, Arc<AppRecord>>,
    pub snapshots: BTreeMap<SnapshotId, Arc<SnapshotRecord>>,
    /// Which sandboxes name which disk.
    users: BTreeSet<(DiskId, SandboxId)>,
    changes: Changes,
}

impl Mirror {
    pub fn of(inventory: Inventory) -> Self {
        let mut rows = Rows::default();
        let mut texts = Texts::default();
        for mut record in inventory.apps {
            texts.share_app(&mut record);
            rows.put_app(record);
        }
        for mut record in inventory.disks {
            share_key(&rows.apps, &mut record.app);
            rows.put_disk(Arc::new(record));
        }
        for mut record in inventory.sandboxes {
            texts.share_sandbox(&mut record, &rows);
            rows.put_sandbox(Arc::new(record));
        }
        inventory.snapshots.into_iter().for_each(|record| rows.put_snapshot(Arc::new(record)));
        Self {
            rows: Mutex::new(rows),
            changed: Notify::new(),
            turns: std::array::from_fn(|_| Mutex::default()),
            turn_of_apps: Mutex::default(),
            hasher: RandomState::new(),
        }
    }

    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    pub fn take_changes(&self) -> Changes {
        std::mem::take(&mut self.rows().changes)
    }

    pub fn rows(&self) -> MutexGuard<'_, Rows> {
        held(&self.rows)
    }

    /// The right to write the row of this key, for as long as it is held.
    pub fn turn(&self, key: &impl Hash) -> MutexGuard<'_, ()> {
        let hash = self.hasher.hash_one(key);
        let index = usize::try_from(hash % TURNS as u64).unwrap_or_default();
        held(&self.turns[index])
    }

    /// The right to write rows of apps. The loop writes nearly all of them, and several at once, so one right serves.
    pub fn turn_of_apps(&self) -> MutexGuard<'_, ()> {
        held(&self.turn_of_apps)
    }

    pub fn user_of_disk(&self, disk: &DiskId) -> Option<SandboxId> {
        let first = (disk.clone(), SandboxId("".into()));
        let rows = self.rows();
        let mut users = rows.users.range((Bound::Included(first), Bound::Unbounded));
        users.next().filter(|(used, _)| used == disk).map(|(_, sandbox)| sandbox.clone())
    }

    pub fn put(&self, row: Row) {
        match row {
            Row::Sandbox(record) => self.put_sandbox(record),
            Row::Disk(record) => self.put_disk(record),
        }
    }

    pub fn put_sandbox(&self, record: Arc<SandboxRecord>) {
        self.rows().put_sandbox(record);
        self.changed.notify_one();
    }

    pub fn remove_sandbox(&self, id: &SandboxId) {
        self.rows().remove_sandbox(id);
        self.changed.notify_one();
    }

    pub fn put_disk(&self, record: Arc<DiskRecord>) {
        self.rows().put_disk(record);
        self.changed.notify_one();
    }

    pub fn remove_disk(&self, id: &DiskId) {
        let mut rows = self.rows();
        rows.disks.remove(id);
        rows.changes.disks.insert(id.clone());
        self.changed.notify_one();
    }

    pub fn put_snapshot(&self, record: Arc<SnapshotRecord>) {
        self.rows().put_snapshot(record);
        self.changed.notify_one();
    }

    pub fn remove_snapshot(&self, id: &SnapshotId) {
        let mut rows = self.rows();
        rows.snapshots.remove(id);
        rows.changes.snapshots.insert(id.clone());
        self.changed.notify_one();
    }

    pub fn put_apps(&self, records: Vec<AppRecord>) {
        let mut rows = self.rows();
        records.into_iter().for_each(|record| rows.put_app(record));
        self.changed.notify_one();
    }

    /// Puts equal declarations and specs in the place of those of the rows. That changes no row, so nobody is told.
    pub fn share(&self, declared: &SharedMap<AppKey, Arc<DesiredApp>>) {
        let mut rows = self.rows();
        let Rows { sandboxes, disks: _, apps, snapshots: _, users: _, changes: _ } = &mut *rows;
        for record in apps.values_mut() {
            if let Some(app) = declared.get(&record.key).filter(|app| **app == record.last_good.app) {
                let record = Arc::make_mut(record);
                record.last_good.app = Arc::clone(app);
                share_value(&mut record.digest, app.spec.digest());
            }
        }
        for record in sandboxes.values_mut() {
            let Some(app) = declared.get(&record.app) else { continue };
            if record.applied.as_ref().is_some_and(|applied| applied.spec == app.spec)
                && let Some(applied) = &mut Arc::make_mut(record).applied
            {
                applied.spec = app.spec.clone();
            }
        }
    }

    pub fn remove_apps(&self, keys: &[AppKey]) {
        let mut rows = self.rows();
        for key in keys {
            rows.apps.remove(key);
            rows.changes.apps.insert(key.clone());
        }
        self.changed.notify_one();
    }
}

/// Texts that rows have in common. What is read from the store is a value of its own, and with ten thousand apps these would be 10 MB.
#[derive(Default)]
struct Texts {
    hosts: BTreeSet<HostId>,
    revisions: BTreeSet<CommitId>,
    templates: BTreeSet<TemplateDigest>,
}

impl Texts {
    fn share_app(&mut self, record: &mut AppRecord) {
        share_one(&mut self.revisions, &mut record.last_good.revision);
    }

    fn share_sandbox(&mut self, record: &mut SandboxRecord, rows: &Rows) {
        let SandboxRecord { id, app, uid, host, disk, machine, applied, intent: _, created_at: _, from: _, origin: _ } =
            record;
        let Machine { sandbox, app: owner, uid: owner_uid, nonce: _, vcpus: _, memory_mib: _, template, disk: own } =
            machine;
        share_key(&rows.apps, app);
        share_key(&rows.disks, disk);
        share_value(sandbox, id);
        share_value(owner, app);
        share_value(owner_uid, uid);
        share_value(own, disk);
        share_one(&mut self.hosts, host);
        share_one(&mut self.templates, template);
        if let Some(applied) = applied {
            share_one(&mut self.revisions, &mut applied.revision);
        }
    }
}

/// Lets a value be the same as an equal one that was met before.
fn share_one<T: Ord + Clone>(met: &mut BTreeSet<T>, value: &mut T) {
    match met.get(value) {
        Some(first) => value.clone_from(first),
        None => drop(met.insert(value.clone())),
    }
}

fn share_key<K: Ord + Clone, V>(rows: &BTreeMap<K, V>, key: &mut K) {
    if let Some((known, _)) = rows.get_key_value(key) {
        key.clone_from(known);
    }
}

fn share_value<T: PartialEq + Clone>(value: &mut T, known: &T) {
    if value == known {
        value.clone_from(known);
    }
}

impl Rows {
    fn put_sandbox(&mut self, record: Arc<SandboxRecord>) {
        self.remove_sandbox(&record.id);
        self.users.insert((record.disk.clone(), record.id.clone()));
        self.sandboxes.insert(record.id.clone(), record);
    }

    fn remove_sandbox(&mut self, id: &SandboxId) {
        if let Some(record) = self.sandboxes.remove(id) {
            self.users.remove(&(record.disk.clone(), id.clone()));
        }
        self.changes.sandboxes.insert(id.clone());
    }

    fn put_disk(&mut self, record: Arc<DiskRecord>) {
        self.changes.disks.insert(record.id.clone());
        self.disks.insert(record.id.clone(), record);
    }

    fn put_snapshot(&mut self, record: Arc<SnapshotRecord>) {
        self.changes.snapshots.insert(record.id.clone());
        self.snapshots.insert(record.id.clone(), record);
    }

    fn put_app(&mut self, record: AppRecord) {
        self.changes.apps.insert(record.key.clone());
        self.apps.insert(record.key.clone(), Arc::new(record));
    }
}

/// A lock that nothing can leave half changed: every change is one call of a map, so a panic elsewhere does not poison it.
fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}
