//! `setpoint.toml`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;

fn read(text: &str) -> Result<Project, Vec<Diagnostic>> {
    Project::parse(&RepoPath::new("setpoint.toml").unwrap(), text)
}

fn message(text: &str) -> String {
    let mistakes = read(text).unwrap_err();
    let [Diagnostic { message, .. }] = mistakes.as_slice() else { panic!("{mistakes:?}") };
    message.clone()
}

fn key(text: &str) -> AppKey {
    text.parse().unwrap()
}

#[test]
fn an_empty_file_is_as_good_as_none() {
    assert_eq!(read("").unwrap(), Project::default());
}

#[test]
fn every_section_is_read() {
    let project = read(
        "[defaults]
template = \"web\"
[defaults.resources]
memory = \"512Mi\"
[vars]
region = \"eu\"
ports = [1, 2]
nested = { on = true, share = 0.5, day = 2024-01-01 }
[hosts]
pattern = \"{app}.{team}.{domain}\"
[policies]
allow_empty = true
[[moved]]
from = \"old\"
to = \"red/new\"
",
    )
    .unwrap();
    assert_eq!(project.defaults.template.as_str(), "web");
    assert_eq!(
        Json::Object(project.vars),
        serde_json::json!({"region": "eu", "ports": [1, 2], "nested": {"on": true, "share": 0.5, "day": "2024-01-01"}})
    );
    assert_eq!(project.hosts.pattern.host(&key("red/blog"), "localhost"), "blog.red.localhost");
    assert_eq!(project.policies, Policies { allow_empty: true, allow_rewind: false });
    assert_eq!(project.moved, BTreeMap::from([(key("old"), key("red/new"))]));
}

#[test]
fn mistakes_are_located() {
    let mistakes = read("[defaults.resources]\nmemory = 512\n[polices]\nallow_empty = 1\n").unwrap_err();
    let shown: Vec<String> = mistakes.iter().map(Diagnostic::headline).collect();
    assert_eq!(
        shown,
        [
            "setpoint.toml:2:10: defaults.resources.memory: expected a size such as `512Mi`, found the number 512",
            "setpoint.toml:3:2: unknown field `polices`",
        ]
    );
    assert_eq!(mistakes[1].hint.as_deref(), Some("did you mean `policies`?"));
}

#[test]
fn what_one_app_is_has_no_default() {
    assert!(message("[defaults]\ndependsOn = [\"db\"]\n").contains("`dependsOn` cannot have a default"));
    assert!(message("[defaults.source]\npath = \"x\"\n").contains("`source` cannot have a default"));
    assert!(message("[defaults.runtime.web]\ncommand = \"x\"\n").contains("`runtime` cannot have a default"));
}

#[test]
fn a_host_pattern_names_app_and_domain() {
    for pattern in [
        "{app}.localhost",
        "{domain}",
        "{app}_{domain}",
        "{app}.{domain}/x",
        "{app}.{domain}.{port}",
        "-{app}.{domain}",
    ] {
        assert!(
            message(&format!("[hosts]\npattern = \"{pattern}\"\n")).contains("must be a host name with"),
            "{pattern}"
        );
    }
}

#[test]
fn teams_never_share_a_host_name_by_default() {
    let pattern = HostPattern::default();
    assert_eq!(pattern.host(&key("blog"), "localhost"), "blog.localhost");
    assert_eq!(pattern.host(&key("red/blog"), "localhost"), "blog.red.localhost");
}

#[test]
fn chains_of_moves_are_followed_and_circles_refused() {
    let moves = |pairs: &[(&str, &str)]| -> String {
        pairs.iter().map(|(from, to)| format!("[[moved]]\nfrom = \"{from}\"\nto = \"{to}\"\n")).collect()
    };
    let moved = read(&moves(&[("a", "b"), ("b", "c")])).unwrap().moved;
    assert_eq!(moved, BTreeMap::from([(key("a"), key("c")), (key("b"), key("c"))]));
    assert!(message(&moves(&[("a", "b"), ("b", "a")])).contains("in a circle"));
    assert!(message(&moves(&[("a", "a")])).contains("to itself"));
    assert!(message(&moves(&[("a", "c"), ("b", "c")])).contains("both move to `c`"));
    assert!(message("moved = 1").contains("expected a list of tables"));
}

#[test]
fn variables_are_finite() {
    assert!(message("[vars]\nx = inf\n").contains("a finite number"));
}

#[test]
fn broken_toml_is_located() {
    let mistakes = read("[vars\nx = 1\n").unwrap_err();
    assert_eq!(mistakes[0].at.unwrap().line, 1);
}
