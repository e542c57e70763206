//! Removal: what goes, what stays, in which order, and what becomes of data.

use jiff::SignedDuration;
use setpoint_plan::desired::Completeness;
use setpoint_plan::model::{ActionKind, Block, Hold, Reason};
use setpoint_schema::app::{Prune, Retain};
use setpoint_schema::observed::{DiskState, Health, Intent};

use crate::declare::{Declare, app, days, key};
use crate::world::{Fault, World, names};

fn hold(world: &World, name: &str) -> Hold {
    let plan = world.plan();
    assert!(plan.actions.iter().all(|action| action.app != key(name)));
    plan.held.into_iter().find(|held| held.app == key(name)).unwrap().reason
}

#[test]
fn an_undeclared_app_is_removed_and_its_disk_kept() {
    let mut world = World::running([app("blog").retain(days(1))]);
    world.declare([]);
    let action = world.action("blog");
    assert_eq!((action.kind, &action.reasons[..]), (ActionKind::Delete, &[Reason::NotDeclared][..]));
    assert_eq!(names(&action), ["record", "stop", "remove-vm", "release-disk", "forget"]);
    world.settle();
    assert!(world.observed.sandboxes.is_empty());
    assert_eq!(world.observed.disks.len(), 1);
}

#[test]
fn retain_none_deletes_the_disk_with_the_app() {
    let mut world = World::running([app("blog").retain(Retain::None)]);
    world.declare([]);
    world.settle();
    assert!(world.observed.disks.is_empty());
}

#[test]
fn a_kept_disk_is_deleted_when_its_time_is_over_and_not_before() {
    let mut world = World::running([app("blog").retain(days(1))]);
    world.declare([]);
    world.settle();
    assert!(world.plan().is_empty());
    world.now = world.now.checked_add(SignedDuration::from_hours(25)).unwrap();
    let action = world.action("blog");
    assert_eq!((action.kind, &action.reasons[..]), (ActionKind::ExpireDisk, &[Reason::RetentionOver][..]));
    world.settle();
    assert!(world.observed.disks.is_empty());
}

#[test]
fn a_kept_disk_is_taken_up_again() {
    let mut world = World::running([app("blog").disk(1)]);
    let disk = world.sandbox("blog").record.disk.clone();
    world.declare([]);
    world.settle();
    world.declare([app("blog").disk(2)]);
    let action = world.action("blog");
    assert_eq!(action.reasons, [Reason::NotCreated, Reason::DiskReturns(disk.clone())]);
    assert!(names(&action).contains(&"grow-disk"));
    world.settle();
    assert_eq!(world.sandbox("blog").record.disk, disk);
    assert_eq!(world.observed.disks[&disk].state, DiskState::InUse);
}

#[test]
fn a_kept_disk_that_is_too_large_blocks_and_does_not_expire() {
    let mut world = World::running([app("blog").disk(2)]);
    world.declare([]);
    world.settle();
    world.declare([app("blog").disk(1)]);
    assert!(matches!(world.action("blog").blocked[..], [Block::DiskShrink { .. }]));
    world.now = world.now.checked_add(SignedDuration::from_hours(24 * 30)).unwrap();
    assert_eq!(world.action("blog").kind, ActionKind::Create);
}

#[test]
fn a_disk_that_lost_its_sandbox_is_kept_for_its_time() {
    let mut world = World::running([app("blog")]);
    world.declare([]);
    world.observed.sandboxes.clear();
    let action = world.action("blog");
    assert_eq!(action.kind, ActionKind::ExpireDisk);
    world.settle();
    assert!(world.observed.disks.values().all(|disk| matches!(disk.state, DiskState::Retained { .. })));
}

#[test]
fn prune_disabled_holds() {
    let mut world = World::running([app("blog").spec(|spec| spec.prune = Prune::Disabled)]);
    world.declare([]);
    assert_eq!(hold(&world, "blog"), Hold::PruneDisabled);
}

#[test]
fn a_suspended_app_is_not_removed() {
    let mut world = World::running([app("blog")]);
    world.declare([app("blog").spec(|spec| spec.suspend = true)]);
    world.declare([]);
    assert_eq!(hold(&world, "blog"), Hold::Suspended);
}

#[test]
fn nothing_is_removed_while_the_declarations_are_incomplete_or_empty() {
    let mut world = World::running([app("blog")]);
    world.declare([]);
    world.break_source();
    assert!(matches!(hold(&world, "blog"), Hold::PruneUnsafe(reason) if reason.contains("cannot be read")));
    world.desired.completeness = Completeness::EmptyRefused;
    assert!(matches!(hold(&world, "blog"), Hold::PruneUnsafe(reason) if reason.contains("allow_empty")));
}

#[test]
fn an_app_with_mistakes_is_not_removed_nor_is_one_that_may_have_been_renamed_to_it() {
    let mut world = World::running([app("blog"), app("old").uid("u1")]);
    world.declare([]);
    world.desired.stalled.insert(key("blog"), "bad".into());
    assert_eq!(hold(&world, "blog"), Hold::Stalled("bad".into()));
    assert!(matches!(hold(&world, "old"), Hold::PruneUnsafe(_)));
}

#[test]
fn a_broken_declaration_of_an_app_that_never_was_is_held() {
    let mut world = World::new();
    world.desired.stalled.insert(key("blog"), "bad".into());
    assert_eq!(hold(&world, "blog"), Hold::Stalled("bad".into()));
}

#[test]
fn removals_wait_until_the_rest_is_healthy() {
    let mut world = World::running([app("blog"), app("old")]);
    world.declare([app("blog")]);
    assert_eq!(world.action("old").blocked, []);
    world.status("blog").web.as_mut().unwrap().health = Health::Unhealthy("503".into());
    assert!(matches!(&world.action("old").blocked[..], [Block::Unhealthy(reason)] if reason.contains("503")));
    world.declare([app("blog"), app("new")]);
    world.status("blog").web.as_mut().unwrap().health = Health::Healthy;
    assert!(matches!(&world.action("old").blocked[..], [Block::Unhealthy(reason)] if reason.contains("new")));
}

#[test]
fn dependents_are_removed_first() {
    let mut world = World::running([app("api"), app("web").depends_on(&["api"])]);
    world.declare([]);
    let plan = world.plan();
    let order: Vec<_> = plan.actions.iter().map(|action| action.app.to_string()).collect();
    assert_eq!(order, ["web", "api"]);
    assert_eq!(plan.actions[0].blocked, []);
    assert_eq!(plan.actions[1].blocked, [Block::Dependent(key("web"))]);
    world.settle();
    assert!(world.observed.sandboxes.is_empty());
}

#[test]
fn a_removal_that_has_begun_is_finished_even_if_the_app_is_declared_again() {
    for at in 1..5 {
        let mut world = World::running([app("blog")]);
        let disk = world.sandbox("blog").record.disk.clone();
        world.declare([]);
        world.pass(Fault::Killed(at));
        assert_eq!(world.sandbox("blog").record.intent, Intent::Delete);
        world.declare([app("blog")]);
        assert_eq!(world.action("blog").kind, ActionKind::Delete);
        world.settle();
        assert_eq!(world.sandbox("blog").record.disk, disk);
        assert!(world.plan().is_empty());
    }
}

#[test]
fn an_undeclared_unrecorded_microvm_is_adopted_and_then_removed() {
    let mut world = World::running([app("blog")]);
    world.lose_record("blog");
    world.declare([]);
    assert_eq!(world.action("blog").kind, ActionKind::Adopt);
    world.settle();
    assert!(world.observed.sandboxes.is_empty());
}

#[test]
fn a_removal_does_not_wait_for_failures_of_what_it_removes_but_for_its_own() {
    let mut world = World::running([app("blog")]);
    world.declare([app("blog").memory(512)]);
    world.pass(Fault::Fails(1));
    world.now = world.now.checked_sub(SignedDuration::from_secs(30)).unwrap();
    assert!(matches!(world.action("blog").blocked[..], [Block::Backoff { .. }]));
    world.declare([]);
    assert_eq!(world.action("blog").blocked, []);
    world.pass(Fault::Fails(1));
    assert!(matches!(world.action("blog").blocked[..], [Block::Backoff { .. }]));
}
