//! Follows what changes: a document by long polls with its ETag, and the stream of events.
//!
//! What is not there cannot be waited for, but it can only come with a revision, and what the daemon says of itself changes with
//! each: so that is waited for instead. Something without an ETag is asked for once a second.

use std::time::Duration;

use axum::body::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, CONTENT_TYPE, ETAG, HeaderName, IF_NONE_MATCH};
use hyper::{Response, StatusCode};
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
    /// It was not there. With the tag of what the daemon said of itself before it was looked for last.
    Missing(Option<String>),
}

/// What the daemon says of itself.
const STATUS: &str = "/v1/status";

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
                rest(wait).await;
                let path = waiting(&self.path, wait.min(LONGEST_WAIT));
                self.client.exchange(&path, &[(IF_NONE_MATCH, etag.as_str())]).await?
            }
            State::Bare(_) => {
                tokio::time::sleep(wait.min(PAUSE)).await;
                self.client.exchange(&self.path, &[]).await?
            }
            State::Missing(before) => {
                let news = news(&self.client, before.as_deref(), wait.min(LONGEST_WAIT)).await?;
                self.state = State::Missing(news);
                self.client.exchange(&self.path, &[]).await?
            }
        };
        match response.status() {
            StatusCode::OK => {
                let etag = tag_of(&response);
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
                self.forget();
                Ok(Polled::Missing(why))
            }
            (StatusCode::SERVICE_UNAVAILABLE, ClientError::Refused(why)) => {
                self.forget();
                Ok(Polled::NotYet(why))
            }
            (_, error) => Err(error),
        }
    }

    fn forget(&mut self) {
        match self.state {
            State::Missing(_) => {}
            State::New | State::Tagged(_) | State::Bare(_) => self.state = State::Missing(None),
        }
    }
}

/// Waits until the daemon says of itself what it did not say `before`; the tag of that, for the next time. The first time there is
/// nothing to compare with, so that it does not wait.
async fn news(client: &Client, before: Option<&str>, wait: Duration) -> Result<Option<String>, ClientError> {
    rest(wait).await;
    let response = match before {
        Some(tag) => client.exchange(&waiting(STATUS, wait), &[(IF_NONE_MATCH, tag)]).await?,
        None => client.exchange(STATUS, &[]).await?,
    };
    let tag = tag_of(&response);
    // A daemon that has not looked around yet says nothing of itself, and one without tags is not worth a question a moment.
    if tag.is_none() {
        tokio::time::sleep(wait.min(PAUSE)).await;
    }
    Ok(tag)
}

/// Daemons wait for whole seconds: less is waited for here.
async fn rest(wait: Duration) {
    if wait < Duration::from_secs(1) {
        tokio::time::sleep(wait).await;
    }
}

fn tag_of(response: &Response<Incoming>) -> Option<String> {
    response.headers().get(ETAG).and_then(|etag| etag.to_str().ok()).map(str::to_owned)
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

/// What comes after `cursor` in the list under `path`, once there is something, or nothing when there was nothing for long.
///
/// # Errors
/// As [`Client::get`].
pub async fn later<T: DeserializeOwned>(
    client: &Client,
    path: &str,
    query: &Query,
    cursor: Option<&str>,
) -> Result<Vec<T>, ClientError> {
    let mut poll = Poll::new(client, query.page(path, cursor));
    loop {
        match poll.next::<List<T>>(LONGEST_WAIT).await? {
            Polled::Changed(page) if page.items.is_empty() => {}
            Polled::Changed(page) => return Ok(page.items),
            Polled::Same | Polled::Missing(_) | Polled::NotYet(_) => return Ok(Vec::new()),
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
