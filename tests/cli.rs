//! The command line as people see it: scripted sessions whose output is checked in under `tests/snapshots/cli`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/examples.rs"]
mod examples;
#[path = "support/host.rs"]
mod host;
#[path = "support/transcript.rs"]
mod transcript;

use examples::{copy_examples, daemon_on_examples};
use host::Host;
use transcript::{assert_text, said, session, shown};

fn assert_session(name: &str, host: &Host, commands: &[&[&str]]) {
    assert_text("cli", name, &session(host, commands));
}

#[test]
fn every_verb_explains_itself() {
    let host = Host::sim();
    let bare = shown(&host, &[], &host::setpoint().output().unwrap());
    let verbs: [&[&str]; 23] = [
        &["--help"],
        &["describe", "-h"],
        &["tree", "-h"],
        &["wait", "-h"],
        &["history", "-h"],
        &["completions", "-h"],
        &["man", "-h"],
        &["describe", "--help"],
        &["help", "wait"],
        &["init", "-h"],
        &["run", "-h"],
        &["reconcile", "-h"],
        &["validate", "-h"],
        &["get", "-h"],
        &["logs", "-h"],
        &["events", "-h"],
        &["doctor", "-h"],
        &["snapshot", "-h"],
        &["state", "-h"],
        &["state", "show", "-h"],
        &["state", "rebuild", "-h"],
        &["version", "-h"],
        &["help", "get"],
    ];
    assert_text("cli", "help", &format!("{bare}\n{}", session(&host, &verbs)));
}

#[test]
fn wrong_usage_exits_with_1_and_says_what_would_be_right() {
    let host = Host::sim();
    host.configure("[source]\nbrunch = \"main\"\n");
    let commands: [&[&str]; 24] = [
        &["get", "apps", "-o", "toml"],
        &["get", "apps", "--phase", "happy"],
        &["describe"],
        &["describe", "node", "hello"],
        &["tree", "--team", "a", "b"],
        &["wait"],
        &["wait", "hello", "--all"],
        &["wait", "hello", "--for", "lunch"],
        &["wait", "hello", "--timeout", "soon"],
        &["history", "-n", "many"],
        &["events", "--since", "yesterday"],
        &["completions", "tcsh"],
        &["man"],
        &["reconcil"],
        &["get"],
        &["get", "pods"],
        &["get", "apps", "--watch=maybe"],
        &["logs"],
        &["reconcile", "--rev", "main"],
        &["reconcile", "--exit-code"],
        &["reconcile", "--dry-run", "--allow-rewind"],
        &["state"],
        &["--accel", "magic", "doctor"],
        // Understood, and refused for what it is told.
        &["doctor"],
    ];
    for args in commands {
        assert_eq!(host.run(args).status.code(), Some(1), "{args:?}");
    }
    assert_session("usage", &host, &commands);
}

#[test]
fn a_daemon_that_is_not_there_is_an_error_with_a_hint() {
    let host = Host::sim();
    // Nobody listens on port 1.
    let server = "127.0.0.1:1";
    let commands: [&[&str]; 9] = [
        &["get", "apps", "--server", server],
        &["get", "apps", "--watch", "--server", server],
        &["describe", "app", "blog", "--server", server],
        &["tree", "--server", server],
        &["wait", "blog", "--server", server],
        &["events", "--server", server],
        &["history", "--server", server],
        &["logs", "blog", "--server", server],
        &["doctor", "--server", server],
    ];
    assert_session("no-daemon", &host, &commands);
    // Without --server it is the configured address.
    host.configure("[api]\nlisten = \"127.0.0.1:1\"\n");
    assert!(said(&host, &["get", "apps"]).contains("hint: start one with `setpoint run`"));
    assert_eq!(said(&host, &["version"]), "$ setpoint version\nsetpoint 0.1.0\n");
    let no_source = host.command(&["run"]).current_dir(host.dir()).output().unwrap();
    assert_text("cli", "no-source", &shown(&host, &["run"], &no_source));
}

#[test]
fn a_new_repository_is_made_checked_and_previewed() {
    let host = Host::sim();
    let site = host.repo().join("site");
    let mut text = session(&host, &[&["init", "site"], &["init", "site"], &["validate", "site"]]);
    host.git(&["-C", "site", "init", "-q", "-b", "main"]);
    host.git(&["-C", "site", "add", "--all"]);
    host.git(&["-C", "site", "commit", "-q", "-m", "Say hello"]);
    for args in [&["reconcile", "--dry-run"][..], &["--repo", ".", "reconcile"], &["reconcile", "--dry-run"]] {
        let output = host.command(args).current_dir(&site).output().unwrap();
        text.push('\n');
        text.push_str(&shown(&host, args, &output));
    }
    assert_text("cli", "init", &text);
}

#[test]
fn every_mistake_is_shown_at_once_with_its_line() {
    let host = Host::sim();
    host.write("setpoint.toml", "[vars]\ngreeting = \"hello\"\n");
    let app = |name: &str, spec: &str| {
        let text = format!("apiVersion: setpoint/v1\nkind: App\nmetadata:\n  name: {name}\nspec:\n{spec}");
        host.write(&format!("apps/{name}/app.yaml"), &text);
    };
    app("api", "  runtime: {web: {command: serve}}\n  dependsOn: [frontend]\n");
    app("bad-units", "  resources:\n    memory: 512\n    disk: 5 gigs\n    vcpus: 0\n");
    app("frontend", "  runtime: {web: {command: serve}}\n  dependsOn: [api, nobody]\n");
    app("nothing-to-run", "  env: {A: b}\n");
    app("services", "  env: {A: b}\n");
    host.write("apps/services/sandbox.yaml", "version: 1\nservices:\n  web: {command: serve}\nport: 80\n");
    app("twice", "  template: nowhere\n  template: minimal\n");
    app("typo", "  resorces: {memory: 1Gi}\n  expose: {ports: [70000]}\n  power: on\n");
    app("undefined", "  env:\n    GREETING: \"{{ vars.greting }}\"\n");
    app("unclosed", "  env: {A: b\n");
    app("unknown-template", "  template: nowhere\n  runtime: {workers: [{name: a b, command: ''}]}\n");
    host.write(
        "apps/copy/app.yaml",
        "apiVersion: setpoint/v1\nkind: App\nmetadata: {name: api}\nspec: {runtime: {web: {command: x}}}\n",
    );
    host.write("apps/other/app.yaml", "apiVersion: setpoint/v2\nkind: Pod\nmetadata: {name: other}\n");
    host.write(
        "templates/broken.yaml",
        "apiVersion: setpoint/v1\nkind: Template\nmetadata: {name: broken}\nspec: {}\n",
    );
    assert_session("validate", &host, &[&["validate", "."], &["validate", "apps"], &["validate", "nowhere"]]);
}

#[test]
fn the_examples_have_no_mistakes() {
    let host = Host::sim();
    copy_examples(&host);
    assert_eq!(said(&host, &["validate", "."]), "$ setpoint validate .\n6 apps, no mistakes\n");
}

#[test]
fn a_daemon_is_asked_what_there_is_and_what_happened() {
    let host = daemon_on_examples();
    let tables: [&[&str]; 20] = [
        &["get", "apps"],
        &["get", "apps", "-o", "wide"],
        &["get", "apps", "-o", "name", "--phase", "ready,stalled"],
        &["get", "apps", "-l", "kind=example", "--no-header"],
        &["get", "apps", "hello", "nobody", "ticker"],
        &["get", "apps", "--team", "nobodys"],
        &["get", "apps", "nobody", "-o", "json"],
        &["get", "sandboxes", "-o", "wide", "hello"],
        &["get", "sandboxes", "--phase", "ready"],
        &["get", "templates"],
        &["get", "templates", "tools", "-o", "wide"],
        &["get", "revisions"],
        &["history"],
        &["history", "nobody"],
        &["version"],
        &["get", "apps", "default/guestbook"],
        &["get", "sandboxes"],
        &["get", "sandbox", "ticker"],
        &["get", "apps", "nobody"],
        &["logs", "guestbook", "renderer"],
    ];
    assert_text("cli", "get", &session(&host, &tables));
    let objects: [&[&str]; 3] = [
        &["get", "apps", "guestbook", "-o", "json"],
        &["get", "sandboxes", "hello", "-o", "json"],
        &["get", "templates", "-o", "yaml"],
    ];
    assert_text("cli", "get-json", &session(&host, &objects));
    // An app is seen to be ready by one task and its creation to be done by another, so their order is open.
    let events = session(&host, &[&["events", "hello"]]);
    let (heading, rows) = events.split_at(events.match_indices('\n').nth(1).unwrap().0 + 1);
    let mut rows: Vec<_> = rows.lines().map(|row| row.split_once("  ").unwrap().1).collect();
    rows.sort_unstable();
    assert_text("cli", "events", &format!("{heading}{}\n", rows.join("\n")));
    assert_text("cli", "events-of-nobody", &session(&host, &[&["events", "nobody"], &["logs", "nobody"]]));
}

#[test]
fn a_state_is_shown_beside_the_daemon_that_has_it_and_not_rebuilt_under_it() {
    let mut host = Host::sim();
    host.write_app("blog", "", "first");
    host.commit("declare");
    let repo = host.repo().display().to_string();
    let doctor: &[&str] =
        &["--repo", &repo, "doctor", "source", "credentials", "state", "daemon", "journal", "machines"];
    let mut text = session(&host, &[doctor, &["version"]]);
    host.start();
    host.wait_converged();
    let beside: [&[&str]; 4] = [doctor, &["state", "show"], &["state", "rebuild"], &["--repo", &repo, "reconcile"]];
    text.push_str(&format!("\n{}", session(&host, &beside)));
    assert_eq!(host.stop_daemon(), Some(0));
    text.push_str(&format!("\n{}", session(&host, &[doctor, &["state", "rebuild"], doctor])));
    assert_text("cli", "state", &text);
}

#[test]
fn a_second_daemon_on_the_same_state_is_refused() {
    let mut host = Host::sim();
    host.write_app("blog", "", "first");
    host.commit("declare");
    host.start();
    let (code, said) = host.run_in_vain();
    assert_eq!(code, Some(1));
    assert!(
        said.contains("is in use by process") && said.contains("hint: one daemon uses a state directory"),
        "{said}"
    );
    assert!(host.is_up());
}
