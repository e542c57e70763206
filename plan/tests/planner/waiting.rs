//! What waits for somebody or for a time: suspensions on this host, and maintenance windows.

use jiff::SignedDuration;
use setpoint_plan::model::{ActionKind, Block, Hold, Plan};
use setpoint_plan::planner::{Bounds, Entropy};
use setpoint_schema::app::Power;
use setpoint_schema::disruption::Disruption;
use setpoint_schema::observed::{ExitReason, Intent, Suspension};

use crate::declare::{Declare, app, key};
use crate::world::{Fault, World};

/// Hosts here begin at midnight, so this opens in two hours.
const NIGHT: &str = r#"[{"kind": "allow", "from": "02:00", "to": "04:00"}]"#;

fn suspend(world: &mut World, name: &str) -> Suspension {
    let suspension = Suspension { since: world.now, by: "uid 1000".to_owned() };
    world.memory(&key(name)).suspended = Some(suspension.clone());
    suspension
}

fn hold(plan: &Plan, name: &str) -> Hold {
    assert!(plan.actions.iter().all(|action| action.app != key(name)), "{plan:#?}");
    plan.held.iter().find(|held| held.app == key(name)).unwrap().reason.clone()
}

fn waits_for_window(world: &World, name: &str) -> bool {
    let opens = "2026-01-01T02:00:00Z".parse().unwrap();
    world.action(name).blocked == [Block::Window { opens: Some(opens) }]
}

#[test]
fn what_is_suspended_on_this_host_is_left_alone_until_it_is_resumed() {
    let mut world = World::running([app("blog")]);
    let suspension = suspend(&mut world, "blog");
    world.declare([app("blog").memory(512)]);
    world.kill("blog", ExitReason::Reset);
    assert_eq!(hold(&world.plan(), "blog"), Hold::SuspendedHere(suspension));
    world.memory(&key("blog")).suspended = None;
    world.settle();
    assert_eq!(world.sandbox("blog").record.machine.memory_mib, 512);
}

#[test]
fn what_is_suspended_on_this_host_is_neither_created_nor_removed() {
    let mut world = World::running([app("old")]);
    world.declare([app("new")]);
    let (old, new) = (suspend(&mut world, "old"), suspend(&mut world, "new"));
    let plan = world.plan();
    assert_eq!((hold(&plan, "old"), hold(&plan, "new")), (Hold::SuspendedHere(old), Hold::SuspendedHere(new)));
}

#[test]
fn a_suspension_on_this_host_follows_the_sandbox_through_a_rename() {
    let mut world = World::running([app("blog").uid("u1")]);
    let suspension = suspend(&mut world, "blog");
    world.declare([app("site").uid("u1")]);
    assert_eq!(hold(&world.plan(), "site"), Hold::SuspendedHere(suspension));
}

#[test]
fn others_build_on_a_suspended_app_that_is_well_and_its_own_changes_hold_up_nobody() {
    let mut world = World::running([app("db"), app("old")]);
    suspend(&mut world, "db");
    world.declare([app("db").memory(512), app("web").depends_on(&["db"])]);
    assert_eq!(world.action("web").blocked, []);
    world.settle();
    assert_eq!(world.observed.sandboxes.len(), 2, "the removal waits for nobody who is suspended");
    world.kill("db", ExitReason::Reset);
    world.declare([app("db"), app("web").depends_on(&["db"]).memory(512)]);
    assert!(matches!(&world.action("web").blocked[..], [Block::Dependency { .. }]));
}

#[test]
fn what_restarts_anything_waits_for_its_window_and_the_rest_does_not() {
    let waiting = [
        (app("blog").command("other"), ActionKind::Update(Disruption::Process)),
        (app("blog").memory(512), ActionKind::Reboot),
        (app("blog").template("t2"), ActionKind::Replace),
        (app("blog").power(Power::Stopped), ActionKind::Stop),
    ];
    for (changed, kind) in waiting {
        let mut world = World::running([app("blog").windows(NIGHT)]);
        world.declare([changed.windows(NIGHT)]);
        assert_eq!(world.action("blog").kind, kind);
        assert!(waits_for_window(&world, "blog"), "{kind}");
        world.now = "2026-01-01T02:00:00Z".parse().unwrap();
        assert_eq!(world.action("blog").blocked, [], "{kind}");
    }
    for changed in [app("blog").files("f2"), app("blog").health_path("/ok")] {
        let mut world = World::running([app("blog").windows(NIGHT)]);
        world.declare([changed.windows(NIGHT)]);
        assert_eq!(world.action("blog").blocked, []);
    }
}

#[test]
fn a_new_app_is_created_at_any_time() {
    let mut world = World::new();
    world.declare([app("blog").windows(NIGHT)]);
    assert_eq!(world.action("blog").blocked, []);
}

#[test]
fn healing_never_waits_for_a_window_even_with_a_change_pending() {
    let mut world = World::running([app("blog").windows(NIGHT)]);
    world.kill("blog", ExitReason::Reset);
    assert_eq!(world.action("blog").blocked, []);
    world.declare([app("blog").memory(512).windows(NIGHT)]);
    assert_eq!(world.action("blog").blocked, [], "nothing runs that could be disturbed");
    let mut world = World::running([app("blog").windows(NIGHT)]);
    world.status("blog").processes = None;
    assert_eq!(world.action("blog").blocked, [], "what a guest lost");
}

#[test]
fn a_removal_waits_for_the_window_of_its_last_declaration_and_once_begun_for_nothing() {
    let mut world = World::running([app("blog").windows(NIGHT)]);
    world.declare([]);
    assert!(waits_for_window(&world, "blog"));
    world.now = "2026-01-01T03:59:30Z".parse().unwrap();
    world.pass(Fault::Killed(1));
    assert_eq!(world.sandbox("blog").record.intent, Intent::Delete);
    assert!(world.now > "2026-01-01T04:00:00Z".parse().unwrap(), "the window is over");
    assert_eq!(world.action("blog").blocked, []);
}

#[test]
fn a_change_that_opens_the_windows_is_carried_out_at_once() {
    let mut world = World::running([app("blog").windows(NIGHT)]);
    world.declare([app("blog").memory(512)]);
    assert_eq!(world.action("blog").blocked, []);
}

#[test]
fn a_reboot_that_a_crash_cut_short_is_finished_after_the_window() {
    for at in 0..8 {
        let mut world = World::running([app("blog").windows(NIGHT)]);
        world.declare([app("blog").memory(512).windows(NIGHT)]);
        world.now = "2026-01-01T03:59:30Z".parse().unwrap();
        world.pass(Fault::Killed(at));
        world.now = world.now.checked_add(SignedDuration::from_hours(1)).unwrap();
        let stopped = !world.is_running("blog");
        let blocked = world.plan().actions.iter().any(|action| !action.blocked.is_empty());
        assert!(!(stopped && blocked), "after {at} steps nothing runs and nothing brings it back");
        world.settle();
        assert_eq!(world.sandbox("blog").record.machine.memory_mib, 512);
    }
}

#[test]
fn what_is_beyond_a_plan_that_was_shown_is_blocked_as_unplanned() {
    let mut world = World::running([app("old")]);
    world.declare([app("old"), app("new")]);
    let bounds = Bounds::of(&world.plan());
    // Meanwhile something else has come, and something else is to be done for an app than was shown.
    world.declare([app("old"), app("new"), app("newer")]);
    world.kill("old", ExitReason::Reset);
    let kept = |bounds: &Bounds, world: &World| {
        let plan = bounds.keep(world.plan(), Entropy([0; 16]));
        let blocked = plan.actions.iter().map(|action| (action.app.name.to_string(), action.blocked.clone()));
        blocked.collect::<std::collections::BTreeMap<_, _>>()
    };
    let blocked = kept(&bounds, &world);
    assert_eq!(blocked["new"], []);
    assert_eq!(blocked["newer"], [Block::Unplanned]);
    assert_eq!(blocked["old"], [Block::Unplanned]);
    // The same app, but a greater disturbance.
    let mut world = World::running([app("blog")]);
    world.declare([app("blog").files("f2")]);
    let bounds = Bounds::of(&world.plan());
    assert_eq!(kept(&bounds, &world)["blog"], []);
    world.declare([app("blog").files("f2").memory(512)]);
    assert_eq!(kept(&bounds, &world)["blog"], [Block::Unplanned]);
}
