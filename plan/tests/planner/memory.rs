//! A planner that remembers makes the plans that one without memory makes: `World::plan` compares them, for every plan of every
//! test. Here the histories are stranger than any that a repository can have.

use proptest::prelude::*;
use setpoint_plan::desired::Completeness;
use setpoint_plan::model::{ActionKind, Reason};
use setpoint_schema::app::DesiredApp;
use setpoint_schema::observed::Suspension;

use crate::declare::{Declare, app, days, key};
use crate::properties::{Happening, NAMES, Revision, happen, happening, revision};
use crate::world::{Fault, World};

/// Something that happens to the names of apps, to the host, or to what is known of them.
#[derive(Debug, Clone)]
enum Strange {
    Usual(Happening),
    /// A revision in which some apps have lasting identities, which others had before.
    Declare(Revision),
    Move(usize, usize),
    MoveNothing,
    Stall(usize),
    Mend,
    Suspend(usize),
    Crowd(u32),
}

fn strange() -> impl Strategy<Value = Strange> {
    let which = 0..NAMES.len();
    prop_oneof![
        8 => happening().prop_map(Strange::Usual),
        3 => (revision(), prop::collection::vec(prop::option::weighted(0.6, 0..3_usize), NAMES.len()))
            .prop_map(|(Revision { apps, snapshots }, uids)| {
                Strange::Declare(Revision { apps: with_uids(apps, &uids), snapshots })
            }),
        1 => (which.clone(), which.clone()).prop_map(|(from, to)| Strange::Move(from, to)),
        1 => Just(Strange::MoveNothing),
        1 => which.clone().prop_map(Strange::Stall),
        1 => Just(Strange::Mend),
        1 => which.prop_map(Strange::Suspend),
        1 => (1..6_u32).prop_map(Strange::Crowd),
    ]
}

/// Gives apps the identities that are drawn for them, each to one app at most.
fn with_uids(apps: Vec<DesiredApp>, uids: &[Option<usize>]) -> Vec<DesiredApp> {
    let mut given = Vec::new();
    let give = |(app, uid): (DesiredApp, &Option<usize>)| match uid {
        Some(uid) if !given.contains(uid) => {
            given.push(*uid);
            app.uid(&format!("u{uid}"))
        }
        Some(_) | None => app,
    };
    apps.into_iter().zip(uids).map(give).collect()
}

fn befall(world: &mut World, strange: Strange) {
    match strange {
        // The host of these tests knows objects by the name that they are recorded for, so that a rename looks to it like the
        // loss of an app, or of a disk that another app would have kept.
        Strange::Usual(Happening::Declare(revision)) => befall(world, Strange::Declare(revision)),
        Strange::Usual(Happening::Pass(fault)) => world.pass(fault),
        Strange::Usual(happening) => happen(world, happening),
        Strange::Declare(Revision { apps, snapshots }) => {
            let moved = world.desired.moved.clone();
            world.declare_with(apps.into_iter().map(|app| app.retain(days(1))), snapshots);
            world.desired.moved = moved;
        }
        Strange::Move(from, to) => {
            world.desired.moved.insert(key(NAMES[from]), key(NAMES[to]));
        }
        Strange::MoveNothing => world.desired.moved.clear(),
        Strange::Stall(which) => {
            world.desired.apps.remove(&key(NAMES[which]));
            world.desired.stalled.insert(key(NAMES[which]), "it has mistakes".to_owned());
        }
        Strange::Mend => {
            world.desired.stalled.clear();
            world.desired.completeness = Completeness::Complete;
        }
        Strange::Suspend(which) => {
            let at = world.now;
            if world.observed.apps.contains_key(&key(NAMES[which])) {
                let memory = world.memory(&key(NAMES[which]));
                memory.suspended = match memory.suspended {
                    None => Some(Suspension { since: at, by: "ops".to_owned() }),
                    Some(_) => None,
                };
            }
        }
        Strange::Crowd(vcpus) => world.observed.limits.vcpus = vcpus,
    }
}

proptest! {
    #[test]
    fn what_a_planner_remembers_changes_no_plan(history in prop::collection::vec(strange(), 1..30)) {
        let mut world = World::new();
        for strange in history {
            befall(&mut world, strange);
            drop(world.plan());
        }
    }
}

#[test]
fn a_removed_app_is_forgotten_and_may_come_back() {
    let mut world = World::running([app("blog"), app("shop")]);
    world.declare([app("shop")]);
    assert_eq!(world.action("blog").kind, ActionKind::Delete);
    world.settle();
    assert_eq!(world.plan().unchanged.iter().collect::<Vec<_>>(), [&key("shop")]);
    world.declare([app("blog"), app("shop")]);
    assert_eq!(world.action("blog").kind, ActionKind::Create);
}

#[test]
fn an_app_as_declared_is_seen_again_when_only_time_has_passed_for_its_old_disk() {
    let mut world = World::running([app("blog").disk(2).retain(days(1))]);
    world.declare([app("blog")
        .disk(1)
        .retain(days(1))
        .spec(|spec| spec.resources.shrink = setpoint_schema::app::Shrink::Replace)]);
    world.settle();
    assert!(world.plan().is_empty());
    world.now = world.now.checked_add(jiff::SignedDuration::from_hours(25)).unwrap();
    assert_eq!(world.action("blog").reasons, [Reason::RetentionOver]);
    world.pass(Fault::None);
    assert_eq!(world.plan().unchanged.iter().collect::<Vec<_>>(), [&key("blog")]);
}
