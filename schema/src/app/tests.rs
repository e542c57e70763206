//! Which change disturbs what.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::decode::{Decode as _, Decoder};
use crate::diagnostic::{Lines, SourceText};
use crate::disruption::{Declared as _, FieldChange};

/// An app's spec from YAML.
fn spec(text: &str) -> AppSpec {
    let path = RepoPath::new("spec.yaml").unwrap();
    let lines = Lines::new(SourceText { path: &path, text });
    let mut cx = Decoder::new(&lines);
    let spec = AppSpec::decode(&crate::yaml::read(text)[0].root, &mut cx).unwrap();
    assert_eq!(cx.finish(), vec![]);
    spec
}

fn changes(before: &str, after: &str) -> Vec<FieldChange> {
    let mut changes = Vec::new();
    spec(before).diff(&spec(after), "", &mut changes);
    changes
}

const FULL: &str = "{template: web, source: {path: a}, env: {A: b}, dependsOn: [db], suspend: true, retain: none,
  runtime: {web: {command: a}, build: {command: b}, workers: [{name: a, command: a}]},
  expose: {ports: [80], hosts: [a.b]}, timeouts: {boot: 1s}}";

#[test]
fn a_spec_has_no_difference_to_itself() {
    assert_eq!(changes(FULL, FULL), vec![]);
    assert_eq!(changes("{}", "{}"), vec![]);
}

#[test]
fn every_field_has_its_class() {
    let table = [
        ("{}", "{template: web}", "template", Disruption::Replace),
        ("{}", "{source: {path: a}}", "source.path", Disruption::Files),
        ("{}", "{runtime: {web: {command: a}}}", "runtime", Disruption::Process),
        (
            "{runtime: {web: {command: a}}}",
            "{runtime: {web: {command: b}}}",
            "runtime.web.command",
            Disruption::Process,
        ),
        (
            "{runtime: {web: {command: a}}}",
            "{runtime: {web: {command: a, port: 1}}}",
            "runtime.web.port",
            Disruption::Process,
        ),
        (
            "{runtime: {web: {command: a}}}",
            "{runtime: {web: {command: a, health_path: /ok}}}",
            "runtime.web.health_path",
            Disruption::Live,
        ),
        (
            "{runtime: {web: {command: a}}}",
            "{runtime: {web: {command: a}, build: {command: \"\"}}}",
            "runtime.build",
            Disruption::Process,
        ),
        ("{}", "{resources: {vcpus: 2}}", "resources.vcpus", Disruption::Reboot),
        ("{}", "{resources: {memory: 1Gi}}", "resources.memory", Disruption::Reboot),
        ("{}", "{resources: {disk: 2Gi}}", "resources.disk", Disruption::Live),
        ("{}", "{resources: {disk: 512Mi}}", "resources.disk", Disruption::Replace),
        ("{}", "{resources: {shrink: replace}}", "resources.shrink", Disruption::Live),
        ("{}", "{env: {A: b}}", "env.A", Disruption::Process),
        ("{}", "{expose: {ports: [80]}}", "expose.ports", Disruption::Live),
        ("{}", "{expose: {hosts: [a.b]}}", "expose.hosts", Disruption::Live),
        ("{}", "{power: stopped}", "power", Disruption::Reboot),
        ("{}", "{dependsOn: [db]}", "dependsOn", Disruption::Live),
        ("{}", "{prune: disabled}", "prune", Disruption::Live),
        ("{}", "{suspend: true}", "suspend", Disruption::Live),
        ("{}", "{retain: none}", "retain", Disruption::Live),
        ("{}", "{timeouts: {stop: 1s}}", "timeouts.stop", Disruption::Live),
        ("{}", "{windows: [{kind: deny}]}", "windows", Disruption::Live),
    ];
    for (before, after, path, class) in table {
        let found = changes(before, after);
        let [FieldChange { path: found_path, disruption, .. }] = found.as_slice() else { panic!("{after}: {found:?}") };
        assert_eq!((found_path.as_str(), *disruption), (path, class), "{before} → {after}");
    }
}

#[test]
fn a_build_that_becomes_explicitly_empty_is_a_change() {
    let change =
        &changes("{runtime: {build: {timeout_seconds: 1}}}", "{runtime: {build: {timeout_seconds: 1, command: \"\"}}}")
            [0];
    assert_eq!(
        (change.path.as_str(), &change.before, &change.after),
        ("runtime.build.command", &serde_json::Value::Null, &"".into())
    );
}

#[test]
fn what_is_known_of_a_spec_by_its_hashes_is_what_its_fields_say() {
    let pinned = |text: &str, files: &str| {
        let (template, files) = (TemplateDigest("t".into()), TreeDigest(files.into()));
        PinnedSpec::new(SandboxSpec { app: spec(text), template, files })
    };
    let (a, same, other) = (pinned(FULL, "f"), pinned(FULL, "f"), pinned(FULL, "g"));
    assert_eq!(*a.processes_digest(), a.processes().digest());
    assert!(a == same && a != other, "by their fields");
    for spec in [&a, &same, &other] {
        assert_eq!(*spec.digest(), SpecDigest::of(&**spec));
    }
    assert!(a == same && a != other, "by their digests");
}
