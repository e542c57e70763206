//! Follows what changes: a document by long polls with its ETag, and the stream of events.
//!
//! A daemon that knows no ETags is asked once a second instead, so that a newer command line serves an older daemon.

use std::time::Duration;

use axum::body::Bytes;
use http_body_util::BodyExt as _;
use hyper::StatusCode;
use hyper::header::{ACCEPT, CONTENT_TYPE, ETAG, HeaderName, IF_NONE_MATCH};
use serde::de::DeserializeOwned;
use setpoint_schema::wire::List;

use super::client::{Client, ClientError};

pub use query::Query;

mod query;
pub mod sse;

/// Between two looks at something that cannot be waited for.
pub const PAUSE: Duration = Duration::from_secs(1);
/// The longest that one question waits. Daemons take up to five minutes; proxies in between often end at one.
pub const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// A document that is asked for again and again.
#[derive(Debug, Clone)]
pub struct Poll {
    client: Client,
    path: String,
    state: State,
}

/// What is known of the document.
#[derive(Debug, Clone)]
enum State {
    /// It was never asked for.
    New,
    /// It had this ETag: the next question can wait for a change.
    Tagged(String),
    /// It came without one: the next answer is compared.
    Bare(Bytes),
    /// It was not there.
    Missing,
}

/// What one question brought.
#[derive(Debug, Clone)]
pub enum Polled<T> {
    /// It is this now.
    Changed(T),
    /// It is as it was.
    Same,
    /// There is no such thing; why.
    Missing(String),
    /// The daemon cannot say yet; why.
    NotYet(String),
}

impl Poll {
    /// The document under `path`.
    #[must_use]
    pub fn new(client: &Client, path: impl Into<String>) -> Self {
        Self { client: client.clone(), path: path.into(), state: State::New }
    }

    /// Asks, at once for the first time, later when it has changed or `wait` is over.
    ///
    /// # Errors
    /// When there is no answer, or one that cannot be read.
    pub async fn next<T: DeserializeOwned>(&mut self, wait: Duration) -> Result<Polled<T>, ClientError> {
        let response = match &self.state {
            State::New => self.client.exchange(&self.path, &[]).await?,
            State::Tagged(etag) => {
                let path = waiting(&self.path, wait.min(LONGEST_WAIT));
                self.client.exchange(&path, &[(IF_NONE_MATCH, etag.as_str())]).await?
            }
            State::Bare(_) | State::Missing => {
                tokio::time::sleep(wait.min(PAUSE)).await;
                self.client.exchange(&self.path, &[]).await?
            }
        };
        match response.status() {
            StatusCode::OK => {
                let etag = response.headers().get(ETAG).and_then(|etag| etag.to_str().ok()).map(str::to_owned);
                let (value, body) = self.client.read(response).await?;
                if matches!(&self.state, State::Bare(known) if *known == body) {
                    return Ok(Polled::Same);
                }
                self.state = etag.map_or(State::Bare(body), State::Tagged);
                Ok(Polled::Changed(value))
            }
            StatusCode::NOT_MODIFIED => Ok(Polled::Same),
            status => self.refused(status, self.client.refusal(response).await),
        }
    }

    /// A daemon that says why is waited for; whoever else says so is no daemon.
    fn refused<T>(&mut self, status: StatusCode, error: ClientError) -> Result<Polled<T>, ClientError> {
        match (status, error) {
            (StatusCode::NOT_FOUND, ClientError::Refused(why)) => {
                self.state = State::Missing;
                Ok(Polled::Missing(why))
            }
            (StatusCode::SERVICE_UNAVAILABLE, ClientError::Refused(why)) => {
                self.state = State::Missing;
                Ok(Polled::NotYet(why))
            }
            (_, error) => Err(error),
        }
    }
}

/// The path with a wait in whole seconds; one that is over already asks without.
fn waiting(path: &str, wait: Duration) -> String {
    let seconds = wait.as_secs();
    let sign = if path.contains('?') { '&' } else { '?' };
    if seconds == 0 { path.to_owned() } else { format!("{path}{sign}wait={seconds}s") }
}

/// The document under `path`, or none where there is none.
///
/// # Errors
/// As [`Poll::next`].
pub async fn find<T: DeserializeOwned>(client: &Client, path: &str) -> Result<Option<T>, ClientError> {
    match Poll::new(client, path).next(Duration::ZERO).await? {
        Polled::Changed(value) => Ok(Some(value)),
        Polled::Missing(_) => Ok(None),
        Polled::NotYet(why) => Err(ClientError::Refused(why)),
        Polled::Same => unreachable!("nothing was known that it could be the same as"),
    }
}

/// All pages of the list under `path`, of what `query` asks for, after `cursor`.
///
/// # Errors
/// As [`Client::get`].
pub async fn list<T: DeserializeOwned>(
    client: &Client,
    path: &str,
    query: &Query,
    cursor: Option<&str>,
) -> Result<Vec<T>, ClientError> {
    let mut items = Vec::new();
    let mut cursor = cursor.map(str::to_owned);
    loop {
        let page: List<T> = client.get(&query.page(path, cursor.as_deref())).await?;
        items.extend(page.items);
        match page.next {
            Some(next) => cursor = Some(next),
            None => return Ok(items),
        }
    }
}

/// Streams server-sent events from `path` after the event `last`, until the connection ends. `None` when the daemon has no such
/// stream.
///
/// # Errors
/// When there is no answer, or it breaks off.
pub async fn stream(
    client: &Client,
    path: &str,
    last: Option<&str>,
    mut each: impl FnMut(sse::Message),
) -> Result<Option<()>, ClientError> {
    let mut headers = vec![(ACCEPT, "text/event-stream")];
    headers.extend(last.map(|id| (HeaderName::from_static("last-event-id"), id)));
    let mut response = client.exchange(path, &headers).await?;
    if response.status() != StatusCode::OK {
        return Err(client.refusal(response).await);
    }
    let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if !kind.starts_with("text/event-stream") {
        return Ok(None);
    }
    let mut reader = sse::Reader::default();
    while let Some(frame) = response.frame().await {
        let frame = frame
            .map_err(|source| ClientError::Broken { address: client.address().to_owned(), source: Box::new(source) })?;
        if let Some(data) = frame.data_ref() {
            reader.feed(data, &mut each);
        }
    }
    Ok(Some(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_whole_seconds_beside_other_parameters() {
        assert_eq!(waiting("/v1/apps?limit=1000", Duration::from_millis(2900)), "/v1/apps?limit=1000&wait=2s");
        assert_eq!(waiting("/v1/status", Duration::from_millis(900)), "/v1/status");
    }
}
