//! A client for QEMU's monitor: one connection, one command at a time, everything bounded in size and time.
//!
//! The monitor serves one connection at a time; others wait in its backlog. So a client lives for a command or two.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::vm_dir::{QMP_SOCKET, VmDir};
use crate::driver::{Result, VmmError};

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
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

impl Qmp {
    /// Connects to the monitor of a running microVM.
    pub async fn connect(vm: &VmDir) -> Result<Self> {
        within("greet", async {
            let stream =
                vm.connect(QMP_SOCKET).await.map_err(|error| problem(format!("monitor cannot be reached: {error}")))?;
            let mut qmp = Self { stream: BufReader::new(stream) };
            qmp.read_line().await?;
            qmp.execute("qmp_capabilities", json!({})).await?;
            Ok(qmp)
        })
        .await
    }

    /// Carries out one command.
    pub async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        within(command, async {
            let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
            line.push('\n');
            self.stream
                .write_all(line.as_bytes())
                .await
                .map_err(|error| problem(format!("monitor went away: {error}")))?;
            loop {
                let message: Message = serde_json::from_slice(&self.read_line().await?)
                    .map_err(|error| problem(format!("monitor said what is no message: {error}")))?;
                if let Some(refusal) = message.error {
                    return Err(problem(format!("refused {command}: {}", refusal.desc)));
                }
                if let Some(result) = message.result {
                    return Ok(result);
                }
            }
        })
        .await
    }

    async fn read_line(&mut self) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        let read = (&mut self.stream).take(MAX_MESSAGE).read_until(b'\n', &mut line).await;
        read.map_err(|error| problem(format!("monitor went away: {error}")))?;
        if line.ends_with(b"\n") { Ok(line) } else { Err(problem("monitor closed the connection".to_owned())) }
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
