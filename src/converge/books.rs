//! What the loop writes down as it goes: generations, failures, heals and repeats of each app, plans, revisions and events.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use setpoint_plan::desired::Desired;
use setpoint_plan::model::{Action, ActionKind, Plan, PlanId, Reason, Step};
use setpoint_plan::render::reason_code;
use setpoint_plan::repeats;
use setpoint_schema::app::DesiredApp;
use setpoint_schema::id::{CommitId, Generation, WorkDigest};
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{AppRecord, FLAP_HEALS, LastGood, Retry};
use setpoint_state::{EventKind, NewEvent, PlanAction, PlanRecord, PlanRef, StateError, Store};

use crate::converge::execute::Outcome;
use crate::converge::follow::Followed;
use crate::converge::formers::Formers;
use crate::converge::jobs::Ended;
use crate::converge::revisions::{Idle, Revisions};
use crate::ledger::Ledger;

type Result<T> = std::result::Result<T, StateError>;

/// The first wait after a failure; it doubles with each further one.
const BACKOFF_FIRST: SignedDuration = SignedDuration::from_secs(1);
/// The longest wait after a failure.
const BACKOFF_LONGEST: SignedDuration = SignedDuration::from_secs(300);

/// Writes to the store on behalf of the loop.
pub struct Books {
    ledger: Ledger,
    /// What was taken in last, so that a pass without news writes nothing.
    taken_in: Option<Arc<Followed>>,
    revisions: Revisions,
    /// The actions of the plan that was noted last: the same work seen from a newer observation is not history.
    noted_work: BTreeMap<AppKey, ActionKind>,
}

impl Books {
    /// Writes through `ledger`.
    #[must_use]
    pub fn new(ledger: Ledger) -> Self {
        Self { revisions: Revisions::new(ledger.clone()), ledger, taken_in: None, noted_work: BTreeMap::new() }
    }

    /// Goes on where an earlier daemon left off.
    pub async fn resume(&mut self) -> Result<()> {
        self.revisions.resume().await
    }

    /// The newest revision that was carried out in full.
    #[must_use]
    pub fn last_applied(&self) -> Option<&CommitId> {
        self.revisions.last_applied()
    }

    /// Remembers each app's newest good declaration, and counts a generation for each change of its spec.
    pub async fn take_in(&mut self, followed: &Arc<Followed>, now: Timestamp) -> Result<()> {
        if self.taken_in.as_ref().is_some_and(|taken| Arc::ptr_eq(taken, followed)) {
            return Ok(());
        }
        if self.taken_in.is_none() {
            self.ledger.share(&followed.desired.apps);
        }
        let (before, newest) = (self.taken_in.clone(), Arc::clone(followed));
        // In one turn, so that what others write of an app meanwhile is not lost.
        let renew = move |known: &BTreeMap<AppKey, Arc<AppRecord>>| {
            let (before, desired) = (before.as_ref().map(|taken| &taken.desired), &newest.desired);
            let good = desired.apps.iter().filter(|(key, app)| is_good_news(before, desired, key, app));
            let formers = Formers::new(desired, known);
            let renew = |(key, app): (&AppKey, &Arc<DesiredApp>)| match known.get(key) {
                Some(record) => renewed(Some(record), app, &desired.revision),
                None => match formers.of(app) {
                    Some(former) => renewed(Some(former), app, &desired.revision).map(renamed),
                    None => renewed(None, app, &desired.revision),
                },
            };
            good.filter_map(renew).collect()
        };
        // Side by side, they share a sync.
        tokio::try_join!(self.ledger.note(Vec::new(), renew), self.revisions.note_attempt(followed, now))?;
        self.taken_in = Some(Arc::clone(followed));
        Ok(())
    }

    /// Keeps a plan in the history if it is about other work than the one before; what is given back does that. What it says of an
    /// app that is being worked on is what is left of that: nothing of it can begin.
    pub fn note_plan(
        &mut self,
        plan: &Arc<Plan>,
        is_busy: impl Fn(&AppKey) -> bool,
        now: Timestamp,
    ) -> Option<impl Future<Output = Result<()>> + Send + 'static> {
        let new = plan.actions.iter().filter(|action| !is_busy(&action.app));
        let work: BTreeMap<_, _> = new.map(|action| (action.app.clone(), action.kind)).collect();
        // What is left of the same work is not history either.
        let is_known = work.iter().all(|(app, kind)| self.noted_work.get(app) == Some(kind));
        self.noted_work = work;
        if is_known {
            return None;
        }
        let (ledger, plan) = (self.ledger.clone(), Arc::clone(plan));
        let save = move |store: &Store| {
            let body = serde_json::to_vec(&*plan).expect("plans hold only maps with text keys");
            store.save_plan(&plan_record(&plan, now), &body).map(drop)
        };
        Some(async move { ledger.with(save).await })
    }

    /// Before an action acts: a heal is counted first, so that a crash in it counts too.
    pub async fn note_begin(&self, action: &Action, now: Timestamp) -> Result<()> {
        self.note_stop(action).await?;
        let Some(reason) = heal_reason(action) else { return Ok(()) };
        let event = NewEvent::new(EventKind::Exited, "VmDown", reason).app(&action.app).sandbox(&action.sandbox);
        let app = action.app.clone();
        self.ledger
            .note(vec![event], move |apps| apps.get(&app).map(|app| healed(app, now)).into_iter().collect())
            .await
    }

    /// A boot that is shut down though its app is declared to run is remembered, so that its end is not taken for an accident.
    async fn note_stop(&self, action: &Action) -> Result<()> {
        let is_here = action.reasons.iter().any(|reason| matches!(reason, Reason::PowerHere(_)));
        let sandbox = self.ledger.sandbox(&action.sandbox).filter(|_| is_here && action.kind == ActionKind::Stop);
        let Some(sandbox) = sandbox else { return Ok(()) };
        // One that sleeps is woken for its shutdown.
        let woken = action
            .steps
            .iter()
            .find_map(|step| if let Step::Resume(machine) = step { Some(&machine.nonce) } else { None });
        let nonce = woken.unwrap_or(&sandbox.machine.nonce).clone();
        let app = action.app.clone();
        let stopped = move |apps: &BTreeMap<AppKey, Arc<AppRecord>>| {
            let record = apps.get(&app).map(|app| app.with_usage(|usage| usage.stopped = Some(nonce)));
            record.into_iter().collect()
        };
        self.ledger.note(Vec::new(), stopped).await
    }

    /// After actions: their outcomes, and when each may be tried again. What is given back writes them down.
    pub(super) fn note_ends(
        &mut self,
        ended: &[Ended],
        now: Timestamp,
    ) -> impl Future<Output = Result<()>> + Send + 'static {
        let mut events = Vec::new();
        let mut outcomes = Vec::new();
        for Ended { action, outcome, began } in ended {
            let app = &action.app;
            let (event, tried) = match outcome {
                Outcome::Superseded => continue,
                Outcome::Done => {
                    let (kind, message) = done(action);
                    tracing::info!(%app, sandbox = %action.sandbox, action = %action.kind, "carried out");
                    self.revisions.count(kind);
                    let tried = Tried::Succeeded { work: repeats::work(action), began: *began };
                    (NewEvent::new(kind, action.reasons.first().map_or("", reason_code), message), tried)
                }
                Outcome::Failed { step, reason } => {
                    tracing::warn!(%app, sandbox = %action.sandbox, step, error = %reason, "action failed");
                    let message = format!("{} failed at {step}: {reason}", action.kind);
                    self.revisions.count(EventKind::Failed);
                    (NewEvent::new(EventKind::Failed, *step, message.clone()), Tried::Failed(message))
                }
            };
            let of_snapshots = match (action.kind, &tried) {
                // Written down with the snapshot itself: it neither keeps the app from being healed nor says that it is well.
                (ActionKind::Snapshot, Tried::Succeeded { .. }) => continue,
                (ActionKind::Snapshot, Tried::Failed(_)) | (ActionKind::ExpireSnapshot, Tried::Succeeded { .. }) => {
                    true
                }
                _ => false,
            };
            events.push(event.app(app).sandbox(&action.sandbox));
            if !of_snapshots {
                outcomes.push((app.clone(), tried));
            }
        }
        let retried = move |apps: &BTreeMap<AppKey, Arc<AppRecord>>| {
            outcomes.into_iter().filter_map(|(app, tried)| retried(apps.get(&app)?, tried, now)).collect()
        };
        let ledger = self.ledger.clone();
        async move { ledger.note(events, retried).await }
    }

    /// Notes that the revision came to an end, if it has.
    pub(super) async fn note_progress(
        &mut self,
        followed: &Followed,
        plan: &Plan,
        idle: Idle,
        now: Timestamp,
    ) -> Result<()> {
        self.revisions.note_progress(followed, plan, idle, now).await
    }

    /// Forgets apps that are neither declared nor have anything left.
    pub async fn forget_gone(&self, gone: Vec<AppKey>) -> Result<()> {
        self.ledger.forget_apps(gone).await
    }
}

/// Whether an app is declared without a mistake, and was not so declared before.
fn is_good_news(before: Option<&Desired>, now: &Desired, key: &AppKey, app: &Arc<DesiredApp>) -> bool {
    let is_known = |before: &Desired| !before.stalled.contains_key(key) && before.apps.get(key) == Some(app);
    !now.stalled.contains_key(key) && !before.is_some_and(is_known)
}

/// The record that `app` asks for, if it differs from the known one.
fn renewed(known: Option<&AppRecord>, app: &Arc<DesiredApp>, revision: &CommitId) -> Option<AppRecord> {
    let digest = app.spec.digest().clone();
    let last_good = || LastGood { app: Arc::clone(app), revision: revision.clone() };
    let key = app.metadata.key.clone();
    match known {
        None => Some(AppRecord {
            key,
            generation: Generation::default().next(),
            digest,
            last_good: last_good(),
            retry: Retry::default(),
            heals: Vec::new(),
            repeats: Vec::new(),
            suspended: None,
            power: None,
            restored: Vec::new(),
            usage: None,
        }),
        // A changed spec is a new chance: earlier failures and heals say nothing about it.
        Some(record) if record.digest != digest => Some(AppRecord {
            key,
            generation: record.generation.next(),
            digest,
            last_good: last_good(),
            retry: Retry::default(),
            heals: Vec::new(),
            repeats: Vec::new(),
            // Only whoever suspended it here ends that.
            suspended: record.suspended.clone(),
            // Once is once, whatever else is declared meanwhile.
            restored: record.restored.clone(),
            // What held in place of one power holds in place of that one alone, and who changes an app has use for it.
            power: record.power.clone().filter(|held| held.holds_over(app.spec.app.power.state) && !held.is_idle()),
            usage: record.with_usage(|usage| (usage.wakes, usage.again) = (Vec::new(), None)).usage,
        }),
        Some(record) if record.last_good.metadata != app.metadata || record.last_good.path != app.path => {
            Some(AppRecord { last_good: last_good(), ..record.clone() })
        }
        Some(_) => None,
    }
}

/// The record of an app that was made from that of its former name. Who suspended it did so under that name, and ends it there.
fn renamed(record: AppRecord) -> AppRecord {
    AppRecord { key: record.last_good.metadata.key.clone(), suspended: None, retry: Retry::default(), ..record }
}

/// The record of an app that is about to be healed.
fn healed(app: &AppRecord, now: Timestamp) -> AppRecord {
    let mut record = app.clone();
    record.heals.push(now);
    // One more than the breaker counts is all that it ever looks at.
    let excess = record.heals.len().saturating_sub(FLAP_HEALS + 1);
    record.heals.drain(..excess);
    record
}

/// What a try came to.
enum Tried {
    /// It failed, of this.
    Failed(String),
    /// It succeeded, with this work that may be needed again.
    Succeeded { work: Option<WorkDigest>, began: Timestamp },
}

/// The record of an app after a try, unless that changes nothing.
fn retried(app: &AppRecord, tried: Tried, now: Timestamp) -> Option<AppRecord> {
    let mut record = app.clone();
    match tried {
        Tried::Failed(error) => {
            back_off(&mut record.retry, error, now);
            // Once more is once.
            record = record.with_usage(|usage| usage.again = None);
        }
        Tried::Succeeded { work, began } => {
            record.retry = Retry::default();
            if let Some(work) = work {
                record.repeats = repeats::noted(app, work, began, now);
            }
        }
    }
    (record != *app).then_some(record)
}

/// Doubles the wait, give or take a quarter, so that apps that failed together do not try again together.
fn back_off(retry: &mut Retry, error: String, now: Timestamp) {
    let doubled = BACKOFF_FIRST.saturating_mul(1 << retry.failures.min(16)).min(BACKOFF_LONGEST);
    let quarter = doubled.as_millis() / 4;
    let jitter = i64::try_from(ulid::Ulid::generate().random() % (2 * quarter.unsigned_abs() + 1)).unwrap_or(0);
    let wait = doubled + SignedDuration::from_millis(jitter - i64::try_from(quarter).unwrap_or(0));
    retry.failures += 1;
    retry.not_before = now.checked_add(wait).ok();
    retry.last_error = Some(error);
}

fn heal_reason(action: &Action) -> Option<String> {
    action.reasons.iter().find_map(|reason| match reason {
        Reason::VmDown(why) | Reason::GuestHung(why) | Reason::Unresumable(why) => Some(why.clone()),
        Reason::NotCreated
        | Reason::Unfinished
        | Reason::SpecChanged
        | Reason::Drift(_)
        | Reason::NotDeclared
        | Reason::Renamed(_)
        | Reason::PowerChanged(_)
        | Reason::PowerHere(_)
        | Reason::RetentionOver
        | Reason::DiskReturns(_)
        | Reason::BeginsAs(_)
        | Reason::Restore(_)
        | Reason::SnapshotWanted { .. }
        | Reason::SnapshotOver { .. }
        | Reason::Unrecorded => None,
    })
}

/// The event that a finished action is.
fn done(action: &Action) -> (EventKind, String) {
    if let Some(why) = heal_reason(action) {
        return (EventKind::Healed, format!("brought back: {why}"));
    }
    let kind = match action.kind {
        ActionKind::Create => EventKind::Created,
        ActionKind::Adopt => EventKind::Adopted,
        ActionKind::Update(_) => EventKind::Updated,
        ActionKind::Reboot => EventKind::Rebooted,
        ActionKind::Replace => EventKind::Replaced,
        ActionKind::Stop => EventKind::Stopped,
        ActionKind::Pause => EventKind::Paused,
        ActionKind::Resume => EventKind::Woken,
        ActionKind::Delete => EventKind::Deleted,
        ActionKind::ExpireDisk => EventKind::DiskExpired,
        ActionKind::Snapshot => EventKind::SnapshotTaken,
        ActionKind::ExpireSnapshot if action.steps.iter().any(removes_snapshot) => EventKind::SnapshotExpired,
        ActionKind::ExpireSnapshot => EventKind::SnapshotRetained,
    };
    // What it was about says more than that it was done.
    if action.kind == ActionKind::ExpireSnapshot {
        let reasons: Vec<_> = action.reasons.iter().map(ToString::to_string).collect();
        return (kind, reasons.join("; "));
    }
    if let Some(restored) = action.reasons.iter().find(|reason| matches!(reason, Reason::Restore(_))) {
        return (EventKind::Restored, restored.to_string());
    }
    let paths: Vec<_> = action.changes.iter().map(|change| change.path.as_str()).collect();
    let message =
        if paths.is_empty() { action.kind.to_string() } else { format!("{}: {}", action.kind, paths.join(", ")) };
    (kind, message)
}

fn removes_snapshot(step: &Step) -> bool {
    matches!(step, Step::RemoveSnapshot(_))
}

fn plan_record(plan: &Plan, now: Timestamp) -> PlanRecord {
    let reference = |id: &PlanId| PlanRef(id.0.clone());
    let short = |action: &Action| PlanAction { app: action.app.clone(), action: action.kind.to_string() };
    PlanRecord {
        id: reference(&plan.id),
        parent: plan.parent.as_ref().map(reference),
        revision: plan.revision.clone(),
        made_at: now,
        actions: plan.actions.iter().take(PlanRecord::ACTIONS).map(|action| short(action)).collect(),
        total_actions: plan.actions.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backing_off_doubles_up_to_five_minutes() {
        let mut retry = Retry::default();
        let mut waits = Vec::new();
        for _ in 0..12 {
            let before = Timestamp::now();
            back_off(&mut retry, "no".to_owned(), before);
            waits.push(retry.not_before.map(|until| until.duration_since(before).as_secs_f64()));
        }
        assert!(waits[0].is_some_and(|wait| (0.7..=1.3).contains(&wait)), "{waits:?}");
        assert!(waits[3].is_some_and(|wait| (5.9..=10.1).contains(&wait)), "{waits:?}");
        assert!(waits[11].is_some_and(|wait| (224.0..=376.0).contains(&wait)), "{waits:?}");
        assert_eq!(retry.failures, 12);
    }
}
