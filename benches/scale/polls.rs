//! How fast the API answers polls, beside an axum handler that returns the same bytes.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse as _;
use axum::routing::get;

use crate::figures::Table;

const CLIENTS: usize = 8;
const ROUND: Duration = Duration::from_secs(3);
/// The two take turns, so that what else runs on the machine meets both.
const ROUNDS: usize = 3;
const PAGE: &str = "/v1/apps?limit=100";

/// The least share of a bare handler's rate.
const SHARE: f64 = 0.8;

/// Measures and prints; what is beyond its bound.
pub fn measure(api: SocketAddr) -> Vec<String> {
    let first = Client::connect(api).get(PAGE, None);
    assert_eq!(first.status, 200);
    let tag = first.etag.unwrap();
    let bare = bare(Bytes::from(first.body), tag.clone());
    let mut table = Table::new(
        "scale-polls",
        format!("Polls by {CLIENTS} clients"),
        &["", "a second", "p50", "p99", "of bare axum"],
    );
    let mut beyond = Vec::new();
    for (name, tag, status) in [("304", Some(tag.as_str()), 304), ("page of 100 apps", None, 200)] {
        let (mut ours, mut theirs) = (Polls::default(), Polls::default());
        for _ in 0..ROUNDS {
            ours.poll(api, tag, status);
            theirs.poll(bare, tag, status);
        }
        let share = format!("{:.2}", ours.rate() / theirs.rate());
        if ours.rate() / theirs.rate() < SHARE {
            beyond.push(format!("{name}: {share} of bare axum, not {SHARE}"));
        }
        table.row(&[&name, &format!("{:.0}", ours.rate()), &micros(&ours, 50), &micros(&ours, 99), &share]);
        let bare_name = format!("{name}, bare axum");
        table.row(&[&bare_name, &format!("{:.0}", theirs.rate()), &micros(&theirs, 50), &micros(&theirs, 99), &""]);
    }
    table.print();
    beyond
}

fn micros(polls: &Polls, percent: usize) -> String {
    format!("{} µs", polls.times[polls.times.len() * percent / 100].as_micros())
}

/// The times of some polls, and how long they were made for.
#[derive(Default)]
struct Polls {
    times: Vec<Duration>,
    spent: Duration,
}

impl Polls {
    fn poll(&mut self, server: SocketAddr, tag: Option<&str>, status: u16) {
        let began = Instant::now();
        let client = || {
            let mut client = Client::connect(server);
            let mut times = Vec::new();
            while began.elapsed() < ROUND {
                let asked = Instant::now();
                assert_eq!(client.get(PAGE, tag).status, status);
                times.push(asked.elapsed());
            }
            times
        };
        let times = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
            clients.into_iter().flat_map(|client| client.join().unwrap()).collect::<Vec<_>>()
        });
        self.times.extend(times);
        self.times.sort_unstable();
        self.spent += began.elapsed();
    }

    fn rate(&self) -> f64 {
        self.times.len() as f64 / self.spent.as_secs_f64()
    }
}

/// A server in this process that compares a tag and returns bytes.
fn bare(body: Bytes, tag: String) -> SocketAddr {
    let handler = async move |headers: axum::http::HeaderMap| {
        if headers.get(header::IF_NONE_MATCH).is_some_and(|asked| asked.as_bytes() == tag.as_bytes()) {
            return (StatusCode::NOT_MODIFIED, [(header::ETAG, tag.clone())]).into_response();
        }
        let json = "application/json".to_owned();
        ([(header::ETAG, tag.clone()), (header::CONTENT_TYPE, json)], body.clone()).into_response()
    };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, Router::new().route("/v1/apps", get(handler))).await.unwrap();
        });
    });
    address
}

/// One connection that is kept.
pub struct Client {
    stream: BufReader<TcpStream>,
}

pub struct Answer {
    pub status: u16,
    pub etag: Option<String>,
    pub body: Vec<u8>,
}

impl Client {
    pub fn connect(server: SocketAddr) -> Self {
        let stream = TcpStream::connect(server).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: BufReader::with_capacity(1 << 17, stream) }
    }

    pub fn get(&mut self, path: &str, tag: Option<&str>) -> Answer {
        let condition = tag.map(|tag| format!("If-None-Match: {tag}\r\n")).unwrap_or_default();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{condition}\r\n");
        self.stream.get_mut().write_all(request.as_bytes()).unwrap();
        let (mut answer, mut length) = (Answer { status: 0, etag: None, body: Vec::new() }, 0);
        let mut line = String::new();
        loop {
            line.clear();
            self.stream.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim_end().split_once(": ") else {
                match line.trim_end().split(' ').nth(1) {
                    Some(status) => answer.status = status.parse().unwrap(),
                    None => break,
                }
                continue;
            };
            match name.to_ascii_lowercase().as_str() {
                "etag" => answer.etag = Some(value.to_owned()),
                "content-length" => length = value.parse().unwrap(),
                _ => {}
            }
        }
        if answer.status != 304 {
            answer.body.resize(length, 0);
            self.stream.read_exact(&mut answer.body).unwrap();
        }
        answer
    }
}
