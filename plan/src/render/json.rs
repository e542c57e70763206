//! A plan for programs.
//!
//! `format_version` names the shape; its minor part grows with additions, so readers ignore what they do not know. A replace
//! is `["delete", "create"]`, so that whoever looks for removals finds all of them. What drifted by itself stands apart from
//! what was declared anew.

use serde::Serialize;
use serde_json::{Value, json};
use setpoint_schema::disruption::FieldChange;
use setpoint_schema::observed::DiskState;

use super::{Basis, Review, Summary, shown};
use crate::model::{Action, ActionKind, Block, FORMAT_VERSION, HeldSnapshot, Hold, Reason, SnapshotHold, Step};
use crate::words;

/// The plan as JSON. Where it is compared with a revision, what was made up for that is null.
#[must_use]
pub fn json<'a>(review: impl Into<Review<'a>>) -> Value {
    let review = review.into();
    let Review { plan, basis, mistakes } = review;
    let (against, observation) = match basis {
        Basis::World => (None, Some(&plan.observation)),
        Basis::Revision(revision) => (Some(revision), None),
    };
    json!({
        "format_version": FORMAT_VERSION,
        "plan": plan.id,
        "parent": plan.parent,
        "revision": plan.revision,
        "against": against,
        "observation": observation,
        "summary": Summary::of_review(&review),
        "actions": plan.actions.iter().map(|one| action(one, &review)).collect::<Vec<_>>(),
        "drift": plan.actions.iter().flat_map(|one| drift(one)).collect::<Vec<_>>(),
        "held": plan.held.iter().map(|held| reasoned(&held.app, hold_code(&held.reason), &held.reason)).collect::<Vec<_>>(),
        "snapshots": plan.snapshots.iter().map(held_snapshot).collect::<Vec<_>>(),
        "unchanged": plan.unchanged,
        "diagnostics": mistakes,
    })
}

fn action(action: &Action, review: &Review<'_>) -> Value {
    let basis = review.basis;
    let sandbox = match basis {
        Basis::World => Some(&action.sandbox),
        Basis::Revision(_) => None,
    };
    json!({
        "app": action.app,
        "renamed_from": action.renamed_from(),
        "sandbox": sandbox,
        "actions": verbs(action),
        "action_reason": action.reasons.first().map(reason_code),
        "reasons": action.reasons.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "disruption": disruption(action.kind),
        "changes": action.changes.iter().map(change).collect::<Vec<_>>(),
        "disks": action.steps.iter().filter_map(|step| disk(step, basis)).collect::<Vec<_>>(),
        "steps": action.steps.iter().map(Step::name).collect::<Vec<_>>(),
        "blocked": blocks(action, basis).map(block).collect::<Vec<_>>(),
    })
}

/// What a reader scans for. Nothing that destroys goes by another name than `delete`.
fn verbs(action: &Action) -> &'static [&'static str] {
    let gone = |step: &Step| matches!(step, Step::ReleaseDisk { keep: None, .. } | Step::RemoveSnapshot(_));
    let destroys = action.steps.iter().any(gone);
    match action.kind {
        ActionKind::Create => &["create"],
        ActionKind::Adopt => &["adopt"],
        ActionKind::Update(_) => &["update"],
        ActionKind::Reboot => &["reboot"],
        ActionKind::Replace => &["delete", "create"],
        ActionKind::Stop => &["stop"],
        ActionKind::Pause => &["pause"],
        ActionKind::Resume => &["resume"],
        ActionKind::Delete => &["delete"],
        ActionKind::ExpireDisk | ActionKind::ExpireSnapshot if destroys => &["delete"],
        ActionKind::ExpireDisk | ActionKind::ExpireSnapshot => &["retain"],
        ActionKind::Snapshot => &["snapshot"],
    }
}

fn disruption(kind: ActionKind) -> Option<&'static str> {
    match kind {
        ActionKind::Update(disruption) => Some(words::class(disruption)),
        ActionKind::Reboot | ActionKind::Stop => Some("reboot"),
        ActionKind::Replace => Some("replace"),
        ActionKind::Pause | ActionKind::Resume | ActionKind::Snapshot => Some("live"),
        ActionKind::Create
        | ActionKind::Adopt
        | ActionKind::Delete
        | ActionKind::ExpireDisk
        | ActionKind::ExpireSnapshot => None,
    }
}

fn change(change: &FieldChange) -> Value {
    let (before, after) = shown(change);
    let mut shown = json!({
        "path": change.path,
        "before": before,
        "after": after,
        "disruption": change.disruption,
    });
    if change.sensitive {
        shown["sensitive"] = true.into();
    }
    shown
}

fn disk(step: &Step, basis: Basis<'_>) -> Option<Value> {
    let Step::ReleaseDisk { disk, keep } = step else { return None };
    let until = match keep {
        Some(DiskState::Retained { until }) => Some(until),
        Some(DiskState::InUse) | None => None,
    };
    let (disk, until) = match basis {
        Basis::World => (Some(disk), until),
        Basis::Revision(_) => (None, None),
    };
    let fate = if keep.is_some() { "retain" } else { "delete" };
    Some(json!({ "disk": disk, "action": fate, "until": until }))
}

fn drift(action: &Action) -> impl Iterator<Item = Value> {
    action
        .reasons
        .iter()
        .filter(|reason| reason.is_drift())
        .map(|reason| reasoned(&action.app, reason_code(reason), reason))
}

fn reasoned(app: &impl Serialize, code: &str, reason: &impl ToString) -> Value {
    json!({ "app": app, "reason": code, "message": reason.to_string() })
}

/// What is in an action's way. Between two revisions, only what does not pass by itself: the rest stands in the order.
fn blocks<'a>(action: &'a Action, basis: Basis<'_>) -> impl Iterator<Item = &'a Block> {
    let lasts = move |block: &&Block| match basis {
        Basis::World => true,
        Basis::Revision(_) => matches!(super::between_revisions(block), Some(super::Wait::Blocked(_))),
    };
    action.blocked.iter().filter(lasts)
}

fn block(block: &Block) -> Value {
    let code = match block {
        Block::Dependency { .. } => "dependency",
        Block::Capacity(_) => "capacity",
        Block::Backoff { .. } => "backoff",
        Block::Flapping(_) => "flapping",
        Block::Repeating { .. } => "repeating",
        Block::DiskShrink { .. } => "disk_shrink",
        Block::Unhealthy(_) => "unhealthy",
        Block::Dependent(_) => "dependent",
        Block::Window { .. } => "window",
        Block::Unplanned => "unplanned",
        Block::Snapshot { .. } => "snapshot",
    };
    json!({ "reason": code, "message": block.to_string() })
}

fn hold_code(hold: &Hold) -> &'static str {
    match hold {
        Hold::Suspended => "suspended",
        Hold::SuspendedHere(_) => "suspended_here",
        Hold::PruneDisabled => "prune_disabled",
        Hold::PruneUnsafe(_) => "prune_unsafe",
        Hold::Stalled(_) => "stalled",
        Hold::Unready(_) => "unready",
        Hold::Unresumable(_) => "unresumable",
    }
}

fn held_snapshot(held: &HeldSnapshot) -> Value {
    let code = match &held.reason {
        SnapshotHold::Waits(_) => "waits",
        SnapshotHold::Backoff { .. } => "backoff",
        SnapshotHold::Used(_) => "used",
        SnapshotHold::PruneUnsafe(_) => "prune_unsafe",
        SnapshotHold::Stalled(_) => "stalled",
    };
    json!({ "snapshot": held.snapshot, "app": held.app, "reason": code, "message": held.reason.to_string() })
}

/// A reason's name, for programs.
#[must_use]
pub fn reason_code(reason: &Reason) -> &'static str {
    match reason {
        Reason::NotCreated => "not_created",
        Reason::Unfinished => "unfinished",
        Reason::SpecChanged => "spec_changed",
        Reason::Drift(_) => "drift",
        Reason::VmDown(_) => "vm_down",
        Reason::GuestHung(_) => "guest_hung",
        Reason::NotDeclared => "not_declared",
        Reason::Renamed(_) => "renamed",
        Reason::PowerChanged(_) => "power_changed",
        Reason::PowerHere(_) => "power_here",
        Reason::Unresumable(_) => "unresumable",
        Reason::RetentionOver => "retention_over",
        Reason::Unrecorded => "unrecorded",
        Reason::DiskReturns(_) => "disk_returns",
        Reason::BeginsAs(_) => "begins_as",
        Reason::Restore(_) => "restore",
        Reason::SnapshotWanted { .. } => "snapshot_wanted",
        Reason::SnapshotOver { .. } => "snapshot_over",
    }
}
