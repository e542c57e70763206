//! The parent of one VMM: `setpoint vm-shim <nonce> <program> <argument>…`, run in the microVM's directory.
//!
//! Because of it a microVM outlives the daemon, and how it ended is known even when no daemon watched. It
//!
//! - holds `lock` together with the VMM, so that one directory never runs two;
//! - listens on `qmp.sock` and `agent.sock` before the VMM starts, so that connecting never has to wait for a file;
//! - writes `process.json` before it reports on its standard output that the VMM has begun: an empty report is success;
//! - copies the guest's console to `console.log` and the VMM's complaints to `vmm.log`, both bounded;
//! - writes `exit.json` when the VMM ends, and ends too. If the shim is killed, the VMM dies with it.
//!
//! It is one thread of blocking code without locks or timers: nothing in it can wait for anything but the VMM.

mod log;
mod monitor;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};

use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::io::{FdFlags, fcntl_setfd};
use setpoint_schema::id::BootNonce;
use setpoint_schema::observed::ExitReason;

use crate::qemu::files::{remove_if_there, write_json};
use crate::qemu::process::{ExitRecord, ProcessId, ProcessRecord, boot_id};
use crate::qemu::vm_dir;
use crate::sys;
use log::{ConsoleLog, RotatingLog};
use monitor::{Monitor, ShutdownCause};

/// What is said when another boot of this sandbox still runs.
pub(crate) const BUSY: &str = "another boot is running in this directory";

/// Runs the shim with the arguments that follow its name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args = args.into_iter();
    let (Some(nonce), Some(program)) = (args.next(), args.next()) else {
        eprintln!("error: vm-shim is started by setpoint itself, with a boot nonce and a command");
        return ExitCode::from(2);
    };
    let nonce = BootNonce(nonce.to_string_lossy().into());
    match Running::start(nonce, program, args.collect()) {
        Ok(running) => {
            report_begun().and_then(|()| running.until_exit()).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
        }
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Closes the report by which the starter knows that `process.json` is there.
fn report_begun() -> io::Result<()> {
    io::stdout().flush()?;
    rustix::stdio::dup2_stdout(File::options().write(true).open("/dev/null")?)?;
    Ok(())
}

/// A VMM with everything that is read from it.
struct Running {
    nonce: BootNonce,
    child: Child,
    process: ProcessId,
    console: ConsoleLog,
    complaints: RotatingLog,
    monitor: Monitor,
    _lock: File,
}

impl Running {
    fn start(nonce: BootNonce, program: OsString, args: Vec<OsString>) -> io::Result<Self> {
        // Fails only for the leader of a group, which then has no terminal to be detached from either.
        let _ = rustix::process::setsid();
        let lock = take_lock()?;
        for stale in [vm_dir::PROCESS, vm_dir::EXIT, vm_dir::QMP_SOCKET, vm_dir::AGENT_SOCKET] {
            remove_if_there(Path::new(stale))?;
        }
        let qmp = UnixListener::bind(vm_dir::QMP_SOCKET)?;
        let agent = UnixListener::bind(vm_dir::AGENT_SOCKET)?;
        let (monitor, events) = UnixStream::pair()?;

        let mut command = Command::new(program);
        command.args(args).args(channel_arguments(&qmp, &agent, &events));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        sys::die_with_parent(&mut command);
        // This process has one thread, so that nothing else can inherit these meanwhile.
        for inherited in [lock.as_fd(), qmp.as_fd(), agent.as_fd(), events.as_fd()] {
            fcntl_setfd(inherited, FdFlags::empty())?;
        }
        let child = command.spawn()?;
        let process = record_process(&nonce, &child)?;
        Ok(Self {
            nonce,
            child,
            process,
            console: ConsoleLog::create(Path::new(vm_dir::CONSOLE_LOG))?,
            complaints: RotatingLog::create(Path::new(vm_dir::VMM_LOG))?,
            monitor: Monitor::new(monitor)?,
            _lock: lock,
        })
    }

    /// Copies what the VMM says until it ends, then records how it ended.
    fn until_exit(mut self) -> io::Result<()> {
        let mut console = self.child.stdout.take().map(File::from_pipe).transpose()?;
        let mut complaints = self.child.stderr.take().map(File::from_pipe).transpose()?;
        let ended = self.process.open()?;
        while let Some(ended) = &ended {
            let ready = wait_readable(&[
                Some(ended.as_fd()),
                console.as_ref().map(AsFd::as_fd),
                complaints.as_ref().map(AsFd::as_fd),
                self.monitor.descriptor(),
            ])?;
            if ready[1] {
                copy_available(&mut console, |data| self.console.write(data))?;
            }
            if ready[2] {
                copy_available(&mut complaints, |data| self.complaints.write(data))?;
            }
            if ready[3] {
                self.monitor.read_available()?;
            }
            if ready[0] {
                break;
            }
        }
        // What it wrote last is still in the pipes.
        copy_available(&mut console, |data| self.console.write(data))?;
        copy_available(&mut complaints, |data| self.complaints.write(data))?;
        self.monitor.read_available()?;
        let status = self.child.wait()?;
        let reason = exit_reason(status, self.console.panic_line(), self.monitor.cause());
        write_json(Path::new(vm_dir::EXIT), &ExitRecord { nonce: self.nonce, reason, at: Timestamp::now() })
    }
}

/// The lock that says whether anything runs here. The VMM inherits it: it stays taken until both have ended.
fn take_lock() -> io::Result<File> {
    let lock = File::options().create(true).truncate(false).write(true).open(vm_dir::LOCK)?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| io::Error::other(BUSY))?;
    Ok(lock)
}

/// The host's ends of what the VMM talks through; the rest of its command line is the driver's.
fn channel_arguments(qmp: &UnixListener, agent: &UnixListener, events: &UnixStream) -> [String; 12] {
    let listening = |id, socket: &UnixListener| format!("socket,id={id},fd={},server=on,wait=off", socket.as_raw_fd());
    [
        "-chardev".to_owned(),
        "file,id=console,path=/dev/stdout".to_owned(),
        "-chardev".to_owned(),
        listening("agent", agent),
        "-chardev".to_owned(),
        listening("qmp", qmp),
        "-mon".to_owned(),
        "chardev=qmp,mode=control".to_owned(),
        "-chardev".to_owned(),
        format!("socket,id=events,fd={}", events.as_raw_fd()),
        "-mon".to_owned(),
        "chardev=events,mode=control".to_owned(),
    ]
}

fn record_process(nonce: &BootNonce, child: &Child) -> io::Result<ProcessId> {
    let qemu = ProcessId::of(child.id())?;
    let shim = ProcessId::of(std::process::id())?;
    let record = ProcessRecord { nonce: nonce.clone(), qemu, shim, boot_id: boot_id()?, since: Timestamp::now() };
    write_json(Path::new(vm_dir::PROCESS), &record)?;
    Ok(qemu)
}

/// Waits until one of the descriptors has data or has ended; says which.
fn wait_readable<const N: usize>(descriptors: &[Option<rustix::fd::BorrowedFd<'_>>; N]) -> io::Result<[bool; N]> {
    let present = descriptors.iter().enumerate().filter_map(|(at, fd)| fd.map(|fd| (at, fd)));
    let (places, mut polled): (Vec<_>, Vec<_>) =
        present.map(|(at, fd)| (at, PollFd::from_borrowed_fd(fd, PollFlags::IN))).unzip();
    match poll(&mut polled, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let mut ready = [false; N];
    for (at, fd) in places.into_iter().zip(&polled) {
        ready[at] = !fd.revents().is_empty();
    }
    Ok(ready)
}

/// Reads what is there now; a source that has ended becomes `None`.
fn copy_available(source: &mut Option<File>, mut write: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    while let Some(file) = source {
        match file.read(&mut buffer) {
            Ok(0) => *source = None,
            // A full disk must not stop a guest: what cannot be written is dropped.
            Ok(count) => drop(write(&buffer[..count])),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What ended the microVM. A guest that panics resets, so its console tells the two apart.
fn exit_reason(status: ExitStatus, panic: Option<String>, cause: Option<ShutdownCause>) -> ExitReason {
    match (status.signal(), status.code()) {
        (Some(signal), _) => ExitReason::Killed(signal),
        (None, Some(0)) => match (panic, cause) {
            (_, Some(ShutdownCause::Host)) => ExitReason::Killed(rustix::process::Signal::TERM.as_raw()),
            (_, Some(ShutdownCause::GuestShutdown)) => ExitReason::Shutdown,
            (Some(line), _) => ExitReason::Panic(line),
            (None, Some(ShutdownCause::GuestReset)) => ExitReason::Reset,
            (None, None) => ExitReason::Unknown,
        },
        (None, Some(code)) => ExitReason::Failed(code),
        (None, None) => ExitReason::Unknown,
    }
}

/// A pipe's end as a file that answers at once when it is empty.
trait FromPipe: Sized {
    fn from_pipe(pipe: impl Into<std::os::fd::OwnedFd>) -> io::Result<Self>;
}

impl FromPipe for File {
    fn from_pipe(pipe: impl Into<std::os::fd::OwnedFd>) -> io::Result<Self> {
        let file = Self::from(pipe.into());
        rustix::io::ioctl_fionbio(&file, true)?;
        Ok(file)
    }
}
