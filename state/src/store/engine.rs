//! The storage engine: sled 0.34, and all that is known to be wrong with it. Nothing outside this file names sled; another
//! ordered map with atomic batches can take its place here.
//!
//! - Killed while it writes a snapshot, sled leaves `snap.*.generating` and then never opens again: the file is removed first.
//! - `flush` writes but does not sync: the log file is synced here.
//! - Pages above a quarter of a segment become files that are never freed: segments are made large enough for any page.
//! - It panics on some damage: panics are caught and reported as damage.
//! - It can come back from damage with older data and not say so: `verify` finds that out, not this file.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use crate::error::{Result, StateError};

/// Where the engine's files are, in the state directory.
pub(crate) const DIRECTORY: &str = "store";

/// A page holds up to 17 values of 64 kB before it is split, and a page must stay below a quarter of a segment.
const SEGMENT_BYTES: usize = 8 << 20;
/// What is read again and again is kept in memory by whoever reads it, and the rest is in the system's page cache. So this holds
/// what is being written; the default of a gigabyte is not ours to take.
const CACHE_BYTES: u64 = 1 << 20;
/// How often small pages are read to put large ones out. A part of the cache has five pages of ten thousand small rows, each of which
/// has some eight.
const SMALL_READS: usize = 2;
/// How long an engine that this process has just closed may take to let go of its file.
const LINGER: Duration = Duration::from_secs(5);

/// One write of a batch: a key with its new value, or none to remove it.
pub(crate) type Write = (Vec<u8>, Option<Vec<u8>>);
/// One record as it is stored: full key and envelope.
pub(crate) type Row = (Vec<u8>, Vec<u8>);

/// From which end a scan begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    OldestFirst,
    NewestFirst,
}

/// An open engine.
#[derive(Debug)]
pub(crate) struct Engine {
    /// `None` only while it is dropped.
    db: Option<sled::Db>,
    log: File,
    /// The state directory, for messages.
    dir: PathBuf,
}

impl Engine {
    /// Opens or makes the engine below `dir`, whose lock the caller holds. Messages name `shown`, which differs from `dir` for
    /// a copy.
    pub(crate) fn open(dir: &Path, shown: &Path) -> Result<Self> {
        let path = dir.join(DIRECTORY);
        remove_unfinished_snapshots(&path).map_err(|e| StateError::io(shown, "clean", &path, e))?;
        let config = sled::Config::new()
            .path(&path)
            .segment_size(SEGMENT_BYTES)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(None);
        let deadline = Instant::now() + LINGER;
        let db = loop {
            match guarded(shown, || config.open()) {
                // Our own lock is held, so this is a closed engine whose threads are not quite done, or a process that is
                // just being started and has its parent's files for a moment.
                Err(StateError::Io { source, .. })
                    if source.to_string().contains("could not acquire lock") && Instant::now() < deadline =>
                {
                    std::thread::sleep(Duration::from_millis(5));
                }
                result => break result?,
            }
        };
        let log_path = path.join("db");
        let log = File::open(&log_path).map_err(|e| StateError::io(shown, "open", &log_path, e))?;
        Ok(Self { db: Some(db), log, dir: shown.to_owned() })
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        guarded(&self.dir, || self.db().get(key)).map(|value| value.map(|bytes| bytes.to_vec()))
    }

    /// Lets go of what is cached beyond the cache's size. sled evicts only after many accesses, which reading everything once is
    /// not: without this, an engine that was only opened and read keeps all of it in memory. Reading key by key is as many.
    ///
    /// It counts accesses 64 at a time, for each of the cache's 256 parts, and keeps what it has not counted yet. So that these are
    /// small pages, what begins with `last` is read again at the end: with ten thousand apps 10 MB less are kept.
    pub(crate) fn shrink_cache(&self, last: &[u8]) -> Result<()> {
        let read = |key: sled::Result<sled::IVec>| self.db().get(key?).map(drop);
        guarded(&self.dir, || {
            self.db().iter().keys().try_for_each(read)?;
            (0..SMALL_READS).try_for_each(|_| self.db().scan_prefix(last).keys().try_for_each(read))
        })
    }

    /// Everything, in order of keys.
    pub(crate) fn everything(&self) -> Result<Vec<Row>> {
        guarded(&self.dir, || self.db().iter().map(owned).collect())
    }

    /// Up to `limit` rows whose keys begin with `prefix`, beyond `after` where it is given.
    pub(crate) fn scan(&self, prefix: &[u8], after: Option<&[u8]>, order: Order, limit: usize) -> Result<Vec<Row>> {
        use std::ops::Bound::{Excluded, Included};
        // Prefixes end in a zero byte, so the same prefix ending in a one is the first key beyond.
        let mut end = prefix.to_vec();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        let (low, high) = match (order, after) {
            (Order::OldestFirst, Some(after)) => (Excluded(after), Excluded(end.as_slice())),
            (Order::NewestFirst, Some(before)) => (Included(prefix), Excluded(before)),
            (Order::OldestFirst | Order::NewestFirst, None) => (Included(prefix), Excluded(end.as_slice())),
        };
        guarded(&self.dir, || {
            let rows = self.db().range::<&[u8], _>((low, high));
            match order {
                Order::OldestFirst => rows.take(limit).map(owned).collect(),
                Order::NewestFirst => rows.rev().take(limit).map(owned).collect(),
            }
        })
    }

    /// Writes all of a batch or, should the process end meanwhile, none of it. Durable only after [`Engine::sync`].
    pub(crate) fn apply(&self, writes: impl IntoIterator<Item = Write>) -> Result<()> {
        let mut batch = sled::Batch::default();
        for (key, value) in writes {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        guarded(&self.dir, || self.db().apply_batch(batch))
    }

    /// Returns when all that was applied is on the disk.
    pub(crate) fn sync(&self) -> Result<()> {
        guarded(&self.dir, || self.db().flush())?;
        self.log.sync_data().map_err(|e| StateError::io(&self.dir, "sync", &self.dir.join(DIRECTORY), e))
    }

    fn db(&self) -> &sled::Db {
        self.db.as_ref().expect("the engine is there until it is dropped")
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let db = self.db.take();
        // Closing writes what is left and panics where it cannot; every acknowledged write is durable already.
        if let Err(error) = guarded(&self.dir, || {
            drop(db);
            Ok(())
        }) {
            tracing::warn!(%error, "state engine did not close cleanly");
        }
    }
}

fn owned(row: sled::Result<(sled::IVec, sled::IVec)>) -> sled::Result<Row> {
    row.map(|(key, value)| (key.to_vec(), value.to_vec()))
}

fn remove_unfinished_snapshots(path: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("snap.") && name.to_string_lossy().ends_with(".generating") {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Runs an engine call; its errors and panics become ours.
fn guarded<T>(dir: &Path, call: impl FnOnce() -> sled::Result<T>) -> Result<T> {
    match quietly(|| catch_unwind(AssertUnwindSafe(call))) {
        Ok(result) => result.map_err(|e| translate(dir, e)),
        Err(panic) => Err(StateError::damaged(dir, format!("the engine failed: {}", panic_message(&*panic)))),
    }
}

fn translate(dir: &Path, error: sled::Error) -> StateError {
    match error {
        sled::Error::Io(e) => match e.kind() {
            // How sled reports what does not parse, and files that end too early.
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput => {
                StateError::damaged(dir, e.to_string())
            }
            _ => StateError::io(dir, "use", &dir.join(DIRECTORY), e),
        },
        sled::Error::Corruption { .. } => StateError::damaged(dir, "the engine finds its files corrupt"),
        sled::Error::Unsupported(what) | sled::Error::ReportableBug(what) => StateError::damaged(dir, what),
        sled::Error::CollectionNotFound(_) => StateError::damaged(dir, "the engine lost a collection"),
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("unknown panic").lines().next().unwrap_or_default().to_owned()
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Keeps a panic that is caught and reported from being printed as well.
fn quietly<T>(call: impl FnOnce() -> T) -> T {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual: Arc<dyn Fn(&std::panic::PanicHookInfo<'_>) + Send + Sync> = Arc::from(std::panic::take_hook());
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                usual(info);
            }
        }));
    });
    let before = QUIET.replace(true);
    let result = call();
    QUIET.set(before);
    result
}
