//! When the same world gives another plan, by time alone: what the loop sleeps until.

use jiff::{SignedDuration, Timestamp};
use setpoint_plan::desired::Desired;
use setpoint_plan::model::{Action, Block, Plan, SnapshotHold};
use setpoint_schema::app::{Retain, Timeouts};
use setpoint_schema::observed::{FLAP_WINDOW, GuestState, ObservedSandbox, SnapshotCause, SnapshotState, VmState};
use setpoint_schema::quantity::Span;

use crate::world::World;

/// The planner asks whether a time is over, so it is asked just after it.
const JUST_AFTER: SignedDuration = SignedDuration::from_millis(1);

/// The earliest time after `now` at which time alone changes the plan.
pub(super) fn next(plan: &Plan, desired: &Desired, world: &World, now: Timestamp) -> Option<Timestamp> {
    let blocks = plan.actions.iter().flat_map(|action| action.blocked.iter().map(move |block| (action, block)));
    let blocks = blocks.filter_map(|(action, block)| match block {
        Block::Backoff { until, .. } | Block::Repeating { until, .. } => Some(*until),
        Block::Flapping(_) => {
            let heals = &world.observed().apps.get(&action.app)?.heals;
            heals.iter().map(|heal| later(*heal, FLAP_WINDOW)).filter(|at| *at > now).min()
        }
        Block::Window { opens } => *opens,
        Block::Dependency { .. }
        | Block::Capacity(_)
        | Block::DiskShrink { .. }
        | Block::Unhealthy(_)
        | Block::Dependent(_)
        | Block::Snapshot { .. }
        | Block::Unplanned => None,
    });
    let closings = plan.actions.iter().filter_map(|action| window_closes(action, desired, world, now));
    let guests = world.quiet().filter_map(|sandbox| patience_ends(sandbox, desired));
    let all = blocks.chain(closings).chain(guests).chain(world.retained()).chain(snapshots(plan, world));
    all.filter_map(|at| at.checked_add(JUST_AFTER).ok()).filter(|at| *at > now).min()
}

/// When a snapshot that could not be taken is tried again, or one that is kept for a time goes.
fn snapshots<'a>(plan: &'a Plan, world: &'a World) -> impl Iterator<Item = Timestamp> + 'a {
    let tries = plan.snapshots.iter().filter_map(|held| match &held.reason {
        SnapshotHold::Backoff { until, .. } => Some(*until),
        SnapshotHold::Waits(_) | SnapshotHold::Used(_) | SnapshotHold::PruneUnsafe(_) | SnapshotHold::Stalled(_) => {
            None
        }
    });
    let ends = world.observed().snapshots.values().filter_map(|record| match (&record.state, &record.cause) {
        (SnapshotState::Retained { until, .. }, _) => Some(*until),
        (SnapshotState::Kept(kept), SnapshotCause::Asked { .. }) => match record.retain {
            Retain::For(span) => Some(later(kept.at, span)),
            Retain::None => None,
        },
        (SnapshotState::Failed { at, .. }, SnapshotCause::Asked { .. }) => match record.retain {
            Retain::For(span) => Some(later(*at, span)),
            Retain::None => None,
        },
        (
            SnapshotState::Wanted { .. }
            | SnapshotState::Failed { .. }
            | SnapshotState::Kept(_)
            | SnapshotState::Leaving,
            _,
        ) => None,
    });
    tries.chain(ends)
}

/// When an action that could begin now, and may still have to wait its turn, can begin no more.
fn window_closes(action: &Action, desired: &Desired, world: &World, now: Timestamp) -> Option<Timestamp> {
    if !action.blocked.is_empty() {
        return None;
    }
    let windows = match desired.apps.get(&action.app) {
        Some(app) => &app.spec.app.windows,
        None => &world.observed().apps.get(&action.app)?.last_good.spec.app.windows,
    };
    windows.closes(now)
}

/// When a guest that does not answer counts as hung.
fn patience_ends(sandbox: &ObservedSandbox, desired: &Desired) -> Option<Timestamp> {
    let VmState::Running { since: started, .. } = &sandbox.vm else { return None };
    let timeouts = desired.apps.get(&sandbox.record.app).map(|app| &app.spec.app.timeouts);
    let Timeouts { boot, unresponsive, ready: _, stop: _ } = timeouts.cloned().unwrap_or_default();
    match &sandbox.guest {
        GuestState::Silent { since } => Some(later(*since, unresponsive)),
        GuestState::Connecting { since } => Some(later(*since, boot)),
        GuestState::Absent => Some(later(*started, boot)),
        GuestState::Answering(_) => None,
    }
}

fn later(at: Timestamp, span: Span) -> Timestamp {
    let millis = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
    at.checked_add(SignedDuration::from_millis(millis)).unwrap_or(Timestamp::MAX)
}
