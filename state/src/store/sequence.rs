//! What must be decided in one order before writes are queued: event identities, the journal's chain, places in the capped
//! logs. The store keeps it behind a mutex that is held while a request is made and queued, never while it is carried out.

use std::collections::VecDeque;
use std::sync::mpsc::Sender;

use jiff::Timestamp;
use ulid::Ulid;

use crate::envelope::{Checksum, stored_checksum};
use crate::error::Result;
use crate::record::{
    EventId, EventRecord, JournalBase, JournalEvent, JournalRecord, Meta, NewEvent, RevisionRecord, bounded,
};
use crate::store::batch::{put, remove};
use crate::store::commit::Request;
use crate::store::engine::{Order, Write};
use crate::store::options::Options;
use crate::store::view::View;
use crate::table::{Events, Journal, JournalBases, Key, Only, PlanFiles, Plans, Revisions, Table, prefix};

/// The journal gives up this part of its cap at a time.
const TRIMMED_AT_ONCE: u64 = 64;

/// See the file's head.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) options: Options,
    /// Where requests go; `None` once the store is closing.
    pub(crate) queue: Option<Sender<Request>>,
    events: VecDeque<EventId>,
    journal: Numbers,
    journal_head: Checksum,
    /// The checksums of the journal's entries from the oldest on, for the base after trimming.
    journal_chain: VecDeque<Checksum>,
    pub(crate) revisions: Numbers,
    pub(crate) last_revision: Option<RevisionRecord>,
    pub(crate) plans: Numbers,
    /// The plans whose full texts are kept, the oldest first, with their sizes.
    pub(crate) plan_texts: VecDeque<(u64, u64)>,
    pub(crate) meta: Meta,
}

impl Sequence {
    /// Picks up where the state stands.
    pub(crate) fn resume(view: &View, journal_head: Checksum, options: Options) -> Result<Self> {
        let journal_rows = view.engine.scan(&prefix::<Journal>(), None, Order::OldestFirst, usize::MAX)?;
        let base = view.get::<JournalBases>(&Only)?;
        let journal_first = base.map_or(1, |base: JournalBase| base.first);
        Ok(Self {
            options,
            queue: None,
            events: keys::<Events>(view)?.into(),
            journal: Numbers { first: journal_first, next: journal_first + journal_rows.len() as u64 },
            journal_head,
            journal_chain: journal_rows.iter().map(|(_, bytes)| stored_checksum(bytes).unwrap_or_default()).collect(),
            revisions: Numbers::of(&keys::<Revisions>(view)?),
            last_revision: view.revisions(None, 1)?.pop().map(|(_, revision)| revision),
            plans: Numbers::of(&keys::<Plans>(view)?),
            plan_texts: plan_texts(view)?,
            meta: view.meta()?,
        })
    }

    /// The writes of one event and of the retention that follows from it.
    pub(crate) fn event(&mut self, at: Timestamp, event: NewEvent) -> Result<(EventRecord, Vec<Write>)> {
        let NewEvent { app, sandbox, kind, reason, message } = event;
        let id = self.next_event_id(at);
        let record = EventRecord { id, at, app, sandbox, kind, reason: bounded(&reason), message: bounded(&message) };
        let mut writes = vec![put::<Events>(&id, &record)?];
        self.events.push_back(id);
        let oldest_kept = millis(at).saturating_sub(self.options.event_age.as_millis());
        while let Some(oldest) = self.events.front()
            && (self.events.len() > self.options.events.max(1) || oldest.as_ulid().timestamp_ms() < oldest_kept)
            && *oldest != id
        {
            writes.push(remove::<Events>(oldest));
            self.events.pop_front();
        }
        Ok((record, writes))
    }

    /// The place that the next journal entry takes.
    pub(crate) fn journal_next(&self) -> u64 {
        self.journal.next
    }

    /// The writes of one journal entry, chained to the one before, and of its trimming.
    pub(crate) fn journal(&mut self, at: Timestamp, event: JournalEvent) -> Result<Vec<Write>> {
        let entry = put::<Journal>(&self.journal.next, &JournalRecord { at, event, previous: self.journal_head })?;
        self.journal_head = entry.1.as_deref().and_then(|bytes| stored_checksum(bytes).ok()).unwrap_or_default();
        self.journal_chain.push_back(self.journal_head);
        let mut writes = vec![entry];
        // One at a time, each would be another removal and another base beside what is written anyway.
        let slack = self.options.journal as u64 / TRIMMED_AT_ONCE;
        let (_, trimmed) = self.journal.append_with_slack(self.options.journal, slack);
        let mut last_trimmed = None;
        for number in trimmed {
            writes.push(remove::<Journal>(&number));
            last_trimmed = self.journal_chain.pop_front();
        }
        if let Some(previous) = last_trimmed {
            writes.push(put::<JournalBases>(&Only, &JournalBase { first: self.journal.first, previous })?);
        }
        Ok(writes)
    }

    fn next_event_id(&self, at: Timestamp) -> EventId {
        let fresh = Ulid::from_datetime(at.into());
        let id = match self.events.back().map(EventId::as_ulid) {
            // The clock stands still or went back, or the random part happens to be smaller.
            Some(last) if fresh <= last => last.increment().unwrap_or_else(|_| next_millisecond(last)),
            Some(_) | None => fresh,
        };
        EventId::from(id)
    }
}

/// The numbers of a log that is appended to at one end and trimmed at the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Numbers {
    pub(crate) first: u64,
    pub(crate) next: u64,
}

impl Numbers {
    fn of(keys: &[u64]) -> Self {
        let first = keys.first().copied().unwrap_or(1);
        Self { first, next: keys.last().map_or(first, |last| last + 1) }
    }

    /// The newest, if there is any.
    pub(crate) fn last(&self) -> Option<u64> {
        (self.next > self.first).then(|| self.next - 1)
    }

    /// Takes the next number; returns it and those that are over the cap now.
    pub(crate) fn append(&mut self, cap: usize) -> (u64, std::ops::Range<u64>) {
        self.append_with_slack(cap, 0)
    }

    /// The same, where nothing is given up until as many as `slack` more than the cap are there.
    fn append_with_slack(&mut self, cap: usize, slack: u64) -> (u64, std::ops::Range<u64>) {
        let number = self.next;
        self.next += 1;
        let kept_from = self.next.saturating_sub(cap.max(1) as u64).max(self.first);
        let kept_from = if kept_from - self.first > slack { kept_from } else { self.first };
        let trimmed = self.first..kept_from;
        self.first = kept_from;
        (number, trimmed)
    }
}

fn plan_texts(view: &View) -> Result<VecDeque<(u64, u64)>> {
    let files = view.scan::<PlanFiles>(None, Order::OldestFirst, usize::MAX)?;
    Ok(files.into_iter().map(|(number, file)| (number, file.bytes)).collect())
}

fn keys<T: Table>(view: &View) -> Result<Vec<T::Key>> {
    let prefix = prefix::<T>();
    let rows = view.engine.scan(&prefix, None, Order::OldestFirst, usize::MAX)?;
    let key = |(full, _): &(Vec<u8>, Vec<u8>)| {
        T::Key::from_bytes(&full[prefix.len()..])
            .ok_or_else(|| crate::StateError::damaged(&view.dir, format!("table {} has a key that is none", T::NAME)))
    };
    rows.iter().map(key).collect()
}

fn next_millisecond(last: Ulid) -> Ulid {
    Ulid::from_parts(last.timestamp_ms() + 1, 0)
}

fn millis(at: Timestamp) -> u64 {
    u64::try_from(at.as_millisecond()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_over_its_cap_gives_up_its_oldest() {
        let mut numbers = Numbers { first: 1, next: 1 };
        assert_eq!(numbers.append(2), (1, 1..1));
        assert_eq!(numbers.append(2), (2, 1..1));
        assert_eq!(numbers.append(2), (3, 1..2));
        assert_eq!(numbers.append(1), (4, 2..4), "a lowered cap trims the rest");
        assert_eq!(numbers.last(), Some(4));
    }

    #[test]
    fn a_log_with_slack_gives_up_several_at_once_and_never_any_below_its_cap() {
        let mut numbers = Numbers { first: 1, next: 1 };
        let trimmed: Vec<_> = (0..8).map(|_| numbers.append_with_slack(3, 2).1).collect();
        assert_eq!(trimmed, [1..1, 1..1, 1..1, 1..1, 1..1, 1..4, 4..4, 4..4]);
    }
}
