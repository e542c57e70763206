//! What takes turns under load, and the load.

use std::fs;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use setpoint::ingress::serve;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::upstream::{Local, ready, routes_to};

/// An nginx that serves files on one port, and proxies to that on another.
pub struct Nginx {
    process: Child,
    /// Where the files are.
    pub upstream: u16,
    /// Where the proxy is.
    pub proxy: u16,
    _dir: tempfile::TempDir,
}

impl Nginx {
    /// With a file of each name and size.
    pub fn start(files: &[(&str, usize)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Its workers are another user's.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(dir.path(), open).unwrap();
        for (name, size) in files {
            fs::write(dir.path().join(name), "x".repeat(*size)).unwrap();
        }
        let (upstream, proxy, at) = (free_port(), free_port(), dir.path().display());
        let configuration = format!(
            "daemon off;\nworker_processes auto;\npid {at}/pid;\nerror_log {at}/error.log;\n\
             events {{ worker_connections 1024; }}\n\
             http {{\n  access_log off;\n  keepalive_requests 1000000000;\n\
             client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi;\n\
             uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n\
             server {{ listen 127.0.0.1:{upstream}; root {at}; }}\n\
             server {{ listen 127.0.0.1:{proxy}; location / {{ proxy_pass http://127.0.0.1:{upstream}; }} }}\n}}\n"
        );
        let path = dir.path().join("nginx.conf");
        fs::write(&path, configuration).unwrap();
        let mut command = Command::new("nginx");
        command.arg("-c").arg(&path).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().expect("nginx is installed: scripts/bench does that");
        let nginx = Self { process, upstream, proxy, _dir: dir };
        nginx.wait();
        nginx
    }

    fn wait(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(("127.0.0.1", self.proxy)).is_err() {
            assert!(Instant::now() < deadline, "nginx does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Nginx {
    /// Its master ends its workers when it is asked to end, and not when it is killed.
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.process.wait();
    }
}

/// The ingress, with the upstream's port in a guest's place.
pub struct OurIngress {
    /// Where it is.
    pub port: u16,
    shutdown: CancellationToken,
    _runtime: tokio::runtime::Runtime,
}

impl OurIngress {
    /// To this port of this machine.
    pub fn start(upstream: u16) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (_, seen) = watch::channel(Arc::new(routes_to(upstream, ready())));
        let shutdown = CancellationToken::new();
        runtime.spawn(serve(listener, seen, Arc::new(Local), shutdown.clone()));
        Self { port, shutdown, _runtime: runtime }
    }
}

impl Drop for OurIngress {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// What wrk says.
pub struct Load {
    /// Requests a second.
    pub rate: f64,
    /// Half of the answers came within this.
    pub p50: String,
    /// Of a hundred answers, 99 came within this.
    pub p99: String,
}

/// Asks for one file over and over, for five seconds. Every answer must be a success.
pub fn wrk(port: u16, file: &str, connections: usize) -> Load {
    let url = format!("http://127.0.0.1:{port}/{file}");
    let output = Command::new("wrk")
        .args(["--threads", "1", "--duration", "5s", "--latency", "--header", "Host: blog.localhost"])
        .args(["--connections", &connections.to_string(), &url])
        .output()
        .expect("wrk is installed: scripts/bench does that");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && !text.contains("Non-2xx") && !text.contains("Socket errors"), "{text}");
    let word_after = |label: &str| {
        let line = text.lines().find(|line| line.trim_start().starts_with(label)).unwrap_or_default();
        line.split_ascii_whitespace().nth(1).unwrap_or_default().to_owned()
    };
    let rate = word_after("Requests/sec:").parse().expect("wrk says how many requests there were");
    Load { rate, p50: word_after("50%"), p99: word_after("99%") }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
