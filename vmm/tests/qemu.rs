//! Real microVMs: what the driver promises, shown with QEMU, a kernel and, where it matters, the real agent.

#![expect(clippy::unwrap_used, reason = "a failing step is a failing test")]

#[path = "qemu/host.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod host;

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{FutureExt as _, StreamExt as _, stream};
use rustix::process::{Signal, kill_process};
use setpoint_schema::id::{BlobId, TreeDigest};
use setpoint_schema::observed::{ExitReason, GuestStatus, VmState};
use setpoint_schema::quantity::{ByteSize, Span};
use setpoint_schema::runtime::{ProcessSet, Runtime, Web};
use setpoint_vmm::driver::{Driver, FileKind, Guest, ManifestEntry, RestartScope, VmmError, WorkspaceFile};
use setpoint_vmm::qemu::QemuDriver;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use host::{DISK, Host, machine};

/// A guest that does nothing, for ever.
const IDLE: &str = "sleep 100000";

/// Longer than any boot takes on a busy machine without KVM.
const LONG: Duration = Duration::from_secs(90);

/// Launches what ends by itself and says how it ended.
async fn run_to_end(host: &Host) -> ExitReason {
    host.driver.launch(&host.machine).await.unwrap();
    let exited = host.driver.exited(&host.machine.sandbox, &host.machine.nonce);
    if timeout(LONG, exited).await.is_err() {
        let console = host.driver.console_tail(&host.machine.sandbox, 4096).await.unwrap();
        panic!("the guest does not end; its console: {}", String::from_utf8_lossy(&console));
    }
    match host.driver.observe(&host.machine.sandbox).await.unwrap() {
        VmState::Exited { reason } => reason,
        other => panic!("{other:?}"),
    }
}

async fn is_running(host: &Host, driver: &QemuDriver) -> bool {
    let state = driver.observe(&host.machine.sandbox).await.unwrap();
    matches!(state, VmState::Running { nonce, .. } if nonce == host.machine.nonce)
}

/// The agent, as soon as it answers.
async fn agent(host: &Host, driver: &QemuDriver) -> Arc<dyn Guest> {
    let connect = async {
        loop {
            match driver.guest(&host.machine.sandbox, &host.machine.nonce).await {
                Ok(guest) => return guest,
                Err(error) => {
                    // The agent does not answer yet; an error that does not wait itself means that the VM is gone.
                    let console = driver.console_tail(&host.machine.sandbox, 4096).await.unwrap();
                    let console = String::from_utf8_lossy(&console).into_owned();
                    assert!(is_running(host, driver).await, "{error}; console: {console}");
                }
            }
        }
    };
    timeout(LONG, connect).await.expect("the agent answers")
}

#[tokio::test]
async fn an_app_is_served_from_inside_and_shuts_down_cleanly() {
    let host = Host::with_real_agent().await;
    let started = Instant::now();
    host.driver.launch(&host.machine).await.unwrap();
    let guest = agent(&host, &host.driver).await;
    eprintln!("launch to agent: {:?}", started.elapsed());

    let tree = TreeDigest("a".repeat(40).into());
    let entry = ManifestEntry { blob: BlobId("b".repeat(40)), kind: FileKind::Regular };
    let file = WorkspaceFile { path: "www/index.html".into(), entry: entry.clone(), content: b"hello".to_vec() };
    guest.sync(&tree, stream::iter([Ok(file)]).boxed(), Vec::new()).await.unwrap();
    let manifest = guest.manifest().await.unwrap();
    assert_eq!((manifest.tree, manifest.files.get("www/index.html")), (Some(tree.clone()), Some(&entry)));

    let web = Web { command: "exec busybox httpd -f -p 127.0.0.1:3000 -h www".into(), ..Web::default() };
    let runtime = Runtime { web: Some(web), ..Runtime::nothing() };
    let set = ProcessSet { runtime, env: Default::default(), tree };
    guest.apply(&set, false, RestartScope::All).await.unwrap();
    let status = ready(&*guest).await;
    assert_eq!((&status.nonce, &status.processes), (&host.machine.nonce, &Some(set.digest())));

    let mut port = guest.open_port(3000).await.unwrap();
    port.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").await.unwrap();
    port.flush().await.unwrap();
    let mut answer = String::new();
    timeout(LONG, port.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.") && answer.contains(" 200 ") && answer.ends_with("hello"), "{answer}");

    guest.shutdown().await.unwrap();
    timeout(LONG, host.driver.exited(&host.machine.sandbox, &host.machine.nonce)).await.unwrap();
    let state = host.driver.observe(&host.machine.sandbox).await.unwrap();
    assert_eq!(state, VmState::Exited { reason: ExitReason::Shutdown });
}

async fn ready(guest: &dyn Guest) -> Arc<GuestStatus> {
    let wait = async {
        let mut status = guest.status().await.unwrap();
        while let Some(reason) = status.unready() {
            eprintln!("{reason}");
            status = guest.status_change(&status, Span::secs(5)).await.unwrap().unwrap_or(status);
        }
        status
    };
    timeout(LONG, wait).await.expect("the web process becomes healthy")
}

#[tokio::test]
async fn a_second_driver_adopts_what_the_first_launched_and_talks_to_its_agent() {
    let host = Host::with_real_agent().await;
    host.driver.launch(&host.machine).await.unwrap();
    let guest = agent(&host, &host.driver).await;
    guest.exec(vec!["touch".into(), "kept".into()]).await.unwrap();
    // A daemon that dies leaves its connection closed.
    drop(guest);

    let adopter = host.another_driver();
    assert_eq!(adopter.list().await.unwrap(), std::slice::from_ref(&host.machine));
    let qemu = host.pid("qemu");
    adopter.launch(&host.machine).await.unwrap();
    assert_eq!(host.pid("qemu"), qemu);
    let guest = agent(&host, &adopter).await;
    assert_eq!(guest.exec(vec!["ls".into(), "kept".into()]).await.unwrap().stdout, b"kept\n");
}

#[tokio::test]
async fn a_data_disk_grows_under_a_running_guest() {
    let host = Host::with_real_agent().await;
    host.driver.launch(&host.machine).await.unwrap();
    let guest = agent(&host, &host.driver).await;
    let before = guest.status().await.unwrap().disk;
    let larger = ByteSize::mib(DISK.as_mib() * 4);
    host.driver.ensure_disk(&host.machine.disk, larger, Some(&host.machine.sandbox)).await.unwrap();
    assert_eq!(host.driver.disk_size(&host.machine.disk).await.unwrap(), Some(larger));
    guest.grow_disk().await.unwrap();
    let after = guest.status().await.unwrap().disk;
    assert!(after.as_bytes() > 3 * before.as_bytes(), "{before} to {after}");
}

#[tokio::test]
async fn a_killed_vmm_is_noticed_and_named_and_the_next_boot_runs() {
    let host = Host::with_init(IDLE).await;
    host.driver.launch(&host.machine).await.unwrap();
    let exited = host.driver.exited(&host.machine.sandbox, &host.machine.nonce);
    tokio::pin!(exited);
    assert!((&mut exited).now_or_never().is_none());
    kill_process(host.pid("qemu"), Signal::KILL).unwrap();
    timeout(Duration::from_secs(10), exited).await.expect("the end is noticed");
    let state = host.driver.observe(&host.machine.sandbox).await.unwrap();
    assert_eq!(state, VmState::Exited { reason: ExitReason::Killed(9) });

    let next = machine("11111111111111111111111111111111");
    host.driver.launch(&next).await.unwrap();
    assert!(
        matches!(host.driver.observe(&next.sandbox).await.unwrap(), VmState::Running { nonce, .. } if nonce == next.nonce)
    );
    assert_eq!(host.driver.list().await.unwrap(), [next]);
}

#[tokio::test]
async fn a_vmm_does_not_outlive_its_shim() {
    let host = Host::with_init(IDLE).await;
    host.driver.launch(&host.machine).await.unwrap();
    kill_process(host.pid("shim"), Signal::KILL).unwrap();
    timeout(Duration::from_secs(10), host.driver.exited(&host.machine.sandbox, &host.machine.nonce)).await.unwrap();
    let state = host.driver.observe(&host.machine.sandbox).await.unwrap();
    assert_eq!(state, VmState::Exited { reason: ExitReason::Unknown });
}

#[tokio::test]
async fn a_stopped_vmm_can_be_killed_and_removed_without_a_trace() {
    let host = Host::with_init(IDLE).await;
    host.driver.launch(&host.machine).await.unwrap();
    let (qemu, shim, groups) = (host.pid("qemu"), host.pid("shim"), host.cgroups());
    kill_process(qemu, Signal::STOP).unwrap();
    assert!(matches!(host.driver.remove(&host.machine.sandbox).await, Err(VmmError::Vmm { .. })), "it still runs");
    host.driver.kill(&host.machine.sandbox).await.unwrap();
    host.driver.kill(&host.machine.sandbox).await.unwrap();
    host.driver.remove(&host.machine.sandbox).await.unwrap();
    host.driver.remove(&host.machine.sandbox).await.unwrap();
    assert!(!host.vm_dir().exists());
    assert!(!fs::exists(format!("/proc/{}", qemu.as_raw_nonzero())).unwrap());
    // The shim is this process's child: the runtime asks for its end in its own time.
    let reaped = async {
        while fs::exists(format!("/proc/{}", shim.as_raw_nonzero())).unwrap() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), reaped).await.expect("no zombie stays");
    assert_eq!(host.driver.observe(&host.machine.sandbox).await.unwrap(), VmState::Absent);
    host.driver.delete_disk(&host.machine.disk).await.unwrap();
    assert_eq!(host.driver.list_disks().await.unwrap(), []);
    assert!(groups.iter().all(|group| !group.exists()), "{groups:?}");
}

#[tokio::test]
async fn two_daemons_launching_at_once_start_one_vmm() {
    let host = Host::with_init(IDLE).await;
    let other = host.another_driver();
    let (first, second) = tokio::join!(host.driver.launch(&host.machine), other.launch(&host.machine));
    assert!(first.is_ok() || second.is_ok(), "{first:?} {second:?}");
    assert!(is_running(&host, &host.driver).await);
    let strays = fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
        let qemu = fs::read(entry.path().join("comm")).is_ok_and(|name| name.starts_with(b"qemu-system"));
        qemu && fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == host.vm_dir())
    });
    assert_eq!(strays.count(), 1);
}

#[tokio::test]
async fn another_boot_of_a_running_sandbox_is_refused() {
    let host = Host::with_init(IDLE).await;
    host.driver.launch(&host.machine).await.unwrap();
    host.driver.launch(&machine("22222222222222222222222222222222")).await.unwrap_err();
    assert!(is_running(&host, &host.driver).await);
    assert_eq!(host.driver.list().await.unwrap(), std::slice::from_ref(&host.machine));
}

#[tokio::test]
async fn a_guest_kernel_that_panics_is_reported_with_its_last_words() {
    let host = Host::with_init("exit 7").await;
    let ExitReason::Panic(line) = run_to_end(&host).await else { panic!("no panic") };
    assert!(line.contains("Attempted to kill init"), "{line}");
}

#[tokio::test]
async fn a_guest_that_powers_off_has_shut_down() {
    let host = Host::with_init("poweroff -f").await;
    assert_eq!(run_to_end(&host).await, ExitReason::Shutdown);
}

#[tokio::test]
async fn a_guest_that_reboots_has_reset() {
    let host = Host::with_init("reboot -f").await;
    assert_eq!(run_to_end(&host).await, ExitReason::Reset);
}

#[tokio::test]
async fn a_chatty_guest_fills_no_disk_and_its_last_words_are_kept() {
    let script = "head -c 3000000 /dev/zero | tr '\\0' x; echo last words; poweroff -f";
    let host = Host::with_init(&format!("mount -t devtmpfs d /dev\nexec > /dev/console 2>&1\n{script}")).await;
    assert_eq!(run_to_end(&host).await, ExitReason::Shutdown);
    let size = |name: &str| fs::metadata(host.vm_dir().join(name)).map_or(0, |metadata| metadata.len());
    let sizes = (size("console.log"), size("console.log.1"));
    assert!(sizes.0 <= 1 << 20 && sizes.1 <= 1 << 20 && sizes.1 > 0, "{sizes:?}");
    let tail = host.driver.console_tail(&host.machine.sandbox, 200).await.unwrap();
    assert!(String::from_utf8_lossy(&tail).contains("last words"), "{tail:?}");
}

#[tokio::test]
async fn what_qemu_complains_of_is_the_error() {
    let host = Host::with_init(IDLE).await;
    let mut absurd = host.machine.clone();
    absurd.vcpus = 100_000;
    let error = host.driver.launch(&absurd).await.unwrap_err().to_string();
    assert!(error.to_lowercase().contains("cpu"), "{error}");
}
