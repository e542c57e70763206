//! Both forms of `power` and `wake`, what they inherit, and how they are written.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::app::AppSpec;
use crate::diagnostic::{Lines, SourceText};
use crate::name::RepoPath;
use crate::short::Short;

/// Lays these, as YAML, one over the other; what was wrong with the last.
fn layered(texts: &[&str]) -> (AppSpec, Vec<String>) {
    let mut spec = AppSpec::default();
    let mut mistakes = Vec::new();
    for text in texts {
        let path = RepoPath::new("spec.yaml").unwrap();
        let lines = Lines::new(SourceText { path: &path, text });
        let mut cx = Decoder::new(&lines);
        spec.overlay(&crate::yaml::read(text)[0].root, &mut cx);
        mistakes = cx.finish().into_iter().map(|mistake| mistake.message).collect();
    }
    (spec, mistakes)
}

fn spec(texts: &[&str]) -> AppSpec {
    let (spec, mistakes) = layered(texts);
    assert_eq!(mistakes, Vec::<String>::new());
    spec
}

fn mistake(text: &str) -> String {
    layered(&[text]).1.join("; ")
}

#[test]
fn a_word_is_short_for_the_state() {
    assert_eq!(spec(&["power: paused"]), spec(&["power: {state: paused}"]));
    assert_eq!(spec(&["wake: manual"]), spec(&["wake: {on: manual}"]));
    assert_eq!(spec(&["{}"]), spec(&["{power: running, wake: {on: request, hold: 10s}}"]));
}

#[test]
fn a_word_leaves_what_a_default_says_of_the_rest() {
    let inherited = spec(&["power: {idle: {after: 5m, action: stop}}", "power: paused"]);
    assert_eq!(inherited, spec(&["power: {state: paused, idle: {after: 5m, action: stop}}"]));
    let changed = spec(&["power: {idle: {after: 5m, cpuBelow: 5%}}", "power: {idle: {after: 1h}}"]);
    assert_eq!(changed, spec(&["power: {idle: {after: 1h, cpuBelow: 5%}}"]));
}

#[test]
fn none_takes_back_an_inherited_rule() {
    assert_eq!(spec(&["power: {idle: {after: 5m}}", "power: {idle: none}"]), spec(&["{}"]));
}

#[test]
fn a_rule_without_a_time_rests_after_fifteen_minutes() {
    let rule = spec(&["power: {idle: {}}"]).power.0.idle.0.unwrap();
    assert_eq!(rule, IdleSpec { after: Span::secs(900), action: IdleAction::Pause, cpu_below: None });
}

#[test]
fn what_is_wrong_is_said_where_it_is() {
    let of = mistake;
    assert_eq!(of("power: {idle: {after: 0s}}"), "power.idle.after: `0s` must be 1s to 365d");
    assert_eq!(of("power: {idle: sometimes}"), "power.idle: expected a mapping, found `sometimes`");
    assert_eq!(
        of("power: {idle: {cpuBelow: 0%}}"),
        "power.idle.cpuBelow: `0%` must be a whole number of percent from `1%` to `6400%`, such as `5%`"
    );
    assert_eq!(of("power: {idle: {cpu_below: 5%}}"), "power.idle: unknown field `cpu_below`");
    assert_eq!(
        of("power: {onResumeFailure: retry}"),
        "power.onResumeFailure: expected `boot` or `alert`, found `retry`"
    );
    assert_eq!(of("wake: {hold: 6m}"), "wake.hold: `6m` must be at most 5m");
    assert_eq!(of("wake: never"), "wake: expected `request` or `manual`, found `never`");
}

#[test]
fn a_word_is_written_as_a_word_and_read_as_one() {
    let json = |power: &Short<PowerSpec>| serde_json::to_string(power).unwrap();
    let paused = spec(&["power: paused"]).power;
    assert_eq!(json(&paused), r#""paused""#);
    let ruled = spec(&["power: {idle: {after: 5m}, onResumeFailure: alert}"]).power;
    let written =
        r#"{"state":"running","idle":{"after":"5m","action":"pause","cpuBelow":null},"onResumeFailure":"alert"}"#;
    assert_eq!(json(&ruled), written);
    for power in [paused, ruled] {
        assert_eq!(serde_json::from_str::<Short<PowerSpec>>(&json(&power)).unwrap(), power);
    }
}

#[test]
fn what_is_declared_survives_the_parse_cache() {
    for text in ["{}", "power: stopped", "{power: {idle: {after: 5m, cpuBelow: 5%}}, wake: {on: manual, hold: 0s}}"] {
        let spec = spec(&[text]);
        let packed = postcard::to_stdvec(&spec).unwrap();
        assert_eq!(postcard::from_bytes::<AppSpec>(&packed).unwrap(), spec);
    }
}

#[test]
fn when_an_app_rests_and_who_wakes_it_are_live() {
    let changes = |before: &str, after: &str| {
        let mut changes = Vec::new();
        spec(&[before]).diff(&spec(&[after]), "", &mut changes);
        changes.into_iter().map(|change| (change.path, change.disruption)).collect::<Vec<_>>()
    };
    let live = |path: &str| vec![(path.to_owned(), Disruption::Live)];
    assert_eq!(changes("{}", "power: {idle: {after: 5m}}"), live("power.idle"));
    assert_eq!(changes("power: {idle: {after: 5m}}", "power: {idle: {after: 6m}}"), live("power.idle.after"));
    assert_eq!(changes("{}", "power: {onResumeFailure: alert}"), live("power.onResumeFailure"));
    assert_eq!(changes("{}", "wake: manual"), live("wake"));
    assert_eq!(changes("{}", "wake: {hold: 1s}"), live("wake.hold"));
    assert_eq!(changes("{}", "power: paused"), live("power"));
    assert_eq!(changes("power: paused", "power: stopped"), vec![("power".to_owned(), Disruption::Reboot)]);
}
