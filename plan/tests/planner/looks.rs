//! What plans look like: one change of every disruption class, and everything that can be said of an app.

use setpoint_plan::model::Plan;
use setpoint_plan::render::{Color, json, text};
use setpoint_schema::app::{Power, Retain};
use setpoint_schema::observed::{ExitReason, Health};
use setpoint_schema::quantity::ByteSize;

use crate::declare::{Declare, app, days};
use crate::world::World;

/// One change of every class, a creation and a removal.
fn every_class() -> Plan {
    let names = ["anew", "booted", "content", "exposed", "process", "stopped"];
    let mut world = World::running(names.map(app).into_iter().chain([app("gone").retain(days(1))]));
    world.declare([
        app("anew").template("t2"),
        app("booted").memory(512),
        app("content").files("f2"),
        app("exposed").spec(|spec| spec.expose.ports.extend([9000])),
        app("fresh").depends_on(&["booted"]),
        app("process").command("serve\x1b[31m --fast"),
        app("stopped").power(Power::Stopped),
    ]);
    world.plan()
}

/// Drift, blocks and holds.
fn every_trouble() -> Plan {
    let names = ["dead", "drifted", "kept", "suspended", "sick"];
    let mut world = World::running(names.map(app).into_iter().chain([app("large").disk(2)]));
    world.observed.limits.memory = ByteSize::gib(2);
    world.declare([
        app("dead"),
        app("drifted"),
        app("huge").memory(4096),
        app("large").disk(1),
        app("sick"),
        app("suspended").spec(|spec| spec.suspend = true),
    ]);
    world.kill("dead", ExitReason::Panic("Kernel panic - not syncing".into()));
    world.status("drifted").processes = None;
    world.status("sick").web.as_mut().unwrap().health = Health::Unhealthy("503".into());
    world.plan()
}

#[test]
fn every_class_as_text() {
    insta::assert_snapshot!(text(&every_class(), Color::Never));
}

#[test]
fn every_class_as_json() {
    insta::assert_json_snapshot!(json(&every_class()));
}

#[test]
fn every_trouble_as_text() {
    insta::assert_snapshot!(text(&every_trouble(), Color::Never));
}

#[test]
fn every_trouble_as_json() {
    insta::assert_json_snapshot!(json(&every_trouble()));
}

#[test]
fn long_values_are_cut_inside_their_quotes_and_digests_after_twelve_digits() {
    let mut world = World::running([app("blog").files(&"0123456789abcdef".repeat(4))]);
    world.declare([app("blog").files(&"fedcba9876543210".repeat(4)).command(&"\"é\"".repeat(30))]);
    let text = text(&world.plan(), Color::Never);
    let changes: Vec<_> = text.lines().map(str::trim).filter(|line| line.contains(" → ")).collect();
    let command = r#"\"é\""#.repeat(20);
    let command = format!(r#"runtime.web.command: "serve" → "{command}…" (process)"#);
    let content = r#"source.content: "0123456789ab…" → "fedcba987654…" (files)"#;
    assert_eq!(changes, [command.as_str(), content]);
}

#[test]
fn nothing_to_do_says_so() {
    let world = World::running([app("blog")]);
    insta::assert_snapshot!(text(&world.plan(), Color::Never), @"No changes. 1 as declared. Revision 1111111111.");
}

#[test]
fn colours_are_only_added_when_asked_for() {
    let plan = every_class();
    assert!(!text(&plan, Color::Never).contains('\x1b'));
    assert!(text(&plan, Color::Always).contains("\x1b[32m"));
}

#[test]
fn whoever_scans_for_delete_finds_replacements_and_deleted_disks() {
    let mut world = World::running([app("blog").retain(Retain::None), app("site")]);
    world.declare([app("site").template("t2")]);
    let plan = json(&world.plan());
    let verbs: Vec<_> = plan["actions"].as_array().unwrap().iter().map(|action| &action["actions"]).collect();
    assert_eq!(verbs, [&serde_json::json!(["delete", "create"]), &serde_json::json!(["delete"])]);
    let disk = &plan["actions"][1]["disks"][0];
    assert_eq!(disk["action"], "delete");
}
