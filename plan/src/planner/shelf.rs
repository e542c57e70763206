//! The snapshots in the inventory, findable by what wants them.

use std::collections::BTreeMap;

use setpoint_schema::app::{Beginning, SnapshotRef};
use setpoint_schema::id::{Generation, SnapshotId};
use setpoint_schema::name::{AppKey, SnapshotKey};
use setpoint_schema::observed::{Kept, Moment, Observed, SnapshotCause, SnapshotRecord, SnapshotState};

use crate::desired::Desired;

/// Everything that is known of snapshots.
pub(super) struct Shelf<'a> {
    desired: &'a Desired,
    observed: &'a Observed,
    /// Those that a declaration wanted, by name, each name's by generation.
    declared: BTreeMap<&'a SnapshotKey, Vec<&'a SnapshotRecord>>,
    /// Those that an app is to begin as, by that app.
    forks: BTreeMap<&'a AppKey, Vec<&'a SnapshotRecord>>,
    /// Those that keep what a restore replaces, by its app and token.
    safeties: BTreeMap<(&'a AppKey, &'a str), &'a SnapshotRecord>,
    /// The newest generation of each name.
    generations: BTreeMap<&'a SnapshotKey, Generation>,
}

/// A snapshot that something is to begin from.
pub(super) enum Found<'a> {
    /// It is there.
    There(Shot<'a>),
    /// It is not.
    Waits {
        /// Which, in words.
        snapshot: String,
        /// What it lacks.
        reason: String,
    },
}

/// A snapshot that is there.
#[derive(Clone, Copy)]
pub(super) struct Shot<'a> {
    pub record: &'a SnapshotRecord,
    pub kept: &'a Kept,
    pub moment: &'a Moment,
}

impl<'a> Shelf<'a> {
    pub fn new(desired: &'a Desired, observed: &'a Observed) -> Self {
        let (declared, forks, safeties) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut shelf = Self { desired, observed, declared, forks, safeties, generations: BTreeMap::new() };
        for record in observed.snapshots.values() {
            shelf.put(record);
        }
        shelf.declared.values_mut().for_each(|records| records.sort_by_key(|record| (record.generation, &record.id)));
        shelf
    }

    fn put(&mut self, record: &'a SnapshotRecord) {
        let newest = self.generations.entry(&record.key).or_default();
        *newest = (*newest).max(record.generation);
        match &record.cause {
            SnapshotCause::Declared { digest: _ } => self.declared.entry(&record.key).or_default().push(record),
            SnapshotCause::Asked { by: _ } => {}
            SnapshotCause::Fork { to } => self.forks.entry(to).or_default().push(record),
            SnapshotCause::Restore { token } => {
                let known = self.safeties.entry((&record.app, token)).or_insert(record);
                if known.kept().is_none() {
                    *known = record;
                }
            }
        }
    }

    /// The number of the next snapshot of a name.
    pub fn next_generation(&self, key: &SnapshotKey) -> Generation {
        self.generations.get(key).copied().unwrap_or_default().next()
    }

    /// Every generation of a name that a declaration wanted, the oldest first.
    pub fn generations(&self, key: &SnapshotKey) -> &[&'a SnapshotRecord] {
        self.declared.get(key).map_or(&[], Vec::as_slice)
    }

    /// The generation that a declared snapshot is in, once it has a row.
    pub fn current(&self, key: &SnapshotKey) -> Option<&'a SnapshotRecord> {
        let declared = self.desired.snapshots.get(key)?;
        let newest = self.generations(key).last().copied()?;
        let SnapshotCause::Declared { digest } = &newest.cause else { return None };
        (*digest == declared.digest && newest.state != SnapshotState::Leaving).then_some(newest)
    }

    /// What an app that is `to` be made begins as.
    pub fn beginning(&self, to: &AppKey, beginning: &Beginning) -> Found<'a> {
        match beginning {
            Beginning::Snapshot(snapshot) => self.find(snapshot),
            Beginning::App(source) => {
                self.found(self.fork(to, source), || source.to_string(), "its moment is to be kept")
            }
        }
    }

    /// The moment of `source` that `to` is to begin as, once it has a row.
    pub fn fork(&self, to: &AppKey, source: &AppKey) -> Option<&'a SnapshotRecord> {
        let mut records = self.forks.get(to).into_iter().flatten().copied();
        records.rfind(|record| record.app == *source && record.state != SnapshotState::Leaving)
    }

    /// What keeps the state of an app that a restore by this token replaces.
    pub fn safety(&self, app: &AppKey, token: &str) -> Option<&'a SnapshotRecord> {
        self.safeties.get(&(app, token)).copied().filter(|record| record.state != SnapshotState::Leaving)
    }

    /// The snapshot that a declaration names.
    pub fn find(&self, snapshot: &SnapshotRef) -> Found<'a> {
        let name = || format!("snapshot {snapshot}");
        match snapshot {
            SnapshotRef::Id(id) => self.with_id(id),
            SnapshotRef::Name(key) if self.desired.snapshots.contains_key(key) => {
                self.found(self.current(key), name, "it has not been taken yet")
            }
            // What an app that stays as it was declared earlier names may be declared no more.
            SnapshotRef::Name(key) => {
                let kept = self.generations(key).iter().copied().rfind(|record| record.kept().is_some());
                self.found(kept, name, "it is not declared")
            }
        }
    }

    /// The snapshot of this id.
    pub fn with_id(&self, id: &SnapshotId) -> Found<'a> {
        let record = self.observed.snapshots.get(id).map(|record| &**record);
        self.found(record, || format!("snapshot {id}"), "there is no such snapshot here")
    }

    fn found(&self, record: Option<&'a SnapshotRecord>, name: impl Fn() -> String, none: &str) -> Found<'a> {
        let lacks = match record.map(|record| (record, &record.state, &record.moment)) {
            Some((record, SnapshotState::Kept(kept) | SnapshotState::Retained { kept, .. }, Some(moment))) => {
                return Found::There(Shot { record, kept, moment });
            }
            Some((_, SnapshotState::Kept(_) | SnapshotState::Retained { .. }, None)) => {
                "nothing is known of its moment".to_owned()
            }
            Some((_, SnapshotState::Wanted { .. }, _)) => "it is to be taken".to_owned(),
            Some((_, SnapshotState::Failed { reason, .. }, _)) => format!("it could not be taken: {reason}"),
            Some((_, SnapshotState::Leaving, _)) => "it is being removed".to_owned(),
            None => none.to_owned(),
        };
        Found::Waits { snapshot: name(), reason: lacks }
    }
}
