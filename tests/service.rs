//! The daemon under a service manager: what it tells it, and how it takes a new configuration.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/host.rs"]
mod host;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use crate::host::{Host, PATIENCE, signal};

#[test]
fn the_manager_is_told_of_readiness_state_reloads_and_the_end() {
    let mut host = declared();
    let manager = Manager::of(&host);
    host.start_with(&manager.env("600000"));
    manager.wait_for("READY=1");
    manager.wait_for("STATUS=1 app at ");
    for _ in 0..3 {
        manager.wait_for("WATCHDOG=1");
    }
    signal(pid(&host), "HUP");
    let reloading = manager.wait_for("RELOADING=1");
    let since = reloading.split("MONOTONIC_USEC=").nth(1).unwrap();
    assert!(since.parse::<u64>().unwrap() > 0);
    manager.wait_for("READY=1");
    assert_eq!(host.stop_daemon(), Some(0));
    manager.wait_for("STOPPING=1");
}

#[cfg(feature = "failpoints")]
#[test]
fn a_loop_that_hangs_does_not_feed_the_watchdog_though_the_rest_of_the_daemon_lives() {
    let mut host = declared();
    let manager = Manager::of(&host);
    let mut env = manager.env("600000").to_vec();
    env.push(("FAILPOINTS", "pass/planned=3*off->sleep(600000)"));
    host.spawn(&env);
    // Ten times as long as between two beats.
    let mut beats = 0;
    while let Some(text) = manager.next(Duration::from_secs(2)) {
        beats += usize::from(text.contains("WATCHDOG=1"));
        assert!(beats < 1000, "the loop goes on");
    }
    assert_eq!(host.api_answer("/healthz").map(|answer| answer.status), Some(200));
}

#[test]
fn a_new_configuration_takes_effect_where_it_can_and_one_with_mistakes_not_at_all() {
    let mut host = declared();
    host.configure("[limits]\nvcpus = 7\n[log]\nfilter = \"warn\"\n");
    host.start();
    let vcpus = |host: &Host| host.api("/v1/status")["limits"]["vcpus"]["total"].clone();
    assert_eq!(vcpus(&host), 7);
    assert!(!host.log().contains("daemon is up"), "that is below the level that is logged");

    let configured = |host: &Host, vcpus: u32, log: &str, more: &str| {
        host.configure(&format!("[limits]\nvcpus = {vcpus}\n[log]\nfilter = \"{log}\"\n{more}"));
        signal(pid(host), "HUP");
    };
    configured(&host, 9, "info", "[vmm]\naccel = \"tcg\"\n");
    host.wait_for("the new limit", |host| (vcpus(host) == 9).then_some(()));
    logged(&host, "these sections need a restart");
    assert!(host.log().contains("[vmm]") && !host.log().contains("[limits]"), "{}", host.log());

    for (broken, complaint) in [
        ("[converge]\nconcurrency = 0\n", "[converge] concurrency must be at least 1"),
        ("[converge]\nconcurency = 2\n", "unknown field `concurency`"),
    ] {
        configured(&host, 11, "info", broken);
        logged(&host, complaint);
    }
    configured(&host, 11, "no=such=filter", "");
    logged(&host, "`filter` under [log] is no filter");
    assert_eq!(vcpus(&host), 9, "the old one stays in effect");
    assert!(host.is_up());
}

#[test]
fn tokens_come_and_go_with_a_reload_and_no_connection_is_dropped() {
    let mut host = declared();
    let ((old, old_line), (new, new_line)) = (new_token(&host, "old"), new_token(&host, "new"));
    host.configure(&format!("[api]\ntokens = [{old_line}]\n"));
    host.spawn(&[]);
    let mut line = Line::to(&host);
    host.wait_for("the daemon to have looked around", |_| (line.get("/readyz", &old) == 200).then_some(()));
    let mut events = Line::to(&host);
    events.ask("/v1/events", &old, "text/event-stream");
    events.read_to("created");
    assert_eq!(line.get("/v1/status", &new), 401);

    reload(&host, &format!("[api]\ntokens = [{old_line}, {new_line}]\n"));
    host.wait_for("the new token to count", |_| (line.get("/v1/status", &new) == 200).then_some(()));
    assert_eq!(line.get("/v1/status", &old), 200);
    host.write_app("shop", "", "open");
    host.commit("open a shop");
    events.read_to("shop");

    reload(&host, &format!("[api]\ntokens = [{new_line}]\n"));
    host.wait_for("the old token to count no more", |_| (line.get("/v1/status", &old) == 401).then_some(()));
    assert_eq!(line.get("/v1/status", &new), 200);
    assert!(!host.log().contains("need a restart"), "{}", host.log());
}

#[test]
fn a_changed_pace_takes_effect_with_a_reload_and_no_connection_is_dropped() {
    let mut host = Host::sim();
    std::fs::write(host.state().join("vmm/script.toml"), "[[fault]]\noperation = \"launch\"\neffect = \"hang\"\n")
        .unwrap();
    ["a", "b", "c", "d", "e"].iter().for_each(|name| host.write_app(name, "", "page"));
    host.commit("declare");
    let roomy = "[limits]\nmemory = \"4Gi\"\nvcpus = 16\ndisk = \"10Gi\"\nsandboxes = 20\n";
    host.configure(&format!("{roomy}[converge]\nconcurrency = 1\n"));
    host.start();
    let mut line = Line::to(&host);
    let busy = |host: &Host, count: usize| {
        let apps = host.api("/v1/apps?phase=reconciling");
        (apps["items"].as_array().unwrap().len() == count).then_some(())
    };
    host.wait_for("one app to be worked on", |host| busy(host, 1));
    assert_eq!(line.get("/v1/status", ""), 200);

    reload(&host, &format!("{roomy}[converge]\nconcurrency = 3\n"));
    // Two that are new may be prepared beside three that boot.
    host.wait_for("five apps to be worked on", |host| busy(host, 5));
    let settings = host.api("/v1/settings");
    let concurrency = settings["settings"].as_array().unwrap().iter().find(|one| one["key"] == "converge.concurrency");
    assert_eq!(concurrency.unwrap()["value"], 3);
    assert_eq!(line.get("/v1/status", ""), 200);
}

fn reload(host: &Host, config: &str) {
    host.configure(config);
    signal(pid(host), "HUP");
}

/// A token's text, and its table for the configuration, as `setpoint token new` prints them.
fn new_token(host: &Host, name: &str) -> (String, String) {
    let output = host.run(&["token", "new", name]);
    let told = String::from_utf8(output.stderr).unwrap();
    let line = told.lines().find_map(|line| line.trim().strip_prefix("tokens = [")?.strip_suffix(']')).unwrap();
    (String::from_utf8(output.stdout).unwrap().trim().to_owned(), line.to_owned())
}

/// One connection to the status API, for any number of requests.
struct Line(BufReader<TcpStream>);

impl Line {
    fn to(host: &Host) -> Self {
        let stream = TcpStream::connect(host.api_address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(BufReader::new(stream))
    }

    fn ask(&mut self, path: &str, token: &str, accept: &str) {
        let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n");
        let token = if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
        self.0.get_mut().write_all(format!("{head}{token}\r\n").as_bytes()).unwrap();
    }

    /// The status of an answer, which is read to its end so that another can follow.
    fn get(&mut self, path: &str, token: &str) -> u16 {
        self.ask(path, token, "*/*");
        let status = self.next_line().split(' ').nth(1).unwrap().parse().unwrap();
        let mut length = 0;
        loop {
            let header = self.next_line().to_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        self.0.read_exact(&mut vec![0; length]).unwrap();
        status
    }

    fn read_to(&mut self, words: &str) {
        while !self.next_line().contains(words) {}
    }

    fn next_line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.0.read_line(&mut line).unwrap() > 0, "the connection was dropped");
        line.trim_end().to_owned()
    }
}

fn logged(host: &Host, words: &str) {
    host.wait_for(&format!("{words:?} in the log"), |host| host.log().contains(words).then_some(()));
}

fn declared() -> Host {
    let host = Host::sim();
    host.write_app("blog", "", "first");
    host.commit("declare");
    host
}

fn pid(host: &Host) -> u32 {
    let beacon = std::fs::read(host.state().join("daemon.json")).unwrap();
    let beacon: serde_json::Value = serde_json::from_slice(&beacon).unwrap();
    u32::try_from(beacon["pid"].as_u64().unwrap()).unwrap()
}

/// A service manager's end of the notification socket.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn of(host: &Host) -> Self {
        let path = host.dir().join("notify.sock");
        Self { socket: UnixDatagram::bind(&path).unwrap(), path }
    }

    fn env(&self, watchdog_usec: &'static str) -> [(&str, &str); 2] {
        [("NOTIFY_SOCKET", self.path.to_str().unwrap()), ("WATCHDOG_USEC", watchdog_usec)]
    }

    /// The next message, unless none comes for this long.
    fn next(&self, patience: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(patience)).unwrap();
        let mut text = [0; 4096];
        let length = self.socket.recv(&mut text).ok()?;
        Some(String::from_utf8_lossy(&text[..length]).into_owned())
    }

    /// The next message that begins so; others are passed over.
    fn wait_for(&self, beginning: &str) -> String {
        let found = std::iter::from_fn(|| self.next(PATIENCE)).find(|text| text.starts_with(beginning));
        found.unwrap_or_else(|| panic!("nothing begins with {beginning}"))
    }
}
