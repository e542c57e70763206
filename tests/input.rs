//! Bad input, with a daemon running and an app converged: each mistake is shown where it is, nothing is removed or restarted
//! because of it, and the daemon goes on by itself once the input is mended.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/host.rs"]
mod host;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::Path;

use host::Host;
use rustix::mount::MountFlags;
use serde_json::Value;
use setpoint_schema::id::BootNonce;

/// A daemon that follows `main` and has carried it out: one app, `blog`.
struct Scene {
    host: Host,
    /// The boot that `blog` is in and stays in.
    boot: BootNonce,
    /// The revision without mistakes.
    good: String,
}

const CONFIG: &str = "[source]\nbranch = \"main\"\npoll_interval = \"200ms\"\n";

impl Scene {
    fn new() -> Self {
        Self::on(Host::sim())
    }

    fn on(mut host: Host) -> Self {
        host.configure(CONFIG);
        host.write_app("blog", "", "first");
        let good = host.commit("add blog");
        host.start();
        host.wait_converged();
        let boot = host.world().running().unwrap().remove(0).machine.nonce;
        Self { host, boot, good }
    }

    /// Commits what `edit` does, and waits until the daemon has tried that revision or says why it does not.
    fn commit(&self, edit: impl FnOnce(&Host)) {
        edit(&self.host);
        let commit = self.host.commit("a bad idea");
        self.wait_tried(&commit);
    }

    fn wait_tried(&self, commit: &str) {
        self.host.wait_for("the revision to be tried", |host| {
            let source = &host.api("/v1/status")["source"];
            (source["lastAttempted"] == commit || !source["error"].is_null()).then_some(())
        });
    }

    /// `blog` is stalled, and its condition says `words`, which name the place.
    fn assert_stalled(&self, words: &str) {
        let said = self.host.wait_for("the app to be stalled", |host| {
            let app = host.app("blog");
            let conditions = app["conditions"].as_array()?;
            let stalled = conditions.iter().find(|condition| condition["type"] == "Stalled")?;
            (stalled["status"] == "True").then(|| stalled["message"].as_str().unwrap().to_owned())
        });
        assert!(said.contains(words), "the condition says {said:?} and not {words:?}");
        self.assert_dry_run_refuses(words);
        self.assert_unharmed();
    }

    /// The branch cannot be followed, and the status says `words` about it.
    fn assert_source_error(&self, words: &str) {
        self.host.wait_for(&format!("the source's error to say {words:?}"), |host| {
            host.api("/v1/status")["source"]["error"].as_str()?.contains(words).then_some(())
        });
        self.assert_unharmed();
    }

    /// `setpoint validate` refuses the working directory with `words`.
    fn assert_invalid(&self, words: &str) {
        assert_refused(&self.host, &["validate", "."], words);
    }

    fn assert_dry_run_refuses(&self, words: &str) {
        assert_refused(&self.host, &["reconcile", "--dry-run", "--exit-code"], words);
    }

    /// The same boot runs, nothing is about to be removed or restarted, and nothing was done that must not be.
    fn assert_unharmed(&self) {
        // A daemon that has just started asks the guest first.
        self.host.wait_for("the app to be ready", |host| (host.app("blog")["ready"] == true).then_some(()));
        self.assert_runs();
        let plan = self.host.api("/v1/plan");
        assert_eq!(plan["actions"], serde_json::json!([]), "nothing is to be done about a mistake");
        assert_eq!(self.host.fetch("blog.localhost", "/").map(|answer| answer.status), Some(200));
    }

    /// The same boot runs, whatever the daemon does.
    fn assert_runs(&self) {
        let world = self.host.world();
        let boots: Vec<_> = world.running().unwrap().into_iter().map(|vm| vm.machine.nonce).collect();
        assert_eq!(boots, std::slice::from_ref(&self.boot), "the microVM goes on");
        assert_eq!(world.disks().unwrap().len(), 1, "its disk is there");
        assert_eq!(world.violations().unwrap(), [""; 0]);
    }

    /// Puts the files back as they were, with a change to see, and waits until that is carried out in the same boot.
    fn assert_mends(&self) {
        self.host.git(&["rm", "-r", "-q", "--cached", "--ignore-unmatch", "."]);
        self.host.git(&["checkout", "-q", &self.good, "--", "."]);
        self.host.git(&["clean", "-f", "-d", "-q", "-x", "--", "apps", "templates", "setpoint.toml"]);
        self.assert_goes_on();
    }

    /// Commits a change, and waits until it is carried out in the same boot.
    fn assert_goes_on(&self) {
        self.host.write("apps/blog/index.html", "mended");
        self.host.commit("mend");
        self.host.wait_converged();
        let status = self.host.api("/v1/status");
        assert_eq!(status["source"]["error"], Value::Null);
        assert_eq!(status["apps"]["stalled"], 0);
        self.assert_unharmed();
        let output = self.host.run(&["reconcile", "--dry-run", "--exit-code"]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
}

fn assert_refused(host: &Host, args: &[&str], words: &str) {
    let output = host.run(args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
    assert!(said.contains(words), "{args:?} says {said:?} and not {words:?}");
}

fn app(name: &str, spec: &str) -> String {
    format!("apiVersion: setpoint/v1\nkind: App\nmetadata:\n  name: {name}\nspec:\n  {spec}\n")
}

#[test]
fn unparsable_yaml_stalls_its_app() {
    let scene = Scene::new();
    scene.commit(|host| host.write("apps/blog/app.yaml", "apiVersion: setpoint/v1\nkind: [App\nmetadata:\n"));
    scene.assert_stalled("apps/blog/app.yaml:3:");
    scene.assert_invalid("apps/blog/app.yaml:3:");
    scene.assert_mends();
}

#[test]
fn every_mistake_is_shown_with_its_line() {
    let scene = Scene::new();
    scene.commit(|host| {
        host.write("apps/blog/app.yaml", &app("blog", "resources: {memory: 12}\n  comand: serve"));
        host.write_app("shop", "", "never seen");
        host.write("apps/shop/sandbox.yaml", "version: 1\nservices: [web]\n");
    });
    scene.assert_stalled("apps/blog/app.yaml:6:");
    scene.assert_invalid("apps/blog/app.yaml:7:");
    scene.assert_invalid("apps/shop/sandbox.yaml:2:");
    scene.assert_mends();
}

#[test]
fn a_yaml_bomb_is_refused() {
    let scene = Scene::new();
    scene.commit(|host| {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..30 {
            let item = format!("*a{}", level - 1);
            bomb.push_str(&format!("a{level}: &a{level} [{}]\n", [item.as_str(); 10].join(", ")));
        }
        host.write("apps/blog/app.yaml", &bomb);
    });
    scene.assert_stalled("apps/blog/app.yaml:");
    scene.assert_invalid("apps/blog/app.yaml:");
    scene.assert_mends();
}

#[test]
fn a_declaration_of_a_hundred_megabytes_is_refused() {
    let scene = Scene::new();
    scene.commit(|host| hundred_megabytes(&host.repo().join("apps/blog/app.yaml")));
    let words = "apps/blog/app.yaml: 104857600 bytes are more than the 1048576 that are read of one file";
    scene.assert_stalled(words);
    scene.assert_invalid(words);
    scene.assert_mends();
}

#[test]
fn a_workspace_file_of_a_hundred_megabytes_is_refused() {
    let scene = Scene::new();
    scene.commit(|host| hundred_megabytes(&host.repo().join("apps/blog/video")));
    scene.assert_stalled("apps/blog/video: 104857600 bytes are more than");
    scene.assert_invalid("apps/blog/video: 104857600 bytes are more than");
    scene.assert_mends();
}

fn hundred_megabytes(path: &Path) {
    fs::OpenOptions::new().write(true).create(true).truncate(true).open(path).unwrap().set_len(100 << 20).unwrap();
}

#[test]
fn a_hundred_thousand_files_are_refused() {
    let scene = Scene::new();
    let host = &scene.host;
    let blob = host.git_feed(&["hash-object", "-w", "--stdin"], b"x");
    let lines: String = (0..100_000).map(|n| format!("100644 blob {blob}\tfile-{n:06}\n")).collect();
    let many = host.git_feed(&["mktree"], lines.as_bytes());
    let apps = host.git(&["rev-parse", "HEAD:apps"]);
    let top = host.git_feed(&["mktree"], format!("040000 tree {apps}\tapps\n040000 tree {many}\tmany\n").as_bytes());
    let commit = host.git(&["commit-tree", &top, "-p", "HEAD", "-m", "too many"]);
    host.git(&["update-ref", "refs/heads/main", &commit]);
    scene.wait_tried(&commit);
    scene.assert_source_error("more than 50000 files");
    scene.assert_dry_run_refuses("more than 50000 files");
    // The index and the work tree still are as in the good revision.
    scene.assert_goes_on();
}

#[test]
fn a_duplicate_app_names_both_places() {
    let scene = Scene::new();
    scene.commit(|host| host.write("apps/copy/app.yaml", &app("blog", "runtime: {web: {command: serve}}")));
    scene.assert_stalled("apps/copy/app.yaml:4:");
    scene.assert_invalid("apps/blog/app.yaml:4");
    scene.assert_invalid("apps/copy/app.yaml:4");
    scene.assert_mends();
}

#[test]
fn a_cycle_stalls_its_members() {
    let scene = Scene::new();
    scene.commit(|host| {
        host.write_app("blog", "dependsOn: [shop]", "first");
        host.write_app("shop", "dependsOn: [blog]", "first");
    });
    scene.assert_stalled("apps/blog/app.yaml:8:15: these apps wait for each other: blog → shop → blog");
    scene.assert_invalid("apps/shop/app.yaml:8:15: these apps wait for each other: blog → shop → blog");
    scene.assert_mends();
}

#[test]
fn a_dangling_template_stalls_its_app() {
    let scene = Scene::new();
    scene.commit(|host| host.write("apps/blog/app.yaml", &app("blog", "template: nowhere")));
    scene.assert_stalled("apps/blog/app.yaml:6:");
    scene.assert_invalid("nowhere");
    scene.assert_mends();
}

#[test]
fn a_symlink_out_of_the_repository_is_not_followed() {
    let scene = Scene::new();
    scene.commit(|host| symlink("/etc/passwd", host.repo().join("apps/blog/secrets")).unwrap());
    scene.assert_stalled("apps/blog/secrets is a symbolic link to `/etc/passwd`");
    scene.assert_invalid("apps/blog/secrets is a symbolic link to `/etc/passwd`");
    scene.assert_mends();
}

#[test]
fn a_symlink_in_place_of_a_declaration_is_not_followed() {
    let scene = Scene::new();
    scene.commit(|host| {
        fs::rename(host.repo().join("apps/blog/app.yaml"), host.dir().join("elsewhere.yaml")).unwrap();
        symlink(host.dir().join("elsewhere.yaml"), host.repo().join("apps/blog/app.yaml")).unwrap();
    });
    scene.assert_stalled("apps/blog/app.yaml");
    scene.assert_invalid("apps/blog/app.yaml");
    scene.assert_mends();
}

#[test]
fn a_submodule_is_not_followed() {
    for place in ["apps/blog/vendor", "apps/blog"] {
        let scene = Scene::new();
        let host = &scene.host;
        host.git(&["rm", "-r", "-q", "--cached", "--ignore-unmatch", place]);
        host.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{},{place}", scene.good)]);
        host.git(&["commit", "-q", "-m", "submodule"]);
        scene.wait_tried(&host.git(&["rev-parse", "HEAD"]));
        scene.assert_stalled("is a submodule, and submodules are not followed");
        scene.assert_dry_run_refuses(place);
        scene.assert_mends();
    }
}

#[test]
fn invalid_utf8_is_located() {
    let scene = Scene::new();
    scene.commit(|host| {
        let mut bytes = app("blog", "env:").into_bytes();
        bytes.extend(b"    NAME: caf\xe9\n");
        fs::write(host.repo().join("apps/blog/app.yaml"), bytes).unwrap();
    });
    scene.assert_stalled("apps/blog/app.yaml:7:14: this is not valid UTF-8");
    scene.assert_invalid("apps/blog/app.yaml:7:14: this is not valid UTF-8");
    scene.assert_mends();
}

#[test]
fn a_file_name_in_invalid_utf8_is_refused() {
    let scene = Scene::new();
    scene.commit(|host| {
        let name = OsStr::from_bytes(b"caf\xe9.html");
        fs::write(host.repo().join("apps/blog").join(name), "x").unwrap();
    });
    scene.assert_stalled("apps/blog/caf\u{fffd}.html");
    scene.assert_invalid("apps/blog/caf\u{fffd}.html");
    scene.assert_mends();
}

#[test]
fn broken_settings_change_nothing() {
    let scene = Scene::new();
    scene.commit(|host| {
        host.write("setpoint.toml", "[defaults\n");
        host.write("apps/blog/index.html", "second");
    });
    scene.assert_stalled("setpoint.toml:1:");
    scene.assert_invalid("setpoint.toml:1:");
    scene.assert_mends();
}

#[test]
fn an_app_that_goes_while_another_file_cannot_be_made_out_is_kept() {
    let scene = Scene::new();
    scene.commit(|host| {
        host.git(&["rm", "-r", "-q", "apps/blog"]);
        host.write("apps/shop/app.yaml", "kind: [App\n");
    });
    scene.assert_unharmed();
    let held = scene.host.app("blog")["held"]["message"].as_str().unwrap().to_owned();
    assert!(held.contains("apps/shop/app.yaml:2:"), "{held}");
    scene.assert_mends();
}

#[test]
fn an_empty_tree_removes_nothing() {
    let scene = Scene::new();
    scene.commit(|host| drop(host.git(&["rm", "-r", "-q", "."])));
    scene.assert_unharmed();
    let held = scene.host.app("blog")["held"]["message"].as_str().unwrap().to_owned();
    assert!(held.contains("allow_empty"), "{held}");
    scene.assert_mends();
}

#[test]
fn a_branch_that_is_gone_is_an_error() {
    let scene = Scene::new();
    scene.host.git(&["checkout", "-q", "-b", "other"]);
    scene.host.git(&["branch", "-D", "main"]);
    scene.assert_source_error("branch main does not exist");
    let dry_run = ["--branch", "main", "--repo", ".", "reconcile", "--dry-run"];
    assert_refused(&scene.host, &dry_run, "these exist: other");
    scene.host.git(&["checkout", "-q", "-b", "main"]);
    scene.assert_goes_on();
}

#[test]
fn a_repository_that_is_gone_is_an_error_until_it_is_back() {
    let mut scene = Scene::new();
    let (repo, away) = (scene.host.repo(), scene.host.dir().join("away"));
    fs::rename(&repo, &away).unwrap();
    scene.assert_source_error("there is no repository at");

    // A daemon that starts meanwhile goes on with what it remembers.
    assert_eq!(scene.host.stop_daemon(), Some(0));
    fs::create_dir(&repo).unwrap();
    scene.host.start();
    scene.assert_source_error("is not a git repository");

    fs::remove_dir(&repo).unwrap();
    fs::rename(&away, &repo).unwrap();
    scene.assert_goes_on();
}

#[test]
fn a_repository_that_is_back_is_followed_again() {
    let scene = Scene::new();
    let (repo, away) = (scene.host.repo(), scene.host.dir().join("away"));
    fs::rename(&repo, &away).unwrap();
    scene.assert_source_error("there is no repository at");
    fs::rename(&away, &repo).unwrap();
    scene.assert_goes_on();
}

/// Rewrites the branch, and sees that it is refused.
fn rewrite_history(scene: &Scene) {
    scene.host.write("apps/blog/index.html", "second");
    scene.host.commit("second");
    scene.host.wait_converged();
    scene.host.git(&["reset", "-q", "--hard", &scene.good]);
    scene.host.write("apps/blog/index.html", "rewritten");
    let rewritten = scene.host.commit("rewritten");
    scene.assert_source_error(&format!("to {}, which does not descend from it", &rewritten[..10]));
    assert_ne!(scene.host.api("/v1/status")["source"]["lastApplied"], rewritten.as_str());
}

#[test]
fn a_force_push_is_refused_until_the_configuration_allows_it() {
    let mut scene = Scene::new();
    rewrite_history(&scene);
    assert_eq!(scene.host.stop_daemon(), Some(0));
    scene.host.start();
    scene.assert_source_error("which does not descend from it");
    assert_eq!(scene.host.stop_daemon(), Some(0));
    scene.host.configure(&format!("{CONFIG}allow_rewind = true\n"));
    scene.host.start();
    scene.host.wait_converged();
    scene.assert_goes_on();
}

#[test]
fn a_force_push_is_accepted_where_the_followed_revision_allows_it() {
    let scene = Scene::new();
    // The revision that would rewrite history cannot allow itself to.
    let rewrite = |text: &str| {
        scene.host.git(&["reset", "-q", "--hard", &scene.good]);
        scene.host.write("setpoint.toml", text);
        scene.host.commit("rewritten")
    };
    scene.host.write("apps/blog/index.html", "second");
    let second = scene.host.commit("second");
    scene.host.wait_converged();
    rewrite("[policies]\nallow_rewind = true\n");
    scene.assert_source_error("which does not descend from it");
    scene.host.git(&["reset", "-q", "--hard", &second]);
    scene.host.write("setpoint.toml", "[policies]\nallow_rewind = true\n");
    scene.host.commit("allow it");
    scene.host.wait_converged();
    rewrite("");
    scene.host.wait_converged();
    scene.assert_goes_on();
}

#[test]
fn a_force_push_is_accepted_once_by_command() {
    let mut scene = Scene::new();
    rewrite_history(&scene);
    assert_eq!(scene.host.stop_daemon(), Some(0));
    let refused = scene.host.reconcile();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("does not descend from it"), "{said}");
    let repo = scene.host.repo().display().to_string();
    let accepted = scene.host.run(&["--repo", &repo, "reconcile", "--allow-rewind"]);
    assert_eq!(accepted.status.code(), Some(0), "{accepted:?}");
    scene.host.start();
    scene.host.wait_converged();
    scene.assert_goes_on();
}

#[test]
fn a_read_only_state_is_an_error_that_changes_nothing() {
    let Some(host) = Host::sim_on_small_disk(64) else { return };
    let mut scene = Scene::on(host);
    assert_eq!(scene.host.stop_daemon(), Some(0));
    scene.host.remount(MountFlags::RDONLY);
    let (code, said) = scene.host.run_in_vain();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("cannot be written") && said.contains("hint: let this user write to"), "{said}");
    let preview = scene.host.run(&["reconcile", "--dry-run", "--exit-code"]);
    assert_eq!(preview.status.code(), Some(0), "what is there can still be looked at: {preview:?}");
    scene.assert_runs();
    scene.host.remount(MountFlags::empty());
    scene.host.start();
    scene.assert_goes_on();
}

#[test]
fn a_full_disk_ends_the_daemon_and_nothing_else() {
    let Some(host) = Host::sim_on_small_disk(64) else { return };
    let mut scene = Scene::on(host);
    let ballast = scene.host.fill_disk();
    scene.host.write("apps/blog/index.html", "second");
    scene.host.commit("a change that cannot be written down");
    assert_eq!(scene.host.wait_for_the_end(), Some(1), "{}", scene.host.log());
    assert!(scene.host.log().contains("no room to write state"), "{}", scene.host.log());
    assert!(scene.host.log().contains("hint: free space on the file system of"), "{}", scene.host.log());
    let (code, said) = scene.host.run_in_vain();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("no room to write state"), "{said}");
    scene.assert_runs();
    fs::remove_file(ballast).unwrap();
    scene.host.start();
    scene.assert_goes_on();
}

#[test]
fn a_damaged_state_is_refused_and_rebuilt_from_what_runs() {
    let flip: fn(&mut Vec<u8>) = |bytes| bytes.iter_mut().skip(64).step_by(97).for_each(|byte| *byte ^= 0x41);
    let cut: fn(&mut Vec<u8>) = |bytes| bytes.truncate(bytes.len() / 64);
    for damage in [flip, cut] {
        let mut scene = Scene::new();
        assert_eq!(scene.host.stop_daemon(), Some(0));
        let log = scene.host.state().join("store/store/db");
        let mut bytes = fs::read(&log).unwrap();
        damage(&mut bytes);
        fs::write(&log, bytes).unwrap();

        let (code, said) = scene.host.run_in_vain();
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("is damaged: ") && said.contains("hint: `setpoint state rebuild`"), "{said}");
        for command in [&["doctor"][..], &["state", "show"], &["reconcile", "--dry-run"]] {
            let output = scene.host.run(command);
            let said = [output.stdout.as_slice(), &output.stderr].concat();
            assert_eq!(output.status.code(), Some(1), "{command:?}: {output:?}");
            assert!(String::from_utf8_lossy(&said).contains("is damaged: "), "{command:?}: {output:?}");
        }
        scene.assert_runs();

        let rebuilt = scene.host.run(&["state", "rebuild"]);
        assert_eq!(rebuilt.status.code(), Some(0), "{rebuilt:?}");
        let said = String::from_utf8_lossy(&rebuilt.stdout);
        assert!(said.contains("made a new state from 1 microVM and 1 disk"), "{said}");
        let kept = fs::read_dir(scene.host.state()).unwrap().flatten();
        assert!(kept.into_iter().any(|entry| entry.file_name().to_string_lossy().contains(".damaged-")));
        scene.assert_runs();
        scene.host.start();
        scene.assert_goes_on();
    }
}

#[test]
fn a_lost_state_is_found_again_from_what_runs() {
    let mut scene = Scene::new();
    scene.host.kill_daemon();
    fs::remove_dir_all(scene.host.state().join("store")).unwrap();
    scene.host.start();
    scene.assert_goes_on();
}
