//! The actions on their way: which app each is for, what it leads to, and how it ended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use setpoint_plan::desired::Desired;
use setpoint_plan::model::{Action, ActionKind, Hold, Plan, PlanId};
use setpoint_schema::app::Power;
use setpoint_schema::id::SpecDigest;
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::Observed;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::converge::execute::Outcome;
use crate::converge::places::{Placement, Places};
use crate::converge::step::Hands;
use crate::converge::turns::{Begins, Load, Try};
use crate::task::joined;

/// Runs actions, at most one an app.
pub(super) struct Jobs {
    hands: Hands,
    places: Places,
    concurrency: usize,
    tasks: JoinSet<(AppKey, Outcome)>,
    busy: BTreeMap<AppKey, Job>,
    /// Apps whose action has ended and is still being written down. Until that is done nobody knows what there is to do for them.
    ended: BTreeSet<AppKey>,
}

struct Job {
    action: Arc<Action>,
    /// The spec that it leads to; absent for removals.
    leads_to: Option<SpecDigest>,
    attempt: Try,
    began: Timestamp,
    superseded: CancellationToken,
}

/// An action that is on its way no more.
pub(super) struct Ended {
    pub action: Arc<Action>,
    pub outcome: Outcome,
    /// When it began.
    pub began: Timestamp,
}

impl Jobs {
    /// None is on its way yet; as many as `concurrency` says will have a place at once.
    pub fn new(hands: Hands, concurrency: usize) -> Self {
        let concurrency = concurrency.min(Places::MOST);
        Self {
            hands,
            places: Places::new(concurrency),
            concurrency,
            tasks: JoinSet::new(),
            busy: BTreeMap::new(),
            ended: BTreeSet::new(),
        }
    }

    /// As many places as this from now on.
    pub fn set_concurrency(&mut self, concurrency: usize) {
        let concurrency = concurrency.min(Places::MOST);
        self.places.add(concurrency.saturating_sub(self.concurrency));
        self.places.take_away(self.concurrency.saturating_sub(concurrency));
        self.concurrency = concurrency;
    }

    /// Whether nothing is on its way, nor still being written down.
    pub fn is_empty(&self) -> bool {
        self.busy.is_empty() && self.ended.is_empty()
    }

    /// Whether an action is on its way.
    pub fn are_running(&self) -> bool {
        !self.busy.is_empty()
    }

    pub fn is_busy(&self, app: &AppKey) -> bool {
        self.busy.contains_key(app) || self.ended.contains(app)
    }

    pub fn apps(&self) -> BTreeSet<AppKey> {
        self.busy.keys().chain(&self.ended).cloned().collect()
    }

    /// Starts an action of an app that is not busy.
    pub fn start(&mut self, plan: PlanId, action: Arc<Action>, attempt: Try, leads_to: Option<SpecDigest>) {
        let app = action.app.clone();
        let superseded = CancellationToken::new();
        let began = self.hands.observer.now();
        let job = Job { action: Arc::clone(&action), leads_to, attempt, began, superseded: superseded.clone() };
        self.busy.insert(app.clone(), job);
        let (hands, places) = (self.hands.clone(), self.places.clone());
        let placement = match Begins::of(action.kind) {
            Begins::Ahead => Placement::ahead(places),
            Begins::InPlace => Placement::new(places.try_take(), places),
        };
        self.tasks.spawn(async move {
            let outcome = hands.execute(&plan, &action, placement, &superseded).await;
            (app, outcome)
        });
    }

    /// What the actions on their way take of the places that there are.
    pub fn load(&self) -> Load {
        let mut load = Load::default();
        for (app, job) in &self.busy {
            *load.teams.entry(app.team.clone()).or_default() += 1;
            load.retries += usize::from(job.attempt == Try::Again);
        }
        load
    }

    /// Lets go of actions whose app is declared otherwise by now, so that a bad rollout cannot block its own fix, and of those
    /// whose app has been suspended here.
    pub fn supersede(&self, desired: &Desired, observed: &Observed, plan: &Plan) {
        for held in plan.held.iter().filter(|held| matches!(held.reason, Hold::SuspendedHere(_))) {
            if let Some(job) = self.busy.get(&held.app) {
                job.superseded.cancel();
            }
        }
        for (app, job) in self.busy.iter().filter(|(_, job)| job.action.kind == ActionKind::Pause) {
            // Somebody wants the app again before it has come to rest. That a guest which is being saved does not answer is no
            // reason to stop: the plan has no pause for one that is silent.
            let declared = desired.apps.get(app).map(|app| app.spec.app.power.state);
            let here = |declared| observed.apps.get(app).map_or(declared, |record| record.power_here(declared));
            if declared.map(here) == Some(Power::Running) {
                job.superseded.cancel();
            }
        }
        for (app, job) in &self.busy {
            let wanted = desired.apps.get(app).map(|app| app.spec.digest());
            if wanted != job.leads_to.as_ref() {
                job.superseded.cancel();
            }
        }
    }

    /// Ends all waiting, so that every action ends after its present step.
    pub fn supersede_all(&self) {
        self.busy.values().for_each(|job| job.superseded.cancel());
    }

    /// The next actions that end, those that have ended by then together; none once nothing is on its way. They count as on their way
    /// until they are [written](Self::written) down, but take no place. Nothing is lost when this is dropped.
    pub async fn ended(&mut self) -> Vec<Ended> {
        let first = self.tasks.join_next().await;
        let more = std::iter::from_fn(|| self.tasks.try_join_next());
        let finished: Vec<_> = first.into_iter().chain(more).collect();
        finished.into_iter().filter_map(|finished| self.take(finished)).collect()
    }

    fn take(&mut self, finished: Result<(AppKey, Outcome), JoinError>) -> Option<Ended> {
        let (app, outcome) = joined(finished);
        let job = self.busy.remove(&app)?;
        self.ended.insert(app);
        Some(Ended { action: job.action, outcome, began: job.began })
    }

    /// How the action of this app ended has been written down.
    pub fn written(&mut self, app: &AppKey) {
        self.ended.remove(app);
    }
}
