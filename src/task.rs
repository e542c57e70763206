//! Tasks and blocking threads whose panics are not lost: they go on in whoever waits for the result.

use std::sync::Arc;

use tokio::task::JoinError;

use crate::source::{Repository, SourceError};

/// Runs `work` on a thread that may block.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    joined(tokio::task::spawn_blocking(work).await)
}

/// Reads from the repository on a thread that may block.
///
/// # Errors
/// Those of `work`.
pub async fn reading<T: Send + 'static>(
    source: &Arc<Repository>,
    work: impl FnOnce(&Repository) -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    let source = Arc::clone(source);
    blocking(move || work(&source)).await
}

/// The result of a task that nobody aborts.
pub fn joined<T>(result: Result<T, JoinError>) -> T {
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}
