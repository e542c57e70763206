//! Turns a pass of the loop into what people see: the snapshot behind the status API, and events for what has changed in it.

mod changes;
mod conditions;
mod facts;
mod news;
mod tally;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use setpoint_schema::name::{AppKey, HostName};
use setpoint_schema::observed::ObservedSandbox;
use setpoint_schema::quantity::ByteSize;
use setpoint_schema::wire::{self, ConditionKind, ConditionStatus};
use setpoint_state::{EventRecord, NewEvent};

use crate::api::{Content, Row, Rows, Snapshot};
use crate::converge::Pass;
use crate::ingress::{Naming, Routes};

use changes::Sums;
pub use changes::{Changes, Names, Tracker, View};
use conditions::Earlier;
use facts::AppFacts;
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

/// Makes snapshots, each with the one before in mind: what did not change is shared, and a condition keeps its time.
pub struct Reporter {
    identity: Identity,
    previous: Option<Arc<Snapshot>>,
    announced: Announced,
    counts: wire::AppCounts,
    /// Apps that lack a host name.
    unrouted: BTreeSet<AppKey>,
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
        Self {
            identity,
            previous: None,
            announced: Announced::before(earlier),
            counts: wire::AppCounts::default(),
            unrouted: BTreeSet::new(),
            timeouts: BTreeMap::new(),
        }
    }

    /// The report of a pass, with the routes that the ingress has from it, at this time.
    pub fn report(
        &mut self,
        view: &View<'_>,
        changes: &Changes,
        naming: &Naming,
        routes: &Routes,
        now: Timestamp,
    ) -> Report {
        if self.previous.is_none() {
            // What comes later under the name of one that is gone is another app.
            self.announced.keep(|key| view.shown(key).is_some());
        }
        let missing = Self::missing(routes);
        let timed_out = self.timeouts.iter().filter(|(_, at)| **at < now).map(|(key, _)| key);
        let lacking = missing.keys().copied().chain(&self.unrouted);
        let affected: BTreeSet<_> = timed_out.chain(&changes.apps).chain(lacking).cloned().collect();
        let apps = self.apps(view, affected, naming, &missing, now);
        self.unrouted = missing.keys().map(|key| (*key).clone()).collect();
        let status = self.status(view.pass, changes);
        let mut events: Vec<_> = self.announced.source(status.source.error.as_ref()).into_iter().collect();
        for (key, app) in apps.iter().filter_map(|(key, app)| Some((key, app.as_ref()?))) {
            events.extend(self.announced.app(key, app, view.busy(key)));
        }
        let sandboxes = changes.sandboxes.iter().map(|id| {
            let sandbox = view.pass.observed.sandboxes.get(id);
            (id.clone(), sandbox.map(|sandbox| describe(view.pass, sandbox)))
        });
        let templates = match changes.sums {
            Sums::Same => Rows::Changed(BTreeMap::new()),
            Sums::Changed => Rows::All(tally::templates(view.pass)),
        };
        let sandboxes = Rows::Changed(sandboxes.collect());
        let snapshots = changes.snapshots.iter().map(|place| (place.clone(), view.snapshot(place)));
        let snapshots = Rows::Changed(snapshots.collect());
        let content = Content { at: now, status, apps: Rows::Changed(apps), sandboxes, templates, snapshots };
        let snapshot = Arc::new(Snapshot::after(self.previous.as_deref(), content));
        self.previous = Some(Arc::clone(&snapshot));
        Report { snapshot, events, until: self.timeouts.values().copied().filter(|at| *at >= now).min() }
    }

    /// The host names that apps lack.
    fn missing(routes: &Routes) -> BTreeMap<&AppKey, Vec<wire::MissingUrl>> {
        let mut missing: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for unrouted in routes.unrouted() {
            let url = wire::MissingUrl { host: unrouted.host.clone(), reason: unrouted.reason.clone() };
            missing.entry(&unrouted.app).or_default().push(url);
        }
        missing
    }

    /// The apps that may be shown otherwise than before; nothing for those that are gone.
    fn apps(
        &mut self,
        view: &View<'_>,
        affected: BTreeSet<AppKey>,
        naming: &Naming,
        missing: &BTreeMap<&AppKey, Vec<wire::MissingUrl>>,
        now: Timestamp,
    ) -> BTreeMap<AppKey, Option<wire::App>> {
        let mut apps = BTreeMap::new();
        for key in affected {
            let before = self.shown(&key).map(|app| app.value().phase);
            let urls_missing = missing.get(&key).cloned().unwrap_or_default();
            let app = view.facts(&key).map(|facts| self.app(&facts, naming, urls_missing, now));
            if app.is_none() {
                self.announced.forget(&key);
                self.timeouts.remove(&key);
            }
            self.counts.move_app(before, app.as_ref().map(|app| app.phase));
            apps.insert(key, app);
        }
        self.date_dependencies(&mut apps);
        apps
    }

    /// Since when an app waits for another is since when that one has not been ready.
    fn date_dependencies(&self, apps: &mut BTreeMap<AppKey, Option<wire::App>>) {
        let since = |on: &AppKey| match apps.get(on) {
            Some(app) => unready_since(app.as_ref()?),
            None => unready_since(self.shown(on)?.value()),
        };
        let waits = apps.values().flatten().flat_map(|app| &app.blocked);
        let waits = waits.filter(|blocker| blocker.reason == wire::BlockerReason::Dependency);
        let dated: BTreeMap<_, _> =
            waits.filter_map(|blocker| blocker.on.as_ref()).filter_map(|on| Some((on.clone(), since(on)?))).collect();
        for blocker in apps.values_mut().flatten().flat_map(|app| &mut app.blocked) {
            let since = blocker.on.as_ref().and_then(|on| dated.get(on));
            if let (wire::BlockerReason::Dependency, Some(since)) = (blocker.reason, since) {
                blocker.since = *since;
            }
        }
    }

    fn shown(&self, key: &AppKey) -> Option<&Row<AppKey, wire::App>> {
        self.previous.as_ref()?.apps.get(key)
    }

    fn app(
        &mut self,
        facts: &AppFacts<'_>,
        naming: &Naming,
        urls_missing: Vec<wire::MissingUrl>,
        now: Timestamp,
    ) -> wire::App {
        let key = &facts.declared.metadata.key;
        let row = self.shown(key).map(Arc::clone);
        let created = facts.sandbox.map(|sandbox| sandbox.record.created_at);
        let earlier = Earlier { app: row.as_ref().map(|row| row.value()), known: self.announced.of(key), created };
        let facts = &AppFacts { before: earlier.readiness(), ..*facts };
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
            power_here: facts.power_here().map(Into::into),
            idle: facts.idle().map(Box::new),
            keepalive: facts.keepalive().map(Box::new),
            depends_on: spec.depends_on.iter().cloned().collect(),
            sandbox: facts.sandbox.map(|sandbox| sandbox.record.id.clone()),
            preview: facts.preview(),
            urls: naming.urls(facts.declared, self.identity.ingress_port),
            urls_missing,
            build: guest.map_or(wire::Build::None, |guest| (&guest.build).into()),
            web: guest.and_then(|guest| guest.web.as_ref()).map(Into::into),
            workers: guest.map(|guest| guest.workers.iter().map(Into::into).collect()).unwrap_or_default(),
            restarts: guest.map_or(0, facts::restarts),
            power: spec.power.state,
            from: facts.from().map(Box::new),
            restored: facts.restored().map(Box::new),
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

    fn status(&self, pass: &Pass, changes: &Changes) -> wire::Status {
        let Identity { started_at, source_url, branch, driver, domain: _, ingress_port: _ } = self.identity.clone();
        let trouble = pass.followed.trouble.as_ref();
        let limits = match (&self.previous, changes.sums) {
            (Some(previous), Sums::Same) => previous.status.value().limits,
            (Some(_) | None, _) => tally::usage(pass),
        };
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
            apps: self.counts,
            driver,
            limits,
        }
    }
}

/// Since when an app has not been ready, if it is not.
fn unready_since(app: &wire::App) -> Option<Timestamp> {
    let ready = app.conditions.iter().find(|condition| condition.kind == ConditionKind::Ready)?;
    (ready.status == ConditionStatus::False).then_some(ready.since)
}

fn describe(pass: &Pass, sandbox: &ObservedSandbox) -> wire::Sandbox {
    wire::Sandbox {
        id: sandbox.record.id.clone(),
        app: sandbox.record.app.clone(),
        host: sandbox.record.host.clone(),
        vm: (&sandbox.vm).into(),
        vcpus: sandbox.record.machine.vcpus,
        memory: ByteSize::mib(sandbox.record.machine.memory_mib),
        disk: pass.observed.disks.get(&sandbox.record.disk).map(|disk| (&**disk).into()),
        from: sandbox.record.from.clone(),
        created_at: sandbox.record.created_at,
    }
}
