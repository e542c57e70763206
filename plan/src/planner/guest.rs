//! What a guest that answers still needs: files, processes, the size of its disk.

use setpoint_schema::app::PinnedSpec;
use setpoint_schema::disruption::{Declared as _, Disruption};
use setpoint_schema::observed::{DiskState, GuestStatus};
use setpoint_schema::quantity::ByteSize;
use setpoint_schema::runtime::{ProcessSet, Runtime};

use super::app::Case;
use super::boot;
use crate::model::{BuildStep, Reason, Restart, Step};

/// What a guest still needs. Everything in here is observed; nothing is taken from the record alone.
pub(super) struct Needs {
    disk: Disk,
    sync: bool,
    apply: Option<(BuildStep, Restart)>,
}

/// What the data disk needs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Disk {
    Nothing,
    /// Its row in the inventory is not as it should be.
    Record,
    Growth,
}

pub(super) fn needs(case: &Case<'_>, status: &GuestStatus) -> Needs {
    let sync = status.tree.as_ref() != Some(&case.spec().files);
    Needs { disk: disk(case, status), sync, apply: apply(case, status) }
}

impl Needs {
    pub fn steps(&self, case: &Case<'_>) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.disk != Disk::Nothing {
            steps.push(boot::ensure_disk(case));
        }
        if self.disk == Disk::Growth {
            steps.push(boot::grow_disk(case, &case.record().id));
        }
        if self.sync {
            steps.push(boot::sync_files(case.world, case.app, case.record().id.clone()));
        }
        if let Some((build, restart)) = self.apply {
            steps.push(boot::apply_processes(case.app, case.record().id.clone(), build, restart));
        }
        steps
    }

    /// What differs although nothing was declared anew, so that drift is never shown as a change.
    pub fn drift(&self, case: &Case<'_>, status: &GuestStatus) -> Option<Reason> {
        if !case.changes.is_empty() || case.applied().is_none() {
            return None;
        }
        let processes = match status.processes {
            None => "processes were not started",
            Some(_) => "processes are not the declared ones",
        };
        let found = [
            (self.disk == Disk::Growth, "the data disk is smaller than declared"),
            (self.sync, "the workspace is not the declared content"),
            (self.apply.is_some(), processes),
        ];
        let found: Vec<_> = found.iter().filter(|(differs, _)| *differs).map(|(_, text)| *text).collect();
        (!found.is_empty()).then(|| Reason::Drift(found.join(", ")))
    }
}

fn disk(case: &Case<'_>, status: &GuestStatus) -> Disk {
    let declared = case.spec().app.resources.disk;
    let Some(disk) = case.disk else { return Disk::Growth };
    // A crash can lie between the disk's growth and its file system's, and only the record tells that from none.
    let unfinished = match case.applied() {
        Some(applied) => applied.spec.app.resources.disk < declared,
        None => status.disk < usable(disk.size),
    };
    if disk.size < declared.0 || unfinished {
        Disk::Growth
    } else if disk.app != *case.key() || disk.state != DiskState::InUse {
        Disk::Record
    } else {
        Disk::Nothing
    }
}

/// What a file system on a disk of this size reports at least: ext4 keeps its tables and its journal to itself.
fn usable(size: ByteSize) -> ByteSize {
    ByteSize::bytes(size.as_bytes() / 100 * 80)
}

fn apply(case: &Case<'_>, status: &GuestStatus) -> Option<(BuildStep, Restart)> {
    let runs = |spec: &PinnedSpec| status.processes.as_ref() == Some(spec.processes_digest());
    if status.processes.as_ref() == Some(case.processes_digest()) {
        return None;
    }
    match case.applied().filter(|applied| runs(&applied.spec)) {
        Some(applied) => Some(between(&applied.spec.processes(), &case.spec().processes())),
        None => Some((BuildStep::Run, Restart::All)),
    }
}

/// The mildest way from the process set that runs to the wanted one.
fn between(running: &ProcessSet, wanted: &ProcessSet) -> (BuildStep, Restart) {
    let ProcessSet { runtime, env, tree } = running;
    let mut changes = Vec::new();
    runtime.diff(&wanted.runtime, "", &mut changes);
    let new_files = *tree != wanted.tree;
    let new_commands = *env != wanted.env || changes.iter().any(|change| change.disruption >= Disruption::Process);
    let new_build = build_command(runtime) != build_command(&wanted.runtime);
    let build = if new_files || new_build { BuildStep::Run } else { BuildStep::Keep };
    let restart = match (new_commands, new_files) {
        (true, _) => Restart::All,
        (false, true) => Restart::AfterTask,
        (false, false) => Restart::None,
    };
    (build, restart)
}

fn build_command(runtime: &Runtime) -> Option<&String> {
    runtime.build.as_ref().and_then(|build| build.command.as_ref())
}
