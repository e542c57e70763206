//! From a commit to what is served, with real microVMs: `cargo bench --bench converge`.
//!
//! A cold start is measured from `git commit` to the first HTTP 200 through the ingress. Its floor, taken in turn with it, is
//! the same QEMU command started by hand, by somebody who has the app at hand and does nothing but what the app needs: wait
//! for the agent, send the one file, start the one process, ask for the page. A change of a file is measured from `git commit` to
//! the new content; its floor is `git commit` and one request.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot be made ends there")]

#[path = "converge/by_hand.rs"]
mod by_hand;
#[path = "support/figures.rs"]
mod figures;
#[path = "converge/groups.rs"]
mod groups;
#[path = "../tests/support/host.rs"]
mod host;
#[path = "converge/stages.rs"]
mod stages;

use std::time::{Duration, Instant};

use jiff::Timestamp;

use by_hand::{ByHand, Start};
use figures::{Millis, Samples, Table, ratio};
use host::{Host, PATIENCE};
use stages::Stages;

const COLD_STARTS: usize = 7;
const FILE_CHANGES: usize = 20;

/// Between two looks through the ingress, which tells nobody when it changes.
const LOOK: Duration = Duration::from_millis(4);
const BOOT_LOOK: Duration = Duration::from_millis(25);

/// The most that Setpoint may add to what QEMU and the guest take.
const ALLOWED: f64 = 1.15;

fn main() {
    let mut host = Host::real();
    host.write("setpoint.toml", "[policies]\nallow_empty = true\n");
    host.commit("begin");
    host.start();
    let ratio = cold_starts(&host);
    file_changes(&host);
    drop(host);
    assert!(ratio <= ALLOWED, "a cold start takes {ratio:.2} times what QEMU and the guest take by hand");
}

/// Measures and prints; what a cold start takes, by hand being 1.
fn cold_starts(host: &Host) -> f64 {
    let first = cold_start(host, "first");
    // The command to repeat by hand is the one that the first microVM runs with.
    let by_hand = ByHand::like(host);
    remove(host, "first");
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for n in 0..COLD_STARTS {
        let app = format!("app-{n}");
        ours.push(cold_start(host, &app));
        remove(host, &app);
        floor.push(by_hand.start());
    }
    print_cold_starts(&first, &ours, &floor)
}

fn print_cold_starts(first: &Stages, ours: &[Stages], floor: &[Start]) -> f64 {
    let samples = |of: fn(&Stages) -> Duration| ours.iter().map(of).collect::<Samples>();
    let floor_samples = |of: fn(&Start) -> Duration| floor.iter().map(of).collect::<Samples>();
    let median = |of: fn(&Stages) -> Duration| samples(of).median();
    let floor_median = |of: fn(&Start) -> Duration| floor_samples(of).median();
    let title = format!("Cold start of one app, median of {COLD_STARTS}");
    let mut table = Table::new("cold-start", title, &["", "setpoint", "by hand", "ratio"]);
    let alone = |table: &mut Table, name: &str, of: fn(&Stages) -> Duration| {
        table.row(&[&name, &Millis(median(of)), &"", &""]);
    };
    let beside = |table: &mut Table, name: &str, ours: Duration, floor: Duration| {
        table.row(&[&name, &Millis(ours), &Millis(floor), &format_args!("{:.2}", ratio(ours, floor))]);
    };
    alone(&mut table, "`git commit` begins → commit noticed", |stages| stages.noticed);
    alone(&mut table, "→ first step begins", |stages| stages.planned);
    alone(&mut table, "→ QEMU started (disk made)", |stages| stages.launched);
    beside(&mut table, "QEMU started → agent answers", median(|s| s.agent), floor_median(|s| s.agent));
    alone(&mut table, "→ files in place", |stages| stages.synced);
    alone(&mut table, "→ processes accepted", |stages| stages.applied);
    alone(&mut table, "→ HTTP 200 through the ingress", |stages| stages.served);
    beside(&mut table, "agent answers → HTTP 200", median(Stages::agent_to_served), floor_median(|s| s.served));
    let (whole, by_hand) = (median(Stages::whole), floor_median(Start::whole));
    beside(&mut table, "`git commit` → HTTP 200, by hand QEMU → HTTP 200", whole, by_hand);
    beside(&mut table, "QEMU's processor time for that", median(|s| s.processor), floor_median(|s| s.processor));
    table.print();
    let between = |(least, most)| format!("{} to {}", Millis(least), Millis(most));
    let (range, floor_range) = (samples(Stages::whole).range(), floor_samples(Start::whole).range());
    println!("  (setpoint {}, by hand {})", between(range), between(floor_range));
    println!("  (the first one of a daemon, which makes the initramfs: {})", Millis(first.whole()));
    ratio(whole, by_hand)
}

/// Commits an app and waits for its page.
fn cold_start(host: &Host, app: &str) -> Stages {
    let page = format!("page of {app}");
    host.write_app(app, "", &page);
    host.git(&["add", "--all"]);
    let begun = Timestamp::now();
    host.git(&["commit", "--quiet", "-m", app]);
    await_page(host, app, &page);
    Stages::of(host, app, begun, Timestamp::now())
}

fn remove(host: &Host, app: &str) {
    host.remove(&format!("apps/{app}"));
    host.commit("remove");
    host.wait_for("the microVM to be gone", |host| host.vmm_pids().is_empty().then_some(()));
    host.wait_converged();
}

fn file_changes(host: &Host) {
    cold_start(host, "blog");
    let (mut changes, mut settled) = (Samples::default(), Samples::default());
    let (mut commits, mut requests) = (Samples::default(), Samples::default());
    for n in 0..FILE_CHANGES {
        host.wait_converged();
        requests.push(timed(|| await_page(host, "blog", "")));
        let page = format!("edition {n}");
        host.write("apps/blog/index.html", &page);
        host.git(&["add", "--all"]);
        let begun = Instant::now();
        host.git(&["commit", "--quiet", "-m", "edit"]);
        commits.push(begun.elapsed());
        await_page(host, "blog", &page);
        changes.push(begun.elapsed());
        await_ready(host, "blog");
        settled.push(begun.elapsed());
    }
    remove(host, "blog");
    let title = format!("`git commit` → new content through the ingress, {} changes of a file", changes.count());
    let mut table = Table::new("file-change", title, &["", "time"]);
    table.row(&[&"median", &Millis(changes.median())]);
    table.row(&[&"95th percentile", &Millis(changes.percentile(95))]);
    table.row(&[&"until the web process has been restarted and is ready, median", &Millis(settled.median())]);
    let floor = commits.median() + requests.median();
    table.row(&[&"floor: `git commit` itself and one request through the ingress", &Millis(floor)]);
    table.print();
}

/// Waits until the ingress serves a page with `text` in it. While the answer is that the microVM boots, it looks less often: what
/// looks take from the host would be missing in the guest.
fn await_page(host: &Host, app: &str, text: &str) {
    let name = format!("{app}.localhost");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = host.fetch(&name, "/");
        if answer.as_ref().is_some_and(|answer| answer.status == 200 && answer.body.contains(text)) {
            return;
        }
        assert!(Instant::now() < deadline, "{app} never serves {text:?}\n{}", host.log());
        let boots = answer.is_some_and(|answer| answer.body.contains("booting") || answer.status == 404);
        std::thread::sleep(if boots { BOOT_LOOK } else { LOOK });
    }
}

fn await_ready(host: &Host, app: &str) {
    let deadline = Instant::now() + PATIENCE;
    let commit = host.git(&["rev-parse", "HEAD"]);
    loop {
        let state = host.app(app);
        if state["ready"] == true && state["lastAppliedRevision"] == commit.as_str() {
            return;
        }
        assert!(Instant::now() < deadline, "{app} is never ready: {state}");
        std::thread::sleep(LOOK);
    }
}

fn timed(work: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    work();
    begun.elapsed()
}
