//! Warm templates: one machine of each kind is booted up to the point where it is nobody's yet, and saved. Every microVM of that kind
//! then begins as a private copy of its memory, and is told whose it is, instead of booting.
//!
//! ```text
//! warm/<key>/saved.json, <snapshot>.state   as of a paused microVM, whose memory lies with all others'
//!            placeholder.img                its own data disk, which no other machine has
//! ```
//!
//! The key is a hash over everything that the saved state depends on, so that a change of any of it makes another one.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use serde_json::json;
use setpoint_guest::client::BlankClient;
use setpoint_guest::handshake::ConnectionNonce;
use setpoint_schema::id::{BootNonce, DiskId, SandboxId, SnapshotId, hex, sha256_hex};
use setpoint_schema::observed::Machine;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::command::Start;
use super::disk::{SMALLEST, make_disk};
use super::files::{io_error, remove_if_there};
use super::guest::{renew_request, with_causes};
use super::pause::Work;
use super::port::Connection;
use super::process::{self, ProcessId};
use super::resume::renewal;
use super::saved::{OriginRecord, SavedRecord, Shape};
use super::vm_dir::{AGENT_SOCKET, VmDir};
use super::watch::{self, Life};
use super::{QemuDriver, blocking, busy};
use crate::driver::{Cold, Launched, Result, VmmError};
use crate::failpoint::reach;

/// How long a machine may take to boot, under emulation on a busy host.
const BOOT: Duration = Duration::from_secs(180);

/// How long a booted machine's timers are given: its network is brought up by and by, and asks for its last neighbour after some
/// seconds.
const SETTLE: Duration = Duration::from_secs(5);

/// How long it is waited for to come to rest after that, how often it is looked at, and the processor time in between that counts
/// as work: the kernel counts in hundredths of a second, and a guest at rest takes some milliseconds for its timers.
const REST: Duration = Duration::from_secs(5);
const REST_LOOK: Duration = Duration::from_millis(250);
const BUSY: Duration = Duration::from_millis(20);

/// The data disk of a template: an empty one, for the guest to try its mounting on. It is as long as that of the machine that the
/// template was made for, where that has one: a guest need not be told of a disk that is as long as the one it knows.
const PLACEHOLDER: &str = "placeholder.img";

impl QemuDriver {
    /// Makes the warm template that `machine` could begin from, unless it is there.
    pub(super) async fn make_warm(&self, machine: &Machine) -> Result<()> {
        let _warming = self.warming.lock().await;
        let vm = self.warm(machine).await?;
        if vm.saved()?.is_some() {
            return Ok(());
        }
        vm.create()?;
        let Some(_lock) = vm.lock_power()? else { return Err(busy(&machine.sandbox)) };
        // Left over from an earlier try that was cut short.
        watch::kill(&vm).await?;
        let made = self.boot_and_save(&vm, machine).await;
        watch::kill(&vm).await?;
        super::cgroup::release(&vm)?;
        vm.forget_unused_devices();
        made
    }

    async fn boot_and_save(&self, vm: &VmDir, machine: &Machine) -> Result<()> {
        let blank = Machine {
            sandbox: SandboxId(vm.name().into()),
            nonce: BootNonce(random_id()?.into()),
            disk: DiskId(PLACEHOLDER.into()),
            ..machine.clone()
        };
        let placeholder = vm.file(PLACEHOLDER);
        let disk = self.disks.size(&machine.disk)?.unwrap_or(SMALLEST);
        let path = placeholder.clone();
        blocking(move || make_disk(&path, disk)).await?;
        self.start_blank(vm, &blank, Start::Blank { data: placeholder }).await?;
        // Kept until the machine has been saved: it waits for the next request, and its copies begin by reading one.
        let mut client = self.blank(vm).await?;
        let answered = client.hello().await.map_err(|error| astray(vm, &with_causes(&error)))?;
        if answered != blank.nonce.as_str() {
            return Err(astray(vm, "another machine answers"));
        }
        let Life::Running(process) = watch::life(vm).await? else { return Err(astray(vm, "it has ended")) };
        at_rest(vm, process.qemu).await?;
        let _saving = self.saving.read().await;
        let snapshot = SnapshotId(random_id()?);
        let work = Work { vm, process: &process, snapshot: &snapshot, placeholder: Some(disk) };
        reach("warm/save")?;
        let saved = self.save(&work, &CancellationToken::new()).await;
        drop(client);
        saved.map(drop)
    }

    /// Begins a boot from its warm template; says why not, where that cannot be.
    pub(super) async fn begin_warm(&self, vm: &VmDir, machine: &Machine) -> Result<Launched> {
        let warm = self.warm(machine).await?;
        let Some(saved) = warm.saved()? else { return Ok(Launched::Cold(Cold::NotWarm)) };
        let _saving = self.saving.read().await;
        vm.write_origin(&OriginRecord { nonce: machine.nonce.clone(), snapshot: saved.snapshot.clone() })?;
        vm.begin()?;
        let restored = self.restore_blank(vm, machine, &warm, &saved).await;
        if restored.is_err() {
            watch::kill(vm).await?;
        }
        vm.begun()?;
        let error = match restored {
            Ok(stream) => {
                self.begun.keep(&machine.sandbox, &machine.nonce, stream);
                return Ok(Launched::Warm);
            }
            Err(error) => error,
        };
        vm.forget_origin()?;
        // Whatever is wrong with it: the next one is made anew.
        warm.forget_saved()?;
        Ok(Launched::Cold(Cold::Failed(with_causes(&error))))
    }

    /// Makes a copy of a template somebody's; the stream on which its agent goes on.
    async fn restore_blank(
        &self,
        vm: &VmDir,
        machine: &Machine,
        warm: &VmDir,
        saved: &SavedRecord,
    ) -> Result<Connection> {
        let shape = Shape { disk: PLACEHOLDER.to_owned(), ..self.shape(machine) };
        self.check(machine, &shape, saved)?;
        reach("warm/load")?;
        let mut qmp = self.load_stopped(vm, machine, saved, &warm.devices(&saved.snapshot)).await?;
        // The port was held when the template was saved. It is held again before the guest runs, which so sees no change of it.
        let stream = connect(vm).await?;
        qmp.execute("query-status", json!({})).await?;
        let nonce = ConnectionNonce::parse(saved.nonce.as_str()).ok_or_else(|| astray(vm, "its nonce is none"))?;
        let client = BlankClient::restored(stream, nonce);
        qmp.send(&[("cont", json!({}))]).await?;
        let renewal = renewal(machine).map_err(io_error("read", "/dev/urandom".as_ref()))?;
        let mut request = renew_request(&saved.nonce, &renewal);
        request.disk_bytes = self.disks.size(&machine.disk)?.unwrap_or_default().as_bytes();
        reach("warm/become")?;
        let (runs, stream) = tokio::join!(qmp.answer_to("cont"), client.become_somebodys(request));
        runs?;
        stream.map_err(|error| astray(vm, &with_causes(&error)))
    }

    async fn blank(&self, vm: &VmDir) -> Result<BlankClient<Connection>> {
        match timeout(BOOT, BlankClient::connect(connect(vm).await?)).await {
            Ok(client) => client.map_err(|error| astray(vm, &with_causes(&error))),
            Err(_) => Err(astray(vm, &format!("it did not answer within {} s", BOOT.as_secs()))),
        }
    }

    /// Removes every warm template that none of `machines` could begin from.
    pub(super) async fn keep_warm_for(&self, machines: &[Machine]) -> Result<()> {
        let _warming = self.warming.lock().await;
        let mut kept = BTreeSet::new();
        for machine in machines {
            kept.insert(self.warm(machine).await?.name());
        }
        let all = VmDir::all(&self.config.dir.join("warm"))?;
        let unused: Vec<_> = all.into_iter().filter(|vm| !kept.contains(&vm.name())).collect();
        for vm in &unused {
            // Nobody makes one now, so what runs was left over by a daemon that ended while it did.
            watch::kill(vm).await?;
            super::cgroup::release(vm)?;
            vm.remove()?;
        }
        if !unused.is_empty() {
            self.make_untidy();
        }
        Ok(())
    }

    /// The directory of the warm template that `machine` could begin from, made or not.
    async fn warm(&self, machine: &Machine) -> Result<VmDir> {
        let Shape { qemu, machine: options, accel, cpu, vcpus, memory_mib, template, disk: _ } = self.shape(machine);
        let boot = self.boot_files().await?;
        let kernel = fs::metadata(&boot.kernel.image).map_err(io_error("inspect", &boot.kernel.image))?;
        let kernel = format!("{} {} {}", boot.kernel.image.display(), kernel.len(), kernel.mtime());
        let size = format!("{vcpus} {memory_mib} {:?}", self.config.network);
        // The initramfs is named after its content, the agent's with it.
        let initramfs = boot.initramfs.to_string_lossy();
        let parts = [&qemu, &options, &accel, &cpu, &size, &template, &kernel, initramfs.as_ref()];
        let key = sha256_hex(&parts.map(str::as_bytes));
        Ok(VmDir::of(&self.config.dir.join("warm"), &SandboxId(key[..32].into())))
    }
}

impl VmDir {
    /// What the memory of a boot is made from that is about to begin.
    pub(super) fn write_origin(&self, origin: &OriginRecord) -> Result<()> {
        let path = self.file(super::saved::ORIGIN);
        super::files::write_json(&path, origin).map_err(io_error("write", &path))
    }

    pub(super) fn forget_origin(&self) -> Result<()> {
        let path = self.file(super::saved::ORIGIN);
        remove_if_there(&path).map_err(io_error("remove", &path))
    }

    fn forget_saved(&self) -> Result<()> {
        let path = self.file(super::saved::SAVED);
        remove_if_there(&path).map_err(io_error("remove", &path))
    }
}

/// Waits until the guest has nothing left to do: what it has half done when it is saved, every copy of it has to do first.
async fn at_rest(vm: &VmDir, qemu: ProcessId) -> Result<()> {
    let taken = || process::cpu_time(qemu).map_err(io_error("read the times of", vm.path()));
    sleep(SETTLE).await;
    let until = Instant::now() + REST;
    let mut before = taken()?;
    while Instant::now() < until {
        sleep(REST_LOOK).await;
        let now = taken()?;
        let (Some(then), Some(now)) = (before, now) else { return Err(astray(vm, "it has ended")) };
        if now.saturating_sub(then) < BUSY {
            return Ok(());
        }
        before = Some(now);
    }
    Ok(())
}

async fn connect(vm: &VmDir) -> Result<Connection> {
    vm.connect_agent().await.map_err(io_error("connect to", &vm.file(AGENT_SOCKET)))
}

fn astray(vm: &VmDir, problem: &str) -> VmmError {
    VmmError::Vmm { vmm: "qemu", problem: format!("machine in {} cannot be used: {problem}", vm.path().display()) }
}

/// A name that nothing else has: 32 hex digits.
pub(super) fn random_id() -> Result<String> {
    let mut bytes = [0; 16];
    let path = std::path::Path::new("/dev/urandom");
    File::open(path).and_then(|mut file| file.read_exact(&mut bytes)).map_err(io_error("read", path))?;
    Ok(hex(&bytes))
}
