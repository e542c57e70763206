//! The main job with real microVMs: from a commit to an answer, through changes, failures and removal.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/host.rs"]
mod host;

mod microvm {
    use std::fs;
    use std::net::TcpListener;
    use std::path::Path;
    use std::process::Command;

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
        host.wait_for("its rows to be gone", |host| (host.state_rows() == (0, 0, 0)).then_some(()));
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

    #[test]
    fn twenty_lives_of_an_app_leave_nothing_behind() {
        let mut host = Host::real();
        host.write("setpoint.toml", "[policies]\nallow_empty = true\n");
        host.commit("begin with nothing");
        host.start();
        let mut after_first = None;
        for life in 0..20 {
            let page = format!("life {life}");
            host.write_app("blog", "", &page);
            host.commit("add blog");
            host.wait_served("blog", &page);
            host.remove("apps/blog");
            host.commit("remove blog");
            host.wait_for("blog to be gone", |host| host.app("blog").is_null().then_some(()));
            host.wait_converged();
            let left = host.possessions();
            // The first life makes what all later ones share: the template, the initramfs.
            assert_eq!(&left, after_first.get_or_insert_with(|| left.clone()), "after life {life}");
        }
        assert_eq!(host.state_rows(), (0, 0, 0));
        assert!(host.vmm_pids().is_empty());
    }

    #[test]
    fn a_guest_without_network_reaches_no_service_of_its_host() {
        assert!(reaches_host("user"), "the control: QEMU's user network leads to the host's loopback");
        assert!(!reaches_host("none"));
    }

    /// Whether a guest under this setting connects to a service on the host's loopback.
    fn reaches_host(network: &str) -> bool {
        let service = TcpListener::bind("127.0.0.1:0").unwrap();
        service.set_nonblocking(true).unwrap();
        let port = service.local_addr().unwrap().port();
        let mut host = Host::real();
        host.configure(&format!("[vmm]\nnetwork = \"{network}\"\n"));
        // A root of its own with bash in it: busybox-static cannot open connections by itself.
        let root = host.dir().join("root");
        copy_with_libraries(&root, &["/bin/bash", "/bin/busybox"]);
        let template = format!(
            "apiVersion: setpoint/v1\nkind: Template\nmetadata:\n  name: bash\nspec:\n  rootfs:\n    path: {}\n",
            root.display()
        );
        host.write("templates/bash.yaml", &template);
        host.write_app("prober", "template: bash", "probing");
        let attempt = format!("busybox timeout 3 bash -c 'exec 3<>/dev/tcp/10.0.2.2/{port}'; echo over > tried");
        let runtime = format!("version: 1\nweb:\n  command: {attempt}; exec busybox httpd -f -p 3000\n");
        host.write("apps/prober/sandbox.yaml", &runtime);
        host.commit("add prober");
        host.start();
        host.wait_served_path("prober", "/tried", "over");
        service.accept().is_ok()
    }

    /// Makes a root file system of these programs, the libraries that they load, and a shell.
    fn copy_with_libraries(root: &Path, programs: &[&str]) {
        for program in programs {
            let listed = Command::new("ldd").arg(program).output().unwrap();
            let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
            let libraries = listed.split_whitespace().filter(|word| word.starts_with('/'));
            for file in libraries.chain([*program]) {
                let target = root.join(file.trim_start_matches('/'));
                fs::create_dir_all(target.parent().unwrap()).unwrap();
                fs::copy(file, target).unwrap();
            }
        }
        std::os::unix::fs::symlink("bash", root.join("bin/sh")).unwrap();
    }
}
