//! What the store remembers: the events and the revisions.

use std::sync::Arc;

use axum::body::Bytes;
use axum::response::Response;
use serde::Serialize;
use setpoint_schema::name::AppKey;
use setpoint_schema::wire;

use super::ask::{Ask, Form};
use super::cache::Made;
use super::fields::Fields;
use super::lists::{joined, made_of, part};
use super::params::{Page, Parameter};
use super::poll::{self, OfHistory};
use super::refusal::Refusal;
use super::routes::Sources;
use super::stream::{self, Batch};

pub(super) async fn revisions(sources: Sources, ask: Ask) -> Result<Response, Refusal> {
    let Page { cursor, limit } = ask.params.page()?;
    let fields = ask.fields("Revision")?.map(Arc::new);
    let read = move |sources: &Sources| {
        let revisions = sources.backend.revisions(cursor.as_deref(), limit + 1)?;
        Ok(page(&revisions, limit, fields.as_deref(), |revision| revision.commit.to_string()))
    };
    let view = OfHistory::new(&sources, &ask, read);
    poll::answer(&sources, ask, view, "revisions").await
}

pub(super) async fn events(sources: Sources, ask: Ask) -> Result<Response, Refusal> {
    let Page { cursor, limit } = ask.params.page()?;
    let fields = ask.fields("Event")?.map(Arc::new);
    let about: Option<AppKey> = ask.params.parsed(Parameter::App)?;
    match ask.form.clone() {
        Form::Document => {
            let read = move |sources: &Sources| {
                let events = events_of(sources, about.as_ref(), cursor.as_deref(), limit + 1)?;
                Ok(page(&events, limit, fields.as_deref(), |event| event.id.clone()))
            };
            let view = OfHistory::new(&sources, &ask, read);
            poll::answer(&sources, ask, view, "events").await
        }
        Form::Stream { after } => {
            ask.params.refuse_for_stream(&[Parameter::Limit, Parameter::Wait])?;
            let read = move |sources: &Sources, after: Option<&str>, limit: usize| {
                let events = sources.backend.events(after, limit)?;
                let last = events.last().map(|event| event.id.clone());
                let wanted = events.iter().filter(|event| is_about(event, about.as_ref()));
                let events = wanted.map(|event| (event.id.clone(), shown(event, fields.as_deref()))).collect();
                Ok(Batch { events, last })
            };
            stream::of_events(&sources, after.or(cursor), read, &ask.connection).await
        }
    }
}

/// At most `limit` events about an app, or about anything.
fn events_of(
    sources: &Sources,
    about: Option<&AppKey>,
    after: Option<&str>,
    limit: usize,
) -> Result<Vec<wire::Event>, Refusal> {
    let mut wanted = Vec::new();
    let mut after = after.map(str::to_owned);
    // Those of one app may be far between; the store bounds how many there are to read.
    loop {
        let events = sources.backend.events(after.as_deref(), limit)?;
        let is_end = events.len() < limit;
        after = events.last().map(|event| event.id.clone()).or(after);
        wanted.extend(events.into_iter().filter(|event| is_about(event, about)));
        if is_end || wanted.len() >= limit {
            wanted.truncate(limit);
            return Ok(wanted);
        }
    }
}

fn is_about(event: &wire::Event, about: Option<&AppKey>) -> bool {
    about.is_none() || event.app.as_ref() == about
}

/// Cuts what was read for one page and one item more; that one says whether there is a next page.
fn page<T: Serialize>(read: &[T], limit: usize, fields: Option<&Fields>, cursor: impl Fn(&T) -> String) -> Made {
    let items = &read[..read.len().min(limit)];
    let next = items.last().filter(|_| read.len() > limit).map(cursor);
    let texts: Vec<_> = items.iter().map(|item| shown(item, fields)).collect();
    Made { entity: made_of(joined(texts.iter(), next.as_deref())), items: items.len() }
}

fn shown(item: &impl Serialize, fields: Option<&Fields>) -> Bytes {
    match fields {
        Some(fields) => part(fields, item).to_string().into(),
        None => serde_json::to_vec(item).expect("wire types hold only what JSON can say").into(),
    }
}
