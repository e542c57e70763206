//! Documents: whose they are, and what becomes of broken ones.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::name::DirName;
use crate::name::Uid;
use crate::snapshot::{Content, SnapshotRef};

fn read(text: &str) -> Parsed {
    parse(&RepoPath::new("apps/blog/app.yaml").unwrap(), text, &Project::default())
}

fn app(metadata: &str, rest: &str) -> String {
    format!("apiVersion: setpoint/v1\nkind: App\nmetadata: {metadata}\n{rest}\n")
}

fn template(spec: &str) -> Parsed {
    read(&format!("apiVersion: setpoint/v1\nkind: Template\nmetadata: {{name: web}}\nspec: {spec}\n"))
}

fn messages(parsed: &Parsed) -> Vec<&str> {
    parsed.diagnostics.iter().map(|diagnostic| diagnostic.message.as_str()).collect()
}

fn key(text: &str) -> AppKey {
    text.parse().unwrap()
}

#[test]
fn an_app_has_its_metadata() {
    let parsed = read(&app("{name: blog, team: red, uid: b-1, labels: {tier: web}, annotations: {a: b}}", ""));
    assert_eq!(messages(&parsed), Vec::<&str>::new());
    let metadata = &parsed.apps[0].metadata;
    assert_eq!(metadata.key, key("red/blog"));
    assert_eq!(metadata.uid, Some(Uid::new("b-1").unwrap()));
    assert_eq!(metadata.labels["tier"], "web");
}

#[test]
fn an_app_without_a_team_is_in_the_default_team() {
    assert_eq!(read(&app("{name: blog}", "")).apps[0].metadata.key, key("default/blog"));
}

#[test]
fn dependencies_without_a_team_are_in_the_team_of_the_app() {
    let parsed = read(&app("{name: blog, team: red}", "spec: {dependsOn: [db, blue/cache]}"));
    let dependencies: Vec<String> = parsed.apps[0].spec.depends_on.iter().map(ToString::to_string).collect();
    assert_eq!(dependencies, ["blue/cache", "red/db"]);
}

#[test]
fn places_are_kept_for_later_mistakes() {
    let spec =
        "spec:\n  template: web\n  source: {path: site}\n  dependsOn: [db]\n  expose: {hosts: [a.example.org]}\n";
    let places = &read(&app("{name: blog, uid: u}", spec)).apps[0].places;
    let line = |place: &Option<Box<Place>>| place.as_ref().map(|place| place.at.line);
    assert_eq!((line(&places.template), line(&places.source_path), line(&places.uid)), (Some(5), Some(6), Some(3)));
    assert_eq!(places.depends_on[0].1.at.line, 7);
    assert_eq!(places.hosts[0].1.at.line, 8);
    assert_eq!(places.name.excerpt.text, "metadata: {name: blog, uid: u}");
}

#[test]
fn a_file_may_hold_several_documents_and_a_bad_one_leaves_the_others() {
    let parsed = read(&format!(
        "{}---\n{}---\n{}",
        app("{name: a}", ""),
        app("{name: b}", "spec: {x: 1}"),
        app("{name: c}", "")
    ));
    let good: Vec<String> = parsed.apps.iter().map(|app| app.metadata.key.to_string()).collect();
    assert_eq!(good, ["a", "c"]);
    assert_eq!(parsed.diagnostics[0].object, Some(key("b")));
    assert_eq!(parsed.coverage, Coverage::Whole);
}

#[test]
fn a_broken_document_names_its_app_where_it_can() {
    for broken in [
        app("{name: blog}", "spec: [\n"),
        app("{name: blog}", "spec: {resources: {memory: 1}}"),
        "apiVersion: v9\nkind: Ap\nmetadata: {name: blog}".to_owned(),
        app("{name: blog, uid: \"\"}", ""),
    ] {
        let parsed = read(&broken);
        assert_eq!(parsed.apps, vec![]);
        assert!(parsed.diagnostics.iter().all(|diagnostic| diagnostic.object == Some(key("blog"))), "{broken}");
        assert_eq!(parsed.coverage, Coverage::Whole, "{broken}");
    }
}

#[test]
fn a_document_that_cannot_be_told_makes_the_file_partial() {
    for broken in [
        app("{name: Blog}", ""),
        app("{name: blog, team: 7}", ""),
        app("{}", ""),
        "apiVersion: setpoint/v1\nkind: App\n".to_owned(),
        "just text".to_owned(),
        "[1, 2]".to_owned(),
        "{{ broken".to_owned(),
        String::new(),
        "# nothing\n".to_owned(),
        format!("{}---\n- [\n---\n{}", app("{name: a}", ""), app("{name: b}", "")),
        format!("{}spec: [\n---\n{}", app("{name: a}", ""), app("{name: b}", "")),
        " ".repeat(yaml::MAX_BYTES + 1),
    ] {
        let parsed = read(&broken);
        assert_eq!(parsed.coverage, Coverage::Partial, "{broken}");
        assert!(!parsed.diagnostics.is_empty());
    }
}

/// Or the app that runs would count as removed.
#[test]
fn a_slip_in_the_identity_makes_the_file_partial() {
    for broken in [
        app("{name: blog, taem: red}", ""),
        app("{name: blog, name: log}", ""),
        app("\n  name: blog\n  team: red\n  team: blue", "spec: {}"),
        app("{name: blog}", "metadata: {name: log}"),
        app("\n  name: blog\n  te am", "spec: {}"),
        "kind: App\nmetadata:\n  name: blog\n  labels: [\n".to_owned(),
    ] {
        let parsed = read(&broken);
        assert_eq!(parsed.coverage, Coverage::Partial, "{broken}");
        assert_eq!(parsed.apps, vec![]);
    }
}

#[test]
fn a_slip_elsewhere_leaves_the_identity_alone() {
    let parsed = read(&app("{name: blog}", "spec:\n  resources: {disk: 1Gi, disk: 2Gi}"));
    assert_eq!((parsed.apps, parsed.coverage), (vec![], Coverage::Whole));
}

#[test]
fn the_header_is_required() {
    let parsed = read("metadata: {name: blog}\n");
    assert_eq!(messages(&parsed), ["`apiVersion` is missing", "`kind` is missing"]);
    let parsed = read("apiVersion: setpoint/v2\nkind: Apps\nmetadata: {name: blog}\n");
    assert_eq!(messages(&parsed)[0], "apiVersion: expected `setpoint/v1`, found `setpoint/v2`");
    assert_eq!(messages(&parsed)[1], "kind: expected `App`, `Template` or `Snapshot`, found `Apps`");
    assert_eq!(parsed.diagnostics[1].hint.as_deref(), Some("did you mean `App`?"));
}

#[test]
fn defaults_of_the_project_hold_below_what_the_app_says() {
    let path = RepoPath::new("setpoint.toml").unwrap();
    let project =
        Project::parse(&path, "[defaults]\nenv = { A = \"1\", B = \"1\" }\n[defaults.resources]\nvcpus = 2\n").unwrap();
    let text = app("{name: blog}", "spec: {env: {B: \"2\"}, resources: {memory: 1Gi}}");
    let spec = parse(&path, &text, &project).apps.remove(0).spec.clone();
    assert_eq!(spec.resources.vcpus, 2);
    let env: Vec<String> =
        spec.env.iter().map(|(name, value)| format!("{name}={}", value.reveal().unwrap_or_default())).collect();
    assert_eq!(env, ["A=1", "B=2"]);
}

#[test]
fn an_app_without_processes_is_a_mistake_once_its_runtime_is_known() {
    let app = &read(&app("{name: blog}", "spec: {runtime: {build: {command: make}}}")).apps[0];
    let mistake = app.check_runs_something(app.spec.runtime.as_ref().unwrap()).unwrap();
    assert_eq!(mistake.message, "app `blog` has neither `web` nor `workers`, so there is nothing to run");
    assert_eq!(mistake.object, Some(key("blog")));
    assert_eq!(mistake.at.unwrap().line, 4);
}

#[test]
fn labels_have_bounds() {
    assert!(messages(&read(&app("{name: a, labels: {\"x y\": b}}", "")))[0].contains("without blanks"));
    let long = "x".repeat(5000);
    assert!(messages(&read(&app(&format!("{{name: a, annotations: {{x: {long}}}}}"), "")))[0].contains("4096 bytes"));
}

#[test]
fn an_app_has_to_fit_a_record() {
    let worker = |n: usize| format!("{{name: w{n}, command: {}}}", "x".repeat(8000));
    let workers: Vec<String> = (0..5).map(worker).collect();
    let parsed = read(&app("{name: blog}", &format!("spec: {{runtime: {{workers: [{}]}}}}", workers.join(", "))));
    assert!(messages(&parsed).iter().any(|message| message.contains("bytes in all")), "{:?}", messages(&parsed));
}

#[test]
fn a_template_is_a_root_in_the_repository_or_on_the_host() {
    let root = |path: &str| template(&format!("{{rootfs: {{path: {path}}}}}")).templates.remove(0).template.root;
    assert_eq!(root("images/web.tar"), TemplateRoot::RepoRootfs { path: RepoPath::new("images/web.tar").unwrap() });
    assert_eq!(root("/srv/web"), TemplateRoot::HostRootfs { path: "/srv/web".to_owned() });
}

#[test]
fn a_template_is_warm_ahead_where_it_says_so() {
    let prewarm = |spec: &str| template(spec).templates.remove(0).template.prewarm;
    assert!(prewarm("{rootfs: {path: x}, prewarm: true}"));
    assert!(!prewarm("{rootfs: {path: x}}"));
    assert_eq!(template("{rootfs: {path: x}, prewarm: soon}").templates, vec![]);
}

#[test]
fn a_broken_template_is_remembered_by_name() {
    for spec in
        ["{rootfs: {path: ../x}}", "{rootfs: {path: /a/../b}}", "{rootfs: {}}", "{}", "{rootfs: {pth: x}}", "[", ""]
    {
        let parsed = template(spec);
        assert_eq!(parsed.templates, vec![], "{spec}");
        assert!(!parsed.diagnostics.is_empty(), "{spec}");
        assert!(parsed.broken_templates.contains(&TemplateName::new("web").unwrap()), "{spec}");
        assert_eq!(parsed.coverage, Coverage::Whole, "{spec}");
    }
}

#[test]
fn the_built_in_template_cannot_be_declared() {
    let text = "apiVersion: setpoint/v1\nkind: Template\nmetadata: {name: minimal}\nspec: {rootfs: {path: x}}\n";
    assert!(messages(&read(text))[0].contains("`minimal` is built in"));
}

fn snapshot(spec: &str) -> Parsed {
    read(&format!("apiVersion: setpoint/v1\nkind: Snapshot\nmetadata: {{name: nightly, team: red}}\nspec: {spec}\n"))
}

#[test]
fn a_snapshot_has_defaults_and_names_apps_in_its_team() {
    let parsed = snapshot("{of: blog}");
    assert_eq!(parsed.diagnostics, []);
    let spec = &parsed.snapshots[0].snapshot.spec;
    assert_eq!(spec.of.to_string(), "red/blog");
    assert_eq!((spec.content, spec.keep, spec.retain.to_string()), (Content::Memory, 3, "30d".to_owned()));
    let names: Vec<&str> = spec.exclude.iter().map(DirName::as_str).collect();
    assert_eq!(names, [".cache", ".next", ".venv", "__pycache__", "node_modules", "out"]);
}

#[test]
fn a_snapshot_says_all_it_may() {
    let parsed = snapshot("{of: blue/blog, content: disk, exclude: [target], keep: 7, retain: none, token: after 3.1}");
    assert_eq!(parsed.diagnostics, []);
    let spec = serde_json::to_value(&parsed.snapshots[0].snapshot.spec).unwrap();
    let expected = serde_json::json!({
        "of": "blue/blog", "content": "disk", "exclude": ["target"], "keep": 7, "retain": "none", "token": "after 3.1",
    });
    assert_eq!(spec, expected);
}

#[test]
fn a_snapshot_with_mistakes_is_known_to_be_declared() {
    for (spec, mistake) in [
        ("{}", "spec: `of` is missing"),
        ("{of: blog, keep: 0}", "spec.keep: `0` must be 1 to 100"),
        ("{of: blog, exclude: [a/b]}", "without `/`"),
        ("{of: blog, contents: disk}", "unknown field `contents`"),
    ] {
        let parsed = snapshot(spec);
        assert!(parsed.diagnostics[0].message.contains(mistake), "{spec}: {:?}", parsed.diagnostics);
        let key: SnapshotKey = "red/nightly".parse().unwrap();
        assert!(parsed.snapshots.is_empty() && parsed.broken_snapshots.contains_key(&key), "{spec}");
        assert_eq!(parsed.coverage, Coverage::Whole, "{spec}");
    }
}

#[test]
fn a_snapshot_whose_name_cannot_be_made_out_may_be_any() {
    let parsed = read("apiVersion: setpoint/v1\nkind: Snapshot\nmetadata: {name: Nightly}\nspec: {of: blog}\n");
    assert_eq!(parsed.coverage, Coverage::Partial);
}

#[test]
fn an_app_begins_as_one_thing_and_a_restore_needs_a_token() {
    let app = |spec: &str| {
        read(&format!("apiVersion: setpoint/v1\nkind: App\nmetadata: {{name: a, team: red}}\nspec: {spec}\n"))
    };
    let parsed = app("{from: {snapshot: nightly}, restore: {snapshot: 0123456789abcdef0123456789abcdef, token: x}}");
    assert_eq!(parsed.diagnostics, []);
    let spec = &parsed.apps[0].spec;
    assert_eq!(spec.from.as_ref().unwrap().to_string(), "snapshot red/nightly");
    assert!(matches!(spec.restore.as_ref().unwrap().snapshot, SnapshotRef::Id(_)));
    for (spec, mistake) in [
        ("{from: {}}", "spec.from: expected one of `snapshot` and `app`"),
        ("{from: {snapshot: x, app: y}}", "spec.from: expected one of `snapshot` and `app`"),
        ("{restore: {snapshot: x}}", "spec.restore: `token` is missing"),
        ("{restore: {snapshot: x, token: \"\"}}", "spec.restore.token: must not be empty"),
    ] {
        assert_eq!(app(spec).diagnostics[0].message, mistake, "{spec}");
    }
}
