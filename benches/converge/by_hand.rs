//! The same QEMU command under the same limits, without Setpoint: no repository, no plan, no journal, no disk to make.

use std::borrow::Cow;
use std::convert::Infallible;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use setpoint_guest::client::{Client, SyncFile};
use setpoint_guest::proto::{ApplyRequest, FileKind, ManifestEntry, Web};
use setpoint_schema::id::DiskId;
use setpoint_schema::quantity::ByteSize;
use setpoint_vmm::driver::Driver as _;
use setpoint_vmm::qemu::{AccelChoice, MachineType, Network, QemuConfig, QemuDriver};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::figures::processor_time;
use crate::groups::Groups;
use crate::host::{Host, find};

const PORT: u16 = 3000;

/// Between two looks at what announces itself to nobody: QEMU's socket, and the app's port.
const LOOK: Duration = Duration::from_millis(2);

/// A command line of QEMU, taken from a process that Setpoint started, with its channels on paths of this directory.
pub struct ByHand {
    dir: tempfile::TempDir,
    line: Vec<String>,
    groups: Groups,
}

/// One start.
#[derive(Debug, Clone)]
pub struct Start {
    /// From starting the process to the agent's answer.
    pub agent: Duration,
    /// From there to the page.
    pub served: Duration,
    /// What QEMU used of processors for all of it.
    pub processor: Duration,
}

impl Start {
    /// All of it.
    pub fn whole(&self) -> Duration {
        self.agent + self.served
    }
}

impl ByHand {
    /// Reads the command line and the limits of the only running microVM, and makes a data disk as Setpoint makes them.
    pub fn like(host: &Host) -> Self {
        let qemu = host.qemu_pids()[0];
        let dir = tempfile::Builder::new().prefix("setpoint-by-hand-").tempdir().unwrap();
        let raw = fs::read(format!("/proc/{qemu}/cmdline")).unwrap();
        let words = raw.split(|byte| *byte == 0).filter(|word| !word.is_empty());
        let line = words.map(|word| channel_on_path(&String::from_utf8_lossy(word))).collect();
        fs::rename(fresh_disk(dir.path()), dir.path().join("fresh.img")).unwrap();
        let groups = find(&host.state().join("vmm/vms"), "cgroup.json");
        let groups = Groups::like(groups.first().map_or(Path::new(""), PathBuf::as_path));
        Self { dir, line, groups }
    }

    /// Starts it, lets the app run in it, asks for its page, and ends it.
    pub fn start(&self) -> Start {
        let (fresh, disk) = (self.dir.path().join("fresh.img"), self.dir.path().join("data.img"));
        let copied = Command::new("cp").args(["--sparse=always"]).args([&fresh, &disk]).status().unwrap();
        assert!(copied.success());
        let _ = fs::remove_file(self.dir.path().join("agent.sock"));
        let (program, arguments) = self.line.split_first().unwrap();
        let log = File::create(self.dir.path().join("console.log")).unwrap();
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.dir.path());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let begun = Instant::now();
        let qemu = Running(command.spawn().unwrap());
        self.groups.take(qemu.0.id());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = Client::connect(self.agent_socket().await).await.unwrap();
            let agent = begun.elapsed();
            serve(&client).await;
            Start { agent, served: begun.elapsed() - agent, processor: processor_time(qemu.0.id()) }
        })
    }

    async fn agent_socket(&self) -> UnixStream {
        loop {
            match UnixStream::connect(self.dir.path().join("agent.sock")).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }
}

/// Sends the file, starts the web server, and asks for the page until it comes.
async fn serve(client: &Client) {
    let entry = ManifestEntry { path: "index.html".to_owned(), blob: "1".to_owned(), kind: FileKind::Regular.into() };
    let file = SyncFile { entry, content: b"by hand".to_vec().into() };
    client.sync("tree", Vec::new(), futures_util::stream::iter([Ok::<_, Infallible>(file)])).await.unwrap();
    let web = Web {
        command: "exec busybox httpd -f -p 3000".to_owned(),
        port: u32::from(PORT),
        health_path: "/".to_owned(),
        restart_after_task: false,
    };
    client.apply(ApplyRequest { digest: "set".to_owned(), web: Some(web), ..ApplyRequest::default() }).await.unwrap();
    while !page(client).await.is_some_and(|answer| answer.contains(" 200 ") && answer.ends_with("by hand")) {
        tokio::time::sleep(LOOK).await;
    }
}

async fn page(client: &Client) -> Option<String> {
    let mut port = client.open_port(PORT).await.ok()?;
    port.write_all(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n").await.ok()?;
    let mut answer = String::new();
    port.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

/// Setpoint's channels are descriptors that its shim opened; by hand they are sockets that QEMU makes.
fn channel_on_path(word: &str) -> String {
    let channel = |id: &str| word.starts_with(&format!("socket,id={id},fd="));
    if channel("agent") {
        "socket,id=agent,path=agent.sock,server=on,wait=off".to_owned()
    } else if channel("qmp") {
        "socket,id=qmp,path=qmp.sock,server=on,wait=off".to_owned()
    } else if channel("events") {
        "null,id=events".to_owned()
    } else if word.starts_with("if=none,id=data,") {
        with_file(word, Path::new("data.img"))
    } else {
        word.to_owned()
    }
}

/// The same drive on another file.
fn with_file(drive: &str, file: &Path) -> String {
    let options = drive.split(',').map(|option| match option.strip_prefix("file=") {
        Some(_) => Cow::Owned(format!("file={}", file.display())),
        None => Cow::Borrowed(option),
    });
    options.collect::<Vec<_>>().join(",")
}

fn fresh_disk(dir: &Path) -> PathBuf {
    let driver = QemuDriver::new(QemuConfig {
        dir: dir.to_owned(),
        kernel: None,
        modules: None,
        accel: AccelChoice::Tcg,
        machine: MachineType::default(),
        network: Network::default(),
        qemu: None,
        shim: Vec::new(),
        agent: Cow::Borrowed(&[]),
        busybox: None,
    });
    let disk = DiskId("fresh".into());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(driver.unwrap().ensure_disk(&disk, ByteSize::mib(64), None)).unwrap();
    dir.join("disks/fresh.img")
}

/// Ends with what it measures, however that ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
