//! A host that exists only here: steps change it as a real one would, may fail, and may be cut short anywhere.
//!
//! It is a model apart from the planner. It panics on whatever would be harm on a real host: two boots of one sandbox, two
//! microVMs on one disk, a microVM without a row, data deleted before its time.

// Named, because the fuzz target takes this file in by its path.
#[path = "world/deeds.rs"]
mod deeds;
#[path = "world/wishes.rs"]
mod wishes;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use setpoint_plan::check::check;
use setpoint_plan::desired::{Completeness, Desired};
use setpoint_plan::model::{Action, ActionKind, Block, HeldSnapshot, Hold, Plan, Reason, SnapshotHold, Step};
use setpoint_plan::planner::{Entropy, Inputs, Planner, plan};
use setpoint_plan::repeats;
use setpoint_schema::app::DesiredApp;
use setpoint_schema::disruption::Disruption;
use setpoint_schema::id::{BootNonce, DiskId, Generation, HostId, SandboxId, SnapshotId, TemplateDigest, TreeDigest};
use setpoint_schema::name::{AppKey, DirName};
use setpoint_schema::observed::{
    AppRecord, ExitReason, GuestState, GuestStatus, Intent, LastGood, Limits, Observed, ObservedSandbox, Retry,
    SnapshotRecord, VmState,
};
use setpoint_schema::quantity::ByteSize;
use setpoint_schema::shared::SharedMap;
use setpoint_schema::snapshot::DesiredSnapshot;
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
    /// The boots that were shut down because they were to rest here.
    rested: BTreeMap<SandboxId, BootNonce>,
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
            rested: BTreeMap::new(),
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
            // An app that is renamed goes on under its new name as what it was, but for a suspension.
            let gone = |old: &&Arc<AppRecord>| !self.desired.apps.contains_key(&old.key);
            let uid = app.metadata.uid.as_ref();
            let former = || {
                let mut records = self.observed.apps.values().filter(gone);
                let record = records.find(|old| uid.is_some() && old.last_good.metadata.uid.as_ref() == uid)?;
                Some(Arc::new(AppRecord { suspended: None, ..AppRecord::clone(record) }))
            };
            let known = self.observed.apps.get(key).cloned().or_else(former);
            let known = known.as_deref();
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
        for action in &made.actions {
            self.assert_in_window(action);
            self.assert_no_accident(action);
        }
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
            self.note_stop(action);
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

/// The names of an action's steps.
pub fn names(action: &Action) -> Vec<&'static str> {
    action.steps.iter().map(Step::name).collect()
}
