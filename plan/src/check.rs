//! Looks for broken invariants in any plan, whoever made it.
//!
//! Nothing here is shared with the planner, so that a mistake in one is seen by the other. Called by tests on every plan, and
//! by the daemon before it carries one out.

mod capacity;
mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use setpoint_schema::app::Power;
use setpoint_schema::disruption::Disruption;
use setpoint_schema::id::{BootNonce, DiskId, SandboxId, SnapshotId};
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{Intent, Observed};

use crate::desired::{Completeness, Desired};
use crate::model::{Action, ActionKind, Hold, Plan, Step};

/// One broken invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// Two actions, or an action and a hold, speak of one app.
    SpokenOfTwice(AppKey),
    /// A declared app is neither acted on, held, nor unchanged.
    Forgotten(AppKey),
    /// Something would be removed although the declarations were not read in full.
    RemovalWhileIncomplete(AppKey),
    /// A declared app would be removed, though its removal had not begun.
    RemovesDeclared(AppKey),
    /// A suspended app would be touched.
    TouchesSuspended(AppKey),
    /// A stopped app would be started.
    StartsStopped(AppKey),
    /// An action could begin and does nothing, or says no reason.
    Pointless(AppKey),
    /// A step comes before something that it needs: which step, and what it lacks.
    OutOfOrder {
        /// Whose action.
        app: AppKey,
        /// The step's place in it.
        step: usize,
        /// What it lacks.
        lacks: &'static str,
    },
    /// A nonce would be used by two boots.
    ReusedNonce(BootNonce),
    /// A new sandbox would have the id of another one.
    ReusedId(SandboxId),
    /// A disk would be released that a sandbox still uses.
    ReleasesUsedDisk(DiskId),
    /// A snapshot would be removed that a sandbox is to begin from.
    RemovesUsedSnapshot(SnapshotId),
    /// Something comes behind a removal, or a removal behind an old disk's.
    RemovalsNotLast(AppKey),
    /// An app comes before one that it depends on, or is disturbed while that one is not ready.
    BeforeDependency {
        /// The app.
        app: AppKey,
        /// What it depends on.
        dependency: AppKey,
    },
    /// More would run than the host's limits allow: what of.
    OverCapacity(&'static str),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SpokenOfTwice(app) => write!(f, "{app} is spoken of twice"),
            Self::Forgotten(app) => write!(f, "{app} is forgotten"),
            Self::RemovalWhileIncomplete(app) => {
                write!(f, "{app} would be removed although the declarations are incomplete")
            }
            Self::RemovesDeclared(app) => write!(f, "{app} is declared and would be removed"),
            Self::TouchesSuspended(app) => write!(f, "{app} is suspended and would be touched"),
            Self::StartsStopped(app) => write!(f, "{app} is declared stopped and would be started"),
            Self::Pointless(app) => write!(f, "the action for {app} has no step or no reason"),
            Self::OutOfOrder { app, step, lacks } => write!(f, "step {step} for {app} lacks {lacks}"),
            Self::ReusedNonce(nonce) => write!(f, "two boots have the nonce {nonce}"),
            Self::ReusedId(id) => write!(f, "two sandboxes have the id {id}"),
            Self::ReleasesUsedDisk(disk) => write!(f, "disk {disk} would be released while in use"),
            Self::RemovesUsedSnapshot(id) => write!(f, "snapshot {id} would be removed while in use"),
            Self::RemovalsNotLast(app) => write!(f, "{app} comes behind a removal"),
            Self::BeforeDependency { app, dependency } => write!(f, "{app} does not wait for {dependency}"),
            Self::OverCapacity(what) => write!(f, "more {what} would be used than the limit allows"),
        }
    }
}

/// Every invariant that the plan breaks; none, for a plan that is sound.
#[must_use]
pub fn check(plan: &Plan, desired: &Desired, observed: &Observed) -> Vec<Violation> {
    let mut out = Vec::new();
    each_app_once(plan, desired, &mut out);
    new_names_are_new(plan, observed, &mut out);
    for action in &plan.actions {
        holds_are_kept(action, desired, observed, &mut out);
        steps::check(action, observed, &mut out);
    }
    removals_come_last(plan, &mut out);
    dependencies_come_first(plan, desired, &mut out);
    used_snapshots_stay(plan, observed, &mut out);
    capacity::check(plan, observed, &mut out);
    out
}

/// What a sandbox begins from is there until it has begun.
fn used_snapshots_stay(plan: &Plan, observed: &Observed, out: &mut Vec<Violation>) {
    let steps = || plan.actions.iter().flat_map(|action| &action.steps);
    let unbegun = observed.sandboxes.values().filter(|sandbox| sandbox.record.applied.is_none());
    let awaited = unbegun.filter_map(|sandbox| sandbox.record.from.as_ref());
    let begun_from = steps().filter_map(|step| match step {
        Step::LaunchFrom { snapshot, .. } | Step::CopyDisk { snapshot, .. } => Some(snapshot),
        _ => None,
    });
    let used: BTreeSet<_> = awaited.chain(begun_from).collect();
    let removed = steps().filter_map(|step| match step {
        Step::RemoveSnapshot(snapshot) | Step::ForgetSnapshot(snapshot) => Some(snapshot),
        _ => None,
    });
    out.extend(removed.filter(|id| used.contains(id)).map(|id| Violation::RemovesUsedSnapshot(id.clone())));
}

fn each_app_once(plan: &Plan, desired: &Desired, out: &mut Vec<Violation>) {
    let acted = plan.actions.iter().map(|action| &action.app);
    let held = plan.held.iter().map(|held| &held.app);
    let mut seen = BTreeSet::new();
    for app in acted.chain(held).chain(plan.unchanged.iter()) {
        if !seen.insert(app) {
            out.push(Violation::SpokenOfTwice(app.clone()));
        }
    }
    out.extend(desired.apps.keys().filter(|app| !seen.contains(app)).cloned().map(Violation::Forgotten));
}

fn new_names_are_new(plan: &Plan, observed: &Observed, out: &mut Vec<Violation>) {
    let mut nonces: BTreeSet<_> = observed.sandboxes.values().map(|s| &s.record.machine.nonce).collect();
    let mut owners: BTreeMap<_, _> = observed.sandboxes.values().map(|s| (&s.record.id, &s.record.disk)).collect();
    let steps = plan.actions.iter().flat_map(|action| &action.steps);
    for step in steps {
        match step {
            Step::Launch(machine) | Step::Resume(machine) | Step::LaunchFrom { machine, .. }
                if !nonces.insert(&machine.nonce) =>
            {
                out.push(Violation::ReusedNonce(machine.nonce.clone()));
            }
            Step::Record(record) => {
                if *owners.entry(&record.id).or_insert(&record.disk) != &record.disk {
                    out.push(Violation::ReusedId(record.id.clone()));
                }
            }
            Step::Launch(_)
            | Step::Resume(_)
            | Step::Pause { .. }
            | Step::EnsureTemplate { .. }
            | Step::EnsureDisk { .. }
            | Step::GrowDisk { .. }
            | Step::AwaitAgent { .. }
            | Step::SyncFiles { .. }
            | Step::ApplyProcesses { .. }
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
            | Step::RecordRestored { .. } => {}
        }
    }
}

/// What a declaration, or the lack of a complete one, forbids.
fn holds_are_kept(action: &Action, desired: &Desired, observed: &Observed, out: &mut Vec<Violation>) {
    let app = &action.app;
    let removes = matches!(action.kind, ActionKind::Delete | ActionKind::ExpireDisk | ActionKind::ExpireSnapshot);
    if removes && desired.completeness != Completeness::Complete {
        out.push(Violation::RemovalWhileIncomplete(app.clone()));
    }
    if action.reasons.is_empty() || (action.steps.is_empty() && action.blocked.is_empty()) {
        out.push(Violation::Pointless(app.clone()));
    }
    let Some(declared) = desired.apps.get(app) else { return };
    let has_begun = |id: &SandboxId| observed.sandboxes.get(id).is_some_and(|s| s.record.intent == Intent::Delete);
    if action.kind == ActionKind::Delete && !has_begun(&action.sandbox) {
        out.push(Violation::RemovesDeclared(app.clone()));
    }
    let suspended_here = observed.apps.get(app).is_some_and(|record| record.suspended.is_some());
    if declared.spec.app.suspend || suspended_here {
        out.push(Violation::TouchesSuspended(app.clone()));
    }
    // What held under its former name is remembered under the new one, once anything is.
    let known = observed.apps.get(app).or_else(|| {
        let sandbox = observed.sandboxes.get(&action.sandbox)?;
        observed.apps.get(&sandbox.record.app)
    });
    let held = known.and_then(|record| record.power.as_ref());
    let held = held.filter(|held| held.declared == declared.spec.app.power.state);
    let starts = |step: &Step| matches!(step, Step::Launch(_) | Step::Resume(_) | Step::LaunchFrom { .. });
    let starts = action.steps.iter().any(starts);
    let ends = action.steps.iter().any(|step| matches!(step, Step::Stop { .. }));
    // One that sleeps is woken to be shut down.
    let stays_up = starts && !(action.kind == ActionKind::Stop && ends);
    if stays_up && held.map_or(declared.spec.app.power.state, |held| held.state) != Power::Running {
        out.push(Violation::StartsStopped(app.clone()));
    }
}

fn removals_come_last(plan: &Plan, out: &mut Vec<Violation>) {
    let section = |action: &Action| match action.kind {
        ActionKind::Create
        | ActionKind::Adopt
        | ActionKind::Update(_)
        | ActionKind::Reboot
        | ActionKind::Replace
        | ActionKind::Stop
        | ActionKind::Pause
        | ActionKind::Resume
        | ActionKind::Snapshot => 0,
        ActionKind::Delete => 1,
        ActionKind::ExpireDisk | ActionKind::ExpireSnapshot => 2,
    };
    let pairs = plan.actions.iter().zip(plan.actions.iter().skip(1));
    let wrong = pairs.filter(|(first, second)| section(first) > section(second));
    out.extend(wrong.map(|(_, second)| Violation::RemovalsNotLast(second.app.clone())));
}

/// What an app depends on comes before it, and is ready before the app is disturbed. Apps that depend on themselves in a
/// circle have no order.
fn dependencies_come_first(plan: &Plan, desired: &Desired, out: &mut Vec<Violation>) {
    let places: BTreeMap<_, _> = plan.actions.iter().enumerate().map(|(place, action)| (&action.app, place)).collect();
    let unready = plan.held.iter().filter(|held| matches!(held.reason, Hold::Unready(_))).map(|held| &held.app);
    let unready: BTreeSet<_> = unready.collect();
    for (place, action) in plan.actions.iter().enumerate() {
        let disturbs = match action.kind {
            ActionKind::Create | ActionKind::Reboot | ActionKind::Replace | ActionKind::Resume => true,
            ActionKind::Update(disruption) => disruption != Disruption::Live,
            ActionKind::Adopt | ActionKind::Stop | ActionKind::Pause => false,
            ActionKind::Delete | ActionKind::ExpireDisk | ActionKind::Snapshot | ActionKind::ExpireSnapshot => {
                continue;
            }
        };
        let begins = disturbs && action.blocked.is_empty();
        for dependency in dependencies(desired, &action.app) {
            // An old disk of the dependency is none of the dependent's business, and removals come last anyway.
            // Neither is a moment that is kept of it while it goes on.
            let acted_on = places.get(dependency).filter(|other| {
                !matches!(
                    plan.actions[**other].kind,
                    ActionKind::ExpireDisk | ActionKind::Snapshot | ActionKind::ExpireSnapshot
                )
            });
            let comes_later =
                acted_on.is_some_and(|other| *other > place && plan.actions[*other].kind != ActionKind::Delete);
            let is_early = begins && (acted_on.is_some() || unready.contains(dependency));
            if (comes_later || is_early) && !reaches(desired, dependency, &action.app) {
                out.push(Violation::BeforeDependency { app: action.app.clone(), dependency: dependency.clone() });
            }
        }
    }
}

fn dependencies<'a>(desired: &'a Desired, app: &AppKey) -> impl Iterator<Item = &'a AppKey> {
    desired.apps.get(app).into_iter().flat_map(|app| &app.spec.app.depends_on)
}

/// Whether `from` depends on `to`, over any number of others.
fn reaches(desired: &Desired, from: &AppKey, to: &AppKey) -> bool {
    let mut seen = BTreeSet::new();
    let mut ahead = vec![from];
    while let Some(app) = ahead.pop() {
        if app == to {
            return true;
        }
        if seen.insert(app) {
            ahead.extend(dependencies(desired, app));
        }
    }
    false
}
