//! One step of a plan: is it needed, do it, see that it is done.
//!
//! Whether a step is needed is asked of the world and of nothing else. One that is not needed is skipped, and one that has been
//! carried out is not needed any more: so the same question serves before and after, and each step is safe to carry out again
//! after a crash at any point of it.

use std::sync::Arc;
use std::time::Duration;

use setpoint_plan::desired::DesiredTemplateRoot;
use setpoint_plan::model::{BuildStep, Restart, Step};
use setpoint_schema::app::{PinnedSpec, Timeouts};
use setpoint_schema::id::{BootNonce, CommitId, DiskId, Generation, SandboxId, SnapshotId, TemplateDigest};
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{Applied, DiskRecord, DiskState, Machine, SandboxRecord, VmState};
use setpoint_schema::quantity::{ByteSize, Span};
use setpoint_schema::runtime::ProcessSet;
use setpoint_vmm::driver::{Cold, Driver, Guest, Launched, Pause, Paused, RestartScope, VmmError};
use tokio_util::sync::CancellationToken;

use crate::converge::execute::crash_point;
use crate::converge::files::{self, FilesError};
use crate::converge::moments::Taking;
use crate::converge::warm::Warmer;
use crate::idle::Uses;
use crate::ledger::{Ledger, Row};
use crate::metrics::Metrics;
use crate::observe::Observer;
use crate::report::chain;
use crate::source::Repository;

/// Everything that a step acts through.
#[derive(Clone)]
pub struct Hands {
    /// Runs microVMs.
    pub driver: Arc<dyn Driver>,
    /// Knows what they do, and holds the connections to their agents.
    pub observer: Observer,
    /// Remembers.
    pub ledger: Ledger,
    /// Holds the workspace files and templates.
    pub source: Arc<Repository>,
    /// Counts.
    pub metrics: Metrics,
    /// Has warm templates made.
    pub warmer: Warmer,
    /// Knows who uses which app.
    pub uses: Uses,
}

/// Why a step failed; the cause is the source.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The driver or the guest.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// The store.
    #[error(transparent)]
    State(#[from] setpoint_state::StateError),
    /// The workspace or the template could not be read or sent.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The agent did not answer.
    #[error("{0}")]
    Agent(String),
    /// The inventory does not hold what the plan was made from.
    #[error("sandbox {0} is not in the inventory")]
    NoRecord(SandboxId),
    /// The same of a snapshot.
    #[error("snapshot {0} is not in the inventory")]
    NoSnapshot(SnapshotId),
    /// The step did all it does, and is still needed.
    #[error("{0} had no effect")]
    NoEffect(&'static str),
}

/// The guest needs this long at most for one answer; under emulation on a loaded host, seconds are normal.
pub(super) const ANSWER: Duration = Duration::from_secs(30);

impl Hands {
    /// Carries out one step, unless the world already is as it wants.
    ///
    /// # Errors
    /// Why the world is not as the step wants.
    pub async fn carry_out(&self, step: &Step) -> Result<(), StepError> {
        if !self.is_needed(step).await? {
            return Ok(());
        }
        self.apply(step).await?;
        if self.is_needed(step).await? { Err(StepError::NoEffect(step.name())) } else { Ok(()) }
    }

    /// As [`Self::carry_out`], but for a pause, which ends at once and undoes itself when it is cancelled: then `None`.
    ///
    /// # Errors
    /// Why the world is not as the step wants.
    pub async fn carry_out_unless(&self, step: &Step, cancel: &CancellationToken) -> Result<Option<()>, StepError> {
        match step {
            Step::Pause { sandbox, nonce, snapshot } if self.is_needed(step).await? => {
                self.pause(sandbox, nonce, snapshot, cancel).await
            }
            _ => self.carry_out(step).await.map(Some),
        }
    }

    /// What has to be written down for a step before it acts on anything else, if it does at all.
    pub(super) async fn part(&self, step: &Step) -> Part {
        match step {
            Step::Record(record) => {
                let is_known = self.ledger.sandbox(&record.id).as_deref() == Some(&**record);
                Part::Written((!is_known).then(|| Row::Sandbox(Arc::new(SandboxRecord::clone(record)))))
            }
            Step::RecordApplied { sandbox, spec, generation, revision } => match self.record(sandbox) {
                Ok(record) if is_applied(&record, spec, *generation, revision) => Part::Written(None),
                Ok(record) => {
                    let applied = self.applied(&record, spec, *generation, revision);
                    Part::Written(Some(Row::Sandbox(Arc::new(applied))))
                }
                // Carrying it out says why it cannot be.
                Err(_) => Part::Acts(None),
            },
            Step::EnsureDisk { disk, app, size } => {
                let record = wanted_disk(disk, app, *size);
                let is_known = self.ledger.disk(disk).as_deref() == Some(&record);
                Part::Acts((!is_known).then(|| Row::Disk(Arc::new(record))))
            }
            Step::EnsureTemplate { digest, .. } => match self.driver.has_template(digest).await {
                Ok(true) => Part::Written(None),
                Ok(false) | Err(_) => Part::Acts(None),
            },
            Step::GrowDisk { .. }
            | Step::Launch(_)
            | Step::Resume(_)
            | Step::Pause { .. }
            | Step::AwaitAgent { .. }
            | Step::SyncFiles { .. }
            | Step::ApplyProcesses { .. }
            | Step::Stop { .. }
            | Step::RemoveVm(_)
            | Step::ReleaseDisk { .. }
            | Step::Forget(_)
            | Step::RecordSnapshot(_)
            | Step::TakeSnapshot { .. }
            | Step::LaunchFrom { .. }
            | Step::CopyDisk { .. }
            | Step::LeaveOut { .. }
            | Step::RemoveSnapshot(_)
            | Step::ForgetSnapshot(_)
            | Step::RecordRestored { .. } => Part::Acts(None),
        }
    }

    async fn is_needed(&self, step: &Step) -> Result<bool, StepError> {
        Ok(match step {
            Step::Record(record) => self.ledger.sandbox(&record.id).as_deref() != Some(&**record),
            Step::EnsureTemplate { digest, .. } => !self.driver.has_template(digest).await?,
            Step::EnsureDisk { disk, app, size } => {
                let wanted = wanted_disk(disk, app, *size);
                self.ledger.disk(disk).as_deref() != Some(&wanted) || self.driver.disk_size(disk).await? < Some(*size)
            }
            Step::GrowDisk { sandbox, size } => self.agent_of(sandbox).await?.status().await?.disk < usable(*size),
            Step::Launch(machine) | Step::Resume(machine) => !self.runs(&machine.sandbox, Some(machine)).await?,
            Step::Pause { sandbox, .. } => self.runs(sandbox, None).await?,
            Step::AwaitAgent { sandbox, .. } => {
                let record = self.record(sandbox)?;
                self.observer.view(sandbox).answering(&record.machine.nonce).is_none()
            }
            Step::SyncFiles { sandbox, tree, .. } => {
                self.agent_of(sandbox).await?.status().await?.tree.as_ref() != Some(tree)
            }
            Step::ApplyProcesses { sandbox, set, .. } => {
                self.agent_of(sandbox).await?.status().await?.processes.as_ref() != Some(&set.digest())
            }
            // A monitor that does not answer says nothing about whether there is something to end.
            Step::Stop { sandbox, .. } => self.runs(sandbox, None).await.unwrap_or(true),
            Step::RemoveVm(sandbox) => self.driver.observe(sandbox).await? != VmState::Absent,
            Step::ReleaseDisk { disk, keep } => self.disk_is_held(disk, keep.as_ref()).await?,
            Step::RecordApplied { sandbox, spec, generation, revision } => {
                !is_applied(&*self.record(sandbox)?, spec, *generation, revision)
            }
            Step::Forget(sandbox) => self.ledger.sandbox(sandbox).is_some(),
            Step::RecordSnapshot(record) => self.ledger.snapshot(&record.id).as_deref() != Some(&**record),
            Step::TakeSnapshot { snapshot, .. } => {
                self.ledger.snapshot(snapshot).is_none_or(|record| record.kept().is_none())
            }
            Step::LaunchFrom { machine, .. } => !self.runs(&machine.sandbox, Some(machine)).await?,
            Step::CopyDisk { disk, app, size, snapshot: _ } => self.lacks_copy(disk, app, *size).await?,
            Step::LeaveOut { sandbox, snapshot, names: _ } => {
                self.agent_of(sandbox).await?.left_out().await?.as_ref() != Some(snapshot)
            }
            Step::RemoveSnapshot(snapshot) => self.has_files(snapshot).await?,
            Step::ForgetSnapshot(snapshot) => self.ledger.snapshot(snapshot).is_some(),
            Step::RecordRestored { app, token } => !self.is_restored(app, token),
        })
    }

    async fn apply(&self, step: &Step) -> Result<(), StepError> {
        match step {
            Step::Record(record) => Ok(self.ledger.put_sandbox(record).await?),
            Step::EnsureTemplate { digest, root } => self.make_template(digest, root).await,
            Step::EnsureDisk { disk, app, size } => self.ensure_disk(disk, app, *size).await,
            Step::GrowDisk { sandbox, .. } => Ok(self.agent_of(sandbox).await?.grow_disk().await?),
            Step::Launch(machine) => self.launch(machine).await,
            Step::Pause { sandbox, nonce, snapshot } => {
                self.pause(sandbox, nonce, snapshot, &CancellationToken::new()).await.map(drop)
            }
            Step::Resume(machine) => self.resume(machine).await,
            Step::AwaitAgent { sandbox, timeouts } => self.await_agent(sandbox, timeouts).await,
            Step::SyncFiles { sandbox, tree, revision, path } => {
                let agent = self.agent_of(sandbox).await?;
                Ok(files::sync(&self.source, agent.as_ref(), revision, path, tree).await?)
            }
            Step::ApplyProcesses { sandbox, set, build, restart } => {
                self.apply_processes(sandbox, set, *build, *restart).await
            }
            Step::Stop { sandbox, grace } => self.stop(sandbox, *grace).await,
            Step::RemoveVm(sandbox) => {
                self.driver.remove(sandbox).await?;
                self.observer.nudge(sandbox);
                Ok(())
            }
            Step::ReleaseDisk { disk, keep } => self.release_disk(disk, keep.as_ref()).await,
            Step::RecordApplied { sandbox, spec, generation, revision } => {
                self.record_applied(sandbox, spec, *generation, revision).await
            }
            Step::Forget(sandbox) => {
                self.ledger.forget_sandbox(sandbox).await?;
                self.observer.forget(sandbox);
                Ok(())
            }
            Step::RecordSnapshot(record) => Ok(self.ledger.put_snapshot(record, Vec::new()).await?),
            Step::TakeSnapshot { snapshot, sandbox, nonce, disk, content } => {
                let (nonce, content) = (nonce.as_ref(), *content);
                self.take_snapshot(Taking { snapshot, sandbox, nonce, disk, content }).await
            }
            Step::LaunchFrom { machine, snapshot, size } => self.launch_from(machine, snapshot, *size).await,
            Step::CopyDisk { disk, app, size, snapshot } => self.copy_disk(disk, app, *size, snapshot).await,
            Step::LeaveOut { sandbox, snapshot, names } => self.leave_out(sandbox, snapshot, names).await,
            Step::RemoveSnapshot(snapshot) => Ok(self.driver.remove_snapshot(snapshot).await?),
            Step::ForgetSnapshot(snapshot) => {
                // What a try that was cut short has left is in no list of the driver's.
                self.driver.remove_snapshot(snapshot).await?;
                Ok(self.ledger.forget_snapshot(snapshot).await?)
            }
            Step::RecordRestored { app, token } => self.record_restored(app, token).await,
        }
    }

    pub(super) async fn make_template(
        &self,
        digest: &TemplateDigest,
        root: &DesiredTemplateRoot,
    ) -> Result<(), StepError> {
        let exported = files::template_source(&self.source, root).await?;
        let source = exported.as_ref().map(files::Exported::source);
        Ok(self.driver.make_template(digest, source).await?)
    }

    /// The inventory comes first: a disk that nothing records could never be found again.
    async fn ensure_disk(&self, disk: &DiskId, app: &AppKey, size: ByteSize) -> Result<(), StepError> {
        let record = wanted_disk(disk, app, size);
        if self.ledger.disk(disk).as_deref() != Some(&record) {
            self.ledger.put_disk(&record).await?;
        }
        crash_point("ensure-disk", "halfway");
        let user = self.ledger.user_of_disk(disk);
        Ok(self.driver.ensure_disk(disk, size, user.as_ref()).await?)
    }

    async fn launch(&self, machine: &Machine) -> Result<(), StepError> {
        let launched = self.driver.launch(machine).await;
        self.observer.nudge(&machine.sandbox);
        let sandbox = &machine.sandbox;
        match launched? {
            Launched::Already => {}
            Launched::Warm => tracing::debug!(%sandbox, "began from a warm template"),
            Launched::Cold(why) => {
                if let Cold::Failed(reason) = why {
                    tracing::warn!(%sandbox, reason, "a warm template could not be used, so it boots");
                }
                self.warmer.want(machine);
            }
        }
        Ok(())
    }

    /// Saves the microVM, then ends it; nothing, if it was cancelled and runs on.
    async fn pause(
        &self,
        sandbox: &SandboxId,
        nonce: &BootNonce,
        snapshot: &SnapshotId,
        cancel: &CancellationToken,
    ) -> Result<Option<()>, StepError> {
        let agent = self.observer.answering(sandbox, nonce, ANSWER).await.map_err(StepError::Agent)?;
        let pause = Pause { sandbox, nonce, snapshot, agent: agent.as_ref(), cancel };
        let paused = self.driver.pause(pause).await;
        self.observer.nudge(sandbox);
        match paused? {
            Paused::Saved { bytes: _ } => Ok(Some(())),
            Paused::Cancelled => Ok(None),
        }
    }

    async fn resume(&self, machine: &Machine) -> Result<(), StepError> {
        let resumed = self.driver.resume(machine).await;
        self.observer.nudge(&machine.sandbox);
        Ok(resumed?)
    }

    async fn await_agent(&self, sandbox: &SandboxId, timeouts: &Timeouts) -> Result<(), StepError> {
        let nonce = self.record(sandbox)?.machine.nonce.clone();
        let answer = self.observer.answering(sandbox, &nonce, timeouts.boot.as_duration()).await;
        answer.map(drop).map_err(StepError::Agent)
    }

    async fn apply_processes(
        &self,
        sandbox: &SandboxId,
        set: &ProcessSet,
        build: BuildStep,
        restart: Restart,
    ) -> Result<(), StepError> {
        let scope = match restart {
            Restart::None => RestartScope::None,
            Restart::AfterTask => RestartScope::AfterTask,
            Restart::All => RestartScope::All,
        };
        Ok(self.agent_of(sandbox).await?.apply(set, matches!(build, BuildStep::Run), scope).await?)
    }

    /// Asks the guest to shut down, and ends the microVM when it does not within its time or cannot be asked.
    async fn stop(&self, sandbox: &SandboxId, grace: Option<Span>) -> Result<(), StepError> {
        match (self.driver.observe(sandbox).await, grace) {
            (Ok(VmState::Absent | VmState::Exited { .. } | VmState::Paused { .. }), _) => return Ok(()),
            (Ok(VmState::Running { nonce, .. }), Some(grace)) => self.shut_down(sandbox, &nonce, grace).await,
            (Ok(VmState::Running { .. }), None) => {}
            (Err(error), _) => tracing::warn!(%sandbox, error = %chain(&error), "microVM is ended without being asked"),
        }
        self.driver.kill(sandbox).await?;
        self.observer.nudge(sandbox);
        Ok(())
    }

    /// Gives the guest its time for a clean end. What comes of it shows in whether the microVM still runs.
    async fn shut_down(&self, sandbox: &SandboxId, nonce: &BootNonce, grace: Span) {
        let Some(agent) = self.observer.view(sandbox).answering(nonce) else { return };
        let clean = async {
            agent.shutdown().await?;
            self.driver.exited(sandbox, nonce).await;
            Ok::<(), VmmError>(())
        };
        match tokio::time::timeout(grace.as_duration(), clean).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%sandbox, error = %chain(&error), "guest refused to shut down"),
            Err(_) => tracing::warn!(%sandbox, %grace, "guest did not shut down in time"),
        }
    }

    async fn disk_is_held(&self, disk: &DiskId, keep: Option<&DiskState>) -> Result<bool, StepError> {
        let record = self.ledger.disk(disk);
        Ok(match keep {
            Some(state) => record.is_some_and(|record| record.state != *state),
            None => record.is_some() || self.driver.disk_size(disk).await?.is_some(),
        })
    }

    async fn release_disk(&self, disk: &DiskId, keep: Option<&DiskState>) -> Result<(), StepError> {
        match (keep, self.ledger.disk(disk)) {
            (Some(state), Some(record)) => {
                Ok(self.ledger.put_disk(&DiskRecord { state: state.clone(), ..DiskRecord::clone(&record) }).await?)
            }
            (Some(_), None) => Ok(()),
            // The row goes last: until the file is gone, something must remember it.
            (None, _) => {
                self.driver.delete_disk(disk).await?;
                crash_point("release-disk", "halfway");
                Ok(self.ledger.forget_disk(disk).await?)
            }
        }
    }

    async fn record_applied(
        &self,
        sandbox: &SandboxId,
        spec: &PinnedSpec,
        generation: Generation,
        revision: &CommitId,
    ) -> Result<(), StepError> {
        let record = self.applied(&*self.record(sandbox)?, spec, generation, revision);
        Ok(self.ledger.put_sandbox(&record).await?)
    }

    /// The row of a sandbox in which this has been carried out.
    fn applied(
        &self,
        record: &SandboxRecord,
        spec: &PinnedSpec,
        generation: Generation,
        revision: &CommitId,
    ) -> SandboxRecord {
        let (spec, revision) = (spec.clone(), revision.clone());
        SandboxRecord {
            applied: Some(Applied { spec, generation, revision, at: self.observer.now() }),
            ..record.clone()
        }
    }

    fn record(&self, sandbox: &SandboxId) -> Result<Arc<SandboxRecord>, StepError> {
        self.ledger.sandbox(sandbox).ok_or_else(|| StepError::NoRecord(sandbox.clone()))
    }

    /// The agent of the boot that the inventory names.
    pub(super) async fn agent_of(&self, sandbox: &SandboxId) -> Result<Arc<dyn Guest>, StepError> {
        let nonce = self.record(sandbox)?.machine.nonce.clone();
        self.observer.answering(sandbox, &nonce, ANSWER).await.map_err(StepError::Agent)
    }

    /// Whether the sandbox runs, and if a machine is given, runs that boot of it.
    pub(super) async fn runs(&self, sandbox: &SandboxId, machine: Option<&Machine>) -> Result<bool, StepError> {
        Ok(match self.driver.observe(sandbox).await? {
            VmState::Running { nonce, .. } => machine.is_none_or(|machine| machine.nonce == nonce),
            VmState::Absent | VmState::Exited { .. } | VmState::Paused { .. } => false,
        })
    }
}

/// What of a step is done by writing it down.
pub(super) enum Part {
    /// All of it, and this row besides, if it is another one than there is.
    Written(Option<Row>),
    /// It acts on more than the inventory, in which this row comes first.
    Acts(Option<Row>),
}

fn wanted_disk(disk: &DiskId, app: &AppKey, size: ByteSize) -> DiskRecord {
    DiskRecord { id: disk.clone(), app: app.clone(), size, state: DiskState::InUse }
}

fn is_applied(record: &SandboxRecord, spec: &PinnedSpec, generation: Generation, revision: &CommitId) -> bool {
    record.applied.as_ref().is_some_and(|applied| {
        applied.spec == *spec && applied.generation == generation && applied.revision == *revision
    })
}

/// What a file system of a disk of this size reports at least: ext4 keeps its tables and journal to itself.
fn usable(size: ByteSize) -> ByteSize {
    ByteSize::bytes(size.as_bytes() / 100 * 80)
}
