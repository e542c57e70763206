//! Whether the web process answers: a plain HTTP/1.1 GET of its health path, over and over while it runs.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{sleep, timeout};

use crate::proto::web_status::Health;

use super::local;
use super::status::{Board, web_runs};

/// How soon after its start a process is first asked, and how soon again; doubled each time up to [`SLOWEST_WAIT`]. An app that
/// is up quickly is seen quickly.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// The longest wait between probes of a process that is not healthy.
const SLOWEST_WAIT: Duration = Duration::from_secs(1);
/// The wait between probes of a healthy process.
const HEALTHY_WAIT: Duration = Duration::from_secs(5);
/// So many failures in a row make a process unhealthy: one slow answer is no outage.
const FAILURES: u32 = 3;
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(5);
/// How much of the answer's head is read for its status.
const HEAD: usize = 1024;
/// How much of the rest is read, so that a server is not cut off in the middle of an ordinary answer.
const BODY: u64 = 256 * 1024;

/// What to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The port on localhost.
    pub port: u16,
    /// The path, as `/healthz`.
    pub path: String,
}

/// Probes for as long as it is polled, and writes what it finds on the board.
pub async fn watch(board: Arc<Board>, probe: Probe) {
    loop {
        board.until(web_runs).await;
        tokio::select! {
            () = probe_running(&board, &probe) => {}
            () = board.until(|status| !web_runs(status)) => board.set_health(Health::Unknown, ""),
        }
    }
}

async fn probe_running(board: &Board, probe: &Probe) {
    let mut wait = FIRST_WAIT;
    let mut failures = 0;
    loop {
        sleep(wait).await;
        match probe.ask().await {
            Ok(()) => {
                failures = 0;
                wait = HEALTHY_WAIT;
                board.set_health(Health::Healthy, "");
            }
            Err(reason) => {
                failures += 1;
                wait = if wait == HEALTHY_WAIT { FIRST_WAIT } else { (wait * 2).min(SLOWEST_WAIT) };
                if failures >= FAILURES {
                    board.set_health(Health::Unhealthy, &reason);
                }
            }
        }
    }
}

impl Probe {
    /// # Errors
    /// Anything but an answer 200, in a few words.
    async fn ask(&self) -> Result<(), String> {
        match timeout(ANSWER, self.status()).await {
            Ok(Ok(200)) => Ok(()),
            Ok(Ok(status)) => Err(status.to_string()),
            Ok(Err(error)) => Err(in_words(&error)),
            Err(_) => Err(format!("no answer within {} s", ANSWER.as_secs())),
        }
    }

    async fn status(&self) -> io::Result<u16> {
        let Self { port, path } = self;
        let mut stream = local::connect(*port).await?;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nUser-Agent: setpoint\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.contains(&b'\n') && head.len() < HEAD {
            if stream.read_buf(&mut head).await? == 0 {
                break;
            }
        }
        let status = parse_status(&head).ok_or_else(|| io::Error::other("not an HTTP answer"))?;
        tokio::io::copy(&mut stream.take(BODY), &mut tokio::io::sink()).await?;
        Ok(status)
    }
}

/// The status of `HTTP/1.1 200 OK`.
fn parse_status(head: &[u8]) -> Option<u16> {
    let line = head.strip_prefix(b"HTTP/1.")?.split(|byte| *byte == b'\r' || *byte == b'\n').next()?;
    let digits = line.split(|byte| *byte == b' ').nth(1)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn in_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing step is a failing test")]

    use tokio::net::TcpListener;

    use super::*;

    async fn probe_against(answer: &'static str) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 1024];
            let count = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(request[..count].to_vec()).unwrap()
        });
        let result = Probe { port, path: "/up".to_owned() }.ask().await;
        assert!(serving.await.unwrap().starts_with("GET /up HTTP/1.1\r\n"));
        result
    }

    #[tokio::test]
    async fn only_200_is_healthy() {
        assert_eq!(probe_against("HTTP/1.0 200 OK\r\n\r\nhi").await, Ok(()));
        assert_eq!(probe_against("HTTP/1.1 204 No Content\r\n\r\n").await, Err("204".to_owned()));
        assert_eq!(probe_against("HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n").await, Err("302".to_owned()));
        assert_eq!(probe_against("SSH-2.0-OpenSSH\r\n").await, Err("not an HTTP answer".to_owned()));
        assert_eq!(probe_against("").await, Err("not an HTTP answer".to_owned()));
    }

    #[tokio::test]
    async fn nobody_listening_is_said_in_words() {
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        assert_eq!(Probe { port, path: "/".to_owned() }.ask().await, Err("connection refused".to_owned()));
    }
}
