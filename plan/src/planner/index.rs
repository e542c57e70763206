//! The observed world, indexed by app. Renames are resolved here: a sandbox belongs to the app that it is declared as now.
//!
//! An index is made from the whole world, or brought up to date by what has changed in it. The latter is for a regular world
//! alone: one in which every object belongs to the app that it is recorded for, and the inventory knows every microVM. While a
//! rename or an adoption is under way the index is made anew for each plan.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use setpoint_schema::id::{DiskId, SandboxId};
use setpoint_schema::name::{AppKey, Uid};
use setpoint_schema::observed::{DiskRecord, Machine, Observed, ObservedSandbox};
use setpoint_schema::shared::{Difference, SharedMap};

use super::capacity::InUse;
use super::renames::{Declared, Renames};
use crate::desired::Desired;

/// What belongs to which app.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    /// Sandboxes by app, each app's in the order of their ids.
    pub sandboxes: SharedMap<AppKey, Vec<Arc<ObservedSandbox>>>,
    /// MicroVMs that the inventory does not know, by app.
    pub strays: BTreeMap<AppKey, Vec<Machine>>,
    /// The sandboxes that use each disk.
    pub users: SharedMap<DiskId, Vec<SandboxId>>,
    /// Disks that nothing uses, by app, each app's in the order of their ids.
    pub spare_disks: BTreeMap<AppKey, Vec<Arc<DiskRecord>>>,
    /// What runs, and what exists.
    pub in_use: InUse,
    /// The keys under which each lasting identity is declared, and the sandboxes that are recorded with it.
    declared: Declared,
    recorded: BTreeMap<Uid, BTreeSet<SandboxId>>,
}

/// Why an index cannot be brought up to date: an object belongs to another app than the one it is recorded for, or is not
/// recorded.
#[derive(Debug)]
pub(super) struct Irregular;

impl Index {
    /// Indexes the whole world.
    pub fn new(desired: &Desired, observed: &Observed) -> Self {
        let declared = Declared::of(desired);
        let mut renames = Renames::new(desired, observed, &declared);
        let (mut strays, mut recorded) = (BTreeMap::<_, Vec<_>>::new(), BTreeMap::<_, BTreeSet<_>>::new());
        let (mut sandboxes, mut users) = (Vec::new(), Vec::new());
        for sandbox in observed.sandboxes.values() {
            let record = &sandbox.record;
            sandboxes.push((renames.owner(&record.app, record.uid.as_ref()).clone(), Arc::clone(sandbox)));
            users.push((record.disk.clone(), record.id.clone()));
            if let Some(uid) = &record.uid {
                recorded.entry(uid.clone()).or_default().insert(record.id.clone());
            }
        }
        for machine in &observed.unrecorded {
            let owner = renames.owner(&machine.app, machine.uid.as_ref());
            strays.entry(owner.clone()).or_default().push(machine.clone());
            users.push((machine.disk.clone(), machine.sandbox.clone()));
        }
        let (sandboxes, users) = (grouped(sandboxes), grouped(users));
        let spare_disks = spare_disks(observed, &users, &mut renames);
        let in_use = InUse::of(observed);
        Self { sandboxes, strays, users, spare_disks, in_use, declared, recorded }
    }

    /// Whether every object belongs to the app that it is recorded for, and the inventory knows every microVM.
    pub fn is_regular(&self, desired: &Desired) -> bool {
        if self.declared.is_empty() && desired.moved.is_empty() {
            return self.strays.is_empty();
        }
        let sandboxes = self.sandboxes.values().flatten().all(|sandbox| self.is_at_home(desired, sandbox));
        let disks =
            self.spare_disks.values().flatten().all(|disk| self.declared.target(desired, &disk.app, None) == &disk.app);
        self.strays.is_empty() && sandboxes && disks
    }

    /// Whether there is anything of the app.
    pub fn exists(&self, app: &AppKey) -> bool {
        self.sandboxes.contains_key(app) || self.strays.contains_key(app)
    }

    /// Brings the index of a regular world up to date, and adds the apps of which something changed to `touched`.
    ///
    /// # Errors
    /// When the newer world is not regular; the index is of no use then.
    pub fn update(
        &mut self,
        older: World<'_>,
        newer: World<'_>,
        touched: &mut BTreeSet<AppKey>,
    ) -> Result<(), Irregular> {
        if !newer.observed.unrecorded.is_empty() {
            return Err(Irregular);
        }
        let mut uids = BTreeSet::new();
        for (key, difference) in older.desired.apps.differences(&newer.desired.apps) {
            touched.insert(key.clone());
            let (before, after) = match difference {
                Difference::Added(after) => (None, Some(after)),
                Difference::Removed(before) => (Some(before), None),
                Difference::Changed { before, after } => (Some(before), Some(after)),
            };
            let uid =
                |app: Option<&Arc<setpoint_schema::app::DesiredApp>>| app.and_then(|app| app.metadata.uid.clone());
            let (before, after) = (uid(before), uid(after));
            if before != after {
                self.declared.change(key, before.as_ref(), after.as_ref());
                uids.extend(before.into_iter().chain(after));
            }
        }
        let mut disks = BTreeSet::new();
        for (id, difference) in older.observed.sandboxes.differences(&newer.observed.sandboxes) {
            let (before, after) = sides(difference);
            if let Some(before) = before {
                self.forget(id, before);
                disks.insert(&before.record.disk);
                touched.insert(before.record.app.clone());
            }
            if let Some(after) = after {
                self.learn(id, after);
                disks.insert(&after.record.disk);
                touched.insert(after.record.app.clone());
                if !self.is_at_home(newer.desired, after) {
                    return Err(Irregular);
                }
            }
        }
        for (id, difference) in older.observed.disks.differences(&newer.observed.disks) {
            let (before, after) = sides(difference);
            self.in_use.change_disk(before.map(|disk| &**disk), after.map(|disk| &**disk));
            disks.insert(id);
        }
        for disk in disks {
            self.settle(disk, older.observed, newer.observed, touched);
        }
        self.stay_regular(newer, &uids)
    }

    fn forget(&mut self, id: &SandboxId, sandbox: &Arc<ObservedSandbox>) {
        let record = &sandbox.record;
        self.in_use.remove(sandbox);
        remove_shared(&mut self.sandboxes, &record.app, |sandbox| sandbox.record.id == *id);
        remove_shared(&mut self.users, &record.disk, |user| user == id);
        if let Some(uid) = &record.uid
            && let Some(ids) = self.recorded.get_mut(uid)
        {
            ids.remove(id);
        }
    }

    fn learn(&mut self, id: &SandboxId, sandbox: &Arc<ObservedSandbox>) {
        let record = &sandbox.record;
        self.in_use.add(sandbox);
        let sandboxes = list_of(&mut self.sandboxes, &record.app);
        let place = sandboxes.partition_point(|known| known.record.id < *id);
        sandboxes.insert(place, Arc::clone(sandbox));
        list_of(&mut self.users, &record.disk).push(id.clone());
        if let Some(uid) = &record.uid {
            self.recorded.entry(uid.clone()).or_default().insert(id.clone());
        }
    }

    /// Finds out anew whether a disk is in use; those that use it may see it otherwise now.
    fn settle(&mut self, id: &DiskId, older: &Observed, newer: &Observed, touched: &mut BTreeSet<AppKey>) {
        if let Some(before) = older.disks.get(id) {
            remove_from(&mut self.spare_disks, &before.app, |disk| disk.id == *id);
        }
        match (newer.disks.get(id), self.users.get(id)) {
            (Some(disk), None) => {
                let spare = self.spare_disks.entry(disk.app.clone()).or_default();
                let place = spare.partition_point(|known| known.id < *id);
                spare.insert(place, Arc::clone(disk));
                touched.insert(disk.app.clone());
            }
            (_, Some(users)) => {
                let records = users.iter().filter_map(|user| newer.sandboxes.get(user));
                touched.extend(records.map(|sandbox| sandbox.record.app.clone()));
            }
            (None, None) => {}
        }
    }

    /// Looks at all that a change of names can have given to another app.
    fn stay_regular(&self, newer: World<'_>, uids: &BTreeSet<Uid>) -> Result<(), Irregular> {
        let World { desired, observed } = newer;
        let with_uid = uids.iter().filter_map(|uid| self.recorded.get(uid)).flatten();
        let with_uid = with_uid.filter_map(|id| observed.sandboxes.get(id));
        let moving = desired.moved.keys().filter_map(|key| self.sandboxes.get(key)).flatten();
        let mut sandboxes = with_uid.chain(moving);
        let mut disks = desired.moved.keys().filter_map(|key| self.spare_disks.get(key)).flatten();
        let is_regular = sandboxes.all(|sandbox| self.is_at_home(desired, sandbox))
            && disks.all(|disk| self.declared.target(desired, &disk.app, None) == &disk.app);
        if is_regular { Ok(()) } else { Err(Irregular) }
    }

    fn is_at_home(&self, desired: &Desired, sandbox: &ObservedSandbox) -> bool {
        let record = &sandbox.record;
        *self.declared.target(desired, &record.app, record.uid.as_ref()) == record.app
    }
}

/// What an index is made from.
#[derive(Debug, Clone, Copy)]
pub(super) struct World<'a> {
    pub desired: &'a Desired,
    pub observed: &'a Observed,
}

/// A difference as what was and what is.
pub(super) fn sides<V>(difference: Difference<'_, V>) -> (Option<&V>, Option<&V>) {
    match difference {
        Difference::Added(after) => (None, Some(after)),
        Difference::Removed(before) => (Some(before), None),
        Difference::Changed { before, after } => (Some(before), Some(after)),
    }
}

/// The disks that nothing uses, by the app that they belong to.
fn spare_disks<'a>(
    observed: &'a Observed,
    users: &SharedMap<DiskId, Vec<SandboxId>>,
    renames: &mut Renames<'a>,
) -> BTreeMap<AppKey, Vec<Arc<DiskRecord>>> {
    let mut users = users.finger();
    let mut spare = BTreeMap::<_, Vec<_>>::new();
    for disk in observed.disks.values().filter(|disk| users.find(&disk.id).is_none()) {
        spare.entry(renames.owner(&disk.app, None).clone()).or_default().push(Arc::clone(disk));
    }
    spare
}

/// The elements by their keys, those of one key in the order that they came in.
fn grouped<K: Ord, V>(mut elements: Vec<(K, V)>) -> SharedMap<K, Vec<V>> {
    elements.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut groups: Vec<(K, Vec<V>)> = Vec::with_capacity(elements.len());
    for (key, element) in elements {
        match groups.last_mut() {
            Some((last, group)) if *last == key => group.push(element),
            Some(_) | None => groups.push((key, vec![element])),
        }
    }
    groups.into_iter().collect()
}

/// The list of a key, which is empty where there was none.
fn list_of<'m, K: Ord + Clone, V: Clone>(lists: &'m mut SharedMap<K, Vec<V>>, key: &K) -> &'m mut Vec<V> {
    if !lists.contains_key(key) {
        lists.insert(key.clone(), Vec::new());
    }
    lists.get_mut(key).expect("it has just been made sure of")
}

/// Removes an element from the list of a key, and the list with its last one.
fn remove_shared<K: Ord + Clone, V: Clone>(lists: &mut SharedMap<K, Vec<V>>, key: &K, is_it: impl Fn(&V) -> bool) {
    if let Some(list) = lists.get_mut(key) {
        list.retain(|element| !is_it(element));
        if list.is_empty() {
            lists.remove(key);
        }
    }
}

/// The same in an ordinary map.
fn remove_from<K: Ord, V>(lists: &mut BTreeMap<K, Vec<V>>, key: &K, is_it: impl Fn(&V) -> bool) {
    if let Some(list) = lists.get_mut(key) {
        list.retain(|element| !is_it(element));
        if list.is_empty() {
            lists.remove(key);
        }
    }
}
