//! The JSON form of a microVM and its disk.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::{BootNonce, DiskId, HostId, SandboxId, SnapshotId};
use crate::name::AppKey;
use crate::observed::{DiskRecord, ExitReason, VmState};
use crate::quantity::ByteSize;

/// One microVM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// Which one.
    pub id: SandboxId,
    /// Whose it is.
    pub app: AppKey,
    /// The machine that it is on.
    pub host: HostId,
    /// What its VMM says.
    pub vm: Vm,
    /// What it was last launched with: virtual processors.
    pub vcpus: u32,
    /// What it was last launched with: memory.
    pub memory: ByteSize,
    /// Its data disk; null while the inventory has none for it.
    pub disk: Option<Disk>,
    /// The snapshot that its disk began as a copy of; null if it began empty.
    pub from: Option<SnapshotId>,
    /// When its inventory row was made.
    pub created_at: Timestamp,
}

/// What a VMM says of a microVM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum Vm {
    /// Nothing of it exists.
    Absent,
    /// It has ended.
    Exited {
        /// Why, in words.
        reason: String,
    },
    /// It runs.
    Running {
        /// This boot's identity: it changes with every boot and with nothing else.
        nonce: BootNonce,
        /// Since when.
        since: Timestamp,
    },
    /// It rests, with its memory in files.
    Paused {
        /// The boot that was paused.
        nonce: BootNonce,
        /// Since when.
        since: Timestamp,
        /// What the kept memory takes up on the disk.
        memory_on_disk: ByteSize,
        /// Why it cannot go on from them, where that was tried.
        #[serde(skip_serializing_if = "Option::is_none")]
        fault: Option<String>,
    },
}

impl Vm {
    /// The state in one word, for tables.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Exited { .. } => "exited",
            Self::Running { .. } => "running",
            Self::Paused { .. } => "paused",
        }
    }
}

impl From<&VmState> for Vm {
    fn from(state: &VmState) -> Self {
        match state {
            VmState::Absent => Self::Absent,
            VmState::Exited { reason } => Self::Exited { reason: exit_in_words(reason) },
            VmState::Running { nonce, since } => Self::Running { nonce: nonce.clone(), since: *since },
            VmState::Paused { nonce, since, bytes, fault } => {
                Self::Paused { nonce: nonce.clone(), since: *since, memory_on_disk: *bytes, fault: fault.clone() }
            }
        }
    }
}

fn exit_in_words(reason: &ExitReason) -> String {
    match reason {
        ExitReason::Shutdown => "the guest shut down".to_owned(),
        ExitReason::Panic(line) => format!("kernel panic: {line}"),
        ExitReason::Reset => "the guest reset itself".to_owned(),
        ExitReason::Killed(signal) => format!("the VMM was ended by signal {signal}"),
        ExitReason::Failed(code) => format!("the VMM ended with exit code {code}"),
        ExitReason::Unknown => "nobody saw how it ended".to_owned(),
    }
}

/// A data disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Disk {
    /// Which one.
    pub id: DiskId,
    /// Its length; what it takes up on the host is less.
    pub size: ByteSize,
}

impl From<&DiskRecord> for Disk {
    fn from(record: &DiskRecord) -> Self {
        Self { id: record.id.clone(), size: record.size }
    }
}
