//! The step journal and the event log: what is only ever appended.
//!
//! A step is journalled before it acts and when it has ended. Each entry holds the checksum of the one before, so that none can
//! be lost, changed or moved unnoticed; trimming keeps the checksum that the rest hangs on.

use jiff::Timestamp;
use setpoint_schema::name::AppKey;

use crate::error::Result;
use crate::record::{EventRecord, JournalEntry, JournalEvent, NewEvent, Outcome, PlanRef, bounded};
use crate::store::Store;
use crate::store::batch::{Rows, put, remove};
use crate::store::engine::Write;
use crate::store::sequence::Sequence;
use crate::table::OpenSteps;

/// How an action goes on from one step that acts to the next.
#[derive(Debug, Default)]
pub struct Turn {
    /// The step that acted, and is done.
    pub done: Option<JournalEntry>,
    /// The steps after it that are done by writing `rows`: the place of each among the action's, and its name.
    pub with_it: Vec<(u32, &'static str)>,
    /// The step that is about to act, if there is one left.
    pub next: Option<(u32, &'static str)>,
    /// What is written down of the inventory with all this.
    pub rows: Rows,
}

impl Store {
    /// Records that a step is about to act. When this returns the step may begin.
    ///
    /// # Errors
    /// See [`Store::commit`].
    pub fn journal_begin(&self, app: &AppKey, plan: &PlanRef, step_index: u32, step: &str) -> Result<JournalEntry> {
        self.submit(|sequence| begin(sequence, app.clone(), plan.clone(), step_index, step))
    }

    /// Records how far an action is, all of it or nothing: what is done, what is done with this write, and the step that is about to
    /// act, which is given back. Until it is durable, what is done counts as cut short.
    ///
    /// It does not block: `then` is called by the one thread that writes, which it must not hold up, when the step may begin, or with
    /// why it may not. It is called in the order in which turns are durable.
    pub fn journal_turn_then(
        &self,
        app: &AppKey,
        plan: &PlanRef,
        turn: Turn,
        then: impl FnOnce(Result<Option<JournalEntry>>) + Send + 'static,
    ) {
        let write = |sequence: &mut Sequence| {
            let Turn { done, with_it, next, rows: Rows(mut writes) } = turn;
            if let Some(done) = done {
                writes.extend(end(sequence, done.seq, Outcome::Done)?);
            }
            for (step_index, step) in with_it {
                writes.extend(both(sequence, app.clone(), plan.clone(), step_index, step)?);
            }
            let begun =
                next.map(|(index, step)| begin(sequence, app.clone(), plan.clone(), index, step)).transpose()?;
            let (entry, begun) = begun.unzip();
            writes.extend(begun.into_iter().flatten());
            Ok((entry, writes))
        };
        self.submit_then(write, then);
    }

    /// Records how a step has ended.
    ///
    /// # Errors
    /// See [`Store::commit`].
    pub fn journal_end(&self, entry: JournalEntry, outcome: Outcome) -> Result<()> {
        self.submit(|sequence| Ok(((), end(sequence, entry.seq, outcome)?)))
    }

    /// The same for callers that must not block: `then` is called as by [`Store::journal_turn_then`].
    pub fn journal_end_then(
        &self,
        entry: JournalEntry,
        outcome: Outcome,
        then: impl FnOnce(Result<()>) + Send + 'static,
    ) {
        self.submit_then(|sequence| Ok(((), end(sequence, entry.seq, outcome)?)), then);
    }

    /// Records an event.
    ///
    /// # Errors
    /// See [`Store::commit`].
    pub fn append_event(&self, event: NewEvent) -> Result<EventRecord> {
        let record = self.submit(|sequence| sequence.event(Timestamp::now(), event))?;
        self.history_changed();
        Ok(record)
    }

    /// Records an event as of a time.
    ///
    /// # Errors
    /// See [`Store::commit`].
    pub fn append_event_at(&self, at: Timestamp, event: NewEvent) -> Result<EventRecord> {
        let record = self.submit(|sequence| sequence.event(at, event))?;
        self.history_changed();
        Ok(record)
    }
}

/// A step that begins and ends with the same write, so that it is never open.
fn both(sequence: &mut Sequence, app: AppKey, plan: PlanRef, step_index: u32, step: &str) -> Result<Vec<Write>> {
    let (seq, began_at) = (sequence.journal_next(), Timestamp::now());
    let entry = JournalEntry { seq, app, plan, step_index, step: bounded(step), began_at };
    let mut writes = sequence.journal(began_at, JournalEvent::Begun(entry))?;
    writes.extend(sequence.journal(began_at, JournalEvent::Ended { begun: seq, outcome: Outcome::Done })?);
    Ok(writes)
}

fn begin(
    sequence: &mut Sequence,
    app: AppKey,
    plan: PlanRef,
    step_index: u32,
    step: &str,
) -> Result<(JournalEntry, Vec<Write>)> {
    let (seq, began_at) = (sequence.journal_next(), Timestamp::now());
    let entry = JournalEntry { seq, app, plan, step_index, step: bounded(step), began_at };
    let open = put::<OpenSteps>(&seq, &entry)?;
    let mut writes = sequence.journal(began_at, JournalEvent::Begun(entry.clone()))?;
    writes.push(open);
    Ok((entry, writes))
}

fn end(sequence: &mut Sequence, begun: u64, outcome: Outcome) -> Result<Vec<Write>> {
    let outcome = match outcome {
        Outcome::Failed(why) => Outcome::Failed(bounded(&why)),
        Outcome::Done | Outcome::Interrupted => outcome,
    };
    let mut writes = sequence.journal(Timestamp::now(), JournalEvent::Ended { begun, outcome })?;
    writes.push(remove::<OpenSteps>(&begun));
    Ok(writes)
}
