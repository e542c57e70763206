//! The JSON form of an app: its state, its conditions and its processes.

use std::borrow::Cow;
use std::fmt;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::blocker::Blocker;
use super::origin::{Origin, Restored};
use crate::app::Power;
use crate::id::{CommitId, Generation, SandboxId};
use crate::name::{AppKey, AppName, Team, TemplateName, WorkerName};
use crate::notes::Notes;
use crate::observed::{self, BuildState, Health, PowerOverride, ProcessState, Suspension, WebStatus, WorkerStatus};
use crate::power::IdleAction;
use crate::quantity::{ByteSize, Span};

/// One app: what it is to be, what it is, and why the two differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct App {
    /// The owning team.
    pub team: Team,
    /// The app's name within its team.
    pub name: AppName,
    /// One word for tables.
    pub phase: Phase,
    /// Whether the newest generation runs and is healthy.
    pub ready: bool,
    /// `Ready`, `Reconciling` and `Stalled`, each with its reason and since when.
    pub conditions: Vec<Condition>,
    /// Counts the changes of the declared spec.
    pub generation: Generation,
    /// The generation that the sandbox was last brought to; null before the first time.
    pub observed_generation: Option<Generation>,
    /// The revision that last declared it otherwise than before; the newest one, while that has mistakes in it.
    pub last_attempted_revision: Option<CommitId>,
    /// The revision that was last carried out in full.
    pub last_applied_revision: Option<CommitId>,
    /// Why the next change cannot begin; empty when nothing is in its way.
    pub blocked: Vec<Blocker>,
    /// What holds the app as it is; null when nothing does.
    pub held: Option<Blocker>,
    /// What somebody on the daemon's host has set over the declaration; null when nothing is.
    #[serde(rename = "override")]
    pub overridden: Option<Override>,
    /// The power state that holds on the daemon's host in place of the declared one; null where that holds.
    pub power_here: Option<PowerHere>,
    /// How its resting by itself stands; null for an app that does not.
    pub idle: Option<Box<Idle>>,
    /// Until when somebody on the daemon's host keeps it from resting by itself; null where nobody does.
    pub keepalive: Option<Box<Keepalive>>,
    /// The apps that must be ready before it starts or changes.
    pub depends_on: Vec<AppKey>,
    /// The app's microVM; null while there is none.
    pub sandbox: Option<SandboxId>,
    /// What there is to look at in a browser.
    pub preview: Preview,
    /// Where the ingress serves it, the main address first.
    pub urls: Vec<String>,
    /// The host names that it asks for and does not have, and why.
    pub urls_missing: Vec<MissingUrl>,
    /// How the last build went.
    pub build: Build,
    /// The web process; null for an app without one.
    pub web: Option<Web>,
    /// The workers, in declared order.
    pub workers: Vec<Worker>,
    /// Restarts of all processes since their declaration last changed.
    pub restarts: u32,
    /// Whether the microVM is declared to run.
    pub power: Power,
    /// What the app's state began as, where it was made so; null where it began empty, and once a restore has replaced that.
    pub from: Option<Box<Origin>>,
    /// The restore that its state is from; null where there was none.
    pub restored: Option<Box<Restored>>,
    /// What the microVM starts from.
    pub template: TemplateName,
    /// The microVM's declared size.
    pub resources: Resources,
    /// The declared labels.
    pub labels: Notes,
}

/// A host name that an app asks for and does not have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MissingUrl {
    /// The name.
    pub host: String,
    /// Why not, in a sentence.
    pub reason: String,
}

impl App {
    /// Team and name.
    #[must_use]
    pub fn key(&self) -> AppKey {
        AppKey::new(self.team.clone(), self.name.clone())
    }
}

/// What somebody on the daemon's host has set over the declaration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Override {
    /// Since when the app is suspended there.
    pub suspended_since: Timestamp,
    /// Who asked for it, as `uid 1000`.
    pub by: String,
}

/// What the admin socket answers: how an app's override stands now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OverrideChange {
    /// Which app.
    pub app: AppKey,
    /// Whether it stood otherwise before.
    pub changed: bool,
    /// The override; null when there is none.
    #[serde(rename = "override")]
    pub now: Option<Override>,
}

/// A power state in place of a declared one. It holds until another one is declared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PowerHere {
    /// What holds.
    pub state: Power,
    /// Since when.
    pub since: Timestamp,
    /// Why.
    pub cause: PowerCause,
    /// Who asked for it, as `uid 1000`; null where nobody did.
    pub by: Option<String>,
}

/// Why another power state holds than the declared one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum PowerCause {
    /// Somebody on the daemon's host asked for it.
    Asked,
    /// Nobody used the app.
    Idle,
    /// A request came for it.
    Request,
}

/// What the admin socket answers: which power state holds for an app now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PowerChange {
    /// Which app.
    pub app: AppKey,
    /// Whether another one held before.
    pub changed: bool,
    /// What holds in place of the declared one; null where that holds.
    pub now: Option<PowerHere>,
}

impl From<&PowerOverride> for PowerHere {
    fn from(held: &PowerOverride) -> Self {
        let PowerOverride { state, declared: _, since, cause } = held;
        let (cause, by) = match cause {
            observed::PowerCause::Asked { by } => (PowerCause::Asked, Some(by.clone())),
            observed::PowerCause::Idle { since: _ } => (PowerCause::Idle, None),
            observed::PowerCause::Request => (PowerCause::Request, None),
        };
        Self { state: *state, since: *since, cause, by }
    }
}

impl From<&Suspension> for Override {
    fn from(suspension: &Suspension) -> Self {
        let Suspension { since, by } = suspension;
        Self { suspended_since: *since, by: by.clone() }
    }
}

/// An app's state in one word, for tables; the conditions say more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// Declared, and nothing has begun.
    Pending,
    /// Something stands in the way of the next change.
    Blocked,
    /// It is being brought to its declaration.
    Reconciling,
    /// As declared and healthy.
    Ready,
    /// As declared and not healthy.
    Unready,
    /// At rest, with its memory kept.
    Paused,
    /// Shut down, by declaration.
    Stopped,
    /// Frozen, by declaration or on this host.
    Suspended,
    /// Its declaration has mistakes, and retrying will not help.
    Stalled,
    /// It is being removed.
    Deleting,
}

impl Phase {
    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Blocked => "blocked",
            Self::Reconciling => "reconciling",
            Self::Ready => "ready",
            Self::Unready => "unready",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Suspended => "suspended",
            Self::Stalled => "stalled",
            Self::Deleting => "deleting",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One aspect of an object's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Which aspect.
    #[serde(rename = "type")]
    pub kind: ConditionKind,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// One CamelCase word for programs, as `WebUnhealthy`.
    pub reason: Cow<'static, str>,
    /// A sentence for people.
    pub message: Cow<'static, str>,
    /// When `status` last changed.
    pub since: Timestamp,
}

/// The aspects of an object's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum ConditionKind {
    /// This generation is observed, alive and healthy.
    Ready,
    /// Work on it goes on or is planned.
    Reconciling,
    /// Only a change of its input can bring it further.
    Stalled,
}

/// Whether a condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConditionStatus {
    /// It does.
    True,
    /// It does not.
    False,
    /// Nobody could be asked.
    Unknown,
}

/// How an app stands that rests once nobody has used it for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Idle {
    /// For how long it is declared that nobody has used it then.
    pub after: Span,
    /// For how long that is at present: longer while it sleeps and wakes in a loop.
    pub waits: Span,
    /// What is done then.
    pub action: IdleAction,
    /// Since when nobody has used it, as far as that is recorded: uses are recorded once in a tenth of `waits`. Null while it is at rest
    /// for another reason, or has no microVM.
    pub since: Option<Timestamp>,
    /// When it rests unless somebody uses it before; null while it is at rest, or worked on.
    pub due: Option<Timestamp>,
}

/// That somebody keeps an app from resting by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Keepalive {
    /// Its end, which may be over.
    pub until: Timestamp,
    /// Who asked for it, as `uid 1000`.
    pub by: String,
}

impl From<&observed::Keepalive> for Keepalive {
    fn from(keepalive: &observed::Keepalive) -> Self {
        let observed::Keepalive { until, by } = keepalive;
        Self { until: *until, by: by.clone() }
    }
}

/// What the admin socket answers: what keeps an app from resting by itself now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeepaliveChange {
    /// Which app.
    pub app: AppKey,
    /// Whether it was otherwise before.
    pub changed: bool,
    /// What is in force; null where nothing is.
    pub now: Option<Keepalive>,
    /// What would be done with the app if nobody used it; null for one that does not rest by itself.
    pub action: Option<IdleAction>,
}

/// What there is to look at in a browser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Preview {
    /// Nothing, by declaration: a worker-only app. That is not the same as `down`.
    None,
    /// The web process is on its way up.
    Starting,
    /// The ingress serves it.
    Up,
    /// It is at rest, and a request wakes it.
    Asleep,
    /// It is at rest, and no request wakes it.
    Off,
    /// It should be there and is not.
    Down,
}

/// How the last build went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum Build {
    /// No build is declared, or none ran yet.
    None,
    /// The declared command is explicitly empty. Nothing ran, so nothing passed.
    Skipped,
    /// It runs.
    Running,
    /// It succeeded for the workspace content that is in place.
    Passed,
    /// It failed.
    Failed {
        /// Exit code and last line of output, or that it took too long.
        reason: String,
    },
}

impl From<&BuildState> for Build {
    fn from(state: &BuildState) -> Self {
        match state {
            BuildState::None => Self::None,
            BuildState::Skipped => Self::Skipped,
            BuildState::Running => Self::Running,
            BuildState::Passed { tree: _ } => Self::Passed,
            BuildState::Failed { tree: _, reason } => Self::Failed { reason: reason.clone() },
        }
    }
}

/// The web process and its health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Web {
    /// The process.
    pub process: Process,
    /// The last probe of its health path.
    pub health: WebHealth,
}

impl From<&WebStatus> for Web {
    fn from(status: &WebStatus) -> Self {
        Self { process: (&status.process).into(), health: (&status.health).into() }
    }
}

/// The last probe of a health path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum WebHealth {
    /// Not probed yet.
    Unknown,
    /// Answered 200.
    Healthy,
    /// Anything else.
    Unhealthy {
        /// In a few words, as `503` or `connection refused`.
        reason: String,
    },
}

impl From<&Health> for WebHealth {
    fn from(health: &Health) -> Self {
        match health {
            Health::Unknown => Self::Unknown,
            Health::Healthy => Self::Healthy,
            Health::Unhealthy(reason) => Self::Unhealthy { reason: reason.clone() },
        }
    }
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Worker {
    /// Its declared name.
    pub name: WorkerName,
    /// The process.
    pub process: Process,
}

impl From<&WorkerStatus> for Worker {
    fn from(status: &WorkerStatus) -> Self {
        Self { name: status.name.clone(), process: (&status.process).into() }
    }
}

/// One supervised process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum Process {
    /// Not started yet.
    Stopped,
    /// It runs.
    Running {
        /// Its restarts since its declaration last changed.
        restarts: u32,
    },
    /// It ended and will be started again.
    Backoff {
        /// Its restarts since its declaration last changed.
        restarts: u32,
        /// How it ended.
        reason: String,
    },
    /// It kept ending at once; nothing starts it before its declaration changes.
    GaveUp {
        /// How it ended.
        reason: String,
    },
}

impl Process {
    /// Its restarts since its declaration last changed, as far as they are known.
    #[must_use]
    pub const fn restarts(&self) -> u32 {
        match self {
            Self::Running { restarts } | Self::Backoff { restarts, .. } => *restarts,
            Self::Stopped | Self::GaveUp { .. } => 0,
        }
    }
}

impl From<&ProcessState> for Process {
    fn from(state: &ProcessState) -> Self {
        match state {
            ProcessState::Stopped => Self::Stopped,
            ProcessState::Running { restarts } => Self::Running { restarts: *restarts },
            ProcessState::Backoff { restarts, reason } => Self::Backoff { restarts: *restarts, reason: reason.clone() },
            ProcessState::GaveUp { reason } => Self::GaveUp { reason: reason.clone() },
        }
    }
}

/// A microVM's declared size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory.
    pub memory: ByteSize,
    /// The data disk.
    pub disk: ByteSize,
}

impl From<&crate::app::Resources> for Resources {
    fn from(declared: &crate::app::Resources) -> Self {
        Self { vcpus: declared.vcpus, memory: declared.memory, disk: declared.disk.0 }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use super::*;

    #[test]
    fn an_explicitly_empty_build_is_skipped_and_never_passed() {
        let shown = serde_json::to_value(Build::from(&BuildState::Skipped)).unwrap();
        assert_eq!(shown, serde_json::json!({"state": "skipped"}));
    }

    #[test]
    fn states_carry_their_data_beside_their_name() {
        let process = Process::Backoff { restarts: 3, reason: "exit code 1".to_owned() };
        let shown = serde_json::to_value(&process).unwrap();
        assert_eq!(shown, serde_json::json!({"state": "backoff", "restarts": 3, "reason": "exit code 1"}));
        assert_eq!(serde_json::from_value::<Process>(shown).unwrap(), process);
    }
}
