//! What is made anew of what has changed is what would be made of everything, and what is shown of an app that is worked on.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use setpoint_plan::assumed;
use setpoint_plan::desired::{Completeness, Desired};
use setpoint_plan::model::Plan;
use setpoint_plan::planner::{Bounds, Entropy, Inputs, plan};
use setpoint_schema::app::{AppMetadata, AppSpec, DesiredApp, SandboxSpec};
use setpoint_schema::id::{CommitId, Generation, SandboxId, SnapshotId, TemplateDigest, TreeDigest};
use setpoint_schema::name::{AppKey, HostName};
use setpoint_schema::observed::{
    AppRecord, DiskState, ExitReason, Health, Kept, LastGood, Observed, PowerCause, PowerOverride, Retry,
    SnapshotCause, SnapshotRecord, SnapshotState, Suspension, VmState,
};
use setpoint_schema::project::Project;
use setpoint_schema::quantity::{ByteSize, Span};
use setpoint_schema::runtime::{Runtime, Web};
use setpoint_schema::shared::SharedMap;
use setpoint_schema::short::Short;
use setpoint_schema::snapshot::{Content, default_retain};
use setpoint_schema::wire::{self, BlockerReason, ConditionKind, ConditionStatus};
use setpoint_state::EventKind;

use super::*;
use crate::converge::follow::{Followed, Trouble};

const NAMES: [&str; 4] = ["db", "shop", "web", "wiki"];

/// Something that is otherwise in the next pass.
#[derive(Debug, Clone)]
enum Change {
    Declare(usize, u8),
    Undeclare(usize),
    Stall(usize),
    Keep(usize),
    CarryOut(usize),
    Lose(usize),
    Double(usize),
    Guest(usize, u8),
    Disk(usize, u8),
    Remember(usize, u8),
    Work(usize),
    Attempt(u8),
    Apply(u8),
    Trouble,
    Rename,
    Crowd(u64),
    Snapshot(usize, u8),
}

/// A report that comes: of a new pass, or of the same one later.
#[derive(Debug, Clone)]
enum Next {
    Pass(Vec<Change>),
    Again,
}

fn change() -> impl Strategy<Value = Change> {
    let (which, which_one) = (0..NAMES.len(), 0..NAMES.len());
    prop_oneof![
        6 => (which.clone(), 0..13_u8).prop_map(|(app, how)| Change::Declare(app, how)),
        1 => which.clone().prop_map(Change::Undeclare),
        1 => which.clone().prop_map(Change::Stall),
        1 => which.clone().prop_map(Change::Keep),
        5 => which.clone().prop_map(Change::CarryOut),
        1 => which.clone().prop_map(Change::Lose),
        1 => which.clone().prop_map(Change::Double),
        5 => (which.clone(), 0..7_u8).prop_map(|(app, how)| Change::Guest(app, how)),
        1 => (which.clone(), 0..3_u8).prop_map(|(app, how)| Change::Disk(app, how)),
        3 => (which.clone(), 0..7_u8).prop_map(|(app, how)| Change::Remember(app, how)),
        3 => which.prop_map(Change::Work),
        1 => (0..4_u8).prop_map(Change::Attempt),
        1 => (0..4_u8).prop_map(Change::Apply),
        1 => Just(Change::Trouble),
        1 => Just(Change::Rename),
        1 => (1..2000_u64).prop_map(Change::Crowd),
        2 => (which_one, 0..6_u8).prop_map(|(app, how)| Change::Snapshot(app, how)),
    ]
}

fn next() -> impl Strategy<Value = (Next, u64)> {
    let next = prop_oneof![
        5 => prop::collection::vec(change(), 0..5).prop_map(Next::Pass),
        1 => Just(Next::Again),
    ];
    (next, 0..200_u64)
}

fn key(which: usize) -> AppKey {
    NAMES[which].parse().unwrap()
}

fn commit(number: u8) -> CommitId {
    CommitId(char::from(b'a' + number).to_string().repeat(40).into())
}

fn declared(which: usize, how: u8) -> DesiredApp {
    let web = |port| Runtime { web: Some(Web { port, ..Web::default() }), ..Runtime::default() };
    let mut app = AppSpec { runtime: Some(web(3000).into()), ..AppSpec::default() };
    let mut files = TreeDigest("f1".into());
    match how {
        0 => {}
        1 => app.resources.memory = ByteSize::mib(512),
        2 => app.expose.ports = BTreeSet::from([9000]),
        // Which only one of those who ask for it gets.
        3 => app.expose.hosts = BTreeSet::from([HostName::new("www.example.org").unwrap()]),
        4 => app.depends_on = BTreeSet::from([key(0)]),
        5 => app.windows = serde_json::from_str(r#"[{"kind": "deny"}]"#).unwrap(),
        6 => app.power = Short::of(Power::Stopped),
        7 => app.suspend = true,
        8 => app.runtime = Some(Runtime::nothing().into()),
        9 => app.timeouts.ready = Span::secs(5),
        10 => files = TreeDigest("f2".into()),
        11 => app.power = Short::of(Power::Paused),
        _ => app.runtime = Some(web(4000).into()),
    }
    DesiredApp {
        metadata: AppMetadata { key: key(which), uid: None, labels: [].into(), annotations: [].into() },
        spec: SandboxSpec { app, template: TemplateDigest(format!("t{}", how % 2).into()), files }.into(),
        path: format!("apps/{}/app.yaml", NAMES[which]).parse().unwrap(),
    }
}

/// A host whose passes follow each other in ways that no host has.
struct Life {
    desired: Desired,
    observed: Observed,
    busy: BTreeSet<AppKey>,
    attempted: Option<CommitId>,
    last_applied: Option<CommitId>,
    trouble: Option<Trouble>,
    project: Project,
    now: Timestamp,
}

impl Life {
    fn new() -> Self {
        let desired = Desired {
            revision: commit(0),
            apps: SharedMap::new(),
            kept: BTreeMap::new(),
            stalled: BTreeMap::new(),
            templates: BTreeMap::new(),
            snapshots: Default::default(),
            stalled_snapshots: BTreeMap::new(),
            moved: BTreeMap::new(),
            completeness: Completeness::Complete,
        };
        Self {
            desired,
            observed: assumed::nothing(),
            busy: BTreeSet::new(),
            attempted: None,
            last_applied: None,
            trouble: None,
            project: Project::default(),
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
        }
    }

    /// One app, as declared and well.
    fn with_one() -> Self {
        let mut life = Self::new();
        life.change(Change::Declare(0, 0));
        life.change(Change::CarryOut(0));
        life
    }

    fn pass(&self) -> Pass {
        let followed = Followed {
            desired: self.desired.clone(),
            diagnostics: Vec::new(),
            project: self.project.clone(),
            prewarmed: BTreeMap::new(),
            attempted: self.attempted.clone(),
            trouble: self.trouble.clone(),
        };
        let (observed, entropy) = (self.observed.clone(), Entropy([1; 16]));
        let desired = followed.plannable();
        let plan = plan(&Inputs { desired: &desired, observed: &observed, parent: None, now: self.now, entropy });
        let (busy, last_applied) = (self.busy.clone(), self.last_applied.clone());
        drop(desired);
        Pass { followed: Arc::new(followed), observed, plan: Arc::new(plan), busy, last_applied, at: self.now }
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Declare(which, how) => drop(self.desired.apps.insert(key(which), Arc::new(declared(which, how)))),
            Change::Undeclare(which) => drop(self.desired.apps.remove(&key(which))),
            Change::Stall(which) => match self.desired.stalled.remove(&key(which)) {
                Some(_) => {}
                None => drop(self.desired.stalled.insert(key(which), "it has mistakes".to_owned())),
            },
            Change::Keep(which) => match self.desired.kept.remove(&key(which)) {
                Some(_) => {}
                None => drop(self.desired.kept.insert(key(which), commit(3))),
            },
            Change::CarryOut(which) => self.carry_out(&key(which)),
            Change::Lose(which) => self.observed.sandboxes.retain(|_, sandbox| sandbox.record.app != key(which)),
            Change::Double(which) => self.double(&key(which)),
            Change::Guest(which, how) => self.guest(&key(which), how),
            Change::Disk(which, how) => self.disk(&key(which), how),
            Change::Remember(which, how) => self.remember(which, how),
            Change::Work(which) => {
                if !self.busy.remove(&key(which)) {
                    self.busy.insert(key(which));
                }
            }
            Change::Attempt(number) => self.attempted = Some(commit(number)),
            Change::Apply(number) => self.last_applied = Some(commit(number)),
            Change::Trouble => {
                let trouble = Trouble { message: "it is gone".to_owned(), hint: None, since: self.now };
                self.trouble = if self.trouble.is_some() { None } else { Some(trouble) };
            }
            Change::Rename => {
                let patterns = ["{app}.{domain}", "{app}-here.{domain}"].map(|pattern| pattern.parse().unwrap());
                let other = patterns.into_iter().find(|pattern| *pattern != self.project.hosts.pattern);
                self.project.hosts.pattern = other.unwrap();
            }
            Change::Snapshot(which, how) => self.snapshot(which, how),
            Change::Crowd(memory) => self.observed.limits.memory = ByteSize::mib(memory),
        }
    }

    fn carry_out(&mut self, app: &AppKey) {
        let done = assumed::carried_out(&self.desired);
        let of_app = done.sandboxes.iter().filter(|(_, sandbox)| sandbox.record.app == *app);
        self.observed.sandboxes.extend(of_app.map(|(id, sandbox)| (id.clone(), Arc::clone(sandbox))));
        let of_app = done.disks.iter().filter(|(_, disk)| disk.app == *app);
        self.observed.disks.extend(of_app.map(|(id, disk)| (id.clone(), Arc::clone(disk))));
        self.observed.apps.extend(done.apps.get_key_value(app).map(|(key, record)| (key.clone(), Arc::clone(record))));
    }

    /// A snapshot in some state, of this app or another.
    fn snapshot(&mut self, which: usize, how: u8) {
        let id = SnapshotId(format!("{which}"));
        let at = self.now;
        let kept = Kept { at, bytes: ByteSize::mib(8), stopped_ms: 3 };
        let state = match how {
            0 => return drop(self.observed.snapshots.remove(&id)),
            1 => SnapshotState::Wanted { since: at },
            2 => SnapshotState::Failed { reason: "the disk is full".to_owned(), at, failures: 2 },
            3 => SnapshotState::Kept(kept),
            4 => SnapshotState::Retained { kept, until: at },
            _ => SnapshotState::Leaving,
        };
        let record = SnapshotRecord {
            id: id.clone(),
            key: "nightly".parse().unwrap(),
            app: key((which + usize::from(how)) % NAMES.len()),
            generation: Generation(u64::from(how / 2)),
            cause: SnapshotCause::Asked { by: "uid 0".to_owned() },
            content: Content::Disk,
            exclude: [].into(),
            retain: default_retain(),
            moment: None,
            state,
        };
        self.observed.snapshots.insert(id, Arc::new(record));
    }

    /// What a replacement that was cut short leaves.
    fn double(&mut self, app: &AppKey) {
        let first = self.observed.sandboxes.values().find(|sandbox| sandbox.record.app == *app).cloned();
        if let Some(mut second) = first {
            let id = SandboxId(format!("{app} another").into());
            Arc::make_mut(&mut Arc::make_mut(&mut second).record).id = id.clone();
            self.observed.sandboxes.insert(id, second);
        }
    }

    fn guest(&mut self, app: &AppKey, how: u8) {
        let since = self.now;
        for sandbox in self.observed.sandboxes.values_mut().map(Arc::make_mut).filter(|s| s.record.app == *app) {
            match (how, &mut sandbox.guest) {
                (0, guest) => *guest = GuestState::Silent { since },
                (1, guest) => *guest = GuestState::Connecting { since },
                (2, guest) => {
                    sandbox.vm = VmState::Exited { reason: ExitReason::Reset };
                    *guest = GuestState::Absent;
                }
                (3, guest) => {
                    sandbox.vm = VmState::Absent;
                    *guest = GuestState::Absent;
                }
                (5, GuestState::Answering(status)) => Arc::make_mut(status).tree = None,
                (_, GuestState::Answering(status)) => {
                    let health = if how == 4 { Health::Unhealthy("503".to_owned()) } else { Health::Healthy };
                    Arc::make_mut(status).web.iter_mut().for_each(|web| web.health = health.clone());
                }
                (_, _) => {}
            }
        }
    }

    fn disk(&mut self, app: &AppKey, how: u8) {
        let until = self.now;
        match how {
            0 => self.observed.disks.retain(|_, disk| disk.app != *app),
            _ => {
                for disk in self.observed.disks.values_mut().map(Arc::make_mut).filter(|disk| disk.app == *app) {
                    match how {
                        1 => disk.state = DiskState::Retained { until },
                        _ => disk.size = ByteSize::gib(3),
                    }
                }
            }
        }
    }

    fn remember(&mut self, which: usize, how: u8) {
        let app = Arc::new(declared(which, how));
        let fresh = AppRecord {
            key: key(which),
            generation: Generation(1),
            digest: app.spec.digest().clone(),
            last_good: LastGood { app, revision: commit(1) },
            retry: Retry::default(),
            heals: Vec::new(),
            repeats: Vec::new(),
            suspended: None,
            power: None,
            restored: Vec::new(),
            usage: None,
        };
        let mut record = self.observed.apps.get(&key(which)).map_or(fresh, |record| AppRecord::clone(record));
        let soon = self.now.checked_add(jiff::SignedDuration::from_secs(30)).unwrap();
        match how {
            0 => record.retry = Retry { failures: 1, not_before: Some(soon), last_error: Some("no".to_owned()) },
            1 => record.retry = Retry::default(),
            2 => record.suspended = Some(Suspension { since: self.now, by: "uid 0".to_owned() }),
            3 => record.suspended = None,
            4 => {
                let (state, declared, cause) = (Power::Paused, Power::Running, PowerCause::Request);
                record.power = Some(PowerOverride { state, declared, since: self.now, cause });
            }
            5 => record.power = None,
            _ => record.generation = record.generation.next(),
        }
        self.observed.apps.insert(key(which), Arc::new(record));
    }
}

/// What is served of the passes so far.
struct Served {
    reporter: Reporter,
    routes: Routes,
}

impl Served {
    fn new(earlier: &[EventRecord]) -> Self {
        let identity = Identity {
            started_at: "2026-01-01T00:00:00Z".parse().unwrap(),
            source_url: "/declarations".to_owned(),
            branch: "main".to_owned(),
            driver: "none".to_owned(),
            domain: HostName::new("localhost").unwrap(),
            ingress_port: 8080,
        };
        Self { reporter: Reporter::new(identity, earlier), routes: Routes::default() }
    }

    fn serve(&mut self, tracker: &Tracker, pass: &Arc<Pass>, changes: &Changes, now: Timestamp) -> Report {
        let pattern = pass.followed.project.hosts.pattern.clone();
        let naming = Naming { domain: HostName::new("localhost").unwrap(), pattern };
        let view = tracker.view(pass);
        self.routes = reroute(&self.routes, &naming, &view, changes);
        self.reporter.report(&view, changes, &naming, &self.routes, now)
    }
}

/// All that a snapshot says.
#[derive(Debug, Default, PartialEq)]
struct Said {
    status: Option<wire::Status>,
    apps: Vec<wire::App>,
    sandboxes: Vec<wire::Sandbox>,
    snapshots: Vec<wire::Snapshot>,
    templates: Vec<wire::Template>,
}

impl Said {
    fn by(snapshot: &Snapshot) -> Self {
        Self {
            status: Some(snapshot.status.value().clone()),
            apps: snapshot.apps.iter().map(|(_, app)| app.clone()).collect(),
            sandboxes: snapshot.sandboxes.iter().map(|(_, sandbox)| sandbox.clone()).collect(),
            snapshots: snapshot.snapshots.iter().map(|(_, snapshot)| snapshot.clone()).collect(),
            templates: snapshot.templates.iter().map(|(_, template)| template.clone()).collect(),
        }
    }
}

fn event(app: &str, kind: EventKind, at: &str) -> EventRecord {
    let at: Timestamp = at.parse().unwrap();
    let id = ulid::Ulid::from_datetime(at.into()).into();
    let app = Some(app.parse().unwrap());
    EventRecord { id, at, app, sandbox: None, kind, reason: String::new(), message: String::new() }
}

/// What an earlier daemon has seen.
fn earlier() -> Vec<EventRecord> {
    vec![
        event("db", EventKind::Created, "2025-12-31T20:00:00Z"),
        event("db", EventKind::Ready, "2025-12-31T20:00:05Z"),
        event("shop", EventKind::Stalled, "2025-12-31T21:00:00Z"),
        event("web", EventKind::Blocked, "2025-12-31T22:00:00Z"),
    ]
}

proptest! {
    #[test]
    fn what_is_made_of_the_changes_is_what_is_made_of_everything(
        history in prop::collection::vec(next(), 1..14),
        is_restarted in prop::bool::ANY,
    ) {
        let earlier = if is_restarted { earlier() } else { Vec::new() };
        let (mut changed, mut whole) = (Served::new(&earlier), Served::new(&earlier));
        let (mut life, mut tracker) = (Life::new(), Tracker::default());
        let mut pass = Arc::new(life.pass());
        let mut ever: BTreeSet<SandboxId> = BTreeSet::new();
        let mut kept = BTreeSet::new();
        let mut said = Said::default();
        for (next, seconds) in history {
            life.now = life.now.checked_add(jiff::SignedDuration::from_secs(i64::try_from(seconds).unwrap())).unwrap();
            if let Next::Pass(changes) = next {
                changes.into_iter().for_each(|change| life.change(change));
                pass = Arc::new(life.pass());
            }
            let changes = tracker.advance(&pass);
            let incremental = changed.serve(&tracker, &pass, &changes, life.now);
            // Who has never seen a pass takes all of it for new; what is gone since it cannot know.
            let mut fresh = Tracker::default();
            let mut everything = fresh.advance(&pass);
            ever.extend(everything.sandboxes.iter().cloned());
            everything.sandboxes.extend(ever.iter().cloned());
            kept.extend(everything.snapshots.iter().cloned());
            everything.snapshots.extend(kept.iter().cloned());
            everything.apps.extend(said.apps.iter().map(wire::App::key));
            let complete = whole.serve(&fresh, &pass, &everything, life.now);
            said = Said::by(&complete.snapshot);
            prop_assert_eq!(&Said::by(&incremental.snapshot), &said);
            prop_assert_eq!(incremental.events, complete.events);
            prop_assert_eq!(incremental.until, complete.until);
            prop_assert_eq!(&changed.routes, &whole.routes);
        }
    }
}

#[test]
fn an_app_that_goes_as_all_host_names_change_is_seen_to_go() {
    let (mut served, mut tracker) = (Served::new(&[]), Tracker::default());
    let mut life = Life::new();
    life.change(Change::Declare(0, 0));
    let mut left = Vec::new();
    for change in [Change::Declare(1, 0), Change::Undeclare(0)] {
        life.change(change);
        life.change(Change::Rename);
        let pass = Arc::new(life.pass());
        let changes = tracker.advance(&pass);
        left.push(served.serve(&tracker, &pass, &changes, life.now).snapshot.apps.len());
    }
    assert_eq!(left, [2, 1]);
}

/// What is shown of the only app after each of these lives.
fn shown<'l>(earlier: &[EventRecord], lives: impl IntoIterator<Item = &'l Life>) -> Vec<wire::App> {
    let (mut served, mut tracker) = (Served::new(earlier), Tracker::default());
    let mut show = |life: &Life| {
        let pass = Arc::new(life.pass());
        let changes = tracker.advance(&pass);
        let report = served.serve(&tracker, &pass, &changes, life.now);
        report.snapshot.apps.iter().next().unwrap().1.clone()
    };
    lives.into_iter().map(&mut show).collect()
}

#[test]
fn an_app_becomes_ready_with_the_end_of_its_work_and_stays_so_while_it_is_worked_on() {
    let (mut busy, mut idle) = (Life::with_one(), Life::with_one());
    busy.busy.insert(key(0));
    idle.now = busy.now.checked_add(jiff::SignedDuration::from_secs(1)).unwrap();
    let ready: Vec<_> = shown(&[], [&busy, &idle, &busy]).iter().map(|app| app.ready).collect();
    assert_eq!(ready, [false, true, true]);
    let known = [event("db", EventKind::Ready, "2025-12-31T20:00:00Z")];
    assert!(shown(&known, [&busy])[0].ready, "it was so before this daemon");
}

#[test]
fn what_a_plan_that_was_shown_does_not_have_is_blocked_as_unplanned() {
    let mut life = Life::new();
    life.change(Change::Declare(0, 0));
    let nothing = Life::new().pass().plan;
    let entropy = Entropy([1; 16]);
    let mut pass = life.pass();
    pass.plan = Arc::new(Bounds::of(&nothing).keep(Plan::clone(&pass.plan), entropy));
    let (mut served, mut tracker) = (Served::new(&[]), Tracker::default());
    let pass = Arc::new(pass);
    let changes = tracker.advance(&pass);
    let report = served.serve(&tracker, &pass, &changes, life.now);
    let (_, app) = report.snapshot.apps.iter().next().unwrap();
    assert_eq!(app.phase, wire::Phase::Blocked);
    assert_eq!(app.blocked[0].reason, BlockerReason::Unplanned);
    assert_eq!(app.blocked[0].message, "not in the plan that is carried out");
}

/// Since when each condition of the only app has its status, right after a start.
fn since(earlier: &[EventRecord], life: &Life) -> BTreeMap<ConditionKind, (ConditionStatus, Timestamp)> {
    let app = shown(earlier, [life]).pop().unwrap();
    app.conditions.iter().map(|condition| (condition.kind, (condition.status, condition.since))).collect()
}

#[test]
fn a_new_daemon_dates_every_condition_by_what_happened_before_it() {
    let time = |text: &str| text.parse::<Timestamp>().unwrap();
    let mut life = Life::with_one();
    let known = [
        event("db", EventKind::Created, "2025-12-31T20:00:00Z"),
        event("db", EventKind::Ready, "2025-12-31T20:00:05Z"),
        event("db", EventKind::Updated, "2025-12-31T21:00:00Z"),
    ];
    let well = since(&known, &life);
    assert_eq!(well[&ConditionKind::Ready], (ConditionStatus::True, time("2025-12-31T20:00:05Z")));
    assert_eq!(well[&ConditionKind::Reconciling], (ConditionStatus::False, time("2025-12-31T21:00:00Z")));
    let (status, never) = well[&ConditionKind::Stalled];
    assert_eq!(status, ConditionStatus::False);
    assert!(never <= time("2025-12-31T20:00:00Z"), "it has never been stalled: {never}");

    let restored = [&known[..], &[event("db", EventKind::Restored, "2025-12-31T22:00:00Z")]].concat();
    let ready = since(&restored, &life)[&ConditionKind::Ready];
    assert_eq!(ready, (ConditionStatus::True, time("2025-12-31T22:00:00Z")), "it was another microVM before");

    // It has never become ready, which nothing but its creation tells of.
    life.change(Change::Guest(0, 4));
    let sick = since(&known[..1], &life);
    let (status, never) = sick[&ConditionKind::Ready];
    assert_eq!(status, ConditionStatus::False);
    assert!(never <= time("2025-12-31T20:00:00Z"), "{never}");
    assert_eq!(sick[&ConditionKind::Stalled].0, ConditionStatus::True, "its time to become ready is long over");
}
