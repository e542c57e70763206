//! Snapshots that are declared: taken, begun from, gone back to, and let go. Over a real repository with the real daemon and scripted
//! microVMs.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/host.rs"]
mod host;

use std::fs;

use serde_json::Value;

use crate::host::Host;

fn declare_snapshot(host: &Host, name: &str, spec: &str) {
    let text = format!("apiVersion: setpoint/v1\nkind: Snapshot\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n");
    fs::create_dir_all(host.repo().join("snapshots")).unwrap();
    host.write(&format!("snapshots/{name}.yaml"), &text);
}

/// The inventory's rows of snapshots.
fn snapshots(host: &Host) -> Vec<Value> {
    let shown = host.run(&["state", "show"]);
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    shown["snapshots"].as_array().unwrap().clone()
}

fn is_kept(record: &Value) -> bool {
    record["state"].get("kept").is_some()
}

fn running() -> Host {
    let mut host = Host::sim();
    host.write_app("blog", "resources: {memory: 256Mi}", "first");
    declare_snapshot(&host, "nightly", "of: blog, token: one");
    host.commit("an app and a snapshot of it");
    host.start();
    host.wait_converged();
    host.wait_for("the snapshot", |host| snapshots(host).iter().any(is_kept).then_some(()));
    host
}

#[test]
fn a_declared_snapshot_is_taken_once_and_another_with_another_token() {
    let mut host = running();
    let first = snapshots(&host);
    assert_eq!((first.len(), first[0]["generation"].as_u64()), (1, Some(1)));
    assert_eq!(first[0]["moment"]["revision"].as_str(), Some(host.git(&["rev-parse", "HEAD"]).trim()));
    assert_eq!(host.stop_daemon(), Some(0));
    host.start();
    host.wait_converged();
    assert_eq!(snapshots(&host), first, "a restart takes no other");
    declare_snapshot(&host, "nightly", "of: blog, token: two");
    host.commit("another");
    host.wait_for("the second", |host| (snapshots(host).iter().filter(|one| is_kept(one)).count() == 2).then_some(()));
    let dry_run = host.run(&["reconcile", "--dry-run", "--exit-code"]);
    assert_eq!(dry_run.status.code(), Some(0), "{}", String::from_utf8_lossy(&dry_run.stdout));
    host.remove("snapshots/nightly.yaml");
    host.commit("none");
    host.wait_for("retention", |host| {
        snapshots(host).iter().all(|one| one["state"].get("retained").is_some()).then_some(())
    });
}

#[test]
fn a_live_app_is_forked_by_declaration_and_goes_on() {
    let host = running();
    let boot = host.boot_of("blog");
    host.write_app("copy", "from: {app: blog}", "second");
    host.write_app("older", "from: {snapshot: nightly}", "third");
    host.commit("two forks");
    host.wait_converged();
    for (app, page) in [("blog", "first"), ("copy", "second"), ("older", "third")] {
        host.wait_served(app, page);
    }
    assert_eq!(host.boot_of("blog"), boot, "the original is untouched");
    host.wait_for("the end of what the fork began as", |host| (snapshots(host).len() == 1).then_some(()));
}

#[test]
fn a_restore_is_carried_out_once_for_each_token_and_keeps_what_was_there() {
    let mut host = running();
    let sandbox = |host: &Host| host.sandbox_of("blog")["id"].as_str().unwrap().to_owned();
    let before = sandbox(&host);
    host.write_app("blog", "resources: {memory: 256Mi}\n  restore: {snapshot: nightly, token: first}", "first");
    let shown = host.run(&["reconcile", "--dry-run", "--repo", host.repo().to_str().unwrap()]);
    drop(shown);
    host.commit("back");
    host.wait_converged();
    host.wait_for("another sandbox", |host| (sandbox(host) != before).then_some(()));
    host.wait_converged();
    let restored = sandbox(&host);
    assert_eq!(snapshots(&host).len(), 2, "the state before is kept");
    assert!(host.events_of("blog").iter().any(|event| event.starts_with("restored:")), "{:?}", host.events_of("blog"));
    assert_eq!(host.stop_daemon(), Some(0));
    host.start();
    host.wait_converged();
    host.write_app("blog", "resources: {memory: 256Mi}\n  restore: {snapshot: nightly, token: first}", "changed");
    host.commit("a page");
    host.wait_served("blog", "changed");
    assert_eq!(sandbox(&host), restored);
}
