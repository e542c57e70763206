//! The one place that waits for processes.
//!
//! The first process of a machine inherits every orphan and must collect them all; a `wait` for any child would steal the
//! status that a supervisor waits for. So all waiting happens here, and supervisors get their child's end over a channel.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus, wait, waitpid};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Exit {
    /// The code as a shell reports it.
    #[must_use]
    pub fn shell_code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// Whose ends the reaper collects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Collects {
    /// Of every child, as the first process must.
    Everything,
    /// Of the processes that it started.
    Started,
}

/// Starts processes and collects their ends.
#[derive(Debug)]
pub struct Reaper {
    collects: Collects,
    /// Held while a process is started, so that its end cannot be collected before it is known.
    waiting: Mutex<HashMap<Pid, oneshot::Sender<Exit>>>,
}

impl Reaper {
    /// A reaper that works as long as the runtime does.
    ///
    /// # Errors
    /// The signal handler cannot be installed.
    pub fn start(collects: Collects) -> io::Result<Arc<Self>> {
        let reaper = Arc::new(Self { collects, waiting: Mutex::default() });
        let mut child_ended = signal(SignalKind::child())?;
        let weak = Arc::downgrade(&reaper);
        tokio::spawn(async move {
            while child_ended.recv().await.is_some() {
                let Some(reaper) = weak.upgrade() else { return };
                reaper.collect();
            }
        });
        Ok(reaper)
    }

    /// Starts a process. Its end arrives whether or not anybody keeps the receiver.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self, command: &mut Command) -> io::Result<(Pid, oneshot::Receiver<Exit>)> {
        let mut waiting = self.waiting();
        let child: Child = command.spawn()?;
        let pid = Pid::from_child(&child);
        let (sender, receiver) = oneshot::channel();
        waiting.insert(pid, sender);
        Ok((pid, receiver))
    }

    fn collect(&self) {
        let mut waiting = self.waiting();
        match self.collects {
            Collects::Everything => {
                while let Some((pid, exit)) = ended(|| wait(WaitOptions::NOHANG)) {
                    deliver(waiting.remove(&pid), exit);
                }
            }
            Collects::Started => {
                let pids: Vec<Pid> = waiting.keys().copied().collect();
                for pid in pids {
                    if let Some((pid, exit)) = ended(|| waitpid(Some(pid), WaitOptions::NOHANG)) {
                        deliver(waiting.remove(&pid), exit);
                    }
                }
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<Pid, oneshot::Sender<Exit>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the supervisor, if there is one that still listens.
fn deliver(sender: Option<oneshot::Sender<Exit>>, exit: Exit) {
    if let Some(sender) = sender {
        let _ = sender.send(exit);
    }
}

fn ended(mut wait: impl FnMut() -> rustix::io::Result<Option<(Pid, WaitStatus)>>) -> Option<(Pid, Exit)> {
    loop {
        match wait() {
            Ok(Some((pid, status))) => return exit_of(status).map(|exit| (pid, exit)),
            Err(Errno::INTR) => {}
            // No child at all, or none that has ended.
            Ok(None) | Err(_) => return None,
        }
    }
}

fn exit_of(status: WaitStatus) -> Option<Exit> {
    status.exit_status().map(Exit::Code).or_else(|| status.terminating_signal().map(Exit::Signal))
}
