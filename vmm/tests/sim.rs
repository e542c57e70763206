//! The scripted driver from outside: its world outlives drivers, tells what happened, and refuses what must not happen.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use jiff::Timestamp;
use setpoint_schema::id::{BlobId, BootNonce, DiskId, SandboxId, SnapshotId, TemplateDigest, TreeDigest};
use setpoint_schema::observed::{BuildState, ExitReason, GuestStatus, Health, Machine, Moment, VmState};
use setpoint_schema::quantity::{ByteSize, Span};
use setpoint_schema::runtime::{Build, ProcessSet, Runtime, Web, Worker};
use setpoint_vmm::driver::{
    Driver, FileKind, Guest, KeepDisk, ManifestEntry, Pause, Paused, RestartScope, Take, WorkspaceFile,
};
use setpoint_vmm::sim::{SimDriver, TokioClock, World};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const SIZE: ByteSize = ByteSize::gib(1);

/// A driver over a fresh directory, on a clock that tests may pause.
struct Bench {
    dir: TempDir,
    driver: SimDriver,
}

impl Bench {
    fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = TokioClock::starting_at("2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap());
        let driver = SimDriver::with_clock(dir.path(), Arc::new(clock));
        driver.world().set_script(script).unwrap();
        Self { dir, driver }
    }

    /// The same by the host's clock, as other processes have it.
    fn in_real_time() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let driver = SimDriver::new(dir.path());
        Self { dir, driver }
    }

    fn world(&self) -> &World {
        self.driver.world()
    }

    /// Makes what the machine needs, and starts it.
    async fn launch(&self, machine: &Machine) {
        self.driver.make_template(&machine.template, None).await.unwrap();
        self.driver.ensure_disk(&machine.disk, SIZE, None).await.unwrap();
        self.driver.launch(machine).await.unwrap();
    }

    async fn guest(&self, machine: &Machine) -> Arc<dyn Guest> {
        self.driver.guest(&machine.sandbox, &machine.nonce).await.unwrap()
    }
}

/// The `boot`th boot of an app's sandbox.
fn machine(app: &str, boot: u32) -> Machine {
    Machine {
        sandbox: SandboxId(format!("{app}-0000000a").into()),
        app: app.parse().unwrap(),
        uid: None,
        nonce: BootNonce(format!("{boot:032x}").into()),
        vcpus: 1,
        memory_mib: 256,
        template: TemplateDigest("minimal".into()),
        disk: DiskId(format!("{app}-0000000d").into()),
    }
}

fn web() -> ProcessSet {
    let web = Web { command: "httpd -f -p 3000".to_owned(), ..Web::default() };
    let runtime = Runtime { web: Some(web), ..Runtime::nothing() };
    ProcessSet { runtime, env: Default::default(), tree: TreeDigest("t1".into()) }
}

fn file(path: &str, blob: &str) -> WorkspaceFile {
    let entry = ManifestEntry { blob: BlobId(blob.to_owned()), kind: FileKind::Regular };
    WorkspaceFile { path: path.to_owned(), entry, content: b"content".to_vec() }
}

async fn sync(guest: &Arc<dyn Guest>, tree: &str, changed: Vec<WorkspaceFile>, removed: &[&str]) {
    let changed = stream::iter(changed.into_iter().map(Ok)).boxed();
    let removed = removed.iter().map(|path| (*path).to_owned()).collect();
    guest.sync(&TreeDigest(tree.into()), changed, removed).await.unwrap();
}

/// The status as soon as it is as `expected`.
async fn status_when(guest: &Arc<dyn Guest>, expected: impl Fn(&GuestStatus) -> bool) -> Arc<GuestStatus> {
    let mut status = guest.status().await.unwrap();
    while !expected(&status) {
        status = guest.status_change(&status, Span::secs(60)).await.unwrap().unwrap_or(status);
    }
    status
}

/// How long `what` takes by the test's clock.
async fn timed<T>(what: impl Future<Output = T>) -> (T, Duration) {
    let start = Instant::now();
    (what.await, start.elapsed())
}

#[tokio::test(start_paused = true)]
async fn the_agent_answers_once_the_boot_is_over() {
    let bench = Bench::new("latency = { boot = \"3s\" }");
    let machine = machine("blog", 1);
    bench.launch(&machine).await;
    assert!(matches!(bench.driver.observe(&machine.sandbox).await.unwrap(), VmState::Running { .. }));
    let (guest, took) = timed(bench.guest(&machine)).await;
    assert_eq!(took.as_secs(), 3);
    assert_eq!(guest.status().await.unwrap().nonce, machine.nonce);
}

#[tokio::test(start_paused = true)]
async fn a_boot_is_not_taken_for_another() {
    let bench = Bench::new("");
    bench.launch(&machine("blog", 1)).await;
    let other = machine("blog", 2);
    assert!(bench.driver.guest(&other.sandbox, &other.nonce).await.is_err());
    bench.driver.exited(&other.sandbox, &other.nonce).await;
}

#[tokio::test(start_paused = true)]
async fn vms_outlive_their_driver() {
    let bench = Bench::new("");
    let machine = machine("blog", 1);
    bench.launch(&machine).await;
    sync(&bench.guest(&machine).await, "t1", vec![file("index.html", "b1")], &[]).await;

    let clock = TokioClock::starting_at(bench.world().now());
    let second = SimDriver::with_clock(bench.dir.path(), Arc::new(clock));
    assert_eq!(second.list().await.unwrap(), std::slice::from_ref(&machine));
    let guest = second.guest(&machine.sandbox, &machine.nonce).await.unwrap();
    assert_eq!(guest.status().await.unwrap().tree, Some(TreeDigest("t1".into())));
}

#[tokio::test(start_paused = true)]
async fn launching_what_runs_does_nothing() {
    let bench = Bench::new("");
    let machine = machine("blog", 1);
    bench.launch(&machine).await;
    bench.driver.launch(&machine).await.unwrap();
    let renamed = Machine { app: "journal".parse().unwrap(), ..machine.clone() };
    bench.driver.launch(&renamed).await.unwrap();
    assert_eq!(bench.world().vm(&machine.sandbox).unwrap().unwrap().launches, 1);
    assert!(bench.world().violations().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_must_never_happen_is_refused_and_written_down() {
    let bench = Bench::new("");
    let first = machine("blog", 1);
    assert!(bench.driver.launch(&first).await.is_err(), "without template");
    bench.driver.make_template(&first.template, None).await.unwrap();
    assert!(bench.driver.launch(&first).await.is_err(), "without disk");
    bench.launch(&first).await;
    assert!(bench.driver.launch(&machine("blog", 2)).await.is_err(), "second boot");
    let thief = Machine { disk: first.disk.clone(), ..machine("shop", 1) };
    assert!(bench.driver.launch(&thief).await.is_err(), "another's disk");
    assert!(bench.driver.remove(&first.sandbox).await.is_err(), "removal of what runs");
    assert!(bench.driver.delete_disk(&first.disk).await.is_err(), "deletion of a disk in use");

    assert_eq!(bench.world().running().unwrap().len(), 1);
    let violations = bench.world().violations().unwrap();
    let expected =
        ["without its template", "without its disk", "another boot", "which blog", "removal", "deletion of disk"];
    assert_eq!(violations.len(), expected.len());
    assert!(violations.iter().zip(expected).all(|(line, words)| line.contains(words)), "{violations:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_removed_sandbox_leaves_only_its_disk() {
    let bench = Bench::new("");
    let machine = machine("blog", 1);
    bench.launch(&machine).await;
    bench.driver.kill(&machine.sandbox).await.unwrap();
    for _ in 0..2 {
        bench.driver.remove(&machine.sandbox).await.unwrap();
    }
    assert_eq!(bench.driver.observe(&machine.sandbox).await.unwrap(), VmState::Absent);
    assert_eq!(bench.driver.list_disks().await.unwrap(), [(machine.disk.clone(), SIZE)]);
    for _ in 0..2 {
        bench.driver.delete_disk(&machine.disk).await.unwrap();
    }
    assert_eq!(bench.driver.disk_size(&machine.disk).await.unwrap(), None);
    assert!(bench.world().violations().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn disks_grow_and_never_shrink() {
    let bench = Bench::new("");
    let machine = machine("blog", 1);
    bench.launch(&machine).await;
    let guest = bench.guest(&machine).await;
    bench.driver.ensure_disk(&machine.disk, ByteSize::gib(2), Some(&machine.sandbox)).await.unwrap();
    bench.driver.ensure_disk(&machine.disk, ByteSize::mib(1), Some(&machine.sandbox)).await.unwrap();
    assert_eq!(bench.driver.disk_size(&machine.disk).await.unwrap(), Some(ByteSize::gib(2)));
    assert_eq!(guest.status().await.unwrap().disk, SIZE);
    guest.grow_disk().await.unwrap();
    assert_eq!(guest.status().await.unwrap().disk, ByteSize::gib(2));
}

#[tokio::test(start_paused = true)]
async fn a_sync_changes_what_it_names_and_keeps_the_rest() {
    let bench = Bench::new("");
    let machine = machine("blog", 1);
    bench.launch(&machine).await;
    let guest = bench.guest(&machine).await;
    sync(&guest, "t1", vec![file("a", "1"), file("b", "1"), file("c", "1")], &[]).await;
    sync(&guest, "t2", vec![file("b", "2")], &["c"]).await;
    let manifest = guest.manifest().await.unwrap();
    let files: Vec<_> = manifest.files.iter().map(|(path, entry)| (path.as_str(), entry.blob.as_str())).collect();
    assert_eq!(files, [("a", "1"), ("b", "2")]);
    assert_eq!(manifest.tree, Some(TreeDigest("t2".into())));
}

#[tokio::test(start_paused = true)]
async fn a_sync_that_breaks_off_records_nothing() {
    let bench = Bench::new("");
    let machine = machine("blog", 1);
    bench.launch(&machine).await;
    let guest = bench.guest(&machine).await;
    let broken = bench.driver.guest(&SandboxId("gone-00000000".into()), &machine.nonce).await.err().unwrap();
    let changed = stream::iter([Ok(file("a", "1")), Err(broken)]).boxed();
    assert!(guest.sync(&TreeDigest("t1".into()), changed, Vec::new()).await.is_err());
    assert_eq!(guest.manifest().await.unwrap(), Default::default());
}

#[tokio::test(start_paused = true)]
async fn the_workspace_survives_a_reboot_and_the_processes_do_not() {
    let bench = Bench::new("");
    let machines = [machine("blog", 1), machine("blog", 2)];
    bench.launch(&machines[0]).await;
    let guest = bench.guest(&machines[0]).await;
    sync(&guest, "t1", vec![file("a", "1")], &[]).await;
    guest.apply(&web(), true, RestartScope::All).await.unwrap();
    guest.shutdown().await.unwrap();
    bench.driver.exited(&machines[0].sandbox, &machines[0].nonce).await;
    assert_eq!(
        bench.driver.observe(&machines[0].sandbox).await.unwrap(),
        VmState::Exited { reason: ExitReason::Shutdown }
    );

    bench.launch(&machines[1]).await;
    let status = bench.guest(&machines[1]).await.status().await.unwrap();
    assert_eq!((&status.tree, &status.processes), (&Some(TreeDigest("t1".into())), &None));
    assert!(guest.status().await.is_err(), "the earlier boot does not answer any more");
}

#[tokio::test(start_paused = true)]
async fn builds_run_then_processes_start_then_the_web_is_healthy() {
    let bench = Bench::new("latency = { build = \"2s\", ready = \"1s\" }");
    let machine = machine("blog", 1);
    bench.launch(&machine).await;
    let guest = bench.guest(&machine).await;
    sync(&guest, "t1", Vec::new(), &[]).await;
    let mut set = web();
    set.runtime.build = Some(Build { command: Some("make".to_owned()), ..Build::default() });
    set.runtime.workers =
        vec![Worker { name: "w".parse().unwrap(), command: "w".to_owned(), restart_after_task: true }];
    guest.apply(&set, true, RestartScope::All).await.unwrap();

    let status = guest.status().await.unwrap();
    assert_eq!((&status.build, status.processes.as_ref()), (&BuildState::Running, Some(&set.digest())));
    let (status, took) = timed(status_when(&guest, |status| status.build != BuildState::Running)).await;
    assert_eq!(status.build, BuildState::Passed { tree: TreeDigest("t1".into()) });
    assert_eq!(status.unready().as_deref(), Some("web not probed yet"));
    let (_, then) = timed(status_when(&guest, |status| status.unready().is_none())).await;
    assert_eq!((took.as_secs(), then.as_secs()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn an_explicitly_empty_build_is_skipped() {
    let bench = Bench::new("");
    let machine = machine("blog", 1);
    bench.launch(&machine).await;
    let guest = bench.guest(&machine).await;
    let mut set = web();
    set.runtime.build = Some(Build { command: Some(String::new()), ..Build::default() });
    guest.apply(&set, true, RestartScope::All).await.unwrap();
    assert_eq!(guest.status().await.unwrap().build, BuildState::Skipped);
}

#[tokio::test(start_paused = true)]
async fn scripted_fates_come_true() {
    let bench = Bench::new(
        r#"
        [[fate]]
        app = "broken"
        build_fails = "exit code 2"
        [[fate]]
        app = "sick"
        unhealthy = "503"
        unhealthy_for = "4s"
        [[fate]]
        app = "doomed"
        boot = 1
        dies_after = "9s"
        dies_of = { failed = 3 }
        "#,
    );
    let [broken, sick, doomed] = ["broken", "sick", "doomed"].map(|app| machine(app, 1));
    for machine in [&broken, &sick, &doomed] {
        bench.launch(machine).await;
    }
    let mut set = web();
    set.runtime.build = Some(Build { command: Some("make".to_owned()), ..Build::default() });
    let guest = bench.guest(&broken).await;
    guest.apply(&set, true, RestartScope::All).await.unwrap();
    assert_eq!(guest.status().await.unwrap().unready().as_deref(), Some("build failed: exit code 2"));

    let guest = bench.guest(&sick).await;
    guest.apply(&web(), true, RestartScope::All).await.unwrap();
    let health = |status: Arc<GuestStatus>| status.web.clone().unwrap().health;
    assert_eq!(health(guest.status().await.unwrap()), Health::Unhealthy("503".to_owned()));
    let (_, took) = timed(status_when(&guest, |status| status.unready().is_none())).await;
    assert_eq!(took.as_secs(), 4);

    bench.driver.exited(&doomed.sandbox, &doomed.nonce).await;
    assert_eq!(bench.driver.observe(&doomed.sandbox).await.unwrap(), VmState::Exited { reason: ExitReason::Failed(3) });
    let again = machine("doomed", 2);
    bench.launch(&again).await;
    assert_eq!(bench.world().vm(&again.sandbox).unwrap().unwrap().end, None);
}

#[tokio::test(start_paused = true)]
async fn a_silent_guest_runs_and_does_not_answer() {
    let bench = Bench::new("[[fate]]\nsilent_after = \"10s\"");
    let machine = machine("blog", 1);
    bench.launch(&machine).await;
    let guest = bench.guest(&machine).await;
    let status = guest.status().await.unwrap();
    let (answer, took) = timed(guest.status_change(&status, Span::secs(20))).await;
    assert!(answer.is_err());
    assert!((20..30).contains(&took.as_secs()), "{took:?}");
    assert!(matches!(bench.driver.observe(&machine.sandbox).await.unwrap(), VmState::Running { .. }));
}

#[tokio::test(start_paused = true)]
async fn faults_fail_lose_or_hang_the_call_they_name() {
    let bench = Bench::new(
        r#"
        [[fault]]
        operation = "ensure-disk"
        nth = 1
        [[fault]]
        operation = "launch"
        nth = 1
        effect = "lost"
        [[fault]]
        app = "blog"
        operation = "kill"
        nth = 1
        effect = "hang"
        "#,
    );
    let machine = machine("blog", 1);
    bench.driver.make_template(&machine.template, None).await.unwrap();
    assert!(bench.driver.ensure_disk(&machine.disk, SIZE, None).await.is_err());
    assert_eq!(bench.driver.disk_size(&machine.disk).await.unwrap(), None, "nothing was done");
    bench.driver.ensure_disk(&machine.disk, SIZE, None).await.unwrap();
    assert!(bench.driver.launch(&machine).await.is_err());
    assert_eq!(bench.world().running().unwrap().len(), 1, "it was done, and the answer lost");
    let hanging = tokio::time::timeout(Duration::from_secs(3600), bench.driver.kill(&machine.sandbox));
    assert!(hanging.await.is_err());
    bench.driver.kill(&machine.sandbox).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_changed_script_counts_from_the_next_call_on() {
    let bench = Bench::new("");
    let machine = machine("blog", 1);
    bench.launch(&machine).await;
    bench.world().set_script("[[fault]]\noperation = \"list\"").unwrap();
    assert!(bench.driver.list().await.is_err());
    bench.world().set_script("").unwrap();
    assert_eq!(bench.driver.list().await.unwrap().len(), 1);
}

// From here on in real time: the changes come through the kernel, from a world that knows nothing of the driver.

#[tokio::test]
async fn a_death_from_outside_is_noticed() {
    let bench = Bench::in_real_time();
    let machine = machine("blog", 1);
    bench.launch(&machine).await;
    let guest = bench.guest(&machine).await;
    let status = guest.status().await.unwrap();
    let outside = World::open(bench.dir.path());
    let watch = async {
        (
            guest.status_change(&status, Span::secs(60)).await,
            bench.driver.exited(&machine.sandbox, &machine.nonce).await,
        )
    };
    let kill = async { outside.kill(&machine.sandbox, ExitReason::Killed(9)).unwrap() };
    let ((answer, ()), ()) =
        tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(watch, kill) }).await.unwrap();
    assert!(answer.is_err());
    assert_eq!(
        bench.driver.observe(&machine.sandbox).await.unwrap(),
        VmState::Exited { reason: ExitReason::Killed(9) }
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn many_can_be_the_first_to_write() {
    for _ in 0..50 {
        let dir = tempfile::tempdir().unwrap();
        let driver = Arc::new(SimDriver::new(dir.path()));
        let digest = |index| TemplateDigest(format!("t{index}").into());
        let make = |index| {
            let driver = Arc::clone(&driver);
            tokio::spawn(async move { driver.make_template(&digest(index), None).await })
        };
        for made in (0..8).map(make).collect::<Vec<_>>() {
            made.await.unwrap().unwrap();
        }
    }
}

#[tokio::test]
async fn a_world_that_vanishes_ends_every_wait() {
    let bench = Bench::in_real_time();
    let machine = machine("blog", 1);
    bench.launch(&machine).await;
    let exited = bench.driver.exited(&machine.sandbox, &machine.nonce);
    let vanish = async { std::fs::remove_dir_all(bench.dir.path().join("world")).unwrap() };
    tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(exited, vanish) }).await.unwrap();
}

/// A guest in which nothing has happened for so long that its files need not be read for an answer.
async fn quiet_guest(bench: &Bench, machine: &Machine) -> (Arc<dyn Guest>, Arc<GuestStatus>) {
    bench.launch(machine).await;
    let guest = bench.guest(machine).await;
    sync(&guest, "t1", vec![file("index.html", "b1")], &[]).await;
    let status = guest.status().await.unwrap();
    for _ in 0..3 {
        assert_eq!(guest.status_change(&status, Span::millis(60)).await.unwrap(), None);
    }
    (guest, status)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_changed_under_a_quiet_guest_shows_in_its_next_answer() {
    let bench = Bench::in_real_time();
    let machine = machine("blog", 1);
    let (guest, status) = quiet_guest(&bench, &machine).await;
    World::open(bench.dir.path()).edit_disk(&machine.disk, |disk| disk.tree = None).unwrap();
    let answer = guest.status_change(&status, Span::millis(200)).await.unwrap();
    assert_eq!(answer.unwrap().tree, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_deleted_under_a_quiet_guest_shows_in_its_next_answer() {
    let bench = Bench::in_real_time();
    let machine = machine("blog", 1);
    let (guest, status) = quiet_guest(&bench, &machine).await;
    std::fs::remove_file(bench.dir.path().join("world/disks").join(format!("{}.json", machine.disk))).unwrap();
    assert!(guest.status_change(&status, Span::millis(200)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_another_disk_is_no_news_of_a_quiet_guest() {
    let bench = Bench::in_real_time();
    let (guest, status) = quiet_guest(&bench, &machine("blog", 1)).await;
    bench.launch(&machine("shop", 1)).await;
    assert_eq!(guest.status_change(&status, Span::millis(60)).await.unwrap(), None);
}

#[tokio::test]
async fn ports_answer_http_until_the_vm_ends() {
    let bench = Bench::in_real_time();
    let machine = machine("blog", 1);
    bench.launch(&machine).await;
    let guest = bench.guest(&machine).await;
    assert!(guest.open_port(3000).await.is_err(), "nothing listens yet");
    guest.apply(&web(), true, RestartScope::All).await.unwrap();
    let mut stream = guest.open_port(3000).await.unwrap();
    let body = format!("sim blog {}\n", machine.nonce);
    for request in ["GET / HTTP/1.1\r\nhost: a\r\n\r\n", "POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc"] {
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        while !answer.ends_with(&body) {
            let mut chunk = [0; 512];
            let length = stream.read(&mut chunk).await.unwrap();
            assert_ne!(length, 0, "{answer:?}");
            answer.push_str(std::str::from_utf8(&chunk[..length]).unwrap());
        }
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"));
    }
    bench.driver.kill(&machine.sandbox).await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn ten_thousand_vms_are_listed_observed_and_waited_for() {
    const COUNT: usize = 10_000;
    let bench = Bench::in_real_time();
    let machines: Vec<_> = (0..COUNT).map(|index| machine(&format!("app-{index}"), 1)).collect();
    for machine in &machines {
        bench.launch(machine).await;
    }
    assert_eq!(bench.driver.list().await.unwrap().len(), COUNT);

    let driver = &bench.driver;
    let waits =
        stream::iter(machines.iter().map(|m| driver.exited(&m.sandbox, &m.nonce))).buffer_unordered(COUNT).count();
    let outside = World::open(bench.dir.path());
    let kills = async {
        for machine in &machines {
            assert!(matches!(driver.observe(&machine.sandbox).await.unwrap(), VmState::Running { .. }));
            outside.kill(&machine.sandbox, ExitReason::Reset).unwrap();
        }
    };
    let (ended, ()) = tokio::join!(waits, kills);
    assert_eq!((ended, bench.world().running().unwrap().len()), (COUNT, 0));
}

/// Puts a microVM to rest as a daemon does.
async fn pause(bench: &Bench, machine: &Machine, cancel: &CancellationToken) -> Paused {
    let agent = bench.guest(machine).await;
    let snapshot = SnapshotId("0".repeat(32));
    let (sandbox, nonce) = (&machine.sandbox, &machine.nonce);
    bench.driver.pause(Pause { sandbox, nonce, snapshot: &snapshot, agent: &*agent, cancel }).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_counter_stands_still_at_rest_and_goes_on_after_it() {
    let bench = Bench::new("");
    let (first, second) = (machine("blog", 1), machine("blog", 2));
    bench.launch(&first).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(matches!(pause(&bench, &first, &CancellationToken::new()).await, Paused::Saved { .. }));
    let state = bench.driver.observe(&first.sandbox).await.unwrap();
    assert!(matches!(&state, VmState::Paused { nonce, fault: None, .. } if *nonce == first.nonce), "{state:?}");
    bench.driver.exited(&first.sandbox, &first.nonce).await;
    tokio::time::sleep(Duration::from_secs(100)).await;

    bench.driver.resume(&second).await.unwrap();
    bench.driver.resume(&second).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let vm = bench.world().vm(&first.sandbox).unwrap().unwrap();
    assert_eq!((vm.counter_at(bench.world().now()), vm.launches), (7000, 1));
    assert_eq!(bench.guest(&second).await.status().await.unwrap().nonce, second.nonce);
    assert!(bench.world().violations().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_boot_from_the_disk_begins_the_counter_anew() {
    let bench = Bench::new("");
    bench.launch(&machine("blog", 1)).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    pause(&bench, &machine("blog", 1), &CancellationToken::new()).await;
    bench.driver.launch(&machine("blog", 2)).await.unwrap();
    let vm = bench.world().vm(&machine("blog", 1).sandbox).unwrap().unwrap();
    assert_eq!((vm.counter_at(bench.world().now()), vm.rest), (0, None));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_pause_leaves_the_microvm_running() {
    let bench = Bench::new("latency = { pause = \"10s\" }");
    let machine = machine("blog", 1);
    bench.launch(&machine).await;
    let cancel = CancellationToken::new();
    let request = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        cancel.cancel();
    };
    let ((paused, ()), took) = timed(async { tokio::join!(pause(&bench, &machine, &cancel), request) }).await;
    assert_eq!((paused, took.as_secs()), (Paused::Cancelled, 1));
    assert!(matches!(bench.driver.observe(&machine.sandbox).await.unwrap(), VmState::Running { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_failed_resume_leaves_the_microvm_at_rest_and_says_why() {
    let bench = Bench::new("[[fault]]\noperation = \"resume\"\nnth = 1");
    bench.launch(&machine("blog", 1)).await;
    pause(&bench, &machine("blog", 1), &CancellationToken::new()).await;
    bench.driver.resume(&machine("blog", 2)).await.unwrap_err();
    let state = bench.driver.observe(&machine("blog", 1).sandbox).await.unwrap();
    assert!(matches!(state, VmState::Paused { fault: Some(_), .. }), "{state:?}");
    bench.driver.resume(&machine("blog", 2)).await.unwrap();
    assert!(matches!(bench.driver.observe(&machine("blog", 1).sandbox).await.unwrap(), VmState::Running { .. }));
}

/// Keeps the disk of a microVM as a daemon does.
async fn keep_disk(bench: &Bench, machine: &Machine, snapshot: &SnapshotId, agent: Option<&dyn Guest>) -> bool {
    let (sandbox, disk, moment) = (&machine.sandbox, &machine.disk, &there(machine));
    bench.driver.keep_disk(KeepDisk { sandbox, disk, snapshot, agent, moment }).await.is_ok()
}

/// What a daemon would know of a microVM.
fn there(machine: &Machine) -> Moment {
    let (sandbox, machine) = (machine.sandbox.clone(), machine.clone());
    Moment { sandbox, machine, disk: ByteSize::gib(2), revision: None, tree: None }
}

#[tokio::test(start_paused = true)]
async fn a_moment_that_is_kept_is_told_as_it_was_whatever_there_is_now() {
    let bench = Bench::new("");
    let (first, second, snapshot) = (machine("blog", 1), machine("blog", 2), SnapshotId("5e1f".into()));
    bench.launch(&first).await;
    let guest = bench.guest(&first).await;
    let (sandbox, then, now) = (&first.sandbox, &there(&first), &there(&second));
    let take = Take { sandbox, snapshot: &snapshot, agent: Some(&*guest), moment: then };
    let taken = bench.driver.take_snapshot(take).await.unwrap();
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert_eq!(bench.driver.take_snapshot(Take { moment: now, ..take }).await.unwrap(), taken);
    assert_eq!(taken.moment, *then);
}

#[tokio::test(start_paused = true)]
async fn the_memory_of_what_rests_is_kept_as_it_rests_and_others_go_on_from_it() {
    let bench = Bench::new("");
    let (source, fork, snapshot) = (machine("blog", 1), machine("fork", 2), SnapshotId("5e1f".into()));
    bench.launch(&source).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    pause(&bench, &source, &CancellationToken::new()).await;
    let rested = bench.world().vm(&source.sandbox).unwrap().unwrap();
    let count = rested.counter_at(bench.world().now());
    tokio::time::sleep(Duration::from_secs(60)).await;
    let take = Take { sandbox: &source.sandbox, snapshot: &snapshot, agent: None, moment: &there(&source) };
    bench.driver.take_snapshot(take).await.unwrap();
    assert_eq!(bench.world().vm(&source.sandbox).unwrap(), Some(rested), "it rests as it did");
    bench.driver.launch_from(&fork, &snapshot).await.unwrap();
    let forked = bench.world().vm(&fork.sandbox).unwrap().unwrap();
    assert_eq!((forked.counter_at(bench.world().now()), &forked.rest), (count, &None));
    bench.driver.resume(&machine("blog", 3)).await.unwrap();
    let take = Take { snapshot: &SnapshotId("07e4".into()), ..take };
    bench.driver.take_snapshot(take).await.unwrap_err();
    assert_eq!(bench.world().violations().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_disk_alone_is_kept_and_what_begins_with_a_copy_leaves_directories_out_once() {
    let bench = Bench::new("");
    let (source, fork, snapshot) = (machine("blog", 1), machine("fork", 2), SnapshotId("5e1f".into()));
    bench.launch(&source).await;
    let guest = bench.guest(&source).await;
    sync(&guest, "t1", vec![file("out/page.html", "1"), file("keep.js", "1")], &[]).await;
    assert!(keep_disk(&bench, &source, &snapshot, Some(&*guest)).await);
    sync(&guest, "t2", Vec::new(), &["keep.js"]).await;
    assert!(keep_disk(&bench, &source, &snapshot, None).await, "what is kept is kept");
    assert_eq!(bench.driver.list_snapshots().await.unwrap(), [(snapshot.clone(), ByteSize::mib(1))]);
    bench.driver.launch_from(&fork, &snapshot).await.unwrap_err();

    for size in [2, 4] {
        bench.driver.ensure_disk_from(&fork.disk, &snapshot, ByteSize::gib(size)).await.unwrap();
        assert_eq!(bench.driver.disk_size(&fork.disk).await.unwrap(), Some(ByteSize::gib(2)));
    }
    bench.driver.launch(&fork).await.unwrap();
    let forked = bench.guest(&fork).await;
    assert_eq!(forked.status().await.unwrap().tree, Some(TreeDigest("t1".into())));
    assert_eq!(forked.left_out().await.unwrap(), None);
    forked.leave_out(&snapshot, &["out".to_owned()]).await.unwrap();
    assert_eq!(forked.left_out().await.unwrap(), Some(snapshot.clone()));
    let manifest = forked.manifest().await.unwrap();
    assert_eq!((manifest.tree, manifest.files.len()), (None, 1));
    sync(&forked, "t1", vec![file("out/page.html", "1")], &[]).await;
    forked.apply(&web(), false, RestartScope::All).await.unwrap();
    forked.leave_out(&snapshot, &["out".to_owned()]).await.unwrap();
    assert_eq!(forked.manifest().await.unwrap().files.len(), 2);
    forked.leave_out(&SnapshotId("07e4".into()), &["out".to_owned()]).await.unwrap_err();
    assert!(bench.world().violations().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_disk_is_kept_of_what_rests_or_has_ended_and_not_of_what_runs_on() {
    let bench = Bench::new("");
    let machine = machine("blog", 1);
    bench.launch(&machine).await;
    assert!(!keep_disk(&bench, &machine, &SnapshotId("1".into()), None).await);
    pause(&bench, &machine, &CancellationToken::new()).await;
    assert!(keep_disk(&bench, &machine, &SnapshotId("2".into()), None).await);
    bench.driver.kill(&machine.sandbox).await.unwrap();
    bench.driver.remove(&machine.sandbox).await.unwrap();
    assert!(keep_disk(&bench, &machine, &SnapshotId("3".into()), None).await);
    assert_eq!(bench.driver.list_snapshots().await.unwrap().len(), 2);
    assert_eq!(bench.world().violations().unwrap().len(), 1);
}
