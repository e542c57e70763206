//! A git server over plain HTTP on this machine: `git http-backend` behind a few lines of HTTP.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// A server for one repository. It stops when dropped.
pub struct HttpGit {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl HttpGit {
    pub fn serve(git_dir: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, stopping) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (log, stop, git_dir) = (Arc::clone(&requests), Arc::clone(&stopping), git_dir.to_owned());
        let thread = std::thread::spawn(move || {
            for connection in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                answer(connection.unwrap(), &git_dir, &log);
            }
        });
        Self { address, requests, stopping, thread: Some(thread) }
    }

    pub fn url(&self) -> String {
        format!("http://{}/apps.git", self.address)
    }

    /// The requests since the last call, as `GET /info/refs`.
    pub fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }
}

impl Drop for HttpGit {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        // Wakes the listener up.
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().unwrap().join();
    }
}

/// Answers one request and closes the connection.
fn answer(connection: TcpStream, git_dir: &Path, log: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(&connection);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let mut words = line.split_whitespace();
    let (Some(method), Some(target)) = (words.next(), words.next()) else { return };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let path = path.trim_start_matches("/apps.git");
    log.lock().unwrap().push(format!("{method} {path}"));
    let mut command = Command::new("git");
    command
        .arg("http-backend")
        .envs([("GIT_HTTP_EXPORT_ALL", "1"), ("REQUEST_METHOD", method), ("PATH_INFO", path), ("QUERY_STRING", query)])
        .env("GIT_PROJECT_ROOT", git_dir)
        .envs([("GIT_CONFIG_COUNT", "1"), ("GIT_CONFIG_KEY_0", "safe.directory"), ("GIT_CONFIG_VALUE_0", "*")]);
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).unwrap();
        let Some((name, value)) = header.trim().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "content-type" => _ = command.env("CONTENT_TYPE", value),
            "content-encoding" => _ = command.env("HTTP_CONTENT_ENCODING", value),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&body).unwrap();
    let output = child.wait_with_output().unwrap().stdout;
    // What the backend prints begins with headers, as CGI has it.
    let body = output.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    let length = output.len() - body;
    let mut connection = &connection;
    let status = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n");
    connection.write_all(status.as_bytes()).unwrap();
    connection.write_all(&output).unwrap();
}
