//! Snapshots: which are to be taken of whom, and which nothing wants any more.
//!
//! Decided behind everything else, because a moment is kept of apps that are as declared, or as well as they can be. What it takes is
//! an action of the app that it is of, so that nothing else is done to that meanwhile.
//!
//! ```text
//!   declared, asked for, or an app is to begin as another ──▶ Wanted ──taken──▶ Kept
//!   Kept ──not declared any more──▶ Retained ──time over──▶ Leaving ──▶ gone
//!     └──enough newer ones, time over, or done with────────────┘   (none of it while something is to begin from it)
//! ```

mod letting_go;

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use setpoint_schema::app::{Beginning, DesiredApp};
use setpoint_schema::id::{BootNonce, SandboxId};
use setpoint_schema::name::{AppKey, SnapshotKey, SnapshotName};
use setpoint_schema::observed::{
    DiskRecord, GuestState, Moment, ObservedSandbox, SnapshotCause, SnapshotRecord, SnapshotState, VmState,
};
use setpoint_schema::snapshot::{Content, DesiredSnapshot, SnapshotSpec};

use super::world::World;
use super::{Verdict, Verdicts};
use crate::model::{Action, ActionKind, Block, HeldSnapshot, Reason, SnapshotHold, Step};

/// The first wait after a failed try; it doubles with each further one.
const RETRY_FIRST: SignedDuration = SignedDuration::from_secs(10);
/// The longest wait.
const RETRY_LONGEST: SignedDuration = SignedDuration::from_mins(5);

/// What is to be done about the snapshots of one app.
#[derive(Default)]
struct Work {
    taking: Part,
    letting_go: Part,
}

/// Steps and why they are taken.
#[derive(Default)]
struct Part {
    reasons: Vec<Reason>,
    steps: Vec<Step>,
}

/// Adds what is to be done about snapshots, at most one action for each app, and says which of them wait.
pub(super) fn apply<'a>(world: &World<'a>, verdicts: &mut Verdicts<'a>) -> Vec<HeldSnapshot> {
    let forks = forks(world, verdicts);
    if forks.is_empty() && world.desired.snapshots.is_empty() && world.observed.snapshots.is_empty() {
        return Vec::new();
    }
    let mut work: BTreeMap<&'a AppKey, Work> = BTreeMap::new();
    let mut held = Vec::new();
    for (app, record) in wanted(world) {
        match try_to_take(world, verdicts, app, record.clone()) {
            Ok(steps) => work.entry(app).or_default().taking.add(because(&record), steps),
            Err(reason) => held.push(HeldSnapshot { snapshot: record.key, app: record.app, reason }),
        }
    }
    for (to, source, record) in forks {
        match try_to_take(world, verdicts, source, record.clone()) {
            Ok(steps) => work.entry(source).or_default().taking.add(because(&record), steps),
            Err(hold) => say_why(verdicts, to, &hold),
        }
    }
    for (app, reason, steps) in letting_go::all(world, &mut held) {
        work.entry(app).or_default().letting_go.add(reason, steps);
    }
    for (key, work) in work {
        put(world, verdicts, key, work);
    }
    held.extend(stalled(world));
    held.sort_by(|a, b| (&a.snapshot, &a.app).cmp(&(&b.snapshot, &b.app)));
    held
}

impl Part {
    fn add(&mut self, reason: Reason, steps: impl IntoIterator<Item = Step>) {
        self.reasons.push(reason);
        self.steps.extend(steps);
    }
}

/// The apps that are to begin as another one is, and what is to be kept of that one.
fn forks<'a>(world: &World<'a>, verdicts: &Verdicts<'a>) -> Vec<(&'a AppKey, &'a AppKey, SnapshotRecord)> {
    let waiting = verdicts.iter().filter(|(_, verdict)| match verdict {
        Verdict::Act(action) => action.kind == ActionKind::Create && action.steps.is_empty(),
        Verdict::Hold(_) | Verdict::Unchanged => false,
    });
    let wanted = waiting.filter_map(|(to, _)| {
        let source = source(world.desired.apps.get(*to)?)?;
        let known = world.shelf.fork(to, source);
        if known.is_some_and(|known| known.kept().is_some())
            || world.sandboxes(to).iter().any(|one| one.record.from.is_some())
        {
            return None;
        }
        let name =
            SnapshotName::new(format!("for-{}", to.name)).expect("an app's name with a beginning is one of a snapshot");
        let key = SnapshotKey::new(source.team.clone(), name);
        let fresh = || SnapshotRecord {
            id: world.entropy.snapshot(source, &format!("for {to}"), world.observed),
            generation: world.shelf.next_generation(&key),
            key: key.clone(),
            app: source.clone(),
            cause: SnapshotCause::Fork { to: AppKey::clone(to) },
            content: Content::Memory,
            exclude: Default::default(),
            retain: setpoint_schema::app::Retain::None,
            moment: None,
            state: SnapshotState::Wanted { since: world.now },
        };
        Some((*to, source, known.cloned().unwrap_or_else(fresh)))
    });
    wanted.collect()
}

/// The app that another one begins as.
fn source(app: &DesiredApp) -> Option<&AppKey> {
    match &app.spec.app.from {
        Some(Beginning::App(source)) => Some(source),
        Some(Beginning::Snapshot(_)) | None => None,
    }
}

/// Every snapshot that a declaration or somebody here wants and that is not there, with the app that it is of.
fn wanted<'a>(world: &World<'a>) -> Vec<(&'a AppKey, SnapshotRecord)> {
    let mut wanted = Vec::new();
    for (key, declared) in &world.desired.snapshots {
        match world.shelf.current(key) {
            Some(known) if known.kept().is_some() => {}
            Some(known) => wanted.push((&known.app, known.clone())),
            None => wanted.push((&declared.spec.of, of_declared(world, key, declared))),
        }
    }
    for record in world.observed.snapshots.values() {
        if let (SnapshotCause::Asked { .. }, SnapshotState::Wanted { .. }) = (&record.cause, &record.state) {
            wanted.push((&record.app, SnapshotRecord::clone(record)));
        }
    }
    wanted
}

/// The row of a declared snapshot's next generation.
fn of_declared(world: &World<'_>, key: &SnapshotKey, declared: &DesiredSnapshot) -> SnapshotRecord {
    let SnapshotSpec { of, content, exclude, keep: _, retain, token: _ } = &declared.spec;
    let generation = world.shelf.next_generation(key);
    SnapshotRecord {
        id: world.entropy.snapshot(of, &format!("{key} {generation}"), world.observed),
        key: key.clone(),
        app: of.clone(),
        generation,
        cause: SnapshotCause::Declared { digest: declared.digest.clone() },
        content: *content,
        exclude: exclude.clone(),
        retain: *retain,
        moment: None,
        state: SnapshotState::Wanted { since: world.now },
    }
}

/// The steps that take a snapshot now, or why that cannot be.
fn try_to_take<'a>(
    world: &World<'a>,
    verdicts: &Verdicts<'a>,
    app: &'a AppKey,
    record: SnapshotRecord,
) -> Result<[Step; 2], SnapshotHold> {
    if let SnapshotState::Failed { reason, at, failures } = &record.state {
        let until = retry_at(*at, *failures);
        if until > world.now {
            return Err(SnapshotHold::Backoff { until, reason: reason.clone() });
        }
    }
    let (sandbox, disk, nonce) = standing(world, verdicts, app, record.content).map_err(SnapshotHold::Waits)?;
    let since = match record.state {
        SnapshotState::Wanted { since } => since,
        SnapshotState::Failed { .. }
        | SnapshotState::Kept(_)
        | SnapshotState::Retained { .. }
        | SnapshotState::Leaving => world.now,
    };
    // The failures before stay with the row until it is taken.
    let state = match record.state {
        state @ SnapshotState::Failed { .. } => state,
        SnapshotState::Wanted { .. }
        | SnapshotState::Kept(_)
        | SnapshotState::Retained { .. }
        | SnapshotState::Leaving => SnapshotState::Wanted { since },
    };
    Ok(take(SnapshotRecord { moment: Some(moment(sandbox, disk)), state, ..record }, sandbox, nonce))
}

/// When a snapshot that could not be taken is tried again.
fn retry_at(at: Timestamp, failures: u32) -> Timestamp {
    let doublings = failures.saturating_sub(1).min(16);
    let wait = RETRY_FIRST.saturating_mul(1 << doublings).min(RETRY_LONGEST);
    at.checked_add(wait).unwrap_or(Timestamp::MAX)
}

/// The sandbox of which a moment can be kept now, its disk, and the boot that runs, or what the app lacks for that.
fn standing<'a>(
    world: &World<'a>,
    verdicts: &Verdicts<'a>,
    app: &AppKey,
    content: Content,
) -> Result<(&'a ObservedSandbox, &'a DiskRecord, Option<BootNonce>), String> {
    if !world.desired.apps.contains_key(app) {
        return Err("its app is not declared".to_owned());
    }
    match verdicts.get(app) {
        Some(Verdict::Hold(hold)) => return Err(hold.to_string()),
        // What is blocked has time, if it is well meanwhile.
        Some(Verdict::Act(action)) if action.blocked.is_empty() => return Err(action.trouble()),
        Some(Verdict::Act(_) | Verdict::Unchanged) | None => {}
    }
    let [sandbox] = world.sandboxes(app) else { return Err("its sandbox is not made yet".to_owned()) };
    let record = &sandbox.record;
    let disk = world.disk(&record.disk).filter(|_| record.applied.is_some());
    let disk = disk.ok_or("nothing was carried out in full yet")?;
    let nonce = match (&sandbox.vm, content) {
        (VmState::Running { nonce, .. }, _) if *nonce != record.machine.nonce => Err("it is to boot again".to_owned()),
        (VmState::Running { nonce, .. }, _) => match &sandbox.guest {
            GuestState::Answering(status) if status.nonce == *nonce => match status.unready() {
                None => Ok(Some(nonce.clone())),
                Some(reason) => Err(format!("it is not ready: {reason}")),
            },
            GuestState::Answering(_)
            | GuestState::Absent
            | GuestState::Connecting { .. }
            | GuestState::Silent { .. } => Err("its agent does not answer".to_owned()),
        },
        (VmState::Absent | VmState::Exited { .. } | VmState::Paused { .. }, Content::Disk) => Ok(None),
        // What its pause saved is a moment, unless it may be what keeps it from going on.
        (VmState::Paused { fault: None, .. }, Content::Memory) => Ok(None),
        (VmState::Paused { fault: Some(_), .. }, Content::Memory) => {
            Err("it is paused and could not go on from what is kept of its memory".to_owned())
        }
        (VmState::Absent | VmState::Exited { .. }, Content::Memory) => Err("it does not run".to_owned()),
    };
    Ok((sandbox, disk, nonce?))
}

/// What there is now of a sandbox.
pub(super) fn moment(sandbox: &ObservedSandbox, disk: &DiskRecord) -> Moment {
    let record = &sandbox.record;
    Moment {
        sandbox: record.id.clone(),
        machine: record.machine.clone(),
        disk: disk.size,
        revision: record.applied.as_ref().map(|applied| applied.revision.clone()),
        tree: record.applied.as_ref().map(|applied| applied.spec.files.clone()),
    }
}

/// Writes a row and takes the snapshot, of the boot `nonce` or of a sandbox at rest.
pub(super) fn take(record: SnapshotRecord, sandbox: &ObservedSandbox, nonce: Option<BootNonce>) -> [Step; 2] {
    let take = Step::TakeSnapshot {
        snapshot: record.id.clone(),
        sandbox: sandbox.record.id.clone(),
        nonce,
        disk: sandbox.record.disk.clone(),
        content: record.content,
    };
    [Step::RecordSnapshot(Box::new(record)), take]
}

fn because(record: &SnapshotRecord) -> Reason {
    Reason::SnapshotWanted { snapshot: record.key.clone(), cause: record.cause.clone() }
}

/// Lets an app that waits for its beginning say what that lacks.
fn say_why(verdicts: &mut Verdicts<'_>, to: &AppKey, hold: &SnapshotHold) {
    let Some(Verdict::Act(action)) = verdicts.get_mut(to) else { return };
    for block in &mut action.blocked {
        if let Block::Snapshot { snapshot: _, reason } = block {
            *reason = hold.to_string();
        }
    }
}

/// Puts an app's action into the plan, where nothing else is done for the app.
fn put<'a>(world: &World<'a>, verdicts: &mut Verdicts<'a>, key: &'a AppKey, work: Work) {
    let may_act = match verdicts.get(key) {
        None | Some(Verdict::Unchanged) => true,
        Some(Verdict::Act(action)) => !action.blocked.is_empty(),
        Some(Verdict::Hold(_)) => false,
    };
    let Work { taking, letting_go } = work;
    let (kind, Part { reasons, steps }) =
        if taking.steps.is_empty() { (ActionKind::ExpireSnapshot, letting_go) } else { (ActionKind::Snapshot, taking) };
    // What fails is waited out as everything else; the taking of a snapshot has waits of its own.
    let retry = world.memory(key).map(|memory| &memory.retry).filter(|_| kind == ActionKind::ExpireSnapshot);
    let backoff = retry.and_then(|retry| {
        let until = retry.not_before.filter(|until| *until > world.now)?;
        Some(Block::Backoff { until, reason: retry.last_error.clone().unwrap_or_default() })
    });
    let is_taken = matches!(verdicts.get(key), Some(Verdict::Act(_)));
    if !may_act || steps.is_empty() || (backoff.is_some() && is_taken) {
        return;
    }
    let of_app = world.sandboxes(key).first().map(|sandbox| sandbox.record.id.clone());
    // Without a sandbox, the snapshot's own name says best what this is about.
    let named = || {
        steps.iter().find_map(|step| match step {
            Step::RecordSnapshot(record) => Some(SandboxId(record.id.0.clone().into())),
            Step::RemoveSnapshot(id) => Some(SandboxId(id.0.clone().into())),
            _ => None,
        })
    };
    let Some(sandbox) = of_app.or_else(named) else { return };
    let blocked = backoff.into_iter().collect();
    let action = Action { app: key.clone(), sandbox, kind, reasons, changes: Vec::new(), steps, blocked };
    verdicts.insert(key, Verdict::Act(Box::new(action)));
}

/// Snapshots that stay as they are because of mistakes.
fn stalled(world: &World<'_>) -> Vec<HeldSnapshot> {
    let of = |(key, mistakes): (&SnapshotKey, &String)| {
        let app = world.shelf.generations(key).last()?.app.clone();
        Some(HeldSnapshot { snapshot: key.clone(), app, reason: SnapshotHold::Stalled(mistakes.clone()) })
    };
    world.desired.stalled_snapshots.iter().filter_map(of).collect()
}
