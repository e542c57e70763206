//! The scripted driver: microVMs that are files, for scale and for failure tests.
//!
//! Its world is a directory (see [`world`]). A microVM "runs" because its file says so and time passes: the agent answers from
//! the boot's time on, a scripted death has happened once its time is over. So the microVMs outlive the daemon without any
//! process behind them, and a test looks at the world, and tampers with it, from outside through [`World`].
//!
//! What operations take and how they fail stands in `script.toml` beside the world (see [`script`]). Whatever a correct daemon
//! never does, such as starting a second boot of a running sandbox, is refused and written to `world/violations.log`.

mod clock;
mod files;
mod guest;
mod rest;
pub mod script;
mod wakes;
mod web;
pub mod world;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use setpoint_schema::id::{BootNonce, DiskId, SandboxId, SnapshotId, TemplateDigest};
use setpoint_schema::observed::{ExitReason, Machine, VmState};
use setpoint_schema::quantity::ByteSize;

use crate::driver::{
    Cold, Driver, Guest, KeepDisk, Launched, Pause, Paused, Result, Take, Taken, TemplateSource, VmmError,
};
use crate::failpoint::reach;

pub use clock::{Clock, TokioClock, WallClock};
use guest::SimGuest;
use script::{Effect, Operation, ScriptFile};
pub use world::World;

/// How long a guest that says nothing is waited for, when connecting and in every call.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long after an unreadable world file it is looked at again.
const REREAD_AFTER: Duration = Duration::from_secs(1);

/// The subject of calls that are about no sandbox in particular. No app is called so.
const EVERYTHING: &str = "*";

/// The scripted driver over one directory.
pub struct SimDriver {
    sim: Arc<Sim>,
}

impl SimDriver {
    /// The driver over `dir`. Nothing is read or written before the first operation.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self::with_clock(dir, Arc::new(WallClock))
    }

    /// The same by another clock, for tests that pause time.
    #[must_use]
    pub fn with_clock(dir: impl Into<PathBuf>, clock: Arc<dyn Clock>) -> Self {
        let dir = dir.into();
        let script = ScriptFile::new(dir.join(script::FILE_NAME));
        Self { sim: Arc::new(Sim { world: World::with_clock(dir, clock), script, calls: Mutex::default() }) }
    }

    /// The world that this driver's microVMs live in.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.sim.world
    }
}

#[async_trait]
impl Driver for SimDriver {
    fn describe(&self) -> String {
        format!("sim, scripted microVMs in {}", self.sim.world.dir().display())
    }

    async fn list(&self) -> Result<Vec<Machine>> {
        self.sim
            .call(Operation::List, EVERYTHING, |world| Ok(world.vms()?.into_iter().map(|vm| vm.machine).collect()))
            .await
    }

    async fn list_beyond(&self, known: &BTreeSet<SandboxId>) -> Result<Vec<Machine>> {
        let beyond = |world: &World| Ok(world.vms_beyond(known)?.into_iter().map(|vm| vm.machine).collect());
        self.sim.call(Operation::List, EVERYTHING, beyond).await
    }

    async fn observe(&self, sandbox: &SandboxId) -> Result<VmState> {
        self.sim.call(Operation::Observe, sandbox.as_str(), |world| world.state(sandbox)).await
    }

    async fn cpu_time(&self, sandbox: &SandboxId) -> Result<Option<Duration>> {
        let script = self.sim.script.current()?;
        self.sim.world.cpu_time(sandbox, &script)
    }

    async fn exited(&self, sandbox: &SandboxId, nonce: &BootNonce) {
        self.sim.world.ended(sandbox, nonce).await;
    }

    async fn launch(&self, machine: &Machine) -> Result<Launched> {
        let script = self.sim.script.current()?;
        let launch = |world: &World| world.launch(machine, &script);
        self.sim.call(Operation::Launch, machine.sandbox.as_str(), launch).await?;
        Ok(Launched::Cold(Cold::NotWarm))
    }

    async fn pause(&self, pause: Pause<'_>) -> Result<Paused> {
        let Pause { sandbox, nonce, snapshot, agent, cancel } = pause;
        if matches!(self.sim.world.state(sandbox)?, VmState::Running { .. }) {
            reach("pause/freeze")?;
            agent.freeze().await?;
        }
        let cancelled = || cancel.is_cancelled().then_some(Paused::Cancelled);
        let save = |world: &World| match cancelled() {
            Some(cancelled) => Ok(cancelled),
            None => {
                reach("pause/record")?;
                let bytes = world.pause(sandbox, nonce, snapshot)?;
                reach("pause/end")?;
                Ok(Paused::Saved { bytes })
            }
        };
        tokio::select! {
            biased;
            paused = self.sim.call(Operation::Pause, sandbox.as_str(), save) => paused,
            () = cancel.cancelled() => Ok(Paused::Cancelled),
        }
    }

    async fn resume(&self, machine: &Machine) -> Result<()> {
        let sandbox = &machine.sandbox;
        let resume = |world: &World| {
            reach("resume/commit")?;
            world.resume(machine)?;
            reach("resume/thaw")
        };
        let resumed = self.sim.call(Operation::Resume, sandbox.as_str(), resume).await;
        if let Err(error) = &resumed {
            self.sim.world.note_fault(sandbox, error)?;
        }
        resumed
    }

    async fn take_snapshot(&self, take: Take<'_>) -> Result<Taken> {
        reach("snapshot/freeze")?;
        if let Some(agent) = take.agent {
            agent.freeze_processes().await?;
        }
        reach("snapshot/stop")?;
        let keep = |world: &World| {
            reach("snapshot/memory")?;
            reach("snapshot/disk")?;
            reach("snapshot/record")?;
            world.keep_moment(take)
        };
        self.sim.call(Operation::Snapshot, take.sandbox.as_str(), keep).await
    }

    async fn launch_from(&self, machine: &Machine, snapshot: &SnapshotId) -> Result<()> {
        let script = self.sim.script.current()?;
        let begin = |world: &World| {
            reach("fork/start")?;
            reach("fork/renew")?;
            reach("fork/commit")?;
            world.begin_from(machine, snapshot, &script)?;
            reach("fork/thaw")
        };
        self.sim.call(Operation::LaunchFrom, machine.sandbox.as_str(), begin).await
    }

    async fn keep_disk(&self, keep: KeepDisk<'_>) -> Result<Taken> {
        reach("snapshot/freeze")?;
        if let Some(agent) = keep.agent {
            agent.freeze().await?;
        }
        let copy = |world: &World| {
            reach("snapshot/disk")?;
            reach("snapshot/record")?;
            world.keep_disk(keep)
        };
        self.sim.call(Operation::Snapshot, keep.sandbox.as_str(), copy).await
    }

    async fn ensure_disk_from(&self, disk: &DiskId, snapshot: &SnapshotId, size: ByteSize) -> Result<()> {
        let make = |world: &World| {
            reach("fork/disk")?;
            world.ensure_disk_from(disk, snapshot, size)
        };
        self.sim.call(Operation::EnsureDisk, disk.as_str(), make).await
    }

    async fn list_snapshots(&self) -> Result<Vec<(SnapshotId, ByteSize)>> {
        self.sim.world.moments()
    }

    async fn remove_snapshot(&self, snapshot: &SnapshotId) -> Result<()> {
        self.sim.world.forget_moment(snapshot)
    }

    async fn kill(&self, sandbox: &SandboxId) -> Result<()> {
        self.sim.call(Operation::Kill, sandbox.as_str(), |world| world.kill(sandbox, ExitReason::Killed(9))).await
    }

    async fn remove(&self, sandbox: &SandboxId) -> Result<()> {
        self.sim.call(Operation::Remove, sandbox.as_str(), |world| world.remove(sandbox)).await
    }

    async fn ensure_disk(&self, disk: &DiskId, size: ByteSize, _user: Option<&SandboxId>) -> Result<()> {
        self.sim.call(Operation::EnsureDisk, disk.as_str(), |world| world.ensure_disk(disk, size)).await
    }

    async fn disk_size(&self, disk: &DiskId) -> Result<Option<ByteSize>> {
        Ok(self.sim.world.disk(disk)?.map(|disk| disk.size))
    }

    async fn list_disks(&self) -> Result<Vec<(DiskId, ByteSize)>> {
        let disks = |world: &World| Ok(world.disks()?.into_iter().map(|disk| (disk.id, disk.size)).collect());
        self.sim.call(Operation::ListDisks, EVERYTHING, disks).await
    }

    async fn delete_disk(&self, disk: &DiskId) -> Result<()> {
        self.sim.call(Operation::DeleteDisk, disk.as_str(), |world| world.delete_disk(disk)).await
    }

    async fn has_template(&self, digest: &TemplateDigest) -> Result<bool> {
        self.sim.world.has_template(digest)
    }

    async fn make_template(&self, digest: &TemplateDigest, root: Option<TemplateSource>) -> Result<()> {
        let make = |world: &World| world.make_template(digest, root.as_ref());
        self.sim.call(Operation::MakeTemplate, digest.as_str(), make).await
    }

    async fn guest(&self, sandbox: &SandboxId, nonce: &BootNonce) -> Result<Arc<dyn Guest>> {
        self.sim.call(Operation::Connect, sandbox.as_str(), |_| Ok(())).await?;
        let guest = SimGuest::new(Arc::clone(&self.sim), sandbox.clone(), nonce.clone());
        guest.answering().await?;
        Ok(Arc::new(guest))
    }

    async fn console_tail(&self, sandbox: &SandboxId, limit: usize) -> Result<Vec<u8>> {
        let text = self.sim.world.console(sandbox)?;
        Ok(text.as_bytes()[text.len().saturating_sub(limit)..].to_vec())
    }
}

/// What the driver and its guests share.
struct Sim {
    world: World,
    script: ScriptFile,
    /// Calls so far that some fault could have hit, by operation and subject.
    calls: Mutex<HashMap<(Operation, String), u64>>,
}

impl Sim {
    /// Carries `act` out as the script has it: after its latency, and failing, hanging or losing its answer where a fault hits.
    async fn call<T>(&self, operation: Operation, subject: &str, act: impl FnOnce(&World) -> Result<T>) -> Result<T> {
        let script = self.script.current()?;
        let latency = script.latency(operation, subject);
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        let failed = || sim_error(format!("scripted failure of {operation:?} on {subject}"));
        match self.effect(&script, operation, subject) {
            None => act(&self.world),
            Some(Effect::Fail) => Err(failed()),
            Some(Effect::Lost) => act(&self.world).and_then(|_| Err(failed())),
            Some(Effect::Hang) => std::future::pending().await,
        }
    }

    /// Counts the call where a fault could hit it, and says what the fault does if it hits.
    fn effect(&self, script: &script::Script, operation: Operation, subject: &str) -> Option<Effect> {
        if !script.may_fail(operation, subject) {
            return None;
        }
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let count = calls.entry((operation, subject.to_owned())).or_insert(0);
        *count += 1;
        script.fault(operation, subject, *count)
    }
}

/// An error of the scripted VMM.
fn sim_error(problem: impl Into<String>) -> VmmError {
    VmmError::Vmm { vmm: "sim", problem: problem.into() }
}
