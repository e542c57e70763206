//! What a microVM itself needs, and the steps that bring one up: the first time, again, or anew.

use jiff::Timestamp;
use setpoint_schema::app::{DesiredApp, Power, Shrink};
use setpoint_schema::disruption::Disruption;
use setpoint_schema::id::{BootNonce, DiskId, SandboxId};
use setpoint_schema::name::{AppKey, RepoPath};
use setpoint_schema::observed::{
    DiskRecord, ExitReason, GuestState, GuestStatus, Intent, Machine, SandboxRecord, VmState,
};
use setpoint_schema::power::OnResumeFailure;
use setpoint_schema::quantity::{ByteSize, Span};

use super::app::{Case, counted, recorded};
use super::shelf::Found;
use super::world::{World, later};
use super::{begin, prune};
use crate::model::{Action, ActionKind, Block, BuildStep, Reason, Restart, Step};

/// What is to become of the kept microVM.
pub(super) enum Condition<'a> {
    /// It is the declared machine and its agent answers.
    Answers(&'a GuestStatus),
    /// It is the declared machine and its agent has time left to answer.
    Waits(String),
    /// It rests and can go on from its saved memory.
    Sleeps,
    /// It rests, cannot go on, and is to stay so.
    Stuck(String),
    /// It has to boot.
    Boots(Cause),
    /// It has to be made anew.
    Anew,
    /// Its disk would have to shrink, which the declaration refuses.
    DiskTooLarge { from: ByteSize, to: ByteSize },
}

/// Why a microVM has to boot.
pub(super) enum Cause {
    /// It runs as another machine than the declared one, or as an older boot than the recorded one.
    OtherMachine,
    /// It does not run.
    Down(String),
    /// It runs and does not answer.
    Hung(String),
    /// It rests and cannot go on.
    Unresumable(String),
}

pub(super) fn condition<'a>(case: &Case<'a>) -> Condition<'a> {
    let (record, resources) = (case.record(), &case.spec().app.resources);
    if let Some(disk) = shrinking_disk(case) {
        return match resources.shrink {
            Shrink::Refuse => Condition::DiskTooLarge { from: disk.size, to: resources.disk.0 },
            Shrink::Replace => Condition::Anew,
        };
    }
    if record.machine.template != case.spec().template {
        return Condition::Anew;
    }
    match &case.kept.vm {
        VmState::Absent => Condition::Boots(Cause::Down("it does not exist".to_owned())),
        VmState::Exited { reason } => Condition::Boots(Cause::Down(describe(reason))),
        VmState::Running { nonce, since } => {
            let size = (record.machine.vcpus, record.machine.memory_mib);
            if *nonce != record.machine.nonce || size != (resources.vcpus, resources.memory.as_mib()) {
                return Condition::Boots(Cause::OtherMachine);
            }
            patience(case, *since)
        }
        VmState::Paused { nonce, fault: Some(fault), .. } if !is_tried_again(case, nonce) => {
            match case.spec().app.power.on_resume_failure {
                OnResumeFailure::Boot => Condition::Boots(Cause::Unresumable(fault.clone())),
                OnResumeFailure::Alert => Condition::Stuck(fault.clone()),
            }
        }
        VmState::Paused { .. } => {
            let size = (record.machine.vcpus, record.machine.memory_mib);
            if size == (resources.vcpus, resources.memory.as_mib()) {
                Condition::Sleeps
            } else {
                Condition::Boots(Cause::OtherMachine)
            }
        }
    }
}

/// Whether somebody wants this paused boot to be gone on from once more.
fn is_tried_again(case: &Case<'_>, nonce: &BootNonce) -> bool {
    case.usages().any(|usage| usage.again.as_ref() == Some(nonce))
}

/// The disk that is larger than declared. One that was accepted as it is when the same size was applied stays.
fn shrinking_disk<'a>(case: &Case<'a>) -> Option<&'a DiskRecord> {
    let declared = case.spec().app.resources.disk;
    let accepted = match case.applied() {
        Some(applied) => applied.spec.app.resources.disk == declared,
        // A copy is as large as what it is a copy of.
        None => case.record().from.is_some(),
    };
    case.disk.filter(|disk| disk.size > declared.0 && !accepted)
}

/// Whether the agent answers, or how long it may go on not doing so.
pub(super) fn patience<'a>(case: &Case<'a>, started: Timestamp) -> Condition<'a> {
    let timeouts = &case.spec().app.timeouts;
    let (since, limit, state) = match &case.kept.guest {
        GuestState::Answering(status) if status.nonce == case.record().machine.nonce => {
            return Condition::Answers(status);
        }
        GuestState::Silent { since } => (*since, timeouts.unresponsive, "agent silent"),
        GuestState::Connecting { since } => (*since, timeouts.boot, "booting"),
        GuestState::Answering(_) | GuestState::Absent => (started, timeouts.boot, "booting"),
    };
    let text = format!("{state} since {since:.0}");
    if later(since, limit) < case.world.now {
        Condition::Boots(Cause::Hung(format!("{text}, longer than {limit}")))
    } else {
        Condition::Waits(text)
    }
}

fn describe(reason: &ExitReason) -> String {
    match reason {
        ExitReason::Shutdown => "the guest shut itself down".to_owned(),
        ExitReason::Panic(line) => format!("the guest kernel panicked: {line}"),
        ExitReason::Reset => "the guest reset itself".to_owned(),
        ExitReason::Killed(signal) => format!("the VMM was ended by signal {signal}"),
        ExitReason::Failed(code) => format!("the VMM ended with exit code {code}"),
        ExitReason::Unknown => "it ended unseen".to_owned(),
    }
}

/// A sandbox for an app that has none. A disk that was kept for the app is taken up again.
pub(super) fn create(world: &World<'_>, key: &AppKey, app: &DesiredApp) -> Action {
    let resources = &app.spec.app.resources;
    let returning = world.returning_disk(key);
    let fitting = returning.filter(|disk| disk.size <= resources.disk.0);
    let sandbox = world.entropy.sandbox(key, world.observed);
    let disk = fitting.map_or_else(|| world.entropy.disk(key, world.observed), |disk| disk.id.clone());
    let record = new_record(world, app, sandbox.clone(), disk);
    let mut action = Action {
        app: key.clone(),
        sandbox: sandbox.clone(),
        kind: ActionKind::Create,
        reasons: vec![Reason::NotCreated],
        changes: Vec::new(),
        steps: Vec::new(),
        blocked: Vec::new(),
    };
    if let (Some(larger), None, Shrink::Refuse) = (returning, fitting, resources.shrink) {
        action.blocked.push(Block::DiskShrink { from: larger.size, to: resources.disk.0 });
        return action;
    }
    // What an app has left behind is more its own than what it was to begin as.
    if let (None, Some(beginning)) = (fitting, &app.spec.app.from) {
        return begin::create(world, key, app, beginning);
    }
    action.reasons.extend(fitting.map(|disk| Reason::DiskReturns(disk.id.clone())));
    let machine = record.machine.clone();
    action.steps.push(Step::Record(Box::new(record)));
    action.steps.extend(ensure_template(world, app));
    action.steps.push(Step::EnsureDisk { disk: machine.disk.clone(), app: key.clone(), size: resources.disk.0 });
    action.steps.push(Step::Launch(machine));
    action.steps.push(await_agent(app, sandbox.clone()));
    if fitting.is_some_and(|disk| disk.size < resources.disk.0) {
        action.steps.push(Step::GrowDisk { sandbox: sandbox.clone(), size: resources.disk.0 });
    }
    action.steps.extend(fill(world, app, &sandbox));
    action.steps.extend(counted(world, app));
    action.steps.push(recorded(world, app, sandbox, None));
    action
}

/// The same sandbox boots with a new nonce. What takes long or may fail comes before the shutdown.
pub(super) fn again(case: &Case<'_>, cause: &Cause) -> Action {
    let sandbox = &case.record().id;
    let machine = machine(case.world, case.app, sandbox, &case.record().disk, Some(case.record()));
    let record = SandboxRecord {
        app: case.key().clone(),
        uid: case.app.metadata.uid.clone(),
        machine: machine.clone(),
        ..case.record().clone()
    };
    let shot = match case.unbegun() {
        Some(Found::Waits { snapshot, reason }) => return case.waits_for(snapshot, reason),
        Some(Found::There(shot)) => Some(shot),
        None => None,
    };
    let mut steps = case.clear_leftovers();
    steps.extend(ensure_template(case.world, case.app));
    steps.extend(shot.is_none().then(|| ensure_disk(case)));
    steps.extend(prune::stop(case.kept, case.spec().app.timeouts.stop));
    steps.push(Step::Record(Box::new(record)));
    match shot {
        Some(shot) => steps.extend(begin::up(case.app, machine, shot)),
        None => {
            steps.push(Step::Launch(machine));
            steps.push(await_agent(case.app, sandbox.clone()));
            steps.extend(grows(case).then(|| grow_disk(case, sandbox)));
        }
    }
    steps.extend(fill(case.world, case.app, sandbox));
    steps.extend(case.record_applied());
    case.action(kind(case, ActionKind::Reboot), why(case, cause), steps)
}

/// The sandbox goes on from its saved memory, under a nonce of its own. What has changed in its declaration meanwhile is carried
/// out once it answers.
pub(super) fn resume(case: &Case<'_>) -> Action {
    let mut steps = case.clear_leftovers();
    steps.extend(go_on(case));
    case.powered(ActionKind::Resume, Some(case.power_reason()), steps)
}

/// A clean shutdown of a sandbox that sleeps.
pub(super) fn wake_to_stop(case: &Case<'_>, grace: Span) -> Vec<Step> {
    let mut steps = go_on(case);
    steps.push(Step::Stop { sandbox: case.record().id.clone(), grace: Some(grace) });
    steps
}

fn go_on(case: &Case<'_>) -> Vec<Step> {
    let (old, sandbox) = (case.record(), &case.record().id);
    let boot = machine(case.world, case.app, sandbox, &old.disk, Some(old));
    // Saved memory belongs to the machine that it was saved from.
    let machine = Machine {
        vcpus: old.machine.vcpus,
        memory_mib: old.machine.memory_mib,
        template: old.machine.template.clone(),
        ..boot
    };
    let (app, uid) = (case.key().clone(), case.app.metadata.uid.clone());
    let record = SandboxRecord { app, uid, machine: machine.clone(), ..old.clone() };
    vec![Step::Record(Box::new(record)), Step::Resume(machine), await_agent(case.app, sandbox.clone())]
}

/// Another sandbox takes the place of this one, on the same disk unless that has to shrink.
///
/// The new row is written before the old one is forgotten, so that a disk is never without a row that names it; until then
/// a pass that is cut short begins again.
pub(super) fn anew(case: &Case<'_>) -> Action {
    let (world, old) = (case.world, case.record());
    let sandbox = world.entropy.sandbox(case.key(), world.observed);
    let new_disk = shrinking_disk(case).map(|_| world.entropy.disk(case.key(), world.observed));
    let disk = new_disk.clone().unwrap_or_else(|| old.disk.clone());
    let size = if new_disk.is_some() { case.spec().app.resources.disk.0 } else { case.disk_size() };
    let shot = match case.unbegun() {
        Some(Found::Waits { snapshot, reason }) => return case.waits_for(snapshot, reason),
        Some(Found::There(shot)) => Some(shot),
        None => None,
    };
    let from = shot.map(|shot| shot.record.id.clone());
    // The disk stays what it is, or begins as the same once more.
    let origin = old.origin.clone().filter(|_| new_disk.is_none() || shot.is_some());
    let record = SandboxRecord { from, origin, ..new_record(world, case.app, sandbox.clone(), disk.clone()) };
    let mut steps = case.clear_leftovers();
    steps.extend(ensure_template(world, case.app));
    steps.extend(prune::stop(case.kept, case.spec().app.timeouts.stop));
    steps.extend(prune::remove_vm(case.kept));
    steps.push(Step::Record(Box::new(record.clone())));
    if new_disk.is_some() {
        steps.extend(prune::release(world, case.key(), &old.disk, &[&old.id]));
    }
    steps.push(Step::Forget(old.id.clone()));
    match shot {
        Some(shot) => steps.extend(begin::up(case.app, record.machine, shot)),
        None => {
            steps.push(Step::EnsureDisk { disk, app: case.key().clone(), size });
            steps.push(Step::Launch(record.machine));
            steps.push(await_agent(case.app, sandbox.clone()));
            steps.extend((new_disk.is_none() && grows(case)).then(|| grow_disk(case, &sandbox)));
        }
    }
    steps.extend(fill(world, case.app, &sandbox));
    steps.extend(counted(world, case.app));
    steps.push(recorded(world, case.app, sandbox.clone(), Some(&old.app)));
    Action { sandbox, ..case.action(kind(case, ActionKind::Replace), None, steps) }
}

/// Nothing at all is done for an app whose disk would have to shrink against its declaration.
pub(super) fn refuse_shrink(case: &Case<'_>, from: ByteSize, to: ByteSize) -> Action {
    let action = case.action(ActionKind::Replace, None, Vec::new());
    Action { blocked: vec![Block::DiskShrink { from, to }], ..action }
}

/// A sandbox that never was up is still being created, whatever the way there.
fn kind(case: &Case<'_>, otherwise: ActionKind) -> ActionKind {
    match (&case.kept.vm, case.applied()) {
        (VmState::Absent | VmState::Exited { .. }, None) => ActionKind::Create,
        (VmState::Running { .. } | VmState::Paused { .. }, _) | (_, Some(_)) => otherwise,
    }
}

fn why(case: &Case<'_>, cause: &Cause) -> Option<Reason> {
    // A reboot that was declared is not an accident, even where a crash cut it short with the microVM down.
    let declared = case.changes.iter().any(|change| change.disruption >= Disruption::Reboot);
    let was_stopped = case.applied().is_some_and(|applied| applied.spec.app.power.state != Power::Running);
    match cause {
        Cause::OtherMachine => None,
        Cause::Down(_) if was_stopped => Some(Reason::PowerChanged(Power::Running)),
        Cause::Down(_) if was_stopped_here(case) => Some(case.power_reason()),
        Cause::Down(_) if declared => None,
        // The first launch has not happened yet.
        Cause::Down(_) if case.applied().is_none() && case.kept.vm == VmState::Absent => None,
        Cause::Down(reason) => Some(Reason::VmDown(reason.clone())),
        Cause::Hung(reason) => Some(Reason::GuestHung(reason.clone())),
        Cause::Unresumable(reason) => Some(Reason::Unresumable(reason.clone())),
    }
}

/// Whether the microVM was shut down on this host though it is declared to run.
fn was_stopped_here(case: &Case<'_>) -> bool {
    case.usages().any(|usage| usage.stopped.as_ref() == Some(&case.record().machine.nonce))
}

fn grows(case: &Case<'_>) -> bool {
    let declared = case.spec().app.resources.disk;
    let grown = case.applied().is_some_and(|applied| applied.spec.app.resources.disk < declared);
    grown || case.disk.is_some_and(|disk| disk.size < declared.0)
}

pub(super) fn new_record(world: &World<'_>, app: &DesiredApp, sandbox: SandboxId, disk: DiskId) -> SandboxRecord {
    SandboxRecord {
        app: app.metadata.key.clone(),
        uid: app.metadata.uid.clone(),
        host: world.observed.host.clone(),
        machine: machine(world, app, &sandbox, &disk, None),
        applied: None,
        intent: Intent::Keep,
        created_at: world.now,
        id: sandbox,
        disk,
        from: None,
        origin: None,
    }
}

/// The declared machine, with a nonce that no boot of the sandbox had.
fn machine(
    world: &World<'_>,
    app: &DesiredApp,
    sandbox: &SandboxId,
    disk: &DiskId,
    previous: Option<&SandboxRecord>,
) -> Machine {
    let resources = &app.spec.app.resources;
    Machine {
        sandbox: sandbox.clone(),
        app: app.metadata.key.clone(),
        uid: app.metadata.uid.clone(),
        nonce: world.entropy.nonce(sandbox, previous.map(|record| &record.machine.nonce)),
        vcpus: resources.vcpus,
        memory_mib: resources.memory.as_mib(),
        template: app.spec.template.clone(),
        disk: disk.clone(),
    }
}

/// Absent where the revision does not say how the template comes to be; then it has to be there already.
pub(super) fn ensure_template(world: &World<'_>, app: &DesiredApp) -> Option<Step> {
    let root = world.desired.templates.get(&app.spec.template)?;
    Some(Step::EnsureTemplate { digest: app.spec.template.clone(), root: root.clone() })
}

pub(super) fn await_agent(app: &DesiredApp, sandbox: SandboxId) -> Step {
    Step::AwaitAgent { sandbox, timeouts: app.spec.app.timeouts.clone() }
}

/// Brings files and processes into a guest that has just booted. The build runs again, because nothing tells whether it had
/// finished before.
pub(super) fn fill(world: &World<'_>, app: &DesiredApp, sandbox: &SandboxId) -> [Step; 2] {
    [sync_files(world, app, sandbox.clone()), apply_processes(app, sandbox.clone(), BuildStep::Run, Restart::All)]
}

pub(super) fn ensure_disk(case: &Case<'_>) -> Step {
    Step::EnsureDisk { disk: case.record().disk.clone(), app: case.key().clone(), size: case.disk_size() }
}

pub(super) fn grow_disk(case: &Case<'_>, sandbox: &SandboxId) -> Step {
    Step::GrowDisk { sandbox: sandbox.clone(), size: case.disk_size() }
}

pub(super) fn sync_files(world: &World<'_>, app: &DesiredApp, sandbox: SandboxId) -> Step {
    let path = app.spec.app.source.path.clone().unwrap_or_else(|| folder(&app.path));
    Step::SyncFiles {
        sandbox,
        tree: app.spec.files.clone(),
        revision: world.desired.revision_of(&app.metadata.key).clone(),
        path,
    }
}

/// The folder of a file. A file at the top has none, so it stands for itself.
fn folder(file: &RepoPath) -> RepoPath {
    let parent = file.as_str().rsplit_once('/').and_then(|(parent, _)| RepoPath::new(parent).ok());
    parent.unwrap_or_else(|| file.clone())
}

pub(super) fn apply_processes(app: &DesiredApp, sandbox: SandboxId, build: BuildStep, restart: Restart) -> Step {
    Step::ApplyProcesses { sandbox, set: Box::new(app.spec.processes()), build, restart }
}
