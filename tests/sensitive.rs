//! Values that are declared sensitive: every surface that shows declarations shows that they are there, and none shows them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/host.rs"]
mod host;

use std::fs;
use std::path::Path;
use std::process::Output;

use host::Host;
use serde_json::Value;

/// What begins every sensitive value here, so that finding it anywhere is finding a leak.
const NEEDLE: &str = "hunter2";
const CHANGED: &str = "(sensitive value changed)";

/// Declares an app whose `TOKEN` is this.
fn declare(host: &Host, value: &str) {
    host.write_app(
        "blog",
        &format!("env:\n  COLOR: red\n  TOKEN: {{value: {NEEDLE}-{value}, sensitive: true}}"),
        "page",
    );
    host.commit(value);
}

/// What was printed, which must not be a value.
fn said(output: &Output) -> String {
    let said = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
    assert!(!said.contains(NEEDLE), "{said}");
    said
}

fn dry_run(host: &Host, more: &[&str]) -> String {
    said(&host.run(&[&["reconcile", "--dry-run"], more].concat()))
}

/// Every preview, in every format.
fn previews(host: &Host, saved: &Path) -> [String; 5] {
    [
        dry_run(host, &[]),
        dry_run(host, &["-o", "json", "--save-plan", saved.to_str().unwrap()]),
        dry_run(host, &["-o", "markdown"]),
        dry_run(host, &["--against", "HEAD~1"]),
        dry_run(host, &["--against", "HEAD~1", "-o", "markdown"]),
    ]
}

#[test]
fn a_change_is_previewed_as_a_change_beside_a_daemon_and_without_one() {
    let mut host = Host::sim();
    declare(&host, "old");
    host.start();
    host.wait_converged();
    assert!(dry_run(&host, &[]).contains("No changes."), "what the daemon masks is what is declared");
    host.stop_daemon();
    assert!(dry_run(&host, &[]).contains("No changes."), "and so is what it keeps");

    declare(&host, "new");
    let saved = host.dir().join("plan.json");
    for shown in previews(&host, &saved) {
        assert!(shown.contains(CHANGED) || shown.contains("\"sensitive\": true"), "{shown}");
    }
    assert!(!fs::read_to_string(&saved).unwrap().contains(NEEDLE));
    let carried_out = host.run(&["reconcile", saved.to_str().unwrap()]);
    assert_eq!(carried_out.status.code(), Some(0), "{}", said(&carried_out));
    assert!(dry_run(&host, &[]).contains("No changes."));
}

#[test]
fn what_comes_and_goes_is_shown_as_coming_and_going() {
    let host = Host::sim();
    host.write_app("blog", "env: {COLOR: red}", "page");
    host.commit("before");
    declare(&host, "new");
    let there = dry_run(&host, &["--against", "HEAD~1"]);
    assert!(there.contains("env.TOKEN: unset → (sensitive value) (process)"), "{there}");
    let back = dry_run(&host, &["--rev", "HEAD~1", "--against", "main"]);
    assert!(back.contains("env.TOKEN: (sensitive value) → unset (process)"), "{back}");
    let plan: Value = serde_json::from_str(&dry_run(&host, &["--against", "HEAD~1", "-o", "json"])).unwrap();
    let change = &plan["actions"][0]["changes"][0];
    assert_eq!(
        (&change["before"], &change["after"], &change["sensitive"]),
        (&Value::Null, &"(sensitive value)".into(), &true.into())
    );
}

#[test]
fn the_api_the_log_and_the_command_line_never_show_one() {
    let mut host = Host::sim();
    declare(&host, "old");
    host.start();
    host.wait_converged();
    declare(&host, "new");
    host.wait_converged();
    host.wait_for("the new revision", |host| {
        let app = host.app("blog");
        (app["generation"] == 2 && app["observedGeneration"] == 2).then_some(())
    });
    let routes = [
        "/v1/observed",
        "/v1/plan",
        "/v1/plan?rev=HEAD~1",
        "/v1/apps",
        "/v1/apps/default/blog",
        "/v1/sandboxes",
        "/v1/templates",
        "/v1/events",
        "/v1/revisions",
        "/v1/status",
        "/v1/settings",
        "/metrics",
    ];
    for route in routes {
        let answer = host.api_answer(route).unwrap();
        assert_eq!(answer.status, 200, "{route}: {}", answer.body);
        assert!(!answer.body.contains(NEEDLE), "{route}: {}", answer.body);
    }
    let observed = host.api_answer("/v1/observed").unwrap().body;
    assert!(observed.contains("\"TOKEN\":{\"sensitive\":true,\"sha256\":\""), "{observed}");
    for command in
        [&["describe", "app", "blog"][..], &["describe", "app", "blog", "-o", "json"], &["get", "events"], &["history"]]
    {
        assert_eq!(host.run(command).status.code(), Some(0), "{}", said(&host.run(command)));
    }

    // A mistake on the very line, and one that leaves no YAML at all.
    for broken in ["{value: hunter2-x, sensitve: true}", "{value: hunter2-x, sensitive: true"] {
        host.write_app("blog", &format!("env: {{TOKEN: {broken}}}"), "page");
        let validated = host.run(&["validate", host.repo().to_str().unwrap()]);
        assert_eq!(validated.status.code(), Some(1), "{}", said(&validated));
        host.commit("broken");
        host.wait_for("the mistake", |host| (host.app("blog")["phase"] == "stalled").then_some(()));
        for route in ["/v1/apps/default/blog", "/v1/plan", "/v1/events", "/v1/revisions"] {
            assert!(!host.api_answer(route).unwrap().body.contains(NEEDLE), "{route}");
        }
        declare(&host, "mended");
        host.wait_for("the mended app", |host| (host.app("blog")["phase"] == "ready").then_some(()));
    }
    assert_eq!(host.stop_daemon(), Some(0));
    said(&host.run(&["state", "show"]));
    assert!(!host.log().contains(NEEDLE), "{}", host.log());
}
