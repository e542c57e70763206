//! The host's limits. What runs keeps its place; what does not fit beside it is blocked, with the sum shown.

use std::fmt;
use std::sync::Arc;

use setpoint_schema::id::{DiskId, SandboxId};
use setpoint_schema::observed::{DiskRecord, Limits, Machine, Observed, ObservedSandbox, VmState};
use setpoint_schema::quantity::ByteSize;

use super::order::Ranks;
use super::world::World;
use super::{Verdict, Verdicts};
use crate::model::{Action, Block, Step};

/// An amount of everything that is limited.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Amount {
    memory: ByteSize,
    vcpus: u32,
    disk: ByteSize,
    sandboxes: u32,
}

impl Amount {
    fn of(machine: &Machine) -> Self {
        let memory = ByteSize::bytes(machine.memory_mib.saturating_mul(1 << 20));
        Self { memory, vcpus: machine.vcpus, ..Self::default() }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            memory: self.memory.saturating_add(other.memory),
            vcpus: self.vcpus.saturating_add(other.vcpus),
            disk: self.disk.saturating_add(other.disk),
            sandboxes: self.sandboxes.saturating_add(other.sandboxes),
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            memory: self.memory.saturating_sub(other.memory),
            vcpus: self.vcpus.saturating_sub(other.vcpus),
            disk: self.disk.saturating_sub(other.disk),
            sandboxes: self.sandboxes.saturating_sub(other.sandboxes),
        }
    }
}

/// Who is served first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Claim {
    /// The app has a sandbox, and its place is not given away while that is down.
    Established,
    /// The app is new.
    New,
}

/// Gives the room there is to the actions that may begin, in order, and blocks those that do not fit.
pub(super) fn apply(world: &World<'_>, ranks: &Ranks<'_>, verdicts: &mut Verdicts<'_>) {
    let limits = world.observed.limits;
    let mut used = world.in_use();
    let mut reader = world.reader();
    let mut claimants: Vec<_> = verdicts
        .iter_mut()
        .filter_map(|(key, verdict)| match verdict {
            Verdict::Act(action) => Some((reader.sandboxes(key), ranks.of(key), action)),
            Verdict::Hold(_) | Verdict::Unchanged => None,
        })
        .collect();
    claimants.sort_by_key(|(sandboxes, rank, _)| (Claim::of(sandboxes), *rank));
    for (sandboxes, _, action) in claimants {
        let extra = extra(world, sandboxes, action);
        let lacks = shortages(limits, used, extra);
        let may_begin = action.blocked.is_empty();
        let keeps_place = Claim::of(sandboxes) == Claim::Established;
        if lacks.is_empty() && (may_begin || keeps_place) {
            used = used.plus(extra);
        }
        action.blocked.extend(lacks.into_iter().map(Block::Capacity));
    }
}

impl Claim {
    /// The claim of an app that has these sandboxes.
    fn of(sandboxes: &[Arc<ObservedSandbox>]) -> Self {
        if sandboxes.is_empty() { Self::New } else { Self::Established }
    }
}

/// What runs, and what exists, in sums that nothing overflows, so that what is added can be taken away again.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct InUse {
    memory: u128,
    vcpus: u64,
    disk: u128,
    sandboxes: usize,
}

impl InUse {
    pub fn of(observed: &Observed) -> Self {
        let mut sum = Self::default();
        for sandbox in observed.sandboxes.values() {
            sum.add(sandbox);
        }
        for machine in &observed.unrecorded {
            sum.sandboxes += 1;
            sum.add_machine(machine);
        }
        for disk in observed.disks.values() {
            sum.change_disk(None, Some(disk));
        }
        sum
    }

    pub fn add(&mut self, sandbox: &ObservedSandbox) {
        self.sandboxes += 1;
        match &sandbox.vm {
            VmState::Running { .. } => self.add_machine(&sandbox.record.machine),
            VmState::Absent | VmState::Exited { .. } | VmState::Paused { .. } => {}
        }
    }

    /// Takes away a sandbox that was added as it is here.
    pub fn remove(&mut self, sandbox: &ObservedSandbox) {
        self.sandboxes -= 1;
        match &sandbox.vm {
            VmState::Running { .. } => {
                let amount = Amount::of(&sandbox.record.machine);
                self.memory -= u128::from(amount.memory.as_bytes());
                self.vcpus -= u64::from(amount.vcpus);
            }
            VmState::Absent | VmState::Exited { .. } | VmState::Paused { .. } => {}
        }
    }

    pub fn change_disk(&mut self, before: Option<&DiskRecord>, after: Option<&DiskRecord>) {
        let size = |disk: Option<&DiskRecord>| disk.map_or(0, |disk| u128::from(disk.size.as_bytes()));
        self.disk = self.disk + size(after) - size(before);
    }

    pub fn amount(&self) -> Amount {
        let bytes = |sum: u128| ByteSize::bytes(u64::try_from(sum).unwrap_or(u64::MAX));
        Amount {
            memory: bytes(self.memory),
            vcpus: u32::try_from(self.vcpus).unwrap_or(u32::MAX),
            disk: bytes(self.disk),
            sandboxes: u32::try_from(self.sandboxes).unwrap_or(u32::MAX),
        }
    }

    fn add_machine(&mut self, machine: &Machine) {
        let amount = Amount::of(machine);
        self.memory += u128::from(amount.memory.as_bytes());
        self.vcpus += u64::from(amount.vcpus);
    }
}

/// What an action takes beyond what its app has. What it gives back counts once it is observed, not before.
fn extra(world: &World<'_>, sandboxes: &[Arc<ObservedSandbox>], action: &Action) -> Amount {
    let steps = action.steps.iter().map(|step| match step {
        Step::Launch(machine) | Step::Resume(machine) => Amount::of(machine).minus(running(sandboxes)),
        Step::LaunchFrom { machine, size, .. } => {
            let disk = growth(world, &machine.disk, *size);
            Amount { disk, ..Amount::of(machine).minus(running(sandboxes)) }
        }
        Step::EnsureDisk { disk, size, .. } | Step::CopyDisk { disk, size, .. } => {
            Amount { disk: growth(world, disk, *size), ..Amount::default() }
        }
        Step::Record(record) if sandboxes.is_empty() => {
            Amount { sandboxes: additional(world, action, &record.id), ..Amount::default() }
        }
        Step::Record(_)
        | Step::EnsureTemplate { .. }
        | Step::GrowDisk { .. }
        | Step::Pause { .. }
        | Step::AwaitAgent { .. }
        | Step::SyncFiles { .. }
        | Step::ApplyProcesses { .. }
        | Step::Stop { .. }
        | Step::RemoveVm(_)
        | Step::ReleaseDisk { .. }
        | Step::RecordApplied { .. }
        | Step::Forget(_)
        | Step::RecordSnapshot(_)
        | Step::TakeSnapshot { .. }
        | Step::LeaveOut { .. }
        | Step::RemoveSnapshot(_)
        | Step::ForgetSnapshot(_)
        | Step::RecordRestored { .. } => Amount::default(),
    });
    steps.fold(Amount::default(), Amount::plus)
}

/// What these sandboxes take now.
fn running(sandboxes: &[Arc<ObservedSandbox>]) -> Amount {
    let running = sandboxes.iter().filter(|sandbox| matches!(sandbox.vm, VmState::Running { .. }));
    running.map(|sandbox| Amount::of(&sandbox.record.machine)).fold(Amount::default(), Amount::plus)
}

fn growth(world: &World<'_>, disk: &DiskId, size: ByteSize) -> ByteSize {
    let present = world.observed.disks.get(disk).map(|disk| disk.size).unwrap_or_default();
    size.saturating_sub(present)
}

/// A sandbox of an app that has none is one more, unless it is counted already.
fn additional(world: &World<'_>, action: &Action, sandbox: &SandboxId) -> u32 {
    let counted = world.strays(&action.app).iter().any(|machine| machine.sandbox == *sandbox);
    u32::from(!counted)
}

/// What is missing, in words. Something that takes no more than it has is never refused.
fn shortages(limits: Limits, used: Amount, extra: Amount) -> Vec<String> {
    let Limits { memory, vcpus, disk, sandboxes } = limits;
    let shortages = [
        shortage("memory", extra.memory, memory.saturating_sub(used.memory), memory),
        shortage("disk", extra.disk, disk.saturating_sub(used.disk), disk),
        shortage("vcpus", extra.vcpus, vcpus.saturating_sub(used.vcpus), vcpus),
        shortage("sandboxes", extra.sandboxes, sandboxes.saturating_sub(used.sandboxes), sandboxes),
    ];
    shortages.into_iter().flatten().collect()
}

fn shortage<T: Ord + Default + fmt::Display>(what: &str, needed: T, free: T, limit: T) -> Option<String> {
    (needed > T::default() && needed > free).then(|| format!("{what}: needs {needed}, {free} of {limit} free"))
}
