//! The history of revisions: how far each came, how long that took, and what was done for it.
//!
//! ```text
//!   applying ──nothing is left──────────────────▶ applied
//!      │  └────nothing is left but mistakes─────▶ stalled
//!      ├───────what is left cannot be done──────▶ failed ──it could after all──▶ applied, stalled
//!      └───────a newer revision is tried────────▶ superseded
//! ```

use std::collections::BTreeMap;

use jiff::Timestamp;
use setpoint_plan::model::{Action, Block, Plan};
use setpoint_schema::diagnostic::Diagnostic;
use setpoint_schema::id::CommitId;
use setpoint_state::{EventKind, NewEvent, RevisionOutcome, RevisionRecord, StateError};

use crate::converge::follow::Followed;
use crate::desired::summary;
use crate::ledger::Ledger;
use crate::report::count;

type Result<T> = std::result::Result<T, StateError>;

/// Writes down how far revisions come.
pub(super) struct Revisions {
    ledger: Ledger,
    /// The revision that is being carried out, as it was written down last.
    current: Option<RevisionRecord>,
    last_applied: Option<CommitId>,
    /// What was carried out since, by the words of events.
    done: BTreeMap<String, u32>,
}

impl Revisions {
    pub fn new(ledger: Ledger) -> Self {
        Self { ledger, current: None, last_applied: None, done: BTreeMap::new() }
    }

    /// Goes on where an earlier daemon left off.
    pub async fn resume(&mut self) -> Result<()> {
        let (last, meta) = self.ledger.with(|store| Ok((store.revisions(None, 1)?, store.meta()?))).await?;
        self.current = last.into_iter().next().map(|(_, record)| record);
        self.done = self.current.as_ref().map(|record| record.done.clone()).unwrap_or_default();
        self.last_applied = meta.last_applied;
        Ok(())
    }

    /// The newest revision that was carried out in full.
    pub fn last_applied(&self) -> Option<&CommitId> {
        self.last_applied.as_ref()
    }

    /// One more action was carried out.
    pub fn count(&mut self, kind: EventKind) {
        *self.done.entry(kind.word()).or_default() += 1;
    }

    /// A newer revision ends the history of the one before it, however far that came.
    pub async fn note_attempt(&mut self, followed: &Followed, now: Timestamp) -> Result<()> {
        let current = self.current.as_ref().map(|record| &record.commit);
        let Some(commit) = followed.attempted.clone().filter(|commit| current != Some(commit)) else { return Ok(()) };
        if let Some(record) = self.current.take().filter(|record| record.outcome == RevisionOutcome::Applying) {
            self.close(record, RevisionOutcome::Superseded(commit.clone()), Vec::new(), now).await?;
        }
        self.done.clear();
        let apps = count(followed.desired.apps.len(), "app");
        let summary = match followed.diagnostics.len() {
            0 => apps,
            mistakes => format!("{apps}, {}", count(mistakes, "mistake")),
        };
        let event =
            NewEvent::new(EventKind::RevisionAttempted, "NewRevision", format!("{}: {summary}", commit.short()));
        let record = RevisionRecord {
            commit,
            attempted_at: now,
            applied_at: None,
            outcome: RevisionOutcome::Applying,
            duration_ms: 0,
            summary,
            done: BTreeMap::new(),
        };
        self.write(record, vec![event]).await
    }

    /// Notes that the revision came to an end, if it has; `idle` says that nothing is on its way and every guest could be asked.
    pub async fn note_progress(&mut self, followed: &Followed, plan: &Plan, idle: Idle, now: Timestamp) -> Result<()> {
        let Some(record) = self.current.as_ref().filter(|_| followed.trouble.is_none()) else { return Ok(()) };
        let Some(outcome) = end(record, &followed.diagnostics, plan, idle) else { return Ok(()) };
        let record = record.clone();
        let took = taken(&record, now);
        let (kind, reason, message) = match &outcome {
            RevisionOutcome::Applied => (EventKind::RevisionApplied, "Converged", format!("carried out in {took} ms")),
            RevisionOutcome::Stalled(why) => (EventKind::RevisionStalled, "Mistakes", why.clone()),
            RevisionOutcome::Failed(why) => (EventKind::RevisionFailed, "Failed", why.clone()),
            RevisionOutcome::Applying | RevisionOutcome::Superseded(_) | RevisionOutcome::Refused(_) => return Ok(()),
        };
        let event = NewEvent::new(kind, reason, format!("{}: {message}", record.commit.short()));
        if outcome == RevisionOutcome::Applied {
            self.last_applied = Some(record.commit.clone());
        }
        self.close(record, outcome, vec![event], now).await
    }

    async fn close(
        &mut self,
        record: RevisionRecord,
        outcome: RevisionOutcome,
        events: Vec<NewEvent>,
        now: Timestamp,
    ) -> Result<()> {
        let applied_at = (outcome == RevisionOutcome::Applied).then_some(now);
        let (duration_ms, done) = (taken(&record, now), self.done.clone());
        self.write(RevisionRecord { applied_at, outcome, duration_ms, done, ..record }, events).await
    }

    async fn write(&mut self, record: RevisionRecord, events: Vec<NewEvent>) -> Result<()> {
        self.current = Some(record.clone());
        self.ledger.with(move |store| store.record_revision_with(&record, events)).await
    }
}

/// Whether the world stands still, as far as the loop is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Idle {
    /// Nothing is on its way, and every guest could be asked.
    Yes,
    /// Something is, or what there is to do for some app is not known yet.
    No,
}

/// How the revision has ended by now, if that is not how it stands in the history.
fn end(record: &RevisionRecord, mistakes: &[Diagnostic], plan: &Plan, idle: Idle) -> Option<RevisionOutcome> {
    if idle == Idle::No {
        return None;
    }
    let ended = match (plan.actions.is_empty(), mistakes) {
        (true, []) => RevisionOutcome::Applied,
        (true, mistakes) => RevisionOutcome::Stalled(summary(mistakes)),
        (false, _) => RevisionOutcome::Failed(failure(plan)?),
    };
    let is_news = match (&record.outcome, &ended) {
        (RevisionOutcome::Applying, _) => true,
        // What it failed of changes with every try; that it failed is what the history says.
        (RevisionOutcome::Failed(_), RevisionOutcome::Applied | RevisionOutcome::Stalled(_)) => true,
        (RevisionOutcome::Failed(_) | RevisionOutcome::Stalled(_), _) => false,
        (RevisionOutcome::Applied | RevisionOutcome::Superseded(_) | RevisionOutcome::Refused(_), _) => false,
    };
    is_news.then_some(ended)
}

/// What of a plan failed, if all of it waits and some of it for a failure.
fn failure(plan: &Plan) -> Option<String> {
    let failed = |action: &Action| {
        action.blocked.iter().find_map(|block| match block {
            Block::Backoff { reason, .. } | Block::Flapping(reason) => Some(format!("{}: {reason}", action.app)),
            Block::DiskShrink { .. } | Block::Capacity(_) | Block::Repeating { .. } => {
                Some(format!("{}: {block}", action.app))
            }
            // A window opens, what depends on another waits for that one, and another plan may have what this one has not.
            Block::Dependency { .. }
            | Block::Unhealthy(_)
            | Block::Dependent(_)
            | Block::Window { .. }
            | Block::Snapshot { .. }
            | Block::Unplanned => None,
        })
    };
    let all_wait = plan.actions.iter().all(|action| !action.blocked.is_empty());
    all_wait.then(|| plan.actions.iter().find_map(|action| failed(action))).flatten()
}

fn taken(record: &RevisionRecord, now: Timestamp) -> u64 {
    u64::try_from(now.duration_since(record.attempted_at).as_millis()).unwrap_or(0)
}
