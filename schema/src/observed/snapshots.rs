//! What is remembered of snapshots.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::app::Retain;
use crate::id::{CommitId, Generation, SandboxId, SnapshotId, SpecDigest, TreeDigest};
use crate::name::{AppKey, DirName, SnapshotKey};
use crate::observed::Machine;
use crate::quantity::ByteSize;
use crate::snapshot::Content;

/// The inventory row of one snapshot: written before anything of it exists, removed after nothing of it is left.
///
/// Whoever wants a snapshot writes a row that is [`SnapshotState::Wanted`]; the planner has it taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// Which snapshot: names its files.
    pub id: SnapshotId,
    /// What it is called. Several generations share it, and whoever asks for one may give it a name that others have.
    pub key: SnapshotKey,
    /// The app of which a moment is kept.
    pub app: AppKey,
    /// Counts the snapshots of this name, from 1.
    pub generation: Generation,
    /// Who or what wants it.
    pub cause: SnapshotCause,
    /// What is kept.
    pub content: Content,
    /// Names of directories that whatever begins from the disk alone does without.
    #[serde(default)]
    pub exclude: BTreeSet<DirName>,
    /// How long it is kept once nothing declares it; for one that somebody asked for, from when it was taken.
    pub retain: Retain,
    /// What there was at that moment, from when it is about to be taken.
    #[serde(default)]
    pub moment: Option<Moment>,
    /// Where it stands in its life.
    pub state: SnapshotState,
}

/// What there was at the moment that a snapshot keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// Its machine. Memory can only go on in one of the same size and template.
    pub machine: Machine,
    /// The size of its disk.
    pub disk: ByteSize,
    /// The revision that was applied then; absent where none was in full.
    pub revision: Option<CommitId>,
    /// The workspace that was applied then.
    pub tree: Option<TreeDigest>,
}

/// What the state of a sandbox began as. It says so also once the snapshot is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// What it was called.
    pub key: SnapshotKey,
    /// Which of that name it was.
    pub generation: Generation,
    /// The app of which it kept a moment.
    pub app: AppKey,
    /// That moment.
    pub taken: Timestamp,
    /// When the sandbox began as it.
    pub at: Timestamp,
    /// The restore that it was; absent where the app was made so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<OriginRestore>,
}

/// A restore that was carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginRestore {
    /// Its token.
    pub token: String,
    /// The snapshot that keeps what it replaced; absent where there was nothing to keep.
    pub safety: Option<SnapshotId>,
}

/// Who or what wants a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SnapshotCause {
    /// A declaration of this content.
    Declared {
        /// The digest of its spec.
        digest: SpecDigest,
    },
    /// Somebody on this host, as `uid 1000`.
    Asked {
        /// Who.
        by: String,
    },
    /// An app that is to begin as another one is at this moment.
    Fork {
        /// The app that begins.
        to: AppKey,
    },
    /// What is there before a restore replaces it.
    Restore {
        /// The restore's token.
        token: String,
    },
}

/// Where a snapshot stands in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SnapshotState {
    /// It is to be taken.
    Wanted {
        /// Since when.
        since: Timestamp,
    },
    /// The last try to take it failed.
    Failed {
        /// Why.
        reason: String,
        /// When.
        at: Timestamp,
        /// How often it has failed.
        failures: u32,
    },
    /// It is there.
    Kept(Kept),
    /// It is there until a time: nothing wants it any more.
    Retained {
        /// What is there.
        kept: Kept,
        /// The end of its retention.
        until: Timestamp,
    },
    /// Its removal has begun, so it must be finished.
    Leaving,
}

/// A snapshot that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// When it was taken.
    pub at: Timestamp,
    /// What its files take on the disk.
    pub bytes: ByteSize,
    /// How long the app's processors stood still for it, in milliseconds.
    pub stopped_ms: u64,
}

impl SnapshotRecord {
    /// What is there of it.
    #[must_use]
    pub fn kept(&self) -> Option<&Kept> {
        match &self.state {
            SnapshotState::Kept(kept) | SnapshotState::Retained { kept, .. } => Some(kept),
            SnapshotState::Wanted { .. } | SnapshotState::Failed { .. } | SnapshotState::Leaving => None,
        }
    }
}
