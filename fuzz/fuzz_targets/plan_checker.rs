//! The planner and the checker of its plans, over arbitrary histories of a host.
//!
//! The model of a host that the planner's own tests use panics on whatever would be harm on a real one, and checks every plan. Here
//! plans are damaged as well: the checker must say so or let them pass, and never fail.

#![no_main]

#[path = "../../plan/tests/planner/declare.rs"]
#[expect(dead_code, reason = "the planner's tests use the rest")]
mod declare;
#[path = "../../plan/tests/planner/world.rs"]
#[expect(dead_code, reason = "the planner's tests use the rest")]
mod world;

use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use jiff::SignedDuration;
use libfuzzer_sys::fuzz_target;
use setpoint_plan::check::check;
use setpoint_plan::model::Plan;
use setpoint_plan::render;
use setpoint_schema::app::{DesiredApp, Power, Prune, Retain, Shrink};
use setpoint_schema::observed::{ExitReason, GuestState, Limits, VmState};
use setpoint_schema::quantity::ByteSize;
use setpoint_schema::snapshot::{Content, DesiredSnapshot};

use declare::{Declare as _, app, days};
use world::{Fault, World};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fuzz_target!(|input: &[u8]| {
    let mut input = Unstructured::new(input);
    // Input that ends early is a short history.
    let _ = live(&mut input);
});

fn live(input: &mut Unstructured<'_>) -> Result<()> {
    let mut world = World::new();
    if input.ratio(1, 4)? {
        world.observed.limits = Limits { memory: ByteSize::mib(768), vcpus: 3, disk: ByteSize::gib(5), sandboxes: 3 };
    }
    for _ in 0..24 {
        happen(&mut world, input)?;
        let plan = world.plan();
        assert_eq!(check(&plan, &world.desired, &world.observed), [], "{}", render::text(&plan, render::Color::Never));
        let damaged = damage(plan, input)?;
        let violations = check(&damaged, &world.desired, &world.observed);
        assert!(violations.iter().all(|violation| !violation.to_string().is_empty()));
    }
    Ok(())
}

fn happen(world: &mut World, input: &mut Unstructured<'_>) -> Result<()> {
    match input.int_in_range(0..=9_u8)? {
        0..=2 => {
            let apps = declaration(input)?;
            let snapshots = snapshots(&apps, input)?;
            world.declare_with(apps, snapshots);
        }
        3 => world.break_source(),
        4 => {
            let exited = VmState::Exited { reason: ExitReason::Unknown };
            if let Some(sandbox) = one_of(world, input)? {
                sandbox.vm = exited;
                sandbox.guest = GuestState::Absent;
            }
        }
        5 => {
            let since = world.now;
            if let Some(sandbox) = one_of(world, input)?.filter(|sandbox| matches!(sandbox.vm, VmState::Running { .. }))
            {
                sandbox.guest = GuestState::Silent { since };
            }
        }
        6 => {
            let hours = input.int_in_range(0..=48_i64)?;
            world.now = world.now.checked_add(SignedDuration::from_hours(hours)).expect("a few days later");
        }
        _ => {
            let at = input.int_in_range(0..=20_usize)?;
            let fault = match input.int_in_range(0..=3_u8)? {
                0 => Fault::None,
                1 => Fault::Fails(at),
                2 => Fault::FailsAfter(at),
                _ => Fault::Killed(at),
            };
            world.pass(fault);
        }
    }
    Ok(())
}

fn one_of<'a>(
    world: &'a mut World,
    input: &mut Unstructured<'_>,
) -> Result<Option<&'a mut setpoint_schema::observed::ObservedSandbox>> {
    let count = world.observed.sandboxes.len();
    if count == 0 {
        return Ok(None);
    }
    let which = input.choose_index(count)?;
    Ok(world.observed.sandboxes.values_mut().nth(which).map(Arc::make_mut))
}

fn declaration(input: &mut Unstructured<'_>) -> Result<Vec<DesiredApp>> {
    let mut apps = Vec::new();
    for (n, name) in NAMES.iter().enumerate() {
        if input.ratio(1, 4)? {
            continue;
        }
        // Dependencies point to earlier names that are declared, so that there are neither circles nor gaps.
        let is_declared = |name: &&&str| apps.iter().any(|app: &DesiredApp| app.metadata.key == declare::key(name));
        let earlier: Vec<_> = NAMES[..n].iter().filter(is_declared).collect();
        let mut depends_on = Vec::new();
        for name in earlier {
            if input.ratio(1, 4)? {
                depends_on.push(*name);
            }
        }
        let mut declared = app(name)
            .memory(256 * input.int_in_range(1..=2)?)
            .disk(input.int_in_range(1..=2)?)
            .template(if input.ratio(1, 4)? { "t2" } else { "t1" })
            .files(if input.arbitrary()? { "f1" } else { "f2" })
            .command(if input.arbitrary()? { "serve 1" } else { "serve 2" })
            .retain(if input.arbitrary()? { days(1) } else { Retain::None })
            .depends_on(&depends_on);
        if input.ratio(1, 8)? {
            declared = declared.uid(input.choose(&["u1", "u2"])?);
        }
        let power = *input.choose(&[Power::Running, Power::Running, Power::Running, Power::Paused, Power::Stopped])?;
        // What an app begins as, or goes back to, is one that comes before it; a snapshot need not be there.
        if let Some(earlier) =
            NAMES[..n].first().filter(|name| apps.iter().any(|app| app.metadata.key == declare::key(name)))
        {
            declared = match input.int_in_range(0..=7_u8)? {
                0 => declared.begun_as(earlier),
                1 => declared.begun_from("moment"),
                2 => declared.restore("moment", if input.arbitrary()? { "t1" } else { "t2" }),
                _ => declared,
            };
        }
        let (prune, suspend, shrink) = (input.ratio(1, 8)?, input.ratio(1, 8)?, input.arbitrary()?);
        declared = declared.spec(|spec| {
            spec.power.state = power;
            spec.prune = if prune { Prune::Disabled } else { Prune::Enabled };
            spec.suspend = suspend;
            spec.resources.shrink = if shrink { Shrink::Replace } else { Shrink::Refuse };
        });
        apps.push(declared);
    }
    Ok(apps)
}

/// Maybe a snapshot of the first app.
fn snapshots(apps: &[DesiredApp], input: &mut Unstructured<'_>) -> Result<Vec<DesiredSnapshot>> {
    let first = apps.iter().find(|app| app.metadata.key == declare::key(NAMES[0]));
    if first.is_none() || input.ratio(1, 2)? {
        return Ok(Vec::new());
    }
    let (keep, token) = (input.int_in_range(1..=2)?, input.int_in_range(1..=3_u8)?);
    let content = if input.arbitrary()? { Content::Disk } else { Content::Memory };
    let moment = declare::snapshot_with("moment", NAMES[0], |spec| {
        (spec.keep, spec.token, spec.content) = (keep, token.to_string(), content);
    });
    Ok(vec![moment])
}

/// Loses, doubles or moves something in a plan.
fn damage(mut plan: Plan, input: &mut Unstructured<'_>) -> Result<Plan> {
    if plan.actions.is_empty() {
        return Ok(plan);
    }
    let which = input.choose_index(plan.actions.len())?;
    match input.int_in_range(0..=5_u8)? {
        0 => drop(plan.actions.remove(which)),
        1 => plan.actions.push(plan.actions[which].clone()),
        2 => plan.actions.reverse(),
        3 => Arc::make_mut(&mut plan.actions[which]).steps.reverse(),
        4 => Arc::make_mut(&mut plan.actions[which]).blocked.clear(),
        _ => {
            let other = input.choose_index(plan.actions.len())?;
            let steps = plan.actions[other].steps.clone();
            Arc::make_mut(&mut plan.actions[which]).steps.extend(steps);
        }
    }
    Ok(plan)
}
