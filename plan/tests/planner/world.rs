//! A host that exists only here: steps change it as a real one would, may fail, and may be cut short anywhere.
//!
//! It is a model apart from the planner. It panics on whatever would be harm on a real host: two boots of one sandbox, two
//! microVMs on one disk, a microVM without a row, data deleted before its time.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use setpoint_plan::check::check;
use setpoint_plan::desired::{Completeness, Desired};
use setpoint_plan::model::{Action, ActionKind, Block, HeldSnapshot, Hold, Plan, Reason, SnapshotHold, Step};
use setpoint_plan::planner::{Entropy, Inputs, Planner, plan};
use setpoint_plan::repeats;
use setpoint_schema::app::{DesiredApp, Retain};
use setpoint_schema::disruption::Disruption;
use setpoint_schema::id::{BootNonce, DiskId, Generation, HostId, SandboxId, SnapshotId, TemplateDigest, TreeDigest};
use setpoint_schema::name::{AppKey, DirName};
use setpoint_schema::observed::{
    AppRecord, Applied, BuildState, DiskRecord, DiskState, ExitReason, GuestState, GuestStatus, Health, Intent, Kept,
    LastGood, Limits, Machine, Observed, ObservedSandbox, ProcessState, Retry, SnapshotCause, SnapshotRecord,
    SnapshotState, VmState, WebStatus, WorkerStatus,
};
use setpoint_schema::quantity::ByteSize;
use setpoint_schema::runtime::ProcessSet;
use setpoint_schema::shared::SharedMap;
use setpoint_schema::snapshot::{Content, DesiredSnapshot, default_retain};
use setpoint_schema::window::Opening;

use crate::declare::{desired, key};

pub struct World {
    pub desired: Desired,
    pub observed: Observed,
    pub now: Timestamp,
    /// What a disk remembers of the workspace.
    files: BTreeMap<DiskId, TreeDigest>,
    templates: BTreeSet<TemplateDigest>,
    /// What paused guests go on as.
    saved: BTreeMap<SandboxId, GuestStatus>,
    /// What snapshots hold: the workspace on the disk, its size, and the guest where its memory was kept.
    pub shots: BTreeMap<SnapshotId, Shot>,
    /// Disks that began as a copy, each of a snapshot, with what was left out of it.
    pub copies: BTreeMap<DiskId, (SnapshotId, BTreeSet<DirName>)>,
    /// How often each app went back to a snapshot, by token.
    pub restores: BTreeMap<(AppKey, String), u32>,
    /// The plan of the last pass.
    pub last: Option<Plan>,
    entropy: u8,
    rounds: u64,
    /// Makes every plan of this world's history once more.
    planner: RefCell<Planner>,
}

/// What a snapshot holds.
#[derive(Debug, Clone)]
pub struct Shot {
    files: Option<TreeDigest>,
    size: ByteSize,
    guest: Option<GuestStatus>,
}

/// What goes wrong in a pass, after this many steps.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    None,
    /// The step fails and does nothing.
    Fails(usize),
    /// The step fails after it has done its work.
    FailsAfter(usize),
    /// The process is killed before the step.
    Killed(usize),
}

/// How a pass ended for an action.
enum Ended {
    Done,
    Failed,
    Killed,
}

impl World {
    /// An empty host with room for everything.
    pub fn new() -> Self {
        let limits = Limits { memory: ByteSize::gib(64), vcpus: 64, disk: ByteSize::gib(1024), sandboxes: 64 };
        let observed = Observed {
            host: HostId("host".into()),
            limits,
            sandboxes: SharedMap::new(),
            unrecorded: Vec::new(),
            disks: SharedMap::new(),
            apps: SharedMap::new(),
            snapshots: SharedMap::new(),
        };
        Self {
            desired: desired([]),
            observed,
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            files: BTreeMap::new(),
            templates: BTreeSet::new(),
            saved: BTreeMap::new(),
            shots: BTreeMap::new(),
            copies: BTreeMap::new(),
            restores: BTreeMap::new(),
            last: None,
            entropy: 0,
            rounds: 0,
            planner: RefCell::new(Planner::new()),
        }
    }

    /// A host on which these apps have converged.
    pub fn running(apps: impl IntoIterator<Item = DesiredApp>) -> Self {
        let mut world = Self::new();
        world.declare(apps);
        world.settle();
        world
    }

    /// A new revision.
    pub fn declare(&mut self, apps: impl IntoIterator<Item = DesiredApp>) {
        self.desired = desired(apps);
        self.remember();
    }

    /// A new revision that declares snapshots, too.
    pub fn declare_with(
        &mut self,
        apps: impl IntoIterator<Item = DesiredApp>,
        snapshots: impl IntoIterator<Item = DesiredSnapshot>,
    ) {
        self.desired = desired(apps);
        let keyed = |snapshot: DesiredSnapshot| (snapshot.metadata.key.clone(), Arc::new(snapshot));
        self.desired.snapshots = snapshots.into_iter().map(keyed).collect();
        self.remember();
    }

    /// Somebody on this host asks for a snapshot.
    pub fn ask_for_snapshot(&mut self, id: &str, name: &str, of: &AppKey, content: Content) {
        let record = SnapshotRecord {
            id: SnapshotId(id.to_owned()),
            key: name.parse().unwrap(),
            app: of.clone(),
            generation: Generation(1),
            cause: SnapshotCause::Asked { by: "uid 1000".to_owned() },
            content,
            exclude: BTreeSet::new(),
            retain: default_retain(),
            moment: None,
            state: SnapshotState::Wanted { since: self.now },
        };
        self.observed.snapshots.insert(record.id.clone(), Arc::new(record));
    }

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

    /// The only snapshot in the inventory of this name.
    pub fn snapshot(&self, name: &str) -> Arc<SnapshotRecord> {
        let named = self.observed.snapshots.values().filter(|record| record.key.to_string() == name);
        let found: Vec<_> = named.cloned().collect();
        let [one] = &found[..] else { panic!("{name} has not one snapshot but {found:#?}") };
        Arc::clone(one)
    }

    /// What the daemon remembers of apps from revision to revision.
    pub fn remember(&mut self) {
        for (key, app) in &self.desired.apps {
            let digest = app.spec.digest().clone();
            let known = self.observed.apps.get(key);
            let (generation, retry, heals, repeats) = match known {
                Some(known) if known.digest == digest => {
                    (known.generation, known.retry.clone(), known.heals.clone(), known.repeats.clone())
                }
                Some(known) => (known.generation.next(), Retry::default(), known.heals.clone(), Vec::new()),
                None => (Generation(1), Retry::default(), Vec::new(), Vec::new()),
            };
            let suspended = known.and_then(|known| known.suspended.clone());
            let last_good = LastGood { app: Arc::clone(app), revision: self.desired.revision_of(key).clone() };
            let power = known.and_then(|known| known.power.clone());
            let restored = known.map(|known| known.restored.clone()).unwrap_or_default();
            let record = AppRecord {
                key: key.clone(),
                generation,
                digest,
                last_good,
                retry,
                heals,
                repeats,
                suspended,
                power,
                restored,
                usage: known.and_then(|known| known.usage.clone()),
            };
            self.observed.apps.insert(key.clone(), Arc::new(record));
        }
    }

    /// The plan as things stand, free of broken invariants.
    pub fn plan(&self) -> Plan {
        let entropy = Entropy([self.entropy; 16]);
        let inputs = Inputs {
            desired: &self.desired,
            observed: &self.observed,
            parent: self.last.as_ref().map(|plan| &plan.id),
            now: self.now,
            entropy,
        };
        let made = plan(&inputs);
        assert_eq!(made, plan(&inputs), "planning is a function");
        let remembering = self.planner.borrow_mut().plan(&inputs);
        assert_eq!(remembering, made, "what a planner remembers changes no plan");
        assert_eq!(check(&made, &self.desired, &self.observed), [], "{made:#?}");
        made.actions.iter().for_each(|action| self.assert_in_window(action));
        made
    }

    /// What runs well is disturbed while its windows are open alone.
    fn assert_in_window(&self, action: &Action) {
        let declared = self.desired.apps.get(&action.app);
        let app = declared.or_else(|| self.observed.apps.get(&action.app).map(|record| &record.last_good.app));
        let closed = app.is_some_and(|app| app.spec.app.windows.at(self.now) != Opening::Open);
        let sandbox = self.observed.sandboxes.get(&action.sandbox);
        // What a replacement stops is another sandbox than the one that it leads to.
        let old = || self.observed.sandboxes.values().find(|sandbox| sandbox.record.app == action.app);
        let Some(sandbox) = sandbox.or_else(old).filter(|_| closed && action.blocked.is_empty()) else { return };
        let ails = |reason: &Reason| {
            matches!(reason, Reason::Drift(_) | Reason::VmDown(_) | Reason::GuestHung(_) | Reason::Unresumable(_))
        };
        let well = matches!(sandbox.vm, VmState::Running { .. }) && !action.reasons.iter().any(ails);
        let disturbs = match action.kind {
            ActionKind::Update(disruption) => disruption > Disruption::Files,
            ActionKind::Reboot | ActionKind::Replace | ActionKind::Stop | ActionKind::Pause => true,
            ActionKind::Delete => sandbox.record.intent == Intent::Keep,
            ActionKind::Create
            | ActionKind::Adopt
            | ActionKind::Resume
            | ActionKind::ExpireDisk
            | ActionKind::Snapshot
            | ActionKind::ExpireSnapshot => false,
        };
        assert!(!(well && disturbs), "{action:#?} at {}", self.now);
    }

    /// One pass, in which something may go wrong. Time goes on by a minute.
    pub fn pass(&mut self, fault: Fault) {
        self.agents_answer();
        let plan = self.plan();
        let mut steps = 0;
        for action in plan.actions.iter().filter(|action| action.blocked.is_empty()) {
            if action
                .reasons
                .iter()
                .any(|reason| matches!(reason, Reason::VmDown(_) | Reason::GuestHung(_) | Reason::Unresumable(_)))
            {
                let now = self.now;
                self.memory(&action.app).heals.push(now);
            }
            match self.carry_out(action, fault, &mut steps) {
                Ended::Done => self.note_repeats(action),
                // A snapshot that fails is tried again by itself, and in nobody's way.
                Ended::Failed if action.kind == ActionKind::Snapshot => {}
                Ended::Failed => self.back_off(&action.app),
                Ended::Killed => break,
            }
        }
        self.now = self.now.checked_add(SignedDuration::from_secs(61)).unwrap();
        self.entropy = self.entropy.wrapping_add(1);
        self.rounds += 1;
        self.last = Some(plan);
    }

    /// Passes without faults until nothing can begin any more, and time alone changes nothing either.
    pub fn settle(&mut self) {
        for _ in 0..60 {
            self.pass(Fault::None);
            let plan = self.last.as_ref().unwrap();
            if plan.actions.iter().all(|action| !action.blocked.is_empty()) && !waits_for_time(plan) {
                return;
            }
            self.now = self.now.max(next_opening(plan).unwrap_or(self.now));
        }
        panic!("no end after {} passes: {:#?}", self.rounds, self.plan());
    }

    /// The action that the plan has for an app.
    pub fn action(&self, app: &str) -> Action {
        let actions = self.plan().actions;
        let found = actions.iter().find(|action| action.app == key(app));
        let found = found.unwrap_or_else(|| panic!("nothing is done for {app}: {actions:#?}"));
        Action::clone(found)
    }

    /// The only sandbox of an app.
    pub fn sandbox(&mut self, app: &str) -> &mut ObservedSandbox {
        let of_app = self.observed.sandboxes.iter().filter(|(_, sandbox)| sandbox.record.app == key(app));
        let found: Vec<_> = of_app.map(|(id, _)| id.clone()).collect();
        let [id] = &found[..] else { panic!("{app} has not one sandbox but {found:?}") };
        Arc::make_mut(self.observed.sandboxes.get_mut(id).unwrap())
    }

    pub fn status(&mut self, app: &str) -> &mut GuestStatus {
        match &mut self.sandbox(app).guest {
            GuestState::Answering(status) => Arc::make_mut(status),
            other => panic!("{app} does not answer: {other:?}"),
        }
    }

    pub fn is_running(&mut self, app: &str) -> bool {
        matches!(self.sandbox(app).vm, VmState::Running { .. })
    }

    pub fn kill(&mut self, app: &str, reason: ExitReason) {
        let sandbox = self.sandbox(app);
        sandbox.vm = VmState::Exited { reason };
        sandbox.guest = GuestState::Absent;
    }

    pub fn memory(&mut self, app: &AppKey) -> &mut AppRecord {
        Arc::make_mut(self.observed.apps.get_mut(app).unwrap())
    }

    fn note_repeats(&mut self, action: &Action) {
        let now = self.now;
        if let (Some(work), Some(app)) = (repeats::work(action), self.observed.apps.get_mut(&action.app)) {
            let app = Arc::make_mut(app);
            app.repeats = repeats::noted(app, work, now, now);
        }
    }

    fn back_off(&mut self, app: &AppKey) {
        let until = self.now.checked_add(SignedDuration::from_secs(90)).unwrap();
        if let Some(memory) = self.observed.apps.get_mut(app).map(Arc::make_mut) {
            memory.retry = Retry {
                failures: memory.retry.failures + 1,
                not_before: Some(until),
                last_error: Some("a step failed".to_owned()),
            };
        }
    }

    fn carry_out(&mut self, action: &Action, fault: Fault, steps: &mut usize) -> Ended {
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

    fn launch(&mut self, machine: &setpoint_schema::observed::Machine) {
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

    fn resume(&mut self, machine: &setpoint_schema::observed::Machine) {
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
    fn agents_answer(&mut self) {
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

    /// The store forgets a sandbox whose microVM runs on.
    pub fn lose_record(&mut self, app: &str) {
        let id = self.sandbox(app).record.id.clone();
        let lost = self.observed.sandboxes.remove(&id).unwrap();
        assert!(matches!(lost.vm, VmState::Running { .. }));
        self.observed.unrecorded.push(lost.record.machine.clone());
    }

    /// The source cannot be read.
    pub fn break_source(&mut self) {
        self.desired.completeness = Completeness::Partial("the repository cannot be read".to_owned());
    }

    /// The names of apps that run and answer, for a look at the end.
    pub fn answering(&self) -> BTreeSet<&AppKey> {
        let sandboxes = self.observed.sandboxes.values();
        let answering = sandboxes.filter(|sandbox| matches!(sandbox.guest, GuestState::Answering(_)));
        answering.map(|sandbox| &sandbox.record.app).collect()
    }
}

/// Whether something in the plan ends by itself: a backoff, or the time that an agent has to answer.
fn waits_for_time(plan: &Plan) -> bool {
    let mut blocks = plan.actions.iter().flat_map(|action| &action.blocked);
    // Guests here are well as soon as they answer, so one that is held as not ready is silent, and found hung in time.
    let in_time = |block: &Block| match block {
        Block::Backoff { .. } | Block::Flapping(_) | Block::Repeating { .. } | Block::Window { opens: Some(_) } => true,
        Block::Window { opens: None }
        | Block::Snapshot { .. }
        | Block::Dependency { .. }
        | Block::Capacity(_)
        | Block::DiskShrink { .. }
        | Block::Unhealthy(_)
        | Block::Dependent(_)
        | Block::Unplanned => false,
    };
    let tried_again = |held: &HeldSnapshot| matches!(held.reason, SnapshotHold::Backoff { .. });
    blocks.any(in_time)
        || plan.snapshots.iter().any(tried_again)
        || plan.held.iter().any(|held| matches!(held.reason, Hold::Unready(_)))
}

/// When the first window opens, for a plan in which nothing can begin before.
fn next_opening(plan: &Plan) -> Option<Timestamp> {
    let idle = plan.actions.iter().all(|action| !action.blocked.is_empty());
    let blocks = plan.actions.iter().flat_map(|action| &action.blocked).filter(|_| idle);
    let openings = blocks.filter_map(|block| match block {
        Block::Window { opens } => *opens,
        _ => None,
    });
    openings.min()
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

/// The names of an action's steps.
pub fn names(action: &Action) -> Vec<&'static str> {
    action.steps.iter().map(Step::name).collect()
}
