//! Keeping the data disk of a microVM without its memory, and making another disk of it.
//!
//! ```text
//! runs:           freeze processes and file system ─▶ begin to copy ─▶ thaw ─▶ the copy is whole ─▶ disk.json
//! does not run:   nobody may start it ─▶ copy ─▶ disk.json
//! ```
//!
//! A file system that stands still is clean, so that the copy is one of a disk that was unmounted. The host never looks into it.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use setpoint_schema::id::{DiskId, SnapshotId};
use setpoint_schema::observed::Moment;
use setpoint_schema::quantity::ByteSize;

use super::disk::{copy_file, release_holes};
use super::files::{io_error, read_json, write_json};
use super::fork::DISK;
use super::launch::absolute;
use super::pause::{busy_with_power, not_running};
use super::qmp::Qmp;
use super::vm_dir::VmDir;
use super::watch::{self, Life};
use super::{QemuDriver, blocking, busy, copying};
use crate::driver::{Guest, KeepDisk, Result, Taken, VmmError};
use crate::failpoint::reach;

const RECORD: &str = "disk.json";

/// The form of `disk.json`. Another one is not used.
const VERSION: u32 = 1;

/// `disk.json`: from when it is there, the disk is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DiskRecord {
    version: u32,
    /// What it is called.
    pub snapshot: SnapshotId,
    /// Which disk it was.
    disk: DiskId,
    /// When.
    at: Timestamp,
    /// How long the microVM stood still for it.
    stopped_ms: u64,
    /// What all of it takes on the disk.
    pub bytes: u64,
    /// What there was then, as it was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    moment: Option<Moment>,
}

impl DiskRecord {
    /// As whoever takes it is told, however often. What an older version kept knows nothing of the moment.
    fn taken(self, moment: &Moment) -> Taken {
        Taken {
            at: self.at,
            moment: self.moment.unwrap_or_else(|| moment.clone()),
            stopped: Duration::from_millis(self.stopped_ms),
            written: ByteSize::default(),
            bytes: ByteSize::bytes(self.bytes),
        }
    }
}

impl VmDir {
    /// Makes the copy of a disk last until after a power cut; what it takes on the disk.
    pub(super) fn make_disk_durable(&self) -> Result<u64> {
        let path = self.file(DISK);
        let durable = || {
            let file = File::options().read(true).write(true).open(&path)?;
            release_holes(&file)?;
            file.sync_all()?;
            Ok(file.metadata()?.blocks() * 512)
        };
        durable().map_err(io_error("sync", &path))
    }

    /// What says that a disk alone is kept here.
    pub(super) fn kept_disk(&self) -> Result<Option<DiskRecord>> {
        let path = self.file(RECORD);
        read_json(&path).map_err(io_error("read", &path))
    }
}

impl QemuDriver {
    /// Keeps a disk, or finds that it is kept.
    pub(super) async fn keep_disk_alone(&self, keep: KeepDisk<'_>) -> Result<Taken> {
        let KeepDisk { sandbox, disk, snapshot, agent, moment } = keep;
        let (vm, kept) = (self.vm(sandbox), self.moment(snapshot));
        if let Some(record) = kept.kept_disk()? {
            return Ok(record.taken(moment));
        }
        if self.disks.size(disk)?.is_none() {
            let problem = format!("has no disk {disk} of {sandbox} to keep");
            return Err(VmmError::Vmm { vmm: "qemu", problem });
        }
        vm.create()?;
        // Who holds this lock keeps everybody else from starting, pausing or resuming it.
        let _lock = vm.lock_power()?.ok_or_else(|| busy_with_power(sandbox))?;
        kept.create()?;
        let is_paused = vm.saved()?.is_some();
        let (at, stopped) = match (watch::life(&vm).await?, agent) {
            // What is left of a pause that was cut short has changed nothing since.
            _ if is_paused => self.copy_resting(disk, &kept).await?,
            (Life::Absent | Life::Ended(_), None) => self.copy_resting(disk, &kept).await?,
            (Life::Running(process), Some(agent)) if process.nonce == *agent.nonce() => {
                self.copy_running(&vm, disk, &kept, agent).await?
            }
            (Life::Absent | Life::Ended(_), Some(_)) => return Err(not_running(sandbox)),
            (Life::Running(_), _) => return Err(busy(sandbox)),
        };
        let copy = kept.clone();
        let bytes = blocking(move || copy.make_disk_durable()).await?;
        reach("snapshot/record")?;
        let stopped_ms = u64::try_from(stopped.as_millis()).unwrap_or(u64::MAX);
        let (snapshot, disk) = (snapshot.clone(), disk.clone());
        let there = Some(moment.clone());
        let record = DiskRecord { version: VERSION, snapshot, disk, at, stopped_ms, bytes, moment: there };
        write_record(&kept, &record)?;
        Ok(record.taken(moment))
    }

    /// Copies the disk of a microVM that goes on: it stands still until QEMU has begun, and from then on QEMU copies first what is
    /// about to be overwritten.
    async fn copy_running(
        &self,
        vm: &VmDir,
        disk: &DiskId,
        kept: &VmDir,
        agent: &dyn Guest,
    ) -> Result<(Timestamp, Duration)> {
        self.empty_copy(kept, disk)?;
        copying::prepare(vm, &absolute(kept.file(DISK))).await?;
        let mut qmp = Qmp::connect(vm).await?;
        reach("snapshot/freeze")?;
        let started = Instant::now();
        let begun = async {
            agent.freeze().await?;
            let at = Timestamp::now();
            reach("snapshot/disk")?;
            let (begin, copy) = copying::begin();
            qmp.execute(begin, copy).await?;
            Ok(at)
        };
        let begun = begun.await;
        drop(qmp);
        // Whether or not that went well. A guest that stays frozen is thawed when its agent is wanted next.
        if let Err(error) = agent.thaw().await {
            tracing::warn!(sandbox = vm.name(), %error, "guest was not thawed after its disk was kept");
        }
        let stopped = started.elapsed();
        let copied = async {
            let at = begun?;
            copying::hurry(vm).await?;
            copying::finish(vm).await?;
            Ok((at, stopped))
        };
        let copied = copied.await;
        if copied.is_err() {
            copying::give_up(vm).await;
        }
        copied
    }

    /// Copies the disk of a microVM that does not run.
    pub(super) async fn copy_resting(&self, disk: &DiskId, kept: &VmDir) -> Result<(Timestamp, Duration)> {
        let at = Timestamp::now();
        reach("snapshot/disk")?;
        let (from, to) = (self.disks.path(disk), kept.file(DISK));
        let copying = Arc::clone(&self.copying).lock_owned().await;
        // The lock goes along: the work goes on if the caller does not wait for it.
        let copy = move || {
            let _copying = copying;
            copy_file(&from, &to, None)
        };
        blocking(copy).await?;
        Ok((at, Duration::ZERO))
    }

    /// Makes a disk as a copy of the one in a snapshot, whichever kind that is.
    pub(super) async fn copy_kept_disk(&self, disk: &DiskId, snapshot: &SnapshotId, size: ByteSize) -> Result<()> {
        let kept = self.moment(snapshot);
        let is_kept = kept.saved()?.is_some() || kept.kept_disk()?.is_some_and(|record| record.version == VERSION);
        if !is_kept && self.disks.size(disk)?.is_none() {
            let problem = format!("has no snapshot {snapshot} to make the disk {disk} of");
            return Err(VmmError::Vmm { vmm: "qemu", problem });
        }
        reach("fork/disk")?;
        let (disks, disk, from) = (self.disks.clone(), disk.clone(), kept.file(DISK));
        let copying = Arc::clone(&self.copying).lock_owned().await;
        let copy = move || {
            let _copying = copying;
            disks.ensure_from(&disk, &from, size)
        };
        blocking(copy).await
    }
}

/// From here on the disk is kept, also after a power cut.
fn write_record(kept: &VmDir, record: &DiskRecord) -> Result<()> {
    let path = kept.file(RECORD);
    let sync = |directory: &Path| File::open(directory).and_then(|directory| directory.sync_all());
    write_json(&path, record).and_then(|()| sync(kept.path())).map_err(io_error("write", &path))?;
    // The directory itself is new, too.
    let all = kept.path().parent().unwrap_or(kept.path());
    sync(all).map_err(io_error("sync", all))
}
