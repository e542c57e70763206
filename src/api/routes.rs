//! The routes of the status API.

use std::ops::Bound;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::StreamExt as _;
use hyper::{StatusCode, Uri, header};
use setpoint_schema::id::SandboxId;
use setpoint_schema::name::{AppKey, AppName, Team, TemplateName, WorkerName};
use setpoint_schema::wire::{self, List};
use tokio::sync::watch;

use super::backend::{Backend, BackendError};
use super::params::{Page, Params};
use super::refusal::Refusal;
use super::snapshot::{Snapshot, Table};
use crate::http::Connection;

/// What the routes read.
#[derive(Clone)]
pub(super) struct Sources {
    pub(super) snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
    pub(super) backend: Arc<dyn Backend>,
}

impl Sources {
    fn now(&self) -> Result<Arc<Snapshot>, Refusal> {
        let early = || Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the first pass has not finished yet");
        self.snapshot.borrow().clone().ok_or_else(early)
    }
}

type Answer<T> = Result<Json<T>, Refusal>;

/// Every route. Methods other than GET and HEAD never come here.
pub(super) fn router(sources: Sources) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/v1/status", get(status))
        .route("/v1/apps", get(apps))
        .route("/v1/apps/{team}/{name}", get(app))
        .route("/v1/apps/{team}/{name}/processes/{process}/logs", get(logs))
        .route("/v1/sandboxes", get(sandboxes))
        .route("/v1/templates", get(templates))
        .route("/v1/revisions", get(revisions))
        .route("/v1/events", get(events))
        .route("/v1/plan", get(plan))
        .route("/v1/observed", get(observed))
        .fallback(async || Refusal::not_found("there is nothing under this path"))
        .with_state(sources)
}

/// The process runs and its event loop turns.
async fn healthz() -> &'static str {
    "ok\n"
}

/// One pass has been finished, so that what the other routes say has been observed.
async fn readyz(State(sources): State<Sources>) -> Result<&'static str, Refusal> {
    sources.now()?;
    Ok("ready\n")
}

async fn status(State(sources): State<Sources>, uri: Uri) -> Answer<wire::Status> {
    Params::of(&uri)?.finish()?;
    Ok(Json(sources.now()?.status.value().clone()))
}

async fn apps(State(sources): State<Sources>, uri: Uri) -> Answer<List<wire::App>> {
    let page = only_page(&uri)?;
    let after = page.cursor.as_deref().map(str::parse::<AppKey>).transpose();
    let after = after.map_err(|_| Refusal::parameter("cursor", "`cursor` must be the `next` of an earlier page"))?;
    Ok(Json(page_of(&sources.now()?.apps, after.as_ref(), page.limit)))
}

async fn app(
    State(sources): State<Sources>,
    path: Result<Path<(String, String)>, PathRejection>,
    uri: Uri,
) -> Answer<wire::App> {
    let Path((team, name)) = path?;
    Params::of(&uri)?.finish()?;
    let key = app_key(team, name)?;
    sources.now()?.apps.get(&key).map(|row| Json(row.value().clone())).ok_or_else(|| no_such_app(&key))
}

async fn logs(
    State(sources): State<Sources>,
    path: Result<Path<(String, String, String)>, PathRejection>,
    Extension(connection): Extension<Connection>,
    uri: Uri,
) -> Result<Response, Refusal> {
    let Path((team, name, process)) = path?;
    let mut params = Params::of(&uri)?;
    let (tail, follow) = (params.tail()?, params.follow()?);
    params.finish()?;
    let key = app_key(team, name)?;
    if sources.now()?.apps.get(&key).is_none() {
        return Err(no_such_app(&key));
    }
    // The spelling of a worker's name is that of `web` and `build` too.
    let process = WorkerName::new(process).map_err(|error| Refusal::not_found(format!("a process name {error}")))?;
    let lines = sources.backend.logs(&key, process.as_str(), tail, follow).await?;
    let body = Body::from_stream(lines.take_until(connection.closing()));
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response())
}

async fn sandboxes(State(sources): State<Sources>, uri: Uri) -> Answer<List<wire::Sandbox>> {
    let page = only_page(&uri)?;
    Ok(Json(page_of(&sources.now()?.sandboxes, page.cursor.map(SandboxId).as_ref(), page.limit)))
}

async fn templates(State(sources): State<Sources>, uri: Uri) -> Answer<List<wire::Template>> {
    let page = only_page(&uri)?;
    let after = page.cursor.map(TemplateName::new).transpose();
    let after = after.map_err(|_| Refusal::parameter("cursor", "`cursor` must be the `next` of an earlier page"))?;
    Ok(Json(page_of(&sources.now()?.templates, after.as_ref(), page.limit)))
}

async fn revisions(State(sources): State<Sources>, uri: Uri) -> Answer<List<wire::Revision>> {
    let page = only_page(&uri)?;
    let limit = page.limit;
    let items = blocking(sources, move |backend| backend.revisions(page.cursor.as_deref(), limit + 1)).await?;
    Ok(Json(cut(items, limit, |revision| revision.commit.to_string())))
}

async fn events(State(sources): State<Sources>, uri: Uri) -> Answer<List<wire::Event>> {
    let page = only_page(&uri)?;
    let limit = page.limit;
    let items = blocking(sources, move |backend| backend.events(page.cursor.as_deref(), limit + 1)).await?;
    Ok(Json(cut(items, limit, |event| event.id.clone())))
}

/// What the planner knows of the world.
async fn observed(State(sources): State<Sources>, uri: Uri) -> Answer<serde_json::Value> {
    Params::of(&uri)?.finish()?;
    Ok(Json(sources.backend.observed()?))
}

async fn plan(State(sources): State<Sources>, uri: Uri) -> Answer<serde_json::Value> {
    let mut params = Params::of(&uri)?;
    let rev = params.rev()?;
    params.finish()?;
    Ok(Json(sources.backend.plan(rev.as_deref()).await?))
}

fn only_page(uri: &Uri) -> Result<Page, Refusal> {
    let mut params = Params::of(uri)?;
    let page = params.page()?;
    params.finish()?;
    Ok(page)
}

/// The page after the key `after`, which need not exist any more.
fn page_of<K: Ord + ToString, V: Clone + PartialEq>(all: &Table<K, V>, after: Option<&K>, limit: usize) -> List<V> {
    let start = after.map_or(Bound::Unbounded, Bound::Excluded);
    let page: Vec<_> = all.range(start).iter().take(limit + 1).collect();
    let page = cut(page, limit, |row| row.key().to_string());
    List { items: page.items.into_iter().map(|row| row.value().clone()).collect(), next: page.next }
}

/// Cuts what was read for one page and one item more; that one says whether there is a next page.
fn cut<T>(mut items: Vec<T>, limit: usize, cursor: impl Fn(&T) -> String) -> List<T> {
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(cursor);
    List { items, next }
}

/// Asks the store away from the event loop, because it may read from disk.
async fn blocking<T, F>(sources: Sources, ask: F) -> Result<T, Refusal>
where
    T: Send + 'static,
    F: FnOnce(&dyn Backend) -> Result<T, BackendError> + Send + 'static,
{
    let asked = tokio::task::spawn_blocking(move || ask(&*sources.backend)).await;
    let asked =
        asked.unwrap_or_else(|panic| Err(BackendError::Failed { operation: "ask the store", source: panic.into() }));
    Ok(asked?)
}

fn app_key(team: String, name: String) -> Result<AppKey, Refusal> {
    let team = Team::new(team).map_err(|error| Refusal::not_found(format!("a team's name {error}")))?;
    let name = AppName::new(name).map_err(|error| Refusal::not_found(format!("an app's name {error}")))?;
    Ok(AppKey::new(team, name))
}

fn no_such_app(key: &AppKey) -> Refusal {
    Refusal::not_found(format!("there is no app {key}"))
}
