//! Snapshots that nothing wants any more: their retention begins, and once that is over they are removed.
//!
//! Nothing is let go while the declarations are incomplete, and nothing that something is to begin from.

use std::cell::OnceCell;
use std::collections::BTreeMap;

use jiff::Timestamp;
use setpoint_schema::app::{DesiredApp, Retain};
use setpoint_schema::id::SnapshotId;
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{Kept, SnapshotCause, SnapshotRecord, SnapshotState};

use super::super::restore;
use super::super::shelf::Found;
use super::super::world::{World, later};
use super::source;
use crate::model::{HeldSnapshot, Over, Reason, SnapshotHold, Step};

/// What becomes of a snapshot.
enum Fate {
    /// It stays as it is.
    Stays,
    /// It is as it was before its retention began.
    Returns(Kept),
    /// It is kept until this time.
    Retained(Kept, Timestamp),
    /// It goes.
    Goes(Over),
}

/// What is to be let go of which app's. What would be and cannot is added to `held`.
pub(super) fn all<'a>(world: &World<'a>, held: &mut Vec<HeldSnapshot>) -> Vec<(&'a AppKey, Reason, Vec<Step>)> {
    let mut out = Vec::new();
    let uses = OnceCell::new();
    for record in world.observed.snapshots.values() {
        let (why, steps) = match fate(world, record) {
            Fate::Stays => continue,
            Fate::Returns(kept) => (Over::DeclaredAgain, vec![rewritten(record, SnapshotState::Kept(kept))]),
            Fate::Retained(kept, until) => {
                (Over::NotDeclared, vec![rewritten(record, SnapshotState::Retained { kept, until })])
            }
            Fate::Goes(why) => (why, gone(record)),
        };
        let mut hold = |reason| {
            let (snapshot, app) = (record.key.clone(), record.app.clone());
            held.push(HeldSnapshot { snapshot, app, reason });
        };
        if let Some(reason) = world.incompleteness() {
            hold(SnapshotHold::PruneUnsafe(reason));
        } else if why != Over::DeclaredAgain
            && let Some(app) = uses.get_or_init(|| users(world)).get(&record.id)
        {
            hold(SnapshotHold::Used(AppKey::clone(app)));
        } else {
            let reason = Reason::SnapshotOver { snapshot: record.key.clone(), generation: record.generation, why };
            out.push((&record.app, reason, steps));
        }
    }
    out
}

fn rewritten(record: &SnapshotRecord, state: SnapshotState) -> Step {
    Step::RecordSnapshot(Box::new(SnapshotRecord { state, ..record.clone() }))
}

/// The row says first that it goes, so that nothing begins from half a snapshot.
fn gone(record: &SnapshotRecord) -> Vec<Step> {
    let mut steps = Vec::new();
    if record.state != SnapshotState::Leaving {
        steps.push(rewritten(record, SnapshotState::Leaving));
    }
    steps.extend([Step::RemoveSnapshot(record.id.clone()), Step::ForgetSnapshot(record.id.clone())]);
    steps
}

fn fate(world: &World<'_>, record: &SnapshotRecord) -> Fate {
    match (&record.state, &record.cause) {
        (SnapshotState::Leaving, _) => Fate::Goes(Over::Unfinished),
        (SnapshotState::Retained { until, .. }, _) if *until <= world.now => Fate::Goes(Over::RetentionOver),
        (_, SnapshotCause::Declared { .. }) => of_declared(world, record),
        (_, SnapshotCause::Asked { .. }) => of_asked(world, record),
        (_, SnapshotCause::Fork { to }) => {
            if is_fork_wanted(world, record, to) {
                Fate::Stays
            } else {
                Fate::Goes(Over::Done)
            }
        }
        (_, SnapshotCause::Restore { token }) if is_restore_wanted(world, &record.app, token) => Fate::Stays,
        (_, SnapshotCause::Restore { .. }) => retained(world, record),
    }
}

fn of_declared(world: &World<'_>, record: &SnapshotRecord) -> Fate {
    let key = &record.key;
    if world.desired.stalled_snapshots.contains_key(key) {
        return Fate::Stays;
    }
    let Some(declared) = world.desired.snapshots.get(key) else { return retained(world, record) };
    let is_current = world.shelf.current(key).is_some_and(|current| current.id == record.id);
    match &record.state {
        SnapshotState::Retained { kept, .. } => Fate::Returns(kept.clone()),
        SnapshotState::Kept(_) => {
            let kept = world.shelf.generations(key).iter().rev().filter(|one| one.kept().is_some());
            let newest = kept.take(usize::try_from(declared.spec.keep).unwrap_or(usize::MAX));
            if newest.into_iter().any(|one| one.id == record.id) { Fate::Stays } else { Fate::Goes(Over::Superseded) }
        }
        SnapshotState::Wanted { .. } | SnapshotState::Failed { .. } if is_current => Fate::Stays,
        SnapshotState::Wanted { .. } | SnapshotState::Failed { .. } | SnapshotState::Leaving => Fate::Goes(Over::Done),
    }
}

/// What somebody asked for is kept for its time; what could not be taken is shown for as long.
fn of_asked(world: &World<'_>, record: &SnapshotRecord) -> Fate {
    let since = match &record.state {
        SnapshotState::Kept(kept) | SnapshotState::Retained { kept, .. } => kept.at,
        SnapshotState::Failed { at, .. } => *at,
        // Nobody is left of whom it could be taken.
        SnapshotState::Wanted { .. } if !world.desired.apps.contains_key(&record.app) => return Fate::Goes(Over::Done),
        SnapshotState::Wanted { .. } | SnapshotState::Leaving => return Fate::Stays,
    };
    if end(record.retain, since) <= world.now { Fate::Goes(Over::RetentionOver) } else { Fate::Stays }
}

/// Its retention begins, or goes on; what is not there need not be kept.
fn retained(world: &World<'_>, record: &SnapshotRecord) -> Fate {
    match (&record.state, record.retain) {
        (SnapshotState::Retained { .. }, _) => Fate::Stays,
        (SnapshotState::Kept(_), Retain::None) => Fate::Goes(Over::NotDeclared),
        (SnapshotState::Kept(kept), Retain::For(_)) => Fate::Retained(kept.clone(), end(record.retain, world.now)),
        (SnapshotState::Wanted { .. } | SnapshotState::Failed { .. } | SnapshotState::Leaving, _) => {
            Fate::Goes(Over::Done)
        }
    }
}

fn end(retain: Retain, since: Timestamp) -> Timestamp {
    match retain {
        Retain::None => since,
        Retain::For(span) => later(since, span),
    }
}

/// Whether an app has yet to begin as this.
fn is_fork_wanted(world: &World<'_>, record: &SnapshotRecord, to: &AppKey) -> bool {
    let declared = world.desired.apps.get(to).is_some_and(|app| source(app) == Some(&record.app));
    let is_unbegun = match world.sandboxes(to) {
        [] => declared && world.returning_disk(to).is_none(),
        sandboxes => {
            sandboxes.iter().any(|one| one.record.applied.is_none() && one.record.from.as_ref() == Some(&record.id))
        }
    };
    is_unbegun || world.desired.stalled.contains_key(to)
}

fn is_restore_wanted(world: &World<'_>, app: &AppKey, token: &str) -> bool {
    pending(world, app).is_some_and(|(_, restore)| restore.token == token)
}

fn pending<'a>(world: &World<'a>, key: &AppKey) -> Option<(&'a DesiredApp, &'a setpoint_schema::app::Restore)> {
    let app = world.desired.apps.get(key)?;
    let mut sandboxes = world.sandboxes(key).iter();
    sandboxes.find_map(|sandbox| restore::pending(world, app, sandbox)).map(|restore| (&**app, restore))
}

/// Which app is to begin from each snapshot, or to go back to it.
fn users<'a>(world: &World<'a>) -> BTreeMap<SnapshotId, &'a AppKey> {
    let mut users = BTreeMap::new();
    for (key, app) in &world.desired.apps {
        if let (Some(beginning), []) = (&app.spec.app.from, world.sandboxes(key))
            && let Found::There(shot) = world.shelf.beginning(key, beginning)
        {
            users.insert(shot.record.id.clone(), key);
        }
        if let Some((_, restore)) = app.spec.app.restore.as_ref().and_then(|_| pending(world, key))
            && let Found::There(shot) = world.shelf.find(&restore.snapshot)
        {
            users.insert(shot.record.id.clone(), key);
        }
    }
    for sandbox in world.observed.sandboxes.values().filter(|sandbox| sandbox.record.applied.is_none()) {
        users.extend(sandbox.record.from.clone().map(|from| (from, &sandbox.record.app)));
    }
    users
}
