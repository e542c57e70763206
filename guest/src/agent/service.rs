//! The gRPC service: checks what a host asks, and hands it to the part of the agent that does it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt as _};
use prost::Message as _;
use prost::bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::unix::pipe;
use tokio::sync::{Mutex, Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::PROTOCOL;
use crate::limits::{self, bounded_text};
use crate::proto::agent_server;
use crate::proto::exec_part::Part as ExecOutput;
use crate::proto::port_part::Part as PortInput;
use crate::proto::sync_part::Part as SyncInput;
use crate::proto::{
    ApplyReply, ApplyRequest, Chunk, ExecPart, ExecRequest, FileKind, FreezeReply, FreezeRequest, GrowDiskReply,
    GrowDiskRequest, HelloReply, HelloRequest, LeaveOutReply, LeaveOutRequest, LeftOutReply, LeftOutRequest,
    LogsRequest, ManifestEntry, ManifestPage, ManifestRequest, PortPart, RenewReply, RenewRequest, ShutdownReply,
    ShutdownRequest, StatusReply, StatusRequest, SyncPart, SyncReply, ThawReply, ThawRequest,
};

use super::disk::DataDisk;
use super::freeze::{Depth, Freezer};
use super::job::{Env, Job, Output};
use super::local;
use super::logs;
use super::process::ProcessName;
use super::renew::{Identity, Renewal, renew};
use super::supervise::{Context, Supervisor};
use super::workspace::leave_out::LeftOut;
use super::workspace::{Entry, Manifest, Sync, Workspace, WorkspaceError};

type Answer<T> = Result<Response<T>, Status>;

/// One agent's service. Connections come one after another, and their calls run side by side.
#[derive(Debug, Clone)]
pub struct Service {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    nonce: std::sync::Mutex<String>,
    context: Arc<Context>,
    supervisor: Supervisor,
    /// Held by a sync from its beginning to its end: a newer one waits for the older one's connection to go.
    workspace: Arc<Mutex<Workspace>>,
    /// The environment of the set that was applied last, for commands.
    env: std::sync::Mutex<Env>,
    disk: DataDisk,
    freezer: Freezer,
    identity: Arc<dyn Identity>,
    shutdown: Arc<Notify>,
    /// It is a copy of another machine, whose logs go when its files can be changed again.
    forgets_logs: AtomicBool,
}

/// The parts that do the work.
#[derive(Debug)]
pub struct Parts {
    /// This boot's nonce.
    pub nonce: String,
    /// Shows how processes are.
    pub context: Arc<Context>,
    /// Runs them.
    pub supervisor: Supervisor,
    /// Takes files.
    pub workspace: Workspace,
    /// Grows.
    pub disk: DataDisk,
    /// Makes the machine stand still.
    pub freezer: Freezer,
    /// Makes a restored machine one of its own.
    pub identity: Arc<dyn Identity>,
    /// Notified when a host asks for a shutdown.
    pub shutdown: Arc<Notify>,
}

impl Service {
    /// A service over the parts.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts { nonce, context, supervisor, workspace, disk, freezer, identity, shutdown } = parts;
        let (nonce, workspace) = (std::sync::Mutex::new(nonce), Arc::new(Mutex::new(workspace)));
        let (env, forgets_logs) = (std::sync::Mutex::default(), AtomicBool::new(false));
        Self {
            shared: Arc::new(Shared {
                nonce,
                context,
                supervisor,
                workspace,
                env,
                disk,
                freezer,
                identity,
                shutdown,
                forgets_logs,
            }),
        }
    }

    /// Refuses what would wait for a machine that stands still: waiting for it could hold up the call that lets it go on.
    fn moving(&self) -> Result<(), Status> {
        if self.shared.freezer.is_frozen() { Err(Status::failed_precondition("the machine is frozen")) } else { Ok(()) }
    }

    fn nonce(&self) -> std::sync::MutexGuard<'_, String> {
        self.shared.nonce.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[tonic::async_trait]
impl agent_server::Agent for Service {
    type ManifestStream = BoxStream<'static, Result<ManifestPage, Status>>;
    type LogsStream = BoxStream<'static, Result<Chunk, Status>>;
    type ExecStream = ReceiverStream<Result<ExecPart, Status>>;
    type PortStream = BoxStream<'static, Result<Chunk, Status>>;

    async fn hello(&self, _: Request<HelloRequest>) -> Answer<HelloReply> {
        let agent_version = env!("CARGO_PKG_VERSION").to_owned();
        let (nonce, frozen) = (self.nonce().clone(), self.shared.freezer.is_frozen());
        Ok(Response::new(HelloReply { protocol: PROTOCOL, nonce, agent_version, frozen }))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusReply> {
        let board = &self.shared.context.board;
        let StatusRequest { known, wait_ms } = request.into_inner();
        Ok(Response::new(match known {
            None => board.read(),
            Some(known) => board.changed(known, Duration::from_millis(u64::from(wait_ms))).await,
        }))
    }

    async fn manifest(&self, _: Request<ManifestRequest>) -> Answer<Self::ManifestStream> {
        let pages = manifest_pages(self.shared.workspace.lock().await.manifest());
        Ok(Response::new(stream::iter(pages).map(Ok).boxed()))
    }

    async fn sync(&self, request: Request<Streaming<SyncPart>>) -> Answer<SyncReply> {
        self.moving()?;
        let mut parts = request.into_inner();
        let Some(SyncPart { part: Some(SyncInput::Begin(begin)) }) = parts.message().await? else {
            return Err(Status::invalid_argument("a sync begins with its tree"));
        };
        let workspace = self.shared.workspace.clone().lock_owned().await;
        let mut sync = Sync::begin(workspace, begin.tree.clone())?;
        loop {
            match parts.message().await?.and_then(|part| part.part) {
                Some(SyncInput::Remove(path)) => sync.remove(&path)?,
                Some(SyncInput::File(file)) => {
                    let kind = file.kind().into();
                    sync.file(file.path, Entry { blob: file.blob, kind })?;
                }
                Some(SyncInput::Chunk(data)) => sync.chunk(&data)?,
                Some(SyncInput::Commit(_)) => break,
                Some(SyncInput::Begin(_)) => return Err(Status::invalid_argument("a sync begins once")),
                None => return Err(Status::aborted("the sync ended before its commit")),
            }
        }
        // Making it durable waits for the disk, which must not hold the other calls up.
        tokio::task::spawn_blocking(move || sync.commit()).await.map_err(|e| Status::internal(e.to_string()))??;
        self.shared.context.board.update(|status| status.tree = begin.tree);
        Ok(Response::new(SyncReply {}))
    }

    async fn apply(&self, request: Request<ApplyRequest>) -> Answer<ApplyReply> {
        self.moving()?;
        let request = request.into_inner();
        check_set(&request).map_err(Status::invalid_argument)?;
        let env = request.env.clone().into_iter().collect();
        *self.shared.env.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = env;
        self.shared.supervisor.apply(request).await;
        Ok(Response::new(ApplyReply {}))
    }

    async fn grow_disk(&self, _: Request<GrowDiskRequest>) -> Answer<GrowDiskReply> {
        self.moving()?;
        let disk_bytes = self.shared.disk.grow().await.map_err(|e| Status::internal(format!("could not grow: {e}")))?;
        self.shared.context.board.update(|status| status.disk_bytes = disk_bytes);
        Ok(Response::new(GrowDiskReply { disk_bytes }))
    }

    async fn logs(&self, request: Request<LogsRequest>) -> Answer<Self::LogsStream> {
        self.moving()?;
        let LogsRequest { process, tail_lines, follow } = request.into_inner();
        let reader = self.open_log(&process)?.tail(tail_lines).map_err(|error| io_status("read the log", &error))?;
        let follow = if follow { Follow::Yes } else { Follow::No };
        let chunks = stream::try_unfold(reader, move |reader| next_log_chunk(reader, follow));
        Ok(Response::new(chunks.boxed()))
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Answer<Self::ExecStream> {
        self.moving()?;
        let env = self.shared.env.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let job = (self.shared.context.launcher.launch(&request.into_inner().argv, &env, Output::Split))
            .map_err(|error| io_status("start the command", &error))?;
        let (parts, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            // Dropping the job ends it: a caller that has gone wants nothing more of it.
            tokio::select! {
                () = parts.closed() => {}
                () = relay_exec(job, &parts) => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn port(&self, request: Request<Streaming<PortPart>>) -> Answer<Self::PortStream> {
        self.moving()?;
        let mut parts = request.into_inner();
        let Some(PortPart { part: Some(PortInput::Open(port)) }) = parts.message().await? else {
            return Err(Status::invalid_argument("a port stream begins with its port"));
        };
        let port = u16::try_from(port).map_err(|_| Status::invalid_argument("no such port"))?;
        let stream = local::connect(port).await.map_err(|error| Status::unavailable(error.to_string()))?;
        let (reader, writer) = stream.into_split();
        tokio::spawn(write_port(parts, writer));
        let chunks = stream::try_unfold(reader, async |mut reader| {
            let chunk = read_chunk(&mut reader).await.map_err(|error| Status::aborted(error.to_string()))?;
            Ok(chunk.map(|data| (Chunk { data }, reader)))
        });
        Ok(Response::new(chunks.boxed()))
    }

    async fn freeze(&self, request: Request<FreezeRequest>) -> Answer<FreezeReply> {
        let depth = if request.into_inner().processes_only { Depth::Processes } else { Depth::ProcessesAndDisk };
        // A sync under way comes to its end first.
        let workspace = self.shared.workspace.lock().await;
        self.shared.freezer.freeze(depth).await.map_err(|error| io_status("freeze the machine", &error))?;
        drop(workspace);
        Ok(Response::new(FreezeReply {}))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Answer<RenewReply> {
        if !self.shared.freezer.is_frozen() {
            return Err(Status::failed_precondition("only a frozen machine can be renewed"));
        }
        let request = request.into_inner();
        // A renewal whose answer was lost comes a second time.
        let known = self.nonce().clone();
        if request.old_nonce != known && request.nonce != known {
            return Err(Status::permission_denied("the renewal is for another machine"));
        }
        let (nonce, is_copy) = (request.nonce.clone(), request.copy);
        let renewal = checked(request).map_err(Status::invalid_argument)?;
        renew(&*self.shared.identity, &renewal).map_err(|(step, error)| io_status(step, &error))?;
        *self.nonce() = nonce;
        // The files may be frozen yet.
        self.shared.forgets_logs.fetch_or(is_copy, Ordering::Relaxed);
        Ok(Response::new(RenewReply {}))
    }

    async fn leave_out(&self, request: Request<LeaveOutRequest>) -> Answer<LeaveOutReply> {
        self.moving()?;
        let LeaveOutRequest { snapshot, names } = request.into_inner();
        let left_out = LeftOut::parse(snapshot, names).map_err(Status::invalid_argument)?;
        let mut workspace = self.shared.workspace.clone().lock_owned().await;
        // What runs may be using them, and what a build has made since is the app's own.
        let is_new = self.shared.context.board.read().processes.is_empty();
        if is_new && workspace.left_out()?.as_deref() != Some(left_out.snapshot()) {
            self.forget_logs()?;
        }
        let leaving_out = move || workspace.leave_out(&left_out, is_new).map(|()| workspace.manifest().tree.clone());
        let tree = tokio::task::spawn_blocking(leaving_out).await.map_err(|e| Status::internal(e.to_string()))??;
        self.shared.context.board.update(|status| status.tree = tree);
        Ok(Response::new(LeaveOutReply {}))
    }

    async fn left_out(&self, _: Request<LeftOutRequest>) -> Answer<LeftOutReply> {
        let snapshot = self.shared.workspace.lock().await.left_out()?.unwrap_or_default();
        Ok(Response::new(LeftOutReply { snapshot }))
    }

    async fn thaw(&self, _: Request<ThawRequest>) -> Answer<ThawReply> {
        // A file of logs that stays is no reason for the machine to stand still.
        let meanwhile = || {
            if self.shared.forgets_logs.swap(false, Ordering::Relaxed) {
                let _ = self.forget_logs().inspect_err(|error| eprintln!("setpoint-agent: {}", error.message()));
            }
        };
        self.shared.freezer.thaw(meanwhile).await.map_err(|error| io_status("thaw the machine", &error))?;
        Ok(Response::new(ThawReply {}))
    }

    async fn shutdown(&self, _: Request<ShutdownRequest>) -> Answer<ShutdownReply> {
        self.moving()?;
        self.shared.shutdown.notify_one();
        Ok(Response::new(ShutdownReply {}))
    }
}

impl Service {
    /// Forgets what the machine has logged that this one is a copy of.
    fn forget_logs(&self) -> Result<(), Status> {
        self.shared.context.logs.forget().map_err(|error| io_status("remove the logs of another machine", &error))
    }

    /// The log of `web`, `build` or a worker. A process that has not printed yet has an empty one.
    fn open_log(&self, process: &str) -> Result<Arc<logs::Log>, Status> {
        let logs = &self.shared.context.logs;
        let status = self.shared.context.board.read();
        let opened = match process {
            "web" => logs.open(&ProcessName::Web.log()).map(Some),
            "build" => logs.open("build").map(Some),
            worker if !is_worker_name(worker) => return Err(Status::invalid_argument("no such process")),
            worker => {
                let log = ProcessName::Worker(worker.to_owned()).log();
                let declared = status.workers.iter().any(|status| status.name == worker);
                if declared { logs.open(&log).map(Some) } else { logs.find(&log) }
            }
        };
        opened
            .map_err(|error| io_status("open the log", &error))?
            .ok_or_else(|| Status::not_found(format!("there is no process {process}")))
    }
}

impl From<WorkspaceError> for Status {
    fn from(error: WorkspaceError) -> Self {
        let message = bounded_text(&error.to_string());
        match error {
            WorkspaceError::Path { .. } | WorkspaceError::LinkLeaves { .. } | WorkspaceError::Order(_) => {
                Self::invalid_argument(message)
            }
            WorkspaceError::Occupied { .. } => Self::failed_precondition(message),
            WorkspaceError::Io { .. } => Self::internal(message),
        }
    }
}

pub(super) fn io_status(operation: &str, error: &io::Error) -> Status {
    let message = format!("could not {operation}: {error}");
    match error.kind() {
        io::ErrorKind::NotFound => Status::not_found(message),
        io::ErrorKind::InvalidInput => Status::invalid_argument(message),
        _ => Status::internal(message),
    }
}

/// At least one page, so that the tree arrives with an empty manifest too.
fn manifest_pages(manifest: &Manifest) -> Vec<ManifestPage> {
    let page = || ManifestPage { tree: manifest.tree.clone(), entries: Vec::new() };
    let mut pages = vec![page()];
    let mut bytes = 0;
    for (path, Entry { blob, kind }) in &manifest.files {
        let kind = FileKind::from(*kind).into();
        let entry = ManifestEntry { path: path.clone(), blob: blob.clone(), kind };
        bytes += entry.encoded_len();
        if bytes > limits::MANIFEST_PAGE {
            bytes = entry.encoded_len();
            pages.push(page());
        }
        pages.last_mut().expect("there is at least one page").entries.push(entry);
    }
    pages
}

/// The host has checked all this; its names become file names here.
fn check_set(request: &ApplyRequest) -> Result<(), &'static str> {
    if request.web.as_ref().is_some_and(|web| !(1..=65535).contains(&web.port)) {
        return Err("web.port must be 1 to 65535");
    }
    if request.workers.len() > limits::WORKERS {
        return Err("too many workers");
    }
    if !request.workers.iter().all(|worker| is_worker_name(&worker.name)) {
        return Err("a worker's name must be 1 to 64 letters, digits, `_` or `-`");
    }
    Ok(())
}

/// The host sends none that is wrong; names become files here, and too little entropy would not tell two machines apart.
pub(super) fn checked(request: RenewRequest) -> Result<Renewal, &'static str> {
    let RenewRequest { old_nonce: _, nonce, unix_nanos, entropy, hostname, machine_id, mac, disk_bytes: _, copy: _ } =
        request;
    let hex = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if !(1..=64).contains(&nonce.len()) || !hex(&nonce) {
        return Err("the nonce must be 1 to 64 hex digits");
    }
    if machine_id.len() != 32 || !hex(&machine_id) {
        return Err("the machine id must be 32 hex digits");
    }
    if !(1..=63).contains(&hostname.len()) || !hostname.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    {
        return Err("the host name must be 1 to 63 letters, digits or `-`");
    }
    let entropy = entropy[..].try_into().map_err(|_| "the entropy must be 64 bytes")?;
    let mac = mac[..].try_into().map_err(|_| "the hardware address must be 6 bytes")?;
    Ok(Renewal { unix_nanos, entropy, hostname, machine_id, mac })
}

fn is_worker_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

#[derive(Debug, Clone, Copy)]
enum Follow {
    No,
    Yes,
}

async fn next_log_chunk(mut reader: logs::Reader, follow: Follow) -> Result<Option<(Chunk, logs::Reader)>, Status> {
    loop {
        if let Some(data) = reader.read_next().map_err(|error| io_status("read the log", &error))? {
            return Ok(Some((Chunk { data: data.into() }, reader)));
        }
        match follow {
            Follow::No => return Ok(None),
            Follow::Yes => reader.more().await,
        }
    }
}

/// Sends a command's output and then its end. The senders fail only when the caller has gone, which the caller of this sees too.
async fn relay_exec(mut job: Job, parts: &mpsc::Sender<Result<ExecPart, Status>>) {
    let stdout = job.stdout.take().expect("a new job has its output");
    let stderr = job.stderr.take().expect("a split job has both outputs");
    let end = async {
        let exit = job.ended().await;
        // What it left behind would keep the pipes open.
        job.kill();
        exit
    };
    let (exit, (), ()) = tokio::join!(
        end,
        relay_output(stdout, parts, ExecOutput::Stdout),
        relay_output(stderr, parts, ExecOutput::Stderr),
    );
    let _ = parts.send(Ok(ExecPart { part: Some(ExecOutput::Exit(exit.shell_code())) })).await;
}

/// Sends the first [`limits::EXEC_OUTPUT`] bytes and drops the rest, so that the command never waits for a reader.
async fn relay_output(
    mut pipe: pipe::Receiver,
    parts: &mpsc::Sender<Result<ExecPart, Status>>,
    wrap: impl Fn(Bytes) -> ExecOutput,
) {
    let mut room = limits::EXEC_OUTPUT;
    while let Ok(Some(mut data)) = read_chunk(&mut pipe).await {
        data.truncate(room);
        room -= data.len();
        if !data.is_empty() {
            let _ = parts.send(Ok(ExecPart { part: Some(wrap(data)) })).await;
        }
    }
}

/// The next bytes of a stream; `None` at its end.
async fn read_chunk(reader: &mut (impl tokio::io::AsyncRead + Unpin)) -> io::Result<Option<Bytes>> {
    // An ordinary answer fits, and an idle connection costs no more than this.
    let mut data = Vec::with_capacity(limits::CHUNK / 4);
    let count = reader.read_buf(&mut data).await?;
    Ok((count > 0).then(|| data.into()))
}

/// Writes what the host sends until it ends its half. A broken connection shows in the other half, or in neither's favour.
async fn write_port(mut parts: Streaming<PortPart>, mut writer: OwnedWriteHalf) {
    while let Ok(Some(part)) = parts.message().await {
        let Some(PortInput::Data(data)) = part.part else { return };
        if writer.write_all(&data).await.is_err() {
            return;
        }
    }
    let _ = writer.shutdown().await;
}
