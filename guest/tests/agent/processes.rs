//! Builds and processes: started, restarted, given up, and ended with all their descendants.

use std::time::Duration;

use setpoint_guest::proto::apply_request::Restart;
use setpoint_guest::proto::build_status::State as BuildState;
use setpoint_guest::proto::process_status::State;
use setpoint_guest::proto::web_status::Health;
use setpoint_guest::proto::{ApplyRequest, Build, ProcessStatus, StatusReply};
use tokio::net::TcpListener;
use tokio::time::sleep;

use crate::rig::{PATIENCE, Rig, file, is_alive, line_of, set, web, worker};

/// A server for one port in a shell, answering 200 for ever.
fn http_server(port: u16) -> String {
    format!("exec busybox httpd -f -p 127.0.0.1:{port} -h .")
}

async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

fn process(status: &StatusReply, name: &str) -> ProcessStatus {
    let worker = status.workers.iter().find(|worker| worker.name == name).unwrap();
    worker.process.clone().unwrap()
}

fn state(status: &StatusReply, name: &str) -> State {
    process(status, name).state()
}

fn build_state(status: &StatusReply) -> BuildState {
    status.build.as_ref().map(|build| build.state()).unwrap_or_default()
}

fn with_build(command: &str, timeout_seconds: u32, set: ApplyRequest) -> ApplyRequest {
    ApplyRequest { build: Some(Build { command: command.to_owned(), timeout_seconds }), run_build: true, ..set }
}

#[tokio::test]
async fn a_web_process_is_started_with_its_environment_and_becomes_healthy() {
    let rig = Rig::new().await;
    rig.sync("t1", &[], &[file("index.html", "hi")]).await.unwrap();
    let port = free_port().await;
    let command = format!("echo \"$PORT $COLOUR $HOME\" > env; {}", http_server(port));
    let mut request = ApplyRequest { web: Some(web(&command, port)), ..set("s1") };
    request.env.insert("COLOUR".to_owned(), "blue".to_owned());
    rig.client.apply(request).await.unwrap();
    let status = rig.until(|status| status.web.as_ref().unwrap().health() == Health::Healthy).await;
    assert_eq!(status.processes, "s1");
    assert_eq!(rig.read("env").unwrap().trim(), format!("{port} blue {}", rig.workspace().display()));
    rig.agent.stop().await;
}

#[tokio::test]
async fn a_process_that_ends_is_restarted_and_the_reason_said() {
    let rig = Rig::new().await;
    let command = "if [ -e again ]; then exec sleep 1000; fi; touch again; sleep 1.1; echo oh no; exit 3";
    rig.client.apply(ApplyRequest { workers: vec![worker("w", command)], ..set("s1") }).await.unwrap();
    let status = rig.until(|status| state(status, "w") == State::Backoff).await;
    assert_eq!(process(&status, "w").reason, "exit code 3: oh no");
    let status = rig.until(|status| state(status, "w") == State::Running).await;
    assert_eq!((process(&status, "w").restarts, process(&status, "w").reason.as_str()), (1, ""));
    rig.agent.stop().await;
}

#[tokio::test]
async fn a_process_that_cannot_run_is_given_up_and_started_again_by_a_new_set() {
    let rig = Rig::new().await;
    rig.client.apply(ApplyRequest { workers: vec![worker("w", "no-such-program")], ..set("s1") }).await.unwrap();
    let status = rig.until(|status| state(status, "w") == State::GaveUp).await;
    let reason = process(&status, "w").reason;
    assert!(reason.starts_with("exit code 127, 5 times within 1 s: ") && reason.contains("not found"), "{reason}");
    rig.client.apply(ApplyRequest { workers: vec![worker("w", "exec sleep 1000")], ..set("s2") }).await.unwrap();
    let status = rig.until(|status| state(status, "w") == State::Running).await;
    assert_eq!(process(&status, "w").restarts, 0);
    rig.agent.stop().await;
}

#[tokio::test]
async fn stopping_ends_descendants_too_even_those_that_ignore_the_request() {
    let rig = Rig::new().await;
    let command = "(trap '' TERM; while :; do sleep 1; done) & echo $! > child; exec sleep 1000";
    rig.client.apply(ApplyRequest { workers: vec![worker("w", command)], ..set("s1") }).await.unwrap();
    let child = line_of(&rig.workspace().join("child")).await;
    assert!(is_alive(&child));
    rig.client.apply(set("s2")).await.unwrap();
    rig.agent.stop().await;
    assert!(!is_alive(&child));
    assert!(rig.client.status().await.unwrap().workers.is_empty());
}

#[tokio::test]
async fn a_set_restarts_what_changed_and_what_it_is_told_to() {
    let rig = Rig::new().await;
    let count = |name: &str| format!("echo x >> {name}; exec sleep 1000");
    let mut stays = worker("stays", &count("stays"));
    stays.restart_after_task = false;
    let workers = vec![stays, worker("follows", &count("follows"))];
    let request = ApplyRequest { workers, ..set("s1") };
    let starts = |name: &str| rig.read(name).unwrap_or_default().lines().count();
    let settled = async |stays: usize, follows: usize| {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while (starts("stays"), starts("follows")) != (stays, follows) {
            assert!(tokio::time::Instant::now() < deadline, "{} {}", starts("stays"), starts("follows"));
            sleep(Duration::from_millis(10)).await;
        }
    };
    rig.client.apply(request.clone()).await.unwrap();
    settled(1, 1).await;
    rig.client.apply(request.clone()).await.unwrap();
    rig.client.apply(ApplyRequest { restart: Restart::AfterTask.into(), ..request.clone() }).await.unwrap();
    settled(1, 2).await;
    rig.client.apply(ApplyRequest { restart: Restart::All.into(), ..request.clone() }).await.unwrap();
    settled(2, 3).await;
    let mut changed = request;
    changed.workers[0].command = count("stays").replace("1000", "2000");
    rig.client.apply(changed).await.unwrap();
    settled(3, 3).await;
    rig.agent.stop().await;
}

#[tokio::test]
async fn processes_start_after_the_build_passed() {
    let rig = Rig::new().await;
    rig.sync("t1", &[], &[file("src", "x")]).await.unwrap();
    let request = ApplyRequest { workers: vec![worker("w", "exec sleep $(cat built)")], ..set("s1") };
    rig.client.apply(with_build("echo 1000 > built", 60, request)).await.unwrap();
    let status = rig.until(|status| state(status, "w") == State::Running).await;
    assert_eq!(build_state(&status), BuildState::Passed);
    assert_eq!(status.build.unwrap().tree, "t1");
    rig.agent.stop().await;
}

#[tokio::test]
async fn a_failed_build_leaves_running_what_runs_and_starts_nothing() {
    let rig = Rig::new().await;
    let old = worker("old", "exec sleep 1000");
    rig.client.apply(ApplyRequest { workers: vec![old.clone()], ..set("s1") }).await.unwrap();
    rig.until(|status| state(status, "old") == State::Running).await;
    let request = ApplyRequest { workers: vec![old, worker("new", "exec sleep 1000")], ..set("s2") };
    rig.client.apply(with_build("echo broken; exit 2", 60, request)).await.unwrap();
    let status = rig.until(|status| build_state(status) == BuildState::Failed).await;
    assert_eq!(status.build.as_ref().unwrap().reason, "exit code 2: broken");
    assert_eq!((state(&status, "old"), state(&status, "new")), (State::Running, State::Stopped));
    assert_eq!(status.processes, "s2");
    rig.agent.stop().await;
}

#[tokio::test]
async fn a_build_that_takes_too_long_is_ended_with_its_descendants() {
    let rig = Rig::new().await;
    rig.client.apply(with_build("sleep 1000 & echo $! > child; wait", 1, set("s1"))).await.unwrap();
    let child = line_of(&rig.workspace().join("child")).await;
    let status = rig.until(|status| build_state(status) == BuildState::Failed).await;
    assert_eq!(status.build.unwrap().reason, "took longer than 1 s");
    assert!(!is_alive(&child));
}

#[tokio::test]
async fn an_explicitly_empty_build_is_skipped_and_never_passed() {
    let rig = Rig::new().await;
    let request = ApplyRequest { workers: vec![worker("w", "exec sleep 1000")], ..set("s1") };
    rig.client.apply(with_build("", 60, request)).await.unwrap();
    let status = rig.until(|status| state(status, "w") == State::Running).await;
    assert_eq!(build_state(&status), BuildState::Skipped);
    rig.client.apply(set("s2")).await.unwrap();
    assert_eq!(build_state(&rig.client.status().await.unwrap()), BuildState::None);
    rig.agent.stop().await;
}

#[tokio::test]
async fn a_newer_set_takes_a_builds_place_and_inherits_it() {
    let rig = Rig::new().await;
    rig.client.apply(with_build("echo $$ > first; exec sleep 1000", 600, set("s1"))).await.unwrap();
    let first = line_of(&rig.workspace().join("first")).await;
    let newer = with_build("echo done > second", 60, set("s2"));
    rig.client.apply(ApplyRequest { run_build: false, ..newer }).await.unwrap();
    let status = rig.until(|status| build_state(status) == BuildState::Passed).await;
    assert_eq!((status.processes.as_str(), rig.read("second").unwrap().trim()), ("s2", "done"));
    assert!(!is_alive(&first));
}

#[tokio::test]
async fn a_web_process_that_ends_is_not_healthy_any_more() {
    let rig = Rig::new().await;
    rig.sync("t1", &[], &[file("index.html", "hi")]).await.unwrap();
    let port = free_port().await;
    let command = format!("echo $$ > pid; {}", http_server(port));
    rig.client.apply(ApplyRequest { web: Some(web(&command, port)), ..set("s1") }).await.unwrap();
    rig.until(|status| status.web.as_ref().unwrap().health() == Health::Healthy).await;
    let killed = rig.client.exec(["sh", "-c", "kill -9 $(cat pid)"].map(str::to_owned).to_vec()).await.unwrap();
    assert_eq!(killed.code, 0);
    let status = rig.until(|status| status.web.as_ref().unwrap().health() != Health::Healthy).await;
    assert_ne!(status.web.unwrap().process.unwrap().state(), State::Stopped);
    rig.until(|status| status.web.as_ref().unwrap().health() == Health::Healthy).await;
    rig.agent.stop().await;
}

#[tokio::test]
async fn nonsense_in_a_set_is_refused() {
    let rig = Rig::new().await;
    let mut no_port = web("true", 1);
    no_port.port = 70_000;
    assert!(rig.client.apply(ApplyRequest { web: Some(no_port), ..set("s1") }).await.is_err());
    assert!(rig.client.apply(ApplyRequest { workers: vec![worker("../x", "true")], ..set("s1") }).await.is_err());
    assert_eq!(rig.client.status().await.unwrap().processes, "");
}
