//! The host's end of the protocol: one [`Client`] for one connection to one agent.
//!
//! Every call has an end: a deadline of its own, or the keep-alive of the connection where it waits for the guest's news.
//! Every answer is bounded. Nothing here is retried; a client whose connection broke answers errors only.

use std::collections::BTreeSet;
use std::io;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::stream::{BoxStream, Stream, StreamExt as _, TryStreamExt as _};
use hyper_util::rt::TokioIo;
use prost::bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::StreamReader;
use tokio_util::sync::PollSender;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use crate::blank::FrameError;
use crate::handshake::{self, ConnectionNonce, HandshakeError};
use crate::limits::{self, bounded_text};
use crate::proto::agent_client::AgentClient;
use crate::proto::blank_reply::Answer;
use crate::proto::blank_request::Ask;
use crate::proto::exec_part::Part as ExecOutputPart;
use crate::proto::port_part::Part as PortInput;
use crate::proto::sync_part::Part as SyncInput;
use crate::proto::{
    ApplyRequest, BlankReply, BlankRequest, ExecRequest, FreezeRequest, GrowDiskRequest, HelloRequest, LeaveOutRequest,
    LeftOutRequest, LogsRequest, ManifestEntry, ManifestRequest, PortPart, ProcessStatus, RenewRequest,
    ShutdownRequest, StatusReply, StatusRequest, SyncBegin, SyncPart, ThawRequest,
};
use crate::{PROTOCOL, blank, proto};

/// Why a call failed. Text that comes from the guest is bounded.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection did not begin.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The machine is nobody's yet, and did not answer as one.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The connection began and HTTP/2 did not.
    #[error("could not set up the connection to the guest agent")]
    Connection(#[source] Box<tonic::transport::Error>),
    /// The agent speaks another version: its microVM was booted by another Setpoint.
    #[error("the guest agent speaks protocol {0}, this host {PROTOCOL}")]
    Protocol(u32),
    /// The agent refused, or the connection broke.
    #[error("{message}")]
    Refused {
        /// The kind of refusal.
        code: tonic::Code,
        /// In the agent's words.
        message: String,
    },
    /// The agent did not answer in time.
    #[error("the guest agent did not answer {call} within {} s", after.as_secs())]
    TimedOut {
        /// What was asked.
        call: &'static str,
        /// How long it was given.
        after: Duration,
    },
    /// The agent sent more than it may.
    #[error("the guest agent answered {call} with more than {limit} {unit}")]
    TooMuch {
        /// What was asked.
        call: &'static str,
        /// How much is allowed.
        limit: usize,
        /// Of what.
        unit: &'static str,
    },
}

impl ClientError {
    /// A refusal that comes without a kind.
    fn refused(why: &str) -> Self {
        Self::Refused { code: tonic::Code::FailedPrecondition, message: bounded_text(why) }
    }
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        Self::Refused { code: status.code(), message: bounded_text(status.message()) }
    }
}

/// The result of every call.
pub type Result<T> = std::result::Result<T, ClientError>;

/// Why a workspace was not brought up to date: the guest, or whoever supplies the files.
#[derive(Debug, thiserror::Error)]
pub enum SyncError<E> {
    /// The guest refused or went away.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The files could not be read; the guest keeps its old manifest.
    #[error("could not read the files to send")]
    Files(E),
}

/// One file on its way into the workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncFile {
    /// Path, blob and kind.
    pub entry: ManifestEntry,
    /// Content, or the target of a symbolic link.
    pub content: Bytes,
}

/// What git put into the workspace, as far as the guest has recorded it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Manifest {
    /// The content that was last received in full; empty before the first.
    pub tree: String,
    /// The files. Paths are a guest's word: relative or not, they name nothing on the host.
    pub entries: Vec<ManifestEntry>,
}

/// What a command printed, each stream cut at [`limits::EXEC_OUTPUT`], and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExecOutput {
    /// Exit code, or 128 + signal.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

/// One connection to the agent of one boot.
#[derive(Debug)]
pub struct Client {
    agent: AgentClient<Channel>,
    nonce: String,
    version: String,
    motion: Motion,
}

/// Whether a machine goes on or stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Motion {
    /// Its processes run.
    Moving,
    /// It is frozen until it is thawed.
    Frozen,
}

impl Client {
    /// Shakes hands over `stream` and asks who answers. Waits for an agent that is still booting as long as the caller
    /// lets it.
    ///
    /// # Errors
    /// The handshake fails, the agent speaks another version, or does not answer.
    pub async fn connect<S>(mut stream: S) -> Result<Self>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let nonce = ConnectionNonce::random().map_err(HandshakeError::Io)?;
        handshake::host(&mut stream, nonce).await?;
        Self::begun(stream).await
    }

    /// Asks who answers over a stream that is past its handshake.
    ///
    /// # Errors
    /// The agent speaks another version, or does not answer.
    pub async fn begun<S>(stream: S) -> Result<Self>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let channel = open_channel(stream).await?;
        let agent = AgentClient::new(channel)
            .max_decoding_message_size(limits::MESSAGE)
            .max_encoding_message_size(limits::MESSAGE);
        let hello = within("hello", limits::CALL, agent.clone().hello(HelloRequest { protocol: PROTOCOL })).await?;
        if hello.protocol != PROTOCOL {
            return Err(ClientError::Protocol(hello.protocol));
        }
        let motion = if hello.frozen { Motion::Frozen } else { Motion::Moving };
        Ok(Self { agent, nonce: bounded_text(&hello.nonce), version: bounded_text(&hello.agent_version), motion })
    }

    /// The nonce of the boot that answers, which the caller compares with the boot that it means.
    #[must_use]
    pub fn nonce(&self) -> &str {
        &self.nonce
    }

    /// Whether the machine was frozen when this connection began.
    #[must_use]
    pub fn motion(&self) -> Motion {
        self.motion
    }

    /// The version of the agent.
    #[must_use]
    pub fn agent_version(&self) -> &str {
        &self.version
    }

    /// The status now.
    ///
    /// # Errors
    /// The call fails.
    pub async fn status(&self) -> Result<StatusReply> {
        self.ask_status(StatusRequest { known: None, wait_ms: 0 }, Duration::ZERO).await
    }

    /// The status as soon as its sequence number is not `known`, or after `wait` in any case.
    ///
    /// # Errors
    /// The call fails.
    pub async fn status_change(&self, known: u64, wait: Duration) -> Result<StatusReply> {
        let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        self.ask_status(StatusRequest { known: Some(known), wait_ms }, wait).await
    }

    async fn ask_status(&self, request: StatusRequest, wait: Duration) -> Result<StatusReply> {
        let reply = within("status", wait.saturating_add(limits::CALL), self.agent.clone().status(request)).await?;
        bounded_status(reply)
    }

    /// What git put into the workspace.
    ///
    /// # Errors
    /// The call fails, or the manifest has more than [`limits::MANIFEST_ENTRIES`] entries.
    pub async fn manifest(&self) -> Result<Manifest> {
        let collect = async {
            let mut pages = self.agent.clone().manifest(ManifestRequest {}).await?.into_inner();
            let mut manifest = Manifest::default();
            while let Some(page) = pages.message().await? {
                manifest.tree = bounded_text(&page.tree);
                manifest.entries.extend(page.entries);
                if manifest.entries.len() > limits::MANIFEST_ENTRIES {
                    let limit = limits::MANIFEST_ENTRIES;
                    return Err(ClientError::TooMuch { call: "manifest", limit, unit: "entries" });
                }
            }
            Ok(manifest)
        };
        bounded_by("manifest", limits::CALL, collect).await
    }

    /// Brings the workspace to `tree`: `removed` go, `files` arrive in order. The guest records `tree` only when all of it
    /// is in place, so that whatever cuts this short leaves the old manifest.
    ///
    /// # Errors
    /// The guest refuses a path or the call fails; or `files` ends in an error.
    pub async fn sync<E: Send>(
        &self,
        tree: &str,
        removed: Vec<String>,
        files: impl Stream<Item = std::result::Result<SyncFile, E>> + Send,
    ) -> std::result::Result<(), SyncError<E>> {
        // Four chunks under way keep the link busy; more would only sit in memory.
        let (parts, receiver) = mpsc::channel(4);
        let mut agent = self.agent.clone();
        let calling = within("sync", limits::SYNC, agent.sync(ReceiverStream::new(receiver)));
        let sending = send_parts(parts, tree.to_owned(), removed, files);
        let (replied, sent) = tokio::join!(calling, sending);
        sent.map_err(SyncError::Files)?;
        replied?;
        Ok(())
    }

    /// Builds where asked and (re)starts processes. Returns when accepted; progress shows in the status.
    ///
    /// # Errors
    /// The call fails.
    pub async fn apply(&self, request: ApplyRequest) -> Result<()> {
        within("apply", limits::CALL, self.agent.clone().apply(request)).await.map(drop)
    }

    /// Grows the data file system to its disk; its size after that, in bytes.
    ///
    /// # Errors
    /// The call fails.
    pub async fn grow_disk(&self) -> Result<u64> {
        let reply = within("grow disk", limits::GROW, self.agent.clone().grow_disk(GrowDiskRequest {})).await?;
        Ok(reply.disk_bytes)
    }

    /// The last `tail` lines of the log of `web`, `build` or a worker; then, with [`Follow::Yes`], what is written from
    /// there on, for as long as the stream is kept.
    ///
    /// # Errors
    /// The call fails. Later failures end the stream with an error.
    pub async fn logs(&self, process: &str, tail: u32, follow: Follow) -> Result<BoxStream<'static, Result<Bytes>>> {
        let request =
            LogsRequest { process: process.to_owned(), tail_lines: tail, follow: matches!(follow, Follow::Yes) };
        let chunks = self.streaming("logs", self.agent.clone().logs(request)).await?;
        Ok(chunks.map_ok(|chunk| chunk.data).map_err(ClientError::from).boxed())
    }

    /// Runs a command as the unprivileged user in the workspace. Dropping the future ends the command.
    ///
    /// # Errors
    /// The call fails; a command that fails is no error.
    pub async fn exec(&self, argv: Vec<String>) -> Result<ExecOutput> {
        let mut parts = self.streaming("exec", self.agent.clone().exec(ExecRequest { argv })).await?;
        let mut output = ExecOutput::default();
        while let Some(part) = parts.message().await? {
            match part.part {
                Some(ExecOutputPart::Stdout(data)) => append_bounded(&mut output.stdout, &data),
                Some(ExecOutputPart::Stderr(data)) => append_bounded(&mut output.stderr, &data),
                Some(ExecOutputPart::Exit(code)) => {
                    output.code = code;
                    return Ok(output);
                }
                None => {}
            }
        }
        Err(ClientError::Refused {
            code: tonic::Code::Aborted,
            message: "the command's end was not reported".to_owned(),
        })
    }

    /// Connects to a port on the guest's localhost. Shutting the stream down ends the sending half alone.
    ///
    /// # Errors
    /// Nothing listens there, or the call fails.
    pub async fn open_port(&self, port: u16) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>> {
        let (sender, receiver) = mpsc::channel(4);
        sender.try_send(port_part(PortInput::Open(u32::from(port)))).expect("a new channel has room");
        let chunks = self.streaming("port", self.agent.clone().port(ReceiverStream::new(receiver))).await?;
        let reader = StreamReader::new(chunks.map_ok(|chunk| chunk.data).map_err(io::Error::other));
        Ok(tokio::io::join(reader, PortWriter { parts: PollSender::new(sender) }))
    }

    /// Makes the machine stand still, its data file system clean, until [`Self::thaw`].
    ///
    /// # Errors
    /// The call fails; then nothing stands still, unless the connection broke.
    pub async fn freeze(&self) -> Result<()> {
        let request = FreezeRequest { processes_only: false };
        within("freeze", limits::FREEZE, self.agent.clone().freeze(request)).await.map(drop)
    }

    /// Makes the user's processes alone stand still, until [`Self::thaw`].
    ///
    /// # Errors
    /// The call fails; then nothing stands still, unless the connection broke.
    pub async fn freeze_processes(&self) -> Result<()> {
        let request = FreezeRequest { processes_only: true };
        within("freeze", limits::FREEZE, self.agent.clone().freeze(request)).await.map(drop)
    }

    /// Makes a restored machine one of its own. Without this having succeeded it must not be thawed.
    ///
    /// # Errors
    /// The call fails, or a step of it.
    pub async fn renew(&self, request: RenewRequest) -> Result<()> {
        within("renew", limits::CALL, self.agent.clone().renew(request)).await.map(drop)
    }

    /// Removes the directories of these names from the workspace, once for each snapshot.
    ///
    /// # Errors
    /// The call fails, or something was applied to the machine already.
    pub async fn leave_out(&self, snapshot: &str, names: Vec<String>) -> Result<()> {
        let request = LeaveOutRequest { snapshot: snapshot.to_owned(), names };
        within("leave out", limits::SYNC, self.agent.clone().leave_out(request)).await.map(drop)
    }

    /// For which snapshot that was done last; empty if for none.
    ///
    /// # Errors
    /// The call fails.
    pub async fn left_out(&self) -> Result<String> {
        let reply = within("left out", limits::CALL, self.agent.clone().left_out(LeftOutRequest {})).await?;
        Ok(bounded_text(&reply.snapshot))
    }

    /// Lets a frozen machine go on; nothing happens to one that goes on already.
    ///
    /// # Errors
    /// The call fails.
    pub async fn thaw(&self) -> Result<()> {
        within("thaw", limits::CALL, self.agent.clone().thaw(ThawRequest {})).await.map(drop)
    }

    /// Asks for a clean shutdown. The microVM ends some time after.
    ///
    /// # Errors
    /// The call fails.
    pub async fn shutdown(&self) -> Result<()> {
        within("shutdown", limits::CALL, self.agent.clone().shutdown(ShutdownRequest {})).await.map(drop)
    }

    /// The beginning of a streamed answer, within a call's time; what follows comes when it comes.
    async fn streaming<T>(
        &self,
        call: &'static str,
        future: impl Future<Output = std::result::Result<Response<T>, Status>>,
    ) -> Result<T> {
        within(call, limits::CALL, future).await
    }
}

/// One connection to a machine that is nobody's yet.
#[derive(Debug)]
pub struct BlankClient<S> {
    stream: S,
    nonce: ConnectionNonce,
}

impl<S> BlankClient<S>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    /// Shakes hands over `stream`, as [`Client::connect`] does.
    ///
    /// # Errors
    /// The handshake fails.
    pub async fn connect(mut stream: S) -> Result<Self> {
        let nonce = ConnectionNonce::random().map_err(HandshakeError::Io)?;
        handshake::host_until_ready(&mut stream, nonce).await?;
        Ok(Self { stream, nonce })
    }

    /// The same with a machine that was saved while it waited for a request, and whose own nonce is known: it needs no handshake.
    pub fn restored(stream: S, nonce: ConnectionNonce) -> Self {
        Self { stream, nonce }
    }

    /// The nonce of the machine that answers.
    ///
    /// # Errors
    /// The agent speaks another version, does not answer, or is somebody's already.
    pub async fn hello(&mut self) -> Result<String> {
        match self.ask("hello", Ask::Hello(HelloRequest { protocol: PROTOCOL })).await? {
            Answer::Hello(hello) if hello.protocol == PROTOCOL => {
                // A handshake is good for one request.
                self.nonce = ConnectionNonce::parse(&hello.nonce).unwrap_or(self.nonce);
                Ok(bounded_text(&hello.nonce))
            }
            Answer::Hello(hello) => Err(ClientError::Protocol(hello.protocol)),
            Answer::Refused(why) => Err(ClientError::refused(&why)),
            Answer::Became(_) => Err(ClientError::refused("it answered what was not asked")),
        }
    }

    /// Makes it a machine of its own, whose agent goes on with the stream.
    ///
    /// # Errors
    /// The call fails, or a step of it.
    pub async fn become_somebodys(mut self, request: RenewRequest) -> Result<S> {
        match self.ask("become", Ask::Become(request)).await? {
            Answer::Became(_) => Ok(self.stream),
            Answer::Refused(why) => Err(ClientError::refused(&why)),
            Answer::Hello(_) => Err(ClientError::refused("it answered what was not asked")),
        }
    }

    async fn ask(&mut self, call: &'static str, ask: Ask) -> Result<Answer> {
        let request = BlankRequest { protocol: PROTOCOL, ask: Some(ask) };
        let start = self.nonce.start();
        bounded_by(call, limits::CALL, async {
            blank::write_after(&mut self.stream, &start, &request).await.map_err(FrameError::Io)?;
            let reply: BlankReply = blank::read(&mut self.stream).await?;
            reply.answer.ok_or_else(|| ClientError::refused("it answered nothing"))
        })
        .await
    }
}

/// Whether a log stream goes on after what is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// It ends.
    No,
    /// It goes on until it is dropped.
    Yes,
}

/// The sending half of a port. What is written is under way at once, as on a socket: nothing waits for a flush.
struct PortWriter {
    parts: PollSender<PortPart>,
}

impl AsyncWrite for PortWriter {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.parts.poll_reserve(cx)).map_err(gone)?;
        let chunk = &data[..data.len().min(limits::CHUNK)];
        self.parts.send_item(port_part(PortInput::Data(Bytes::copy_from_slice(chunk)))).map_err(gone)?;
        Poll::Ready(Ok(chunk.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.parts.close();
        Poll::Ready(Ok(()))
    }
}

/// HTTP/2 over a stream whose handshake is done. The channel could reconnect; this one finds no second stream.
async fn open_channel<S>(stream: S) -> Result<Channel>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let once = Mutex::new(Some(TokioIo::new(stream)));
    let connector = tower::service_fn(move |_| {
        let stream = once.lock().ok().and_then(|mut once| once.take());
        std::future::ready(stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)))
    });
    // The name is never looked up: HTTP/2 wants one in every request.
    Endpoint::from_static("http://guest")
        .http2_keep_alive_interval(limits::KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(limits::KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(limits::STREAM_WINDOW)
        .initial_connection_window_size(limits::CONNECTION_WINDOW)
        .connect_with_connector(connector)
        .await
        .map_err(|error| ClientError::Connection(Box::new(error)))
}

async fn within<T>(
    call: &'static str,
    after: Duration,
    future: impl Future<Output = std::result::Result<Response<T>, Status>>,
) -> Result<T> {
    bounded_by(call, after, async { Ok(future.await?.into_inner()) }).await
}

async fn bounded_by<T>(call: &'static str, after: Duration, future: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(after, future).await.unwrap_or(Err(ClientError::TimedOut { call, after }))
}

/// Sends a whole sync. A guest that hangs up ends it quietly: the call's own answer says why. An error of `files` drops the
/// sender before the commit.
async fn send_parts<E>(
    parts: mpsc::Sender<SyncPart>,
    tree: String,
    removed: Vec<String>,
    files: impl Stream<Item = std::result::Result<SyncFile, E>>,
) -> std::result::Result<(), E> {
    let send = async |part| parts.send(SyncPart { part: Some(part) }).await.is_ok();
    if !send(SyncInput::Begin(SyncBegin { tree })).await {
        return Ok(());
    }
    for path in removed {
        if !send(SyncInput::Remove(path)).await {
            return Ok(());
        }
    }
    let mut files = std::pin::pin!(files);
    while let Some(file) = files.next().await {
        let SyncFile { entry, content } = file?;
        if !send(SyncInput::File(entry)).await {
            return Ok(());
        }
        for chunk in in_chunks(content) {
            if !send(SyncInput::Chunk(chunk)).await {
                return Ok(());
            }
        }
    }
    send(SyncInput::Commit(true)).await;
    Ok(())
}

fn port_part(part: PortInput) -> PortPart {
    PortPart { part: Some(part) }
}

fn in_chunks(mut data: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || (!data.is_empty()).then(|| data.split_to(data.len().min(limits::CHUNK))))
}

fn append_bounded(output: &mut Vec<u8>, data: &[u8]) {
    let room = limits::EXEC_OUTPUT.saturating_sub(output.len());
    output.extend_from_slice(&data[..data.len().min(room)]);
}

/// The status with every text bounded. A repeated worker would overwrite another's state in a reader's map.
fn bounded_status(mut status: StatusReply) -> Result<StatusReply> {
    if status.workers.len() > limits::WORKERS {
        return Err(ClientError::TooMuch { call: "status", limit: limits::WORKERS, unit: "workers" });
    }
    let bound = |text: &mut String| *text = bounded_text(text);
    let bound_process = |process: &mut Option<ProcessStatus>| {
        if let Some(process) = process {
            bound(&mut process.reason);
        }
    };
    bound(&mut status.tree);
    bound(&mut status.processes);
    if let Some(build) = &mut status.build {
        bound(&mut build.tree);
        bound(&mut build.reason);
    }
    if let Some(proto::WebStatus { process, reason, .. }) = &mut status.web {
        bound(reason);
        bound_process(process);
    }
    let mut seen = BTreeSet::new();
    for worker in &mut status.workers {
        bound(&mut worker.name);
        bound_process(&mut worker.process);
    }
    status.workers.retain(|worker| seen.insert(worker.name.clone()));
    Ok(status)
}
