//! The loop: observe, plan, dispatch, report, wait.
//!
//! Level-triggered: a commit, a guest's news, a microVM's end, a finished action and a timer all lead to the same pass, which
//! makes a plan from what is now and starts those of its actions that can begin. The loop chooses nothing that the plan does
//! not say; it owns who is busy, so that work for one app never runs twice at once.
//!
//! ```text
//!   follow (git) ──▶ ┌──────┐ ──▶ plan ──▶ dispatch ──▶ execute (a task per app)
//!   observe (VMs) ─▶ │ pass │ ──▶ publish: status, routes, events       │
//!   timers ────────▶ └──────┘ ◀───────────── finished ─────────────────┘
//! ```

pub mod behind;
pub mod books;
mod deadline;
pub mod execute;
pub mod files;
pub mod follow;
mod formers;
mod jobs;
mod moments;
pub mod places;
mod quiet;
mod revisions;
pub mod step;
mod turns;
pub mod warm;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use setpoint_plan::desired::{Completeness, Desired};
use setpoint_plan::model::{Action, Hold, Plan, PlanId, Step};
use setpoint_plan::planner::{Bounds, Entropy, Inputs, Planner};
use setpoint_plan::repeats;
use setpoint_schema::app::DesiredApp;
use setpoint_schema::id::CommitId;
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{AppRecord, Limits, Observed, SandboxRecord};
use setpoint_schema::shared::SharedMap;
use setpoint_state::{Outcome as StepEnd, StateError};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::config::Converge;
use crate::converge::books::Books;
use crate::converge::follow::Followed;
use crate::converge::jobs::{Ended, Jobs};
use crate::converge::revisions::Idle;
use crate::converge::step::Hands;
use crate::converge::turns::{Try, Turns};
use crate::crew::AllProcessors;
use crate::metrics::Stage;
use crate::systemd::Manager;
use crate::task::joined;
use crate::world::World;

/// Two passes are at least this far apart, so that a burst of events is one pass.
const BREATH: Duration = Duration::from_millis(5);
/// The same while work is under way: what can begin begins without a pass, and most news are of that very work. The pass after its end
/// does not wait for this.
const BREATH_AT_WORK: Duration = Duration::from_millis(15);
/// A pass is followed by a rest this many times as long as its work, so that a large world cannot keep a processor busy with looking
/// at it.
const REST: u32 = 3;

/// What every pass publishes: all that status, routes and events are made from.
#[derive(Debug, Clone)]
pub struct Pass {
    /// What is desired, and how fresh that is.
    pub followed: Arc<Followed>,
    /// What was observed.
    pub observed: Observed,
    /// What is to be done about it.
    pub plan: Arc<Plan>,
    /// The apps that are being worked on.
    pub busy: BTreeSet<AppKey>,
    /// The newest revision that was carried out in full.
    pub last_applied: Option<CommitId>,
    /// When the pass was made.
    pub at: Timestamp,
}

/// What of the loop can be changed while it runs.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// How it is paced.
    pub pace: Converge,
    /// What may run here.
    pub limits: Limits,
}

/// A plan that somebody has seen, to be carried out as it was shown.
#[derive(Debug, Clone)]
pub struct Mandate {
    /// What it does; nothing else is done.
    pub bounds: Bounds,
    /// Where its ids come from.
    pub entropy: Entropy,
}

/// Drives the host to what the declarations want, for as long as it runs.
pub struct Reconciler {
    hands: Hands,
    books: Books,
    pace: Converge,
    tuning: watch::Sender<Tuning>,
    manager: Manager,
    world: World,
    followed: watch::Receiver<Arc<Followed>>,
    passes: watch::Sender<Option<Arc<Pass>>>,
    jobs: Jobs,
    planner: Planner,
    parent: Option<PlanId>,
    mandate: Option<Mandate>,
    ready: Ready,
    undeclared: Undeclared,
    /// Plans on their way into the history, which nothing has to wait for.
    keeping: JoinSet<Result<(), StateError>>,
    /// Actions that have ended while it was written down how others did.
    ended: Vec<Ended>,
    /// How actions ended, on its way into the store: one write at a time, which takes all that have ended by then.
    noting: JoinSet<Noted>,
}

/// The apps that are remembered and not declared, as long as neither changes.
#[derive(Default)]
struct Undeclared {
    remembered: SharedMap<AppKey, Arc<AppRecord>>,
    declared: SharedMap<AppKey, Arc<DesiredApp>>,
    keys: Vec<AppKey>,
}

impl Undeclared {
    fn among(
        &mut self,
        remembered: &SharedMap<AppKey, Arc<AppRecord>>,
        declared: &SharedMap<AppKey, Arc<DesiredApp>>,
    ) -> &[AppKey] {
        if !self.remembered.is_same(remembered) || !self.declared.is_same(declared) {
            self.keys = remembered.keys().filter(|key| !declared.contains_key(*key)).cloned().collect();
            (self.remembered, self.declared) = (remembered.clone(), declared.clone());
        }
        &self.keys
    }
}

/// Actions that have ended, and whether it could be written down how.
type Noted = (Vec<Arc<Action>>, Result<(), StateError>);

/// What of the newest plan can begin and has not. The plan gave room to all of it, so it may begin at any time
/// until there is a newer plan or a newer revision.
#[derive(Default)]
struct Ready {
    newest: Option<(Arc<Plan>, Arc<Followed>)>,
    waiting: Turns,
}

impl Ready {
    fn next(&mut self, jobs: &Jobs, places: usize) -> Option<(PlanId, Arc<Action>, Try, Arc<Followed>)> {
        let (plan, followed) = self.newest.as_ref()?;
        let (place, attempt) = self.waiting.next(&jobs.load(), places)?;
        let action = plan.actions.get(place)?;
        Some((plan.id.clone(), Arc::clone(action), attempt, Arc::clone(followed)))
    }
}

impl Reconciler {
    /// Prepares the loop; [`Self::run`] runs it.
    #[must_use]
    pub fn new(hands: Hands, pace: Converge, limits: Limits, followed: watch::Receiver<Arc<Followed>>) -> Self {
        Self {
            books: Books::new(hands.ledger.clone()),
            world: World::new(hands.observer.clone(), hands.ledger.clone(), limits),
            jobs: Jobs::new(hands.clone(), pace.concurrency),
            hands,
            tuning: watch::Sender::new(Tuning { pace: pace.clone(), limits }),
            manager: Manager::default(),
            pace,
            followed,
            passes: watch::Sender::new(None),
            planner: Planner::new(),
            parent: None,
            mandate: None,
            ready: Ready::default(),
            undeclared: Undeclared::default(),
            keeping: JoinSet::new(),
            ended: Vec::new(),
            noting: JoinSet::new(),
        }
    }

    /// Carries out this plan alone.
    #[must_use]
    pub fn mandated(mut self, mandate: Mandate) -> Self {
        self.mandate = Some(mandate);
        self
    }

    /// The newest pass, as it is made.
    #[must_use]
    pub fn passes(&self) -> watch::Receiver<Option<Arc<Pass>>> {
        self.passes.subscribe()
    }

    /// Tells this service manager that the loop goes round, for as long as it does.
    #[must_use]
    pub fn watched_by(self, manager: Manager) -> Self {
        Self { manager, ..self }
    }

    /// Where its pace and its limits can be changed.
    #[must_use]
    pub fn tuning(&self) -> watch::Sender<Tuning> {
        self.tuning.clone()
    }

    /// Runs until `shutdown`, then lets the actions on their way finish their present step.
    ///
    /// # Errors
    /// Only when the store fails: without it nothing can be done safely.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), StateError> {
        self.books.resume().await?;
        self.note_unfinished().await?;
        self.look_for_unrecorded().await;
        let mut timers = Timers::new(&self.pace, &self.manager);
        let mut tuning = self.tuning.subscribe();
        // Of what was tuned before this, nothing tells.
        let tuned = tuning.borrow_and_update().clone();
        self.tune(&mut timers, tuned);
        while !shutdown.is_cancelled() {
            let began = Instant::now();
            let followed = Arc::clone(&self.followed.borrow_and_update());
            self.books.take_in(&followed, self.hands.observer.now()).await?;
            let mut written = Waited::default();
            let looked = Instant::now();
            let deadline = self.pass(followed, &mut written).await?;
            self.hands.metrics.pass(began.elapsed());
            let worked = looked.elapsed().saturating_sub(written.0);
            let next = NextPass::after(worked, if self.jobs.is_empty() { BREATH } else { BREATH_AT_WORK });
            self.rest(next, deadline, &mut timers, &mut tuning, &shutdown).await?;
        }
        self.drain().await
    }

    /// Observes, plans, dispatches and publishes once; returns when the plan wants to be made again at the latest.
    async fn pass(&mut self, followed: Arc<Followed>, written: &mut Waited) -> Result<Option<Timestamp>, StateError> {
        let now = self.hands.observer.now();
        let metrics = self.hands.metrics.clone();
        metrics.timed(Stage::Observe, self.world.look()).await;
        let desired = followed.plannable();
        let plan = Arc::new(metrics.timed(Stage::Plan, async { self.plan(&desired, now) }).await);
        self.jobs.supersede(&desired, self.world.observed(), &plan);
        // Here a test can hold the loop up.
        execute::crash_point("pass", "planned");
        if let Some(keep) = self.books.note_plan(&plan, |app| self.jobs.is_busy(app), now) {
            self.keeping.spawn(keep);
        }
        self.ready = self.ready(&plan, &followed);
        let deadline = deadline::next(&plan, &desired, &self.world, now);
        let gone = self.gone(&desired);
        drop(desired);
        metrics.timed(Stage::Dispatch, self.begin_ready()).await?;
        let idle = if self.jobs.is_empty() && !self.awaits_guests(&plan) { Idle::Yes } else { Idle::No };
        if self.jobs.is_empty() {
            written.of(self.plans_kept()).await?;
        }
        written.of(self.books.note_progress(&followed, &plan, idle, now)).await?;
        written.of(self.books.forget_gone(gone)).await?;
        self.parent = Some(plan.id.clone());
        let (observed, busy) = (self.world.observed().clone(), self.jobs.apps());
        let last_applied = self.books.last_applied().cloned();
        let pass = Pass { followed, observed, plan, busy, last_applied, at: now };
        self.passes.send_replace(Some(Arc::new(pass)));
        Ok(deadline)
    }

    fn plan(&mut self, desired: &Desired, now: Timestamp) -> Plan {
        let fresh = || Entropy(ulid::Ulid::generate().to_bytes());
        let entropy = self.mandate.as_ref().map_or_else(fresh, |mandate| mandate.entropy);
        let (observed, parent) = (self.world.observed(), self.parent.as_ref());
        let plan = self.planner.plan_with(&Inputs { desired, observed, parent, now, entropy }, &AllProcessors);
        match &self.mandate {
            Some(mandate) => mandate.bounds.keep(plan, entropy),
            None => plan,
        }
    }

    /// The actions that nothing is in the way of, whose app is not busy, and about whose sandboxes the driver has answered.
    fn ready(&self, plan: &Arc<Plan>, followed: &Arc<Followed>) -> Ready {
        let can_begin = |action: &Action| {
            let mut sandboxes = action.steps.iter().filter_map(Step::sandbox);
            action.blocked.is_empty()
                && !self.jobs.is_busy(&action.app)
                && sandboxes.all(|sandbox| self.world.is_asked(sandbox))
        };
        let tries = |app: &AppKey| match self.world.observed().apps.get(app) {
            Some(record) if record.retry.failures > 0 || repeats::is_repeating(record) => Try::Again,
            Some(_) | None => Try::First,
        };
        let actions = plan.actions.iter().map(Arc::as_ref).enumerate();
        let ready = actions.filter(|(_, action)| can_begin(action));
        let waiting = Turns::of(ready, tries);
        Ready { newest: Some((Arc::clone(plan), Arc::clone(followed))), waiting }
    }

    /// Starts what is ready, each in its turn, as much as may run at once.
    async fn begin_ready(&mut self) -> Result<(), StateError> {
        while let Some((plan, action, attempt, followed)) = self.ready.next(&self.jobs, self.pace.concurrency) {
            self.books.note_begin(&action, self.hands.observer.now()).await?;
            let leads_to = followed.desired.apps.get(&action.app).map(|app| app.spec.digest().clone());
            if let Some(record) = recorded_first(&action) {
                self.world.expect(record);
            }
            self.jobs.start(plan, action, attempt, leads_to);
        }
        Ok(())
    }

    /// Waits until it is time for another pass. What ends meanwhile makes room for what is ready.
    async fn rest(
        &mut self,
        mut next_pass: NextPass,
        deadline: Option<Timestamp>,
        timers: &mut Timers,
        tuning: &mut watch::Receiver<Tuning>,
        shutdown: &CancellationToken,
    ) -> Result<(), StateError> {
        let mut is_news = false;
        loop {
            let Timers { full_look, beat } = timers;
            // No arm awaits anything in its handler: what an arm yields is handled below.
            let woken = tokio::select! {
                () = shutdown.cancelled() => Woken::Pass,
                () = tokio::time::sleep_until(next_pass.at), if is_news => Woken::Pass,
                ended = self.jobs.ended(), if self.jobs.are_running() => Woken::Ended(ended),
                Some(noted) = self.noting.join_next() => Woken::Noted(noted),
                Some(kept) = self.keeping.join_next() => Woken::Kept(kept),
                // Once nobody follows any more there is nothing to wait for, rather than news without end.
                Ok(()) = self.followed.changed() => Woken::Revision,
                () = self.hands.observer.changed(), if !is_news => Woken::News,
                () = self.hands.ledger.changed(), if !is_news => Woken::News,
                () = sleep_until(deadline, self.hands.observer.now()), if !is_news => Woken::News,
                _ = full_look.tick() => Woken::Interval,
                () = next(beat) => Woken::Beat,
                Ok(()) = tuning.changed() => Woken::Tuned,
            };
            match woken {
                Woken::Pass => return Ok(()),
                Woken::News => {}
                // What is ready may not be wanted any more.
                Woken::Revision => {
                    self.ready = Ready::default();
                    next_pass.hurry();
                }
                Woken::Ended(ended) => {
                    self.finish(ended);
                    self.begin_ready().await?;
                    continue;
                }
                Woken::Noted(noted) => {
                    self.noted(joined(noted))?;
                    // Then nothing more is about to come that one pass could show together.
                    if self.jobs.is_empty() {
                        next_pass.hurry();
                    }
                }
                Woken::Kept(kept) => {
                    joined(kept)?;
                    continue;
                }
                Woken::Beat => {
                    self.manager.beat();
                    continue;
                }
                Woken::Tuned => self.tune(timers, tuning.borrow_and_update().clone()),
                Woken::Interval => {
                    self.hands.observer.nudge_all();
                    self.look_for_unrecorded().await;
                }
            }
            is_news = true;
        }
    }

    fn tune(&mut self, timers: &mut Timers, Tuning { pace, limits }: Tuning) {
        self.world.set_limits(limits);
        // The next plan may give the room to others.
        self.ready = Ready::default();
        self.jobs.set_concurrency(pace.concurrency);
        if pace.interval != self.pace.interval {
            *timers = Timers::new(&pace, &self.manager);
        }
        self.pace = pace;
    }

    /// Has it written down how actions ended; until then their apps stay busy.
    fn finish(&mut self, ended: Vec<Ended>) {
        ended.iter().for_each(|ended| self.hands.metrics.action(&ended.action.kind, &ended.outcome));
        self.ended.extend(ended);
        self.note_ended();
    }

    fn note_ended(&mut self) {
        if self.ended.is_empty() || !self.noting.is_empty() {
            return;
        }
        let ended = std::mem::take(&mut self.ended);
        let note = self.books.note_ends(&ended, self.hands.observer.now());
        let actions = ended.into_iter().map(|ended| ended.action).collect();
        self.noting.spawn(async move { (actions, note.await) });
    }

    fn noted(&mut self, (actions, written): Noted) -> Result<(), StateError> {
        for action in &actions {
            self.jobs.written(&action.app);
            if let Some(record) = recorded_first(action) {
                self.world.expect_no_more(&record.id);
            }
        }
        self.note_ended();
        written
    }

    /// Returns once every plan that was made is in the history.
    async fn plans_kept(&mut self) -> Result<(), StateError> {
        while let Some(kept) = self.keeping.join_next().await {
            joined(kept)?;
        }
        Ok(())
    }

    /// Whether an app is held because its guest cannot be asked yet, so that nobody knows what there is to do for it.
    fn awaits_guests(&self, plan: &Plan) -> bool {
        let quiet = self.world.quiet_apps();
        plan.held.iter().any(|held| matches!(held.reason, Hold::Unready(_)) && quiet.contains(&held.app))
    }

    /// Apps that are remembered though they are neither declared nor have anything left.
    fn gone(&mut self, desired: &Desired) -> Vec<AppKey> {
        if desired.completeness != Completeness::Complete {
            return Vec::new();
        }
        let undeclared = self.undeclared.among(&self.world.observed().apps, &desired.apps);
        let gone = |key: &&AppKey| {
            !desired.stalled.contains_key(*key) && !self.world.is_in_use(key) && !self.jobs.is_busy(key)
        };
        undeclared.iter().filter(gone).cloned().collect()
    }

    /// Steps that a crash cut short are closed in the journal; the plan finds by itself what is left of them.
    async fn note_unfinished(&self) -> Result<(), StateError> {
        for entry in self.hands.ledger.with(|store| store.unfinished()).await? {
            tracing::info!(app = %entry.app, step = %entry.step, "a step was cut short and will be looked at again");
            self.hands.ledger.with(|store| store.journal_end(entry, StepEnd::Interrupted)).await?;
        }
        Ok(())
    }

    /// An error is not an absence: a list that cannot be had leaves the last one.
    async fn look_for_unrecorded(&mut self) {
        match crate::world::unrecorded(self.hands.driver.as_ref(), &self.hands.ledger).await {
            Ok(machines) => self.world.set_unrecorded(machines),
            Err(error) => tracing::warn!(error = %crate::report::chain(&error), "microVMs could not be listed"),
        }
        match self.hands.driver.list_snapshots().await {
            Ok(found) => self.world.note_snapshots(found),
            Err(error) => tracing::warn!(error = %crate::report::chain(&error), "snapshots could not be listed"),
        }
    }

    /// Cancels waits, lets present steps end, and writes down how they ended.
    async fn drain(mut self) -> Result<(), StateError> {
        self.jobs.supersede_all();
        while self.jobs.are_running() {
            let ended = self.jobs.ended().await;
            self.finish(ended);
        }
        while let Some(noted) = self.noting.join_next().await {
            self.noted(joined(noted))?;
        }
        self.plans_kept().await
    }
}

/// What wakes the loop though nothing happens.
struct Timers {
    full_look: Interval,
    beat: Option<Interval>,
}

impl Timers {
    fn new(pace: &Converge, manager: &Manager) -> Self {
        let every = |time: Duration| {
            let mut interval = tokio::time::interval(time);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        };
        Self { full_look: every(pace.interval.as_duration()), beat: manager.beat_interval().map(every) }
    }
}

async fn next(timer: &mut Option<Interval>) {
    match timer {
        Some(timer) => drop(timer.tick().await),
        None => std::future::pending().await,
    }
}

/// When the next pass may be made.
struct NextPass {
    at: Instant,
    earliest: Instant,
}

impl NextPass {
    /// After one that was so much work and has just ended, so that a burst of news is over.
    fn after(work: Duration, burst: Duration) -> Self {
        let (now, rest) = (Instant::now(), work * REST);
        Self { at: now + burst.max(rest), earliest: now + rest }
    }

    /// Does not wait for the rest of a burst.
    fn hurry(&mut self) {
        self.at = self.earliest;
    }
}

/// How long a pass has waited for the store, which is no work of a processor.
#[derive(Default)]
struct Waited(Duration);

impl Waited {
    async fn of<W: Future>(&mut self, write: W) -> W::Output {
        let began = Instant::now();
        let written = write.await;
        self.0 += began.elapsed();
        written
    }
}

/// Why the loop goes on.
enum Woken {
    Beat,
    Tuned,
    Pass,
    News,
    Revision,
    Interval,
    Ended(Vec<Ended>),
    Noted(Result<Noted, JoinError>),
    Kept(Result<Result<(), StateError>, JoinError>),
}

/// The row that an action writes before it does anything else.
fn recorded_first(action: &Action) -> Option<&SandboxRecord> {
    match action.steps.first() {
        Some(Step::Record(record)) => Some(record),
        Some(_) | None => None,
    }
}

async fn sleep_until(deadline: Option<Timestamp>, now: Timestamp) {
    match deadline {
        Some(at) => {
            let left = at.duration_since(now).max(jiff::SignedDuration::ZERO);
            tokio::time::sleep(left.unsigned_abs()).await;
        }
        None => std::future::pending().await,
    }
}
