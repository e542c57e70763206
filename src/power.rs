//! The power state that holds here in place of a declared one: who may ask for which, and what comes of it.
//!
//! Asked by the admin socket for people, by the ingress for requests that come for an app at rest, and for apps that nobody uses. It is a field of the app's
//! record in the store, so it outlives the daemon; the loop wakes because a record changed, and the planner does the rest.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use setpoint_schema::app::Power;
use setpoint_schema::id::BootNonce;
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{AppRecord, PowerCause, PowerOverride, Retry, VmState};
use setpoint_schema::power::{IdleAction, OnResumeFailure};
use setpoint_state::{EventKind, NewEvent, StateError};

use crate::idle;
use crate::ledger::Ledger;
use crate::observe::Observer;

/// Changes what holds.
#[derive(Clone)]
pub struct PowerSwitch {
    /// Keeps what is changed.
    pub ledger: Ledger,
    /// Knows the time.
    pub observer: Observer,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// That the app rests, with its memory kept.
    Paused,
    /// That the app rests, shut down.
    Stopped,
    /// That it runs.
    Running,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// This holds from now on in place of the declaration; nothing, if the declaration says as much.
    Changed(Option<PowerOverride>),
    /// It was so already.
    AlreadySo(Option<PowerOverride>),
    /// The declaration forbids it: why.
    Refused(String),
    /// Nobody knows such an app.
    Unknown,
}

impl Wanted {
    /// What is wanted of an app that nobody uses.
    #[must_use]
    pub const fn resting(action: IdleAction) -> Self {
        match action {
            IdleAction::Pause => Self::Paused,
            IdleAction::Stop => Self::Stopped,
        }
    }

    const fn state(self) -> Power {
        match self {
            Self::Paused => Power::Paused,
            Self::Stopped => Power::Stopped,
            Self::Running => Power::Running,
        }
    }
}

impl PowerSwitch {
    /// Sees to it that `wanted` holds for an app, and records it as an event.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn ask(&self, app: &AppKey, wanted: Wanted, cause: PowerCause) -> Result<Answer, StateError> {
        let Some(known) = self.ledger.app(app) else { return Ok(Answer::Unknown) };
        let now = self.observer.now();
        let again = self.unresumable(&known, wanted, &cause);
        let first = answer(&known, wanted, &cause, again.as_ref(), now);
        if !matches!(first, Answer::Changed(_)) {
            return Ok(first);
        }
        let mut events = vec![NewEvent::new(kind(wanted), "Override", sentence(wanted, &cause)).app(app)];
        events.extend(news_of_loop(&known, wanted, now).map(|event| event.app(app)));
        let key = app.clone();
        let noted = Arc::new(Mutex::new(first));
        let result = Arc::clone(&noted);
        // Decided anew among the records as they are by then: somebody else may have asked meanwhile.
        let change = move |records: &BTreeMap<AppKey, Arc<AppRecord>>| {
            let answer =
                records.get(&key).map_or(Answer::Unknown, |record| answer(record, wanted, &cause, again.as_ref(), now));
            let changed = match (&answer, records.get(&key)) {
                (Answer::Changed(held), Some(record)) => {
                    let record = changed(record, held.clone(), again, now);
                    Some(explained(&record, wanted, held.as_ref(), cause.clone(), now))
                }
                (Answer::Changed(_) | Answer::AlreadySo(_) | Answer::Refused(_) | Answer::Unknown, _) => None,
            };
            *result.lock().unwrap_or_else(PoisonError::into_inner) = answer;
            changed.into_iter().collect()
        };
        self.ledger.note(events, change).await?;
        tracing::info!(%app, ?wanted, "power override changed");
        let answer = noted.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(answer)
    }

    /// The paused boot of an app that is to stay at rest because it could not go on, where somebody wants it to try again.
    fn unresumable(&self, app: &AppRecord, wanted: Wanted, cause: &PowerCause) -> Option<BootNonce> {
        let spec = &app.last_good.spec.app.power;
        let asks = (wanted, spec.on_resume_failure) == (Wanted::Running, OnResumeFailure::Alert);
        match cause {
            PowerCause::Asked { .. } if asks => {}
            PowerCause::Asked { .. } | PowerCause::Idle { .. } | PowerCause::Request => return None,
        }
        let sandboxes = self.ledger.sandboxes();
        let mut views = sandboxes.values().filter(|row| row.app == app.key).map(|row| self.observer.view(&row.id));
        views.find_map(|view| match view.vm {
            Some(VmState::Paused { nonce, fault: Some(_), .. }) => Some(nonce),
            Some(VmState::Paused { .. } | VmState::Absent | VmState::Exited { .. } | VmState::Running { .. })
            | None => None,
        })
    }
}

/// What is to hold, as far as the record tells. `again` is the paused boot of it that is to be gone on from once more.
fn answer(record: &AppRecord, wanted: Wanted, cause: &PowerCause, again: Option<&BootNonce>, now: Timestamp) -> Answer {
    let declared = record.last_good.spec.app.power.state;
    let held = record.power_over(declared);
    let state = record.power_here(declared);
    let wanted = wanted.state();
    // Nobody is said to have stopped using what rests already.
    let is_late = matches!(cause, PowerCause::Idle { .. }) && state != Power::Running;
    if state == wanted && again.is_some() && record.usage().again.as_ref() != again {
        return Answer::Changed(held.cloned());
    }
    if state == wanted || is_late {
        return Answer::AlreadySo(held.cloned());
    }
    match declared {
        Power::Stopped => Answer::Refused("it is declared `power: stopped`".to_owned()),
        Power::Running | Power::Paused if declared == wanted => Answer::Changed(None),
        Power::Running | Power::Paused => {
            Answer::Changed(Some(PowerOverride { state: wanted, declared, since: now, cause: cause.clone() }))
        }
    }
}

/// The record of an app for which this holds from now on. A wake from a rest that nobody asked for is remembered.
fn changed(record: &AppRecord, power: Option<PowerOverride>, again: Option<BootNonce>, now: Timestamp) -> AppRecord {
    let declared = record.last_good.spec.app.power.state;
    let rested = record.power_over(declared).is_some_and(PowerOverride::is_idle);
    let record = record.with_usage(|usage| {
        usage.keepalive.take_if(|keepalive| keepalive.until <= now);
        if rested {
            usage.wakes.push(now);
        }
        idle::remembered(&mut usage.wakes, now);
    });
    match again {
        // What failed before is no reason to wait with what somebody asks for now.
        Some(again) => {
            AppRecord { power, retry: Retry::default(), ..record.with_usage(|usage| usage.again = Some(again)) }
        }
        None => AppRecord { power, ..record },
    }
}

/// The same record, which says who or what has ended a rest here: what is declared anyway leaves nothing else that would.
fn explained(
    record: &AppRecord,
    wanted: Wanted,
    held: Option<&PowerOverride>,
    cause: PowerCause,
    now: Timestamp,
) -> AppRecord {
    let declared = record.last_good.spec.app.power.state;
    let state = wanted.state();
    let woken =
        (wanted == Wanted::Running && held.is_none()).then_some(PowerOverride { state, declared, since: now, cause });
    record.with_usage(|usage| usage.woken = woken)
}

/// The event of the wake that makes a loop of those before it.
fn news_of_loop(record: &AppRecord, wanted: Wanted, now: Timestamp) -> Option<NewEvent> {
    let (before, after) = (&record.usage().wakes, changed(record, None, None, now));
    let wakes = &after.usage().wakes;
    let begins = wanted == Wanted::Running && idle::wakes_often(wakes) && !idle::wakes_often(before);
    begins.then(|| NewEvent::new(EventKind::WakesOften, "WakesOften", idle::advice(wakes.len())))
}

fn kind(wanted: Wanted) -> EventKind {
    match wanted {
        Wanted::Paused => EventKind::PausedHere,
        Wanted::Stopped => EventKind::StoppedHere,
        Wanted::Running => EventKind::WokenHere,
    }
}

fn sentence(wanted: Wanted, cause: &PowerCause) -> String {
    let what = match wanted {
        Wanted::Paused => "to be paused",
        Wanted::Stopped => "to be stopped",
        Wanted::Running => "to be woken",
    };
    match cause {
        PowerCause::Asked { by } => format!("{what}: asked for here by {by}"),
        PowerCause::Idle { since } => format!("{what}: nobody has used it since {since:.0}"),
        PowerCause::Request => format!("{what}: a request came for it"),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing step is a failing test")]

    use setpoint_schema::app::{AppMetadata, AppSpec, DesiredApp, SandboxSpec};
    use setpoint_schema::id::{CommitId, Generation, TemplateDigest, TreeDigest};
    use setpoint_schema::observed::LastGood;
    use setpoint_schema::short::Short;

    use super::*;

    fn record(declared: Power, power: Option<PowerOverride>) -> AppRecord {
        let key: AppKey = "blog".parse().unwrap();
        let app = AppSpec { power: Short::of(declared), ..AppSpec::default() };
        let spec = SandboxSpec { app, template: TemplateDigest("t".into()), files: TreeDigest("f".into()) };
        let metadata = AppMetadata { key: key.clone(), uid: None, labels: [].into(), annotations: [].into() };
        let app = DesiredApp { metadata, spec: spec.into(), path: "apps/blog/app.yaml".parse().unwrap() };
        AppRecord {
            key,
            generation: Generation(1),
            digest: app.spec.digest().clone(),
            last_good: LastGood { app: Arc::new(app), revision: CommitId("1".repeat(40).into()) },
            retry: Retry::default(),
            heals: Vec::new(),
            repeats: Vec::new(),
            suspended: None,
            power,
            restored: Vec::new(),
            usage: None,
        }
    }

    fn held(state: Power, declared: Power) -> PowerOverride {
        PowerOverride { state, declared, since: Timestamp::UNIX_EPOCH, cause: PowerCause::Request }
    }

    fn ask(record: &AppRecord, wanted: Wanted) -> Answer {
        answer(record, wanted, &PowerCause::Request, None, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn what_is_declared_anyway_needs_nothing_in_its_place() {
        let paused_here = record(Power::Running, Some(held(Power::Paused, Power::Running)));
        assert_eq!(ask(&paused_here, Wanted::Running), Answer::Changed(None));
        let woken_here = record(Power::Paused, Some(held(Power::Running, Power::Paused)));
        assert_eq!(ask(&woken_here, Wanted::Paused), Answer::Changed(None));
    }

    #[test]
    fn asking_twice_is_as_good_as_once() {
        let paused_here = record(Power::Running, Some(held(Power::Paused, Power::Running)));
        assert!(matches!(ask(&paused_here, Wanted::Paused), Answer::AlreadySo(Some(_))));
        assert_eq!(ask(&record(Power::Running, None), Wanted::Running), Answer::AlreadySo(None));
    }

    #[test]
    fn what_held_against_an_older_declaration_does_not_count() {
        let declared_anew = record(Power::Paused, Some(held(Power::Paused, Power::Running)));
        assert_eq!(ask(&declared_anew, Wanted::Running), Answer::Changed(Some(held(Power::Running, Power::Paused))));
    }

    #[test]
    fn an_app_that_is_declared_stopped_is_neither_paused_nor_woken() {
        for wanted in [Wanted::Paused, Wanted::Running] {
            assert!(matches!(ask(&record(Power::Stopped, None), wanted), Answer::Refused(_)));
        }
    }
}
