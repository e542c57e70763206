//! A hostile guest: whatever it sends over its link, the driver answers with an error or with something bounded, and soon.
//!
//! The first byte of the input chooses how deep it reaches: before the handshake, in place of HTTP/2, or as well-formed answers
//! with arbitrary content. The host's side is the real driver over the real socket.

#![no_main]

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use libfuzzer_sys::fuzz_target;
use prost::Message;
use setpoint_guest::proto::agent_server::{Agent, AgentServer};
use setpoint_guest::{PROTOCOL, handshake, limits, proto};
use setpoint_schema::id::{BootNonce, SandboxId, SnapshotId};
use setpoint_schema::observed::GuestStatus;
use setpoint_schema::quantity::Span;
use setpoint_vmm::driver::{Driver as _, Guest};
use setpoint_vmm::qemu::{AccelChoice, MachineType, Network, QemuConfig, QemuDriver};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{UnixListener, UnixStream};
use tonic::{Request, Response, Status, Streaming};

const NONCE: &str = "0123456789abcdef0123456789abcdef";

thread_local! {
    static RIG: RefCell<Rig> = RefCell::new(Rig::new());
}

fuzz_target!(|input: &[u8]| {
    let Some((depth, bytes)) = input.split_first() else { return };
    RIG.with_borrow_mut(|rig| rig.run(*depth, bytes.to_vec()));
});

struct Rig {
    runtime: tokio::runtime::Runtime,
    driver: QemuDriver,
    listener: UnixListener,
    sandbox: SandboxId,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        // As the standard library does for programs with a main function of their own.
        // SAFETY: nothing else runs yet, and ignoring a signal runs no code.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        let dir = tempfile::tempdir().expect("a temporary directory");
        let sandbox = SandboxId("fuzz-00000001".into());
        let vm = dir.path().join("vms").join(sandbox.as_str());
        fs::create_dir_all(&vm).expect("the directory is ours");
        // No VMM is started; the driver only asks for its version.
        let qemu = dir.path().join("qemu");
        fs::write(&qemu, "#!/bin/sh\necho QEMU emulator version 0.0\n").expect("the directory is ours");
        fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755)).expect("the file is ours");
        let driver = QemuDriver::new(QemuConfig {
            dir: dir.path().to_owned(),
            kernel: None,
            modules: None,
            accel: AccelChoice::Tcg,
            machine: MachineType::Microvm,
            network: Network::None,
            qemu: Some(qemu),
            shim: Vec::new(),
            agent: Vec::new().into(),
            busybox: None,
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(vm.join("agent.sock")).expect("a short path")
        };
        Self { runtime, driver: driver.expect("a version was printed"), listener, sandbox, _dir: dir }
    }

    fn run(&mut self, depth: u8, bytes: Vec<u8>) {
        let nonce = BootNonce(NONCE.into());
        let Self { runtime, driver, listener, sandbox, _dir } = self;
        runtime.block_on(async {
            let guest = async {
                let (stream, _) = listener.accept().await.expect("the driver connects");
                play(stream, depth, bytes).await;
            };
            let host = async {
                if let Ok(agent) = driver.guest(sandbox, &nonce).await {
                    ask_everything(agent.as_ref()).await;
                }
            };
            // The guest goes on for ever where it can: the host's end is the end.
            let both = async {
                tokio::select! { () = host => {}, () = async { guest.await; std::future::pending().await } => {} }
            };
            // Nothing that a guest sends at once and in full may make the host wait for it.
            tokio::time::timeout(Duration::from_secs(60), both).await.expect("the host comes to an end");
        });
    }
}

async fn play(mut stream: UnixStream, depth: u8, bytes: Vec<u8>) {
    match depth % 3 {
        0 => drop(stream.write_all(&bytes).await),
        1 => {
            if handshake::agent(&mut stream).await.is_ok() {
                drop(stream.write_all(&bytes).await);
            }
        }
        _ => {
            if handshake::agent(&mut stream).await.is_ok() {
                let service = TowerToHyperService::new(AgentServer::new(Hostile(bytes)));
                let connection = http2::Builder::new(TokioExecutor::new());
                drop(connection.serve_connection(TokioIo::new(stream), service).await);
            }
        }
    }
}

/// Every question that the daemon asks. Answers that get through are bounded.
async fn ask_everything(agent: &dyn Guest) {
    if let Ok(status) = agent.status().await {
        assert_bounded(&status);
        if let Ok(Some(status)) = agent.status_change(&status, Span::millis(1)).await {
            assert_bounded(&status);
        }
    }
    if let Ok(manifest) = agent.manifest().await {
        assert!(manifest.files.len() <= limits::MANIFEST_ENTRIES);
    }
    if let Ok(output) = agent.exec(vec!["true".to_owned()]).await {
        assert!(output.stdout.len() <= limits::EXEC_OUTPUT && output.stderr.len() <= limits::EXEC_OUTPUT);
    }
    if let Ok(mut lines) = agent.logs("web", 10, false).await {
        while let Some(Ok(piece)) = lines.next().await {
            assert!(piece.len() <= limits::MESSAGE);
        }
    }
    drop(agent.grow_disk().await);
    drop(agent.left_out().await);
    drop(agent.leave_out(&SnapshotId("5e1f".to_owned()), &["node_modules".to_owned()]).await);
    drop(agent.freeze().await);
    drop(agent.thaw().await);
    drop(agent.shutdown().await);
}

fn assert_bounded(status: &GuestStatus) {
    assert!(status.workers.len() <= limits::WORKERS);
    let text = serde_json::to_string(status).expect("a status can be shown");
    // Every text in it is bounded, and each worker has a few.
    assert!(text.len() <= (limits::WORKERS + 8) * 8 * limits::TEXT, "{} bytes", text.len());
}

/// Answers every call with what the input decodes to.
struct Hostile(Vec<u8>);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Hostile {
    fn one<T: Message + Default>(&self) -> Result<Response<T>, Status> {
        T::decode(self.0.as_slice()).map(Response::new).map_err(|error| Status::internal(error.to_string()))
    }

    fn many<T: Message + Default + 'static>(&self) -> Result<Response<Answers<T>>, Status> {
        let mut bytes = self.0.as_slice();
        let mut answers = Vec::new();
        while !bytes.is_empty() && answers.len() < 64 {
            let Ok(answer) = T::decode_length_delimited(&mut bytes) else { break };
            answers.push(Ok(answer));
        }
        Ok(Response::new(Box::pin(stream::iter(answers))))
    }
}

#[tonic::async_trait]
impl Agent for Hostile {
    type ManifestStream = Answers<proto::ManifestPage>;
    type LogsStream = Answers<proto::Chunk>;
    type ExecStream = Answers<proto::ExecPart>;
    type PortStream = Answers<proto::Chunk>;

    /// Honest, so that the driver goes on.
    async fn hello(&self, _: Request<proto::HelloRequest>) -> Result<Response<proto::HelloReply>, Status> {
        let reply = proto::HelloReply { protocol: PROTOCOL, nonce: NONCE.to_owned(), ..Default::default() };
        Ok(Response::new(reply))
    }

    async fn status(&self, _: Request<proto::StatusRequest>) -> Result<Response<proto::StatusReply>, Status> {
        self.one()
    }

    async fn manifest(&self, _: Request<proto::ManifestRequest>) -> Result<Response<Self::ManifestStream>, Status> {
        self.many()
    }

    async fn sync(&self, _: Request<Streaming<proto::SyncPart>>) -> Result<Response<proto::SyncReply>, Status> {
        self.one()
    }

    async fn apply(&self, _: Request<proto::ApplyRequest>) -> Result<Response<proto::ApplyReply>, Status> {
        self.one()
    }

    async fn grow_disk(&self, _: Request<proto::GrowDiskRequest>) -> Result<Response<proto::GrowDiskReply>, Status> {
        self.one()
    }

    async fn logs(&self, _: Request<proto::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        self.many()
    }

    async fn exec(&self, _: Request<proto::ExecRequest>) -> Result<Response<Self::ExecStream>, Status> {
        self.many()
    }

    async fn port(&self, _: Request<Streaming<proto::PortPart>>) -> Result<Response<Self::PortStream>, Status> {
        self.many()
    }

    async fn freeze(&self, _: Request<proto::FreezeRequest>) -> Result<Response<proto::FreezeReply>, Status> {
        self.one()
    }

    async fn renew(&self, _: Request<proto::RenewRequest>) -> Result<Response<proto::RenewReply>, Status> {
        self.one()
    }

    async fn leave_out(&self, _: Request<proto::LeaveOutRequest>) -> Result<Response<proto::LeaveOutReply>, Status> {
        self.one()
    }

    async fn left_out(&self, _: Request<proto::LeftOutRequest>) -> Result<Response<proto::LeftOutReply>, Status> {
        self.one()
    }

    async fn thaw(&self, _: Request<proto::ThawRequest>) -> Result<Response<proto::ThawReply>, Status> {
        self.one()
    }

    async fn shutdown(&self, _: Request<proto::ShutdownRequest>) -> Result<Response<proto::ShutdownReply>, Status> {
        self.one()
    }
}
