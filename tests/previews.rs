//! Previews that a reviewer can trust: two revisions compared without a host, Markdown for a pull request, plans that are
//! saved, and carried out as they were shown or not at all.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/host.rs"]
mod host;
#[path = "support/transcript.rs"]
mod transcript;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};

use host::Host;
use serde_json::Value;
use setpoint_schema::observed::ExitReason;

/// The longest comment that fits everywhere.
const COMMENT_BYTES: usize = 60_000;

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", stderr(output)))
}

fn edit(host: &Host, path: &str, from: &str, to: &str) {
    let text = fs::read_to_string(host.repo().join(path)).unwrap();
    assert!(text.contains(from), "{path} holds no {from}");
    host.write(path, &text.replace(from, to));
}

/// A first revision, tagged `before`, and a second one with a change of every kind.
fn two_revisions() -> Host {
    let host = Host::sim();
    for name in ["blog", "gone", "old", "shop", "steady"] {
        host.write_app(name, "env: {COLOR: red}", "first");
    }
    edit(&host, "apps/old/app.yaml", "name: old", "name: old\n  uid: 6f2c");
    host.commit("before");
    host.git(&["tag", "before"]);
    edit(&host, "apps/blog/app.yaml", "memory: 128Mi", "memory: 160Mi");
    edit(&host, "apps/shop/app.yaml", "COLOR: red", "COLOR: '`@everyone` | </details> #1'");
    host.remove("apps/gone");
    host.write_app("fresh", "dependsOn: [blog]", "new");
    host.git(&["mv", "apps/old", "apps/new"]);
    edit(&host, "apps/new/app.yaml", "name: old", "name: new");
    host.commit("after");
    host
}

#[test]
fn two_revisions_are_compared_without_a_host() {
    let host = two_revisions();
    let bare = host.dir().join("bare.git");
    host.git(&["clone", "--quiet", "--bare", ".", bare.to_str().unwrap()]);
    let compare = ["reconcile", "--dry-run", "--against", "before"];
    let mut transcript = String::new();
    for format in ["text", "json", "markdown"] {
        let args = [&compare[..], &["-o", format]].concat();
        // No flags and no state directory, as where only the repository is there.
        let output = host::setpoint().args(&args).current_dir(&bare).env("HOME", host.dir()).output().unwrap();
        transcript.push_str(&transcript::shown(&host, &args, &output));
        transcript.push('\n');
        assert_eq!(output, host.run(&args), "a checkout shows the same");
    }
    transcript::assert_text("previews", "against", &transcript);
    let exit_code = host.run(&[&compare[..], &["--exit-code"]].concat());
    assert_eq!(exit_code.status.code(), Some(2));
    let same = host.run(&["reconcile", "--dry-run", "--against", "main", "--exit-code"]);
    assert_eq!((same.status.code(), stdout(&same).contains("No changes.")), (Some(0), true));
    let back = host.run(&["reconcile", "--dry-run", "--rev", "before", "--against", "main", "-o", "json"]);
    assert_eq!(json(&back)["summary"]["rename"], 1);
    assert!(!host.state().join("store").exists(), "nothing was looked at, and nothing written");
}

#[test]
fn uncommitted_edits_are_compared_with_a_revision() {
    let host = two_revisions();
    edit(&host, "apps/steady/app.yaml", "COLOR: red", "COLOR: blue");
    let output = host.run(&["reconcile", "--dry-run", "--worktree", "--against", "HEAD", "-o", "json"]);
    let plan = json(&output);
    assert_eq!(plan["actions"].as_array().unwrap().len(), 1);
    assert_eq!(plan["actions"][0]["changes"][0]["path"], "env.COLOR");
    let unknown = host.run(&["reconcile", "--dry-run", "--against", "nowhere"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(stderr(&unknown).contains("nowhere") && stderr(&unknown).contains("hint:"), "{}", stderr(&unknown));
}

#[test]
fn what_was_broken_before_is_said_and_counts_as_not_there() {
    let host = Host::sim();
    host.write_app("blog", "", "first");
    host.write(
        "apps/shop/app.yaml",
        "apiVersion: setpoint/v1\nkind: App\nmetadata: {name: shop}\nspec: {memroy: 1Gi}\n",
    );
    host.commit("broken");
    host.git(&["tag", "before"]);
    host.write_app("shop", "", "mended");
    host.write(
        "apps/blog/app.yaml",
        "apiVersion: setpoint/v1\nkind: App\nmetadata: {name: blog}\nspec: {memroy: 1Gi}\n",
    );
    host.commit("mended, and broken elsewhere");
    let output = host.run(&["reconcile", "--dry-run", "--against", "before", "-o", "json"]);
    assert_eq!(output.status.code(), Some(1), "there are mistakes");
    assert!(stderr(&output).contains("warning: 1 app with mistakes"), "{}", stderr(&output));
    let plan = json(&output);
    assert_eq!(plan["actions"][0]["app"], "shop");
    assert_eq!(plan["actions"][0]["actions"][0], "create");
    assert_eq!((&plan["held"][0]["app"], &plan["held"][0]["reason"]), (&"blog".into(), &"stalled".into()));
    assert_eq!(plan["diagnostics"][0]["object"], "blog");
    assert_eq!(plan["unchanged"], serde_json::json!([]));
}

/// A repository with this many apps, and a change to each of them.
fn large_change(apps: usize) -> Host {
    let host = Host::sim();
    let script = |text: &str| format!("env: {{NOTE: \"{}\", COLOR: {text}}}", text.repeat(40));
    (0..apps).for_each(|n| host.write_app(&format!("app-{n:04}"), &script("red"), "first"));
    host.commit("before");
    host.git(&["tag", "before"]);
    (0..apps).for_each(|n| host.write_app(&format!("app-{n:04}"), &script("blue"), "second"));
    host.commit("after");
    host
}

#[test]
fn the_markdown_of_a_change_to_200_apps_names_each_and_fits_into_a_comment() {
    let host = large_change(200);
    let output = host.run(&["reconcile", "--dry-run", "--against", "before", "-o", "markdown"]);
    let page = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(page.len() <= COMMENT_BYTES, "{} bytes", page.len());
    let lines: Vec<_> = page.lines().filter(|line| line.starts_with("| ~ | `app-")).collect();
    assert_eq!(lines.len(), 200, "each app has its line");
    assert!(page.starts_with("## Setpoint: 200 to update\n"), "{page:.200}");
    let details = page.matches("<details>").count();
    assert_eq!(details, page.matches("</details>").count());
    assert_eq!(page.matches("\n```diff\n").count(), details);
    assert!(details == 200 || page.contains("This page is cut"), "{details} details");
}

#[test]
fn the_markdown_of_a_change_to_2000_apps_names_each_in_a_line() {
    let host = large_change(2000);
    let page = stdout(&host.run(&["reconcile", "--dry-run", "--against", "before", "-o", "markdown"]));
    assert!(page.len() <= COMMENT_BYTES, "{} bytes", page.len());
    assert!((0..2000).all(|n| page.contains(&format!("app-{n:04}"))), "each app is named");
    assert!(page.contains("> "), "what is missing is said");
}

#[test]
fn markdown_shows_drift_mistakes_and_holds_apart() {
    let host = Host::sim();
    for name in ["blog", "shop", "frozen"] {
        host.write_app(name, "", "first");
    }
    host.commit("declare");
    assert_eq!(host.reconcile().status.code(), Some(0));
    let of =
        |app: &str| host.world().vms().unwrap().into_iter().find(|vm| vm.machine.app.name.as_str() == app).unwrap();
    let panic = ExitReason::Panic("Kernel panic: `|` <b>@root</b>".to_owned());
    host.world().kill(&of("blog").machine.sandbox, panic).unwrap();
    edit(&host, "apps/frozen/app.yaml", "retain: none", "retain: none\n  suspend: true");
    edit(&host, "apps/shop/app.yaml", "memory:", "memroy:");
    host.write_app("fresh", "", "new");
    host.commit("change");
    let args = ["reconcile", "--dry-run", "-o", "markdown"];
    transcript::assert_text("previews", "markdown", &transcript::said(&host, &args));
    transcript::assert_text("previews", "stalled", &transcript::said(&host, &["reconcile", "--dry-run"]));
}

/// A host with one app, a second one declared, and the plan for that saved.
fn saved() -> (Host, String) {
    let host = Host::sim();
    host.write_app("blog", "", "first");
    host.commit("declare");
    assert_eq!(host.reconcile().status.code(), Some(0));
    host.write_app("shop", "", "new");
    edit(&host, "apps/blog/app.yaml", "memory: 128Mi", "memory: 160Mi");
    host.commit("change");
    let plan = host.dir().join("plan.json").display().to_string();
    let output = host.run(&["reconcile", "--dry-run", "--save-plan", &plan]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("create shop"), "{}", stdout(&output));
    (host, plan)
}

/// Carries the plan out in vain; what is said.
fn refused(host: &Host, plan: &str) -> String {
    let boots = |host: &Host| host.world().vms().unwrap();
    let before = boots(host);
    let output = host.run(&["reconcile", plan]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert_eq!(before, boots(host), "nothing was done");
    stderr(&output)
}

#[test]
fn a_saved_plan_is_carried_out_with_the_ids_that_it_showed() {
    let (host, plan) = saved();
    let file: Value = serde_json::from_slice(&fs::read(&plan).unwrap()).unwrap();
    let shown: Vec<_> = file["plan"]["actions"].as_array().unwrap().iter().map(|a| a["sandbox"].clone()).collect();
    assert_eq!(fs::metadata(&plan).unwrap().permissions().mode() & 0o777, 0o600);
    let output = host.run(&["reconcile", &plan]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let running: Vec<Value> = host.world().vms().unwrap().iter().map(|vm| vm.machine.sandbox.as_str().into()).collect();
    assert_eq!(shown.len(), 2);
    assert!(shown.iter().all(|id| running.contains(id)), "{shown:?} in {running:?}");
    assert_eq!(host.world().violations().unwrap(), [""; 0]);
    let empty = host.run(&["reconcile", "--dry-run", "--exit-code"]);
    assert_eq!(empty.status.code(), Some(0), "{}", stdout(&empty));
    let again = refused(&host, &plan);
    assert!(again.contains("the saved plan is stale") && again.contains("shop"), "{again}");
}

#[test]
fn a_first_plan_is_saved_before_there_is_any_state_and_carried_out() {
    let host = Host::sim();
    host.write_app("blog", "", "first");
    host.commit("declare");
    let plan = host.dir().join("plan.json").display().to_string();
    assert_eq!(host.run(&["reconcile", "--dry-run", "--save-plan", &plan]).status.code(), Some(0));
    assert!(!host.state().join("store").exists());
    let output = host.run(&["reconcile", &plan]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn a_plan_is_stale_once_a_commit_came_and_says_which() {
    let (host, plan) = saved();
    host.write("apps/blog/index.html", "second");
    let head = host.commit("another change");
    let said = refused(&host, &plan);
    assert!(said.contains("the saved plan is stale") && said.contains(&head[..10]), "{said}");
    assert!(said.contains("hint: make a new one"), "{said}");
}

#[test]
fn a_plan_is_stale_once_a_microvm_changed_and_says_which() {
    let (host, plan) = saved();
    let vm = host.world().vms().unwrap().remove(0);
    host.world().kill(&vm.machine.sandbox, ExitReason::Killed(9)).unwrap();
    let said = refused(&host, &plan);
    let wanted = format!("blog: microVM {} was running in boot ", vm.machine.sandbox);
    assert!(said.contains(&wanted) && said.contains("and is ended (Killed(9))"), "{said}");
}

#[test]
fn a_plan_does_nothing_that_it_did_not_show() {
    let (host, plan) = saved();
    // The guest fails while the plan is carried out: healing it is another plan's work.
    let launch = "[[fault]]\napp = \"shop\"\noperation = \"launch\"\n";
    fs::write(host.state().join("vmm/script.toml"), launch).unwrap();
    let output = host.run(&["reconcile", &plan]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("create of shop is not done"), "{}", stderr(&output));
    let vms = host.world().vms().unwrap();
    let blog = vms.iter().find(|vm| vm.machine.app.name.as_str() == "blog").unwrap();
    assert_eq!(blog.machine.memory_mib, 160, "the rest of the plan is carried out");
}

#[test]
fn a_plan_is_refused_beside_a_daemon_elsewhere_and_when_it_is_none() {
    let (mut host, plan) = saved();
    let other = host.dir().join("other");
    let cloned = Command::new("git").args(["clone", "--quiet"]).arg(host.repo()).arg(&other).status().unwrap();
    assert!(cloned.success());
    let elsewhere = host.run(&["--repo", other.to_str().unwrap(), "reconcile", &plan]);
    assert!(stderr(&elsewhere).contains("the saved plan is for the repository"), "{}", stderr(&elsewhere));

    let mut file: Value = serde_json::from_slice(&fs::read(&plan).unwrap()).unwrap();
    file["entropy"] = "not hex".into();
    fs::write(&plan, file.to_string()).unwrap();
    assert!(refused(&host, &plan).contains("is not a saved plan"));
    file["format_version"] = "2.0".into();
    fs::write(&plan, file.to_string()).unwrap();
    assert!(refused(&host, &plan).contains("version 2.0"));
    fs::write(&plan, "{}").unwrap();
    assert!(refused(&host, &plan).contains("is not a saved plan"));
    assert!(refused(&host, "/nowhere").contains("could not read the plan /nowhere"));

    let mistakes = host.dir().join("mistakes.json").display().to_string();
    edit(&host, "apps/shop/app.yaml", "memory:", "memroy:");
    host.commit("break");
    let unsaved = host.run(&["reconcile", "--dry-run", "--save-plan", &mistakes]);
    assert_eq!(unsaved.status.code(), Some(1));
    assert!(stderr(&unsaved).contains("the plan is not saved") && !fs::exists(&mistakes).unwrap());
    host.git(&["revert", "--no-edit", "HEAD"]);

    assert_eq!(host.run(&["reconcile", "--dry-run", "--save-plan", &plan]).status.code(), Some(0));
    host.start();
    let beside = host.run(&["reconcile", &plan]);
    assert_eq!(beside.status.code(), Some(1));
    assert!(stderr(&beside).contains("has this state directory") && stderr(&beside).contains("hint:"));
}

#[test]
fn what_a_saved_plan_claims_of_its_actions_is_not_believed() {
    let (host, plan) = saved();
    let mut file: Value = serde_json::from_slice(&fs::read(&plan).unwrap()).unwrap();
    file["actions"]["shop"] = "0".repeat(64).into();
    fs::write(&plan, file.to_string()).unwrap();
    let said = refused(&host, &plan);
    assert!(said.contains("something else would be done for shop"), "{said}");
}
