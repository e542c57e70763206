//! The store as async code uses it. Writes run on a blocking thread, since one returns only when it is durable, and those of the
//! journal are waited for without one; the inventory is read from a mirror in memory.
//!
//! The store stays the truth: a row is changed in the mirror after its write is durable, and before the write's caller goes on.
//! Two writes of one row never run at once, so that the mirror sees them in the order of the store. The rows of an action's sandbox and
//! disk are its own while it runs, and it waits for each write.

mod mirror;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use setpoint_schema::app::DesiredApp;
use setpoint_schema::id::{DiskId, SandboxId, SnapshotId};
use setpoint_schema::name::{AppKey, RepoPath};
use setpoint_schema::observed::{AppRecord, DiskRecord, LastGood, SandboxRecord, SnapshotRecord};
use setpoint_schema::shared::SharedMap;
use setpoint_state::{
    Apps, Batch, Disks, JournalEntry, NewEvent, Outcome as StepEnd, PlanRef, Rows, Sandboxes, Snapshots, StateError,
    Store, View,
};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{oneshot, watch};

use crate::desired::Remembered;
use crate::task::blocking;
pub use mirror::Changes;
use mirror::Mirror;

/// The store, shared by clones.
#[derive(Clone)]
pub struct Ledger {
    store: Store,
    mirror: Arc<Mirror>,
    history: watch::Sender<u64>,
}

/// The whole inventory at one moment.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    /// All sandboxes.
    pub sandboxes: Vec<SandboxRecord>,
    /// All data disks.
    pub disks: Vec<DiskRecord>,
    /// All apps that are remembered.
    pub apps: Vec<AppRecord>,
    /// All snapshots.
    pub snapshots: Vec<SnapshotRecord>,
}

/// A row that a step writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    /// A sandbox's.
    Sandbox(Arc<SandboxRecord>),
    /// A data disk's.
    Disk(Arc<DiskRecord>),
}

/// How an action goes on from one step that acts to the next. All of it is one write.
#[derive(Debug, Default)]
pub struct Turn {
    /// The step that acted, and is done.
    pub done: Option<JournalEntry>,
    /// The steps after it that are done by writing `rows`: the place of each among the action's, and its name.
    pub with_it: Vec<(u32, &'static str)>,
    /// The step that is about to act, if there is one left.
    pub next: Option<(u32, &'static str)>,
    /// What is written down of the inventory with all this.
    pub rows: Vec<Row>,
}

type Result<T> = std::result::Result<T, StateError>;

impl Inventory {
    /// Reads the inventory of a store that another process may have open, without a trace.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of_copy(store_dir: &Path) -> Result<Self> {
        Self::read(&*Store::snapshot_read(store_dir)?)
    }

    fn read(view: &View) -> Result<Self> {
        let sandboxes = view.all::<Sandboxes>()?.into_values().collect();
        let disks = view.all::<Disks>()?.into_values().collect();
        let apps = view.all::<Apps>()?.into_values().collect();
        let snapshots = view.all::<Snapshots>()?.into_values().collect();
        Ok(Self { sandboxes, disks, apps, snapshots })
    }
}

/// What apps were declared as before they had mistakes, from memory.
impl Remembered for Ledger {
    fn app(&self, key: &AppKey) -> Option<LastGood> {
        Some(self.app(key)?.last_good.clone())
    }

    fn below(&self, path: &RepoPath) -> Vec<AppKey> {
        let apps = self.apps().into_iter().filter(|(_, record)| record.last_good.path.is_at_or_below(path));
        apps.map(|(key, _)| key).collect()
    }
}

impl Ledger {
    /// Wraps an open store, whose inventory is read once.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn new(store: Store) -> Result<Self> {
        let mirror = Arc::new(Mirror::of(Inventory::read(&store)?));
        let history = watch::Sender::new(store.history_version());
        Ok(Self { store, mirror, history })
    }

    /// Runs `work` on the store on this thread, which may block. The inventory is not written this way.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn blocking<T>(&self, work: impl FnOnce(&Store) -> Result<T>) -> Result<T> {
        let done = work(&self.store);
        tell(&self.store, &self.history);
        done
    }

    /// Runs `work` on the store on a blocking thread. The inventory is not written this way.
    ///
    /// # Errors
    /// Those of `work`.
    pub async fn with<T: Send + 'static>(&self, work: impl FnOnce(&Store) -> Result<T> + Send + 'static) -> Result<T> {
        let (store, history) = (self.store.clone(), self.history.clone());
        blocking(move || {
            let done = work(&store);
            tell(&store, &history);
            done
        })
        .await
    }

    /// Records how far an action is, and the step that is about to act. It may once this returns.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn journal_turn(&self, app: &AppKey, plan: &PlanRef, turn: Turn) -> Result<Option<JournalEntry>> {
        let Turn { done, with_it, next, rows } = turn;
        let mut records = Rows::default();
        for row in &rows {
            match row {
                Row::Sandbox(record) => records.put::<Sandboxes>(&record.id, record)?,
                Row::Disk(record) => records.put::<Disks>(&record.id, record)?,
            };
        }
        let (then, entry) = oneshot::channel();
        let mirror = Arc::clone(&self.mirror);
        // On the thread that writes, so that the mirror sees these rows in the order of the store without anybody's thread waiting.
        let show = move |written: Result<Option<JournalEntry>>| {
            if written.is_ok() {
                rows.into_iter().for_each(|row| mirror.put(row));
            }
            drop(then.send(written));
        };
        self.store.journal_turn_then(app, plan, setpoint_state::Turn { done, with_it, next, rows: records }, show);
        self.written(entry).await
    }

    /// Records how a step has ended.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn journal_end(&self, entry: JournalEntry, outcome: StepEnd) -> Result<()> {
        let (then, ended) = oneshot::channel();
        self.store.journal_end_then(entry, outcome, move |ended| drop(then.send(ended)));
        self.written(ended).await
    }

    /// What the store's writer says of a write. No thread blocks meanwhile: steps are journalled much too often for that.
    async fn written<T: Send + 'static>(&self, answer: oneshot::Receiver<Result<T>>) -> Result<T> {
        let answer = match Handle::current().runtime_flavor() {
            // A test's clock that stands still jumps on as soon as nothing runs here, but not while a thread may block.
            RuntimeFlavor::CurrentThread => blocking(move || answer.blocking_recv()).await,
            _ => answer.await,
        };
        answer.unwrap_or_else(|_| Err(self.store.writer_ended()))
    }

    /// Moves after every change of what the store remembers of events and revisions.
    #[must_use]
    pub fn history(&self) -> watch::Receiver<u64> {
        self.history.subscribe()
    }

    /// Resolves after any row of the inventory has changed since the last call.
    pub async fn changed(&self) {
        self.mirror.changed().await;
    }

    /// Which rows have changed since this was asked last; all of them at first.
    #[must_use]
    pub fn take_changes(&self) -> Changes {
        self.mirror.take_changes()
    }

    /// One sandbox's row.
    #[must_use]
    pub fn sandbox(&self, id: &SandboxId) -> Option<Arc<SandboxRecord>> {
        self.mirror.rows().sandboxes.get(id).cloned()
    }

    /// Every sandbox's row.
    #[must_use]
    pub fn sandboxes(&self) -> BTreeMap<SandboxId, Arc<SandboxRecord>> {
        self.mirror.rows().sandboxes.clone()
    }

    /// Writes one sandbox's row.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn put_sandbox(&self, record: &SandboxRecord) -> Result<()> {
        let record = Arc::new(record.clone());
        self.write(move |store, mirror| {
            let _turn = mirror.turn(&record.id);
            store.put::<Sandboxes>(&record.id, &record)?;
            mirror.put_sandbox(record.clone());
            Ok(())
        })
        .await
    }

    /// Removes one sandbox's row.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn forget_sandbox(&self, id: &SandboxId) -> Result<()> {
        let id = id.clone();
        self.write(move |store, mirror| {
            let _turn = mirror.turn(&id);
            store.remove::<Sandboxes>(&id)?;
            mirror.remove_sandbox(&id);
            Ok(())
        })
        .await
    }

    /// One disk's row.
    #[must_use]
    pub fn disk(&self, id: &DiskId) -> Option<Arc<DiskRecord>> {
        self.mirror.rows().disks.get(id).cloned()
    }

    /// Writes one disk's row.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn put_disk(&self, record: &DiskRecord) -> Result<()> {
        let record = Arc::new(record.clone());
        self.write(move |store, mirror| {
            let _turn = mirror.turn(&record.id);
            store.put::<Disks>(&record.id, &record)?;
            mirror.put_disk(record.clone());
            Ok(())
        })
        .await
    }

    /// Removes one disk's row.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn forget_disk(&self, id: &DiskId) -> Result<()> {
        let id = id.clone();
        self.write(move |store, mirror| {
            let _turn = mirror.turn(&id);
            store.remove::<Disks>(&id)?;
            mirror.remove_disk(&id);
            Ok(())
        })
        .await
    }

    /// One snapshot's row.
    #[must_use]
    pub fn snapshot(&self, id: &SnapshotId) -> Option<Arc<SnapshotRecord>> {
        self.mirror.rows().snapshots.get(id).cloned()
    }

    /// Every snapshot's row.
    #[must_use]
    pub fn snapshots(&self) -> BTreeMap<SnapshotId, Arc<SnapshotRecord>> {
        self.mirror.rows().snapshots.clone()
    }

    /// Writes one snapshot's row, with these events or not at all.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn put_snapshot(&self, record: &SnapshotRecord, events: Vec<NewEvent>) -> Result<()> {
        let record = Arc::new(record.clone());
        self.write(move |store, mirror| {
            let _turn = mirror.turn(&record.id);
            let mut batch = Batch::new();
            batch.put::<Snapshots>(&record.id, &record)?;
            for event in events {
                batch.event(event);
            }
            store.commit(batch)?;
            mirror.put_snapshot(record.clone());
            Ok(())
        })
        .await
    }

    /// Adds the row that `make` decides on among those that there are, with its event: all of it, or nothing. Those who add rows this
    /// way take turns.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn add_snapshot(
        &self,
        make: impl FnOnce(&BTreeMap<SnapshotId, Arc<SnapshotRecord>>) -> Option<(SnapshotRecord, NewEvent)> + Send + 'static,
    ) -> Result<()> {
        self.write(move |store, mirror| {
            let _turn = mirror.turn(&"snapshots");
            let Some((record, event)) = make(&mirror.rows().snapshots) else { return Ok(()) };
            let record = Arc::new(record);
            let mut batch = Batch::new();
            batch.put::<Snapshots>(&record.id, &record)?;
            batch.event(event);
            store.commit(batch)?;
            mirror.put_snapshot(record);
            Ok(())
        })
        .await
    }

    /// Removes one snapshot's row.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn forget_snapshot(&self, id: &SnapshotId) -> Result<()> {
        let id = id.clone();
        self.write(move |store, mirror| {
            let _turn = mirror.turn(&id);
            store.remove::<Snapshots>(&id)?;
            mirror.remove_snapshot(&id);
            Ok(())
        })
        .await
    }

    /// The sandbox whose row names this disk.
    #[must_use]
    pub fn user_of_disk(&self, disk: &DiskId) -> Option<SandboxId> {
        self.mirror.user_of_disk(disk)
    }

    /// One app's row.
    #[must_use]
    pub fn app(&self, key: &AppKey) -> Option<Arc<AppRecord>> {
        self.mirror.rows().apps.get(key).cloned()
    }

    /// Every app's row.
    #[must_use]
    pub fn apps(&self) -> BTreeMap<AppKey, Arc<AppRecord>> {
        self.mirror.rows().apps.clone()
    }

    /// Lets the rows in memory have their declarations and specs in common with these, where they say the same. What is read from
    /// the store is a value of its own, and after a restart every app's would be in memory three times.
    pub fn share(&self, declared: &SharedMap<AppKey, Arc<DesiredApp>>) {
        self.mirror.share(declared);
    }

    /// Records events, and the rows that `change` makes of those that are known by then: all of it, or nothing.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn note(
        &self,
        events: Vec<NewEvent>,
        change: impl FnOnce(&BTreeMap<AppKey, Arc<AppRecord>>) -> Vec<AppRecord> + Send + 'static,
    ) -> Result<()> {
        self.write(move |store, mirror| {
            let _turn = mirror.turn_of_apps();
            let records = change(&mirror.rows().apps);
            if records.is_empty() && events.is_empty() {
                return Ok(());
            }
            let mut batch = Batch::new();
            for record in &records {
                batch.put::<Apps>(&record.key, record)?;
            }
            for event in events {
                batch.event(event);
            }
            store.commit(batch)?;
            mirror.put_apps(records);
            Ok(())
        })
        .await
    }

    /// Removes rows of apps in one go.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn forget_apps(&self, keys: Vec<AppKey>) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        self.write(move |store, mirror| {
            let _turn = mirror.turn_of_apps();
            let mut batch = Batch::new();
            for key in &keys {
                batch.remove::<Apps>(key);
            }
            store.commit(batch)?;
            mirror.remove_apps(&keys);
            Ok(())
        })
        .await
    }

    async fn write(&self, work: impl FnOnce(&Store, &Mirror) -> Result<()> + Send + 'static) -> Result<()> {
        let (store, mirror, history) = (self.store.clone(), Arc::clone(&self.mirror), self.history.clone());
        blocking(move || {
            let done = work(&store, &mirror);
            tell(&store, &history);
            done
        })
        .await
    }
}

/// Wakes those who follow the history, if it is longer than they know.
fn tell(store: &Store, history: &watch::Sender<u64>) {
    history.send_if_modified(|known| {
        let now = store.history_version();
        let news = now > *known;
        *known = now.max(*known);
        news
    });
}
