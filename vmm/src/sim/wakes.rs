//! Who waits for a change of which microVM's file, and one watch over the directory that serves all of them.
//!
//! Ten thousand waiters cost one inotify instance: each listens on the channel of its sandbox, and only that one is woken.

use std::collections::HashMap;
use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use setpoint_schema::id::SandboxId;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// Room for the events of some hundred files in one read.
const EVENT_BUFFER: usize = 32 << 10;

/// Wakes those who wait for changes.
#[derive(Default)]
pub(super) struct Wakes {
    waiting: Arc<Waiting>,
    watcher: Mutex<Option<JoinHandle<()>>>,
}

impl Wakes {
    /// Hears of every change of `sandbox` from now on, by whomever it is made in a file in `dir`.
    pub(super) fn subscribe(&self, sandbox: &SandboxId, dir: &Path) -> Stirs {
        self.ensure_watcher(dir);
        self.waiting.subscribe(sandbox)
    }

    /// Tells of a change that no file of `sandbox` in the directory shows.
    pub(super) fn wake(&self, sandbox: &SandboxId) {
        self.waiting.wake(sandbox.as_str());
    }

    /// Whether the watch over the directory tells of every change from now on, so that a change made in this process need not be told
    /// of, too: who waits would be woken twice.
    pub(super) fn are_watched(&self) -> bool {
        let watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner);
        watcher.as_ref().is_some_and(|task| !task.is_finished())
    }

    /// A directory that cannot be watched yet, since it is not there, is tried again by the next subscriber.
    fn ensure_watcher(&self, dir: &Path) {
        let mut watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner);
        if watcher.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        match watch_dir(dir) {
            Ok(fd) => *watcher = Some(tokio::spawn(forward(fd, Arc::clone(&self.waiting)))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, "cannot watch the world, so changes by others go unnoticed"),
        }
    }
}

impl Drop for Wakes {
    fn drop(&mut self) {
        if let Some(task) = self.watcher.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }
}

/// Hears of the changes of one sandbox, those included that nobody was waiting for.
#[derive(Clone)]
pub(super) struct Stirs {
    bell: Arc<Bell>,
    heard: u64,
}

/// Rings for one sandbox. There are as many as sandboxes, so it is small: a channel of tokio's takes ten times as much.
#[derive(Default)]
struct Bell {
    rings: AtomicU64,
    rung: Notify,
}

impl Bell {
    fn ring(&self) {
        self.rings.fetch_add(1, Ordering::Release);
        self.rung.notify_waiters();
    }
}

impl Stirs {
    /// Whether nothing has changed since the last change that was heard of here.
    pub fn are_quiet(&self) -> bool {
        self.bell.rings.load(Ordering::Acquire) == self.heard
    }

    /// Resolves after a change since the last one that was heard of here.
    pub async fn changed(&mut self) {
        loop {
            // Whoever waits hears what rings from here on, before it is polled.
            let rung = self.bell.rung.notified();
            let rings = self.bell.rings.load(Ordering::Acquire);
            if rings != self.heard {
                self.heard = rings;
                return;
            }
            rung.await;
        }
    }
}

/// The bell of each sandbox that somebody waits for.
#[derive(Default)]
struct Waiting(Mutex<HashMap<String, Arc<Bell>>>);

impl Waiting {
    fn subscribe(&self, sandbox: &SandboxId) -> Stirs {
        let mut waiting = self.lock();
        let bell = match waiting.get(sandbox.as_str()) {
            Some(bell) => Arc::clone(bell),
            None => Arc::clone(waiting.entry(sandbox.0.clone()).or_default()),
        };
        Stirs { heard: bell.rings.load(Ordering::Acquire), bell }
    }

    fn wake(&self, sandbox: &str) {
        let mut waiting = self.lock();
        let Some(bell) = waiting.get(sandbox) else { return };
        if is_heard(bell) {
            bell.ring();
        } else {
            waiting.remove(sandbox);
        }
    }

    fn wake_all(&self) {
        self.lock().retain(|_, bell| is_heard(bell));
        self.lock().values().for_each(|bell| bell.ring());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Bell>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[expect(
    deprecated,
    reason = "the unsafe `register` asks for a descriptor that stays open and the same, as an `OwnedFd` does"
)]
fn watch_dir(dir: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    // Files are only ever renamed into place or unlinked, so half-written ones are never seen.
    inotify::add_watch(&fd, dir, WatchFlags::MOVED_TO | WatchFlags::DELETE)?;
    AsyncFd::new(fd)
}

/// Passes events on until the directory itself is gone. Whoever waits then looks again, and finds nothing.
async fn forward(fd: AsyncFd<OwnedFd>, waiting: Arc<Waiting>) {
    loop {
        match fd.readable().await {
            Ok(mut ready) => match drain(fd.get_ref(), &waiting) {
                Ok(Watch::Over) => break,
                Ok(Watch::GoesOn) => ready.clear_ready(),
                Err(error) => {
                    tracing::warn!(%error, "the watch over the world broke");
                    break;
                }
            },
            Err(error) => {
                tracing::warn!(%error, "the watch over the world broke");
                break;
            }
        }
    }
    waiting.wake_all();
}

/// Whether anybody but the map has it.
fn is_heard(bell: &Arc<Bell>) -> bool {
    Arc::strong_count(bell) > 1
}

enum Watch {
    GoesOn,
    Over,
}

fn drain(fd: &OwnedFd, waiting: &Waiting) -> io::Result<Watch> {
    let mut buffer = [MaybeUninit::uninit(); EVENT_BUFFER];
    let mut events = inotify::Reader::new(fd, &mut buffer);
    loop {
        let event = match events.next() {
            Ok(event) => event,
            Err(Errno::AGAIN) => return Ok(Watch::GoesOn),
            Err(error) => return Err(error.into()),
        };
        if event.events().contains(ReadFlags::IGNORED) {
            return Ok(Watch::Over);
        }
        match event.file_name().and_then(sandbox_of) {
            Some(sandbox) => waiting.wake(sandbox),
            // The queue overflowed: any file may have changed.
            None => waiting.wake_all(),
        }
    }
}

fn sandbox_of(file_name: &CStr) -> Option<&str> {
    file_name.to_str().ok()?.strip_suffix(".json")
}
