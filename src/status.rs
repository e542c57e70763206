//! Turns a pass of the loop into what people see: the snapshot behind the status API, and events for what has changed in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use setpoint_plan::model::{Action, ActionKind, Block, Hold};
use setpoint_schema::app::{DesiredApp, Power};
use setpoint_schema::id::{CommitId, SandboxId};
use setpoint_schema::name::{AppKey, HostName, TemplateName};
use setpoint_schema::observed::{GuestState, GuestStatus, ObservedSandbox, VmState};
use setpoint_schema::quantity::ByteSize;
use setpoint_schema::wire::{self, Condition, ConditionKind, ConditionStatus, Phase};
use setpoint_state::{EventKind, NewEvent};

use crate::api::{Content, Rows, Snapshot};
use crate::converge::Pass;
use crate::ingress::Naming;

/// What stays the same from pass to pass.
#[derive(Debug, Clone)]
pub struct Identity {
    /// When the daemon started.
    pub started_at: Timestamp,
    /// The repository, as configured.
    pub source_url: String,
    /// The branch, or `HEAD`.
    pub branch: String,
    /// What the driver says of itself.
    pub driver: String,
    /// The domain that apps are served below.
    pub domain: HostName,
    /// The port that they are served on.
    pub ingress_port: u16,
}

/// Makes snapshots, each with the one before in mind: a condition keeps its time while it does not change.
pub struct Reporter {
    identity: Identity,
    previous: Option<Arc<Snapshot>>,
}

impl Reporter {
    /// Nothing is known before the first pass.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        Self { identity, previous: None }
    }

    /// The snapshot of a pass, and what has changed since the last one.
    pub fn report(&mut self, pass: &Pass, last_applied: Option<CommitId>) -> (Arc<Snapshot>, Vec<NewEvent>) {
        let apps = self.apps(pass);
        let sandboxes = sandboxes(pass);
        let status = self.status(pass, &apps, last_applied);
        let content = Content {
            at: pass.at,
            status,
            apps: Rows::All(apps),
            sandboxes: Rows::All(sandboxes),
            templates: Rows::All(templates(pass)),
        };
        let snapshot = Arc::new(Snapshot::after(self.previous.as_deref(), content));
        let events = self.previous.as_ref().map(|previous| transitions(previous, &snapshot)).unwrap_or_default();
        self.previous = Some(Arc::clone(&snapshot));
        (snapshot, events)
    }

    fn apps(&self, pass: &Pass) -> BTreeMap<AppKey, wire::App> {
        let facts = Facts::gather(pass);
        let describe = |key: &AppKey| {
            let before = self.previous.as_ref().and_then(|previous| previous.apps.get(key)).map(|row| row.value());
            facts.of(key).map(|facts| (key.clone(), self.app(pass, &facts, before)))
        };
        facts.keys().into_iter().filter_map(|key| describe(&key)).collect()
    }

    fn app(&self, pass: &Pass, facts: &AppFacts<'_>, before: Option<&wire::App>) -> wire::App {
        let spec = &facts.declared.spec.app;
        let phase = facts.phase();
        let record = pass.observed.apps.get(&facts.declared.metadata.key);
        let applied = facts.sandbox.and_then(|sandbox| sandbox.record.applied.as_ref());
        let guest = facts.guest();
        let ready = facts.is_ready();
        wire::App {
            team: facts.declared.metadata.key.team.clone(),
            name: facts.declared.metadata.key.name.clone(),
            phase,
            ready,
            conditions: conditions(facts, phase, ready, before, pass.at),
            generation: record.map(|record| record.generation).unwrap_or_default(),
            observed_generation: applied.map(|applied| applied.generation),
            last_attempted_revision: Some(facts.revision.clone()),
            last_applied_revision: applied.map(|applied| applied.revision.clone()),
            blocked: facts.blocked().iter().map(ToString::to_string).collect(),
            held: facts.held.map(ToString::to_string),
            overridden: record
                .and_then(|record| Some(record.suspended.as_ref()?.into()))
                .or_else(|| facts.overridden()),
            sandbox: facts.sandbox.map(|sandbox| sandbox.record.id.clone()),
            preview: facts.preview(),
            urls: naming(pass, &self.identity.domain).urls(facts.declared, self.identity.ingress_port),
            build: guest.map_or(wire::Build::None, |guest| (&guest.build).into()),
            web: guest.and_then(|guest| guest.web.as_ref()).map(Into::into),
            workers: guest.map(|guest| guest.workers.iter().map(Into::into).collect()).unwrap_or_default(),
            restarts: guest.map_or(0, restarts),
            power: spec.power,
            template: spec.template.clone(),
            resources: (&spec.resources).into(),
            labels: facts.declared.metadata.labels.clone(),
        }
    }

    fn status(&self, pass: &Pass, apps: &BTreeMap<AppKey, wire::App>, last_applied: Option<CommitId>) -> wire::Status {
        let Identity { started_at, source_url, branch, driver, domain: _, ingress_port: _ } = self.identity.clone();
        let trouble = pass.followed.trouble.as_ref();
        wire::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: pass.observed.host.clone(),
            started_at,
            source: wire::Source {
                url: wire::RedactedUrl::new(&source_url),
                branch,
                last_attempted: pass.followed.attempted.clone(),
                last_applied,
                error: trouble.map(|trouble| trouble.message.clone()),
                since: trouble.map(|trouble| trouble.since),
            },
            apps: wire::AppCounts::of(apps.values()),
            driver,
            limits: usage(pass),
        }
    }
}

/// How apps are named to browsers, as the declarations of this pass say.
#[must_use]
pub fn naming(pass: &Pass, domain: &HostName) -> Naming {
    Naming { domain: domain.clone(), pattern: pass.followed.project.hosts.pattern.clone() }
}

/// Everything that a pass knows, by app.
struct Facts<'a> {
    pass: &'a Pass,
    sandboxes: BTreeMap<&'a AppKey, &'a ObservedSandbox>,
    actions: BTreeMap<&'a AppKey, &'a Action>,
    held: BTreeMap<&'a AppKey, &'a Hold>,
}

/// Everything that a pass knows of one app.
struct AppFacts<'a> {
    declared: &'a DesiredApp,
    /// The revision that declares it so.
    revision: &'a CommitId,
    stalled: Option<&'a str>,
    sandbox: Option<&'a ObservedSandbox>,
    action: Option<&'a Action>,
    held: Option<&'a Hold>,
    busy: bool,
}

impl<'a> Facts<'a> {
    fn gather(pass: &'a Pass) -> Self {
        Self {
            pass,
            sandboxes: pass.observed.sandboxes.values().map(|sandbox| (&sandbox.record.app, &**sandbox)).collect(),
            actions: pass.plan.actions.iter().map(|action| (&action.app, &**action)).collect(),
            held: pass.plan.held.iter().map(|held| (&held.app, &held.reason)).collect(),
        }
    }

    /// Declared apps, and those that are not any more but still have a sandbox.
    fn keys(&self) -> BTreeSet<AppKey> {
        self.pass.followed.desired.apps.keys().chain(self.sandboxes.keys().copied()).cloned().collect()
    }

    fn of(&self, key: &AppKey) -> Option<AppFacts<'a>> {
        let desired = &self.pass.followed.desired;
        let declared = desired.apps.get(key).map(|app| (app, desired.revision_of(key)));
        let remembered =
            || self.pass.observed.apps.get(key).map(|record| (&record.last_good.app, &record.last_good.revision));
        let (declared, revision) = declared.or_else(remembered)?;
        Some(AppFacts {
            declared,
            revision,
            stalled: desired.stalled.get(key).map(String::as_str),
            sandbox: self.sandboxes.get(key).copied(),
            action: self.actions.get(key).copied(),
            held: self.held.get(key).copied(),
            busy: self.pass.busy.contains(key),
        })
    }
}

impl AppFacts<'_> {
    fn guest(&self) -> Option<&GuestStatus> {
        match &self.sandbox?.guest {
            GuestState::Answering(status) => Some(status),
            GuestState::Absent | GuestState::Connecting { .. } | GuestState::Silent { .. } => None,
        }
    }

    fn blocked(&self) -> &[Block] {
        self.action.map_or(&[], |action| &action.blocked)
    }

    /// What somebody on this host has set over the declaration, if that is what holds it: maybe under an earlier name.
    fn overridden(&self) -> Option<wire::Override> {
        match self.held? {
            Hold::SuspendedHere(suspension) => Some(suspension.into()),
            Hold::Suspended | Hold::PruneDisabled | Hold::PruneUnsafe(_) | Hold::Stalled(_) | Hold::Unready(_) => None,
        }
    }

    fn phase(&self) -> Phase {
        let deleting = self.action.is_some_and(|action| action.kind == ActionKind::Delete);
        match (self.busy, self.action, self.held) {
            (_, Some(_), _) if deleting => Phase::Deleting,
            (true, _, _) => Phase::Reconciling,
            _ if self.stalled.is_some() => Phase::Stalled,
            (false, Some(action), _) if !action.blocked.is_empty() => Phase::Blocked,
            (false, Some(action), _) if action.kind == ActionKind::Create => Phase::Pending,
            (false, Some(_), _) => Phase::Reconciling,
            (false, None, Some(Hold::Suspended | Hold::SuspendedHere(_))) => Phase::Suspended,
            (false, None, Some(Hold::Stalled(_))) => Phase::Stalled,
            (false, None, Some(Hold::Unready(_))) => Phase::Unready,
            (false, None, Some(Hold::PruneDisabled | Hold::PruneUnsafe(_)) | None) => self.settled_phase(),
        }
    }

    fn settled_phase(&self) -> Phase {
        match self.declared.spec.app.power {
            Power::Stopped => Phase::Stopped,
            Power::Running if self.is_ready() => Phase::Ready,
            Power::Running => Phase::Unready,
        }
    }

    /// This generation is carried out, and the agent of the running boot says that all is up.
    fn is_ready(&self) -> bool {
        let Some(sandbox) = self.sandbox else { return false };
        let carried_out = sandbox.record.applied.as_ref().is_some_and(|applied| applied.spec == self.declared.spec);
        carried_out && self.guest().is_some_and(|guest| guest.unready_for(&self.declared.spec).is_none())
    }

    /// Why it is not ready, in a word for programs and a sentence for people.
    fn unready(&self) -> (&'static str, String) {
        match (self.sandbox, self.guest()) {
            (None, _) => ("NoSandbox", "there is no microVM yet".to_owned()),
            (Some(sandbox), None) => match (&sandbox.vm, &sandbox.guest) {
                (VmState::Absent, _) => ("VmAbsent", "the microVM is not started".to_owned()),
                (VmState::Exited { .. }, _) => ("VmExited", "the microVM has ended".to_owned()),
                (VmState::Running { .. }, GuestState::Silent { since }) => {
                    ("AgentSilent", format!("the agent has been silent since {since:.0}"))
                }
                (VmState::Running { .. }, _) => ("Booting", "the microVM is booting".to_owned()),
            },
            (Some(_), Some(guest)) => match guest.unready_for(&self.declared.spec) {
                Some(reason) => ("NotHealthy", reason),
                None => ("NotApplied", "the newest declaration is not carried out yet".to_owned()),
            },
        }
    }

    fn preview(&self) -> wire::Preview {
        let web = self.guest().and_then(|guest| guest.web.as_ref());
        match self.declared.spec.runtime().preview() {
            setpoint_schema::runtime::Preview::None => wire::Preview::None,
            setpoint_schema::runtime::Preview::Web if self.is_ready() => wire::Preview::Up,
            setpoint_schema::runtime::Preview::Web
                if self.busy || web.is_some_and(|web| web.health == setpoint_schema::observed::Health::Unknown) =>
            {
                wire::Preview::Starting
            }
            setpoint_schema::runtime::Preview::Web => wire::Preview::Down,
        }
    }
}

fn conditions(
    facts: &AppFacts<'_>,
    phase: Phase,
    ready: bool,
    before: Option<&wire::App>,
    now: Timestamp,
) -> Vec<Condition> {
    let condition = |kind, holds, (reason, message): (&str, String)| {
        let status = if holds { ConditionStatus::True } else { ConditionStatus::False };
        let earlier = before.and_then(|app| app.conditions.iter().find(|earlier| earlier.kind == kind));
        let since = earlier.filter(|earlier| earlier.status == status).map_or(now, |earlier| earlier.since);
        Condition { kind, status, reason: reason.to_owned(), message, since }
    };
    let nothing = || ("Settled", "nothing is left to do".to_owned());
    let is_ready = if ready { ("Healthy", "as declared and healthy".to_owned()) } else { facts.unready() };
    let ready = condition(ConditionKind::Ready, ready, is_ready);
    let reconciling = matches!(phase, Phase::Pending | Phase::Reconciling | Phase::Blocked | Phase::Deleting);
    let work = match facts.action.map(|action| (action, action.blocked.first())) {
        Some((_, Some(block))) => ("Blocked", block.to_string()),
        Some((action, None)) => ("Progressing", action.kind.to_string()),
        // What is under way was planned by an earlier pass.
        None if facts.busy => ("Progressing", "its steps are being carried out".to_owned()),
        None => nothing(),
    };
    let stalled = stalled_reason(facts, &ready, now);
    let is_stalled = stalled.is_some();
    vec![
        ready,
        condition(ConditionKind::Reconciling, reconciling, work),
        condition(ConditionKind::Stalled, is_stalled, stalled.unwrap_or_else(nothing)),
    ]
}

/// Why only a change of the declaration can help, if that is so.
fn stalled_reason(facts: &AppFacts<'_>, ready: &Condition, now: Timestamp) -> Option<(&'static str, String)> {
    if let Some(mistakes) = facts.stalled {
        return Some(("InvalidDeclaration", mistakes.to_owned()));
    }
    let unready = matches!(facts.held, Some(Hold::Unready(_))).then(|| now.duration_since(ready.since))?;
    let limit = facts.declared.spec.app.timeouts.ready;
    let limit_elapsed = unready > SignedDuration::try_from(limit.as_duration()).unwrap_or(SignedDuration::MAX);
    limit_elapsed.then(|| ("ReadyTimeout", format!("not ready within {limit}: {}", ready.message)))
}

fn restarts(guest: &GuestStatus) -> u32 {
    let workers = guest.workers.iter().map(|worker| wire::Process::from(&worker.process).restarts());
    let web = guest.web.iter().map(|web| wire::Process::from(&web.process).restarts());
    workers.chain(web).fold(0, u32::saturating_add)
}

fn sandboxes(pass: &Pass) -> BTreeMap<SandboxId, wire::Sandbox> {
    let describe = |sandbox: &ObservedSandbox| wire::Sandbox {
        id: sandbox.record.id.clone(),
        app: sandbox.record.app.clone(),
        host: sandbox.record.host.clone(),
        vm: (&sandbox.vm).into(),
        vcpus: sandbox.record.machine.vcpus,
        memory: ByteSize::mib(sandbox.record.machine.memory_mib),
        disk: pass.observed.disks.get(&sandbox.record.disk).map(|disk| (&**disk).into()),
        created_at: sandbox.record.created_at,
    };
    pass.observed.sandboxes.iter().map(|(id, sandbox)| (id.clone(), describe(sandbox))).collect()
}

/// The templates that apps start from, each as the newest revision has it.
fn templates(pass: &Pass) -> BTreeMap<TemplateName, wire::Template> {
    let desired = &pass.followed.desired;
    let mut templates = BTreeMap::new();
    for (key, app) in &desired.apps {
        let (name, digest) = (&app.spec.app.template, &app.spec.template);
        let describe = || wire::Template { name: name.clone(), digest: digest.clone(), root: None, apps: 0 };
        let template: &mut wire::Template = templates.entry(name.clone()).or_insert_with(describe);
        template.apps += 1;
        // An app with mistakes is kept as it last was, and its template with it.
        if template.root.is_none() || !desired.kept.contains_key(key) {
            template.digest = digest.clone();
            template.root = desired.templates.get(digest).map(|template| (&template.root).into());
        }
    }
    templates
}

fn usage(pass: &Pass) -> wire::Limits {
    let observed = &pass.observed;
    let running = || observed.sandboxes.values().filter(|sandbox| matches!(sandbox.vm, VmState::Running { .. }));
    let memory = running().map(|sandbox| sandbox.record.machine.memory_mib).sum();
    let disk = observed.disks.values().fold(ByteSize::default(), |sum, disk| sum.saturating_add(disk.size));
    let count = u32::try_from(observed.sandboxes.len()).unwrap_or(u32::MAX);
    wire::Limits {
        memory: wire::Usage { used: ByteSize::mib(memory), total: observed.limits.memory },
        vcpus: wire::Usage {
            used: running().map(|sandbox| sandbox.record.machine.vcpus).sum(),
            total: observed.limits.vcpus,
        },
        disk: wire::Usage { used: disk, total: observed.limits.disk },
        sandboxes: wire::Usage { used: count, total: observed.limits.sandboxes },
    }
}

/// What is different for the people who watch: readiness, blocks, stalls and the source's health.
fn transitions(before: &Snapshot, after: &Snapshot) -> Vec<NewEvent> {
    let mut events = Vec::new();
    match (&before.status.value().source.error, &after.status.value().source.error) {
        (old, Some(error)) if old.as_ref() != Some(error) => {
            events.push(NewEvent::new(EventKind::SourceError, "SourceError", error.clone()));
        }
        (Some(_), None) => {
            events.push(NewEvent::new(
                EventKind::SourceRecovered,
                "SourceRecovered",
                "the source can be followed again",
            ));
        }
        (_, Some(_)) | (None, None) => {}
    }
    for (key, app) in after.apps.iter() {
        let old = before.apps.get(key).map(|row| row.value());
        events.extend(readiness(key, old, app));
        events.extend(stall(key, old, app));
        events.extend(block(key, old, app));
    }
    events
}

fn readiness(key: &AppKey, before: Option<&wire::App>, after: &wire::App) -> Option<NewEvent> {
    let was_ready = before.is_some_and(|app| app.ready);
    if was_ready == after.ready {
        return None;
    }
    let kind = if after.ready { EventKind::Ready } else { EventKind::Unready };
    let ready = after.conditions.iter().find(|condition| condition.kind == ConditionKind::Ready)?;
    Some(about(key, after, kind, &ready.reason, &ready.message))
}

fn stall(key: &AppKey, before: Option<&wire::App>, after: &wire::App) -> Option<NewEvent> {
    let stalled = |app: &wire::App| {
        let condition = app.conditions.iter().find(|condition| condition.kind == ConditionKind::Stalled)?;
        (condition.status == ConditionStatus::True).then(|| (condition.reason.clone(), condition.message.clone()))
    };
    match (before.and_then(stalled), stalled(after)) {
        (None, Some((reason, message))) => Some(about(key, after, EventKind::Stalled, &reason, &message)),
        (Some((reason, _)), None) => Some(about(key, after, EventKind::Resumed, &reason, "no longer stalled")),
        (Some(_), Some(_)) | (None, None) => None,
    }
}

/// A block counts as news when it begins or ends, not when its figures move.
fn block(key: &AppKey, before: Option<&wire::App>, after: &wire::App) -> Option<NewEvent> {
    let was_blocked = before.is_some_and(|app| app.phase == Phase::Blocked);
    match (was_blocked, after.phase == Phase::Blocked) {
        (false, true) => Some(about(key, after, EventKind::Blocked, "Blocked", &after.blocked.join("; "))),
        (true, false) => Some(about(key, after, EventKind::Unblocked, "Unblocked", "nothing is in the way any more")),
        (true, true) | (false, false) => None,
    }
}

fn about(key: &AppKey, app: &wire::App, kind: EventKind, reason: &str, message: &str) -> NewEvent {
    let event = NewEvent::new(kind, reason, message).app(key);
    match &app.sandbox {
        Some(sandbox) => event.sandbox(sandbox),
        None => event,
    }
}
