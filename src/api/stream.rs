//! Server-sent events: an object each time that it changes, and the log of events as it grows.
//!
//! A stream makes its next event only when the connection has room for it, so a client that reads slowly skips states of an
//! object that are no longer true, and reads events from the store at its own pace. Nothing is kept for it in memory.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::Response;
use futures_util::{StreamExt as _, stream};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use serde::Serialize;
use tokio::sync::watch;

use super::entity::{Entity, Instance};
use super::poll::{self, View};
use super::refusal::Refusal;
use super::routes::Sources;
use crate::http::Connection;

/// How long a stream stays silent: shorter than proxies and address translators forget an idle connection.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How many events are read from the store at once.
const BATCH: usize = 100;

/// Streams an object: as it is, unless the client has that state, and then each state that follows. Ends with an event
/// `problem` when there is no such object any more.
pub(super) fn of_object(
    instance: Instance,
    view: impl View,
    first: Entity,
    event: &'static str,
    after: Option<String>,
    connection: &Connection,
) -> Response {
    let object = Object { instance, view, next: Some(Ok(first)), event, shown: after };
    response(stream::unfold(Some(object), |object| async { object?.step().await }), connection)
}

/// An object that is being streamed.
struct Object<V> {
    instance: Instance,
    view: V,
    /// What was looked at and not shown yet.
    next: Option<Result<Entity, Refusal>>,
    event: &'static str,
    /// The tag that the client has.
    shown: Option<String>,
}

impl<V: View> Object<V> {
    async fn step(mut self) -> Option<(Bytes, Option<Self>)> {
        loop {
            let looked = match self.next.take() {
                Some(first) => first,
                None => self.view.look().await,
            };
            match looked {
                Err(refusal) => return Some((frame(None, "problem", &json(refusal.problem())), None)),
                Ok(Entity { tag, body }) => {
                    let tag = self.instance.write(tag);
                    if self.shown.as_ref() != Some(&tag) {
                        let bytes = frame(Some(&tag), self.event, &body());
                        self.shown = Some(tag);
                        return Some((bytes, Some(self)));
                    }
                }
            }
            if tokio::time::timeout(HEARTBEAT, self.view.changed()).await.is_err() {
                return Some((heartbeat(), Some(self)));
            }
        }
    }
}

/// Some of the log of events.
pub(super) struct Batch {
    /// Those that are to be shown: id and JSON.
    pub(super) events: Vec<(String, Bytes)>,
    /// The id of the last one that was looked at, shown or not; `None` when there was none.
    pub(super) last: Option<String>,
}

/// Streams the events after `after`. They carry their ids, so that a client that comes again with the last one that it saw
/// misses none and sees none twice.
pub(super) async fn of_events<R>(
    sources: &Sources,
    after: Option<String>,
    read: R,
    connection: &Connection,
) -> Result<Response, Refusal>
where
    R: Fn(&Sources, Option<&str>, usize) -> Result<Batch, Refusal> + Clone + Send + 'static,
{
    let history = sources.backend.history();
    let mut events = Events { sources: sources.clone(), read, history, after, next: None };
    // An id that is none is refused rather than streamed.
    events.next = Some(events.read().await?);
    Ok(response(stream::unfold(Some(events), |events| async { events?.step().await }), connection))
}

/// The log of events that is being streamed.
struct Events<R> {
    sources: Sources,
    read: R,
    history: watch::Receiver<u64>,
    after: Option<String>,
    /// What was read and not shown yet.
    next: Option<Batch>,
}

impl<R> Events<R>
where
    R: Fn(&Sources, Option<&str>, usize) -> Result<Batch, Refusal> + Clone + Send + 'static,
{
    async fn step(mut self) -> Option<(Bytes, Option<Self>)> {
        loop {
            let batch = match self.next.take() {
                Some(first) => Ok(first),
                None => self.read().await,
            };
            let Batch { events, last } = match batch {
                Ok(batch) => batch,
                Err(refusal) => return Some((frame(None, "problem", &json(refusal.problem())), None)),
            };
            let is_end = last.is_none();
            self.after = last.or(self.after);
            if !events.is_empty() {
                let frames: Vec<_> = events.iter().map(|(id, event)| frame(Some(id), "event", event)).collect();
                return Some((frames.concat().into(), Some(self)));
            }
            if is_end && tokio::time::timeout(HEARTBEAT, poll::next(&mut self.history)).await.is_err() {
                return Some((heartbeat(), Some(self)));
            }
        }
    }

    async fn read(&mut self) -> Result<Batch, Refusal> {
        // Marked as seen before the store is read: what comes in between is found again rather than missed.
        self.history.borrow_and_update();
        let (read, after) = (self.read.clone(), self.after.clone());
        self.sources.blocking(move |sources| read(sources, after.as_deref(), BATCH)).await
    }
}

fn response(frames: impl futures_util::Stream<Item = Bytes> + Send + 'static, connection: &Connection) -> Response {
    let frames = frames.map(Ok::<_, std::convert::Infallible>).take_until(connection.closing());
    let mut response = Response::new(Body::from_stream(frames));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// One event. JSON has no line breaks outside of strings, and in strings it writes them as `\n`.
fn frame(id: Option<&str>, event: &str, json: &[u8]) -> Bytes {
    let mut frame = Vec::with_capacity(json.len() + 64);
    if let Some(id) = id {
        frame.extend_from_slice(format!("id: {id}\n").as_bytes());
    }
    frame.extend_from_slice(format!("event: {event}\ndata: ").as_bytes());
    frame.extend_from_slice(json);
    frame.extend_from_slice(b"\n\n");
    frame.into()
}

fn heartbeat() -> Bytes {
    Bytes::from_static(b": still here\n\n")
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("wire types hold only what JSON can say")
}
