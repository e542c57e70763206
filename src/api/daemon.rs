//! What only the running daemon can say: whether it is well, its plans, and the logs of its guests.

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;
use hyper::header;

use super::ask::Ask;
use super::openapi;
use super::poll;
use super::refusal::Refusal;
use super::routes::Sources;
use crate::metrics::CONTENT_TYPE;

/// The process runs and its event loop turns.
pub(super) async fn healthz(_: Sources, _: Ask) -> Result<Response, Refusal> {
    Ok("ok\n".into_response())
}

/// One pass has been finished, so that what the other routes say has been observed.
pub(super) async fn readyz(sources: Sources, _: Ask) -> Result<Response, Refusal> {
    let snapshot = sources.now()?;
    Ok(format!("ready, last pass at {:.0}\n", snapshot.at).into_response())
}

pub(super) async fn description(sources: Sources, ask: Ask) -> Result<Response, Refusal> {
    Ok(poll::fresh(&sources, &ask, openapi::bytes()))
}

pub(super) async fn plan(sources: Sources, ask: Ask) -> Result<Response, Refusal> {
    let plan = sources.backend.plan(ask.params.rev()?).await?;
    Ok(poll::fresh(&sources, &ask, Bytes::from(plan.to_string())))
}

pub(super) async fn settings(sources: Sources, ask: Ask) -> Result<Response, Refusal> {
    let settings = serde_json::to_vec(&sources.backend.settings()?).expect("settings have text keys");
    Ok(poll::fresh(&sources, &ask, Bytes::from(settings)))
}

pub(super) async fn metrics(sources: Sources, _: Ask) -> Result<Response, Refusal> {
    let text = sources.blocking(|sources| Ok(sources.backend.metrics())).await?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}

/// What the planner knows of the world.
pub(super) async fn observed(sources: Sources, ask: Ask) -> Result<Response, Refusal> {
    let observed = sources.backend.observed()?;
    Ok(poll::fresh(&sources, &ask, Bytes::from(observed.to_string())))
}

pub(super) async fn logs(sources: Sources, ask: Ask) -> Result<Response, Refusal> {
    let (tail, follow) = (ask.params.tail()?, ask.params.follow()?);
    let (key, process) = (ask.app()?, ask.process()?);
    if sources.now()?.apps.get(&key).is_none() {
        return Err(Refusal::no_app(&key));
    }
    let lines = sources.backend.logs(&key, process.as_str(), tail, follow).await?;
    let body = Body::from_stream(lines.take_until(ask.connection.closing()));
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response())
}
