//! Real microVMs whose daemon is killed while it pauses or resumes them, keeps a moment of them, or makes what others begin from: the next
//! daemon brings them to where they should be, with the memory and the disk that they had.

#![cfg(feature = "failpoints")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/counter.rs"]
mod counter;
#[path = "support/failpoints.rs"]
mod failpoints;
#[path = "support/host.rs"]
mod host;

mod microvm {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use crate::counter::{COUNTER, count, read};
    use crate::failpoints::{
        DISK_FORK, DISK_SNAPSHOT, FORK, FROM_WARM, MERGE, PAUSE, PAUSED_SNAPSHOT, RESUME, SNAPSHOT, WARM,
    };
    use crate::host::{Host, find};

    fn counting() -> Host {
        let mut host = Host::real();
        host.write_app("blog", "", "first");
        host.write("apps/blog/sandbox.yaml", COUNTER);
        host.commit("an app that counts");
        host.start();
        host.wait_converged();
        count_from(&host, 1);
        host
    }

    /// The number, once it is this one or larger.
    fn count_from(host: &Host, least: u64) -> u64 {
        host.wait_for("a larger count", |host| count(host).filter(|count| *count >= least))
    }

    fn wait_phase(host: &Host, phase: &str) {
        host.wait_for(phase, |host| (host.app("blog")["phase"] == phase).then_some(()));
    }

    /// Asks for something in a daemon that ends itself at this point on the way there.
    fn cut_at(host: &mut Host, asks: &[&str], point: &str) {
        assert_eq!(host.stop_daemon(), Some(0));
        host.start_with(&[("FAILPOINTS", &format!("{point}=return"))]);
        host.wait_for("adoption", |host| (!host.app("blog").is_null()).then_some(()));
        // The daemon may be gone before it has answered.
        host.run(asks);
        assert_eq!(host.wait_for_the_end(), None, "{point} was passed\n{}", host.log());
        host.start();
    }

    /// That nothing of it runs, and that a request wakes it with the memory that it had.
    fn rests_and_goes_on(host: &Host, before: u64, what: &str) -> u64 {
        wait_phase(host, "paused");
        host.wait_for("the end of its VMM", |host| host.vmm_pids().is_empty().then_some(()));
        let after = count(host).unwrap_or_else(|| panic!("{what}: not answered\n{}", host.log()));
        assert!(after >= before, "{what}: {after} after {before}, it began anew");
        goes_on(host, after, what)
    }

    /// That it counts on, and has not booted.
    fn goes_on(host: &Host, before: u64, what: &str) -> u64 {
        wait_phase(host, "ready");
        let after = count_from(host, before + 3);
        assert_eq!(host.fetch("blog.localhost", "/last").map(|answer| answer.status), Some(404), "{what}: it booted");
        assert_eq!(find(&host.state().join("vmm"), "abandoned.json"), Vec::<std::path::PathBuf>::new());
        after
    }

    /// That the disk has what was counted just before a pause, also when the memory is lost.
    fn boots_with_its_disk(mut host: Host, before: u64) {
        assert!(host.run(&["pause", "blog"]).status.success());
        wait_phase(&host, "paused");
        std::fs::remove_dir_all(host.state().join("vmm/memory/images")).unwrap();
        host.wait_for("a boot from the disk", |host| read(host, "last").filter(|last| *last >= before));
        assert_eq!(host.stop_daemon(), Some(0));
    }

    #[test]
    fn a_pause_that_is_cut_anywhere_ends_paused_with_memory_and_disk() {
        let mut host = counting();
        let mut count = 0;
        for point in PAUSE {
            count = count_from(&host, count);
            cut_at(&mut host, &["pause", "blog"], point);
            count = rests_and_goes_on(&host, count, point);
        }
        boots_with_its_disk(host, count);
    }

    #[test]
    fn a_resume_that_is_cut_anywhere_ends_running_with_memory_and_disk() {
        let mut host = counting();
        let mut count = 0;
        for point in RESUME {
            count = count_from(&host, count);
            assert!(host.run(&["pause", "blog"]).status.success());
            wait_phase(&host, "paused");
            cut_at(&mut host, &["wake", "blog"], point);
            count = goes_on(&host, count, point);
        }
        boots_with_its_disk(host, count);
    }

    #[test]
    fn layers_whose_merging_is_cut_are_whole_and_are_merged_by_the_next_daemon() {
        let mut host = counting();
        assert_eq!(host.stop_daemon(), Some(0));
        // Nothing is merged for as long as there are to be more layers.
        host.start_with(&[("FAILPOINTS", "merge/switch=return(error)")]);
        let mut count = 0;
        for _ in 0..10 {
            assert!(host.run(&["pause", "blog"]).status.success());
            wait_phase(&host, "paused");
            assert!(host.run(&["wake", "blog"]).status.success());
            count = goes_on(&host, count, "between layers");
        }
        assert!(host.run(&["pause", "blog"]).status.success());
        wait_phase(&host, "paused");
        assert_eq!(host.stop_daemon(), Some(0));
        for point in MERGE {
            host.spawn(&[("FAILPOINTS", &format!("{point}=return"))]);
            assert_eq!(host.wait_for_the_end(), None, "{point} was passed\n{}", host.log());
        }
        host.start();
        host.wait_for("one layer", |host| (memory_files(host, "packs") == 1 && devices(host) == 1).then_some(()));
        count = rests_and_goes_on(&host, count, "merged");
        boots_with_its_disk(host, count);
    }

    fn memory_files(host: &Host, kind: &str) -> usize {
        std::fs::read_dir(host.state().join("vmm/memory").join(kind)).unwrap().count()
    }

    /// The states of devices that are kept.
    fn devices(host: &Host) -> usize {
        let vms = std::fs::read_dir(host.state().join("vmm/vms")).unwrap().flatten();
        let files = vms.flat_map(|vm| std::fs::read_dir(vm.path()).unwrap().flatten());
        files.filter(|file| file.path().extension().is_some_and(|suffix| suffix == "state")).count()
    }

    #[test]
    fn pauses_and_resumes_that_are_killed_at_any_time_lose_nothing() {
        let mut host = counting();
        let mut count = 0;
        for round in 0..8 {
            count = count_from(&host, count);
            assert!(host.run(&["pause", "blog"]).status.success());
            // From the beginning of the pause on, and for half of the rounds from the beginning of the resume on.
            if round % 2 == 1 {
                wait_phase(&host, "paused");
                assert!(host.run(&["wake", "blog"]).status.success());
            }
            std::thread::sleep(Duration::from_millis(40 * round));
            host.kill_daemon();
            host.start();
            count = match round % 2 {
                0 => rests_and_goes_on(&host, count, &format!("round {round}")),
                _ => goes_on(&host, count, &format!("round {round}")),
            };
        }
        boots_with_its_disk(host, count);
    }

    /// All files of the driver by their place under its directory.
    fn files(host: &Host) -> BTreeSet<String> {
        fn below(dir: &std::path::Path, root: &std::path::Path, out: &mut BTreeSet<String>) {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => below(&entry.path(), root, out),
                    Ok(_) => drop(out.insert(entry.path().strip_prefix(root).unwrap().display().to_string())),
                    // Gone meanwhile.
                    Err(_) => {}
                }
            }
        }
        let (root, mut out) = (host.state().join("vmm"), BTreeSet::new());
        below(&root, &root, &mut out);
        out
    }

    /// What a try that was cut short would leave: files that were not finished, and devices that nothing names.
    fn unfinished(host: &Host) -> Vec<String> {
        let left = |name: &String| [".new", ".tmp", "moment.state"].iter().any(|end| name.ends_with(end));
        files(host).into_iter().filter(left).collect()
    }

    /// Keeps a moment in a daemon that ends itself at each of these points; the next one has it whole.
    fn keeps(host: &mut Host, points: &[&str], flags: &[&str], mut looks: impl FnMut(&Host, &str)) {
        for (round, point) in points.iter().enumerate() {
            let name = format!("round-{round}");
            let asks = [&["snapshot", "blog", "--name", &name], flags].concat();
            cut_at(host, &asks, point);
            host.wait_for(&format!("{name} after {point}"), |host| {
                let answer = host.api_answer(&format!("/v1/snapshots/default/{name}"))?;
                answer.body.contains("\"state\":\"kept\"").then_some(())
            });
            looks(host, point);
            host.wait_for("the end of what was cut", |host| unfinished(host).is_empty().then_some(()));
            let kept = std::fs::read_dir(host.state().join("vmm/snapshots")).unwrap().count();
            assert_eq!(kept, round + 1, "{point}");
        }
    }

    #[test]
    fn a_snapshot_that_is_cut_anywhere_is_taken_again_and_its_source_runs_on() {
        let mut host = counting();
        let mut last = 0;
        keeps(&mut host, &SNAPSHOT, &[], |host, point| last = goes_on(host, last, point));
        assert_eq!(host.qemu_pids().len(), 1);
        boots_with_its_disk(host, last);
    }

    #[test]
    fn a_disk_whose_keeping_is_cut_anywhere_is_kept_and_its_source_runs_on() {
        let mut host = counting();
        let mut last = 0;
        keeps(&mut host, &DISK_SNAPSHOT, &["--disk-only"], |host, point| last = goes_on(host, last, point));
        // Others begin with a copy of it, cut as well.
        for (round, point) in DISK_FORK.into_iter().enumerate() {
            forks_at(&mut host, &format!("copy-{round}"), "from: {snapshot: files}", point);
        }
        last = goes_on(&host, last, "copied");
        boots_with_its_disk(host, last);
    }

    #[test]
    fn a_snapshot_of_a_paused_app_that_is_cut_anywhere_is_taken_again_and_it_sleeps_on() {
        let mut host = counting();
        let last = count_from(&host, 20);
        assert!(host.run(&["pause", "blog"]).status.success());
        wait_phase(&host, "paused");
        let sleeps = |host: &Host, point: &str| {
            wait_phase(host, "paused");
            assert_eq!(host.qemu_pids(), Vec::<u32>::new(), "{point}");
        };
        keeps(&mut host, &PAUSED_SNAPSHOT, &[], sleeps);
        let last = rests_and_goes_on(&host, last, "kept");
        boots_with_its_disk(host, last);
    }

    #[test]
    fn a_fork_that_is_cut_anywhere_begins_again_where_its_source_was() {
        let mut host = counting();
        let mut last = count_from(&host, 20);
        for (round, point) in FORK.into_iter().enumerate() {
            let name = format!("fork-{round}");
            forks_at(&mut host, &name, "from: {app: blog}", point);
            let forked = host.wait_for("its count", |host| {
                let answer =
                    host.fetch(&format!("{name}.localhost"), "/count").filter(|answer| answer.status == 200)?;
                answer.body.trim().parse::<u64>().ok()
            });
            assert!(forked >= last, "{point}: {forked} after {last}, it began anew");
            last = goes_on(&host, last, point);
            host.remove(&format!("apps/{name}"));
            host.commit("away with it");
            host.wait_for("its end", |host| (host.qemu_pids().len() == 1).then_some(()));
        }
        boots_with_its_disk(host, last);
    }

    /// Declares an app that begins as another thing, in a daemon that ends itself at this point on the way.
    fn forks_at(host: &mut Host, name: &str, spec: &str, point: &str) {
        assert_eq!(host.stop_daemon(), Some(0));
        if spec.contains("files") {
            let files =
                "apiVersion: setpoint/v1\nkind: Snapshot\nmetadata:\n  name: files\nspec: {of: blog, content: disk}\n";
            host.write("apps/files/app.yaml", files);
        }
        // The same files as its source has, so that no process is to start again.
        host.write_app(name, spec, "first");
        host.write(&format!("apps/{name}/sandbox.yaml"), COUNTER);
        host.commit(name);
        host.spawn(&[("FAILPOINTS", &format!("{point}=return"))]);
        assert_eq!(host.wait_for_the_end(), None, "{point} was passed\n{}", host.log());
        host.start();
        host.wait_served(name, "first");
        host.wait_converged();
        host.wait_for("the end of what was cut", |host| unfinished(host).is_empty().then_some(()));
    }

    #[test]
    fn a_warm_template_that_is_cut_while_it_is_made_or_used_delays_nobody_for_long() {
        let mut host = Host::real();
        host.configure("[vmm]\nwarm_templates = true\n");
        host.write_app("first", "", "first");
        host.commit("an app");
        // The first boots, and the daemon ends while it makes the warm template behind it.
        host.spawn(&[("FAILPOINTS", &format!("{WARM}=return"))]);
        assert_eq!(host.wait_for_the_end(), None);
        assert_eq!(host.qemu_pids().len(), 2, "the app's, and the one that was to be a template");
        host.start();
        assert_eq!(host.qemu_pids().len(), 1, "nobody's machine is ended");
        host.wait_served("first", "first");
        // One of that kind boots again and leaves a template; those that begin from it are cut.
        host.write_app("second", "", "second");
        host.commit("another app");
        host.wait_served("second", "second");
        host.wait_for("the warm template", |host| {
            let warm = find(&host.state().join("vmm/warm"), "saved.json");
            (!warm.is_empty() && host.qemu_pids().len() == 2).then_some(())
        });
        for (name, point) in ["third", "fourth", "fifth"].into_iter().zip(FROM_WARM) {
            assert_eq!(host.stop_daemon(), Some(0));
            host.write_app(name, "", name);
            host.commit(name);
            host.spawn(&[("FAILPOINTS", &format!("{point}=return"))]);
            assert_eq!(host.wait_for_the_end(), None, "{point} was passed\n{}", host.log());
            let began = std::time::Instant::now();
            host.start();
            host.wait_served(name, name);
            // A guest that never answers is given three minutes.
            assert!(began.elapsed() < Duration::from_secs(60), "{point}: {:?}", began.elapsed());
        }
        host.wait_converged();
        assert_eq!(host.stop_daemon(), Some(0));
        assert_eq!(host.qemu_pids().len(), 5, "one for each app");
    }
}
