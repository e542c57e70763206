//! Apps that rest by themselves because nobody uses them: over a real repository with the real daemon and scripted microVMs.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/host.rs"]
mod host;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Output;
use std::time::Duration;

use crate::host::Host;

/// An app with this `spec`, converged.
fn running(spec: &str) -> Host {
    started(Host::sim(), spec)
}

fn wait_phase(host: &Host, phase: &str) {
    host.wait_for(phase, |host| (host.app("blog")["phase"] == phase).then_some(()));
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn count(host: &Host, kind: &str) -> usize {
    host.events_of("blog").iter().filter(|event| event.split_once(':').is_some_and(|(of, _)| of == kind)).count()
}

/// When the newest event of this kind was.
fn time_of(host: &Host, kind: &str) -> jiff::Timestamp {
    let events = host.api("/v1/events?limit=1000");
    let mut of_kind = events["items"].as_array().unwrap().iter().filter(|event| event["kind"] == kind);
    of_kind.next_back().unwrap()["at"].as_str().unwrap().parse().unwrap()
}

/// A request whose body never comes to its end, so that it is under way for as long as this is there.
fn open_request(host: &Host) -> TcpStream {
    let mut stream = TcpStream::connect(host.ingress_address()).unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: blog.localhost\r\nContent-Length: 5\r\n\r\nhel").unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

#[test]
fn an_app_that_nobody_uses_rests_and_a_request_wakes_it() {
    let host = running("power: {idle: {after: 2s}}");
    wait_phase(&host, "paused");
    host.wait_converged();
    let app = host.app("blog");
    assert_eq!(app["power"], "running", "{app}");
    assert_eq!((&app["powerHere"]["state"], &app["powerHere"]["cause"]), (&"paused".into(), &"idle".into()), "{app}");
    let dry_run = host.run(&["reconcile", "--dry-run", "--exit-code"]);
    assert!(dry_run.status.success(), "a rest is no drift: {}", String::from_utf8_lossy(&dry_run.stdout));
    let answer = host.fetch("blog.localhost", "/").unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(host.app("blog")["powerHere"].is_null());
    wait_phase(&host, "paused");
    assert_eq!((count(&host, "pausedHere"), count(&host, "woken"), count(&host, "healed")), (2, 1, 0));
}

#[test]
fn an_app_that_is_stopped_for_want_of_use_boots_for_a_request_and_nobody_calls_that_an_accident() {
    let host = running("power: {idle: {after: 2s, action: stop}}");
    for round in 1..=2 {
        wait_phase(&host, "stopped");
        let answer = host.fetch("blog.localhost", "/").unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(count(&host, "stoppedHere"), round);
    }
    assert_eq!((count(&host, "healed"), count(&host, "exited")), (0, 0), "{:?}", host.events_of("blog"));
}

#[test]
fn what_is_under_way_keeps_an_app_awake_and_its_end_begins_the_wait() {
    let host = running("power: {idle: {after: 2s}}");
    let mut request = open_request(&host);
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(count(&host, "pausedHere"), 0, "{:?}", host.events_of("blog"));
    let ended = jiff::Timestamp::now();
    request.write_all(b"lo").unwrap();
    let mut head = [0; 12];
    request.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    drop(request);
    wait_phase(&host, "paused");
    let waited = time_of(&host, "pausedHere").duration_since(ended);
    assert!(waited.as_secs() >= 2, "{waited}");
}

#[test]
fn the_wait_goes_on_over_a_restart_of_the_daemon() {
    let mut host = running("power: {idle: {after: 8s}}");
    assert_eq!(host.fetch("blog.localhost", "/").unwrap().status, 200);
    let used = jiff::Timestamp::now();
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(host.stop_daemon(), Some(0));
    host.start();
    let restarted = jiff::Timestamp::now();
    wait_phase(&host, "paused");
    let rested = time_of(&host, "pausedHere");
    let (since_use, since_start) = (rested.duration_since(used), rested.duration_since(restarted));
    assert!(since_use.as_secs() >= 7, "{since_use}");
    assert!(since_start.as_secs() < 7, "{since_start} after the restart, which began no new wait");
}

#[test]
fn a_request_that_comes_while_an_idle_app_is_being_saved_calls_that_off_or_wakes_it() {
    let host = Host::sim();
    std::fs::write(host.state().join("vmm/script.toml"), "[latency]\npause = \"2s\"\n").unwrap();
    let host = started(host, "power: {idle: {after: 2s}}");
    host.wait_for("its rest to begin", |host| (count(host, "pausedHere") == 1).then_some(()));
    let answer = host.fetch("blog.localhost", "/").unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(count(&host, "healed"), 0);
}

#[test]
fn an_app_that_keeps_its_processor_busy_is_used_where_its_rule_says_so() {
    let host = Host::sim();
    std::fs::write(host.state().join("vmm/script.toml"), "[[fate]]\napp = \"blog\"\ncpu_percent = 50\n").unwrap();
    host.write_app("calm", "power: {idle: {after: 2s, cpuBelow: 5%}}", "calm");
    let host = started(host, "power: {idle: {after: 2s, cpuBelow: 5%}}");
    host.wait_for("the calm one's rest", |host| (host.app("calm")["phase"] == "paused").then_some(()));
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(count(&host, "pausedHere"), 0, "{:?}", host.events_of("blog"));
}

#[test]
fn an_app_that_cannot_go_on_stays_as_it_is_where_it_is_declared_so_until_somebody_wakes_it() {
    let host = Host::sim();
    let faults = "[[fault]]\noperation = \"resume\"\nnth = 1\n[[fault]]\noperation = \"resume\"\nnth = 2\n";
    std::fs::write(host.state().join("vmm/script.toml"), faults).unwrap();
    let host = started(host, "power: {onResumeFailure: alert}");
    said(&host.run(&["pause", "blog"]));
    wait_phase(&host, "paused");
    said(&host.run(&["wake", "blog"]));
    for failed in 1..=2 {
        host.wait_for("its alert", |host| (count(host, "failed") == failed).then_some(()));
        wait_phase(&host, "stalled");
        let app = host.app("blog");
        let stalled = app["conditions"].as_array().unwrap().iter().find(|of| of["type"] == "Stalled").unwrap();
        assert_eq!((&stalled["status"], &stalled["reason"]), (&"True".into(), &"ResumeFailed".into()), "{app}");
        assert_eq!(host.sandbox_of("blog")["vm"]["state"], "paused", "its files are kept");
        assert_eq!(host.fetch("blog.localhost", "/").unwrap().status, 503);
        said(&host.run(&["wake", "blog"]));
    }
    wait_phase(&host, "ready");
    assert_eq!((count(&host, "healed"), count(&host, "rebooted")), (0, 0), "{:?}", host.events_of("blog"));
    assert!(count(&host, "stalled") >= 1);
}

#[test]
fn a_change_of_its_declaration_wakes_an_app_that_nobody_used() {
    let host = running("power: {idle: {after: 2s}}");
    wait_phase(&host, "paused");
    host.write("apps/blog/index.html", "second");
    let commit = host.commit("another page");
    host.wait_for("the change", |host| (host.app("blog")["lastAppliedRevision"] == commit.as_str()).then_some(()));
}

#[test]
fn what_rests_says_since_when_nobody_used_it() {
    let host = running("power: {idle: {after: 2s}}");
    wait_phase(&host, "paused");
    let events = host.events_of("blog");
    assert!(
        events.iter().any(|event| event.starts_with("pausedHere: to be paused: nobody has used it since")),
        "{events:?}"
    );
    let described =
        said(&host.run(&["describe", "app", "blog", "--server", &format!("http://{}", host.api_address())]));
    assert!(described.contains("declared running, paused here for "), "{described}");
    assert!(described.contains("nobody used it"), "{described}");
}

fn started(mut host: Host, spec: &str) -> Host {
    host.write_app("blog", spec, "first");
    host.commit("an app");
    host.start();
    host.wait_converged();
    host
}
