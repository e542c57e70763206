//! From a kernel that has just started the first process to a machine that can run an app.
//!
//! The agent stays in the initramfs, with the data disk and its own state. The app's side is another root directory, `/app`:
//! an overlay whose changes live in memory, over the template. Commands are confined to it as they start, so that the user
//! sees neither the agent's files nor the data disk, but for the workspace.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind_recursive, unmount};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::system::finit_module;

use super::blank::Blank;
use super::disk::DataDisk;
use super::reaper::Collects;
use super::renew::{Ahead, Identity, ThisMachine};
use super::{Config, Owner, UserSide, network, renew};

use cmdline::{Begins, CommandLine, Root};

mod cmdline;

/// The user that commands run as.
pub const APP: Owner = Owner { uid: 1000, gid: 1000 };

/// Where the data disk is mounted, out of the user's sight.
pub const DATA: &str = "/data";
/// The root directory of the app's side.
pub const USER_ROOT: &str = "/app";
/// Where the app sees its workspace.
const WORKSPACE: &str = "/workspace";
/// The built-in template, a part of the initramfs.
const BUILT_IN: &str = "/template";
const MODULES: &str = "/lib/modules/setpoint";
const CGROUPS: &str = "/sys/fs/cgroup";

/// What ext4 would do behind the scenes of its first mount, with a thread of its own: writing zeros into tables that are zero already
/// in the host's sparse file, and reading all block bitmaps before anything is asked of them.
const WITHOUT_CHORES: &std::ffi::CStr = c"noinit_itable,no_prefetch_block_bitmaps";

/// Open files of one process: servers hold one a connection.
const OPEN_FILES: u64 = 65_536;

/// Which step of booting failed, and how.
#[derive(Debug)]
pub struct BootError {
    step: String,
    source: io::Error,
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "could not {}: {}", self.step, self.source)
    }
}

impl std::error::Error for BootError {}

/// Adds the step to an error.
trait Step<T> {
    fn step(self, step: impl fmt::Display) -> Result<T, BootError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: impl fmt::Display) -> Result<T, BootError> {
        self.map_err(|error| BootError { step: step.to_string(), source: error.into() })
    }
}

/// A machine with everything but its data disk.
#[derive(Debug)]
pub struct Machine {
    line: CommandLine,
    data: PathBuf,
    cgroups: Option<PathBuf>,
    identity: Arc<ThisMachine>,
}

/// Makes the machine ready, but for its data disk.
///
/// # Errors
/// The first step that failed.
pub fn boot() -> Result<Machine, BootError> {
    mount_kernel_file_systems()?;
    load_modules()?;
    let text = fs::read_to_string("/proc/cmdline").step("read the kernel command line")?;
    let line = CommandLine::parse(&text).map_err(io::Error::other).step("understand the kernel command line")?;
    let disks = Disks::find()?;
    disks.leave_order_to_the_host();
    mount_user_root(line.root, disks.root.as_deref())?;
    fill_user_root()?;
    // Without a network an app can still serve: the host reaches it over the port.
    if let Err(error) = network::bring_up() {
        eprintln!("setpoint-agent: could not bring the network up: {error}");
    }
    settle();
    let ahead = match line.begins {
        Begins::AsItself => Ahead::No,
        Begins::Blank => Ahead::Yes,
    };
    let identity = ThisMachine::of(&Path::new(USER_ROOT).join("etc"), ahead).step("make the files of its names")?;
    if line.begins == Begins::Blank {
        rehearse(&disks.data)?;
    }
    Ok(Machine { line, data: disks.data, cgroups: make_cgroup(), identity: Arc::new(identity) })
}

impl Machine {
    /// Whether it is nobody's yet.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        self.line.begins == Begins::Blank
    }

    /// What makes it one of its own, while it is nobody's.
    ///
    /// # Errors
    /// The length of its data disk is not to be found.
    pub fn blank(&self) -> io::Result<Blank> {
        Ok(Blank::new(self.line.nonce.clone(), fs::File::open(self.length())?, self.identity()))
    }

    /// Mounts the data disk, and says what the agent needs to know. `nonce` is the boot's if that is another than at the beginning;
    /// its names are set already then.
    ///
    /// # Errors
    /// The first step that failed.
    pub fn finish(self, nonce: Option<String>) -> Result<Config, BootError> {
        mount_data(&self.data)?;
        bind(&Path::new(DATA).join("workspace"), &Path::new(USER_ROOT).join("workspace"))?;
        if nonce.is_none() {
            self.identity.set_hostname(&self.line.hostname).step("name the machine")?;
        }
        Ok(Config {
            workspace: Path::new(DATA).join("workspace"),
            state: Path::new(DATA).join(".setpoint"),
            disk: DataDisk::Ext4 { length: self.length(), device: self.data.clone(), mount: PathBuf::from(DATA) },
            collects: Collects::Everything,
            identity: self.identity(),
            nonce: nonce.unwrap_or(self.line.nonce),
            user: UserSide {
                root: Some(PathBuf::from(USER_ROOT)),
                workspace: PathBuf::from(WORKSPACE),
                owner: Some(APP),
                cgroups: self.cgroups,
            },
        })
    }

    fn length(&self) -> PathBuf {
        Path::new("/sys/class/block").join(self.data.file_name().unwrap_or_default()).join("size")
    }

    fn identity(&self) -> Arc<dyn Identity> {
        self.identity.clone()
    }
}

fn mount_kernel_file_systems() -> Result<(), BootError> {
    let closed = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_fresh("proc", Path::new("/proc"), closed, "")?;
    mount_fresh("sysfs", Path::new("/sys"), closed, "")?;
    mount_fresh("devtmpfs", Path::new("/dev"), MountFlags::NOSUID, "mode=755")?;
    mount_fresh("devpts", Path::new("/dev/pts"), MountFlags::NOSUID | MountFlags::NOEXEC, "mode=620,ptmxmode=666")?;
    mount_fresh("tmpfs", Path::new("/dev/shm"), MountFlags::NOSUID | MountFlags::NODEV, "mode=1777,size=50%")?;
    for (link, target) in [("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        let made = symlink(Path::new("/proc/self").join(target), Path::new("/dev").join(link));
        made.or_else(already_there).step(format_args!("make /dev/{link}"))?;
    }
    Ok(())
}

/// Mounts a file system that needs no device, making its directory.
fn mount_fresh(kind: &str, target: &Path, flags: MountFlags, options: &str) -> Result<(), BootError> {
    let options = std::ffi::CString::new(options).map_err(io::Error::from).step("write mount options")?;
    let mounting = format!("mount {kind} on {}", target.display());
    fs::create_dir_all(target).step(&mounting)?;
    mount(kind, target, kind, flags, Some(options.as_c_str())).step(&mounting)
}

fn already_there(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
}

/// Loads the modules that the host packed, in the order that their dependencies ask for; a kernel with everything built in has
/// none.
fn load_modules() -> Result<(), BootError> {
    let directory = Path::new(MODULES);
    let order = match fs::read_to_string(directory.join("order")) {
        Ok(order) => order,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).step("read the list of kernel modules"),
    };
    for name in order.lines().map(str::trim).filter(|name| !name.is_empty()) {
        let loading = format!("load kernel module {name}");
        let module = fs::File::open(directory.join(name)).step(&loading)?;
        match finit_module(&module, c"", 0).map_err(io::Error::from) {
            Ok(()) => {}
            Err(error) => already_there(error).step(&loading)?,
        }
    }
    // The modules' files lie in memory, and have served.
    fs::remove_dir_all(directory).step("remove the kernel modules' files")
}

/// The block devices, told apart by the serial numbers that the host gave them.
struct Disks {
    data: PathBuf,
    root: Option<PathBuf>,
}

impl Disks {
    fn find() -> Result<Self, BootError> {
        let mut names: Vec<_> = (fs::read_dir("/sys/class/block").step("list the disks")?.flatten())
            .map(|entry| entry.file_name())
            .filter(|name| name.as_encoded_bytes().starts_with(b"vd"))
            .collect();
        names.sort();
        let with_serial = |wanted: &str| {
            names.iter().find(|name| {
                let serial = Path::new("/sys/class/block").join(name).join("serial");
                fs::read_to_string(serial).is_ok_and(|serial| serial.trim() == wanted)
            })
        };
        let device = |name: &std::ffi::OsString| Path::new("/dev").join(name);
        let data = with_serial("data").or_else(|| names.first()).map(device);
        let missing = || io::Error::new(io::ErrorKind::NotFound, "no virtio block device");
        let data = data.ok_or_else(missing).step("find the data disk")?;
        let root = with_serial("root").or_else(|| names.get(1)).map(device);
        Ok(Self { data, root })
    }
}

impl Disks {
    /// The host's kernel puts what is read and written into an order. Another scheduler before it costs a change of threads each time.
    /// Nothing depends on it.
    fn leave_order_to_the_host(&self) {
        for disk in [Some(&self.data), self.root.as_ref()].into_iter().flatten() {
            let name = disk.file_name().unwrap_or_default();
            let _ = fs::write(Path::new("/sys/block").join(name).join("queue/scheduler"), "none");
        }
    }
}

fn mount_data(device: &Path) -> Result<(), BootError> {
    let mounting = format!("mount the data disk {}", device.display());
    fs::create_dir_all(DATA).step(&mounting)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    let mounted = mount(device, DATA, "ext4", flags, Some(WITHOUT_CHORES)).or_else(|error| match error {
        // An old kernel does not know them.
        Errno::INVAL => mount(device, DATA, "ext4", flags, None),
        error => Err(error),
    });
    mounted.step(&mounting)?;
    // A new disk has them already.
    for directory in ["workspace", ".setpoint"] {
        fs::create_dir_all(Path::new(DATA).join(directory)).step("make directories on the data disk")?;
    }
    let state = Path::new(DATA).join(".setpoint");
    let mode = fs::metadata(&state).step("look at the agent's directory")?.permissions().mode();
    if mode & 0o777 == 0o700 {
        return Ok(());
    }
    fs::set_permissions(state, fs::Permissions::from_mode(0o700)).step("close the agent's directory")
}

/// Mounts the empty disk that a template has in place of a data disk, and lets go of it. What the kernel makes for the first ext4 of its
/// life then is there when a copy of this machine mounts the disk that it gets; nothing of this one is remembered.
fn rehearse(device: &Path) -> Result<(), BootError> {
    mount_data(device)?;
    unmount(DATA, UnmountFlags::empty()).step("let go of the template's own disk")
}

/// Lays an overlay in memory over the template.
fn mount_user_root(root: Root, disk: Option<&Path>) -> Result<(), BootError> {
    let lower = match root {
        Root::Minimal => BUILT_IN,
        Root::Disk => {
            let missing = || io::Error::new(io::ErrorKind::NotFound, "no second virtio block device");
            let disk = disk.ok_or_else(missing).step("find the template's disk")?;
            fs::create_dir_all("/lower").step("mount the template's disk")?;
            mount(disk, "/lower", "ext4", MountFlags::RDONLY | MountFlags::NODEV, None)
                .step("mount the template's disk")?;
            lower_of_disk()
        }
    };
    // Half of the memory: what an app writes outside its workspace must not take the rest of it down.
    mount_fresh("tmpfs", Path::new("/upper"), MountFlags::NODEV, "mode=755,size=50%")?;
    for directory in ["/upper/changes", "/upper/work"] {
        fs::create_dir_all(directory).step("make the overlay's directories")?;
    }
    let options = format!("lowerdir={lower},upperdir=/upper/changes,workdir=/upper/work");
    mount_fresh("overlay", Path::new(USER_ROOT), MountFlags::NODEV, &options)
}

/// A root without a shell of its own stands on the built-in one, so that it need hold only what differs. A link counts as a shell:
/// in most distributions /bin is one, to a place that is right once the root is entered.
fn lower_of_disk() -> &'static str {
    let has_shell =
        ["bin/sh", "usr/bin/sh"].iter().any(|sh| fs::symlink_metadata(Path::new("/lower").join(sh)).is_ok());
    if has_shell { "/lower" } else { "/lower:/template" }
}

/// Puts into the app's root what every machine has.
fn fill_user_root() -> Result<(), BootError> {
    let root = Path::new(USER_ROOT);
    let in_root = |path: &str| root.join(path.trim_start_matches('/'));
    let closed = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_fresh("proc", &in_root("proc"), closed, "")?;
    mount_fresh("sysfs", &in_root("sys"), closed | MountFlags::RDONLY, "")?;
    mount_fresh("tmpfs", &in_root("run"), MountFlags::NOSUID | MountFlags::NODEV, "mode=1777,size=25%")?;
    mount_fresh("tmpfs", &in_root("tmp"), MountFlags::NOSUID | MountFlags::NODEV, "mode=1777,size=50%")?;
    bind(Path::new("/dev"), &in_root("dev"))?;

    let etc = in_root("etc");
    fs::create_dir_all(&etc).step("make /etc")?;
    replace(&etc.join("resolv.conf"), &format!("nameserver {}\n", network::NAME_SERVER))?;
    let Owner { uid, gid } = APP;
    add_account(&etc.join("passwd"), uid, &format!("app:x:{uid}:{gid}::{WORKSPACE}:/bin/sh\n"))?;
    add_account(&etc.join("group"), gid, &format!("app:x:{gid}:\n"))
}

fn bind(source: &Path, target: &Path) -> Result<(), BootError> {
    let binding = format!("show {} to the app", source.display());
    fs::create_dir_all(target).step(&binding)?;
    mount_bind_recursive(source, target).step(&binding)
}

fn replace(path: &Path, content: &str) -> Result<(), BootError> {
    renew::replace(path, content).step(format_args!("write {}", path.display()))
}

/// Adds a line to `passwd` or `group` unless it has the number already.
fn add_account(path: &Path, number: u32, line: &str) -> Result<(), BootError> {
    let mut text = fs::read_to_string(path).unwrap_or_default();
    let number = number.to_string();
    if text.lines().any(|line| line.split(':').nth(2) == Some(&number)) {
        return Ok(());
    }
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    replace(path, &(text + line))
}

/// The control group for commands. Without control groups commands are ended by their sessions instead.
fn make_cgroup() -> Option<PathBuf> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let base = Path::new(CGROUPS).join("app");
    let made = mount("cgroup2", CGROUPS, "cgroup2", flags, None).map_err(io::Error::from);
    match made.and_then(|()| fs::create_dir_all(&base)) {
        Ok(()) => Some(base),
        Err(error) => {
            eprintln!("setpoint-agent: no control groups: {error}");
            None
        }
    }
}

/// Settings that make life easier and that nothing depends on.
fn settle() {
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let limit = Rlimit { current: Some(OPEN_FILES), maximum: Some(OPEN_FILES) };
    let _ = setrlimit(Resource::Nofile, limit);
    // The app is alone on this machine, so that it may listen on any port.
    let _ = fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
}
