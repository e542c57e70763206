//! The loop on a paused clock: what takes minutes and hours, with scripted microVMs, in a moment.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "crash/declare.rs"]
#[allow(dead_code, reason = "shared with the crash tests")]
mod declare;
#[path = "support/host.rs"]
mod host;

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use setpoint::config::Converge;
use setpoint::converge::follow::{Follower, Rewind};
use setpoint::converge::step::Hands;
use setpoint::converge::warm::Warmer;
use setpoint::converge::{Pass, Reconciler};
use setpoint::desired::Loader;
use setpoint::idle::Uses;
use setpoint::ledger::Ledger;
use setpoint::metrics::Metrics;
use setpoint::observe::Observer;
use setpoint::render::{CHILD_COMMAND, Renderer};
use setpoint::source::{Repository, SourceConfig, SourceLimits};
use setpoint_plan::model::Block;
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{AppRecord, GuestState, Limits, VmState};
use setpoint_schema::quantity::ByteSize;
use setpoint_state::Store;
use setpoint_vmm::driver::Driver;
use setpoint_vmm::sim::{SimDriver, TokioClock, World};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::declare::App;
use crate::host::Host;

/// By the paused clock. Nothing that is waited for here takes as long.
const PATIENCE: Duration = Duration::from_secs(12 * 3600);

#[tokio::test(start_paused = true)]
async fn a_step_that_keeps_failing_is_tried_less_and_less_often() {
    let mut running = Running::start("[[fault]]\napp = \"bad\"\noperation = \"launch\"\n", &[App::new("bad")]).await;
    let mut failures = Vec::new();
    while failures.len() < 12 {
        let seen = failures.len();
        failures.push(running.wait_for(|pass| memory(pass, "bad").filter(|app| failures_of(app) > seen)).await.1);
    }
    for (count, pair) in failures.windows(2).enumerate() {
        let (wait, expected) = (pair[1].duration_since(pair[0]).as_secs_f64(), f64::from(1 << count).min(300.0));
        assert!(wait > 0.7 * expected && wait < 1.3 * expected + 1.0, "wait {count} takes {wait} s, not {expected} s");
    }
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn healing_goes_on_once_the_oldest_heals_are_five_minutes_old() {
    let mut running = Running::start("[[fate]]\ndies_after = \"10s\"\n", &[App::new("flappy")]).await;
    let given_up = |pass: &Pass| {
        let mut blocks = pass.plan.actions.iter().flat_map(|action| &action.blocked);
        blocks.any(|block| matches!(block, Block::Flapping(_))).then_some(())
    };
    running.wait_for(given_up).await;
    let oldest = running.wait_for(|pass| memory(pass, "flappy")).await.0.heals[0];
    assert_eq!(running.world.vms().unwrap()[0].launches, 7);
    let world = running.world.clone();
    let (_, at) = running.wait_for(|_| (world.vms().unwrap()[0].launches == 8).then_some(())).await;
    let waited = at.duration_since(oldest);
    assert!(waited >= SignedDuration::from_mins(5) && waited < SignedDuration::from_secs(310), "{waited}");
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_never_answers_is_booted_again_after_its_timeout() {
    let mut running = Running::start("[[fate]]\nboot = 1\nsilent_after = \"0ms\"\n", &[App::new("late")]).await;
    let began = running.observer.now();
    let answering = |pass: &Pass| {
        let mut guests = pass.observed.sandboxes.values().map(|sandbox| &sandbox.guest);
        guests.any(|guest| matches!(guest, GuestState::Answering(_))).then_some(())
    };
    let (_, at) = running.wait_for(answering).await;
    let waited = at.duration_since(began);
    assert!(waited >= SignedDuration::from_mins(3) && waited < SignedDuration::from_secs(200), "{waited}");
    assert_eq!(running.world.vms().unwrap()[0].launches, 2);
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_disk_of_a_removed_app_is_kept_for_its_time_and_then_deleted() {
    let kept = App { retain: "1h", ..App::new("kept") };
    let mut running = Running::start("", &[App::new("other"), kept]).await;
    running.wait_for(|pass| (pass.plan.unchanged.len() == 2).then_some(())).await;
    running.host.remove("apps/kept");
    running.host.commit("remove");
    running.follower.look().await;
    let (_, removed) = running.wait_for(|pass| (pass.observed.sandboxes.len() == 1).then_some(())).await;
    assert_eq!(running.world.disks().unwrap().len(), 2);
    let (_, deleted) = running.wait_for(|pass| (pass.observed.disks.len() == 1).then_some(())).await;
    assert_eq!(running.world.disks().unwrap().len(), 1);
    let waited = deleted.duration_since(removed);
    assert!(waited >= SignedDuration::from_mins(59) && waited < SignedDuration::from_mins(62), "{waited}");
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_change_waits_for_its_window_and_begins_as_it_opens() {
    let mut running = Running::start("", &[App::new("blog")]).await;
    running.wait_for(|pass| (pass.plan.unchanged.len() == 1).then_some(())).await;
    let opening = running.observer.now().checked_add(SignedDuration::from_hours(5)).unwrap();
    let from = opening.strftime("%H:%M").to_string();
    let opening: Timestamp = opening.strftime("%Y-%m-%dT%H:%M:00Z").to_string().parse().unwrap();
    let to = opening.checked_add(SignedDuration::from_mins(30)).unwrap().strftime("%H:%M").to_string();
    let windows = format!("  windows: [{{kind: allow, from: {from}, to: {to}}}]\n");
    App { memory: "192Mi".into(), extra: windows.leak(), ..App::new("blog") }.write(&running.host);
    running.host.commit("more memory");
    running.follower.look().await;
    let waits = |pass: &Pass| {
        let mut blocks = pass.plan.actions.iter().flat_map(|action| &action.blocked);
        blocks.any(|block| *block == Block::Window { opens: Some(opening) }).then_some(())
    };
    running.wait_for(waits).await;
    let world = running.world.clone();
    let (_, at) = running.wait_for(|_| (world.vms().unwrap()[0].launches == 2).then_some(())).await;
    let waited = at.duration_since(opening);
    assert!(waited >= SignedDuration::ZERO && waited < SignedDuration::from_secs(5), "{waited} after the opening");
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn many_apps_that_fail_do_not_keep_one_waiting_that_works() {
    let bad: Vec<_> = (0..16).map(|n| App::new(format!("bad-{n}"))).collect();
    let mut running = Running::start("[[fate]]\napp = \"bad-*\"\nsilent_after = \"0ms\"\n", &bad).await;
    let all_failed = |pass: &Pass| {
        let mut records = pass.observed.apps.values();
        (pass.observed.apps.len() == 16 && records.all(|app| app.retry.failures > 0)).then_some(())
    };
    running.wait_for(all_failed).await;
    // Each of these holds its place for three minutes, and all of them want one again.
    App::new("good").write(&running.host);
    running.host.commit("one that works");
    let declared_at = running.observer.now();
    running.follower.look().await;
    let good: AppKey = "good".parse().unwrap();
    let (_, at) = running.wait_for(|pass| pass.plan.unchanged.contains(&good).then_some(())).await;
    let waited = at.duration_since(declared_at);
    assert!(waited < SignedDuration::from_secs(10), "{waited}");
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_succeeds_and_is_at_once_needed_again_waits_longer_each_time_also_over_a_restart() {
    let mut running = Running::start("[[fate]]\nforgetful = true\n", &[App::new("blog")]).await;
    let began = running.observer.now();
    let ((_, until), at) = running.wait_for(|pass| repeated(pass, 5)).await;
    assert!(at.duration_since(began) < SignedDuration::from_secs(10), "five times are done at once");
    let mut running = running.restarted().await;
    let ((block, known), _) = running.wait_for(|pass| repeated(pass, 5)).await;
    assert_eq!(known, until, "a restart is no new chance");
    assert!(block.contains("still not as declared: the workspace is not the declared content"), "{block}");
    let mut free = until;
    for times in 6..=12 {
        let ((_, until), at) = running.wait_for(|pass| repeated(pass, times)).await;
        let late = at.duration_since(free);
        assert!(late >= SignedDuration::ZERO && late < SignedDuration::from_secs(5), "time {times} is {late} late");
        free = until;
    }
    assert!(free.duration_since(running.observer.now()) > SignedDuration::from_mins(3), "the wait has grown");
    // A new declaration is a new chance, though nothing has been mended.
    let declared_at = running.observer.now();
    running.commit(&[App { setting: "second".into(), ..App::new("blog") }]).await;
    let (_, at) = running.wait_for(|pass| repeated(pass, 5)).await;
    assert!(at.duration_since(declared_at) < SignedDuration::from_secs(10), "it is tried at once");
    running.end().await;
}

/// What a pass says of work that was done this often, and until when it lets it wait.
fn repeated(pass: &Pass, done: u32) -> Option<(String, Timestamp)> {
    let mut blocks = pass.plan.actions.iter().flat_map(|action| &action.blocked);
    blocks.find_map(|block| match block {
        Block::Repeating { times, until, .. } if *times == done => Some((block.to_string(), *until)),
        _ => None,
    })
}

#[tokio::test(start_paused = true)]
async fn a_place_goes_to_the_next_boot_while_files_are_sent_and_never_to_two() {
    let apps: Vec<_> = (0..12).map(|n| App::new(format!("app-{n}"))).collect();
    let mut running = Running::start("[latency]\nboot = \"10s\"\nsync = \"10s\"\n", &apps).await;
    let began = running.observer.now();
    let (_, at) = running.wait_for(|pass| (pass.plan.unchanged.len() == 12).then_some(())).await;
    let took = at.duration_since(began);
    // Three rounds of boots on four places, and the files of the last. With a place for both it would be a minute.
    assert!(took >= SignedDuration::from_secs(40) && took < SignedDuration::from_secs(43), "{took}");
    let boots: Vec<_> = running.world.vms().unwrap().iter().map(|vm| (vm.booted_at, vm.agent_at)).collect();
    let at_once = |moment| boots.iter().filter(|(from, to)| *from <= moment && moment < *to).count();
    assert_eq!(boots.iter().map(|(from, _)| at_once(*from)).max(), Some(4));
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_app_is_used_again_as_soon_as_it_runs_also_where_nobody_saw_its_rest() {
    let blog = || App::new("blog");
    let mut running = Running::start("", &[blog()]).await;
    let key: AppKey = "blog".parse().unwrap();
    running.wait_for(|pass| (pass.plan.unchanged.len() == 1).then_some(())).await;
    assert!(running.uses.begin(&key).is_some());
    running.commit(&[App { power: "paused", ..blog() }]).await;
    let vm = |pass: &Pass| pass.observed.sandboxes.values().next().map(|sandbox| sandbox.vm.clone());
    running.wait_for(|pass| vm(pass).filter(|vm| matches!(vm, VmState::Paused { .. }))).await;
    assert!(running.uses.begin(&key).is_none(), "whoever routes requests still thinks that it runs");
    running.commit(&[blog()]).await;
    let runs = |pass: &Pass| vm(pass).filter(|vm| matches!(vm, VmState::Running { .. }) && pass.plan.is_empty());
    running.wait_for(runs).await;
    assert!(running.uses.begin(&key).is_some(), "its requests would wait in vain");
    running.end().await;
}

/// The loop in this process, by a clock that jumps to whatever is waited for next.
struct Running {
    host: Host,
    world: World,
    observer: Observer,
    /// Nobody publishes what a pass finds here, so that what is only lifted by that stays.
    uses: Uses,
    follower: Follower,
    passes: watch::Receiver<Option<Arc<Pass>>>,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), setpoint_state::StateError>>,
}

impl Running {
    /// On a repository that declares these apps.
    async fn start(script: &str, apps: &[App]) -> Self {
        let host = Host::sim();
        apps.iter().for_each(|app| app.write(&host));
        host.commit("declare");
        host.world().set_script(script).unwrap();
        Self::on(host, Timestamp::now()).await
    }

    /// On a host as it stands, at this time.
    async fn on(host: Host, now: Timestamp) -> Self {
        let clock = Arc::new(TokioClock::starting_at(now));
        let sim = SimDriver::with_clock(host.state().join("vmm"), clock.clone());
        let world = sim.world().clone();
        let driver: Arc<dyn Driver> = Arc::new(sim);
        let observer = Observer::with_clock(Arc::clone(&driver), clock);
        let ledger = Ledger::new(Store::open(&host.state().join("store")).unwrap()).unwrap();
        let source = Arc::new(Repository::open(&source_of(&host)).unwrap());
        let loader = Loader::new(Renderer::new(vec![env!("CARGO_BIN_EXE_setpoint").into(), CHILD_COMMAND.into()]));
        let metrics = Metrics::default();
        let follower = Follower::start(Arc::clone(&source), loader, ledger.clone(), Rewind::Refused, metrics.clone())
            .await
            .unwrap();
        let uses = Uses::default();
        let hands = Hands {
            driver,
            observer: observer.clone(),
            ledger,
            source,
            metrics,
            warmer: Warmer::off(),
            uses: uses.clone(),
        };
        let reconciler = Reconciler::new(hands, Converge::default(), limits(), follower.followed());
        let (passes, shutdown) = (reconciler.passes(), CancellationToken::new());
        let task = tokio::spawn(reconciler.run(shutdown.clone()));
        Self { host, world, observer, uses, follower, passes, shutdown, task }
    }

    /// What `look` finds in a pass, and when that pass was made.
    async fn wait_for<T>(&mut self, mut look: impl FnMut(&Pass) -> Option<T>) -> (T, Timestamp) {
        let found = async {
            loop {
                let pass = self.passes.borrow_and_update().clone();
                if let Some((found, at)) = pass.and_then(|pass| Some((look(&pass)?, pass.at))) {
                    return (found, at);
                }
                self.passes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, found).await.expect("what is waited for comes")
    }

    /// Commits what is declared now, and follows it.
    async fn commit(&mut self, apps: &[App]) {
        apps.iter().for_each(|app| app.write(&self.host));
        self.host.commit("declare");
        self.follower.look().await;
    }

    /// The same host with a loop that knows only what was written down.
    async fn restarted(self) -> Self {
        let now = self.observer.now();
        Self::on(self.stop().await, now).await
    }

    async fn end(self) {
        drop(self.stop().await);
    }

    async fn stop(self) -> Host {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
        assert_eq!(self.world.violations().unwrap(), Vec::<String>::new());
        self.host
    }
}

fn source_of(host: &Host) -> SourceConfig {
    SourceConfig {
        url: host.repo().display().to_string(),
        branch: None,
        path: None,
        state_dir: host.state(),
        limits: SourceLimits::default(),
    }
}

fn limits() -> Limits {
    Limits { memory: ByteSize::gib(64), vcpus: 64, disk: ByteSize::gib(64), sandboxes: 100 }
}

fn memory(pass: &Pass, app: &str) -> Option<std::sync::Arc<AppRecord>> {
    let key: AppKey = format!("default/{app}").parse().unwrap();
    pass.observed.apps.get(&key).cloned()
}

fn failures_of(app: &AppRecord) -> usize {
    usize::try_from(app.retry.failures).unwrap()
}
