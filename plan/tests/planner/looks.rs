//! What plans look like: one change of every disruption class, and everything that can be said of an app.

use setpoint_plan::assumed;
use setpoint_plan::desired::Desired;
use setpoint_plan::model::{Hold, Plan};
use setpoint_plan::planner::{Entropy, Inputs, plan};
use setpoint_plan::render::{Color, MARKDOWN_BYTES, json, markdown, text};
use setpoint_schema::app::{Power, Retain};
use setpoint_schema::id::CommitId;
use setpoint_schema::observed::{ExitReason, Health};
use setpoint_schema::quantity::ByteSize;

use crate::declare::{Declare, app, days, desired, key};
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

#[test]
fn every_class_as_markdown() {
    insta::assert_snapshot!(markdown(&every_class()));
}

#[test]
fn every_trouble_as_markdown() {
    insta::assert_snapshot!(markdown(&every_trouble()));
}

#[test]
fn markdown_fits_however_much_there_is_to_say_and_keeps_every_line_it_can() {
    // The first are long; what becomes of so many others is the same whatever they say.
    let script = |n: usize, text: &str| match n {
        0..100 => format!("{text} {}\n```\n| </details>", "x".repeat(n * 7)).repeat(n % 30 + 1),
        _ => format!("{text}\n| </details>"),
    };
    for count in [1, 100, 700, 6000] {
        let names: Vec<_> = (0..count).map(|n| format!("app-{n:05}")).collect();
        let of = |text: &str| {
            let apps = names.iter().enumerate().map(|(n, name)| app(name).command(&script(n, text)));
            Desired { revision: CommitId("2".repeat(40).into()), ..desired(apps.collect::<Vec<_>>()) }
        };
        let observed = assumed::carried_out(&of("old"));
        let desired = of("new");
        let entropy = Entropy([0; 16]);
        let inputs = Inputs { desired: &desired, observed: &observed, parent: None, now: assumed::NOW, entropy };
        let page = markdown(&plan(&inputs));
        assert!(page.len() <= MARKDOWN_BYTES, "{count} apps take {} bytes", page.len());
        let named = names.iter().filter(|name| page.contains(name.as_str())).count();
        assert!(named == count || (count == 6000 && named > 4000 && page.contains("more")), "{named} of {count}");
        assert_eq!(page.matches("<details>").count(), page.matches("\n</details>\n\n").count(), "every fold ends");
    }
}

#[test]
fn a_revision_that_is_carried_out_is_as_declared() {
    let apps = [app("blog"), app("off").power(Power::Stopped), app("db").uid("u1"), app("web").depends_on(&["db"])];
    let desired = desired(apps);
    let observed = assumed::carried_out(&desired);
    let entropy = Entropy([0; 16]);
    let plan = plan(&Inputs { desired: &desired, observed: &observed, parent: None, now: assumed::NOW, entropy });
    assert!(plan.is_empty() && plan.held.is_empty(), "{plan:#?}");
}

#[test]
fn an_app_with_mistakes_is_stalled_and_others_build_on_it_as_it_is() {
    let mut world = World::running([app("db"), app("steady")]);
    world.declare([app("db"), app("steady"), app("web").depends_on(&["db"])]);
    world.desired.stalled.insert(key("db"), "bad".to_owned());
    let plan = world.plan();
    assert_eq!(plan.unchanged, [key("steady")].into_iter().collect());
    assert_eq!(plan.held.iter().map(|held| &held.reason).collect::<Vec<_>>(), [&Hold::Stalled("bad".into())]);
    assert!(plan.actions[0].blocked.is_empty(), "what runs of it is well");
    assert!(text(&plan, Color::Never).contains("Stalled:\n  db: its declaration has mistakes: bad\n"));
}
