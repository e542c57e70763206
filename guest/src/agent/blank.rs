//! A machine that is nobody's yet: what a template is saved as, and every machine that is restored from it begins as.
//!
//! It has not looked at its data disk. A host tells it whose machine it is from now on; only then does it become one.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tonic::{Request, Response, Status};

use crate::PROTOCOL;
use crate::handshake::{self, HandshakeError};
use crate::limits;
use crate::proto::blank_server::{self, BlankServer};
use crate::proto::{HelloReply, HelloRequest, RenewReply, RenewRequest};

use super::renew::{Identity, renew};
use super::service::{checked, io_status};

/// How long the kernel may take to notice that its data disk is another one. It says so nowhere that can be waited for.
const NOTICE: Duration = Duration::from_secs(5);

/// Waits to be told whose machine this is.
#[derive(Debug, Clone)]
pub struct Blank {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    nonce: String,
    /// Where the kernel shows the length of the data disk, in units of 512 bytes.
    length: PathBuf,
    identity: Arc<dyn Identity>,
    /// The nonce of the machine that this has become.
    become_as: Mutex<Option<String>>,
    done: Notify,
}

impl Blank {
    /// A machine of this nonce.
    #[must_use]
    pub fn new(nonce: String, length: PathBuf, identity: Arc<dyn Identity>) -> Self {
        let shared = Shared { nonce, length, identity, become_as: Mutex::default(), done: Notify::new() };
        Self { shared: Arc::new(shared) }
    }

    /// Serves one host over `stream`; the nonce that it gave this machine, if it did.
    ///
    /// # Errors
    /// The stream ends before a host began a connection.
    pub async fn serve<S>(&self, mut stream: S) -> Result<Option<String>, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        handshake::agent(&mut stream).await?;
        let service = BlankServer::new(self.clone())
            .max_decoding_message_size(limits::MESSAGE)
            .max_encoding_message_size(limits::MESSAGE);
        let mut connection = pin!(
            http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .keep_alive_interval(limits::KEEP_ALIVE_INTERVAL)
                .keep_alive_timeout(limits::KEEP_ALIVE_TIMEOUT)
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        );
        tokio::select! {
            _ = connection.as_mut() => {}
            () = self.shared.done.notified() => {
                // The answer is on its way still.
                connection.as_mut().graceful_shutdown();
                let _ = connection.await;
            }
        }
        Ok(self.shared.become_as.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

#[tonic::async_trait]
impl blank_server::Blank for Blank {
    async fn hello(&self, _: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        let agent_version = env!("CARGO_PKG_VERSION").to_owned();
        let nonce = self.shared.nonce.clone();
        Ok(Response::new(HelloReply { protocol: PROTOCOL, nonce, agent_version, frozen: true }))
    }

    async fn r#become(&self, request: Request<RenewRequest>) -> Result<Response<RenewReply>, Status> {
        let request = request.into_inner();
        if request.old_nonce != self.shared.nonce {
            return Err(Status::permission_denied("the renewal is for another machine"));
        }
        let (nonce, disk_bytes) = (request.nonce.clone(), request.disk_bytes);
        let renewal = checked(request).map_err(Status::invalid_argument)?;
        renew(&*self.shared.identity, &renewal).map_err(|(step, error)| io_status(step, &error))?;
        disk_is(&self.shared.length, disk_bytes).await.map_err(|error| io_status("find the data disk", &error))?;
        *self.shared.become_as.lock().unwrap_or_else(PoisonError::into_inner) = Some(nonce);
        self.shared.done.notify_one();
        Ok(Response::new(RenewReply {}))
    }
}

/// Resolves when the kernel knows the data disk as `bytes` long.
async fn disk_is(length: &Path, bytes: u64) -> io::Result<()> {
    let deadline = Instant::now() + NOTICE;
    loop {
        let sectors: u64 = std::fs::read_to_string(length)?.trim().parse().map_err(io::Error::other)?;
        if sectors == bytes / 512 {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("it has {sectors} sectors")));
        }
        sleep(Duration::from_millis(2)).await;
    }
}
