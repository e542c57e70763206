//! Snapshots: taken of whom and when, begun from, gone back to, and let go.

use std::sync::Arc;

use jiff::SignedDuration;
use setpoint_plan::assumed;
use setpoint_plan::model::{ActionKind, Block, Hold, Reason, SnapshotHold, Step};
use setpoint_plan::planner::{Entropy, Inputs, plan};
use setpoint_plan::render::{Color, json, markdown, text};
use setpoint_schema::app::{DesiredApp, Power, Retain};
use setpoint_schema::id::{CommitId, Generation};
use setpoint_schema::observed::{ExitReason, SnapshotState, VmState};
use setpoint_schema::snapshot::Content;

use crate::declare::{Declare, app, days, desired, key, snapshot, snapshot_with};
use crate::world::{Fault, World, names};

/// A host on which `nightly`, a snapshot of `blog`, has been taken.
fn taken() -> World {
    let mut world = World::running([app("blog")]);
    world.declare_with([app("blog")], [snapshot("nightly", "blog")]);
    world.settle();
    assert!(world.snapshot("nightly").kept().is_some());
    world
}

fn is_converged(world: &World) -> bool {
    let plan = world.plan();
    plan.actions.is_empty() && plan.held.is_empty() && plan.snapshots.is_empty()
}

fn hold(world: &World) -> SnapshotHold {
    let held = world.plan().snapshots;
    assert_eq!(held.len(), 1, "{held:#?}");
    held[0].reason.clone()
}

fn pass_days(world: &mut World, days: i64) {
    world.now = world.now.checked_add(SignedDuration::from_hours(24 * days)).unwrap();
}

#[test]
fn a_declared_snapshot_is_taken_once() {
    let mut world = World::running([app("blog")]);
    world.declare_with([app("blog")], [snapshot("nightly", "blog")]);
    let action = world.action("blog");
    assert_eq!((action.kind, names(&action)), (ActionKind::Snapshot, vec!["record-snapshot", "take-snapshot"]));
    world.settle();
    assert!(is_converged(&world), "{:#?}", world.plan());
    let record = world.snapshot("nightly");
    assert_eq!(record.generation, Generation(1));
    let moment = record.moment.as_ref().unwrap();
    assert_eq!(moment.revision, Some(world.desired.revision.clone()));
    assert_eq!(moment.machine, world.sandbox("blog").record.machine);
}

#[test]
fn any_change_of_its_spec_takes_another_and_going_back_takes_a_third() {
    let mut world = taken();
    let with = |token: &str| snapshot_with("nightly", "blog", |spec| spec.token = token.to_owned());
    world.declare_with([app("blog")], [with("2")]);
    world.settle();
    world.declare_with([app("blog")], [with("")]);
    world.settle();
    let mut generations: Vec<_> = world.observed.snapshots.values().map(|record| record.generation.0).collect();
    generations.sort_unstable();
    assert_eq!(generations, [1, 2, 3]);
    assert!(is_converged(&world));
}

#[test]
fn only_as_many_generations_are_kept_as_are_to_be() {
    let mut world = taken();
    for token in ["2", "3", "4"] {
        let wanted = snapshot_with("nightly", "blog", |spec| (spec.token, spec.keep) = (token.to_owned(), 2));
        world.declare_with([app("blog")], [wanted]);
        world.settle();
    }
    let mut generations: Vec<_> = world.observed.snapshots.values().map(|record| record.generation.0).collect();
    generations.sort_unstable();
    assert_eq!(generations, [3, 4]);
    assert_eq!(world.shots.len(), 2, "what is forgotten is gone");
}

#[test]
fn a_snapshot_waits_for_its_app_and_says_what_that_lacks() {
    let mut world = World::running([app("blog")]);
    world.kill("blog", ExitReason::Reset);
    world.declare_with([app("blog")], [snapshot("nightly", "blog")]);
    assert_eq!(hold(&world), SnapshotHold::Waits("it is to boot again".to_owned()));
    world.settle();
    assert!(is_converged(&world));
}

#[test]
fn memory_and_disk_of_a_paused_app_are_kept_as_they_lie_and_it_stays_paused() {
    for content in [Content::Memory, Content::Disk] {
        let mut world = paused();
        world.declare_with([resting()], [snapshot_with("nightly", "blog", |spec| spec.content = content)]);
        assert!(
            matches!(&world.action("blog").steps[1], Step::TakeSnapshot { nonce: None, content: kept, .. } if *kept == content)
        );
        world.settle();
        assert!(is_converged(&world) && matches!(world.sandbox("blog").vm, VmState::Paused { .. }));
    }
}

#[test]
fn an_app_begins_as_a_paused_one_is_and_that_stays_paused() {
    let mut world = paused();
    world.declare([resting(), app("fork").begun_as("blog")]);
    world.settle();
    assert!(is_converged(&world) && matches!(world.sandbox("blog").vm, VmState::Paused { .. }));
    assert!(matches!(world.sandbox("fork").vm, VmState::Running { .. }));
}

#[test]
fn memory_that_an_app_could_not_go_on_from_is_not_kept() {
    let mut world = paused();
    let VmState::Paused { fault, .. } = &mut world.sandbox("blog").vm else { panic!("it is not paused") };
    *fault = Some("its memory is damaged".to_owned());
    world.declare_with([resting()], [snapshot("nightly", "blog")]);
    assert!(world.plan().actions.is_empty());
    assert!(matches!(hold(&world), SnapshotHold::Waits(why) if why.contains("could not go on")));
}

fn resting() -> DesiredApp {
    app("blog").power(Power::Paused)
}

/// An app that is paused and declared so.
fn paused() -> World {
    let mut world = World::running([app("blog")]);
    world.declare([resting()]);
    world.settle();
    world
}

#[test]
fn what_a_restore_replaces_is_kept_without_waking_it() {
    let mut world = taken();
    let nightly = || [snapshot("nightly", "blog")];
    world.declare_with([resting()], nightly());
    world.settle();
    world.declare_with([app("blog").restore("nightly", "x")], nightly());
    let steps = world.action("blog").steps;
    assert!(steps.iter().any(|step| matches!(step, Step::TakeSnapshot { nonce: None, content: Content::Memory, .. })));
    assert!(!steps.iter().any(|step| matches!(step, Step::Resume(_) | Step::Stop { .. })));
    world.settle();
    assert!(world.restores.len() == 1 && is_converged(&world));
}

#[test]
fn what_somebody_asked_for_is_taken_and_kept_for_its_time() {
    let mut world = World::running([app("blog")]);
    world.ask_for_snapshot("a1", "by-hand", &key("blog"), Content::Memory);
    assert_eq!(world.action("blog").kind, ActionKind::Snapshot);
    world.settle();
    assert!(world.snapshot("by-hand").kept().is_some() && is_converged(&world));
    pass_days(&mut world, 31);
    assert_eq!(names(&world.action("blog")), ["record-snapshot", "remove-snapshot", "forget-snapshot"]);
    world.settle();
    assert!(world.observed.snapshots.is_empty() && world.shots.is_empty());
}

#[test]
fn a_snapshot_that_fails_is_tried_again_later_and_keeps_nobody_from_healing() {
    let mut world = World::running([app("blog")]);
    world.declare_with([app("blog")], [snapshot("nightly", "blog")]);
    world.pass(Fault::Killed(1));
    let id = world.snapshot("nightly").id.clone();
    let failed = SnapshotState::Failed { reason: "no room".to_owned(), at: world.now, failures: 3 };
    Arc::make_mut(world.observed.snapshots.get_mut(&id).unwrap()).state = failed;
    assert!(matches!(hold(&world), SnapshotHold::Backoff { reason, .. } if reason == "no room"));
    world.kill("blog", ExitReason::Reset);
    assert!(world.action("blog").blocked.is_empty());
    world.settle();
    assert_eq!(world.snapshot("nightly").id, id, "it is the same snapshot");
    assert!(is_converged(&world));
}

#[test]
fn a_removed_snapshot_is_retained_and_then_goes() {
    let mut world = taken();
    world.declare_with([app("blog")], []);
    world.settle();
    assert!(matches!(world.snapshot("nightly").state, SnapshotState::Retained { .. }));
    world.declare_with([app("blog")], [snapshot("nightly", "blog")]);
    world.settle();
    assert!(matches!(world.snapshot("nightly").state, SnapshotState::Kept(_)), "it returns");
    world.declare_with([app("blog")], []);
    world.settle();
    pass_days(&mut world, 31);
    world.settle();
    assert!(world.observed.snapshots.is_empty() && is_converged(&world));
}

#[test]
fn nothing_is_let_go_while_the_source_is_in_error_or_its_declaration_has_mistakes() {
    let mut world = taken();
    world.declare_with([app("blog")], []);
    world.break_source();
    assert!(world.plan().actions.is_empty());
    assert!(matches!(hold(&world), SnapshotHold::PruneUnsafe(_)));
    world.declare_with([app("blog")], []);
    world.desired.stalled_snapshots.insert("nightly".parse().unwrap(), "bad".to_owned());
    assert!(world.plan().actions.is_empty());
    assert_eq!(hold(&world), SnapshotHold::Stalled("bad".to_owned()));
}

#[test]
fn a_fork_of_a_live_app_begins_with_its_memory_and_a_disk_of_its_own() {
    let mut world = World::running([app("blog").files("f7")]);
    let before = world.sandbox("blog").clone();
    world.declare([app("blog").files("f7"), app("copy").begun_as("blog").files("f7")]);
    assert_eq!(world.action("blog").kind, ActionKind::Snapshot);
    assert!(matches!(&world.action("copy").blocked[..], [Block::Snapshot { snapshot, .. }] if snapshot == "blog"));
    world.pass(Fault::None);
    let action = world.action("copy");
    assert_eq!(
        names(&action),
        ["record", "ensure-template", "launch-from", "await-agent", "sync-files", "apply-processes", "record-applied"]
    );
    world.settle();
    assert!(is_converged(&world), "{:#?}", world.plan());
    assert_eq!(*world.sandbox("blog"), before, "the original is as it was");
    let fork = world.sandbox("copy").record.clone();
    assert_ne!((&fork.disk, &fork.machine.nonce), (&before.record.disk, &before.record.machine.nonce));
    assert!(world.observed.snapshots.is_empty(), "what it began as is of no use any more");
}

#[test]
fn a_fork_of_another_size_boots_from_a_copy_of_the_disk() {
    let mut world = taken();
    let fork = app("copy").begun_from("nightly").memory(512).disk(2);
    world.declare_with([app("blog"), fork], [snapshot("nightly", "blog")]);
    let steps = names(&world.action("copy"));
    assert_eq!(steps[2..7], ["copy-disk", "launch", "await-agent", "leave-out", "grow-disk"]);
    world.settle();
    assert!(is_converged(&world));
}

#[test]
fn a_disk_that_was_kept_alone_does_without_what_is_left_out() {
    let mut world = World::running([app("blog")]);
    let disk_only = || snapshot_with("nightly", "blog", |spec| spec.content = Content::Disk);
    world.declare_with([app("blog"), app("copy").begun_from("nightly")], [disk_only()]);
    world.settle();
    assert!(is_converged(&world));
    let disk = world.sandbox("copy").record.disk.clone();
    assert!(world.copies[&disk].1.iter().any(|name| name.as_str() == "node_modules"));
}

#[test]
fn a_fork_is_as_large_as_what_it_began_as() {
    let mut world = World::running([app("blog").disk(2)]);
    world.declare([app("blog").disk(2), app("copy").begun_as("blog").disk(1)]);
    world.settle();
    assert!(is_converged(&world), "{:#?}", world.plan());
}

#[test]
fn a_fork_waits_for_an_app_that_is_not_ready_and_says_so() {
    let mut world = World::running([app("blog").power(Power::Stopped)]);
    world.declare([app("blog").power(Power::Stopped), app("copy").begun_as("blog")]);
    let blocked = world.action("copy").blocked;
    let [Block::Snapshot { reason, .. }] = &blocked[..] else { panic!("{blocked:?}") };
    assert!(reason.contains("not taken yet"), "{reason}");
}

#[test]
fn a_disk_that_was_left_behind_is_taken_up_rather_than_a_beginning() {
    let mut world = World::running([app("blog"), app("copy").retain(days(1))]);
    world.declare([app("blog")]);
    world.settle();
    world.declare([app("blog"), app("copy").begun_as("blog")]);
    assert!(world.action("copy").reasons.iter().any(|reason| matches!(reason, Reason::DiskReturns(_))));
    world.settle();
    assert!(is_converged(&world));
}

#[test]
fn what_an_app_begins_as_matters_only_when_it_is_made() {
    let mut world = World::running([app("blog"), app("copy")]);
    world.declare([app("blog"), app("copy").begun_as("blog")]);
    assert_eq!(names(&world.action("copy")), ["record-applied"]);
    assert!(text(&world.plan(), Color::Never).contains("`from` matters only when the sandbox is made"));
    world.settle();
    assert!(is_converged(&world));
}

#[test]
fn a_fork_that_is_cut_short_anywhere_ends_as_one_fork() {
    for at in 0..12 {
        for fault in [Fault::Killed(at), Fault::Fails(at), Fault::FailsAfter(at)] {
            let mut world = World::running([app("blog")]);
            world.declare([app("blog"), app("copy").begun_as("blog")]);
            world.pass(Fault::None);
            world.pass(fault);
            if let Some(id) =
                world.observed.sandboxes.iter().find(|(_, one)| one.record.app == key("copy")).map(|(id, _)| id.clone())
                && matches!(world.observed.sandboxes[&id].vm, VmState::Running { .. })
            {
                world.kill("copy", ExitReason::Unknown);
            }
            world.settle();
            assert!(is_converged(&world), "{fault:?}: {:#?}", world.plan());
            assert_eq!(world.observed.sandboxes.len(), 2, "{fault:?}");
            assert!(world.observed.snapshots.is_empty(), "{fault:?}");
        }
    }
}

#[test]
fn a_restore_keeps_what_is_there_and_goes_back_once() {
    let mut world = taken();
    let nightly = || [snapshot("nightly", "blog")];
    world.declare_with([app("blog").files("f2").retain(days(3))], nightly());
    world.settle();
    let old = world.sandbox("blog").record.clone();
    let restored = || app("blog").files("f2").retain(days(3)).restore("nightly", "first");
    world.declare_with([restored()], nightly());
    let action = world.action("blog");
    assert_eq!(action.kind, ActionKind::Replace);
    assert_eq!(names(&action)[..5], ["ensure-template", "record-snapshot", "take-snapshot", "stop", "remove-vm"]);
    let costs = action.reasons.iter().find_map(|reason| match reason {
        Reason::Restore(costs) => Some(costs),
        _ => None,
    });
    assert!(costs.is_some_and(|costs| costs.then.is_some() && costs.now.is_some()), "{:?}", action.reasons);
    world.settle();
    assert!(is_converged(&world), "{:#?}", world.plan());
    let safety = world.snapshot("blog-before-restore");
    let origin = world.sandbox("blog").record.origin.clone().unwrap();
    assert_eq!((origin.snapshot, origin.app), (world.snapshot("nightly").id.clone(), key("blog")));
    let told = origin.restore.unwrap();
    assert_eq!((told.token.as_str(), told.safety), ("first", Some(safety.id.clone())));
    assert!(matches!(safety.state, SnapshotState::Retained { .. }));
    assert_ne!(world.sandbox("blog").record.disk, old.disk);
    assert!(world.observed.disks.contains_key(&old.disk), "its disk is retained as other replaced disks are");
    world.declare_with([restored().files("f3")], nightly());
    world.settle();
    assert_eq!(world.restores[&(key("blog"), "first".to_owned())], 1);
    world.declare_with([restored().restore("nightly", "second")], nightly());
    world.settle();
    world.declare_with([restored()], nightly());
    world.settle();
    assert_eq!(world.restores.values().sum::<u32>(), 2, "a token is carried out once, also where git goes back to it");
    let origin = world.sandbox("blog").record.origin.clone();
    assert_eq!(origin.as_ref().unwrap().restore.as_ref().unwrap().token, "second");
    world.declare_with([restored().template("t2")], nightly());
    world.settle();
    assert_eq!(world.sandbox("blog").record.origin, origin, "another microVM goes on with the same disk");
    assert!(is_converged(&world));
}

#[test]
fn a_restore_that_is_cut_short_at_any_step_is_carried_out_once() {
    for at in 0..18 {
        for fault in [Fault::Killed(at), Fault::Fails(at), Fault::FailsAfter(at)] {
            let mut world = taken();
            let nightly = || [snapshot("nightly", "blog")];
            world.declare_with([app("blog").restore("nightly", "once")], nightly());
            world.pass(fault);
            world.settle();
            assert!(is_converged(&world), "{fault:?}: {:#?}", world.plan());
            let began = world.copies.len();
            assert_eq!(world.observed.sandboxes.len(), 1, "{fault:?}");
            assert!(world.sandbox("blog").record.from.is_some() && began >= 1, "{fault:?}");
            assert!(world.memory(&key("blog")).has_restored("once"), "{fault:?}");
            assert!(world.snapshot("blog-before-restore").kept().is_some(), "{fault:?}");
        }
    }
}

#[test]
fn an_app_that_is_made_with_a_restore_has_nothing_to_go_back_from() {
    let mut world = World::new();
    world.declare_with([app("blog").restore("nightly", "x")], [snapshot("nightly", "blog")]);
    world.settle();
    assert!(is_converged(&world), "{:#?}", world.plan());
    assert!(world.restores.is_empty() && world.memory(&key("blog")).has_restored("x"));
}

#[test]
fn a_restore_waits_for_its_snapshot_and_nothing_else_waits_with_it() {
    let mut world = taken();
    let missing = "0123456789abcdef0123456789abcdef";
    world.declare_with([app("blog").files("f2").restore(missing, "x")], [snapshot("nightly", "blog")]);
    let action = world.action("blog");
    assert!(matches!(action.kind, ActionKind::Update(_)) && action.blocked.is_empty());
    assert!(action.changes.iter().all(|change| !change.path.starts_with("restore")), "{:?}", action.changes);
    world.pass(Fault::None);
    let action = world.action("blog");
    assert!(
        matches!(&action.blocked[..], [Block::Snapshot { reason, .. }] if reason == "there is no such snapshot here")
    );
    world.kill("blog", ExitReason::Reset);
    assert_eq!(world.action("blog").kind, ActionKind::Reboot);
    world.settle();
    assert!(world.restores.is_empty());
}

#[test]
fn an_app_that_is_down_can_go_back_and_its_disk_is_kept() {
    let mut world = taken();
    world.kill("blog", ExitReason::Panic("oh".to_owned()));
    world.declare_with([app("blog").restore("nightly", "x")], [snapshot("nightly", "blog")]);
    let steps = world.action("blog").steps;
    assert!(steps.iter().any(|step| matches!(step, Step::TakeSnapshot { nonce: None, content: Content::Disk, .. })));
    world.settle();
    assert!(is_converged(&world), "{:#?}", world.plan());
}

#[test]
fn an_app_at_rest_goes_back_when_it_runs_next() {
    let mut world = taken();
    let nightly = || [snapshot("nightly", "blog")];
    let resting = || app("blog").power(Power::Paused).restore("nightly", "x");
    world.declare_with([resting()], nightly());
    world.settle();
    assert!(world.restores.is_empty());
    world.declare_with([app("blog").restore("nightly", "x")], nightly());
    world.settle();
    assert_eq!(world.restores.len(), 1);
    assert!(is_converged(&world));
}

#[test]
fn a_snapshot_that_something_is_to_begin_from_is_not_let_go() {
    let mut world = taken();
    world.observed.limits.sandboxes = 1;
    world.declare_with([app("blog"), app("copy").begun_from("nightly")], []);
    let plan = world.plan();
    assert!(plan.actions.iter().all(|action| action.kind != ActionKind::ExpireSnapshot));
    assert_eq!(hold(&world), SnapshotHold::Used(key("copy")));
    world.observed.limits.sandboxes = 2;
    world.settle();
    assert!(matches!(world.snapshot("nightly").state, SnapshotState::Retained { .. }));
}

#[test]
fn an_app_that_is_suspended_is_neither_kept_nor_restored() {
    let mut world = taken();
    let frozen = app("blog").restore("nightly", "x").spec(|spec| spec.suspend = true);
    let anew = snapshot_with("nightly", "blog", |spec| spec.token = "2".to_owned());
    world.declare_with([frozen], [anew]);
    let plan = world.plan();
    assert!(plan.actions.is_empty() && plan.held[0].reason == Hold::Suspended);
    assert_eq!(plan.snapshots.len(), 1);
}

/// Everything that can be said of snapshots.
fn every_snapshot() -> World {
    let names = ["back", "blog", "busy", "old", "paused"];
    let mut world = World::running(names.map(app));
    let taken = [snapshot("before", "back"), snapshot_with("gone", "old", |spec| spec.retain = Retain::None)];
    world.declare_with(names.map(app), taken);
    world.settle();
    let resting = || app("paused").power(Power::Paused);
    let steady = || [app("back"), app("blog"), app("busy"), app("old")];
    world.declare_with(steady().into_iter().chain([resting()]), [snapshot("before", "back")]);
    world.pass(Fault::Killed(0));
    world.settle();
    world.ask_for_snapshot(&"a".repeat(32), "by-hand", &key("busy"), Content::Disk);
    world.now = world.now.checked_add(SignedDuration::from_hours(50)).unwrap();
    let kept = snapshot_with("disk", "old", |spec| spec.content = Content::Disk);
    world.declare_with(
        [
            app("back").files("f2").restore("before", "2026-01"),
            app("blog"),
            app("busy"),
            app("fork").begun_as("blog"),
            app("fresh").begun_from("before"),
            app("late").begun_from("nightly"),
            app("old"),
            resting(),
        ],
        [snapshot("before", "back"), snapshot("nightly", "paused"), kept],
    );
    world
}

#[test]
fn every_snapshot_as_text() {
    insta::assert_snapshot!(text(&every_snapshot().plan(), Color::Never));
}

#[test]
fn every_snapshot_as_json() {
    insta::assert_json_snapshot!(json(&every_snapshot().plan()));
}

#[test]
fn every_snapshot_as_markdown() {
    insta::assert_snapshot!(markdown(&every_snapshot().plan()));
}

#[test]
fn snapshots_between_two_revisions() {
    let before = desired([app("blog")]);
    let mut older = before.clone();
    let declared = Arc::new(snapshot("nightly", "blog"));
    older.snapshots = [(declared.metadata.key.clone(), Arc::clone(&declared))].into_iter().collect();
    let mut newer = desired([app("blog").restore("nightly", "x"), app("fork").begun_from("nightly")]);
    let other = Arc::new(snapshot("other", "blog"));
    newer.snapshots = [declared, other].map(|one| (one.metadata.key.clone(), one)).into_iter().collect();
    newer.revision = CommitId("2".repeat(40).into());
    let observed = assumed::carried_out(&older);
    let entropy = Entropy([0; 16]);
    let made = plan(&Inputs { desired: &newer, observed: &observed, parent: None, now: assumed::NOW, entropy });
    let review = setpoint_plan::render::Review {
        plan: &made,
        basis: setpoint_plan::render::Basis::Revision(&older.revision),
        mistakes: &[],
    };
    insta::assert_snapshot!(text(review, Color::Never));
    let again = plan(&Inputs { desired: &older, observed: &observed, parent: None, now: assumed::NOW, entropy });
    assert!(again.is_empty() && again.snapshots.is_empty(), "{again:#?}");
}
