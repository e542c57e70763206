//! Data disks that no sandbox uses: kept until their retention is over.

use std::sync::Arc;

use setpoint_schema::id::SandboxId;
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{DiskRecord, DiskState};

use super::world::World;
use super::{Verdict, Verdicts};
use crate::model::{Action, ActionKind, Reason, Step};

/// Adds what is to be done about disks that nothing uses, at most one action for each app.
pub(super) fn apply<'a>(world: &World<'a>, verdicts: &mut Verdicts<'a>) {
    // A declaration that cannot be read may be the one that takes a disk up again.
    if world.incompleteness().is_some() {
        return;
    }
    for (key, disks) in world.spare_disks() {
        let may_act = match verdicts.get(key) {
            None | Some(Verdict::Unchanged) => true,
            // What is blocked has time, and may even wait for the room that the disk takes.
            Some(Verdict::Act(action)) => !action.blocked.is_empty(),
            Some(Verdict::Hold(_)) => false,
        };
        if let Some(action) = expire(world, key, disks).filter(|_| may_act) {
            verdicts.insert(key, Verdict::Act(Box::new(action)));
        }
    }
}

fn expire(world: &World<'_>, key: &AppKey, disks: &[Arc<DiskRecord>]) -> Option<Action> {
    // The disk that a declared app will start from again waits for it, however long that is blocked.
    let awaited = world.desired.apps.contains_key(key) && world.sandboxes(key).is_empty();
    let returning = world.returning_disk(key).filter(|_| awaited).map(|disk| &disk.id);
    let unused = disks.iter().filter(|disk| Some(&disk.id) != returning);
    let due: Vec<_> = unused.filter_map(|disk| due(world, key, disk)).collect();
    let (first, _) = due.first()?;
    let reason = if due.iter().any(|(disk, _)| disk.state == DiskState::InUse) {
        Reason::Unfinished
    } else {
        Reason::RetentionOver
    };
    Some(Action {
        app: key.clone(),
        // There is no sandbox any more: the disk's own name says best what this is about.
        sandbox: SandboxId(first.id.0.clone()),
        kind: ActionKind::ExpireDisk,
        reasons: vec![reason],
        changes: Vec::new(),
        steps: due.into_iter().map(|(_, step)| step).collect(),
        blocked: Vec::new(),
    })
}

fn due<'d>(world: &World<'_>, key: &AppKey, disk: &'d DiskRecord) -> Option<(&'d DiskRecord, Step)> {
    let keep = match disk.state {
        DiskState::Retained { until } if until > world.now => return None,
        DiskState::Retained { .. } => None,
        // Its sandbox is gone without having released it.
        DiskState::InUse => world.keep(key),
    };
    Some((disk, Step::ReleaseDisk { disk: disk.id.clone(), keep }))
}
