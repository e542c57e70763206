//! Turns a pass of the loop into what people see: the snapshot behind the status API, and events for what has changed in it.

mod conditions;
mod facts;
mod news;
mod tally;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use setpoint_plan::model::{Action, Hold};
use setpoint_schema::id::SandboxId;
use setpoint_schema::name::{AppKey, HostName};
use setpoint_schema::observed::ObservedSandbox;
use setpoint_schema::quantity::ByteSize;
use setpoint_schema::wire::{self, ConditionKind, ConditionStatus};
use setpoint_state::{EventRecord, NewEvent};

use crate::api::{Content, Rows, Snapshot};
use crate::converge::Pass;
use crate::ingress::{Naming, Routes};

use conditions::Earlier;
use facts::{AppFacts, Busy};
use news::Announced;

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
    announced: Announced,
    /// When each app that only waits to become ready counts as stalled.
    timeouts: BTreeMap<AppKey, Timestamp>,
}

/// What a pass gives to people.
pub struct Report {
    /// What the API shows.
    pub snapshot: Arc<Snapshot>,
    /// What has changed since the last one.
    pub events: Vec<NewEvent>,
    /// When the same pass gives another report, by time alone.
    pub until: Option<Timestamp>,
}

impl Reporter {
    /// Knows what earlier daemons announced, oldest first, and nothing of the present.
    #[must_use]
    pub fn new(identity: Identity, earlier: &[EventRecord]) -> Self {
        Self { identity, previous: None, announced: Announced::before(earlier), timeouts: BTreeMap::new() }
    }

    /// The report of a pass, with the routes that the ingress has from it, at this time.
    pub fn report(&mut self, pass: &Pass, routes: &Routes, now: Timestamp) -> Report {
        let facts = Facts::gather(pass);
        let apps = self.apps(pass, &facts, routes, now);
        let status = self.status(pass, &apps);
        let mut events: Vec<_> = self.announced.source(status.source.error.as_ref()).into_iter().collect();
        for (key, app) in &apps {
            events.extend(self.announced.app(key, app, facts.busy(key)));
        }
        let content = Content {
            at: now,
            status,
            apps: Rows::All(apps),
            sandboxes: Rows::All(sandboxes(pass)),
            templates: Rows::All(tally::templates(pass)),
        };
        let snapshot = Arc::new(Snapshot::after(self.previous.as_deref(), content));
        self.previous = Some(Arc::clone(&snapshot));
        Report { snapshot, events, until: self.timeouts.values().copied().filter(|at| *at >= now).min() }
    }

    fn apps(&mut self, pass: &Pass, facts: &Facts<'_>, routes: &Routes, now: Timestamp) -> BTreeMap<AppKey, wire::App> {
        let naming = naming(pass, &self.identity.domain);
        let mut missing: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for unrouted in routes.unrouted() {
            let url = wire::MissingUrl { host: unrouted.host.clone(), reason: unrouted.reason.clone() };
            missing.entry(&unrouted.app).or_default().push(url);
        }
        let mut apps = BTreeMap::new();
        for key in facts.keys() {
            let Some(facts) = facts.of(&key) else { continue };
            let urls_missing = missing.remove(&key).unwrap_or_default();
            let app = self.app(&facts, &naming, urls_missing, now);
            apps.insert(key, app);
        }
        for key in self.previous.iter().flat_map(|previous| previous.apps.iter()).map(|(key, _)| key) {
            if !apps.contains_key(key) {
                self.announced.forget(key);
                self.timeouts.remove(key);
            }
        }
        let unready: BTreeMap<_, _> =
            apps.iter().filter_map(|(key, app)| Some((key.clone(), unready_since(app)?))).collect();
        for app in apps.values_mut() {
            for blocker in &mut app.blocked {
                let since = blocker.on.as_ref().and_then(|on| unready.get(on));
                if let (wire::BlockerReason::Dependency, Some(since)) = (blocker.reason, since) {
                    blocker.since = *since;
                }
            }
        }
        apps
    }

    fn app(
        &mut self,
        facts: &AppFacts<'_>,
        naming: &Naming,
        urls_missing: Vec<wire::MissingUrl>,
        now: Timestamp,
    ) -> wire::App {
        let key = &facts.declared.metadata.key;
        let row = self.previous.as_ref().and_then(|previous| previous.apps.get(key).map(Arc::clone));
        let earlier = Earlier { app: row.as_ref().map(|row| row.value()), known: self.announced.of(key) };
        let spec = &facts.declared.spec.app;
        let phase = facts.phase();
        let applied = facts.sandbox.and_then(|sandbox| sandbox.record.applied.as_ref());
        let guest = facts.guest();
        let blocked = conditions::blocked(facts, earlier, now);
        let app = wire::App {
            team: key.team.clone(),
            name: key.name.clone(),
            phase,
            ready: facts.is_ready(),
            conditions: conditions::conditions(facts, phase, earlier, &blocked, now),
            generation: facts.record.map(|record| record.generation).unwrap_or_default(),
            observed_generation: applied.map(|applied| applied.generation),
            last_attempted_revision: facts.attempted_revision(),
            last_applied_revision: applied.map(|applied| applied.revision.clone()),
            blocked,
            held: conditions::held(facts, earlier, now),
            overridden: facts.overridden(),
            depends_on: spec.depends_on.iter().cloned().collect(),
            sandbox: facts.sandbox.map(|sandbox| sandbox.record.id.clone()),
            preview: facts.preview(),
            urls: naming.urls(facts.declared, self.identity.ingress_port),
            urls_missing,
            build: guest.map_or(wire::Build::None, |guest| (&guest.build).into()),
            web: guest.and_then(|guest| guest.web.as_ref()).map(Into::into),
            workers: guest.map(|guest| guest.workers.iter().map(Into::into).collect()).unwrap_or_default(),
            restarts: guest.map_or(0, facts::restarts),
            power: spec.power,
            template: spec.template.clone(),
            resources: (&spec.resources).into(),
            labels: facts.declared.metadata.labels.clone(),
        };
        match unready_since(&app).and_then(|since| conditions::ready_timeout(facts, since)) {
            Some(at) => drop(self.timeouts.insert(key.clone(), at)),
            None => drop(self.timeouts.remove(key)),
        }
        app
    }

    fn status(&self, pass: &Pass, apps: &BTreeMap<AppKey, wire::App>) -> wire::Status {
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
                last_applied: pass.last_applied.clone(),
                error: trouble.map(|trouble| trouble.message.clone()),
                since: trouble.map(|trouble| trouble.since),
            },
            apps: wire::AppCounts::of(apps.values()),
            driver,
            limits: tally::usage(pass),
        }
    }
}

/// How apps are named to browsers, as the declarations of this pass say.
#[must_use]
pub fn naming(pass: &Pass, domain: &HostName) -> Naming {
    Naming { domain: domain.clone(), pattern: pass.followed.project.hosts.pattern.clone() }
}

/// Since when an app has not been ready, if it is not.
fn unready_since(app: &wire::App) -> Option<Timestamp> {
    let ready = app.conditions.iter().find(|condition| condition.kind == ConditionKind::Ready)?;
    (ready.status == ConditionStatus::False).then_some(ready.since)
}

/// Everything that a pass knows, by app.
struct Facts<'a> {
    pass: &'a Pass,
    sandboxes: BTreeMap<&'a AppKey, &'a ObservedSandbox>,
    actions: BTreeMap<&'a AppKey, &'a Action>,
    held: BTreeMap<&'a AppKey, &'a Hold>,
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

    fn busy(&self, key: &AppKey) -> Busy {
        if self.pass.busy.contains(key) { Busy::Yes } else { Busy::No }
    }

    fn of(&self, key: &AppKey) -> Option<AppFacts<'a>> {
        let desired = &self.pass.followed.desired;
        let record = self.pass.observed.apps.get(key).map(|record| &**record);
        Some(AppFacts {
            declared: desired.apps.get(key).or_else(|| record.map(|record| &record.last_good.app))?,
            stalled: desired.stalled.get(key).map(String::as_str),
            record,
            sandbox: self.sandboxes.get(key).copied(),
            action: self.actions.get(key).copied(),
            held: self.held.get(key).copied(),
            busy: self.busy(key),
            attempted: self.pass.followed.attempted.as_ref(),
        })
    }
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
