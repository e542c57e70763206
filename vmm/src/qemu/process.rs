//! Who runs a microVM: the records by which a daemon finds the processes of an earlier one again, and never takes another
//! process for them. Written by the shim, read by the driver.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use setpoint_schema::id::BootNonce;
use setpoint_schema::observed::ExitReason;

/// `process.json`: the processes of one boot, written before the shim says that it has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessRecord {
    /// Which boot this is.
    pub nonce: BootNonce,
    /// The VMM.
    pub qemu: ProcessId,
    /// Its parent.
    pub shim: ProcessId,
    /// The host's boot that process ids belong to.
    pub boot_id: String,
    /// When the VMM was started.
    pub since: Timestamp,
}

/// `exit.json`: how one boot ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExitRecord {
    /// Which boot this was.
    pub nonce: BootNonce,
    /// How it ended.
    pub reason: ExitReason,
    /// When.
    pub at: Timestamp,
}

/// A process that cannot be mistaken for another one that got the same number later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    /// The number.
    pub pid: i32,
    /// When it started, in clock ticks since the host's boot.
    pub start_ticks: u64,
}

impl ProcessId {
    /// The process that has this number now.
    pub fn of(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).map_err(io::Error::other)?;
        Ok(Self { pid, start_ticks: start_ticks(pid)?.ok_or(io::ErrorKind::NotFound)? })
    }

    /// A descriptor of the process that becomes readable when it ends; `None` when it has ended.
    ///
    /// The start time is compared after the descriptor is open: from then on the number cannot pass to another process unnoticed.
    pub fn open(self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(None) };
        let descriptor = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(descriptor) => descriptor,
            Err(Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let same = start_ticks(self.pid)? == Some(self.start_ticks);
        Ok((same && !has_ended(&descriptor)?).then_some(descriptor))
    }
}

impl ProcessRecord {
    /// Whether these process ids belong to the host's present boot.
    pub fn is_of_this_host_boot(&self) -> bool {
        boot_id().is_ok_and(|id| id == self.boot_id)
    }
}

/// Identifies the host's boot.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Whether all threads of the process have ended. The state in `/proc` is that of the first thread alone, and a zombie of it says
/// nothing of the others, which may still hold the disk and the memory.
fn has_ended(process: &OwnedFd) -> io::Result<bool> {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    Ok(poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&now))? > 0)
}

/// When the process that has this number started; `None` when there is none.
fn start_ticks(pid: i32) -> io::Result<Option<u64>> {
    let text = match fs::read(format!("/proc/{pid}/stat")) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        // The process ended between opening and reading.
        Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => return Ok(None),
        Err(error) => return Err(error),
    };
    let ticks = parse_start_ticks(&String::from_utf8_lossy(&text));
    ticks.map(Some).ok_or_else(|| io::Error::other("unknown format of /proc/<pid>/stat"))
}

/// What processes are told of time in: a hundredth of a second on every architecture that this runs on, whatever the kernel counts in.
const TICK_MS: u64 = 10;

/// The processor time that the process and its ended threads have taken; `None` when there is none of this number.
pub(crate) fn cpu_time(process: ProcessId) -> io::Result<Option<Duration>> {
    let text = match fs::read(format!("/proc/{}/stat", process.pid)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => return Ok(None),
        Err(error) => return Err(error),
    };
    let text = String::from_utf8_lossy(&text);
    if parse_start_ticks(&text) != Some(process.start_ticks) {
        return Ok(None);
    }
    let ticks = parse_cpu_ticks(&text).ok_or_else(|| io::Error::other("unknown format of /proc/<pid>/stat"))?;
    Ok(Some(Duration::from_millis(ticks.saturating_mul(TICK_MS))))
}

/// Fields 14 and 15: ticks in user mode and in the kernel.
fn parse_cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some(ticks()? + ticks()?)
}

/// Field 22, see proc_pid_stat(5). The command's name, field 2, stands in parentheses and may itself hold some: fields count from
/// the last one.
fn parse_start_ticks(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing step is a failing test")]

    use std::process::Command;

    use super::*;

    #[test]
    fn a_command_name_with_parentheses_does_not_shift_the_fields() {
        let text = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 0";
        assert_eq!(parse_start_ticks(text), Some(4242));
    }

    #[test]
    fn this_process_is_found_and_another_start_time_is_not_it() {
        let me = ProcessId::of(std::process::id()).unwrap();
        assert!(me.open().unwrap().is_some());
        assert!(ProcessId { start_ticks: me.start_ticks + 1, ..me }.open().unwrap().is_none());
    }

    #[test]
    fn a_zombie_counts_as_ended() {
        let mut child = Command::new("true").stdout(std::process::Stdio::piped()).spawn().unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        // End of file on its output: it is gone but for its parent's question.
        std::io::copy(&mut child.stdout.take().unwrap(), &mut std::io::sink()).unwrap();
        while id.open().unwrap().is_some() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }
}
