//! What the API asks of the daemon beyond the snapshot. The daemon implements it; tests use a fake.

use async_trait::async_trait;
use axum::body::Bytes;
use futures_util::stream::BoxStream;
use setpoint_schema::name::AppKey;
use setpoint_schema::wire;
use tokio::sync::watch;

/// Why the daemon could not answer.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// There is no such thing: 404.
    #[error("{0}")]
    NotFound(String),
    /// A parameter means nothing here: 400.
    #[error("{detail}")]
    BadParameter {
        /// Which one.
        parameter: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// It exists and cannot be asked now, as the logs of an app that is stopped: 503.
    #[error("{0}")]
    Unavailable(String),
    /// The daemon failed: 500.
    #[error("could not {operation}")]
    Failed {
        /// What was tried, as `read events`.
        operation: &'static str,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Answers from the store and from guests.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// At most `limit` events, oldest first, that came after the event with the id `after`. May block on the store.
    fn events(&self, after: Option<&str>, limit: usize) -> Result<Vec<wire::Event>, BackendError>;

    /// At most `limit` revisions, newest first, each commit once, older than the commit `after`. May block on the store.
    fn revisions(&self, after: Option<&str>, limit: usize) -> Result<Vec<wire::Revision>, BackendError>;

    /// Moves after every change of what [`Self::events`] and [`Self::revisions`] say.
    fn history(&self) -> watch::Receiver<u64>;

    /// The JSON form of the plan for `rev`, or for the branch's tip, against what is observed now. Changes nothing.
    async fn plan(&self, rev: Option<&str>) -> Result<serde_json::Value, BackendError>;

    /// All that the planner knows of the world, for previews that plan other declarations against it.
    fn observed(&self) -> Result<serde_json::Value, BackendError>;

    /// The configuration in force, without secrets.
    fn settings(&self) -> Result<wire::Settings, BackendError>;

    /// What is counted, as OpenMetrics text. May block.
    fn metrics(&self) -> String;

    /// Counts an answer of the route with this template.
    fn answered(&self, route: &'static str, status: u16);

    /// The last `tail` lines of a process's log, and what follows when asked to follow.
    async fn logs(&self, app: &AppKey, process: &str, tail: u32, follow: Follow) -> Result<LogStream, BackendError>;
}

/// Log text as it comes.
pub type LogStream = BoxStream<'static, Result<Bytes, BackendError>>;

/// Whether a log goes on after its last line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// It ends there.
    No,
    /// It goes on until the client leaves.
    Yes,
}
