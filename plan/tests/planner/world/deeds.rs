//! What the steps of a plan do to the host, and what goes wrong with them.

use std::collections::BTreeSet;
use std::sync::Arc;

use setpoint_plan::model::{Action, ActionKind, Reason, Step};
use setpoint_schema::app::Retain;
use setpoint_schema::id::{BootNonce, DiskId, SandboxId, SnapshotId};
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{
    Applied, BuildState, DiskRecord, DiskState, ExitReason, GuestState, GuestStatus, Health, Kept, Machine,
    ObservedSandbox, ProcessState, SnapshotState, VmState, WebStatus, WorkerStatus,
};
use setpoint_schema::quantity::ByteSize;
use setpoint_schema::runtime::ProcessSet;
use setpoint_schema::snapshot::Content;

use super::{Ended, Fault, Shot, World};

impl World {
    /// A try to take a snapshot has failed.
    fn fail_to_take(&mut self, snapshot: &SnapshotId) {
        let now = self.now;
        let Some(record) = self.observed.snapshots.get_mut(snapshot).map(Arc::make_mut) else { return };
        let failures = match &record.state {
            SnapshotState::Failed { failures, .. } => failures + 1,
            _ => 1,
        };
        record.state = SnapshotState::Failed { reason: "a step failed".to_owned(), at: now, failures };
    }

    pub(super) fn carry_out(&mut self, action: &Action, fault: Fault, steps: &mut usize) -> Ended {
        for step in &action.steps {
            let place = *steps;
            *steps += 1;
            match fault {
                Fault::Fails(at) if at == place => {
                    if let Step::TakeSnapshot { snapshot, .. } = step {
                        self.fail_to_take(snapshot);
                    }
                    return Ended::Failed;
                }
                Fault::Killed(at) if at <= place => return Ended::Killed,
                Fault::FailsAfter(at) if at == place => {
                    self.apply(action, step);
                    return Ended::Failed;
                }
                Fault::None | Fault::Fails(_) | Fault::FailsAfter(_) | Fault::Killed(_) => self.apply(action, step),
            }
        }
        Ended::Done
    }

    fn apply(&mut self, action: &Action, step: &Step) {
        match step {
            Step::Record(record) => {
                let id = record.id.clone();
                if action.kind == ActionKind::Adopt {
                    self.observed.unrecorded.retain(|machine| machine.sandbox != id);
                    // Adopted ones run: see `lose_record`.
                    let (nonce, since) = (record.machine.nonce.clone(), self.now);
                    let vm = VmState::Running { nonce, since };
                    let guest = GuestState::Connecting { since };
                    let adopted = ObservedSandbox { record: (**record).clone().into(), vm, guest };
                    self.observed.sandboxes.insert(id, Arc::new(adopted));
                    return;
                }
                let new = ObservedSandbox {
                    record: (**record).clone().into(),
                    vm: VmState::Absent,
                    guest: GuestState::Absent,
                };
                match self.observed.sandboxes.get_mut(&id) {
                    Some(known) => Arc::make_mut(known).record = (**record).clone().into(),
                    None => drop(self.observed.sandboxes.insert(id, Arc::new(new))),
                }
            }
            Step::EnsureTemplate { digest, .. } => {
                self.templates.insert(digest.clone());
            }
            Step::EnsureDisk { disk, app, size } => self.ensure_disk(disk, app, *size),
            Step::GrowDisk { sandbox, size } => self.guest(sandbox).disk = *size,
            Step::Launch(machine) => self.launch(machine),
            Step::Pause { sandbox, nonce, snapshot: _ } => self.pause(sandbox, nonce),
            Step::Resume(machine) => self.resume(machine),
            Step::AwaitAgent { sandbox, .. } => self.answer(sandbox),
            Step::SyncFiles { sandbox, tree, .. } => {
                self.guest(sandbox).tree = Some(tree.clone());
                let disk = self.observed.sandboxes[sandbox].record.disk.clone();
                self.files.insert(disk, tree.clone());
            }
            Step::ApplyProcesses { sandbox, set, .. } => start(self.guest(sandbox), set),
            Step::Stop { sandbox, .. } => {
                let sandbox = Arc::make_mut(self.observed.sandboxes.get_mut(sandbox).unwrap());
                sandbox.vm = VmState::Exited { reason: ExitReason::Shutdown };
                sandbox.guest = GuestState::Absent;
            }
            Step::RemoveVm(sandbox) => {
                let sandbox = Arc::make_mut(self.observed.sandboxes.get_mut(sandbox).unwrap());
                assert!(!matches!(sandbox.vm, VmState::Running { .. }), "a running microVM is removed");
                sandbox.vm = VmState::Absent;
            }
            Step::ReleaseDisk { disk, keep } => self.release(disk, keep.as_ref()),
            Step::RecordApplied { sandbox, spec, generation, revision } => {
                let (spec, revision) = (spec.clone(), revision.clone());
                let applied = Applied { spec, generation: *generation, revision, at: self.now };
                let sandbox = Arc::make_mut(self.observed.sandboxes.get_mut(sandbox).unwrap());
                Arc::make_mut(&mut sandbox.record).applied = Some(applied);
            }
            Step::Forget(sandbox) => {
                let gone = self.observed.sandboxes.remove(sandbox);
                assert_eq!(gone.unwrap().vm, VmState::Absent, "a microVM is left without a row");
            }
            Step::RecordSnapshot(record) => {
                self.observed.snapshots.insert(record.id.clone(), Arc::new((**record).clone()));
            }
            Step::TakeSnapshot { snapshot, sandbox, nonce, disk, content } => {
                self.take(snapshot, sandbox, nonce.as_ref(), disk, *content);
            }
            Step::LaunchFrom { machine, snapshot, size } => self.launch_from(action, machine, snapshot, *size),
            Step::CopyDisk { disk, app, size, snapshot } => self.copy_disk(disk, app, *size, snapshot),
            Step::LeaveOut { sandbox, snapshot, names } => {
                assert_eq!(self.guest(sandbox).processes, None, "directories go from under a process");
                let disk = self.observed.sandboxes[sandbox].record.disk.clone();
                let (copied, left_out) = self.copies.get_mut(&disk).expect("the disk is a copy");
                assert_eq!(copied, snapshot);
                left_out.extend(names.iter().cloned());
            }
            Step::RemoveSnapshot(snapshot) => {
                assert_eq!(self.observed.snapshots[snapshot].state, SnapshotState::Leaving);
                let unbegun = self.observed.sandboxes.values().filter(|one| one.record.applied.is_none());
                let used = unbegun.filter(|one| one.record.from.as_ref() == Some(snapshot)).count();
                assert_eq!(used, 0, "a snapshot goes that something begins from");
                self.shots.remove(snapshot);
            }
            Step::ForgetSnapshot(snapshot) => {
                assert!(!self.shots.contains_key(snapshot), "a snapshot is left without a row");
                self.observed.snapshots.remove(snapshot);
            }
            Step::RecordRestored { app, token } => {
                if action.kind == ActionKind::Replace
                    && action.reasons.iter().any(|reason| matches!(reason, Reason::Restore(_)))
                {
                    *self.restores.entry((app.clone(), token.clone())).or_default() += 1;
                }
                let memory = self.memory(app);
                memory.restored = memory.restored_with(token);
            }
        }
    }

    fn take(
        &mut self,
        snapshot: &SnapshotId,
        sandbox: &SandboxId,
        nonce: Option<&BootNonce>,
        disk: &DiskId,
        content: Content,
    ) {
        let known = &self.observed.sandboxes[sandbox];
        assert_eq!(known.record.disk, *disk);
        let guest = match (&known.vm, nonce, &known.guest) {
            (VmState::Running { nonce: running, .. }, Some(nonce), GuestState::Answering(status)) => {
                assert_eq!(running, nonce);
                (content == Content::Memory).then(|| GuestStatus::clone(status))
            }
            (VmState::Paused { fault: None, .. }, None, _) if content == Content::Memory => {
                Some(self.saved[sandbox].clone())
            }
            (VmState::Absent | VmState::Exited { .. } | VmState::Paused { .. }, None, _)
                if content == Content::Disk =>
            {
                None
            }
            other => panic!("a snapshot of {other:?}"),
        };
        let size = self.observed.disks[disk].size;
        let shot = Shot { files: self.files.get(disk).cloned(), size, guest };
        self.shots.entry(snapshot.clone()).or_insert(shot);
        let record = Arc::make_mut(self.observed.snapshots.get_mut(snapshot).expect("a row before the snapshot"));
        let moment = record.moment.as_ref().expect("a moment");
        assert_eq!((&moment.sandbox, moment.disk), (sandbox, size));
        record.state = SnapshotState::Kept(Kept { at: self.now, bytes: ByteSize::mib(1), stopped_ms: 3 });
    }

    fn launch_from(&mut self, action: &Action, machine: &Machine, snapshot: &SnapshotId, size: ByteSize) {
        if !self.copies.contains_key(&machine.disk) {
            assert!(!self.observed.disks.contains_key(&machine.disk), "a disk is copied over");
            let shot = self.shots.get(snapshot).expect("the snapshot is there").clone();
            assert_eq!(shot.size, size);
            let guest = shot.guest.expect("its memory was kept");
            self.saved.insert(machine.sandbox.clone(), guest);
            self.copy(&machine.disk, &action.app, size, snapshot);
            let saved = self.saved[&machine.sandbox].clone();
            self.launch(machine);
            self.saved.insert(machine.sandbox.clone(), saved);
        } else {
            self.launch(machine);
        }
    }

    fn copy_disk(&mut self, disk: &DiskId, app: &AppKey, size: ByteSize, snapshot: &SnapshotId) {
        if !self.copies.contains_key(disk) {
            self.copy(disk, app, size, snapshot);
        }
    }

    fn copy(&mut self, disk: &DiskId, app: &AppKey, size: ByteSize, snapshot: &SnapshotId) {
        let shot = &self.shots[snapshot];
        assert!(size >= shot.size, "a disk is cut short");
        self.files.extend(shot.files.clone().map(|files| (disk.clone(), files)));
        self.copies.insert(disk.clone(), (snapshot.clone(), BTreeSet::new()));
        let record = DiskRecord { id: disk.clone(), app: app.clone(), size, state: DiskState::InUse };
        self.observed.disks.insert(disk.clone(), Arc::new(record));
    }

    fn ensure_disk(&mut self, disk: &DiskId, app: &AppKey, size: ByteSize) {
        let present = self.observed.disks.get(disk).map(|disk| disk.size).unwrap_or_default();
        assert!(size >= present, "a disk shrinks");
        let record = DiskRecord { id: disk.clone(), app: app.clone(), size, state: DiskState::InUse };
        self.observed.disks.insert(disk.clone(), Arc::new(record));
    }

    fn launch(&mut self, machine: &Machine) {
        assert!(self.templates.contains(&machine.template), "a template is missing");
        assert!(self.observed.disks.contains_key(&machine.disk), "a disk is missing");
        let others = self.observed.sandboxes.values().filter(|other| other.record.disk == machine.disk);
        for other in others {
            assert!(!matches!(other.vm, VmState::Running { .. }), "two microVMs on one disk, or two boots of one");
        }
        let sandbox = self.observed.sandboxes.get_mut(&machine.sandbox).expect("a row before the microVM");
        let sandbox = Arc::make_mut(sandbox);
        assert_eq!(sandbox.record.machine, *machine);
        self.saved.remove(&machine.sandbox);
        sandbox.vm = VmState::Running { nonce: machine.nonce.clone(), since: self.now };
        sandbox.guest = GuestState::Connecting { since: self.now };
    }

    fn pause(&mut self, sandbox: &SandboxId, boot: &BootNonce) {
        let known = Arc::make_mut(self.observed.sandboxes.get_mut(sandbox).unwrap());
        let VmState::Running { nonce, .. } = &known.vm else { panic!("nothing runs that could be paused") };
        assert_eq!(nonce, boot);
        let GuestState::Answering(status) = &known.guest else { panic!("a guest is paused that cannot be quiesced") };
        self.saved.insert(sandbox.clone(), GuestStatus::clone(status));
        known.vm = VmState::Paused { nonce: boot.clone(), since: self.now, bytes: ByteSize::mib(1), fault: None };
        known.guest = GuestState::Absent;
    }

    fn resume(&mut self, machine: &Machine) {
        let known = Arc::make_mut(self.observed.sandboxes.get_mut(&machine.sandbox).unwrap());
        assert_eq!(known.record.machine, *machine);
        assert!(matches!(known.vm, VmState::Paused { fault: None, .. }), "there is nothing to go on from");
        known.vm = VmState::Running { nonce: machine.nonce.clone(), since: self.now };
        known.guest = GuestState::Connecting { since: self.now };
    }

    fn answer(&mut self, sandbox: &SandboxId) {
        let sandbox = Arc::make_mut(self.observed.sandboxes.get_mut(sandbox).unwrap());
        let VmState::Running { nonce, .. } = &sandbox.vm else { panic!("nothing runs that could answer") };
        if let Some(saved) = self.saved.remove(&sandbox.record.id) {
            sandbox.guest = GuestState::Answering(Arc::new(GuestStatus { nonce: nonce.clone(), ..saved }));
            return;
        }
        let disk = &sandbox.record.disk;
        let status = GuestStatus {
            nonce: nonce.clone(),
            tree: self.files.get(disk).cloned(),
            processes: None,
            build: BuildState::None,
            web: None,
            workers: Vec::new(),
            disk: self.observed.disks.get(disk).map(|disk| disk.size).unwrap_or_default(),
        };
        sandbox.guest = GuestState::Answering(Arc::new(status));
    }

    /// Agents that were still booting have come up by the next pass.
    pub(super) fn agents_answer(&mut self) {
        let connecting: Vec<_> = self
            .observed
            .sandboxes
            .values()
            .filter(|sandbox| matches!(sandbox.guest, GuestState::Connecting { .. }))
            .map(|sandbox| sandbox.record.id.clone())
            .collect();
        connecting.iter().for_each(|sandbox| self.answer(sandbox));
    }

    fn guest(&mut self, sandbox: &SandboxId) -> &mut GuestStatus {
        match &mut Arc::make_mut(self.observed.sandboxes.get_mut(sandbox).unwrap()).guest {
            GuestState::Answering(status) => Arc::make_mut(status),
            other => panic!("{sandbox} does not answer: {other:?}"),
        }
    }

    fn release(&mut self, disk: &DiskId, keep: Option<&DiskState>) {
        let users = self.observed.sandboxes.values().filter(|sandbox| sandbox.record.disk == *disk);
        for user in users {
            assert_eq!(user.vm, VmState::Absent, "a disk is released under its microVM");
        }
        let Some(record) = self.observed.disks.get_mut(disk).map(Arc::make_mut) else { return };
        match keep {
            Some(state) => record.state = state.clone(),
            None => {
                match record.state {
                    DiskState::Retained { until } => assert!(until <= self.now, "a disk is deleted before its time"),
                    DiskState::InUse => {
                        let retain = self.observed.apps.get(&record.app).map(|app| app.last_good.spec.app.retain);
                        assert_eq!(retain, Some(Retain::None), "a disk is deleted that should be kept");
                    }
                }
                self.observed.disks.remove(disk);
                self.files.remove(disk);
                self.copies.remove(disk);
            }
        }
    }
}

/// Every declared process comes up, and the build succeeds.
fn start(guest: &mut GuestStatus, set: &ProcessSet) {
    let ProcessSet { runtime, .. } = set;
    let up = ProcessState::Running { restarts: 0 };
    guest.processes = Some(set.digest());
    guest.web = runtime.web.as_ref().map(|_| WebStatus { process: up.clone(), health: Health::Healthy });
    guest.workers =
        runtime.workers.iter().map(|worker| WorkerStatus { name: worker.name.clone(), process: up.clone() }).collect();
}
