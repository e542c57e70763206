//! Slow, silent and greedy clients.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use hyper::body::Incoming;
use hyper::{Request, Response};
use setpoint::http::{self, Limits};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::host::{self, Host};

/// A wait that only a failing test sits out.
const LONG: Duration = Duration::from_secs(20);
const OK: &str = "GET /ok HTTP/1.1\r\nHost: localhost\r\n\r\n";
const HANG: &str = "GET /hang HTTP/1.1\r\nHost: localhost\r\n\r\n";
const ENDLESS: &str = "GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// A server that answers at once, never, or without end.
struct Server {
    address: SocketAddr,
    /// One permit for each request that hangs, so that a test knows when it does.
    hanging: Arc<Semaphore>,
    shutdown: CancellationToken,
    served: JoinHandle<()>,
}

impl Server {
    async fn start(limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let hanging = Arc::new(Semaphore::new(0));
        let seen = Arc::clone(&hanging);
        let handler = move |request, _: &http::Connection| answer(request, Arc::clone(&seen));
        let served = tokio::spawn(http::serve(listener, handler, limits, shutdown.clone()));
        Self { address, hanging, shutdown, served }
    }

    /// A connection from another address of this machine, which is another peer.
    async fn connect(&self, from: [u8; 4]) -> tokio::net::TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        // Little enough that a client that does not read shows soon.
        socket.set_recv_buffer_size(4096).unwrap();
        socket.bind((from, 0).into()).unwrap();
        socket.connect(self.address).await.unwrap()
    }

    async fn ask(&self, from: [u8; 4], request: &str) -> tokio::net::TcpStream {
        let mut stream = self.connect(from).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    /// Asks what is never answered, and waits until that is being done.
    async fn hang(&self, from: [u8; 4]) -> tokio::net::TcpStream {
        let stream = self.ask(from, HANG).await;
        timeout(LONG, self.hanging.acquire()).await.unwrap().unwrap().forget();
        stream
    }

    async fn end(self) {
        self.shutdown.cancel();
        timeout(LONG, self.served).await.unwrap().unwrap();
    }
}

async fn answer(request: Request<Incoming>, hanging: Arc<Semaphore>) -> Response<Body> {
    match request.uri().path() {
        "/hang" => {
            hanging.add_permits(1);
            std::future::pending().await
        }
        "/endless" => {
            let pieces =
                futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 65536])));
            Response::new(Body::from_stream(pieces))
        }
        _ => Response::new(Body::from("ok\n")),
    }
}

/// The status of an answer, or nothing if the connection ends without one.
async fn status(stream: &mut tokio::net::TcpStream) -> String {
    let mut seen = [0; 12];
    match timeout(LONG, stream.read_exact(&mut seen)).await.expect("an answer or an end") {
        Ok(_) => String::from_utf8_lossy(&seen[9..]).into_owned(),
        Err(_) => String::new(),
    }
}

async fn waits(stream: &mut tokio::net::TcpStream) -> bool {
    timeout(Duration::from_millis(200), stream.read_u8()).await.is_err()
}

const ONE: [u8; 4] = [127, 0, 0, 1];
const TWO: [u8; 4] = [127, 0, 0, 2];

#[tokio::test]
async fn while_every_place_is_in_use_newcomers_wait_for_one() {
    let limits = Limits { connections: 2, ..Limits::default() };
    let server = Server::start(Limits { drain: Duration::from_millis(10), ..limits }).await;
    let first = server.hang(ONE).await;
    let _second = server.hang(ONE).await;
    let mut third = server.ask(ONE, OK).await;
    assert!(waits(&mut third).await, "there is no place for it yet");
    drop(first);
    assert_eq!(status(&mut third).await, "200");
    server.end().await;
}

#[tokio::test]
async fn a_newcomer_takes_the_place_of_an_idle_connection() {
    let server = Server::start(Limits { connections: 2, ..Limits::default() }).await;
    let mut idle = server.ask(ONE, OK).await;
    assert_eq!(status(&mut idle).await, "200");
    let mut silent = server.connect(ONE).await;
    for _ in 0..3 {
        assert_eq!(status(&mut server.ask(ONE, OK).await).await, "200");
    }
    let mut rest = Vec::new();
    timeout(LONG, idle.read_to_end(&mut rest)).await.expect("it gave way").unwrap();
    assert_eq!(status(&mut silent).await, "", "so did the one that never asked");
    server.end().await;
}

#[tokio::test]
async fn a_peer_that_uses_all_of_its_share_keeps_nobody_else_out() {
    let limits = Limits { connections: 6, per_peer: 3, drain: Duration::from_millis(10), ..Limits::default() };
    let server = Server::start(limits).await;
    let mut greedy = Vec::new();
    for _ in 0..3 {
        greedy.push(server.hang(TWO).await);
    }
    let mut more = server.ask(TWO, OK).await;
    assert_eq!(status(&mut more).await, "503");
    assert_eq!(status(&mut server.ask(ONE, OK).await).await, "200");
    drop(greedy);
    server.end().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_gives_its_place_back() {
    let limits = Limits { connections: 1, stall: Duration::from_millis(300), ..Limits::default() };
    let server = Server::start(limits).await;
    let _deaf = server.ask(TWO, ENDLESS).await;
    let mut next = server.ask(ONE, OK).await;
    assert_eq!(status(&mut next).await, "200");
    server.end().await;
}

/// The three kinds of clients that take up a connection and give nothing for it.
fn crowd(address: SocketAddr, size: usize) -> Vec<TcpStream> {
    let openings: [&[u8]; 3] = [b"", b"G", b"GET /v1/apps?limit=1000 HTTP/1.1\r\nHost: localhost\r\nX-Slow: "];
    let connect = |opening: &[u8]| {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
        stream.write_all(opening).unwrap();
        stream
    };
    openings.iter().cycle().take(size).map(|opening| connect(opening)).collect()
}

/// The longest of some polls, each on a connection of its own.
fn slowest_poll(address: SocketAddr, between: &mut dyn FnMut()) -> Duration {
    let poll = |_| {
        between();
        let begun = Instant::now();
        let answer = host::get(address, "localhost", "/v1/status").expect("the poll is answered");
        assert_eq!(answer.status, 200, "{}", answer.body);
        begun.elapsed()
    };
    (0..30).map(poll).max().unwrap()
}

#[test]
fn five_hundred_slow_or_half_open_clients_do_not_delay_a_poll() {
    let mut host = Host::sim();
    host.write_app("blog", "", "hello");
    host.commit("begin");
    host.start();
    host.wait_converged();
    let address = host.api_address();
    let alone = slowest_poll(address, &mut || {});
    let mut slow = crowd(address, 500);
    // Each poll comes right after the slow ones have sent another byte, which some of them can do no longer.
    let beside = slowest_poll(address, &mut || slow.iter_mut().for_each(|stream| drop(stream.write_all(b"x"))));
    println!("slowest of 30 polls: alone {alone:?}, beside 500 slow clients {beside:?}");
    let allowed = (alone * 4).max(Duration::from_millis(100));
    assert!(beside < allowed, "alone {alone:?}, beside 500 slow clients {beside:?}");
    // None of them is kept for longer than a head may take.
    for stream in &mut slow {
        stream.set_read_timeout(Some(LONG)).unwrap();
        let end = stream.read_to_end(&mut Vec::new()).map_err(|error| error.kind());
        assert!(!matches!(end, Err(ErrorKind::WouldBlock | ErrorKind::TimedOut)), "a slow client is still connected");
    }
}
