//! The agent of a scripted microVM: it works on the world's files, and what it answers follows from them and the time.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures_util::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use setpoint_schema::id::{BootNonce, DiskId, SandboxId, SnapshotId, TreeDigest};
use setpoint_schema::observed::{BuildState, ExitReason, GuestStatus, Health, ProcessState, WebStatus, WorkerStatus};
use setpoint_schema::quantity::Span;
use setpoint_schema::runtime::ProcessSet;
use tokio::time::Instant;

use super::clock::after;
use super::files::Stamp;
use super::script::{Fate, Operation, Phase, Script};
use super::wakes::{DiskChanges, Stirs};
use super::world::{Disk, End, File, Vm};
use super::{ANSWER_TIMEOUT, Sim, web};
use crate::driver::{
    Duplex, ExecOutput, Guest, Manifest, ManifestEntry, Renewal, RestartScope, Result, VmmError, WorkspaceFile,
};

/// What the agent of a microVM runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Processes {
    /// The processes as they were applied.
    pub set: ProcessSet,
    /// How the last build ends.
    pub build: BuildState,
    /// Until when that build runs; the processes start then.
    pub build_until: Timestamp,
    /// From when the web process is healthy; never, if absent.
    pub healthy_from: Option<Timestamp>,
    /// What the health probes find before; absent: no answer yet.
    pub unhealthy: Option<String>,
}

impl Processes {
    /// When something about them changes by itself.
    pub(super) fn changes(&self) -> impl Iterator<Item = Timestamp> {
        [Some(self.build_until), self.healthy_from].into_iter().flatten()
    }

    /// Moves everything that is still to come by the time that the microVM rested.
    pub(super) fn put_off(&mut self, by: std::time::Duration) {
        self.build_until = after(self.build_until, by);
        self.healthy_from = self.healthy_from.map(|at| after(at, by));
    }

    fn start(&self, now: Timestamp) -> (BuildState, ProcessState, Health) {
        if now < self.build_until {
            return (BuildState::Running, ProcessState::Stopped, Health::Unknown);
        }
        if matches!(self.build, BuildState::Failed { .. }) {
            return (self.build.clone(), ProcessState::Stopped, Health::Unknown);
        }
        let health = match &self.unhealthy {
            _ if self.healthy_from.is_some_and(|from| from <= now) => Health::Healthy,
            Some(reason) => Health::Unhealthy(reason.clone()),
            None => Health::Unknown,
        };
        (self.build.clone(), ProcessState::Running { restarts: 0 }, health)
    }
}

/// A connection to the agent of one boot.
pub(super) struct SimGuest {
    sim: Arc<Sim>,
    sandbox: SandboxId,
    nonce: BootNonce,
    calm: Mutex<Option<Arc<Calm>>>,
}

/// What the last status followed from: as long as that stands, so does the status, and nothing has to be read for it.
struct Calm {
    disk: DiskId,
    stamps: (Stamp, Stamp),
    /// At how many changes of all disks the stamps were looked at last.
    disk_changes: Mutex<Option<DiskChanges>>,
    /// When something changes by itself.
    until: Option<Timestamp>,
    /// Subscribed to before anything was looked at.
    stirs: Stirs,
}

impl SimGuest {
    pub(super) fn new(sim: Arc<Sim>, sandbox: SandboxId, nonce: BootNonce) -> Self {
        Self { sim, sandbox, nonce, calm: Mutex::default() }
    }

    /// The microVM as soon as its agent answers, which one that boots or has fallen silent may not do in time.
    pub(super) async fn answering(&self) -> Result<Vm> {
        let answer = |vm: Option<&Vm>, now| {
            let vm = self.alive(vm, now)?;
            Ok(vm.answers(now).then(|| vm.clone()))
        };
        let answer = self.sim.world.watch(&self.sandbox, Some(Instant::now() + ANSWER_TIMEOUT), answer).await?;
        answer.ok_or_else(|| self.error(format!("did not answer within {}s", ANSWER_TIMEOUT.as_secs())))
    }

    /// One call: it waits for the agent, then does `act` in one go as the script has it.
    async fn call<T>(&self, operation: Operation, act: impl FnOnce(Vm) -> Result<T>) -> Result<T> {
        let vm = self.answering().await?;
        self.sim.call(operation, self.sandbox.as_str(), |_| act(vm)).await
    }

    /// One call that changes the microVM or the disk that it uses, whole or not at all.
    async fn change(&self, operation: Operation, act: impl FnOnce(&mut Vm, &mut Disk, Timestamp)) -> Result<()> {
        self.answering().await?;
        let change = |world: &super::World| {
            let lock = world.lock()?;
            let now = world.now();
            let mut vm = self.alive(world.vm(&self.sandbox)?.as_ref(), now)?.clone();
            let mut disk = self.disk_of(&vm)?;
            let (vm_before, disk_before) = (vm.clone(), disk.clone());
            act(&mut vm, &mut disk, now);
            match (disk != disk_before, vm != vm_before) {
                (true, true) => world.put_disk_before_vm(&lock, &disk)?,
                (true, false) => world.put_disk(&lock, &disk)?,
                (false, _) => {}
            }
            if vm != vm_before {
                world.put_vm(&lock, &vm)?;
            }
            Ok(())
        };
        self.sim.call(operation, self.sandbox.as_str(), change).await
    }

    fn alive<'v>(&self, vm: Option<&'v Vm>, now: Timestamp) -> Result<&'v Vm> {
        vm.filter(|vm| vm.runs(&self.nonce, now))
            .ok_or_else(|| self.error(format!("has no boot {} running", self.nonce)))
    }

    fn disk_of(&self, vm: &Vm) -> Result<Disk> {
        self.sim.world.disk(&vm.machine.disk)?.ok_or_else(|| self.error(format!("lost its disk {}", vm.machine.disk)))
    }

    fn status_of(&self, vm: &Vm, now: Timestamp) -> Result<GuestStatus> {
        let disk = self.disk_of(vm)?;
        let (tree, disk) = (disk.tree, disk.filesystem);
        let nonce = self.nonce.clone();
        let Some(processes) = &vm.processes else {
            let build = BuildState::None;
            return Ok(GuestStatus { nonce, tree, processes: None, build, web: None, workers: Vec::new(), disk });
        };
        let (build, process, health) = processes.start(now);
        let runtime = &processes.set.runtime;
        let worker = |name: &_| WorkerStatus { name: Clone::clone(name), process: process.clone() };
        let workers = runtime.workers.iter().map(|declared| worker(&declared.name)).collect();
        let web = runtime.web.as_ref().map(|_| WebStatus { process: process.clone(), health });
        Ok(GuestStatus { nonce, tree, processes: Some(processes.set.digest()), build, web, workers, disk })
    }

    /// A status as the agent tells it by itself.
    fn told(&self, vm: &Vm, status: GuestStatus) -> Result<GuestStatus> {
        let forgetful = self.sim.script.current()?.fate(self.sandbox.as_str(), vm.launches).forgetful;
        Ok(if forgetful { GuestStatus { tree: None, ..status } } else { status })
    }

    /// Whether what `calm` says still stands.
    fn is_calm(&self, calm: &Calm) -> bool {
        let in_time = calm.until.is_none_or(|until| self.sim.world.now() < until);
        in_time && calm.stirs.are_quiet() && self.has_its_files(calm)
    }

    /// Whether the microVM's files are those that `calm` was found in. They are looked at only where some disk has changed since.
    fn has_its_files(&self, calm: &Calm) -> bool {
        let now = self.sim.world.disk_changes();
        let mut known = calm.disk_changes.lock().unwrap_or_else(PoisonError::into_inner);
        if now.is_some() && *known == now {
            return true;
        }
        let stands = self.sim.world.stands(&self.sandbox, &calm.disk, &calm.stamps);
        *known = now.filter(|_| stands);
        stands
    }

    /// Waits while nothing happens; whether nothing has happened until the deadline.
    async fn is_calm_until(&self, deadline: Instant) -> Result<bool> {
        let script = self.sim.script.lately()?;
        let is_scripted = script.may_fail(Operation::Status, self.sandbox.as_str())
            || !script.latency(Operation::Status, self.sandbox.as_str()).is_zero();
        let Some(calm) = self.calm().clone().filter(|_| !is_scripted) else { return Ok(false) };
        let now = self.sim.world.now();
        let until = calm.until.map(|at| Instant::now() + super::clock::until(at, now));
        let end = until.map_or(deadline, |until| until.min(deadline));
        // Either way it is time to look again.
        drop(tokio::time::timeout_at(end, calm.stirs.clone().changed()).await);
        Ok(Instant::now() >= deadline && self.is_calm(&calm))
    }

    /// The status, and what it follows from.
    fn look(&self, vm: &Vm, now: Timestamp) -> Result<GuestStatus> {
        // Subscribing and the stamps first: what is replaced between the two is another content the next time.
        let stirs = self.sim.world.stirs(&self.sandbox);
        let disk_changes = Mutex::new(self.sim.world.disk_changes());
        let disk = vm.machine.disk.clone();
        let stamps =
            self.sim.world.stamps(&self.sandbox, &disk)?.filter(|(vm, disk)| vm.is_settled() && disk.is_settled());
        // The microVM was read before the stamps, and may have been replaced since.
        let is_newest = stamps.is_some() && self.sim.world.vm(&self.sandbox)?.as_ref() == Some(vm);
        let status = self.status_of(vm, now)?;
        let calm = stamps.map(|stamps| Calm { disk, stamps, disk_changes, until: vm.next_change(now), stirs });
        *self.calm() = calm.filter(|_| is_newest).map(Arc::new);
        Ok(status)
    }

    /// The status as soon as it differs from `known`: the microVM is looked at whenever something about it changes.
    async fn watched_change(&self, known: &GuestStatus, deadline: Instant) -> Result<Option<Arc<GuestStatus>>> {
        let changed = |vm: Option<&Vm>, now| {
            *self.calm() = None;
            let vm = self.alive(vm, now)?;
            // A silent agent does not tell of changes.
            let status = if vm.answers(now) { Some(self.told(vm, self.look(vm, now)?)?) } else { None };
            Ok(status.filter(|status| status != known))
        };
        match self.sim.world.watch(&self.sandbox, Some(deadline), changed).await? {
            Some(status) => Ok(Some(Arc::new(status))),
            None => {
                let now = |vm| self.told(&vm, self.status_of(&vm, self.sim.world.now())?);
                let status = self.call(Operation::Status, now).await?;
                Ok((status != *known).then(|| Arc::new(status)))
            }
        }
    }

    fn calm(&self) -> MutexGuard<'_, Option<Arc<Calm>>> {
        self.calm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, problem: impl Into<String>) -> VmmError {
        VmmError::Guest { sandbox: self.sandbox.clone(), problem: problem.into() }
    }
}

#[async_trait]
impl Guest for SimGuest {
    fn nonce(&self) -> &BootNonce {
        &self.nonce
    }

    async fn status(&self) -> Result<Arc<GuestStatus>> {
        self.call(Operation::Status, |vm| self.status_of(&vm, self.sim.world.now()).map(Arc::new)).await
    }

    async fn status_change(&self, known: &GuestStatus, wait: Span) -> Result<Option<Arc<GuestStatus>>> {
        let deadline = Instant::now() + wait.as_duration();
        if self.is_calm_until(deadline).await? {
            return Ok(None);
        }
        // Boxed, since it is seldom needed: nearly all of many guests are calm.
        Box::pin(self.watched_change(known, deadline)).await
    }

    async fn manifest(&self) -> Result<Manifest> {
        let manifest = |vm| {
            let disk = self.disk_of(&vm)?;
            let entry = |(path, file): (String, File)| (path, ManifestEntry { blob: file.blob, kind: file.kind });
            Ok(Manifest { tree: disk.tree, files: disk.files.into_iter().map(entry).collect() })
        };
        self.call(Operation::Manifest, manifest).await
    }

    async fn sync(
        &self,
        tree: &TreeDigest,
        changed: BoxStream<'static, Result<WorkspaceFile>>,
        removed: Vec<String>,
    ) -> Result<()> {
        let file = |file: WorkspaceFile| (file.path, File { blob: file.entry.blob, kind: file.entry.kind });
        let changed: BTreeMap<String, File> = changed.map_ok(file).try_collect().await?;
        let sync = |vm: &mut Vm, disk: &mut Disk, _| {
            removed.iter().for_each(|path| drop(disk.files.remove(path)));
            disk.files.extend(changed);
            disk.tree = Some(tree.clone());
            vm.syncs += 1;
        };
        self.change(Operation::Sync, sync).await
    }

    async fn apply(&self, set: &ProcessSet, build: bool, restart: RestartScope) -> Result<()> {
        let script = self.sim.script.current()?;
        let apply = |vm: &mut Vm, disk: &mut Disk, now| {
            let order = Order { set, build, restart };
            vm.processes = Some(order.carry_out(vm, disk, &script, now));
            vm.applies += 1;
        };
        self.change(Operation::Apply, apply).await
    }

    async fn grow_disk(&self) -> Result<()> {
        self.change(Operation::GrowDisk, |_, disk, _| disk.filesystem = disk.size).await
    }

    async fn logs(&self, process: &str, _tail: u32, follow: bool) -> Result<BoxStream<'static, Result<Vec<u8>>>> {
        let line = format!("sim {process} boot {}\n", self.nonce).into_bytes();
        let is_there = |vm: &Vm| match process {
            "web" | "build" => true,
            worker => vm.processes.as_ref().is_some_and(|processes| {
                processes.set.runtime.workers.iter().any(|declared| declared.name.as_str() == worker)
            }),
        };
        let find = |vm| {
            if is_there(&vm) {
                Ok(())
            } else {
                Err(self.error(format!("did not give the log of {process}: there is no process {process}")))
            }
        };
        self.call(Operation::Logs, find).await?;
        let (world, sandbox, nonce) = (self.sim.world.clone(), self.sandbox.clone(), self.nonce.clone());
        // Nothing more is ever written, so following means staying until the end.
        let rest = stream::once(async move {
            if follow {
                world.ended(&sandbox, &nonce).await;
            }
        });
        Ok(stream::once(async { Ok(line) }).chain(rest.filter_map(|()| async { None })).boxed())
    }

    async fn exec(&self, argv: Vec<String>) -> Result<ExecOutput> {
        let stdout = format!("{}\n", argv.join(" ")).into_bytes();
        self.call(Operation::Exec, |_| Ok(ExecOutput { code: 0, stdout, stderr: Vec::new() })).await
    }

    async fn open_port(&self, port: u16) -> Result<Pin<Box<dyn Duplex>>> {
        let listens = |vm: Vm| {
            let web = vm.processes.as_ref().is_some_and(|processes| {
                let (_, process, _) = processes.start(self.sim.world.now());
                processes.set.runtime.web.is_some() && matches!(process, ProcessState::Running { .. })
            });
            if web { Ok(vm) } else { Err(self.error(format!("refused the connection to port {port}"))) }
        };
        let vm = self.call(Operation::OpenPort, listens).await?;
        let body = format!("sim {} {}\n", vm.machine.app, self.nonce);
        let (world, sandbox, nonce) = (self.sim.world.clone(), self.sandbox.clone(), self.nonce.clone());
        Ok(Box::pin(web::connect(body, async move { world.ended(&sandbox, &nonce).await })))
    }

    async fn freeze(&self) -> Result<()> {
        self.call(Operation::Freeze, |_| Ok(())).await
    }

    async fn freeze_processes(&self) -> Result<()> {
        self.call(Operation::Freeze, |_| Ok(())).await
    }

    async fn renew(&self, _renewal: &Renewal) -> Result<()> {
        self.call(Operation::Renew, |_| Ok(())).await
    }

    async fn leave_out(&self, snapshot: &SnapshotId, names: &[String]) -> Result<()> {
        let (before, names): (_, BTreeSet<&str>) = (self.left_out().await?, names.iter().map(String::as_str).collect());
        if before.as_ref() == Some(snapshot) {
            return Ok(());
        }
        if self.status().await?.processes.is_some() {
            return Err(self.error("leaves nothing out once something was applied"));
        }
        let leave_out = |_: &mut Vm, disk: &mut Disk, _| {
            let in_one = |path: &str| path.rsplit('/').skip(1).any(|directory| names.contains(directory));
            let had = disk.files.len();
            disk.files.retain(|path, _| !in_one(path));
            // What git put into them is to come again.
            disk.tree = disk.tree.take().filter(|_| disk.files.len() == had);
            disk.left_out = Some(snapshot.clone());
        };
        self.change(Operation::LeaveOut, leave_out).await
    }

    async fn left_out(&self) -> Result<Option<SnapshotId>> {
        self.call(Operation::Manifest, |vm| Ok(self.disk_of(&vm)?.left_out)).await
    }

    async fn thaw(&self) -> Result<()> {
        self.call(Operation::Thaw, |_| Ok(())).await
    }

    async fn shutdown(&self) -> Result<()> {
        let delay = self.sim.script.current()?.duration(Phase::Shutdown, self.sandbox.as_str());
        let shutdown = |vm: &mut Vm, _: &mut Disk, now| {
            let end = End { at: after(now, delay), reason: ExitReason::Shutdown };
            // A death that is due before it comes first.
            vm.end = Some(vm.end.take().filter(|earlier| earlier.at <= end.at).unwrap_or(end));
        };
        self.change(Operation::Shutdown, shutdown).await
    }
}

/// What the agent is told to run.
struct Order<'a> {
    set: &'a ProcessSet,
    build: bool,
    restart: RestartScope,
}

impl Order<'_> {
    /// What runs then, and how it will go.
    fn carry_out(&self, vm: &Vm, disk: &Disk, script: &Script, now: Timestamp) -> Processes {
        let sandbox = vm.machine.sandbox.as_str();
        let fate = script.fate(sandbox, vm.launches);
        let earlier = vm.processes.as_ref();
        let build = if self.build {
            self.build_outcome(disk, &fate)
        } else {
            earlier.map_or(BuildState::None, |earlier| earlier.build.clone())
        };
        let builds = self.build && matches!(build, BuildState::Passed { .. } | BuildState::Failed { .. });
        let build_until = if builds { after(now, script.duration(Phase::Build, sandbox)) } else { now };
        let healthy_from = match earlier.filter(|earlier| !self.restarts_web(&earlier.set)) {
            Some(earlier) => earlier.healthy_from,
            None => fate.healthy_from(after(build_until, script.duration(Phase::Ready, sandbox))),
        };
        Processes { set: self.set.clone(), build, build_until, healthy_from, unhealthy: fate.unhealthy }
    }

    fn build_outcome(&self, disk: &Disk, fate: &Fate) -> BuildState {
        let tree = disk.tree.clone().unwrap_or_else(|| TreeDigest("".into()));
        match (self.set.runtime.build.as_ref().and_then(|build| build.command.as_deref()), &fate.build_fails) {
            (None, _) => BuildState::None,
            (Some(""), _) => BuildState::Skipped,
            (Some(_), None) => BuildState::Passed { tree },
            (Some(_), Some(reason)) => BuildState::Failed { tree, reason: reason.clone() },
        }
    }

    fn restarts_web(&self, running: &ProcessSet) -> bool {
        let Some(web) = &self.set.runtime.web else { return false };
        let not_running = running.runtime.web.is_none();
        match self.restart {
            RestartScope::None => not_running,
            RestartScope::AfterTask => not_running || web.restart_after_task,
            RestartScope::All => true,
        }
    }
}

impl Fate {
    /// From when the web process is healthy that would be so at `ready` if nothing were wrong with it.
    fn healthy_from(&self, ready: Timestamp) -> Option<Timestamp> {
        match (&self.unhealthy, self.unhealthy_for) {
            (None, _) => Some(ready),
            (Some(_), Some(span)) => Some(after(ready, span.as_duration())),
            (Some(_), None) => None,
        }
    }
}
