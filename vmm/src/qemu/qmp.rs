//! A client for QEMU's monitor: one connection, one command at a time, everything bounded in size and time.
//!
//! The monitor serves one connection at a time; another waits in its backlog, and a third is told to come again. So a client lives for a
//! command or two.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use super::vm_dir::{QMP_SOCKET, VmDir};
use crate::driver::{Result, VmmError};

/// How long until somebody comes again to a monitor whose backlog is full.
const COME_AGAIN: Duration = Duration::from_millis(5);

/// Answers to the commands used here are a few hundred bytes long.
const MAX_MESSAGE: u64 = 256 * 1024;

/// How long QEMU may take, its own start included. It answers in milliseconds unless the host is starved.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A connection that has been greeted.
pub(super) struct Qmp {
    stream: BufReader<UnixStream>,
}

/// One line from QEMU: an answer, or an event, which has neither.
#[derive(Deserialize)]
struct Message {
    #[serde(rename = "return")]
    result: Option<Value>,
    error: Option<Refusal>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

impl Qmp {
    /// Connects to the monitor of a running microVM.
    pub async fn connect(vm: &VmDir) -> Result<Self> {
        within("greet", async {
            let stream = line_up(vm).await.map_err(|error| problem(format!("monitor cannot be reached: {error}")))?;
            let mut qmp = Self { stream: BufReader::new(stream) };
            qmp.read_line().await?;
            qmp.execute("qmp_capabilities", json!({})).await?;
            Ok(qmp)
        })
        .await
    }

    /// Carries out one command.
    pub async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.ask(command, arguments, "").await.map(|(result, _)| result)
    }

    /// Carries out one command; the last event called `event` that came before its answer.
    async fn execute_until(&mut self, command: &str, arguments: Value, event: &str) -> Result<Option<Value>> {
        self.ask(command, arguments, event).await.map(|(_, event)| event)
    }

    /// Sends commands together, which are carried out in this order whatever becomes of each; [`Self::answer_to`] has to be asked
    /// for each in turn. QEMU takes eight at most.
    pub async fn send(&mut self, commands: &[(&str, Value)]) -> Result<()> {
        let lines: String = commands.iter().map(|(command, arguments)| line(command, arguments)).collect();
        within("send", async { self.write(lines.as_bytes()).await }).await
    }

    /// The answer to the next of the commands that were sent together.
    pub async fn answer_to(&mut self, command: &str) -> Result<Value> {
        within(command, self.answer(command, "")).await.map(|(result, _)| result)
    }

    async fn ask(&mut self, command: &str, arguments: Value, event: &str) -> Result<(Value, Option<Value>)> {
        within(command, async {
            self.write(line(command, &arguments).as_bytes()).await?;
            self.answer(command, event).await
        })
        .await
    }

    async fn write(&mut self, lines: &[u8]) -> Result<()> {
        self.stream.write_all(lines).await.map_err(|error| problem(format!("monitor went away: {error}")))
    }

    /// The answer to a command that was sent, and the last event called `event` before it.
    async fn answer(&mut self, command: &str, event: &str) -> Result<(Value, Option<Value>)> {
        let mut seen = None;
        loop {
            let message = self.read_message().await?;
            if let Some(refusal) = message.error {
                return Err(problem(format!("refused {command}: {}", refusal.desc)));
            }
            if let Some(result) = message.result {
                return Ok((result, seen));
            }
            if message.event.as_deref() == Some(event) {
                seen = Some(message.data);
            }
        }
    }

    async fn read_message(&mut self) -> Result<Message> {
        serde_json::from_slice(&self.read_line().await?)
            .map_err(|error| problem(format!("monitor said what is no message: {error}")))
    }

    /// Loads the state of the devices out of a file into a QEMU that waits for it, and waits until that is done.
    pub async fn migrate_in(&mut self, state: BorrowedFd<'_>, name: &str) -> Result<()> {
        // Without it nothing tells of the end but asking again and again.
        let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
        // What a machine that moved to another host tells its network, and makes its guest tell it, is no news to QEMU's own network.
        let quiet = json!({ "announce-rounds": 0 });
        let settings = [("migrate-set-capabilities", events), ("migrate-set-parameters", quiet)];
        self.send(&settings).await?;
        for (setting, _) in &settings {
            self.answer_to(setting).await?;
        }
        self.send_descriptor(state, name).await?;
        let uri = json!({ "uri": format!("fd:{name}") });
        let already = self.execute_until("migrate-incoming", uri, "MIGRATION").await?;
        within("migrate-incoming", async {
            let mut last = already;
            loop {
                match last.as_ref().and_then(|data| data["status"].as_str()) {
                    Some("completed") => return Ok(()),
                    Some("failed" | "cancelled") => return Err(problem("did not take the devices' state".to_owned())),
                    Some(_) | None => {}
                }
                let message = self.read_message().await?;
                last = (message.event.as_deref() == Some("MIGRATION")).then_some(message.data);
            }
        })
        .await
    }

    /// Hands a descriptor over, for later commands to name.
    async fn send_descriptor(&mut self, descriptor: BorrowedFd<'_>, name: &str) -> Result<()> {
        let line = line("getfd", &json!({ "fdname": name }));
        let stream = self.stream.get_ref();
        let send = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let descriptors = [descriptor];
            if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
                return Err(io::Error::other("no room for a descriptor"));
            }
            let sent = sendmsg(stream, &[IoSlice::new(line.as_bytes())], &mut control, SendFlags::empty())?;
            // A line this short goes as a whole or not at all.
            if sent == line.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
        };
        within("getfd", async {
            let gone = |error| problem(format!("monitor went away: {error}"));
            stream.async_io(Interest::WRITABLE, send).await.map_err(gone)
        })
        .await?;
        within("getfd", self.answer("getfd", "")).await.map(drop)
    }

    async fn read_line(&mut self) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        let read = (&mut self.stream).take(MAX_MESSAGE).read_until(b'\n', &mut line).await;
        read.map_err(|error| problem(format!("monitor went away: {error}")))?;
        if line.ends_with(b"\n") { Ok(line) } else { Err(problem("monitor closed the connection".to_owned())) }
    }
}

/// One command as the monitor reads it.
fn line(command: &str, arguments: &Value) -> String {
    format!("{}\n", json!({ "execute": command, "arguments": arguments }))
}

/// Connects once there is room in the monitor's backlog, which the kernel tells nobody but those who block for it.
async fn line_up(vm: &VmDir) -> io::Result<UnixStream> {
    loop {
        match vm.connect(QMP_SOCKET).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(COME_AGAIN).await,
            connected => return connected,
        }
    }
}

async fn within<T>(command: &str, future: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(TIMEOUT, future)
        .await
        .unwrap_or_else(|_| Err(problem(format!("monitor did not answer {command} within {} s", TIMEOUT.as_secs()))))
}

fn problem(problem: String) -> VmmError {
    VmmError::Vmm { vmm: "qemu", problem }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};
    use setpoint_schema::id::SandboxId;
    use tokio::net::UnixListener;

    use super::*;

    /// Answers everything that a client says when it comes.
    async fn greet(stream: UnixStream) -> UnixStream {
        let mut client = BufReader::new(stream);
        client.write_all(b"{\"QMP\": {}}\n").await.unwrap();
        client.read_line(&mut String::new()).await.unwrap();
        client.write_all(b"{\"return\": {}}\n").await.unwrap();
        client.into_inner()
    }

    #[tokio::test]
    async fn a_client_waits_for_room_in_the_backlog() {
        let directory = tempfile::tempdir().unwrap();
        let vm = VmDir::of(directory.path(), &SandboxId("blog-1".into()));
        vm.create().unwrap();
        let monitor = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        bind(&monitor, &SocketAddrUnix::new(vm.file(QMP_SOCKET)).unwrap()).unwrap();
        listen(&monitor, 0).unwrap();
        let first = vm.connect(QMP_SOCKET).await.unwrap();
        assert_eq!(vm.connect(QMP_SOCKET).await.unwrap_err().kind(), io::ErrorKind::WouldBlock);

        let second = tokio::spawn(async move { Qmp::connect(&vm).await.map(drop) });
        let monitor = std::os::unix::net::UnixListener::from(monitor);
        monitor.set_nonblocking(true).unwrap();
        let monitor = UnixListener::from_std(monitor).unwrap();
        drop(monitor.accept().await.unwrap());
        drop(first);
        let (client, _) = monitor.accept().await.unwrap();
        let _client = greet(client).await;
        second.await.unwrap().unwrap();
    }
}
