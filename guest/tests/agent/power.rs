//! Standing still, becoming another machine, going on.
//!
//! Where this user cannot make a control group (version 2) there is nothing to freeze, and these tests say so and pass; the ones
//! with real microVMs show the same inside a guest.

use futures_util::StreamExt as _;
use setpoint_guest::client::{Client, ClientError, Follow};
use setpoint_guest::proto::RenewRequest;
use setpoint_guest::proto::apply_request::Restart;
use tokio::time::timeout;
use tonic::Code;

use crate::rig::{PATIENCE, Rig, file, line_of, plug_in, set, worker};

async fn rig() -> Option<Rig> {
    let rig = Rig::in_cgroup().await;
    if rig.is_none() {
        eprintln!("skipped: this user cannot make a control group (version 2)");
    }
    rig
}

fn renewal() -> RenewRequest {
    RenewRequest {
        old_nonce: "5eed".to_owned(),
        nonce: "beef".to_owned(),
        unix_nanos: 7,
        entropy: vec![9; 64].into(),
        hostname: "blog".to_owned(),
        machine_id: "a".repeat(32),
        mac: vec![2, 0, 0, 0, 0, 1].into(),
        disk_bytes: 0,
        copy: false,
    }
}

fn code<T: std::fmt::Debug>(result: Result<T, ClientError>) -> Code {
    match result.unwrap_err() {
        ClientError::Refused { code, .. } => code,
        other => panic!("{other}"),
    }
}

/// How often a counting process has counted.
fn count(rig: &Rig) -> usize {
    rig.read("count").unwrap_or_default().len()
}

#[tokio::test]
async fn frozen_processes_stand_still_and_thawed_ones_go_on() {
    let Some(rig) = rig().await else { return };
    let counting = "while :; do printf . >> count; echo line > first; sleep 0.01; done";
    let mut request = set("one");
    request.workers = vec![worker("counter", counting)];
    request.restart = Restart::All.into();
    rig.client.apply(request).await.unwrap();
    line_of(&rig.workspace().join("first")).await;

    rig.client.freeze().await.unwrap();
    rig.client.freeze().await.unwrap();
    let before = count(&rig);
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert_eq!(count(&rig), before);
    rig.client.thaw().await.unwrap();
    rig.client.thaw().await.unwrap();
    let going_on = async {
        while count(&rig) == before {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, going_on).await.unwrap();
    rig.agent.stop().await;
}

#[tokio::test]
async fn a_frozen_machine_refuses_what_would_wait_for_it() {
    let Some(rig) = rig().await else { return };
    rig.client.freeze().await.unwrap();
    assert_eq!(code(rig.client.exec(vec!["true".into()]).await), Code::FailedPrecondition);
    assert_eq!(code(rig.client.apply(set("one")).await), Code::FailedPrecondition);
    assert_eq!(code(rig.client.grow_disk().await), Code::FailedPrecondition);
    assert!(rig.sync("t", &[], &[file("a", "b")]).await.is_err());
    assert!(rig.client.status().await.is_ok());
    rig.client.thaw().await.unwrap();
    rig.sync("t", &[], &[file("a", "b")]).await.unwrap();
    assert_eq!(rig.client.exec(vec!["true".into()]).await.unwrap().code, 0);
}

#[tokio::test]
async fn a_renewed_machine_has_its_clock_before_its_entropy_before_its_names_and_then_another_nonce() {
    let Some(rig) = rig().await else { return };
    rig.client.freeze().await.unwrap();
    rig.client.renew(renewal()).await.unwrap();
    let names = format!("names blog {} [2, 0, 0, 0, 0, 1]", "a".repeat(32));
    assert_eq!(rig.renewals(), ["clock 7", "entropy 9", &names]);
    // A renewal whose answer was lost comes again.
    rig.client.renew(renewal()).await.unwrap();
    let client = timeout(PATIENCE, Client::connect(plug_in(&rig.agent))).await.unwrap().unwrap();
    assert_eq!(client.nonce(), "beef");
    client.thaw().await.unwrap();
}

#[tokio::test]
async fn a_copy_of_a_machine_forgets_its_logs_before_its_processes_go_on_and_the_machine_itself_does_not() {
    let Some(rig) = rig().await else { return };
    let mut request = set("one");
    request.workers = vec![worker("w", "echo printed; while :; do sleep 0.01; done")];
    request.restart = Restart::All.into();
    rig.client.apply(request).await.unwrap();
    let printed = async || {
        let mut lines = rig.client.logs("w", 9, Follow::No).await.unwrap();
        lines.next().await.map(|line| line.unwrap().to_vec())
    };
    timeout(PATIENCE, async { while printed().await.is_none() {} }).await.unwrap();
    for (copy, left) in [(false, Some(b"printed\n".to_vec())), (true, None)] {
        rig.client.freeze().await.unwrap();
        rig.client.renew(RenewRequest { copy, ..renewal() }).await.unwrap();
        rig.client.thaw().await.unwrap();
        assert_eq!(printed().await, left, "copy {copy}");
    }
}

#[tokio::test]
async fn without_new_entropy_a_machine_is_not_renewed_and_keeps_its_nonce() {
    let Some(rig) = rig().await else { return };
    rig.client.freeze().await.unwrap();
    rig.break_entropy();
    assert_eq!(code(rig.client.renew(renewal()).await), Code::Internal);
    assert_eq!(rig.renewals(), ["clock 7"]);
    let client = timeout(PATIENCE, Client::connect(plug_in(&rig.agent))).await.unwrap().unwrap();
    assert_eq!(client.nonce(), "5eed");
    client.thaw().await.unwrap();
}

#[tokio::test]
async fn only_who_knows_the_old_nonce_renews_and_only_while_it_stands_still() {
    let Some(rig) = rig().await else { return };
    assert_eq!(code(rig.client.renew(renewal()).await), Code::FailedPrecondition);
    rig.client.freeze().await.unwrap();
    assert_eq!(
        code(rig.client.renew(RenewRequest { old_nonce: "0".into(), ..renewal() }).await),
        Code::PermissionDenied
    );
    for wrong in [
        RenewRequest { entropy: vec![1; 16].into(), ..renewal() },
        RenewRequest { hostname: "a/b".into(), ..renewal() },
        RenewRequest { machine_id: "short".into(), ..renewal() },
        RenewRequest { mac: vec![1].into(), ..renewal() },
        RenewRequest { nonce: "../x".into(), ..renewal() },
    ] {
        assert_eq!(code(rig.client.renew(wrong).await), Code::InvalidArgument);
    }
    assert!(rig.renewals().is_empty());
    rig.client.thaw().await.unwrap();
}

#[tokio::test]
async fn a_machine_without_control_groups_says_that_it_cannot_stand_still() {
    let rig = Rig::new().await;
    assert_eq!(code(rig.client.freeze().await), Code::Internal);
    assert_eq!(rig.client.exec(vec!["true".into()]).await.unwrap().code, 0);
}
