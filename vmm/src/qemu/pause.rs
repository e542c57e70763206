//! Pausing a microVM: its memory and its devices go into files, and only when all of that is on the disk does its VMM end.
//!
//! ```text
//! freeze ─▶ stop ─▶ devices ─▶ memory ─▶ saved.json ─▶ end
//!    └────────┴────────┴──────────┴─ an error, or nobody wants it any more: go on, thaw
//! ```
//!
//! Cut short before `saved.json` is there, the microVM still runs, stopped and frozen; [`QemuDriver::let_go_on`] finds it so when
//! its agent is wanted next. After that it is paused, and whatever runs is ended by whoever comes next.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use jiff::Timestamp;
use serde_json::json;
use setpoint_guest::client::Motion;
use setpoint_schema::id::{BootNonce, SandboxId, SnapshotId};
use setpoint_schema::observed::Machine;
use setpoint_schema::quantity::ByteSize;

use super::files::io_error;
use super::guest::QemuGuest;
use super::process::ProcessRecord;
use super::qmp::Qmp;
use super::saved::{SavedRecord, VERSION, checksum, devices_name};
use super::vm_dir::VmDir;
use super::watch::{self, Life};
use super::{QemuDriver, blocking, busy, copying};
use crate::driver::{Guest, Pause, Paused, Result, VmmError};
use crate::failpoint::reach;
use crate::memory::{GuestRam, Mapped, MemoryError, Pages};

impl QemuDriver {
    /// Pauses a boot, or finds that it is paused.
    pub(super) async fn pause_to_files(&self, pause: Pause<'_>) -> Result<Paused> {
        let Pause { sandbox, nonce, snapshot, agent, cancel } = pause;
        let vm = self.vm(sandbox);
        let _lock = vm.lock_power()?.ok_or_else(|| busy_with_power(sandbox))?;
        if let Some(saved) = vm.saved()?.filter(|saved| saved.nonce == *nonce) {
            watch::kill(&vm).await?;
            return Ok(Paused::Saved { bytes: ByteSize::bytes(saved.bytes) });
        }
        let process = match watch::life(&vm).await? {
            Life::Running(process) if process.nonce == *nonce => process,
            Life::Running(_) => return Err(busy(sandbox)),
            Life::Absent | Life::Ended(_) => return Err(not_running(sandbox)),
        };
        let saving = self.saving.read().await;
        let work = Work { vm: &vm, process: &process, snapshot, placeholder: None };
        let saved = async {
            reach("pause/freeze")?;
            agent.freeze().await?;
            self.save(&work, cancel).await
        };
        match saved.await {
            Ok(saved) => {
                reach("pause/end")?;
                watch::kill(&vm).await?;
                vm.forget_earlier()?;
                drop(saving);
                self.make_untidy();
                Ok(Paused::Saved { bytes: ByteSize::bytes(saved.bytes) })
            }
            Err(error) => {
                self.go_on(&vm, agent).await;
                vm.forget_unused_devices();
                self.make_untidy();
                match error {
                    VmmError::Memory { source: MemoryError::Cancelled, .. } => Ok(Paused::Cancelled),
                    other => Err(other),
                }
            }
        }
    }

    /// Stops the VMM and writes everything down, up to `saved.json`.
    pub(super) async fn save(
        &self,
        work: &Work<'_>,
        cancel: &tokio_util::sync::CancellationToken,
    ) -> Result<SavedRecord> {
        let Work { vm, process, snapshot, placeholder } = work;
        let machine = vm.machine()?.ok_or_else(|| not_running_in(vm))?;
        // First, and then the monitor's greeting: by then QEMU is done with whatever it was doing for the port.
        let _held = vm.hold_port().await?;
        let mut qmp = Qmp::connect(vm).await?;
        reach("pause/stop")?;
        // QEMU writes out what its disks still hold back, too.
        qmp.execute("stop", json!({})).await?;
        reach("pause/devices")?;
        // Not `live`, or QEMU lets go of its disks and cannot go on.
        let to_file = json!({ "filename": devices_name(snapshot), "live": false });
        qmp.execute("xen-save-devices-state", to_file).await?;
        let devices = keep_devices(vm, snapshot)?;
        reach("pause/memory")?;
        let bytes = self.save_memory(work, &machine, cancel).await? + devices.blocks;
        let disk = match placeholder {
            Some(length) => Some(*length),
            None => self.disks.size(&machine.disk)?,
        };
        let saved = SavedRecord {
            version: VERSION,
            nonce: process.nonce.clone(),
            snapshot: (*snapshot).clone(),
            at: Timestamp::now(),
            shape: self.shape(&machine),
            devices: devices.checksum,
            bytes,
            disk_bytes: disk.map(|disk| disk.as_bytes()),
            fault: None,
            kept: None,
        };
        reach("pause/record")?;
        if cancel.is_cancelled() {
            return Err(memory_error(vm)(MemoryError::Cancelled));
        }
        vm.write_saved(&saved)?;
        Ok(saved)
    }

    /// Keeps the memory of a stopped VMM; what that takes on the disk.
    async fn save_memory(
        &self,
        work: &Work<'_>,
        machine: &Machine,
        cancel: &tokio_util::sync::CancellationToken,
    ) -> Result<u64> {
        let (store, cancel) = (self.memory.clone(), cancel.clone());
        let (pid, bytes, id) = (work.process.qemu.pid, machine.memory_mib << 20, work.snapshot.clone());
        let origin = work.vm.origin(&work.process.nonce)?;
        let failed = memory_error(work.vm);
        let keep = move || {
            let parent = origin.map(|origin| store.image(&origin)).transpose()?;
            let base = parent.as_ref().and_then(|parent| parent.base.as_ref()).map(|base| store.base_path(base));
            let mapped = base.as_deref().map_or(Mapped::Fresh, Mapped::Base);
            let ram = GuestRam::find(pid, bytes, mapped)?;
            store.save(&id, Pages::Still(&ram), parent.as_ref(), &|| !cancel.is_cancelled())?;
            Ok(store.size(&id)?.as_bytes())
        };
        blocking(move || keep().map_err(failed)).await
    }

    /// Lets a microVM go on whose pause came to nothing. What fails here is found and mended when its agent is wanted next.
    pub(super) async fn go_on(&self, vm: &VmDir, agent: &dyn Guest) {
        let going = async {
            Qmp::connect(vm).await?.execute("cont", json!({})).await?;
            agent.thaw().await
        };
        if let Err(error) = going.await {
            tracing::warn!(vm = %vm.path().display(), %error, "microVM could not be let go on after a pause that failed");
        }
    }

    /// Starts the processors of a microVM that stands still though nobody pauses it: a pause was cut short.
    pub(super) async fn let_go_on(&self, sandbox: &SandboxId, nonce: &BootNonce) -> Result<()> {
        let vm = self.vm(sandbox);
        let Some(_lock) = vm.lock_power()? else { return Ok(()) };
        if vm.saved()?.is_some() {
            return Ok(());
        }
        if !matches!(watch::life(&vm).await?, Life::Running(process) if process.nonce == *nonce) {
            return Ok(());
        }
        let mut qmp = Qmp::connect(&vm).await?;
        let status = qmp.execute("query-status", json!({})).await?;
        if status["running"] == json!(false) {
            tracing::warn!(%sandbox, "microVM stood still after a pause that was cut short; it goes on");
            qmp.execute("cont", json!({})).await?;
        }
        // Of a pause or a snapshot that was cut short; nobody is at either.
        vm.forget_unused_devices();
        copying::end_left_over(&vm, qmp).await
    }
}

impl QemuDriver {
    /// Thaws a guest that is frozen though nobody pauses or resumes it: its pause was cut short, or the last word of its resume.
    pub(super) async fn thaw_left_over(&self, vm: &VmDir, agent: &QemuGuest) -> Result<()> {
        match agent.motion() {
            Motion::Moving => Ok(()),
            Motion::Frozen => match vm.lock_power()? {
                Some(_lock) if vm.saved()?.is_none() => agent.thaw().await,
                Some(_) | None => Ok(()),
            },
        }
    }
}

/// What is being saved.
pub(super) struct Work<'a> {
    pub vm: &'a VmDir,
    pub process: &'a ProcessRecord,
    pub snapshot: &'a SnapshotId,
    /// How long its data disk is, where that is a warm template's.
    pub placeholder: Option<ByteSize>,
}

/// The file with the devices' state.
pub(super) struct Devices {
    pub checksum: String,
    pub blocks: u64,
}

/// Makes what QEMU wrote last, and nobody else's to read.
pub(super) fn keep_devices(vm: &VmDir, snapshot: &SnapshotId) -> Result<Devices> {
    use std::os::unix::fs::MetadataExt as _;
    let path = vm.devices(snapshot);
    let file = File::open(&path).map_err(io_error("open", &path))?;
    file.set_permissions(Permissions::from_mode(0o600)).map_err(io_error("close", &path))?;
    file.sync_all().map_err(io_error("sync", &path))?;
    let checksum = checksum(&fs::read(&path).map_err(io_error("read", &path))?);
    Ok(Devices { checksum, blocks: file.metadata().map_err(io_error("inspect", &path))?.blocks() * 512 })
}

/// Says whose memory an error is about, and what to do where the kernel is asked to forbid looking at it.
pub(super) fn memory_error(vm: &VmDir) -> impl FnOnce(MemoryError) -> VmmError + Send + 'static + use<> {
    let sandbox = SandboxId(vm.name().into());
    move |source| match source {
        MemoryError::Forbidden { pid, source } => VmmError::Unsupported {
            problem: format!("the kernel does not allow to look into process {pid}, the VMM of {sandbox}: {source}"),
            hint: "set kernel.yama.ptrace_scope to 0, or give Setpoint the capability CAP_SYS_PTRACE".to_owned(),
        },
        source => VmmError::Memory { sandbox, source },
    }
}

pub(super) fn not_running(sandbox: &SandboxId) -> VmmError {
    VmmError::Vmm { vmm: "qemu", problem: format!("does not run that boot of {sandbox}") }
}

pub(super) fn not_running_in(vm: &VmDir) -> VmmError {
    VmmError::Vmm { vmm: "qemu", problem: format!("has no machine in {}", vm.path().display()) }
}

pub(super) fn busy_with_power(sandbox: &SandboxId) -> VmmError {
    VmmError::Vmm { vmm: "qemu", problem: format!("is already being paused or resumed for {sandbox}") }
}
