//! The way out of damage: the old state is moved aside, and a new one is written from what a driver finds on the host. Specs
//! are not in there; the next plan reads them from git and finds out by asking the guests what they differ in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use setpoint_schema::id::{DiskId, HostId};
use setpoint_schema::name::{AppKey, AppName, Team};
use setpoint_schema::observed::{DiskRecord, DiskState, Intent, Machine, SandboxRecord};
use setpoint_schema::quantity::{ByteSize, Span};

use crate::error::{Result, StateError};
use crate::record::{EventKind, NewEvent};
use crate::store::batch::Batch;
use crate::store::lock::LockFile;
use crate::store::{Store, sync_dir};
use crate::table::{Disks, Sandboxes};

/// What was found on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebuild {
    /// The host.
    pub host: HostId,
    /// The microVMs, running or not.
    pub machines: Vec<Machine>,
    /// The data disks.
    pub disks: Vec<FoundDisk>,
    /// How long a disk is kept that no microVM uses.
    pub retain: Span,
}

/// A data disk that was found on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundDisk {
    /// Which disk.
    pub id: DiskId,
    /// Its length.
    pub size: ByteSize,
}

impl Store {
    /// Moves the state directory aside, to `<dir>.damaged-<time>` beside it, and returns where it is now.
    ///
    /// # Errors
    /// [`StateError::Locked`] while a process has it open, or what renaming can meet.
    pub fn quarantine(dir: &Path) -> Result<PathBuf> {
        let _lock = LockFile::take(dir)?;
        let io = |operation| move |e| StateError::io(dir, operation, dir, e);
        let real = dir.canonicalize().map_err(io("find"))?;
        let mut name = real.file_name().unwrap_or_default().to_owned();
        name.push(format!(".damaged-{}", Timestamp::now().strftime("%Y%m%dT%H%M%S%3fZ")));
        let aside = real.with_file_name(name);
        std::fs::rename(&real, &aside).map_err(io("move aside"))?;
        if let Some(parent) = aside.parent() {
            sync_dir(parent).map_err(io("sync the directory of"))?;
        }
        Ok(aside)
    }

    /// Fills a new state with what was found, all in one commit.
    ///
    /// # Errors
    /// [`StateError::NotEmpty`] when the state has an inventory already; see also [`Store::commit`].
    pub fn rebuild(&self, found: &Rebuild) -> Result<()> {
        let (sandboxes, disks) = (self.all::<Sandboxes>()?.len(), self.all::<Disks>()?.len());
        if sandboxes + disks > 0 {
            return Err(StateError::NotEmpty { dir: self.dir().to_owned(), sandboxes, disks });
        }
        let now = Timestamp::now();
        let mut batch = Batch::new();
        for machine in &found.machines {
            batch.put::<Sandboxes>(&machine.sandbox, &sandbox_record(machine, &found.host, now))?;
        }
        for disk in disk_records(found, now) {
            batch.put::<Disks>(&disk.id, &disk)?;
        }
        let (machines, disks) = (found.machines.len(), found.disks.len());
        let message = format!("recorded {machines} microVMs and {disks} disks that were found on {}", found.host);
        batch.event(NewEvent::new(EventKind::StateRebuilt, "rebuilt", message));
        self.commit(batch)
    }
}

fn sandbox_record(machine: &Machine, host: &HostId, now: Timestamp) -> SandboxRecord {
    SandboxRecord {
        id: machine.sandbox.clone(),
        app: machine.app.clone(),
        uid: machine.uid.clone(),
        host: host.clone(),
        disk: machine.disk.clone(),
        from: None,
        origin: None,
        machine: machine.clone(),
        applied: None,
        intent: Intent::Keep,
        created_at: now,
    }
}

fn disk_records(found: &Rebuild, now: Timestamp) -> impl Iterator<Item = DiskRecord> {
    let users: BTreeMap<&DiskId, &AppKey> = found.machines.iter().map(|m| (&m.disk, &m.app)).collect();
    let until =
        now.saturating_add(std::time::Duration::from_millis(found.retain.as_millis())).unwrap_or(Timestamp::MAX);
    found.disks.iter().filter_map(move |disk| {
        let (app, state) = match users.get(&disk.id) {
            Some(app) => ((*app).clone(), DiskState::InUse),
            None => (app_of(&disk.id)?, DiskState::Retained { until }),
        };
        Some(DiskRecord { id: disk.id.clone(), app, size: disk.size, state })
    })
}

/// A disk is named `<app>-<8 hex digits>`, which says the app but not the team.
fn app_of(disk: &DiskId) -> Option<AppKey> {
    let (name, _) = disk.as_str().rsplit_once('-')?;
    Some(AppKey::new(Team::default_team(), AppName::new(name).ok()?))
}
