//! Sandboxes that begin as a snapshot, or as another app is at that moment.
//!
//! Where the machine is of the same kind as then, it goes on from the memory that was kept; else, or where the disk alone was kept, it
//! boots from a copy of the disk. Until a spec has been applied nothing is its own but what it began from, so that a beginning which
//! was cut short begins again.

use setpoint_schema::app::{Beginning, DesiredApp};
use setpoint_schema::id::SandboxId;
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{Machine, Origin, OriginRestore, SandboxRecord, SnapshotRecord};
use setpoint_schema::snapshot::Content;

use super::app::{counted, recorded};
use super::boot;
use super::shelf::{Found, Shot};
use super::world::World;
use crate::model::{Action, ActionKind, Block, Reason, Step};

/// A sandbox for an app that has none and is to begin as something.
pub(super) fn create(world: &World<'_>, key: &AppKey, app: &DesiredApp, beginning: &Beginning) -> Action {
    let sandbox = world.entropy.sandbox(key, world.observed);
    let mut action = Action {
        app: key.clone(),
        sandbox: sandbox.clone(),
        kind: ActionKind::Create,
        reasons: vec![Reason::NotCreated, Reason::BeginsAs(beginning.clone())],
        changes: Vec::new(),
        steps: Vec::new(),
        blocked: Vec::new(),
    };
    match world.shelf.beginning(key, beginning) {
        Found::There(shot) => {
            let record = record(world, app, &sandbox, shot, None);
            action.steps.push(Step::Record(Box::new(record.clone())));
            action.steps.extend(boot::ensure_template(world, app));
            action.steps.extend(up(app, record.machine, shot));
            action.steps.extend(boot::fill(world, app, &sandbox));
            action.steps.extend(counted(world, app));
            action.steps.push(recorded(world, app, sandbox, None));
        }
        Found::Waits { snapshot, reason } => action.blocked.push(Block::Snapshot { snapshot, reason }),
    }
    action
}

/// The row of a new sandbox that begins from a snapshot, with a disk of its own.
pub(super) fn record(
    world: &World<'_>,
    app: &DesiredApp,
    sandbox: &SandboxId,
    shot: Shot<'_>,
    restore: Option<OriginRestore>,
) -> SandboxRecord {
    let disk = world.entropy.disk(&app.metadata.key, world.observed);
    let Shot { record, kept, moment: _ } = shot;
    let origin = Origin {
        snapshot: record.id.clone(),
        key: record.key.clone(),
        generation: record.generation,
        app: record.app.clone(),
        taken: kept.at,
        at: world.now,
        restore,
    };
    SandboxRecord {
        from: Some(record.id.clone()),
        origin: Some(Box::new(origin)),
        ..boot::new_record(world, app, sandbox.clone(), disk)
    }
}

/// The way from a row to a guest that answers.
pub(super) fn up(app: &DesiredApp, machine: Machine, shot: Shot<'_>) -> Vec<Step> {
    let (sandbox, snapshot) = (machine.sandbox.clone(), shot.record.id.clone());
    let then = &shot.moment.machine;
    let is_same_kind =
        (then.vcpus, then.memory_mib, &then.template) == (machine.vcpus, machine.memory_mib, &machine.template);
    if is_same_kind && shot.record.content == Content::Memory {
        let launch = Step::LaunchFrom { machine, snapshot, size: shot.moment.disk };
        return vec![launch, boot::await_agent(app, sandbox)];
    }
    let size = app.spec.app.resources.disk.0.max(shot.moment.disk);
    let copy = Step::CopyDisk { disk: machine.disk.clone(), app: app.metadata.key.clone(), size, snapshot };
    let mut steps = vec![copy, Step::Launch(machine), boot::await_agent(app, sandbox.clone())];
    steps.push(leave_out(&sandbox, shot.record));
    if size > shot.moment.disk {
        steps.push(Step::GrowDisk { sandbox, size });
    }
    steps
}

/// What a copied disk is to do without: the other one's logs at any rate.
pub(super) fn leave_out(sandbox: &SandboxId, snapshot: &SnapshotRecord) -> Step {
    Step::LeaveOut { sandbox: sandbox.clone(), snapshot: snapshot.id.clone(), names: snapshot.exclude.clone() }
}
