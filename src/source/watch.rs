//! Says when to look at a source again: at once when the refs of a local repository change, and from time to time in any case.
//!
//! A hint is never more than that: it may come without a change, and whoever gets one asks the repository. Events may be lost
//! (network file systems give none, queues overflow), which is why the clock gives hints too.
//!
//! Git replaces files rather than writing them, so that a watch on `HEAD` or on a branch's file would go deaf with the first
//! commit. Watched are directories: the git directory for `HEAD`, the common one for `packed-refs`, and all below `refs`.

use std::hash::{BuildHasher as _, RandomState};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::EventKind;
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::{Location, Repository};

/// How long after one hint the next may come. One commit moves a branch and more within a few milliseconds: the first of these gives a
/// hint at once, the rest another one together, which mostly costs a look at an unchanged branch.
const SETTLE: Duration = Duration::from_millis(10);

/// Why to look again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// Something below the refs changed.
    Changed,
    /// The interval has passed.
    Interval,
}

/// Gives hints for one repository.
pub struct Watcher {
    interval: Duration,
    next_poll: Instant,
    /// When the burst that is under way counts as over.
    settled: Instant,
    /// Whether something has changed since the last hint.
    pending: bool,
    changed: Arc<Notify>,
    local: Option<Local>,
}

/// The watch on a local repository's directories.
struct Local {
    dirs: Vec<(PathBuf, RecursiveMode)>,
    /// Device and inode of each directory when it was put under watch: another directory at the same path is not watched.
    watched: Vec<Option<(u64, u64)>>,
    /// Dropping it ends the watch.
    watcher: Option<RecommendedWatcher>,
}

impl Watcher {
    /// Watches `repository` if it is on this machine, and gives a hint every `interval`, give or take a tenth, in any case.
    ///
    /// Where the host refuses a watch, that is logged and the interval alone remains.
    #[must_use]
    pub fn new(repository: &Repository, interval: Duration) -> Self {
        let changed = Arc::new(Notify::new());
        let local = match repository.location() {
            Location::Local(_) => Some(Local::new(repository, &changed)),
            Location::Remote(_) => None,
        };
        Self {
            interval,
            next_poll: Instant::now() + jittered(interval),
            settled: Instant::now(),
            pending: false,
            changed,
            local,
        }
    }

    /// Whether changes are noticed by more than the clock.
    #[must_use]
    pub fn is_watching(&self) -> bool {
        self.local.as_ref().is_some_and(|local| local.watcher.is_some())
    }

    /// The next hint. Dropping the future loses nothing: the next call takes up what this one saw.
    pub async fn hint(&mut self) -> Hint {
        loop {
            if self.pending && self.settled <= Instant::now() {
                self.pending = false;
                self.settled = Instant::now() + SETTLE;
                return Hint::Changed;
            }
            let until = if self.pending { self.settled } else { self.next_poll };
            // No await inside the arms, so that being dropped between them cannot lose a notification.
            tokio::select! {
                () = self.changed.notified() => self.pending = true,
                () = sleep_until(until) => {
                    if !self.pending {
                        return self.poll();
                    }
                }
            }
        }
    }

    fn poll(&mut self) -> Hint {
        self.next_poll = Instant::now() + jittered(self.interval);
        if let Some(local) = &mut self.local {
            local.renew(&self.changed);
        }
        Hint::Interval
    }
}

impl Local {
    fn new(repository: &Repository, changed: &Arc<Notify>) -> Self {
        let (git_dir, common_dir) = repository.git_dirs();
        let mut dirs = vec![(common_dir.join("refs"), RecursiveMode::Recursive)];
        if git_dir != common_dir {
            dirs.push((common_dir, RecursiveMode::NonRecursive));
        }
        dirs.push((git_dir, RecursiveMode::NonRecursive));
        let mut local = Self { dirs, watched: Vec::new(), watcher: None };
        local.renew(changed);
        local
    }

    /// Watches again where the watch failed before, or where a directory was replaced.
    fn renew(&mut self, changed: &Arc<Notify>) {
        let now: Vec<_> = self.dirs.iter().map(|(dir, _)| identity(dir)).collect();
        if self.watcher.is_some() && now == self.watched {
            return;
        }
        self.watcher = match watch(&self.dirs, changed) {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                tracing::warn!(%error, "cannot watch the repository, so changes are noticed at the polling interval only");
                None
            }
        };
        self.watched = now;
        // What changed while nothing was watched is not known.
        changed.notify_one();
    }
}

fn watch(dirs: &[(PathBuf, RecursiveMode)], changed: &Arc<Notify>) -> notify::Result<RecommendedWatcher> {
    let changed = Arc::clone(changed);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| match event {
        Ok(event) if !is_about_refs(&event) => {}
        Ok(_) | Err(_) => changed.notify_one(),
    })?;
    for (dir, mode) in dirs {
        watcher.watch(dir, *mode)?;
    }
    Ok(watcher)
}

/// Whether an event can mean that a branch moved. Git also locks, logs and packs objects in the same directories.
fn is_about_refs(event: &notify::Event) -> bool {
    let is_ref = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default();
        name == "HEAD"
            || name == "packed-refs"
            || (path.components().any(|c| c.as_os_str() == "refs") && path.extension() != Some("lock".as_ref()))
    };
    match event.kind {
        EventKind::Access(_) => false,
        EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_) | EventKind::Other => {
            event.need_rescan() || event.paths.iter().any(is_ref)
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// `interval`, give or take a tenth, so that many daemons do not ask one server at the same moment.
fn jittered(interval: Duration) -> Duration {
    // The standard library seeds each `RandomState` apart; no other randomness is needed here.
    let tenth = (RandomState::new().hash_one(()) % 1000) as f64 / 5000.0;
    interval.mul_f64(0.9 + tenth)
}
