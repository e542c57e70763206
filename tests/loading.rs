//! Whatever way a loader came to a revision, it wants the same: what a commit changed is all that is read, and the result is that
//! of reading everything. Random histories of real commits, mistakes among them, each loaded by a daemon that has seen all of it,
//! by one that starts now, and by one that starts now with the cache of the first.
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
use setpoint::source::Repository;
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
        root.revision = CommitId(String::new());
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
        Self { git, repository, loader, state, last_good: BTreeMap::new(), good_settings: None }
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
        self.loader.keep();
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
        }
        for (key, app) in &followed.desired.apps {
            if !followed.desired.stalled.contains_key(key) {
                self.last_good.insert(key.clone(), LastGood { app: app.clone(), revision: tip.clone() });
            }
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
    loader.keep();
    (git, state)
}

/// What a loader with what is kept there says of the tip, and how many blobs it read for that.
fn restarted(git: &Git, state: &Path) -> (Loaded, u64) {
    let repository = git.open();
    let mut loader = Loader::with_cache(renderer(), Cache::of(state));
    let loaded = loader.load(&repository, &repository.tip().unwrap(), &BTreeMap::new()).unwrap();
    (loaded, repository.blobs_read())
}

#[test]
fn a_restart_reads_only_what_is_new() {
    let (git, state) = kept();
    let (loaded, read) = restarted(&git, state.path());
    assert_eq!((loaded.desired.apps.len(), read), (80, 0));
    git.commit(&[("apps/app-7/sandbox.yaml", RUNTIME)]);
    let (loaded, read) = restarted(&git, state.path());
    assert_eq!((loaded.desired.apps.len(), read), (80, 1));
    git.commit(&[("setpoint.toml", "[defaults.resources]\nmemory = \"512Mi\"\n")]);
    assert_eq!(restarted(&git, state.path()).1, 161, "with other settings, everything is parsed again");
}

#[test]
fn a_damaged_cut_or_foreign_cache_is_as_good_as_none() {
    let (git, state) = kept();
    let expected = restarted(&git, state.path()).0;
    let file = state.path().join("cache/declarations");
    let good = fs::read(&file).unwrap();
    for at in [0, 20, 60, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&file, &bad).unwrap();
        assert_eq!(restarted(&git, state.path()), (expected.clone(), 160), "byte {at} is another");
        fs::write(&file, &good[..at]).unwrap();
        assert_eq!(restarted(&git, state.path()), (expected.clone(), 160), "cut at {at}");
    }
    fs::write(&file, &good).unwrap();
    assert_eq!(restarted(&git, state.path()).1, 0);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(restarted(&git, state.path()).1, 160, "anybody may have written it");
}
