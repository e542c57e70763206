//! The ingress between real clients and real streams: routing, refusals, streaming, upgrades, hygiene.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures_util::StreamExt as _;
use hyper::header::{ACCEPT, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use setpoint::http::Limits;
use setpoint::ingress::{Ingress, Patience, Routes, Upstream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use client::{Reply, connect, get, raw, read_until, send};
use upstream::{DEAF, Local, answering, ready, routes_to, scripted};

#[path = "support/client.rs"]
mod client;
#[path = "support/upstream.rs"]
mod upstream;

/// A wait that only a failing test sits out.
const LONG: Duration = Duration::from_secs(20);
const HOST_NAME: &str = "blog.localhost";
const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

struct Gate {
    address: SocketAddr,
    routes: watch::Sender<Arc<Routes>>,
    shutdown: CancellationToken,
    served: JoinHandle<()>,
}

impl Gate {
    /// An ingress whose app `blog` has its web process on `port`.
    async fn to(port: u16) -> Self {
        Self::start(routes_to(port, ready()), Limits::default(), Patience::default()).await
    }

    async fn start(first: Routes, limits: Limits, patience: Patience) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (routes, seen) = watch::channel(Arc::new(first));
        let shutdown = CancellationToken::new();
        let ingress = Ingress::new(seen, Arc::new(Local), patience);
        let served = tokio::spawn(ingress.serve(listener, limits, shutdown.clone()));
        Self { address, routes, shutdown, served }
    }

    async fn get(&self, path: &str) -> Reply {
        get(self.address, HOST_NAME, path).await
    }
}

fn request(path: &str) -> hyper::http::request::Builder {
    Request::builder().uri(path).header(HOST, HOST_NAME)
}

/// A body that a test feeds.
fn fed() -> (mpsc::Sender<&'static [u8]>, Body) {
    let (feed, pieces) = mpsc::channel(1);
    let pieces = tokio_stream::wrappers::ReceiverStream::new(pieces);
    (feed, Body::from_stream(pieces.map(|piece| Ok::<_, std::io::Error>(Bytes::from_static(piece)))))
}

#[tokio::test]
async fn a_request_reaches_the_port_of_the_app_that_its_host_names() {
    let (port, mut heads) = answering(HELLO).await;
    let gate = Gate::to(port).await;
    for host in [HOST_NAME, "BLOG.localhost:8080", "blog.localhost."] {
        let reply = get(gate.address, host, "/a%20b?q=1").await;
        assert_eq!((reply.status, reply.text()), (200, "hello"), "{host}");
        let head = heads.recv().await.unwrap();
        assert!(head.starts_with("GET /a%20b?q=1 HTTP/1.1\r\n"), "{head}");
        assert!(head.contains(&format!("host: {host}\r\n")), "{head}");
    }
}

#[tokio::test]
async fn what_a_guest_reads_about_its_client_is_our_word() {
    let (port, mut heads) = answering(HELLO).await;
    let gate = Gate::to(port).await;
    let lies = request("/")
        .header("x-forwarded-for", "6.6.6.6")
        .header("x-forwarded-proto", "https")
        .header("forwarded", "for=6.6.6.6")
        .header("connection", "x-private")
        .header("x-private", "1")
        .header("te", "trailers")
        .header("proxy-authorization", "Basic x")
        .header("cookie", "a=b");
    assert_eq!(send(gate.address, lies.body(Body::empty()).unwrap()).await.status, 200);
    let head = heads.recv().await.unwrap();
    let mut lines: Vec<&str> = head.lines().skip(1).filter(|line| !line.is_empty()).collect();
    lines.sort_unstable();
    let expected = [
        "connection: close",
        "cookie: a=b",
        "host: blog.localhost",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-host: blog.localhost",
        "x-forwarded-proto: http",
    ];
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn a_client_keeps_its_connection_while_each_request_has_a_guest_stream_of_its_own() {
    let (port, mut heads) = answering(HELLO).await;
    let gate = Gate::to(port).await;
    let mut sender = connect(gate.address).await;
    for _ in 0..3 {
        sender.ready().await.unwrap();
        let reply = Reply::of(sender.send_request(request("/").body(Body::empty()).unwrap()).await.unwrap()).await;
        assert_eq!((reply.status, reply.text()), (200, "hello"));
        heads.recv().await.unwrap();
    }
}

#[tokio::test]
async fn new_routes_hold_from_the_next_request_on() {
    let (port, _heads) = answering(HELLO).await;
    let gate = Gate::to(port).await;
    assert_eq!(gate.get("/").await.status, 200);
    gate.routes.send_replace(Arc::new(routes_to(port, Upstream::NotReady("web restarts".to_owned()))));
    assert_eq!(gate.get("/").await.status, 503);
    gate.routes.send_replace(Arc::new(Routes::default()));
    assert_eq!(gate.get("/").await.status, 404);
}

#[tokio::test]
async fn an_unknown_host_learns_nothing() {
    let gate = Gate::to(1).await;
    for host in ["nope.localhost", "localhost", "127.0.0.1", "blog.localhost.evil.example"] {
        let reply = get(gate.address, host, "/").await;
        assert_eq!((reply.status, reply.header("content-type")), (404, "application/problem+json"), "{host}");
        assert!(!reply.text().contains("blog"), "{}", reply.text());
    }
}

#[tokio::test]
async fn an_app_that_is_not_ready_says_why_to_programs_and_to_people() {
    let reason = Upstream::NotReady("web unhealthy: <script>alert(1)</script>".to_owned());
    let gate = Gate::start(routes_to(1, reason), Limits::default(), Patience::default()).await;
    let reply = gate.get("/").await;
    assert_eq!((reply.status, reply.header("retry-after")), (503, "2"));
    assert_eq!(reply.json()["detail"], "blog is not ready: web unhealthy: <script>alert(1)</script>");

    let browser = request("/").header(ACCEPT, "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8");
    let page = send(gate.address, browser.body(Body::empty()).unwrap()).await;
    assert_eq!((page.status, page.header("content-type")), (503, "text/html; charset=utf-8"));
    assert!(page.text().contains("web unhealthy: &lt;script&gt;"), "{}", page.text());
    assert!(!page.text().contains("<script>"));
}

#[tokio::test]
async fn a_guest_that_refuses_is_a_502_with_the_reason() {
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let reply = Gate::to(unused).await.get("/").await;
    assert_eq!(reply.status, 502);
    assert!(reply.text().contains(&format!("refused port {unused}")), "{}", reply.text());
}

#[tokio::test]
async fn a_guest_that_does_not_speak_http_is_a_502() {
    for (answer, reason) in [
        ("", "it closed the connection before it answered"),
        ("SSH-2.0-OpenSSH_9.2\r\n\r\n", "its answer is not valid HTTP"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", "its answer is not valid HTTP"),
        (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
            "it changed protocols without",
        ),
    ] {
        let (port, _heads) = answering(answer).await;
        let reply = Gate::to(port).await.get("/").await;
        assert_eq!(reply.status, 502, "{answer:?} {}", reply.text());
        assert!(reply.text().contains(reason), "{answer:?} {}", reply.text());
    }
}

#[tokio::test]
async fn a_guest_cannot_make_the_host_hold_an_endless_head() {
    let port = scripted(async |_, mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n").await;
        while stream.write_all(b"X-Filler: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n").await.is_ok() {}
    })
    .await;
    let reply = timeout(LONG, Gate::to(port).await.get("/")).await.unwrap();
    assert_eq!(reply.status, 502);
}

#[tokio::test]
async fn a_guest_that_is_silent_is_a_504() {
    let short = Duration::from_millis(100);
    let patience = Patience { connect: short, response_head: short, ..Patience::default() };
    let gate = Gate::start(routes_to(DEAF, ready()), Limits::default(), patience).await;
    assert_eq!(gate.get("/").await.status, 504);

    let silent = scripted(async |_, mut stream| {
        let _ = stream.read_u8().await;
    })
    .await;
    gate.routes.send_replace(Arc::new(routes_to(silent, ready())));
    assert_eq!(gate.get("/").await.status, 504);
}

#[tokio::test]
async fn a_long_upload_is_not_silence() {
    let port = scripted(async |_, mut stream| {
        read_until(&mut stream, "0\r\n\r\n").await;
        stream.write_all(HELLO.as_bytes()).await.unwrap();
    })
    .await;
    let patience = Patience { response_head: Duration::from_millis(400), ..Patience::default() };
    let gate = Gate::start(routes_to(port, ready()), Limits::default(), patience).await;
    let (feed, body) = fed();
    let reply = tokio::spawn(send(gate.address, request("/").method("POST").body(body).unwrap()));
    for _ in 0..8 {
        feed.send(b"x").await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(feed);
    assert_eq!(reply.await.unwrap().status, 200);
}

#[tokio::test]
async fn a_client_that_stops_in_the_middle_of_its_body_is_told_so_and_its_guest_is_let_go() {
    let (ended, mut ends) = mpsc::unbounded_channel();
    let port = scripted(move |_, mut stream| {
        let ended = ended.clone();
        async move {
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            ended.send(()).unwrap();
        }
    })
    .await;
    let patience = Patience { upload: Duration::from_millis(200), ..Patience::default() };
    let gate = Gate::start(routes_to(port, ready()), Limits::default(), patience).await;
    let (feed, body) = fed();
    let reply = tokio::spawn(send(gate.address, request("/").method("POST").body(body).unwrap()));
    feed.send(b"half").await.unwrap();
    let reply = timeout(LONG, reply).await.unwrap().unwrap();
    assert_eq!(reply.status, 408);
    assert!(reply.text().contains("the request's body stopped coming"), "{}", reply.text());
    timeout(LONG, ends.recv()).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_upload_that_stops_after_its_answer_began_ends_both() {
    let (ended, mut ends) = mpsc::unbounded_channel();
    let port = scripted(move |_, mut stream| {
        let ended = ended.clone();
        async move {
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await.unwrap();
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            ended.send(()).unwrap();
        }
    })
    .await;
    let patience = Patience { upload: Duration::from_millis(200), ..Patience::default() };
    let gate = Gate::start(routes_to(port, ready()), Limits::default(), patience).await;
    let head = format!("POST / HTTP/1.1\r\nHost: {HOST_NAME}\r\nContent-Length: 10\r\n\r\nhalf");
    let answer = timeout(LONG, raw(gate.address, &head)).await.unwrap();
    assert!(answer.contains("hello") && !answer.ends_with("0\r\n\r\n"), "{answer}");
    timeout(LONG, ends.recv()).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_upload_flows_before_it_has_ended() {
    let (seen, mut first) = mpsc::unbounded_channel();
    let port = scripted(move |_, mut stream| {
        let seen = seen.clone();
        async move {
            seen.send(read_until(&mut stream, "early\r\n").await).unwrap();
            read_until(&mut stream, "0\r\n\r\n").await;
            stream.write_all(HELLO.as_bytes()).await.unwrap();
        }
    })
    .await;
    let gate = Gate::to(port).await;
    let (feed, body) = fed();
    let reply = tokio::spawn(send(gate.address, request("/").method("POST").body(body).unwrap()));
    feed.send(b"early").await.unwrap();
    assert_eq!(timeout(LONG, first.recv()).await.unwrap().unwrap(), "5\r\nearly\r\n");
    drop(feed);
    assert_eq!(reply.await.unwrap().text(), "hello");
}

#[tokio::test]
async fn an_answer_flows_before_it_has_ended() {
    let (go_on, gone_on) = oneshot::channel::<()>();
    let gone_on = Arc::new(std::sync::Mutex::new(Some(gone_on)));
    let port = scripted(move |_, mut stream| {
        let gone_on = gone_on.lock().unwrap().take().unwrap();
        async move {
            let early = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nearly\r\n";
            stream.write_all(early.as_bytes()).await.unwrap();
            gone_on.await.unwrap();
            stream.write_all(b"4\r\nlate\r\n0\r\n\r\n").await.unwrap();
        }
    })
    .await;
    let gate = Gate::to(port).await;
    let mut sender = connect(gate.address).await;
    let response = sender.send_request(request("/").body(Body::empty()).unwrap()).await.unwrap();
    let mut body = http_body_util::BodyStream::new(response.into_body());
    let first = timeout(LONG, body.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), "early");
    go_on.send(()).unwrap();
    assert_eq!(body.next().await.unwrap().unwrap().into_data().unwrap(), "late");
    assert!(body.next().await.is_none());
}

#[tokio::test]
async fn large_bodies_arrive_whole_in_both_directions() {
    let size = 8 << 20;
    let port = scripted(move |head, mut stream| async move {
        assert!(head.contains(&format!("content-length: {size}\r\n")), "{head}");
        let mut body = vec![0; size];
        stream.read_exact(&mut body).await.unwrap();
        stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n").as_bytes()).await.unwrap();
        stream.write_all(&body).await.unwrap();
    })
    .await;
    let gate = Gate::to(port).await;
    let body: Bytes = (0..size).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let reply = send(gate.address, request("/").method("PUT").body(Body::from(body.clone())).unwrap()).await;
    assert!(reply.body == body, "{} of {size} bytes", reply.body.len());
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_the_guest_back() {
    let (stalled, stalled_at) = oneshot::channel();
    let stalled = Arc::new(std::sync::Mutex::new(Some(stalled)));
    let port = scripted(move |_, mut stream| {
        let stalled = stalled.lock().unwrap().take().unwrap();
        async move {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            let (block, mut sent) = (vec![0; 64 << 10], 0);
            // The sockets' buffers take some MiB; a proxy that reads ahead without bound would take all of this.
            while sent < 256 << 20 {
                match timeout(Duration::from_millis(500), stream.write_all(&block)).await {
                    Ok(written) => written.unwrap(),
                    Err(_) => break,
                }
                sent += block.len();
            }
            stalled.send(sent).unwrap();
        }
    })
    .await;
    let gate = Gate::to(port).await;
    let mut client = TcpStream::connect(gate.address).await.unwrap();
    client.write_all(format!("GET / HTTP/1.1\r\nHost: {HOST_NAME}\r\n\r\n").as_bytes()).await.unwrap();
    read_until(&mut client, "\r\n\r\n").await;
    let sent = timeout(LONG, stalled_at).await.unwrap().unwrap();
    assert!(sent < 64 << 20, "{sent} bytes went out to nobody");
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_guest_stream() {
    let (ended, mut ends) = mpsc::unbounded_channel();
    let (begun, mut begins) = mpsc::unbounded_channel();
    let port = scripted(move |head, mut stream| {
        let (begun, ended) = (begun.clone(), ended.clone());
        async move {
            if head.starts_with("GET /begun") {
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nbegun").await.unwrap();
            } else {
                begun.send(()).unwrap();
            }
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            ended.send(head).unwrap();
        }
    })
    .await;
    let gate = Gate::to(port).await;
    let mut client = TcpStream::connect(gate.address).await.unwrap();
    client.write_all(format!("GET /begun HTTP/1.1\r\nHost: {HOST_NAME}\r\n\r\n").as_bytes()).await.unwrap();
    read_until(&mut client, "\r\n\r\n").await;
    drop(client);
    assert!(timeout(LONG, ends.recv()).await.unwrap().unwrap().starts_with("GET /begun"));

    let mut client = TcpStream::connect(gate.address).await.unwrap();
    client.write_all(format!("GET /silent HTTP/1.1\r\nHost: {HOST_NAME}\r\n\r\n").as_bytes()).await.unwrap();
    begins.recv().await.unwrap();
    drop(client);
    assert!(timeout(LONG, ends.recv()).await.unwrap().unwrap().starts_with("GET /silent"));
}

#[tokio::test]
async fn a_head_request_keeps_its_length_and_has_no_body() {
    let (port, _heads) = answering("HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n").await;
    let gate = Gate::to(port).await;
    let reply = send(gate.address, request("/").method("HEAD").body(Body::empty()).unwrap()).await;
    assert_eq!((reply.status, reply.header("content-length"), reply.body.len()), (200, "12345", 0));
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_gets_it() {
    let (seen, mut heads) = mpsc::unbounded_channel();
    let port = scripted(move |head, mut stream| {
        let seen = seen.clone();
        async move {
            seen.send(head).unwrap();
            read_until(&mut stream, "body").await;
            stream.write_all(HELLO.as_bytes()).await.unwrap();
        }
    })
    .await;
    let gate = Gate::to(port).await;
    let mut client = TcpStream::connect(gate.address).await.unwrap();
    let head = format!("POST / HTTP/1.1\r\nHost: {HOST_NAME}\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    let interim = timeout(LONG, read_until(&mut client, "\r\n\r\n")).await.unwrap();
    assert!(interim.starts_with("HTTP/1.1 100 "), "{interim}");
    client.write_all(b"body").await.unwrap();
    timeout(LONG, read_until(&mut client, "hello")).await.unwrap();
    assert!(!heads.recv().await.unwrap().to_lowercase().contains("expect"));
}

#[tokio::test]
async fn an_http_1_0_client_reads_an_unframed_answer_to_its_end() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let (port, mut heads) = answering(chunked).await;
    let gate = Gate::to(port).await;
    let answer = raw(gate.address, &format!("GET / HTTP/1.0\r\nHost: {HOST_NAME}\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n") && answer.ends_with("\r\n\r\nhello"), "{answer}");
    assert!(!answer.to_lowercase().contains("transfer-encoding"), "{answer}");
    assert!(heads.recv().await.unwrap().starts_with("GET / HTTP/1.1\r\n"));
}

#[tokio::test]
async fn an_old_guest_may_speak_http_1_0() {
    let (port, _heads) = answering("HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nhello").await;
    let reply = Gate::to(port).await.get("/").await;
    assert_eq!((reply.status, reply.text()), (200, "hello"));
}

#[tokio::test]
async fn a_guests_hop_by_hop_headers_stay_on_its_hop() {
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\nConnection: close, x-private\r\n\
                  X-Private: 1\r\nKeep-Alive: timeout=5\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let (port, _heads) = answering(answer).await;
    let reply = Gate::to(port).await.get("/").await;
    assert_eq!((reply.status, reply.text()), (200, "hello"));
    for name in ["content-length", "connection", "x-private", "keep-alive"] {
        assert_eq!(reply.headers.get(name), None, "{name}");
    }
    assert_eq!(reply.headers.get_all("set-cookie").iter().count(), 2);
}

#[tokio::test]
async fn ambiguous_framing_never_reaches_a_guest() {
    let (port, mut heads) = answering(HELLO).await;
    let gate = Gate::to(port).await;
    for (framing, status) in [
        ("Content-Length: 4\r\nContent-Length: 5\r\n", 400),
        ("Content-Length: 4, 4\r\n", 400),
        ("Content-Length: +4\r\n", 400),
        ("Transfer-Encoding: chunked, identity\r\n", 400),
        ("Transfer-Encoding: xchunked\r\n", 400),
        ("Transfer-Encoding : chunked\r\n", 400),
        ("Transfer-Encoding: gzip, chunked\r\n", 501),
        ("Host: other.localhost\r\n", 400),
    ] {
        let request = format!("POST / HTTP/1.1\r\nHost: {HOST_NAME}\r\nConnection: close\r\n{framing}\r\n0\r\n\r\n");
        let answer = raw(gate.address, &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{framing:?} {answer}");
    }
    assert!(heads.try_recv().is_err(), "none of them was passed on");

    // A coding beside a length is valid to read one way only, and is passed on as that one alone.
    let both = format!(
        "POST / HTTP/1.1\r\nHost: {HOST_NAME}\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n\
         GET /smuggled HTTP/1.1\r\nHost: {HOST_NAME}\r\n\r\n"
    );
    let answer = raw(gate.address, &both).await;
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "the connection ends behind it: {answer}");
    let head = heads.recv().await.unwrap().to_lowercase();
    assert!(head.contains("transfer-encoding: chunked\r\n") && !head.contains("content-length"), "{head}");
    assert!(heads.try_recv().is_err());
}

#[tokio::test]
async fn connect_is_not_for_a_reverse_proxy() {
    let gate = Gate::to(1).await;
    let answer =
        raw(gate.address, "CONNECT blog.localhost:22 HTTP/1.1\r\nHost: blog.localhost:22\r\nConnection: close\r\n\r\n")
            .await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
}

/// Opens a WebSocket-like tunnel through `gate` and returns its two ends' client side.
async fn open_tunnel(gate: &Gate) -> TokioIo<hyper::upgrade::Upgraded> {
    let ask = request("/socket")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    let mut sender = connect(gate.address).await;
    let response = sender.send_request(ask.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(response.headers()["upgrade"], "websocket");
    assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    TokioIo::new(hyper::upgrade::on(response).await.unwrap())
}

/// Takes every upgrade and sends back what it reads, until the client is done.
async fn echo() -> u16 {
    scripted(async |head, mut stream| {
        let head = head.to_lowercase();
        assert!(head.contains("connection: upgrade\r\n") && head.contains("upgrade: websocket\r\n"), "{head}");
        let accepted = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        stream.write_all(accepted.as_bytes()).await.unwrap();
        let (mut reader, mut writer) = stream.split();
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
        let _ = writer.write_all(b"bye").await;
    })
    .await
}

#[tokio::test]
async fn an_upgraded_stream_carries_bytes_both_ways_until_both_sides_are_done() {
    let gate = Gate::to(echo().await).await;
    let mut socket = open_tunnel(&gate).await;
    for message in ["\u{1}ping", "another"] {
        socket.write_all(message.as_bytes()).await.unwrap();
        let mut echoed = vec![0; message.len()];
        timeout(LONG, socket.read_exact(&mut echoed)).await.unwrap().unwrap();
        assert_eq!(echoed, message.as_bytes());
    }
    socket.shutdown().await.unwrap();
    let mut rest = String::new();
    timeout(LONG, socket.read_to_string(&mut rest)).await.unwrap().unwrap();
    assert_eq!(rest, "bye", "the guest may speak on after the client is done");
}

#[tokio::test]
async fn a_refused_upgrade_is_an_ordinary_answer() {
    let (port, mut heads) = answering(HELLO).await;
    let gate = Gate::to(port).await;
    let ask = request("/").header("connection", "upgrade").header("upgrade", "websocket");
    let reply = send(gate.address, ask.body(Body::empty()).unwrap()).await;
    assert_eq!((reply.status, reply.text()), (200, "hello"));
    assert!(heads.recv().await.unwrap().contains("upgrade: websocket\r\n"));
}

#[tokio::test]
async fn a_tunnel_takes_up_a_connection_and_ends_with_the_listener() {
    let limits = Limits { connections: 1, ..Limits::default() };
    let gate = Gate::start(routes_to(echo().await, ready()), limits, Patience::default()).await;
    let mut socket = open_tunnel(&gate).await;
    let other = get(gate.address, "nope.localhost", "/");
    assert!(timeout(Duration::from_millis(200), other).await.is_err(), "the tunnel has the only place");
    gate.shutdown.cancel();
    let mut rest = Vec::new();
    let _ = timeout(LONG, socket.read_to_end(&mut rest)).await.expect("the tunnel ends");
    timeout(LONG, gate.served).await.unwrap().unwrap();
}
