//! The child process that renders: how the parent drives it, and what it does itself.
//!
//! Parent and child take turns, one text at a time, so that it is always known which text a silence or a death belongs to.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Resource, Rlimit, setrlimit};

use super::frame::{self, Reply, Request};
use super::{engine, is_template};

/// How long the child may take for one text.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// How many texts one child renders, so that what they leave behind in it stays small.
const TEXTS_PER_CHILD: u32 = 256;
/// The child's address space. The binary itself maps some 30 MiB.
const MAX_MEMORY_BYTES: u64 = 256 << 20;
/// The child's processor time, the last resort should its parent be gone: twice what one text may take.
const MAX_CPU_SECONDS: u64 = 10;

/// A running child. Dropping it ends it.
pub(super) struct Child {
    process: std::process::Child,
    requests: ChildStdin,
    replies: ChildStdout,
    served: u32,
}

impl Child {
    /// Starts one and hands it the variables.
    pub fn start(argv: &[OsString], vars: &serde_json::Value) -> Result<Self, String> {
        let (program, arguments) = argv.split_first().ok_or("no command for the renderer is given")?;
        let failed = |error: io::Error| format!("could not start the renderer: {error}");
        let mut process = Command::new(program)
            .args(arguments)
            // Nothing of the daemon's environment is any business of a declaration.
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let requests = process.stdin.take().expect("stdin is piped");
        let replies = process.stdout.take().expect("stdout is piped");
        let mut child = Self { process, requests, replies, served: 0 };
        match child.exchange(&Request::Vars(vars.clone()))? {
            Reply::Ready => Ok(child),
            Reply::Rendered(_) | Reply::Failed(_) => Err("the renderer answered out of turn".to_owned()),
        }
    }

    /// The answer for one text, or how the child ended instead of answering.
    pub fn ask(&mut self, text: &str) -> Result<Reply, String> {
        let reply = self.exchange(&Request::Render(text.to_owned()))?;
        self.served += 1;
        Ok(reply)
    }

    pub fn has_served(&self) -> bool {
        self.served > 0
    }

    pub fn has_life_left(&self) -> bool {
        self.served < TEXTS_PER_CHILD
    }

    fn exchange(&mut self, request: &Request) -> Result<Reply, String> {
        if frame::write(&mut self.requests, request).is_err() {
            return Err(self.end());
        }
        let mut replies = Timed { pipe: &mut self.replies, deadline: Instant::now() + PATIENCE };
        match frame::read(&mut replies) {
            Ok(reply) => Ok(reply),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                Err(format!("takes longer than {} s to render", PATIENCE.as_secs()))
            }
            Err(_) => Err(self.end()),
        }
    }

    /// How the process ended, which closed its pipes.
    fn end(&mut self) -> String {
        // It may have closed its output without ending.
        let _ = self.process.kill();
        match self.process.wait() {
            // Running out of memory aborts; the kernel ends what runs out of processor time.
            Ok(status) => match status.signal() {
                Some(signal::ABRT) => "takes too much memory to render".to_owned(),
                Some(signal::XCPU | signal::KILL) => "takes too much time to render".to_owned(),
                Some(number) => format!("ended the renderer with signal {number}"),
                None => format!("ended the renderer ({status})"),
            },
            Err(error) => format!("ended the renderer ({error})"),
        }
    }
}

/// Signal numbers, the same on every Linux that microVMs run on.
mod signal {
    pub const ABRT: i32 = 6;
    pub const KILL: i32 = 9;
    pub const XCPU: i32 = 24;
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both only fail when the process has been waited for already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A pipe that is read until a deadline.
struct Timed<'a> {
    pipe: &'a mut ChildStdout,
    deadline: Instant,
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let left =
            Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        let mut polled = [PollFd::new(&*self.pipe, PollFlags::IN)];
        match poll(&mut polled, Some(&left)) {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => self.pipe.read(buffer),
            Err(rustix::io::Errno::INTR) => Err(io::ErrorKind::Interrupted.into()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The child's whole life: limits, then answers to requests on stdin until it closes. Called before anything else of the
/// program is set up.
///
/// # Errors
/// When the limits cannot be set, or the parent is gone before it has its answer.
pub fn serve() -> io::Result<()> {
    limit(Resource::As, MAX_MEMORY_BYTES)?;
    limit(Resource::Cpu, MAX_CPU_SECONDS)?;
    limit(Resource::Core, 0)?;
    let (mut requests, mut replies) = (io::stdin().lock(), io::stdout().lock());
    let mut context = engine::context(&serde_json::Value::Null);
    // The end of the requests and a torn one both mean that the parent is done with us.
    while let Ok(request) = frame::read(&mut requests) {
        let reply = match request {
            Request::Vars(vars) => {
                context = engine::context(&vars);
                Reply::Ready
            }
            Request::Render(text) if is_template(&text) => engine::render(&text, &context).into(),
            Request::Render(text) => Reply::Rendered(text),
        };
        frame::write(&mut replies, &reply)?;
    }
    Ok(())
}

fn limit(resource: Resource, most: u64) -> rustix::io::Result<()> {
    setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })
}
