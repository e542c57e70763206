//! Starting a microVM: what it boots from, its command line, and the shim that runs it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use setpoint_schema::id::BootNonce;
use setpoint_schema::observed::Machine;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;
use tokio::time::timeout;

use super::command::{CommandLine, Start, cpu, machine_option};
use super::initramfs::Busybox;
use super::kernel::Kernel;
use super::process::ProcessRecord;
use super::qmp::Qmp;
use super::saved::Shape;
use super::template::Root;
use super::vm_dir::{VMM_LOG, VmDir};
use super::watch::{self, Life};
use super::{QemuDriver, blocking, busy, cgroup, initramfs, kernel, modules};
use crate::driver::{Launched, Result, VmmError};

/// How long a shim may take to say that it has begun: it makes two sockets and starts one process.
const BEGIN: Duration = Duration::from_secs(20);

/// How long a QEMU that refused its command line may take to be gone.
const GOING: Duration = Duration::from_secs(2);

/// How much of QEMU's complaint an error quotes.
const COMPLAINT_BYTES: usize = 2048;

/// What every microVM of this driver boots from.
#[derive(Debug, Clone)]
pub(super) struct BootFiles {
    pub kernel: Kernel,
    pub initramfs: PathBuf,
}

impl QemuDriver {
    /// Makes sure that `machine` runs with its nonce.
    pub(super) async fn ensure_running(&self, machine: &Machine) -> Result<Launched> {
        let vm = self.vm(&machine.sandbox);
        self.end_left_over(&vm).await?;
        match watch::life(&vm).await? {
            Life::Running(process) if process.nonce == machine.nonce && !vm.is_beginning()? => {
                self.confine(&vm, machine, &process);
                accepted(&vm, &machine.nonce).await?;
                return Ok(Launched::Already);
            }
            Life::Running(_) => return Err(busy(&machine.sandbox)),
            Life::Absent | Life::Ended(_) => {}
        }
        // What is missing is found before anything is changed.
        let arguments = self.arguments(machine, self.boot_files().await?, Start::Boot)?;
        vm.create()?;
        let Some(_lock) = vm.lock_power()? else { return Err(busy(&machine.sandbox)) };
        vm.abandon_saved()?;
        vm.begun()?;
        match self.begin_warm(&vm, machine).await? {
            cold @ Launched::Cold(_) => self.start(&vm, machine, arguments).await.map(|()| cold),
            done @ (Launched::Warm | Launched::Already) => Ok(done),
        }
    }

    /// Starts a VMM that is nobody's.
    pub(super) async fn start_blank(&self, vm: &VmDir, machine: &Machine, start: Start) -> Result<()> {
        let arguments = self.arguments(machine, self.boot_files().await?, start)?;
        self.start(vm, machine, arguments).await
    }

    /// Starts a VMM that waits for its devices' state, over a base.
    pub(super) async fn start_incoming(&self, vm: &VmDir, machine: &Machine, base: &Path) -> Result<()> {
        let start = Start::Incoming { base: absolute(base) };
        let arguments = self.arguments(machine, self.boot_files().await?, start)?;
        self.start(vm, machine, arguments).await
    }

    async fn start(&self, vm: &VmDir, machine: &Machine, arguments: Vec<OsString>) -> Result<()> {
        cgroup::release(vm)?;
        vm.write_machine(machine)?;
        self.start_shim(vm, machine, arguments).await?;
        if let Some(process) = vm.process()? {
            self.confine(vm, machine, &process);
        }
        accepted(vm, &machine.nonce).await
    }

    /// What a saved state of `machine` would belong to.
    pub(super) fn shape(&self, machine: &Machine) -> Shape {
        let accel = self.accel.accel;
        Shape {
            qemu: self.qemu.version.clone(),
            machine: machine_option(self.config.machine, accel),
            accel: accel.as_str().to_owned(),
            cpu: cpu(accel).to_owned(),
            vcpus: machine.vcpus,
            memory_mib: machine.memory_mib,
            template: machine.template.to_string(),
            disk: machine.disk.to_string(),
        }
    }

    /// Kernel and initramfs, found or made once.
    pub(super) async fn boot_files(&self) -> Result<&BootFiles> {
        let config = self.config.clone();
        self.boot
            .get_or_try_init(|| {
                blocking(move || {
                    let kernels = config.dir.join("kernels");
                    let kernel =
                        kernel::find_or_install(config.kernel.as_deref(), config.modules.as_deref(), &kernels)?;
                    let modules = modules::load(&kernel, config.machine)?;
                    let busybox = Busybox::read(&Busybox::find(config.busybox.as_deref())?)?;
                    let initramfs = initramfs::prepare(&config.dir.join("cache"), &config.agent, &modules, &busybox)?;
                    Ok(BootFiles { kernel, initramfs })
                })
            })
            .await
    }

    /// QEMU's arguments for `machine`. What it names must be there: a missing file is found here rather than by QEMU.
    pub(super) fn arguments(&self, machine: &Machine, boot: &BootFiles, start: Start) -> Result<Vec<OsString>> {
        let missing =
            |what: String| VmmError::Vmm { vmm: "qemu", problem: format!("cannot start: {what} is not made yet") };
        let root = match self.templates.root(&machine.template) {
            Some(Root::BuiltIn) => None,
            Some(Root::Image(image)) => Some(image),
            None => return Err(missing(format!("template {}", machine.template))),
        };
        let data = match &start {
            Start::Blank { data } => data.clone(),
            Start::Boot | Start::Incoming { base: _ } => match self.disks.size(&machine.disk)? {
                Some(_) => self.disks.path(&machine.disk),
                None => return Err(missing(format!("data disk {}", machine.disk))),
            },
        };
        let line = CommandLine {
            machine_type: self.config.machine,
            network: self.config.network,
            accel: self.accel.accel,
            machine,
            kernel: absolute(&boot.kernel.image),
            initramfs: absolute(&boot.initramfs),
            root: root.as_deref().map(absolute),
            data: absolute(data),
            start,
        };
        Ok(line.arguments())
    }

    /// Starts the shim and waits for its report, which is empty when QEMU has been started.
    async fn start_shim(&self, vm: &VmDir, machine: &Machine, arguments: Vec<OsString>) -> Result<()> {
        let failed = |problem: String| VmmError::Vmm { vmm: "qemu", problem: format!("was not started: {problem}") };
        let (program, prefix) =
            self.config.shim.split_first().ok_or_else(|| failed("no shim is configured".to_owned()))?;
        let mut shim = Command::new(program)
            .args(prefix)
            .arg(machine.nonce.as_str())
            .arg(&self.qemu.path)
            .args(arguments)
            .current_dir(vm.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| failed(format!("shim cannot run: {error}")))?;
        let mut output = shim.stdout.take().ok_or_else(|| failed("shim has no output".to_owned()))?;
        // Outlives this daemon; as long as this one lives, it asks how the shim ended, so that no zombie stays.
        tokio::spawn(async move { shim.wait().await });
        let mut report = String::new();
        match timeout(BEGIN, (&mut output).take(COMPLAINT_BYTES as u64).read_to_string(&mut report)).await {
            Ok(Ok(_)) if report.is_empty() => Ok(()),
            Ok(Ok(_)) => Err(failed(report.trim().to_owned())),
            Ok(Err(error)) => Err(failed(format!("shim's report cannot be read: {error}"))),
            Err(_) => Err(failed(format!("shim did not report within {} s", BEGIN.as_secs()))),
        }
    }

    /// Limits the VMM where the host lets this user. A VMM without limits is better than none.
    fn confine(&self, vm: &VmDir, machine: &Machine, process: &ProcessRecord) {
        if let Err(error) = self.cgroups.confine(vm, machine, process) {
            tracing::warn!(sandbox = %machine.sandbox, %error, "microVM runs without limits of the host");
        }
    }
}

/// Waits until QEMU has taken the machine: its monitor answers. Otherwise says what it complained of.
async fn accepted(vm: &VmDir, nonce: &BootNonce) -> Result<()> {
    let answer = async { Qmp::connect(vm).await?.execute("query-status", json!({})).await };
    let Err(error) = answer.await else { return Ok(()) };
    // A QEMU that goes closes its monitor first.
    let _ = timeout(GOING, watch::exited(vm, nonce)).await;
    match watch::life(vm).await? {
        Life::Running(_) => Err(error),
        Life::Absent | Life::Ended(_) => {
            let complaint = vm.log_tail(VMM_LOG, COMPLAINT_BYTES)?;
            let problem = if complaint.is_empty() { "ended at once".to_owned() } else { format!("ended: {complaint}") };
            Err(VmmError::Vmm { vmm: "qemu", problem })
        }
    }
}

/// QEMU runs in another directory than the daemon.
pub(super) fn absolute(path: impl AsRef<std::path::Path>) -> PathBuf {
    std::path::absolute(path.as_ref()).unwrap_or_else(|_| path.as_ref().to_owned())
}
