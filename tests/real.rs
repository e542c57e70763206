//! The main job with real microVMs: from a commit to an answer, through changes, failures and removal.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/host.rs"]
mod host;

mod microvm {
    use std::fs;

    use crate::host::{Host, find, signal};

    #[test]
    fn an_app_is_served_changed_reverted_and_removed() {
        let mut host = Host::real();
        host.start();
        host.write_app("blog", "", "first page");
        let first = host.commit("add blog");
        host.wait_served("blog", "first page");
        host.wait_converged();
        let boot = host.boot_of("blog");
        assert!(!boot.is_empty());

        host.write("apps/blog/index.html", "second page");
        host.commit("edit a file");
        host.wait_served("blog", "second page");
        assert_eq!(host.boot_of("blog"), boot, "a file change must not reboot");

        let other = "version: 1\nweb:\n  command: echo started >> starts; exec busybox httpd -f -p 3000\n";
        host.write("apps/blog/sandbox.yaml", other);
        host.commit("change the command");
        host.wait_served_path("blog", "/starts", "started");
        assert_eq!(host.boot_of("blog"), boot, "a command change must not reboot");

        host.write_app("blog", "env: {A: b}", "third page");
        let app = fs::read_to_string(host.repo().join("apps/blog/app.yaml")).unwrap();
        host.write("apps/blog/app.yaml", &app.replace("128Mi", "160Mi"));
        host.commit("change memory");
        host.wait_served("blog", "third page");
        host.wait_converged();
        let rebooted = host.boot_of("blog");
        assert_ne!(rebooted, boot, "a memory change reboots");
        assert_eq!(host.sandbox_of("blog")["memory"], "160Mi");

        host.git(&["revert", "--no-edit", "HEAD", "HEAD~1", "HEAD~2"]);
        host.wait_served("blog", "first page");
        host.wait_converged();
        assert_eq!(host.sandbox_of("blog")["memory"], "128Mi");
        assert_eq!(host.git(&["rev-parse", "HEAD^{tree}"]), host.git(&["rev-parse", &format!("{first}^{{tree}}")]));

        host.write("setpoint.toml", "[policies]\nallow_empty = true\n");
        host.remove("apps/blog");
        host.commit("remove blog");
        host.wait_for("blog to be gone", |host| host.app("blog").is_null().then_some(()));
        host.wait_for("its processes to be gone", |host| host.vmm_pids().is_empty().then_some(()));
        assert_eq!(find(&host.state().join("vmm"), "machine.json"), Vec::<std::path::PathBuf>::new());
        assert_eq!(host.state_rows(), (0, 0, 0), "no row of the app is left");
        assert_eq!(host.fetch("blog.localhost", "/").map(|answer| answer.status), Some(404));
    }

    #[test]
    fn a_killed_daemon_leaves_its_microvm_and_the_next_one_adopts_it() {
        let mut host = Host::real();
        host.write_app("blog", "", "still here");
        host.commit("add blog");
        host.start();
        host.wait_served("blog", "still here");
        host.wait_converged();
        let (boot, pids) = (host.boot_of("blog"), host.vmm_pids());

        host.kill_daemon();
        assert_eq!(host.vmm_pids(), pids, "the microVM outlives the daemon");
        host.start();
        host.wait_served("blog", "still here");
        assert_eq!(host.boot_of("blog"), boot);
        assert_eq!(host.vmm_pids(), pids);
        assert_eq!(host.api("/v1/plan")["actions"], serde_json::json!([]));

        assert_eq!(host.stop_daemon(), Some(0), "SIGTERM ends the daemon cleanly");
        assert_eq!(host.vmm_pids(), pids, "the microVM outlives a clean end, too");
    }

    #[test]
    fn dead_hung_and_panicked_guests_are_noticed_and_healed() {
        let mut host = Host::real();
        host.write_app("blog", "timeouts: {unresponsive: 4s}", "alive");
        host.commit("add blog");
        host.start();
        host.wait_served("blog", "alive");

        // The VMM dies.
        let boot = host.boot_of("blog");
        signal(host.qemu_pids()[0], "KILL");
        let boot = host.wait_healed("blog", &boot);
        host.wait_event("blog", "signal 9");

        // The guest hangs: its VMM answers and its agent says nothing.
        host.monitor("stop");
        let boot = host.wait_healed("blog", &boot);
        host.wait_event("blog", "silent");

        // The VMM itself hangs.
        signal(host.qemu_pids()[0], "STOP");
        let boot = host.wait_healed("blog", &boot);

        // The guest's kernel panics.
        host.monitor("inject-nmi");
        host.wait_healed("blog", &boot);
        host.wait_event("blog", "panic");
        host.wait_served("blog", "alive");
    }
}
