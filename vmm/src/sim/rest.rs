//! Scripted microVMs that rest: time does not pass for them, and what is in their memory goes on when they are resumed.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use setpoint_schema::id::{BootNonce, DiskId, SandboxId, SnapshotId};
use setpoint_schema::observed::{Machine, Moment as There, VmState};
use setpoint_schema::quantity::ByteSize;

use super::clock::{after, until};
use super::files::{self, Lock};
use super::script::Script;
use super::sim_error;
use super::world::{Disk, Vm, World};
use crate::driver::{KeepDisk, Result, Take, Taken, VmmError};

/// What a scripted microVM's memory takes on the disk.
const BYTES: ByteSize = ByteSize::mib(8);

/// What a kept disk takes there.
const DISK_BYTES: ByteSize = ByteSize::mib(1);

/// That a microVM rests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rest {
    /// Since when.
    pub since: Timestamp,
    /// What its saved state is called.
    pub snapshot: SnapshotId,
    /// Why it could not be resumed, the last time that was tried.
    #[serde(default)]
    pub fault: Option<String>,
}

impl Rest {
    pub(super) fn state(self, nonce: BootNonce) -> VmState {
        VmState::Paused { nonce, since: self.since, bytes: BYTES, fault: self.fault }
    }
}

/// A number in a microVM's memory that grows by one each millisecond in which the microVM runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counter {
    /// Where it stood when it began to count on.
    pub value: u64,
    /// When that was.
    pub since: Timestamp,
}

impl Counter {
    /// A counter that begins now.
    #[must_use]
    pub fn from(now: Timestamp) -> Self {
        Self { value: 0, since: now }
    }
}

impl Vm {
    /// What the counter in its memory shows at `now`. A boot begins it anew, a resume does not.
    #[must_use]
    pub fn counter_at(&self, now: Timestamp) -> u64 {
        let upto = self.rest.as_ref().map_or(now, |rest| rest.since);
        self.counter.value + u64::try_from(until(upto, self.counter.since).as_millis()).unwrap_or(u64::MAX)
    }
}

/// A microVM and its disk at one moment, or the disk alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Moment {
    snapshot: SnapshotId,
    taken_at: Timestamp,
    /// What the daemon said that there was then.
    there: There,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    vm: Option<Vm>,
    disk: Disk,
}

impl Moment {
    fn bytes(&self) -> ByteSize {
        match self.vm {
            Some(_) => BYTES,
            None => DISK_BYTES,
        }
    }

    /// As whoever took it is told, however often.
    fn taken(self) -> Taken {
        let bytes = self.bytes();
        let Self { taken_at: at, there: moment, .. } = self;
        Taken { at, moment, stopped: Duration::ZERO, written: ByteSize::default(), bytes }
    }
}

impl World {
    /// The processor time that a running microVM has taken, by its script.
    pub(super) fn cpu_time(&self, sandbox: &SandboxId, script: &Script) -> Result<Option<Duration>> {
        let now = self.now();
        let vm = self.vm(sandbox)?.filter(|vm| vm.rest.is_none() && vm.ended(now).is_none());
        Ok(vm.map(|vm| {
            let percent = script.fate(sandbox.as_str(), vm.launches).cpu_percent;
            until(now, vm.booted_at).mul_f64(f64::from(percent) / 100.0)
        }))
    }

    /// Keeps a moment of the boot whose agent asks, or of a microVM that rests.
    pub(super) fn keep_moment(&self, take: Take<'_>) -> Result<Taken> {
        let Take { sandbox, snapshot, agent, moment } = take;
        let lock = self.lock()?;
        let now = self.now();
        if let Some(moment) = self.kept(snapshot)? {
            return Ok(moment.taken());
        }
        let is_there = |vm: &Vm| match agent {
            Some(agent) => vm.runs(agent.nonce(), now),
            None => vm.rest.is_some(),
        };
        let Some(vm) = self.vm(sandbox)?.filter(is_there) else {
            return Err(self.violation(&lock, &format!("snapshot of {sandbox}, which neither runs so nor rests"))?);
        };
        let disk = self.disk(&vm.machine.disk)?.ok_or_else(|| sim_error(format!("{sandbox} lost its disk")))?;
        let there = moment.clone();
        self.put_moment(&lock, Moment { snapshot: snapshot.clone(), taken_at: now, there, vm: Some(vm), disk })
    }

    /// Keeps a disk alone: that of the boot whose agent asks, or of a microVM that does not run.
    pub(super) fn keep_disk(&self, keep: KeepDisk<'_>) -> Result<Taken> {
        let KeepDisk { sandbox, disk, snapshot, agent, moment } = keep;
        let lock = self.lock()?;
        let now = self.now();
        if let Some(moment) = self.kept(snapshot)? {
            return Ok(moment.taken());
        }
        let running = self.vm(sandbox)?.filter(|vm| vm.rest.is_none() && vm.ended(now).is_none());
        if running.map(|vm| vm.machine.nonce) != agent.map(|agent| agent.nonce().clone()) {
            return Err(
                self.violation(&lock, &format!("copy of the disk of {sandbox} without its guest standing still"))?
            );
        }
        let disk = self.disk(disk)?.ok_or_else(|| sim_error(format!("{sandbox} has no disk {disk}")))?;
        let there = moment.clone();
        self.put_moment(&lock, Moment { snapshot: snapshot.clone(), taken_at: now, there, vm: None, disk })
    }

    fn kept(&self, snapshot: &SnapshotId) -> Result<Option<Moment>> {
        files::read_json(&self.moment_path(snapshot))
    }

    /// Makes a disk of the one in a moment.
    pub(super) fn ensure_disk_from(&self, id: &DiskId, snapshot: &SnapshotId, size: ByteSize) -> Result<()> {
        let lock = self.lock()?;
        if self.disk(id)?.is_some() {
            return Ok(());
        }
        let Some(moment) = self.kept(snapshot)? else {
            return Err(self.violation(&lock, &format!("disk {id} from {snapshot}, which is not there"))?);
        };
        let size = moment.disk.size.max(size);
        self.put_disk(&lock, &Disk { id: id.clone(), size, user: None, ..moment.disk })
    }

    fn put_moment(&self, lock: &Lock, moment: Moment) -> Result<Taken> {
        // A world that is older than snapshots has no directory for them.
        std::fs::create_dir_all(self.snapshots_dir()).map_err(files::failed("create", &self.snapshots_dir()))?;
        lock.write(&self.moment_path(&moment.snapshot), &self.next_path(), &files::to_json(&moment))?;
        Ok(moment.taken())
    }

    /// Begins a microVM where a moment was kept.
    pub(super) fn begin_from(&self, machine: &Machine, snapshot: &SnapshotId, script: &Script) -> Result<()> {
        if self.disk(&machine.disk)?.is_some() {
            // It has begun, and its disk has been its own since.
            return self.launch(machine, script);
        }
        let lock = self.lock()?;
        let now = self.now();
        if self.vm(&machine.sandbox)?.is_some_and(|vm| vm.runs(&machine.nonce, now)) {
            return Ok(());
        }
        let Some(moment) = self.kept(snapshot)? else {
            return Err(
                self.violation(&lock, &format!("launch of {} from {snapshot}, which is not there", machine.sandbox))?
            );
        };
        let Moment { snapshot: _, taken_at, there: _, vm, disk } = moment;
        let vm =
            vm.ok_or_else(|| sim_error(format!("{snapshot} has a disk alone to begin {} from", machine.sandbox)))?;
        let counter = Counter { value: vm.counter_at(taken_at), since: now };
        let stood = vm.rest.as_ref().map_or(taken_at, |rest| rest.since);
        let mut processes = vm.processes.clone();
        processes.iter_mut().for_each(|processes| processes.put_off(until(now, stood)));
        self.put_disk(&lock, &Disk { id: machine.disk.clone(), user: Some(machine.sandbox.clone()), ..disk })?;
        let begun = Vm {
            machine: machine.clone(),
            launches: 1,
            booted_at: now,
            agent_at: now,
            silent_from: None,
            end: None,
            processes,
            rest: None,
            counter,
            ..vm
        };
        self.put_vm(&lock, &begun)
    }

    /// Every moment that was kept.
    pub fn moments(&self) -> Result<Vec<(SnapshotId, ByteSize)>> {
        let moments: Vec<Moment> = files::read_all(&self.snapshots_dir())?;
        Ok(moments.into_iter().map(|moment| (moment.snapshot.clone(), moment.bytes())).collect())
    }

    /// Removes a moment.
    pub(super) fn forget_moment(&self, snapshot: &SnapshotId) -> Result<()> {
        self.lock()?.remove(&self.moment_path(snapshot))
    }

    fn moment_path(&self, snapshot: &SnapshotId) -> std::path::PathBuf {
        self.snapshots_dir().join(format!("{snapshot}.json"))
    }

    /// Puts a boot to rest, or finds that it rests.
    pub(super) fn pause(&self, sandbox: &SandboxId, nonce: &BootNonce, snapshot: &SnapshotId) -> Result<ByteSize> {
        let lock = self.lock()?;
        let now = self.now();
        let Some(mut vm) = self.vm(sandbox)?.filter(|vm| vm.machine.nonce == *nonce && vm.ended(now).is_none()) else {
            return Err(self.violation(&lock, &format!("pause of {sandbox}, of which that boot does not run"))?);
        };
        if vm.rest.is_none() {
            vm.rest = Some(Rest { since: now, snapshot: snapshot.clone(), fault: None });
            self.put_vm(&lock, &vm)?;
        }
        Ok(BYTES)
    }

    /// Lets a resting microVM go on as another boot.
    pub(super) fn resume(&self, machine: &Machine) -> Result<()> {
        let lock = self.lock()?;
        let now = self.now();
        let Some(mut vm) = self.vm(&machine.sandbox)? else {
            return Err(self.violation(&lock, &format!("resume of {}, which is not there", machine.sandbox))?);
        };
        if vm.runs(&machine.nonce, now) {
            return Ok(());
        }
        let Some(rest) = &vm.rest else {
            return Err(self.violation(&lock, &format!("resume of {}, which does not rest", machine.sandbox))?);
        };
        if (vm.machine.vcpus, vm.machine.memory_mib) != (machine.vcpus, machine.memory_mib) {
            return Err(sim_error(format!("cannot resume {} as another machine", machine.sandbox)));
        }
        let counter = Counter { value: vm.counter_at(now), since: now };
        let rested = until(now, rest.since);
        let later = |at: &mut Timestamp| *at = after(*at, rested);
        vm.end.iter_mut().for_each(|end| later(&mut end.at));
        vm.silent_from.iter_mut().for_each(later);
        vm.processes.iter_mut().for_each(|processes| processes.put_off(rested));
        vm = Vm { machine: machine.clone(), rest: None, counter, booted_at: now, ..vm };
        self.put_vm(&lock, &vm)
    }

    /// Notes why a resting microVM could not be resumed.
    pub(super) fn note_fault(&self, sandbox: &SandboxId, error: &VmmError) -> Result<()> {
        self.edit(sandbox, |vm| vm.rest.iter_mut().for_each(|rest| rest.fault = Some(error.to_string())))
    }
}
