//! Adds up what would run at most if every action that may begin did so at once.

use std::collections::{BTreeMap, BTreeSet};

use setpoint_schema::id::{DiskId, SandboxId};
use setpoint_schema::observed::{Machine, Observed, VmState};

use super::Violation;
use crate::model::{Action, Plan, Step};

pub(super) fn check(plan: &Plan, observed: &Observed, out: &mut Vec<Violation>) {
    let begins: Vec<&Action> =
        plan.actions.iter().map(|action| &**action).filter(|action| action.blocked.is_empty()).collect();
    let limits = &observed.limits;
    let mib = |machine: &Machine| u128::from(machine.memory_mib) << 20;
    let sums = [
        ("memory", sum_of_machines(&begins, observed, mib), u128::from(limits.memory.as_bytes())),
        ("vcpus", sum_of_machines(&begins, observed, |machine| u128::from(machine.vcpus)), u128::from(limits.vcpus)),
        ("disk", sum_of_disks(&begins, observed), u128::from(limits.disk.as_bytes())),
        ("sandboxes", count(&begins, observed), u128::from(limits.sandboxes)),
    ];
    for (what, (before, after), limit) in sums {
        // Limits may be lowered below what runs: that is not evicted, and nothing may be added.
        if after > limit && after > before {
            out.push(Violation::OverCapacity(what));
        }
    }
}

/// Before and after. A microVM that boots as another size counts as the larger of both, because its end is not waited for.
fn sum_of_machines(begins: &[&Action], observed: &Observed, amount: impl Fn(&Machine) -> u128) -> (u128, u128) {
    let running = observed.sandboxes.values().filter(|sandbox| matches!(sandbox.vm, VmState::Running { .. }));
    let strays = observed.unrecorded.iter().map(|machine| (&machine.sandbox, amount(machine)));
    let before: BTreeMap<&SandboxId, u128> =
        running.map(|sandbox| (&sandbox.record.id, amount(&sandbox.record.machine))).chain(strays).collect();
    let mut extra = 0;
    for action in begins {
        let stopped = action.steps.iter().filter_map(|step| match step {
            Step::Stop { sandbox, .. } => before.get(sandbox),
            _ => None,
        });
        let launched = action.steps.iter().filter_map(|step| match step {
            Step::Launch(machine) | Step::Resume(machine) | Step::LaunchFrom { machine, .. } => Some(amount(machine)),
            _ => None,
        });
        extra += launched.sum::<u128>().saturating_sub(stopped.sum());
    }
    let before: u128 = before.values().sum();
    (before, before + extra)
}

fn sum_of_disks(begins: &[&Action], observed: &Observed) -> (u128, u128) {
    let mut sizes: BTreeMap<&DiskId, u64> = observed.disks.values().map(|d| (&d.id, d.size.as_bytes())).collect();
    let sum = |sizes: &BTreeMap<&DiskId, u64>| sizes.values().map(|size| u128::from(*size)).sum();
    let before = sum(&sizes);
    for step in begins.iter().flat_map(|action| &action.steps) {
        let (disk, size) = match step {
            Step::EnsureDisk { disk, size, .. } | Step::CopyDisk { disk, size, .. } => (disk, size),
            Step::LaunchFrom { machine, size, .. } => (&machine.disk, size),
            _ => continue,
        };
        let present = sizes.entry(disk).or_default();
        *present = (*present).max(size.as_bytes());
    }
    (before, sum(&sizes))
}

/// Sandboxes before and after; one that takes the place of another is not one more.
fn count(begins: &[&Action], observed: &Observed) -> (u128, u128) {
    let strays = observed.unrecorded.iter().map(|machine| &machine.sandbox);
    let known: BTreeSet<_> = observed.sandboxes.keys().chain(strays).collect();
    let replaces = |action: &Action| action.steps.iter().any(|step| matches!(step, Step::Forget(_)));
    let additional = begins.iter().filter(|action| {
        let adds = action.steps.iter().any(|step| match step {
            Step::Record(record) => !known.contains(&record.id),
            _ => false,
        });
        adds && !replaces(action)
    });
    let before = known.len() as u128;
    (before, before + additional.count() as u128)
}
