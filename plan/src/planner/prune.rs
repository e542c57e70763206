//! Removal: of apps that are not declared any more, of what unfinished passes left behind, and the rules that removals wait by.

use std::collections::{BTreeMap, BTreeSet};

use setpoint_schema::app::Prune;
use setpoint_schema::id::{DiskId, SandboxId};
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{DiskState, GuestState, Intent, ObservedSandbox, SandboxRecord, VmState};
use setpoint_schema::quantity::Span;

use super::order::Ranks;
use super::world::{About, World};
use super::{Verdict, Verdicts, app};
use crate::model::{Action, ActionKind, Block, Hold, Reason, Step};

/// What is to be done about an app that is not declared.
pub(super) fn decide(world: &World<'_>, about: &About<'_, '_>) -> Verdict {
    let key = about.key;
    if let Some(mistakes) = world.desired.stalled.get(key) {
        return Verdict::Hold(Hold::Stalled(mistakes.clone()));
    }
    if let Some(adoption) = app::adopt(world, key) {
        return Verdict::Act(Box::new(adoption));
    }
    if about.is_leaving() {
        return finish(world, about);
    }
    if let Some(suspension) = about.suspension(world) {
        return Verdict::Hold(Hold::SuspendedHere(suspension.clone()));
    }
    match (unsafe_to_prune(world, about), about.last_spec()) {
        (_, Some(spec)) if spec.app.suspend => Verdict::Hold(Hold::Suspended),
        (Some(reason), _) => Verdict::Hold(Hold::PruneUnsafe(reason)),
        (None, Some(spec)) if spec.app.prune == Prune::Disabled => Verdict::Hold(Hold::PruneDisabled),
        (None, _) => delete(world, about, Reason::NotDeclared),
    }
}

/// Finishes a removal that has begun, even if the app is declared again: its next sandbox starts from a clean slate.
pub(super) fn finish(world: &World<'_>, about: &About<'_, '_>) -> Verdict {
    match world.incompleteness() {
        Some(reason) => Verdict::Hold(Hold::PruneUnsafe(reason)),
        None => delete(world, about, Reason::Unfinished),
    }
}

/// An app may be missing because something could not be read, or because it was renamed to one that has mistakes.
fn unsafe_to_prune(world: &World<'_>, about: &About<'_, '_>) -> Option<String> {
    let has_uid = about.sandboxes.iter().any(|sandbox| sandbox.record.uid.is_some());
    let unreadable = || world.desired.stalled.keys().find(|stalled| !world.desired.apps.contains_key(*stalled));
    world.incompleteness().or_else(|| {
        let stalled = if has_uid { unreadable()? } else { return None };
        Some(format!("{stalled} has mistakes and may be the new name of this app"))
    })
}

fn delete(world: &World<'_>, about: &About<'_, '_>, reason: Reason) -> Verdict {
    let (key, sandboxes) = (about.key, about.sandboxes);
    let leaving = sandboxes.iter().filter(|sandbox| sandbox.record.intent == Intent::Keep);
    let mut steps: Vec<_> = leaving
        .map(|sandbox| {
            Step::Record(Box::new(SandboxRecord { intent: Intent::Delete, ..SandboxRecord::clone(&sandbox.record) }))
        })
        .collect();
    steps.extend(clear(world, key, sandboxes.iter().map(|sandbox| &**sandbox)));
    // An app without a sandbox has nothing to remove, so none is ever asked for.
    let Some(first) = sandboxes.first() else { return Verdict::Unchanged };
    Verdict::Act(Box::new(Action {
        app: key.clone(),
        sandbox: first.record.id.clone(),
        kind: ActionKind::Delete,
        reasons: vec![reason],
        changes: Vec::new(),
        steps,
        blocked: Vec::new(),
    }))
}

/// Removes sandboxes one after the other. A disk goes with its last user.
pub(super) fn clear<'s>(
    world: &World<'_>,
    key: &AppKey,
    sandboxes: impl Iterator<Item = &'s ObservedSandbox>,
) -> Vec<Step> {
    let grace = world.last_spec(key).map_or_else(Span::default, |spec| spec.app.timeouts.stop);
    let mut gone = Vec::new();
    let mut steps = Vec::new();
    for sandbox in sandboxes {
        gone.push(&sandbox.record.id);
        steps.extend(stop(sandbox, grace));
        steps.extend(remove_vm(sandbox));
        steps.extend(release(world, key, &sandbox.record.disk, &gone));
        steps.push(Step::Forget(sandbox.record.id.clone()));
    }
    steps
}

/// Shuts a running microVM down. A guest that does not answer cannot be asked, so it is not waited for either.
pub(super) fn stop(sandbox: &ObservedSandbox, grace: Span) -> Option<Step> {
    let grace = match &sandbox.guest {
        GuestState::Answering(_) => Some(grace),
        GuestState::Absent | GuestState::Connecting { .. } | GuestState::Silent { .. } => None,
    };
    match &sandbox.vm {
        VmState::Running { .. } => Some(Step::Stop { sandbox: sandbox.record.id.clone(), grace }),
        VmState::Absent | VmState::Exited { .. } | VmState::Paused { .. } => None,
    }
}

/// Removes what is left of a microVM that has ended.
pub(super) fn remove_vm(sandbox: &ObservedSandbox) -> Option<Step> {
    match &sandbox.vm {
        VmState::Running { .. } | VmState::Exited { .. } | VmState::Paused { .. } => {
            Some(Step::RemoveVm(sandbox.record.id.clone()))
        }
        VmState::Absent => None,
    }
}

/// Releases a disk that nothing but `gone` uses, unless that is done.
pub(super) fn release(world: &World<'_>, key: &AppKey, disk: &DiskId, gone: &[&SandboxId]) -> Option<Step> {
    let record = world.observed.disks.get(disk)?;
    match record.state {
        DiskState::InUse if !world.is_used_by_others(disk, gone) => {
            Some(Step::ReleaseDisk { disk: disk.clone(), keep: world.keep(key) })
        }
        DiskState::InUse | DiskState::Retained { .. } => None,
    }
}

/// Removals wait until everything that stays is well, and until no other app needs what they remove.
pub(super) fn wait_for_the_rest(
    world: &World<'_>,
    ranks: &Ranks<'_>,
    dependents: &Dependents<'_>,
    verdicts: &mut Verdicts<'_>,
) {
    let mut unwell = None;
    if verdicts.iter().any(|(key, verdict)| waits(world, key, verdict)) {
        unwell = first_unwell(world, ranks, verdicts);
    }
    for (key, verdict) in verdicts.iter_mut().filter(|(key, verdict)| waits(world, key, verdict)) {
        let Verdict::Act(action) = verdict else { continue };
        action.blocked.extend(unwell.clone().map(Block::Unhealthy));
        let needing = dependents.get(*key).into_iter().flatten().find(|dependent| ranks.waits(dependent, key));
        action.blocked.extend(needing.map(|dependent| Block::Dependent((*dependent).clone())));
    }
}

/// Whether this is a removal that waits. What has begun is finished: half a removal helps nobody.
fn waits(world: &World<'_>, key: &AppKey, verdict: &Verdict) -> bool {
    match verdict {
        Verdict::Act(action) => action.kind == ActionKind::Delete && !world.is_leaving(key),
        Verdict::Hold(_) | Verdict::Unchanged => false,
    }
}

/// Which existing apps depend on each app.
pub(super) type Dependents<'a> = BTreeMap<&'a AppKey, Vec<&'a AppKey>>;

/// Which existing apps depend on each app that is to be removed.
pub(super) fn dependents<'a>(world: &World<'a>, verdicts: &Verdicts<'a>) -> Dependents<'a> {
    let removed: BTreeSet<_> =
        verdicts.iter().filter(|(key, verdict)| waits(world, key, verdict)).map(|(key, _)| *key).collect();
    let mut dependents = Dependents::new();
    if removed.is_empty() {
        return dependents;
    }
    let mut reader = world.reader();
    for app in world.existing() {
        for dependency in reader.about(app).last_spec().into_iter().flat_map(|spec| &spec.app.depends_on) {
            if dependency != app && removed.contains(dependency) {
                dependents.entry(dependency).or_default().push(app);
            }
        }
    }
    dependents
}

/// The first declared app that is not well, and how. What waits for room does not count: removals are what makes room.
fn first_unwell(world: &World<'_>, ranks: &Ranks<'_>, verdicts: &Verdicts<'_>) -> Option<String> {
    let mut declared: Vec<_> = verdicts.iter().filter(|(key, _)| world.desired.apps.contains_key(**key)).collect();
    declared.sort_by_key(|(key, _)| ranks.of(key));
    let mut waiting_for_room = BTreeSet::new();
    for (key, verdict) in declared {
        let trouble = match verdict {
            Verdict::Unchanged | Verdict::Hold(Hold::Suspended | Hold::SuspendedHere(_)) => None,
            Verdict::Hold(hold) => Some(hold.to_string()),
            Verdict::Act(action) if waits_for_room(action, &waiting_for_room) => {
                waiting_for_room.insert(*key);
                None
            }
            Verdict::Act(action) => {
                Some(action.blocked.first().map_or("changes are under way".to_owned(), Block::to_string))
            }
        };
        if let Some(trouble) = trouble {
            return Some(format!("{key}: {trouble}"));
        }
    }
    None
}

fn waits_for_room(action: &Action, waiting: &BTreeSet<&AppKey>) -> bool {
    action.blocked.iter().any(|block| match block {
        Block::Capacity(_) => true,
        Block::Dependency { app, .. } => waiting.contains(app),
        Block::Backoff { .. }
        | Block::Flapping(_)
        | Block::Repeating { .. }
        | Block::DiskShrink { .. }
        | Block::Unhealthy(_)
        | Block::Dependent(_)
        | Block::Window { .. }
        | Block::Snapshot { .. }
        | Block::Unplanned => false,
    })
}
