//! What the logs hold: events, journal entries, revisions and plans. The inventory's records are `schema`'s.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::de::IntoDeserializer;
use serde::de::value::Error as WordError;
use serde::{Deserialize, Serialize};
use setpoint_schema::id::{CommitId, SandboxId};
use setpoint_schema::name::AppKey;
use ulid::Ulid;

use crate::envelope::Checksum;

/// The longest reason or message of an event, in bytes; more is cut. It bounds what a guest's output can make us store.
pub const EVENT_TEXT_LIMIT: usize = 1024;

/// An event's identity: a ULID that is larger than that of every earlier event of this state, whatever the clock does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EventId(Ulid);

impl EventId {
    pub(crate) fn as_ulid(&self) -> Ulid {
        self.0
    }
}

impl From<Ulid> for EventId {
    fn from(ulid: Ulid) -> Self {
        Self(ulid)
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for EventId {
    type Err = ulid::DecodeError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ulid::from_string(text).map(Self)
    }
}

impl TryFrom<String> for EventId {
    type Error = ulid::DecodeError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<EventId> for String {
    fn from(id: EventId) -> Self {
        id.to_string()
    }
}

/// Something that changed, as people read it back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// Its identity and place in the order.
    pub id: EventId,
    /// When it was recorded.
    pub at: Timestamp,
    /// The app that it is about.
    pub app: Option<AppKey>,
    /// The sandbox that it is about.
    pub sandbox: Option<SandboxId>,
    /// What happened.
    pub kind: EventKind,
    /// Why, in a word or two.
    pub reason: String,
    /// What happened, in a sentence.
    pub message: String,
}

/// An event that is not recorded yet. Text over [`EVENT_TEXT_LIMIT`] is cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// The app that it is about.
    pub app: Option<AppKey>,
    /// The sandbox that it is about.
    pub sandbox: Option<SandboxId>,
    /// What happened.
    pub kind: EventKind,
    /// Why, in a word or two.
    pub reason: String,
    /// What happened, in a sentence.
    pub message: String,
}

impl NewEvent {
    /// An event about no app in particular.
    #[must_use]
    pub fn new(kind: EventKind, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { app: None, sandbox: None, kind, reason: reason.into(), message: message.into() }
    }

    /// The same, about an app.
    #[must_use]
    pub fn app(self, app: &AppKey) -> Self {
        Self { app: Some(app.clone()), ..self }
    }

    /// The same, about a sandbox.
    #[must_use]
    pub fn sandbox(self, sandbox: &SandboxId) -> Self {
        Self { sandbox: Some(sandbox.clone()), ..self }
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EventKind {
    /// A sandbox was made.
    Created,
    /// A running sandbox was changed in place.
    Updated,
    /// A microVM was booted again for a change.
    Rebooted,
    /// A sandbox was made anew for a change.
    Replaced,
    /// A sandbox was shut down because its declaration says so.
    Stopped,
    /// A microVM was saved and rests.
    Paused,
    /// A microVM that rested goes on.
    Woken,
    /// A sandbox was removed.
    Deleted,
    /// A dead or hung sandbox was brought back.
    Healed,
    /// A running microVM was taken over after a restart.
    Adopted,
    /// A microVM ended without being asked to.
    Exited,
    /// An action failed.
    Failed,
    /// An action cannot begin.
    Blocked,
    /// It can now.
    Unblocked,
    /// An app became ready.
    Ready,
    /// An app is no longer ready.
    Unready,
    /// A declaration has mistakes; its last good spec runs on.
    Stalled,
    /// A stalled declaration is good again.
    Resumed,
    /// Somebody on this host suspended an app.
    SuspendedHere,
    /// Somebody on this host ended that.
    ResumedHere,
    /// An app is to rest here, whatever is declared.
    PausedHere,
    /// An app is to be shut down here, whatever is declared.
    StoppedHere,
    /// An app is to run here, whatever is declared.
    WokenHere,
    /// Somebody on this host keeps an app from resting by itself, or no longer does.
    KeptAlive,
    /// An app sleeps and wakes in a loop.
    WakesOften,
    /// Somebody on this host asked for a snapshot.
    SnapshotAsked,
    /// The source could not be read.
    SourceError,
    /// The source can be read again.
    SourceRecovered,
    /// Carrying out a revision began.
    RevisionAttempted,
    /// A revision was carried out in full.
    RevisionApplied,
    /// A revision was carried out but for what has mistakes.
    RevisionStalled,
    /// Something of a revision could not be carried out.
    RevisionFailed,
    /// A data disk is kept after its app was removed.
    DiskRetained,
    /// A retained disk was deleted.
    DiskExpired,
    /// A moment of an app was kept.
    SnapshotTaken,
    /// Snapshots of an app are kept for their retention from now on, or without an end again.
    SnapshotRetained,
    /// Snapshots of an app were removed.
    SnapshotExpired,
    /// An app went back to a snapshot.
    Restored,
    /// The state was made anew from what was running.
    StateRebuilt,
}

impl EventKind {
    /// The kind that is stored as this word; none if this version knows none such.
    #[must_use]
    pub fn of_word(word: &str) -> Option<Self> {
        Self::deserialize(IntoDeserializer::<WordError>::into_deserializer(word)).ok()
    }

    /// The kind in one camelCase word, as it is stored.
    #[must_use]
    pub fn word(self) -> String {
        let word = serde_json::to_value(self).ok();
        word.and_then(|word| word.as_str().map(str::to_owned)).expect("a kind without data is stored as a word")
    }
}

/// Which plan: the plan's own hash.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PlanRef(pub String);

impl fmt::Display for PlanRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A step that has begun. Give it back to `Store::journal_end`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalEntry {
    /// Its place in the journal.
    pub seq: u64,
    /// Whose step.
    pub app: AppKey,
    /// Of which plan.
    pub plan: PlanRef,
    /// Which of the action's steps, from 0.
    pub step_index: u32,
    /// The step's name, as `ensureDisk`.
    pub step: String,
    /// When it began.
    pub began_at: Timestamp,
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// It was applied and verified.
    Done,
    /// It failed: why.
    Failed(String),
    /// The daemon ended before it did; the next plan decides anew.
    Interrupted,
}

/// One entry of the step journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalRecord {
    /// When.
    pub at: Timestamp,
    /// What.
    pub event: JournalEvent,
    /// The checksum of the entry before this one.
    pub(crate) previous: Checksum,
}

/// What the step journal tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum JournalEvent {
    /// A step is about to act.
    Begun(JournalEntry),
    /// A step has ended.
    Ended {
        /// The journal entry of its beginning.
        begun: u64,
        /// How.
        outcome: Outcome,
    },
}

/// Where a trimmed journal begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JournalBase {
    /// The oldest entry that is kept.
    pub(crate) first: u64,
    /// The checksum of the entry before it.
    pub(crate) previous: Checksum,
}

/// One revision's attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevisionRecord {
    /// The commit.
    pub commit: CommitId,
    /// When it was first planned.
    pub attempted_at: Timestamp,
    /// When all of it was carried out.
    pub applied_at: Option<Timestamp>,
    /// How it stands.
    pub outcome: RevisionOutcome,
    /// From the attempt to its end, or to now.
    pub duration_ms: u64,
    /// What it did, in a line.
    pub summary: String,
    /// How many actions were carried out while it was the newest, by the word of their event.
    #[serde(default)]
    pub done: BTreeMap<String, u32>,
}

/// How a revision stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RevisionOutcome {
    /// It is being carried out.
    Applying,
    /// It is carried out in full.
    Applied,
    /// Something in it failed: what.
    Failed(String),
    /// All of it is carried out but for what has mistakes: the first of them.
    Stalled(String),
    /// A newer revision took its place before it was done.
    Superseded(CommitId),
    /// It was not begun: why.
    Refused(String),
}

/// One plan in the history. Its full text is kept in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanRecord {
    /// The plan.
    pub id: PlanRef,
    /// The plan that was current when it was made.
    pub parent: Option<PlanRef>,
    /// The revision that it leads to.
    pub revision: CommitId,
    /// When it was made.
    pub made_at: Timestamp,
    /// What it does; at most [`PlanRecord::ACTIONS`] are kept here.
    pub actions: Vec<PlanAction>,
    /// How many actions it has in all.
    pub total_actions: usize,
}

impl PlanRecord {
    /// The most actions that the history shows of one plan. With names at their longest this stays far below the store's cap
    /// on a value; the plan's file holds all of them.
    pub const ACTIONS: usize = 200;
}

/// One action of a plan, in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanAction {
    /// Whose.
    pub app: AppKey,
    /// What, as `create` or `update (files)`.
    pub action: String,
}

/// What there is one of.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Meta {
    /// The revision whose carrying out began last.
    pub last_attempted: Option<CommitId>,
    /// The revision that was last carried out in full.
    pub last_applied: Option<CommitId>,
    /// Where the source stood when it was last accepted, to notice a force push.
    pub source: Option<SourceMarker>,
}

/// Where the source stood when it was last accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceMarker {
    /// The source's URL, without credentials.
    pub url: String,
    /// The branch.
    pub branch: String,
    /// Its tip.
    pub commit: CommitId,
    /// When.
    pub at: Timestamp,
}

/// Cuts text to the events' limit, at a character's edge.
pub(crate) fn bounded(text: &str) -> String {
    const ELLIPSIS: &str = "…";
    if text.len() <= EVENT_TEXT_LIMIT {
        return text.to_owned();
    }
    let mut end = EVENT_TEXT_LIMIT - ELLIPSIS.len();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{ELLIPSIS}", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut_at_a_characters_edge_within_the_limit() {
        for fill in ["a", "ä", "€", "🦀"] {
            let cut = bounded(&fill.repeat(EVENT_TEXT_LIMIT + 1));
            assert!(cut.len() <= EVENT_TEXT_LIMIT && cut.ends_with('…'), "{fill}");
        }
        assert_eq!(bounded("short"), "short");
    }
}
