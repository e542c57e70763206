//! Who waits for a change of which microVM's file, and one watch over the directories that serves all of them.
//!
//! Ten thousand waiters cost one inotify instance: each listens on the channel of its sandbox, and only that one is woken. A disk's
//! change wakes nobody, but it is counted: whoever knows the count need not look at its disk again while the count stands.

use std::collections::HashMap;
use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use setpoint_schema::id::SandboxId;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// Room for the events of some hundred files in one read.
const EVENT_BUFFER: usize = 32 << 10;

/// The directories of a world in which files change.
#[derive(Clone, Copy)]
pub(super) struct Dirs<'a> {
    /// With a file for each microVM.
    pub vms: &'a Path,
    /// With a file for each disk.
    pub disks: &'a Path,
}

/// How many changes of any disk had been told of at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DiskChanges(u64);

/// Wakes those who wait for changes.
#[derive(Default)]
pub(super) struct Wakes {
    waiting: Arc<Waiting>,
    watcher: Mutex<Option<JoinHandle<()>>>,
}

impl Wakes {
    /// Hears of every change of `sandbox` from now on, by whomever it is made in a file in one of `dirs`.
    pub(super) fn subscribe(&self, sandbox: &SandboxId, dirs: Dirs<'_>) -> Stirs {
        self.ensure_watcher(dirs);
        self.waiting.subscribe(sandbox)
    }

    /// How many changes of disks have been told of, if they are told of.
    pub(super) fn disk_changes(&self) -> Option<DiskChanges> {
        // Counted before it is asked for a watch: a later one begins with another count.
        let changes = DiskChanges(self.waiting.disk_changes.load(Ordering::Acquire));
        (self.are_watched() && self.waiting.disks_are_watched.load(Ordering::Acquire)).then_some(changes)
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
    fn ensure_watcher(&self, dirs: Dirs<'_>) {
        let mut watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner);
        if watcher.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        match Watch::over(dirs) {
            Ok(watch) => {
                self.waiting.begin_with_disks();
                *watcher = Some(tokio::spawn(watch.forward(Arc::clone(&self.waiting))));
            }
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
struct Waiting {
    bells: Mutex<HashMap<Arc<str>, Arc<Bell>>>,
    disk_changes: AtomicU64,
    disks_are_watched: AtomicBool,
}

impl Waiting {
    fn subscribe(&self, sandbox: &SandboxId) -> Stirs {
        let mut waiting = self.lock();
        let bell = match waiting.get(sandbox.as_str()) {
            Some(bell) => Arc::clone(bell),
            None => Arc::clone(waiting.entry(Arc::clone(&sandbox.0)).or_default()),
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

    fn begin_with_disks(&self) {
        // What changed while nothing was watched is not known.
        self.count_disk_change();
        self.disks_are_watched.store(true, Ordering::Release);
    }

    fn count_disk_change(&self) {
        self.disk_changes.fetch_add(1, Ordering::Release);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Arc<str>, Arc<Bell>>> {
        self.bells.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The watch over both directories.
struct Watch {
    fd: AsyncFd<OwnedFd>,
    /// Which events are of the disks.
    disks: i32,
}

impl Watch {
    #[expect(
        deprecated,
        reason = "the unsafe `register` asks for a descriptor that stays open and the same, as an `OwnedFd` does"
    )]
    fn over(dirs: Dirs<'_>) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        // Files are only ever renamed into place or unlinked, so half-written ones are never seen.
        inotify::add_watch(&fd, dirs.vms, WatchFlags::MOVED_TO | WatchFlags::DELETE)?;
        // Nobody is woken by these, so that whatever could be done to a disk may count.
        let anything = WatchFlags::MOVE | WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MODIFY;
        let disks = inotify::add_watch(&fd, dirs.disks, anything)?;
        Ok(Self { fd: AsyncFd::new(fd)?, disks })
    }

    /// Passes events on until the directory of microVMs is gone. Whoever waits then looks again, and finds nothing.
    async fn forward(self, waiting: Arc<Waiting>) {
        loop {
            match self.fd.readable().await {
                Ok(mut ready) => match self.drain(&waiting) {
                    Ok(State::Over) => break,
                    Ok(State::GoesOn) => ready.clear_ready(),
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

    fn drain(&self, waiting: &Waiting) -> io::Result<State> {
        let mut buffer = [MaybeUninit::uninit(); EVENT_BUFFER];
        let mut events = inotify::Reader::new(self.fd.get_ref(), &mut buffer);
        loop {
            let event = match events.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => return Ok(State::GoesOn),
                Err(error) => return Err(error.into()),
            };
            let is_gone = event.events().contains(ReadFlags::IGNORED);
            if event.wd() == self.disks {
                waiting.count_disk_change();
                if is_gone {
                    waiting.disks_are_watched.store(false, Ordering::Release);
                }
                continue;
            }
            if is_gone {
                return Ok(State::Over);
            }
            match event.file_name().and_then(sandbox_of) {
                Some(sandbox) => waiting.wake(sandbox),
                // The queue overflowed: any file may have changed.
                None => {
                    waiting.count_disk_change();
                    waiting.wake_all();
                }
            }
        }
    }
}

/// Whether anybody but the map has it.
fn is_heard(bell: &Arc<Bell>) -> bool {
    Arc::strong_count(bell) > 1
}

/// Whether a watch goes on.
enum State {
    GoesOn,
    Over,
}

fn sandbox_of(file_name: &CStr) -> Option<&str> {
    file_name.to_str().ok()?.strip_suffix(".json")
}
