//! Reasons in words: the one place where the plan's enums become text for people.

use std::fmt;

use setpoint_schema::app::Power;
use setpoint_schema::disruption::Disruption;
use setpoint_schema::id::CommitId;
use setpoint_schema::observed::{PowerCause, PowerOverride, SnapshotCause, Suspension};
use setpoint_schema::quantity::Span;

use crate::assumed;
use crate::model::{Action, ActionKind, Block, Hold, Over, Reason, Restoration, SnapshotHold, Step};

impl ActionKind {
    /// The action as a command, as in plans.
    #[must_use]
    pub fn verb(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Adopt => "adopt",
            Self::Update(_) => "update",
            Self::Reboot => "reboot",
            Self::Replace => "replace",
            Self::Stop => "stop",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Delete => "delete",
            Self::ExpireDisk => "expire disk",
            Self::Snapshot => "snapshot",
            Self::ExpireSnapshot => "expire snapshot",
        }
    }

    fn pending(self) -> &'static str {
        match self {
            Self::Create => "it is to be created",
            Self::Adopt => "it is to be adopted",
            Self::Update(_) => "it is to be updated",
            Self::Reboot => "it is to boot again",
            Self::Replace => "it is to be replaced",
            Self::Stop => "it is to be stopped",
            Self::Pause => "it is to be paused",
            Self::Resume => "it is to be resumed",
            Self::Delete => "it is to be removed",
            Self::ExpireDisk => "an old disk is to be deleted",
            Self::Snapshot => "a snapshot is to be taken",
            Self::ExpireSnapshot => "a snapshot is to be let go",
        }
    }
}

impl Action {
    /// What others see of the app while the action is not done.
    #[must_use]
    pub fn trouble(&self) -> String {
        self.blocked.first().map_or_else(|| self.kind.pending().to_owned(), Block::to_string)
    }
}

impl fmt::Display for ActionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Update(disruption) => write!(f, "update ({})", class(*disruption)),
            other => f.write_str(other.verb()),
        }
    }
}

/// A disruption class as declarations and plans write it.
pub(crate) fn class(disruption: Disruption) -> &'static str {
    match disruption {
        Disruption::Live => "live",
        Disruption::Files => "files",
        Disruption::Process => "process",
        Disruption::Reboot => "reboot",
        Disruption::Replace => "replace",
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotCreated => f.write_str("declared and not there yet"),
            Self::Unfinished => f.write_str("an earlier pass did not finish"),
            Self::SpecChanged => f.write_str("the declaration changed"),
            Self::Drift(what) => write!(f, "drift: {what}"),
            Self::VmDown(why) => write!(f, "the microVM is down: {why}"),
            Self::GuestHung(why) => write!(f, "the guest hangs: {why}"),
            Self::NotDeclared => f.write_str("not declared any more"),
            Self::Renamed(from) => write!(f, "renamed from {from}"),
            Self::PowerChanged(Power::Running) => f.write_str("declared running again"),
            Self::PowerChanged(Power::Paused) => f.write_str("declared paused"),
            Self::PowerChanged(Power::Stopped) => f.write_str("declared stopped"),
            Self::PowerHere(PowerOverride { since, cause, .. }) => match cause {
                PowerCause::Asked { by } => write!(f, "asked for here at {since:.0} by {by}"),
                PowerCause::Idle { since } => write!(f, "nobody has used it since {since:.0}"),
                PowerCause::Request => f.write_str("a request came for it"),
            },
            Self::Unresumable(why) => write!(f, "it could not go on from its saved memory: {why}"),
            Self::RetentionOver => f.write_str("the disk's retention is over"),
            Self::Unrecorded => f.write_str("the inventory does not know this microVM"),
            Self::DiskReturns(disk) => write!(f, "the kept data disk {disk} is taken up again"),
            Self::BeginsAs(beginning) => write!(f, "begins as {beginning}"),
            Self::Restore(restoration) => restoration.fmt(f),
            Self::SnapshotWanted { snapshot, cause } => write!(f, "snapshot {snapshot} {}", wanted(cause)),
            Self::SnapshotOver { snapshot, generation, why } => {
                write!(f, "snapshot {snapshot}, generation {generation}, {}", over(*why))
            }
        }
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dependency { app, reason } => write!(f, "waits for {app}: {reason}"),
            Self::Capacity(what) => write!(f, "does not fit: {what}"),
            Self::Backoff { until, reason } => write!(f, "tried again at {until:.0} after: {reason}"),
            Self::Flapping(why) => write!(f, "given up: {why}"),
            Self::Repeating { times, within, what, until } => {
                write!(
                    f,
                    "applied {times} times in {within} and still not as declared: {what}; tried again at {until:.0}"
                )
            }
            Self::DiskShrink { from, to } => {
                write!(f, "the data disk would shrink from {from} to {to}, which needs `shrink: replace`")
            }
            Self::Unhealthy(why) => write!(f, "removals wait for {why}"),
            Self::Dependent(app) => write!(f, "{app} depends on it"),
            Self::Window { opens: Some(opens) } => {
                write!(f, "waits for its maintenance window, which opens at {opens:.0}")
            }
            Self::Window { opens: None } => {
                f.write_str("waits for a maintenance window, and its windows leave no time open")
            }
            Self::Unplanned => f.write_str("not in the plan that is carried out"),
            Self::Snapshot { snapshot, reason } => write!(f, "waits for {snapshot}: {reason}"),
        }
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Suspended => f.write_str("suspended by its declaration"),
            Self::SuspendedHere(Suspension { since, by }) => write!(f, "suspended here since {since:.0} by {by}"),
            Self::PruneDisabled => f.write_str("not declared any more, and kept by `prune: disabled`"),
            Self::PruneUnsafe(why) => write!(f, "not removed, because {why}"),
            Self::Stalled(why) => write!(f, "its declaration has mistakes: {why}"),
            Self::Unready(why) => write!(f, "not ready: {why}"),
            Self::Unresumable(why) => {
                write!(f, "stays at rest, because it could not go on from its saved memory: {why}")
            }
        }
    }
}

impl fmt::Display for Restoration {
    /// Between two revisions there is no time, and nothing was applied at any.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { snapshot, token, taken, age, then, now } = self;
        write!(f, "goes back to snapshot {snapshot}, by token {token:?}: ")?;
        if *taken == assumed::NOW {
            return f.write_str("what has changed since it was taken is lost");
        }
        let short = |commit: &Option<CommitId>| {
            commit.as_ref().map_or_else(|| "none".to_owned(), |commit| commit.short().to_owned())
        };
        let ago = if *age == Span::secs(0) { "less than a minute".to_owned() } else { age.to_string() };
        write!(f, "what has changed since {taken:.0} ({ago} ago) is lost; commit {} then", short(then))?;
        write!(f, ", {} now", short(now))
    }
}

fn wanted(cause: &SnapshotCause) -> String {
    match cause {
        SnapshotCause::Declared { digest: _ } => "is declared".to_owned(),
        SnapshotCause::Asked { by } => format!("was asked for here by {by}"),
        SnapshotCause::Fork { to } => format!("is what {to} begins as"),
        SnapshotCause::Restore { token } => format!("keeps what a restore (token {token:?}) replaces"),
    }
}

fn over(why: Over) -> &'static str {
    match why {
        Over::NotDeclared => "is not declared any more",
        Over::DeclaredAgain => "is declared again",
        Over::Superseded => "has enough newer ones",
        Over::RetentionOver => "was kept for as long as it was to be",
        Over::Done => "is of no use any more",
        Over::Unfinished => "is half removed",
    }
}

impl fmt::Display for SnapshotHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waits(why) => write!(f, "not taken yet: {why}"),
            Self::Backoff { until, reason } => write!(f, "tried again at {until:.0} after: {reason}"),
            Self::Used(app) => write!(f, "not removed, because {app} is to begin from it or go back to it"),
            Self::PruneUnsafe(why) => write!(f, "not removed, because {why}"),
            Self::Stalled(why) => write!(f, "its declaration has mistakes: {why}"),
        }
    }
}

impl Step {
    /// The step's name, as plans, journals and failpoints write it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Record(_) => "record",
            Self::EnsureTemplate { .. } => "ensure-template",
            Self::EnsureDisk { .. } => "ensure-disk",
            Self::GrowDisk { .. } => "grow-disk",
            Self::Launch(_) => "launch",
            Self::Pause { .. } => "pause",
            Self::Resume(_) => "resume",
            Self::AwaitAgent { .. } => "await-agent",
            Self::SyncFiles { .. } => "sync-files",
            Self::ApplyProcesses { .. } => "apply-processes",
            Self::Stop { .. } => "stop",
            Self::RemoveVm(_) => "remove-vm",
            Self::ReleaseDisk { .. } => "release-disk",
            Self::RecordApplied { .. } => "record-applied",
            Self::Forget(_) => "forget",
            Self::RecordSnapshot(_) => "record-snapshot",
            Self::TakeSnapshot { .. } => "take-snapshot",
            Self::LaunchFrom { .. } => "launch-from",
            Self::CopyDisk { .. } => "copy-disk",
            Self::LeaveOut { .. } => "leave-out",
            Self::RemoveSnapshot(_) => "remove-snapshot",
            Self::ForgetSnapshot(_) => "forget-snapshot",
            Self::RecordRestored { .. } => "record-restored",
        }
    }
}
