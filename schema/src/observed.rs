//! What exists and what is known about it: the records that `state` keeps, and what drivers and agents answered, as `plan`
//! reads them. Times are wall-clock; nothing here reads the clock.

mod snapshots;

use std::ops::Deref;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::app::{AppMetadata, DesiredApp, PinnedSpec, Power, SandboxSpec};
use crate::id::{
    BootNonce, CommitId, DiskId, Generation, HostId, SandboxId, SnapshotId, SpecDigest, TemplateDigest, TreeDigest,
    WorkDigest,
};
use crate::name::{AppKey, RepoPath, Uid, WorkerName};
use crate::quantity::{ByteSize, Span};
use crate::shared::SharedMap;

pub use snapshots::{Kept, Moment, Origin, OriginRestore, SnapshotCause, SnapshotRecord, SnapshotState};

/// The inventory row of one sandbox: written before anything of it exists, removed after nothing of it is left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// Which sandbox.
    pub id: SandboxId,
    /// Whose it is.
    pub app: AppKey,
    /// The app's lasting identity, where it declared one.
    pub uid: Option<Uid>,
    /// The machine that it is on.
    pub host: HostId,
    /// Its data disk.
    pub disk: DiskId,
    /// The snapshot that its disk began as a copy of, if it did. Until the first spec is applied, it may have yet to begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<SnapshotId>,
    /// What its state began as, for as long as it has that disk; absent where it began empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Box<Origin>>,
    /// What its microVM was last launched with, or is about to be.
    pub machine: Machine,
    /// The spec that was last carried out in full.
    pub applied: Option<Applied>,
    /// Whether it is to stay.
    pub intent: Intent,
    /// When the row was made.
    pub created_at: Timestamp,
}

/// All that a driver needs to start one microVM. Two equal machines are the same boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Which sandbox this is the machine of.
    pub sandbox: SandboxId,
    /// Whose it is; drivers keep it so that a lost store can be rebuilt from what runs.
    pub app: AppKey,
    /// The app's lasting identity, likewise.
    pub uid: Option<Uid>,
    /// This boot's identity, handed to the guest.
    pub nonce: BootNonce,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// The template's content.
    pub template: TemplateDigest,
    /// The data disk.
    pub disk: DiskId,
}

/// The spec that a sandbox was last brought to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The spec.
    pub spec: PinnedSpec,
    /// Its generation.
    pub generation: Generation,
    /// The revision that it came from.
    pub revision: CommitId,
    /// When it was carried out.
    pub at: Timestamp,
}

/// Whether a sandbox is to stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Intent {
    /// It is.
    Keep,
    /// Its removal has begun, so it must be finished even if the declaration comes back.
    Delete,
}

/// A data disk in the inventory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// Which disk.
    pub id: DiskId,
    /// Whose it is, or was.
    pub app: AppKey,
    /// Its length.
    pub size: ByteSize,
    /// Where it stands in its life.
    pub state: DiskState,
}

/// Where a data disk stands in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DiskState {
    /// A sandbox uses it.
    InUse,
    /// Its app is gone; it is deleted after this time.
    Retained {
        /// The end of its retention.
        until: Timestamp,
    },
}

/// What is remembered of one app from pass to pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppRecord {
    /// Which app.
    pub key: AppKey,
    /// Counts the changes of its spec.
    pub generation: Generation,
    /// The spec that the generation belongs to.
    pub digest: SpecDigest,
    /// The newest declaration without a mistake; it goes on running while a newer one has one.
    pub last_good: LastGood,
    /// Failures since the last success or the last new revision.
    pub retry: Retry,
    /// When the sandbox was last healed, newest last, for the flap breaker.
    pub heals: Vec<Timestamp>,
    /// What was done for it lately and may be needed again, newest last, for the breaker of work that has no lasting effect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repeats: Vec<Repeat>,
    /// Whether somebody on this host has frozen it, whatever its declaration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended: Option<Suspension>,
    /// The power state that holds here in place of the declared one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power: Option<PowerOverride>,
    /// The tokens of restores that count as carried out, newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restored: Vec<String>,
    /// How it is used, once there is anything to say of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Box<Usage>>,
}

/// How an app is used: what its resting by itself depends on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Usage {
    /// When it was used last. Not written down with each use, so that it may have been used a little later, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used: Option<Timestamp>,
    /// Until when somebody keeps it from resting by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keepalive: Option<Keepalive>,
    /// When it was woken after having rested by itself, newest last.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub wakes: Vec<Timestamp>,
    /// The boot that was shut down here though it is declared to run: that it is down is no accident.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<BootNonce>,
    /// The paused boot that somebody wants to be gone on from once more, though that has failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub again: Option<BootNonce>,
    /// Who or what ended its last rest here, where it is declared to run: why it goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub woken: Option<PowerOverride>,
}

/// A time for which an app does not rest by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keepalive {
    /// Its end.
    pub until: Timestamp,
    /// Who asked for it, as `uid 1000`.
    pub by: String,
}

/// A power state in place of a declared one. It holds until another power is declared, or until it is lifted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerOverride {
    /// What holds.
    pub state: Power,
    /// What was declared then; once something else is, this holds no more.
    pub declared: Power,
    /// Since when.
    pub since: Timestamp,
    /// Who or what wants it.
    pub cause: PowerCause,
}

impl PowerOverride {
    /// Whether this holds while `declared` is declared.
    #[must_use]
    pub fn holds_over(&self, declared: Power) -> bool {
        self.declared == declared
    }

    /// Whether it holds because nobody used the app.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        matches!(self.cause, PowerCause::Idle { .. })
    }
}

impl AppRecord {
    /// How it is used.
    #[must_use]
    pub fn usage(&self) -> &Usage {
        static NOTHING: Usage =
            Usage { used: None, keepalive: None, wakes: Vec::new(), stopped: None, again: None, woken: None };
        self.usage.as_deref().unwrap_or(&NOTHING)
    }

    /// The same app, used otherwise.
    #[must_use]
    pub fn with_usage(&self, change: impl FnOnce(&mut Usage)) -> Self {
        let mut usage = self.usage().clone();
        change(&mut usage);
        let usage = (usage != Usage::default()).then(|| Box::new(usage));
        Self { usage, ..self.clone() }
    }

    /// What holds here in place of a declared power.
    #[must_use]
    pub fn power_over(&self, declared: Power) -> Option<&PowerOverride> {
        self.power.as_ref().filter(|held| held.holds_over(declared))
    }

    /// Whether a restore of this token counts as carried out.
    #[must_use]
    pub fn has_restored(&self, token: &str) -> bool {
        self.restored.iter().any(|known| known == token)
    }

    /// The tokens once this one counts as carried out, too. A token that was left behind long ago is forgotten.
    #[must_use]
    pub fn restored_with(&self, token: &str) -> Vec<String> {
        const REMEMBERED: usize = 16;
        let mut tokens: Vec<_> = self.restored.iter().filter(|known| *known != token).cloned().collect();
        tokens.push(token.to_owned());
        tokens.drain(..tokens.len().saturating_sub(REMEMBERED));
        tokens
    }

    /// The power that holds here while `declared` is declared.
    #[must_use]
    pub fn power_here(&self, declared: Power) -> Power {
        self.power_over(declared).map_or(declared, |held| held.state)
    }
}

/// Who or what wants another power state than the declared one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PowerCause {
    /// Somebody on this host, as `uid 1000`.
    Asked {
        /// Who.
        by: String,
    },
    /// Nobody used the app.
    Idle {
        /// Since when.
        since: Timestamp,
    },
    /// A request came for it while it slept.
    Request,
}

/// A freeze that somebody on this host asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspension {
    /// Since when.
    pub since: Timestamp,
    /// Who asked, as `uid 1000`.
    pub by: String,
}

/// A declaration without a mistake, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StoredApp", into = "StoredApp")]
pub struct LastGood {
    /// The declaration.
    pub app: Arc<DesiredApp>,
    /// The revision that it was read in.
    pub revision: CommitId,
}

impl Deref for LastGood {
    type Target = DesiredApp;

    fn deref(&self) -> &DesiredApp {
        &self.app
    }
}

/// How [`LastGood`] is written: the revision stands among the declaration's own fields.
#[derive(Serialize, Deserialize)]
struct StoredApp {
    metadata: AppMetadata,
    spec: PinnedSpec,
    path: RepoPath,
    revision: CommitId,
}

impl From<StoredApp> for LastGood {
    fn from(stored: StoredApp) -> Self {
        let StoredApp { metadata, spec, path, revision } = stored;
        Self { app: Arc::new(DesiredApp { metadata, spec, path }), revision }
    }
}

impl From<LastGood> for StoredApp {
    fn from(known: LastGood) -> Self {
        let LastGood { app, revision } = known;
        let DesiredApp { metadata, spec, path } = Arc::unwrap_or_clone(app);
        Self { metadata, spec, path, revision }
    }
}

/// How often and how long an app has failed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Retry {
    /// Consecutive failures.
    pub failures: u32,
    /// The earliest next try.
    pub not_before: Option<Timestamp>,
    /// What went wrong last, in a sentence.
    pub last_error: Option<String>,
}

/// Work that succeeded, and that was needed again at once if it was done several times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repeat {
    /// Which work.
    pub work: WorkDigest,
    /// How often in a row.
    pub times: u32,
    /// When it was done for the first time in this row.
    pub since: Timestamp,
    /// When it was done last.
    pub last: Timestamp,
}

/// All that the planner knows of the world.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// The machine that was looked at.
    pub host: HostId,
    /// The limits on what may run.
    pub limits: Limits,
    /// Sandboxes in the inventory, with what their driver and agent answered.
    pub sandboxes: SharedMap<SandboxId, Arc<ObservedSandbox>>,
    /// MicroVMs that the driver knows and the inventory does not.
    pub unrecorded: Vec<Machine>,
    /// Data disks in the inventory.
    pub disks: SharedMap<DiskId, Arc<DiskRecord>>,
    /// What is remembered of apps.
    pub apps: SharedMap<AppKey, Arc<AppRecord>>,
    /// Snapshots in the inventory.
    #[serde(default = "SharedMap::new")]
    pub snapshots: SharedMap<SnapshotId, Arc<SnapshotRecord>>,
}

/// One sandbox with what was asked and answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedSandbox {
    /// The inventory row.
    pub record: Arc<SandboxRecord>,
    /// What the driver answered.
    pub vm: VmState,
    /// What the agent answered.
    pub guest: GuestState,
}

/// What a driver says of one microVM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum VmState {
    /// Nothing of it exists.
    Absent,
    /// It has ended; its files are still there.
    Exited {
        /// Why.
        reason: ExitReason,
    },
    /// Its monitor answers.
    Running {
        /// The boot that is running.
        nonce: BootNonce,
        /// Since when.
        since: Timestamp,
    },
    /// It rests: its memory is kept in files, from which it can go on.
    Paused {
        /// The boot that was paused.
        nonce: BootNonce,
        /// Since when.
        since: Timestamp,
        /// What the kept memory takes up on the disk.
        bytes: ByteSize,
        /// Why it cannot go on from them, once that has been tried.
        fault: Option<String>,
    },
}

/// Why a microVM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ExitReason {
    /// The guest shut itself down.
    Shutdown,
    /// The guest kernel panicked; the last console line that says so.
    Panic(String),
    /// The guest reset itself without saying why.
    Reset,
    /// The VMM was ended by a signal.
    Killed(i32),
    /// The VMM ended by itself with this exit code.
    Failed(i32),
    /// Nobody saw how it ended, as after a reboot of the host.
    Unknown,
}

/// What the agent inside says, or why it says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum GuestState {
    /// There is no running microVM to ask.
    Absent,
    /// It is not answering yet.
    Connecting {
        /// Since when it has been tried.
        since: Timestamp,
    },
    /// It answered this boot's nonce, and then fell silent.
    Silent {
        /// The time of its last answer.
        since: Timestamp,
    },
    /// It answers.
    Answering(Arc<GuestStatus>),
}

/// One answer of the agent. Everything in it comes from a guest: text is bounded, none of it is trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestStatus {
    /// The boot that answers.
    pub nonce: BootNonce,
    /// The workspace content that was last received in full.
    pub tree: Option<TreeDigest>,
    /// The process set that runs.
    pub processes: Option<SpecDigest>,
    /// How the last build went.
    pub build: BuildState,
    /// The web process, where there is one.
    pub web: Option<WebStatus>,
    /// The workers, in declared order.
    pub workers: Vec<WorkerStatus>,
    /// The size of the data disk's file system.
    pub disk: ByteSize,
}

/// How the last build went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BuildState {
    /// No build is declared, or none ran yet.
    None,
    /// The command is explicitly empty.
    Skipped,
    /// It runs.
    Running,
    /// It succeeded for this workspace content.
    Passed {
        /// The content that was built.
        tree: TreeDigest,
    },
    /// It failed for this workspace content.
    Failed {
        /// The content that was built.
        tree: TreeDigest,
        /// Exit code and last line of output, or that it took too long.
        reason: String,
    },
}

/// The web process and its health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebStatus {
    /// The process.
    pub process: ProcessState,
    /// The last probe of its health path.
    pub health: Health,
}

/// The last probe of the health path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Health {
    /// Not probed yet.
    Unknown,
    /// Answered 200.
    Healthy,
    /// Anything else, in a few words, as `503` or `connection refused`.
    Unhealthy(String),
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its declared name.
    pub name: WorkerName,
    /// The process.
    pub process: ProcessState,
}

/// One supervised process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProcessState {
    /// Not started yet.
    Stopped,
    /// It runs.
    Running {
        /// Its restarts since the process set was applied.
        restarts: u32,
    },
    /// It ended and will be started again.
    Backoff {
        /// Its restarts since the process set was applied.
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

impl GuestStatus {
    /// Why this guest does not count as ready for `spec`, or `None` when it runs just that and all of it is up.
    #[must_use]
    pub fn unready_for(&self, spec: &PinnedSpec) -> Option<String> {
        if self.tree.as_ref() != Some(&spec.files) {
            return Some("its workspace is not up to date yet".to_owned());
        }
        if self.processes.as_ref() != Some(spec.processes_digest()) {
            return Some("its processes are not up to date yet".to_owned());
        }
        self.unready()
    }

    /// Why build, web and workers, whichever it has, are not up, or `None` when they are.
    #[must_use]
    pub fn unready(&self) -> Option<String> {
        let build = match &self.build {
            BuildState::Running => Some("building".to_owned()),
            BuildState::Failed { reason, .. } => Some(format!("build failed: {reason}")),
            BuildState::None | BuildState::Skipped | BuildState::Passed { .. } => None,
        };
        let worker = |w: &WorkerStatus| w.process.unready().map(|reason| format!("worker {} {reason}", w.name));
        let web = || self.web.as_ref().and_then(WebStatus::unready);
        build.or_else(web).or_else(|| self.workers.iter().find_map(worker))
    }

    /// Why the web process that `spec` declares cannot be sent requests, or `None` when it can, or when none is declared. The
    /// process of before serves on while a build runs or has failed, and without its workers.
    #[must_use]
    pub fn unserved_for(&self, spec: &SandboxSpec) -> Option<String> {
        spec.runtime().web.as_ref()?;
        self.web.as_ref().map_or_else(|| Some("web not started".to_owned()), WebStatus::unready)
    }
}

impl WebStatus {
    /// Why it cannot be sent requests, or `None` when it can.
    #[must_use]
    pub fn unready(&self) -> Option<String> {
        match (&self.health, self.process.unready()) {
            (_, Some(reason)) => Some(format!("web {reason}")),
            (Health::Healthy, None) => None,
            (Health::Unknown, None) => Some("web not probed yet".to_owned()),
            (Health::Unhealthy(reason), None) => Some(format!("web unhealthy: {reason}")),
        }
    }
}

impl ProcessState {
    /// Why this process does not count as up, or `None` when it runs.
    #[must_use]
    pub fn unready(&self) -> Option<String> {
        match self {
            Self::Running { .. } => None,
            Self::Stopped => Some("not started".to_owned()),
            Self::Backoff { reason, restarts } => Some(format!("restarting ({restarts} so far): {reason}")),
            Self::GaveUp { reason } => Some(format!("gave up: {reason}")),
        }
    }
}

/// What may run on this host at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Sum of the memory of running microVMs.
    pub memory: ByteSize,
    /// Sum of their virtual processors.
    pub vcpus: u32,
    /// Sum of the lengths of data disks, retained ones included.
    pub disk: ByteSize,
    /// Number of sandboxes.
    pub sandboxes: u32,
}

/// The flap breaker: more heals than this many within this time stop the healing.
pub const FLAP_HEALS: usize = 5;
/// See [`FLAP_HEALS`].
pub const FLAP_WINDOW: Span = Span::secs(300);
