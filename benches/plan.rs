//! From a revision to a plan at 100, 1,000 and 10,000 apps: `cargo bench --bench plan`.
//!
//! Cold is a daemon's first look: nothing is cached, nothing exists, everything is to be created. The floor does, on one thread as
//! well, what nobody can do without: walk the tree with git2, read the blobs of the declarations, parse them with serde_yaml.
//! It checks nothing, resolves nothing, plans nothing. The last column is the load after a commit to one app, by a daemon
//! that has loaded the revision before.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot be made ends there")]

#[path = "support/figures.rs"]
mod figures;
#[path = "../tests/support/git.rs"]
mod git;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use git2::{ObjectType, TreeWalkMode, TreeWalkResult};
use jiff::Timestamp;
use setpoint::desired::{Loaded, Loader};
use setpoint::render::{CHILD_COMMAND, Renderer};
use setpoint_plan::desired::Desired;
use setpoint_plan::model::Plan;
use setpoint_plan::planner::{Entropy, Inputs, plan};
use setpoint_schema::app::DesiredApp;
use setpoint_schema::id::HostId;
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{LastGood, Limits, Observed};
use setpoint_schema::quantity::ByteSize;
use setpoint_schema::shared::SharedMap;

use figures::{Millis, Samples, load, ratio};
use git::Git;

const SIZES: [usize; 3] = [100, 1_000, 10_000];
const ROUNDS: usize = 5;

type Known = BTreeMap<AppKey, LastGood>;

fn main() {
    println!("cold load and plan, median of {ROUNDS}, taken in turn with the floor (load {})", load());
    println!(
        "  {:>7}{:>12}{:>12}{:>12}{:>12}{:>8}{:>18}",
        "apps", "load", "plan", "both", "floor", "ratio", "load of 1 change"
    );
    for apps in SIZES {
        measure(apps);
    }
}

fn measure(apps: usize) {
    let git = repository_of(apps);
    let (mut loads, mut plans, mut both, mut floors) =
        (Samples::default(), Samples::default(), Samples::default(), Samples::default());
    for _ in 0..ROUNDS {
        floors.push(timed(|| assert_eq!(floor(&git), 2 * apps)).1);
        let (loaded, load) = timed(|| cold_load(&git));
        assert_eq!((loaded.desired.apps.len(), loaded.diagnostics.len()), (apps, 0));
        let (plan, planning) = timed(|| plan_of(&loaded));
        assert_eq!(plan.actions.len(), apps);
        loads.push(load);
        plans.push(planning);
        both.push(load + planning);
    }
    println!(
        "  {apps:>7}{:>12}{:>12}{:>12}{:>12}{:>8.2}{:>18}",
        Millis(loads.median()),
        Millis(plans.median()),
        Millis(both.median()),
        Millis(floors.median()),
        ratio(both.median(), floors.median()),
        Millis(one_app_changed(&git)),
    );
}

/// Loads after each of some commits that change one app among those that are known.
fn one_app_changed(git: &Git) -> Duration {
    let mut loader = loader();
    let repository = git.open();
    let mut load = |last_good: &Known| {
        let tip = repository.tip().unwrap();
        loader.load(&repository, &tip, last_good).unwrap()
    };
    let mut last_good = known(&load(&Known::new()).desired);
    let change = |n| {
        commit(git, &format!("M 644 inline apps/team-0/app-0/index.html\n{}", data(&format!("edition {n}"))));
        let (loaded, time) = timed(|| load(&last_good));
        last_good = known(&loaded.desired);
        time
    };
    (0..ROUNDS).map(change).collect::<Samples>().median()
}

/// What a daemon remembers of these apps.
fn known(desired: &Desired) -> Known {
    let known = |app: &Arc<DesiredApp>| LastGood { app: Arc::clone(app), revision: desired.revision.clone() };
    desired.apps.iter().map(|(key, app)| (key.clone(), known(app))).collect()
}

fn loader() -> Loader {
    Loader::new(Renderer::new(vec![env!("CARGO_BIN_EXE_setpoint").into(), CHILD_COMMAND.into()]))
}

/// Opens the repository and reads its tip, as a daemon does when it starts.
fn cold_load(git: &Git) -> Loaded {
    let repository = git.open();
    let tip = repository.tip().unwrap();
    loader().load(&repository, &tip, &Known::new()).unwrap()
}

/// The plan on a host where nothing exists and everything fits.
fn plan_of(loaded: &Loaded) -> Plan {
    let plenty = ByteSize::gib(1 << 20);
    let observed = Observed {
        host: HostId("bench".to_owned()),
        limits: Limits { memory: plenty, vcpus: u32::MAX, disk: plenty, sandboxes: u32::MAX },
        sandboxes: SharedMap::new(),
        unrecorded: Vec::new(),
        disks: SharedMap::new(),
        apps: SharedMap::new(),
    };
    let (desired, now) = (&loaded.desired, Timestamp::UNIX_EPOCH);
    plan(&Inputs { desired, observed: &observed, parent: None, now, entropy: Entropy([0; 16]) })
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
    let mut files = String::new();
    for n in 0..apps {
        let folder = format!("apps/team-{}/app-{n}", n / 100);
        for (name, text) in
            [("app.yaml", app(n)), ("sandbox.yaml", SANDBOX.to_owned()), ("index.html", format!("<h1>app {n}</h1>\n"))]
        {
            write!(files, "M 644 inline {folder}/{name}\n{}", data(&text)).unwrap();
        }
    }
    commit(&git, &files);
    git
}

/// An app as people write them: some of its fields set, no two alike.
fn app(n: usize) -> String {
    format!(
        "apiVersion: setpoint/v1\nkind: App\nmetadata:\n  name: app-{n}\n  labels: {{tier: web, shard: \"{}\"}}\nspec:\n  \
         resources: {{vcpus: 1, memory: {}Mi, disk: 1Gi}}\n  env:\n    GREETING: hello from {n}\n    LOG_LEVEL: info\n",
        n % 16,
        128 + n % 8 * 64
    )
}

const SANDBOX: &str = "version: 1\nweb:\n  command: exec busybox httpd -f -p 3000\n  health_path: /\nworkers:\n  - name: queue\n    \
                       command: sh worker.sh\n";

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
