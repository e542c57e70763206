//! Rules between apps: dependencies, capacity, order.

use setpoint_plan::model::{ActionKind, Block};
use setpoint_schema::app::Power;
use setpoint_schema::observed::{ExitReason, Health};
use setpoint_schema::quantity::ByteSize;

use crate::declare::{Declare, app, key};
use crate::world::{Fault, World};

fn order(world: &World) -> Vec<String> {
    world.plan().actions.iter().map(|action| action.app.to_string()).collect()
}

#[test]
fn dependencies_come_first_and_then_keys() {
    let mut world = World::new();
    world.declare([app("a").depends_on(&["z"]), app("b"), app("z").depends_on(&["y"]), app("y")]);
    assert_eq!(order(&world), ["b", "y", "z", "a"]);
}

#[test]
fn an_app_waits_until_what_it_depends_on_is_ready() {
    let mut world = World::new();
    world.declare([app("api"), app("web").depends_on(&["api"])]);
    assert!(matches!(&world.action("web").blocked[..], [Block::Dependency { app, .. }] if *app == key("api")));
    world.pass(Fault::None);
    world.status("api").web.as_mut().unwrap().health = Health::Unknown;
    assert!(
        matches!(&world.action("web").blocked[..], [Block::Dependency { reason, .. }] if reason.contains("not probed"))
    );
    world.status("api").web.as_mut().unwrap().health = Health::Healthy;
    assert_eq!(world.action("web").blocked, []);
}

#[test]
fn healing_waits_for_dependencies_and_live_changes_do_not() {
    let apps = || [app("api"), app("web").depends_on(&["api"])];
    let mut world = World::running(apps());
    world.kill("api", ExitReason::Reset);
    world.kill("web", ExitReason::Reset);
    assert!(matches!(world.action("web").blocked[..], [Block::Dependency { .. }]));

    let mut world = World::running(apps());
    world.kill("api", ExitReason::Reset);
    world.declare([app("api"), app("web").depends_on(&["api"]).health_path("/up")]);
    assert_eq!(world.action("web").blocked, []);
}

#[test]
fn a_stopped_dependency_is_not_ready_and_a_suspended_one_is_if_it_runs_well() {
    let mut world = World::new();
    world.declare([app("api").power(Power::Stopped), app("web").depends_on(&["api"])]);
    assert!(matches!(world.action("web").blocked[..], [Block::Dependency { .. }]));

    let mut world = World::running([app("api")]);
    world.declare([app("api").memory(512).spec(|spec| spec.suspend = true), app("web").depends_on(&["api"])]);
    assert_eq!(world.action("web").blocked, []);
    world.kill("api", ExitReason::Reset);
    assert!(matches!(world.action("web").blocked[..], [Block::Dependency { .. }]));
}

#[test]
fn a_circle_of_dependencies_does_not_stop_the_planner() {
    let mut world = World::new();
    world.declare([app("a").depends_on(&["b"]), app("b").depends_on(&["a"]), app("c").depends_on(&["c"])]);
    world.settle();
    assert!(world.plan().is_empty());
}

#[test]
fn what_does_not_fit_is_blocked_with_the_sum() {
    let mut world = World::running([app("a").memory(256)]);
    world.observed.limits.memory = ByteSize::mib(700);
    world.declare([app("a").memory(256), app("b").memory(512)]);
    let expected = Block::Capacity("memory: needs 512Mi, 444Mi of 700Mi free".into());
    assert_eq!(world.action("b").blocked, [expected]);
}

#[test]
fn every_limit_blocks() {
    let limits: [fn(&mut World); 4] = [
        |world| world.observed.limits.memory = ByteSize::mib(300),
        |world| world.observed.limits.vcpus = 1,
        |world| world.observed.limits.disk = ByteSize::mib(1500),
        |world| world.observed.limits.sandboxes = 1,
    ];
    for lower in limits {
        let mut world = World::running([app("a")]);
        lower(&mut world);
        world.declare([app("a"), app("b")]);
        assert!(matches!(world.action("b").blocked[..], [Block::Capacity(_)]));
    }
}

#[test]
fn the_first_in_order_gets_the_room_and_nobody_is_evicted() {
    let mut world = World::new();
    world.observed.limits.memory = ByteSize::mib(300);
    world.declare([app("b"), app("c")]);
    world.settle();
    world.declare([app("a"), app("b"), app("c")]);
    assert!(matches!(world.action("a").blocked[..], [Block::Capacity(_)]));
    assert!(matches!(world.action("c").blocked[..], [Block::Capacity(_)]));
    assert!(world.plan().unchanged.contains(&key("b")));
}

#[test]
fn a_dead_app_keeps_its_place_against_a_new_one() {
    let mut world = World::running([app("z")]);
    world.observed.limits.memory = ByteSize::mib(300);
    world.declare([app("a"), app("z")]);
    world.kill("z", ExitReason::Reset);
    assert_eq!(world.action("z").blocked, []);
    assert!(matches!(world.action("a").blocked[..], [Block::Capacity(_)]));
}

#[test]
fn a_reboot_to_a_larger_size_counts_its_own_share_as_free() {
    let mut world = World::running([app("a").memory(512)]);
    world.observed.limits.memory = ByteSize::mib(768);
    world.declare([app("a").memory(768)]);
    assert_eq!(world.action("a").blocked, []);
    world.declare([app("a").memory(1024)]);
    let expected = Block::Capacity("memory: needs 512Mi, 256Mi of 768Mi free".into());
    assert_eq!(world.action("a").blocked, [expected]);
}

#[test]
fn limits_below_what_runs_stop_nothing() {
    let mut world = World::running([app("a"), app("b")]);
    world.observed.limits.memory = ByteSize::mib(100);
    assert!(world.plan().is_empty());
    world.declare([app("a").files("f2"), app("b").template("t2")]);
    assert!(world.plan().actions.iter().all(|action| action.blocked.is_empty()));
}

#[test]
fn removals_make_room_for_what_waits_for_it() {
    let mut world = World::running([app("old")]);
    world.observed.limits.memory = ByteSize::mib(300);
    world.declare([app("new"), app("other").depends_on(&["new"])]);
    let action = world.action("old");
    assert_eq!((action.kind, &action.blocked[..]), (ActionKind::Delete, &[][..]));
    world.observed.limits.memory = ByteSize::mib(700);
    world.settle();
    assert!(world.plan().is_empty());
}
