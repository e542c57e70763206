//! From a revision to a plan, at 100 to 100,000 apps: `cargo bench --bench plan`.
//!
//! Cold is a daemon's first look: nothing is kept, nothing exists, everything is to be created. Warm is the start of a daemon where one
//! stopped: what the revision wants is kept on disk, and everything exists as declared. The floor does, on one thread, what nobody can do
//! without: walk the tree with git2, read the blobs of the declarations, parse them with serde_yaml. It checks nothing, resolves
//! nothing, plans nothing. The second table is what a daemon takes that has loaded the revision before, on a host that is as
//! declared: from a look at the branch to a finished plan.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot be made ends there")]

#[path = "support/figures.rs"]
mod figures;
#[path = "../tests/support/git.rs"]
mod git;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use git2::{ObjectType, TreeWalkMode, TreeWalkResult};
use setpoint::crew::AllProcessors;
use setpoint::desired::{Cache, Loaded, Loader};
use setpoint::render::{CHILD_COMMAND, Renderer};
use setpoint::source::{Repository, SourceLimits};
use setpoint_plan::assumed;
use setpoint_plan::desired::Desired;
use setpoint_plan::model::Plan;
use setpoint_plan::planner::{Entropy, Inputs, Planner, plan_with};
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{LastGood, Observed};

use figures::{Millis, Samples, Table, ratio};
use git::Git;

const SIZES: [usize; 4] = [100, 1_000, 10_000, 100_000];
/// How many apps start from the template that changes.
const OF_TEMPLATE: usize = 1_000;
/// The bounds, with the sizes that they hold at.
const COLD: (usize, f64) = (10_000, 1.0);
const WARM: (usize, f64) = (10_000, 0.3);
const ONE_FILE: [(usize, Duration); 2] = [(10_000, Duration::from_millis(10)), (100_000, Duration::from_millis(25))];

type Remembered = BTreeMap<AppKey, LastGood>;

fn main() {
    let sizes: Vec<usize> = match std::env::var("APPS") {
        Ok(apps) => apps.split(',').map(|apps| apps.parse().unwrap()).collect(),
        Err(_) => SIZES.to_vec(),
    };
    let mut starts = Table::new(
        "plan-start",
        "From a start to a plan, medians, in turn with the floor",
        &["apps", "cold load", "plan", "both", "floor", "ratio", "warm load", "plan", "both", "ratio"],
    );
    let columns =
        ["apps", "one file: load", "plan", "both", "a template of 1,000 apps: load", "plan", "no-op: load", "plan"];
    let mut changes = Table::new("plan-change", "From a commit to a plan, medians", &columns);
    let mut beyond = Vec::new();
    for apps in sizes {
        let git = repository_of(apps);
        beyond.extend(start(apps, &git, &mut starts));
        beyond.extend(change(apps, &git, &mut changes));
    }
    starts.print();
    changes.print();
    for bound in &beyond {
        eprintln!("{bound}");
    }
    std::process::exit(i32::from(!beyond.is_empty()));
}

fn rounds(apps: usize) -> usize {
    if apps > 10_000 { 3 } else { 7 }
}

fn start(apps: usize, git: &Git, table: &mut Table) -> Vec<String> {
    let state = tempfile::tempdir().unwrap();
    let mut times: [Samples; 7] = Default::default();
    let [floors, cold_loads, cold_plans, colds, warm_loads, warm_plans, warms] = &mut times;
    for _ in 0..rounds(apps) {
        floors.push(timed(|| assert_eq!(floor(git), 2 * apps + 1)).1);
        let ((loaded, loader, repository), load) = timed(|| first_load(loader(), git));
        assert_eq!((loaded.desired.apps.len(), loaded.diagnostics.len()), (apps, 0));
        let (plan, planning) = timed(|| planned(&loaded.desired, &assumed::nothing()));
        assert_eq!(plan.actions.len(), apps);
        cold_loads.push(load);
        cold_plans.push(planning);
        colds.push(load + planning);
        drop((loader, repository, loaded, plan));

        let (loaded, mut before, repository) = first_load(loader_with_cache(state.path()), git);
        let observed = assumed::carried_out(&loaded.desired);
        before.settle(&repository, &Remembered::new());
        drop((before, loaded, repository));
        let ((loaded, ..), load) = timed(|| first_load(loader_with_cache(state.path()), git));
        let (plan, planning) = timed(|| planned(&loaded.desired, &observed));
        assert_eq!(plan.actions.len(), 0);
        warm_loads.push(load);
        warm_plans.push(planning);
        warms.push(load + planning);
    }
    let [floor, cold_load, cold_plan, cold, warm_load, warm_plan, warm] = times.map(|times| times.median());
    let (cold_ratio, warm_ratio) = (ratio(cold, floor), ratio(warm, floor));
    table.row(&[
        &apps,
        &Millis(cold_load),
        &Millis(cold_plan),
        &Millis(cold),
        &Millis(floor),
        &format_args!("{cold_ratio:.2}"),
        &Millis(warm_load),
        &Millis(warm_plan),
        &Millis(warm),
        &format_args!("{warm_ratio:.2}"),
    ]);
    let bounds = [("cold", cold_ratio, COLD), ("warm", warm_ratio, WARM)].into_iter();
    let beyond = bounds.filter(|(_, ratio, (at, most))| *at == apps && ratio > most);
    beyond
        .map(|(what, ratio, (_, most))| format!("{what} at {apps} apps: {ratio:.2} of the floor, not {most}"))
        .collect()
}

/// A daemon that follows a branch.
struct Daemon {
    repository: Repository,
    loader: Loader,
    planner: Planner,
    observed: Observed,
    remembered: Remembered,
}

impl Daemon {
    /// What a look at the branch takes, and the plan for what is found.
    fn look(&mut self) -> (Duration, Duration) {
        let (loaded, load) = timed(|| {
            let tip = self.repository.tip().unwrap();
            self.loader.load(&self.repository, &tip, &self.remembered).unwrap()
        });
        assert_eq!(loaded.diagnostics, []);
        let (_, planning) = timed(|| self.planner.plan_with(&inputs(&loaded.desired, &self.observed), &AllProcessors));
        (load, planning)
    }

    /// Medians of looks, each after a commit of these changes.
    fn after(&mut self, git: &Git, rounds: usize, changes: impl Fn(usize) -> String) -> (Duration, Duration, Duration) {
        let (mut loads, mut plans, mut both) = (Samples::default(), Samples::default(), Samples::default());
        for round in 0..rounds {
            commit(git, &changes(round));
            let (load, planning) = self.look();
            loads.push(load);
            plans.push(planning);
            both.push(load + planning);
        }
        (loads.median(), plans.median(), both.median())
    }
}

fn change(apps: usize, git: &Git, table: &mut Table) -> Vec<String> {
    let (loaded, loader, repository) = first_load(loader(), git);
    let observed = assumed::carried_out(&loaded.desired);
    let mut daemon = Daemon { repository, loader, planner: Planner::new(), observed, remembered: Remembered::new() };
    daemon.look();
    let file = |path: &str, round| format!("M 644 inline {path}\n{}", data(&format!("edition {round}")));
    let one = daemon.after(git, 9, |round| file("apps/team-0/app-0/index.html", round));
    let template = daemon.after(git, 5, |round| file("templates/tools/tool", round));
    let nothing = daemon.after(git, 9, |round| file("README.md", round));
    table.row(&[
        &apps,
        &Millis(one.0),
        &Millis(one.1),
        &Millis(one.2),
        &Millis(template.0),
        &Millis(template.1),
        &Millis(nothing.0),
        &Millis(nothing.1),
    ]);
    let beyond = ONE_FILE.iter().filter(|(at, most)| *at == apps && one.2 > *most);
    beyond.map(|(_, most)| format!("one file at {apps} apps: {}, not {}", Millis(one.2), Millis(*most))).collect()
}

fn renderer() -> Renderer {
    Renderer::new(vec![env!("CARGO_BIN_EXE_setpoint").into(), CHILD_COMMAND.into()])
}

fn loader() -> Loader {
    Loader::new(renderer())
}

fn loader_with_cache(state: &Path) -> Loader {
    Loader::with_cache(renderer(), Cache::of(state))
}

/// Opens the repository and reads its tip, as a daemon does when it starts. Gives back both, since a daemon closes neither.
fn first_load(mut loader: Loader, git: &Git) -> (Loaded, Loader, Repository) {
    let limits = SourceLimits { files: 1_000_000, ..SourceLimits::default() };
    let repository = Repository::open(&git.config_with(limits)).unwrap();
    let tip = repository.tip().unwrap();
    let loaded = loader.load(&repository, &tip, &Remembered::new()).unwrap();
    (loaded, loader, repository)
}

fn planned(desired: &Desired, observed: &Observed) -> Plan {
    plan_with(&inputs(desired, observed), &AllProcessors)
}

fn inputs<'a>(desired: &'a Desired, observed: &'a Observed) -> Inputs<'a> {
    Inputs { desired, observed, parent: None, now: assumed::NOW, entropy: Entropy([0; 16]) }
}

/// Parses every YAML file of the tip; how many there were.
fn floor(git: &Git) -> usize {
    let repository = git2::Repository::open(git.path()).unwrap();
    let tree = repository.find_reference("refs/heads/main").unwrap().peel_to_tree().unwrap();
    let mut parsed = 0;
    let visit = |_: &str, entry: &git2::TreeEntry<'_>| {
        if entry.kind() == Some(ObjectType::Blob) && entry.name_bytes().ends_with(b".yaml") {
            let blob = repository.find_blob(entry.id()).unwrap();
            std::hint::black_box(serde_yaml::from_slice::<serde_yaml::Value>(blob.content()).unwrap());
            parsed += 1;
        }
        TreeWalkResult::Ok
    };
    tree.walk(TreeWalkMode::PreOrder, visit).unwrap();
    parsed
}

/// A repository of this many apps in folders of a hundred, packed as a clone is.
fn repository_of(apps: usize) -> Git {
    let git = Git::init();
    let template =
        "apiVersion: setpoint/v1\nkind: Template\nmetadata: {name: tools}\nspec: {rootfs: {path: templates/tools}}\n";
    let mut files = format!(
        "M 644 inline templates/tools.yaml\n{}M 644 inline templates/tools/tool\n{}",
        data(template),
        data("1")
    );
    for n in 0..apps {
        let folder = format!("apps/team-{}/app-{n}", n / 100);
        for (name, text) in
            [("app.yaml", app(n)), ("sandbox.yaml", sandbox(n)), ("index.html", format!("<h1>app {n}</h1>\n"))]
        {
            write!(files, "M 644 inline {folder}/{name}\n{}", data(&text)).unwrap();
        }
    }
    commit(&git, &files);
    git
}

/// An app as people write them: some of its fields set, no two alike.
fn app(n: usize) -> String {
    let template = if n < OF_TEMPLATE { "tools" } else { "minimal" };
    format!(
        "apiVersion: setpoint/v1\nkind: App\nmetadata:\n  name: app-{n}\n  labels: {{tier: web, shard: \"{}\"}}\nspec:\n  \
         template: {template}\n  resources: {{vcpus: 1, memory: {}Mi, disk: 1Gi}}\n  env:\n    GREETING: hello from {n}\n    \
         LOG_LEVEL: info\n",
        n % 16,
        128 + n % 8 * 64
    )
}

fn sandbox(n: usize) -> String {
    format!(
        "version: 1\nweb:\n  command: exec busybox httpd -f -p 3000\n  health_path: /\nworkers:\n  - name: queue\n    command: sh \
         worker.sh {n}\n"
    )
}

/// Adds a commit to `main`, in the words of `git fast-import`.
fn commit(git: &Git, changes: &str) {
    let from = git.run(&["for-each-ref", "--format=from %(objectname)", "refs/heads/main"]);
    let head = "commit refs/heads/main\ncommitter Ada <ada@example.org> 1700000000 +0000\n";
    let from = if from.is_empty() { from } else { from + "\n" };
    let stream = format!("{head}{}{from}{changes}\n", data("change"));
    git.feed(&["fast-import", "--quiet", "--force"], stream.as_bytes());
}

fn data(text: &str) -> String {
    format!("data {}\n{text}\n", text.len())
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let begun = Instant::now();
    let result = work();
    (result, begun.elapsed())
}
