//! A world made up from a revision: what would be observed, had it been carried out in full on a host without limits.
//!
//! So the planner shows what changes between two revisions without anybody looking at a host. Called by previews, and by benches for their worlds.

use std::sync::Arc;

use jiff::Timestamp;
use setpoint_schema::app::{DesiredApp, Power};
use setpoint_schema::id::{BootNonce, CommitId, DiskId, Generation, HostId, SandboxId, SnapshotId};
use setpoint_schema::observed::{
    AppRecord, Applied, BuildState, DiskRecord, DiskState, ExitReason, GuestState, GuestStatus, Health, Intent, Kept,
    LastGood, Limits, Machine, Moment, Observed, ObservedSandbox, ProcessState, Retry, SandboxRecord, SnapshotCause,
    SnapshotRecord, SnapshotState, VmState, WebStatus, WorkerStatus,
};
use setpoint_schema::quantity::ByteSize;
use setpoint_schema::shared::SharedMap;
use setpoint_schema::snapshot::{DesiredSnapshot, SnapshotSpec};

use crate::desired::Desired;

/// The time in a made-up world. A plan for one has to be made at this time, so that the same revisions give the same plan.
pub const NOW: Timestamp = Timestamp::UNIX_EPOCH;

/// The world as it would be observed once everything that `desired` declares were carried out and well.
#[must_use]
pub fn carried_out(desired: &Desired) -> Observed {
    let mut world = nothing();
    for (key, app) in &desired.apps {
        let (sandbox, disk, memory) =
            (sandbox(app, desired.revision_of(key)), disk(app), memory(app, desired.revision_of(key)));
        world.sandboxes.insert(sandbox.record.id.clone(), Arc::new(sandbox));
        world.disks.insert(disk.id.clone(), Arc::new(disk));
        world.apps.insert(key.clone(), Arc::new(memory));
    }
    for declared in desired.snapshots.values() {
        let record = snapshot(desired, declared);
        world.snapshots.insert(record.id.clone(), Arc::new(record));
    }
    world
}

/// The same world before anything is in it.
#[must_use]
pub fn nothing() -> Observed {
    Observed {
        host: HostId("assumed".into()),
        limits: Limits { memory: UNLIMITED, vcpus: u32::MAX, disk: UNLIMITED, sandboxes: u32::MAX },
        sandboxes: SharedMap::new(),
        unrecorded: Vec::new(),
        disks: SharedMap::new(),
        apps: SharedMap::new(),
        snapshots: SharedMap::new(),
    }
}

const UNLIMITED: ByteSize = ByteSize::bytes(u64::MAX);

/// The generation that everything is in: nobody counted.
const GENERATION: Generation = Generation(1);

/// Ids are never shown and only have to differ, which keys do.
fn sandbox_id(app: &DesiredApp) -> SandboxId {
    SandboxId(format!("{} assumed", app.metadata.key).into())
}

fn disk_id(app: &DesiredApp) -> DiskId {
    DiskId(format!("{} assumed", app.metadata.key).into())
}

fn nonce(app: &DesiredApp) -> BootNonce {
    BootNonce(format!("{} assumed", app.metadata.key).into())
}

fn sandbox(app: &DesiredApp, revision: &CommitId) -> ObservedSandbox {
    let (vm, guest) = match app.spec.app.power.state {
        Power::Running => {
            (VmState::Running { nonce: nonce(app), since: NOW }, GuestState::Answering(Arc::new(healthy(app))))
        }
        Power::Paused => {
            let vm = VmState::Paused { nonce: nonce(app), since: NOW, bytes: ByteSize::default(), fault: None };
            (vm, GuestState::Absent)
        }
        Power::Stopped => (VmState::Exited { reason: ExitReason::Shutdown }, GuestState::Absent),
    };
    ObservedSandbox { record: Arc::new(record(app, revision)), vm, guest }
}

fn record(app: &DesiredApp, revision: &CommitId) -> SandboxRecord {
    let resources = &app.spec.app.resources;
    let machine = Machine {
        sandbox: sandbox_id(app),
        app: app.metadata.key.clone(),
        uid: app.metadata.uid.clone(),
        nonce: nonce(app),
        vcpus: resources.vcpus,
        memory_mib: resources.memory.as_mib(),
        template: app.spec.template.clone(),
        disk: disk_id(app),
    };
    SandboxRecord {
        id: sandbox_id(app),
        app: app.metadata.key.clone(),
        uid: app.metadata.uid.clone(),
        host: HostId("assumed".into()),
        disk: disk_id(app),
        from: None,
        origin: None,
        machine,
        applied: Some(Applied { spec: app.spec.clone(), generation: GENERATION, revision: revision.clone(), at: NOW }),
        intent: Intent::Keep,
        created_at: NOW,
    }
}

fn healthy(app: &DesiredApp) -> GuestStatus {
    let runtime = app.spec.runtime();
    let running = ProcessState::Running { restarts: 0 };
    let workers = runtime.workers.iter();
    GuestStatus {
        nonce: nonce(app),
        tree: Some(app.spec.files.clone()),
        processes: Some(app.spec.processes_digest().clone()),
        build: BuildState::None,
        web: runtime.web.as_ref().map(|_| WebStatus { process: running.clone(), health: Health::Healthy }),
        workers: workers.map(|worker| WorkerStatus { name: worker.name.clone(), process: running.clone() }).collect(),
        disk: app.spec.app.resources.disk.0,
    }
}

fn snapshot(desired: &Desired, declared: &DesiredSnapshot) -> SnapshotRecord {
    let SnapshotSpec { of, content, exclude, keep: _, retain, token: _ } = &declared.spec;
    let moment = desired.apps.get(of).map(|app| {
        let record = record(app, desired.revision_of(of));
        Moment {
            sandbox: record.id,
            machine: record.machine,
            disk: app.spec.app.resources.disk.0,
            revision: Some(desired.revision_of(of).clone()),
            tree: Some(app.spec.files.clone()),
        }
    });
    SnapshotRecord {
        id: SnapshotId(format!("{} assumed", declared.metadata.key)),
        key: declared.metadata.key.clone(),
        app: of.clone(),
        generation: GENERATION,
        cause: SnapshotCause::Declared { digest: declared.digest.clone() },
        content: *content,
        exclude: exclude.clone(),
        retain: *retain,
        moment,
        state: SnapshotState::Kept(Kept { at: NOW, bytes: ByteSize::default(), stopped_ms: 0 }),
    }
}

fn disk(app: &DesiredApp) -> DiskRecord {
    let size = app.spec.app.resources.disk.0;
    DiskRecord { id: disk_id(app), app: app.metadata.key.clone(), size, state: DiskState::InUse }
}

fn memory(app: &Arc<DesiredApp>, revision: &CommitId) -> AppRecord {
    AppRecord {
        key: app.metadata.key.clone(),
        generation: GENERATION,
        digest: app.spec.digest().clone(),
        last_good: LastGood { app: Arc::clone(app), revision: revision.clone() },
        retry: Retry::default(),
        heals: Vec::new(),
        repeats: Vec::new(),
        suspended: None,
        power: None,
        restored: app.spec.app.restore.iter().map(|restore| restore.token.clone()).collect(),
        usage: None,
    }
}
