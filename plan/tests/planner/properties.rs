//! Whatever happens to a host, the planner leads it to what is declared, and on the way breaks nothing.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use proptest::prelude::*;
use setpoint_plan::desired::Completeness;
use setpoint_plan::model::{ActionKind, Block, Hold};
use setpoint_plan::render;
use setpoint_schema::app::{Beginning, DesiredApp, Power, Prune, Restore, Retain, Shrink, SnapshotRef};
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{ExitReason, GuestState, Limits, PowerCause, VmState};
use setpoint_schema::power::{IdleAction, IdleRule, IdleSpec, OnResumeFailure, WakeOn};
use setpoint_schema::quantity::ByteSize;
use setpoint_schema::snapshot::{Content, DesiredSnapshot};

use crate::declare::{Declare, app, days, key, snapshot_with};
use crate::world::{Fault, World};

pub const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// Most apps may be disturbed at any time.
const WINDOWS: [&str; 6] = [
    "[]",
    "[]",
    "[]",
    "[]",
    r#"[{"kind": "allow", "from": "02:00", "to": "04:00"}]"#,
    r#"[{"kind": "deny", "from": "22:00", "to": "01:00", "timezone": "Europe/Berlin"}]"#,
];

/// What one revision declares.
#[derive(Clone)]
pub struct Revision {
    pub apps: Vec<DesiredApp>,
    pub snapshots: Vec<DesiredSnapshot>,
}

impl fmt::Debug for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Happening::Declare(self.clone()).fmt(f)
    }
}

/// The snapshots that may be declared, and of which app.
const SNAPSHOTS: [(&str, &str); 2] = [("of-a", "a"), ("of-b", "b")];

/// Something that happens to the host.
#[derive(Clone)]
pub enum Happening {
    Declare(Revision),
    BreakSource,
    Kill(usize),
    Silence(usize),
    LoseRecord(usize),
    /// A power state is asked for here, as by `setpoint pause`, or what was asked is lifted.
    Ask(usize, Option<Power>),
    /// Nobody has used an app for as long as it says.
    Rest(usize),
    /// A request comes for an app.
    Request(usize),
    /// Somebody here wants an app to run, also where it could not go on.
    Wake(usize),
    /// A snapshot is asked for here.
    AskSnapshot(usize),
    SpoilMemory(usize),
    Pass(Fault),
    Expire,
}

/// A failing history is read by people, so it is short.
impl fmt::Debug for Happening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Declare(Revision { apps, snapshots }) => {
                let (apps, snapshots) =
                    (serde_json::to_string(apps).unwrap(), serde_json::to_string(snapshots).unwrap());
                write!(f, "declare {apps} and {snapshots}")
            }
            Self::BreakSource => f.write_str("break source"),
            Self::Kill(which) => write!(f, "kill {which}"),
            Self::Silence(which) => write!(f, "silence {which}"),
            Self::LoseRecord(which) => write!(f, "lose record {which}"),
            Self::Ask(which, power) => write!(f, "ask {which} {power:?}"),
            Self::Rest(which) => write!(f, "rest {which}"),
            Self::Request(which) => write!(f, "request {which}"),
            Self::Wake(which) => write!(f, "wake {which}"),
            Self::AskSnapshot(which) => write!(f, "ask for a snapshot of {which}"),
            Self::SpoilMemory(which) => write!(f, "spoil memory {which}"),
            Self::Pass(fault) => write!(f, "pass {fault:?}"),
            Self::Expire => f.write_str("expire"),
        }
    }
}

fn declaration(name: &'static str) -> impl Strategy<Value = DesiredApp> {
    let machine = (1..=2_u64, 1..=2_u64, prop::bool::weighted(0.2), 1..=2_u32);
    let content = (1..=3_u32, 1..=2_u32, 1..=2_u32, 1..=2_u32);
    let policy = (0..=9_u32, 0..=9_u32, prop::bool::ANY, prop::bool::ANY, any::<u8>());
    let policy = (policy, prop::sample::select(WINDOWS.to_vec()));
    let moments = (0..=9_u8, 0..=7_u8, 0..=3_u8);
    (machine, content, policy, moments).prop_map(move |(machine, content, policy, (begins, restores, rests))| {
        let (memory, disk, other_template, vcpus) = machine;
        let (files, command, health, build) = content;
        let ((power, prune, shrinks, retains, dependencies), windows) = policy;
        // Dependencies point to earlier names only, so there are no circles.
        let earlier = NAMES.iter().enumerate().take_while(|(_, other)| **other != name);
        let depends_on: Vec<_> =
            earlier.filter(|(bit, _)| dependencies >> (2 * bit) & 3 == 3).map(|(_, n)| *n).collect();
        app(name)
            .memory(memory * 256)
            .disk(disk)
            .template(if other_template { "t2" } else { "t1" })
            .files(&format!("f{files}"))
            .command(&format!("serve {command}"))
            .health_path(&format!("/{health}"))
            .build(&format!("make {build}"))
            .power(match power {
                0 => Power::Stopped,
                1 | 2 => Power::Paused,
                _ => Power::Running,
            })
            .retain(if retains { days(1) } else { Retain::None })
            .depends_on(&depends_on)
            .windows(windows)
            .spec(|spec| {
                spec.resources.vcpus = vcpus;
                spec.prune = if prune == 0 { Prune::Disabled } else { Prune::Enabled };
                spec.suspend = prune == 9;
                spec.power.on_resume_failure =
                    if prune % 4 == 3 { OnResumeFailure::Alert } else { OnResumeFailure::Boot };
                spec.power.idle = IdleRule(idle(rests));
                spec.wake.on = if prune == 8 { WakeOn::Manual } else { WakeOn::Request };
                spec.resources.shrink = if shrinks { Shrink::Replace } else { Shrink::Refuse };
                // What an app begins as comes before it, too; it may go back to what is its own.
                let earlier = |of: &str| of < name;
                let (snapshot, of) = SNAPSHOTS[usize::from(begins % 2)];
                spec.from = match begins {
                    0 | 1 if earlier(of) => Some(Beginning::App(key(of))),
                    2 | 3 if earlier(of) => Some(Beginning::Snapshot(snapshot.parse().unwrap())),
                    _ => None,
                };
                let (snapshot, of) = SNAPSHOTS[usize::from(restores % 2)];
                let token = if restores < 2 { "t1" } else { "t2" }.to_owned();
                let restore = Restore { snapshot: snapshot.parse().unwrap(), token };
                spec.restore = (restores < 4 && (earlier(of) || of == name)).then_some(restore);
            })
    })
}

/// Half of all apps rest by themselves, in one way or the other.
fn idle(rests: u8) -> Option<IdleSpec> {
    let action = match rests {
        0 => IdleAction::Pause,
        1 => IdleAction::Stop,
        _ => return None,
    };
    Some(IdleSpec { action, ..IdleSpec::default() })
}

fn moment((name, of): (&'static str, &'static str)) -> impl Strategy<Value = DesiredSnapshot> {
    (1..=2_u32, 1..=2_u32, prop::bool::ANY, 0..=2_u8).prop_map(move |(keep, token, disk, retain)| {
        snapshot_with(name, of, |spec| {
            spec.keep = keep;
            spec.token = token.to_string();
            spec.content = if disk { Content::Disk } else { Content::Memory };
            spec.retain = if retain == 0 { Retain::None } else { days(1) };
        })
    })
}

/// A revision: a valid set of declarations, so that what refers to something that it does not declare is dropped.
pub fn revision() -> impl Strategy<Value = Revision> {
    let apps: Vec<_> = NAMES.iter().map(|name| prop::option::weighted(0.7, declaration(name))).collect();
    let snapshots: Vec<_> = SNAPSHOTS.iter().map(|one| prop::option::weighted(0.5, moment(*one))).collect();
    (apps, snapshots).prop_map(|(apps, snapshots)| {
        let mut apps: Vec<_> = apps.into_iter().flatten().collect();
        let declared: BTreeSet<AppKey> = apps.iter().map(|app| app.metadata.key.clone()).collect();
        let mut snapshots: Vec<DesiredSnapshot> = snapshots.into_iter().flatten().collect();
        snapshots.retain(|snapshot| declared.contains(&snapshot.spec.of));
        let names: BTreeSet<_> = snapshots.iter().map(|snapshot| snapshot.metadata.key.clone()).collect();
        let is_declared = |snapshot: &SnapshotRef| snapshot.name().is_some_and(|name| names.contains(name));
        for app in &mut apps {
            app.spec = app.spec.with(|spec| {
                spec.app.depends_on.retain(|dependency| declared.contains(dependency));
                spec.app.from.take_if(|from| match from {
                    Beginning::App(app) => !declared.contains(app),
                    Beginning::Snapshot(snapshot) => !is_declared(snapshot),
                });
                spec.app.restore.take_if(|restore| !is_declared(&restore.snapshot));
            });
        }
        Revision { apps, snapshots }
    })
}

pub fn happening() -> impl Strategy<Value = Happening> {
    let fault = prop_oneof![
        3 => Just(Fault::None),
        2 => (0..30_usize).prop_map(Fault::Fails),
        2 => (0..30_usize).prop_map(Fault::FailsAfter),
        3 => (0..30_usize).prop_map(Fault::Killed),
    ];
    let power = prop_oneof![Just(Power::Running), Just(Power::Paused), Just(Power::Stopped)];
    prop_oneof![
        4 => revision().prop_map(Happening::Declare),
        1 => Just(Happening::BreakSource),
        2 => any::<usize>().prop_map(Happening::Kill),
        1 => any::<usize>().prop_map(Happening::Silence),
        1 => any::<usize>().prop_map(Happening::LoseRecord),
        2 => (any::<usize>(), prop::option::of(power)).prop_map(|(which, power)| Happening::Ask(which, power)),
        3 => any::<usize>().prop_map(Happening::Rest),
        2 => any::<usize>().prop_map(Happening::Request),
        1 => any::<usize>().prop_map(Happening::Wake),
        1 => any::<usize>().prop_map(Happening::AskSnapshot),
        1 => any::<usize>().prop_map(Happening::SpoilMemory),
        8 => fault.prop_map(Happening::Pass),
        1 => Just(Happening::Expire),
    ]
}

pub fn happen(world: &mut World, happening: Happening) {
    match happening {
        Happening::Declare(Revision { apps, snapshots }) => world.declare_with(apps, snapshots),
        Happening::AskSnapshot(which) => ask_for_snapshot(world, which),
        Happening::BreakSource => world.break_source(),
        Happening::Kill(which) => {
            if let Some(sandbox) = nth_running(world, which) {
                sandbox.vm = VmState::Exited { reason: ExitReason::Unknown };
                sandbox.guest = GuestState::Absent;
            }
        }
        Happening::Silence(which) => {
            let since = world.now;
            if let Some(sandbox) = nth_running(world, which) {
                sandbox.guest = GuestState::Silent { since };
            }
        }
        Happening::LoseRecord(which) => {
            if let Some(id) = nth_running(world, which).map(|sandbox| sandbox.record.id.clone()) {
                let lost = world.observed.sandboxes.remove(&id).unwrap();
                world.observed.unrecorded.push(lost.record.machine.clone());
            }
        }
        Happening::Ask(which, power) => {
            let cause = PowerCause::Asked { by: "uid 1000".to_owned() };
            nth_declared(world, which, |world, app| world.put_power(app, power, cause));
        }
        Happening::Rest(which) => nth_declared(world, which, World::let_rest),
        Happening::Request(which) => nth_declared(world, which, |world, app| world.wake(app, PowerCause::Request)),
        Happening::Wake(which) => {
            let cause = PowerCause::Asked { by: "uid 1000".to_owned() };
            nth_declared(world, which, |world, app| world.wake(app, cause));
        }
        Happening::SpoilMemory(which) => spoil(world, which),
        Happening::Pass(fault) => careful_pass(world, fault),
        Happening::Expire => {
            world.now = world.now.checked_add(jiff::SignedDuration::from_hours(25)).unwrap();
        }
    }
}

/// Does something about one of the declared apps, if there are any.
fn nth_declared(world: &mut World, which: usize, act: impl FnOnce(&mut World, &AppKey)) {
    let keys: Vec<_> = world.desired.apps.keys().cloned().collect();
    if let Some(at) = which.checked_rem(keys.len()) {
        act(world, &keys[at]);
    }
}

/// Asks for a snapshot on this host.
fn ask_for_snapshot(world: &mut World, which: usize) {
    let keys: Vec<_> = world.desired.apps.keys().cloned().collect();
    let Some(key) = which.checked_rem(keys.len()).map(|at| &keys[at]) else { return };
    let id = format!("asked-{}", world.observed.snapshots.len() + which);
    let content = if which.is_multiple_of(2) { Content::Disk } else { Content::Memory };
    if !world.observed.snapshots.contains_key(id.as_str()) {
        world.ask_for_snapshot(&id, "by-hand", key, content);
    }
}

fn spoil(world: &mut World, which: usize) {
    let paused =
        |sandbox: &&Arc<setpoint_schema::observed::ObservedSandbox>| matches!(sandbox.vm, VmState::Paused { .. });
    let found: Vec<_> =
        world.observed.sandboxes.values().filter(paused).map(|sandbox| sandbox.record.id.clone()).collect();
    let Some(at) = which.checked_rem(found.len()) else { return };
    if let VmState::Paused { fault, .. } = &mut Arc::make_mut(world.observed.sandboxes.get_mut(&found[at]).unwrap()).vm
    {
        *fault = Some("chunk 3 is damaged".to_owned());
    }
}

fn nth_running(world: &mut World, which: usize) -> Option<&mut setpoint_schema::observed::ObservedSandbox> {
    let running = |sandbox: &&Arc<setpoint_schema::observed::ObservedSandbox>| match &sandbox.vm {
        // A boot that is not the recorded one cannot be lost: the driver names the machine that it runs.
        VmState::Running { nonce, .. } => *nonce == sandbox.record.machine.nonce,
        VmState::Absent | VmState::Exited { .. } | VmState::Paused { .. } => false,
    };
    let found: Vec<_> =
        world.observed.sandboxes.values().filter(running).map(|sandbox| sandbox.record.id.clone()).collect();
    let id = found.get(which.checked_rem(found.len())?)?;
    world.observed.sandboxes.get_mut(id).map(Arc::make_mut)
}

/// A pass, with everything that must hold of any pass.
fn careful_pass(world: &mut World, fault: Fault) {
    let disks = world.observed.disks.clone();
    let apps_before: BTreeSet<_> = existing(world);
    let limits = world.observed.limits;
    let before = running(world);
    world.pass(fault);
    let plan = world.last.as_ref().unwrap();
    let complete = world.desired.completeness == Completeness::Complete;
    if !complete {
        // A declared app may say itself that its disk is to go; what is missing never does.
        let missing = disks.values().filter(|disk| !world.desired.apps.contains_key(&disk.app));
        let gone = missing.filter(|disk| !world.observed.disks.contains_key(&disk.id)).count();
        assert_eq!(gone, 0, "a disk went while the source was in error");
        assert!(apps_before.is_subset(&existing(world)), "an app went while the source was in error");
        assert!(plan.actions.iter().all(|action| action.kind != ActionKind::Delete));
    }
    assert!(world.restores.values().all(|times| *times <= 1), "a token is carried out twice: {:?}", world.restores);
    let after = running(world);
    assert!(after.0 <= limits.memory.as_bytes().max(before.0), "memory beyond its limit");
    assert!(after.1 <= u64::from(limits.vcpus).max(before.1), "vcpus beyond their limit");
    let (as_text, as_json) = (render::text(plan, render::Color::Always), render::json(plan).to_string());
    assert!(!as_text.is_empty() && !as_json.is_empty());
}

fn existing(world: &World) -> BTreeSet<AppKey> {
    let recorded = world.observed.sandboxes.values().map(|sandbox| sandbox.record.app.clone());
    recorded.chain(world.observed.unrecorded.iter().map(|machine| machine.app.clone())).collect()
}

/// Memory and vcpus of everything that runs.
fn running(world: &World) -> (u64, u64) {
    let sandboxes = world.observed.sandboxes.values();
    let running = sandboxes.filter(|sandbox| matches!(sandbox.vm, VmState::Running { .. }));
    let machines = running.map(|sandbox| &sandbox.record.machine).chain(&world.observed.unrecorded);
    machines
        .fold((0, 0), |(memory, cpus), machine| (memory + (machine.memory_mib << 20), cpus + u64::from(machine.vcpus)))
}

/// What may be left when nothing goes wrong any more: refused shrinks, and what waits for those or for a stopped app.
fn assert_explained(world: &World) {
    let plan = world.plan();
    for action in &plan.actions {
        let explained = action.blocked.iter().any(|block| match block {
            Block::DiskShrink { .. } | Block::Dependency { .. } | Block::Unhealthy(_) | Block::Capacity(_) => true,
            Block::Dependent(_) | Block::Snapshot { .. } => true,
            Block::Backoff { .. } | Block::Flapping(_) | Block::Repeating { .. } => false,
            Block::Window { .. } | Block::Unplanned => false,
        });
        assert!(explained, "{action:#?}");
    }
    let stuck = plan.actions.iter().any(|action| action.blocked.iter().any(|b| matches!(b, Block::DiskShrink { .. })));
    let unmet = |app: &Arc<DesiredApp>| {
        let held = world.observed.apps.get(&app.metadata.key).and_then(|memory| memory.power.as_ref());
        app.spec.app.power.state != Power::Running || app.spec.app.suspend || held.is_some()
    };
    if !stuck
        && !world.desired.apps.values().any(unmet)
        && plan.held.iter().all(|held| held.reason == Hold::PruneDisabled)
    {
        let dependents_of_kept =
            plan.actions.iter().all(|a| a.blocked.iter().all(|b| matches!(b, Block::Dependent(_))));
        assert!(dependents_of_kept, "{:#?}", plan.actions);
        let answering = world.answering();
        assert!(world.desired.apps.keys().all(|app| answering.contains(app)));
    }
}

fn roomy() -> Limits {
    World::new().observed.limits
}

proptest! {
    #[test]
    fn any_history_ends_as_declared(happenings in prop::collection::vec(happening(), 1..25), last in revision()) {
        let mut world = World::new();
        world.observed.limits = roomy();
        for happening in happenings {
            happen(&mut world, happening);
        }
        world.declare_with(last.apps, last.snapshots);
        world.settle();
        assert_explained(&world);
        assert!(world.restores.values().all(|times| *times <= 1));
    }

    #[test]
    fn planning_after_convergence_changes_nothing(last in revision()) {
        let mut world = World::new();
        world.declare_with(last.apps, last.snapshots);
        world.settle();
        let end = world.last.clone().unwrap();
        let (sandboxes, snapshots) = (world.observed.sandboxes.clone(), world.observed.snapshots.clone());
        world.pass(Fault::None);
        let again = world.last.clone().unwrap();
        prop_assert_eq!(end.actions.len(), again.actions.len());
        prop_assert_eq!(end.held, again.held);
        prop_assert_eq!(snapshots, world.observed.snapshots.clone());
        prop_assert_eq!(sandboxes, world.observed.sandboxes);
    }

    #[test]
    fn whoever_rests_is_as_declared_and_goes_on_when_it_is_wanted(
        last in revision(),
        rests in prop::collection::vec(any::<usize>(), 1..6),
    ) {
        let mut world = World::new();
        world.declare_with(last.apps, last.snapshots);
        world.settle();
        let before = world.observed.sandboxes.clone();
        for which in rests {
            nth_declared(&mut world, which, World::let_rest);
        }
        world.settle();
        let (end, disks) = (world.last.clone().unwrap(), world.observed.disks.clone());
        world.pass(Fault::None);
        prop_assert_eq!(&end.held, &world.last.as_ref().unwrap().held, "a rest is no drift");
        prop_assert_eq!(end.actions.len(), world.last.as_ref().unwrap().actions.len());
        let resting: Vec<_> = world.observed.apps.iter().filter(|(_, app)| app.power.is_some()).collect();
        let resting: Vec<AppKey> = resting.into_iter().map(|(key, _)| key.clone()).collect();
        resting.iter().for_each(|app| world.wake(app, PowerCause::Request));
        world.settle();
        let heals = world.observed.apps.values().map(|app| app.heals.len()).sum::<usize>();
        prop_assert_eq!(heals, 0, "waking is no accident");
        prop_assert_eq!(disks, world.observed.disks.clone());
        for (id, sandbox) in before.iter().filter(|(_, sandbox)| matches!(sandbox.vm, VmState::Running { .. })) {
            prop_assert!(matches!(world.observed.sandboxes[id].vm, VmState::Running { .. }), "{}", sandbox.record.app);
        }
    }

    #[test]
    fn a_crowded_host_is_never_overcommitted(
        happenings in prop::collection::vec(happening(), 1..25),
        memory in 1..6_u64,
        vcpus in 1..6_u32,
    ) {
        let mut world = World::new();
        world.observed.limits =
            Limits { memory: ByteSize::mib(memory * 256), vcpus, disk: ByteSize::gib(5), sandboxes: 3 };
        for happening in happenings {
            happen(&mut world, happening);
        }
    }

    #[test]
    fn the_same_inputs_give_the_same_bytes(happenings in prop::collection::vec(happening(), 1..15)) {
        let run = || {
            let mut world = World::new();
            for happening in happenings.clone() {
                happen(&mut world, happening);
            }
            render::json(&world.plan()).to_string()
        };
        prop_assert_eq!(run(), run());
    }
}

#[test]
fn a_hundred_thousand_apps_are_planned() {
    let mut world = World::new();
    let apps = (0..100_000).map(|n| {
        let app = app(&format!("app-{n}"));
        if n % 10 == 0 { app } else { app.depends_on(&[&format!("app-{}", n - 1)]) }
    });
    world.desired = crate::declare::desired(apps);
    let inputs = setpoint_plan::planner::Inputs {
        desired: &world.desired,
        observed: &world.observed,
        parent: None,
        now: world.now,
        entropy: setpoint_plan::planner::Entropy([7; 16]),
    };
    let plan = setpoint_plan::planner::plan(&inputs);
    assert_eq!(plan.actions.len(), 100_000);
    assert_eq!(plan.actions[0].app, key("app-0"));
}
