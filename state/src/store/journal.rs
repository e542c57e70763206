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
use crate::table::OpenSteps;

impl Store {
    /// Records that a step is about to act. When this returns the step may begin.
    ///
    /// # Errors
    /// See [`Store::commit`].
    pub fn journal_begin(&self, app: &AppKey, plan: &PlanRef, step_index: u32, step: &str) -> Result<JournalEntry> {
        let began_at = Timestamp::now();
        self.submit(|sequence| {
            let seq = sequence.journal_next();
            let (app, plan) = (app.clone(), plan.clone());
            let entry = JournalEntry { seq, app, plan, step_index, step: bounded(step), began_at };
            let open = put::<OpenSteps>(&seq, &entry)?;
            let mut writes = sequence.journal(began_at, JournalEvent::Begun(entry.clone()))?;
            writes.push(open);
            Ok((entry, writes))
        })
    }

    /// Records how a step has ended.
    ///
    /// # Errors
    /// See [`Store::commit`].
    pub fn journal_end(&self, entry: JournalEntry, outcome: Outcome) -> Result<()> {
        let outcome = match outcome {
            Outcome::Failed(why) => Outcome::Failed(bounded(&why)),
            Outcome::Done | Outcome::Interrupted => outcome,
        };
        self.submit(|sequence| {
            let mut writes = sequence.journal(Timestamp::now(), JournalEvent::Ended { begun: entry.seq, outcome })?;
            writes.push(remove::<OpenSteps>(&entry.seq));
            Ok(((), writes))
        })
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
