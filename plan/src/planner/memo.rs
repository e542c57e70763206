//! What a planner keeps of one plan for the next: whose everything is, which apps are as declared, and the digest of what was
//! observed.
//!
//! Decided anew are the apps of which something has changed, and all that something is done about or that something holds,
//! because that may rest on the time, the revision, fresh ids or other apps. An app that is as declared rests on its declaration,
//! its sandboxes, their disks and what is remembered of it, and on nothing else.

use std::collections::BTreeSet;

use setpoint_schema::id::SpecDigest;
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::Observed;
use setpoint_schema::shared::SharedSet;

use super::crew::Crew;
use super::index::{self, Index};
use super::mint;
use super::{Inputs, Verdict};
use crate::desired::Desired;

/// What is kept.
#[derive(Debug)]
pub(super) struct Memo {
    desired: Desired,
    observed: Observed,
    pub index: Index,
    /// Whether the index can be brought up to date.
    is_regular: bool,
    hashes: mint::Hashes,
    /// The digest of what was observed.
    pub observation: SpecDigest,
    pub verdicts: Settled,
}

/// How every app was decided.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// The apps that are as declared.
    pub unchanged: SharedSet<AppKey>,
    /// The other ones.
    open: BTreeSet<AppKey>,
}

impl Memo {
    /// The memo for these inputs, and the apps that are to be decided, in key order.
    pub fn after(before: Option<Self>, inputs: &Inputs<'_>, crew: &impl Crew) -> (Self, Vec<AppKey>) {
        let Some(mut memo) = before else { return Self::new(inputs, mint::Hashes::default(), None, crew) };
        let Some(to_decide) = memo.changed(inputs) else {
            return Self::new(inputs, memo.hashes, Some(&memo.observed), crew);
        };
        memo.observation = memo.hashes.of(Some(&memo.observed), inputs.observed, crew);
        memo.desired.clone_from(inputs.desired);
        memo.observed.clone_from(inputs.observed);
        (memo, to_decide.into_iter().collect())
    }

    /// Looks at everything. What was hashed before need not be hashed again.
    fn new(
        inputs: &Inputs<'_>,
        mut hashes: mint::Hashes,
        hashed: Option<&Observed>,
        crew: &impl Crew,
    ) -> (Self, Vec<AppKey>) {
        let (desired, observed) = (inputs.desired.clone(), inputs.observed.clone());
        let index = Index::new(&desired, &observed);
        let existing = index.sandboxes.keys().chain(index.strays.keys());
        let mut all: Vec<_> = desired.apps.keys().chain(desired.stalled.keys()).chain(existing).cloned().collect();
        all.sort();
        all.dedup();
        let observation = hashes.of(hashed, &observed, crew);
        let is_regular = index.is_regular(&desired);
        (Self { desired, observed, index, is_regular, hashes, observation, verdicts: Settled::default() }, all)
    }

    /// Brings the index up to date, and finds the apps that are to be decided anew; none where that cannot be told.
    fn changed(&mut self, inputs: &Inputs<'_>) -> Option<BTreeSet<AppKey>> {
        if !self.is_regular {
            return None;
        }
        let (desired, observed) = (inputs.desired, inputs.observed);
        let mut changed = self.verdicts.open.clone();
        let older = index::World { desired: &self.desired, observed: &self.observed };
        self.index.update(older, index::World { desired, observed }, &mut changed).ok()?;
        changed.extend(self.observed.apps.differences(&observed.apps).map(|(key, _)| key.clone()));
        if self.desired.stalled != desired.stalled {
            changed.extend(self.desired.stalled.keys().chain(desired.stalled.keys()).cloned());
        }
        Some(changed)
    }
}

impl Settled {
    /// Takes down how these apps were decided: those that are as declared, those that are not, and the rest, which are gone.
    pub fn settle(&mut self, apps: &[AppKey], decided: &[Option<Verdict>]) {
        let decided = apps.iter().zip(decided.iter().map(Option::as_ref).map(Standing::of));
        if self.unchanged.is_empty() && self.open.is_empty() {
            let of =
                |wanted| decided.clone().filter(move |(_, standing)| *standing == wanted).map(|(key, _)| key.clone());
            (self.unchanged, self.open) = (of(Standing::Unchanged).collect(), of(Standing::Open).collect());
            return;
        }
        for (key, standing) in decided {
            let is_unchanged = standing == Standing::Unchanged;
            if is_unchanged != self.unchanged.contains(key) {
                if is_unchanged {
                    self.unchanged.insert(key.clone());
                } else {
                    self.unchanged.remove(key);
                }
            }
            if standing == Standing::Open {
                self.open.insert(key.clone());
            } else {
                self.open.remove(key);
            }
        }
    }
}

/// Where an app stands after a plan.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Unchanged,
    Open,
    Gone,
}

impl Standing {
    fn of(verdict: Option<&Verdict>) -> Self {
        match verdict {
            Some(Verdict::Unchanged) => Self::Unchanged,
            Some(Verdict::Act(_) | Verdict::Hold(_)) => Self::Open,
            None => Self::Gone,
        }
    }
}
