//! A host as the planner sees it: one on which nothing exists, and one on which all is as declared.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use setpoint_plan::desired::Desired;
use setpoint_schema::app::DesiredApp;
use setpoint_schema::id::{BootNonce, CommitId, DiskId, Generation, HostId, SandboxId};
use setpoint_schema::observed::{
    AppRecord, Applied, BuildState, DiskRecord, DiskState, GuestState, GuestStatus, Health, Intent, LastGood, Limits,
    Machine, Observed, ObservedSandbox, ProcessState, Retry, SandboxRecord, VmState, WebStatus, WorkerStatus,
};
use setpoint_schema::quantity::ByteSize;
use setpoint_schema::shared::SharedMap;

/// A host where nothing exists and everything fits.
pub fn empty() -> Observed {
    let plenty = ByteSize::gib(1 << 20);
    Observed {
        host: HostId("bench".to_owned()),
        limits: Limits { memory: plenty, vcpus: u32::MAX, disk: plenty, sandboxes: u32::MAX },
        sandboxes: SharedMap::new(),
        unrecorded: Vec::new(),
        disks: SharedMap::new(),
        apps: SharedMap::new(),
    }
}

/// A host where everything is as declared, and answers.
pub fn converged(desired: &Desired, now: Timestamp) -> Observed {
    let apps = desired.apps.values();
    Observed {
        sandboxes: apps
            .clone()
            .map(|app| (sandbox_id(app), Arc::new(sandbox(app, now))))
            .collect::<BTreeMap<_, _>>()
            .into_iter()
            .collect(),
        disks: apps
            .clone()
            .map(|app| (disk_id(app), Arc::new(disk(app))))
            .collect::<BTreeMap<_, _>>()
            .into_iter()
            .collect(),
        apps: apps.map(|app| (app.metadata.key.clone(), Arc::new(record(app, &desired.revision)))).collect(),
        ..empty()
    }
}

fn sandbox_id(app: &DesiredApp) -> SandboxId {
    SandboxId(format!("{}-00000000", app.metadata.key.name))
}

fn disk_id(app: &DesiredApp) -> DiskId {
    DiskId(format!("{}-00000000", app.metadata.key.name))
}

fn disk(app: &DesiredApp) -> DiskRecord {
    let size = app.spec.app.resources.disk.0;
    DiskRecord { id: disk_id(app), app: app.metadata.key.clone(), size, state: DiskState::InUse }
}

fn record(app: &Arc<DesiredApp>, revision: &CommitId) -> AppRecord {
    AppRecord {
        key: app.metadata.key.clone(),
        generation: Generation(1),
        digest: app.spec.digest().clone(),
        last_good: LastGood { app: Arc::clone(app), revision: revision.clone() },
        retry: Retry::default(),
        heals: Vec::new(),
        suspended: None,
    }
}

fn sandbox(app: &DesiredApp, at: Timestamp) -> ObservedSandbox {
    let (spec, revision, nonce) = (app.spec.clone(), CommitId("0".repeat(40)), BootNonce("0".repeat(32)));
    let machine = Machine {
        sandbox: sandbox_id(app),
        app: app.metadata.key.clone(),
        uid: None,
        nonce: nonce.clone(),
        vcpus: spec.app.resources.vcpus,
        memory_mib: spec.app.resources.memory.as_mib(),
        template: spec.template.clone(),
        disk: disk_id(app),
    };
    let running = || ProcessState::Running { restarts: 0 };
    let status = GuestStatus {
        nonce: nonce.clone(),
        tree: Some(spec.files.clone()),
        processes: Some(spec.processes_digest().clone()),
        build: BuildState::None,
        web: Some(WebStatus { process: running(), health: Health::Healthy }),
        workers: spec
            .runtime()
            .workers
            .iter()
            .map(|worker| WorkerStatus { name: worker.name.clone(), process: running() })
            .collect(),
        disk: spec.app.resources.disk.0,
    };
    let record = SandboxRecord {
        id: sandbox_id(app),
        app: app.metadata.key.clone(),
        uid: None,
        host: HostId("bench".to_owned()),
        disk: disk_id(app),
        machine,
        applied: Some(Applied { spec, generation: Generation(1), revision, at }),
        intent: Intent::Keep,
        created_at: at,
    };
    ObservedSandbox { record, vm: VmState::Running { nonce, since: at }, guest: GuestState::Answering(status) }
}
