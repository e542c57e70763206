//! Whatever way a loader came to a revision, it wants the same: what a commit changed is all that is read, and the result is that
//! of reading everything. Random histories of real commits, mistakes among them, each loaded by a daemon that has seen all of it or
//! was started again in between, by one that starts now, and by two that start now with the cache of the first: at the tip, or before.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/git.rs"]
mod git;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use git::Git;
use setpoint::desired::{Cache, Loaded, Loader};
use setpoint::render::{CHILD_COMMAND, Renderer};
use setpoint::source::{Repository, SourceLimits};
use setpoint_schema::id::CommitId;
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::LastGood;

/// How many histories, and how many commits in each. Some seconds in all.
const HISTORIES: u64 = 12;
const COMMITS: usize = 14;

const APPS: [&str; 4] = ["blog", "shop", "pay/api", "pay/web"];
const RUNTIME: &str = "version: 1\nweb:\n  command: httpd -f -p 3000\n";

fn renderer() -> Renderer {
    Renderer::new(vec![env!("CARGO_BIN_EXE_setpoint").into(), CHILD_COMMAND.into()])
}

fn loader() -> Loader {
    Loader::new(renderer())
}

/// Small, seeded, and good enough to choose edits by (Marsaglia's xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % sides as u64).unwrap()
    }

    fn of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len())]
    }
}

/// A declaration of the app whose folder is `app`, with one of many specs.
fn declaration(app: &str, dice: &mut Dice) -> String {
    let (team, name) = app.split_once('/').unwrap_or(("default", app));
    let other = dice.of(&["blog", "shop", "pay/api", "pay/web", "nowhere"]);
    let uid = dice.of(&["", "", "", ", uid: one"]);
    let spec = match dice.below(14) {
        0 => format!("{{dependsOn: [{other}]}}"),
        1 => format!("{{dependsOn: [{other}], template: tools}}"),
        2 => "{template: tools}".to_owned(),
        3 => "{source: {path: site}}".to_owned(),
        4 => format!("{{source: {{path: apps/{other}}}}}"),
        5 => "{expose: {hosts: [www.example.org]}}".to_owned(),
        6 => "{runtime: {web: {command: inline}}}".to_owned(),
        7 => "{env: {DOMAIN: \"{{ vars.domain }}\"}}".to_owned(),
        8 => "{memroy: 1}".to_owned(),
        9 => "{resources: {memory: 512}}".to_owned(),
        10 => return "kind: [App\nmetadata:\n".to_owned(),
        11 => return String::new(),
        _ => "{}".to_owned(),
    };
    let document =
        format!("apiVersion: setpoint/v1\nkind: App\nmetadata: {{name: {name}, team: {team}{uid}}}\nspec: {spec}\n");
    match dice.below(10) {
        0 => format!("{document}---\n{}", document.replace("name: ", "name: second-")),
        1 => document.replace("name: ", "nmae: "),
        2 => format!("# {}\n{document}", dice.below(1000)),
        _ => document,
    }
}

/// Changes something in the work tree, and says what.
fn edit(root: &Path, dice: &mut Dice) -> String {
    let app = dice.of(&APPS);
    let folder = format!("apps/{app}");
    let write = |path: String, text: &str| {
        let place = root.join(&path);
        let _ = fs::remove_file(place.parent().unwrap());
        let _ = fs::create_dir_all(place.parent().unwrap());
        let _ = fs::remove_dir_all(&place);
        let _ = fs::remove_file(&place);
        let done = fs::write(&place, text);
        format!("{path} = {text:?} {done:?}")
    };
    match dice.below(22) {
        0..=6 => write(format!("{folder}/app.yaml"), &declaration(app, dice)),
        7 | 8 => write(format!("{folder}/sandbox.yaml"), RUNTIME),
        9 => write(format!("{folder}/sandbox.yaml"), "version: 1\ncommand: run\n"),
        10 | 11 => write(format!("{folder}/index.html"), dice.of(&["one", "two", "three"])),
        12 => {
            let _ = fs::remove_dir_all(root.join(&folder));
            format!("{folder} removed")
        }
        13 => {
            let to = format!("apps/{}", dice.of(&APPS));
            let _ = fs::create_dir_all(root.join(&to).parent().unwrap());
            format!("{folder} renamed to {to}: {:?}", fs::rename(root.join(&folder), root.join(&to)))
        }
        14 => {
            let _ = fs::remove_dir_all(root.join(&folder));
            let _ = fs::create_dir_all(root.join(&folder).parent().unwrap());
            format!("{folder} linked: {:?}", symlink("shop", root.join(&folder)))
        }
        15 => {
            let target = dice.of(&["/etc/passwd", "index.html"]);
            let _ = fs::remove_file(root.join(&folder).join("link"));
            format!("{folder}/link to {target}: {:?}", symlink(target, root.join(&folder).join("link")))
        }
        16 => {
            let path = dice.of(&["{rootfs: {path: templates/tools}}", "{rootfs: {path: nowhere}}", "{}"]);
            let text = format!("apiVersion: setpoint/v1\nkind: Template\nmetadata: {{name: tools}}\nspec: {path}\n");
            write(format!("templates/{}.yaml", dice.of(&["tools", "other"])), &text)
        }
        17 => write("templates/tools/tool".to_owned(), dice.of(&["1", "2"])),
        18 => {
            let file = dice.of(&["templates/tools.yaml", "templates/other.yaml", "setpoint.toml", "apps/app.yaml"]);
            let _ = fs::remove_file(root.join(file));
            format!("{file} removed")
        }
        19 => write("site/sandbox.yaml".to_owned(), dice.of(&[RUNTIME, "version: 2\n"])),
        20 => write(dice.of(&["apps/app.yml", "apps/pay/app.yaml", "site/page"]).to_owned(), "x"),
        _ => {
            let text = dice.of(&[
                "[vars]\ndomain = \"example.org\"\n",
                "[vars]\ndomain = \"example.net\"\n[defaults]\ntemplate = \"tools\"\n",
                "[[moved]]\nfrom = \"blog\"\nto = \"shop\"\n",
                "[hosts]\npattern = \"{app}-{team}.{domain}\"\n",
                "[defaults\n",
            ]);
            write("setpoint.toml".to_owned(), text)
        }
    }
}

/// What a load says, but for the revision of templates that only kept apps start from: any revision that has one will do.
fn shown(mut loaded: Loaded) -> Loaded {
    for root in loaded.desired.templates.values_mut() {
        root.revision = CommitId("".into());
    }
    loaded
}

struct World {
    git: Git,
    repository: Repository,
    loader: Loader,
    state: tempfile::TempDir,
    last_good: BTreeMap<AppKey, LastGood>,
    /// The last revision whose settings had no mistake.
    good_settings: Option<CommitId>,
    /// How many revisions were compared.
    compared: usize,
}

impl World {
    fn new() -> Self {
        let filler = |n: u32| {
            let text = format!(
                "apiVersion: setpoint/v1\nkind: App\nmetadata: {{name: filler-{n}}}\nspec: {{runtime: {{web: {{command: x}}}}}}\n"
            );
            (format!("apps/fillers/filler-{n}/app.yaml"), text)
        };
        // So many that what was parsed is kept.
        let fillers: Vec<(String, String)> = (0..60).map(filler).collect();
        let mut files: Vec<(&str, &str)> = fillers.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        files.push(("apps/blog/app.yaml", "apiVersion: setpoint/v1\nkind: App\nmetadata: {name: blog}\n"));
        files.extend([("apps/blog/sandbox.yaml", RUNTIME), ("site/page", "x")]);
        let git = Git::with(&files);
        let repository = git.open();
        let state = tempfile::tempdir().unwrap();
        let loader = Loader::with_cache(renderer(), Cache::of(state.path()));
        Self { git, repository, loader, state, last_good: BTreeMap::new(), good_settings: None, compared: 0 }
    }

    fn cache(&self) -> Cache {
        Cache::of(self.state.path())
    }

    /// Loads the tip in each way, and answers how they differ.
    fn compare(&mut self) -> Result<(), String> {
        let tip = self.repository.tip().unwrap();
        let followed = shown(self.loader.load(&self.repository, &tip, &self.last_good).unwrap());
        let mut fresh = loader();
        if let Some(earlier) = &self.good_settings {
            // What holds while settings are broken is known from before.
            fresh.load(&self.git.open(), earlier, &self.last_good).unwrap();
        }
        let cold = shown(fresh.load(&self.git.open(), &tip, &self.last_good).unwrap());
        if followed != cold {
            return Err(format!("followed: {followed:#?}\ncold: {cold:#?}"));
        }
        self.loader.settle(&self.repository, &self.last_good);
        let mut kept = Loader::with_cache(renderer(), self.cache());
        if let Some(earlier) = &self.good_settings {
            kept.load(&self.git.open(), earlier, &self.last_good).unwrap();
        }
        let warm = shown(kept.load(&self.git.open(), &tip, &self.last_good).unwrap());
        if followed != warm {
            return Err(format!("followed: {followed:#?}\nfrom the cache: {warm:#?}"));
        }
        if !followed.diagnostics.iter().any(|mistake| mistake.path.as_str() == "setpoint.toml") {
            self.good_settings = Some(tip.clone());
            self.restart(&tip, &followed)?;
        }
        for (key, app) in &followed.desired.apps {
            if !followed.desired.stalled.contains_key(key) {
                self.last_good.insert(key.clone(), LastGood { app: app.clone(), revision: tip.clone() });
            }
        }
        Ok(())
    }
}

impl World {
    /// Starts again at the tip, and every other time goes on with what started: at once, or after it came to know what it had whole.
    fn restart(&mut self, tip: &CommitId, followed: &Loaded) -> Result<(), String> {
        let mut restarted = Loader::with_cache(renderer(), self.cache());
        let again = shown(restarted.load(&self.repository, tip, &self.last_good).unwrap());
        if *followed != again {
            return Err(format!("followed: {followed:#?}\nstarted again: {again:#?}"));
        }
        self.compared += 1;
        match self.compared % 4 {
            1 => self.loader = restarted,
            3 => {
                restarted.settle(&self.repository, &self.last_good);
                self.loader = restarted;
            }
            _ => {}
        }
        Ok(())
    }
}

#[test]
fn following_a_branch_gives_what_a_first_look_gives() {
    for seed in 1..=HISTORIES {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut world = World::new();
        world.compare().unwrap();
        let mut history = Vec::new();
        for _ in 0..COMMITS {
            for _ in 0..=dice.below(3) {
                history.push(edit(world.git.path(), &mut dice));
            }
            history.push(format!("-- {}", world.git.commit_all()));
            if let Err(difference) = world.compare() {
                panic!("seed {seed}:\n{}\n{difference}", history.join("\n"));
            }
        }
    }
}

#[test]
fn an_app_that_a_commit_did_not_change_is_the_same_value() {
    let mut world = World::new();
    let other = "apiVersion: setpoint/v1\nkind: App\nmetadata: {name: shop}\nspec: {runtime: {web: {command: x}}}\n";
    world.git.commit(&[("apps/shop/app.yaml", other)]);
    let load = |world: &mut World| {
        let tip = world.repository.tip().unwrap();
        world.loader.load(&world.repository, &tip, &world.last_good).unwrap().desired.apps
    };
    let before = load(&mut world);
    world.git.commit(&[("apps/blog/index.html", "new")]);
    let after = load(&mut world);
    let changed: Vec<String> = before.differences(&after).map(|difference| format!("{difference:?}")).collect();
    assert_eq!(changed.len(), 1, "{changed:?}");
    let key = |name: &str| name.parse::<AppKey>().unwrap();
    assert!(std::sync::Arc::ptr_eq(&before[&key("shop")], &after[&key("shop")]));
    assert_ne!(before[&key("blog")].spec.files, after[&key("blog")].spec.files);
}

/// A repository of more apps than a loader parses without keeping them, and a state directory that has them.
fn kept() -> (Git, tempfile::TempDir) {
    let app = |n| format!("apiVersion: setpoint/v1\nkind: App\nmetadata: {{name: app-{n}}}\n");
    let files: Vec<(String, String)> = (0..80)
        .flat_map(|n| {
            let runtime = format!("version: 1\nweb: {{command: run {n}}}\n");
            [(format!("apps/app-{n}/app.yaml"), app(n)), (format!("apps/app-{n}/sandbox.yaml"), runtime)]
        })
        .collect();
    let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    let (git, state) = (Git::with(&files), tempfile::tempdir().unwrap());
    let mut loader = Loader::with_cache(renderer(), Cache::of(state.path()));
    let repository = git.open();
    loader.load(&repository, &repository.tip().unwrap(), &BTreeMap::new()).unwrap();
    loader.settle(&repository, &BTreeMap::new());
    (git, state)
}

/// What a loader with what is kept there says of the tip, and how many trees and blobs it read for that.
fn restarted(git: &Git, state: &Path) -> (Loaded, u64, u64) {
    let repository = git.open();
    let loaded = loaded_by(&mut Loader::with_cache(renderer(), Cache::of(state)), &repository);
    (loaded, repository.trees_read(), repository.blobs_read())
}

fn loaded_by(loader: &mut Loader, repository: &Repository) -> Loaded {
    loader.load(repository, &repository.tip().unwrap(), &BTreeMap::new()).unwrap()
}

#[test]
fn a_restart_at_the_same_revision_reads_nothing_of_it() {
    let (git, state) = kept();
    let (loaded, trees, blobs) = restarted(&git, state.path());
    assert_eq!((loaded.desired.apps.len(), trees, blobs), (80, 0, 0));
    assert_eq!(loaded, loaded_by(&mut loader(), &git.open()));
    git.run(&["commit", "--quiet", "--allow-empty", "--message=the same tree"]);
    assert_eq!(restarted(&git, state.path()), (loaded_by(&mut loader(), &git.open()), 0, 0));
}

#[test]
fn a_restart_at_another_revision_reads_only_what_is_new() {
    let (git, state) = kept();
    git.commit(&[("apps/app-7/sandbox.yaml", RUNTIME)]);
    let (loaded, _, read) = restarted(&git, state.path());
    assert_eq!((loaded.desired.apps.len(), read), (80, 1));
    git.commit(&[("setpoint.toml", "[defaults.resources]\nmemory = \"512Mi\"\n")]);
    assert_eq!(restarted(&git, state.path()).2, 161, "with other settings, everything is parsed again");
}

#[test]
fn after_a_restart_a_commit_costs_what_it_changes() {
    let (git, state) = kept();
    let repository = git.open();
    let mut loader = Loader::with_cache(renderer(), Cache::of(state.path()));
    let before = loaded_by(&mut loader, &repository);
    loader.settle(&repository, &BTreeMap::new());
    git.commit(&[("apps/app-7/index.html", "new")]);
    let (trees, blobs) = (repository.trees_read(), repository.blobs_read());
    let after = loaded_by(&mut loader, &repository);
    assert_eq!((repository.trees_read() - trees, repository.blobs_read() - blobs), (3, 0));
    let changed: Vec<_> =
        before.desired.apps.differences(&after.desired.apps).map(|(key, _)| key.to_string()).collect();
    assert_eq!(changed, ["app-7"]);
    let key: AppKey = "app-8".parse().unwrap();
    assert!(std::sync::Arc::ptr_eq(&before.desired.apps[&key], &after.desired.apps[&key]));
}

#[test]
fn what_is_kept_holds_the_texts_of_sensitive_values() {
    let app =
        "apiVersion: setpoint/v1\nkind: App\nmetadata: {name: blog}\nspec: {env: {OWN: {value: a, sensitive: true}}}\n";
    let defaults = "[defaults.env]\nSHARED = { value = \"b\", sensitive = true }\n";
    let files = [("apps/blog/app.yaml", app), ("apps/blog/sandbox.yaml", RUNTIME), ("setpoint.toml", defaults)];
    let (git, state) = (Git::with(&files), tempfile::tempdir().unwrap());
    let repository = git.open();
    let mut first = Loader::with_cache(renderer(), Cache::of(state.path()));
    loaded_by(&mut first, &repository);
    first.settle(&repository, &BTreeMap::new());
    let mut second = Loader::with_cache(renderer(), Cache::of(state.path()));
    let texts = |loaded: &Loaded| {
        let apps = loaded.desired.apps.iter().map(|(_, app)| &app.spec.app.env);
        apps.flat_map(|env| env.values().map(|value| value.reveal().map(str::to_owned))).collect::<Vec<_>>()
    };
    assert_eq!(texts(&loaded_by(&mut second, &repository)), [Some("a".to_owned()), Some("b".to_owned())]);
    // Its defaults are those that were kept.
    git.commit(&[("apps/shop/app.yaml", &app.replace("blog", "shop")), ("apps/shop/sandbox.yaml", RUNTIME)]);
    let texts = texts(&loaded_by(&mut second, &git.open()));
    assert_eq!(texts, ["a", "b", "a", "b"].map(|text| Some(text.to_owned())));
}

#[test]
fn what_commits_change_is_added_to_what_is_kept() {
    let (git, state) = kept();
    let file = state.path().join("cache/revision");
    let size = || fs::metadata(&file).unwrap().len();
    let whole = size();
    let repository = git.open();
    let mut follower = Loader::with_cache(renderer(), Cache::of(state.path()));
    for round in 0..4 {
        git.commit(&[("apps/app-7/index.html", &format!("edition {round}"))]);
        fs::remove_dir_all(git.path().join(format!("apps/app-{}", 20 + round))).unwrap();
        let new = format!(
            "apiVersion: setpoint/v1\nkind: App\nmetadata: {{name: new-{round}}}\nspec: {{runtime: {{web: {{command: x}}}}}}\n"
        );
        git.commit(&[(&format!("apps/new-{round}/app.yaml"), &new)]);
        loaded_by(&mut follower, &repository);
        follower.settle(&repository, &BTreeMap::new());
        assert_eq!(restarted(&git, state.path()), (loaded_by(&mut loader(), &git.open()), 0, 0), "round {round}");
    }
    assert!(size() > whole && size() < whole * 3 / 2, "{} of {whole} bytes", size());
    fs::remove_dir_all(state.path().join("cache")).unwrap();
    git.commit(&[("apps/app-7/index.html", "after somebody removed it")]);
    loaded_by(&mut follower, &repository);
    follower.settle(&repository, &BTreeMap::new());
    assert_eq!(restarted(&git, state.path()).1, 0);
    // A revision with mistakes is not kept, and what is said about it not from memory.
    git.commit(&[("apps/app-9/app.yaml", "kind: App\n")]);
    loaded_by(&mut follower, &repository);
    follower.settle(&repository, &BTreeMap::new());
    let (broken, ..) = restarted(&git, state.path());
    assert_eq!(broken, loaded_by(&mut loader(), &git.open()));
    assert!(!broken.diagnostics.is_empty());
}

#[test]
fn what_is_kept_whole_holds_for_the_same_limits_and_templates_alone() {
    let (git, state) = kept();
    let host = tempfile::tempdir().unwrap();
    fs::write(host.path().join("tool"), "1").unwrap();
    let template = format!(
        "apiVersion: setpoint/v1\nkind: Template\nmetadata: {{name: tools}}\nspec: {{rootfs: {{path: {}}}}}\n",
        host.path().display()
    );
    git.commit(&[("templates/tools.yaml", &template)]);
    let repository = git.open();
    let mut follower = Loader::with_cache(renderer(), Cache::of(state.path()));
    loaded_by(&mut follower, &repository);
    follower.settle(&repository, &BTreeMap::new());
    assert_eq!(restarted(&git, state.path()).1, 0);
    let limits = SourceLimits { depth: 31, ..SourceLimits::default() };
    let stricter = Repository::open(&git.config_with(limits)).unwrap();
    loaded_by(&mut Loader::with_cache(renderer(), Cache::of(state.path())), &stricter);
    assert!(stricter.trees_read() > 80, "other limits may be exceeded");
    fs::remove_dir_all(host.path()).unwrap();
    let (loaded, trees, _) = restarted(&git, state.path());
    assert!(trees > 80, "a template on the host is another");
    assert_eq!(loaded, loaded_by(&mut loader(), &git.open()));
    assert_eq!(loaded.diagnostics.len(), 1);
}

#[test]
fn a_damaged_cut_or_foreign_cache_is_as_good_as_none() {
    let (git, state) = kept();
    git.commit(&[("apps/app-7/index.html", "new")]);
    let repository = git.open();
    let mut follower = Loader::with_cache(renderer(), Cache::of(state.path()));
    loaded_by(&mut follower, &repository);
    follower.settle(&repository, &BTreeMap::new());
    let expected = loaded_by(&mut loader(), &repository);
    // What is kept whole would hide what is wrong with the other, and so comes first.
    for name in ["revision", "declarations"] {
        let is_read = |trees, blobs| if name == "revision" { trees > 80 } else { blobs == 160 };
        let file = state.path().join("cache").join(name);
        let good = fs::read(&file).unwrap();
        let refused = |why: String| {
            let (loaded, trees, blobs) = restarted(&git, state.path());
            assert!(is_read(trees, blobs), "{name} is used: {why}");
            assert_eq!(loaded, expected, "{name}: {why}");
        };
        for at in [0, 20, 60, good.len() / 2, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&file, &bad).unwrap();
            refused(format!("byte {at} is another"));
            fs::write(&file, &good[..at]).unwrap();
            refused(format!("cut at {at}"));
        }
        fs::write(&file, [&good[..], b"more"].concat()).unwrap();
        refused("something is behind it".to_owned());
        fs::write(&file, &good).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        refused("anybody may have written it".to_owned());
    }
}
