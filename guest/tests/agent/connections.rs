//! Hosts come and go; the agent stays.

use std::time::Duration;

use setpoint_guest::client::{Client, ClientError};
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

use crate::rig::{PATIENCE, Rig, plug_in};

#[tokio::test]
async fn a_host_learns_who_answers() {
    let rig = Rig::new().await;
    assert_eq!(rig.client.nonce(), "5eed");
    assert!(rig.client.status().await.unwrap().disk_bytes > 0);
}

#[tokio::test]
async fn a_new_host_is_served_over_what_a_dead_one_left() {
    let rig = Rig::new().await;
    let mut stream = plug_in(&rig.agent);
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0half a fra").await.unwrap();
    let client = timeout(PATIENCE, Client::connect(stream)).await.unwrap().unwrap();
    assert_eq!(client.nonce(), "5eed");
}

#[tokio::test]
async fn a_broken_connection_fails_calls_instead_of_hanging() {
    let rig = Rig::new().await;
    let (host, guest) = tokio::io::duplex(64 * 1024);
    let agent = rig.agent.clone();
    let serving = tokio::spawn(async move { agent.serve(guest).await });
    let client = Client::connect(host).await.unwrap();
    let waiting = tokio::spawn(async move { client.status_change(1, Duration::from_secs(600)).await });
    tokio::task::yield_now().await;
    serving.abort();
    let error = timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, ClientError::Refused { .. }), "{error}");
}

#[tokio::test]
async fn a_status_waits_for_a_change_no_longer_than_asked() {
    let rig = Rig::new().await;
    let known = rig.client.status().await.unwrap().sequence;
    let status = rig.client.status_change(known, Duration::from_millis(50)).await.unwrap();
    assert_eq!(status.sequence, known);
}

#[tokio::test]
async fn a_shutdown_request_reaches_the_agent() {
    let rig = Rig::new().await;
    rig.client.shutdown().await.unwrap();
    timeout(PATIENCE, rig.agent.shutdown_requested()).await.unwrap();
}
