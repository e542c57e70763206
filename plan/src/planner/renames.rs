//! Finds the app that a sandbox is declared as now: by its lasting identity first, then by declared moves.

use std::collections::{BTreeMap, BTreeSet};

use setpoint_schema::name::{AppKey, Uid};
use setpoint_schema::observed::Observed;

use crate::desired::Desired;

/// The longest chain of renames that is followed; a longer one is a mistake or a circle.
const MAX_MOVES: usize = 32;

/// The keys under which each lasting identity is declared. Of several, which declarations refuse, the first counts.
#[derive(Debug, Clone, Default)]
pub(super) struct Declared(BTreeMap<Uid, BTreeSet<AppKey>>);

impl Declared {
    pub fn of(desired: &Desired) -> Self {
        let mut declared = Self::default();
        for (key, app) in &desired.apps {
            declared.change(key, None, app.metadata.uid.as_ref());
        }
        declared
    }

    /// Whether nothing has a lasting identity.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// An app is declared with another identity than before.
    pub fn change(&mut self, app: &AppKey, before: Option<&Uid>, after: Option<&Uid>) {
        if let Some(keys) = before.and_then(|uid| self.0.get_mut(uid)) {
            keys.remove(app);
        }
        if let Some(uid) = after {
            self.0.entry(uid.clone()).or_default().insert(app.clone());
        }
    }

    /// The app that an object is declared as, were there no other object.
    pub fn target<'a>(&'a self, desired: &'a Desired, app: &'a AppKey, uid: Option<&Uid>) -> &'a AppKey {
        if let Some(key) = uid.and_then(|uid| self.0.get(uid)?.first()) {
            return key;
        }
        if desired.moved.is_empty() {
            return app;
        }
        let is_known = |key: &AppKey| desired.apps.contains_key(key) || desired.stalled.contains_key(key);
        let mut key = app;
        for _ in 0..MAX_MOVES {
            if is_known(key) {
                return key;
            }
            match desired.moved.get(key) {
                Some(next) => key = next,
                None => break,
            }
        }
        if is_known(key) { key } else { app }
    }
}

/// Gives every object to an app, so that two apps never become one.
pub(super) struct Renames<'a> {
    desired: &'a Desired,
    declared: &'a Declared,
    /// Keys onto which something would move, and which hold a sandbox that stays: nothing moves onto those.
    settled: BTreeSet<&'a AppKey>,
    /// Moves that were granted, new key to old.
    granted: BTreeMap<&'a AppKey, &'a AppKey>,
}

impl<'a> Renames<'a> {
    pub fn new(desired: &'a Desired, observed: &'a Observed, declared: &'a Declared) -> Self {
        let (settled, granted) = (BTreeSet::new(), BTreeMap::new());
        let mut renames = Self { desired, declared, settled, granted };
        if !declared.is_empty() || !desired.moved.is_empty() {
            renames.settled = renames.settled(observed);
        }
        renames
    }

    fn settled(&self, observed: &'a Observed) -> BTreeSet<&'a AppKey> {
        let records = observed.sandboxes.values().map(|sandbox| (&sandbox.record.app, sandbox.record.uid.as_ref()));
        let strays = observed.unrecorded.iter().map(|machine| (&machine.app, machine.uid.as_ref()));
        let disks = observed.disks.values().map(|disk| (&disk.app, None));
        let target = |app: &'a AppKey, uid: Option<&Uid>| self.declared.target(self.desired, app, uid);
        let objects = records.chain(strays);
        let targets = objects.clone().chain(disks).map(|(app, uid)| (app, target(app, uid)));
        let moved_onto: BTreeSet<_> = targets.filter(|(app, target)| app != target).map(|(_, target)| target).collect();
        let stays = |(app, uid): &(&'a AppKey, Option<&Uid>)| moved_onto.contains(app) && target(app, *uid) == *app;
        objects.filter(stays).map(|(app, _)| app).collect()
    }

    /// Whose an object is that is recorded for `app`.
    pub fn owner(&mut self, app: &'a AppKey, uid: Option<&'a Uid>) -> &'a AppKey {
        let target = self.declared.target(self.desired, app, uid);
        if target == app || self.settled.contains(target) {
            return app;
        }
        if *self.granted.entry(target).or_insert(app) == app { target } else { app }
    }
}
