//! What an action waits for outside its app's own sandbox: dependencies, a failure's backoff, the breakers, maintenance
//! windows.

use std::collections::{BTreeMap, BTreeSet};

use setpoint_schema::app::{DesiredApp, Power};
use setpoint_schema::disruption::Disruption;
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{AppRecord, FLAP_HEALS, FLAP_WINDOW, GuestState, ObservedSandbox, VmState};
use setpoint_schema::power::WakeOn;
use setpoint_schema::window::Opening;

use super::order::Ranks;
use super::world::{World, later};
use super::{Verdict, Verdicts};
use crate::model::{Action, ActionKind, Block, Hold, Reason};
use crate::repeats;

/// Blocks what has to wait.
pub(super) fn apply(world: &World<'_>, ranks: &Ranks<'_>, verdicts: &mut Verdicts<'_>) {
    let unready = unready_dependencies(world, verdicts);
    let mut reader = world.reader();
    for (key, verdict) in verdicts.iter_mut() {
        let Verdict::Act(action) = verdict else { continue };
        if let Some(memory) = reader.memory(key) {
            action.blocked.extend(backoff(world, memory, action));
            action.blocked.extend(flapping(world, memory, action));
            action.blocked.extend(repeats::block(memory, action, world.now));
        }
        action.blocked.extend(window(world, key, action));
        if let Some(app) = reader.app(key).filter(|_| disturbs(action.kind)) {
            action.blocked.extend(dependencies(world, ranks, app, &unready));
        }
    }
}

/// Which declared apps others wait for here, and why they cannot be built on yet.
fn unready_dependencies<'a>(world: &World<'a>, verdicts: &Verdicts<'a>) -> BTreeMap<&'a AppKey, String> {
    let mut reader = world.reader();
    let declared = verdicts.keys().filter_map(|key| reader.app(key));
    let needed: BTreeSet<_> = declared.flat_map(|app| &app.spec.app.depends_on).collect();
    let verdict = |key: &AppKey| verdicts.get(key).unwrap_or(&Verdict::Unchanged);
    needed.into_iter().filter_map(|key| Some((key, unready(world, key, verdict(key))?))).collect()
}

/// Whether the action starts or disturbs the app, and so waits for what the app depends on.
fn disturbs(kind: ActionKind) -> bool {
    match kind {
        ActionKind::Create | ActionKind::Reboot | ActionKind::Replace | ActionKind::Resume => true,
        ActionKind::Update(disruption) => disruption > Disruption::Live,
        ActionKind::Adopt
        | ActionKind::Stop
        | ActionKind::Pause
        | ActionKind::Delete
        | ActionKind::ExpireDisk
        | ActionKind::Snapshot
        | ActionKind::ExpireSnapshot => false,
    }
}

fn dependencies(
    world: &World<'_>,
    ranks: &Ranks<'_>,
    app: &DesiredApp,
    unready: &BTreeMap<&AppKey, String>,
) -> Vec<Block> {
    let key = &app.metadata.key;
    let waits = app.spec.app.depends_on.iter().filter(|dependency| *dependency != key && ranks.waits(key, dependency));
    let blocks = waits.filter_map(|dependency| {
        let reason = match (unready.get(dependency), world.desired.apps.contains_key(dependency)) {
            (Some(reason), _) => reason.clone(),
            (None, true) => return None,
            (None, false) => "it is not declared".to_owned(),
        };
        Some(Block::Dependency { app: dependency.clone(), reason })
    });
    blocks.collect()
}

/// Why others cannot build on a declared app yet.
fn unready(world: &World<'_>, key: &AppKey, verdict: &Verdict) -> Option<String> {
    let app = world.desired.apps.get(key)?;
    match verdict {
        Verdict::Unchanged => match world.power(app) {
            (Power::Running, _) => None,
            // Whoever asks it something finds it awake.
            (_, Some(held)) if held.is_idle() && app.spec.app.wake.on == WakeOn::Request => None,
            (Power::Paused, _) => Some("it is paused".to_owned()),
            (Power::Stopped, _) => Some("it is stopped".to_owned()),
        },
        Verdict::Hold(Hold::Suspended | Hold::SuspendedHere(_)) => {
            let answers = world.sandboxes(key).iter().any(|sandbox| is_well(sandbox));
            (!answers).then(|| "it is suspended and not ready".to_owned())
        }
        Verdict::Hold(hold) => Some(hold.to_string()),
        Verdict::Act(action) => Some(action.trouble()),
    }
}

fn is_well(sandbox: &ObservedSandbox) -> bool {
    let nonce = &sandbox.record.machine.nonce;
    let runs = matches!(&sandbox.vm, VmState::Running { nonce: running, .. } if running == nonce);
    let answers = match &sandbox.guest {
        GuestState::Answering(status) => status.nonce == *nonce && status.unready().is_none(),
        GuestState::Absent | GuestState::Connecting { .. } | GuestState::Silent { .. } => false,
    };
    runs && answers
}

fn backoff(world: &World<'_>, memory: &AppRecord, action: &Action) -> Option<Block> {
    // What failed before a removal began is not what is to be done now.
    if action.kind == ActionKind::Delete && !world.is_leaving(&action.app) {
        return None;
    }
    let retry = &memory.retry;
    let until = retry.not_before.filter(|until| *until > world.now)?;
    Some(Block::Backoff { until, reason: retry.last_error.clone().unwrap_or_default() })
}

/// What would interrupt an app that runs waits for its maintenance window. What brings an app back never does, and neither does
/// what is new: there is nothing to interrupt.
fn window(world: &World<'_>, key: &AppKey, action: &Action) -> Option<Block> {
    let heals = action.reasons.iter().any(|reason| match reason {
        Reason::Drift(_) | Reason::VmDown(_) | Reason::GuestHung(_) | Reason::Unresumable(_) => true,
        Reason::NotCreated
        | Reason::Unfinished
        | Reason::SpecChanged
        | Reason::NotDeclared
        | Reason::Renamed(_)
        | Reason::PowerChanged(_)
        | Reason::PowerHere(_)
        | Reason::RetentionOver
        | Reason::Unrecorded
        | Reason::DiskReturns(_)
        | Reason::BeginsAs(_)
        | Reason::Restore(_)
        | Reason::SnapshotWanted { .. }
        | Reason::SnapshotOver { .. } => false,
    });
    if heals || !interrupts(world, key, action.kind) {
        return None;
    }
    match world.last_spec(key)?.app.windows.at(world.now) {
        Opening::Open => None,
        Opening::Closed { until } => Some(Block::Window { opens: until }),
    }
}

/// Whether the action takes something away from whoever uses the app.
fn interrupts(world: &World<'_>, key: &AppKey, kind: ActionKind) -> bool {
    let runs = || world.sandboxes(key).iter().any(|sandbox| matches!(sandbox.vm, VmState::Running { .. }));
    match kind {
        ActionKind::Update(disruption) => disruption > Disruption::Files,
        ActionKind::Reboot | ActionKind::Replace | ActionKind::Stop | ActionKind::Pause => runs(),
        // What has begun is finished: half a removal helps nobody.
        ActionKind::Delete => !world.is_leaving(key),
        ActionKind::Create
        | ActionKind::Adopt
        | ActionKind::Resume
        | ActionKind::ExpireDisk
        | ActionKind::Snapshot
        | ActionKind::ExpireSnapshot => false,
    }
}

/// Healing again and again is given up. A new declaration is always tried: it may be the fix.
fn flapping(world: &World<'_>, memory: &AppRecord, action: &Action) -> Option<Block> {
    let heals = action.reasons.iter().any(Reason::is_heal);
    if !heals || !action.changes.is_empty() {
        return None;
    }
    let recent = memory.heals.iter().filter(|at| later(**at, FLAP_WINDOW) > world.now).count();
    (recent > FLAP_HEALS).then(|| Block::Flapping(format!("healed {recent} times within {FLAP_WINDOW}")))
}
