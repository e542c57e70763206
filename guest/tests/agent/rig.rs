//! An agent in a temporary directory, and a host that talks to it.

use std::collections::HashMap;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::stream;
use setpoint_guest::agent::disk::DataDisk;
use setpoint_guest::agent::reaper::Collects;
use setpoint_guest::agent::renew::{Identity, Renewal};
use setpoint_guest::agent::sys::ENTROPY;
use setpoint_guest::agent::{Agent, Config, UserSide};
use setpoint_guest::client::{Client, SyncError, SyncFile};
use setpoint_guest::proto::apply_request::Restart;
use setpoint_guest::proto::{ApplyRequest, FileKind, ManifestEntry, StatusReply, Web, Worker};
use tempfile::TempDir;
use tokio::io::DuplexStream;
use tokio::time::{sleep, timeout};

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Rig {
    pub directory: TempDir,
    pub agent: Arc<Agent>,
    pub client: Client,
    /// Removed last.
    _group: Option<Cgroup>,
}

/// A control group (version 2) of a test's own.
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    fn make() -> Option<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let path = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .map(Path::new)
            .into_iter()
            .find(|mount| mount.join("cgroup.procs").exists() && mount.join("cgroup.controllers").exists())?
            .join(format!("setpoint-agent-test-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir(&path).ok()?;
        Some(Self { path })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = std::fs::write(self.path.join("cgroup.kill"), "1");
        let gone = || {
            std::fs::read_dir(&self.path)
                .into_iter()
                .flatten()
                .flatten()
                .all(|entry| !entry.path().is_dir() || std::fs::remove_dir(entry.path()).is_ok())
                && std::fs::remove_dir(&self.path).is_ok()
        };
        let deadline = std::time::Instant::now() + PATIENCE;
        while !gone() && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
}

/// An identity whose every step is a line in a file: this machine's own must not change.
#[derive(Debug)]
struct Noted {
    directory: PathBuf,
}

pub fn directory_identity(directory: &TempDir) -> Arc<dyn Identity> {
    Arc::new(Noted { directory: directory.path().to_owned() })
}

impl Noted {
    fn note(&self, line: &str) -> io::Result<()> {
        let mut file = std::fs::File::options().create(true).append(true).open(self.directory.join("identity"))?;
        writeln!(file, "{line}")
    }
}

impl Identity for Noted {
    fn set_clock(&self, unix_nanos: u64) -> io::Result<()> {
        self.note(&format!("clock {unix_nanos}"))
    }

    fn reseed(&self, entropy: [u8; ENTROPY]) -> io::Result<()> {
        if self.directory.join("no-entropy").exists() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.note(&format!("entropy {}", entropy[0]))
    }

    fn rename(&self, renewal: &Renewal) -> io::Result<()> {
        let Renewal { hostname, machine_id, mac, .. } = renewal;
        self.note(&format!("names {hostname} {machine_id} {mac:?}"))
    }
}

impl Rig {
    pub async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let agent = start_agent(&directory);
        let client = connect(&agent).await;
        Self { directory, agent, client, _group: None }
    }

    /// With a control group for its processes; `None` where this user cannot make one.
    pub async fn in_cgroup() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let group = Cgroup::make()?;
        let agent = start_agent_in(&directory, Some(group.path.clone()));
        let client = connect(&agent).await;
        Some(Self { directory, agent, client, _group: Some(group) })
    }

    /// What was done to the machine's identity, in order.
    pub fn renewals(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.directory.path().join("identity")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// From here on the machine's random numbers cannot be reseeded.
    pub fn break_entropy(&self) {
        std::fs::write(self.directory.path().join("no-entropy"), "").unwrap();
    }

    /// The same disk after a boot.
    pub async fn rebooted(self) -> Self {
        self.agent.stop().await;
        let agent = start_agent(&self.directory);
        let client = connect(&agent).await;
        Self { directory: self.directory, agent, client, _group: None }
    }

    /// The agent's own files.
    pub fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    pub fn workspace(&self) -> PathBuf {
        self.directory.path().join("workspace")
    }

    pub fn read(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.workspace().join(path)).ok()
    }

    pub async fn sync(&self, tree: &str, removed: &[&str], files: &[SyncFile]) -> Result<(), SyncError<()>> {
        let removed = removed.iter().map(|path| (*path).to_owned()).collect();
        self.client.sync(tree, removed, stream::iter(files.iter().cloned().map(Ok))).await
    }

    /// Waits for a status that fulfils `condition`.
    pub async fn until(&self, condition: impl Fn(&StatusReply) -> bool) -> StatusReply {
        let waiting = async {
            let mut status = self.client.status().await.unwrap();
            while !condition(&status) {
                status = self.client.status_change(status.sequence, PATIENCE).await.unwrap();
            }
            status
        };
        timeout(PATIENCE, waiting).await.expect("the status never came to it")
    }
}

fn start_agent(directory: &TempDir) -> Arc<Agent> {
    start_agent_in(directory, None)
}

fn start_agent_in(directory: &TempDir, cgroups: Option<PathBuf>) -> Arc<Agent> {
    let workspace = directory.path().join("workspace");
    let config = Config {
        nonce: "5eed".to_owned(),
        workspace: workspace.clone(),
        state: directory.path().join("state"),
        user: UserSide { root: None, workspace, owner: None, cgroups },
        disk: DataDisk::Directory(directory.path().to_owned()),
        collects: Collects::Started,
        identity: directory_identity(directory),
    };
    Arc::new(Agent::start(config).unwrap())
}

/// A host's end of a new connection.
pub fn plug_in(agent: &Arc<Agent>) -> DuplexStream {
    let (host, guest) = tokio::io::duplex(64 * 1024);
    let agent = agent.clone();
    tokio::spawn(async move { agent.serve(guest).await });
    host
}

async fn connect(agent: &Arc<Agent>) -> Client {
    timeout(PATIENCE, Client::connect(plug_in(agent))).await.unwrap().unwrap()
}

pub fn file(path: &str, content: impl Into<Vec<u8>>) -> SyncFile {
    entry(path, FileKind::Regular, content)
}

pub fn entry(path: &str, kind: FileKind, content: impl Into<Vec<u8>>) -> SyncFile {
    let content: Vec<u8> = content.into();
    let entry = ManifestEntry { path: path.to_owned(), blob: format!("{:040x}", content.len()), kind: kind.into() };
    SyncFile { entry, content: content.into() }
}

/// A set with nothing in it.
pub fn set(digest: &str) -> ApplyRequest {
    ApplyRequest {
        digest: digest.to_owned(),
        web: None,
        build: None,
        workers: Vec::new(),
        env: HashMap::new(),
        run_build: false,
        restart: Restart::None.into(),
    }
}

pub fn worker(name: &str, command: &str) -> Worker {
    Worker { name: name.to_owned(), command: command.to_owned(), restart_after_task: true }
}

pub fn web(command: &str, port: u16) -> Web {
    Web { command: command.to_owned(), port: port.into(), health_path: "/".to_owned(), restart_after_task: true }
}

/// Reads a file as soon as a process has written a whole line into it.
pub async fn line_of(path: &Path) -> String {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match std::fs::read_to_string(path) {
            Ok(text) if text.ends_with('\n') => return text.trim().to_owned(),
            _ => assert!(tokio::time::Instant::now() < deadline, "{} was never written", path.display()),
        }
        sleep(Duration::from_millis(10)).await;
    }
}

pub fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie whose new parent has not collected it is dead all the same.
    stat.rsplit(')').next().is_some_and(|rest| !rest.trim().is_empty() && !rest.trim().starts_with('Z'))
}
