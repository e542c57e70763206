//! Keeps a convergence to a plan that somebody has seen: what is not in that one waits for the next.

use std::collections::BTreeMap;
use std::sync::Arc;

use setpoint_schema::name::AppKey;

use super::{Alone, Entropy, mint};
use crate::model::{Action, ActionKind, Block, Plan};

/// What a plan may do, as another plan has shown it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    actions: BTreeMap<AppKey, ActionKind>,
}

impl Bounds {
    /// What `plan` does, and no more.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        Self { actions: plan.actions.iter().map(|action| (action.app.clone(), action.kind)).collect() }
    }

    /// The same plan, made with the same entropy, in which everything else is blocked.
    pub fn keep(&self, mut plan: Plan, entropy: Entropy) -> Plan {
        let beyond = |action: &&mut Arc<Action>| self.actions.get(&action.app) != Some(&action.kind);
        for action in plan.actions.iter_mut().filter(beyond) {
            Arc::make_mut(action).blocked.push(Block::Unplanned);
        }
        plan.id = mint::name(&plan, entropy, &Alone);
        plan
    }
}
