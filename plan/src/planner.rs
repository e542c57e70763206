//! Makes plans: compares what is declared with what was observed, app by app, then lets the apps wait for each other.
//!
//! Each app is decided by itself first (`app`, `prune`). Then come the rules between apps: dependencies and backoff
//! (`gate`), the host's limits (`capacity`), removals last (`prune`), and the order (`order`). From one plan to the next, what did
//! not change is not looked at again (`memo`, `index`). What each app is by itself, others may help to find out (`crew`).

mod app;
mod begin;
mod boot;
mod bounds;
mod capacity;
mod crew;
mod disks;
mod gate;
mod guest;
mod index;
mod memo;
mod mint;
mod order;
mod prune;
mod renames;
mod restore;
mod shelf;
mod snapshots;
mod tally;
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::Observed;

use crate::desired::Desired;
use crate::model::{Action, ActionKind, Held, HeldSnapshot, Hold, Plan, PlanId};

pub use bounds::Bounds;
pub use crew::{Alone, Crew};
use memo::Memo;
pub use mint::Entropy;
use world::{About, World};

/// All that a plan is made from.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// What the declarations want.
    pub desired: &'a Desired,
    /// What exists.
    pub observed: &'a Observed,
    /// The plan that is current.
    pub parent: Option<&'a PlanId>,
    /// The time.
    pub now: Timestamp,
    /// Where new ids come from; every pass brings fresh entropy.
    pub entropy: Entropy,
}

/// What is to be done about one app.
#[derive(Debug, Clone)]
enum Verdict {
    /// This.
    Act(Box<Action>),
    /// Nothing, because something holds it.
    Hold(Hold),
    /// Nothing: it is as declared.
    Unchanged,
}

/// The verdict on every app that is not as declared. Undeclared apps that exist are among them.
type Verdicts<'a> = BTreeMap<&'a AppKey, Verdict>;

/// Makes the plan that leads from what was observed to what is desired.
pub fn plan(inputs: &Inputs<'_>) -> Plan {
    plan_with(inputs, &Alone)
}

/// The same, with the help of `crew`.
pub fn plan_with(inputs: &Inputs<'_>, crew: &impl Crew) -> Plan {
    Planner::new().plan_with(inputs, crew)
}

/// Makes one plan after the other, each the same as [`plan`] would, and keeps from each what need not be found out again for the
/// next.
#[derive(Debug, Default)]
pub struct Planner {
    memo: Option<Memo>,
}

impl Planner {
    /// A planner that has made no plan yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the plan that leads from what was observed to what is desired.
    pub fn plan(&mut self, inputs: &Inputs<'_>) -> Plan {
        self.plan_with(inputs, &Alone)
    }

    /// The same, with the help of `crew`.
    pub fn plan_with(&mut self, inputs: &Inputs<'_>, crew: &impl Crew) -> Plan {
        let (mut memo, to_decide) = Memo::after(self.memo.take(), inputs, crew);
        let world = World::new(*inputs, &memo.index);
        let decided = decide_all(&world, &to_decide, crew);
        memo.verdicts.settle(&to_decide, &decided);
        let mut verdicts: Verdicts<'_> = to_decide.iter().zip(decided).filter_map(open).collect();
        let dependents = prune::dependents(&world, &verdicts);
        let apps = verdicts.keys().chain(dependents.values().flatten()).copied();
        let ranks = order::Ranks::of_all(&world, apps);
        gate::apply(&world, &ranks, &mut verdicts);
        capacity::apply(&world, &ranks, &mut verdicts);
        prune::wait_for_the_rest(&world, &ranks, &dependents, &mut verdicts);
        disks::apply(&world, &mut verdicts);
        let snapshots = snapshots::apply(&world, &mut verdicts);
        let plan = seal(inputs, &ranks, verdicts, snapshots, &memo, crew);
        self.memo = Some(memo);
        plan
    }
}

/// What is to be done about each of these apps, which are in key order.
fn decide_all(world: &World<'_>, apps: &[AppKey], crew: &impl Crew) -> Vec<Option<Verdict>> {
    crew::in_batches(crew, apps, |apps| {
        let mut reader = world.reader();
        apps.iter().map(|key| decide(world, &reader.about(key))).collect()
    })
}

/// What is to be done about an app by itself; nothing can be said of one that is neither declared nor exists.
fn decide(world: &World<'_>, about: &About<'_, '_>) -> Option<Verdict> {
    match about.app {
        Some(app) => Some(app::decide(world, about, app)),
        None => world.is_known(about.key).then(|| prune::decide(world, about)),
    }
}

/// The verdict on an app that is not as declared.
fn open((key, verdict): (&AppKey, Option<Verdict>)) -> Option<(&AppKey, Verdict)> {
    match verdict? {
        Verdict::Unchanged => None,
        verdict @ (Verdict::Act(_) | Verdict::Hold(_)) => Some((key, verdict)),
    }
}

/// Puts the actions in order and names the plan.
fn seal(
    inputs: &Inputs<'_>,
    ranks: &order::Ranks<'_>,
    verdicts: Verdicts<'_>,
    snapshots: Vec<HeldSnapshot>,
    memo: &Memo,
    crew: &impl Crew,
) -> Plan {
    let (mut actions, mut held) = (Vec::new(), Vec::new());
    let mut unchanged = memo.verdicts.unchanged.clone();
    for (key, verdict) in verdicts {
        // An old disk can be due of an app that is as declared.
        if unchanged.contains(key) {
            unchanged.remove(key);
        }
        match verdict {
            Verdict::Act(action) => actions.push(Arc::from(action)),
            Verdict::Hold(reason) => held.push(Held { app: key.clone(), reason }),
            Verdict::Unchanged => {}
        }
    }
    // As it was declared before, that is: its newest declaration cannot be carried out. Decided here, behind the rules between
    // apps, because others may build on it as it is.
    for (key, mistakes) in &inputs.desired.stalled {
        if unchanged.contains(key) {
            unchanged.remove(key);
            held.push(Held { app: key.clone(), reason: Hold::Stalled(mistakes.clone()) });
        }
    }
    held.sort_by(|a, b| a.app.cmp(&b.app));
    actions.sort_by_cached_key(|action: &Arc<Action>| place(ranks, action));
    let mut plan = Plan {
        id: PlanId(String::new()),
        parent: inputs.parent.cloned(),
        revision: inputs.desired.revision.clone(),
        observation: memo.observation.clone(),
        actions,
        held,
        snapshots,
        unchanged,
    };
    plan.id = mint::name(&plan, inputs.entropy, crew);
    plan
}

/// By dependencies; removals behind everything else, in reverse; old disks at the end.
fn place(ranks: &order::Ranks<'_>, action: &Action) -> (u8, i64, AppKey) {
    let rank = i64::try_from(ranks.of(&action.app)).unwrap_or(i64::MAX);
    let (section, rank) = match action.kind {
        ActionKind::Create
        | ActionKind::Adopt
        | ActionKind::Update(_)
        | ActionKind::Reboot
        | ActionKind::Replace
        | ActionKind::Stop
        | ActionKind::Pause
        | ActionKind::Resume
        | ActionKind::Snapshot => (0, rank),
        ActionKind::Delete => (1, -rank),
        ActionKind::ExpireDisk | ActionKind::ExpireSnapshot => (2, 0),
    };
    (section, rank, action.app.clone())
}
