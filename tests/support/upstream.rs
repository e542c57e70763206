//! What listens inside a guest, for tests of the ingress: a scripted server on a local port, and the way to it.

use std::pin::Pin;

use async_trait::async_trait;
use setpoint::ingress::{ConnectError, Connector, Naming, Routes, Upstream, routes};
use setpoint_schema::app::{AppMetadata, AppSpec, DesiredApp, SandboxSpec};
use setpoint_schema::id::{SandboxId, TemplateDigest, TreeDigest};
use setpoint_schema::name::{AppKey, HostName, RepoPath};
use setpoint_schema::runtime::{Runtime, Web};
use setpoint_vmm::driver::{Duplex, VmmError};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::client::read_until;

/// Connects to ports of this machine as if they were a guest's.
pub struct Local;

/// The port on which every guest is deaf: connecting never ends.
pub const DEAF: u16 = 1;

#[async_trait]
impl Connector for Local {
    async fn open(&self, sandbox: &SandboxId, port: u16) -> Result<Pin<Box<dyn Duplex>>, ConnectError> {
        if port == DEAF {
            std::future::pending::<()>().await;
        }
        match TcpStream::connect(("127.0.0.1", port)).await {
            Ok(stream) => Ok(Box::pin(stream)),
            Err(error) => {
                let problem = format!("refused port {port}: {error}");
                Err(VmmError::Guest { sandbox: sandbox.clone(), problem }.into())
            }
        }
    }

    async fn wake(&self, app: &AppKey) {
        panic!("{app} does not rest");
    }
}

/// Runs `script` on every connection, with the head of its first request read, and returns the port.
pub async fn scripted<F>(script: impl Fn(String, TcpStream) -> F + Send + Sync + 'static) -> u16
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let head = read_until(&mut stream, "\r\n\r\n").await;
            tokio::spawn(script(head, stream));
        }
    });
    port
}

/// Answers every request with the same bytes and passes on the heads that it reads.
pub async fn answering(answer: &'static str) -> (u16, mpsc::UnboundedReceiver<String>) {
    let (heads, seen) = mpsc::unbounded_channel();
    let port = scripted(move |head, mut stream| {
        let heads = heads.clone();
        async move {
            let _ = heads.send(head);
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    })
    .await;
    (port, seen)
}

/// The guest that is up.
pub fn ready() -> Upstream {
    Upstream::Ready(SandboxId("blog-00000001".into()))
}

/// The routes of one app, `blog` below `localhost`, whose web process is on `port`.
pub fn routes_to(port: u16, upstream: Upstream) -> Routes {
    let web = Web { command: "serve".to_owned(), port, ..Web::default() };
    let runtime = Some(Runtime { web: Some(web), ..Runtime::default() }.into());
    let app = DesiredApp {
        metadata: AppMetadata { key: "blog".parse().unwrap(), uid: None, labels: [].into(), annotations: [].into() },
        spec: SandboxSpec {
            app: AppSpec { runtime, ..AppSpec::default() },
            template: TemplateDigest("t".into()),
            files: TreeDigest("f".into()),
        }
        .into(),
        path: RepoPath::new("apps/blog/app.yaml").unwrap(),
    };
    let naming = Naming { domain: HostName::new("localhost").unwrap(), pattern: Default::default() };
    routes([(&app, upstream)], &naming)
}
