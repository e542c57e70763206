//! The step journal and the event log: what is only ever appended.
//!
//! A step is journalled before it acts and when it has ended. Each entry holds the checksum of the one before, so that none can
//! be lost, changed or moved unnoticed; trimming keeps the checksum that the rest hangs on.

use jiff::Timestamp;
use setpoint_schema::name::AppKey;

use crate::error::Result;
use crate::record::{EventRecord, JournalEntry, JournalEvent, NewEvent, Outcome, PlanRef, bounded};
use crate::store::Store;
use crate::store::batch::{put, remove};
use crate::store::engine::Write;
use crate::store::sequence::Sequence;
use crate::table::OpenSteps;

impl Store {
    /// Records that a step is about to act. When this returns the step may begin.
    ///
    /// # Errors
    /// See [`Store::commit`].
    pub fn journal_begin(&self, app: &AppKey, plan: &PlanRef, step_index: u32, step: &str) -> Result<JournalEntry> {
        self.submit(|sequence| begin(sequence, app.clone(), plan.clone(), step_index, step))
    }

    /// The same for callers that must not block: `then` is called by the one thread that writes, which it must not hold up, when
    /// the step may begin, or with why it may not.
    pub fn journal_begin_then(
        &self,
        app: &AppKey,
        plan: &PlanRef,
        step_index: u32,
        step: &str,
        then: impl FnOnce(Result<JournalEntry>) + Send + 'static,
    ) {
        self.submit_then(|sequence| begin(sequence, app.clone(), plan.clone(), step_index, step), then);
    }

    /// Records that a step is done and that the next one of the same action is about to act, as one write. Until it is durable the
    /// former counts as cut short. `then` is called as by [`Store::journal_begin_then`].
    pub fn journal_turn_then(
        &self,
        done: JournalEntry,
        step: &str,
        then: impl FnOnce(Result<JournalEntry>) + Send + 'static,
    ) {
        let turn = |sequence: &mut Sequence| {
            let JournalEntry { seq, app, plan, step_index, step: _, began_at: _ } = done;
            let mut writes = end(sequence, seq, Outcome::Done)?;
            let (entry, begun) = begin(sequence, app, plan, step_index.saturating_add(1), step)?;
            writes.extend(begun);
            Ok((entry, writes))
        };
        self.submit_then(turn, then);
    }

    /// Records how a step has ended.
    ///
    /// # Errors
    /// See [`Store::commit`].
    pub fn journal_end(&self, entry: JournalEntry, outcome: Outcome) -> Result<()> {
        self.submit(|sequence| Ok(((), end(sequence, entry.seq, outcome)?)))
    }

    /// The same for callers that must not block: `then` is called as by [`Store::journal_begin_then`].
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
