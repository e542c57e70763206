//! The driver for real microVMs: QEMU, with KVM where it truly works and emulation elsewhere, without any privileges.
//!
//! Each VMM runs under a [`crate::shim`], detached from the daemon. What is known of it stands in its directory (see
//! `vm_dir`), so that a driver that was made a moment ago knows as much as the one that launched it.
//!
//! ```text
//! <dir>/vms/<sandbox>/…          one microVM
//!       disks/<disk>.img         data disks
//!       templates/<digest>.img   root images
//!       kernels/<package>/…      kernels that were fetched
//!       warm/<key>/…             machines that were booted and saved, for others to begin from
//!       snapshots/<snapshot>/…   moments that were kept, for others to begin from, with a copy of the disk
//!       memory/…                 what paused microVMs had in memory (see `crate::memory`)
//!       cache/initramfs-*.cpio   made from agent, modules and busybox
//! ```

mod accel;
mod begun;
mod cgroup;
mod command;
mod copying;
mod cpio;
mod disk;
pub(crate) mod files;
mod fork;
mod guest;
mod initramfs;
mod kept_disk;
mod kernel;
mod launch;
mod left;
mod modules;
mod pause;
mod port;
mod probe;
pub(crate) mod process;
mod qmp;
mod resting;
mod resume;
mod saved;
mod template;
mod tidy;
mod trial;
pub(crate) mod vm_dir;
mod warm;
mod watch;

use std::borrow::Cow;
use std::collections::HashSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use setpoint_schema::id::{BootNonce, DiskId, SandboxId, SnapshotId, TemplateDigest};
use setpoint_schema::observed::{Machine, VmState};
use setpoint_schema::quantity::ByteSize;
use tokio::sync::{Mutex, OnceCell, RwLock};
use tokio_util::sync::CancellationToken;

pub use accel::{Accel, AccelChoice, ChosenAccel};
pub use command::{MachineType, Network};
pub use kernel::Kernel;
pub use probe::{Probe, ProbeStatus};

use crate::driver::{Driver, Guest, KeepDisk, Launched, Pause, Paused, Result, Take, Taken, TemplateSource, VmmError};
use crate::memory::Store;
use begun::Begun;
use cgroup::Hierarchy;
use command::Start;
use disk::{Disks, Ensured};
use guest::QemuGuest;
use launch::BootFiles;
use port::Connection;
use qmp::Qmp;
use template::Templates;
use vm_dir::VmDir;
use watch::Life;

/// The guest agent, a static program, as the `setpoint` binary carries it.
pub type AgentBinary = Cow<'static, [u8]>;

/// What a driver is made from.
#[derive(Debug, Clone)]
pub struct QemuConfig {
    /// Where everything of it lives.
    pub dir: PathBuf,
    /// A kernel image; otherwise one is found or fetched.
    pub kernel: Option<PathBuf>,
    /// The directory `lib/modules/<version>` of that kernel, where it is not beside the image or on the host.
    pub modules: Option<PathBuf>,
    /// The accelerator.
    pub accel: AccelChoice,
    /// The machine that guests see.
    pub machine: MachineType,
    /// What guests reach.
    pub network: Network,
    /// The program, otherwise `qemu-system-x86_64` on the PATH.
    pub qemu: Option<PathBuf>,
    /// The command that runs [`crate::shim::main`], to which its arguments are added.
    pub shim: Vec<OsString>,
    /// The guest agent.
    pub agent: AgentBinary,
    /// A static busybox, otherwise the host's.
    pub busybox: Option<PathBuf>,
}

/// Runs microVMs with QEMU.
pub struct QemuDriver {
    config: QemuConfig,
    qemu: FoundQemu,
    accel: ChosenAccel,
    cgroups: Hierarchy,
    disks: Disks,
    templates: Templates,
    /// Kernel and initramfs, prepared by the first launch.
    boot: OnceCell<BootFiles>,
    /// Making a disk or template, one at a time: they work under one temporary name each.
    making: Arc<Mutex<()>>,
    /// What paused microVMs had in memory.
    memory: Store,
    /// Held by whoever saves or resumes, and alone by whoever removes what nothing refers to.
    saving: RwLock<()>,
    /// Copying disks, one at a time, for the same reason.
    copying: Arc<Mutex<()>>,
    /// Whether there may be layers to merge or files to remove. What an earlier driver left may be such.
    untidy: AtomicBool,
    /// Snapshots of paused microVMs whose layers need no merging.
    merged: std::sync::Mutex<HashSet<SnapshotId>>,
    /// Making warm templates, one at a time.
    warming: Mutex<()>,
    /// Agents of microVMs that have just begun.
    begun: Begun<Connection>,
    /// How long the last restore took until everything was loaded.
    last_load: std::sync::Mutex<Option<Duration>>,
}

impl QemuDriver {
    /// The driver over `config.dir`. Looks for QEMU and the accelerator; makes nothing before it is needed.
    ///
    /// # Errors
    /// QEMU is not there.
    pub fn new(config: QemuConfig) -> Result<Self> {
        Ok(Self {
            qemu: find_qemu(config.qemu.as_deref())?,
            accel: accel::choose(config.accel),
            cgroups: Hierarchy::detect(),
            disks: Disks::new(config.dir.join("disks")),
            templates: Templates::new(config.dir.join("templates")),
            boot: OnceCell::new(),
            making: Arc::new(Mutex::new(())),
            copying: Arc::new(Mutex::new(())),
            memory: Store::new(config.dir.join("memory")),
            saving: RwLock::new(()),
            untidy: AtomicBool::new(true),
            merged: std::sync::Mutex::default(),
            warming: Mutex::new(()),
            begun: Begun::default(),
            last_load: std::sync::Mutex::default(),
            config,
        })
    }

    /// The accelerator and why it was chosen.
    #[must_use]
    pub fn accel(&self) -> &ChosenAccel {
        &self.accel
    }

    /// How long the last restore of this driver took from its beginning until memory and devices were loaded, and the processors
    /// could run.
    #[must_use]
    pub fn last_load(&self) -> Option<Duration> {
        *self.last_load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a driver of this configuration would find here. Changes nothing.
    #[must_use]
    pub fn probes(config: &QemuConfig) -> Vec<Probe> {
        probe::all(config)
    }

    /// The kernel that a driver over `dir` boots: the configured one, the host's, or the distribution's, which is fetched into
    /// `dir`. Blocks as long as the download takes.
    ///
    /// # Errors
    /// The configured one is not there; or there is none, and no apt, or it fails.
    pub fn ensure_kernel(dir: &Path, configured: Option<&Path>) -> Result<Kernel> {
        kernel::find_or_install(configured, None, &dir.join("kernels"))
    }

    /// QEMU's whole command line for `machine`, but for the channels that the shim adds: for whoever wants to compare or look.
    ///
    /// # Errors
    /// No kernel is here, or the template is not made.
    pub async fn command_line(&self, machine: &Machine) -> Result<Vec<OsString>> {
        let boot = self.boot_files().await?;
        let mut words = vec![self.qemu.path.clone().into_os_string()];
        words.extend(self.arguments(machine, boot, Start::Boot)?);
        Ok(words)
    }

    fn vm(&self, sandbox: &SandboxId) -> VmDir {
        VmDir::of(&self.config.dir.join("vms"), sandbox)
    }
}

#[async_trait]
impl Driver for QemuDriver {
    fn describe(&self) -> String {
        let ChosenAccel { accel, reason } = &self.accel;
        format!("qemu {}, accel {} ({reason}), cgroups {}", self.qemu.version, accel.as_str(), self.cgroups.as_str())
    }

    async fn list(&self) -> Result<Vec<Machine>> {
        VmDir::list(&self.config.dir.join("vms"))
    }

    async fn observe(&self, sandbox: &SandboxId) -> Result<VmState> {
        watch::observe(&self.vm(sandbox)).await
    }

    async fn cpu_time(&self, sandbox: &SandboxId) -> Result<Option<Duration>> {
        watch::cpu_time(&self.vm(sandbox)).await
    }

    async fn exited(&self, sandbox: &SandboxId, nonce: &BootNonce) {
        watch::exited(&self.vm(sandbox), nonce).await;
    }

    async fn launch(&self, machine: &Machine) -> Result<Launched> {
        self.ensure_running(machine).await
    }

    async fn prewarm(&self, machine: &Machine) -> Result<()> {
        self.make_warm(machine).await
    }

    async fn keep_warm(&self, machines: &[Machine]) -> Result<()> {
        self.keep_warm_for(machines).await
    }

    async fn settle(&self, sandbox: &SandboxId) -> Result<()> {
        self.settle_vm(sandbox).await
    }

    async fn clear_up(&self) -> Result<()> {
        self.clear_up_all().await
    }

    async fn tidy(&self, cancel: &CancellationToken) -> Result<Vec<SandboxId>> {
        self.tidy_up(cancel).await
    }

    async fn pause(&self, pause: Pause<'_>) -> Result<Paused> {
        self.pause_to_files(pause).await
    }

    async fn resume(&self, machine: &Machine) -> Result<()> {
        self.resume_from_files(machine).await
    }

    async fn take_snapshot(&self, take: Take<'_>) -> Result<Taken> {
        self.keep_moment(take).await
    }

    async fn launch_from(&self, machine: &Machine, snapshot: &SnapshotId) -> Result<()> {
        self.begin_from(machine, snapshot).await
    }

    async fn keep_disk(&self, keep: KeepDisk<'_>) -> Result<Taken> {
        self.keep_disk_alone(keep).await
    }

    async fn ensure_disk_from(&self, disk: &DiskId, snapshot: &SnapshotId, size: ByteSize) -> Result<()> {
        self.copy_kept_disk(disk, snapshot, size).await
    }

    async fn list_snapshots(&self) -> Result<Vec<(SnapshotId, ByteSize)>> {
        self.kept_moments()
    }

    async fn remove_snapshot(&self, snapshot: &SnapshotId) -> Result<()> {
        self.forget_moment(snapshot).await
    }

    async fn kill(&self, sandbox: &SandboxId) -> Result<()> {
        watch::kill(&self.vm(sandbox)).await
    }

    async fn remove(&self, sandbox: &SandboxId) -> Result<()> {
        let vm = self.vm(sandbox);
        self.end_left_over(&vm).await?;
        match watch::life(&vm).await? {
            Life::Running(_) => Err(busy(sandbox)),
            Life::Absent | Life::Ended(_) => {
                cgroup::release(&vm)?;
                let images = vm.images()?;
                vm.remove()?;
                if !images.is_empty() {
                    self.make_untidy();
                }
                Ok(())
            }
        }
    }

    async fn ensure_disk(&self, disk: &DiskId, size: ByteSize, user: Option<&SandboxId>) -> Result<()> {
        let _making = self.making.lock().await;
        let (disks, id) = (self.disks.clone(), disk.clone());
        let ensured = blocking(move || disks.ensure(&id, size)).await?;
        let running = match user {
            Some(sandbox) => matches!(watch::life(&self.vm(sandbox)).await?, Life::Running(_)),
            None => false,
        };
        match (ensured, user.filter(|_| running)) {
            (Ensured::TooShort, None) => self.disks.grow(disk, size),
            (Ensured::TooShort, Some(user)) => resize_in_vmm(&self.vm(user), size).await,
            // The file may have grown before a crash and QEMU not have heard of it.
            (Ensured::Kept, Some(user)) => {
                let present = self.disks.size(disk)?.unwrap_or(size);
                resize_in_vmm(&self.vm(user), present).await
            }
            (Ensured::Created, _) | (Ensured::Kept, None) => Ok(()),
        }
    }

    async fn disk_size(&self, disk: &DiskId) -> Result<Option<ByteSize>> {
        self.disks.size(disk)
    }

    async fn list_disks(&self) -> Result<Vec<(DiskId, ByteSize)>> {
        self.disks.list()
    }

    async fn delete_disk(&self, disk: &DiskId) -> Result<()> {
        self.disks.delete(disk)
    }

    async fn has_template(&self, digest: &TemplateDigest) -> Result<bool> {
        Ok(self.templates.root(digest).is_some())
    }

    async fn make_template(&self, digest: &TemplateDigest, root: Option<TemplateSource>) -> Result<()> {
        let making = Arc::clone(&self.making).lock_owned().await;
        let (templates, digest) = (self.templates.clone(), digest.clone());
        // The lock goes along: the work goes on if the caller does not wait for it.
        blocking(move || {
            let _making = making;
            templates.make(&digest, root.as_ref())
        })
        .await
    }

    async fn guest(&self, sandbox: &SandboxId, nonce: &BootNonce) -> Result<Arc<dyn Guest>> {
        if let Some(stream) = self.begun.take(sandbox, nonce) {
            // Nobody has talked to it but who began it. If it has ended meanwhile, the way below says so.
            if let Ok(agent) = QemuGuest::over(stream, sandbox, nonce).await {
                return Ok(agent);
            }
        }
        self.let_go_on(sandbox, nonce).await?;
        let vm = self.vm(sandbox);
        let agent = QemuGuest::connect(&vm, sandbox, nonce).await?;
        self.thaw_left_over(&vm, &agent).await?;
        Ok(agent)
    }

    async fn console_tail(&self, sandbox: &SandboxId, limit: usize) -> Result<Vec<u8>> {
        let path = self.vm(sandbox).file(vm_dir::CONSOLE_LOG);
        files::tail(&path, limit).map_err(files::io_error("read", &path))
    }
}

/// Tells QEMU, which lengthens the file itself and tells the guest.
async fn resize_in_vmm(vm: &VmDir, size: ByteSize) -> Result<()> {
    let mut qmp = Qmp::connect(vm).await?;
    qmp.execute("block_resize", json!({ "device": "data", "size": size.as_bytes() })).await.map(drop)
}

/// A QEMU on this host.
#[derive(Debug, Clone)]
struct FoundQemu {
    path: PathBuf,
    version: String,
}

fn find_qemu(configured: Option<&Path>) -> Result<FoundQemu> {
    let path = configured.map_or_else(|| PathBuf::from("qemu-system-x86_64"), Path::to_owned);
    let unsupported = |problem| VmmError::Unsupported {
        problem,
        hint: "install the package qemu-system-x86, or set `qemu` under [vmm]".to_owned(),
    };
    let output = Command::new(&path).arg("--version").output();
    let output = output.map_err(|error| unsupported(format!("{} cannot run: {error}", path.display())))?;
    let text = String::from_utf8_lossy(&output.stdout);
    // "QEMU emulator version 7.2.22 (Debian …)"
    let version = text.split_ascii_whitespace().skip_while(|word| *word != "version").nth(1);
    let version = version.ok_or_else(|| unsupported(format!("{} is no QEMU", path.display())))?.to_owned();
    Ok(FoundQemu { path, version })
}

fn busy(sandbox: &SandboxId) -> VmmError {
    VmmError::Vmm { vmm: "qemu", problem: format!("is still running for {sandbox}") }
}

/// Runs work that waits for files and programs where it holds up nobody.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(VmmError::Vmm { vmm: "qemu", problem: format!("work was given up: {error}") }),
    }
}
