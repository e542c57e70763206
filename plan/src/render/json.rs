//! A plan for programs.
//!
//! `format_version` names the shape; its minor part grows with additions, so readers ignore what they do not know. A replace
//! is `["delete", "create"]`, so that whoever looks for removals finds all of them. What drifted by itself stands apart from
//! what was declared anew.

use serde::Serialize;
use serde_json::{Value, json};
use setpoint_schema::disruption::FieldChange;
use setpoint_schema::observed::DiskState;

use super::{Summary, shown};
use crate::model::{Action, ActionKind, Block, FORMAT_VERSION, Hold, Plan, Reason, Step};
use crate::words;

/// The plan as JSON.
#[must_use]
pub fn json(plan: &Plan) -> Value {
    json!({
        "format_version": FORMAT_VERSION,
        "plan": plan.id,
        "parent": plan.parent,
        "revision": plan.revision,
        "observation": plan.observation,
        "summary": Summary::of(plan),
        "actions": plan.actions.iter().map(|of| action(of)).collect::<Vec<_>>(),
        "drift": plan.actions.iter().flat_map(|of| drift(of)).collect::<Vec<_>>(),
        "held": plan.held.iter().map(|held| reasoned(&held.app, hold_code(&held.reason), &held.reason)).collect::<Vec<_>>(),
        "unchanged": plan.unchanged,
    })
}

fn action(action: &Action) -> Value {
    json!({
        "app": action.app,
        "sandbox": action.sandbox,
        "actions": verbs(action),
        "action_reason": action.reasons.first().map(reason_code),
        "reasons": action.reasons.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "disruption": disruption(action.kind),
        "changes": action.changes.iter().map(change).collect::<Vec<_>>(),
        "disks": action.steps.iter().filter_map(disk).collect::<Vec<_>>(),
        "steps": action.steps.iter().map(Step::name).collect::<Vec<_>>(),
        "blocked": action.blocked.iter().map(block).collect::<Vec<_>>(),
    })
}

/// What a reader scans for. Nothing that destroys goes by another name than `delete`.
fn verbs(action: &Action) -> &'static [&'static str] {
    let destroys = action.steps.iter().any(|step| matches!(step, Step::ReleaseDisk { keep: None, .. }));
    match action.kind {
        ActionKind::Create => &["create"],
        ActionKind::Adopt => &["adopt"],
        ActionKind::Update(_) => &["update"],
        ActionKind::Reboot => &["reboot"],
        ActionKind::Replace => &["delete", "create"],
        ActionKind::Stop => &["stop"],
        ActionKind::Delete => &["delete"],
        ActionKind::ExpireDisk if destroys => &["delete"],
        ActionKind::ExpireDisk => &["retain"],
    }
}

fn disruption(kind: ActionKind) -> Option<&'static str> {
    match kind {
        ActionKind::Update(disruption) => Some(words::class(disruption)),
        ActionKind::Reboot | ActionKind::Stop => Some("reboot"),
        ActionKind::Replace => Some("replace"),
        ActionKind::Create | ActionKind::Adopt | ActionKind::Delete | ActionKind::ExpireDisk => None,
    }
}

fn change(change: &FieldChange) -> Value {
    let (before, after) = shown(change);
    json!({
        "path": change.path,
        "before": before,
        "after": after,
        "disruption": change.disruption,
    })
}

fn disk(step: &Step) -> Option<Value> {
    let Step::ReleaseDisk { disk, keep } = step else { return None };
    let until = match keep {
        Some(DiskState::Retained { until }) => Some(until),
        Some(DiskState::InUse) | None => None,
    };
    let fate = if keep.is_some() { "retain" } else { "delete" };
    Some(json!({ "disk": disk, "action": fate, "until": until }))
}

fn drift(action: &Action) -> impl Iterator<Item = Value> {
    let drifted = action.reasons.iter().filter(|reason| match reason {
        Reason::Drift(_) | Reason::VmDown(_) | Reason::GuestHung(_) => true,
        Reason::NotCreated
        | Reason::Unfinished
        | Reason::SpecChanged
        | Reason::NotDeclared
        | Reason::Renamed(_)
        | Reason::PowerChanged(_)
        | Reason::RetentionOver
        | Reason::Unrecorded
        | Reason::DiskReturns(_) => false,
    });
    drifted.map(|reason| reasoned(&action.app, reason_code(reason), reason))
}

fn reasoned(app: &impl Serialize, code: &str, reason: &impl ToString) -> Value {
    json!({ "app": app, "reason": code, "message": reason.to_string() })
}

fn block(block: &Block) -> Value {
    let code = match block {
        Block::Dependency { .. } => "dependency",
        Block::Capacity(_) => "capacity",
        Block::Backoff { .. } => "backoff",
        Block::Flapping(_) => "flapping",
        Block::DiskShrink { .. } => "disk_shrink",
        Block::Unhealthy(_) => "unhealthy",
        Block::Dependent(_) => "dependent",
        Block::Window { .. } => "window",
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
    }
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
        Reason::RetentionOver => "retention_over",
        Reason::Unrecorded => "unrecorded",
        Reason::DiskReturns(_) => "disk_returns",
    }
}
