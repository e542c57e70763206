//! Gives memory back to the system that a burst of work has left free. Called by the daemon, which runs for months between bursts.
//!
//! glibc's allocator gives back what is free at the end of its heaps alone. After a revision of many apps was loaded, or many
//! were made, what was needed for that lies free between what is kept: a fifth of the whole.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::converge::Pass;
use crate::task::blocking;

/// So long without a pass, and a burst is over. Giving back takes some milliseconds and memory that is needed again takes as long to
/// get, so it is not done between two passes of one burst.
const CALM: Duration = Duration::from_secs(10);

/// Gives back what is free after every burst of passes, until `shutdown`.
pub(crate) async fn tidy(mut passes: watch::Receiver<Option<Arc<Pass>>>, shutdown: CancellationToken) {
    while let Some(Ok(())) = shutdown.run_until_cancelled(passes.changed()).await {
        loop {
            let calm = tokio::time::timeout(CALM, passes.changed());
            match shutdown.run_until_cancelled(calm).await {
                Some(Ok(Ok(()))) => {}
                Some(Err(_)) => break blocking(give_back).await,
                Some(Ok(Err(_))) | None => return,
            }
        }
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
