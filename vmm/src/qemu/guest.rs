//! The agent of a real microVM, reached over its virtio serial port.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use setpoint_guest::client::{Client, ClientError, Follow, Motion, SyncError, SyncFile};
use setpoint_guest::proto;
use setpoint_schema::env::EnvValue;
use setpoint_schema::id::{BlobId, BootNonce, SandboxId, SnapshotId, SpecDigest, TreeDigest};
use setpoint_schema::name::{EnvName, WorkerName};
use setpoint_schema::observed::{BuildState, GuestStatus, Health, ProcessState, WebStatus, WorkerStatus};
use setpoint_schema::quantity::{ByteSize, Span};
use setpoint_schema::runtime::ProcessSet;
use tokio::time::timeout;
use tonic::Code;

use super::port::Connection;
use super::vm_dir::VmDir;
use crate::driver::{
    Duplex, ExecOutput, FileKind, Guest, Kin, Manifest, ManifestEntry, Renewal, RestartScope, Result, VmmError,
    WorkspaceFile,
};

/// How long an agent may take to answer a new connection. An emulated guest on a busy host boots within it; one that does not
/// is tried again by whoever wants it.
const CONNECT: Duration = Duration::from_secs(20);

/// A proved connection to one agent.
pub(super) struct QemuGuest {
    sandbox: SandboxId,
    nonce: BootNonce,
    client: Client,
    /// The last status and the agent's number for it, by which the agent knows what the caller knows.
    last: Mutex<Option<(Arc<GuestStatus>, u64)>>,
}

impl QemuGuest {
    /// Connects and proves that the boot `nonce` answers. A port has room for one connection; the next one waits for its end.
    pub async fn connect(vm: &VmDir, sandbox: &SandboxId, nonce: &BootNonce) -> Result<Arc<Self>> {
        let problem =
            |error| VmmError::Guest { sandbox: sandbox.clone(), problem: format!("cannot be reached: {error}") };
        let stream = vm.connect_agent().await.map_err(problem)?;
        Self::prove(Client::connect(stream), sandbox, nonce).await
    }

    /// The same over a stream that is past its handshake.
    pub async fn over(stream: Connection, sandbox: &SandboxId, nonce: &BootNonce) -> Result<Arc<Self>> {
        Self::prove(Client::begun(stream), sandbox, nonce).await
    }

    async fn prove(
        client: impl Future<Output = std::result::Result<Client, ClientError>>,
        sandbox: &SandboxId,
        nonce: &BootNonce,
    ) -> Result<Arc<Self>> {
        let problem = |problem| VmmError::Guest { sandbox: sandbox.clone(), problem };
        let client = timeout(CONNECT, client)
            .await
            .map_err(|_| problem(format!("did not answer within {} s", CONNECT.as_secs())))?
            .map_err(|error| problem(with_causes(&error)))?;
        if client.nonce() != nonce.as_str() {
            return Err(problem("answers as another boot".to_owned()));
        }
        Ok(Arc::new(Self { sandbox: sandbox.clone(), nonce: nonce.clone(), client, last: Mutex::new(None) }))
    }

    /// Whether the guest was frozen when this connection began.
    pub fn motion(&self) -> Motion {
        self.client.motion()
    }

    fn refused(&self, error: &ClientError) -> VmmError {
        self.problem(with_causes(error))
    }

    fn problem(&self, problem: String) -> VmmError {
        VmmError::Guest { sandbox: self.sandbox.clone(), problem }
    }

    fn take_in(&self, reply: proto::StatusReply) -> Result<Arc<GuestStatus>> {
        let sequence = reply.sequence;
        let status = Arc::new(status(reply, &self.nonce).map_err(|problem| self.problem(problem))?);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((Arc::clone(&status), sequence));
        Ok(status)
    }

    /// The agent's number of a status that it sent last.
    fn sequence_of(&self, known: &GuestStatus) -> Option<u64> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().filter(|(status, _)| **status == *known).map(|(_, sequence)| *sequence)
    }
}

#[async_trait]
impl Guest for QemuGuest {
    fn nonce(&self) -> &BootNonce {
        &self.nonce
    }

    async fn status(&self) -> Result<Arc<GuestStatus>> {
        self.take_in(self.client.status().await.map_err(|error| self.refused(&error))?)
    }

    async fn status_change(&self, known: &GuestStatus, wait: Span) -> Result<Option<Arc<GuestStatus>>> {
        let sequence = match self.sequence_of(known) {
            Some(sequence) => sequence,
            None => {
                let now = self.status().await?;
                if *now != *known {
                    return Ok(Some(now));
                }
                self.sequence_of(&now).unwrap_or_default()
            }
        };
        let reply = self.client.status_change(sequence, wait.as_duration()).await;
        let reply = reply.map_err(|error| self.refused(&error))?;
        // The number is the agent's own word that nothing has changed, so the rest of a quiet guest's answer is not read.
        if reply.sequence == sequence {
            return Ok(None);
        }
        let now = self.take_in(reply)?;
        Ok((*now != *known).then_some(now))
    }

    async fn manifest(&self) -> Result<Manifest> {
        let manifest = self.client.manifest().await.map_err(|error| self.refused(&error))?;
        let files = manifest.entries.into_iter().map(|entry| {
            let kind = file_kind(entry.kind());
            (entry.path, ManifestEntry { blob: BlobId(entry.blob), kind })
        });
        Ok(Manifest { tree: present(manifest.tree).map(|tree| TreeDigest(tree.into())), files: files.collect() })
    }

    async fn sync(
        &self,
        tree: &TreeDigest,
        changed: BoxStream<'static, Result<WorkspaceFile>>,
        removed: Vec<String>,
    ) -> Result<()> {
        let files = changed.map(|file| file.map(sync_file));
        self.client.sync(tree.as_str(), removed, files).await.map_err(|error| match error {
            SyncError::Client(error) => self.refused(&error),
            SyncError::Files(error) => error,
        })
    }

    async fn apply(&self, set: &ProcessSet, build: bool, restart: RestartScope) -> Result<()> {
        let unknown = |name| self.problem(format!("cannot be given {name}: only the hash of its text is known"));
        let request = apply_request(set, build, restart).map_err(unknown)?;
        self.client.apply(request).await.map_err(|error| self.refused(&error))
    }

    async fn grow_disk(&self) -> Result<()> {
        self.client.grow_disk().await.map(drop).map_err(|error| self.refused(&error))
    }

    async fn logs(&self, process: &str, tail: u32, follow: bool) -> Result<BoxStream<'static, Result<Vec<u8>>>> {
        let follow = if follow { Follow::Yes } else { Follow::No };
        let refused = |error| self.problem(format!("did not give the log of {process}: {}", with_causes(&error)));
        let chunks = self.client.logs(process, tail, follow).await.map_err(refused)?;
        let sandbox = self.sandbox.clone();
        let chunks = chunks.map(move |chunk| match chunk {
            Ok(data) => Ok(data.to_vec()),
            Err(error) => Err(VmmError::Guest { sandbox: sandbox.clone(), problem: with_causes(&error) }),
        });
        Ok(chunks.boxed())
    }

    async fn exec(&self, argv: Vec<String>) -> Result<ExecOutput> {
        let output = self.client.exec(argv).await.map_err(|error| self.refused(&error))?;
        Ok(ExecOutput { code: output.code, stdout: output.stdout, stderr: output.stderr })
    }

    async fn open_port(&self, port: u16) -> Result<Pin<Box<dyn Duplex>>> {
        let stream = self.client.open_port(port).await.map_err(|error| self.refused(&error))?;
        Ok(Box::pin(stream))
    }

    async fn freeze(&self) -> Result<()> {
        self.client.freeze().await.map_err(|error| self.refused(&error))
    }

    async fn freeze_processes(&self) -> Result<()> {
        self.client.freeze_processes().await.map_err(|error| self.refused(&error))
    }

    async fn renew(&self, renewal: &Renewal) -> Result<()> {
        self.client.renew(renew_request(&self.nonce, renewal)).await.map_err(|error| self.refused(&error))
    }

    async fn leave_out(&self, snapshot: &SnapshotId, names: &[String]) -> Result<()> {
        self.client.leave_out(&snapshot.0, names.to_vec()).await.map_err(|error| self.refused(&error))
    }

    async fn left_out(&self) -> Result<Option<SnapshotId>> {
        let snapshot = self.client.left_out().await.map_err(|error| self.refused(&error))?;
        Ok(present(snapshot).map(SnapshotId))
    }

    async fn thaw(&self) -> Result<()> {
        self.client.thaw().await.map_err(|error| self.refused(&error))
    }

    async fn shutdown(&self) -> Result<()> {
        match self.client.shutdown().await {
            // A guest that goes down at once takes its answer with it; whether it goes shows in its end.
            Ok(()) | Err(ClientError::Refused { code: Code::Unknown | Code::Unavailable, .. }) => Ok(()),
            Err(error) => Err(self.refused(&error)),
        }
    }
}

/// An error with its causes in one line: what a guest did is shown where no chain can be.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// What makes the guest that was saved as `old` another one, from now on: the clock is that of this moment.
pub(super) fn renew_request(old: &BootNonce, renewal: &Renewal) -> proto::RenewRequest {
    let Renewal { nonce, entropy, hostname, machine_id, mac, kin } = renewal;
    proto::RenewRequest {
        old_nonce: old.as_str().to_owned(),
        nonce: nonce.as_str().to_owned(),
        unix_nanos: u64::try_from(Timestamp::now().as_nanosecond()).unwrap_or_default(),
        entropy: entropy.to_vec().into(),
        hostname: hostname.clone(),
        machine_id: machine_id.clone(),
        mac: mac.to_vec().into(),
        disk_bytes: 0,
        copy: *kin == Kin::Copy,
    }
}

fn sync_file(file: WorkspaceFile) -> SyncFile {
    let kind = match file.entry.kind {
        FileKind::Regular => proto::FileKind::Regular,
        FileKind::Executable => proto::FileKind::Executable,
        FileKind::Symlink => proto::FileKind::Symlink,
    };
    let entry = proto::ManifestEntry { path: file.path, blob: file.entry.blob.0, kind: kind.into() };
    SyncFile { entry, content: file.content.into() }
}

fn file_kind(kind: proto::FileKind) -> FileKind {
    match kind {
        proto::FileKind::Regular => FileKind::Regular,
        proto::FileKind::Executable => FileKind::Executable,
        proto::FileKind::Symlink => FileKind::Symlink,
    }
}

/// The request for a process set; else the variable of which only the hash is known, as previews have them, which carry nothing out.
fn apply_request(
    set: &ProcessSet,
    build: bool,
    restart: RestartScope,
) -> std::result::Result<proto::ApplyRequest, &EnvName> {
    let runtime = &set.runtime;
    let web = runtime.web.as_ref().map(|web| proto::Web {
        command: web.command.clone(),
        port: u32::from(web.port),
        health_path: web.health_path.clone(),
        restart_after_task: web.restart_after_task,
    });
    // No command is no build; an empty one is a build that is skipped.
    let declared_build = runtime.build.as_ref().and_then(|build| {
        let command = build.command.clone()?;
        Some(proto::Build { command, timeout_seconds: build.timeout_seconds })
    });
    let workers = runtime.workers.iter().map(|worker| proto::Worker {
        name: worker.name.to_string(),
        command: worker.command.clone(),
        restart_after_task: worker.restart_after_task,
    });
    let restart = match restart {
        RestartScope::None => proto::apply_request::Restart::None,
        RestartScope::AfterTask => proto::apply_request::Restart::AfterTask,
        RestartScope::All => proto::apply_request::Restart::All,
    };
    let text = |(name, value): (_, &EnvValue)| Ok((EnvName::to_string(name), value.reveal().ok_or(name)?.to_owned()));
    Ok(proto::ApplyRequest {
        digest: set.digest().as_str().to_owned(),
        web,
        build: declared_build,
        workers: workers.collect(),
        env: set.env.iter().map(text).collect::<std::result::Result<_, _>>()?,
        run_build: build,
        restart: restart.into(),
    })
}

fn present(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// The agent's status in the reconciler's terms. What a correct agent never says is an error.
fn status(reply: proto::StatusReply, nonce: &BootNonce) -> std::result::Result<GuestStatus, String> {
    let workers = reply.workers.into_iter().map(|worker| {
        let name = WorkerName::new(worker.name).map_err(|error| format!("names a worker wrongly: {error}"))?;
        Ok(WorkerStatus { name, process: process(worker.process) })
    });
    Ok(GuestStatus {
        nonce: nonce.clone(),
        tree: present(reply.tree).map(|tree| TreeDigest(tree.into())),
        processes: present(reply.processes).map(|digest| SpecDigest(digest.into())),
        build: build_state(reply.build.unwrap_or_default()),
        web: reply.web.map(web_status),
        workers: workers.collect::<std::result::Result<_, String>>()?,
        disk: ByteSize::bytes(reply.disk_bytes),
    })
}

fn build_state(build: proto::BuildStatus) -> BuildState {
    use proto::build_status::State;
    let state = build.state();
    let tree = TreeDigest(build.tree.into());
    match state {
        State::None => BuildState::None,
        State::Skipped => BuildState::Skipped,
        State::Running => BuildState::Running,
        State::Passed => BuildState::Passed { tree },
        State::Failed => BuildState::Failed { tree, reason: build.reason },
    }
}

fn web_status(web: proto::WebStatus) -> WebStatus {
    use proto::web_status::Health as Said;
    let health = match web.health() {
        Said::Unknown => Health::Unknown,
        Said::Healthy => Health::Healthy,
        Said::Unhealthy => Health::Unhealthy(web.reason.clone()),
    };
    WebStatus { process: process(web.process), health }
}

fn process(process: Option<proto::ProcessStatus>) -> ProcessState {
    use proto::process_status::State;
    let process = process.unwrap_or_default();
    let restarts = process.restarts;
    match process.state() {
        State::Stopped => ProcessState::Stopped,
        State::Running => ProcessState::Running { restarts },
        State::Backoff => ProcessState::Backoff { restarts, reason: process.reason },
        State::GaveUp => ProcessState::GaveUp { reason: process.reason },
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing step is a failing test")]

    use setpoint_schema::runtime::{Build, Runtime};

    use super::*;

    fn nonce() -> BootNonce {
        BootNonce("ab".into())
    }

    #[test]
    fn an_unset_build_command_is_no_build_and_an_empty_one_is_a_skipped_build() {
        let request = |command: Option<&str>| {
            let build = Build { command: command.map(ToOwned::to_owned), timeout_seconds: 120 };
            let runtime = Runtime { build: Some(build), ..Runtime::nothing() };
            apply_request(
                &ProcessSet { runtime, env: Default::default(), tree: TreeDigest("t".into()) },
                true,
                RestartScope::All,
            )
            .unwrap()
            .build
        };
        assert_eq!(request(None), None);
        assert_eq!(request(Some("")).unwrap().command, "");
    }

    #[test]
    fn a_process_gets_the_text_of_a_sensitive_value() {
        let env = [("TOKEN", EnvValue::sensitive("hunter2")), ("COLOR", "red".into())];
        let env = env.map(|(name, value)| (EnvName::new(name).unwrap(), value)).into();
        let set = ProcessSet { runtime: Runtime::nothing(), env, tree: TreeDigest("t".into()) };
        let request = apply_request(&set, true, RestartScope::All).unwrap();
        assert_eq!(
            request.env,
            [("TOKEN", "hunter2"), ("COLOR", "red")].map(|(a, b)| (a.to_owned(), b.to_owned())).into()
        );
        let masked: ProcessSet = serde_json::from_str(&serde_json::to_string(&set).unwrap()).unwrap();
        assert_eq!(apply_request(&masked, true, RestartScope::All).unwrap_err().as_str(), "TOKEN");
    }

    #[test]
    fn a_status_without_anything_in_it_is_a_guest_that_has_nothing() {
        let status = status(proto::StatusReply::default(), &nonce()).unwrap();
        assert_eq!((status.tree, status.processes, status.build), (None, None, BuildState::None));
    }

    #[test]
    fn a_worker_that_no_declaration_could_name_is_refused() {
        let worker = proto::WorkerStatus { name: "../x".into(), process: None };
        assert!(status(proto::StatusReply { workers: vec![worker], ..Default::default() }, &nonce()).is_err());
    }
}
