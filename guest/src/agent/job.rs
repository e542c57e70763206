//! One run of a command as the unprivileged user, with everything that it starts.
//!
//! Every run gets a session of its own and, where the kernel has them, a control group of its own, so that no descendant
//! outlives it: ending the group ends them all, whatever they forked or renamed.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process_group};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use super::UserSide;
use super::reaper::{Exit, Reaper};
use super::sys::{Confinement, confine};

/// How long a process may take to end by itself when asked to.
pub const STOP_GRACE: Duration = Duration::from_secs(5);

/// How long killed processes may take to be gone. Only one that is stuck in the kernel takes longer.
const GONE: Duration = Duration::from_secs(1);

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Environment variables.
pub type Env = BTreeMap<String, String>;

/// Starts jobs.
#[derive(Debug)]
pub struct Launcher {
    reaper: Arc<Reaper>,
    user: UserSide,
    /// Names control groups apart.
    started: AtomicU64,
}

/// Where a job's output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Both streams into one pipe, in the order written.
    Merged,
    /// Each into its own.
    Split,
}

/// A running command. Dropping it ends it at once, with all its descendants.
#[derive(Debug)]
pub struct Job {
    leader: Pid,
    group: Option<Cgroup>,
    exit: oneshot::Receiver<Exit>,
    /// Standard output, and standard error too if merged.
    pub stdout: Option<pipe::Receiver>,
    /// Standard error, if split.
    pub stderr: Option<pipe::Receiver>,
}

impl Launcher {
    /// Starts jobs on `user`'s side of the machine.
    #[must_use]
    pub fn new(reaper: Arc<Reaper>, user: UserSide) -> Self {
        Self { reaper, user, started: AtomicU64::new(0) }
    }

    /// The arguments that run `command` in a login shell, bash where there is one.
    #[must_use]
    pub fn shell(&self, command: &str) -> Vec<String> {
        let root = self.user.root.as_deref().unwrap_or(Path::new("/"));
        let shell = if root.join("bin/bash").exists() { "/bin/bash" } else { "/bin/sh" };
        [shell, "-lc", command].map(str::to_owned).to_vec()
    }

    /// Starts a command in the workspace.
    ///
    /// # Errors
    /// It cannot be started, as when there is no such program.
    pub fn launch(&self, argv: &[String], env: &Env, output: Output) -> io::Result<Job> {
        let Some((program, arguments)) = argv.split_first() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no command given"));
        };
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let group = self.user.cgroups.as_deref().map(|base| Cgroup::create(base, number)).transpose()?;
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(self.base_env()).envs(env).stdin(Stdio::null());
        confine(&mut command, self.confinement(group.as_ref())?);
        let (stdout, writer) = io::pipe()?;
        let stderr = match output {
            Output::Merged => {
                command.stderr(writer.try_clone()?);
                None
            }
            Output::Split => {
                let (reader, writer) = io::pipe()?;
                command.stderr(writer);
                Some(pipe::Receiver::from_owned_fd(reader.into())?)
            }
        };
        command.stdout(writer);
        let stdout = Some(pipe::Receiver::from_owned_fd(stdout.into())?);
        // The command holds the pipes' writing ends and goes at the end of this function, so that only the child keeps them.
        let (leader, exit) = self.reaper.spawn(&mut command)?;
        Ok(Job { leader, group, exit, stdout, stderr })
    }

    fn base_env(&self) -> [(&'static str, &std::ffi::OsStr); 4] {
        let home = self.user.workspace.as_os_str();
        [("HOME", home), ("USER", "app".as_ref()), ("LOGNAME", "app".as_ref()), ("PATH", PATH.as_ref())]
    }

    fn confinement(&self, group: Option<&Cgroup>) -> io::Result<Confinement> {
        let c_path = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from);
        Ok(Confinement {
            root: self.user.root.as_deref().map(c_path).transpose()?,
            directory: c_path(&self.user.workspace)?,
            owner: self.user.owner,
            cgroup: group.map(Cgroup::procs).transpose()?,
        })
    }
}

impl Job {
    /// Resolves when the command has ended. Its descendants may go on.
    pub async fn ended(&mut self) -> Exit {
        // The reaper drops a sender without sending only when it goes away itself, with the whole agent.
        (&mut self.exit).await.unwrap_or(Exit::Signal(Signal::KILL.as_raw()))
    }

    /// Asks the command and its descendants to end, and ends those that have not after [`STOP_GRACE`].
    pub async fn stop(mut self) {
        self.signal(Signal::TERM);
        let _ = timeout(STOP_GRACE, self.ended()).await;
        self.end().await;
    }

    /// Ends the command and all its descendants, and waits until they are gone: what comes next may want their ports.
    pub async fn end(self) {
        self.kill();
        let deadline = Instant::now() + GONE;
        while !self.is_gone() && Instant::now() < deadline {
            sleep(Duration::from_millis(5)).await;
        }
    }

    fn is_gone(&self) -> bool {
        match &self.group {
            Some(group) => group.members().is_empty(),
            None => test_kill_process_group(self.leader).is_err(),
        }
    }

    /// Ends the command and all its descendants at once.
    pub fn kill(&self) {
        let killed = self.group.as_ref().is_some_and(|group| group.kill().is_ok());
        if !killed {
            self.signal(Signal::KILL);
        }
    }

    /// Errors mean that a process has ended already, which is what the caller wants.
    fn signal(&self, signal: Signal) {
        let Some(group) = &self.group else {
            let _ = kill_process_group(self.leader, signal);
            return;
        };
        for pid in group.members() {
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A control group (version 2) that holds one job.
#[derive(Debug)]
struct Cgroup {
    directory: PathBuf,
}

impl Cgroup {
    fn create(base: &Path, number: u64) -> io::Result<Self> {
        let directory = base.join(format!("job-{number}"));
        fs::create_dir(&directory)?;
        Ok(Self { directory })
    }

    /// The file through which a process joins. It is opened with the agent's rights, which count when the child writes.
    fn procs(&self) -> io::Result<OwnedFd> {
        Ok(fs::File::options().write(true).open(self.directory.join("cgroup.procs"))?.into())
    }

    fn members(&self) -> Vec<Pid> {
        let text = fs::read_to_string(self.directory.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect()
    }

    fn kill(&self) -> io::Result<()> {
        fs::write(self.directory.join("cgroup.kill"), "1")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let directory = std::mem::take(&mut self.directory);
        // The group can be removed only once its members are gone and collected, some moments after they were killed. A group
        // that stays because of a stuck process costs a few kilobytes.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            for _ in 0..100 {
                if fs::remove_dir(&directory).is_ok() {
                    return;
                }
                sleep(Duration::from_millis(50)).await;
            }
        });
    }
}
