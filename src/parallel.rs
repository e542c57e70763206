//! Work on many things on all processors, for the first load of a large repository. Called by the rooms that read and parse
//! declarations, and for the planner; the work in question blocks anyway, so plain threads do.

use std::num::NonZero;
use std::panic::resume_unwind;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// How many things a thread takes at a time: enough that taking them costs nothing beside them, and little enough that the
/// threads end together.
const BATCH: usize = 32;
/// More threads than this would wait for each other's locks.
const MAX_THREADS: usize = 8;

/// What `work` makes of each thing, in their order.
pub(crate) fn map<T: Sync, R: Send>(things: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    in_batches(BATCH, things, work)
}

/// The same, for things that take long enough to be taken one by one.
pub(crate) fn each<T: Sync, R: Send>(things: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    in_batches(1, things, work)
}

/// Works through things that take long, each thread with something of its own, and gives back what that has become. A thread that
/// gets nothing of its own leaves the work to the others.
pub(crate) fn each_with<T: Sync, S: Send>(
    things: &[T],
    own: impl Fn() -> Option<S> + Sync,
    work: impl Fn(&mut S, &T) + Sync,
) -> Vec<S> {
    // What a thread has of its own can be dear to come by.
    if things.is_empty() {
        return Vec::new();
    }
    let taken = AtomicUsize::new(0);
    let done = on_threads(things.len(), || {
        let mut own = own()?;
        while let Some(thing) = things.get(taken.fetch_add(1, Ordering::Relaxed)) {
            work(&mut own, thing);
        }
        Some(own)
    });
    done.into_iter().flatten().collect()
}

fn in_batches<T: Sync, R: Send>(batch: usize, things: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let taken = AtomicUsize::new(0);
    let done = on_threads(things.len().div_ceil(batch), || {
        let mut done: Vec<(usize, Vec<R>)> = Vec::new();
        loop {
            let first = taken.fetch_add(batch, Ordering::Relaxed);
            let Some(rest) = things.get(first..).filter(|rest| !rest.is_empty()) else { return done };
            done.push((first, rest.iter().take(batch).map(&work).collect()));
        }
    });
    let mut batches: Vec<(usize, Vec<R>)> = done.into_iter().flatten().collect();
    batches.sort_unstable_by_key(|(first, _)| *first);
    batches.into_iter().flat_map(|(_, batch)| batch).collect()
}

/// What `run` gives on each of as many threads as there are processors, but no more than `most`; this one is among them.
fn on_threads<R: Send>(most: usize, run: impl Fn() -> R + Sync) -> Vec<R> {
    // Asked once: the answer is read from several files of the control group, and a load of a hundred apps took a third longer for it.
    static PROCESSORS: LazyLock<usize> = LazyLock::new(|| thread::available_parallelism().map_or(1, NonZero::get));
    let threads = if most < 2 { 1 } else { PROCESSORS.min(MAX_THREADS).min(most) };
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(&run)).collect();
        let first = run();
        let others = others.into_iter().map(|other| other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        std::iter::once(first).chain(others).collect()
    })
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

    #[test]
    fn everything_is_worked_through_once() {
        let things: Vec<usize> = (0..100).collect();
        let mut seen = each_with(&things, || Some(Vec::new()), |seen, thing| seen.push(*thing)).concat();
        seen.sort_unstable();
        assert_eq!(seen, things);
    }
}
