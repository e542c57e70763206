//! What the status API says: the JSON forms of apps, sandboxes, revisions, events, the daemon and refusals.
//!
//! The daemon fills these in and the CLI reads them. They are apart from the domain types so that a record can change its
//! shape without breaking those who read the API. Field names are camelCase, times RFC 3339 in UTC, sizes as in declarations
//! (`512Mi`). Readers must tolerate fields that they do not know.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::{CommitId, SandboxId};
use crate::name::AppKey;

mod app;
mod blocker;
mod daemon;
mod origin;
mod sandbox;
mod settings;
mod snapshot;
mod template;

pub use app::{
    App, Build, Condition, ConditionKind, ConditionStatus, Idle, Keepalive, KeepaliveChange, MissingUrl, Override,
    OverrideChange, Phase, PowerCause, PowerChange, PowerHere, Preview, Process, Resources, Web, WebHealth, Worker,
};
pub use blocker::{Blocker, BlockerReason};
pub use daemon::{AppCounts, Limits, RedactedUrl, Source, Status, Usage};
pub use origin::{Origin, Restored};
pub use sandbox::{Disk, Sandbox, Vm};
pub use settings::{Setting, SettingOrigin, Settings};
pub use snapshot::{Snapshot, SnapshotCause, SnapshotState, SnapshotWanted};
pub use template::{Template, TemplateRoot};

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "{T}List")]
pub struct List<T> {
    /// The objects of this page, in the list's own order.
    pub items: Vec<T>,
    /// What to pass as `cursor` for the next page; null on the last one.
    pub next: Option<String>,
}

/// One revision of the declarations that the daemon has tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Revision {
    /// The commit.
    pub commit: CommitId,
    /// How far it came.
    pub state: RevisionState,
    /// What became of it, in a sentence; the mistake where it failed.
    pub message: String,
    /// When it was first tried.
    pub attempted_at: Timestamp,
    /// When it was carried out in full; null before that.
    pub applied_at: Option<Timestamp>,
    /// How long it took from the first try to its end; null while it has not ended.
    pub duration_ms: Option<u64>,
    /// How many actions ended while it was the newest, by the word of their event, as `created`.
    pub actions: BTreeMap<String, u32>,
}

/// How far a revision came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum RevisionState {
    /// Tried, and not carried out in full yet.
    Attempted,
    /// Carried out in full.
    Applied,
    /// Something of it could not be carried out. It is tried again until a newer one takes its place.
    Failed,
    /// All that could be carried out is; the rest has mistakes, and runs on as it was.
    Stalled,
    /// A newer revision took its place first.
    Superseded,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// A ULID. Ids grow from event to event, so an id also serves as `cursor`: everything after it.
    pub id: String,
    /// When.
    pub at: Timestamp,
    /// What kind, in one camelCase word, as `healed`.
    pub kind: String,
    /// To which app, where it concerns one.
    pub app: Option<AppKey>,
    /// To which microVM, where it concerns one.
    pub sandbox: Option<SandboxId>,
    /// Why, in one CamelCase word for programs.
    pub reason: String,
    /// Why, in a sentence for people.
    pub message: String,
}

/// Why a request was refused: the body of every error, `application/problem+json` after RFC 9457.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// `about:blank`: the status code says what kind of problem it is.
    #[serde(rename = "type")]
    pub kind: String,
    /// The status code's name.
    pub title: String,
    /// The status code.
    pub status: u16,
    /// What is wrong with this request, in a sentence.
    pub detail: String,
    /// The query parameter that is at fault, where one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameter: Option<String>,
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use super::*;

    #[test]
    fn a_problem_names_a_parameter_only_where_one_is_at_fault() {
        let problem = Problem {
            kind: "about:blank".to_owned(),
            title: "Not Found".to_owned(),
            status: 404,
            detail: "there is no such app".to_owned(),
            parameter: None,
        };
        let shown = serde_json::to_value(problem).unwrap();
        assert_eq!(
            shown,
            serde_json::json!({
                "type": "about:blank", "title": "Not Found", "status": 404, "detail": "there is no such app"
            })
        );
    }
}
