//! A daemon at scale, with scripted microVMs: `cargo bench --bench scale`.
//!
//! First, from a commit that declares many new apps to all of them ready, twenty at a time, each booting for 50 ms. The floor is
//! the schedule itself: what the boots alone take if each begins as soon as one before it ends. Then a daemon that has ten
//! thousand apps and nothing to do: what it keeps in memory, what it uses of a processor, and how fast its API is, beside an
//! axum handler that does nothing but return the same bytes. SCALE names one part alone: commits, idle or polls.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot be made ends there")]

#[path = "support/figures.rs"]
mod figures;
#[path = "../tests/support/host.rs"]
mod host;
#[path = "scale/polls.rs"]
mod polls;

use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use figures::{Millis, Table, processor_time, ratio};
use host::Host;

/// As in the measurement that Flux publishes: how many apps, and what it says of their time and of its memory.
const COMMITS: [(usize, &str); 3] = [(100, "26 s"), (500, "2 m 0 s"), (1000, "4 m 13 s")];
const CONCURRENCY: u32 = 20;
const BOOT: Duration = Duration::from_millis(50);
const MANY: usize = 10_000;
/// How long a daemon with nothing to do is watched: processor time is counted in hundredths of a second.
const IDLE: Duration = Duration::from_secs(60);
/// A quiet guest is asked less and less often; by now, as seldom as it will be.
const SETTLE: Duration = Duration::from_secs(45);

/// So much later the daemon is done with what it has heard of before. It is not idle for long: its memory is as it was.
const CALM: Duration = Duration::from_millis(50);

/// How much of its floor a commit may take at most.
const COMMIT: f64 = 1.2;
/// Bytes that the daemon may keep in memory.
const RESIDENT: u64 = 200_000_000;
/// How much of a core, in hundredths, a daemon with nothing to do may use.
const QUIET: f64 = 1.0;

fn main() {
    let only = std::env::var("SCALE").unwrap_or_default();
    let mut beyond = Vec::new();
    if !matches!(only.as_str(), "idle" | "polls") {
        beyond.extend(commits());
    }
    if only != "commits" {
        beyond.extend(many(&only));
    }
    for bound in &beyond {
        eprintln!("{bound}");
    }
    std::process::exit(i32::from(!beyond.is_empty()));
}

/// Measures and prints; what is beyond its bound.
fn commits() -> Vec<String> {
    let title = format!("A commit of new apps → all ready, {CONCURRENCY} at a time, boots of 50 ms");
    let columns = ["new apps", "time", "floor", "ratio", "processor time", "peak memory", "Flux 2.9, published"];
    let mut table = Table::new("scale-commits", title, &columns);
    let mut beyond = Vec::new();
    for (apps, flux) in COMMITS {
        let (mut host, _world) = host_with("50ms", CONCURRENCY);
        host.start();
        let pid = daemon_of(&host);
        let used = processor_time(pid);
        let commit = declare(&host, apps);
        // Making it was news below the refs, too.
        std::thread::sleep(CALM);
        let mut client = polls::Client::connect(host.api_address());
        let began = Instant::now();
        move_branch(&host, &commit);
        wait_ready(&mut client, apps);
        let took = began.elapsed();
        let floor = BOOT * u32::try_from(apps).unwrap().div_ceil(CONCURRENCY);
        let processor = processor_time(pid) - used;
        let flux = format!("{flux}, 134 to 223 MiB");
        let times = format!("{:.2}", ratio(took, floor));
        if ratio(took, floor) > COMMIT {
            beyond.push(format!("a commit of {apps} apps: {times} of its floor, not {COMMIT}"));
        }
        let peak = format!("{} MiB", memory(pid, "VmHWM") >> 10);
        table.row(&[&apps, &Millis(took), &Millis(floor), &times, &Millis(processor), &peak, &flux]);
    }
    table.print();
    beyond
}

/// Measures and prints; what is beyond its bound.
fn many(only: &str) -> Vec<String> {
    let (mut host, _world) = host_with("0ms", 64);
    host.start();
    let began = Instant::now();
    let commit = declare(&host, MANY);
    move_branch(&host, &commit);
    wait_ready(&mut polls::Client::connect(host.api_address()), MANY);
    println!("{MANY} apps ready after {}", Millis(began.elapsed()));
    let busy = memory(daemon_of(&host), "VmHWM") >> 10;
    // What a daemon keeps is asked of one that has not made the apps itself.
    host.stop_daemon();
    let began = Instant::now();
    host.start();
    wait_ready(&mut polls::Client::connect(host.api_address()), MANY);
    let restart = began.elapsed();
    if only == "polls" {
        return polls::measure(host.api_address());
    }
    std::thread::sleep(SETTLE);
    let pid = daemon_of(&host);
    let used = processor_time(pid);
    std::thread::sleep(IDLE);
    let idle = ratio(processor_time(pid) - used, IDLE) * 100.0;
    let mut table = Table::new("scale-daemon", format!("A daemon with {MANY} apps"), &["", "figure", "bound"]);
    let resident = memory(pid, "VmRSS") << 10;
    let most = format!("{} MiB", RESIDENT >> 20);
    table.row(&[&"resident memory", &format!("{} MiB", resident >> 20), &most]);
    table.row(&[&"peak memory of the daemon that made them", &format!("{busy} MiB"), &""]);
    table.row(&[&"processor with nothing to do", &format!("{idle:.2} % of a core"), &"1 %"]);
    table.row(&[&"start → all known to be ready", &Millis(restart), &""]);
    table.print();
    let mut beyond = polls::measure(host.api_address());
    if resident > RESIDENT {
        beyond.push(format!("{MANY} apps: {} MiB resident, not {most}", resident >> 20));
    }
    if idle > QUIET {
        beyond.push(format!("{MANY} apps: {idle:.2} % of a core with nothing to do, not {QUIET}"));
    }
    beyond
}

/// A host of scripted microVMs with room for all, on an empty repository; and the files of those microVMs, in memory where that can
/// be. What files cost is the file system's: an ext4 without a journal, for one, looks for every new file at all that were deleted
/// within minutes, which was a third of the processor time of a rollout. The state's files stay on the disk.
fn host_with(boot: &str, concurrency: u32) -> (Host, Option<tempfile::TempDir>) {
    let host = Host::sim();
    let world = tempfile::Builder::new().prefix("setpoint-bench-").tempdir_in("/dev/shm").ok();
    if let Some(world) = &world {
        fs::remove_dir_all(host.state().join("vmm")).unwrap();
        std::os::unix::fs::symlink(world.path(), host.state().join("vmm")).unwrap();
    }
    let limits = "[limits]\nmemory = \"64Ti\"\nvcpus = 1000000\ndisk = \"4096Ti\"\nsandboxes = 1000000\n";
    host.configure(&format!("[converge]\nconcurrency = {concurrency}\n\n{limits}"));
    host.world().set_script(&format!("[latency]\nboot = \"{boot}\"\n")).unwrap();
    host.write("setpoint.toml", "[policies]\nallow_empty = true\n");
    host.commit("begin");
    (host, world)
}

/// Makes a commit with this many new apps, which the branch does not lead to yet.
fn declare(host: &Host, apps: usize) -> String {
    let from = host.git(&["rev-parse", "HEAD"]);
    let mut stream = String::from("commit refs/heads/next\ncommitter Ada <ada@example.org> 1700000000 +0000\n");
    writeln!(stream, "{}from {from}", data("declare")).unwrap();
    for n in 0..apps {
        let folder = format!("apps/team-{}/app-{n}", n / 100);
        for (name, text) in
            [("app.yaml", app(n)), ("sandbox.yaml", SANDBOX.to_owned()), ("index.html", format!("<h1>app {n}</h1>\n"))]
        {
            write!(stream, "M 644 inline {folder}/{name}\n{}", data(&text)).unwrap();
        }
    }
    host.git_feed(&["fast-import", "--quiet", "--force"], stream.as_bytes());
    host.git(&["rev-parse", "refs/heads/next"])
}

/// Lets the branch lead to a commit, as git does, by one rename: until then there is no commit for anybody else, and what git takes to
/// make it comes before.
fn move_branch(host: &Host, commit: &str) {
    let branch = host.repo().join(".git/refs/heads/main");
    let lock = branch.with_extension("lock");
    fs::write(&lock, format!("{commit}\n")).unwrap();
    fs::rename(lock, branch).unwrap();
}

fn app(n: usize) -> String {
    format!(
        "apiVersion: setpoint/v1\nkind: App\nmetadata:\n  name: app-{n}\n  labels: {{tier: web, shard: \"{}\"}}\nspec:\n  \
         resources: {{vcpus: 1, memory: 128Mi, disk: 64Mi}}\n  env:\n    GREETING: hello from {n}\n    LOG_LEVEL: info\n",
        n % 16
    )
}

const SANDBOX: &str = "version: 1\nweb:\n  command: exec busybox httpd -f -p 3000\n  health_path: /\n";

fn data(text: &str) -> String {
    format!("data {}\n{text}\n", text.len())
}

/// Waits until this many apps are ready, however long it takes: by long polls, which are answered whenever something has changed.
fn wait_ready(client: &mut polls::Client, apps: usize) {
    let mut tag = None;
    loop {
        let answer = client.get("/v1/status?wait=30s", tag.as_deref());
        if answer.status == 200 {
            let status: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
            if status["apps"]["ready"].as_u64() == Some(apps as u64) {
                return;
            }
            tag = answer.etag;
        }
    }
}

fn daemon_of(host: &Host) -> u32 {
    let text = fs::read(host.state().join("daemon.json")).unwrap();
    let running: serde_json::Value = serde_json::from_slice(&text).unwrap();
    u32::try_from(running["pid"].as_u64().unwrap()).unwrap()
}

/// A figure of a process's memory, in KiB.
fn memory(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}
