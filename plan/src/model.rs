//! The plan as data: actions, their steps, their reasons, and why something is blocked.
//!
//! A step says all that its executor needs: ids, sizes, digests and deadlines are chosen here, so that a plan can be shown
//! before it runs and runs as it was shown.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use setpoint_schema::app::{Beginning, PinnedSpec, Power, SnapshotRef, Timeouts};
use setpoint_schema::disruption::{Disruption, FieldChange};
use setpoint_schema::id::{
    BootNonce, CommitId, DiskId, Generation, SandboxId, SnapshotId, SpecDigest, TemplateDigest, TreeDigest,
};
use setpoint_schema::name::{AppKey, DirName, SnapshotKey};
use setpoint_schema::observed::{
    DiskState, Machine, PowerOverride, SandboxRecord, SnapshotCause, SnapshotRecord, Suspension,
};
use setpoint_schema::quantity::{ByteSize, Span};
use setpoint_schema::shared::SharedSet;
use setpoint_schema::snapshot::Content;

use crate::desired::DesiredTemplateRoot;

/// The version of the JSON form; the minor part grows with additions.
pub const FORMAT_VERSION: &str = "1.2";

/// What to do, in order, to bring the observed state to the desired one.
#[must_use]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The plan's identity: a hash of where it leads, from what, with which entropy for ids, and of what it does to whom. The
    /// rest follows from these.
    pub id: PlanId,
    /// The plan that was current when this one was made.
    pub parent: Option<PlanId>,
    /// The revision that it leads to.
    pub revision: CommitId,
    /// The hash of the observation that it was made from.
    pub observation: SpecDigest,
    /// What to do, in order: by `dependsOn`, removals last.
    pub actions: Vec<Arc<Action>>,
    /// Objects that something holds as they are.
    pub held: Vec<Held>,
    /// Snapshots that are to be taken or removed and cannot be now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<HeldSnapshot>,
    /// Apps that are as declared.
    pub unchanged: SharedSet<AppKey>,
}

impl Plan {
    /// Whether there is nothing to do. Held apps may be left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.actions.is_empty()
    }
}

/// The hash of a plan.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PlanId(pub String);

/// All that is to be done for one app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// Whose sandbox.
    pub app: AppKey,
    /// Which sandbox.
    pub sandbox: SandboxId,
    /// What happens to it.
    pub kind: ActionKind,
    /// Why.
    pub reasons: Vec<Reason>,
    /// The declared fields that change.
    pub changes: Vec<FieldChange>,
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// Why it cannot begin now; empty when it can.
    pub blocked: Vec<Block>,
}

/// What happens to a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ActionKind {
    /// A sandbox is made.
    Create,
    /// A microVM that the inventory lost is written back into it.
    Adopt,
    /// The running microVM is changed in place, as disruptively as this: `Live`, `Files` or `Process`.
    Update(Disruption),
    /// The microVM boots again.
    Reboot,
    /// The microVM is made anew; what becomes of its disk stands in the steps.
    Replace,
    /// The microVM is shut down and stays so.
    Stop,
    /// The microVM's memory is saved, and it rests.
    Pause,
    /// The microVM goes on from its saved memory.
    Resume,
    /// The sandbox is removed.
    Delete,
    /// A retained disk whose time is over is deleted.
    ExpireDisk,
    /// A moment of the app is kept; it goes on.
    Snapshot,
    /// Snapshots of the app that nothing wants any more are let go.
    ExpireSnapshot,
}

/// Why an action is in the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reason {
    /// The app is declared and has no sandbox.
    NotCreated,
    /// An earlier pass did not finish.
    Unfinished,
    /// The declaration changed.
    SpecChanged,
    /// The guest differs from what was applied, though the declaration did not change: what differs.
    Drift(String),
    /// The microVM is not running: why.
    VmDown(String),
    /// The guest does not answer: since when, in words.
    GuestHung(String),
    /// The app is not declared any more.
    NotDeclared,
    /// The app was renamed from this.
    Renamed(AppKey),
    /// The declaration says `power: stopped`, `paused`, or `running` again.
    PowerChanged(Power),
    /// Another power state than the declared one holds here.
    PowerHere(PowerOverride),
    /// The microVM could not go on from its saved memory: why.
    Unresumable(String),
    /// The disk's retention is over.
    RetentionOver,
    /// The inventory does not know this microVM.
    Unrecorded,
    /// A data disk that was kept for the app is taken up again.
    DiskReturns(DiskId),
    /// The sandbox begins as this.
    BeginsAs(Beginning),
    /// A snapshot takes the place of the app's state.
    Restore(Box<Restoration>),
    /// A snapshot is wanted.
    SnapshotWanted {
        /// What it is called.
        snapshot: SnapshotKey,
        /// By whom or what.
        cause: SnapshotCause,
    },
    /// A snapshot is let go.
    SnapshotOver {
        /// What it is called.
        snapshot: SnapshotKey,
        /// Which of that name.
        generation: Generation,
        /// Why.
        why: Over,
    },
}

/// What a restore does, and what it costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restoration {
    /// The snapshot.
    pub snapshot: SnapshotRef,
    /// The token that asks for it.
    pub token: String,
    /// When the snapshot was taken: what has changed since is lost.
    pub taken: Timestamp,
    /// How long ago that is, in whole minutes, hours or days.
    pub age: Span,
    /// The revision that was applied then.
    pub then: Option<CommitId>,
    /// The revision that is applied now.
    pub now: Option<CommitId>,
}

/// Why a snapshot is let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Over {
    /// It is not declared any more: its retention begins.
    NotDeclared,
    /// It is declared again, so that its retention is over.
    DeclaredAgain,
    /// There are as many newer ones as are to be kept.
    Superseded,
    /// Its retention is over.
    RetentionOver,
    /// What it was taken for is done, or not wanted any more.
    Done,
    /// Its removal has begun.
    Unfinished,
}

/// Why an action cannot begin now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Block {
    /// An app that it depends on is not ready: which, and why.
    Dependency {
        /// The app waited for.
        app: AppKey,
        /// What it lacks.
        reason: String,
    },
    /// It does not fit within the limits, as "needs 512Mi, 300Mi of 4Gi free".
    Capacity(String),
    /// A failed try is waited out, until this time.
    Backoff {
        /// The earliest next try.
        until: jiff::Timestamp,
        /// What went wrong last.
        reason: String,
    },
    /// It was healed too often in too short a time.
    Flapping(String),
    /// It was carried out again and again, and is needed still.
    Repeating {
        /// How often it was carried out.
        times: u32,
        /// How long that took, from the first time to the last.
        within: Span,
        /// What is not as declared nevertheless.
        what: String,
        /// The earliest next try.
        until: jiff::Timestamp,
    },
    /// A data disk would shrink, which the declaration does not allow.
    DiskShrink {
        /// Its size now.
        from: ByteSize,
        /// The declared size.
        to: ByteSize,
    },
    /// Removals wait until every other app is ready.
    Unhealthy(String),
    /// Removals wait until another app's removal is done.
    Dependent(AppKey),
    /// It would disturb the app outside its maintenance windows.
    Window {
        /// When a window opens next; absent where none does in the foreseeable future.
        opens: Option<jiff::Timestamp>,
    },
    /// The plan that is being carried out does not have it.
    Unplanned,
    /// The snapshot that it begins from, or goes back to, is not there.
    Snapshot {
        /// Which, in words.
        snapshot: String,
        /// What it lacks.
        reason: String,
    },
}

/// A snapshot that is to be taken or removed, and cannot be now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldSnapshot {
    /// What it is called.
    pub snapshot: SnapshotKey,
    /// The app that it is of.
    pub app: AppKey,
    /// Why.
    pub reason: SnapshotHold,
}

/// Why a snapshot is not taken or not removed now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SnapshotHold {
    /// Its app is not as it has to be for that: what it lacks.
    Waits(String),
    /// A failed try is waited out, until this time.
    Backoff {
        /// The earliest next try.
        until: Timestamp,
        /// What went wrong last.
        reason: String,
    },
    /// It would be let go, but this app is to begin from it, or to go back to it.
    Used(AppKey),
    /// It would be let go, but the declarations could not be read in full: why.
    PruneUnsafe(String),
    /// Its newest declaration has mistakes, so that it stays as it is: the mistakes.
    Stalled(String),
}

/// An object that is held as it is, so that the plan does nothing for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Which app.
    pub app: AppKey,
    /// By what.
    pub reason: Hold,
}

/// What holds an object as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Hold {
    /// Its declaration says `suspend: true`.
    Suspended,
    /// Somebody on this host has suspended it.
    SuspendedHere(Suspension),
    /// It is not declared any more and its last declaration said `prune: disabled`.
    PruneDisabled,
    /// It is not declared any more, and the declarations could not be read in full: why.
    PruneUnsafe(String),
    /// Its newest declaration has mistakes, so that it stays as it was declared before, if it was: the mistakes.
    Stalled(String),
    /// All is carried out and it is not ready yet: what it lacks.
    Unready(String),
    /// It rests and cannot go on from its saved memory, and is declared to stay so until somebody has looked: why it cannot.
    Unresumable(String),
}

/// One step of an action. Each can be asked whether it is needed, applied, and verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Step {
    /// Write the inventory row, before anything of the sandbox exists or changes.
    Record(Box<SandboxRecord>),
    /// Make the template's root image, unless it is there.
    EnsureTemplate {
        /// Its content.
        digest: TemplateDigest,
        /// How it comes to be.
        root: DesiredTemplateRoot,
    },
    /// Make the data disk, or grow it to this size.
    EnsureDisk {
        /// Which disk.
        disk: DiskId,
        /// Whose.
        app: AppKey,
        /// Its size.
        size: ByteSize,
    },
    /// Let the running guest see that its disk grew.
    GrowDisk {
        /// Which sandbox.
        sandbox: SandboxId,
        /// The size.
        size: ByteSize,
    },
    /// Start the microVM as the record's machine says. One that rests boots from its disk.
    Launch(Machine),
    /// Save the microVM's memory and end it.
    Pause {
        /// Which sandbox.
        sandbox: SandboxId,
        /// The boot that runs.
        nonce: BootNonce,
        /// What its saved state is called.
        snapshot: SnapshotId,
    },
    /// Let the microVM go on from its saved memory, as the boot that the record's machine names.
    Resume(Machine),
    /// Wait for the agent to answer with the boot's nonce.
    AwaitAgent {
        /// Which sandbox.
        sandbox: SandboxId,
        /// The longest wait.
        timeouts: Timeouts,
    },
    /// Bring the workspace to this content.
    SyncFiles {
        /// Which sandbox.
        sandbox: SandboxId,
        /// The content.
        tree: TreeDigest,
        /// The revision and folder to read it from.
        revision: CommitId,
        /// The folder, absent for the app's own.
        path: setpoint_schema::name::RepoPath,
    },
    /// Run the build, and (re)start processes.
    ApplyProcesses {
        /// Which sandbox.
        sandbox: SandboxId,
        /// The processes and their environment.
        set: Box<setpoint_schema::runtime::ProcessSet>,
        /// Whether the build runs first.
        build: BuildStep,
        /// Which processes restart.
        restart: Restart,
    },
    /// Shut the guest down, then end the microVM.
    Stop {
        /// Which sandbox.
        sandbox: SandboxId,
        /// How long a clean shutdown may take; none ends it at once.
        grace: Option<setpoint_schema::quantity::Span>,
    },
    /// Remove the microVM's directory, sockets and logs.
    RemoveVm(SandboxId),
    /// Keep or delete a data disk that no sandbox uses any more.
    ReleaseDisk {
        /// Which disk.
        disk: DiskId,
        /// `Retained` keeps it until its time; absent deletes it.
        keep: Option<DiskState>,
    },
    /// Write down that this spec has been carried out.
    RecordApplied {
        /// Which sandbox.
        sandbox: SandboxId,
        /// The spec.
        spec: PinnedSpec,
        /// Its generation.
        generation: Generation,
        /// The revision that it came from.
        revision: CommitId,
    },
    /// Remove the inventory row, after nothing of the sandbox is left.
    Forget(SandboxId),
    /// Write a snapshot's row, before anything of it exists or changes.
    RecordSnapshot(Box<SnapshotRecord>),
    /// Keep a moment of the sandbox, which goes on; what came of it is written down.
    TakeSnapshot {
        /// What it is called.
        snapshot: SnapshotId,
        /// Which sandbox.
        sandbox: SandboxId,
        /// The boot that runs; absent for one at rest. Memory is only there to keep if that is paused.
        nonce: Option<BootNonce>,
        /// Its disk.
        disk: DiskId,
        /// What is kept.
        content: Content,
    },
    /// Start the microVM where a snapshot was taken, with a copy of its disk. One whose disk is its own by now boots from that.
    LaunchFrom {
        /// The microVM.
        machine: Machine,
        /// The snapshot.
        snapshot: SnapshotId,
        /// The size of the disk in it.
        size: ByteSize,
    },
    /// Make the data disk as a copy of a snapshot's, unless it is there.
    CopyDisk {
        /// Which disk.
        disk: DiskId,
        /// Whose.
        app: AppKey,
        /// Its size.
        size: ByteSize,
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// Remove from a copied disk what it is to do without: these directories of the workspace, and the logs of the app that it was of.
    LeaveOut {
        /// Which sandbox.
        sandbox: SandboxId,
        /// The snapshot that its disk is a copy of.
        snapshot: SnapshotId,
        /// The names of the directories.
        names: BTreeSet<DirName>,
    },
    /// Remove a snapshot's files.
    RemoveSnapshot(SnapshotId),
    /// Remove a snapshot's row, after nothing of it is left.
    ForgetSnapshot(SnapshotId),
    /// Write down that a restore of this token counts as carried out.
    RecordRestored {
        /// Which app.
        app: AppKey,
        /// The token.
        token: String,
    },
}

impl Step {
    /// The sandbox that it acts on; absent for templates and disks.
    #[must_use]
    pub fn sandbox(&self) -> Option<&SandboxId> {
        match self {
            Self::Record(record) => Some(&record.id),
            Self::Launch(machine) | Self::Resume(machine) | Self::LaunchFrom { machine, .. } => Some(&machine.sandbox),
            Self::RemoveVm(sandbox)
            | Self::Pause { sandbox, .. }
            | Self::Forget(sandbox)
            | Self::GrowDisk { sandbox, .. }
            | Self::AwaitAgent { sandbox, .. }
            | Self::SyncFiles { sandbox, .. }
            | Self::ApplyProcesses { sandbox, .. }
            | Self::Stop { sandbox, .. }
            | Self::TakeSnapshot { sandbox, .. }
            | Self::LeaveOut { sandbox, .. }
            | Self::RecordApplied { sandbox, .. } => Some(sandbox),
            Self::EnsureTemplate { .. }
            | Self::EnsureDisk { .. }
            | Self::ReleaseDisk { .. }
            | Self::RecordSnapshot(_)
            | Self::CopyDisk { .. }
            | Self::RemoveSnapshot(_)
            | Self::ForgetSnapshot(_)
            | Self::RecordRestored { .. } => None,
        }
    }
}

/// Whether the build runs before processes start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BuildStep {
    /// It does, if one is declared.
    Run,
    /// It does not.
    Keep,
}

/// Which processes restart when a process set is applied. A process that does not run yet is always started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Restart {
    /// None: only settings that live processes read, such as the health path.
    None,
    /// Those with `restart_after_task`.
    AfterTask,
    /// All.
    All,
}
