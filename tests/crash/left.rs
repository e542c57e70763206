//! What is left when all is done: microVMs, disks and rows, without what differs from run to run, such as ids and times.

use std::collections::BTreeSet;

use setpoint_schema::id::SnapshotId;
use setpoint_schema::observed::{DiskState, SandboxRecord, SnapshotRecord};
use setpoint_state::{Apps, Disks, Journal, JournalEvent, Outcome, Sandboxes, Snapshot, Snapshots, Store};
use setpoint_vmm::sim::world::{Disk, Vm};

use crate::host::Host;

/// What a host was left with, once its daemon has ended.
pub struct Left {
    vms: Vec<Vm>,
    disks: Vec<Disk>,
    /// The snapshots that are there.
    moments: BTreeSet<SnapshotId>,
    violations: Vec<String>,
    store: Snapshot,
    running: BTreeSet<String>,
}

impl Left {
    pub fn on(host: &Host) -> Self {
        let world = host.world();
        let running = world.running().unwrap().into_iter().map(|vm| vm.machine.sandbox.to_string()).collect();
        Self {
            vms: world.vms().unwrap(),
            disks: world.disks().unwrap(),
            moments: world.moments().unwrap().into_iter().map(|(id, _)| id).collect(),
            violations: world.violations().unwrap(),
            store: Store::snapshot_read(&host.state().join("store")).unwrap(),
            running,
        }
    }

    /// Everything that would be the same after another way to the same declarations, a line each.
    pub fn state(&self) -> Vec<String> {
        let rows = self.store.all::<Sandboxes>().unwrap();
        let disk_rows = self.store.all::<Disks>().unwrap();
        let mut lines = Vec::new();
        for vm in &self.vms {
            let row = rows.get(&vm.machine.sandbox);
            lines.push(self.vm(vm, row));
        }
        for disk in &self.disks {
            let app = disk_rows.get(&disk.id).map_or("NOBODY".to_owned(), |row| row.app.to_string());
            let Disk { id: _, size, filesystem, user: _, tree, files, left_out: _ } = disk;
            let files: Vec<_> = files.keys().collect();
            lines.push(format!("disk of {app}: {size}, file system {filesystem}, tree {tree:?}, files {files:?}"));
        }
        for row in rows.values() {
            let applied = row.applied.as_ref().map(|applied| applied.spec.digest());
            lines.push(format!("row of {}: uid {:?}, {:?}, applied {applied:?}", row.app, row.uid, row.intent));
        }
        for row in disk_rows.values() {
            let state = match row.state {
                DiskState::InUse => "in use",
                DiskState::Retained { .. } => "retained",
            };
            lines.push(format!("disk row of {}: {}, {state}", row.app, row.size));
        }
        for row in self.store.all::<Snapshots>().unwrap().values() {
            let SnapshotRecord { key, app, generation, content, moment, .. } = row;
            let (kept, moment) = (row.kept().is_some(), moment.as_ref().map(|moment| (&moment.revision, &moment.tree)));
            lines.push(format!("snapshot {key}@{generation} of {app}: {content:?}, kept {kept}, {moment:?}"));
        }
        for app in self.store.all::<Apps>().unwrap().values() {
            lines.push(format!("app {}: {}, {} failures", app.key, app.digest, app.retry.failures));
        }
        lines.sort();
        lines
    }

    /// How many of the newest steps were cut short.
    pub fn cut_steps(&self) -> usize {
        let journal = self.store.all::<Journal>().unwrap();
        let cut = |event: &JournalEvent| matches!(event, JournalEvent::Ended { outcome: Outcome::Interrupted, .. });
        journal.values().filter(|record| cut(&record.event)).count()
    }

    /// How often each app's declaration has changed, which depends on the way.
    #[cfg(feature = "failpoints")]
    pub fn generations(&self) -> Vec<(String, u64)> {
        let apps = self.store.all::<Apps>().unwrap();
        apps.into_iter().map(|(key, app)| (key.to_string(), app.generation.0)).collect()
    }

    /// How often each microVM has booted, which going on from saved memory does not add to.
    #[cfg(feature = "failpoints")]
    pub fn boots(&self) -> Vec<(String, u64)> {
        let mut boots: Vec<_> = self.vms.iter().map(|vm| (vm.machine.app.to_string(), vm.launches)).collect();
        boots.sort();
        boots
    }

    fn vm(&self, vm: &Vm, row: Option<&SandboxRecord>) -> String {
        let app = row.map_or("NOBODY".to_owned(), |row| row.app.to_string());
        let machine = &vm.machine;
        let runs = self.running.contains(machine.sandbox.as_str());
        let rests = vm.rest.is_some();
        let processes = vm.processes.as_ref().filter(|_| runs).map(|running| (running.set.digest(), &running.build));
        let (vcpus, memory, template) = (machine.vcpus, machine.memory_mib, &machine.template);
        format!(
            "microVM of {app}: runs {runs}, rests {rests}, {vcpus} vcpus, {memory} MiB, template {template}, {processes:?}"
        )
    }

    /// Orphans, duplicates and everything else that is never right, whatever is declared.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = self.violations.clone();
        let rows = self.store.all::<Sandboxes>().unwrap();
        let disk_rows = self.store.all::<Disks>().unwrap();
        for vm in &self.vms {
            let id = &vm.machine.sandbox;
            match rows.get(id) {
                None => faults.push(format!("microVM {id} has no row")),
                Some(row) if row.machine.nonce != vm.machine.nonce => faults.push(format!("{id} runs another boot")),
                Some(_) => {}
            }
        }
        let mut apps = BTreeSet::new();
        for row in rows.values() {
            if !self.vms.iter().any(|vm| vm.machine.sandbox == row.id) {
                faults.push(format!("row {} has no microVM", row.id));
            }
            if !disk_rows.get(&row.disk).is_some_and(|disk| disk.app == row.app && disk.state == DiskState::InUse) {
                faults.push(format!("row {} has no disk row", row.id));
            }
            if !apps.insert(&row.app) {
                faults.push(format!("{} has two sandboxes", row.app));
            }
        }
        for disk in &self.disks {
            if !disk_rows.contains_key(&disk.id) {
                faults.push(format!("disk {} has no row", disk.id));
            }
        }
        for row in disk_rows.values() {
            if !self.disks.iter().any(|disk| disk.id == row.id) {
                faults.push(format!("disk row {} has no disk", row.id));
            }
            if row.state == DiskState::InUse && !rows.values().any(|sandbox| sandbox.disk == row.id) {
                faults.push(format!("nobody uses disk {}", row.id));
            }
        }
        let rows = self.store.all::<Snapshots>().unwrap();
        let kept: BTreeSet<_> = rows.into_values().filter(|row| row.kept().is_some()).map(|row| row.id).collect();
        if kept != self.moments {
            faults.push(format!("snapshots {:?} are there, and in the inventory {kept:?}", self.moments));
        }
        let unfinished = self.store.unfinished().unwrap();
        faults.extend(unfinished.into_iter().map(|entry| format!("step {} of {} is open", entry.step, entry.app)));
        faults
    }
}

/// Says what one has and the other has not.
pub fn assert_same(found: &[String], expected: &[String], context: &str) {
    let lacks = |these: &[String], others: &[String]| -> Vec<String> {
        let mut others = others.to_vec();
        let absent = |line: &&String| match others.iter().position(|other| other == *line) {
            Some(at) => {
                others.swap_remove(at);
                false
            }
            None => true,
        };
        these.iter().filter(absent).cloned().collect()
    };
    let (extra, missing) = (lacks(found, expected), lacks(expected, found));
    assert!(extra.is_empty() && missing.is_empty(), "{context}\nextra: {extra:#?}\nmissing: {missing:#?}");
}
