//! Killed at every step boundary. A failpoint lies before and after each journal entry of each step, and inside steps that act
//! twice. For each change in a story of changes, each point that it crosses ends the daemon once, and another one finishes its
//! work.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use setpoint_schema::name::AppKey;
use setpoint_schema::observed::DiskState;
use setpoint_state::{Disks, Journal, JournalEvent, Store};

use crate::armed::steps;
use crate::declare::{App, ROOMY, declare_snapshot, write_template};
use crate::host::Host;
use crate::left::{Left, assert_same};

/// Where around a step the daemon can be killed.
const MOMENTS: [&str; 4] = ["before", "begun", "acted", "ended"];

/// SIGABRT.
const ABORTED: i32 = 6;

/// Where the scripted driver can be cut on its way through each step.
pub const SCRIPTED: [(&str, &[&str]); 5] = [
    ("pause", &["pause/freeze", "pause/record", "pause/end"]),
    ("resume", &["resume/commit", "resume/thaw"]),
    ("take-snapshot", &["snapshot/freeze", "snapshot/stop", "snapshot/memory", "snapshot/disk", "snapshot/record"]),
    ("launch-from", &["fork/start", "fork/renew", "fork/commit", "fork/thaw"]),
    ("copy-disk", &["fork/disk"]),
];

/// One change, and what carrying it out takes.
struct Chapter {
    name: &'static str,
    change: fn(&Host),
    /// The steps, separated by spaces.
    steps: &'static str,
    /// Those of them that act twice, on the store and on the world, and can be cut in between.
    in_two: &'static str,
}

/// The story. Each chapter begins where the one before has ended.
const STORY: [Chapter; 20] = [
    Chapter {
        name: "create",
        change: |host| {
            write_template(host);
            for app in [first(), second(), third(), lasting(), kept()] {
                app.write(host);
            }
        },
        steps: "record ensure-template ensure-disk launch await-agent sync-files apply-processes record-applied",
        in_two: "ensure-disk",
    },
    Chapter {
        name: "files",
        change: |host| App { page: "second".into(), ..first() }.write(host),
        steps: "sync-files apply-processes record-applied",
        in_two: "",
    },
    Chapter {
        name: "processes",
        change: |host| seconds().write(host),
        steps: "apply-processes record-applied",
        in_two: "",
    },
    Chapter {
        name: "growth",
        change: |host| App { disk: "128Mi".into(), ..second() }.write(host),
        steps: "ensure-disk grow-disk record-applied",
        in_two: "ensure-disk",
    },
    Chapter {
        name: "reboot",
        change: |host| App { memory: "192Mi".into(), disk: "128Mi".into(), ..second() }.write(host),
        steps: "ensure-template ensure-disk stop record launch await-agent sync-files apply-processes record-applied",
        in_two: "",
    },
    Chapter {
        name: "replacement",
        change: |host| App { template: "other", ..third() }.write(host),
        steps: "ensure-template stop remove-vm record forget ensure-disk launch await-agent sync-files apply-processes \
                record-applied",
        in_two: "",
    },
    Chapter {
        name: "shrinking",
        change: |host| App { memory: "192Mi".into(), ..second() }.write(host),
        steps: "ensure-template stop remove-vm record release-disk forget ensure-disk launch await-agent sync-files \
                apply-processes record-applied",
        in_two: "release-disk ensure-disk",
    },
    Chapter {
        name: "stop",
        change: |host| App { template: "other", power: "stopped", ..third() }.write(host),
        steps: "stop record-applied",
        in_two: "",
    },
    Chapter {
        name: "pause",
        change: |host| App { power: "paused", ..seconds() }.write(host),
        steps: "pause record-applied",
        in_two: "",
    },
    Chapter {
        name: "resume",
        change: |host| seconds().write(host),
        steps: "record resume await-agent record-applied",
        in_two: "",
    },
    Chapter {
        name: "rename",
        change: |host| {
            host.remove("apps/lasting");
            App { name: "renamed".into(), ..lasting() }.write(host);
        },
        steps: "record ensure-disk",
        in_two: "",
    },
    Chapter {
        name: "removal",
        change: |host| host.remove("apps/third"),
        steps: "record remove-vm release-disk forget",
        in_two: "release-disk",
    },
    Chapter {
        name: "retention",
        change: |host| ["apps/renamed", "apps/kept"].iter().for_each(|path| host.remove(path)),
        steps: "record stop remove-vm release-disk forget",
        in_two: "",
    },
    Chapter {
        name: "return",
        change: |host| App { disk: "96Mi".into(), ..kept() }.write(host),
        steps: "record ensure-template ensure-disk launch await-agent grow-disk sync-files apply-processes record-applied",
        in_two: "ensure-disk",
    },
    Chapter {
        name: "expiry",
        change: |host| {
            let store = Store::open(&host.state().join("store")).unwrap();
            for (id, mut disk) in store.all::<Disks>().unwrap() {
                if let DiskState::Retained { until } = &mut disk.state {
                    *until = jiff::Timestamp::UNIX_EPOCH;
                    store.put::<Disks>(&id, &disk).unwrap();
                }
            }
        },
        steps: "release-disk",
        in_two: "release-disk",
    },
    Chapter {
        name: "snapshot",
        change: |host| {
            declare_snapshot(host, "nightly", "of: first, retain: none");
            declare_snapshot(host, "files", "of: second, content: disk, retain: none");
        },
        steps: "record-snapshot take-snapshot",
        in_two: "take-snapshot",
    },
    Chapter {
        name: "fork",
        change: |host| App { extra: "  from: {app: first}\n", ..App::new("draft") }.write(host),
        steps: "record-snapshot take-snapshot record ensure-template launch-from await-agent sync-files apply-processes \
                record-applied remove-snapshot forget-snapshot",
        in_two: "take-snapshot launch-from",
    },
    Chapter {
        name: "copy",
        change: |host| {
            let (disk, extra) = ("160Mi".into(), "  from: {snapshot: files}\n");
            App { disk, extra, ..App::new("copy") }.write(host);
        },
        steps: "record ensure-template copy-disk launch await-agent leave-out grow-disk sync-files apply-processes \
                record-applied",
        in_two: "copy-disk",
    },
    Chapter {
        name: "restore",
        change: |host| App { extra: "  restore: {snapshot: nightly, token: monday}\n", ..seconds() }.write(host),
        steps: "ensure-template record-snapshot take-snapshot stop remove-vm record release-disk forget launch-from \
                await-agent sync-files apply-processes record-restored record-applied",
        in_two: "take-snapshot release-disk launch-from",
    },
    Chapter {
        name: "letting go",
        change: |host| {
            ["apps/nightly", "apps/files"].iter().for_each(|path| host.remove(path));
            // Nor does anything name them any more.
            App { disk: "160Mi".into(), ..App::new("copy") }.write(host);
            seconds().write(host);
        },
        steps: "record-applied record-snapshot remove-snapshot forget-snapshot",
        in_two: "",
    },
];

fn first() -> App {
    App::new("first")
}

/// The first app as it is once it has changed.
fn seconds() -> App {
    App { page: "second".into(), setting: "second".into(), ..first() }
}

fn second() -> App {
    App { depends_on: vec!["first".into()], ..App::new("second") }
}

fn third() -> App {
    App { setting: "third".into(), ..App::new("third") }
}

fn kept() -> App {
    App { retain: "1h", ..App::new("kept") }
}

fn lasting() -> App {
    App { uid: Some("lasting-1".into()), retain: "1h", ..App::new("lasting") }
}

#[test]
fn a_creation_ends_the_same_wherever_it_is_cut() {
    cut_everywhere("create");
}

#[test]
fn a_change_of_files_ends_the_same_wherever_it_is_cut() {
    cut_everywhere("files");
}

#[test]
fn a_change_of_processes_ends_the_same_wherever_it_is_cut() {
    cut_everywhere("processes");
}

#[test]
fn the_growth_of_a_disk_ends_the_same_wherever_it_is_cut() {
    cut_everywhere("growth");
}

#[test]
fn a_reboot_ends_the_same_wherever_it_is_cut() {
    cut_everywhere("reboot");
}

#[test]
fn a_replacement_ends_the_same_wherever_it_is_cut() {
    cut_everywhere("replacement");
}

#[test]
fn a_replacement_of_the_disk_ends_the_same_wherever_it_is_cut() {
    cut_everywhere("shrinking");
}

#[test]
fn a_stop_ends_the_same_wherever_it_is_cut() {
    cut_everywhere("stop");
}

#[test]
fn a_pause_ends_the_same_wherever_it_is_cut() {
    cut_everywhere("pause");
}

#[test]
fn a_resume_ends_the_same_wherever_it_is_cut() {
    cut_everywhere("resume");
}

#[test]
fn a_rename_ends_the_same_wherever_it_is_cut() {
    cut_everywhere("rename");
}

#[test]
fn a_removal_ends_the_same_wherever_it_is_cut() {
    cut_everywhere("removal");
}

#[test]
fn a_removal_that_keeps_the_disk_ends_the_same_wherever_it_is_cut() {
    cut_everywhere("retention");
}

#[test]
fn the_return_to_a_kept_disk_ends_the_same_wherever_it_is_cut() {
    cut_everywhere("return");
}

#[test]
fn the_end_of_a_retention_ends_the_same_wherever_it_is_cut() {
    cut_everywhere("expiry");
}

#[test]
fn a_snapshot_ends_the_same_wherever_it_is_cut() {
    cut_everywhere("snapshot");
}

#[test]
fn a_live_fork_ends_the_same_wherever_it_is_cut() {
    cut_everywhere("fork");
}

#[test]
fn a_beginning_from_a_disk_ends_the_same_wherever_it_is_cut() {
    cut_everywhere("copy");
}

#[test]
fn a_restore_ends_the_same_wherever_it_is_cut() {
    cut_everywhere("restore");
}

#[test]
fn the_letting_go_of_snapshots_ends_the_same_wherever_it_is_cut() {
    cut_everywhere("letting go");
}

#[test]
fn the_story_has_every_step() {
    let told = |words: fn(&Chapter) -> &'static str| -> BTreeSet<String> {
        STORY.iter().flat_map(|chapter| words(chapter).split_whitespace()).map(str::to_owned).collect()
    };
    let (steps, in_two) = steps();
    assert_eq!(told(|chapter| chapter.steps), steps);
    assert_eq!(told(|chapter| chapter.in_two), in_two);
}

/// Tells the story up to a chapter, then that chapter once cleanly and once for each point that ends the daemon in it.
fn cut_everywhere(name: &str) {
    let mut host = Host::sim();
    host.configure(ROOMY);
    let index = STORY.iter().position(|chapter| chapter.name == name).unwrap();
    let (earlier, chapter) = (&STORY[..index], &STORY[index]);
    for earlier in earlier {
        begin(&host, earlier);
        finish(&mut host);
    }
    begin(&host, chapter);
    let before = host.dir().join("before");
    copy(&host.state(), &before);
    let known = steps_taken(&host).len();
    let clean = finish(&mut host);
    let taken = steps_taken(&host).split_off(known);
    for (_, place, step) in &taken {
        assert!(taken.iter().any(|(_, other, _)| other + 1 == *place) || *place == 0, "{step} at {place}: {taken:?}");
    }
    // A snapshot's row is written for each state that it comes into.
    let once = || taken.iter().filter(|(.., step)| step != "record-snapshot").map(|(app, _, step)| (app, step));
    assert_eq!(once().collect::<BTreeSet<_>>().len(), once().count(), "something was done twice: {taken:?}");
    let kinds: BTreeSet<_> = taken.iter().map(|(_, _, step)| step.as_str()).collect();
    assert_eq!(kinds, chapter.steps.split_whitespace().collect());
    let (expected, generations, boots) = (clean.state(), clean.generations(), clean.boots());
    let around = chapter.steps.split_whitespace().flat_map(|step| MOMENTS.map(|moment| format!("{step}/{moment}")));
    let halfway = chapter.in_two.split_whitespace().map(|step| format!("{step}/halfway"));
    let within = chapter.steps.split_whitespace().flat_map(within_driver).map(|point| (*point).to_owned());
    for point in around.chain(halfway).chain(within) {
        copy(&before, &host.state());
        let death = host.run_to_death(&[("FAILPOINTS", &format!("{point}=return"))]);
        assert_eq!(death.signal(), Some(ABORTED), "{point}: {death}\n{}", host.log());
        let left = finish(&mut host);
        assert_same(&left.state(), &expected, &format!("cut at {point}"));
        assert_eq!(left.generations(), generations, "{point}");
        assert_eq!(left.boots(), boots, "{point}");
    }
}

/// Where the driver can be cut while it carries a step out.
fn within_driver(step: &str) -> &'static [&'static str] {
    SCRIPTED.iter().find(|(name, _)| *name == step).map_or(&[], |(_, points)| points)
}

/// Commits a chapter's change while no daemon runs.
fn begin(host: &Host, chapter: &Chapter) {
    (chapter.change)(host);
    host.commit(chapter.name);
}

/// Lets a daemon converge, and looks at what it leaves.
fn finish(host: &mut Host) -> Left {
    host.start();
    host.wait_converged();
    let plan = host.api("/v1/plan");
    assert_eq!(plan["actions"].as_array().map(Vec::len), Some(0), "{plan:#}");
    assert_eq!(host.stop_daemon(), Some(0));
    let left = Left::on(host);
    assert_eq!(left.faults(), Vec::<String>::new(), "{}", host.log());
    left
}

/// Whose steps stand in the journal, oldest first, each with its place among those of its action.
fn steps_taken(host: &Host) -> Vec<(AppKey, u32, String)> {
    let store = Store::snapshot_read(&host.state().join("store")).unwrap();
    let begun = |event| match event {
        JournalEvent::Begun(entry) => Some((entry.app, entry.step_index, entry.step)),
        JournalEvent::Ended { .. } => None,
    };
    store.all::<Journal>().unwrap().into_values().filter_map(|record| begun(record.event)).collect()
}

/// Replaces a directory by a copy of another one.
fn copy(from: &std::path::Path, to: &std::path::Path) {
    if to.exists() {
        std::fs::remove_dir_all(to).unwrap();
    }
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}
