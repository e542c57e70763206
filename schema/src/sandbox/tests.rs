//! The rules of `sandbox.yaml`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::runtime::Preview;

fn read(text: &str) -> Result<Runtime, Vec<Diagnostic>> {
    parse(&RepoPath::new("apps/blog/sandbox.yaml").unwrap(), text)
}

fn good(text: &str) -> Runtime {
    read(&format!("version: 1\n{text}")).unwrap()
}

/// The only mistake, as message and hint.
fn mistake(text: &str) -> (String, String) {
    let mistakes = read(text).unwrap_err();
    let [Diagnostic { message, hint, .. }] = mistakes.as_slice() else { panic!("{mistakes:?}") };
    (message.clone(), hint.clone().unwrap_or_default())
}

fn message(text: &str) -> String {
    mistake(&format!("version: 1\n{text}")).0
}

#[test]
fn web_has_defaults() {
    let web = good("web: {command: ./serve}").web.unwrap();
    assert_eq!((web.port, web.health_path.as_str(), web.restart_after_task), (3000, "/", true));
}

#[test]
fn workers_alone_make_an_app_without_preview() {
    assert_eq!(good("workers: [{name: mail, command: ./mail}]").preview(), Preview::None);
}

#[test]
fn a_build_command_that_is_absent_is_not_one_that_is_empty() {
    assert_eq!(good("web: {command: a}\nbuild: {timeout_seconds: 5}").build.unwrap().command, None);
    assert_eq!(good("web: {command: a}\nbuild: {command: \"\"}").build.unwrap().command, Some(String::new()));
    assert_eq!(message("web: {command: a}\nbuild: {command: }"), "build.command: has no value");
}

#[test]
fn the_version_is_required_and_is_1() {
    assert_eq!(
        mistake("web: {command: a}"),
        ("`version` is missing".into(), "begin the file with `version: 1`".into())
    );
    assert_eq!(mistake("version: 2\nweb: {command: a}").0, "version: expected the version 1, found the number 2");
    assert_eq!(mistake("version: \"1\"\nweb: {command: a}").0, "version: expected the version 1, found `1`");
}

#[test]
fn a_web_process_needs_a_command() {
    assert_eq!(message("web: {port: 80}"), "web: `command` is missing");
    assert_eq!(message("web: {command: \"  \"}"), "web.command: `  ` must not be empty");
    assert_eq!(message("web: {}"), "web: `command` is missing");
    assert_eq!(message("web:"), "web: has no value");
}

#[test]
fn an_explicit_port_is_1_to_65535() {
    assert_eq!(good("web: {command: a, port: 65535}").web.unwrap().port, 65535);
    assert_eq!(message("web: {command: a, port: 0}"), "web.port: `0` must be 1 to 65535");
    assert!(message("web: {command: a, port: 65536}").contains("a whole number from 1 to 65535"));
    assert!(message("web: {command: a, port: -1}").contains("a whole number from 1 to 65535"));
}

#[test]
fn the_health_path_starts_with_a_slash() {
    assert!(message("web: {command: a, health_path: ok}").contains("must start with `/`"));
    assert!(message("web: {command: a, health_path: \"/a b\"}").contains("without blanks"));
}

#[test]
fn worker_names_are_spelled_unique_and_not_reserved() {
    let name = |name: &str| format!("workers: [{{name: {name}, command: a}}]");
    assert!(read(&format!("version: 1\n{}", name("A_b-9"))).is_ok());
    assert!(message(&name("a.b")).contains("must be 1 to 64 letters"));
    assert!(message(&name(&"a".repeat(65))).contains("must be 1 to 64 letters"));
    assert!(message(&name("web")).contains("is reserved"));
    assert!(message(&name("build")).contains("is reserved"));
    let twice = "version: 1\nworkers:\n- {name: a, command: a}\n- {name: a, command: b}\n";
    let (message, hint) = mistake(twice);
    assert_eq!(message, "two workers are named `a`");
    assert!(hint.starts_with("line 3 has it too"));
}

#[test]
fn a_worker_needs_name_and_command() {
    assert!(message("workers: [{command: a}]").ends_with("`name` is missing"));
    assert!(message("workers: [{name: a}]").ends_with("`command` is missing"));
    assert!(message("workers: [mail]").contains("expected a mapping"));
    assert!(message("workers: {mail: a}").contains("expected a list"));
}

#[test]
fn what_other_formats_have_at_the_top_gets_a_hint() {
    let hint = |field: &str| mistake(&format!("version: 1\n{field}: 1\nweb: {{command: a}}")).1;
    assert!(hint("services").contains("`web:`") && hint("processes").contains("`workers:`"));
    assert_eq!(hint("command"), "it belongs below `web:`");
    assert_eq!(hint("port"), "it belongs below `web:`");
}

#[test]
fn the_timeout_of_a_build_is_bounded() {
    assert!(message("web: {command: a}\nbuild: {timeout_seconds: 0}").contains("must be 1 to 86400"));
}

#[test]
fn a_file_is_one_document() {
    assert_eq!(mistake("").0, "declares nothing");
    assert_eq!(mistake("---\n").0, "declares nothing");
    assert!(mistake("version: 1\nweb: {command: a}\n---\nversion: 1\n").0.contains("a second document begins here"));
    assert!(mistake("version: 1\nweb: [\n").0.starts_with("not YAML"));
    assert_eq!(mistake("text").0, "expected a mapping, found `text`");
}
