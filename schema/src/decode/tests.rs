//! Values, their mistakes, and the advice that comes with them, each on a whole app.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;

use super::hints::nearest;
use crate::diagnostic::Diagnostic;
use crate::document::{self, AppDocument};
use crate::env::EnvValue;
use crate::name::RepoPath;
use crate::project::Project;

const HEADER: &str = "apiVersion: setpoint/v1\nkind: App\nmetadata: {name: blog}\n";

fn parse(spec: &str) -> document::Parsed {
    let path = RepoPath::new("apps/blog/app.yaml").unwrap();
    document::parse(&path, &format!("{HEADER}{spec}"), &Project::default())
}

fn good(spec: &str) -> AppDocument {
    let parsed = parse(spec);
    assert_eq!(parsed.diagnostics, vec![]);
    std::sync::Arc::unwrap_or_clone(parsed.apps.into_iter().next().unwrap())
}

/// The only mistake, as message and hint.
fn mistake(spec: &str) -> (String, String) {
    let parsed = parse(spec);
    assert_eq!(parsed.apps, vec![], "a broken document gives no app");
    let [Diagnostic { message, hint, .. }] = parsed.diagnostics.as_slice() else { panic!("{:?}", parsed.diagnostics) };
    (message.clone(), hint.clone().unwrap_or_default())
}

fn message(spec: &str) -> String {
    mistake(spec).0
}

#[test]
fn fields_that_are_not_written_keep_their_defaults() {
    let app = good("spec:\n  resources: {memory: 512Mi}\n");
    let default = crate::app::AppSpec::default();
    assert_eq!(app.spec.resources.memory, crate::quantity::ByteSize::mib(512));
    assert_eq!(app.spec.resources.disk, default.resources.disk);
    assert_eq!(good("").spec, default);
}

#[test]
fn every_field_can_be_written() {
    let app = good(
        "spec:
  template: web
  source: {path: apps/blog/site}
  runtime: {version: 1, web: {command: ./serve, port: 8080, health_path: /ok, restart_after_task: false},
            build: {command: make, timeout_seconds: 60}, workers: [{name: mail, command: ./mail}]}
  resources: {vcpus: 2, memory: 1Gi, disk: 5Gi, shrink: replace}
  env: {PORT: \"8080\"}
  expose: {ports: [9000], hosts: [blog.example.org]}
  power: stopped
  dependsOn: [db, red/cache]
  prune: disabled
  suspend: true
  retain: none
  timeouts: {boot: 60s, ready: 2m, stop: 500ms, unresponsive: 1m}
",
    );
    let json = serde_json::to_value(&app.spec).unwrap();
    assert_eq!(json["dependsOn"], serde_json::json!(["db", "red/cache"]));
    assert_eq!(json["runtime"]["web"]["port"], 8080);
    let read_back: crate::app::AppSpec = serde_json::from_value(json).unwrap();
    assert_eq!(read_back, app.spec);
}

#[test]
fn a_wrong_type_says_what_was_expected_and_what_to_write() {
    let (message, hint) = mistake("spec: {resources: {memory: 512}}");
    assert_eq!(message, "spec.resources.memory: expected a size such as `512Mi`, found the number 512");
    assert_eq!(hint, "write the unit, as in `512Mi`");
    let (message, hint) = mistake("spec: {env: {PORT: 8080}}");
    assert_eq!(message, "spec.env.PORT: expected text, found the number 8080");
    assert_eq!(hint, "write `\"8080\"`, in quotes, for text");
    let (message, hint) = mistake("spec: {resources: {vcpus: \"2\"}}");
    assert_eq!(message, "spec.resources.vcpus: expected a whole number, found `2`");
    assert_eq!(hint, "write `2` without quotes");
}

#[test]
fn booleans_are_true_and_false_alone() {
    assert!(good("spec: {suspend: true}").spec.suspend);
    for word in ["yes", "on", "True", "TRUE", "1"] {
        assert_eq!(mistake(&format!("spec: {{suspend: {word}}}")).1, "write `true`", "{word}");
    }
}

#[test]
fn text_that_looks_like_a_boolean_in_yaml_1_1_stays_text() {
    let app = good("spec: {env: {COUNTRY: no, AT: 12:30:45}}");
    let values: Vec<&str> = app.spec.env.values().filter_map(EnvValue::reveal).collect();
    assert_eq!(values, ["12:30:45", "no"]);
}

#[test]
fn a_variable_is_a_text_or_a_text_that_is_marked() {
    let app = good("spec:\n  env:\n    A: a\n    B: {value: b}\n    C: {value: c, sensitive: true}\n");
    let values: Vec<_> = app.spec.env.values().cloned().collect();
    assert_eq!(values, [EnvValue::from("a"), EnvValue::from("b"), EnvValue::sensitive("c")]);
    assert_eq!(values[2].reveal(), Some("c"));
}

#[test]
fn no_mistake_quotes_what_is_sensitive() {
    let mistakes = [
        ("env: {A: {value: 48151623, sensitive: true}}", "spec.env.A.value: expected text without NUL characters"),
        ("env: {A: {value: [48151623], sensitive: true}}", "spec.env.A.value: expected text without NUL characters"),
        ("env: {A: {value: k48151623, sensitive: yes}}", "spec.env.A.sensitive: expected `true` or `false`"),
        ("env: {A: {value: a, sensitive: k48151623}}", "spec.env.A.sensitive: expected `true` or `false`"),
        ("env: {A: {value: k48151623, sensitve: true}}", "spec.env.A: unknown field `sensitve`"),
        ("env: {A: {value: k48151623, sensitive: true}}, memory: 1Gi", "spec: unknown field `memory`"),
        ("env: {A: {value: k48151623, sensitive: true}}, memory: [", "not YAML: "),
        ("env: {A: {\"value\": k48151623, \"sensitive\" : true}}, env: {}", "`env` stands here a second time"),
    ];
    for (spec, expected) in mistakes {
        let parsed = parse(&format!("spec: {{{spec}}}"));
        assert!(
            parsed.apps.is_empty() && parsed.diagnostics.iter().any(|d| d.message.starts_with(expected)),
            "{parsed:?}"
        );
        assert!(!format!("{parsed:?}").contains("48151623"), "{parsed:?}");
        assert!(parsed.diagnostics[0].to_string().contains("(not shown: the file has sensitive values)"));
    }
    let words = parse("spec: {env: {A: case-insensitive}, memory: 1Gi}");
    assert!(words.diagnostics[0].to_string().contains("case-insensitive"), "the word alone hides nothing");
}

#[test]
fn an_unknown_field_gets_a_suggestion() {
    let (message, hint) = mistake("spec: {resources: {memroy: 1Gi}}");
    assert_eq!(message, "spec.resources: unknown field `memroy`");
    assert_eq!(hint, "did you mean `memory`?");
    assert_eq!(mistake("spec: {depends_on: [db]}").1, "did you mean `dependsOn`?");
    assert_eq!(mistake("spec: {zzz: 1}").1.split(',').next(), Some("the fields here are template"));
}

#[test]
fn a_field_of_another_level_is_sent_there() {
    assert_eq!(mistake("spec: {memory: 1Gi}").1, "sizes belong below `resources:`, as vcpus, memory and disk");
    assert_eq!(mistake("env: {A: b}").1, "it belongs below `spec:`");
}

#[test]
fn a_choice_lists_its_words() {
    let (message, hint) = mistake("spec: {power: runing}");
    assert_eq!(message, "spec.power: expected `running`, `paused` or `stopped`, found `runing`");
    assert_eq!(hint, "did you mean `running`?");
}

#[test]
fn a_key_without_a_value_is_a_mistake() {
    for spec in
        ["spec:", "spec:\n  resources:", "spec: {runtime: {web: }}", "spec: {env: {A: }}", "spec: {source: {path: ~}}"]
    {
        assert!(message(spec).ends_with("has no value"), "{spec}: {}", message(spec));
    }
}

#[test]
fn amounts_have_bounds() {
    assert!(message("spec: {resources: {vcpus: 0}}").contains("must be 1 to 64"));
    assert!(message("spec: {resources: {vcpus: 65}}").contains("must be 1 to 64"));
    assert!(message("spec: {resources: {vcpus: 99999999999}}").contains("expected a whole number"));
    assert!(message("spec: {resources: {memory: 64Mi}}").contains("must be at least 96Mi"));
    assert!(message("spec: {resources: {memory: 100001Ki}}").contains("in whole Mi"));
    assert!(message("spec: {resources: {disk: 1Mi}}").contains("must be at least 16Mi"));
    assert!(message("spec: {resources: {disk: 5GB}}").contains("`5GB` must be a whole number with a unit"));
    assert!(message("spec: {retain: 9999d}").contains("must be at most 3650d"));
    assert!(message("spec: {timeouts: {boot: 0s}}").contains("must be longer than nothing"));
    assert!(message("spec: {expose: {ports: [0]}}").contains("ports from 1 to 65535"));
    assert!(message("spec: {expose: {ports: [65536]}}").contains("a whole number from 1 to 65535"));
    assert!(message(&format!("spec: {{env: {{A: {}}}}}", "x".repeat(20_000))).contains("at most 16384 bytes"));
}

#[test]
fn an_item_may_stand_in_a_set_once() {
    assert_eq!(
        message("spec: {expose: {ports: [80, 80]}}"),
        "spec.expose.ports: the number 80 stands in this list a second time"
    );
    assert!(message("spec: {dependsOn: [db, default/db]}").contains("`default/db` stands in this list a second time"));
}

#[test]
fn names_keep_their_rules() {
    assert!(message("spec: {env: {1A: b}}").contains("the name `1A` must be letters"));
    assert!(message("spec: {dependsOn: [A/B/C]}").contains("is no app name"));
    assert!(message("spec: {expose: {hosts: [\"a.b:80\"]}}").contains("must be a lower-case DNS name"));
    assert!(message("spec: {source: {path: ../x}}").contains("no `.` or `..`"));
    assert!(message("spec: {env: {A: \"\\0\"}}").contains("NUL"));
}

#[test]
fn the_number_of_mistakes_is_bounded() {
    let fields: String = (0..1000).map(|n| format!("  field{n}: 1\n")).collect();
    assert_eq!(parse(&format!("spec:\n{fields}")).diagnostics.len(), super::MAX_DIAGNOSTICS);
}

#[test]
fn suggestions_are_near_or_none() {
    let fields = ["memory", "vcpus", "restart_after_task"];
    assert_eq!(nearest("mmeory", &fields), Some("memory"));
    assert_eq!(nearest("Memory", &fields), Some("memory"));
    assert_eq!(nearest("restartAfterTask", &fields), Some("restart_after_task"));
    assert_eq!(nearest("banana", &fields), None);
    assert_eq!(nearest("", &fields), None);
}

/// A page of mistakes at once, as people see them.
#[test]
fn all_mistakes_of_a_document_are_reported_together() {
    let parsed = parse(
        "spec:
  templte: web
  source: {path: /etc}
  runtime:
    command: ./serve
    web: {port: 0}
    workers:
      - {name: web, command: a}
      - {name: mail, command: a}
      - {name: mail, command: \"\"}
      - {command: a}
  resources: {vcpus: many, memory: 512, disk: 5GB, disk: 1Gi}
  env: {PORT: 8080, EMPTY: }
  power: off
  suspend: yes
  retain: forever
",
    );
    let page: Vec<String> = parsed.diagnostics.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(page.join("\n\n"));
}

fn scraps() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "spec",
        "metadata",
        "name",
        "runtime",
        "web",
        "workers",
        "command",
        "resources",
        "memory",
        "env",
        "expose",
        "ports",
        "dependsOn",
        "kind",
        "App",
        "blog",
        "512Mi",
        "8080",
        "true",
        "null",
        "~",
        "\"",
        "'",
        "{",
        "}",
        "[",
        "]",
        ":",
        ": ",
        "- ",
        "\n",
        "\n  ",
        "\n    ",
        "---\n",
        "&a ",
        "*a",
        "|",
        "#",
        ",",
        "é",
        "\t",
        "!x ",
    ]);
    prop::collection::vec(words, 0..60).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn decoding_never_panics(text in scraps()) {
        let path = RepoPath::new("a.yaml").unwrap();
        let project = Project::default();
        for text in [text.clone(), format!("{HEADER}{text}"), format!("{HEADER}spec: {text}")] {
            for diagnostic in document::parse(&path, &text, &project).diagnostics {
                let _ = diagnostic.to_string();
            }
        }
        let _ = crate::sandbox::parse(&path, &text);
        let _ = Project::parse(&path, &text);
    }

    #[test]
    fn what_is_good_has_no_difference_to_itself_and_survives_json(text in scraps()) {
        let path = RepoPath::new("a.yaml").unwrap();
        for app in document::parse(&path, &format!("{HEADER}spec: {text}"), &Project::default()).apps {
            let mut changes = Vec::new();
            crate::disruption::Declared::diff(&app.spec, &app.spec.clone(), "", &mut changes);
            prop_assert_eq!(changes, vec![]);
        }
    }
}
