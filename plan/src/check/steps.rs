//! Walks through one action's steps over what was observed, and sees whether each finds what it needs.

use std::collections::{BTreeMap, BTreeSet};

use setpoint_schema::id::{DiskId, SandboxId, SnapshotId};
use setpoint_schema::observed::{GuestState, Observed, SandboxRecord, SnapshotRecord, SnapshotState, VmState};
use setpoint_schema::snapshot::Content;

use super::Violation;
use crate::model::{Action, Step};

/// What there is, as far as the steps so far have changed it.
struct Walk<'a> {
    records: BTreeMap<&'a SandboxId, &'a SandboxRecord>,
    running: BTreeSet<&'a SandboxId>,
    /// Ended, with files left over.
    ended: BTreeSet<&'a SandboxId>,
    /// At rest, with memory to go on from.
    paused: BTreeSet<&'a SandboxId>,
    answering: BTreeSet<&'a SandboxId>,
    disks: BTreeSet<&'a DiskId>,
    /// Process sets applied by this action: files must not change behind them.
    applied: BTreeSet<&'a SandboxId>,
    snapshots: BTreeMap<&'a SnapshotId, &'a SnapshotRecord>,
    /// Snapshots whose files are there.
    taken: BTreeSet<&'a SnapshotId>,
    released: BTreeSet<&'a DiskId>,
}

pub(super) fn check(action: &Action, observed: &Observed, out: &mut Vec<Violation>) {
    let mut walk = Walk::new(observed);
    for (place, step) in action.steps.iter().enumerate() {
        if let Err(lacks) = walk.take(step) {
            out.push(Violation::OutOfOrder { app: action.app.clone(), step: place, lacks });
        }
    }
    let still_used = walk.released.iter().filter(|disk| walk.records.values().any(|record| record.disk == ***disk));
    out.extend(still_used.map(|disk| Violation::ReleasesUsedDisk((*disk).clone())));
}

impl<'a> Walk<'a> {
    fn new(observed: &'a Observed) -> Self {
        let sandboxes = || observed.sandboxes.iter();
        let mut walk = Self {
            records: sandboxes().map(|(id, sandbox)| (id, &*sandbox.record)).collect(),
            running: BTreeSet::new(),
            ended: BTreeSet::new(),
            paused: BTreeSet::new(),
            answering: BTreeSet::new(),
            disks: observed.disks.keys().collect(),
            applied: BTreeSet::new(),
            snapshots: observed.snapshots.iter().map(|(id, record)| (id, &**record)).collect(),
            taken: observed.snapshots.iter().filter(|(_, record)| record.kept().is_some()).map(|(id, _)| id).collect(),
            released: BTreeSet::new(),
        };
        for (id, sandbox) in sandboxes() {
            match sandbox.vm {
                VmState::Running { .. } => walk.running.insert(id),
                VmState::Exited { .. } => walk.ended.insert(id),
                VmState::Paused { .. } => walk.paused.insert(id),
                VmState::Absent => false,
            };
            if matches!(sandbox.guest, GuestState::Answering(_)) {
                walk.answering.insert(id);
            }
        }
        walk
    }

    /// Takes one step, or says what it lacks.
    fn take(&mut self, step: &'a Step) -> Result<(), &'static str> {
        match step {
            Step::Record(record) => {
                self.records.insert(&record.id, record);
                Ok(())
            }
            Step::EnsureTemplate { .. } => Ok(()),
            Step::EnsureDisk { disk, .. } => {
                let recorded = self.records.values().any(|record| record.disk == *disk);
                self.disks.insert(disk);
                need(recorded, "a row that names the disk")
            }
            Step::Launch(machine) => {
                let id = &machine.sandbox;
                need(self.records.get(id).is_some_and(|record| record.machine == *machine), "a row with the machine")?;
                need(self.disks.contains(&machine.disk), "a disk")?;
                self.paused.remove(id);
                need(self.running.insert(id), "the end of the boot before")?;
                self.ended.remove(id);
                self.answering.remove(id);
                Ok(())
            }
            Step::Pause { sandbox, .. } => {
                self.answers(sandbox)?;
                self.answering.remove(sandbox);
                self.paused.insert(sandbox);
                need(self.running.remove(sandbox), "a running microVM")
            }
            Step::Resume(machine) => {
                let id = &machine.sandbox;
                need(self.records.get(id).is_some_and(|record| record.machine == *machine), "a row with the machine")?;
                need(self.disks.contains(&machine.disk), "a disk")?;
                need(self.paused.remove(id), "saved memory")?;
                need(self.running.insert(id), "the end of the boot before")
            }
            Step::AwaitAgent { sandbox, .. } => {
                self.answering.insert(sandbox);
                need(self.running.contains(sandbox), "a running microVM")
            }
            Step::GrowDisk { sandbox, .. } => self.answers(sandbox),
            Step::SyncFiles { sandbox, .. } => {
                need(!self.applied.contains(sandbox), "a place before the processes")?;
                self.answers(sandbox)
            }
            Step::ApplyProcesses { sandbox, .. } => {
                self.applied.insert(sandbox);
                self.answers(sandbox)
            }
            Step::Stop { sandbox, .. } => {
                self.ended.insert(sandbox);
                self.answering.remove(sandbox);
                need(self.running.remove(sandbox), "a running microVM")
            }
            Step::RemoveVm(sandbox) => {
                self.ended.remove(sandbox);
                self.paused.remove(sandbox);
                need(!self.running.contains(sandbox), "an ended microVM")
            }
            Step::ReleaseDisk { disk, .. } => {
                self.released.insert(disk);
                let user = self.records.values().find(|record| record.disk == *disk && self.exists(&record.id));
                need(user.is_none(), "a disk that no microVM has")
            }
            Step::RecordApplied { sandbox, .. } => need(self.records.contains_key(sandbox), "a row"),
            Step::Forget(sandbox) => {
                self.records.remove(sandbox);
                need(!self.exists(sandbox), "a removed microVM")
            }
            Step::RecordSnapshot(record) => {
                self.snapshots.insert(&record.id, record);
                Ok(())
            }
            Step::TakeSnapshot { snapshot, sandbox, nonce, disk, content } => {
                self.taken.insert(snapshot);
                need(
                    self.snapshots.get(snapshot).is_some_and(|record| record.moment.is_some()),
                    "a row with a moment",
                )?;
                need(self.disks.contains(disk), "a disk")?;
                match (nonce, content) {
                    (Some(_), _) => self.answers(sandbox),
                    (None, Content::Disk) => need(!self.running.contains(sandbox), "a microVM at rest"),
                    (None, Content::Memory) => need(self.paused.contains(sandbox), "memory to keep"),
                }
            }
            Step::LaunchFrom { machine, snapshot, .. } => {
                let id = &machine.sandbox;
                need(self.records.get(id).is_some_and(|record| record.machine == *machine), "a row with the machine")?;
                need(self.taken.contains(snapshot), "a snapshot")?;
                self.disks.insert(&machine.disk);
                self.paused.remove(id);
                need(self.running.insert(id), "the end of the boot before")?;
                self.ended.remove(id);
                self.answering.remove(id);
                Ok(())
            }
            Step::CopyDisk { disk, snapshot, .. } => {
                let recorded = self.records.values().any(|record| record.disk == *disk);
                self.disks.insert(disk);
                need(recorded, "a row that names the disk")?;
                need(self.taken.contains(snapshot), "a snapshot")
            }
            Step::LeaveOut { sandbox, .. } => {
                need(!self.applied.contains(sandbox), "a place before the processes")?;
                self.answers(sandbox)
            }
            Step::RemoveSnapshot(snapshot) => {
                self.taken.remove(snapshot);
                let leaves = |record: &&'a SnapshotRecord| record.state == SnapshotState::Leaving;
                need(self.snapshots.get(snapshot).is_some_and(leaves), "a row that says it is leaving")
            }
            Step::ForgetSnapshot(snapshot) => {
                self.snapshots.remove(snapshot);
                need(!self.taken.contains(snapshot), "a removed snapshot")
            }
            Step::RecordRestored { .. } => Ok(()),
        }
    }

    fn answers(&self, sandbox: &SandboxId) -> Result<(), &'static str> {
        need(self.answering.contains(sandbox), "an agent that answers")
    }

    fn exists(&self, sandbox: &SandboxId) -> bool {
        self.running.contains(sandbox) || self.ended.contains(sandbox) || self.paused.contains(sandbox)
    }
}

fn need(present: bool, what: &'static str) -> Result<(), &'static str> {
    if present { Ok(()) } else { Err(what) }
}
