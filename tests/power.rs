//! Apps that rest and go on: by declaration, by hand, and because a request came for them. Over a real repository with the real
//! daemon; with scripted microVMs first, then with real ones.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/counter.rs"]
mod counter;
#[path = "support/host.rs"]
mod host;

use std::process::Output;

use crate::host::Host;

fn running(power: &str) -> Host {
    let mut host = Host::sim();
    host.write_app("blog", &format!("power: {power}"), "first");
    host.commit("an app");
    host.start();
    host.wait_converged();
    host
}

fn declare(host: &Host, power: &str) {
    host.write_app("blog", &format!("power: {power}"), "first");
    host.commit(power);
}

fn wait_phase(host: &Host, phase: &str) {
    host.wait_for(phase, |host| (host.app("blog")["phase"] == phase).then_some(()));
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn kinds(host: &Host) -> Vec<String> {
    let events = host.events_of("blog");
    events.iter().filter_map(|event| Some(event.split_once(':')?.0.to_owned())).collect()
}

#[test]
fn a_declared_pause_rests_and_is_as_declared_and_a_declared_run_goes_on() {
    let mut host = running("running");
    let boot = host.boot_of("blog");
    declare(&host, "paused");
    wait_phase(&host, "paused");
    host.wait_converged();
    assert_eq!(host.sandbox_of("blog")["vm"]["state"], "paused");
    assert_eq!(
        said(&host.run(&["reconcile", "--dry-run", "--exit-code"])),
        said(&host.run(&["reconcile", "--dry-run"]))
    );
    declare(&host, "running");
    wait_phase(&host, "ready");
    assert_ne!(host.boot_of("blog"), boot, "going on is a boot of its own");
    let kinds = kinds(&host);
    assert!(kinds.iter().any(|kind| kind == "paused") && kinds.iter().any(|kind| kind == "woken"), "{kinds:?}");
    assert!(!kinds.iter().any(|kind| kind == "rebooted" || kind == "healed"), "{kinds:?}");
    assert_eq!(host.stop_daemon(), Some(0));
}

#[test]
fn an_app_rests_over_a_restart_of_the_daemon() {
    let mut host = running("running");
    declare(&host, "paused");
    wait_phase(&host, "paused");
    assert_eq!(host.stop_daemon(), Some(0));
    host.start();
    host.wait_converged();
    wait_phase(&host, "paused");
    assert_eq!(kinds(&host).iter().filter(|kind| *kind == "paused").count(), 1);
}

#[test]
fn what_is_paused_by_hand_shows_by_whom_and_is_woken_by_hand() {
    let host = running("running");
    let by = format!("uid {}", rustix::process::geteuid().as_raw());
    assert_eq!(said(&host.run(&["pause", "blog"])), "blog is to be paused here until another power is declared\n");
    wait_phase(&host, "paused");
    let here = host.app("blog")["powerHere"].clone();
    assert_eq!(
        (here["state"].as_str(), here["cause"].as_str(), here["by"].as_str()),
        (Some("paused"), Some("asked"), Some(by.as_str()))
    );
    assert!(said(&host.run(&["pause", "blog"])).starts_with("blog has been paused here since"));
    let described =
        said(&host.run(&["describe", "app", "blog", "--server", &format!("http://{}", host.api_address())]));
    assert!(described.contains("declared running, paused here for "), "{described}");
    assert!(described.contains(&format!("asked for by {by}")), "{described}");
    assert_eq!(said(&host.run(&["wake", "blog"])), "blog is to be running here, as it is declared\n");
    wait_phase(&host, "ready");
    assert!(host.app("blog")["powerHere"].is_null());
    let unknown = host.run(&["pause", "nobody"]);
    assert!(!unknown.status.success());
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("there is no app nobody"));
}

#[test]
fn a_request_wakes_an_app_that_rests_and_is_answered_by_it() {
    let host = running("running");
    said(&host.run(&["pause", "blog"]));
    wait_phase(&host, "paused");
    let answer = host.fetch("blog.localhost", "/").unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(kinds(&host).iter().any(|kind| kind == "wokenHere"));
}

#[test]
fn what_is_paused_by_hand_stays_so_under_another_name_and_is_woken_by_that() {
    let declared = |host: &Host, name: &str| {
        host.write_app(name, "", "first");
        let path = format!("apps/{name}/app.yaml");
        let text = std::fs::read_to_string(host.repo().join(&path)).unwrap();
        host.write(&path, &text.replace("metadata:\n", "metadata:\n  uid: lasting\n"));
        host.commit(name)
    };
    let mut host = Host::sim();
    declared(&host, "blog");
    host.start();
    host.wait_converged();
    said(&host.run(&["pause", "blog"]));
    wait_phase(&host, "paused");
    let sandbox = host.app("blog")["sandbox"].clone();
    host.remove("apps/blog");
    declared(&host, "journal");
    let has_it = |host: &Host| (host.app("journal")["sandbox"] == sandbox && host.app("blog").is_null()).then_some(());
    host.wait_for("the new name", has_it);
    host.wait_converged();
    let app = host.app("journal");
    assert_eq!((&app["phase"], &app["powerHere"]["cause"]), (&"paused".into(), &"asked".into()), "{app}");
    said(&host.run(&["wake", "journal"]));
    host.wait_for("its waking", |host| (host.app("journal")["phase"] == "ready").then_some(()));
    let healed = host.events_of("journal").iter().any(|event| event.starts_with("healed"));
    assert!(!healed, "{:?}", host.events_of("journal"));
}

#[test]
fn two_hundred_requests_for_one_app_at_rest_share_one_waking() {
    let host = running("running");
    said(&host.run(&["pause", "blog"]));
    wait_phase(&host, "paused");
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..200)
            .map(|_| scope.spawn(|| host.fetch("blog.localhost", "/").map_or(0, |answer| answer.status)))
            .collect();
        asking.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 200, "{statuses:?}");
    assert_eq!(kinds(&host).iter().filter(|kind| *kind == "woken").count(), 1);
}

#[test]
fn an_app_that_is_declared_stopped_is_neither_paused_nor_woken() {
    let host = running("stopped");
    for verb in ["pause", "wake"] {
        let refused = host.run(&[verb, "blog"]);
        assert!(!refused.status.success());
        assert!(String::from_utf8_lossy(&refused.stderr).contains("declared `power: stopped`"), "{refused:?}");
    }
}

/// With real microVMs.
mod microvm {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::counter::{COUNTER, count};

    #[test]
    fn a_counter_in_memory_goes_on_and_a_request_wakes_it() {
        let mut host = Host::real();
        host.write_app("blog", "", "first");
        host.write("apps/blog/sandbox.yaml", COUNTER);
        host.commit("an app that counts");
        host.start();
        host.wait_converged();
        let before = host.wait_for("a count", |host| count(host).filter(|count| *count > 20));
        said(&host.run(&["pause", "blog"]));
        wait_phase(&host, "paused");
        assert_eq!(host.qemu_pids(), Vec::<u32>::new(), "nothing of it runs");
        let after = count(&host).expect("the request that wakes it is answered");
        assert!(after >= before, "{after} after {before}: it began anew");
        wait_phase(&host, "ready");
        host.wait_for("its going on", |host| count(host).filter(|count| *count > after + 5));
        assert_eq!(host.app("blog")["restarts"], 0);
        assert_eq!(host.stop_daemon(), Some(0));
    }

    /// What a host with one app at rest holds: how many files, rows and descriptors, and how much of the disk in KiB.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Held {
        files: usize,
        images: usize,
        rows: (usize, usize, usize),
        descriptors: usize,
        disk: u64,
    }

    /// Of an app at rest, once what is done behind the pause has been done.
    fn held(host: &Host) -> Held {
        let few = |host: &Host| (count_in(host, "images") == 1 && count_in(host, "packs") <= 8).then_some(());
        host.wait_for("what is behind a pause", few);
        assert_eq!(host.vmm_pids(), Vec::<u32>::new());
        let possessions = host.possessions();
        let (descriptors, files): (Vec<_>, Vec<_>) = possessions.iter().partition(|it| it.starts_with("descriptor "));
        let blocks = |path: &String| std::fs::symlink_metadata(path).map_or(0, |file| file.blocks() / 2);
        Held {
            files: files.len(),
            images: count_in(host, "images"),
            rows: host.state_rows(),
            descriptors: descriptors.len(),
            disk: files.iter().map(|path| blocks(path)).sum(),
        }
    }

    fn count_in(host: &Host, kind: &str) -> usize {
        std::fs::read_dir(host.state().join("vmm/memory").join(kind)).unwrap().count()
    }

    #[test]
    fn fifty_pauses_and_resumes_leave_nothing_behind() {
        let mut host = Host::real();
        host.write_app("blog", "", "first");
        host.write("apps/blog/sandbox.yaml", COUNTER);
        host.commit("an app that counts");
        host.start();
        host.wait_converged();
        let (mut counted, mut seen) = (0, Vec::new());
        for cycle in 1..=50 {
            counted = host.wait_for("its going on", |host| count(host).filter(|count| *count >= counted));
            said(&host.run(&["pause", "blog"]));
            wait_phase(&host, "paused");
            if cycle % 10 == 0 {
                seen.push(held(&host));
                eprintln!("after {cycle} cycles: {:?}", seen.last());
            }
            said(&host.run(&["wake", "blog"]));
            wait_phase(&host, "ready");
        }
        assert_eq!(host.app("blog")["restarts"], 0);
        // The first ten have filled what is bounded.
        let (first, last) = (seen[0], seen[seen.len() - 1]);
        let most_layers = 8;
        for held in &seen {
            assert!(held.files.abs_diff(first.files) <= most_layers, "{seen:#?}");
            assert!(held.descriptors.abs_diff(first.descriptors) <= 3, "{seen:#?}");
            assert_eq!((held.images, held.rows), (1, first.rows), "{seen:#?}");
        }
        assert!(last.disk * 4 <= first.disk * 5, "{seen:#?}");
        assert_eq!(host.stop_daemon(), Some(0));
    }

    /// A template that can be declared, and an app of it.
    fn write_template(host: &Host, prewarm: bool) {
        let template = format!(
            "apiVersion: setpoint/v1\nkind: Template\nmetadata:\n  name: other\nspec:\n  rootfs: {{path: templates/other}}\n  \
             prewarm: {prewarm}\n"
        );
        host.write("templates/other.yaml", &template);
        host.write("templates/other/etc/motd", "other");
    }

    fn warm_templates(host: &Host) -> usize {
        crate::host::find(&host.state().join("vmm/warm"), "saved.json").len()
    }

    #[test]
    fn a_template_is_warm_before_anything_begins_from_it_and_a_daemon_that_stops_meanwhile_leaves_nothing() {
        let mut host = Host::real();
        host.configure("[vmm]\nwarm_templates = true\n");
        write_template(&host, true);
        host.commit("a template and no app");
        host.start_with(&[("RUST_LOG", "info,setpoint=debug")]);
        host.wait_for("the machine that is to be warm", |host| (!host.qemu_pids().is_empty()).then_some(()));
        assert_eq!(host.stop_daemon(), Some(0));
        assert_eq!(host.vmm_pids(), Vec::<u32>::new(), "nobody would end it");
        assert_eq!(warm_templates(&host), 0);

        host.start_with(&[("RUST_LOG", "info,setpoint=debug")]);
        host.wait_for("the warm template", |host| (warm_templates(host) == 1).then_some(()));
        host.wait_for("the end of its machine", |host| host.vmm_pids().is_empty().then_some(()));
        let app =
            "apiVersion: setpoint/v1\nkind: App\nmetadata:\n  name: blog\nspec:\n  template: other\n  retain: none\n";
        host.write("apps/blog/app.yaml", app);
        host.write("apps/blog/sandbox.yaml", COUNTER);
        host.commit("an app of the default size");
        host.wait_for("a warm start", |host| host.log().contains("began from a warm template").then_some(()));
        assert_eq!(host.stop_daemon(), Some(0));
    }

    #[test]
    fn an_app_of_a_kind_that_has_booted_before_begins_from_its_warm_template() {
        let mut host = Host::real();
        host.configure("[vmm]\nwarm_templates = true\n");
        host.write_app("first", "", "first");
        host.commit("an app");
        host.start_with(&[("RUST_LOG", "info,setpoint=debug")]);
        host.wait_served("first", "first");
        host.wait_for("the warm template", |host| {
            host.log().contains("its kind of machine has a warm template").then_some(())
        });
        host.write_app("second", "", "second");
        host.commit("another app");
        host.wait_served("second", "second");
        host.wait_converged();
        let warm = host.log().lines().filter(|line| line.contains("began from a warm template")).count();
        assert_eq!(warm, 1, "the second app alone");
        host.wait_served("first", "first");
        assert_eq!(host.stop_daemon(), Some(0));
    }
}
