//! How much the store keeps.

use setpoint_schema::quantity::{ByteSize, Span};

/// How much the store keeps, and how much room it leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The most events.
    pub events: usize,
    /// The longest that an event is kept. The newest event always stays.
    pub event_age: Span,
    /// The most entries of the step journal. A step holds two.
    pub journal: usize,
    /// The most revisions.
    pub revisions: usize,
    /// The most plans.
    pub plans: usize,
    /// The most that their full texts take up. The newest plan's always stays.
    pub plan_bytes: ByteSize,
    /// Writes are refused while the file system has less room than this, so that none is cut short by a full disk and the
    /// store goes on as soon as there is room again.
    pub reserve: ByteSize,
}

impl Default for Options {
    fn default() -> Self {
        // Events and journal stay below some 10 MB on disk, which a start reads and checks in well under a second. The reserve
        // is two of the engine's segments: the one being written and the next. A plan that changes ten thousand apps has 14 MB of
        // text, one that makes them 24 MB.
        Self {
            events: 10_000,
            event_age: Span::secs(30 * 24 * 3600),
            journal: 4_000,
            revisions: 100,
            plans: 50,
            plan_bytes: ByteSize::mib(64),
            reserve: ByteSize::mib(16),
        }
    }
}
