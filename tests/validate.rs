//! Mistakes for people, programs and forges; and the JSON Schemas that editors find them with.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/host.rs"]
mod host;
#[path = "support/transcript.rs"]
mod transcript;

use std::fs;
use std::path::Path;

use host::Host;
use serde_json::Value;

/// A repository whose declarations stand in a folder, with a mistake in each of two files.
fn mistaken() -> Host {
    let host = Host::sim();
    let app = "apiVersion: setpoint/v1\nkind: App\nmetadata: {name: blog}\nspec: {resources: {memroy: 1Gi}}\n";
    host.write("site/apps/blog/app.yaml", app);
    host.write("site/apps/blog/sandbox.yaml", "version: 1\nweb: {command: exec busybox httpd -f, prot: 80}\n");
    host
}

#[test]
fn every_format_has_every_mistake() {
    let host = mistaken();
    let formats: [&[&str]; 4] = [
        &["validate", "site"],
        &["validate", "site", "-o", "json"],
        &["validate", "site", "-o", "github"],
        &["validate", "site", "-o", "sarif"],
    ];
    transcript::assert_text("validate", "formats", &transcript::session(&host, &formats));
}

#[test]
fn every_format_says_which_name_may_have_been_meant() {
    let host = Host::sim();
    host.write(
        "templates/tools.yaml",
        "apiVersion: setpoint/v1\nkind: Template\nmetadata: {name: tools}\nspec: {rootfs: {path: root}}\n",
    );
    host.write("root/etc/motd", "hello\n");
    let app = |name: &str, spec: &str| {
        let spec = format!("{{runtime: {{web: {{command: serve}}}}, {spec}}}");
        let text = format!("apiVersion: setpoint/v1\nkind: App\nmetadata: {{name: {name}}}\nspec: {spec}\n");
        host.write(&format!("apps/{name}/app.yaml"), &text);
    };
    app("database", "power: run");
    app("blog", "template: tols, dependsOn: [databse]");
    app("shop", "windows: [{kind: alow, days: [monday], timezone: Europe/Berln}, {kind: deny, timezone: Vienna}]");
    host.write("apps/pod/app.yaml", "apiVersion: setpoint/v1\nkind: Pod\nmetadata: {name: pod}\n");
    host.write("apps/tool/app.yaml", "apiVersion: setpoint/v1\nkind: app\nmetadata: {name: tool}\n");
    let formats: [&[&str]; 4] = [
        &["validate", "."],
        &["validate", ".", "-o", "json"],
        &["validate", ".", "-o", "github"],
        &["validate", ".", "-o", "sarif"],
    ];
    for args in formats {
        let output = host.run(args);
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        for meant in ["tools", "database", "running", "allow", "mon", "Europe/Berlin", "Europe/Vienna", "App"] {
            assert!(said.contains(&format!("did you mean `{meant}`?")), "{args:?} without {meant}: {said}");
        }
        assert!(said.contains("what runs is `App`"), "{args:?}: {said}");
    }
    transcript::assert_text("validate", "meant", &transcript::session(&host, &formats[..1]));
    // A dry run says the same of a working directory.
    host.git(&["add", "--all"]);
    assert!(transcript::said(&host, &["reconcile", "--dry-run", "--worktree"]).contains("did you mean `database`?"));
}

#[test]
fn forges_are_told_paths_from_the_top_of_the_repository() {
    let host = mistaken();
    let inside =
        host.command(&["validate", ".", "-o", "github"]).current_dir(host.repo().join("site")).output().unwrap();
    let absolute = host.run(&["validate", host.repo().join("site").to_str().unwrap(), "-o", "github"]);
    let named = host.run(&["validate", "site", "-o", "github"]);
    assert!(String::from_utf8_lossy(&named.stdout).starts_with("::error file=site/apps/blog/app.yaml,line=4,col=20,"));
    assert_eq!((&inside.stdout, &absolute.stdout), (&named.stdout, &named.stdout));
}

#[test]
fn declarations_without_mistakes_give_empty_lists() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/apps");
    let run = |format: &str| {
        let output = host::setpoint().args(["validate", "-o", format]).arg(&examples).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let json: Value = serde_json::from_slice(&run("json")).unwrap();
    assert_eq!((&json["apps"], &json["diagnostics"]), (&6.into(), &serde_json::json!([])));
    let sarif: Value = serde_json::from_slice(&run("sarif")).unwrap();
    assert_eq!(sarif["runs"][0]["results"], serde_json::json!([]));
    assert_eq!(run("github"), b"");
}

/// The schema that the first line of a file names, found from where the file is.
fn named_schema(file: &Path) -> Value {
    let text = fs::read_to_string(file).unwrap();
    let line = text.lines().next().unwrap();
    let yaml = line.strip_prefix("# yaml-language-server: $schema=");
    let path = yaml.or_else(|| line.strip_prefix("#:schema ")).unwrap_or_else(|| panic!("{}: {line}", file.display()));
    let schema = file.parent().unwrap().join(path);
    serde_json::from_slice(&fs::read(&schema).unwrap_or_else(|_| panic!("{} is missing", schema.display()))).unwrap()
}

fn printed_schema(kind: &str) -> Value {
    let output = host::setpoint().args(["schema", kind]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn every_declaration_of_the_examples_and_of_init_names_the_schema_of_its_kind() {
    let host = Host::sim();
    assert_eq!(host.run(&["init", "site"]).status.code(), Some(0));
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/apps");
    for top in [host.repo().join("site"), examples] {
        let (mut dirs, mut seen) = (vec![top.clone()], 0);
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(&dir).unwrap().map(Result::unwrap) {
                let path = entry.path();
                let in_templates = dir == top.join("templates");
                let kind = match entry.file_name().to_str().unwrap() {
                    "app.yaml" => "app",
                    "sandbox.yaml" => "sandbox",
                    "setpoint.toml" => "project",
                    name if in_templates && name.ends_with(".yaml") => "template",
                    _ if path.is_dir() => {
                        dirs.push(path);
                        continue;
                    }
                    _ => continue,
                };
                assert!(named_schema(&path) == printed_schema(kind), "{} names a stale schema", path.display());
                seen += 1;
            }
        }
        assert!(seen >= 3, "{} in {}", seen, top.display());
    }
}

#[test]
fn all_schemas_can_be_written_anew() {
    let host = Host::sim();
    assert_eq!(host.run(&["schema", "--write", "there/schema"]).status.code(), Some(0));
    for (kind, file) in [("app", "app"), ("template", "template"), ("sandbox", "sandbox"), ("setpoint", "setpoint")] {
        let written = fs::read(host.repo().join(format!("there/schema/{file}.json"))).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&written).unwrap(), printed_schema(kind));
    }
    assert_eq!(printed_schema("app")["$schema"], "http://json-schema.org/draft-07/schema#");
    assert_eq!(host.run(&["schema"]).status.code(), Some(1));
    assert_eq!(host.run(&["schema", "pod"]).status.code(), Some(1));
}
