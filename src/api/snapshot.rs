//! The state that the API shows: built after every pass in the light of the snapshot before, published by `watch`, never changed.
//!
//! Every object carries a [`Version`] that changes exactly when what it says changes, so that "nothing new" is answered by
//! comparing numbers: no object is serialised or hashed for it. A pass that says what the one before said shares all of it.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, OnceLock};

use axum::body::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use setpoint_schema::id::SandboxId;
use setpoint_schema::name::{AppKey, TemplateName};
use setpoint_schema::wire;

use super::snapshots::Place;

/// Everything that was known at the end of one pass, so that one answer never mixes two.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// When the pass ended. Not part of what any object says: it moves with every pass.
    pub at: Timestamp,
    /// The daemon.
    pub status: Arc<Versioned<wire::Status>>,
    /// Every app that is declared or still has a sandbox.
    pub apps: Table<AppKey, wire::App>,
    /// Every sandbox in the inventory.
    pub sandboxes: Table<SandboxId, wire::Sandbox>,
    /// Every template that apps can start from.
    pub templates: Table<TemplateName, wire::Template>,
    /// Every snapshot in the inventory.
    pub snapshots: Table<Place, wire::Snapshot>,
    versions: Versions,
}

/// What a pass has to say.
#[derive(Debug)]
pub struct Content {
    /// When the pass ended.
    pub at: Timestamp,
    /// The daemon.
    pub status: wire::Status,
    /// The apps.
    pub apps: Rows<AppKey, wire::App>,
    /// The sandboxes.
    pub sandboxes: Rows<SandboxId, wire::Sandbox>,
    /// The templates.
    pub templates: Rows<TemplateName, wire::Template>,
    /// The snapshots.
    pub snapshots: Rows<Place, wire::Snapshot>,
}

/// How a pass describes a table.
#[derive(Debug)]
pub enum Rows<K, V> {
    /// All of it: what is not here is gone.
    All(BTreeMap<K, V>),
    /// What may be different from the snapshot before; `None` is gone, and what is not here is as it was.
    Changed(BTreeMap<K, Option<V>>),
}

impl Snapshot {
    /// The snapshot after `previous`: what says the same keeps its version and is shared.
    #[must_use]
    pub fn after(previous: Option<&Self>, content: Content) -> Self {
        let Content { at, status, apps, sandboxes, templates, snapshots } = content;
        let mut versions = previous.map(|previous| previous.versions).unwrap_or_default();
        let status = match previous.map(|previous| &previous.status) {
            Some(same) if same.value == status => Arc::clone(same),
            Some(_) | None => Versioned::new((), versions.next(), status),
        };
        Self {
            at,
            status,
            apps: Table::after(previous.map(|previous| &previous.apps), apps, &mut versions),
            sandboxes: Table::after(previous.map(|previous| &previous.sandboxes), sandboxes, &mut versions),
            templates: Table::after(previous.map(|previous| &previous.templates), templates, &mut versions),
            snapshots: Table::after(previous.map(|previous| &previous.snapshots), snapshots, &mut versions),
            versions,
        }
    }

    /// Moves whenever anything does that is shown: whatever changes takes a version.
    #[must_use]
    pub fn version(&self) -> Version {
        Version(self.versions.last)
    }

    /// Whether a later snapshot has nothing new.
    #[must_use]
    pub fn says_as_much_as(&self, later: &Self) -> bool {
        self.version() == later.version()
    }
}

/// Identifies what one object said from one change to the next, within one life of the daemon. No two objects share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Version(pub u64);

/// Hands out versions.
#[derive(Debug, Clone, Copy, Default)]
struct Versions {
    last: u64,
}

impl Versions {
    fn next(&mut self) -> Version {
        self.last += 1;
        Version(self.last)
    }
}

/// An object, the version of what it says, and its key where it is one of many.
#[derive(Debug)]
pub struct Versioned<T, K = ()> {
    key: K,
    version: Version,
    value: T,
    json: OnceLock<Bytes>,
}

impl<T, K> Versioned<T, K> {
    fn new(key: K, version: Version, value: T) -> Arc<Self> {
        Arc::new(Self { key, version, value, json: OnceLock::new() })
    }

    /// Which object.
    pub fn key(&self) -> &K {
        &self.key
    }

    /// The version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// What it says.
    pub fn value(&self) -> &T {
        &self.value
    }
}

impl<T: Serialize, K> Versioned<T, K> {
    /// What it says as JSON, written the first time that somebody asks.
    pub fn json(&self) -> &Bytes {
        let write = || serde_json::to_vec(&self.value).expect("wire types hold only what JSON can say").into();
        self.json.get_or_init(write)
    }
}

/// Objects of one kind, in the order of their keys. Clones share them.
#[derive(Debug)]
pub struct Table<K, V> {
    version: Version,
    rows: Arc<Vec<Row<K, V>>>,
}

impl<K, V> Clone for Table<K, V> {
    fn clone(&self) -> Self {
        Self { version: self.version, rows: Arc::clone(&self.rows) }
    }
}

/// One object of a table.
pub type Row<K, V> = Arc<Versioned<V, K>>;

impl<K: Ord, V> Table<K, V> {
    /// Changes whenever anything in the table changes, comes or goes.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// One object.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&Row<K, V>> {
        let found = self.rows.binary_search_by(|row| row.key.cmp(key)).ok()?;
        self.rows.get(found)
    }

    /// All objects.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.rows.iter().map(|row| (&row.key, &row.value))
    }

    /// The rows from a key on.
    #[must_use]
    pub fn range(&self, start: Bound<&K>) -> &[Row<K, V>] {
        let before = match start {
            Bound::Unbounded => 0,
            Bound::Included(key) => self.rows.partition_point(|row| row.key < *key),
            Bound::Excluded(key) => self.rows.partition_point(|row| row.key <= *key),
        };
        &self.rows[before..]
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

impl<K: Ord, V: PartialEq> Table<K, V> {
    fn after(previous: Option<&Self>, rows: Rows<K, V>, versions: &mut Versions) -> Self {
        let before = previous.map_or(&[][..], |previous| &previous.rows);
        let merged = match rows {
            Rows::All(all) => Merge::default().all(before, all, versions),
            Rows::Changed(changes) if changes.is_empty() && previous.is_some() => Merge::default(),
            Rows::Changed(changes) => Merge::default().changes(before, changes, versions),
        };
        match previous {
            Some(same) if !merged.differs => same.clone(),
            Some(_) | None => Self { version: versions.next(), rows: Arc::new(merged.rows) },
        }
    }
}

/// A table in the making, and whether it differs from the one before.
struct Merge<K, V> {
    rows: Vec<Row<K, V>>,
    differs: bool,
}

impl<K, V> Default for Merge<K, V> {
    fn default() -> Self {
        Self { rows: Vec::new(), differs: false }
    }
}

impl<K: Ord, V: PartialEq> Merge<K, V> {
    fn all(mut self, before: &[Row<K, V>], all: BTreeMap<K, V>, versions: &mut Versions) -> Self {
        self.rows.reserve(all.len());
        self.differs = before.len() != all.len();
        let mut before = before;
        for (key, value) in all {
            let skipped = before.partition_point(|row| row.key < key);
            before = &before[skipped..];
            self.put(before.first().filter(|row| row.key == key), key, value, versions);
        }
        self
    }

    fn changes(mut self, before: &[Row<K, V>], changes: BTreeMap<K, Option<V>>, versions: &mut Versions) -> Self {
        self.rows.reserve(before.len() + changes.len());
        let mut before = before;
        for (key, value) in changes {
            let (same, rest) = before.split_at(before.partition_point(|row| row.key < key));
            self.rows.extend_from_slice(same);
            let old = rest.first().filter(|row| row.key == key);
            before = &rest[usize::from(old.is_some())..];
            match value {
                Some(value) => self.put(old, key, value, versions),
                None => self.differs |= old.is_some(),
            }
        }
        self.rows.extend_from_slice(before);
        self
    }

    fn put(&mut self, old: Option<&Row<K, V>>, key: K, value: V, versions: &mut Versions) {
        let row = match old {
            Some(old) if old.value == value => Arc::clone(old),
            Some(_) | None => {
                self.differs = true;
                Versioned::new(key, versions.next(), value)
            }
        };
        self.rows.push(row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Numbers = Table<u32, u32>;

    fn all(rows: &[(u32, u32)]) -> Rows<u32, u32> {
        Rows::All(rows.iter().copied().collect())
    }

    fn changed(rows: &[(u32, Option<u32>)]) -> Rows<u32, u32> {
        Rows::Changed(rows.iter().copied().collect())
    }

    fn shown(table: &Numbers) -> Vec<(u32, u32)> {
        table.iter().map(|(key, value)| (*key, *value)).collect()
    }

    fn versions(table: &Numbers) -> Vec<Version> {
        table.range(Bound::Unbounded).iter().map(|row| row.version()).collect()
    }

    #[test]
    fn what_says_the_same_keeps_its_version_and_the_rest_gets_one_of_its_own() {
        let mut counter = Versions::default();
        let first = Numbers::after(None, all(&[(1, 10), (2, 20), (3, 30)]), &mut counter);
        for (rows, now) in [
            (all(&[(1, 10), (3, 33), (4, 40)]), vec![(1, 10), (3, 33), (4, 40)]),
            (changed(&[(2, None), (3, Some(33)), (4, Some(40))]), vec![(1, 10), (3, 33), (4, 40)]),
            (changed(&[(1, Some(10)), (3, Some(30)), (0, Some(0))]), vec![(0, 0), (1, 10), (2, 20), (3, 30)]),
        ] {
            let next = Numbers::after(Some(&first), rows, &mut counter);
            assert_eq!(shown(&next), now);
            assert_ne!(next.version(), first.version());
            for row in next.range(Bound::Unbounded) {
                match first.get(row.key()).filter(|old| old.value() == row.value()) {
                    Some(old) => assert!(Arc::ptr_eq(old, row)),
                    None => assert!(!versions(&first).contains(&row.version())),
                }
            }
        }
    }

    #[test]
    fn a_pass_that_says_the_same_changes_no_version() {
        let mut counter = Versions::default();
        let rows = [(1, 10), (2, 20)];
        let first = Numbers::after(None, all(&rows), &mut counter);
        for same in [all(&rows), changed(&[]), changed(&[(2, Some(20))]), changed(&[(7, None)])] {
            let next = Numbers::after(Some(&first), same, &mut counter);
            assert_eq!((next.version(), versions(&next)), (first.version(), versions(&first)));
            assert!(Arc::ptr_eq(&next.rows, &first.rows));
        }
    }

    #[test]
    fn every_change_of_a_table_changes_its_version() {
        let mut counter = Versions::default();
        let first = Numbers::after(None, all(&[(1, 10), (2, 20)]), &mut counter);
        for other in
            [all(&[(1, 10)]), all(&[]), changed(&[(1, None)]), changed(&[(2, Some(21))]), changed(&[(3, Some(1))])]
        {
            assert_ne!(Numbers::after(Some(&first), other, &mut counter).version(), first.version());
        }
    }

    #[test]
    fn a_range_begins_behind_a_key_that_has_gone() {
        let table = Numbers::after(None, all(&[(1, 10), (3, 30)]), &mut Versions::default());
        let keys = |start| table.range(start).iter().map(|row| *row.key()).collect::<Vec<_>>();
        assert_eq!(keys(Bound::Unbounded), [1, 3]);
        assert_eq!(keys(Bound::Excluded(&1)), [3]);
        assert_eq!(keys(Bound::Excluded(&2)), [3]);
        assert_eq!(keys(Bound::Included(&3)), [3]);
        assert!(keys(Bound::Excluded(&3)).is_empty());
    }
}
