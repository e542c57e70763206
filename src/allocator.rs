//! Gives memory back to the system that a burst of work has left free. Called by the daemon, which runs for months between bursts.
//!
//! glibc's allocator gives back what is free at the end of its heaps alone. After a revision of many apps was loaded, or many
//! were made, what was needed for that lies free between what is kept.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::converge::Pass;
use crate::ledger::Ledger;
use crate::report::chain;
use crate::task::blocking;

/// So long without a pass, and a burst is over. Giving back takes some milliseconds and memory that is needed again takes as long to
/// get, so it is not done between two passes of one burst.
const CALM: Duration = Duration::from_secs(10);

/// Lets all threads of this process share one heap. To be called before there are several: glibc gives each thread a heap of its own,
/// so that what one has freed is of no use to the next, which after a start with ten thousand apps is a fifth of the whole. Each
/// thread keeps what it has just freed for itself even so, and seldom waits for another.
pub(crate) fn share_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it stores an integer that is read when a heap is chosen, and is called while there is one thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives back what is free after every burst of passes, until `shutdown`.
pub(crate) async fn tidy(ledger: Ledger, mut passes: watch::Receiver<Option<Arc<Pass>>>, shutdown: CancellationToken) {
    let mut first = Some(ledger);
    while let Some(Ok(())) = shutdown.run_until_cancelled(passes.changed()).await {
        loop {
            let calm = tokio::time::timeout(CALM, passes.changed());
            match shutdown.run_until_cancelled(calm).await {
                Some(Ok(Ok(()))) => {}
                Some(Err(_)) => break,
                Some(Ok(Err(_))) | None => return,
            }
        }
        // The start has read all of the store. What comes later is little at a time, and let go of along the way.
        if let Some(ledger) = first.take()
            && let Err(error) = ledger.with(|store| store.shrink_cache()).await
        {
            tracing::warn!(error = %chain(&error), "store cannot be read through");
        }
        blocking(give_back).await;
    }
}

#[cfg(target_env = "gnu")]
fn give_back() {
    // SAFETY: the function has no precondition, may be called by any thread at any time, and touches only what is free.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators give back by themselves, or cannot.
#[cfg(not(target_env = "gnu"))]
fn give_back() {}
