//! Standing still: the user's processes stop where they are, and the data file system is clean and takes no writes, so that
//! whatever saves the machine's memory and disk saves one moment of both.
//!
//! The agent itself goes on. So it must neither write to the frozen file system nor start a process in the frozen control group:
//! either would stop it too, and nobody could thaw it. Every part that would passes the [`Gate`] first.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::{Mutex, watch};

use super::disk::DataDisk;
use super::sys;

/// How long the kernel may take to stop all processes. One that waits for the disk stops only when that has answered.
const STOPPING: Duration = Duration::from_secs(10);

/// Whether the machine stands still, for all who must wait meanwhile.
#[derive(Debug, Clone)]
pub struct Gate {
    shut: Arc<watch::Sender<bool>>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { shut: Arc::new(watch::Sender::new(false)) }
    }
}

impl Gate {
    /// Whether the machine stands still, or is about to.
    #[must_use]
    pub fn is_shut(&self) -> bool {
        *self.shut.borrow()
    }

    /// Resolves when the machine does not stand still; at once if it does not now.
    pub async fn passed(&self) {
        self.shut.subscribe().wait_for(|shut| !shut).await.map(drop).expect("the gate holds its own sender");
    }
}

/// Stops the machine and lets it go on.
#[derive(Debug, Clone)]
pub struct Freezer {
    machine: Arc<Machine>,
}

#[derive(Debug)]
struct Machine {
    /// The control group of the user's processes.
    processes: Option<PathBuf>,
    disk: DataDisk,
    gate: Gate,
    /// One at a time; what stands still at the moment.
    still: Mutex<Still>,
}

/// How much stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// The user's processes.
    Processes,
    /// The data file system too.
    ProcessesAndDisk,
}

#[derive(Debug, Default)]
struct Still {
    processes: bool,
    disk: bool,
}

impl Freezer {
    /// A freezer of the processes in a control group (version 2) and of a disk.
    #[must_use]
    pub fn new(processes: Option<PathBuf>, disk: DataDisk, gate: Gate) -> Self {
        Self { machine: Arc::new(Machine { processes, disk, gate, still: Mutex::default() }) }
    }

    /// Whether the machine stands still, or is about to.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.machine.gate.is_shut()
    }

    /// Stops everything. What was stopped goes on again if this fails. Stopping twice is as good as once. A caller that leaves meanwhile
    /// does not cut it short: the kernel would go on with what it was asked for, and nobody would know what stands still.
    ///
    /// # Errors
    /// There is no control group; or the kernel refuses, or takes too long.
    pub async fn freeze(&self, depth: Depth) -> io::Result<()> {
        let machine = Arc::clone(&self.machine);
        tokio::spawn(async move { machine.freeze(depth).await }).await.map_err(io::Error::other)?
    }
    /// Lets everything go on, in the opposite order; `meanwhile` happens when files can be changed and no process runs yet. Safe to call
    /// at any time.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn thaw(&self, meanwhile: impl FnOnce() + Send) -> io::Result<()> {
        let mut still = self.machine.still.lock().await;
        self.machine.let_go(&mut still, meanwhile)
    }
}

impl Machine {
    async fn freeze(&self, depth: Depth) -> io::Result<()> {
        let mut still = self.still.lock().await;
        self.gate.shut.send_replace(true);
        let frozen = self.stop_all(&mut still, depth).await;
        if frozen.is_err() {
            self.let_go(&mut still, || ())?;
        }
        frozen
    }

    async fn stop_all(&self, still: &mut Still, depth: Depth) -> io::Result<()> {
        let group = self.processes.clone().ok_or_else(|| {
            io::Error::new(io::ErrorKind::Unsupported, "this machine has no control group to stop processes by")
        })?;
        if !still.processes {
            still.processes = true;
            blocking(move || stop_processes(&group)).await?;
        }
        if let DataDisk::Ext4 { mount, .. } = &self.disk
            && !still.disk
            && depth == Depth::ProcessesAndDisk
        {
            let mount = mount.clone();
            blocking(move || {
                let mount = File::open(mount)?;
                rustix::fs::syncfs(&mount)?;
                sys::freeze_file_system(mount)
            })
            .await?;
            still.disk = true;
        }
        Ok(())
    }

    fn let_go(&self, still: &mut Still, meanwhile: impl FnOnce()) -> io::Result<()> {
        if let DataDisk::Ext4 { mount, .. } = &self.disk
            && still.disk
        {
            sys::thaw_file_system(File::open(mount)?)?;
            still.disk = false;
        }
        meanwhile();
        if let Some(group) = &self.processes
            && still.processes
        {
            fs::write(group.join("cgroup.freeze"), "0")?;
            still.processes = false;
        }
        self.gate.shut.send_replace(false);
        Ok(())
    }
}

/// Stops all processes of a group and waits until the kernel says that they stand.
fn stop_processes(group: &Path) -> io::Result<()> {
    fs::write(group.join("cgroup.freeze"), "1")?;
    let path = group.join("cgroup.events");
    let deadline = Instant::now() + STOPPING;
    loop {
        // Opened before it is read: from then on a change shows as an exceptional event.
        let events = File::open(&path)?;
        if io::read_to_string(&events)?.lines().any(|line| line == "frozen 1") {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: i64::from(left.subsec_nanos()) };
        if left.is_zero() || poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&timeout))? == 0 {
            let seconds = STOPPING.as_secs();
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("processes did not stop within {seconds} s")));
        }
    }
}

/// Runs what waits for the kernel where the agent does not wait with it.
async fn blocking(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use futures_util::FutureExt as _;
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use tokio::time::sleep;

    use super::*;

    #[tokio::test]
    async fn a_caller_that_leaves_does_not_cut_a_freeze_short() {
        let directory = tempfile::tempdir().unwrap();
        let (freeze, events) = (directory.path().join("cgroup.freeze"), directory.path().join("cgroup.events"));
        // The kernel's answer comes when somebody writes it.
        mknodat(CWD, &events, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let disk = DataDisk::Directory(directory.path().to_owned());
        let freezer = Freezer::new(Some(directory.path().to_owned()), disk, Gate::default());
        let caller = tokio::spawn({
            let freezer = freezer.clone();
            async move { freezer.freeze(Depth::ProcessesAndDisk).await }
        });
        while fs::read_to_string(&freeze).unwrap_or_default() != "1" {
            sleep(Duration::from_millis(1)).await;
        }
        caller.abort();
        assert!(caller.await.unwrap_err().is_cancelled());
        assert!(freezer.thaw(|| ()).now_or_never().is_none(), "it is being stopped yet");
        blocking(move || fs::write(events, "populated 1\nfrozen 1\n")).await.unwrap();
        freezer.thaw(|| ()).await.unwrap();
        assert_eq!(fs::read_to_string(&freeze).unwrap(), "0");
        assert!(!freezer.is_frozen());
    }
}
