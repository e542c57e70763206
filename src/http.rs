//! The accept loop under the status API and the ingress: what every HTTP listener of the daemon owes its host.
//!
//! A client gets a bounded time to send a bounded request head and to take what is sent to it, connections are counted for
//! each peer, those that keep others waiting give way, and a shutdown lets answers that have begun come to their end. axum's
//! own server bounds none of these.
//!
//! ```text
//!             admitted          request           shutdown
//!  listening ──────────▶ waiting ◀────▶ serving ───────────▶ draining ──▶ closed
//!                           │ displaced    │ 101                            ▲
//!                           ▼              └──▶ tunnel (keeps the place) ───┘
//!                        closed
//! ```

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use head_timer::HeadTimer;
use held::Held;
use listener::Stream;
use places::{Place, Places};
use stall::Stalling;

pub use access::{Accepted, Guard, Token, TokenDigest, TokenName};
pub use listener::{Listener, Traffic};
pub use peer::Peer;
pub use tls::{Tls, TlsError};
pub use unix::{UnixSocket, UnixSocketError};

mod access;
mod head_timer;
mod held;
mod listener;
mod peer;
mod places;
pub mod problem;
mod stall;
pub mod target;
mod tls;
mod unix;

/// What a client may take up.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Open connections, upgraded ones included. Beyond them a newcomer takes the place of whoever has kept a connection
    /// waiting for longest; while all of them are in use it waits.
    pub connections: usize,
    /// Open connections of one peer. Beyond them its own newcomers take the places of its own waiting ones, or are refused.
    pub per_peer: usize,
    /// From the first byte expected of a request to the last byte of its head; so also the longest idle keep-alive. A TLS
    /// handshake has as long.
    pub head_timeout: Duration,
    /// Size of a request head.
    pub head_bytes: usize,
    /// How long a client may take nothing of what is sent to it.
    pub stall: Duration,
    /// How long answers that have begun may go on after the shutdown began.
    pub drain: Duration,
}

impl Limits {
    /// What is right for programs that ask and read.
    pub const USUAL: Self = Self {
        connections: 1024,
        // A few peers at their worst leave room for others.
        per_peer: 256,
        head_timeout: Duration::from_secs(10),
        // Browsers send up to 16 KiB of cookies; twice that leaves room for the rest.
        head_bytes: 32 << 10,
        // Programs read what they asked for. Whatever pauses for longer can ask again.
        stall: Duration::from_secs(30),
        drain: Duration::from_secs(5),
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self::USUAL
    }
}

/// The connection that a request came over.
#[derive(Debug, Clone)]
pub struct Connection {
    peer: Peer,
    shutdown: CancellationToken,
    tasks: TaskTracker,
    /// Held until the last clone goes, so that a tunnel counts as the connection that it came from.
    place: Arc<Place>,
}

impl Connection {
    /// The client.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Resolves when the listener shuts down: the sign for an endless answer to end.
    pub fn closing(&self) -> impl Future<Output = ()> + Send + 'static {
        self.shutdown.clone().cancelled_owned()
    }

    /// Runs what outlives HTTP on this connection, such as an upgraded stream, until it ends or the listener shuts down.
    pub fn spawn_tunnel(&self, tunnel: impl Future<Output = ()> + Send + 'static) {
        let Self { peer: _, shutdown, tasks, place } = self.clone();
        let in_use = Place::in_use(&place);
        tasks.spawn(async move {
            shutdown.run_until_cancelled(tunnel).await;
            drop((in_use, place));
        });
    }
}

/// Serves `handler` on `listener` until `shutdown`, then drains. Returns when no connection is left.
pub async fn serve<H, F>(listener: impl Into<Listener>, handler: H, limits: Limits, shutdown: CancellationToken)
where
    H: Fn(Request<Incoming>, &Connection) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = listener.into();
    let tasks = TaskTracker::new();
    let places = Places::new(limits.connections, limits.per_peer);
    while let Some((stream, peer, place)) = shutdown.run_until_cancelled(newcomer(&listener, &places)).await {
        let Some(place) = place else {
            listener.refuse(stream);
            continue;
        };
        let connection = Connection { peer, shutdown: shutdown.clone(), tasks: tasks.clone(), place: Arc::new(place) };
        let (guard, traffic) = (listener.guard(), listener.traffic().clone());
        let front = Front { handler: handler.clone(), guard, traffic, connection, limits };
        tasks.spawn(listener.traffic().counting(front.receive(stream)));
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

/// The next client, and its place unless its peer has too many of them in use.
async fn newcomer(listener: &Listener, places: &Arc<Places>) -> (Stream, Peer, Option<Place>) {
    let (stream, peer) = listener.accept().await;
    let place = places.admit(&peer).await;
    (stream, peer, place)
}

/// What stands between one connection's bytes and the handler.
struct Front<H> {
    handler: H,
    guard: Option<Guard>,
    traffic: Traffic,
    connection: Connection,
    limits: Limits,
}

impl<H, F> Front<H>
where
    H: Fn(Request<Incoming>, &Connection) -> F + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    async fn receive(self, stream: Stream) {
        match stream {
            Stream::Tcp(tcp) => self.serve(tcp).await,
            Stream::Unix(unix) => self.serve(unix).await,
            Stream::Tls(tcp, acceptor) => {
                let handshake = tokio::time::timeout(self.limits.head_timeout, acceptor.accept(tcp));
                let handshake = self.connection.shutdown.run_until_cancelled(handshake);
                // A failed handshake is the client's doing, as far as anything here could tell.
                if let Some(Some(Ok(Ok(tls)))) = self.connection.place.unless_displaced(handshake).await {
                    self.serve(tls).await;
                }
            }
        }
    }

    async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(self, stream: S) {
        let limits = self.limits;
        let front = Arc::new(self);
        let answering = Arc::clone(&front);
        let service = service_fn(move |request: Request<Incoming>| {
            let front = Arc::clone(&answering);
            let in_use = Place::in_use(&front.connection.place);
            let refusal = front.guard.as_ref().and_then(|guard| guard.check(&request).err());
            let answer = match refusal {
                None => Ok((front.handler)(request, &front.connection)),
                Some(refusal) => Err(refusal),
            };
            async move {
                let response = match answer {
                    Ok(response) => response.await,
                    Err(refusal) => refusal,
                };
                front.traffic.answered(response.status());
                Ok::<_, Infallible>(response.map(|body| Held::new(body, in_use)))
            }
        });
        let served = http1::Builder::new()
            .timer(HeadTimer::default())
            .header_read_timeout(limits.head_timeout)
            .max_header_size(limits.head_bytes)
            .serve_connection(TokioIo::new(Stalling::new(stream, limits.stall)), service)
            .with_upgrades();
        let mut served = pin!(served);
        // What goes wrong here is the client's doing (it left, or sent no HTTP) and hyper has answered it where it could.
        let connection = &front.connection;
        let undisturbed = connection.place.unless_displaced(served.as_mut());
        if connection.shutdown.run_until_cancelled(undisturbed).await.is_none() {
            served.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(limits.drain, served).await;
        }
    }
}
