//! The accept loop under the status API and the ingress: what every HTTP listener of the daemon owes its host.
//!
//! A client gets a bounded time to send a bounded request head, connections are counted, and a shutdown lets answers that
//! have begun come to their end. axum's own server bounds none of these.
//!
//! ```text
//!             permit free            request            shutdown
//!  listening ─────────────▶ serving ────────▶ … ───────────────────▶ draining ──▶ closed
//!                              │ 101                                              ▲
//!                              └──────────▶ tunnel (keeps the permit) ────────────┘
//! ```

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub mod problem;
pub mod target;

/// What a client may take up.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Open connections, upgraded ones included. Further clients wait in the kernel's queue.
    pub connections: usize,
    /// From the first byte expected of a request to the last byte of its head; so also the longest idle keep-alive.
    pub head_timeout: Duration,
    /// Size of a request head.
    pub head_bytes: usize,
    /// How long answers that have begun may go on after the shutdown began.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            head_timeout: Duration::from_secs(10),
            // Browsers send up to 16 KiB of cookies; twice that leaves room for the rest.
            head_bytes: 32 << 10,
            drain: Duration::from_secs(5),
        }
    }
}

/// The connection that a request came over, found in the request's extensions.
#[derive(Debug, Clone)]
pub struct Connection {
    peer: SocketAddr,
    shutdown: CancellationToken,
    tasks: TaskTracker,
    /// Held until the last clone goes, so that a tunnel counts as the connection that it came from.
    permit: Arc<OwnedSemaphorePermit>,
}

impl Connection {
    /// The client's address.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Resolves when the listener shuts down: the sign for an endless answer to end.
    pub fn closing(&self) -> impl Future<Output = ()> + Send + 'static {
        self.shutdown.clone().cancelled_owned()
    }

    /// Runs what outlives HTTP on this connection, such as an upgraded stream, until it ends or the listener shuts down.
    pub fn spawn_tunnel(&self, tunnel: impl Future<Output = ()> + Send + 'static) {
        let Self { peer: _, shutdown, tasks, permit } = self.clone();
        tasks.spawn(async move {
            shutdown.run_until_cancelled(tunnel).await;
            drop(permit);
        });
    }
}

/// Serves `handler` on `listener` until `shutdown`, then drains. Returns when no connection is left.
pub async fn serve<H, F>(listener: TcpListener, handler: H, limits: Limits, shutdown: CancellationToken)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let tasks = TaskTracker::new();
    let permits = Arc::new(Semaphore::new(limits.connections));
    while let Some((stream, peer, permit)) = shutdown.run_until_cancelled(accept(&listener, &permits)).await {
        let connection =
            Connection { peer, shutdown: shutdown.clone(), tasks: tasks.clone(), permit: Arc::new(permit) };
        tasks.spawn(serve_connection(stream, connection, handler.clone(), limits));
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

/// Waits for a free place first and for a client second, so that nobody is accepted only to be kept waiting.
async fn accept(listener: &TcpListener, permits: &Arc<Semaphore>) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    let permit = Arc::clone(permits).acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, peer, permit),
            Err(error) => {
                // Out of descriptors, as a rule. The client stays queued, so trying again at once would spin.
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_connection<H, F>(stream: TcpStream, connection: Connection, handler: H, limits: Limits)
where
    H: Fn(Request<Incoming>) -> F + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    if let Err(error) = notice_dead_clients(&stream) {
        tracing::debug!(%error, peer = %connection.peer, "could not set socket options");
    }
    let context = connection.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(context.clone());
        let response = handler(request);
        async { Ok::<_, Infallible>(response.await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_header_size(limits.head_bytes)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut served = pin!(served);
    // What goes wrong here is the client's doing (it left, or sent no HTTP) and hyper has answered it where it could.
    if connection.shutdown.run_until_cancelled(served.as_mut()).await.is_none() {
        served.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(limits.drain, served).await;
    }
}

/// A client that vanished, or stopped reading, gives its place back: the kernel probes after a minute of silence and ends a
/// connection whose data nobody has taken for five, which is longer than people pause what they stream.
fn notice_dead_clients(stream: &TcpStream) -> rustix::io::Result<()> {
    sockopt::set_tcp_nodelay(stream, true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(60))?;
    sockopt::set_tcp_user_timeout(stream, 300_000)
}
