//! How many of what a plan does, in one line.

use std::fmt;

use serde::Serialize;

use crate::model::{ActionKind, Plan};

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
    /// Sandboxes to remove.
    pub delete: usize,
    /// Apps whose old disks are to be let go.
    pub expire: usize,
    /// Of all these, those that cannot begin now.
    pub blocked: usize,
    /// Apps that something holds as they are.
    pub held: usize,
    /// Apps that are as declared.
    pub unchanged: usize,
}

impl Summary {
    /// Counts.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        let mut summary = Self { held: plan.held.len(), unchanged: plan.unchanged.len(), ..Self::default() };
        for action in &plan.actions {
            let count = match action.kind {
                ActionKind::Create => &mut summary.create,
                ActionKind::Adopt => &mut summary.adopt,
                ActionKind::Update(_) => &mut summary.update,
                ActionKind::Reboot => &mut summary.reboot,
                ActionKind::Replace => &mut summary.replace,
                ActionKind::Stop => &mut summary.stop,
                ActionKind::Delete => &mut summary.delete,
                ActionKind::ExpireDisk => &mut summary.expire,
            };
            *count += 1;
            summary.blocked += usize::from(!action.blocked.is_empty());
        }
        summary
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { create, adopt, update, reboot, replace, stop, delete, expire, blocked, held, unchanged } = self;
        let actions = [
            (create, "to create"),
            (adopt, "to adopt"),
            (update, "to update"),
            (reboot, "to reboot"),
            (replace, "to replace"),
            (stop, "to stop"),
            (delete, "to delete"),
            (expire, "with old disks"),
        ];
        let actions: Vec<_> = counted(&actions).collect();
        if actions.is_empty() {
            f.write_str("No changes.")?;
        } else {
            write!(f, "Plan: {}.", actions.join(", "))?;
        }
        let rest: Vec<_> = counted(&[(blocked, "blocked"), (held, "held"), (unchanged, "as declared")]).collect();
        if rest.is_empty() { Ok(()) } else { write!(f, " {}.", rest.join(", ")) }
    }
}

fn counted(counts: &[(&usize, &str)]) -> impl Iterator<Item = String> {
    counts.iter().filter(|(count, _)| **count > 0).map(|(count, what)| format!("{count} {what}"))
}
