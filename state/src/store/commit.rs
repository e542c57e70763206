//! The one thread that writes. Writers hand it batches and wait; it carries out all that are waiting as one commit, so that
//! they share one sync.
//!
//! ```text
//! writers ──requests──▶ gather ─▶ apply (atomic) ─▶ sync ─▶ generation mark ─▶ answer each writer
//! ```
//!
//! After a failed commit the engine's memory and its disk may differ, so every later write is refused with the same error
//! until the state is opened again. Reads go on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use crate::envelope::{Checksum, stored_checksum};
use crate::error::{Result, StateError};
use crate::store::engine::{Engine, Write};
use crate::store::mark::Mark;
use crate::store::summary::Summary;

/// The most writes of one commit; it bounds how long one writer can wait for others.
const GROUP: usize = 512;

/// Writes that belong together, and what is called when they are durable or have failed.
pub(crate) struct Request {
    writes: Vec<Write>,
    done: Box<dyn FnOnce(Result<()>) + Send>,
}

impl Request {
    /// A request; `done` must not block.
    pub(crate) fn new(writes: Vec<Write>, done: impl FnOnce(Result<()>) + Send + 'static) -> Self {
        Self { writes, done: Box::new(done) }
    }
}

/// Starts the thread. It ends when the last sender is gone, after all that was sent.
pub(crate) fn start(
    engine: Arc<Engine>,
    mark: Mark,
    summary: Summary,
) -> std::io::Result<(Sender<Request>, JoinHandle<()>)> {
    let (sender, requests) = channel();
    let mut committer = Committer { engine, mark, summary, failed: None };
    let thread = std::thread::Builder::new().name("state-commit".to_owned()).spawn(move || committer.run(&requests))?;
    Ok((sender, thread))
}

struct Committer {
    engine: Arc<Engine>,
    mark: Mark,
    /// As of the last durable commit.
    summary: Summary,
    failed: Option<StateError>,
}

impl Committer {
    fn run(&mut self, requests: &Receiver<Request>) {
        while let Ok(first) = requests.recv() {
            let mut size = first.writes.len();
            let mut group = vec![first];
            while size < GROUP
                && let Ok(next) = requests.try_recv()
            {
                size += next.writes.len();
                group.push(next);
            }
            let (writes, waiting): (Vec<_>, Vec<_>) = group.into_iter().map(|r| (r.writes, r.done)).unzip();
            let result = self.commit(writes.into_iter().flatten());
            for done in waiting {
                done(result.clone());
            }
        }
    }

    fn commit(&mut self, writes: impl Iterator<Item = Write>) -> Result<()> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.carry_out(writes.collect());
        if let Err(error) = &result {
            tracing::error!(%error, "state commit failed; the state is read-only until it is opened again");
            self.failed = Some(error.clone());
        }
        result
    }

    /// Later writes of a key win over earlier ones, as if each request had been carried out alone.
    fn carry_out(&mut self, mut writes: BTreeMap<Vec<u8>, Option<Vec<u8>>>) -> Result<()> {
        let mut summary = self.summary.clone();
        summary.generation += 1;
        for (key, value) in &writes {
            let old = self.engine.get(key)?;
            summary.replace(checksum(old.as_deref()), checksum(value.as_deref()));
        }
        let (key, value) = summary.row();
        writes.insert(key, Some(value));
        self.engine.apply(writes)?;
        self.engine.sync()?;
        self.mark.set(summary.generation)?;
        self.summary = summary;
        Ok(())
    }
}

/// Old records were checked when the state was opened and new ones were just made, so both carry a checksum.
fn checksum(record: Option<&[u8]>) -> Option<Checksum> {
    record.map(|bytes| stored_checksum(bytes).unwrap_or_default())
}
