//! The steps about snapshots: moments that are kept, what begins from them, and what is let go. Each answers for itself whether it
//! is needed and carries itself out, as all [`steps`](super::step) do.

use std::collections::BTreeSet;
use std::sync::Arc;

use setpoint_schema::id::{BootNonce, DiskId, SandboxId, SnapshotId};
use setpoint_schema::name::{AppKey, DirName};
use setpoint_schema::observed::{
    AppRecord, DiskRecord, DiskState, Kept, Machine, Moment, SnapshotRecord, SnapshotState,
};
use setpoint_schema::quantity::ByteSize;
use setpoint_schema::snapshot::Content;
use setpoint_state::{EventKind, NewEvent};
use setpoint_vmm::driver::{KeepDisk, Take, Taken};

use super::execute::crash_point;
use super::step::{ANSWER, Hands, StepError};
use crate::report::chain;

type Result<T> = std::result::Result<T, StepError>;

/// What to keep.
pub(super) struct Taking<'a> {
    pub snapshot: &'a SnapshotId,
    pub sandbox: &'a SandboxId,
    /// The boot that runs; none for a sandbox at rest, paused or ended.
    pub nonce: Option<&'a BootNonce>,
    pub disk: &'a DiskId,
    pub content: Content,
}

impl Hands {
    /// Keeps a moment, and writes down what came of it.
    pub(super) async fn take_snapshot(&self, taking: Taking<'_>) -> Result<()> {
        let record = self.snapshot_record(taking.snapshot)?;
        let now = self.observer.now();
        let taken = self.keep(&taking, record.moment.as_ref()).await;
        self.observer.nudge(taking.sandbox);
        match taken {
            // All of it is the driver's word: an earlier try may have kept another moment than the one that the row tells of now.
            Ok(Taken { at, moment, stopped, written, bytes }) => {
                crash_point("take-snapshot", "halfway");
                let stopped_ms = u64::try_from(stopped.as_millis()).unwrap_or(u64::MAX);
                let (app, snapshot) = (&record.app, &record.key);
                tracing::info!(%app, %snapshot, stopped_ms, %written, %bytes, "snapshot taken");
                let state = SnapshotState::Kept(Kept { at, bytes, stopped_ms });
                let message =
                    format!("{snapshot}@{}: {bytes}, the app stood still for {stopped_ms} ms", record.generation);
                let event = NewEvent::new(EventKind::SnapshotTaken, "Taken", message).app(app).sandbox(taking.sandbox);
                let kept = SnapshotRecord { moment: Some(moment), state, ..record.clone() };
                Ok(self.ledger.put_snapshot(&kept, vec![event]).await?)
            }
            Err(error) => {
                let failures = match record.state {
                    SnapshotState::Failed { failures, .. } => failures.saturating_add(1),
                    SnapshotState::Wanted { .. }
                    | SnapshotState::Kept(_)
                    | SnapshotState::Retained { .. }
                    | SnapshotState::Leaving => 1,
                };
                let state = SnapshotState::Failed { reason: chain(&error), at: now, failures };
                self.ledger.put_snapshot(&SnapshotRecord { state, ..record }, Vec::new()).await?;
                Err(error)
            }
        }
    }

    async fn keep(&self, taking: &Taking<'_>, moment: Option<&Moment>) -> Result<Taken> {
        let Taking { snapshot, sandbox, nonce, disk, content } = *taking;
        let moment = moment.ok_or_else(|| StepError::NoSnapshot(snapshot.clone()))?;
        let agent = match nonce {
            Some(nonce) => Some(self.observer.answering(sandbox, nonce, ANSWER).await.map_err(StepError::Agent)?),
            None => None,
        };
        let agent = agent.as_deref();
        Ok(match content {
            Content::Memory => self.driver.take_snapshot(Take { sandbox, snapshot, agent, moment }).await?,
            Content::Disk => self.driver.keep_disk(KeepDisk { sandbox, disk, snapshot, agent, moment }).await?,
        })
    }

    /// Begins where a snapshot was taken. One whose disk is its own by now boots from that: what it has become is not lost.
    pub(super) async fn launch_from(&self, machine: &Machine, snapshot: &SnapshotId, size: ByteSize) -> Result<()> {
        let (id, app) = (machine.disk.clone(), machine.app.clone());
        // One that has begun before may have grown since.
        let size = self.ledger.disk(&id).map_or(size, |known| known.size.max(size));
        self.ledger.put_disk(&DiskRecord { id, app, size, state: DiskState::InUse }).await?;
        crash_point("launch-from", "halfway");
        let launched = self.driver.launch_from(machine, snapshot).await;
        self.observer.nudge(&machine.sandbox);
        Ok(launched?)
    }

    pub(super) async fn lacks_copy(&self, disk: &DiskId, app: &AppKey, size: ByteSize) -> Result<bool> {
        let wanted = copied(disk, app, size);
        Ok(self.ledger.disk(disk).as_deref() != Some(&wanted) || self.driver.disk_size(disk).await? < Some(size))
    }

    /// The inventory comes first, as for any disk.
    pub(super) async fn copy_disk(
        &self,
        disk: &DiskId,
        app: &AppKey,
        size: ByteSize,
        snapshot: &SnapshotId,
    ) -> Result<()> {
        self.ledger.put_disk(&copied(disk, app, size)).await?;
        crash_point("copy-disk", "halfway");
        self.driver.ensure_disk_from(disk, snapshot, size).await?;
        // One that was there is as long as it was made.
        if self.driver.disk_size(disk).await? < Some(size) {
            self.driver.ensure_disk(disk, size, self.ledger.user_of_disk(disk).as_ref()).await?;
        }
        Ok(())
    }

    pub(super) async fn leave_out(
        &self,
        sandbox: &SandboxId,
        snapshot: &SnapshotId,
        names: &BTreeSet<DirName>,
    ) -> Result<()> {
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        Ok(self.agent_of(sandbox).await?.leave_out(snapshot, &names).await?)
    }

    pub(super) async fn has_files(&self, snapshot: &SnapshotId) -> Result<bool> {
        Ok(self.driver.list_snapshots().await?.iter().any(|(id, _)| id == snapshot))
    }

    pub(super) async fn record_restored(&self, app: &AppKey, token: &str) -> Result<()> {
        let (key, token) = (app.clone(), token.to_owned());
        let change = move |records: &std::collections::BTreeMap<AppKey, Arc<AppRecord>>| {
            let record = records.get(&key).filter(|record| !record.has_restored(&token));
            let restored =
                record.map(|record| AppRecord { restored: record.restored_with(&token), ..AppRecord::clone(record) });
            restored.into_iter().collect()
        };
        Ok(self.ledger.note(Vec::new(), change).await?)
    }

    pub(super) fn is_restored(&self, app: &AppKey, token: &str) -> bool {
        self.ledger.app(app).is_none_or(|record| record.has_restored(token))
    }

    fn snapshot_record(&self, id: &SnapshotId) -> Result<SnapshotRecord> {
        let record = self.ledger.snapshot(id).ok_or_else(|| StepError::NoSnapshot(id.clone()))?;
        Ok(SnapshotRecord::clone(&record))
    }
}

fn copied(disk: &DiskId, app: &AppKey, size: ByteSize) -> DiskRecord {
    DiskRecord { id: disk.clone(), app: app.clone(), size, state: DiskState::InUse }
}
