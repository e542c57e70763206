//! How many of what a plan does, in one line.

use std::fmt;

use serde::Serialize;

use super::{Origin, Review};
use crate::model::{ActionKind, Hold, Plan};

/// How many apps a plan does what to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Summary {
    /// Sandboxes to make.
    pub create: usize,
    /// MicroVMs to write back into the inventory.
    pub adopt: usize,
    /// Running microVMs to change in place.
    pub update: usize,
    /// MicroVMs to boot again.
    pub reboot: usize,
    /// MicroVMs to make anew.
    pub replace: usize,
    /// MicroVMs to shut down.
    pub stop: usize,
    /// MicroVMs to save and bring to rest.
    pub pause: usize,
    /// MicroVMs to go on from saved memory.
    pub resume: usize,
    /// Sandboxes to remove.
    pub delete: usize,
    /// Apps whose old disks are to be let go.
    pub expire: usize,
    /// Apps of which a moment is to be kept.
    pub snapshot: usize,
    /// Apps whose old snapshots are to be let go.
    pub expire_snapshot: usize,
    /// Of all these, those whose app was renamed.
    pub rename: usize,
    /// Of all these, those that nobody declared: what runs is not what was carried out.
    pub drift: usize,
    /// Of all these, those that cannot begin now.
    pub blocked: usize,
    /// Apps that something holds as they are.
    pub held: usize,
    /// Of the held, those whose newest declaration has mistakes.
    pub stalled: usize,
    /// Apps that are as declared.
    pub unchanged: usize,
}

impl Summary {
    /// Counts what a review shows: a plan between two revisions is blocked only by what waiting does not solve.
    #[must_use]
    pub fn of_review(review: &Review<'_>) -> Self {
        let blocked = review.plan.actions.iter().filter(|action| review.is_blocked(action)).count();
        Self { blocked, ..Self::of(review.plan) }
    }

    /// Counts.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        let stalled = plan.held.iter().filter(|held| matches!(held.reason, Hold::Stalled(_))).count();
        let (held, unchanged) = (plan.held.len(), plan.unchanged.len());
        let mut summary = Self { held, stalled, unchanged, ..Self::default() };
        for action in &plan.actions {
            let count = match action.kind {
                ActionKind::Create => &mut summary.create,
                ActionKind::Adopt => &mut summary.adopt,
                ActionKind::Update(_) => &mut summary.update,
                ActionKind::Reboot => &mut summary.reboot,
                ActionKind::Replace => &mut summary.replace,
                ActionKind::Stop => &mut summary.stop,
                ActionKind::Pause => &mut summary.pause,
                ActionKind::Resume => &mut summary.resume,
                ActionKind::Delete => &mut summary.delete,
                ActionKind::ExpireDisk => &mut summary.expire,
                ActionKind::Snapshot => &mut summary.snapshot,
                ActionKind::ExpireSnapshot => &mut summary.expire_snapshot,
            };
            *count += 1;
            summary.rename += usize::from(action.renamed_from().is_some());
            summary.drift += usize::from(action.origin() == Origin::Drift);
            summary.blocked += usize::from(!action.blocked.is_empty());
        }
        summary
    }
}

impl Summary {
    /// What is done, as "1 to create, 2 to update"; empty where nothing is.
    #[must_use]
    pub fn work(&self) -> String {
        let actions = [
            (self.create, "to create"),
            (self.adopt, "to adopt"),
            (self.update, "to update"),
            (self.reboot, "to reboot"),
            (self.replace, "to replace"),
            (self.stop, "to stop"),
            (self.pause, "to pause"),
            (self.resume, "to resume"),
            (self.delete, "to delete"),
            (self.expire, "with old disks"),
            (self.snapshot, "to snapshot"),
            (self.expire_snapshot, "with old snapshots"),
        ];
        counted(&actions)
    }

    /// What else there is to say, as "1 blocked, 2 held"; empty where there is nothing.
    #[must_use]
    pub fn rest(&self) -> String {
        let rest = [
            (self.rename, "renamed"),
            (self.drift, "drifted"),
            (self.blocked, "blocked"),
            (self.held.saturating_sub(self.stalled), "held"),
            (self.stalled, "stalled"),
            (self.unchanged, "as declared"),
        ];
        counted(&rest)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.work() {
            nothing if nothing.is_empty() => f.write_str("No changes.")?,
            work => write!(f, "Plan: {work}.")?,
        }
        match self.rest() {
            nothing if nothing.is_empty() => Ok(()),
            rest => write!(f, " {rest}."),
        }
    }
}

fn counted(counts: &[(usize, &str)]) -> String {
    let counts = counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
    counts.collect::<Vec<_>>().join(", ")
}
