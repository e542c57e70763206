//! The conditions of an app, what is in its way, and since when: a time stands as long as what it belongs to does.

use std::borrow::Cow;

use jiff::{SignedDuration, Timestamp};
use setpoint_plan::model::{Block, Hold};
use setpoint_schema::name::AppKey;
use setpoint_schema::wire::{self, Blocker, BlockerReason, Condition, ConditionKind, ConditionStatus, Phase};

use super::facts::{AppFacts, Before, Busy};
use super::news::Known;
use crate::idle;

/// What was said of an app before: by the pass before, or, right after a start, by the events of earlier daemons.
#[derive(Clone, Copy)]
pub(super) struct Earlier<'a> {
    pub app: Option<&'a wire::App>,
    pub known: Option<&'a Known>,
    /// When its sandbox was made, if it has one.
    pub created: Option<Timestamp>,
}

impl Earlier<'_> {
    /// Whether it was ready.
    pub fn readiness(&self) -> Before {
        let was_ready = match self.app {
            Some(app) => app.ready,
            None => self.known.is_some_and(|known| known.since(ConditionKind::Ready, ConditionStatus::True).is_some()),
        };
        if was_ready { Before::Ready } else { Before::Unready }
    }

    /// Since when a condition has this status, if it had it before. What earlier events say counts until this daemon knows better.
    fn since(&self, kind: ConditionKind, status: ConditionStatus) -> Option<Timestamp> {
        let said = self.app.and_then(|app| app.conditions.iter().find(|condition| condition.kind == kind));
        match said {
            Some(said) if said.status == status => Some(said.since),
            Some(Condition { status: ConditionStatus::True | ConditionStatus::False, .. }) => None,
            Some(_) | None => match status {
                ConditionStatus::False => self.known?.since(kind, status).or_else(|| self.never(kind)),
                ConditionStatus::True | ConditionStatus::Unknown => self.known?.since(kind, status),
            },
        }
    }

    /// Since when an app has been there of whose condition no event tells, so that it has never held.
    fn never(&self, kind: ConditionKind) -> Option<Timestamp> {
        let first = self.known?.first_without(kind)?;
        Some(self.created.map_or(first, |created| created.min(first)))
    }

    fn blocker(&self, reason: BlockerReason, on: Option<&AppKey>) -> Option<Timestamp> {
        let app = self.app?;
        let mut said = app.blocked.iter().chain(&app.held);
        said.find(|blocker| blocker.reason == reason && blocker.on.as_ref() == on).map(|blocker| blocker.since)
    }
}

/// A condition's reason and message.
type Why = (&'static str, Cow<'static, str>);

/// `Ready`, `Reconciling` and `Stalled`.
pub(super) fn conditions(
    facts: &AppFacts<'_>,
    phase: Phase,
    earlier: Earlier<'_>,
    blocked: &[Blocker],
    now: Timestamp,
) -> Vec<Condition> {
    let condition = |kind, status, (reason, message): Why| {
        let since = earlier.since(kind, status).unwrap_or(now);
        Condition { kind, status, reason: reason.into(), message, since }
    };
    let (status, why) = readiness(facts, earlier);
    let ready = condition(ConditionKind::Ready, status, why);
    let reconciling = matches!(phase, Phase::Pending | Phase::Reconciling | Phase::Blocked | Phase::Deleting);
    let work = match facts.action.map(|action| (action, blocked.first())) {
        Some((_, Some(blocker))) => ("Blocked", blocker.message.clone().into()),
        Some((action, None)) => ("Progressing", action.kind.to_string().into()),
        // What is under way was planned by an earlier pass.
        None if facts.busy == Busy::Yes => ("Progressing", "its steps are being carried out".into()),
        None => ("Settled", "nothing is left to do".into()),
    };
    let no_mistakes = || ("NotStalled", "its declaration has no mistakes".into());
    let stalled = stalled_reason(facts, &ready, now);
    let is_stalled = stalled.is_some();
    vec![
        ready,
        condition(ConditionKind::Reconciling, holds(reconciling), work),
        condition(ConditionKind::Stalled, holds(is_stalled), stalled.unwrap_or_else(no_mistakes)),
    ]
}

fn readiness(facts: &AppFacts<'_>, earlier: Earlier<'_>) -> (ConditionStatus, Why) {
    if facts.is_ready() {
        return (ConditionStatus::True, healthy(facts));
    }
    // A new daemon has to ask first; before it has, what was known is neither true nor false.
    if earlier.known.is_some_and(Known::is_unconfirmed) && facts.is_unasked() {
        return (
            ConditionStatus::Unknown,
            ("NotAsked", "its agent has not been asked since the daemon started".into()),
        );
    }
    let (reason, message) = facts.unready();
    (ConditionStatus::False, (reason, message.into()))
}

/// An app that is well may still be woken again and again, and only its declaration can help with that.
fn healthy(facts: &AppFacts<'_>) -> Why {
    match facts.looping_wakes() {
        None => ("Healthy", "as declared and healthy".into()),
        Some(times) => ("WakesOften", format!("healthy; {}", idle::advice(times)).into()),
    }
}

fn holds(holds: bool) -> ConditionStatus {
    if holds { ConditionStatus::True } else { ConditionStatus::False }
}

/// Why only a change of the declaration can help, if that is so.
fn stalled_reason(facts: &AppFacts<'_>, ready: &Condition, now: Timestamp) -> Option<Why> {
    if let Some(mistakes) = facts.stalled {
        return Some(("InvalidDeclaration", mistakes.to_owned().into()));
    }
    if let Some(held @ Hold::Unresumable(_)) = facts.held {
        return Some(("ResumeFailed", format!("{held}; `setpoint wake` tries again").into()));
    }
    let limit = facts.declared.spec.app.timeouts.ready;
    let is_over = ready_timeout(facts, ready.since)? < now;
    is_over.then(|| ("ReadyTimeout", format!("not ready within {limit}: {}", ready.message).into()))
}

/// When an app that is not ready counts as stalled, if it is one that only waits.
pub(super) fn ready_timeout(facts: &AppFacts<'_>, unready_since: Timestamp) -> Option<Timestamp> {
    let waits = facts.stalled.is_none() && matches!(facts.held, Some(Hold::Unready(_)));
    let limit = SignedDuration::try_from(facts.declared.spec.app.timeouts.ready.as_duration()).ok()?;
    waits.then(|| unready_since.checked_add(limit).ok()).flatten()
}

/// Why the next change cannot begin.
pub(super) fn blocked(facts: &AppFacts<'_>, earlier: Earlier<'_>, now: Timestamp) -> Vec<Blocker> {
    let describe = |block: &Block| {
        let (reason, on, until) = match block {
            Block::Dependency { app, reason: _ } => (BlockerReason::Dependency, Some(app), None),
            Block::Capacity(_) => (BlockerReason::Capacity, None, None),
            Block::Backoff { until, reason: _ } => (BlockerReason::Backoff, None, Some(*until)),
            Block::Flapping(_) => (BlockerReason::Flapping, None, None),
            Block::Repeating { until, .. } => (BlockerReason::Repeating, None, Some(*until)),
            Block::DiskShrink { .. } => (BlockerReason::DiskShrink, None, None),
            Block::Unhealthy(_) => (BlockerReason::Unhealthy, None, None),
            Block::Dependent(app) => (BlockerReason::Dependent, Some(app), None),
            Block::Window { opens } => (BlockerReason::Window, None, *opens),
            Block::Unplanned => (BlockerReason::Unplanned, None, None),
            Block::Snapshot { .. } => (BlockerReason::Snapshot, None, None),
        };
        let since = earlier.blocker(reason, on).unwrap_or(now);
        Blocker { reason, on: on.cloned(), since, until, message: block.to_string() }
    };
    facts.blocked().iter().map(describe).collect()
}

/// What holds the app as it is.
pub(super) fn held(facts: &AppFacts<'_>, earlier: Earlier<'_>, now: Timestamp) -> Option<Blocker> {
    let hold = facts.held?;
    let reason = match hold {
        Hold::Suspended => BlockerReason::Suspended,
        Hold::SuspendedHere(_) => BlockerReason::SuspendedHere,
        Hold::PruneDisabled => BlockerReason::PruneDisabled,
        Hold::PruneUnsafe(_) => BlockerReason::PruneUnsafe,
        Hold::Stalled(_) => BlockerReason::Stalled,
        Hold::Unready(_) => BlockerReason::Unready,
        Hold::Unresumable(_) => BlockerReason::Unresumable,
    };
    let suspended = facts.overridden().filter(|_| reason == BlockerReason::SuspendedHere);
    let suspended = suspended.map(|suspension| suspension.suspended_since);
    let since = suspended.or_else(|| earlier.blocker(reason, None)).unwrap_or(now);
    Some(Blocker { reason, on: None, since, until: None, message: hold.to_string() })
}
