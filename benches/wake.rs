//! Apps that wake and apps that are new, in real microVMs under the real daemon: `cargo bench --bench wake`.
//!
//! A wake is timed from a request to a sleeping app to the app's own answer to it. A new app is timed from its commit, which is there
//! when the branch has moved, to the first answer with its page; its kind of machine has a warm template.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot be made ends there")]

#[path = "support/figures.rs"]
mod figures;
#[path = "../tests/support/host.rs"]
mod host;

use std::fs;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use figures::{Millis, Samples, Table};
use host::{Host, PATIENCE};

const SLEEPS: usize = 30;
const NEW_APPS: usize = 15;
/// From a commit to a served new app, at the median.
const SERVED: Duration = Duration::from_secs(1);
/// Between two requests for a page that is not there yet.
const LOOK: Duration = Duration::from_millis(5);

fn main() -> ExitCode {
    let mut host = Host::real();
    host.configure("[vmm]\nwarm_templates = true\n");
    host.write_app("blog", "", "first");
    host.commit("an app");
    host.start();
    host.wait_served("blog", "first");
    let warm = |host: &Host| !host::find(&host.state().join("vmm/warm"), "saved.json").is_empty();
    host.wait_for("the warm template", |host| warm(host).then_some(()));
    host.wait_converged();

    let wakes: Samples = (0..SLEEPS).map(|_| wake(&host)).collect();
    let served: Samples = (0..NEW_APPS).map(|which| commit_to_served(&host, which)).collect();

    let title = "Waking and beginning under the daemon, 128 MiB (software emulation)";
    let mut table = Table::new("wake", title, &["", "times", "p50", "p95", "bound of p50"]);
    row(&mut table, "request to a sleeping app → its answer", &wakes, &"–");
    row(&mut table, "commit of a new app → its page, warm template", &served, &Millis(SERVED));
    table.print();
    if served.median() > SERVED {
        eprintln!(
            "beyond its bound: a new app is served {} after its commit, not {}",
            Millis(served.median()),
            Millis(SERVED)
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn row(table: &mut Table, what: &str, samples: &Samples, bound: &dyn std::fmt::Display) {
    table.row(&[&what, &samples.count(), &Millis(samples.median()), &Millis(samples.percentile(95)), bound]);
}

/// One sleep, and how long the request takes that ends it.
fn wake(host: &Host) -> Duration {
    let paused = host.run(&["pause", "blog"]);
    assert!(paused.status.success(), "{}", String::from_utf8_lossy(&paused.stderr));
    host.wait_for("its sleep", |host| (host.app("blog")["phase"] == "paused").then_some(()));
    let begun = Instant::now();
    let answer = host.fetch("blog.localhost", "/").unwrap();
    let took = begun.elapsed();
    assert_eq!((answer.status, answer.body.trim()), (200, "first"));
    host.wait_for("it to be ready", |host| (host.app("blog")["phase"] == "ready").then_some(()));
    took
}

/// One new app, which goes again once it was served.
fn commit_to_served(host: &Host, which: usize) -> Duration {
    let (name, page) = (format!("new-{which}"), format!("page {which}"));
    host.write_app(&name, "", &page);
    host.commit("a new app");
    let committed =
        fs::metadata(host.repo().join(".git/refs/heads/main")).and_then(|branch| branch.modified()).unwrap();
    let took = first_answer(host, &name, &page, committed);
    host.remove(&format!("apps/{name}"));
    host.commit("without it");
    host.wait_converged();
    took
}

fn first_answer(host: &Host, name: &str, page: &str, since: SystemTime) -> Duration {
    let address = format!("{name}.localhost");
    loop {
        if host.fetch(&address, "/").is_some_and(|answer| answer.status == 200 && answer.body.contains(page)) {
            return since.elapsed().unwrap();
        }
        let waited = since.elapsed().unwrap();
        assert!(waited < PATIENCE, "{name} was not served in {waited:?}\n{}", host.log());
        sleep(LOOK);
    }
}
