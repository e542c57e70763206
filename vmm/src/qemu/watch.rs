//! Whether a microVM runs, how it ended, and its end by force: asked of the processes themselves, through descriptors that
//! cannot come to mean another process.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::process::{Signal, pidfd_send_signal};
use serde_json::json;
use setpoint_schema::id::BootNonce;
use setpoint_schema::observed::{ExitReason, VmState};
use tokio::time::{sleep, timeout};

use super::files::io_error;
use super::process::{self, ProcessId, ProcessRecord};
use super::qmp::Qmp;
use super::vm_dir::{PROCESS, VmDir};
use crate::driver::{Result, VmmError};
use crate::sys;

/// How long a shim may take to write down how its VMM ended.
const SHIM_END: Duration = Duration::from_secs(5);

/// How long a killed VMM may take to go: the kernel frees its memory, and waits for its disk.
const KILLED: Duration = Duration::from_secs(30);

/// How long a shim has between taking its lock and writing `process.json`. Met only after the crash of a daemon within that
/// moment; there is no event to wait for but the file.
const RECORD: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The processor time that the VMM has taken; nothing where none runs.
pub(super) async fn cpu_time(vm: &VmDir) -> Result<Option<Duration>> {
    match life(vm).await? {
        Life::Running(process) => process::cpu_time(process.qemu).map_err(io_error("read the times of", vm.path())),
        Life::Absent | Life::Ended(_) => Ok(None),
    }
}

/// Where one microVM stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Life {
    /// Nothing was launched here.
    Absent,
    /// Its VMM runs.
    Running(ProcessRecord),
    /// Its VMM has ended, and its shim with it.
    Ended(ExitReason),
}

/// Asks the processes. An ended VMM's shim is given the time to say why.
pub(super) async fn life(vm: &VmDir) -> Result<Life> {
    let Some(process) = recorded_process(vm).await? else {
        // A machine without a process: its launch was cut short before anything ran.
        return Ok(if vm.machine()?.is_some() { Life::Ended(ExitReason::Unknown) } else { Life::Absent });
    };
    if open(vm, &process, process.qemu)?.is_some() {
        return Ok(Life::Running(process));
    }
    if let Some(shim) = open(vm, &process, process.shim)? {
        // A shim that hangs must not hide that its VMM has ended.
        let _ = timeout(SHIM_END, ended(shim)).await;
    }
    Ok(Life::Ended(vm.exit_reason(&process.nonce)?))
}

/// What the microVM is doing, as the trait has it.
pub(super) async fn observe(vm: &VmDir) -> Result<VmState> {
    if let Some(saved) = vm.saved()? {
        return Ok(saved.state());
    }
    match life(vm).await? {
        Life::Absent => Ok(VmState::Absent),
        Life::Ended(reason) => Ok(VmState::Exited { reason }),
        // It will never be whole, unless somebody is at work on it; that one tells when it is.
        Life::Running(_) if vm.is_beginning()? => Ok(VmState::Exited { reason: ExitReason::Unknown }),
        Life::Running(process) => {
            let answer = async { Qmp::connect(vm).await?.execute("query-status", json!({})).await };
            match answer.await {
                Ok(_) => Ok(VmState::Running { nonce: process.nonce, since: process.since }),
                // It may have ended meanwhile, which is an answer too.
                Err(error) => match life(vm).await? {
                    Life::Absent => Ok(VmState::Absent),
                    Life::Ended(reason) => Ok(VmState::Exited { reason }),
                    Life::Running(_) => Err(error),
                },
            }
        }
    }
}

/// Resolves when the boot `nonce` does not run here, and why is written down.
pub(super) async fn exited(vm: &VmDir, nonce: &BootNonce) {
    loop {
        match life(vm).await {
            Ok(Life::Running(process)) if process.nonce == *nonce => match open(vm, &process, process.qemu) {
                Ok(Some(qemu)) => drop(ended(qemu).await),
                Ok(None) => {}
                Err(_) => sleep(SHIM_END).await,
            },
            Ok(Life::Running(_) | Life::Absent | Life::Ended(_)) => return,
            // An error is not an end. It passes, as when descriptors are short, or shows in an observation.
            Err(_) => sleep(SHIM_END).await,
        }
    }
}

/// Ends whatever runs here, and waits for its end.
pub(super) async fn kill(vm: &VmDir) -> Result<()> {
    let Some(process) = recorded_process(vm).await? else { return Ok(()) };
    if let Some(qemu) = open(vm, &process, process.qemu)? {
        kill_and_wait(vm, qemu).await?;
    }
    let Some(shim) = open(vm, &process, process.shim)? else { return Ok(()) };
    match timeout(SHIM_END, ended(shim)).await {
        Ok(_) => Ok(()),
        Err(_) => match open(vm, &process, process.shim)? {
            Some(shim) => kill_and_wait(vm, shim).await,
            None => Ok(()),
        },
    }
}

/// The record of who runs here. Where something holds the directory and has not written it yet, it is waited for.
async fn recorded_process(vm: &VmDir) -> Result<Option<ProcessRecord>> {
    let wait = async {
        loop {
            // The lock first: a record that appears between the two questions is not missed.
            let locked = vm.is_locked()?;
            match vm.process()? {
                Some(process) => return Ok(Some(process)),
                None if !locked => return Ok(None),
                None => sleep(LOOK_AGAIN).await,
            }
        }
    };
    let nothing =
        || VmmError::Vmm { vmm: "qemu", problem: format!("holds {} without a {PROCESS}", vm.path().display()) };
    timeout(RECORD, wait).await.unwrap_or_else(|_| Err(nothing()))
}

/// A descriptor of a recorded process that still runs. After a reboot of the host its number means nothing.
fn open(vm: &VmDir, record: &ProcessRecord, process: ProcessId) -> Result<Option<OwnedFd>> {
    if !record.is_of_this_host_boot() {
        return Ok(None);
    }
    process.open().map_err(super::files::io_error("look for the processes of", vm.path()))
}

async fn kill_and_wait(vm: &VmDir, process: OwnedFd) -> Result<()> {
    match pidfd_send_signal(&process, Signal::KILL) {
        // Gone already.
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => return Err(super::files::io_error("kill the processes of", vm.path())(error.into())),
    }
    let stays =
        || VmmError::Vmm { vmm: "qemu", problem: format!("is killed and still there after {} s", KILLED.as_secs()) };
    match timeout(KILLED, ended(process)).await {
        Ok(result) => result.map_err(super::files::io_error("wait for the processes of", vm.path())),
        Err(_) => Err(stays()),
    }
}

/// Resolves when the process has ended: its descriptor becomes readable then, and never before.
async fn ended(process: OwnedFd) -> io::Result<()> {
    sys::watch(process)?.readable().await.map(drop)
}
