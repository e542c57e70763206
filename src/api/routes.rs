//! The one table of routes: what is served, what it is called with and what it answers.
//!
//! The router and the API's description are both made from it, so that there is no route without a description.

use std::sync::Arc;

use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{Extension, RawPathParams, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, http::HeaderMap};
use futures_util::future::BoxFuture;
use hyper::Uri;
use setpoint_schema::wire;
use tokio::sync::watch;

use super::ask::Ask;
use super::backend::{Backend, BackendError};
use super::cache::Cache;
use super::entity::Instance;
use super::openapi::Shape;
use super::params::Parameter::{self, App, Cursor, Fields, Follow, Label, Limit, Phase, Rev, Tail, Team, Wait};
use super::refusal::Refusal;
use super::repeats::Repeats;
use super::snapshot::Snapshot;
use super::{daemon, history, lists, snapshots};
use crate::http::Connection;

/// What the routes read.
#[derive(Clone)]
pub(super) struct Sources {
    pub(super) snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) cache: Arc<Cache>,
    pub(super) repeats: Arc<Repeats>,
    pub(super) instance: Instance,
}

/// One route. All of them answer GET and HEAD alone.
pub(super) struct Route {
    /// As axum and OpenAPI both write it: `{name}` stands for one segment.
    pub(super) path: &'static str,
    /// What it answers, in a sentence.
    pub(super) summary: &'static str,
    /// What may stand behind `?`.
    pub(super) parameters: &'static [Parameter],
    /// The form of a good answer.
    pub(super) answer: Answer,
    /// Answers.
    handler: Handler,
}

type Handler = fn(Sources, Ask) -> BoxFuture<'static, Result<Response, Refusal>>;

/// The forms of good answers.
pub(super) enum Answer {
    /// A line of text, made anew for each request.
    Text,
    /// Counts for Prometheus, as OpenMetrics text.
    Metrics,
    /// A log: text that may go on for as long as the client stays.
    Log,
    /// A document with a tag.
    Document(Shape),
    /// A document with a tag; or, for who accepts `text/event-stream`, an event for each change, its data in this shape.
    DocumentOrStream {
        /// The document.
        document: Shape,
        /// The name and the data of a stream's events.
        event: (&'static str, Shape),
    },
}

impl Route {
    /// Whether the route has a stream to offer.
    pub(super) fn streams(&self) -> bool {
        matches!(self.answer, Answer::DocumentOrStream { .. })
    }
}

/// Every route there is.
pub(super) const ROUTES: &[Route] = &[
    Route {
        path: "/healthz",
        summary: "Whether the daemon runs and its event loop turns.",
        parameters: &[],
        answer: Answer::Text,
        handler: |sources, ask| Box::pin(daemon::healthz(sources, ask)),
    },
    Route {
        path: "/readyz",
        summary: "Whether one pass has been finished, so that what the other routes say has been observed; and when the last one was.",
        parameters: &[],
        answer: Answer::Text,
        handler: |sources, ask| Box::pin(daemon::readyz(sources, ask)),
    },
    Route {
        path: "/metrics",
        summary: "What the daemon counts about itself, for Prometheus.",
        parameters: &[],
        answer: Answer::Metrics,
        handler: |sources, ask| Box::pin(daemon::metrics(sources, ask)),
    },
    Route {
        path: "/v1/settings",
        summary: "The configuration in force, without secrets: each value, where it comes from, and whether a reload takes it up.",
        parameters: &[],
        answer: Answer::Document(Shape::of::<wire::Settings>()),
        handler: |sources, ask| Box::pin(daemon::settings(sources, ask)),
    },
    Route {
        path: "/v1/openapi.json",
        summary: "This description of the API.",
        parameters: &[],
        answer: Answer::Document(Shape::Anything("An OpenAPI 3.1 document.")),
        handler: |sources, ask| Box::pin(daemon::description(sources, ask)),
    },
    Route {
        path: "/v1/status",
        summary: "The daemon: its source, its counts and its limits.",
        parameters: &[Fields, Wait],
        answer: Answer::DocumentOrStream {
            document: Shape::of::<wire::Status>(),
            event: ("status", Shape::of::<wire::Status>()),
        },
        handler: |sources, ask| Box::pin(lists::status(sources, ask)),
    },
    Route {
        path: "/v1/apps",
        summary: "The apps, by team and name.",
        parameters: &[Team, Phase, Label, Fields, Limit, Cursor, Wait],
        answer: Answer::Document(Shape::of::<wire::List<wire::App>>()),
        handler: |sources, ask| Box::pin(lists::apps(sources, ask)),
    },
    Route {
        path: "/v1/apps/{team}/{name}",
        summary: "One app.",
        parameters: &[Fields, Wait],
        answer: Answer::DocumentOrStream {
            document: Shape::of::<wire::App>(),
            event: ("app", Shape::of::<wire::App>()),
        },
        handler: |sources, ask| Box::pin(lists::app(sources, ask)),
    },
    Route {
        path: "/v1/apps/{team}/{name}/processes/{process}/logs",
        summary: "The log of one process: `web`, `build` or a worker.",
        parameters: &[Tail, Follow],
        answer: Answer::Log,
        handler: |sources, ask| Box::pin(daemon::logs(sources, ask)),
    },
    Route {
        path: "/v1/sandboxes",
        summary: "The microVMs, by id.",
        parameters: &[App, Fields, Limit, Cursor, Wait],
        answer: Answer::Document(Shape::of::<wire::List<wire::Sandbox>>()),
        handler: |sources, ask| Box::pin(lists::sandboxes(sources, ask)),
    },
    Route {
        path: "/v1/snapshots",
        summary: "The snapshots, by team and name; of each name the newest generation first.",
        parameters: &[Team, App, Fields, Limit, Cursor, Wait],
        answer: Answer::Document(Shape::of::<wire::List<wire::Snapshot>>()),
        handler: |sources, ask| Box::pin(snapshots::list(sources, ask)),
    },
    Route {
        path: "/v1/snapshots/{team}/{name}",
        summary: "The newest generation of one snapshot.",
        parameters: &[Fields, Wait],
        answer: Answer::DocumentOrStream {
            document: Shape::of::<wire::Snapshot>(),
            event: ("snapshot", Shape::of::<wire::Snapshot>()),
        },
        handler: |sources, ask| Box::pin(snapshots::newest(sources, ask)),
    },
    Route {
        path: "/v1/templates",
        summary: "The templates that apps start from, by name.",
        parameters: &[Fields, Limit, Cursor, Wait],
        answer: Answer::Document(Shape::of::<wire::List<wire::Template>>()),
        handler: |sources, ask| Box::pin(lists::templates(sources, ask)),
    },
    Route {
        path: "/v1/revisions",
        summary: "The revisions that were tried, newest first.",
        parameters: &[Fields, Limit, Cursor, Wait],
        answer: Answer::Document(Shape::of::<wire::List<wire::Revision>>()),
        handler: |sources, ask| Box::pin(history::revisions(sources, ask)),
    },
    Route {
        path: "/v1/events",
        summary: "What happened, oldest first. A stream begins after `Last-Event-ID`, or else after `cursor`, and does not end.",
        parameters: &[App, Fields, Limit, Cursor, Wait],
        answer: Answer::DocumentOrStream {
            document: Shape::of::<wire::List<wire::Event>>(),
            event: ("event", Shape::of::<wire::Event>()),
        },
        handler: |sources, ask| Box::pin(history::events(sources, ask)),
    },
    Route {
        path: "/v1/plan",
        summary: "The plan for a revision, or for the branch's tip, against what is observed now. Asking changes nothing.",
        parameters: &[Rev],
        answer: Answer::Document(Shape::Anything("A plan, as `setpoint reconcile --dry-run -o json` prints it.")),
        handler: |sources, ask| Box::pin(daemon::plan(sources, ask)),
    },
    Route {
        path: "/v1/observed",
        summary: "What the planner knows of the world, for dry runs beside this daemon. Its shape is its own version's affair.",
        parameters: &[],
        answer: Answer::Document(Shape::Anything("What is observed, in a form that changes from version to version.")),
        handler: |sources, ask| Box::pin(daemon::observed(sources, ask)),
    },
];

/// The router of all routes. Methods other than GET and HEAD never come here.
pub(super) fn router(sources: Sources) -> Router {
    let mut router = Router::new();
    for route in ROUTES {
        let answer = async move |State(sources): State<Sources>,
                                 names: Result<RawPathParams, RawPathParamsRejection>,
                                 Extension(connection): Extension<Connection>,
                                 uri: Uri,
                                 headers: HeaderMap| {
            let backend = Arc::clone(&sources.backend);
            let answer = async move {
                let names = names.map_err(|rejection| Refusal::bad_request(rejection.body_text()))?;
                let ask = Ask::of(route, &names, uri, &headers, connection)?;
                (route.handler)(sources, ask).await
            };
            let response = answer.await.into_response();
            backend.answered(route.path, response.status().as_u16());
            response
        };
        router = router.route(route.path, get(answer));
    }
    router.fallback(async || Refusal::not_found("there is nothing under this path").into_response()).with_state(sources)
}

impl Sources {
    /// The newest snapshot.
    pub(super) fn now(&self) -> Result<Arc<Snapshot>, Refusal> {
        self.snapshot.borrow().clone().ok_or_else(Refusal::early)
    }

    /// Asks the daemon away from the event loop, because it may read from disk.
    pub(super) async fn blocking<T, F>(&self, ask: F) -> Result<T, Refusal>
    where
        T: Send + 'static,
        F: FnOnce(&Sources) -> Result<T, Refusal> + Send + 'static,
    {
        let sources = self.clone();
        let asked = tokio::task::spawn_blocking(move || ask(&sources)).await;
        asked.unwrap_or_else(|panic| {
            Err(BackendError::Failed { operation: "ask the store", source: panic.into() }.into())
        })
    }
}
