//! An agent in a temporary directory, and a host that talks to it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use setpoint_guest::agent::disk::DataDisk;
use setpoint_guest::agent::reaper::Collects;
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
}

impl Rig {
    pub async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let agent = start_agent(&directory);
        let client = connect(&agent).await;
        Self { directory, agent, client }
    }

    /// The same disk after a boot.
    pub async fn rebooted(self) -> Self {
        self.agent.stop().await;
        let agent = start_agent(&self.directory);
        let client = connect(&agent).await;
        Self { directory: self.directory, agent, client }
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
    let workspace = directory.path().join("workspace");
    let config = Config {
        nonce: "5eed".to_owned(),
        workspace: workspace.clone(),
        state: directory.path().join("state"),
        user: UserSide { root: None, workspace, owner: None, cgroups: None },
        disk: DataDisk::Directory(directory.path().to_owned()),
        collects: Collects::Started,
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
