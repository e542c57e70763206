//! Who does the work that is the same for many things. The planner knows no threads: whoever calls it may bring helpers, and the
//! plan is the same with any.

/// Does work on many things, each apart from the others.
pub trait Crew {
    /// What `work` makes of each thing, in the order of the things.
    fn map<T: Sync, R: Send>(&self, things: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R>;
}

/// One after the other, without help.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Crew for Alone {
    fn map<T: Sync, R: Send>(&self, things: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
        things.iter().map(work).collect()
    }
}

/// Few enough that all helpers end together, and enough that handing them out costs nothing beside them. What a pass usually
/// has to look at is no more than this, so that no help is sought for it.
const BATCH: usize = 128;

/// What `work` makes of all things, a batch at a time.
pub(super) fn in_batches<T: Sync, R: Send>(
    crew: &impl Crew,
    things: &[T],
    work: impl Fn(&[T]) -> Vec<R> + Sync,
) -> Vec<R> {
    if things.len() <= BATCH {
        return work(things);
    }
    let batches: Vec<&[T]> = things.chunks(BATCH).collect();
    let mut all = Vec::with_capacity(things.len());
    for done in crew.map(&batches, |batch| work(batch)) {
        all.extend(done);
    }
    all
}
