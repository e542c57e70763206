//! What planning alone takes: `cargo bench -p setpoint-plan --bench planning`. Nothing here reads git or parses.
//!
//! `plan` makes each plan from nothing, `Planner` from what the last one left; for plans from nothing, one thread for each processor
//! helps as the daemon's do. All make the same plans; that is tested elsewhere.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot be made ends there")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use setpoint_plan::assumed;
use setpoint_plan::desired::{Completeness, Desired, DesiredTemplateRoot};
use setpoint_plan::planner::{Alone, Crew, Entropy, Inputs, Planner, plan, plan_with};
use setpoint_schema::app::{AppMetadata, AppSpec, DesiredApp, SandboxSpec};
use setpoint_schema::id::{CommitId, TemplateDigest, TreeDigest};
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{GuestState, Observed, ProcessState};
use setpoint_schema::runtime::{Runtime, Web};
use setpoint_schema::template::TemplateRoot;

const SIZES: [usize; 4] = [100, 1_000, 10_000, 100_000];
const ROUNDS: usize = 7;

fn main() {
    println!(
        "planning alone, median of {ROUNDS}, in milliseconds; in brackets what it takes without help, and for changes from nothing"
    );
    println!(
        "  {:>7}{:>16}{:>16}{:>22}{:>22}{:>22}{:>22}",
        "apps",
        "all are new",
        "a restart",
        "one file changed",
        "nothing changed",
        "one guest's news",
        "1,000 of a template"
    );
    for apps in sizes() {
        let world = World::converged(apps);
        println!(
            "  {apps:>7}{:>16}{:>16}{:>22}{:>22}{:>22}{:>22}",
            cold(apps),
            warm(&world),
            world.clone().each(apps, World::change_file),
            world.clone().each(apps, World::commit),
            world.clone().each(apps, World::hear_from_guest),
            world.clone().each(apps, World::change_template),
        );
    }
}

/// All sizes, or those that `APPS` names, as in `APPS=100,1000`.
fn sizes() -> Vec<usize> {
    let named = |apps: String| apps.split(',').map(|apps| apps.parse().unwrap()).collect();
    std::env::var("APPS").map_or(SIZES.to_vec(), named)
}

#[derive(Clone)]
struct World {
    desired: Desired,
    observed: Observed,
    now: Timestamp,
    commits: usize,
}

/// The plan of a daemon's first look at this many apps.
fn cold(apps: usize) -> String {
    let world = World { observed: assumed::nothing(), ..World::converged(apps) };
    fn took(world: &World, crew: &impl Crew) -> Duration {
        let begun = Instant::now();
        let plan = world.planned_by(|inputs| plan_with(inputs, crew));
        let took = begun.elapsed();
        assert_eq!(plan.actions.len(), world.desired.apps.len());
        took
    }
    let times = |took: &dyn Fn() -> Duration| median((0..ROUNDS).map(|_| took()).collect());
    format!("{:.1} ({:.0})", times(&|| took(&world, &Everybody)), times(&|| took(&world, &Alone)))
}

/// As many threads as there are processors.
struct Everybody;

impl Crew for Everybody {
    fn map<T: Sync, R: Send>(&self, things: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
        let processors = thread::available_parallelism().unwrap().get();
        let work = &work;
        thread::scope(|scope| {
            let shares = things.chunks(things.len().div_ceil(processors).max(1));
            let helpers: Vec<_> =
                shares.map(|share| scope.spawn(move || share.iter().map(work).collect::<Vec<_>>())).collect();
            helpers.into_iter().flat_map(|helper| helper.join().unwrap()).collect()
        })
    }
}

/// The first plan of a daemon that starts again: all is as declared, and no part of what was read anew is the same value as before.
fn warm(world: &World) -> String {
    fn took(world: &World, crew: &impl Crew) -> Duration {
        let apps = world.desired.apps.iter().map(|(key, app)| (key.clone(), Arc::new(read_anew(app)))).collect();
        let again = World { desired: Desired { apps, ..world.desired.clone() }, ..world.clone() };
        timed(|| assert_eq!(again.planned_by(|inputs| plan_with(inputs, crew)).actions.len(), 0))
    }
    let times = |took: &dyn Fn() -> Duration| median((0..ROUNDS).map(|_| took()).collect());
    format!("{:.1} ({:.0})", times(&|| took(world, &Everybody)), times(&|| took(world, &Alone)))
}

fn read_anew(app: &DesiredApp) -> DesiredApp {
    serde_json::from_str(&serde_json::to_string(app).unwrap()).unwrap()
}

impl World {
    fn converged(apps: usize) -> Self {
        let apps: Vec<_> = (0..apps).map(|n| Arc::new(app(n, 0))).collect();
        let templates = (0..2).map(|n| (TemplateDigest(format!("t{n}").into()), template()));
        let desired = Desired {
            revision: CommitId("0".repeat(40).into()),
            apps: apps.into_iter().map(|app| (app.metadata.key.clone(), app)).collect(),
            kept: BTreeMap::new(),
            stalled: BTreeMap::new(),
            snapshots: Default::default(),
            stalled_snapshots: Default::default(),
            templates: templates.collect(),
            moved: BTreeMap::new(),
            completeness: Completeness::Complete,
        };
        Self { observed: assumed::carried_out(&desired), desired, now: assumed::NOW, commits: 0 }
    }

    fn planned_by<T>(&self, planner: impl FnOnce(&Inputs<'_>) -> T) -> T {
        let entropy = Entropy([7; 16]);
        planner(&Inputs { desired: &self.desired, observed: &self.observed, parent: None, now: self.now, entropy })
    }

    /// Time passes and a change comes, again and again; the plan after each.
    fn each(mut self, apps: usize, change: fn(&mut Self, usize)) -> String {
        let mut planner = Planner::new();
        drop(self.planned_by(|inputs| planner.plan(inputs)));
        let (mut again, mut anew) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            self.now = self.now.checked_add(SignedDuration::from_secs(1)).unwrap();
            change(&mut self, round * 7 % apps);
            again.push(timed(|| drop(black_box(self.planned_by(|inputs| planner.plan(inputs))))));
            if round < 3 {
                anew.push(timed(|| drop(black_box(self.planned_by(plan)))));
            }
        }
        format!("{:.2} ({:.0})", median(again), median(anew))
    }

    fn commit(&mut self, _: usize) {
        self.commits += 1;
        self.desired.revision = CommitId(format!("{:040}", self.commits).into());
        for root in self.desired.templates.values_mut() {
            root.revision = self.desired.revision.clone();
        }
    }

    fn change_file(&mut self, which: usize) {
        self.commit(which);
        let changed = self.desired.apps[&key(which)]
            .spec
            .with(|spec| spec.files = TreeDigest(format!("{:064}", self.commits).into()));
        Arc::make_mut(self.desired.apps.get_mut(&key(which)).unwrap()).spec = changed;
    }

    fn change_template(&mut self, _: usize) {
        self.commit(0);
        for n in 0..self.desired.apps.len().min(1000) {
            let app = Arc::make_mut(self.desired.apps.get_mut(&key(n)).unwrap());
            app.spec = app.spec.with(|spec| spec.template = TemplateDigest(format!("t{}", self.commits).into()));
        }
        let root = DesiredTemplateRoot { revision: self.desired.revision.clone(), ..template() };
        self.desired.templates.insert(TemplateDigest(format!("t{}", self.commits).into()), root);
    }

    fn hear_from_guest(&mut self, which: usize) {
        let id = self.observed.sandboxes.keys().nth(which).unwrap().clone();
        let sandbox = Arc::make_mut(self.observed.sandboxes.get_mut(&id).unwrap());
        let GuestState::Answering(status) = &mut sandbox.guest else { panic!("every guest answers") };
        let web = Arc::make_mut(status).web.as_mut().unwrap();
        web.process = match web.process {
            ProcessState::Running { restarts } => ProcessState::Running { restarts: restarts + 1 },
            _ => panic!("every process runs"),
        };
    }
}

fn key(n: usize) -> AppKey {
    format!("app-{n}").parse().unwrap()
}

fn app(n: usize, template: usize) -> DesiredApp {
    let web = Web { command: "exec busybox httpd -f -p 3000".to_owned(), ..Web::default() };
    let runtime = Runtime { web: Some(web), ..Runtime::default() };
    let env = [("GREETING", format!("hello from {n}")), ("LOG_LEVEL", "info".to_owned())];
    let env = env.into_iter().map(|(name, value)| (name.parse().unwrap(), value.into())).collect();
    let spec = AppSpec { runtime: Some(runtime.into()), env, ..AppSpec::default() };
    let (template, files) = (TemplateDigest(format!("t{template}").into()), TreeDigest(format!("{n:064}").into()));
    DesiredApp {
        metadata: AppMetadata { key: key(n), uid: None, labels: [].into(), annotations: [].into() },
        spec: SandboxSpec { app: spec, template, files }.into(),
        path: format!("apps/app-{n}/app.yaml").parse().unwrap(),
    }
}

fn template() -> DesiredTemplateRoot {
    DesiredTemplateRoot { root: TemplateRoot::Minimal, revision: CommitId("0".repeat(40).into()) }
}

fn timed(work: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    work();
    begun.elapsed()
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1000.0
}
