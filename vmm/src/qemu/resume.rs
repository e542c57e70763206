//! Resuming a microVM: a new VMM maps the base, the changed pages are written into it, the devices are loaded, and the guest is
//! made one of its own before any of its processes runs.
//!
//! ```text
//! check ─▶ start ─▶ memory ─▶ devices ─▶ run, frozen ─▶ renew ─▶ origin.json for saved.json ─▶ thaw
//!    └───────┴─────────┴─────────┴───────────┴────────────┴─ an error: the VMM ends, saved.json says why
//! ```

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use serde_json::json;
use setpoint_schema::id::sha256_hex;
use setpoint_schema::observed::Machine;

use super::files::io_error;
use super::guest::{QemuGuest, with_causes};
use super::pause::{busy_with_power, memory_error};
use super::qmp::Qmp;
use super::saved::{OriginRecord, SavedRecord, Shape, VERSION, checksum};
use super::vm_dir::VmDir;
use super::watch::{self, Life};
use super::{QemuDriver, blocking};
use crate::driver::{ENTROPY, Guest, Kin, Renewal, Result, VmmError};
use crate::failpoint::reach;
use crate::memory::{GuestRam, Loading, Mapped};

/// What the descriptor of the devices' state is called at the monitor.
const STATE_FD: &str = "state";

impl QemuDriver {
    /// Makes a paused microVM go on as the boot that `machine` names.
    pub(super) async fn resume_from_files(&self, machine: &Machine) -> Result<()> {
        let vm = self.vm(&machine.sandbox);
        let unsaved = |problem: String| VmmError::Vmm { vmm: "qemu", problem };
        if !vm.path().exists() {
            return Err(unsaved(format!("has no saved state of {}", machine.sandbox)));
        }
        let _lock = vm.lock_power_soon().await?.ok_or_else(|| busy_with_power(&machine.sandbox))?;
        let Some(saved) = vm.saved()? else {
            return match watch::life(&vm).await? {
                // Done already; only the last word may be missing.
                Life::Running(process) if process.nonce == machine.nonce => {
                    thaw(&*QemuGuest::connect(&vm, &machine.sandbox, &machine.nonce).await?).await
                }
                Life::Running(_) | Life::Absent | Life::Ended(_) => {
                    Err(unsaved(format!("has no saved state of {}", machine.sandbox)))
                }
            };
        };
        // Left over from a pause or resume that was cut short.
        watch::kill(&vm).await?;
        let _saving = self.saving.read().await;
        match self.restore(&vm, machine, &saved).await {
            Ok(agent) => {
                thaw(&*agent).await?;
                vm.forget_unused_devices();
                Ok(())
            }
            Err(error) => {
                watch::kill(&vm).await?;
                let fault = Some(with_causes(&error));
                vm.write_saved(&SavedRecord { fault, ..saved })?;
                Err(error)
            }
        }
    }

    /// Everything up to the point from which there is no way back, and the connection to the agent, which stands still yet.
    async fn restore(&self, vm: &VmDir, machine: &Machine, saved: &SavedRecord) -> Result<Arc<dyn Guest>> {
        self.check(machine, &self.shape(machine), saved)?;
        self.load(vm, machine, saved, &vm.devices(&saved.snapshot)).await?;
        let agent = QemuGuest::connect(vm, &machine.sandbox, &saved.nonce).await?;
        reach("resume/renew")?;
        agent.renew(&renewal(machine).map_err(io_error("read", "/dev/urandom".as_ref()))?).await?;
        reach("resume/commit")?;
        vm.commit_resumed(&OriginRecord { nonce: machine.nonce.clone(), snapshot: saved.snapshot.clone() })?;
        Ok(agent)
    }

    /// Starts a VMM with what was saved, memory and devices, and lets its processors run.
    pub(super) async fn load(&self, vm: &VmDir, machine: &Machine, saved: &SavedRecord, devices: &Path) -> Result<()> {
        let mut qmp = self.load_stopped(vm, machine, saved, devices).await?;
        reach("resume/run")?;
        qmp.execute("cont", json!({})).await.map(drop)
    }

    /// The same but for the last: its processors stand still.
    pub(super) async fn load_stopped(
        &self,
        vm: &VmDir,
        machine: &Machine,
        saved: &SavedRecord,
        devices: &Path,
    ) -> Result<Qmp> {
        let started = Instant::now();
        let store = self.memory.clone();
        let image = store.image(&saved.snapshot).map_err(memory_error(vm))?;
        let base = image.base.clone().map(|base| store.base_path(&base));
        let base = base.ok_or_else(|| damaged(machine, "its memory has no base"))?;
        // Reading and checking goes on while QEMU starts.
        let loading = Loading::start(&store, image);
        let devices = open_devices(devices, machine, saved)?;
        reach("resume/start")?;
        self.start_incoming(vm, machine, &base).await?;
        let mut qmp = Qmp::connect(vm).await?;
        let process = vm.process()?.ok_or_else(|| damaged(machine, "its VMM left no record"))?;
        let (pid, bytes, failed) = (process.qemu.pid, machine.memory_mib << 20, memory_error(vm));
        reach("resume/memory")?;
        let load = move || loading.finish(&GuestRam::find(pid, bytes, Mapped::Base(&base))?);
        blocking(move || load().map_err(failed)).await?;
        reach("resume/devices")?;
        qmp.migrate_in(devices.as_fd(), STATE_FD).await?;
        *self.last_load.lock().unwrap_or_else(PoisonError::into_inner) = Some(started.elapsed());
        // Another length than the guest knows is news to it, and it does not look by itself.
        let length = self.disks.size(&machine.disk)?;
        if let Some(size) = length.filter(|size| saved.disk_bytes != Some(size.as_bytes())) {
            qmp.execute("block_resize", json!({ "device": "data", "size": size.as_bytes() })).await?;
        }
        Ok(qmp)
    }

    /// Whether what was saved can go on here at all.
    pub(super) fn check(&self, machine: &Machine, shape: &Shape, saved: &SavedRecord) -> Result<()> {
        if saved.version != VERSION {
            return Err(damaged(machine, "it was saved in another form"));
        }
        match shape.difference(&saved.shape) {
            None => Ok(()),
            Some(difference) => Err(VmmError::Unsupported {
                problem: format!("{} cannot go on from its saved state: {difference}", machine.sandbox),
                hint: "boot it from its disk instead".to_owned(),
            }),
        }
    }
}

/// The last step: the guest's processes go on. It can be repeated.
async fn thaw(agent: &dyn Guest) -> Result<()> {
    reach("resume/thaw")?;
    agent.thaw().await
}

/// The devices' state, checked.
fn open_devices(path: &Path, machine: &Machine, saved: &SavedRecord) -> Result<File> {
    let content = std::fs::read(path).map_err(io_error("read", path))?;
    if checksum(&content) != saved.devices {
        return Err(damaged(machine, "the checksum of its devices' state does not match"));
    }
    File::open(path).map_err(io_error("open", path))
}

/// What makes the guest one of its own: the names follow from the sandbox, so that they stay the same over its boots.
pub(super) fn renewal(machine: &Machine) -> io::Result<Renewal> {
    let mut entropy = [0; ENTROPY];
    io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut entropy)?;
    let digest = sha256_hex(&[b"machine", machine.sandbox.as_str().as_bytes()]);
    let byte = |at: usize| u8::from_str_radix(&digest[32 + 2 * at..34 + 2 * at], 16).unwrap_or_default();
    // Locally administered, and not a group's.
    let mac = [0x02, byte(0), byte(1), byte(2), byte(3), byte(4)];
    Ok(Renewal {
        nonce: machine.nonce.clone(),
        entropy,
        hostname: machine.app.name.to_string(),
        machine_id: digest[..32].to_owned(),
        mac,
        kin: Kin::Itself,
    })
}

fn damaged(machine: &Machine, problem: &str) -> VmmError {
    VmmError::Vmm { vmm: "qemu", problem: format!("cannot resume {}: {problem}", machine.sandbox) }
}
