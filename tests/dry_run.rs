//! The dry run: it shows what would be done, it does not do it, and it leaves no trace of having looked.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/host.rs"]
mod host;
#[path = "support/trace.rs"]
mod trace;
#[path = "support/transcript.rs"]
mod transcript;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use host::Host;
use serde_json::Value;
use setpoint_schema::observed::ExitReason;
use setpoint_vmm::sim::world::Vm;
use trace::Traces;

const DRY_RUN: &[&str] = &["reconcile", "--dry-run"];
const DRY_RUN_JSON: &[&str] = &["reconcile", "--dry-run", "-o", "json"];

/// A host on which these declarations are carried out.
fn converged(declare: impl FnOnce(&Host)) -> Host {
    let host = Host::sim();
    declare(&host);
    host.commit("declare");
    converge(&host);
    host
}

fn converge(host: &Host) {
    let output = host.reconcile();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Compares the plan for HEAD, as text and as JSON, with the checked-in one.
fn assert_preview(host: &Host, name: &str) {
    transcript::assert_text("dry_run", name, &transcript::session(host, &[DRY_RUN, DRY_RUN_JSON]));
}

/// Compares the plan for a change of one converged app with the checked-in one, and sees that carrying it out leaves nothing
/// to do.
fn assert_change(name: &str, spec: &str, change: impl FnOnce(&Host)) {
    let host = converged(|host| host.write_app("blog", spec, "first"));
    change(&host);
    host.commit("change");
    assert_preview(&host, name);
    converge(&host);
    assert_eq!(plan(&host)["actions"], serde_json::json!([]), "the change is carried out");
}

fn plan(host: &Host) -> Value {
    let output = host.run(DRY_RUN_JSON);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What a plan does to each app, as `blog: update`.
fn actions(output: &Output) -> Vec<String> {
    let plan: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let action =
        |action: &Value| format!("{}: {}", action["app"].as_str().unwrap(), action["actions"][0].as_str().unwrap());
    plan["actions"].as_array().unwrap().iter().map(action).collect()
}

fn vm(host: &Host) -> Vm {
    host.world().vms().unwrap().remove(0)
}

fn edit(host: &Host, path: &str, from: &str, to: &str) {
    let text = fs::read_to_string(host.repo().join(path)).unwrap();
    assert!(text.contains(from), "{path} holds no {from}");
    host.write(path, &text.replace(from, to));
}

fn copy_examples(host: &Host) {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/apps/.");
    let copied = Command::new("cp").arg("-R").arg(examples).arg(host.repo()).status().unwrap();
    assert!(copied.success());
}

#[test]
fn the_examples_are_previewed_before_anything_exists() {
    let host = Host::sim();
    copy_examples(&host);
    host.commit("examples");
    assert_preview(&host, "examples");
    assert!(!host.state().join("store").exists(), "a preview makes no state");
}

#[test]
fn after_converging_the_examples_nothing_is_left_to_do() {
    let host = converged(copy_examples);
    assert_preview(&host, "examples-converged");
    let output = host.run(&["reconcile", "--dry-run", "--exit-code"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(host.world().violations().unwrap(), [""; 0]);
}

#[test]
fn after_a_daemon_has_converged_nothing_is_left_to_do() {
    let mut host = Host::sim();
    copy_examples(&host);
    host.commit("examples");
    host.start();
    host.wait_converged();
    assert_eq!(plan(&host)["actions"], serde_json::json!([]), "beside the daemon");
    assert_eq!(host.stop_daemon(), Some(0));
    assert_eq!(plan(&host)["actions"], serde_json::json!([]), "without it");
}

#[test]
fn a_live_change_restarts_nothing() {
    assert_change("live", "expose: {ports: [9000]}", |host| {
        host.write_app("blog", "expose: {ports: [9000, 9001]}\ndependsOn: []\ntimeouts: {ready: 5m}", "first");
    });
}

#[test]
fn a_grown_disk_is_a_live_change() {
    assert_change("grow", "", |host| edit(host, "apps/blog/app.yaml", "disk: 64Mi", "disk: 128Mi"));
}

#[test]
fn a_change_of_files_syncs_them() {
    assert_change("files", "", |host| host.write("apps/blog/index.html", "second"));
}

#[test]
fn a_change_of_processes_restarts_them() {
    assert_change("process", "env: {COLOR: red}", |host| {
        host.write_app("blog", "env: {COLOR: blue}", "first");
        edit(host, "apps/blog/sandbox.yaml", "httpd -f", "httpd -f -v");
    });
}

#[test]
fn a_change_of_memory_reboots() {
    assert_change("reboot", "", |host| edit(host, "apps/blog/app.yaml", "memory: 128Mi", "memory: 160Mi"));
}

#[test]
fn another_template_replaces() {
    assert_change("replace", "", |host| {
        let template = "apiVersion: setpoint/v1\nkind: Template\nmetadata:\n  name: tools\nspec:\n  rootfs:\n    path: templates/tools\n";
        host.write("templates/tools.yaml", template);
        host.write("templates/tools/etc/motd", "hello");
        host.write_app("blog", "template: tools", "first");
    });
}

#[test]
fn a_smaller_disk_replaces_where_that_is_allowed() {
    assert_change("replace-disk", "", |host| {
        edit(host, "apps/blog/app.yaml", "disk: 64Mi", "disk: 32Mi, shrink: replace");
    });
}

#[test]
fn a_new_app_is_created() {
    assert_change("create", "", |host| host.write_app("shop", "dependsOn: [blog]", "shop"));
}

#[test]
fn a_removed_app_is_deleted_and_its_disk_kept_for_its_time() {
    let host = converged(|host| {
        host.write_app("blog", "", "first");
        host.write_app("shop", "", "first");
        edit(host, "apps/shop/app.yaml", "retain: none", "retain: 7d");
    });
    host.remove("apps/blog");
    host.remove("apps/shop");
    host.write("setpoint.toml", "[policies]\nallow_empty = true\n");
    host.commit("remove");
    assert_preview(&host, "delete");
    converge(&host);
    assert_eq!(plan(&host)["actions"], serde_json::json!([]));
    assert_eq!(host.world().vms().unwrap(), []);
}

#[test]
fn a_stopped_app_is_shut_down_and_started_again() {
    let host = converged(|host| host.write_app("blog", "", "first"));
    host.write_app("blog", "power: stopped", "first");
    host.commit("stop");
    assert_preview(&host, "stop");
    converge(&host);
    assert_eq!(plan(&host)["actions"], serde_json::json!([]));
    host.write_app("blog", "", "first");
    host.commit("start");
    assert_preview(&host, "start-again");
}

#[test]
fn a_renamed_app_moves() {
    assert_change("rename", "", |host| {
        host.git(&["mv", "apps/blog", "apps/journal"]);
        edit(host, "apps/journal/app.yaml", "name: blog", "name: journal");
        host.write("setpoint.toml", "[[moved]]\nfrom = \"blog\"\nto = \"journal\"\n");
    });
}

#[test]
fn drift_is_told_apart_from_change() {
    let host = converged(|host| host.write_app("blog", "", "first"));
    host.world().edit(&vm(&host).machine.sandbox, |vm| vm.processes = None).unwrap();
    assert_preview(&host, "drift");
    converge(&host);
    host.world().edit_disk(&vm(&host).machine.disk, |disk| disk.tree = None).unwrap();
    assert_preview(&host, "drift-files");
}

#[test]
fn a_dead_microvm_is_booted_again() {
    let host = converged(|host| host.write_app("blog", "", "first"));
    let panic = ExitReason::Panic("Kernel panic - not syncing: out of luck".to_owned());
    host.world().kill(&vm(&host).machine.sandbox, panic).unwrap();
    assert_preview(&host, "down");
}

#[test]
fn what_is_blocked_says_by_what() {
    let host = converged(|host| host.write_app("blog", "", "first"));
    host.configure("[limits]\nmemory = \"300Mi\"\nvcpus = 16\ndisk = \"10Gi\"\nsandboxes = 10\n");
    edit(&host, "apps/blog/app.yaml", "disk: 64Mi", "disk: 32Mi");
    host.write_app("huge", "", "needs more than there is");
    edit(&host, "apps/huge/app.yaml", "memory: 128Mi", "memory: 512Mi");
    host.write_app("shop", "dependsOn: [huge]", "waits");
    host.commit("ask for too much");
    assert_preview(&host, "blocked");
}

#[test]
fn a_failed_step_is_waited_out() {
    let host = Host::sim();
    host.write_app("blog", "", "first");
    host.commit("declare");
    let launch = "[[fault]]\napp = \"blog\"\noperation = \"launch\"\n";
    fs::write(host.state().join("vmm/script.toml"), launch).unwrap();
    assert_eq!(host.reconcile().status.code(), Some(1));
    assert_preview(&host, "backoff");
}

#[test]
fn a_dry_run_forgets_the_failures_of_an_app_that_is_declared_anew_as_the_daemon_will() {
    let host = Host::sim();
    host.write_app("blog", "", "first");
    host.write_app("shop", "", "first");
    host.commit("declare");
    host.world().set_script("[[fault]]\noperation = \"launch\"\n").unwrap();
    assert_eq!(host.reconcile().status.code(), Some(1));
    let blocked = |host: &Host| {
        let plan = plan(host);
        let actions = plan["actions"].as_array().unwrap().iter();
        let reasons = actions.map(|action| (action["app"].clone(), action["blocked"][0]["reason"].clone()));
        reasons.collect::<Vec<_>>()
    };
    assert_eq!(blocked(&host), [("blog".into(), "backoff".into()), ("shop".into(), "backoff".into())]);
    host.write_app("blog", "env: {COLOR: blue}", "first");
    host.commit("another try");
    assert_eq!(blocked(&host), [("blog".into(), Value::Null), ("shop".into(), "backoff".into())]);
}

#[test]
fn what_is_held_says_by_what() {
    let host = converged(|host| {
        host.write_app("blog", "", "first");
        host.write_app("frozen", "suspend: true", "first");
        host.write_app("kept", "prune: disabled", "first");
        host.write_app("steady", "", "first");
    });
    host.write(
        "apps/blog/app.yaml",
        "apiVersion: setpoint/v1\nkind: App\nmetadata: {name: blog}\nspec: {memory: 1Gi}\n",
    );
    host.write("apps/frozen/index.html", "second");
    host.remove("apps/kept");
    host.commit("hold");
    assert_preview(&host, "held");
}

#[test]
fn a_dry_run_leaves_no_trace_without_a_daemon() {
    let host = converged(|host| host.write_app("blog", "", "first"));
    host.write_app("shop", "", "new");
    host.write("apps/blog/index.html", "second");
    host.commit("change");
    host.write("apps/blog/index.html", "not committed");
    assert_no_trace(&host);
}

#[test]
fn a_dry_run_leaves_no_trace_beside_a_daemon() {
    let mut host = Host::sim();
    host.write_app("blog", "", "first");
    host.commit("declare");
    host.git(&["branch", "other"]);
    host.configure("[source]\nbranch = \"other\"\n");
    host.start();
    // The last two things that the daemon writes for a revision; after them it is quiet.
    host.wait_for("the daemon to be quiet", |host| {
        let events = host.api("/v1/events?limit=1000");
        let kinds: Vec<_> = events["items"].as_array().unwrap().iter().map(|event| event["kind"].clone()).collect();
        (kinds.contains(&"ready".into()) && kinds.contains(&"revisionApplied".into())).then_some(())
    });
    // What the daemon does not follow is previewed beside it.
    host.write_app("shop", "", "new");
    host.write("apps/blog/index.html", "second");
    host.commit("change");
    host.write("apps/blog/index.html", "not committed");
    assert_no_trace(&host);
}

/// Previews in every way, and looks for a trace of that.
fn assert_no_trace(host: &Host) {
    let places = [host.state(), host.repo()];
    let before = Traces::of(&places);
    let url = format!("file://{}", host.repo().display());
    let previews: [&[&str]; 7] = [
        &["--rev", "main", "--repo", &url],
        &["--rev", "main"],
        &["--rev", "main", "-o", "json"],
        &["--rev", "main", "--exit-code"],
        &["--rev", "main~1"],
        &["--worktree"],
        &["--worktree", "-o", "json"],
    ];
    for preview in previews {
        let output = host.run(&[DRY_RUN, preview].concat());
        assert!(output.stderr.is_empty(), "{preview:?}: {}", String::from_utf8_lossy(&output.stderr));
        let after = Traces::of(&places);
        assert_eq!(before.differences(&after), [""; 0].map(Path::new), "{preview:?}");
    }
}

#[test]
fn a_preview_beside_a_daemon_is_that_of_none() {
    let mut host = Host::sim();
    host.write_app("blog", "", "first");
    host.commit("declare");
    host.git(&["branch", "other"]);
    host.configure("[source]\nbranch = \"other\"\n");
    host.start();
    host.wait_for("the app to be ready", |host| (host.app("blog")["ready"] == true).then_some(()));
    host.write("apps/blog/index.html", "second");
    host.commit("change");
    let beside = host.run(&["reconcile", "--dry-run", "--rev", "main"]);
    let mut asked = host.api("/v1/plan?rev=main");
    let shown = host.run(&["reconcile", "--dry-run", "--rev", "main", "-o", "json"]);
    let mut shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    for plan in [&mut asked, &mut shown] {
        // The daemon's plans follow one another, a preview follows none.
        plan["plan"].take();
        plan["parent"].take();
    }
    assert_eq!(asked, shown, "the API gives the same plan");
    assert_eq!(host.stop_daemon(), Some(0));
    let without = host.run(&["reconcile", "--dry-run", "--rev", "main"]);
    assert!(String::from_utf8_lossy(&beside.stdout).contains("update (files) blog"), "{beside:?}");
    assert_eq!(beside, without);
}

#[test]
fn two_previews_of_the_same_are_the_same() {
    let host = Host::sim();
    copy_examples(&host);
    host.commit("examples");
    let (mut first, mut second) = (plan(&host), plan(&host));
    assert_eq!(host.run(DRY_RUN), host.run(DRY_RUN));
    // A plan's own id also covers the time at which it was made.
    for plan in [&mut first, &mut second] {
        plan["plan"].take();
    }
    assert_eq!(first, second);
}

#[test]
fn exit_codes_tell_changes_from_errors() {
    let host = converged(|host| host.write_app("blog", "", "first"));
    let code = |args: &[&str]| host.run(&[DRY_RUN, args].concat()).status.code();
    assert_eq!((code(&[]), code(&["--exit-code"])), (Some(0), Some(0)), "nothing to do");
    host.write("apps/blog/index.html", "second");
    host.commit("change");
    assert_eq!((code(&[]), code(&["--exit-code"])), (Some(0), Some(2)), "changes");
    assert_eq!(code(&["--rev", "nowhere", "--exit-code"]), Some(1), "no such revision");
    assert_eq!(code(&["--exit-cod"]), Some(1), "wrong usage");
    host.write("apps/blog/app.yaml", "kind: [App\n");
    host.commit("break it");
    assert_eq!((code(&[]), code(&["--exit-code"])), (Some(1), Some(1)), "mistakes");
}

#[test]
fn a_revision_is_previewed_by_any_of_its_names() {
    let host = Host::sim();
    host.write_app("blog", "", "first");
    let first = host.commit("first");
    host.git(&["tag", "v1"]);
    host.write_app("shop", "", "second");
    host.commit("second");
    let at = |rev: &str| actions(&host.run(&["reconcile", "--dry-run", "-o", "json", "--rev", rev]));
    for rev in [first.as_str(), &first[..12], "v1", "main~1", "HEAD^"] {
        assert_eq!(at(rev), ["blog: create"], "{rev}");
    }
    for rev in ["main", "HEAD"] {
        assert_eq!(at(rev), ["blog: create", "shop: create"], "{rev}");
    }
    let unknown = transcript::said(&host, &["reconcile", "--dry-run", "--rev", "v2"]);
    transcript::assert_text("dry_run", "unknown-revision", &unknown);
}

#[test]
fn the_working_directory_is_previewed_only_when_asked_for() {
    let host = Host::sim();
    host.write_app("blog", "", "first");
    host.commit("first");
    host.write_app("shop", "", "not committed");
    assert_eq!(actions(&host.run(DRY_RUN_JSON)), ["blog: create"]);
    let worktree = host.run(&["reconcile", "--dry-run", "-o", "json", "--worktree"]);
    assert_eq!(actions(&worktree), ["blog: create", "shop: create"]);
    let both = host.run(&["reconcile", "--dry-run", "--worktree", "--rev", "main"]);
    assert_eq!(both.status.code(), Some(1));
}

#[test]
fn a_checkout_is_found_from_any_of_its_folders_and_any_repository_by_its_name() {
    let host = Host::sim();
    host.write_app("blog", "", "first");
    host.commit("first");
    let repo = host.repo().display().to_string();
    let inside = host.command(DRY_RUN_JSON).current_dir(host.repo().join("apps/blog")).output().unwrap();
    assert_eq!(actions(&inside), ["blog: create"]);
    for url in [repo.clone(), format!("file://{repo}")] {
        let outside = host.command(DRY_RUN_JSON).args(["--repo", &url]).current_dir(host.dir()).output().unwrap();
        assert_eq!(actions(&outside), ["blog: create"], "{url}");
    }
    let nowhere = host.command(DRY_RUN).current_dir(host.dir()).output().unwrap();
    transcript::assert_text("dry_run", "no-repository", &transcript::shown(&host, DRY_RUN, &nowhere));
}
