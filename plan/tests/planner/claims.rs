//! One app by itself: what each difference leads to.

use jiff::SignedDuration;
use setpoint_plan::model::{ActionKind, Block, BuildStep, Hold, Reason, Restart, Step};
use setpoint_schema::app::{Power, Shrink};
use setpoint_schema::disruption::Disruption;
use setpoint_schema::id::{BootNonce, SandboxId, TreeDigest};
use setpoint_schema::observed::{BuildState, ExitReason, FLAP_HEALS, GuestState, Health, VmState};

use crate::declare::{Declare, app, key};
use crate::world::{Fault, World, names};

const CREATE: [&str; 8] = [
    "record",
    "ensure-template",
    "ensure-disk",
    "launch",
    "await-agent",
    "sync-files",
    "apply-processes",
    "record-applied",
];

fn apply_step(steps: &[Step]) -> (BuildStep, Restart) {
    let apply = steps.iter().find_map(|step| match step {
        Step::ApplyProcesses { build, restart, .. } => Some((*build, *restart)),
        _ => None,
    });
    apply.unwrap()
}

fn held(world: &World, name: &str) -> Hold {
    let plan = world.plan();
    assert_eq!(plan.actions, []);
    plan.held.into_iter().find(|held| held.app == key(name)).unwrap().reason
}

#[test]
fn a_declared_app_without_sandbox_is_created() {
    let mut world = World::new();
    world.declare([app("blog")]);
    let action = world.action("blog");
    assert_eq!(action.kind, ActionKind::Create);
    assert_eq!(action.reasons, [Reason::NotCreated]);
    assert_eq!(names(&action), CREATE);
    assert_eq!(apply_step(&action.steps), (BuildStep::Run, Restart::All));
    let SandboxId(id) = &action.sandbox;
    let (name, suffix) = id.rsplit_once('-').unwrap();
    assert_eq!((name, suffix.len()), ("blog", 8));
}

#[test]
fn a_converged_app_is_unchanged() {
    let world = World::running([app("blog")]);
    let plan = world.plan();
    assert!(plan.is_empty());
    assert_eq!(plan.held, []);
    assert_eq!(plan.unchanged.iter().collect::<Vec<_>>(), [&key("blog")]);
}

#[test]
fn new_files_are_synced_without_a_boot_and_the_build_runs() {
    let mut world = World::running([app("blog").build("make")]);
    world.declare([app("blog").build("make").files("f2")]);
    let action = world.action("blog");
    assert_eq!(action.kind, ActionKind::Update(Disruption::Files));
    assert_eq!(names(&action), ["sync-files", "apply-processes", "record-applied"]);
    assert_eq!(apply_step(&action.steps), (BuildStep::Run, Restart::AfterTask));
    assert_eq!(action.changes.len(), 1);
    assert_eq!(action.changes[0].path, "source.content");
}

#[test]
fn a_sync_that_was_cut_short_before_the_restart_is_finished() {
    let mut world = World::running([app("blog")]);
    world.declare([app("blog").files("f2")]);
    world.pass(Fault::Killed(1));
    let action = world.action("blog");
    assert_eq!(names(&action), ["apply-processes", "record-applied"]);
    assert_eq!(apply_step(&action.steps), (BuildStep::Run, Restart::AfterTask));
}

#[test]
fn a_new_command_restarts_processes_without_build_or_boot() {
    let mut world = World::running([app("blog").build("make")]);
    world.declare([app("blog").build("make").command("serve --fast")]);
    let action = world.action("blog");
    assert_eq!(action.kind, ActionKind::Update(Disruption::Process));
    assert_eq!(names(&action), ["apply-processes", "record-applied"]);
    assert_eq!(apply_step(&action.steps), (BuildStep::Keep, Restart::All));
}

#[test]
fn a_new_build_command_builds() {
    let mut world = World::running([app("blog").build("make")]);
    world.declare([app("blog").build("make all")]);
    assert_eq!(apply_step(&world.action("blog").steps), (BuildStep::Run, Restart::All));
}

#[test]
fn new_files_together_with_a_new_command_restart_everything() {
    let mut world = World::running([app("blog")]);
    world.declare([app("blog").files("f2").command("other")]);
    let action = world.action("blog");
    assert_eq!(action.kind, ActionKind::Update(Disruption::Process));
    assert_eq!(apply_step(&action.steps), (BuildStep::Run, Restart::All));
}

#[test]
fn a_live_process_setting_restarts_nothing() {
    let mut world = World::running([app("blog")]);
    world.declare([app("blog").health_path("/healthz")]);
    let action = world.action("blog");
    assert_eq!(action.kind, ActionKind::Update(Disruption::Live));
    assert_eq!(apply_step(&action.steps), (BuildStep::Keep, Restart::None));
}

#[test]
fn a_live_field_is_only_written_down() {
    let mut world = World::running([app("blog")]);
    world.declare([app("blog").spec(|spec| spec.expose.ports.extend([9000]))]);
    let action = world.action("blog");
    assert_eq!(action.kind, ActionKind::Update(Disruption::Live));
    assert_eq!(names(&action), ["record-applied"]);
}

#[test]
fn memory_means_a_reboot_of_the_same_sandbox_with_a_new_nonce() {
    let mut world = World::running([app("blog")]);
    let before = world.sandbox("blog").record.clone();
    world.declare([app("blog").memory(512)]);
    let action = world.action("blog");
    assert_eq!(action.kind, ActionKind::Reboot);
    assert_eq!(action.reasons, [Reason::SpecChanged]);
    assert_eq!(names(&action)[..5], ["ensure-template", "ensure-disk", "stop", "record", "launch"]);
    world.settle();
    let after = world.sandbox("blog").record.clone();
    assert_eq!((&after.id, &after.disk), (&before.id, &before.disk));
    assert_ne!(after.machine.nonce, before.machine.nonce);
    assert_eq!(after.machine.memory_mib, 512);
}

#[test]
fn a_template_means_a_replacement_on_the_same_disk() {
    let mut world = World::running([app("blog")]);
    let before = world.sandbox("blog").record.clone();
    world.declare([app("blog").template("t2")]);
    assert_eq!(world.action("blog").kind, ActionKind::Replace);
    world.settle();
    let after = world.sandbox("blog").record.clone();
    assert_ne!(after.id, before.id);
    assert_eq!(after.disk, before.disk);
}

#[test]
fn a_disk_grows_live() {
    let mut world = World::running([app("blog").disk(1)]);
    world.declare([app("blog").disk(2)]);
    let action = world.action("blog");
    assert_eq!(action.kind, ActionKind::Update(Disruption::Live));
    assert_eq!(names(&action), ["ensure-disk", "grow-disk", "record-applied"]);
}

#[test]
fn a_growth_that_was_cut_short_is_finished_although_the_inventory_says_grown() {
    let mut world = World::running([app("blog").disk(1)]);
    world.declare([app("blog").disk(2)]);
    world.pass(Fault::Killed(1));
    assert!(names(&world.action("blog")).contains(&"grow-disk"));
}

#[test]
fn a_disk_does_not_shrink_unless_told_to() {
    let mut world = World::running([app("blog").disk(2)]);
    world.declare([app("blog").disk(1)]);
    let action = world.action("blog");
    assert!(matches!(action.blocked[..], [Block::DiskShrink { .. }]));
    assert_eq!(action.steps, []);
}

#[test]
fn a_replaced_disk_is_kept_beside_the_new_one() {
    let mut world = World::running([app("blog").disk(2)]);
    let old = world.sandbox("blog").record.disk.clone();
    world.declare([app("blog").disk(1).spec(|spec| spec.resources.shrink = Shrink::Replace)]);
    assert_eq!(world.action("blog").kind, ActionKind::Replace);
    world.settle();
    assert_ne!(world.sandbox("blog").record.disk, old);
    assert!(matches!(world.observed.disks[&old].state, setpoint_schema::observed::DiskState::Retained { .. }));
}

#[test]
fn what_a_guest_lost_is_drift_and_not_a_change() {
    let mut world = World::running([app("blog")]);
    world.status("blog").tree = None;
    let action = world.action("blog");
    assert!(matches!(action.reasons[..], [Reason::Drift(_)]));
    assert_eq!(action.changes, []);
    assert_eq!(names(&action), ["sync-files"]);
}

#[test]
fn a_dead_microvm_is_healed_with_a_new_nonce() {
    for reason in [ExitReason::Panic("oops".into()), ExitReason::Shutdown, ExitReason::Killed(9), ExitReason::Unknown] {
        let mut world = World::running([app("blog")]);
        let nonce = world.sandbox("blog").record.machine.nonce.clone();
        world.kill("blog", reason);
        let action = world.action("blog");
        assert_eq!(action.kind, ActionKind::Reboot);
        assert!(matches!(action.reasons[..], [Reason::VmDown(_)]), "{:?}", action.reasons);
        assert!(!names(&action).contains(&"stop"));
        world.settle();
        assert_ne!(world.sandbox("blog").record.machine.nonce, nonce);
    }
}

#[test]
fn an_older_boot_than_the_recorded_one_is_ended_first() {
    let mut world = World::running([app("blog")]);
    std::sync::Arc::make_mut(&mut world.sandbox("blog").record).machine.nonce = BootNonce("recorded".into());
    let action = world.action("blog");
    assert_eq!((action.kind, &action.reasons[..]), (ActionKind::Reboot, &[Reason::Unfinished][..]));
    assert!(names(&action).contains(&"stop"));
}

#[test]
fn a_silent_guest_is_waited_for_and_then_healed_without_grace() {
    let mut world = World::running([app("blog")]);
    let since = world.now;
    world.sandbox("blog").guest = GuestState::Silent { since };
    world.now = since.checked_add(SignedDuration::from_secs(20)).unwrap();
    assert!(matches!(held(&world, "blog"), Hold::Unready(reason) if reason.starts_with("agent silent")));
    world.now = since.checked_add(SignedDuration::from_secs(21)).unwrap();
    let action = world.action("blog");
    assert!(matches!(action.reasons[..], [Reason::GuestHung(_)]));
    assert!(action.steps.iter().any(|step| matches!(step, Step::Stop { grace: None, .. })));
}

#[test]
fn a_declaration_over_a_silent_guest_is_carried_out_once_that_is_found_hung() {
    let mut world = World::running([app("blog")]);
    let since = world.now;
    world.sandbox("blog").guest = GuestState::Silent { since };
    world.declare([app("blog").files("f2")]);
    assert!(matches!(held(&world, "blog"), Hold::Unready(_)));
    world.settle();
    assert_eq!(world.plan().actions, []);
    assert_eq!(world.status("blog").tree, Some(TreeDigest("f2".into())));
}

#[test]
fn a_booting_guest_is_waited_for_until_its_timeout() {
    let mut world = World::running([app("blog")]);
    let since = world.now;
    world.sandbox("blog").guest = GuestState::Connecting { since };
    world.now = since.checked_add(SignedDuration::from_secs(180)).unwrap();
    assert!(matches!(held(&world, "blog"), Hold::Unready(reason) if reason.starts_with("booting")));
    world.now = since.checked_add(SignedDuration::from_secs(181)).unwrap();
    assert!(matches!(world.action("blog").reasons[..], [Reason::GuestHung(_)]));
}

#[test]
fn healing_too_often_is_given_up_until_the_window_passes() {
    let mut world = World::running([app("blog")]);
    world.kill("blog", ExitReason::Reset);
    let now = world.now;
    world.memory(&key("blog")).heals = vec![now; FLAP_HEALS];
    assert_eq!(world.action("blog").blocked, []);
    world.memory(&key("blog")).heals = vec![now; FLAP_HEALS + 1];
    assert!(matches!(world.action("blog").blocked[..], [Block::Flapping(_)]));
    world.now = now.checked_add(SignedDuration::from_secs(300)).unwrap();
    assert_eq!(world.action("blog").blocked, []);
}

#[test]
fn a_new_declaration_is_tried_even_while_flapping() {
    let mut world = World::running([app("blog")]);
    world.declare([app("blog").command("fixed")]);
    world.kill("blog", ExitReason::Reset);
    let now = world.now;
    world.memory(&key("blog")).heals = vec![now; FLAP_HEALS + 1];
    assert_eq!(world.action("blog").blocked, []);
}

#[test]
fn a_failure_is_waited_out() {
    let mut world = World::new();
    world.declare([app("blog")]);
    world.pass(Fault::Fails(3));
    assert!(matches!(world.action("blog").blocked[..], [Block::Backoff { .. }]));
    world.settle();
    assert!(world.plan().is_empty());
}

#[test]
fn all_carried_out_and_not_ready_is_held_with_the_reason() {
    let mut world = World::running([app("blog")]);
    world.status("blog").web.as_mut().unwrap().health = Health::Unhealthy("503".into());
    assert_eq!(held(&world, "blog"), Hold::Unready("web unhealthy: 503".into()));
    let tree = app("blog").spec.files.clone();
    world.status("blog").build = BuildState::Failed { tree, reason: "exit code 1".into() };
    assert_eq!(held(&world, "blog"), Hold::Unready("build failed: exit code 1".into()));
}

#[test]
fn a_stopped_app_is_shut_down_and_then_converged() {
    let mut world = World::running([app("blog")]);
    world.declare([app("blog").power(Power::Stopped).files("f2")]);
    let action = world.action("blog");
    assert_eq!(action.kind, ActionKind::Stop);
    assert_eq!(names(&action), ["stop", "record-applied"]);
    assert_eq!(action.changes.iter().map(|change| change.path.as_str()).collect::<Vec<_>>(), ["power"]);
    world.settle();
    assert!(matches!(world.sandbox("blog").vm, VmState::Exited { .. }));
    assert_eq!(world.plan().unchanged.iter().collect::<Vec<_>>(), [&key("blog")]);
}

#[test]
fn a_stopped_app_that_gains_an_identity_is_written_down_with_a_reason() {
    let mut world = World::running([app("blog").power(Power::Stopped)]);
    world.declare([app("blog")]);
    world.settle();
    world.declare([app("blog").power(Power::Stopped)]);
    world.settle();
    world.declare([app("blog").power(Power::Stopped).uid("u1")]);
    let action = world.action("blog");
    assert_eq!((names(&action), action.reasons), (vec!["record"], vec![Reason::SpecChanged]));
}

#[test]
fn a_stopped_app_that_never_ran_is_not_created() {
    let mut world = World::new();
    world.declare([app("blog").power(Power::Stopped)]);
    assert_eq!(world.plan().unchanged.iter().collect::<Vec<_>>(), [&key("blog")]);
}

#[test]
fn what_changed_while_stopped_is_carried_out_when_it_runs_again() {
    let mut world = World::running([app("blog")]);
    world.declare([app("blog").power(Power::Stopped)]);
    world.settle();
    world.declare([app("blog").files("f2")]);
    let action = world.action("blog");
    assert_eq!(action.kind, ActionKind::Reboot);
    assert!(action.reasons.contains(&Reason::PowerChanged(Power::Running)), "{:?}", action.reasons);
    world.settle();
    assert_eq!(world.status("blog").tree, Some(app("blog").files("f2").spec.files.clone()));
}

#[test]
fn a_suspended_app_is_left_alone_whatever_happens() {
    let mut world = World::running([app("blog")]);
    world.declare([app("blog").memory(512).spec(|spec| spec.suspend = true)]);
    world.kill("blog", ExitReason::Reset);
    assert_eq!(held(&world, "blog"), Hold::Suspended);
}

#[test]
fn an_unrecorded_microvm_is_adopted_and_keeps_its_boot() {
    let mut world = World::running([app("blog")]);
    let nonce = world.sandbox("blog").record.machine.nonce.clone();
    world.lose_record("blog");
    assert_eq!(world.action("blog").kind, ActionKind::Adopt);
    world.settle();
    assert_eq!(world.sandbox("blog").record.machine.nonce, nonce);
    assert!(world.plan().is_empty());
}

#[test]
fn a_rename_by_uid_moves_the_sandbox_and_destroys_nothing() {
    let mut world = World::running([app("blog").uid("u1")]);
    let before = world.sandbox("blog").record.clone();
    world.declare([app("site").uid("u1")]);
    let action = world.action("site");
    assert_eq!(action.kind, ActionKind::Update(Disruption::Live));
    assert_eq!(action.reasons, [Reason::Renamed(key("blog"))]);
    world.settle();
    let after = world.sandbox("site").record.clone();
    assert_eq!((&after.id, &after.machine.nonce), (&before.id, &before.machine.nonce));
    assert!(world.plan().is_empty());
}

#[test]
fn a_declared_move_moves_and_a_swap_by_uid_swaps() {
    let mut world = World::running([app("blog")]);
    let id = world.sandbox("blog").record.id.clone();
    world.declare([app("site")]);
    world.desired.moved.insert(key("blog"), key("site"));
    world.settle();
    assert_eq!(world.sandbox("site").record.id, id);

    let mut world = World::running([app("a").uid("u1"), app("b").uid("u2")]);
    let (a, b) = (world.sandbox("a").record.id.clone(), world.sandbox("b").record.id.clone());
    world.declare([app("a").uid("u2"), app("b").uid("u1")]);
    world.settle();
    assert_eq!((&world.sandbox("a").record.id.clone(), &world.sandbox("b").record.id.clone()), (&b, &a));
}

#[test]
fn a_move_never_takes_the_place_of_an_existing_app() {
    let mut world = World::running([app("blog"), app("site")]);
    world.declare([app("site")]);
    world.desired.moved.insert(key("blog"), key("site"));
    assert_eq!(world.action("blog").kind, ActionKind::Delete);
    assert!(world.plan().unchanged.contains(&key("site")));
}

#[test]
fn a_replacement_cut_short_at_any_step_leads_to_one_sandbox_on_the_same_disk() {
    for at in 0..14 {
        let mut world = World::running([app("blog")]);
        let disk = world.sandbox("blog").record.disk.clone();
        world.declare([app("blog").template("t2").memory(512)]);
        world.pass(Fault::Killed(at));
        world.settle();
        assert_eq!(world.sandbox("blog").record.disk, disk);
        assert_eq!(world.observed.sandboxes.len(), 1);
        assert!(world.plan().is_empty());
    }
}

#[test]
fn a_generation_counts_changes_and_a_kept_spec_keeps_it() {
    let mut world = World::running([app("blog")]);
    world.declare([app("blog").files("f2")]);
    world.settle();
    world.kill("blog", ExitReason::Reset);
    world.settle();
    let applied = world.sandbox("blog").record.applied.clone().unwrap();
    assert_eq!(applied.generation.0, 2);
}
