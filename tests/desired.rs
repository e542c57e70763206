//! From commits to desired state: what a revision wants, and that no mistake in it ever removes anything.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/git.rs"]
mod git;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::time::{Duration, Instant};

use git::Git;
use setpoint::desired::{Loaded, Loader, WORKTREE};
use setpoint::render::{CHILD_COMMAND, Renderer};
use setpoint::source::{Repository, SourceLimits, Worktree};
use setpoint_plan::desired::Completeness;
use setpoint_schema::id::CommitId;
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::LastGood;
use setpoint_schema::quantity::ByteSize;
use setpoint_schema::template::TemplateRoot;

const SANDBOX: &str = "version: 1\nweb:\n  command: httpd -f -p 3000\n";

/// An app that has nothing but a name.
fn app(name: &str) -> String {
    app_with(name, "")
}

/// An app with these lines in its `spec`.
fn app_with(name: &str, spec: &str) -> String {
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    let head = format!("apiVersion: setpoint/v1\nkind: App\nmetadata:\n  name: {name}\n");
    if spec.is_empty() { head } else { format!("{head}spec:\n{spec}") }
}

fn key(text: &str) -> AppKey {
    text.parse().unwrap()
}

fn loader() -> Loader {
    Loader::new(Renderer::new(vec![env!("CARGO_BIN_EXE_setpoint").into(), CHILD_COMMAND.into()]))
}

/// A repository, the loader that follows it, and each app as it was last declared without a mistake.
struct World {
    git: Git,
    repository: Repository,
    loader: Loader,
    last_good: BTreeMap<AppKey, LastGood>,
}

impl World {
    fn with(files: &[(&str, &str)]) -> Self {
        Self::limited(files, SourceLimits::default())
    }

    fn limited(files: &[(&str, &str)], limits: SourceLimits) -> Self {
        let git = Git::with(files);
        let repository = Repository::open(&git.config_with(limits)).unwrap();
        Self { git, repository, loader: loader(), last_good: BTreeMap::new() }
    }

    /// Two apps without mistakes, loaded.
    fn with_two_apps() -> Self {
        let mut world = Self::with(&[
            ("apps/blog/app.yaml", &app("blog")),
            ("apps/blog/sandbox.yaml", SANDBOX),
            ("apps/blog/index.html", "hello"),
            ("apps/shop/app.yaml", &app("shop")),
            ("apps/shop/sandbox.yaml", SANDBOX),
        ]);
        assert_eq!(world.load().diagnostics, []);
        world
    }

    fn load(&mut self) -> Loaded {
        let tip = self.repository.tip().unwrap();
        let loaded = self.loader.load(&self.repository, &tip, &self.last_good).unwrap();
        for (key, app) in &loaded.desired.apps {
            if !loaded.desired.stalled.contains_key(key) {
                let revision = loaded.desired.revision_of(key).clone();
                self.last_good.insert(key.clone(), LastGood { app: Arc::clone(app), revision });
            }
        }
        loaded
    }

    fn commit(&mut self, files: &[(&str, &str)]) -> Loaded {
        self.git.commit(files);
        self.load()
    }
}

/// The apps that are held as they were.
fn stalled(loaded: &Loaded) -> Vec<String> {
    loaded.desired.stalled.keys().map(ToString::to_string).collect()
}

fn apps(loaded: &Loaded) -> Vec<String> {
    loaded.desired.apps.keys().map(ToString::to_string).collect()
}

fn is_partial(loaded: &Loaded) -> bool {
    matches!(loaded.desired.completeness, Completeness::Partial(_))
}

/// Every mistake in one line each.
fn headlines(loaded: &Loaded) -> Vec<String> {
    loaded.diagnostics.iter().map(|diagnostic| diagnostic.headline()).collect()
}

#[test]
fn an_app_is_loaded_with_its_sandbox_and_workspace() {
    let mut world = World::with_two_apps();
    let loaded = world.load();
    assert_eq!(loaded.desired.completeness, Completeness::Complete);
    assert_eq!(apps(&loaded), ["blog", "shop"]);
    let blog = &loaded.desired.apps[&key("blog")];
    assert_eq!(blog.spec.runtime().web.as_ref().unwrap().command, "httpd -f -p 3000");
    assert_eq!(blog.path.as_str(), "apps/blog/app.yaml");
    assert_eq!(loaded.desired.revision_of(&key("blog")).as_str(), world.git.head());
    assert_eq!(loaded.desired.templates[&blog.spec.template].root, TemplateRoot::Minimal);
    assert_ne!(blog.spec.files, loaded.desired.apps[&key("shop")].spec.files);
    let tip = world.repository.tip().unwrap();
    let files = world.repository.workspace(&tip, &"apps/blog".parse().unwrap()).unwrap();
    assert_eq!(files.keys().collect::<Vec<_>>(), ["index.html"], "declarations are not workspace files");
}

#[test]
fn each_kind_of_change_shows_in_its_part_of_the_spec_alone() {
    let mut world = World::with_two_apps();
    let before = world.load().desired.apps[&key("blog")].spec.clone();
    let after = world.commit(&[("apps/blog/index.html", "changed")]).desired.apps[&key("blog")].spec.clone();
    assert_eq!(before.app, after.app);
    assert_ne!(before.files, after.files);
    let sandbox = SANDBOX.replace("3000", "3001");
    let reconfigured = world.commit(&[("apps/blog/sandbox.yaml", &sandbox)]).desired.apps[&key("blog")].spec.clone();
    assert_eq!(reconfigured.files, after.files);
    assert_ne!(reconfigured.app, after.app);
}

#[test]
fn apps_of_a_team_live_in_its_folder() {
    let team = "apiVersion: setpoint/v1\nkind: App\nmetadata:\n  name: api\n  team: payments\nspec:\n  runtime:\n    web: {command: x}\n";
    let mut world = World::with(&[("apps/payments/api/app.yaml", team)]);
    let loaded = world.load();
    assert_eq!(headlines(&loaded), [""; 0]);
    assert_eq!(apps(&loaded), ["payments/api"]);
}

#[test]
fn an_inline_runtime_wins_over_the_file_beside_which_wins_over_the_source() {
    let source = app_with("blog", "source:\n  path: site\n");
    let web = |command: &str| format!("version: 1\nweb:\n  command: {command}\n");
    let command =
        |loaded: &Loaded| loaded.desired.apps[&key("blog")].spec.runtime().web.as_ref().unwrap().command.clone();
    let mut world = World::with(&[("apps/blog/app.yaml", &source), ("site/sandbox.yaml", &web("of-source"))]);
    assert_eq!(command(&world.load()), "of-source");
    assert_eq!(command(&world.commit(&[("apps/blog/sandbox.yaml", &web("beside"))])), "beside");
    let inline = format!("{source}  runtime:\n    web:\n      command: inline\n");
    assert_eq!(command(&world.commit(&[("apps/blog/app.yaml", &inline)])), "inline");
}

#[test]
fn settings_of_the_repository_fill_in_what_apps_leave_open() {
    let mut world = World::with_two_apps();
    let toml = "[defaults.resources]\nmemory = \"512Mi\"\n[[moved]]\nfrom = \"journal\"\nto = \"blog\"\n";
    let loaded = world.commit(&[("setpoint.toml", toml)]);
    assert_eq!(headlines(&loaded), [""; 0]);
    assert_eq!(loaded.desired.apps[&key("blog")].spec.app.resources.memory, ByteSize::mib(512));
    assert_eq!(loaded.desired.moved[&key("journal")], key("blog"));
}

#[test]
fn declarations_render_with_the_variables_of_the_repository() {
    let text = app_with("blog", "env:\n  DOMAIN: {{ vars.domain }}\n");
    let toml = |domain: &str| format!("[vars]\ndomain = \"{domain}\"\n");
    let mut world = World::with(&[
        ("apps/blog/app.yaml", &text),
        ("apps/blog/sandbox.yaml", SANDBOX),
        ("setpoint.toml", &toml("example.org")),
    ]);
    let domain = |loaded: &Loaded| {
        loaded.desired.apps[&key("blog")]
            .spec
            .app
            .env
            .values()
            .next()
            .and_then(|value| value.reveal())
            .map(str::to_owned)
            .unwrap()
    };
    assert_eq!(domain(&world.load()), "example.org");
    // The app's file is the same, and is rendered again all the same.
    assert_eq!(domain(&world.commit(&[("setpoint.toml", &toml("example.net"))])), "example.net");
}

#[test]
fn a_commit_reads_and_parses_only_what_it_changed() {
    let mut world = World::with_two_apps();
    world.load();
    let before = world.repository.blobs_read();
    world.load();
    assert_eq!(world.repository.blobs_read(), before, "the same revision");
    world.commit(&[("apps/blog/app.yaml", &app_with("blog", "suspend: true\n"))]);
    assert_eq!(world.repository.blobs_read(), before + 1, "one declaration");
    world.commit(&[("apps/shop/page.html", "x")]);
    assert_eq!(world.repository.blobs_read(), before + 1, "a workspace file is known by its id");
}

#[test]
fn unparsable_yaml_keeps_what_the_file_declared_and_blocks_removals() {
    let mut world = World::with_two_apps();
    let good = world.load().desired.apps[&key("blog")].clone();
    let loaded = world.commit(&[("apps/blog/app.yaml", "kind: [App\nmetadata:\n")]);
    assert_eq!(loaded.desired.apps[&key("blog")], good);
    assert_eq!(stalled(&loaded), ["blog"]);
    assert!(is_partial(&loaded));
    assert!(loaded.diagnostics[0].at.is_some(), "{:?}", loaded.diagnostics);
    let repaired = world.commit(&[("apps/blog/app.yaml", &app("blog"))]);
    assert_eq!(repaired.desired.completeness, Completeness::Complete);
    assert_eq!(stalled(&repaired), [""; 0]);
}

#[test]
fn a_mistake_stalls_its_app_and_the_others_go_on() {
    let mut world = World::with_two_apps();
    world.git.write(&[("apps/shop/app.yaml", &app_with("shop", "suspend: true\n"))]);
    let loaded = world.commit(&[("apps/blog/app.yaml", &app_with("blog", "resources:\n  memory: 512\n"))]);
    assert_eq!(stalled(&loaded), ["blog"]);
    assert_eq!(loaded.desired.completeness, Completeness::Complete, "every app could be made out");
    assert!(!loaded.desired.apps[&key("blog")].spec.app.suspend);
    assert!(loaded.desired.apps[&key("shop")].spec.app.suspend);
    assert!(headlines(&loaded)[0].starts_with("apps/blog/app.yaml:7:"), "{:?}", headlines(&loaded));
}

#[test]
fn a_broken_sandbox_file_stalls_its_app() {
    let mut world = World::with_two_apps();
    let loaded = world.commit(&[("apps/blog/sandbox.yaml", "version: 1\ncommand: run\n")]);
    assert_eq!(stalled(&loaded), ["blog"]);
    assert_eq!(apps(&loaded), ["blog", "shop"]);
    assert!(headlines(&loaded)[0].starts_with("apps/blog/sandbox.yaml:2:1"), "{:?}", headlines(&loaded));
}

#[test]
fn mistakes_in_an_app_do_not_hide_those_in_its_sandbox_file() {
    let mut world = World::with_two_apps();
    let broken = app_with("blog", "memroy: 1\n");
    let files = [("apps/blog/app.yaml", broken.as_str()), ("apps/blog/sandbox.yaml", "version: 1\ncommand: run\n")];
    let loaded = world.commit(&files);
    assert_eq!(stalled(&loaded), ["blog"]);
    let found = headlines(&loaded);
    assert!(found.iter().any(|line| line.starts_with("apps/blog/app.yaml:6:")), "{found:?}");
    assert!(found.iter().any(|line| line.starts_with("apps/blog/sandbox.yaml:2:1")), "{found:?}");
}

#[test]
fn an_app_without_anything_to_run_is_a_mistake() {
    let mut world = World::with(&[("apps/blog/app.yaml", &app("blog"))]);
    let loaded = world.load();
    assert_eq!((stalled(&loaded), apps(&loaded)), (vec!["blog".to_owned()], Vec::new()));
    assert!(loaded.diagnostics[0].hint.as_ref().unwrap().contains("sandbox.yaml"));
}

#[test]
fn a_yaml_bomb_is_refused_at_once() {
    let mut world = World::with_two_apps();
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..30 {
        let item = format!("*a{}", level - 1);
        bomb += &format!("a{level}: &a{level} [{}]\n", [item.as_str(); 10].join(", "));
    }
    let started = Instant::now();
    let loaded = world.commit(&[("apps/blog/app.yaml", &bomb)]);
    assert!(started.elapsed() < Duration::from_secs(2));
    assert_eq!(stalled(&loaded), ["blog"]);
    assert!(is_partial(&loaded));
}

#[test]
fn a_declaration_of_a_hundred_megabytes_is_not_read() {
    let mut world = World::with_two_apps();
    fs::File::create(world.git.path().join("apps/blog/app.yaml")).unwrap().set_len(100 << 20).unwrap();
    world.git.commit_all();
    let read = world.repository.blobs_read();
    let loaded = world.load();
    assert_eq!(world.repository.blobs_read(), read);
    assert_eq!(
        (stalled(&loaded), apps(&loaded)),
        (vec!["blog".to_owned()], vec!["blog".to_owned(), "shop".to_owned()])
    );
    assert!(is_partial(&loaded));
    assert_eq!(
        headlines(&loaded),
        ["apps/blog/app.yaml: 104857600 bytes are more than the 1048576 that are read of one file"]
    );
}

#[test]
fn a_workspace_file_of_a_hundred_megabytes_stalls_its_app_alone() {
    let mut world = World::with_two_apps();
    fs::File::create(world.git.path().join("apps/blog/video")).unwrap().set_len(100 << 20).unwrap();
    world.git.commit_all();
    let loaded = world.load();
    assert_eq!(stalled(&loaded), ["blog"]);
    assert_eq!(loaded.desired.completeness, Completeness::Complete);
    assert!(headlines(&loaded)[0].contains("apps/blog/video"), "{:?}", headlines(&loaded));
}

#[test]
fn too_many_files_refuse_the_revision() {
    let limits = SourceLimits { files: 10, ..SourceLimits::default() };
    let mut world = World::limited(&[("apps/blog/app.yaml", &app("blog"))], limits);
    world.load();
    for number in 0..10 {
        world.git.write(&[(&format!("apps/blog/{number}"), "x")]);
    }
    world.git.commit_all();
    let tip = world.repository.tip().unwrap();
    let error = world.loader.load(&world.repository, &tip, &world.last_good).unwrap_err();
    assert!(error.to_string().contains("more than 10 files"), "{error}");
}

#[test]
fn a_duplicate_app_stalls_and_names_both_places() {
    let mut world = World::with_two_apps();
    let loaded = world.commit(&[("apps/copy/app.yaml", &app("blog")), ("apps/copy/sandbox.yaml", SANDBOX)]);
    assert_eq!(stalled(&loaded), ["blog"]);
    let text = headlines(&loaded).join("\n");
    assert!(text.contains("apps/blog/app.yaml") && text.contains("apps/copy/app.yaml"), "{text}");
}

#[test]
fn a_cycle_stalls_its_members() {
    let mut world = World::with_two_apps();
    let loaded = world.commit(&[
        ("apps/blog/app.yaml", &app_with("blog", "dependsOn: [shop]\n")),
        ("apps/shop/app.yaml", &app_with("shop", "dependsOn: [blog]\n")),
        ("apps/third/app.yaml", &app("third")),
        ("apps/third/sandbox.yaml", SANDBOX),
    ]);
    assert_eq!(stalled(&loaded), ["blog", "shop"]);
    assert_eq!(apps(&loaded), ["blog", "shop", "third"]);
    assert!(loaded.desired.apps[&key("blog")].spec.app.depends_on.is_empty());
}

#[test]
fn a_dangling_template_stalls_its_app() {
    let mut world = World::with_two_apps();
    let loaded = world.commit(&[("apps/blog/app.yaml", &app_with("blog", "template: nowhere\n"))]);
    assert_eq!(stalled(&loaded), ["blog"]);
    assert!(headlines(&loaded)[0].contains("nowhere"), "{:?}", headlines(&loaded));
}

fn template(name: &str, path: &str) -> String {
    format!("apiVersion: setpoint/v1\nkind: Template\nmetadata:\n  name: {name}\nspec:\n  rootfs:\n    path: {path}\n")
}

#[test]
fn a_templates_content_is_pinned() {
    let mut world = World::with_two_apps();
    let loaded = world.commit(&[
        ("apps/blog/app.yaml", &app_with("blog", "template: tools\n")),
        ("templates/tools.yaml", &template("tools", "templates/tools")),
        ("templates/tools/bin/tool", "#!/bin/sh\n"),
        ("templates/tools/etc/app.yaml", "not a declaration"),
        ("templates/tools/conf.yaml", "not a declaration"),
    ]);
    assert_eq!(headlines(&loaded), [""; 0]);
    let first = loaded.desired.apps[&key("blog")].spec.template.clone();
    let root = &loaded.desired.templates[&first];
    assert_eq!(root.revision.as_str(), world.git.head());
    let loaded = world.commit(&[("templates/tools/bin/tool", "#!/bin/sh\nexit 1\n")]);
    assert_ne!(loaded.desired.apps[&key("blog")].spec.template, first);
}

#[test]
fn a_template_that_leads_nowhere_stalls_the_apps_that_start_from_it() {
    let mut world = World::with_two_apps();
    world.git.write(&[("templates/tools.yaml", &template("tools", "templates/gone"))]);
    let loaded = world.commit(&[("apps/blog/app.yaml", &app_with("blog", "template: tools\n"))]);
    assert_eq!(stalled(&loaded), ["blog"]);
    assert_eq!(loaded.desired.completeness, Completeness::Complete);
    assert!(
        headlines(&loaded).iter().any(|line| line.starts_with("templates/tools.yaml:7:")),
        "{:?}",
        headlines(&loaded)
    );
}

#[test]
fn the_template_of_a_kept_app_is_found_in_its_revision_after_a_restart() {
    let mut world = World::with_two_apps();
    world.commit(&[
        ("apps/blog/app.yaml", &app_with("blog", "template: tools\n")),
        ("templates/tools.yaml", &template("tools", "templates/tools")),
        ("templates/tools/tool", "1"),
    ]);
    let kept = world.last_good[&key("blog")].clone();
    world.loader = loader();
    let loaded = world.commit(&[("apps/blog/app.yaml", "broken: ["), ("templates/tools/tool", "2")]);
    assert_eq!(loaded.desired.apps[&key("blog")], kept.app);
    assert_eq!(loaded.desired.templates[&kept.spec.template].revision, kept.revision);
}

#[test]
fn a_template_on_the_host_is_pinned_by_its_listing() {
    let host = tempfile::tempdir().unwrap();
    fs::write(host.path().join("tool"), "1").unwrap();
    let mut world = World::with_two_apps();
    let declared = template("tools", host.path().to_str().unwrap());
    let loaded = world
        .commit(&[("apps/blog/app.yaml", &app_with("blog", "template: tools\n")), ("templates/tools.yaml", &declared)]);
    let first = loaded.desired.apps[&key("blog")].spec.template.clone();
    fs::write(host.path().join("another"), "2").unwrap();
    assert_ne!(world.load().desired.apps[&key("blog")].spec.template, first);
    drop(host);
    assert_eq!(stalled(&world.load()), ["blog"]);
}

#[test]
fn a_link_out_of_the_repository_stalls_its_app() {
    let mut world = World::with_two_apps();
    symlink("/etc/passwd", world.git.path().join("apps/blog/secrets")).unwrap();
    world.git.commit_all();
    let loaded = world.load();
    assert_eq!(stalled(&loaded), ["blog"]);
    assert!(
        headlines(&loaded)[0].contains("apps/blog/secrets is a symbolic link to `/etc/passwd`"),
        "{:?}",
        headlines(&loaded)
    );
}

#[test]
fn a_linked_declaration_is_not_followed_and_nothing_is_removed() {
    let mut world = World::with_two_apps();
    let place = world.git.path().join("apps/blog/app.yaml");
    fs::remove_file(&place).unwrap();
    symlink("../shop/app.yaml", &place).unwrap();
    world.git.commit_all();
    let loaded = world.load();
    assert_eq!(
        (stalled(&loaded), apps(&loaded)),
        (vec!["blog".to_owned()], vec!["blog".to_owned(), "shop".to_owned()])
    );
    assert!(is_partial(&loaded));
}

#[test]
fn a_link_or_submodule_in_place_of_an_apps_folder_removes_nothing() {
    let mut world = World::with_two_apps();
    fs::remove_dir_all(world.git.path().join("apps/blog")).unwrap();
    symlink("shop", world.git.path().join("apps/blog")).unwrap();
    world.git.commit_all();
    let loaded = world.load();
    assert_eq!(stalled(&loaded), ["blog"]);
    assert!(is_partial(&loaded));

    fs::remove_file(world.git.path().join("apps/blog")).unwrap();
    let head = world.git.head();
    world.git.commit_all();
    world.git.run(&["update-index", "--add", "--cacheinfo", &format!("160000,{head},apps/blog")]);
    world.git.run(&["commit", "--quiet", "--message=submodule"]);
    let loaded = world.load();
    assert_eq!(stalled(&loaded), ["blog"]);
    assert!(is_partial(&loaded));
    assert_eq!(headlines(&loaded), ["apps/blog: is a submodule, and submodules are not followed"]);
}

#[test]
fn invalid_utf8_is_located() {
    let mut world = World::with_two_apps();
    let place = world.git.path().join("apps/blog/app.yaml");
    let mut bytes = app("blog").into_bytes();
    bytes.extend(b"  labels: {a: \xff}\n");
    fs::write(place, bytes).unwrap();
    world.git.commit_all();
    let loaded = world.load();
    assert_eq!(stalled(&loaded), ["blog"]);
    assert!(is_partial(&loaded));
    assert_eq!(headlines(&loaded), ["apps/blog/app.yaml:5:15: this is not valid UTF-8"]);
}

#[test]
fn an_empty_tree_removes_nothing_unless_that_is_allowed() {
    let mut world = World::with_two_apps();
    fs::remove_dir_all(world.git.path().join("apps")).unwrap();
    world.git.commit_all();
    assert_eq!(world.load().desired.completeness, Completeness::EmptyRefused);
    let allowed = world.commit(&[("setpoint.toml", "[policies]\nallow_empty = true\n")]);
    assert_eq!(allowed.desired.completeness, Completeness::Complete);
    assert_eq!(apps(&allowed), [""; 0]);
}

#[test]
fn one_removed_app_of_two_is_removed() {
    let mut world = World::with_two_apps();
    fs::remove_dir_all(world.git.path().join("apps/blog")).unwrap();
    world.git.commit_all();
    let loaded = world.load();
    assert_eq!(apps(&loaded), ["shop"]);
    assert_eq!(loaded.desired.completeness, Completeness::Complete);
}

#[test]
fn broken_settings_change_and_remove_nothing() {
    let mut world = World::with_two_apps();
    let before = world.load();
    world.git.write(&[("apps/blog/index.html", "changed")]);
    fs::remove_dir_all(world.git.path().join("apps/shop")).unwrap();
    let loaded = world.commit(&[("setpoint.toml", "[defaults\n")]);
    assert_eq!(loaded.desired.apps[&key("blog")], before.desired.apps[&key("blog")]);
    assert_eq!(stalled(&loaded), ["blog"]);
    assert!(is_partial(&loaded), "the shop is not declared, and is not removed either");
    assert!(headlines(&loaded)[0].starts_with("setpoint.toml:1:"), "{:?}", headlines(&loaded));
}

#[test]
fn a_template_that_eats_memory_or_time_is_stopped_and_the_others_render() {
    let doubling =
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}";
    let text = app_with("shop", "env:\n  ANSWER: \"{{ 6 * 7 }}\"\n");
    let mut world = World::with(&[
        ("apps/blog/app.yaml", &format!("{}# {doubling}\n", app("blog"))),
        ("apps/blog/sandbox.yaml", SANDBOX),
        ("apps/shop/app.yaml", &text),
        ("apps/shop/sandbox.yaml", SANDBOX),
    ]);
    let started = Instant::now();
    let loaded = world.load();
    assert!(started.elapsed() < Duration::from_secs(15));
    assert_eq!(apps(&loaded), ["shop"]);
    assert!(is_partial(&loaded));
    let [mistake] = &headlines(&loaded)[..] else { panic!("{:?}", headlines(&loaded)) };
    assert!(mistake.starts_with("apps/blog/app.yaml: takes too"), "{mistake}");
    let env: Vec<_> =
        loaded.desired.apps[&key("shop")].spec.app.env.values().filter_map(|value| value.reveal()).collect();
    assert_eq!(env, ["42"]);
}

#[test]
fn uncommitted_edits_are_seen_in_the_working_directory_alone() {
    let mut world = World::with_two_apps();
    world.git.write(&[("apps/blog/app.yaml", &app_with("blog", "suspend: true\n"))]);
    assert!(!world.load().desired.apps[&key("blog")].spec.app.suspend);
    let worktree = Worktree::read(world.git.path(), SourceLimits::default()).unwrap();
    let revision = CommitId(WORKTREE.into());
    let loaded = loader().load_files(&worktree, &revision, &BTreeMap::new()).unwrap();
    assert!(loaded.desired.apps[&key("blog")].spec.app.suspend);
    let committed = &world.load().desired.apps[&key("blog")].spec.files;
    assert_eq!(&loaded.desired.apps[&key("blog")].spec.files, committed, "the same files have the same digest");
}
