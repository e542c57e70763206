//! The store as async code uses it: every call runs on a blocking thread, since a write returns only when it is durable.

use std::path::Path;

use setpoint_schema::id::{DiskId, SandboxId};
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{AppRecord, DiskRecord, SandboxRecord};
use setpoint_state::{Apps, Batch, Disks, Sandboxes, StateError, Store, View};

use crate::task::blocking;

/// The store, shared by clones.
#[derive(Clone)]
pub struct Ledger {
    store: Store,
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
        Ok(Self { sandboxes, disks, apps })
    }
}

impl Ledger {
    /// Wraps an open store.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    /// Runs `work` on the store on this thread, which may block.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn blocking<T>(&self, work: impl FnOnce(&Store) -> Result<T>) -> Result<T> {
        work(&self.store)
    }

    /// Runs `work` on the store on a blocking thread.
    ///
    /// # Errors
    /// Those of `work`.
    pub async fn with<T: Send + 'static>(&self, work: impl FnOnce(&Store) -> Result<T> + Send + 'static) -> Result<T> {
        let store = self.store.clone();
        blocking(move || work(&store)).await
    }

    /// Reads the whole inventory.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn inventory(&self) -> Result<Inventory> {
        self.with(|store| Inventory::read(store)).await
    }

    /// One sandbox's row.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn sandbox(&self, id: &SandboxId) -> Result<Option<SandboxRecord>> {
        let id = id.clone();
        self.with(move |store| store.get::<Sandboxes>(&id)).await
    }

    /// Writes one sandbox's row.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn put_sandbox(&self, record: &SandboxRecord) -> Result<()> {
        let record = record.clone();
        self.with(move |store| store.put::<Sandboxes>(&record.id, &record)).await
    }

    /// Removes one sandbox's row.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn forget_sandbox(&self, id: &SandboxId) -> Result<()> {
        let id = id.clone();
        self.with(move |store| store.remove::<Sandboxes>(&id)).await
    }

    /// One disk's row.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn disk(&self, id: &DiskId) -> Result<Option<DiskRecord>> {
        let id = id.clone();
        self.with(move |store| store.get::<Disks>(&id)).await
    }

    /// Writes one disk's row.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn put_disk(&self, record: &DiskRecord) -> Result<()> {
        let record = record.clone();
        self.with(move |store| store.put::<Disks>(&record.id, &record)).await
    }

    /// Removes one disk's row.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn forget_disk(&self, id: &DiskId) -> Result<()> {
        let id = id.clone();
        self.with(move |store| store.remove::<Disks>(&id)).await
    }

    /// The sandbox whose row names this disk.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn user_of_disk(&self, disk: &DiskId) -> Result<Option<SandboxId>> {
        let disk = disk.clone();
        self.with(move |store| {
            let rows = store.all::<Sandboxes>()?;
            Ok(rows.into_iter().find(|(_, record)| record.disk == disk).map(|(id, _)| id))
        })
        .await
    }

    /// One app's row.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn app(&self, key: &AppKey) -> Result<Option<AppRecord>> {
        let key = key.clone();
        self.with(move |store| store.get::<Apps>(&key)).await
    }

    /// Writes rows of apps in one go.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn put_apps(&self, records: Vec<AppRecord>) -> Result<()> {
        self.with(move |store| {
            let mut batch = Batch::new();
            for record in &records {
                batch.put::<Apps>(&record.key, record)?;
            }
            store.commit(batch)
        })
        .await
    }

    /// Changes one app's row, if there is one.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn update_app(&self, key: &AppKey, change: impl FnOnce(&mut AppRecord) + Send + 'static) -> Result<()> {
        let key = key.clone();
        self.with(move |store| match store.get::<Apps>(&key)? {
            Some(mut record) => {
                change(&mut record);
                store.put::<Apps>(&key, &record)
            }
            None => Ok(()),
        })
        .await
    }

    /// Removes one app's row.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn forget_app(&self, key: &AppKey) -> Result<()> {
        let key = key.clone();
        self.with(move |store| store.remove::<Apps>(&key)).await
    }
}
