//! Makes plans: compares what is declared with what was observed, app by app, then lets the apps wait for each other.
//!
//! Each app is decided by itself first (`app`, `prune`). Then come the rules between apps: dependencies and backoff
//! (`gate`), the host's limits (`capacity`), removals last (`prune`), and the order (`order`).

mod app;
mod boot;
mod capacity;
mod disks;
mod gate;
mod guest;
mod mint;
mod order;
mod prune;
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::Observed;

use crate::desired::Desired;
use crate::model::{Action, ActionKind, Held, Hold, Plan, PlanId};

pub use mint::Entropy;
use world::World;

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

/// Every app's verdict. Undeclared apps that exist are among them.
type Verdicts<'a> = BTreeMap<&'a AppKey, Verdict>;

/// Makes the plan that leads from what was observed to what is desired.
pub fn plan(inputs: &Inputs<'_>) -> Plan {
    let world = World::new(*inputs);
    let ranks = order::ranks(&world);
    let mut verdicts = decide(&world);
    gate::apply(&world, &ranks, &mut verdicts);
    capacity::apply(&world, &ranks, &mut verdicts);
    prune::wait_for_the_rest(&world, &ranks, &mut verdicts);
    disks::apply(&world, &mut verdicts);
    seal(inputs, &ranks, verdicts)
}

fn decide<'a>(world: &World<'a>) -> Verdicts<'a> {
    let declared = world.desired.apps.iter().map(|(key, app)| (key, app::decide(world, key, app)));
    let undeclared = world.undeclared().map(|key| (key, prune::decide(world, key)));
    declared.chain(undeclared).collect()
}

/// Puts the actions in order and names the plan by its content.
fn seal(inputs: &Inputs<'_>, ranks: &order::Ranks<'_>, verdicts: Verdicts<'_>) -> Plan {
    let (mut actions, mut held, mut unchanged): (Vec<Arc<Action>>, _, Vec<_>) = (Vec::new(), Vec::new(), Vec::new());
    for (key, verdict) in verdicts {
        match verdict {
            Verdict::Act(action) => actions.push(Arc::from(action)),
            Verdict::Hold(reason) => held.push(Held { app: key.clone(), reason }),
            // An undeclared app is never unchanged: there would be nothing to say of it.
            Verdict::Unchanged => unchanged.push(key.clone()),
        }
    }
    actions.sort_by_cached_key(|action| place(ranks, action));
    let observation = mint::digest_of_observation(inputs.observed);
    let mut plan = Plan {
        id: PlanId(String::new()),
        parent: inputs.parent.cloned(),
        revision: inputs.desired.revision.clone(),
        observation,
        actions,
        held,
        unchanged: unchanged.into_iter().collect(),
    };
    plan.id = PlanId(mint::digest(&plan).0);
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
        | ActionKind::Stop => (0, rank),
        ActionKind::Delete => (1, -rank),
        ActionKind::ExpireDisk => (2, 0),
    };
    (section, rank, action.app.clone())
}
