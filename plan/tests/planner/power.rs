//! Pausing, going on, and what holds in place of a declared power.

use setpoint_plan::model::{ActionKind, Block, Hold, Reason};
use setpoint_plan::render::{Color, Origin, json, text};
use setpoint_schema::app::Power;
use setpoint_schema::disruption::Disruption;
use setpoint_schema::observed::{AppRecord, ExitReason, GuestState, PowerCause, PowerOverride, VmState};
use setpoint_schema::power::{IdleAction, IdleRule, IdleSpec, OnResumeFailure, WakeOn};
use setpoint_schema::quantity::{ByteSize, Span};

use crate::declare::{Declare, app, key};
use crate::world::{World, names};

fn asked(declared: Power, state: Power) -> PowerOverride {
    let cause = PowerCause::Asked { by: "uid 1000".to_owned() };
    PowerOverride { state, declared, since: "2026-01-01T00:00:00Z".parse().unwrap(), cause }
}

/// A host on which `blog` has been paused by its declaration.
fn paused() -> World {
    let mut world = World::running([app("blog")]);
    world.declare([app("blog").power(Power::Paused)]);
    world.settle();
    assert!(matches!(world.sandbox("blog").vm, VmState::Paused { .. }));
    world
}

#[test]
fn a_declared_pause_saves_the_memory_and_is_then_converged() {
    let mut world = World::running([app("blog")]);
    world.declare([app("blog").power(Power::Paused).files("f2")]);
    let action = world.action("blog");
    assert_eq!((action.kind, names(&action)), (ActionKind::Pause, vec!["pause", "record-applied"]));
    assert_eq!(action.changes.iter().map(|change| change.path.as_str()).collect::<Vec<_>>(), ["power"]);
    assert_eq!(action.changes[0].disruption, Disruption::Live);
    world.settle();
    assert_eq!(world.plan().unchanged.iter().collect::<Vec<_>>(), [&key("blog")]);
}

#[test]
fn a_paused_app_goes_on_with_its_processes_and_then_takes_up_what_changed() {
    let mut world = paused();
    world.declare([app("blog").files("f2")]);
    let action = world.action("blog");
    assert_eq!(action.kind, ActionKind::Resume);
    assert_eq!(names(&action), ["record", "resume", "await-agent", "record-applied"]);
    assert_eq!(action.reasons, [Reason::PowerChanged(Power::Running)]);
    world.pass(crate::world::Fault::None);
    let processes = world.status("blog").processes.clone();
    assert!(processes.is_some(), "what ran goes on");
    assert_eq!(world.action("blog").kind, ActionKind::Update(Disruption::Files));
    world.settle();
    assert_eq!(world.plan().unchanged.iter().collect::<Vec<_>>(), [&key("blog")]);
}

#[test]
fn each_going_on_is_a_boot_of_its_own() {
    let mut world = paused();
    let before = world.sandbox("blog").record.machine.nonce.clone();
    world.declare([app("blog")]);
    world.settle();
    let VmState::Running { nonce, .. } = &world.sandbox("blog").vm else { panic!("it does not run") };
    assert_ne!(*nonce, before);
}

#[test]
fn where_memory_cannot_be_gone_on_from_the_disk_is_booted() {
    let mut world = paused();
    let VmState::Paused { fault, .. } = &mut world.sandbox("blog").vm else { panic!("it is not paused") };
    *fault = Some("chunk 3 is damaged".to_owned());
    world.declare([app("blog")]);
    let action = world.action("blog");
    assert_eq!(action.kind, ActionKind::Reboot);
    assert!(action.reasons.contains(&Reason::Unresumable("chunk 3 is damaged".to_owned())), "{:?}", action.reasons);
    world.settle();
    assert!(world.is_running("blog"));
    assert!(world.plan().actions.is_empty());
}

#[test]
fn a_paused_app_of_another_size_boots_from_its_disk() {
    let mut world = paused();
    world.declare([app("blog").memory(512)]);
    let action = world.action("blog");
    assert_eq!(action.kind, ActionKind::Reboot);
    assert_eq!(action.changes.iter().map(|c| c.path.as_str()).collect::<Vec<_>>(), ["resources.memory", "power"]);
}

#[test]
fn a_paused_app_that_is_to_stop_is_woken_for_a_clean_shutdown() {
    let mut world = paused();
    world.declare([app("blog").power(Power::Stopped)]);
    let action = world.action("blog");
    assert_eq!(action.kind, ActionKind::Stop);
    assert_eq!(names(&action), ["record", "resume", "await-agent", "stop", "record-applied"]);
    world.settle();
    assert!(matches!(world.sandbox("blog").vm, VmState::Exited { .. }));
}

#[test]
fn a_guest_that_does_not_answer_is_not_paused_and_one_that_hangs_is_ended() {
    let mut world = World::running([app("blog")]);
    let since = world.now;
    world.sandbox("blog").guest = GuestState::Silent { since };
    world.declare([app("blog").power(Power::Paused)]);
    assert!(world.plan().actions.is_empty(), "its memory could not be brought to rest");
    world.now = world.now.checked_add(jiff::SignedDuration::from_hours(1)).unwrap();
    assert_eq!(names(&world.action("blog"))[0], "stop");
}

#[test]
fn what_is_asked_for_here_holds_until_something_else_is_declared() {
    let mut world = World::running([app("blog")]);
    world.memory(&key("blog")).power = Some(asked(Power::Running, Power::Paused));
    let action = world.action("blog");
    assert_eq!((action.kind, names(&action)), (ActionKind::Pause, vec!["pause"]));
    assert!(matches!(action.reasons[..], [Reason::PowerHere(_)]));
    world.settle();
    assert_eq!(world.plan().unchanged.iter().collect::<Vec<_>>(), [&key("blog")], "at rest is as it should be");
    world.declare([app("blog").files("f2")]);
    assert!(world.plan().actions.is_empty(), "a change waits while it rests");
    world.declare([app("blog").power(Power::Stopped)]);
    assert_eq!(world.action("blog").kind, ActionKind::Stop);
}

#[test]
fn an_app_that_is_declared_paused_and_woken_runs_and_is_as_declared() {
    let mut world = paused();
    world.memory(&key("blog")).power = Some(asked(Power::Paused, Power::Running));
    assert_eq!(world.action("blog").kind, ActionKind::Resume);
    world.settle();
    assert!(world.is_running("blog"));
    assert_eq!(world.plan().unchanged.iter().collect::<Vec<_>>(), [&key("blog")]);
}

#[test]
fn a_paused_app_gives_its_memory_back_and_waits_for_room_to_go_on() {
    let mut world = paused();
    world.observed.limits.memory = ByteSize::mib(256);
    world.declare([app("blog").power(Power::Paused), app("shop")]);
    world.settle();
    assert!(world.is_running("shop"));
    world.declare([app("blog"), app("shop")]);
    assert!(matches!(world.action("blog").blocked[..], [Block::Capacity(_)]));
}

#[test]
fn an_app_waits_for_one_that_is_paused() {
    let mut world = paused();
    world.declare([app("blog").power(Power::Paused), app("shop").depends_on(&["blog"])]);
    let action = world.action("shop");
    assert_eq!(action.blocked, [Block::Dependency { app: key("blog"), reason: "it is paused".to_owned() }]);
}

#[test]
fn a_removed_app_that_sleeps_goes_with_its_memory() {
    let mut world = paused();
    world.declare([app("other")]);
    world.settle();
    assert!(world.observed.sandboxes.values().all(|sandbox| sandbox.record.app == key("other")));
}

fn idle(state: Power) -> PowerOverride {
    let since = "2026-01-01T09:00:00Z".parse().unwrap();
    PowerOverride { cause: PowerCause::Idle { since }, ..asked(Power::Running, state) }
}

#[test]
fn a_rest_for_want_of_use_is_as_declared_and_nobody_waits_for_its_end() {
    let mut world = World::running([app("blog")]);
    world.memory(&key("blog")).power = Some(idle(Power::Paused));
    let action = world.action("blog");
    assert_eq!((action.kind, action.origin()), (ActionKind::Pause, Origin::Declared));
    world.settle();
    world.declare([app("blog"), app("shop").depends_on(&["blog"])]);
    assert!(world.action("shop").blocked.is_empty(), "who asks it something finds it awake");
    world.declare([app("blog").spec(|spec| spec.wake.on = WakeOn::Manual), app("shop").depends_on(&["blog"])]);
    assert!(matches!(world.action("shop").blocked[..], [Block::Dependency { .. }]), "nobody is found asleep");
}

#[test]
fn an_app_that_was_shut_down_for_want_of_use_comes_back_without_an_accident() {
    let mut world = World::running([app("blog")]);
    world.memory(&key("blog")).power = Some(idle(Power::Stopped));
    assert_eq!(world.action("blog").kind, ActionKind::Stop);
    world.settle();
    let stopped = world.sandbox("blog").record.machine.nonce.clone();
    let record = world.memory(&key("blog"));
    *record = AppRecord { power: None, ..record.with_usage(|usage| usage.stopped = Some(stopped)) };
    let action = world.action("blog");
    assert_eq!(action.kind, ActionKind::Reboot);
    assert!(!action.reasons.iter().any(Reason::is_heal), "{:?}", action.reasons);
    world.settle();
    world.kill("blog", ExitReason::Unknown);
    assert!(world.action("blog").reasons.iter().any(Reason::is_heal), "of another boot it says nothing");
}

#[test]
fn saved_memory_that_fails_is_kept_where_that_is_declared_until_somebody_tries_again() {
    let careful = || app("blog").spec(|spec| spec.power.on_resume_failure = OnResumeFailure::Alert);
    let mut world = World::running([careful()]);
    world.memory(&key("blog")).power = Some(asked(Power::Running, Power::Paused));
    world.settle();
    let VmState::Paused { nonce, fault, .. } = &mut world.sandbox("blog").vm else { panic!("it is not paused") };
    *fault = Some("chunk 3 is damaged".to_owned());
    let nonce = nonce.clone();
    world.memory(&key("blog")).power = None;
    let plan = world.plan();
    assert!(plan.actions.is_empty());
    assert_eq!(plan.held[0].reason, Hold::Unresumable("chunk 3 is damaged".to_owned()));
    let record = world.memory(&key("blog"));
    *record = record.with_usage(|usage| usage.again = Some(nonce));
    assert_eq!(world.action("blog").kind, ActionKind::Resume);
}

#[test]
fn an_app_that_was_stopped_here_and_is_renamed_as_it_is_woken_boots_and_that_is_no_accident() {
    let stops = |name: &str| {
        app(name).uid("u1").spec(|spec| {
            spec.power.idle = IdleRule(Some(IdleSpec { action: IdleAction::Stop, ..IdleSpec::default() }));
        })
    };
    let mut world = World::running([stops("blog")]);
    world.let_rest(&key("blog"));
    world.settle();
    assert!(!world.is_running("blog"));
    world.wake(&key("blog"), PowerCause::Request);
    world.declare([stops("journal")]);
    let action = world.action("journal");
    assert_eq!(action.kind, ActionKind::Reboot);
    assert!(!action.reasons.iter().any(Reason::is_heal), "{:?}", action.reasons);
    world.settle();
    assert!(world.is_running("journal"));
}

#[test]
fn what_holds_here_goes_with_an_app_that_is_renamed() {
    let mut world = World::running([app("blog").uid("u1")]);
    world.put_power(&key("blog"), Some(Power::Paused), PowerCause::Asked { by: "uid 1000".to_owned() });
    world.settle();
    world.declare([app("journal").uid("u1")]);
    let action = world.action("journal");
    assert_eq!((action.kind, names(&action)), (ActionKind::Update(Disruption::Live), vec!["record"]), "{action:#?}");
    world.settle();
    assert!(!world.is_running("journal"));
    world.wake(&key("journal"), PowerCause::Request);
    assert_eq!(world.action("journal").kind, ActionKind::Resume);
}

#[test]
fn an_app_that_goes_on_though_nothing_else_is_declared_says_who_wanted_it() {
    let by = || PowerCause::Asked { by: "uid 1000".to_owned() };
    for cause in [PowerCause::Request, by()] {
        let mut world = World::running([app("blog")]);
        world.put_power(&key("blog"), Some(Power::Paused), by());
        world.settle();
        world.wake(&key("blog"), cause.clone());
        let action = world.action("blog");
        let [Reason::PowerHere(why)] = &action.reasons[..] else { panic!("{:?}", action.reasons) };
        assert_eq!((action.kind, why.state, &why.cause), (ActionKind::Resume, Power::Running, &cause));
        world.settle();
        // What is declared later is a reason of its own.
        world.declare([app("blog").power(Power::Paused)]);
        world.settle();
        world.declare([app("blog")]);
        assert_eq!(world.action("blog").reasons, [Reason::PowerChanged(Power::Running)]);
    }
}

#[test]
fn when_an_app_rests_and_who_wakes_it_is_written_down_and_disturbs_nothing() {
    let mut world = World::running([app("blog")]);
    let rule = IdleSpec { after: Span::secs(300), ..IdleSpec::default() };
    world.declare([app("blog").spec(|spec| {
        spec.power.idle = IdleRule(Some(rule.clone()));
        spec.wake.hold = Span::secs(20);
    })]);
    let action = world.action("blog");
    assert_eq!((action.kind, names(&action)), (ActionKind::Update(Disruption::Live), vec!["record-applied"]));
    let paths: Vec<_> = action.changes.iter().map(|change| change.path.as_str()).collect();
    assert_eq!(paths, ["power.idle", "wake.hold"]);
    let plan = world.plan();
    insta::assert_snapshot!("a_rule_for_rest_as_text", text(&plan, Color::Never));
}

#[test]
fn every_power_as_text_and_json() {
    let names = ["bad", "idle", "paused", "resumed", "stopped", "woken"];
    let mut world = World::running(names.map(app));
    let at_rest = |name: &str| app(name).power(Power::Paused);
    world.declare([
        app("idle"),
        app("paused"),
        at_rest("bad"),
        at_rest("resumed"),
        at_rest("stopped"),
        at_rest("woken"),
    ]);
    world.settle();
    if let VmState::Paused { fault, .. } = &mut world.sandbox("bad").vm {
        *fault = Some("chunk 3 is damaged".to_owned());
    }
    let since = "2026-01-01T09:00:00Z".parse().unwrap();
    let idle = PowerOverride { cause: PowerCause::Idle { since }, ..asked(Power::Running, Power::Paused) };
    world.memory(&key("idle")).power = Some(idle);
    let woken = PowerOverride { cause: PowerCause::Request, ..asked(Power::Paused, Power::Running) };
    world.memory(&key("woken")).power = Some(woken);
    world.declare([
        app("bad"),
        app("idle"),
        at_rest("paused"),
        app("resumed").files("f2"),
        app("stopped").power(Power::Stopped),
        at_rest("woken"),
    ]);
    let plan = world.plan();
    insta::assert_snapshot!("every_power_as_text", text(&plan, Color::Never));
    insta::assert_json_snapshot!("every_power_as_json", json(&plan));
}

#[test]
fn an_app_that_ended_before_its_pause_is_left_at_rest() {
    let mut world = World::running([app("blog")]);
    world.kill("blog", ExitReason::Unknown);
    world.declare([app("blog").power(Power::Paused)]);
    assert_eq!(names(&world.action("blog")), ["record-applied"]);
    world.settle();
    assert!(!world.is_running("blog"));
}
