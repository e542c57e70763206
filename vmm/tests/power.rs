//! Real microVMs at rest: paused to files, and resumed from them.

#![expect(clippy::unwrap_used, reason = "a failing step is a failing test")]

#[path = "qemu/host.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod host;

mod microvm {
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use futures_util::{StreamExt as _, stream};
    use rustix::process::{Signal, kill_process};
    use setpoint_schema::id::{BlobId, BootNonce, DiskId, SandboxId, SnapshotId, TreeDigest};
    use setpoint_schema::observed::{Machine, Moment, VmState};
    use setpoint_schema::quantity::Span;
    use setpoint_schema::runtime::{ProcessSet, Runtime, Web};
    use setpoint_vmm::driver::{
        Driver, FileKind, Guest, KeepDisk, Launched, ManifestEntry, Pause, Paused, RestartScope, Result, Take, Taken,
        WorkspaceFile,
    };
    use tokio::time::timeout;
    use tokio_util::sync::CancellationToken;

    use crate::host::{DISK, Host, machine};

    /// Longer than any boot takes on a busy machine without KVM.
    const LONG: Duration = Duration::from_secs(120);

    /// Answers each request with a number that it keeps in its memory and counts up.
    const COUNTER: &str = "n=0; while :; do n=$((n+1)); echo $n > /tmp/n; sleep 0.05; done";

    fn boot(number: u32) -> Machine {
        machine(&format!("{number:032x}"))
    }

    fn snapshot(number: u32) -> SnapshotId {
        SnapshotId(format!("{:032x}", 0xabc0 + number))
    }

    /// What a daemon would know of a microVM.
    fn there(machine: &Machine) -> Moment {
        let (sandbox, machine) = (machine.sandbox.clone(), machine.clone());
        Moment { sandbox, machine, disk: DISK, revision: None, tree: None }
    }

    /// The agent of a boot, as soon as it answers.
    async fn agent(host: &Host, machine: &Machine) -> Arc<dyn Guest> {
        let connect = async {
            loop {
                match host.driver.guest(&machine.sandbox, &machine.nonce).await {
                    Ok(guest) => return guest,
                    Err(error) => {
                        let state = host.driver.observe(&machine.sandbox).await.unwrap();
                        let console = host.driver.console_tail(&machine.sandbox, 2000).await.unwrap();
                        let console = String::from_utf8_lossy(&console).into_owned();
                        assert!(matches!(state, VmState::Running { .. }), "{error}: {state:?}; console: {console}");
                    }
                }
            }
        };
        timeout(LONG, connect).await.expect("the agent answers")
    }

    async fn launched(host: &Host, machine: &Machine) -> Arc<dyn Guest> {
        let started = Instant::now();
        let launched = host.driver.launch(machine).await.unwrap();
        eprintln!("launch: {:?}, {launched:?}", started.elapsed());
        agent(host, machine).await
    }

    async fn pause(host: &Host, machine: &Machine, agent: &dyn Guest, snapshot: &SnapshotId) -> Result<Paused> {
        let cancel = CancellationToken::new();
        let (sandbox, nonce) = (&machine.sandbox, &machine.nonce);
        let started = Instant::now();
        let paused = host.driver.pause(Pause { sandbox, nonce, snapshot, agent, cancel: &cancel }).await;
        eprintln!("pause: {:?}, {paused:?}", started.elapsed());
        paused
    }

    async fn keep_disk(host: &Host, snapshot: &SnapshotId, agent: Option<&dyn Guest>) -> Result<Taken> {
        let Machine { sandbox, disk, .. } = boot(1);
        let moment = &there(&boot(1));
        let taken = host.driver.keep_disk(KeepDisk { sandbox: &sandbox, disk: &disk, snapshot, agent, moment }).await;
        eprintln!("keep disk: {taken:?}");
        taken
    }

    async fn resume(host: &Host, machine: &Machine) -> Arc<dyn Guest> {
        let started = Instant::now();
        if let Err(error) = host.driver.resume(machine).await {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            let log = std::fs::read_to_string(host.vm_dir().join("vmm.log")).unwrap_or_default();
            panic!("{error}: {source:?}; {log}");
        }
        eprintln!("resume: {:?}", started.elapsed());
        let agent = agent(host, machine).await;
        eprintln!("resume to agent: {:?}", started.elapsed());
        agent
    }

    async fn shell(agent: &dyn Guest, command: &str) -> String {
        let output = agent.exec(["sh", "-c", command].map(str::to_owned).to_vec()).await.unwrap();
        assert_eq!(output.code, 0, "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Starts a web process that keeps a number in its memory.
    async fn count(agent: &dyn Guest) {
        let tree = TreeDigest("a".repeat(40).into());
        let entry = ManifestEntry { blob: BlobId("b".repeat(40)), kind: FileKind::Regular };
        let file = WorkspaceFile { path: "index.html".into(), entry, content: b"hello".to_vec() };
        agent.sync(&tree, stream::iter([Ok(file)]).boxed(), Vec::new()).await.unwrap();
        let command = format!("({COUNTER}) & exec busybox httpd -f -p 127.0.0.1:3000");
        let web = Web { command, ..Web::default() };
        let runtime = Runtime { web: Some(web), ..Runtime::nothing() };
        agent.apply(&ProcessSet { runtime, env: Default::default(), tree }, false, RestartScope::All).await.unwrap();
        let ready = async {
            let mut status = agent.status().await.unwrap();
            while status.unready().is_some() {
                status = agent.status_change(&status, Span::secs(5)).await.unwrap().unwrap_or(status);
            }
        };
        timeout(LONG, ready).await.expect("the web process becomes healthy");
    }

    async fn counted(agent: &dyn Guest) -> u64 {
        shell(agent, "cat /tmp/n").await.parse().unwrap()
    }

    async fn is_paused(host: &Host, machine: &Machine) -> bool {
        let state = host.driver.observe(&machine.sandbox).await.unwrap();
        matches!(state, VmState::Paused { nonce, .. } if nonce == machine.nonce)
    }

    #[tokio::test]
    async fn a_counter_in_memory_goes_on_through_two_generations_and_files_are_there() {
        let host = Host::with_real_agent().await;
        let agent = launched(&host, &boot(1)).await;
        count(&*agent).await;
        shell(&*agent, "echo written > before").await;
        let before = counted(&*agent).await;
        assert!(matches!(pause(&host, &boot(1), &*agent, &snapshot(1)).await.unwrap(), Paused::Saved { .. }));
        drop(agent);
        assert!(is_paused(&host, &boot(1)).await);
        tokio::time::sleep(Duration::from_secs(3)).await;

        let agent = resume(&host, &boot(2)).await;
        let first = counted(&*agent).await;
        assert!((before..before + 60).contains(&first), "{before} to {first}");
        assert_eq!(shell(&*agent, "cat before").await, "written");
        let clock: i64 = shell(&*agent, "date +%s").await.parse().unwrap();
        assert!((clock - jiff::Timestamp::now().as_second()).abs() <= 1, "the clock shows {clock}");
        let status = agent.status().await.unwrap();
        assert_eq!((status.nonce.clone(), status.unready()), (boot(2).nonce, None));
        shell(&*agent, "echo second > between").await;
        let second = counted(&*agent).await;
        assert!(matches!(pause(&host, &boot(2), &*agent, &snapshot(2)).await.unwrap(), Paused::Saved { .. }));
        drop(agent);

        let agent = resume(&host, &boot(3)).await;
        assert!(counted(&*agent).await >= second);
        assert_eq!(shell(&*agent, "cat before between").await, "written\nsecond");
        assert_eq!(shell(&*agent, "hostname").await, "blog");
        drop(agent);

        // And after a cold boot of the same disk.
        host.driver.kill(&boot(3).sandbox).await.unwrap();
        let agent = launched(&host, &boot(4)).await;
        assert_eq!(shell(&*agent, "cat before between").await, "written\nsecond");
    }

    /// The bytes of the guest's memory that a VMM has in its mapping of the base: resident, and its share of that.
    fn resident_and_share(pid: i32) -> (u64, u64) {
        let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
        let mut areas = smaps.lines().skip_while(|line| !line.contains("/memory/bases/"));
        let field = |line: &str, name: &str| -> Option<u64> {
            line.strip_prefix(name)?.trim().strip_suffix(" kB")?.trim().parse().ok()
        };
        let rss = areas.find_map(|line| field(line, "Rss:")).unwrap();
        (rss, areas.find_map(|line| field(line, "Pss:")).unwrap())
    }

    /// A machine of a sandbox of its own.
    async fn another(host: &Host, number: u32) -> Machine {
        let name = format!("blog-{number:08x}");
        let machine = Machine {
            sandbox: SandboxId(name.as_str().into()),
            nonce: BootNonce(format!("{:032x}", 0x10_0000 + number).into()),
            disk: DiskId(name.into()),
            ..boot(0)
        };
        host.driver.ensure_disk(&machine.disk, DISK, None).await.unwrap();
        machine
    }

    #[tokio::test]
    async fn ten_microvms_begin_from_one_warm_template_share_its_memory_and_differ() {
        let host = Host::with_real_agent().await;
        let started = Instant::now();
        host.driver.prewarm(&boot(1)).await.unwrap();
        eprintln!("prewarm: {:?}", started.elapsed());
        let mut machines = Vec::new();
        for number in 2..12 {
            machines.push(another(&host, number).await);
        }
        let _ends = Ended(&host, machines.clone());
        let mut randoms = BTreeSet::new();
        let mut ids = BTreeSet::new();
        for machine in &machines {
            let started = Instant::now();
            assert_eq!(host.driver.launch(machine).await.unwrap(), Launched::Warm);
            eprintln!("warm launch: {:?}", started.elapsed());
        }
        let pids: Vec<_> = machines.iter().map(|machine| host.pid_of(machine, "qemu").as_raw_nonzero().get()).collect();
        for pid in &pids {
            let (rss, pss) = resident_and_share(*pid);
            eprintln!("{rss} kB resident, {pss} kB share");
        }
        let (rss, pss) = pids.iter().map(|pid| resident_and_share(*pid)).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        assert!(pss * 5 <= rss, "{pss} of {rss} kB");
        for machine in &machines {
            let agent = agent(&host, machine).await;
            randoms.insert(shell(&*agent, "head -c 16 /dev/urandom | od -An -tx1").await);
            ids.insert(shell(&*agent, "cat /etc/machine-id /sys/class/net/eth0/address").await);
            let clock: i64 = shell(&*agent, "date +%s").await.parse().unwrap();
            assert!((clock - jiff::Timestamp::now().as_second()).abs() <= 1, "the clock shows {clock}");
            let disk = agent.status().await.unwrap().disk;
            assert!(disk.as_mib() > 40, "{disk}");
            shell(&*agent, "echo mine > mine && sync").await;
        }
        assert_eq!((randoms.len(), ids.len()), (10, 10), "{ids:?}");

        // Without anything that could begin from it the template goes, and what has begun from it stays.
        host.driver.keep_warm(&[]).await.unwrap();
        host.driver.tidy(&CancellationToken::new()).await.unwrap();
        assert_eq!(std::fs::read_dir(host.file("warm")).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(host.file("memory/images")).unwrap().count(), 1);

        // One of them is paused and resumed over the template's memory.
        let machine = &machines[0];
        let agent = agent(&host, machine).await;
        let saved = pause(&host, machine, &*agent, &snapshot(9)).await.unwrap();
        assert!(matches!(saved, Paused::Saved { .. }));
        drop(agent);
        let next = Machine { nonce: boot(99).nonce, ..machine.clone() };
        let agent = resume(&host, &next).await;
        assert_eq!(shell(&*agent, "cat mine").await, "mine");
    }

    #[tokio::test]
    async fn a_live_fork_and_its_source_both_go_on_and_their_writes_do_not_cross() {
        let host = Host::with_real_agent().await;
        host.driver.prewarm(&boot(1)).await.unwrap();
        let source = launched(&host, &boot(1)).await;
        count(&*source).await;
        shell(&*source, "echo shared > both && head -c 20000000 /dev/urandom > /tmp/dirty && sync").await;
        let sum = shell(&*source, "md5sum < /tmp/dirty").await;
        let before = counted(&*source).await;
        let (sandbox, moment) = (boot(1).sandbox, there(&boot(1)));
        let take = Take { sandbox: &sandbox, snapshot: &snapshot(5), agent: Some(&*source), moment: &moment };
        let taken = host.driver.take_snapshot(take).await.unwrap();
        eprintln!("{taken:?}");
        assert_eq!(taken.moment, moment);
        let later = there(&boot(2));
        let again = host.driver.take_snapshot(Take { moment: &later, ..take }).await.unwrap();
        assert_eq!(again, taken, "what was kept is told, though there is something else now");
        shell(&*source, "echo source > mine").await;

        let fork =
            Machine { disk: DiskId("fork-00000001".into()), sandbox: SandboxId("fork-00000001".into()), ..boot(7) };
        let _ends = Ended(&host, vec![fork.clone()]);
        let started = Instant::now();
        host.driver.launch_from(&fork, &snapshot(5)).await.unwrap();
        eprintln!("launch from: {:?}", started.elapsed());
        let forked = agent(&host, &fork).await;
        assert!(counted(&*forked).await >= before);
        assert_eq!(shell(&*forked, "md5sum < /tmp/dirty").await, sum);
        shell(&*forked, "test ! -e mine && echo fork > mine && cat both && sync").await;
        assert_eq!(shell(&*source, "cat mine; md5sum < /tmp/dirty").await, format!("source\n{sum}"));
        let id = "cat /etc/machine-id 2>/dev/null; head -c 8 /dev/urandom | od -An -tx1";
        assert_ne!(shell(&*forked, id).await, shell(&*source, id).await);
        let at = counted(&*source).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(counted(&*source).await > at);
        assert_eq!(forked.status().await.unwrap().unready(), None);

        // A disk of its own is not overwritten by a second beginning, which boots from it.
        host.driver.kill(&fork.sandbox).await.unwrap();
        let again = Machine { nonce: boot(8).nonce, ..fork.clone() };
        host.driver.launch_from(&again, &snapshot(5)).await.unwrap();
        let forked = agent(&host, &again).await;
        assert_eq!(shell(&*forked, "cat mine both").await, "fork\nshared");
        host.driver.remove_snapshot(&snapshot(5)).await.unwrap();
        assert_eq!(host.driver.list_snapshots().await.unwrap(), []);
    }

    #[tokio::test]
    async fn a_vmm_that_is_killed_during_a_pause_loses_nothing_that_was_synced() {
        let host = Host::with_real_agent().await;
        host.driver.prewarm(&boot(1)).await.unwrap();
        let agent = launched(&host, &boot(1)).await;
        shell(&*agent, "echo synced > kept && sync").await;
        let qemu = host.pid("qemu");
        let snapshot = snapshot(1);
        let first = boot(1);
        let (pausing, killing) = (pause(&host, &first, &*agent, &snapshot), async {
            // As soon as the devices' state is there, the memory is being kept.
            while !host.vm_dir().join(format!("{snapshot}.state")).exists() {
                tokio::task::yield_now().await;
            }
            kill_process(qemu, Signal::KILL).unwrap();
        });
        let (paused, ()) = tokio::join!(pausing, killing);
        drop(agent);
        eprintln!("{paused:?}");
        let state = host.driver.observe(&boot(1).sandbox).await.unwrap();
        let again = match (&paused, state) {
            // Killed too late: all of it was kept.
            (Ok(_), VmState::Paused { .. }) => resume(&host, &boot(2)).await,
            (Err(_), VmState::Exited { .. }) => launched(&host, &boot(2)).await,
            (paused, state) => panic!("{paused:?}, {state:?}"),
        };
        assert_eq!(shell(&*again, "cat kept").await, "synced");
    }

    #[tokio::test]
    async fn damaged_memory_is_not_resumed_but_booted_past_and_the_disk_is_as_it_was() {
        let host = Host::with_real_agent().await;
        host.driver.prewarm(&boot(1)).await.unwrap();
        let agent = launched(&host, &boot(1)).await;
        shell(&*agent, "echo written > before").await;
        pause(&host, &boot(1), &*agent, &snapshot(1)).await.unwrap();
        drop(agent);
        let pack = host.file(&format!("memory/packs/{}.pack", snapshot(1)));
        let mut content = std::fs::read(&pack).unwrap();
        let middle = content.len() / 2;
        content[middle] ^= 1;
        std::fs::write(&pack, content).unwrap();
        host.driver.resume(&boot(2)).await.unwrap_err();
        let state = host.driver.observe(&boot(1).sandbox).await.unwrap();
        assert!(matches!(state, VmState::Paused { fault: Some(_), .. }), "{state:?}");
        let agent = launched(&host, &boot(3)).await;
        assert_eq!(shell(&*agent, "cat before").await, "written");
        assert!(pack.exists(), "what was saved is kept");
        host.driver.resume(&boot(4)).await.unwrap_err();
        assert_eq!(shell(&*agent, "cat before").await, "written");
    }

    #[tokio::test]
    async fn a_disk_alone_is_kept_clean_and_another_begins_with_a_copy_of_it() {
        let host = Host::with_real_agent().await;
        let source = launched(&host, &boot(1)).await;
        count(&*source).await;
        shell(&*source, "mkdir -p node_modules/a src && echo x > node_modules/a/f && echo before > src/kept").await;
        shell(&*source, "head -c 5000000 /dev/urandom > blob").await;
        let sum = shell(&*source, "md5sum < blob").await;
        let (sixth, seventh) = (snapshot(6), snapshot(7));
        keep_disk(&host, &sixth, None).await.unwrap_err();
        let taken = keep_disk(&host, &sixth, Some(&*source)).await.unwrap();
        assert_eq!(keep_disk(&host, &sixth, Some(&*source)).await.unwrap().bytes, taken.bytes);
        assert_eq!(host.driver.list_snapshots().await.unwrap(), [(sixth.clone(), taken.bytes)]);
        let at = counted(&*source).await;
        shell(&*source, "echo after > src/kept && sync").await;
        assert!(taken.bytes.as_mib() < 16, "{}: it is sparse as the disk is", taken.bytes);
        let image = host.file(&format!("snapshots/{sixth}/disk.img"));
        let check = std::process::Command::new("/usr/sbin/e2fsck").arg("-fn").arg(&image).output().unwrap();
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));

        let fork =
            Machine { disk: DiskId("fork-00000001".into()), sandbox: SandboxId("fork-00000001".into()), ..boot(7) };
        let _ends = Ended(&host, vec![fork.clone()]);
        host.driver.launch_from(&fork, &sixth).await.unwrap_err();
        host.driver.ensure_disk_from(&fork.disk, &seventh, DISK).await.unwrap_err();
        let larger = setpoint_schema::quantity::ByteSize::mib(96);
        host.driver.ensure_disk_from(&fork.disk, &sixth, larger).await.unwrap();
        assert_eq!(host.driver.disk_size(&fork.disk).await.unwrap(), Some(larger));
        host.driver.launch(&fork).await.unwrap();
        let forked = agent(&host, &fork).await;
        forked.leave_out(&sixth, &["node_modules".to_owned()]).await.unwrap();
        assert_eq!(forked.left_out().await.unwrap(), Some(sixth));
        forked.grow_disk().await.unwrap();
        assert!(forked.status().await.unwrap().disk.as_mib() > 80);
        assert_eq!(
            shell(&*forked, "cat src/kept; ls; md5sum < blob").await,
            format!("before\nblob\nindex.html\nsrc\n{sum}")
        );
        // As what runs there, it writes into what the source's processes made.
        assert_eq!(shell(&*forked, "id -u; stat -c %u . src src/kept blob index.html").await, ["1000"; 6].join("\n"));
        shell(&*forked, "echo fork >> src/kept && sync").await;
        assert_eq!(shell(&*source, "cat src/kept; ls node_modules/a").await, "after\nf");
        assert!(counted(&*source).await >= at);
        assert_eq!(source.status().await.unwrap().unready(), None);

        // What is paused has its disk at rest.
        pause(&host, &boot(1), &*source, &snapshot(1)).await.unwrap();
        drop(source);
        let taken = keep_disk(&host, &seventh, None).await.unwrap();
        assert!(taken.stopped.is_zero() && is_paused(&host, &boot(1)).await);
        let source = resume(&host, &boot(2)).await;
        assert_eq!(shell(&*source, "cat src/kept").await, "after");
        for snapshot in [snapshot(6), seventh] {
            host.driver.remove_snapshot(&snapshot).await.unwrap();
        }
        assert_eq!(host.driver.list_snapshots().await.unwrap(), []);
    }

    /// Ends the microVMs of sandboxes that the host does not know of.
    struct Ended<'a>(&'a Host, Vec<Machine>);

    impl Drop for Ended<'_> {
        fn drop(&mut self) {
            self.1.iter().for_each(|machine| self.0.end(machine));
        }
    }
}
