//! Restores: a snapshot takes the place of an app's state, once for each token, and what was there is kept in a snapshot first.
//!
//! A token counts as carried out from when a sandbox is as its declaration says, also one that was made with it: there was nothing to go
//! back from. While the snapshot is not there yet, the rest of the declaration is carried out without the restore.

use std::collections::BTreeSet;

use jiff::Timestamp;
use setpoint_schema::app::{DesiredApp, Restore, Retain};
use setpoint_schema::disruption::FieldChange;
use setpoint_schema::id::SnapshotId;
use setpoint_schema::name::{AppKey, SnapshotKey, SnapshotName};
use setpoint_schema::observed::{
    ObservedSandbox, OriginRestore, SnapshotCause, SnapshotRecord, SnapshotState, VmState,
};
use setpoint_schema::quantity::Span;
use setpoint_schema::snapshot::Content;

use super::app::{self, Case, counted, recorded};
use super::boot::{self, Condition};
use super::shelf::{Found, Shot};
use super::world::World;
use super::{Verdict, begin, prune, snapshots};
use crate::model::{Action, ActionKind, Block, Reason, Restoration, Step};

/// How long what a restore replaced is kept.
const SAFETY: Retain = Retain::For(Span::secs(7 * 86_400));

/// The restore that an app's sandbox has yet to see.
pub(super) fn pending<'a>(world: &World<'a>, app: &'a DesiredApp, sandbox: &ObservedSandbox) -> Option<&'a Restore> {
    let wanted = app.spec.app.restore.as_ref()?;
    // A sandbox to which nothing was applied yet has nothing to go back from, or is going back already.
    let applied = sandbox.record.applied.as_ref()?;
    let is_applied = applied.spec.app.restore.as_ref().is_some_and(|restore| restore.token == wanted.token);
    (!is_applied && !is_counted(world, &app.metadata.key, Some(&sandbox.record.app), &wanted.token)).then_some(wanted)
}

/// Whether a token counts as carried out, also under the name that the app had before a rename.
pub(super) fn is_counted(world: &World<'_>, app: &AppKey, previous: Option<&AppKey>, token: &str) -> bool {
    let mut records = [Some(app), previous].into_iter().flatten().filter_map(|key| world.memory(key));
    records.any(|record| record.has_restored(token))
}

/// Whether a change is of the restore alone.
pub(super) fn is_of_restore(change: &FieldChange) -> bool {
    change.path == "restore" || change.path.starts_with("restore.")
}

/// What is to be done about an app whose restore is pending; `otherwise` decides it without.
pub(super) fn decide(case: &Case<'_>, restore: &Restore, otherwise: impl FnOnce(&Case<'_>) -> Verdict) -> Verdict {
    match case.world.shelf.find(&restore.snapshot) {
        Found::There(shot) => begin_anew(case, restore, shot),
        Found::Waits { snapshot, reason } => match otherwise(&case.without_restore()) {
            verdict @ (Verdict::Act(_) | Verdict::Hold(_)) => verdict,
            Verdict::Unchanged => {
                let action = case.action(ActionKind::Replace, None, Vec::new());
                Verdict::Act(Box::new(Action { blocked: vec![Block::Snapshot { snapshot, reason }], ..action }))
            }
        },
    }
}

/// Keeps what is there, and has another sandbox begin from the snapshot in its place.
fn begin_anew(case: &Case<'_>, restore: &Restore, shot: Shot<'_>) -> Verdict {
    let (world, old) = (case.world, case.record());
    let safety = match &case.kept.vm {
        VmState::Running { nonce, since } if *nonce == old.machine.nonce => match boot::patience(case, *since) {
            Condition::Answers(_) => Content::Memory,
            Condition::Waits(reason) => return app::wait(case, reason),
            Condition::Boots(_)
            | Condition::Stuck(_)
            | Condition::Sleeps
            | Condition::Anew
            | Condition::DiskTooLarge { .. } => Content::Disk,
        },
        // What it has in memory alone is kept as its pause saved it.
        VmState::Paused { fault: None, .. } => Content::Memory,
        VmState::Running { .. } | VmState::Paused { .. } | VmState::Absent | VmState::Exited { .. } => Content::Disk,
    };
    let sandbox = world.entropy.sandbox(case.key(), world.observed);
    let safety_first = keep(case, restore, safety);
    let origin =
        OriginRestore { token: restore.token.clone(), safety: safety_first.as_ref().map(|(safety, _)| safety.clone()) };
    let keeping = safety_first.map(|(_, steps)| steps).unwrap_or_default();
    let record = begin::record(world, case.app, &sandbox, shot, Some(origin));
    let mut steps = case.clear_leftovers();
    steps.extend(boot::ensure_template(world, case.app));
    let stop = prune::stop(case.kept, case.spec().app.timeouts.stop);
    match safety {
        Content::Memory => {
            steps.extend(keeping);
            steps.extend(stop);
        }
        Content::Disk => {
            steps.extend(stop);
            steps.extend(keeping);
        }
    }
    steps.extend(prune::remove_vm(case.kept));
    steps.push(Step::Record(Box::new(record.clone())));
    steps.extend(prune::release(world, case.key(), &old.disk, &[&old.id]));
    steps.push(Step::Forget(old.id.clone()));
    steps.extend(begin::up(case.app, record.machine, shot));
    steps.extend(boot::fill(world, case.app, &sandbox));
    steps.extend(counted(world, case.app));
    steps.push(recorded(world, case.app, sandbox.clone(), Some(&old.app)));
    let reason = Reason::Restore(Box::new(restoration(case, restore, shot)));
    Verdict::Act(Box::new(Action { sandbox, ..case.action(ActionKind::Replace, Some(reason), steps) }))
}

/// The snapshot that keeps what is there, unless there is nothing, and the steps to it, which are none if it is there.
fn keep(case: &Case<'_>, restore: &Restore, content: Content) -> Option<(SnapshotId, Vec<Step>)> {
    let (world, app) = (case.world, case.key());
    let known = world.shelf.safety(app, &restore.token);
    if let Some(known) = known.filter(|known| known.kept().is_some()) {
        return Some((known.id.clone(), Vec::new()));
    }
    let disk = case.disk?;
    let name = SnapshotName::new(format!("{}-before-restore", app.name));
    let key = SnapshotKey::new(app.team.clone(), name.expect("an app's name with an ending is one of a snapshot"));
    let record = SnapshotRecord {
        id: known.map_or_else(|| world.entropy.snapshot(app, &restore.token, world.observed), |known| known.id.clone()),
        generation: known.map_or_else(|| world.shelf.next_generation(&key), |known| known.generation),
        key,
        app: app.clone(),
        cause: SnapshotCause::Restore { token: restore.token.clone() },
        content,
        exclude: BTreeSet::new(),
        retain: SAFETY,
        moment: Some(snapshots::moment(case.kept, disk)),
        state: SnapshotState::Wanted { since: world.now },
    };
    let nonce = match (content, &case.kept.vm) {
        (Content::Memory, VmState::Running { .. }) => Some(case.record().machine.nonce.clone()),
        (Content::Memory, VmState::Paused { .. } | VmState::Absent | VmState::Exited { .. }) | (Content::Disk, _) => {
            None
        }
    };
    Some((record.id.clone(), snapshots::take(record, case.kept, nonce).into()))
}

fn restoration(case: &Case<'_>, restore: &Restore, shot: Shot<'_>) -> Restoration {
    let taken = shot.kept.at;
    Restoration {
        snapshot: restore.snapshot.clone(),
        token: restore.token.clone(),
        taken,
        age: age(case.world.now, taken),
        then: shot.moment.revision.clone(),
        now: case.applied().map(|applied| applied.revision.clone()),
    }
}

/// How long ago that was, as exactly as people say it.
fn age(now: Timestamp, then: Timestamp) -> Span {
    let minutes = u64::try_from(now.duration_since(then).as_mins()).unwrap_or_default();
    let unit = match minutes {
        0..120 => 1,
        120..2880 => 60,
        _ => 24 * 60,
    };
    Span::secs(minutes / unit * unit * 60)
}
