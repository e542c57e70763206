//! Logs, commands and ports.

use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use setpoint_guest::client::{Follow, Result};
use setpoint_guest::limits;
use setpoint_guest::proto::ApplyRequest;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, timeout};

use crate::rig::{PATIENCE, Rig, is_alive, line_of, set, worker};

fn shell(command: &str) -> Vec<String> {
    ["sh", "-c", command].map(str::to_owned).to_vec()
}

/// Collects a log stream until it holds `wanted`.
async fn read_until(stream: &mut (impl Stream<Item = Result<impl AsRef<[u8]>>> + Unpin), wanted: &str) -> String {
    let reading = async {
        let mut text = String::new();
        while !text.contains(wanted) {
            let chunk = stream.next().await.expect("the log went on").unwrap();
            text.push_str(&String::from_utf8_lossy(chunk.as_ref()));
        }
        text
    };
    timeout(PATIENCE, reading).await.expect("the log never said it")
}

#[tokio::test]
async fn a_log_is_tailed_and_followed() {
    let rig = Rig::new().await;
    let command = "echo one; echo two >&2; until [ -e go ]; do sleep 0.02; done; echo three; exec sleep 1000";
    rig.client.apply(ApplyRequest { workers: vec![worker("w", command)], ..set("s1") }).await.unwrap();
    let mut following = rig.client.logs("w", 10, Follow::Yes).await.unwrap();
    assert_eq!(read_until(&mut following, "two\n").await, "one\ntwo\n");
    assert_eq!(rig.client.exec(shell("touch go")).await.unwrap().code, 0);
    assert_eq!(read_until(&mut following, "three\n").await, "three\n");
    let mut tail = rig.client.logs("w", 1, Follow::No).await.unwrap();
    assert_eq!(read_until(&mut tail, "three\n").await, "three\n");
    assert!(tail.next().await.is_none());
    rig.agent.stop().await;
}

#[tokio::test]
async fn the_log_of_nobody_is_an_error() {
    let rig = Rig::new().await;
    assert!(rig.client.logs("nobody", 1, Follow::No).await.is_err());
    assert!(rig.client.logs("../../etc/passwd", 1, Follow::No).await.is_err());
}

#[tokio::test]
async fn a_command_runs_in_the_workspace_and_reports_both_outputs_and_its_end() {
    let rig = Rig::new().await;
    let output = rig.client.exec(shell("pwd; echo no >&2; exit 7")).await.unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), rig.workspace().to_str().unwrap());
    assert_eq!((output.stderr.as_slice(), output.code), (b"no\n".as_slice(), 7));
    assert_eq!(rig.client.exec(shell("kill -9 $$")).await.unwrap().code, 137);
    assert!(rig.client.exec(vec!["no-such-program".to_owned()]).await.is_err());
    assert!(rig.client.exec(Vec::new()).await.is_err());
}

#[tokio::test]
async fn a_commands_output_is_bounded_and_does_not_block_it() {
    let rig = Rig::new().await;
    let output = rig.client.exec(shell("head -c 3000000 /dev/zero; echo done >&2")).await.unwrap();
    assert_eq!((output.stdout.len(), output.stderr.as_slice()), (limits::EXEC_OUTPUT, b"done\n".as_slice()));
}

#[tokio::test]
async fn a_command_does_not_outlive_its_caller() {
    let rig = Rig::new().await;
    let command = rig.client.exec(shell("echo $$ > pid; exec sleep 1000"));
    let pid = rig.workspace().join("pid");
    let pid = tokio::select! {
        result = command => panic!("the command ended: {result:?}"),
        pid = line_of(&pid) => pid,
    };
    let deadline = Instant::now() + PATIENCE;
    while is_alive(&pid) {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_port_carries_bytes_both_ways_and_each_half_ends_alone() {
    let rig = Rig::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let echo = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        stream.write_all(&all).await.unwrap();
    });
    let mut stream = rig.client.open_port(port).await.unwrap();
    let sent: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    stream.write_all(&sent).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut received = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut received)).await.unwrap().unwrap();
    assert!(received == sent);
    echo.await.unwrap();
}

#[tokio::test]
async fn what_is_written_to_a_port_is_under_way_without_a_flush() {
    let rig = Rig::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut stream = rig.client.open_port(listener.local_addr().unwrap().port()).await.unwrap();
    stream.write_all(b"ping").await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    let mut received = [0; 4];
    timeout(PATIENCE, server.read_exact(&mut received)).await.unwrap().unwrap();
    assert_eq!(&received, b"ping");
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_refused() {
    let rig = Rig::new().await;
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let error = rig.client.open_port(port).await.err().unwrap();
    assert!(error.to_string().contains("refused"), "{error}");
}
