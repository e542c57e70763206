//! Moments of apps that are kept, and apps that begin from them or go back to them: declared in git, and asked for by hand. Over a real
//! repository with the real daemon; with scripted microVMs first, then with real ones.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/host.rs"]
mod host;
#[path = "support/transcript.rs"]
mod transcript;

use std::process::Output;

use jiff::Timestamp;
use serde_json::Value;
use setpoint_schema::id::DiskId;
use setpoint_vmm::sim::world::{Disk, Vm};

use crate::host::Host;
use crate::transcript::{assert_text, session};

/// Declares a Snapshot beside whatever else there is.
fn declare_snapshot(host: &Host, name: &str, spec: &str) {
    let text = format!("apiVersion: setpoint/v1\nkind: Snapshot\nmetadata:\n  name: {name}\nspec: {{{spec}}}\n");
    host.write(&format!("apps/{name}/app.yaml"), &text);
}

/// A daemon with one app that runs.
fn running(host: Host) -> Host {
    let mut host = host;
    host.write_app("blog", "", "first");
    host.commit("an app");
    host.start();
    host.wait_converged();
    host
}

/// The newest generation of a snapshot as the API has it, once it is in this state.
fn wait_snapshot(host: &Host, name: &str, state: &str) -> Value {
    host.wait_for(&format!("{name} to be {state}"), |host| {
        let answer = host.api_answer(&format!("/v1/snapshots/default/{name}"))?;
        let snapshot: Value = serde_json::from_str(&answer.body).ok()?;
        (answer.status == 200 && snapshot["state"] == state).then_some(snapshot)
    })
}

/// All snapshots, as `name@generation state`.
fn snapshots(host: &Host) -> Vec<String> {
    let list = host.api("/v1/snapshots");
    let shown = |item: &Value| format!("{}@{} {}", text(&item["name"]), item["generation"], text(&item["state"]));
    list["items"].as_array().unwrap().iter().map(shown).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn kinds(host: &Host, app: &str) -> Vec<String> {
    let events = host.events_of(app);
    events.iter().filter_map(|event| Some(event.split_once(':')?.0.to_owned())).collect()
}

fn vm_of(host: &Host, app: &str) -> Vm {
    host.world().vms().unwrap().into_iter().find(|vm| vm.machine.app.to_string() == app).unwrap()
}

fn disk_of(host: &Host, app: &str) -> Disk {
    let id: &DiskId = &vm_of(host, app).machine.disk;
    host.world().disk(id).unwrap().unwrap()
}

/// Nothing was done that a correct daemon never does.
fn assert_no_violations(host: &Host) {
    assert_eq!(host.world().violations().unwrap(), Vec::<String>::new());
}

#[test]
fn a_declared_snapshot_is_taken_once_for_each_generation_and_as_many_are_kept_as_are_wanted() {
    let mut host = running(Host::sim());
    let (boot, commit) = (host.boot_of("blog"), host.git(&["rev-parse", "HEAD"]));
    declare_snapshot(&host, "nightly", "of: blog, keep: 2");
    host.commit("keep a moment");
    let first = wait_snapshot(&host, "nightly", "kept");
    host.wait_converged();
    assert_eq!((&first["generation"], text(&first["content"]), text(&first["app"])), (&1.into(), "memory", "blog"));
    assert_eq!((text(&first["revision"]), text(&first["size"])), (commit.as_str(), "8Mi"));
    assert_eq!((text(&first["cause"]["kind"]), first["takenAt"].is_string()), ("declared", true));
    assert_eq!(host.boot_of("blog"), boot, "the app goes on");
    assert_eq!(host.stop_daemon(), Some(0));
    host.start();
    host.wait_converged();
    assert_eq!(snapshots(&host), ["nightly@1 kept"], "once is enough");
    for token in ["second", "third"] {
        declare_snapshot(&host, "nightly", &format!("of: blog, keep: 2, token: {token}"));
        host.commit(token);
        host.wait_for(token, |host| snapshots(host)[0].ends_with("kept").then_some(()));
        host.wait_converged();
    }
    host.wait_for("the oldest to go", |host| (snapshots(host) == ["nightly@3 kept", "nightly@2 kept"]).then_some(()));
    assert_eq!(host.stop_daemon(), Some(0));
    assert_no_violations(&host);
}

#[test]
fn a_snapshot_that_is_asked_for_by_hand_is_recorded_taken_and_shown() {
    let host = running(Host::sim());
    let by = format!("uid {}", rustix::process::geteuid().as_raw());
    let asked = said(&host.run(&["snapshot", "blog"]));
    assert!(asked.starts_with("a moment of blog is to be kept as blog@1"), "{asked}");
    let first = wait_snapshot(&host, "blog", "kept");
    assert_eq!((text(&first["cause"]["kind"]), text(&first["cause"]["by"])), ("asked", by.as_str()));
    said(&host.run(&["snapshot", "blog", "--name", "before-upgrade", "--disk-only", "--retain", "2d"]));
    let second = wait_snapshot(&host, "before-upgrade", "kept");
    assert_eq!((text(&second["content"]), text(&second["retain"]), text(&second["size"])), ("disk", "2d", "1Mi"));
    assert!(second["exclude"].as_array().unwrap().contains(&"node_modules".into()));
    assert!(kinds(&host, "blog").iter().filter(|kind| *kind == "snapshotAsked").count() == 2);
    let metrics = host.api_answer("/metrics").unwrap().body;
    assert!(metrics.contains("setpoint_snapshots_size_bytes 9437184\n"), "{metrics}");
    let api = format!("http://{}", host.api_address());
    let look: [&[&str]; 7] = [
        &["get", "snapshots", "--server", &api],
        &["get", "snapshots", "before-upgrade", "-o", "wide", "--server", &api],
        &["get", "snapshots", "blog", "-o", "name", "--server", &api],
        &["describe", "snapshot", "before-upgrade", "--server", &api],
        &["describe", "snapshot", "blog@1", "-o", "name", "--server", &api],
        &["describe", "snapshot", "nothing", "--server", &api],
        &["get", "snapshots", "--phase", "ready", "--server", &api],
    ];
    let shown = session(&host, &look).replace(&by, "uid [UID]");
    assert_text("verbs", "snapshots", &shown);
    assert_no_violations(&host);
}

#[test]
fn what_cannot_be_kept_is_refused_with_the_reason() {
    let host = running(Host::sim());
    host.write_app("blog", "power: stopped", "first");
    host.commit("stop");
    host.wait_for("it to stop", |host| (host.app("blog")["phase"] == "stopped").then_some(()));
    let refused = |args: &[&str]| {
        let output = host.run(args);
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let memory = refused(&["snapshot", "blog"]);
    assert!(memory.contains("stopped and has no memory to keep"), "{memory}");
    assert!(refused(&["snapshot", "nobody"]).contains("there is no app nobody"));
    assert!(refused(&["snapshot", "blog", "--retain", "soon"]).contains("--retain"));
    // Its disk lies there.
    said(&host.run(&["snapshot", "blog", "--disk-only"]));
    assert_eq!(text(&wait_snapshot(&host, "blog", "kept")["content"]), "disk");
    assert_no_violations(&host);
}

#[test]
fn a_live_fork_goes_on_where_its_source_is_and_both_are_themselves() {
    let host = running(Host::sim());
    let boot = host.boot_of("blog");
    let before = vm_of(&host, "blog").counter_at(host.world().now());
    host.write_app("draft", "from: {app: blog}\nenv: {COLOR: red}", "second");
    host.commit("fork it");
    host.wait_for("the fork", |host| (host.app("draft")["phase"] == "ready").then_some(()));
    host.wait_converged();
    let fork = vm_of(&host, "draft");
    assert!(fork.counter_at(host.world().now()) >= before, "its memory goes on");
    assert_eq!((fork.launches, host.boot_of("blog")), (1, boot), "the source was not started again");
    assert_ne!(fork.machine.disk, vm_of(&host, "blog").machine.disk);
    assert_ne!(disk_of(&host, "draft").tree, disk_of(&host, "blog").tree, "each has its own source");
    let env = &fork.processes.as_ref().unwrap().set.env;
    assert!(env.iter().any(|(name, value)| name.as_str() == "COLOR" && value.reveal() == Some("red")));
    let of_fork = host.sandbox_of("draft")["from"].clone();
    assert!(of_fork.is_string() && host.sandbox_of("blog")["from"].is_null());
    let from = host.app("draft")["from"].clone();
    assert_eq!((text(&from["app"]), &from["id"], from["takenAt"].is_string()), ("blog", &of_fork, true), "{from}");
    assert!(host.app("draft")["restored"].is_null() && host.app("blog")["from"].is_null());
    let described =
        said(&host.run(&["describe", "app", "draft", "--server", &format!("http://{}", host.api_address())]));
    let line = format!("Began from:  {}@1 of blog, taken at ", text(&from["snapshot"]));
    assert!(described.contains(&line), "{line} in {described}");
    assert_eq!(host.fetch("draft.localhost", "/").unwrap().status, 200);
    assert_eq!(host.fetch("blog.localhost", "/").unwrap().status, 200);
    assert_no_violations(&host);
}

#[test]
#[cfg(feature = "failpoints")]
fn a_moment_that_a_killed_daemon_kept_is_recorded_as_it_was_kept() {
    let mut host = running(Host::sim());
    let revision = host.git(&["rev-parse", "HEAD"]);
    assert_eq!(host.stop_daemon(), Some(0));
    // The snapshot is taken, and the daemon dies before it has written that down.
    declare_snapshot(&host, "nightly", "of: blog");
    host.commit("keep a moment");
    host.run_to_death(&[("FAILPOINTS", "take-snapshot/halfway=return")]);
    let cut = host.world().now();
    // By the next one another revision is applied.
    host.write_app("blog", "", "second");
    host.commit("another page");
    host.start();
    let kept = wait_snapshot(&host, "nightly", "kept");
    host.wait_converged();
    assert_eq!(text(&kept["revision"]), revision, "what was applied then");
    let taken: jiff::Timestamp = text(&kept["takenAt"]).parse().unwrap();
    assert!(taken < cut, "{taken} is no earlier than {cut}");
    assert_no_violations(&host);
}

#[test]
fn memory_and_disk_of_a_paused_app_are_kept_and_forked_and_it_sleeps_on() {
    let host = running(Host::sim());
    host.write_app("blog", "power: paused", "first");
    host.commit("rest");
    host.wait_for("it to be paused", |host| (host.app("blog")["phase"] == "paused").then_some(()));
    let rested = vm_of(&host, "blog");
    let count = rested.counter_at(host.world().now());
    said(&host.run(&["snapshot", "blog"]));
    assert_eq!(text(&wait_snapshot(&host, "blog", "kept")["content"]), "memory");
    declare_snapshot(&host, "nightly", "of: blog");
    host.write_app("draft", "from: {app: blog}", "draft");
    host.write_app("other", "from: {snapshot: nightly}", "other");
    host.commit("fork it");
    for fork in ["draft", "other"] {
        host.wait_for("the fork", |host| (host.app(fork)["phase"] == "ready").then_some(()));
        let fork = vm_of(&host, fork);
        assert_eq!((fork.counter.value, fork.launches), (count, 1), "it goes on from the pause");
    }
    host.wait_converged();
    assert_eq!(vm_of(&host, "blog"), rested, "nobody was at it");
    host.write_app("blog", "", "first");
    host.commit("go on");
    host.wait_for("it to go on", |host| (host.app("blog")["phase"] == "ready").then_some(()));
    assert_eq!(vm_of(&host, "blog").counter.value, count);
    assert_no_violations(&host);
}

#[test]
fn an_app_begins_from_a_disk_without_what_is_left_out_once_it_was_taken() {
    let host = running(Host::sim());
    host.write("apps/blog/out/page.html", "made");
    host.write_app("copy", "from: {snapshot: disk}", "copy");
    host.write("apps/copy/out/page.html", "made");
    declare_snapshot(&host, "disk", "of: blog, content: disk, exclude: [out]");
    host.commit("a disk, and an app that begins from it");
    host.wait_for("the app", |host| (host.app("copy")["phase"] == "ready").then_some(()));
    host.wait_converged();
    let snapshot = wait_snapshot(&host, "disk", "kept");
    let copy = disk_of(&host, "copy");
    assert_eq!(copy.left_out.as_ref().map(|id| id.as_str()), snapshot["id"].as_str());
    assert!(copy.files.contains_key("out/page.html"), "what git has in there came again");
    assert_eq!(vm_of(&host, "copy").launches, 1);
    assert!(disk_of(&host, "blog").left_out.is_none());
    assert_no_violations(&host);
}

#[test]
fn a_restore_is_carried_out_once_for_each_token_and_keeps_what_it_replaces() {
    let mut host = running(Host::sim());
    declare_snapshot(&host, "good", "of: blog");
    host.commit("keep a moment");
    let good = wait_snapshot(&host, "good", "kept");
    host.wait_converged();
    let (sandbox, counter) = (host.app("blog")["sandbox"].clone(), vm_of(&host, "blog").counter);
    let ready_since = |host: &Host| text(&host.app("blog")["conditions"][0]["since"]).parse::<Timestamp>().unwrap();
    let was_ready = ready_since(&host);
    host.write_app("blog", "restore: {snapshot: good, token: monday}", "first");
    let looked = host.run(&["validate", "."]);
    assert!(looked.status.success(), "{}", String::from_utf8_lossy(&looked.stderr));
    host.commit("go back");
    host.wait_for("the restore", |host| {
        let app = host.app("blog");
        (app["phase"] == "ready" && app["sandbox"] != sandbox).then_some(())
    });
    host.wait_converged();
    let restored = vm_of(&host, "blog");
    assert_eq!(host.sandbox_of("blog")["from"], good["id"]);
    assert!(ready_since(&host) > was_ready, "it was not ready meanwhile");
    assert!(restored.counter.since > counter.since, "it goes on from the snapshot");
    let of_restore = |item: &&Value| item["cause"]["kind"] == "restore";
    let safety = host.api("/v1/snapshots")["items"].as_array().unwrap().iter().find(of_restore).cloned().unwrap();
    assert_eq!((text(&safety["cause"]["token"]), text(&safety["app"])), ("monday", "blog"));
    let history = said(&host.run(&["history", "blog"]));
    assert!(history.contains("restored") && history.contains("(less than a minute ago) is lost"), "{history}");
    let app = host.app("blog");
    let (after, told) = (app["sandbox"].clone(), app["restored"].clone());
    assert_eq!((text(&told["token"]), &told["safety"], &app["from"]), ("monday", &safety["id"], &Value::Null), "{app}");
    assert_eq!((text(&told["from"]["snapshot"]), &told["from"]["id"]), ("good", &good["id"]), "{app}");
    assert_eq!((&told["from"]["generation"], &told["from"]["takenAt"]), (&1.into(), &good["takenAt"]), "{app}");
    let described =
        said(&host.run(&["describe", "app", "blog", "--server", &format!("http://{}", host.api_address())]));
    let end = format!("ago, token monday, what was there before is snapshot {}", text(&safety["id"]));
    assert!(described.contains("Restored:    good@1 of blog, taken at ") && described.contains(&end), "{described}");
    assert_eq!(host.stop_daemon(), Some(0));
    host.start();
    host.wait_converged();
    assert_eq!(host.app("blog")["restored"], told, "it is remembered");
    host.write_app("blog", "restore: {snapshot: good, token: monday}", "second");
    host.commit("another page");
    host.wait_for("the page", |host| {
        (host.app("blog")["lastAppliedRevision"] == host.git(&["rev-parse", "HEAD"])).then_some(())
    });
    assert_eq!(host.app("blog")["sandbox"], after, "once for the token");
    assert_no_violations(&host);
}

#[test]
fn a_snapshot_that_is_declared_no_more_and_then_again_is_told_as_kept_not_as_removed() {
    let host = running(Host::sim());
    declare_snapshot(&host, "good", "of: blog");
    host.commit("keep a moment");
    wait_snapshot(&host, "good", "kept");
    host.remove("apps/good");
    host.commit("not any more");
    wait_snapshot(&host, "good", "retained");
    declare_snapshot(&host, "good", "of: blog");
    host.commit("it is needed after all");
    wait_snapshot(&host, "good", "kept");
    host.wait_converged();
    let of_snapshots: Vec<_> = kinds(&host, "blog").into_iter().filter(|kind| kind.starts_with("snapshot")).collect();
    assert_eq!(of_snapshots, ["snapshotTaken", "snapshotRetained", "snapshotRetained"]);
}

#[test]
fn a_snapshot_that_somebody_is_to_begin_from_is_not_let_go() {
    let host = running(Host::sim());
    declare_snapshot(&host, "good", "of: blog, retain: none");
    host.commit("keep a moment");
    wait_snapshot(&host, "good", "kept");
    host.wait_converged();
    // It stays undone for as long as the app is suspended.
    host.write_app("later", "from: {snapshot: good}\nsuspend: true", "later");
    host.commit("an app that is to begin from it");
    host.wait_converged();
    assert_eq!(snapshots(&host), ["good@1 kept"]);
    host.remove("apps/later");
    host.remove("apps/good");
    host.commit("neither");
    host.wait_for("the snapshot to go", |host| snapshots(host).is_empty().then_some(()));
    assert_no_violations(&host);
}

/// With real microVMs.
mod microvm {
    use super::*;

    /// The web process has 100 MB of memory written before it serves; the worker counts in its own memory and shows the number, the
    /// machine's name and who owns what in files.
    const COUNTING: &str = "version: 1\nweb:\n  command: yes setpoint | head -c 104857600 > /tmp/dirty; exec busybox httpd -f -p 3000\nworkers:\n  \
                            - name: counter\n    command: echo counts in $(hostname); i=0; while :; do i=$((i+1)); echo $i > count.tmp; mv count.tmp count; hostname > name; \
                            stat -c %u . count name index.html > owners.tmp; mv owners.tmp owners; sleep 0.05; done\n";

    fn write_counting(host: &Host, name: &str, spec: &str) {
        let spec = format!("  resources: {{memory: 512Mi, disk: 64Mi}}\n  retain: none\n  {spec}");
        let app = format!("apiVersion: setpoint/v1\nkind: App\nmetadata:\n  name: {name}\nspec:\n{spec}\n");
        host.write(&format!("apps/{name}/app.yaml"), app.trim_end());
        host.write(&format!("apps/{name}/sandbox.yaml"), COUNTING);
        host.write(&format!("apps/{name}/index.html"), "counts");
    }

    fn fetched(host: &Host, app: &str, path: &str) -> Option<String> {
        let answer = host.fetch(&format!("{app}.localhost"), path).filter(|answer| answer.status == 200)?;
        Some(answer.body.trim().to_owned())
    }

    fn count(host: &Host, app: &str) -> Option<u64> {
        fetched(host, app, "/count")?.parse().ok()
    }

    /// What the worker has logged.
    fn logged(host: &Host, app: &str) -> String {
        said(&host.run(&["logs", app, "counter", "--server", &format!("http://{}", host.api_address())]))
    }

    /// The app's processes write as the user that owns what was there before.
    fn assert_owned(host: &Host, app: &str) {
        let owners = host.wait_for("its owners", |host| fetched(host, app, "/owners"));
        assert_eq!(owners.lines().collect::<Vec<_>>(), ["1000"; 4], "{app}");
    }

    #[test]
    fn a_running_app_with_100_mb_written_is_forked_both_serve_and_their_writes_do_not_cross() {
        let mut host = Host::real();
        write_counting(&host, "blog", "");
        host.commit("an app that counts");
        host.start();
        host.wait_served("blog", "counts");
        host.wait_converged();
        host.wait_for("a count", |host| count(host, "blog").filter(|count| *count > 20));
        let boot = host.boot_of("blog");
        let before = count(&host, "blog").unwrap();
        write_counting(&host, "draft", "from: {app: blog}");
        host.commit("fork it");
        host.wait_served("draft", "counts");
        let forked = host.wait_for("its count", |host| count(host, "draft"));
        host.wait_converged();
        assert!(forked >= before, "{forked} after {before}: it began anew");
        assert_eq!(host.boot_of("blog"), boot, "the source goes on");
        for app in ["blog", "draft"] {
            let at = host.wait_for("a count", |host| count(host, app));
            host.wait_for("its going on", |host| count(host, app).filter(|now| *now > at + 5));
            host.wait_for("its own name", |host| (fetched(host, app, "/name")? == app).then_some(()));
            assert_owned(&host, app);
        }
        assert_eq!((logged(&host, "blog"), logged(&host, "draft")), ("counts in blog\n".to_owned(), String::new()));
        assert_eq!(host.app("blog")["restarts"], 0);
        let log = host.log();
        let stopped =
            log.lines().find(|line| line.contains("stopped_ms=")).expect("the source's pause is written down");
        eprintln!("{stopped}");
        assert_eq!(host.stop_daemon(), Some(0));
    }

    #[test]
    fn a_restore_goes_back_to_memory_and_disk_of_the_snapshot_once() {
        let mut host = Host::real();
        write_counting(&host, "blog", "");
        host.commit("an app that counts");
        host.start();
        host.wait_served("blog", "counts");
        host.wait_converged();
        declare_snapshot(&host, "good", "of: blog");
        host.commit("keep a moment");
        wait_snapshot(&host, "good", "kept");
        host.wait_converged();
        let kept = host.wait_for("a count", |host| count(host, "blog"));
        let later = host.wait_for("more", |host| count(host, "blog").filter(|now| *now > kept + 400));
        write_counting(&host, "blog", "restore: {snapshot: good, token: monday}");
        host.commit("go back");
        let back = host.wait_for("the restore", |host| count(host, "blog").filter(|now| *now < later));
        assert!(back > 0, "its memory was restored, not begun anew");
        host.wait_for("its going on", |host| count(host, "blog").filter(|now| *now > back + 5));
        host.wait_converged();
        assert_owned(&host, "blog");
        assert_eq!(host.app("blog")["restarts"], 0);
        assert_eq!(host.stop_daemon(), Some(0));
    }

    #[test]
    fn a_paused_app_is_kept_and_forked_as_it_lies_and_goes_on_untouched() {
        let mut host = Host::real();
        write_counting(&host, "blog", "");
        host.commit("an app that counts");
        host.start();
        host.wait_served("blog", "counts");
        host.wait_converged();
        let before = host.wait_for("a count", |host| count(host, "blog").filter(|count| *count > 20));
        write_counting(&host, "blog", "power: paused");
        host.commit("rest");
        host.wait_for("its rest", |host| (host.app("blog")["phase"] == "paused").then_some(()));
        let boot = host.boot_of("blog");
        said(&host.run(&["snapshot", "blog"]));
        let kept = wait_snapshot(&host, "blog", "kept");
        assert_eq!((text(&kept["content"]), &kept["stoppedMs"]), ("memory", &0.into()));
        write_counting(&host, "draft", "from: {app: blog}");
        host.commit("fork it");
        host.wait_served("draft", "counts");
        let forked = host.wait_for("its count", |host| count(host, "draft"));
        assert!(forked >= before, "{forked} after {before}: it began anew");
        host.wait_for("its going on", |host| count(host, "draft").filter(|now| *now > forked + 5));
        host.wait_converged();
        assert_owned(&host, "draft");
        assert_eq!((&host.app("blog")["phase"], host.boot_of("blog")), (&"paused".into(), boot), "it sleeps on");
        write_counting(&host, "blog", "");
        host.commit("go on");
        host.wait_served("blog", "counts");
        let after = host.wait_for("a count", |host| count(host, "blog"));
        assert!((before..forked + 40).contains(&after), "{after} after {before}: its memory is another's");
        host.wait_for("its going on", |host| count(host, "blog").filter(|now| *now > after + 5));
        assert_eq!(host.app("blog")["restarts"], 0);
        assert_eq!(host.stop_daemon(), Some(0));
    }

    #[test]
    fn an_app_that_begins_from_a_disk_has_its_files_and_owns_them() {
        let mut host = Host::real();
        write_counting(&host, "blog", "");
        host.commit("an app that counts");
        host.start();
        host.wait_served("blog", "counts");
        host.wait_converged();
        declare_snapshot(&host, "files", "of: blog, content: disk");
        write_counting(&host, "copy", "from: {snapshot: files}");
        host.commit("a disk, and an app that begins from it");
        host.wait_served("copy", "counts");
        host.wait_converged();
        let kept = wait_snapshot(&host, "files", "kept");
        eprintln!("stopped for {} ms, {}", kept["stoppedMs"], kept["size"]);
        host.wait_for("its own name", |host| (fetched(host, "copy", "/name")? == "copy").then_some(()));
        assert_owned(&host, "copy");
        assert_eq!(logged(&host, "copy"), "counts in copy\n", "its logs begin with it");
        assert_eq!(host.stop_daemon(), Some(0));
    }
}
