//! Answers for those who poll: nothing where nothing is new, at once or after a wait for something new.
//!
//! ```text
//!            client has another state, or none
//!   look ─────────────────────────────────────────▶ 200 with its tag
//!    ▲ │ client has this state
//!    │ ├── without `wait`, or at its end, or at a shutdown ──▶ 304
//!    │ ▼
//!   something changed
//! ```
//!
//! Whoever waits costs a comparison of versions per change, and nothing while there is none.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::response::Response;
use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, VARY};
use tokio::sync::watch;

use super::ask::{Ask, Form};
use super::cache::Made;
use super::entity::{self, Entity, Tag};
use super::refusal::Refusal;
use super::repeats::Basis;
use super::routes::Sources;
use super::snapshot::{Snapshot, Version};
use super::stream;

/// Something that can be looked at, and again when it may have changed.
pub(super) trait View: Send + 'static {
    /// As it is now.
    fn look(&mut self) -> impl Future<Output = Result<Entity, Refusal>> + Send;

    /// What [`Self::look`] said last rests on this.
    fn basis(&self) -> Basis;

    /// Ends once what [`Self::look`] would say may differ from what it said last.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;
}

/// Answers with what `view` shows, in the form that was asked for; `event` names it in streams.
pub(super) async fn answer(
    sources: &Sources,
    ask: Ask,
    mut view: impl View,
    event: &'static str,
) -> Result<Response, Refusal> {
    let after = match ask.form {
        Form::Document => return document(sources, ask, view).await,
        Form::Stream { after } => after,
    };
    // What is not there, or cannot be shown yet, is refused rather than streamed.
    let first = view.look().await?;
    Ok(stream::of_object(sources.instance, view, first, event, after, &ask.connection))
}

async fn document(sources: &Sources, ask: Ask, mut view: impl View) -> Result<Response, Refusal> {
    let wait = ask.params.wait()?;
    let deadline = wait.map(|wait| tokio::time::Instant::now() + wait);
    let closing = ask.connection.closing();
    tokio::pin!(closing);
    loop {
        let Entity { tag, body } = view.look().await?;
        let tag = sources.instance.write(tag);
        if !ask.known.covers(&tag) {
            return Ok(whole(&tag, body()));
        }
        let tag = entity::header(&tag);
        let Some(deadline) = deadline else {
            sources.repeats.put(ask.target(), &tag, view.basis(), ask.route);
            return Ok(nothing_new(tag));
        };
        tokio::select! {
            () = view.changed() => {}
            () = tokio::time::sleep_until(deadline) => return Ok(nothing_new(tag)),
            () = &mut closing => return Ok(nothing_new(tag)),
        }
    }
}

/// Answers with something that is made anew for every request, so that only its way to the client can be saved.
pub(super) fn fresh(sources: &Sources, ask: &Ask, bytes: Bytes) -> Response {
    let tag = sources.instance.write(Tag::of_bytes(&bytes));
    if ask.known.covers(&tag) { nothing_new(entity::header(&tag)) } else { whole(&tag, bytes) }
}

fn whole(tag: &str, bytes: Bytes) -> Response {
    let mut response = tagged(entity::header(tag), Body::from(bytes));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// 304, with a tag that the client has.
pub(super) fn nothing_new(tag: HeaderValue) -> Response {
    let mut response = tagged(tag, Body::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response
}

fn tagged(tag: HeaderValue, body: Body) -> Response {
    let mut response = Response::new(body);
    // As many as a 304 has, so that they are made room for once.
    *response.headers_mut() = HeaderMap::with_capacity(3);
    let headers = response.headers_mut();
    headers.insert(ETAG, tag);
    // To be kept, and asked about each time.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(VARY, HeaderValue::from_static("accept"));
    response
}

/// A part of the newest snapshot.
pub(super) struct OfSnapshot<F> {
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    seen: Version,
    look: F,
}

impl<F: Fn(&Snapshot) -> Result<Entity, Refusal> + Send + 'static> OfSnapshot<F> {
    pub(super) fn new(sources: &Sources, look: F) -> Self {
        Self { snapshots: sources.snapshot.clone(), seen: Version::default(), look }
    }
}

impl<F: Fn(&Snapshot) -> Result<Entity, Refusal> + Send + 'static> View for OfSnapshot<F> {
    async fn look(&mut self) -> Result<Entity, Refusal> {
        let snapshot = self.snapshots.borrow_and_update().clone().ok_or_else(Refusal::early)?;
        self.seen = snapshot.version();
        (self.look)(&snapshot)
    }

    fn basis(&self) -> Basis {
        Basis::Snapshot(self.seen)
    }

    async fn changed(&mut self) {
        next(&mut self.snapshots).await;
    }
}

/// A part of the store's history: events or revisions.
pub(super) struct OfHistory<F> {
    sources: Sources,
    ask: hyper::Uri,
    history: watch::Receiver<u64>,
    seen: u64,
    read: F,
}

impl<F: Fn(&Sources) -> Result<Made, Refusal> + Clone + Send + Sync + 'static> OfHistory<F> {
    pub(super) fn new(sources: &Sources, ask: &Ask, read: F) -> Self {
        let history = sources.backend.history();
        Self { sources: sources.clone(), ask: ask.uri.clone(), history, seen: 0, read }
    }
}

impl<F: Fn(&Sources) -> Result<Made, Refusal> + Clone + Send + Sync + 'static> View for OfHistory<F> {
    async fn look(&mut self) -> Result<Entity, Refusal> {
        // Taken before the store is read: what comes in between is read twice rather than never.
        let basis = *self.history.borrow_and_update();
        self.seen = basis;
        if let Some(kept) = self.sources.cache.get(&self.ask, basis) {
            return Ok(kept);
        }
        let read = self.read.clone();
        let made = self.sources.blocking(move |sources| read(sources)).await?;
        Ok(self.sources.cache.put(&self.ask, basis, made))
    }

    fn basis(&self) -> Basis {
        Basis::History(self.seen)
    }

    async fn changed(&mut self) {
        next(&mut self.history).await;
    }
}

/// Ends when the channel has something that was not seen. Its sender goes only in a shutdown, which ends waits by itself.
pub(super) async fn next<T>(channel: &mut watch::Receiver<T>) {
    if channel.changed().await.is_err() {
        std::future::pending().await
    }
}
