//! Converging well, over a real repository with the real daemon and scripted microVMs: renames, suspensions on the host, removals
//! that fail, and maintenance windows. What waits for what, and who overtakes whom, is in `crash/failures.rs`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "crash/declare.rs"]
#[allow(dead_code, reason = "shared with the crash tests")]
mod declare;
#[path = "support/host.rs"]
mod host;

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Output;

use jiff::{SignedDuration, Timestamp};
use setpoint_schema::id::SandboxId;
use setpoint_schema::observed::ExitReason;
use setpoint_vmm::sim::world::Vm;

use crate::declare::{App, ROOMY};
use crate::host::Host;

#[test]
fn a_rename_by_uid_destroys_nothing() {
    let named = |name: &str| App { uid: Some("blog-7f3a".into()), ..App::new(name) };
    assert_moved(&named("old"), &named("new"), "");
}

#[test]
fn a_declared_move_destroys_nothing() {
    assert_moved(&App::new("old"), &App::new("new"), "[[moved]]\nfrom = \"old\"\nto = \"new\"\n");
}

/// The renamed app runs on: the same sandbox, the same boot, the same disk.
fn assert_moved(old: &App, new: &App, project: &str) {
    let mut host = running(std::slice::from_ref(old));
    let before = host.sandbox_of("old");
    host.remove("apps/old");
    host.write("setpoint.toml", project);
    declare(&host, std::slice::from_ref(new));
    host.wait_converged();
    let after = host.sandbox_of("new");
    for what in ["id", "vm", "disk"] {
        assert_eq!(after[what], before[what], "{what}");
    }
    assert!(host.app("old").is_null());
    assert_eq!(vm_of(&host, "new").launches, 1);
    assert_eq!(host.world().disks().unwrap().len(), 1);
    assert_eq!(host.stop_daemon(), Some(0));
}

#[test]
fn a_suspended_app_is_left_alone_until_it_is_resumed_and_over_a_restart() {
    let mut host = running(&[App::new("blog")]);
    assert_eq!(said(&host.run(&["suspend", "blog"])), "blog is suspended here until `setpoint resume blog`\n");
    host.wait_for("the suspension", |host| (host.app("blog")["phase"] == "suspended").then_some(()));
    let by = format!("uid {}", rustix::process::geteuid().as_raw());
    assert_eq!(host.app("blog")["override"]["by"], by.as_str());
    assert!(said(&host.run(&["suspend", "blog"])).starts_with("blog has been suspended here since"));

    assert_eq!(host.stop_daemon(), Some(0));
    assert!(!host.state().join("admin.sock").exists());
    host.start();
    host.world().kill(&sandbox_of(&host, "blog"), ExitReason::Reset).unwrap();
    declare(&host, &[App { memory: "192Mi".into(), ..App::new("blog") }, App::new("witness")]);
    host.wait_converged();
    assert_eq!(vm_of(&host, "blog").launches, 1, "neither healed nor changed");
    let repo = host.repo().display().to_string();
    let preview = said(&host.run(&["--repo", &repo, "reconcile", "--dry-run"]));
    assert!(preview.contains("blog: suspended here since") && preview.contains(&format!("by {by}")), "{preview}");

    assert_eq!(said(&host.run(&["resume", "blog"])), "blog is no longer suspended here\n");
    host.wait_for("the change", |host| (host.app("blog")["ready"] == true).then_some(()));
    assert!(host.app("blog")["override"].is_null());
    assert_eq!(vm_of(&host, "blog").launches, 2);
    assert_eq!(said(&host.run(&["resume", "blog"])), "blog is not suspended here\n");
    let events = host.events_of("blog");
    for kind in ["suspendedHere: suspended here by", "resumedHere: resumed here by"] {
        let matching: Vec<_> =
            events.iter().filter(|event| event.starts_with(&format!("{kind} {by} (process "))).collect();
        assert_eq!(matching.len(), 1, "{events:#?}");
    }
}

#[test]
fn a_suspension_follows_a_rename_and_ends_under_the_new_name() {
    let named = |name: &str| App { uid: Some("blog-7f3a".into()), ..App::new(name) };
    let host = running(&[named("old")]);
    said(&host.run(&["suspend", "old"]));
    host.remove("apps/old");
    declare(&host, &[named("new")]);
    host.wait_for("the rename", |host| host.app("new")["override"]["by"].as_str().map(str::to_owned));
    assert_eq!(said(&host.run(&["resume", "new"])), "new is no longer suspended here\n");
    host.wait_for("the new name", |host| (host.app("new")["phase"] == "ready").then_some(()));
}

#[test]
fn what_is_under_way_stops_at_its_step_when_it_is_suspended() {
    let mut host = Host::sim();
    host.configure(ROOMY);
    host.world().set_script("[[fate]]\napp = \"stuck\"\nsilent_after = \"0ms\"\n").unwrap();
    declare(&host, &[App::new("stuck")]);
    host.start();
    host.wait_for("the first boot", |host| host.world().running().unwrap().pop());
    said(&host.run(&["suspend", "stuck"]));
    host.wait_for("the end of the wait", |host| (host.app("stuck")["phase"] == "suspended").then_some(()));
    assert_eq!(host.events_of("stuck").iter().filter(|event| event.starts_with("failed")).count(), 0);
}

#[test]
fn an_app_that_nobody_knows_and_a_daemon_that_is_not_there_are_errors() {
    let mut host = running(&[App::new("blog")]);
    let refused = host.run(&["suspend", "nobody"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(complaint(&refused).starts_with("error: there is no app nobody\nhint: "), "{}", complaint(&refused));
    assert_eq!(host.stop_daemon(), Some(0));
    let alone = host.run(&["resume", "blog"]);
    assert_eq!(alone.status.code(), Some(1));
    assert!(complaint(&alone).starts_with("error: could not reach a daemon through "), "{}", complaint(&alone));
}

#[test]
fn nobody_but_the_daemons_user_and_root_may_suspend() {
    let host = running(&[App::new("blog")]);
    let socket = host.state().join("admin.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    if !rustix::process::geteuid().is_root() {
        eprintln!("not tested: becoming another user takes root");
        return;
    }
    let stranger = |host: &Host| host.command(&["suspend", "blog"]).current_dir("/").uid(65534).output().unwrap();
    for path in [host.dir().to_owned(), host.state()] {
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    let denied = complaint(&stranger(&host));
    assert!(
        denied.contains("caused by: Permission denied") && denied.contains("daemon's user, or as root"),
        "{denied}"
    );
    // Even through a socket that somebody has opened to all.
    fs::set_permissions(&socket, Permissions::from_mode(0o666)).unwrap();
    let denied = complaint(&stranger(&host));
    assert!(denied.starts_with("error: only the daemon's own user and root may ask this"), "{denied}");
    assert!(host.app("blog")["override"].is_null());
}

#[test]
fn a_removal_that_fails_stays_in_the_inventory_and_is_tried_again() {
    let mut host = Host::sim();
    host.configure(ROOMY);
    let fault = |nth: u32| format!("[[fault]]\napp = \"old\"\noperation = \"remove\"\nnth = {nth}\n");
    host.world().set_script(&format!("{}{}", fault(1), fault(2))).unwrap();
    declare(&host, &[App::new("old"), App::new("other")]);
    host.start();
    host.wait_converged();
    host.remove("apps/old");
    host.commit("remove");
    let failures = |host: &Host| {
        let events = host.events_of("old");
        events.iter().filter(|event| event.starts_with("failed: delete failed at remove-vm")).count()
    };
    host.wait_for("the first failure", |host| (failures(host) > 0).then_some(()));
    assert!(!host.sandbox_of("old").is_null(), "what is not confirmed to be gone is accounted for");
    host.wait_for("the removal", |host| host.sandbox_of("old").is_null().then_some(()));
    assert_eq!(failures(&host), 2);
    host.wait_converged();
    assert_eq!(host.world().vms().unwrap().len(), 1);
}

#[test]
fn a_removal_that_was_not_confirmed_is_retried_from_the_inventory_after_a_restart() {
    let mut host = Host::sim();
    host.configure(ROOMY);
    host.world().set_script("[[fault]]\napp = \"old\"\noperation = \"remove\"\n").unwrap();
    declare(&host, &[App::new("old"), App::new("other")]);
    host.start();
    host.wait_converged();
    host.remove("apps/old");
    host.commit("remove");
    host.wait_event("old", "delete failed at remove-vm");
    host.kill_daemon();
    let inventory = said(&host.run(&["state", "show"]));
    let inventory: serde_json::Value = serde_json::from_str(&inventory).unwrap();
    assert!(inventory.to_string().contains("\"intent\":\"delete\""), "{inventory:#}");
    host.world().set_script("").unwrap();
    host.start();
    host.wait_event("old", "deleted: delete");
    host.wait_converged();
    assert_eq!((host.world().vms().unwrap().len(), host.world().disks().unwrap().len()), (1, 1));
}

#[test]
fn conditions_keep_their_times_over_restarts() {
    let mut host = Host::sim();
    host.configure(ROOMY);
    host.world().set_script("[[fate]]\napp = \"sick\"\nunhealthy = \"503\"\n").unwrap();
    declare(&host, &[App::new("well"), App::new("sick"), App::new("broken")]);
    host.start();
    let phases = |host: &Host, apps: [(&str, &str); 3]| {
        let is_so = |(app, phase): (&str, &str)| {
            host.app(app)["phase"] == phase && host.app(app)["conditions"][0]["status"] != "Unknown"
        };
        apps.into_iter().all(is_so).then_some(())
    };
    host.wait_for("the apps", |host| phases(host, [("well", "ready"), ("sick", "unready"), ("broken", "ready")]));
    host.write(
        "apps/broken/app.yaml",
        "apiVersion: setpoint/v1\nkind: App\nmetadata: {name: broken}\nspec: {memory: 1Gi}\n",
    );
    host.commit("break");
    let settled = |host: &Host| phases(host, [("well", "ready"), ("sick", "unready"), ("broken", "stalled")]);
    host.wait_for("the mistake", settled);
    let before = ["well", "sick", "broken"].map(|app| dated(&host, app));
    assert_eq!(before[2]["Stalled"].0, "True");
    for way in ["term", "kill"] {
        match way {
            "term" => assert_eq!(host.stop_daemon(), Some(0)),
            _ => host.kill_daemon(),
        }
        host.start();
        host.wait_for("the apps again", settled);
        let started: Timestamp = host.api("/v1/status")["startedAt"].as_str().unwrap().parse().unwrap();
        let after = ["well", "sick", "broken"].map(|app| dated(&host, app));
        for (before, after) in before.iter().zip(&after) {
            for (kind, (status, since)) in before {
                let (status_now, since_now) = &after[kind];
                assert_eq!(status_now, status, "{kind} after {way}");
                // A status is told of a moment before it is written down.
                let moved = since_now.duration_since(*since).abs();
                assert!(
                    moved < SignedDuration::from_secs(1) && *since_now < started,
                    "{kind} after {way}: {before:?} {after:?}"
                );
            }
        }
    }
    let news: Vec<_> = host.events_of("sick").into_iter().filter(|event| event.starts_with("unready")).collect();
    assert_eq!(news.len(), 0, "what was not ready before is no news: {news:?}");
}

/// The conditions of an app: status and since when.
fn dated(host: &Host, app: &str) -> BTreeMap<String, (String, Timestamp)> {
    let conditions = host.app(app)["conditions"].clone();
    let text = |condition: &serde_json::Value, field: &str| condition[field].as_str().unwrap().to_owned();
    let dated = conditions.as_array().unwrap().iter().map(|condition| {
        (text(condition, "type"), (text(condition, "status"), text(condition, "since").parse().unwrap()))
    });
    dated.collect()
}

#[test]
fn an_app_is_ready_after_it_was_created_and_events_tell_it_in_this_order() {
    let apps: Vec<_> = (0..12).map(|number| App::new(format!("app-{number}"))).collect();
    let host = running(&apps);
    for App { name, .. } in &apps {
        host.wait_event(name, "as declared and healthy");
    }
    let events = host.api("/v1/events?limit=1000");
    let events = events["items"].as_array().unwrap();
    let time = |value: &serde_json::Value| value.as_str().unwrap().parse::<Timestamp>().unwrap();
    let told = |app: &str, kind: &str| {
        let place = events.iter().position(|event| event["app"] == app && event["kind"] == kind);
        let place = place.unwrap_or_else(|| panic!("{app} was never {kind}"));
        (place, time(&events[place]["at"]))
    };
    for App { name, .. } in &apps {
        let (created, ready) = (told(name, "created"), told(name, "ready"));
        let since = dated(&host, name)["Ready"].1;
        assert!(created.0 < ready.0, "{name}");
        assert!(time(&host.sandbox_of(name)["createdAt"]) <= created.1, "{name}");
        assert!(created.1 <= since && since <= ready.1, "{name}: {created:?} {since} {ready:?}");
    }
}

#[test]
fn a_revision_ends_as_stalled_failed_superseded_or_applied_and_every_view_says_so() {
    let mut host = Host::sim();
    host.configure(ROOMY);
    let script = "[[fault]]\napp = \"bad\"\noperation = \"launch\"\n[[fate]]\napp = \"stuck\"\nboot = 1\nsilent_after = \"0ms\"\n";
    host.world().set_script(script).unwrap();
    App::new("good").write(&host);
    host.write("apps/odd/app.yaml", "apiVersion: setpoint/v1\nkind: App\nmetadata: {name: odd}\nspec: {memory: 1Gi}\n");
    let stalled = host.commit("a mistake");
    host.start();
    let message = wait_ended(&host, &stalled, "stalled");
    assert!(message.contains("apps/odd/app.yaml:4") && message.contains("memory"), "{message}");
    assert!(host.api("/v1/status")["source"]["lastApplied"].is_null());

    host.remove("apps/odd");
    App::new("bad").write(&host);
    let failed = host.commit("what does not start");
    let message = wait_ended(&host, &failed, "failed");
    assert!(message.starts_with("bad: create failed at launch: "), "{message}");

    host.remove("apps/bad");
    App::new("stuck").write(&host);
    let superseded = host.commit("what never answers");
    host.wait_for("the boot that is stuck", |host| (!host.sandbox_of("stuck")["vm"]["nonce"].is_null()).then_some(()));
    App { memory: "192Mi".into(), ..App::new("stuck") }.write(&host);
    let applied = host.commit("a way out");
    wait_ended(&host, &applied, "applied");
    let message = wait_ended(&host, &superseded, "superseded");
    assert_eq!(message, format!("{} took its place", &applied[..10]));

    let expected = [(&applied, "applied"), (&superseded, "superseded"), (&failed, "failed"), (&stalled, "stalled")];
    for args in [["get", "revisions"].as_slice(), &["history"]] {
        let shown = said(&host.run(args));
        let lines: Vec<_> = shown.lines().skip(1).collect();
        for (line, (commit, state)) in lines.iter().zip(expected) {
            assert!(line.contains(&commit[..10]) && line.contains(state), "{shown}");
        }
    }
    let events = paged(&host);
    let kinds: Vec<_> =
        events.iter().filter_map(|event| event["kind"].as_str()).filter(|kind| kind.starts_with("revision")).collect();
    let ends: Vec<_> = kinds.iter().filter(|kind| **kind != "revisionAttempted").copied().collect();
    assert_eq!(ends, ["revisionStalled", "revisionFailed", "revisionApplied"]);
    assert_eq!(kinds.len() - ends.len(), 4, "each was tried once: {kinds:?}");
    let times: Vec<Timestamp> = events.iter().map(|event| event["at"].as_str().unwrap().parse().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
}

/// Waits until a revision has this state; its message.
fn wait_ended(host: &Host, commit: &str, state: &str) -> String {
    host.wait_for(&format!("{commit} to be {state}"), |host| {
        let revisions = host.api("/v1/revisions");
        let revision = revisions["items"].as_array()?.iter().find(|revision| revision["commit"] == commit)?;
        (revision["state"] == state).then(|| revision["message"].as_str().unwrap_or_default().to_owned())
    })
}

/// Every event, read page by page.
fn paged(host: &Host) -> Vec<serde_json::Value> {
    let (mut events, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = host.api(&format!("/v1/events?limit=3{cursor}"));
        events.extend(page["items"].as_array().unwrap().iter().cloned());
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return events,
        }
    }
}

#[test]
fn a_change_waits_for_its_window_and_healing_does_not() {
    let closed = "  windows: [{kind: deny, timezone: Europe/Berlin}]\n";
    let blog = App { extra: closed, ..App::new("blog") };
    let host = running(std::slice::from_ref(&blog));
    let boot = host.boot_of("blog");
    declare(&host, &[App { memory: "192Mi".into(), ..blog }]);
    host.wait_for("the block", |host| {
        let blocked = host.app("blog")["blocked"][0]["message"].as_str()?.to_owned();
        blocked.starts_with("waits for a maintenance window").then_some(())
    });
    assert_eq!(host.boot_of("blog"), boot);
    assert_eq!(host.app("blog")["preview"], "up", "who only waits to be changed is served as before");
    host.world().kill(&sandbox_of(&host, "blog"), ExitReason::Reset).unwrap();
    host.wait_healed("blog", &boot);
    assert_eq!(host.sandbox_of("blog")["memory"], "192Mi", "what has to boot anyway takes the change along");
}

/// A daemon that has converged on these apps.
fn running(apps: &[App]) -> Host {
    let mut host = Host::sim();
    host.configure(ROOMY);
    declare(&host, apps);
    host.start();
    host.wait_converged();
    host
}

fn declare(host: &Host, apps: &[App]) {
    apps.iter().for_each(|app| app.write(host));
    host.commit("declare");
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", complaint(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn sandbox_of(host: &Host, app: &str) -> SandboxId {
    SandboxId(host.sandbox_of(app)["id"].as_str().unwrap().into())
}

fn vm_of(host: &Host, app: &str) -> Vm {
    host.world().vm(&sandbox_of(host, app)).unwrap().unwrap()
}
