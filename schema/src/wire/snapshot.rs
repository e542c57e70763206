//! The JSON form of a snapshot: one moment of an app that is kept, or is to be.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::app::Resources;
use crate::app::Retain;
use crate::id::{CommitId, Generation, SandboxId, SnapshotId, TemplateDigest, TreeDigest};
use crate::name::{AppKey, DirName, SnapshotKey, SnapshotName, Team};
use crate::observed::{self, Kept, SnapshotRecord};
use crate::quantity::ByteSize;
use crate::snapshot::Content;

/// One snapshot: one generation of those that share a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// The owning team.
    pub team: Team,
    /// The name, which its generations share.
    pub name: SnapshotName,
    /// Counts the snapshots of this name.
    pub generation: Generation,
    /// Which snapshot: names its files.
    pub id: SnapshotId,
    /// The app of which a moment is kept.
    pub app: AppKey,
    /// One word for tables.
    pub state: SnapshotState,
    /// Since when it is in that state, where that is known.
    pub since: Option<Timestamp>,
    /// Why it is not there yet, or not gone, in a sentence; empty where there is nothing to say.
    pub message: String,
    /// Who or what wants it.
    pub cause: SnapshotCause,
    /// What is kept.
    pub content: Content,
    /// Names of directories that whatever begins from the disk alone does without.
    pub exclude: Vec<DirName>,
    /// When it was taken; null before that.
    pub taken_at: Option<Timestamp>,
    /// What it takes up on the disk; null before it was taken.
    pub size: Option<ByteSize>,
    /// How long the app stood still for it, in milliseconds; null before it was taken.
    pub stopped_ms: Option<u64>,
    /// The revision that was applied at that moment; null where none was in full.
    pub revision: Option<CommitId>,
    /// The source that the app had then; null likewise.
    pub tree: Option<TreeDigest>,
    /// The microVM; null before it is about to be taken.
    pub sandbox: Option<SandboxId>,
    /// The microVM's size; null likewise.
    pub resources: Option<Resources>,
    /// What the microVM began from; null likewise.
    pub template: Option<TemplateDigest>,
    /// How long it is kept once nothing declares it.
    pub retain: Retain,
    /// The end of its retention; null while it is wanted.
    pub until: Option<Timestamp>,
}

/// A snapshot's state in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum SnapshotState {
    /// It is to be taken.
    Wanted,
    /// The last try to take it failed.
    Failed,
    /// It is there.
    Kept,
    /// It is there until its retention ends: nothing wants it any more.
    Retained,
    /// It is being removed.
    Leaving,
}

impl SnapshotState {
    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Wanted => "wanted",
            Self::Failed => "failed",
            Self::Kept => "kept",
            Self::Retained => "retained",
            Self::Leaving => "leaving",
        }
    }
}

/// Who or what wants a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum SnapshotCause {
    /// A declaration.
    Declared,
    /// Somebody on the daemon's host.
    Asked {
        /// Who, as `uid 1000`.
        by: String,
    },
    /// An app that begins as this one was.
    Fork {
        /// The app that begins.
        to: AppKey,
    },
    /// What was there before a restore replaced it.
    Restore {
        /// The restore's token.
        token: String,
    },
}

impl From<&observed::SnapshotCause> for SnapshotCause {
    fn from(cause: &observed::SnapshotCause) -> Self {
        match cause {
            observed::SnapshotCause::Declared { digest: _ } => Self::Declared,
            observed::SnapshotCause::Asked { by } => Self::Asked { by: by.clone() },
            observed::SnapshotCause::Fork { to } => Self::Fork { to: to.clone() },
            observed::SnapshotCause::Restore { token } => Self::Restore { token: token.clone() },
        }
    }
}

impl Snapshot {
    /// Team and name.
    #[must_use]
    pub fn key(&self) -> SnapshotKey {
        SnapshotKey::new(self.team.clone(), self.name.clone())
    }

    /// What a record says. `waits` says why it is not taken yet, or not let go, where something is in the way of that.
    #[must_use]
    pub fn of(record: &SnapshotRecord, waits: Option<String>) -> Self {
        let SnapshotRecord { id, key, app, generation, cause, content, exclude, retain, moment, state } = record;
        let Phase { state, since, message, until } = Phase::of(state, waits);
        let kept = record.kept();
        let resources = moment.as_ref().map(|moment| Resources {
            vcpus: moment.machine.vcpus,
            memory: ByteSize::mib(moment.machine.memory_mib),
            disk: moment.disk,
        });
        let moment = moment.as_ref();
        Self {
            team: key.team.clone(),
            name: key.name.clone(),
            generation: *generation,
            id: id.clone(),
            app: app.clone(),
            state,
            since,
            message,
            cause: cause.into(),
            content: *content,
            exclude: exclude.iter().cloned().collect(),
            taken_at: kept.map(|kept| kept.at),
            // In the unit that amounts are written in.
            size: kept.map(|kept| ByteSize::bytes(kept.bytes.as_bytes().next_multiple_of(1 << 10))),
            stopped_ms: kept.map(|kept| kept.stopped_ms),
            revision: moment.and_then(|moment| moment.revision.clone()),
            tree: moment.and_then(|moment| moment.tree.clone()),
            sandbox: moment.map(|moment| moment.sandbox.clone()),
            resources,
            template: moment.map(|moment| moment.machine.template.clone()),
            retain: *retain,
            until,
        }
    }
}

/// Where a snapshot stands.
struct Phase {
    state: SnapshotState,
    since: Option<Timestamp>,
    message: String,
    until: Option<Timestamp>,
}

impl Phase {
    fn of(state: &observed::SnapshotState, waits: Option<String>) -> Self {
        let message = waits.unwrap_or_default();
        let there = |state, kept: &Kept, until| Self { state, since: Some(kept.at), message: message.clone(), until };
        match state {
            observed::SnapshotState::Wanted { since } => {
                let message = if message.is_empty() { "it is to be taken".to_owned() } else { message };
                Self { state: SnapshotState::Wanted, since: Some(*since), message, until: None }
            }
            observed::SnapshotState::Failed { reason, at, failures: _ } => {
                Self { state: SnapshotState::Failed, since: Some(*at), message: reason.clone(), until: None }
            }
            observed::SnapshotState::Kept(kept) => there(SnapshotState::Kept, kept, None),
            observed::SnapshotState::Retained { kept, until } => there(SnapshotState::Retained, kept, Some(*until)),
            observed::SnapshotState::Leaving => {
                let message = "it is being removed".to_owned();
                Self { state: SnapshotState::Leaving, since: None, message, until: None }
            }
        }
    }
}

/// What the admin socket answers: the snapshot that is to be taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotWanted {
    /// Whether nobody had asked for it before.
    pub changed: bool,
    /// As it stands.
    pub snapshot: Snapshot,
}
