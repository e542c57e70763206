//! Decides what is to be done about one declared app, looking at nothing but this app.
//!
//! Every step is derived from what was observed, so that a pass which was cut short anywhere is finished by the next one.

use setpoint_schema::app::{DesiredApp, PinnedSpec, Power, SandboxSpec};
use setpoint_schema::disruption::{Disruption, FieldChange};
use setpoint_schema::id::SpecDigest;
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{
    AppRecord, Applied, DiskRecord, GuestStatus, Intent, ObservedSandbox, PowerOverride, SandboxRecord, Usage, VmState,
};
use setpoint_schema::quantity::ByteSize;

use super::boot::{self, Condition};
use super::shelf::Found;
use super::world::{About, World};
use super::{Entropy, Verdict, begin, guest, prune, restore};
use crate::model::{Action, ActionKind, Block, Hold, Reason, Restart, Step};

/// One declared app and the sandbox that it keeps.
pub(super) struct Case<'a> {
    pub world: &'a World<'a>,
    pub app: &'a DesiredApp,
    pub kept: &'a ObservedSandbox,
    /// Further sandboxes of the app, which a pass that did not finish left behind.
    pub leftovers: Vec<&'a ObservedSandbox>,
    /// The data disk of that sandbox.
    pub disk: Option<&'a DiskRecord>,
    /// Whether just the declared spec was applied.
    is_applied: bool,
    /// The declared fields that differ from what was applied.
    pub changes: Vec<FieldChange>,
}

pub(super) fn decide<'a>(world: &'a World<'a>, about: &About<'a, '_>, app: &'a DesiredApp) -> Verdict {
    if app.spec.app.suspend {
        return Verdict::Hold(Hold::Suspended);
    }
    if let Some(suspension) = about.suspension(world) {
        return Verdict::Hold(Hold::SuspendedHere(suspension.clone()));
    }
    if let Some(adoption) = adopt(world, about.key) {
        return Verdict::Act(Box::new(adoption));
    }
    if about.is_leaving() {
        return prune::finish(world, about);
    }
    match (Case::new(world, about, app), about.power(world, app).0) {
        (None, Power::Paused | Power::Stopped) => Verdict::Unchanged,
        (None, Power::Running) => Verdict::Act(Box::new(boot::create(world, about.key, app))),
        (Some(case), Power::Running) => match restore::pending(world, app, case.kept) {
            Some(wanted) => restore::decide(&case, wanted, run),
            None => run(&case),
        },
        (Some(case), Power::Paused) => pause(&case),
        (Some(case), Power::Stopped) => stop(&case),
    }
}

/// Writes microVMs that the inventory lost back into it; the next plan treats them like any other.
pub(super) fn adopt(world: &World<'_>, key: &AppKey) -> Option<Action> {
    let strays = world.strays(key);
    let record = |machine: &setpoint_schema::observed::Machine| SandboxRecord {
        id: machine.sandbox.clone(),
        app: machine.app.clone(),
        uid: machine.uid.clone(),
        host: world.observed.host.clone(),
        disk: machine.disk.clone(),
        from: None,
        origin: None,
        machine: machine.clone(),
        applied: None,
        intent: Intent::Keep,
        created_at: world.now,
    };
    Some(Action {
        app: key.clone(),
        sandbox: strays.first()?.sandbox.clone(),
        kind: ActionKind::Adopt,
        reasons: vec![Reason::Unrecorded],
        changes: Vec::new(),
        steps: strays.iter().map(|machine| Step::Record(Box::new(record(machine)))).collect(),
        blocked: Vec::new(),
    })
}

fn run(case: &Case<'_>) -> Verdict {
    match boot::condition(case) {
        Condition::Answers(status) => update(case, status),
        Condition::Waits(reason) => wait(case, reason),
        Condition::Sleeps => Verdict::Act(Box::new(boot::resume(case))),
        Condition::Stuck(fault) => Verdict::Hold(Hold::Unresumable(fault)),
        Condition::Boots(cause) => Verdict::Act(Box::new(boot::again(case, &cause))),
        Condition::Anew => Verdict::Act(Box::new(boot::anew(case))),
        Condition::DiskTooLarge { from, to } => Verdict::Act(Box::new(boot::refuse_shrink(case, from, to))),
    }
}

/// Changes the running microVM in place, by as little as leads to what is declared.
fn update(case: &Case<'_>, status: &GuestStatus) -> Verdict {
    let needs = guest::needs(case, status);
    let mut steps = case.clear_leftovers();
    steps.extend(case.rename());
    steps.extend(case.leave_out(status));
    steps.extend(needs.steps(case));
    steps.extend(case.record_applied());
    if steps.is_empty() {
        return match status.unready() {
            None => Verdict::Unchanged,
            Some(reason) => Verdict::Hold(Hold::Unready(reason)),
        };
    }
    let drift = needs.drift(case, status);
    Verdict::Act(Box::new(case.action(ActionKind::Update(disruption(&steps)), drift, steps)))
}

/// The guest cannot be asked yet, so only the inventory is put in order.
pub(super) fn wait(case: &Case<'_>, reason: String) -> Verdict {
    let mut steps = case.clear_leftovers();
    steps.extend(case.rename());
    if steps.is_empty() {
        return Verdict::Hold(Hold::Unready(reason));
    }
    Verdict::Act(Box::new(case.action(ActionKind::Update(Disruption::Live), None, steps)))
}

/// Shuts the microVM down. Other changes are not carried out, and not written down as such, before it runs again.
///
/// One that sleeps is woken for it: its processes may have to write down what they have in memory alone.
fn stop(case: &Case<'_>) -> Verdict {
    let grace = case.app.spec.app.timeouts.stop;
    let ending = match &case.kept.vm {
        VmState::Paused { fault: None, .. } => boot::wake_to_stop(case, grace),
        // Saved memory that cannot be gone on from is as good as none.
        VmState::Paused { fault: Some(_), .. } => Vec::new(),
        VmState::Absent | VmState::Exited { .. } | VmState::Running { .. } => {
            prune::stop(case.kept, grace).into_iter().collect()
        }
    };
    rest(case, ActionKind::Stop, ending)
}

/// Saves the microVM's memory and lets it rest. Other changes wait, as with one that is shut down.
fn pause(case: &Case<'_>) -> Verdict {
    let VmState::Running { nonce, since } = &case.kept.vm else {
        // Whether it sleeps or has ended: nothing of it runs, and the next request or declaration brings it back.
        return rest(case, ActionKind::Pause, Vec::new());
    };
    match boot::patience(case, *since) {
        Condition::Answers(_) => {
            let (sandbox, nonce, snapshot) = (case.record().id.clone(), nonce.clone(), Entropy::pause(nonce));
            let step = Step::Pause { sandbox, nonce, snapshot };
            rest(case, ActionKind::Pause, vec![step])
        }
        Condition::Waits(reason) => wait(case, reason),
        // A guest that hangs cannot be brought to rest, and its memory is not worth keeping.
        Condition::Boots(_)
        | Condition::Sleeps
        | Condition::Stuck(_)
        | Condition::Anew
        | Condition::DiskTooLarge { .. } => stop(case),
    }
}

/// Brings a microVM to rest by these steps, which are none if it rests already.
fn rest(case: &Case<'_>, kind: ActionKind, ending: Vec<Step>) -> Verdict {
    let mut steps = case.clear_leftovers();
    steps.extend(case.rename());
    let (kind, reason) = if ending.is_empty() {
        (ActionKind::Update(Disruption::Live), None)
    } else {
        (kind, Some(case.power_reason()))
    };
    steps.extend(ending);
    let action = case.powered(kind, reason, steps);
    if action.steps.is_empty() { Verdict::Unchanged } else { Verdict::Act(Box::new(action)) }
}

/// How much these steps disturb a guest that runs on.
fn disruption(steps: &[Step]) -> Disruption {
    let of = |step: &Step| match step {
        Step::SyncFiles { .. } | Step::ApplyProcesses { restart: Restart::AfterTask, .. } => Disruption::Files,
        Step::ApplyProcesses { restart: Restart::All, .. } => Disruption::Process,
        Step::ApplyProcesses { restart: Restart::None, .. }
        | Step::Record(_)
        | Step::EnsureTemplate { .. }
        | Step::EnsureDisk { .. }
        | Step::GrowDisk { .. }
        | Step::Launch(_)
        | Step::Pause { .. }
        | Step::Resume(_)
        | Step::AwaitAgent { .. }
        | Step::Stop { .. }
        | Step::RemoveVm(_)
        | Step::ReleaseDisk { .. }
        | Step::RecordApplied { .. }
        | Step::Forget(_)
        | Step::RecordSnapshot(_)
        | Step::TakeSnapshot { .. }
        | Step::LaunchFrom { .. }
        | Step::CopyDisk { .. }
        | Step::LeaveOut { .. }
        | Step::RemoveSnapshot(_)
        | Step::ForgetSnapshot(_)
        | Step::RecordRestored { .. } => Disruption::Live,
    };
    steps.iter().map(of).max().unwrap_or(Disruption::Live)
}

impl<'a> Case<'a> {
    /// The case of an app that has a sandbox.
    fn new(world: &'a World<'a>, about: &About<'a, '_>, app: &'a DesiredApp) -> Option<Self> {
        let sandboxes = || about.sandboxes.iter().map(|sandbox| &**sandbox);
        let kept = match about.sandboxes {
            [only] => &**only,
            several => several.iter().map(|one| &**one).max_by_key(|sandbox| worth(world, sandbox, &app.spec))?,
        };
        let leftovers = sandboxes().filter(|sandbox| sandbox.record.id != kept.record.id).collect();
        let applied = kept.record.applied.as_ref().map(|applied| &applied.spec);
        let is_applied = applied.is_some_and(|applied| *applied == app.spec);
        let mut changes = applied.filter(|_| !is_applied).map(|applied| applied.diff(&app.spec)).unwrap_or_default();
        if kept.record.uid != app.metadata.uid {
            changes.push(FieldChange {
                path: "metadata.uid".to_owned(),
                before: kept.record.uid.as_ref().map(|uid| uid.as_str().into()).unwrap_or_default(),
                after: app.metadata.uid.as_ref().map(|uid| uid.as_str().into()).unwrap_or_default(),
                disruption: Disruption::Live,
                sensitive: false,
            });
        }
        Some(Self { world, app, kept, leftovers, disk: world.disk(&kept.record.disk), is_applied, changes })
    }

    pub fn key(&self) -> &'a AppKey {
        &self.app.metadata.key
    }

    pub fn spec(&self) -> &'a PinnedSpec {
        &self.app.spec
    }

    pub fn record(&self) -> &'a SandboxRecord {
        &self.kept.record
    }

    pub fn applied(&self) -> Option<&'a Applied> {
        self.kept.record.applied.as_ref()
    }

    /// The hash of the processes that are declared. It is that of those which were applied where these are the same, which a
    /// spec that has just been read would have to make first.
    pub fn processes_digest(&self) -> &'a SpecDigest {
        let same = self.applied().filter(|_| self.is_applied);
        same.map_or(self.spec(), |applied| &applied.spec).processes_digest()
    }

    /// The size that the disk is to have. A disk that was accepted as larger stays so.
    pub fn disk_size(&self) -> ByteSize {
        let declared = self.spec().app.resources.disk.0;
        self.disk.map_or(declared, |disk| disk.size.max(declared))
    }

    /// An action with the reasons that hold for every kind, and `why` in particular.
    pub fn action(&self, kind: ActionKind, why: Option<Reason>, steps: Vec<Step>) -> Action {
        let record = self.record();
        let mut reasons = Vec::new();
        if record.app != *self.key() {
            reasons.push(Reason::Renamed(record.app.clone()));
        }
        if !self.changes.is_empty() {
            reasons.push(Reason::SpecChanged);
        }
        if record.applied.is_none() {
            reasons.push(Reason::Unfinished);
        }
        reasons.extend(why);
        if reasons.is_empty() {
            reasons.push(Reason::Unfinished);
        }
        Action {
            app: self.key().clone(),
            sandbox: record.id.clone(),
            kind,
            reasons,
            changes: self.changes.clone(),
            steps,
            blocked: Vec::new(),
        }
    }

    /// The removal of what an unfinished pass left behind; disks that the kept sandbox uses stay.
    pub fn clear_leftovers(&self) -> Vec<Step> {
        if self.leftovers.is_empty() {
            return Vec::new();
        }
        prune::clear(self.world, self.key(), self.leftovers.iter().copied())
    }

    /// Writes the app's present name into the inventory.
    fn rename(&self) -> Vec<Step> {
        let (record, metadata) = (self.record(), &self.app.metadata);
        if record.app == metadata.key && record.uid == metadata.uid {
            return Vec::new();
        }
        let renamed = SandboxRecord { app: metadata.key.clone(), uid: metadata.uid.clone(), ..record.clone() };
        vec![Step::Record(Box::new(renamed))]
    }

    /// Writes down that the declared spec is carried out, unless that is written. A restore that is pending is not.
    pub fn record_applied(&self) -> Vec<Step> {
        if self.is_applied {
            return Vec::new();
        }
        let previous = Some(&self.record().app);
        let step = recorded(self.world, self.app, self.record().id.clone(), previous);
        match (restore::pending(self.world, self.app, self.kept), self.applied(), step) {
            (Some(_), Some(applied), Step::RecordApplied { sandbox, spec, generation, revision }) => {
                let spec = spec.with(|spec| spec.app.restore.clone_from(&applied.spec.app.restore));
                let is_news = spec != applied.spec;
                is_news.then_some(Step::RecordApplied { sandbox, spec, generation, revision }).into_iter().collect()
            }
            (_, _, step) => counted(self.world, self.app).into_iter().chain([step]).collect(),
        }
    }

    /// The same case for whoever leaves the restore for later.
    pub fn without_restore(&self) -> Self {
        let changes = self.changes.iter().filter(|change| !restore::is_of_restore(change)).cloned().collect();
        let Self { world, app, kept, leftovers, disk, is_applied, changes: _ } = self;
        Self { world, app, kept, leftovers: leftovers.clone(), disk: *disk, is_applied: *is_applied, changes }
    }

    /// What the sandbox has yet to begin from.
    pub fn unbegun(&self) -> Option<Found<'a>> {
        let from = self.record().from.as_ref().filter(|_| self.applied().is_none())?;
        Some(self.world.shelf.with_id(from))
    }

    /// Nothing is done for a sandbox whose beginning is not there.
    pub fn waits_for(&self, snapshot: String, reason: String) -> Action {
        let action = self.action(ActionKind::Create, None, Vec::new());
        Action { blocked: vec![Block::Snapshot { snapshot, reason }], ..action }
    }

    /// What a copied disk is to do without, as long as nothing was applied to it.
    fn leave_out(&self, status: &GuestStatus) -> Option<Step> {
        let Found::There(shot) = self.unbegun().filter(|_| status.processes.is_none())? else { return None };
        Some(begin::leave_out(&self.record().id, shot.record))
    }

    /// How it was used, under its name and that which its sandbox has yet.
    pub fn usages(&self) -> impl Iterator<Item = &'a Usage> {
        let names = [self.key(), &self.record().app];
        names.into_iter().filter_map(|key| self.world.memory(key)).map(AppRecord::usage)
    }

    /// Why the microVM rests or runs.
    pub fn power_reason(&self) -> Reason {
        match self.world.power(self.app) {
            (_, Some(held)) => Reason::PowerHere(held.clone()),
            (power, None) => match self.woken().filter(|_| power == Power::Running) {
                Some(woken) => Reason::PowerHere(woken.clone()),
                None => Reason::PowerChanged(power),
            },
        }
    }

    /// Who or what ended its rest, where that was not its declaration.
    fn woken(&self) -> Option<&'a PowerOverride> {
        let declared = self.spec().app.power.state;
        let was_declared = self.applied().is_some_and(|applied| applied.spec.app.power.state == declared);
        let woken = self.world.memory(self.key())?.usage().woken.as_ref()?;
        (was_declared && woken.holds_over(declared)).then_some(woken)
    }

    /// An action that changes the power state alone: it writes down that one field of the declaration, unless that is written, and
    /// shows no other change, because none is carried out.
    pub fn powered(&self, kind: ActionKind, reason: Option<Reason>, mut steps: Vec<Step>) -> Action {
        let (record, changes) = self.power_applied();
        steps.extend(record);
        let mut action = self.action(kind, reason, steps);
        action.reasons.retain(|reason| !matches!(reason, Reason::SpecChanged));
        action.changes.retain(|change| change.path.starts_with("metadata."));
        action.changes.extend(changes);
        if action.reasons.is_empty() {
            action.reasons.push(if action.changes.is_empty() { Reason::Unfinished } else { Reason::SpecChanged });
        }
        action
    }

    /// Writes down the declared power as applied, unless that is written, and the change that this is.
    fn power_applied(&self) -> (Vec<Step>, Vec<FieldChange>) {
        let declared = self.spec().app.power.state;
        let Some(applied) = self.applied().filter(|applied| applied.spec.app.power.state != declared) else {
            return (Vec::new(), Vec::new());
        };
        let spec = applied.spec.with(|spec| spec.app.power.state = declared);
        let changes = applied.spec.diff(&spec);
        if spec == *self.spec() {
            return (self.record_applied(), changes);
        }
        let step = Step::RecordApplied {
            sandbox: self.record().id.clone(),
            spec,
            generation: applied.generation,
            revision: applied.revision.clone(),
        };
        (vec![step], changes)
    }
}

/// The step by which the declared restore counts as carried out, unless it does.
pub(super) fn counted(world: &World<'_>, app: &DesiredApp) -> Option<Step> {
    let key = &app.metadata.key;
    let token = &app.spec.app.restore.as_ref()?.token;
    let is_counted = world.memory(key).is_some_and(|record| record.has_restored(token));
    (!is_counted).then(|| Step::RecordRestored { app: key.clone(), token: token.clone() })
}

/// The step that writes down that the declared spec is carried out.
pub(super) fn recorded(
    world: &World<'_>,
    app: &DesiredApp,
    sandbox: setpoint_schema::id::SandboxId,
    previous: Option<&AppKey>,
) -> Step {
    Step::RecordApplied {
        sandbox,
        spec: app.spec.clone(),
        generation: world.generation(app, previous),
        revision: world.desired.revision_of(&app.metadata.key).clone(),
    }
}

/// Which of several sandboxes of one app is kept: one that runs and was finished, else the one that a replacement was leading
/// to, which has the declared template, a disk that fits, and is newest.
fn worth<'a>(world: &World<'_>, sandbox: &'a ObservedSandbox, spec: &SandboxSpec) -> impl Ord + use<'a> {
    let record = &sandbox.record;
    let runs = matches!(sandbox.vm, VmState::Running { .. });
    let disk = world.disk(&record.disk);
    let fits = disk.is_some_and(|disk| disk.size <= spec.app.resources.disk.0);
    let has_template = record.machine.template == spec.template;
    (runs, runs && record.applied.is_some(), has_template, fits, record.created_at, &record.id)
}
