//! Killed at random moments, again and again, while a change of fifty apps after the other is carried out.

use std::time::Duration;

use crate::declare::{App, ROOMY, write_template};
use crate::host::Host;
use crate::left::{Left, assert_same};

/// The longest time from a daemon's start, or from a commit, to its end.
const LONGEST: u64 = 300;
/// A change that so many daemons did not finish is overtaken by the next one.
const OVERTAKEN_AFTER: u32 = 12;
/// The number of the last change, in which every app differs from every change before it.
const LAST: u64 = 1000;
/// Guests that take a little, so that many kills fall between two steps.
const SCRIPT: &str = "[latency]\nboot = \"15ms\"\nready = \"5ms\"\nshutdown = \"3ms\"\nlaunch = \"2ms\"\nsync = \"2ms\"\napply = \"1ms\"\njitter_percent = 100\n";

#[test]
fn a_hundred_kills_in_a_change_of_fifty_apps_leave_what_a_clean_run_leaves() {
    end_as_a_clean_run(100, 1);
}

#[test]
fn a_hundred_other_kills_in_a_change_of_fifty_apps_leave_what_a_clean_run_leaves() {
    end_as_a_clean_run(100, 2);
}

fn end_as_a_clean_run(kills: u64, seed: u64) {
    let clean = {
        let mut host = new_host();
        finish(&mut host, LAST)
    };
    let mut host = new_host();
    let (mut random, mut change, mut patience) = (Random(seed), 1, OVERTAKEN_AFTER);
    declare(&host, change);
    for _ in 0..kills {
        let time = Duration::from_millis(random.below(LONGEST));
        if random.below(2) == 0 {
            host.run_for(time, &[]);
            continue;
        }
        host.spawn(&[]);
        // Without a change under way there is nothing to cut.
        patience -= 1;
        if patience == 0 || is_done(&host) {
            patience = OVERTAKEN_AFTER;
            change += 1;
            declare(&host, change);
        }
        std::thread::sleep(time);
        host.kill_daemon();
    }
    let left = finish(&mut host, LAST);
    assert!(left.cut_steps() > 5, "too few kills fell into steps: {}", left.cut_steps());
    assert_same(&left.state(), &clean.state(), &format!("seed {seed}, after {change} changes\n{}", host.log()));
}

/// A host with the apps as they are at first.
fn new_host() -> Host {
    let mut host = Host::sim();
    host.configure(&format!("{ROOMY}[converge]\nconcurrency = 16\n"));
    host.world().set_script(SCRIPT).unwrap();
    write_template(&host);
    finish(&mut host, 0);
    host
}

fn is_done(host: &Host) -> bool {
    let head = host.git(&["rev-parse", "HEAD"]);
    let status = host.api_answer("/v1/status").filter(|answer| answer.status == 200);
    status.is_some_and(|answer| answer.body.contains(&format!("\"lastApplied\":\"{head}\"")))
}

/// Declares a change, lets a daemon converge, and looks at what it leaves.
fn finish(host: &mut Host, change: u64) -> Left {
    declare(host, change);
    host.start();
    host.wait_converged();
    let plan = host.api("/v1/plan");
    assert_eq!(plan["actions"].as_array().map(Vec::len), Some(0), "{plan:#}");
    assert_eq!(host.stop_daemon(), Some(0));
    let left = Left::on(host);
    assert_eq!(left.faults(), Vec::<String>::new(), "{}", host.log());
    left
}

/// Fifty apps, each of which differs from the change before in its own way.
fn declare(host: &Host, change: u64) {
    let odd = change % 2 == 1;
    if host.repo().join("apps").exists() {
        std::fs::remove_dir_all(host.repo().join("apps")).unwrap();
    }
    for number in 0..50_u64 {
        let mut app = App::new(format!("app{number}"));
        let kind = number % 10;
        match kind {
            0 | 1 => app.page = format!("page {change}"),
            2 => app.setting = format!("setting {change}"),
            3 => app.memory = format!("{}Mi", 128 + 16 * (change % 7)),
            4 => app.template = if odd { "other" } else { "minimal" },
            5 => app.disk = format!("{}Mi", 64 + change),
            // Always smaller: a growth that was cut and then taken back leaves the larger disk, whatever else happens.
            6 => app.disk = format!("{}Mi", 2 * LAST - change),
            7 => app.power = if odd { "stopped" } else { "running" },
            8 | 9 => {}
            _ => unreachable!("a last digit"),
        }
        if kind == 2 {
            app.depends_on = vec![format!("app{}", number - 1)];
        }
        if kind == 9 {
            app.uid = Some(format!("uid-{number}"));
            app.name = format!("app{number}-{}", change % 3);
        }
        if kind != 8 || odd {
            app.write(host);
        }
    }
    host.commit(&format!("change {change}"));
}

/// SplitMix64: the same seed gives the same moments.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}
