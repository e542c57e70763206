//! The daemon under a service manager: what it tells it, and how it takes a new configuration.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/host.rs"]
mod host;

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
    manager.wait_for("STATUS=1 apps at ");
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
