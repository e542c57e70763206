//! The directory of one microVM: names of its files and what they say of it.
//!
//! ```text
//! vms/<sandbox>/machine.json   what was to be launched, written before anything else
//!               lock           held by shim and VMM: taken is running
//!               process.json   who runs it          (shim)
//!               exit.json      how it ended         (shim)
//!               qmp.sock, agent.sock                (shim, then QEMU)
//!               console.log[.1], vmm.log[.1]        (shim)
//!               cgroup.json    its control groups, where it has some
//! ```

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use setpoint_schema::id::{BootNonce, SandboxId};
use setpoint_schema::observed::{ExitReason, Machine};
use tokio::net::UnixStream;

use super::files::{io_error, read_json, tail, write_json};
use super::process::{ExitRecord, ProcessRecord};
use crate::driver::Result;

pub(crate) const MACHINE: &str = "machine.json";
pub(crate) const LOCK: &str = "lock";
pub(crate) const PROCESS: &str = "process.json";
pub(crate) const EXIT: &str = "exit.json";
pub(crate) const QMP_SOCKET: &str = "qmp.sock";
pub(crate) const AGENT_SOCKET: &str = "agent.sock";
pub(crate) const CONSOLE_LOG: &str = "console.log";
pub(crate) const VMM_LOG: &str = "vmm.log";
pub(crate) const CGROUP: &str = "cgroup.json";

/// One microVM's directory, there or not.
#[derive(Debug, Clone)]
pub(crate) struct VmDir {
    path: PathBuf,
}

impl VmDir {
    /// The directory of `sandbox` among all of them.
    pub fn of(vms: &Path, sandbox: &SandboxId) -> Self {
        Self { path: vms.join(sandbox.as_str()) }
    }

    /// The directories among `vms` that a launch has got as far as writing its machine into.
    pub fn list(vms: &Path) -> Result<Vec<Machine>> {
        let mut machines = Vec::new();
        for vm in Self::all(vms)? {
            machines.extend(vm.machine()?);
        }
        machines.sort_by(|a, b| a.sandbox.cmp(&b.sandbox));
        Ok(machines)
    }

    /// Every directory among `vms`.
    pub fn all(vms: &Path) -> Result<Vec<Self>> {
        let entries = match fs::read_dir(vms) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error("list", vms)(error)),
        };
        entries.map(|entry| Ok(Self { path: entry.map_err(io_error("list", vms))?.path() })).collect()
    }

    /// Its name: the sandbox's, or a warm template's key.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// One of its files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes it, for its owner alone.
    pub fn create(&self) -> Result<()> {
        use std::os::unix::fs::DirBuilderExt as _;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.path).map_err(io_error("create", &self.path))
    }

    pub fn machine(&self) -> Result<Option<Machine>> {
        let path = self.file(MACHINE);
        read_json(&path).map_err(io_error("read", &path))
    }

    pub fn write_machine(&self, machine: &Machine) -> Result<()> {
        let path = self.file(MACHINE);
        write_json(&path, machine).map_err(io_error("write", &path))
    }

    pub fn process(&self) -> Result<Option<ProcessRecord>> {
        let path = self.file(PROCESS);
        read_json(&path).map_err(io_error("read", &path))
    }

    /// How the boot `nonce` ended, as far as anybody saw it.
    pub fn exit_reason(&self, nonce: &BootNonce) -> Result<ExitReason> {
        let path = self.file(EXIT);
        let record: Option<ExitRecord> = read_json(&path).map_err(io_error("read", &path))?;
        Ok(record.filter(|record| record.nonce == *nonce).map_or(ExitReason::Unknown, |record| record.reason))
    }

    /// Whether a shim or VMM holds the directory.
    pub fn is_locked(&self) -> Result<bool> {
        let path = self.file(LOCK);
        let lock = match File::open(&path) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(io_error("open", &path)(error)),
        };
        match flock(&lock, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
            Err(error) => Err(io_error("lock", &path)(error.into())),
        }
    }

    /// The end of one of its logs, as text.
    pub fn log_tail(&self, name: &str, limit: usize) -> Result<String> {
        let path = self.file(name);
        let bytes = tail(&path, limit).map_err(io_error("read", &path))?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// Connects to one of its sockets. The address of a Unix socket holds 107 bytes, so the way leads through a descriptor of
    /// the directory however long its path is.
    pub async fn connect(&self, socket: &str) -> io::Result<UnixStream> {
        let directory: OwnedFd = open(&self.path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        UnixStream::connect(format!("/proc/self/fd/{}/{socket}", directory.as_raw_fd())).await
    }

    /// Removes it with all that is in it.
    pub fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &self.path)(error)),
            _ => Ok(()),
        }
    }
}
