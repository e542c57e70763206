//! Work on many things on all processors, for the first load of a large repository. Called by [`super::parse`] and
//! [`super::pin`], and for the planner; the work in question blocks anyway, so plain threads do.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// How many things a thread takes at a time: enough that taking them costs nothing beside them, and little enough that the
/// threads end together.
const BATCH: usize = 32;
/// More threads than this would wait for the lock of the repository.
const MAX_THREADS: usize = 8;

/// What `work` makes of each thing, in their order.
pub(super) fn map<T: Sync, R: Send>(things: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    in_batches(BATCH, things, work)
}

/// The same, for things that take long enough to be taken one by one.
pub(crate) fn each<T: Sync, R: Send>(things: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    in_batches(1, things, work)
}

fn in_batches<T: Sync, R: Send>(batch: usize, things: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let processors = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = processors.min(MAX_THREADS).min(things.len().div_ceil(batch));
    if threads < 2 {
        return things.iter().map(work).collect();
    }
    let taken = AtomicUsize::new(0);
    let run = || {
        let mut done: Vec<(usize, Vec<R>)> = Vec::new();
        loop {
            let first = taken.fetch_add(batch, Ordering::Relaxed);
            let Some(rest) = things.get(first..).filter(|rest| !rest.is_empty()) else { return done };
            done.push((first, rest.iter().take(batch).map(&work).collect()));
        }
    };
    let mut batches = thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(run)).collect();
        let mut batches = run();
        for other in others {
            batches.extend(other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        batches
    });
    batches.sort_unstable_by_key(|(first, _)| *first);
    batches.into_iter().flat_map(|(_, batch)| batch).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_kept() {
        for count in [0, 1, BATCH, BATCH + 1, 10 * BATCH + 7] {
            let things: Vec<usize> = (0..count).collect();
            assert_eq!(map(&things, |n| n * 2), things.iter().map(|n| n * 2).collect::<Vec<_>>());
        }
    }
}
