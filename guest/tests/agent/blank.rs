//! A machine that is nobody's, and becomes somebody's over the stream that its agent then goes on with.

use std::fs::{self, File};

use setpoint_guest::agent::blank::{Blank, BlankError};
use setpoint_guest::client::{BlankClient, Client, ClientError};
use setpoint_guest::handshake::ConnectionNonce;
use setpoint_guest::proto::RenewRequest;
use tempfile::TempDir;
use tokio::io::{AsyncWriteExt as _, DuplexStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::rig::{PATIENCE, Rig, directory_identity};

/// The template's boot.
const TEMPLATE: &str = "0123456789abcdef0123456789abcdef";

/// A blank machine in a directory, and a host's end of the stream to it. What it served comes with what it became.
struct Machine {
    directory: TempDir,
    host: DuplexStream,
    serving: JoinHandle<(Result<String, BlankError>, DuplexStream)>,
}

impl Machine {
    fn begin() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let length = directory.path().join("size");
        fs::write(&length, "2048\n").unwrap();
        let blank = Blank::new(TEMPLATE.to_owned(), File::open(length).unwrap(), directory_identity(&directory));
        let (host, mut guest) = tokio::io::duplex(64 * 1024);
        let serving = tokio::spawn(async move { (blank.serve(&mut guest).await, guest) });
        Self { directory, host, serving }
    }

    fn identity(directory: &TempDir) -> String {
        fs::read_to_string(directory.path().join("identity")).unwrap_or_default()
    }
}

fn renewal(old_nonce: &str) -> RenewRequest {
    RenewRequest {
        old_nonce: old_nonce.to_owned(),
        nonce: "5eed".to_owned(),
        unix_nanos: 7,
        entropy: vec![9; 64].into(),
        hostname: "blog".to_owned(),
        machine_id: "a".repeat(32),
        mac: vec![2, 0, 0, 0, 0, 1].into(),
        disk_bytes: 1 << 20,
        copy: false,
    }
}

fn nonce() -> ConnectionNonce {
    ConnectionNonce::parse(TEMPLATE).unwrap()
}

fn refusal<T: std::fmt::Debug>(result: Result<T, ClientError>) -> String {
    match result.unwrap_err() {
        ClientError::Refused { message, .. } => message,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_restored_machine_becomes_somebodys_and_its_agent_goes_on_with_the_stream() {
    let Machine { directory, host, serving } = Machine::begin();
    let becoming = BlankClient::restored(host, nonce()).become_somebodys(renewal(TEMPLATE));
    let stream = timeout(PATIENCE, becoming).await.unwrap().unwrap();
    let (became, guest) = serving.await.unwrap();
    assert_eq!(became.unwrap(), "5eed");
    let steps = format!("clock 7\nentropy 9\nnames blog {} [2, 0, 0, 0, 0, 1]\n", "a".repeat(32));
    assert_eq!(Machine::identity(&directory), steps, "in this order");
    let rig = Rig::new().await;
    let agent = rig.agent.clone();
    tokio::spawn(async move { agent.serve_begun(guest).await });
    let client = timeout(PATIENCE, Client::begun(stream)).await.unwrap().unwrap();
    assert_eq!(client.nonce(), "5eed");
}

#[tokio::test]
async fn a_machine_that_boots_says_who_it_is_and_can_be_asked_again() {
    let Machine { directory: _directory, host, serving } = Machine::begin();
    let mut client = timeout(PATIENCE, BlankClient::connect(host)).await.unwrap().unwrap();
    assert_eq!(client.hello().await.unwrap(), TEMPLATE);
    assert_eq!(client.hello().await.unwrap(), TEMPLATE);
    drop(client.become_somebodys(renewal(TEMPLATE)).await.unwrap());
    assert_eq!(serving.await.unwrap().0.unwrap(), "5eed");
}

#[tokio::test]
async fn a_renewal_that_is_anothers_or_wrong_changes_nothing() {
    let short = RenewRequest { entropy: vec![9; 8].into(), ..renewal(TEMPLATE) };
    for (request, why) in [(renewal("beef"), "another machine"), (short, "64 bytes")] {
        let Machine { directory, host, serving } = Machine::begin();
        let refused = refusal(BlankClient::restored(host, nonce()).become_somebodys(request).await);
        assert!(refused.contains(why), "{refused}");
        assert_eq!(Machine::identity(&directory), "");
        assert!(serving.await.unwrap().0.is_err(), "its host has left");
    }
}

#[tokio::test]
async fn without_new_random_numbers_nobody_gets_the_machine() {
    let Machine { directory, host, serving } = Machine::begin();
    fs::write(directory.path().join("no-entropy"), "").unwrap();
    let refused = refusal(BlankClient::restored(host, nonce()).become_somebodys(renewal(TEMPLATE)).await);
    assert!(refused.contains("reseed the random numbers"), "{refused}");
    assert_eq!(Machine::identity(&directory), "clock 7\n");
    assert!(serving.await.unwrap().0.is_err());
}

#[tokio::test]
async fn a_request_that_is_too_long_or_no_message_ends_the_connection() {
    for frame in [&[0xff; 8][..], &[0, 0, 0, 2, 0xff, 0xff]] {
        let Machine { directory, mut host, serving } = Machine::begin();
        host.write_all(&[&nonce().start(), frame].concat()).await.unwrap();
        let (ended, _guest) = timeout(PATIENCE, serving).await.unwrap().unwrap();
        assert!(matches!(ended, Err(BlankError::Frame(_))), "{ended:?}");
        assert_eq!(Machine::identity(&directory), "");
    }
}
