//! The daemon's handle on the state: opening, writing, closing.
//!
//! Every write is durable when its call returns; writers that come at the same time share one sync. Calls block for that long,
//! some tenths of a millisecond on a good disk, so asynchronous callers make them where blocking is allowed.

pub(crate) mod batch;
mod commit;
mod engine;
pub(crate) mod history;
pub(crate) mod journal;
mod lock;
mod mark;
pub(crate) mod options;
pub(crate) mod rebuild;
mod sequence;
pub(crate) mod snapshot;
mod summary;
mod verify;
pub(crate) mod view;

use std::fs::{DirBuilder, File};
use std::io;
use std::ops::Deref;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use jiff::Timestamp;

use batch::Batch;
pub use batch::VALUE_LIMIT;
use commit::Request;
use engine::{DIRECTORY, Engine, Write};
use lock::LockFile;
use mark::Mark;
use options::Options;
use sequence::Sequence;
use summary::Summary;
use verify::verify;
use view::View;

use crate::error::{Result, StateError};
use crate::table::{Disks, Inventory, prefix};

/// An open state. Clones share it; it is closed, and its lock released, when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

/// Fields are dropped in this order: the engine closes before the lock is released.
#[derive(Debug)]
struct Inner {
    view: View,
    sequence: Mutex<Sequence>,
    saving_plans: Mutex<()>,
    history_version: AtomicU64,
    committer: Option<JoinHandle<()>>,
    _lock: LockFile,
}

impl Store {
    /// Opens the state in `dir`, and makes it where there is none. `dir` belongs to the store alone.
    ///
    /// # Errors
    /// [`StateError::Locked`] when another process has it, [`StateError::Damaged`] when it is not what was written,
    /// [`StateError::TooNew`] when a newer program wrote it, and what the file system can refuse.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::open_with(dir, Options::default())
    }

    /// The same, with other caps.
    ///
    /// # Errors
    /// See [`Store::open`].
    pub fn open_with(dir: &Path, options: Options) -> Result<Self> {
        let io = |operation| move |e| StateError::io(dir, operation, dir, e);
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io("make"))?;
        let lock = LockFile::take(dir)?;
        check_room(dir, &options)?;
        let engine = Arc::new(Engine::open(dir, dir)?);
        let verified = verify(&engine, dir, dir)?;
        let summary = match verified.summary {
            Some(summary) => summary,
            None => first_commit(&engine, dir)?,
        };
        let mark = Mark::open(dir, summary.generation)?;
        let view = View { engine: Arc::clone(&engine), dir: dir.to_owned() };
        let mut sequence = Sequence::resume(&view, verified.journal_head, options)?;
        let is_kept = |number| sequence.plan_texts.iter().any(|(kept, _)| *kept == number);
        history::sweep_plans(dir, is_kept).map_err(io("sweep the plans of"))?;
        let (queue, committer) = commit::start(engine, mark, summary).map_err(io("start the writer of"))?;
        sequence.queue = Some(queue);
        let (sequence, saving_plans, committer) = (Mutex::new(sequence), Mutex::new(()), Some(committer));
        let history_version = AtomicU64::new(0);
        Ok(Self { inner: Arc::new(Inner { view, sequence, saving_plans, history_version, committer, _lock: lock }) })
    }

    /// Writes one record, new or in place of an older one.
    ///
    /// # Errors
    /// See [`Store::commit`]; [`StateError::TooLarge`] over [`VALUE_LIMIT`].
    pub fn put<T: Inventory>(&self, key: &T::Key, value: &T::Value) -> Result<()> {
        let mut batch = Batch::new();
        batch.put::<T>(key, value)?;
        self.commit(batch)
    }

    /// Removes one record, if there is one.
    ///
    /// # Errors
    /// See [`Store::commit`].
    pub fn remove<T: Inventory>(&self, key: &T::Key) -> Result<()> {
        let mut batch = Batch::new();
        batch.remove::<T>(key);
        self.commit(batch)
    }

    /// Carries out all writes of a batch, or none of them should the process end meanwhile.
    ///
    /// # Errors
    /// [`StateError::Full`] when there is no room: nothing was written, and a later try can succeed. Any other error, and a
    /// disk that fills up in the middle, leave the state readable but refusing writes until it is opened again; whether the
    /// batch was carried out shows then.
    pub fn commit(&self, batch: Batch) -> Result<()> {
        let Batch { mut writes, events } = batch;
        let is_history = !events.is_empty();
        self.submit(|sequence| {
            // Here nobody else can come in between, so that times follow each other as identities do.
            let at = Timestamp::now();
            for event in events {
                writes.extend(sequence.event(at, event)?.1);
            }
            Ok(((), writes))
        })?;
        if is_history {
            self.history_changed();
        }
        Ok(())
    }

    /// Lets go of what reading the whole state has left in memory. To be called when nobody waits: it takes as long as reading it.
    ///
    /// # Errors
    /// [`StateError::Damaged`] when the state does not read.
    pub fn shrink_cache(&self) -> Result<()> {
        // The smallest rows of those that there are as many of as apps.
        self.inner.view.engine.shrink_cache(&prefix::<Disks>())
    }

    /// Grows with every event and revision that this handle or a clone of it has written, once a read finds it.
    #[must_use]
    pub fn history_version(&self) -> u64 {
        self.inner.history_version.load(Ordering::Acquire)
    }

    pub(crate) fn history_changed(&self) {
        self.inner.history_version.fetch_add(1, Ordering::Release);
    }

    /// Makes a request in sequence, queues it, and waits until it is durable.
    pub(crate) fn submit<R: Send + 'static>(
        &self,
        make: impl FnOnce(&mut Sequence) -> Result<(R, Vec<Write>)>,
    ) -> Result<R> {
        let (done, answer) = sync_channel(1);
        // A writer that has given up waiting needs no answer.
        self.submit_then(make, move |result| drop(done.send(result)));
        answer.recv().map_err(|_| self.writer_ended())?
    }

    /// Makes a request in sequence and queues it. `then` is called with its result once that is durable, by the one thread that
    /// writes; or at once, if it cannot be made. It is dropped uncalled if that thread has ended.
    pub(crate) fn submit_then<R: Send + 'static>(
        &self,
        make: impl FnOnce(&mut Sequence) -> Result<(R, Vec<Write>)>,
        then: impl FnOnce(Result<R>) + Send + 'static,
    ) {
        let queued = self.check_room().and_then(|()| {
            let mut sequence = self.sequence();
            let (result, writes) = make(&mut sequence)?;
            Ok((result, writes, sequence))
        });
        let (result, writes, sequence) = match queued {
            Ok(made) => made,
            Err(error) => return then(Err(error)),
        };
        let request = Request::new(writes, move |written| then(written.map(|()| result)));
        let queue = sequence.queue.as_ref().expect("the queue is open while there is a store");
        // Without a writer the request is dropped, which its maker notices.
        drop(queue.send(request));
    }

    pub(crate) fn check_room(&self) -> Result<()> {
        check_room(&self.inner.view.dir, &self.sequence().options)
    }

    pub(crate) fn saving_plans(&self) -> MutexGuard<'_, ()> {
        self.inner.saving_plans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn next_plan(&self) -> u64 {
        self.sequence().plans.next
    }

    fn sequence(&self) -> MutexGuard<'_, Sequence> {
        // It is changed only where nothing can fail any more, so a caller's panic has left it whole.
        self.inner.sequence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What became of a write that was never answered.
    #[must_use]
    pub fn writer_ended(&self) -> StateError {
        StateError::damaged(&self.inner.view.dir, "its writer has ended")
    }
}

impl Deref for Store {
    type Target = View;
    fn deref(&self) -> &View {
        &self.inner.view
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Without a sender the writer finishes and ends; its engine goes with it.
        if let Ok(sequence) = self.sequence.get_mut() {
            sequence.queue = None;
        }
        if let Some(committer) = self.committer.take()
            && committer.join().is_err()
        {
            tracing::error!("state writer panicked");
        }
    }
}

/// Syncs a directory, so that the names in it are durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Makes a new state durable, its files' names included.
fn first_commit(engine: &Engine, dir: &Path) -> Result<Summary> {
    let io = |e| StateError::io(dir, "sync", dir, e);
    let summary = Summary::empty(1);
    let (key, value) = summary.row();
    engine.apply([(key, Some(value))])?;
    engine.sync()?;
    sync_dir(&dir.join(DIRECTORY)).map_err(io)?;
    sync_dir(dir).map_err(io)?;
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        sync_dir(parent).map_err(io)?;
    }
    Ok(summary)
}

fn check_room(dir: &Path, options: &Options) -> Result<()> {
    let stat = rustix::fs::statvfs(dir).map_err(|e| StateError::io(dir, "look at", dir, e.into()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free >= options.reserve.as_bytes() {
        return Ok(());
    }
    let what = format!("{} MiB free, {} MiB needed", free >> 20, options.reserve.as_bytes() >> 20);
    Err(StateError::Full { dir: dir.to_owned(), what })
}
