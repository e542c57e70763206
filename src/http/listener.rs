//! What a server listens on: a TCP address with or without TLS, or a Unix socket; and who may come in through it.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_rustls::TlsAcceptor;

use super::access::Guard;
use super::peer::Peer;
use super::tls::Tls;
use super::unix::UnixSocket;

/// A bound address, and what a client has to bring along.
pub struct Listener {
    socket: Socket,
    guard: Option<Guard>,
    traffic: Traffic,
}

enum Socket {
    Tcp(TcpListener),
    Tls(TcpListener, Arc<Tls>),
    Unix(UnixSocket),
}

/// A connection before it has said anything.
pub(super) enum Stream {
    Tcp(TcpStream),
    Tls(TcpStream, TlsAcceptor),
    Unix(UnixStream),
}

/// Counts of a listener, shared by clones.
#[derive(Debug, Clone, Default)]
pub struct Traffic {
    /// Connections that are open.
    pub open: Gauge,
    /// Connections that were refused because their peer had too many in use.
    pub refused: Counter,
    /// Answers, by [`Self::CLASSES`].
    pub answers: [Counter; Self::CLASSES.len()],
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::new(Socket::Tcp(listener))
    }
}

impl From<UnixSocket> for Listener {
    fn from(socket: UnixSocket) -> Self {
        Self::new(Socket::Unix(socket))
    }
}

impl Listener {
    fn new(socket: Socket) -> Self {
        Self { socket, guard: None, traffic: Traffic::default() }
    }

    /// A TCP address that speaks TLS alone.
    #[must_use]
    pub fn tls(listener: TcpListener, tls: Tls) -> Self {
        Self::new(Socket::Tls(listener, Arc::new(tls)))
    }

    /// The same, for those whom `guard` lets through.
    #[must_use]
    pub fn guarded(self, guard: Guard) -> Self {
        Self { guard: Some(guard), ..self }
    }

    /// The same, counted in `traffic`.
    #[must_use]
    pub fn counted(self, traffic: Traffic) -> Self {
        Self { traffic, ..self }
    }

    pub(super) fn guard(&self) -> Option<Guard> {
        self.guard.clone()
    }

    pub(super) fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// The next client.
    pub(super) async fn accept(&self) -> (Stream, Peer) {
        loop {
            match self.try_accept().await {
                Ok(accepted) => return accepted,
                // It left before it was its turn.
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    // Out of descriptors, as a rule. The client stays queued, so trying again at once would spin.
                    tracing::warn!(%error, "could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn try_accept(&self) -> std::io::Result<(Stream, Peer)> {
        Ok(match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                prepare(&stream);
                (Stream::Tcp(stream), Peer::Inet(peer))
            }
            Socket::Tls(listener, tls) => {
                let (stream, peer) = listener.accept().await?;
                prepare(&stream);
                (Stream::Tls(stream, tls.acceptor()), Peer::Inet(peer))
            }
            Socket::Unix(socket) => {
                let stream = socket.accept().await?;
                let user = stream.peer_cred().ok().map(|credentials| credentials.uid());
                (Stream::Unix(stream), Peer::Unix(user))
            }
        })
    }

    /// Says no in so many words, where the client can read them, and closes.
    pub(super) fn refuse(&self, stream: Stream) {
        const BUSY: &[u8] =
            b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        self.traffic.refused.inc();
        // A client that has not read anything yet has room for this; if not, closing says enough.
        let _ = match stream {
            Stream::Tcp(stream) => stream.try_write(BUSY),
            Stream::Unix(stream) => stream.try_write(BUSY),
            Stream::Tls(..) => Ok(0),
        };
    }
}

impl Traffic {
    /// The classes of statuses.
    pub const CLASSES: [&'static str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

    /// Counts an answer.
    pub(super) fn answered(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100).clamp(1, Self::CLASSES.len());
        self.answers[class - 1].inc();
    }

    /// Counts a connection as open while `served` runs, however that ends.
    pub(super) fn counting<F: Future<Output = ()>>(&self, served: F) -> impl Future<Output = ()> + use<F> {
        struct Open(Gauge);
        impl Drop for Open {
            fn drop(&mut self) {
                self.0.dec();
            }
        }
        self.open.inc();
        let open = Open(self.open.clone());
        async move {
            served.await;
            drop(open);
        }
    }
}

/// A client that vanished, or stopped reading, gives its place back: the kernel probes after a minute of silence and ends a
/// connection whose data nobody has taken for five, which is longer than people pause what they stream.
fn prepare(stream: &TcpStream) {
    let options = || {
        sockopt::set_tcp_nodelay(stream, true)?;
        sockopt::set_socket_keepalive(stream, true)?;
        sockopt::set_tcp_keepidle(stream, Duration::from_secs(60))?;
        sockopt::set_tcp_user_timeout(stream, 300_000)
    };
    if let Err(error) = options() {
        tracing::debug!(%error, "could not set socket options");
    }
}
