//! Connections to agents of microVMs that have just begun from a warm template: the one over which a machine was told whose it is goes
//! on as its agent's, so that whoever talks to the agent first need not begin another.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use setpoint_schema::id::{BootNonce, SandboxId};
use tokio::time::sleep;

/// How long one is kept that nobody takes. As long as it is, the agent answers nobody else.
const KEPT: Duration = Duration::from_secs(2);

/// The connections that nobody has taken yet.
#[derive(Debug)]
pub(super) struct Begun<S> {
    streams: Arc<Mutex<Streams<S>>>,
}

type Streams<S> = BTreeMap<SandboxId, (BootNonce, S)>;

impl<S> Default for Begun<S> {
    fn default() -> Self {
        Self { streams: Arc::default() }
    }
}

impl<S: Send + 'static> Begun<S> {
    /// Keeps one for a moment.
    pub fn keep(&self, sandbox: &SandboxId, nonce: &BootNonce, stream: S) {
        self.lock().insert(sandbox.clone(), (nonce.clone(), stream));
        let (kept, sandbox, nonce) = (Self { streams: Arc::clone(&self.streams) }, sandbox.clone(), nonce.clone());
        tokio::spawn(async move {
            sleep(KEPT).await;
            drop(kept.take(&sandbox, &nonce));
        });
    }

    /// The connection to this boot, if it is still kept.
    pub fn take(&self, sandbox: &SandboxId, nonce: &BootNonce) -> Option<S> {
        let mut streams = self.lock();
        let is_of_this_boot = streams.get(sandbox).is_some_and(|(boot, _)| boot == nonce);
        is_of_this_boot.then(|| streams.remove(sandbox)).flatten().map(|(_, stream)| stream)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Streams<S>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing step is a failing test")]

    use tokio::io::AsyncReadExt as _;
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_given_to_its_own_boot_once_and_ends_if_nobody_comes() {
        let (begun, sandbox) = (Begun::default(), SandboxId("blog-1".into()));
        let (first, second) = (BootNonce("1".into()), BootNonce("2".into()));
        let (ours, _theirs) = UnixStream::pair().unwrap();
        begun.keep(&sandbox, &first, ours);
        assert!(begun.take(&sandbox, &second).is_none());
        assert!(begun.take(&sandbox, &first).is_some());
        assert!(begun.take(&sandbox, &first).is_none());
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        begun.keep(&sandbox, &second, ours);
        assert_eq!(theirs.read(&mut [0; 1]).await.unwrap(), 0, "its end is seen");
        assert!(begun.take(&sandbox, &second).is_none());
    }
}
