//! What Setpoint has observed and decided, kept across restarts: the inventory of sandboxes and disks, what is remembered of
//! each app, the step journal, events, revisions and plans.
//!
//! [`Store`] is the daemon's handle: one process at a time, every write durable when its call returns. [`Store::snapshot_read`]
//! looks at a state directory without touching it, beside a running daemon or without one. Reads are the same for both, on
//! [`View`]. The format on disk is written down in `docs/state-format.md`.
//!
//! The store is a cache of reality. Damage is found when it is opened and reported as [`StateError::Damaged`]; nothing is
//! dropped silently. [`Store::quarantine`] and [`Store::rebuild`] are the way out.
//!
//! This crate knows nothing of git, VMMs or HTTP.

mod envelope;
mod error;
mod record;
mod store;
mod table;

pub use error::{Result, StateError};
pub use record::{
    EVENT_TEXT_LIMIT, EventId, EventKind, EventRecord, JournalEntry, JournalEvent, JournalRecord, Meta, NewEvent,
    Outcome, PlanAction, PlanRecord, PlanRef, RevisionOutcome, RevisionRecord, SourceMarker,
};
pub use store::batch::{Batch, Rows};
pub use store::journal::Turn;
pub use store::options::Options;
pub use store::rebuild::{FoundDisk, Rebuild};
pub use store::snapshot::Snapshot;
pub use store::view::{Stats, View};
pub use store::{Store, VALUE_LIMIT};
pub use table::{Apps, Disks, Events, Inventory, Journal, Key, Plans, Revisions, Sandboxes, Snapshots, Table, Upgrade};
