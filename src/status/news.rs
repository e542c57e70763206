//! Events for what has changed in what people see, and what the events of earlier daemons say of how things were.

use std::collections::BTreeMap;

use jiff::Timestamp;
use setpoint_schema::name::AppKey;
use setpoint_schema::wire::{self, Condition, ConditionKind, ConditionStatus, Phase};
use setpoint_state::{EventKind, EventRecord, NewEvent};

use super::facts::Busy;

/// What was last announced of each app.
#[derive(Debug, Default)]
pub(super) struct Announced {
    apps: BTreeMap<AppKey, Known>,
    source_error: Option<String>,
}

/// What was last announced of one app.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Known {
    ready: Option<State>,
    stalled: Option<State>,
    blocked: Option<State>,
    reconciling: Option<State>,
    unconfirmed: bool,
    /// When an earlier daemon told of it for the first time.
    first: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy)]
struct State {
    holds: bool,
    since: Timestamp,
}

impl Known {
    /// Since when a condition has this status, as the events have it.
    pub fn since(&self, kind: ConditionKind, status: ConditionStatus) -> Option<Timestamp> {
        let state = match kind {
            ConditionKind::Ready => self.ready,
            ConditionKind::Stalled => self.stalled,
            ConditionKind::Reconciling => self.reconciling,
        };
        let holds = match status {
            ConditionStatus::True => true,
            ConditionStatus::False => false,
            ConditionStatus::Unknown => return None,
        };
        state.filter(|state| state.holds == holds).map(|state| state.since)
    }

    /// When an earlier daemon told of the app for the first time, if none ever told of this condition.
    pub fn first_without(&self, kind: ConditionKind) -> Option<Timestamp> {
        let told = match kind {
            ConditionKind::Ready => self.ready,
            ConditionKind::Stalled => self.stalled,
            // Work comes with the app.
            ConditionKind::Reconciling => return None,
        };
        self.first.filter(|_| told.is_none())
    }

    /// Whether it was ready when an earlier daemon looked last, and this one has not seen for itself.
    pub fn is_unconfirmed(&self) -> bool {
        self.unconfirmed
    }
}

impl Announced {
    /// What earlier daemons announced, from the events that are kept, oldest first.
    pub fn before(events: &[EventRecord]) -> Self {
        let mut announced = Self::default();
        for event in events {
            let Some(app) = &event.app else { continue };
            let known = announced.apps.entry(app.clone()).or_default();
            known.first.get_or_insert(event.at);
            let state = |holds| Some(State { holds, since: event.at });
            known.reconciling = match work(event.kind) {
                Work::Goes => known.reconciling.filter(|state| state.holds).or(state(true)),
                Work::Ends => state(false),
                Work::Stands => known.reconciling,
            };
            // It was not ready while its microVM was another or none, which is no event of its own where it was over soon.
            if let (EventKind::Rebooted | EventKind::Replaced | EventKind::Restored | EventKind::Healed, Some(ready)) =
                (event.kind, &mut known.ready)
            {
                ready.since = event.at;
            }
            match event.kind {
                EventKind::Ready => known.ready = state(true),
                EventKind::Unready => known.ready = state(false),
                EventKind::Stalled => known.stalled = state(true),
                EventKind::Resumed => known.stalled = state(false),
                EventKind::Blocked => known.blocked = state(true),
                EventKind::Unblocked => known.blocked = state(false),
                EventKind::Deleted => *known = Known::default(),
                EventKind::Created
                | EventKind::Updated
                | EventKind::Rebooted
                | EventKind::Replaced
                | EventKind::Stopped
                | EventKind::Paused
                | EventKind::Woken
                | EventKind::PausedHere
                | EventKind::StoppedHere
                | EventKind::WokenHere
                | EventKind::KeptAlive
                | EventKind::WakesOften
                | EventKind::SnapshotAsked
                | EventKind::Healed
                | EventKind::Adopted
                | EventKind::Exited
                | EventKind::Failed
                | EventKind::SuspendedHere
                | EventKind::ResumedHere
                | EventKind::SourceError
                | EventKind::SourceRecovered
                | EventKind::RevisionAttempted
                | EventKind::RevisionApplied
                | EventKind::RevisionStalled
                | EventKind::RevisionFailed
                | EventKind::DiskRetained
                | EventKind::DiskExpired
                | EventKind::SnapshotTaken
                | EventKind::SnapshotRetained
                | EventKind::SnapshotExpired
                | EventKind::Restored
                | EventKind::StateRebuilt => {}
            }
        }
        announced.apps.values_mut().for_each(|known| known.unconfirmed = known.ready.is_some_and(|state| state.holds));
        announced
    }

    /// What was last announced of an app.
    pub fn of(&self, app: &AppKey) -> Option<&Known> {
        self.apps.get(app)
    }

    /// Nothing is said any more of apps that are gone, by a daemon that has not seen them go.
    pub fn keep(&mut self, is_there: impl Fn(&AppKey) -> bool) {
        self.apps.retain(|app, _| is_there(app));
    }

    /// Nothing is said any more of an app that is gone.
    pub fn forget(&mut self, app: &AppKey) {
        self.apps.remove(app);
    }

    /// What is new about the source.
    pub fn source(&mut self, error: Option<&String>) -> Option<NewEvent> {
        let before = std::mem::replace(&mut self.source_error, error.cloned());
        match (before, error) {
            (old, Some(error)) if old.as_ref() != Some(error) => {
                Some(NewEvent::new(EventKind::SourceError, "SourceError", error.clone()))
            }
            (Some(_), None) => {
                let message = "the source can be followed again";
                Some(NewEvent::new(EventKind::SourceRecovered, "SourceRecovered", message))
            }
            (_, Some(_)) | (None, None) => None,
        }
    }

    /// What is new about an app. While it is worked on, nothing is: what comes of the work is told after the work's own event.
    pub fn app(&mut self, key: &AppKey, app: &wire::App, busy: Busy) -> Vec<NewEvent> {
        let known = self.apps.entry(key.clone()).or_default();
        known.reconciling = condition(app, ConditionKind::Reconciling)
            .map(|condition| State { holds: condition.status == ConditionStatus::True, since: condition.since });
        if busy == Busy::Yes {
            return Vec::new();
        }
        [readiness(key, known, app), stall(key, known, app), block(key, known, app)].into_iter().flatten().collect()
    }
}

/// What an event says of whether there is work on its app.
enum Work {
    Goes,
    Ends,
    Stands,
}

fn work(kind: EventKind) -> Work {
    match kind {
        EventKind::Exited | EventKind::Failed | EventKind::Blocked => Work::Goes,
        EventKind::Created
        | EventKind::Updated
        | EventKind::Rebooted
        | EventKind::Replaced
        | EventKind::Stopped
        | EventKind::Paused
        | EventKind::Woken
        | EventKind::Healed
        | EventKind::Restored
        | EventKind::Adopted => Work::Ends,
        EventKind::Deleted
        | EventKind::Unblocked
        | EventKind::Ready
        | EventKind::Unready
        | EventKind::Stalled
        | EventKind::Resumed
        | EventKind::SuspendedHere
        | EventKind::ResumedHere
        | EventKind::PausedHere
        | EventKind::StoppedHere
        | EventKind::WokenHere
        | EventKind::KeptAlive
        | EventKind::WakesOften
        | EventKind::SnapshotAsked
        | EventKind::SourceError
        | EventKind::SourceRecovered
        | EventKind::RevisionAttempted
        | EventKind::RevisionApplied
        | EventKind::RevisionStalled
        | EventKind::RevisionFailed
        | EventKind::DiskRetained
        | EventKind::DiskExpired
        | EventKind::SnapshotTaken
        | EventKind::SnapshotRetained
        | EventKind::SnapshotExpired
        | EventKind::StateRebuilt => Work::Stands,
    }
}

fn readiness(key: &AppKey, known: &mut Known, app: &wire::App) -> Option<NewEvent> {
    let ready = condition(app, ConditionKind::Ready)?;
    let holds = match ready.status {
        ConditionStatus::True => true,
        ConditionStatus::False => false,
        ConditionStatus::Unknown => return None,
    };
    known.unconfirmed = false;
    let was_ready = known.ready.is_some_and(|state| state.holds);
    known.ready = Some(State { holds, since: ready.since });
    let kind = if holds { EventKind::Ready } else { EventKind::Unready };
    (was_ready != holds).then(|| about(key, app, kind, &ready.reason, &ready.message))
}

fn stall(key: &AppKey, known: &mut Known, app: &wire::App) -> Option<NewEvent> {
    let stalled = condition(app, ConditionKind::Stalled)?;
    let holds = stalled.status == ConditionStatus::True;
    let was_stalled = known.stalled.is_some_and(|state| state.holds);
    known.stalled = Some(State { holds, since: stalled.since });
    match (was_stalled, holds) {
        (false, true) => Some(about(key, app, EventKind::Stalled, &stalled.reason, &stalled.message)),
        (true, false) => Some(about(key, app, EventKind::Resumed, &stalled.reason, "no longer stalled")),
        (true, true) | (false, false) => None,
    }
}

/// A block counts as news when it begins or ends, not when its figures move.
fn block(key: &AppKey, known: &mut Known, app: &wire::App) -> Option<NewEvent> {
    let holds = app.phase == Phase::Blocked;
    let was_blocked = known.blocked.is_some_and(|state| state.holds);
    let since = app.blocked.first().map_or(Timestamp::UNIX_EPOCH, |blocker| blocker.since);
    known.blocked = Some(State { holds, since });
    match (was_blocked, holds) {
        (false, true) => {
            let why: Vec<_> = app.blocked.iter().map(|blocker| blocker.message.as_str()).collect();
            Some(about(key, app, EventKind::Blocked, "Blocked", &why.join("; ")))
        }
        (true, false) => Some(about(key, app, EventKind::Unblocked, "Unblocked", "nothing is in the way any more")),
        (true, true) | (false, false) => None,
    }
}

fn condition(app: &wire::App, kind: ConditionKind) -> Option<&Condition> {
    app.conditions.iter().find(|condition| condition.kind == kind)
}

fn about(key: &AppKey, app: &wire::App, kind: EventKind, reason: &str, message: &str) -> NewEvent {
    let event = NewEvent::new(kind, reason, message).app(key);
    match &app.sandbox {
        Some(sandbox) => event.sandbox(sandbox),
        None => event,
    }
}
