//! Reading: what a store and a snapshot have in common. A read sees a write at the latest when the writing call returns.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::envelope::{Checksum, decode};
use crate::error::{Result, StateError};
use crate::record::{EventId, EventRecord, JournalEntry, JournalRecord, Meta, PlanRecord, RevisionRecord};
use crate::store::engine::{DIRECTORY, Engine, Order, Row};
use crate::store::history::{PlanFile, plan_path};
use crate::store::summary::{self, Summary};
use crate::table::{
    Events, Journal, Key, Metas, Only, OpenSteps, PlanFiles, Plans, Revisions, Table, full_key, known_tables, prefix,
};

/// The contents of a state.
#[derive(Debug)]
pub struct View {
    pub(crate) engine: Arc<Engine>,
    /// The directory that is shown in messages and holds the plans' files.
    pub(crate) dir: PathBuf,
}

/// What a state amounts to, for people to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// The version of its format.
    pub format: u32,
    /// The number of commits so far.
    pub generation: u64,
    /// Records by table.
    pub records: BTreeMap<&'static str, usize>,
    /// Bytes on disk, plans' files included.
    pub bytes: u64,
}

impl View {
    /// The state directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// One record.
    ///
    /// # Errors
    /// [`StateError::Damaged`] when the record does not read; the same for everything below.
    pub fn get<T: Table>(&self, key: &T::Key) -> Result<Option<T::Value>> {
        let full = full_key::<T>(key);
        let row = self.engine.get(&full)?.map(|bytes| (full, bytes));
        row.map(|row| self.parse::<T>(&row).map(|(_, value)| value)).transpose()
    }

    /// Every record of a table.
    ///
    /// # Errors
    /// See [`View::get`].
    pub fn all<T: Table>(&self) -> Result<BTreeMap<T::Key, T::Value>> {
        self.scan::<T>(None, Order::OldestFirst, usize::MAX).map(|rows| rows.into_iter().collect())
    }

    /// Up to `limit` events after one, oldest first; from the oldest that is kept when `after` is `None`.
    ///
    /// # Errors
    /// See [`View::get`].
    pub fn events_after(&self, after: Option<&EventId>, limit: usize) -> Result<Vec<EventRecord>> {
        self.scan::<Events>(after, Order::OldestFirst, limit).map(values)
    }

    /// Up to `limit` of the newest events before one, newest first; from the newest when `before` is `None`.
    ///
    /// # Errors
    /// See [`View::get`].
    pub fn events_before(&self, before: Option<&EventId>, limit: usize) -> Result<Vec<EventRecord>> {
        self.scan::<Events>(before, Order::NewestFirst, limit).map(values)
    }

    /// The newest `limit` events, oldest first.
    ///
    /// # Errors
    /// See [`View::get`].
    pub fn latest_events(&self, limit: usize) -> Result<Vec<EventRecord>> {
        let mut events = self.events_before(None, limit)?;
        events.reverse();
        Ok(events)
    }

    /// Up to `limit` revisions by number, newest first, before one where it is given.
    ///
    /// # Errors
    /// See [`View::get`].
    pub fn revisions(&self, before: Option<u64>, limit: usize) -> Result<Vec<(u64, RevisionRecord)>> {
        self.scan::<Revisions>(before.as_ref(), Order::NewestFirst, limit)
    }

    /// Up to `limit` plans by number, newest first, before one where it is given.
    ///
    /// # Errors
    /// See [`View::get`].
    pub fn plans(&self, before: Option<u64>, limit: usize) -> Result<Vec<(u64, PlanRecord)>> {
        self.scan::<Plans>(before.as_ref(), Order::NewestFirst, limit)
    }

    /// The full text of a plan in the history, as it was saved; `None` when the history does not reach back to it.
    ///
    /// # Errors
    /// [`StateError::Damaged`] when the plan's file is not what was saved.
    pub fn plan_body(&self, number: u64) -> Result<Option<Vec<u8>>> {
        let Some(PlanFile { bytes, checksum }) = self.get::<PlanFiles>(&number)? else {
            return Ok(None);
        };
        let path = plan_path(&self.dir, number);
        let body = std::fs::read(&path).map_err(|e| StateError::io(&self.dir, "read", &path, e))?;
        if body.len() as u64 == bytes && Checksum::of(&body) == checksum {
            Ok(Some(body))
        } else {
            Err(StateError::damaged(&self.dir, format!("{} is not the plan that was saved", path.display())))
        }
    }

    /// The newest `limit` entries of the step journal, oldest first.
    ///
    /// # Errors
    /// See [`View::get`].
    pub fn journal(&self, limit: usize) -> Result<Vec<(u64, JournalRecord)>> {
        let mut entries = self.scan::<Journal>(None, Order::NewestFirst, limit)?;
        entries.reverse();
        Ok(entries)
    }

    /// Steps that were begun and not ended, in the order of their beginning: after a crash, what was in the air.
    ///
    /// # Errors
    /// See [`View::get`].
    pub fn unfinished(&self) -> Result<Vec<JournalEntry>> {
        self.scan::<OpenSteps>(None, Order::OldestFirst, usize::MAX).map(values)
    }

    /// What there is one of.
    ///
    /// # Errors
    /// See [`View::get`].
    pub fn meta(&self) -> Result<Meta> {
        self.get::<Metas>(&Only).map(Option::unwrap_or_default)
    }

    /// What the state amounts to.
    ///
    /// # Errors
    /// See [`View::get`].
    pub fn stats(&self) -> Result<Stats> {
        let summary = match self.engine.get(summary::KEY)? {
            Some(bytes) => {
                Summary::parse(&bytes).map_err(|why| StateError::damaged(&self.dir, format!("the summary {why}")))?
            }
            None => Summary::empty(0),
        };
        let mut records: BTreeMap<_, _> = known_tables().into_iter().map(|(name, _)| (name, 0)).collect();
        for (name, count) in &mut records {
            let prefix = [name.as_bytes(), &[0]].concat();
            *count = self.engine.scan(&prefix, None, Order::OldestFirst, usize::MAX)?.len();
        }
        let bytes = bytes_below(&self.dir.join(DIRECTORY)) + bytes_below(&self.dir.join("plans"));
        Ok(Stats { format: summary.format, generation: summary.generation, records, bytes })
    }

    pub(crate) fn scan<T: Table>(
        &self,
        beyond: Option<&T::Key>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<(T::Key, T::Value)>> {
        let beyond = beyond.map(full_key::<T>);
        let rows = self.engine.scan(&prefix::<T>(), beyond.as_deref(), order, limit)?;
        rows.iter().map(|row| self.parse::<T>(row)).collect()
    }

    fn parse<T: Table>(&self, (full, bytes): &Row) -> Result<(T::Key, T::Value)> {
        let damaged = |why: String| {
            let name = String::from_utf8_lossy(full).replace('\0', "/");
            StateError::damaged(&self.dir, format!("record {name} {why}"))
        };
        let key = T::Key::from_bytes(&full[prefix::<T>().len()..]).ok_or_else(|| damaged("has no valid key".into()))?;
        decode::<T>(full, bytes).map(|value| (key, value)).map_err(|why| damaged(why.to_string()))
    }
}

fn values<K, V>(rows: Vec<(K, V)>) -> Vec<V> {
    rows.into_iter().map(|(_, value)| value).collect()
}

/// What the files of a directory take; what cannot be read counts as nothing, this is for show.
fn bytes_below(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).filter(std::fs::Metadata::is_file).map(|meta| meta.len()).sum()
}
