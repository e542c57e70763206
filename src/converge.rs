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

pub mod books;
pub mod execute;
pub mod files;
pub mod follow;
pub mod step;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use setpoint_plan::desired::{Completeness, Desired};
use setpoint_plan::model::{Action, Block, Hold, Plan, PlanId, Step};
use setpoint_plan::planner::{Entropy, Inputs, plan};
use setpoint_schema::id::{SandboxId, SpecDigest};
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{DiskState, GuestState, Limits, Observed};
use setpoint_state::{Outcome as StepEnd, StateError};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::Converge;
use crate::converge::books::Books;
use crate::converge::execute::Outcome;
use crate::converge::follow::Followed;
use crate::converge::step::Hands;
use crate::task::joined;

/// Two passes are at least this far apart, so that a burst of events is one pass.
const BREATH: Duration = Duration::from_millis(20);
/// How soon a row that an action is about to write is looked for again. Writing one takes some milliseconds.
const ROW_WAIT: jiff::SignedDuration = jiff::SignedDuration::from_millis(40);

/// What every pass publishes: all that status, routes and events are made from.
#[derive(Debug, Clone)]
pub struct Pass {
    /// What is desired, and how fresh that is.
    pub followed: Arc<Followed>,
    /// What was observed.
    pub observed: Observed,
    /// What is to be done about it.
    pub plan: Plan,
    /// The apps that are being worked on.
    pub busy: BTreeSet<AppKey>,
    /// When the pass was made.
    pub at: Timestamp,
}

/// Drives the host to what the declarations want, for as long as it runs.
pub struct Reconciler {
    hands: Hands,
    books: Books,
    pace: Converge,
    limits: Limits,
    followed: watch::Receiver<Arc<Followed>>,
    passes: watch::Sender<Option<Arc<Pass>>>,
    jobs: JoinSet<(AppKey, Outcome)>,
    busy: BTreeMap<AppKey, Job>,
    parent: Option<PlanId>,
    unrecorded: Vec<setpoint_schema::observed::Machine>,
}

/// An action on its way.
struct Job {
    action: Action,
    /// The spec that it leads to; absent for removals.
    leads_to: Option<SpecDigest>,
    /// The row that its first step writes, until that has been seen: before, no observation counts what the action takes.
    unseen: Option<SandboxId>,
    superseded: CancellationToken,
}

impl Reconciler {
    /// Prepares the loop; [`Self::run`] runs it.
    #[must_use]
    pub fn new(hands: Hands, pace: Converge, limits: Limits, followed: watch::Receiver<Arc<Followed>>) -> Self {
        Self {
            books: Books::new(hands.ledger.clone()),
            hands,
            pace,
            limits,
            followed,
            passes: watch::Sender::new(None),
            jobs: JoinSet::new(),
            busy: BTreeMap::new(),
            parent: None,
            unrecorded: Vec::new(),
        }
    }

    /// The newest pass, as it is made.
    #[must_use]
    pub fn passes(&self) -> watch::Receiver<Option<Arc<Pass>>> {
        self.passes.subscribe()
    }

    /// Runs until `shutdown`, then lets the actions on their way finish their present step.
    ///
    /// # Errors
    /// Only when the store fails: without it nothing can be done safely.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), StateError> {
        self.note_unfinished().await?;
        self.look_for_unrecorded().await;
        let mut full_look = tokio::time::interval(self.pace.interval.as_duration());
        full_look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !shutdown.is_cancelled() {
            let followed = Arc::clone(&self.followed.borrow_and_update());
            self.books.take_in(&followed, self.hands.observer.now()).await?;
            let deadline = self.pass(followed).await?;
            match self.wait(deadline, &mut full_look, &shutdown).await {
                Woken::Finished(app, outcome) => self.finish(app, outcome).await?,
                Woken::Interval => {
                    self.hands.observer.nudge_all();
                    self.look_for_unrecorded().await;
                }
                Woken::News | Woken::Shutdown => {}
            }
        }
        self.drain().await
    }

    /// Observes, plans, dispatches and publishes once; returns when the plan wants to be made again at the latest.
    async fn pass(&mut self, followed: Arc<Followed>) -> Result<Option<Timestamp>, StateError> {
        let now = self.hands.observer.now();
        let (observed, unasked) = self.observe().await?;
        self.see_rows(&observed);
        let desired = followed.plannable();
        let plan = self.plan(&desired, &observed, now);
        self.supersede(&desired);
        self.books.note_plan(&plan, now).await?;
        self.dispatch(&plan, &desired, &observed, &unasked).await?;
        let idle = self.busy.is_empty() && !awaits_guests(&plan, &observed);
        self.books.note_progress(&followed, &plan, idle, now).await?;
        self.books.forget_gone(self.gone(&desired, &observed)).await?;
        let deadline = next_deadline(&plan, now).into_iter().chain(self.look_for_rows_at(now)).min();
        self.parent = Some(plan.id.clone());
        let busy = self.busy.keys().cloned().collect();
        drop(desired);
        let pass = Arc::new(Pass { followed, observed, plan, busy, at: now });
        self.passes.send_replace(Some(pass));
        Ok(deadline)
    }

    fn plan(&self, desired: &Desired, observed: &Observed, now: Timestamp) -> Plan {
        let entropy = Entropy(ulid::Ulid::generate().to_bytes());
        plan(&Inputs { desired, observed, parent: self.parent.as_ref(), now, entropy })
    }

    /// The world as it is known, and the sandboxes whose driver has not answered yet: nothing is done about those.
    async fn observe(&mut self) -> Result<(Observed, BTreeSet<SandboxId>), StateError> {
        let inventory = self.hands.ledger.inventory().await?;
        Ok(crate::world::assemble(&self.hands.observer, inventory, &self.unrecorded, self.limits).await)
    }

    /// Notices the rows that have been written since the actions on their way began.
    fn see_rows(&mut self, observed: &Observed) {
        for job in self.busy.values_mut() {
            job.unseen.take_if(|row| observed.sandboxes.contains_key(row));
        }
    }

    fn look_for_rows_at(&self, now: Timestamp) -> Option<Timestamp> {
        let unseen = self.busy.values().any(|job| job.unseen.is_some());
        unseen.then(|| now.saturating_add(ROW_WAIT).unwrap_or(Timestamp::MAX))
    }

    /// Starts every action that can begin and whose app is not busy, in the plan's order, as many as may run at once.
    ///
    /// None starts beside an action whose row was not there when this plan was made: the plan has given the same room to others.
    async fn dispatch(
        &mut self,
        plan: &Plan,
        desired: &Desired,
        observed: &Observed,
        unasked: &BTreeSet<SandboxId>,
    ) -> Result<(), StateError> {
        if self.busy.values().any(|job| job.unseen.is_some()) {
            return Ok(());
        }
        let now = self.hands.observer.now();
        for action in &plan.actions {
            if self.busy.len() >= self.pace.concurrency {
                break;
            }
            let known = action.steps.iter().filter_map(Step::sandbox).all(|sandbox| !unasked.contains(sandbox));
            if !action.blocked.is_empty() || !known || self.busy.contains_key(&action.app) {
                continue;
            }
            self.books.note_begin(action, now).await?;
            self.start(plan.id.clone(), action.clone(), desired, observed);
        }
        Ok(())
    }

    fn start(&mut self, plan: PlanId, action: Action, desired: &Desired, observed: &Observed) {
        let app = action.app.clone();
        let superseded = CancellationToken::new();
        let leads_to = desired.apps.get(&app).map(|app| app.spec.digest());
        let unseen = match action.steps.first() {
            Some(Step::Record(record)) if !observed.sandboxes.contains_key(&record.id) => Some(record.id.clone()),
            Some(_) | None => None,
        };
        let job = Job { action: action.clone(), leads_to, unseen, superseded: superseded.clone() };
        self.busy.insert(app.clone(), job);
        let hands = self.hands.clone();
        self.jobs.spawn(async move {
            let outcome = hands.execute(&plan, &action, &superseded).await;
            (app, outcome)
        });
    }

    /// Lets go of actions whose app is declared otherwise by now, so that a bad rollout cannot block its own fix.
    fn supersede(&self, desired: &Desired) {
        for (app, job) in &self.busy {
            let wanted = desired.apps.get(app).map(|app| app.spec.digest());
            if wanted != job.leads_to {
                job.superseded.cancel();
            }
        }
    }

    async fn wait(
        &mut self,
        deadline: Option<Timestamp>,
        full_look: &mut tokio::time::Interval,
        shutdown: &CancellationToken,
    ) -> Woken {
        tokio::time::sleep(BREATH).await;
        // No arm awaits anything in its handler: what an arm yields is handled by the caller.
        tokio::select! {
            () = shutdown.cancelled() => Woken::Shutdown,
            Some(finished) = self.jobs.join_next() => {
                let (app, outcome) = joined(finished);
                Woken::Finished(app, outcome)
            }
            _ = self.followed.changed() => Woken::News,
            () = self.hands.observer.changed() => Woken::News,
            () = sleep_until(deadline, self.hands.observer.now()) => Woken::News,
            _ = full_look.tick() => Woken::Interval,
        }
    }

    async fn finish(&mut self, app: AppKey, outcome: Outcome) -> Result<(), StateError> {
        let Some(job) = self.busy.remove(&app) else { return Ok(()) };
        self.books.note_end(&job.action, &outcome, self.hands.observer.now()).await
    }

    /// Apps that are remembered though they are neither declared nor have anything left.
    fn gone(&self, desired: &Desired, observed: &Observed) -> Vec<AppKey> {
        let in_use: BTreeSet<_> = observed.sandboxes.values().map(|sandbox| &sandbox.record.app).collect();
        let disks = observed.disks.values().filter(|disk| disk.state == DiskState::InUse);
        let in_use: BTreeSet<_> = disks.map(|disk| &disk.app).chain(in_use).collect();
        let declared = |key: &AppKey| desired.apps.contains_key(key) || desired.stalled.contains_key(key);
        let complete = desired.completeness == Completeness::Complete;
        let gone =
            |key: &&AppKey| complete && !declared(key) && !in_use.contains(*key) && !self.busy.contains_key(*key);
        observed.apps.keys().filter(gone).cloned().collect()
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
            Ok(machines) => self.unrecorded = machines,
            Err(error) => tracing::warn!(error = %crate::report::chain(&error), "microVMs could not be listed"),
        }
    }

    /// Cancels waits, lets present steps end, and writes down how they ended.
    async fn drain(mut self) -> Result<(), StateError> {
        self.busy.values().for_each(|job| job.superseded.cancel());
        while let Some(finished) = self.jobs.join_next().await {
            let (app, outcome) = joined(finished);
            self.finish(app, outcome).await?;
        }
        Ok(())
    }
}

/// Why the loop goes on.
enum Woken {
    Shutdown,
    News,
    Interval,
    Finished(AppKey, Outcome),
}

/// Whether an app is held because its guest cannot be asked yet, so that nobody knows what there is to do for it.
fn awaits_guests(plan: &Plan, observed: &Observed) -> bool {
    let silent = |app: &AppKey| {
        let mut sandboxes = observed.sandboxes.values().filter(|sandbox| sandbox.record.app == *app);
        sandboxes.any(|sandbox| !matches!(sandbox.guest, GuestState::Answering(_)))
    };
    plan.held.iter().any(|held| matches!(held.reason, Hold::Unready(_)) && silent(&held.app))
}

/// The earliest time at which the same world gives another plan.
fn next_deadline(plan: &Plan, now: Timestamp) -> Option<Timestamp> {
    let backoffs = plan.actions.iter().flat_map(|action| &action.blocked).filter_map(|block| match block {
        Block::Backoff { until, .. } => Some(*until),
        Block::Flapping(_) => now.checked_add(jiff::SignedDuration::from_secs(5)).ok(),
        Block::Dependency { .. }
        | Block::Capacity(_)
        | Block::DiskShrink { .. }
        | Block::Unhealthy(_)
        | Block::Dependent(_) => None,
    });
    // A held app is waited for: its silence or its slow boot becomes an action by time alone.
    let held = plan.held.iter().filter(|held| matches!(held.reason, Hold::Unready(_)));
    let held = held.filter_map(|_| now.checked_add(jiff::SignedDuration::from_secs(2)).ok());
    backoffs.chain(held).min()
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
