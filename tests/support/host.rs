//! A host of its own for each test: a repository, a state directory, a daemon on free ports, and an end to all of it.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longer than anything takes on a loaded two-core machine under emulation; a test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(150);

/// The binary under test.
pub fn setpoint() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_setpoint"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SETPOINT_")) {
        command.env_remove(name);
    }
    command.env("NO_COLOR", "1").env_remove("COLUMNS");
    command
}

/// A repository, a state directory, and maybe a daemon. Dropping it ends the daemon and every microVM.
pub struct Host {
    dir: tempfile::TempDir,
    driver: &'static str,
    daemon: Option<Daemon>,
    small_disk: Option<SmallDisk>,
}

struct Daemon {
    process: Child,
    api: SocketAddr,
    ingress: SocketAddr,
}

/// A status code and a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Host {
    /// With real microVMs.
    pub fn real() -> Self {
        Self::new("qemu")
    }

    /// With scripted ones.
    pub fn sim() -> Self {
        Self::new("sim")
    }

    fn new(driver: &'static str) -> Self {
        let dir = tempfile::Builder::new().prefix("setpoint-test-").tempdir().unwrap();
        let host = Self { dir, driver, daemon: None, small_disk: None };
        fs::create_dir(host.repo()).unwrap();
        host.git(&["init", "--quiet", "--initial-branch=main"]);
        // Kernels and the like are the same for every test: fetched and unpacked once.
        let shared = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
        fs::create_dir_all(&shared).unwrap();
        fs::create_dir_all(host.state().join("vmm")).unwrap();
        std::os::unix::fs::symlink(&shared, host.state().join("vmm/kernels")).unwrap();
        host
    }

    pub fn repo(&self) -> PathBuf {
        self.dir.path().join("repo")
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Runs git in the repository.
    pub fn git(&self, args: &[&str]) -> String {
        let identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"];
        let output = Command::new("git").current_dir(self.repo()).args(identity).args(args).output().unwrap();
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Writes a file of the repository.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.repo().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Removes a file or folder of the repository.
    pub fn remove(&self, path: &str) {
        self.git(&["rm", "-r", "--quiet", path]);
    }

    /// Commits everything; returns the commit.
    pub fn commit(&self, message: &str) -> String {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--allow-empty", "-m", message]);
        self.git(&["rev-parse", "HEAD"])
    }

    /// The small app that most tests use: busybox serving the workspace.
    pub fn write_app(&self, name: &str, spec: &str, page: &str) {
        let spec = indent(&format!("resources: {{memory: 128Mi, disk: 64Mi}}\nretain: none\n{spec}"));
        let app = format!("apiVersion: setpoint/v1\nkind: App\nmetadata:\n  name: {name}\nspec:\n{spec}");
        self.write(&format!("apps/{name}/app.yaml"), &app);
        self.write(
            &format!("apps/{name}/sandbox.yaml"),
            "version: 1\nweb:\n  command: exec busybox httpd -f -p 3000\n",
        );
        self.write(&format!("apps/{name}/index.html"), page);
    }

    /// A command on this host's repository and state.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = setpoint();
        command.current_dir(self.repo()).args(["--driver", self.driver]).arg("--state-dir").arg(self.state());
        if self.config_path().exists() {
            command.arg("--config").arg(self.config_path());
        }
        command.args(args);
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Starts the daemon and waits until it has looked around.
    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// The same, with environment variables.
    pub fn start_with(&mut self, env: &[(&str, &str)]) {
        self.spawn(env);
        self.wait_for("the daemon to be ready", |host| host.api_answer("/readyz").filter(|a| a.status == 200));
    }

    /// Starts the daemon and waits only until it has its ports, or has ended.
    pub fn spawn(&mut self, env: &[(&str, &str)]) {
        let mut process = self.launch(env);
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some((api, ingress)) = self.beacon(process.id()) {
                self.daemon = Some(Daemon { process, api, ingress });
                return;
            }
            if process.try_wait().unwrap().is_some() {
                return;
            }
            assert!(Instant::now() < deadline, "the daemon does not come up:\n{}", self.log());
            pause();
        }
    }

    /// Starts the daemon and waits for nothing.
    fn launch(&self, env: &[(&str, &str)]) -> Child {
        let _ = fs::remove_file(self.state().join("daemon.json"));
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path()).unwrap();
        let mut command = self.command(&["--api-listen", "127.0.0.1:0", "--ingress-listen", "127.0.0.1:0"]);
        command.arg("--repo").arg(self.repo()).arg("run").envs(env.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
    }

    fn beacon(&self, pid: u32) -> Option<(SocketAddr, SocketAddr)> {
        let text = fs::read(self.state().join("daemon.json")).ok()?;
        let value: Value = serde_json::from_slice(&text).ok()?;
        let address = |name: &str| value[name].as_str()?.parse().ok();
        (value["pid"] == pid).then_some(())?;
        Some((address("api")?, address("ingress")?))
    }

    /// Whether the daemon's process is alive.
    pub fn is_up(&mut self) -> bool {
        self.daemon.as_mut().is_some_and(|daemon| daemon.process.try_wait().unwrap().is_none())
    }

    /// `kill -9`.
    pub fn kill_daemon(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.process.kill().unwrap();
            daemon.process.wait().unwrap();
        }
    }

    /// SIGTERM, and its exit code.
    pub fn stop_daemon(&mut self) -> Option<i32> {
        let mut daemon = self.daemon.take()?;
        signal(daemon.process.id(), "TERM");
        daemon.process.wait().unwrap().code()
    }

    /// What the daemon has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("daemon.log")
    }

    /// An answer of the status API, if it answers.
    pub fn api_answer(&self, path: &str) -> Option<Answer> {
        get(self.daemon.as_ref()?.api, "localhost", path)
    }

    /// An object of the status API.
    pub fn api(&self, path: &str) -> Value {
        let answer = self.api_answer(path).unwrap_or_else(|| panic!("{path}: no answer\n{}", self.log()));
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        serde_json::from_str(&answer.body).unwrap()
    }

    /// What the ingress answers for `http://HOST/path`.
    pub fn fetch(&self, host: &str, path: &str) -> Option<Answer> {
        get(self.daemon.as_ref()?.ingress, host, path)
    }

    pub fn api_address(&self) -> SocketAddr {
        self.daemon.as_ref().unwrap().api
    }

    pub fn ingress_address(&self) -> SocketAddr {
        self.daemon.as_ref().unwrap().ingress
    }

    /// One app, or null.
    pub fn app(&self, name: &str) -> Value {
        let answer = self.api_answer(&format!("/v1/apps/default/{name}"));
        answer.filter(|a| a.status == 200).map(|a| serde_json::from_str(&a.body).unwrap()).unwrap_or_default()
    }

    /// The microVM of an app, or null.
    pub fn sandbox_of(&self, app: &str) -> Value {
        let list = self.api("/v1/sandboxes");
        list["items"].as_array().unwrap().iter().find(|sandbox| sandbox["app"] == app).cloned().unwrap_or_default()
    }

    /// The boot that an app's microVM is in.
    pub fn boot_of(&self, app: &str) -> String {
        self.sandbox_of(app)["vm"]["nonce"].as_str().unwrap_or_default().to_owned()
    }

    /// The events of an app, as `kind: message`.
    pub fn events_of(&self, app: &str) -> Vec<String> {
        let events = self.api("/v1/events?limit=1000");
        let of_app = events["items"].as_array().unwrap().iter().filter(|event| event["app"] == app);
        of_app
            .map(|event| format!("{}: {}", event["kind"].as_str().unwrap(), event["message"].as_str().unwrap()))
            .collect()
    }

    /// Polls until `look` finds something.
    pub fn wait_for<T>(&self, what: &str, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            assert!(Instant::now() < deadline, "waited in vain for {what}\n{}", self.account());
            pause();
        }
    }

    /// Waits until the ingress serves `body` for an app.
    pub fn wait_served(&self, app: &str, body: &str) {
        let host = format!("{app}.localhost");
        self.wait_for(&format!("{app} to serve {body:?}"), |this| {
            this.fetch(&host, "/").filter(|answer| answer.status == 200 && answer.body.contains(body))
        });
    }

    /// Waits until the plan is empty and nothing is being done.
    pub fn wait_converged(&self) {
        let commit = self.git(&["rev-parse", "HEAD"]);
        self.wait_for("convergence", |host| {
            let status = host.api("/v1/status");
            (status["source"]["lastApplied"] == commit.as_str()).then_some(())
        });
    }

    /// All that helps to understand a failure.
    fn account(&self) -> String {
        let apps = self.api_answer("/v1/apps").map(|answer| answer.body).unwrap_or_default();
        let consoles = find(&self.state().join("vmm"), "console.log");
        let consoles: Vec<_> = consoles.iter().map(|path| tail(&fs::read(path).unwrap_or_default())).collect();
        format!("apps: {apps}\nlog:\n{}\nconsoles:\n{}", self.log(), consoles.join("\n---\n"))
    }

    /// Process ids of this host's VMMs and their shims.
    pub fn vmm_pids(&self) -> Vec<u32> {
        self.pids(|line| line.contains("qemu-system") || line.contains("vm-shim"))
    }

    /// Process ids of this host's QEMUs alone.
    pub fn qemu_pids(&self) -> Vec<u32> {
        self.pids(|line| line.contains("qemu-system") && !line.contains("vm-shim"))
    }

    fn pids(&self, wanted: impl Fn(&str) -> bool) -> Vec<u32> {
        let state = self.state().display().to_string();
        let ours = |line: &str, cwd: &str| wanted(line) && (line.contains(&state) || cwd.contains(&state));
        processes().into_iter().filter(|(_, line, cwd)| ours(line, cwd)).map(|(pid, ..)| pid).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill_daemon();
        let sandboxes: Vec<_> = fs::read_dir(self.state().join("vmm/vms")).into_iter().flatten().flatten().collect();
        for pid in self.vmm_pids() {
            signal(pid, "KILL");
        }
        for sandbox in sandboxes {
            remove_groups(&format!("setpoint-{}-", sandbox.file_name().display()));
        }
        // A directory on which something is mounted cannot be removed.
        self.small_disk.take();
    }
}

/// Removes the control groups of microVMs that were ended without their driver.
fn remove_groups(prefix: &str) {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    let groups = hierarchies.flat_map(|hierarchy| fs::read_dir(hierarchy.path()).into_iter().flatten().flatten());
    for group in groups.filter(|group| group.file_name().to_string_lossy().starts_with(prefix)) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(group.path()).is_err() && Instant::now() < deadline {
            pause();
        }
    }
}

/// Sends a signal by name.
pub fn signal(pid: u32, name: &str) {
    let _ = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).stderr(Stdio::null()).status();
}

/// Every process: id, command line, working directory.
fn processes() -> Vec<(u32, String, String)> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let describe = |entry: fs::DirEntry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let line = String::from_utf8_lossy(&fs::read(entry.path().join("cmdline")).ok()?).replace('\0', " ");
        let cwd = fs::read_link(entry.path().join("cwd")).map(|path| path.display().to_string()).unwrap_or_default();
        Some((pid, line, cwd))
    };
    entries.filter_map(describe).collect()
}

/// Every file of this name below a directory.
pub fn find(dir: &Path, name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(find(&path, name));
        } else if entry.file_name() == name {
            found.push(path);
        }
    }
    found
}

fn tail(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(3000)..]).into_owned()
}

/// One GET, HTTP/1.0 so that the body ends with the connection.
pub fn get(address: SocketAddr, host: &str, path: &str) -> Option<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n").as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, body: body.to_owned() })
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

/// Between two looks at something that cannot be waited on from outside.
fn pause() {
    std::thread::sleep(Duration::from_millis(50));
}

/// What only tests with real microVMs look at.
impl Host {
    /// Waits until the ingress serves `body` under a path.
    pub fn wait_served_path(&self, app: &str, path: &str, body: &str) {
        self.wait_for(&format!("{app} to serve {path}"), |host| {
            let answer = host.fetch(&format!("{app}.localhost"), path)?;
            (answer.status == 200 && answer.body.contains(body)).then_some(())
        });
    }

    /// Rows of sandboxes, disks and apps in the store.
    pub fn state_rows(&self) -> (usize, usize, usize) {
        let output = self.run(&["state", "show"]);
        let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
        let count = |name: &str| shown[name].as_array().unwrap().len();
        (count("sandboxes"), count("disks"), count("apps"))
    }

    /// Waits until an app is ready in another boot than `boot`; returns that.
    pub fn wait_healed(&self, app: &str, boot: &str) -> String {
        self.wait_for(&format!("{app} to be healed"), |host| {
            let now = host.boot_of(app);
            (now != boot && !now.is_empty() && host.app(app)["ready"] == true).then_some(now)
        })
    }

    /// Waits until an event of an app says `words`.
    pub fn wait_event(&self, app: &str, words: &str) {
        self.wait_for(&format!("an event that says {words:?}"), |host| {
            host.events_of(app).iter().any(|event| event.contains(words)).then_some(())
        });
    }

    /// Gives a command to the monitor of the only microVM.
    pub fn monitor(&self, command: &str) {
        let sockets = find(&self.state().join("vmm"), "qmp.sock");
        // A socket's path can be too long to connect to, so it is reached through its directory.
        let directory = fs::File::open(sockets[0].parent().unwrap()).unwrap();
        let path = format!("/proc/self/fd/{}/qmp.sock", std::os::fd::AsRawFd::as_raw_fd(&directory));
        let mut monitor = std::os::unix::net::UnixStream::connect(path).unwrap();
        let commands = format!("{{\"execute\":\"qmp_capabilities\"}}{{\"execute\":\"{command}\"}}");
        monitor.write_all(commands.as_bytes()).unwrap();
        let mut answer = String::new();
        while answer.matches("\"return\"").count() < 2 {
            let mut piece = [0; 4096];
            let length = monitor.read(&mut piece).unwrap();
            answer.push_str(&String::from_utf8_lossy(&piece[..length]));
            assert!(length > 0 && !answer.contains("\"error\""), "{answer}");
        }
    }
}

/// What tests of previews, of bad input and of the command line use.
impl Host {
    /// The directory that holds everything of this host.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Gives every later command, and the next daemon, this configuration file.
    pub fn configure(&self, toml: &str) {
        fs::write(self.config_path(), toml).unwrap();
    }

    fn config_path(&self) -> PathBuf {
        self.dir.path().join("daemon.toml")
    }

    /// Runs git in the repository with this input.
    pub fn git_feed(&self, args: &[&str], input: &[u8]) -> String {
        let mut command = Command::new("git");
        command.current_dir(self.repo()).args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "git {args:?}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Converges once on the repository's HEAD.
    pub fn reconcile(&self) -> Output {
        let mut command = self.command(&["reconcile"]);
        command.arg("--repo").arg(self.repo()).output().unwrap()
    }

    /// Runs a daemon that cannot come up, to its end; its exit code and what it says.
    pub fn run_in_vain(&self) -> (Option<i32>, String) {
        let mut command = self.command(&["--api-listen", "127.0.0.1:0", "--ingress-listen", "127.0.0.1:0", "run"]);
        let output = command.arg("--repo").arg(self.repo()).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Waits until the daemon has ended by itself; its exit code.
    pub fn wait_for_the_end(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        while self.is_up() {
            assert!(Instant::now() < deadline, "the daemon does not end:\n{}", self.log());
            pause();
        }
        self.stop_daemon()
    }

    /// The scripted microVMs, looked at from outside.
    pub fn world(&self) -> setpoint_vmm::sim::World {
        setpoint_vmm::sim::World::open(self.state().join("vmm"))
    }
}

/// What only crash tests do.
impl Host {
    /// Starts the daemon and waits for its end.
    pub fn run_to_death(&self, env: &[(&str, &str)]) -> ExitStatus {
        let mut process = self.launch(env);
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = process.try_wait().unwrap() {
                return status;
            }
            if Instant::now() > deadline {
                process.kill().unwrap();
                process.wait().unwrap();
                panic!("the daemon lives on with {env:?}\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts the daemon, and ends it with SIGKILL after this time.
    pub fn run_for(&self, time: Duration, env: &[(&str, &str)]) {
        let mut process = self.launch(env);
        std::thread::sleep(time);
        process.kill().unwrap();
        process.wait().unwrap();
    }
}

/// A file system of this many mebibytes for the state; unmounted when dropped.
struct SmallDisk {
    place: PathBuf,
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.place, rustix::mount::UnmountFlags::DETACH);
    }
}

impl Host {
    /// Scripted microVMs, and a state directory on a disk of its own of this many mebibytes. None where mounting one is not
    /// allowed, which takes root.
    pub fn sim_on_small_disk(mib: u32) -> Option<Self> {
        use rustix::mount::{MountFlags, mount};
        let mut host = Self::sim();
        let place = host.state();
        let size = std::ffi::CString::new(format!("size={mib}m")).unwrap();
        match mount("tmpfs", &place, "tmpfs", MountFlags::empty(), Some(size.as_c_str())) {
            Ok(()) => {
                host.small_disk = Some(SmallDisk { place });
                Some(host)
            }
            Err(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) => {
                eprintln!("not tested: mounting a file system is not allowed here");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Lets the disk of the state be written, or not.
    pub fn remount(&self, flags: rustix::mount::MountFlags) {
        rustix::mount::mount_remount(self.state(), flags, c"").unwrap();
    }

    /// Fills the disk of the state up; returns the file that does.
    pub fn fill_disk(&self) -> PathBuf {
        let path = self.state().join("ballast");
        let mut file = fs::File::create(&path).unwrap();
        while file.write_all(&[0; 64 * 1024]).is_ok() {}
        path
    }

    /// What this host has taken of the machine: files but for the store's own, the daemon's descriptors by kind, processes,
    /// and control groups.
    pub fn possessions(&self) -> Vec<String> {
        let daemon = self.daemon.as_ref().unwrap().process.id();
        let mut all = files_below(&self.state().join("vmm"));
        let kinds = fs::read_dir(format!("/proc/{daemon}/fd")).unwrap().flatten();
        let kinds = kinds.filter_map(|fd| fs::read_link(fd.path()).ok()).map(|link| link.display().to_string());
        // Connections of the API's and the ingress's clients come and go, and this test is one of them.
        let lasting = kinds.filter(|kind| !kind.starts_with("socket:")).map(|kind| {
            let kind = kind.split(':').next().unwrap_or_default().to_owned();
            format!("descriptor {}", kind.split("/store/").next().unwrap_or_default())
        });
        all.extend(lasting);
        all.extend(self.vmm_pids().iter().map(|pid| format!("process {pid}")));
        all.sort();
        all
    }
}

fn files_below(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        found.push(entry.path().display().to_string());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files_below(&entry.path()));
        }
    }
    found
}
