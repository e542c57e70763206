//! A driver over a directory of its own, whose VMMs do not survive the test.

use std::borrow::Cow;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use setpoint_schema::id::{BootNonce, DiskId, SandboxId, TemplateDigest};
use setpoint_schema::name::{AppKey, AppName, Team};
use setpoint_schema::observed::Machine;
use setpoint_schema::quantity::ByteSize;
use setpoint_vmm::driver::Driver;
use setpoint_vmm::qemu::{AccelChoice, AgentBinary, MachineType, Network, QemuConfig, QemuDriver};

/// The size that every test's data disk begins with.
pub const DISK: ByteSize = ByteSize::mib(64);

/// A directory with a driver, a template and a disk.
pub struct Host {
    dir: tempfile::TempDir,
    config: QemuConfig,
    /// The driver.
    pub driver: QemuDriver,
    /// What to launch.
    pub machine: Machine,
}

impl Host {
    /// With a script in the agent's place, run by busybox: for all that needs no agent.
    pub async fn with_init(script: &str) -> Self {
        let script = format!("#!/template/bin/busybox sh\nexport PATH=/template/bin\n{script}\n");
        Self::with_agent(Cow::Owned(script.into_bytes())).await
    }

    /// With the real agent.
    pub async fn with_real_agent() -> Self {
        Self::with_agent(Cow::Owned(fs::read(build_agent()).unwrap())).await
    }

    async fn with_agent(agent: AgentBinary) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = QemuConfig {
            // Longer than the address of a Unix socket may be.
            dir: dir.path().join("d".repeat(120)),
            kernel: Some(kernel()),
            modules: None,
            accel: AccelChoice::Auto,
            machine: MachineType::Microvm,
            network: Network::User,
            qemu: None,
            shim: vec![env!("CARGO_BIN_EXE_setpoint-vm-shim").into()],
            agent,
            busybox: None,
        };
        let driver = QemuDriver::new(config.clone()).unwrap();
        let machine = machine("0123456789abcdef0123456789abcdef");
        driver.make_template(&machine.template, None).await.unwrap();
        driver.ensure_disk(&machine.disk, DISK, None).await.unwrap();
        Self { dir, config, driver, machine }
    }

    /// What a daemon has that was started a moment ago.
    pub fn another_driver(&self) -> QemuDriver {
        QemuDriver::new(self.config.clone()).unwrap()
    }

    /// The microVM's directory.
    pub fn vm_dir(&self) -> PathBuf {
        self.config.dir.join("vms").join(self.machine.sandbox.as_str())
    }

    /// The kernel that its microVMs boot.
    pub fn kernel(&self) -> &Path {
        self.config.kernel.as_deref().unwrap()
    }

    /// A file of the driver's directory.
    pub fn file(&self, path: &str) -> PathBuf {
        self.config.dir.join(path)
    }

    /// The process that `process.json` names, as `qemu` or `shim`.
    pub fn pid(&self, role: &str) -> Pid {
        recorded_pid(&self.vm_dir(), role).unwrap()
    }

    /// The same of another sandbox's microVM.
    pub fn pid_of(&self, machine: &Machine, role: &str) -> Pid {
        recorded_pid(&self.dir_of(machine), role).unwrap()
    }

    /// Ends another sandbox's microVM, whatever it does.
    pub fn end(&self, machine: &Machine) {
        for role in ["qemu", "shim"] {
            if let Some(pid) = recorded_pid(&self.dir_of(machine), role).filter(|pid| runs_in(*pid, self.dir.path())) {
                kill_and_wait(pid);
            }
        }
    }

    fn dir_of(&self, machine: &Machine) -> PathBuf {
        self.config.dir.join("vms").join(machine.sandbox.as_str())
    }

    /// The control groups that the microVM has.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let Ok(record) = fs::read(self.vm_dir().join("cgroup.json")) else { return Vec::new() };
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap_or_default();
        serde_json::from_value(record["directories"].clone()).unwrap_or_default()
    }
}

impl Drop for Host {
    /// Also after a failed assertion nothing stays behind.
    fn drop(&mut self) {
        for role in ["qemu", "shim"] {
            if let Some(pid) = recorded_pid(&self.vm_dir(), role).filter(|pid| runs_in(*pid, self.dir.path())) {
                kill_and_wait(pid);
            }
        }
        let started = Instant::now();
        for group in self.cgroups() {
            // A VMM that ended by itself may be on its way out still.
            while fs::remove_dir(&group).is_err() && group.exists() && started.elapsed() < Duration::from_secs(5) {
                std::thread::yield_now();
            }
        }
    }
}

fn kill_and_wait(pid: Pid) {
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    if pidfd_send_signal(&process, Signal::KILL).is_ok() {
        let _ = poll(&mut [PollFd::new(&process, PollFlags::IN)], None);
    }
}

/// A machine of the sandbox that every test has.
pub fn machine(nonce: &str) -> Machine {
    Machine {
        sandbox: SandboxId("blog-00000001".into()),
        app: AppKey::new(Team::default_team(), AppName::new("blog").unwrap()),
        uid: None,
        nonce: BootNonce(nonce.into()),
        vcpus: 1,
        memory_mib: 256,
        template: TemplateDigest("minimal".into()),
        disk: DiskId("blog-00000001".into()),
    }
}

fn recorded_pid(vm_dir: &Path, role: &str) -> Option<Pid> {
    let record: serde_json::Value = serde_json::from_slice(&fs::read(vm_dir.join("process.json")).ok()?).ok()?;
    Pid::from_raw(record[role]["pid"].as_i64()?.try_into().ok()?)
}

/// A number that passed to another process must not be killed.
fn runs_in(pid: Pid, directory: &Path) -> bool {
    fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero())).is_ok_and(|cwd| cwd.starts_with(directory))
}

/// The host's kernel, or one that is fetched once for all tests.
fn kernel() -> PathBuf {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("qemu");
    fs::create_dir_all(&cache).unwrap();
    let lock = File::create(cache.join("lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    QemuDriver::ensure_kernel(&cache, None).unwrap().image
}

/// The agent as the `setpoint` binary carries it.
fn build_agent() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let target = workspace.join("target/agent");
    let status = Command::new(env!("CARGO"))
        .current_dir(workspace)
        .args(["build", "--quiet", "--locked", "--package", "setpoint-guest", "--bin", "setpoint-agent"])
        .args(["--profile", "agent", "--target", "x86_64-unknown-linux-gnu"])
        .env("CARGO_TARGET_DIR", &target)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .status()
        .unwrap();
    assert!(status.success());
    target.join("x86_64-unknown-linux-gnu/agent/setpoint-agent")
}
