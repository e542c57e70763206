//! Where memory comes from, and how what a burst of work has left free goes back. The daemon runs for months between bursts.
//!
//! What is kept of ten thousand apps is some seven hundred thousand small pieces. jemalloc has those of one size together, so that
//! what was needed to load or to make the apps leaves whole pages free, which go back to the system by themselves within seconds.
//! glibc's allocator gives back what lies free in whole pages by chance: the same daemon kept 188 MiB with it, and keeps 150 like this.

use std::sync::Arc;
use std::time::Duration;

use tikv_jemallocator::Jemalloc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::converge::Pass;
use crate::ledger::Ledger;
use crate::report::chain;

/// Of Rust and of the C libraries alike, which replaces `malloc`.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// jemalloc's configuration, which it looks for under this name. Two heaps are for all threads: of more, those that are not used any
/// more keep what is free in them, 30 MiB with ten thousand apps, and with one alone a load on two processors waits for it now and then.
// SAFETY: the name is jemalloc's own for this, a pointer to text that ends in a zero byte, and nothing else in the program defines it.
#[unsafe(export_name = "malloc_conf")]
#[used]
static CONFIGURATION: &[u8; 10] = b"narenas:2\0";

/// So long without a pass, and a burst is over.
const CALM: Duration = Duration::from_secs(10);

/// Lets go of what the start has read of the store, as soon as it is over. What comes later is little at a time, and let go of along
/// the way.
pub(crate) async fn tidy(ledger: Ledger, mut passes: watch::Receiver<Option<Arc<Pass>>>, shutdown: CancellationToken) {
    let Some(Ok(())) = shutdown.run_until_cancelled(passes.changed()).await else { return };
    loop {
        let calm = tokio::time::timeout(CALM, passes.changed());
        match shutdown.run_until_cancelled(calm).await {
            Some(Ok(Ok(()))) => {}
            Some(Err(_)) => break,
            Some(Ok(Err(_))) | None => return,
        }
    }
    if let Err(error) = ledger.with(|store| store.shrink_cache()).await {
        tracing::warn!(error = %chain(&error), "store cannot be read through");
    }
}
