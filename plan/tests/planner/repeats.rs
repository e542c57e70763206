//! Work that succeeds and is at once needed again: it waits, longer each time, until something is otherwise.

use jiff::{SignedDuration, Timestamp};
use setpoint_plan::model::{ActionKind, Block, Reason};
use setpoint_plan::repeats::FREE;
use setpoint_schema::app::Power;
use setpoint_schema::disruption::Disruption;
use setpoint_schema::id::BootNonce;
use setpoint_schema::observed::{ExitReason, VmState};

use crate::declare::{Declare, app, key};
use crate::world::{Fault, World};

/// A host whose guest has forgotten its workspace each time that it was brought there, as often as may be.
fn forgetful() -> World {
    let mut world = World::running([app("blog")]);
    for _ in 0..FREE {
        forget(&mut world);
        assert_eq!(world.action("blog").blocked, []);
        pass(&mut world);
    }
    forget(&mut world);
    world
}

/// A pass without a fault that takes two seconds.
fn pass(world: &mut World) {
    let began = world.now;
    world.pass(Fault::None);
    world.now = began.checked_add(SignedDuration::from_secs(2)).unwrap();
}

fn forget(world: &mut World) {
    world.status("blog").tree = None;
}

fn until(world: &World) -> Timestamp {
    match &world.action("blog").blocked[..] {
        [Block::Repeating { until, .. }] => *until,
        other => panic!("{other:#?}"),
    }
}

#[test]
fn what_succeeds_and_is_needed_again_five_times_waits_and_says_what_is_lacking() {
    let world = forgetful();
    let [block @ Block::Repeating { times: FREE, what, .. }] = &world.action("blog").blocked[..] else {
        panic!("{:#?}", world.action("blog").blocked)
    };
    assert_eq!(what, "the workspace is not the declared content");
    let said = block.to_string();
    assert!(said.starts_with("applied 5 times in 8s and still not as declared: the workspace is not "), "{said}");
}

#[test]
fn each_further_time_waits_twice_as_long_up_to_five_minutes() {
    let mut world = forgetful();
    let mut waits = Vec::new();
    for _ in 0..8 {
        let until = until(&world);
        let last = world.memory(&key("blog")).repeats[0].last;
        waits.push(until.duration_since(last).as_secs_f64());
        world.now = until;
        pass(&mut world);
        forget(&mut world);
    }
    for (wait, expected) in waits.iter().zip([10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0, 300.0]) {
        assert!((0.75 * expected..=1.25 * expected).contains(wait), "{waits:?}");
    }
}

#[test]
fn apps_that_fail_together_wait_for_different_times() {
    let names = ["a", "b", "c", "d"];
    let mut world = World::running(names.map(app));
    for _ in 0..8 {
        names.iter().for_each(|name| world.status(name).tree = None);
        pass(&mut world);
    }
    names.iter().for_each(|name| world.status(name).tree = None);
    let until = |name: &&str| match &world.action(name).blocked[..] {
        [Block::Repeating { until, .. }] => *until,
        other => panic!("{other:#?}"),
    };
    let mut times: Vec<_> = names.iter().map(until).collect();
    times.sort();
    times.dedup();
    assert_eq!(times.len(), names.len());
}

#[test]
fn a_new_declaration_is_tried_at_once() {
    let mut world = forgetful();
    world.declare([app("blog").files("f2")]);
    assert_eq!(world.action("blog").blocked, []);
}

#[test]
fn another_difference_is_dealt_with_at_once() {
    let mut world = forgetful();
    world.status("blog").processes = None;
    assert_eq!(world.action("blog").blocked, [], "files and processes");
    world.kill("blog", ExitReason::Reset);
    assert_eq!(world.action("blog").blocked, [], "a dead microVM");
}

#[test]
fn two_differences_in_turn_do_not_go_on_without_end() {
    let mut world = World::running([app("blog")]);
    for round in 0..2 * FREE {
        if round % 2 == 0 {
            forget(&mut world);
        } else {
            world.status("blog").processes = None;
        }
        assert_eq!(world.action("blog").blocked, [], "{round}");
        pass(&mut world);
    }
    forget(&mut world);
    assert!(matches!(world.action("blog").blocked[..], [Block::Repeating { times: FREE, .. }]));
}

#[test]
fn what_was_not_needed_for_a_while_begins_anew() {
    let mut world = forgetful();
    world.now = until(&world);
    pass(&mut world);
    assert!(world.plan().is_empty());
    world.now = world.now.checked_add(SignedDuration::from_mins(15)).unwrap();
    forget(&mut world);
    assert_eq!(world.action("blog").blocked, []);
    pass(&mut world);
    assert_eq!(world.memory(&key("blog")).repeats[0].times, 1);
}

#[test]
fn reboots_and_stops_that_do_not_last_wait_as_well() {
    let other_boot = |world: &mut World| {
        let since = world.now;
        world.sandbox("blog").vm = VmState::Running { nonce: BootNonce("another".into()), since };
    };
    let mut world = World::running([app("blog")]);
    for _ in 0..FREE {
        other_boot(&mut world);
        assert_eq!((world.action("blog").kind, world.action("blog").blocked), (ActionKind::Reboot, vec![]));
        pass(&mut world);
    }
    other_boot(&mut world);
    assert!(matches!(world.action("blog").blocked[..], [Block::Repeating { times: FREE, .. }]));

    let mut world = World::running([app("blog")]);
    world.declare([app("blog").power(Power::Stopped)]);
    world.settle();
    for _ in 0..FREE {
        other_boot(&mut world);
        assert_eq!((world.action("blog").kind, world.action("blog").blocked), (ActionKind::Stop, vec![]));
        pass(&mut world);
    }
    other_boot(&mut world);
    let action = world.action("blog");
    assert_eq!(action.reasons, [Reason::PowerChanged(Power::Stopped)]);
    assert!(matches!(&action.blocked[..], [Block::Repeating { what, .. }] if what == "the microVM runs"));
}

#[test]
fn healing_is_counted_by_its_own_breaker_alone() {
    let mut world = World::running([app("blog")]);
    for _ in 0..FREE {
        world.kill("blog", ExitReason::Reset);
        pass(&mut world);
    }
    assert_eq!(world.memory(&key("blog")).repeats, []);
    assert_eq!(world.memory(&key("blog")).heals.len(), FREE as usize);
}

#[test]
fn changes_that_follow_each_other_are_no_repetition() {
    let mut world = World::running([app("blog")]);
    for round in 0..4 * FREE {
        world.declare([app("blog").files(&format!("f{round}"))]);
        let action = world.action("blog");
        assert_eq!((action.kind, action.blocked), (ActionKind::Update(Disruption::Files), vec![]));
        pass(&mut world);
    }
}
