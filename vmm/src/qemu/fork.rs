//! Keeping a moment of a running microVM, which goes on, and beginning others from it. That of a paused one is kept in `resting`.
//!
//! ```text
//!                                  ┌▶ devices ─▶ begin to copy the disk ┐
//! prepare ─▶ freeze processes ─▶ stop                                     ├▶ go on, thaw ─▶ files
//!                                  └▶ written pages into memory ─────────┘
//! ```
//!
//! Between the stop and the going on happens only what must: the target of the disk's copy is open before and written after (see
//! [`copying`]), room for the pages is made before, and they are copied while QEMU does its part. QEMU's monitor reads its commands
//! byte by byte, some microseconds each; so they are short, and sent together: it reads one while it carries out the other.
//!
//! ```text
//! snapshots/<snapshot>/saved.json, <snapshot>.state   as of a paused microVM
//!                      disk.img                       its disk
//!                      disk.json                      in place of the first two: the disk alone was kept (see `kept_disk`)
//! vms/<sandbox>/from.json                             it is to begin from a snapshot and has not: its disk is no more than a copy
//! ```

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt as _;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use setpoint_schema::id::{DiskId, SandboxId, SnapshotId};
use setpoint_schema::observed::{Machine, Moment as There};
use setpoint_schema::quantity::ByteSize;
use tokio::task::spawn_blocking;

use super::files::{io_error, read_json, remove_if_there, write_json};
use super::guest::QemuGuest;
use super::launch::absolute;
use super::pause::{busy_with_power, keep_devices, memory_error, not_running, not_running_in};
use super::process::ProcessRecord;
use super::qmp::Qmp;
use super::resume::renewal;
use super::saved::{FROM, KeptRecord, OriginRecord, PowerLock, SavedRecord, Shape, VERSION, micros};
use super::vm_dir::VmDir;
use super::watch::{self, Life};
use super::{QemuDriver, blocking, busy, copying};
use crate::driver::{Guest, Kin, Renewal, Result, Take, Taken, VmmError};
use crate::failpoint::reach;
use crate::memory::{Captured, GuestRam, Image, Mapped, MemoryError, Pages, Room};

pub(super) const SNAPSHOTS: &str = "snapshots";
pub(super) const DISK: &str = "disk.img";

/// Where QEMU writes its devices' state, in the microVM's directory.
const DEVICES: &str = "moment.state";

/// `from.json`.
#[derive(Debug, Serialize, Deserialize)]
struct FromRecord {
    snapshot: SnapshotId,
}

/// All that can be looked up and opened before a moment.
struct Prepared {
    ram: GuestRam,
    room: Room,
    parent: Option<Image>,
}

/// Of what a moment is put on the disk.
struct Of<'a> {
    vm: &'a VmDir,
    kept: &'a VmDir,
    machine: &'a Machine,
    process: &'a ProcessRecord,
    snapshot: &'a SnapshotId,
    there: &'a There,
}

/// What one moment was.
struct Moment {
    captured: Captured,
    parent: Option<Image>,
    stopped: Duration,
    at: Timestamp,
}

impl QemuDriver {
    pub(super) fn moment(&self, snapshot: &SnapshotId) -> VmDir {
        VmDir::of(&self.config.dir.join(SNAPSHOTS), &SandboxId(snapshot.as_str().into()))
    }

    /// Keeps a moment, or finds that it is kept.
    pub(super) async fn keep_moment(&self, take: Take<'_>) -> Result<Taken> {
        let kept = self.moment(take.snapshot);
        if let Some(saved) = kept.saved()? {
            let known = saved.kept.unwrap_or_else(|| told(take.moment));
            return Ok(known.taken(saved.at, saved.bytes));
        }
        let taken = match take.agent {
            Some(agent) => self.keep_running(take, agent, &kept).await,
            None => self.keep_paused(take, &kept).await,
        };
        // Its layers may be many by now; or it failed, and has left some that nothing refers to.
        self.make_untidy();
        taken
    }

    /// Keeps a moment of the boot that this agent is of.
    async fn keep_running(&self, take: Take<'_>, agent: &dyn Guest, kept: &VmDir) -> Result<Taken> {
        let Take { sandbox, snapshot, agent: _, moment: there } = take;
        let vm = self.vm(sandbox);
        let process = match watch::life(&vm).await? {
            Life::Running(process) if process.nonce == *agent.nonce() => process,
            Life::Running(_) => return Err(busy(sandbox)),
            Life::Absent | Life::Ended(_) => return Err(not_running(sandbox)),
        };
        let _lock = vm.lock_power()?.ok_or_else(|| busy_with_power(sandbox))?;
        if vm.saved()?.is_some() {
            return Err(not_running(sandbox));
        }
        let machine = vm.machine()?.ok_or_else(|| not_running_in(&vm))?;
        let _saving = self.saving.read().await;
        kept.create()?;
        self.empty_copy(kept, &machine.disk)?;
        let prepared = self.prepare(&vm, &process, &machine, kept).await?;
        reach("snapshot/freeze")?;
        let moment = async {
            agent.freeze_processes().await?;
            capture(&vm, prepared).await
        };
        let moment = moment.await;
        // Whether or not that went well.
        self.go_on(&vm, agent).await;
        let saved = async {
            let moment = moment?;
            copying::hurry(&vm).await?;
            reach("snapshot/memory")?;
            let of = Of { vm: &vm, kept, machine: &machine, process: &process, snapshot, there };
            self.keep_files(of, moment).await
        };
        let saved = saved.await;
        if saved.is_err() {
            copying::give_up(&vm).await;
        }
        saved
    }

    /// The file that the disk is copied into, as long as the disk.
    pub(super) fn empty_copy(&self, kept: &VmDir, disk: &DiskId) -> Result<()> {
        let path = kept.file(DISK);
        let length = self.disks.size(disk)?.unwrap_or_default().as_bytes();
        let mut options = File::options();
        options.create(true).truncate(true).write(true).mode(0o600);
        options.open(&path).and_then(|file| file.set_len(length)).map_err(io_error("make", &path))
    }

    /// All that can be done before anything stands still.
    async fn prepare(&self, vm: &VmDir, process: &ProcessRecord, machine: &Machine, kept: &VmDir) -> Result<Prepared> {
        let (store, origin, failed) = (self.memory.clone(), vm.origin(&process.nonce)?, memory_error(vm));
        let (pid, bytes) = (process.qemu.pid, machine.memory_mib << 20);
        let look = move || -> std::result::Result<Prepared, MemoryError> {
            let parent = origin.map(|origin| store.image(&origin)).transpose()?;
            let base = parent.as_ref().and_then(|parent| parent.base.as_ref()).map(|base| store.base_path(base));
            let ram = GuestRam::find(pid, bytes, base.as_deref().map_or(Mapped::Fresh, Mapped::Base))?;
            Ok(Prepared { room: ram.room()?, ram, parent })
        };
        let prepared = blocking(move || look().map_err(failed)).await?;
        copying::prepare(vm, &absolute(kept.file(DISK))).await?;
        Ok(prepared)
    }

    /// Puts a moment on the disk, while the microVM runs on.
    async fn keep_files(&self, of: Of<'_>, moment: Moment) -> Result<Taken> {
        let Of { vm, kept, machine, process, snapshot, there } = of;
        let Moment { captured, parent, stopped, at } = moment;
        let known = KeptRecord { moment: there.clone(), stopped_us: micros(stopped), written: captured.written() };
        let state = vm.file(DEVICES);
        fs::rename(&state, kept.devices(snapshot)).map_err(io_error("rename", &state))?;
        let devices = keep_devices(kept, snapshot)?;
        let (store, id, failed) = (self.memory.clone(), snapshot.clone(), memory_error(vm));
        let keep = move || -> std::result::Result<u64, MemoryError> {
            store.save(&id, Pages::Captured(&captured), parent.as_ref(), &|| true)?;
            Ok(store.size(&id)?.as_bytes())
        };
        let memory = blocking(move || keep().map_err(failed)).await?;
        copying::finish(vm).await?;
        let disk = kept.clone();
        let copy = kept.file(DISK);
        let disk_bytes = fs::metadata(&copy).map_err(io_error("inspect", &copy))?.len();
        let blocks = blocking(move || disk.make_disk_durable()).await?;
        reach("snapshot/record")?;
        let bytes = memory + devices.blocks + blocks;
        kept.write_kept(&SavedRecord {
            version: VERSION,
            nonce: process.nonce.clone(),
            snapshot: snapshot.clone(),
            at,
            shape: self.shape(machine),
            devices: devices.checksum,
            bytes,
            disk_bytes: Some(disk_bytes),
            fault: None,
            kept: Some(known.clone()),
        })?;
        Ok(known.taken(at, bytes))
    }

    /// Begins a microVM from a kept moment.
    pub(super) async fn begin_from(&self, machine: &Machine, snapshot: &SnapshotId) -> Result<()> {
        let (vm, kept) = (self.vm(&machine.sandbox), self.moment(snapshot));
        vm.create()?;
        let lock = vm.lock_power()?.ok_or_else(|| busy_with_power(&machine.sandbox))?;
        let from = vm.file(FROM);
        let begun: Option<FromRecord> = read_json(&from).map_err(io_error("read", &from))?;
        match watch::life(&vm).await? {
            Life::Running(process) if process.nonce == machine.nonce && begun.is_none() => {
                // Done already; only the last word may be missing.
                return QemuGuest::connect(&vm, &machine.sandbox, &machine.nonce).await?.thaw().await;
            }
            Life::Running(_) if begun.is_none() => return Err(busy(&machine.sandbox)),
            Life::Running(_) | Life::Absent | Life::Ended(_) => {}
        }
        // Left over from an earlier try that was cut short.
        watch::kill(&vm).await?;
        // Held before the image's name is known, which another takes the place of when its layers are merged.
        let _saving = self.saving.read().await;
        let saved = kept.saved()?.ok_or_else(|| {
            let problem = format!("has no snapshot {snapshot} for {} to begin from", machine.sandbox);
            VmmError::Vmm { vmm: "qemu", problem }
        })?;
        let has_disk = self.disks.size(&machine.disk)?.is_some();
        if has_disk && begun.is_none() {
            // It has begun, and its disk has been its own since.
            drop((lock, _saving));
            return self.ensure_running(machine).await.map(drop);
        }
        if has_disk && begun.is_some_and(|from| from.snapshot != *snapshot) {
            let problem = format!("would lose the disk {}, which {} has already", machine.disk, machine.sandbox);
            return Err(VmmError::Vmm { vmm: "qemu", problem });
        }
        write_json(&from, &FromRecord { snapshot: snapshot.clone() }).map_err(io_error("write", &from))?;
        reach("fork/start")?;
        let restored = self.restore_moment(&vm, machine, &kept, &saved, Arc::new(lock)).await;
        if restored.is_err() {
            watch::kill(&vm).await?;
        }
        restored
    }

    async fn restore_moment(
        &self,
        vm: &VmDir,
        machine: &Machine,
        kept: &VmDir,
        saved: &SavedRecord,
        lock: Arc<PowerLock>,
    ) -> Result<()> {
        let shape = Shape { disk: saved.shape.disk.clone(), ..self.shape(machine) };
        self.check(machine, &shape, saved)?;
        let (disks, disk, copy) = (self.disks.clone(), machine.disk.clone(), kept.file(DISK));
        // Nobody else copies onto this disk, whose temporary name is its own: it is this sandbox's, and the lock goes along, so that a
        // copy that nobody waits for any more ends before another begins. Copies of other disks need not wait for each other.
        let held = Arc::clone(&lock);
        let copy = move || {
            let _held = held;
            disks.copy(&disk, &copy)
        };
        blocking(copy).await?;
        vm.write_origin(&OriginRecord { nonce: machine.nonce.clone(), snapshot: saved.snapshot.clone() })?;
        self.load(vm, machine, saved, &kept.devices(&saved.snapshot)).await?;
        let agent: Arc<QemuGuest> = QemuGuest::connect(vm, &machine.sandbox, &saved.nonce).await?;
        reach("fork/renew")?;
        let renewal = renewal(machine).map_err(io_error("read", "/dev/urandom".as_ref()))?;
        agent.renew(&Renewal { kin: Kin::Copy, ..renewal }).await?;
        reach("fork/commit")?;
        let from = vm.file(FROM);
        remove_if_there(&from).map_err(io_error("remove", &from))?;
        reach("fork/thaw")?;
        agent.thaw().await
    }

    /// Every kept moment.
    pub(super) fn kept_moments(&self) -> Result<Vec<(SnapshotId, ByteSize)>> {
        let mut moments = Vec::new();
        for kept in VmDir::all(&self.config.dir.join(SNAPSHOTS))? {
            // By its directory: its image has another name once layers of it were merged.
            let id = SnapshotId(kept.name());
            moments.extend(kept.saved()?.map(|saved| (id, ByteSize::bytes(saved.bytes))));
            moments.extend(kept.kept_disk()?.map(|disk| (disk.snapshot, ByteSize::bytes(disk.bytes))));
        }
        moments.sort();
        Ok(moments)
    }

    /// Removes a kept moment.
    pub(super) async fn forget_moment(&self, snapshot: &SnapshotId) -> Result<()> {
        let kept = self.moment(snapshot);
        if !fs::exists(kept.path()).map_err(io_error("inspect", kept.path()))? {
            return Ok(());
        }
        kept.remove()?;
        self.make_untidy();
        Ok(())
    }
}

/// What is told of a moment that an older version kept, which wrote nothing of it down.
fn told(moment: &There) -> KeptRecord {
    KeptRecord { moment: moment.clone(), stopped_us: 0, written: 0 }
}

/// What must happen while nothing moves; the microVM goes on if that went well.
async fn capture(vm: &VmDir, prepared: Prepared) -> Result<Moment> {
    let Prepared { ram, room, parent } = prepared;
    // First, and then the monitor's greeting: by then QEMU is done with whatever it was doing for the port.
    let _held = vm.hold_port().await?;
    let mut qmp = Qmp::connect(vm).await?;
    reach("snapshot/stop")?;
    let started = Instant::now();
    let at = Timestamp::now();
    // Not `live`, or QEMU lets go of its disks and cannot go on.
    let devices = ("xen-save-devices-state", json!({ "filename": DEVICES, "live": false }));
    let commands = [("stop", json!({})), devices, copying::begin()];
    qmp.send(&commands).await?;
    let [stop, devices, copy] = commands.map(|(name, _)| name);
    qmp.answer_to(stop).await?;
    // From here on nothing writes to the guest's memory.
    let captured = spawn_blocking(move || ram.capture(room));
    qmp.answer_to(devices).await?;
    qmp.answer_to(copy).await?;
    let captured =
        captured.await.unwrap_or_else(|panic| resume_unwind(panic.into_panic())).map_err(memory_error(vm))?;
    qmp.execute("cont", json!({})).await?;
    Ok(Moment { captured, parent, stopped: started.elapsed(), at })
}
