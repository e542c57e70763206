//! Apps that rest by themselves because nobody uses them: over a real repository with the real daemon and scripted microVMs.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/counter.rs"]
mod counter;
#[path = "support/host.rs"]
mod host;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Output, Stdio};
use std::time::Duration;

use jiff::Timestamp;

use crate::host::Host;

/// An app with this `spec`, converged.
fn running(spec: &str) -> Host {
    started(Host::sim(), spec)
}

/// The same beside another app, `calm`, with a `spec` of its own.
fn running_beside(calm: &str, spec: &str) -> Host {
    let host = Host::sim();
    host.write_app("calm", calm, "calm");
    started(host, spec)
}

/// Returns once `calm`, which is used now and not again, has come to rest: what was due for others of the same rule since their last
/// use has happened by then.
fn pass_a_rest(host: &Host) {
    assert_eq!(host.fetch("calm.localhost", "/").unwrap().status, 200);
    let used = Timestamp::now();
    let is_later = |host: &Host| time_of(host, "calm", "pausedHere").filter(|rested| *rested > used);
    host.wait_for("the rest of an app that nobody uses", is_later);
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

/// When the newest event of this kind about an app was.
fn time_of(host: &Host, app: &str, kind: &str) -> Option<Timestamp> {
    let events = host.api("/v1/events?limit=1000");
    let is_it = |event: &&serde_json::Value| event["kind"] == kind && event["app"] == app;
    events["items"].as_array()?.iter().rfind(is_it)?["at"].as_str()?.parse().ok()
}

/// How long after `since` the app came to rest.
fn waited_since(host: &Host, since: Timestamp) -> i64 {
    wait_phase(host, "paused");
    time_of(host, "blog", "pausedHere").unwrap().duration_since(since).as_secs()
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
    let host = running_beside("power: {idle: {after: 2s}}", "power: {idle: {after: 2s}}");
    let mut request = open_request(&host);
    pass_a_rest(&host);
    assert_eq!(count(&host, "pausedHere"), 0, "{:?}", host.events_of("blog"));
    let ended = Timestamp::now();
    request.write_all(b"lo").unwrap();
    let mut head = [0; 12];
    request.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    drop(request);
    let waited = waited_since(&host, ended);
    assert!(waited >= 2, "{waited}");
}

/// A WebSocket through the ingress to the app, whose server sends back what it gets.
struct WebSocket {
    stream: TcpStream,
}

impl WebSocket {
    fn open(host: &Host) -> Self {
        let mut stream = TcpStream::connect(host.ingress_address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let head = "GET /live HTTP/1.1\r\nHost: blog.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let mut byte = [0];
        while !answer.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
        let answer = String::from_utf8(answer).unwrap().to_lowercase();
        assert!(answer.starts_with("http/1.1 101") && answer.contains("upgrade: websocket"), "{answer}");
        Self { stream }
    }

    /// A text frame there and back.
    fn says(&mut self, text: &str) {
        let mask = [7, 1, 8, 2];
        let mut frame = vec![0x81, 0x80 | u8::try_from(text.len()).unwrap()];
        frame.extend(mask);
        frame.extend(text.bytes().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        self.stream.write_all(&frame).unwrap();
        let mut back = vec![0; frame.len()];
        self.stream.read_exact(&mut back).unwrap();
        assert_eq!(back, frame);
    }
}

#[test]
fn an_open_websocket_keeps_an_app_awake_however_silent_it_is_and_its_end_begins_the_wait() {
    let host = running_beside("power: {idle: {after: 2s}}", "power: {idle: {after: 2s}}");
    let mut socket = WebSocket::open(&host);
    socket.says("hello");
    pass_a_rest(&host);
    assert_eq!(count(&host, "pausedHere"), 0, "{:?}", host.events_of("blog"));
    socket.says("still there");
    let closed = Timestamp::now();
    drop(socket);
    let waited = waited_since(&host, closed);
    assert!(waited >= 2, "{waited}");
    WebSocket::open(&host).says("it wakes for one, too");
}

#[test]
fn whoever_follows_its_log_keeps_an_app_awake() {
    let host = running_beside("power: {idle: {after: 2s}}", "power: {idle: {after: 2s}}");
    let server = format!("http://{}", host.api_address());
    let mut following =
        host.command(&["logs", "-f", "blog", "--server", &server]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(following.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("sim web"), "{line}");
    pass_a_rest(&host);
    assert_eq!(count(&host, "pausedHere"), 0, "{:?}", host.events_of("blog"));
    let left = Timestamp::now();
    following.kill().unwrap();
    following.wait().unwrap();
    let waited = waited_since(&host, left);
    assert!(waited >= 2, "{waited}");
}

#[test]
fn the_wait_goes_on_over_a_restart_of_the_daemon() {
    let mut host = running_beside("power: {idle: {after: 4s}}", "power: {idle: {after: 8s}}");
    assert_eq!(host.fetch("blog.localhost", "/").unwrap().status, 200);
    let used = Timestamp::now();
    pass_a_rest(&host);
    assert_eq!(host.stop_daemon(), Some(0));
    host.start();
    let restarted = Timestamp::now();
    wait_phase(&host, "paused");
    let rested = time_of(&host, "blog", "pausedHere").unwrap();
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
    pass_a_rest(&host);
    pass_a_rest(&host);
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

/// What a client reads that accepts this, head and body; the connection ends with the answer.
fn answer_to(host: &Host, accept: &str) -> String {
    let mut stream = TcpStream::connect(host.ingress_address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let request = format!("GET / HTTP/1.0\r\nHost: blog.localhost\r\nAccept: {accept}\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.to_lowercase()
}

#[test]
fn who_waits_too_long_for_a_wake_is_told_so_and_a_browser_asks_again_by_itself() {
    let host = Host::sim();
    std::fs::write(host.state().join("vmm/script.toml"), "[latency]\nresume = \"4s\"\n").unwrap();
    let host = started(host, "power: {idle: {after: 2s}}\nwake: {hold: 1s}");
    wait_phase(&host, "paused");
    let began = std::time::Instant::now();
    let page = answer_to(&host, "text/html,*/*");
    let held = began.elapsed();
    assert!((1..4).contains(&held.as_secs()), "{held:?}");
    assert!(page.starts_with("http/1.0 503") || page.starts_with("http/1.1 503"), "{page}");
    for part in ["retry-after: 2", "content-type: text/html", "http-equiv=\"refresh\"", "on its way up"] {
        assert!(page.contains(part), "{part} in {page}");
    }
    let problem = answer_to(&host, "application/json");
    for part in [" 503", "retry-after: 2", "content-type: application/problem+json"] {
        assert!(problem.contains(part), "{part} in {problem}");
    }
    host.wait_served("blog", "");
}

#[test]
fn a_request_does_not_wake_an_app_that_is_woken_by_hand() {
    let host = running("power: {idle: {after: 2s}}\nwake: manual");
    wait_phase(&host, "paused");
    let page = answer_to(&host, "text/html");
    assert!(page.contains(" 503") && page.contains("a request does not wake it"), "{page}");
    assert!(!page.contains("refresh") && !page.contains("retry-after"), "asking again does not help: {page}");
    let problem = answer_to(&host, "*/*");
    assert!(problem.contains(" 503") && problem.contains("application/problem+json"), "{problem}");
    assert_eq!(count(&host, "wokenHere"), 0);
    said(&host.run(&["wake", "blog"]));
    wait_phase(&host, "ready");
    assert_eq!(host.fetch("blog.localhost", "/").unwrap().status, 200);
}

#[test]
fn an_app_is_kept_from_resting_for_as_long_as_somebody_wants_and_no_longer() {
    let host = running_beside("power: {idle: {after: 2s}}", "power: {idle: {after: 2s}}");
    assert_eq!(said(&host.run(&["keepalive", "blog", "1h"])), "blog is not paused for want of use for 1h\n");
    let app = host.app("blog");
    let until: Timestamp = app["keepalive"]["until"].as_str().unwrap().parse().unwrap();
    let left = until.duration_since(Timestamp::now()).as_secs();
    assert!((3000..=3600).contains(&left), "{left}");
    pass_a_rest(&host);
    assert_eq!(count(&host, "pausedHere"), 0);
    let server = format!("http://{}", host.api_address());
    let wide = said(&host.run(&["get", "apps", "-o", "wide", "--server", &server]));
    assert!(wide.contains("pause in 59m"), "{wide}");
    let described = said(&host.run(&["describe", "app", "blog", "--server", &server]));
    assert!(described.contains("Keepalive") && described.contains("for 59m more"), "{described}");
    assert!(host.events_of("blog").iter().any(|event| event.starts_with("keptAlive: does not rest by itself until")));
    assert_eq!(said(&host.run(&["keepalive", "blog", "0"])), "blog is no longer kept from resting\n");
    wait_phase(&host, "paused");
    assert_eq!(said(&host.run(&["keepalive", "blog", "--end"])), "blog is not kept from resting\n");
    let refused = host.run(&["keepalive", "blog", "25h"]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("25h is longer than the 1d"), "{refused:?}");
}

#[test]
fn an_app_that_sleeps_and_wakes_in_a_loop_is_noticed_and_rests_later() {
    let host = running("power: {idle: {after: 1s}}");
    for _ in 0..7 {
        wait_phase(&host, "paused");
        assert_eq!(host.fetch("blog.localhost", "/").unwrap().status, 200);
    }
    let app = host.wait_for("the loop to show", |host| {
        let app = host.app("blog");
        let ready = app["conditions"].as_array().unwrap().iter().find(|of| of["type"] == "Ready").unwrap().clone();
        (ready["status"] == "True" && ready["reason"] == "WakesOften").then_some((app, ready))
    });
    assert!(app.1["message"].as_str().unwrap().contains("`power.idle.after`"), "{app:?}");
    assert_eq!((&app.0["idle"]["after"], &app.0["idle"]["waits"]), (&"1s".into(), &"2s".into()));
    assert_eq!(count(&host, "wakesOften"), 1, "{:?}", host.events_of("blog"));
}

#[test]
fn what_is_next_for_an_app_is_an_instant_that_stands_still() {
    let host = Host::sim();
    host.write_app("calm", "power: {idle: {after: 1h}}", "calm");
    host.write_app("other", "power: {idle: {after: 1h}}", "other");
    let host = started(host, "power: {idle: {after: 1h}}");
    // Uses are written down for all apps together, so that what was used before this one is written with it at the latest.
    let use_and_wait = |name: &str| {
        let before = Timestamp::now();
        assert_eq!(host.fetch(&format!("{name}.localhost"), "/").unwrap().status, 200);
        let since = |host: &Host| host.app(name)["idle"]["since"].as_str()?.parse::<Timestamp>().ok();
        host.wait_for("its use", |host| since(host).filter(|since| *since >= before));
    };
    assert_eq!(host.fetch("blog.localhost", "/").unwrap().status, 200);
    use_and_wait("calm");
    let settled = host.app("blog");
    let time = |field: &str| settled["idle"][field].as_str().unwrap().parse::<Timestamp>().unwrap();
    assert_eq!(time("due").duration_since(time("since")).as_secs(), 3600);
    for _ in 0..20 {
        host.fetch("blog.localhost", "/").unwrap();
    }
    use_and_wait("other");
    assert_eq!(host.app("blog"), settled, "uses that come close together change nothing that is shown");
}

fn started(mut host: Host, spec: &str) -> Host {
    host.write_app("blog", spec, "first");
    host.commit("an app");
    host.start();
    host.wait_converged();
    host
}

/// With real microVMs.
mod microvm {
    use super::*;
    use crate::counter::{COUNTER, count};

    #[test]
    fn an_idle_app_is_saved_and_a_request_finds_it_where_it_was() {
        let mut host = Host::real();
        host.write_app("blog", "power: {idle: {after: 5s}}\nwake: {hold: 60s}", "first");
        host.write("apps/blog/sandbox.yaml", COUNTER);
        host.commit("an app that counts");
        host.start();
        host.wait_converged();
        let before = host.wait_for("a count", |host| count(host).filter(|count| *count > 20));
        wait_phase(&host, "paused");
        assert_eq!(host.qemu_pids(), Vec::<u32>::new(), "nothing of it runs");
        let after = count(&host).expect("the request that wakes it is answered");
        assert!(after >= before, "{after} after {before}: it began anew");
        host.wait_for("its going on", |host| count(host).filter(|count| *count > after + 5));
        assert_eq!(host.app("blog")["restarts"], 0);
        assert_eq!(host.stop_daemon(), Some(0));
    }
}
