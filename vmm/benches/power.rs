//! Beginning from a warm template, resting, going on and live forks: `cargo bench -p setpoint-vmm --bench power`.
//!
//! The floor is a script that does nothing but speak to QEMU (`power/by-hand.py`): a busybox guest that is cloned, captured and
//! restored, with no agent, no limits, no checksums and nothing on the disk. It runs first, on the same machine and kernel. `begin`,
//! `rest` or `fork` behind the command measures that alone.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot be made ends there")]

#[path = "../../benches/support/figures.rs"]
mod figures;
#[path = "../tests/qemu/host.rs"]
#[expect(dead_code, reason = "tests use the rest")]
mod host;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use setpoint_schema::id::{BootNonce, DiskId, SandboxId, SnapshotId};
use setpoint_schema::observed::{Machine, Moment};
use setpoint_vmm::driver::{Driver as _, Guest, Pause, Paused, Take};
use tokio_util::sync::CancellationToken;

use figures::{Millis, Samples, Table, ratio};
use host::{DISK, Host, machine};

const COLD: usize = 3;
const ROUNDS: usize = 7;

/// A restore up to loaded devices may take so many times what the script takes.
const RESTORE: f64 = 1.2;
/// A boot takes at least so many times what beginning from a warm template takes.
const WARM: f64 = 10.0;
/// A live fork of a source that has written about 600 pages stops it for no longer.
const STOPPED: Duration = Duration::from_millis(5);

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let missed = runtime.block_on(measure());
    assert!(missed.is_empty(), "beyond their bounds: {}", missed.join("; "));
}

async fn measure() -> Vec<String> {
    let host = Host::with_real_agent().await;
    let floor = ByHand::run(&host);
    let mut missed = Vec::new();
    let named: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let is_wanted = |part: &str| named.is_empty() || named.iter().any(|name| name == part);
    if is_wanted("begin") {
        beginnings(&host, &floor, &mut missed).await;
    }
    if is_wanted("fork") {
        forks(&host, &floor, &mut missed).await;
    }
    if is_wanted("rest") {
        rests(&host).await;
    }
    missed
}

/// What the script measured.
struct ByHand(serde_json::Value);

impl ByHand {
    fn run(host: &Host) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/power/by-hand.py");
        let output = Command::new("python3").arg(script).arg(host.kernel()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self(serde_json::from_slice(&output.stdout).unwrap())
    }

    fn seconds(&self, pointer: &str) -> Duration {
        Duration::from_secs_f64(self.0.pointer(pointer).and_then(serde_json::Value::as_f64).unwrap())
    }

    /// The median of its restores, which are one of the template and four of the fork.
    fn loaded(&self) -> Duration {
        let clones = (0..4).map(|clone| format!("/clones/{clone}/to_loaded_s"));
        clones.chain(["/restore/to_loaded_s".to_owned()]).map(|at| self.seconds(&at)).collect::<Samples>().median()
    }
}

/// The `number`th machine, with a sandbox and a disk of its own.
async fn fresh(host: &Host, number: u32, memory_mib: u64) -> Machine {
    let name = format!("bench-{number:08x}");
    let nonce = BootNonce(format!("{:032x}", 0x1000 * number).into());
    let machine = Machine {
        sandbox: SandboxId(name.as_str().into()),
        disk: DiskId(name.into()),
        memory_mib,
        ..machine(nonce.as_str())
    };
    host.driver.ensure_disk(&machine.disk, DISK, None).await.unwrap();
    machine
}

/// The same sandbox's next boot.
fn next(machine: &Machine) -> Machine {
    let number = u128::from_str_radix(machine.nonce.as_str(), 16).unwrap() + 1;
    Machine { nonce: BootNonce(format!("{number:032x}").into()), ..machine.clone() }
}

fn snapshot(machine: &Machine) -> SnapshotId {
    SnapshotId(machine.nonce.as_str().to_owned())
}

async fn agent(host: &Host, machine: &Machine) -> Arc<dyn Guest> {
    loop {
        if let Ok(agent) = host.driver.guest(&machine.sandbox, &machine.nonce).await {
            return agent;
        }
    }
}

async fn end(host: &Host, machine: &Machine) {
    host.driver.kill(&machine.sandbox).await.unwrap();
    host.driver.remove(&machine.sandbox).await.unwrap();
    host.driver.delete_disk(&machine.disk).await.unwrap();
}

async fn shell(agent: &dyn Guest, command: &str) {
    let output = agent.exec(["sh", "-c", command].map(str::to_owned).to_vec()).await.unwrap();
    assert_eq!(output.code, 0, "{}", String::from_utf8_lossy(&output.stderr));
}

/// From the launch to the agent's answer, once; and what of it passed until the devices were loaded, where they were.
async fn begin(host: &Host, number: u32) -> (Duration, Option<Duration>) {
    let machine = fresh(host, number, 256).await;
    let started = Instant::now();
    host.driver.launch(&machine).await.unwrap();
    drop(agent(host, &machine).await);
    let took = started.elapsed();
    let loaded = host.driver.last_load();
    end(host, &machine).await;
    (took, loaded)
}

async fn beginnings(host: &Host, floor: &ByHand, missed: &mut Vec<String>) {
    let mut cold = Samples::default();
    for number in 0..COLD {
        cold.push(begin(host, number as u32).await.0);
    }
    host.driver.prewarm(&fresh(host, 99, 256).await).await.unwrap();
    let (mut warm, mut loaded) = (Samples::default(), Samples::default());
    for number in 0..ROUNDS {
        let (took, until_loaded) = begin(host, 100 + number as u32).await;
        warm.push(took);
        loaded.push(until_loaded.unwrap());
    }
    let title = format!("Beginning, 256 MiB, medians of {COLD} boots and {ROUNDS} clones");
    let mut table = Table::new("power-begin", title, &["", "setpoint", "by hand", "ratio"]);
    let by_hand = floor.loaded();
    let against = ratio(loaded.median(), by_hand);
    table.row(&[&"cold boot → agent", &Millis(cold.median()), &Millis(floor.seconds("/cold_boot_s")), &""]);
    table.row(&[&"warm template → loaded", &Millis(loaded.median()), &Millis(by_hand), &format_args!("{against:.2}")]);
    table.row(&[&"warm template → agent, own identity, disk mounted", &Millis(warm.median()), &"", &""]);
    let faster = ratio(cold.median(), warm.median());
    table.row(&[&"cold boot is so many times that", &format_args!("{faster:.1}"), &"", &""]);
    table.print();
    if against > RESTORE {
        missed.push(format!("a restore takes {against:.2} times the script's, more than {RESTORE}"));
    }
    if faster < WARM {
        missed.push(format!("a boot takes {faster:.1} times a warm beginning, less than {WARM}"));
    }
}

/// Pauses and resumes for some sizes of memory and of what was written.
async fn rests(host: &Host) {
    let title = "Pause and resume, medians of 3";
    let mut table = Table::new("power-rest", title, &["memory", "written by the app", "pause", "resume → agent"]);
    let mut number = 200;
    // What an app writes in memory may take half of it.
    for (memory_mib, most) in [(128, 30), (256, 100), (512, 100)] {
        for written in [1, 10, most] {
            number += 1;
            let (paused, resumed) = rest(host, number, memory_mib, written).await;
            table.row(&[
                &format_args!("{memory_mib} MiB"),
                &format_args!("{written} MB"),
                &Millis(paused.median()),
                &Millis(resumed.median()),
            ]);
        }
    }
    table.print();
}

async fn rest(host: &Host, number: u32, memory_mib: u64, written: usize) -> (Samples, Samples) {
    let mut machine = fresh(host, number, memory_mib).await;
    host.driver.prewarm(&machine).await.unwrap();
    host.driver.launch(&machine).await.unwrap();
    let (mut paused, mut resumed) = (Samples::default(), Samples::default());
    for _ in 0..3 {
        let agent = agent(host, &machine).await;
        shell(&*agent, &format!("head -c {written}000000 /dev/urandom > /tmp/written")).await;
        let (sandbox, nonce, snapshot) = (&machine.sandbox, &machine.nonce, &snapshot(&machine));
        let cancel = CancellationToken::new();
        let started = Instant::now();
        let pause = Pause { sandbox, nonce, snapshot, agent: &*agent, cancel: &cancel };
        assert!(matches!(host.driver.pause(pause).await.unwrap(), Paused::Saved { .. }));
        paused.push(started.elapsed());
        drop(agent);
        machine = next(&machine);
        let started = Instant::now();
        host.driver.resume(&machine).await.unwrap();
        drop(self::agent(host, &machine).await);
        resumed.push(started.elapsed());
    }
    end(host, &machine).await;
    (paused, resumed)
}

async fn forks(host: &Host, floor: &ByHand, missed: &mut Vec<String>) {
    let machine = fresh(host, 300, 256).await;
    host.driver.prewarm(&machine).await.unwrap();
    host.driver.launch(&machine).await.unwrap();
    let agent = agent(host, &machine).await;
    let (mut stopped, mut written) = (Samples::default(), 0);
    for round in 0..ROUNDS {
        let snapshot = SnapshotId(format!("{:032x}", 0xf0_0000 + round));
        let sandbox = &machine.sandbox;
        let moment =
            Moment { sandbox: sandbox.clone(), machine: machine.clone(), disk: DISK, revision: None, tree: None };
        let take = Take { sandbox, snapshot: &snapshot, agent: Some(&*agent), moment: &moment };
        let taken = host.driver.take_snapshot(take).await.unwrap();
        stopped.push(taken.stopped);
        written = taken.written.as_bytes() / 4096;
        host.driver.remove_snapshot(&snapshot).await.unwrap();
    }
    drop(agent);
    let title = format!("Live fork, how long the source's processors stand still, median of {ROUNDS}");
    let mut table = Table::new("power-fork", title, &["", "setpoint", "by hand"]);
    let by_hand = floor.seconds("/live_fork/total_s");
    table.row(&[&"written pages", &written, &floor.0["live_fork"]["dirty_pages"]]);
    table.row(&[&"stopped", &Millis(stopped.median()), &Millis(by_hand)]);
    table.print();
    if stopped.median() > by_hand {
        missed.push("a live fork stops its source for longer than the script's".to_owned());
    }
    if stopped.median() > STOPPED {
        missed.push(format!("a live fork stops its source for more than {} ms", STOPPED.as_millis()));
    }
    end(host, &machine).await;
}
