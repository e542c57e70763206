//! The status API: what the daemon knows, over HTTP, for reading only.
//!
//! The daemon publishes a [`Snapshot`] after every pass and answers the rest through [`Backend`]. Nothing here can change
//! anything, so that the API needs no credentials on the loopback interface; the guard in front of the routes keeps web
//! pages of strangers away from it.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use axum::{Router, middleware};
use futures_util::future::Either;
use hyper::Request;
use hyper::body::Incoming;
use setpoint_schema::name::HostName;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

pub use backend::{Backend, BackendError, Follow, LogStream};
pub use openapi::document as description;
pub use snapshot::{Content, Row, Rows, Snapshot, Table, Version, Versioned};
pub use snapshots::Place;

use crate::http::{self, Connection, Limits, Listener};
use entity::Instance;
use repeats::{Newest, Repeats};

mod ask;
mod backend;
mod cache;
mod daemon;
mod entity;
mod fields;
mod guard;
mod history;
mod lists;
mod openapi;
mod params;
mod poll;
mod refusal;
mod repeats;
mod routes;
mod snapshot;
mod snapshots;
mod stream;

/// The API over what the daemon knows. Until there is a first snapshot it says that it is not ready.
pub struct Api {
    /// The newest state.
    pub snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
    /// The rest.
    pub backend: Arc<dyn Backend>,
    /// Host names to answer under, besides `localhost` and addresses.
    pub hosts: BTreeSet<HostName>,
}

impl Api {
    /// Serves until `shutdown`, then lets answers that have begun come to their end.
    pub async fn serve(self, listener: impl Into<Listener>, limits: Limits, shutdown: CancellationToken) {
        let front = Arc::new(self.front());
        let handler = move |request: Request<Incoming>, connection: &Connection| front.answer(request, connection);
        http::serve(listener, handler, limits, shutdown).await;
    }

    fn front(self) -> Front {
        let Self { snapshot, backend, hosts } = self;
        let (cache, repeats, instance) = (Arc::default(), Arc::<Repeats>::default(), Instance::begin());
        let newest = Newest { snapshot: snapshot.clone(), history: backend.history() };
        let hosts = Arc::new(hosts);
        let sources = routes::Sources { snapshot, backend: backend.clone(), cache, repeats: repeats.clone(), instance };
        let router = routes::router(sources).layer(middleware::from_fn_with_state(Arc::clone(&hosts), guard::guard));
        Front { repeats, newest, hosts, backend, router }
    }
}

/// What a request meets: the short way, then the long one.
struct Front {
    repeats: Arc<Repeats>,
    newest: Newest,
    hosts: Arc<BTreeSet<HostName>>,
    backend: Arc<dyn Backend>,
    router: Router,
}

impl Front {
    fn answer(
        &self,
        mut request: Request<Incoming>,
        connection: &Connection,
    ) -> impl Future<Output = Response> + Send + use<> {
        if let Some((response, route)) = self.repeats.answer(&request, &self.hosts, &self.newest) {
            self.backend.answered(route, response.status().as_u16());
            return Either::Left(std::future::ready(response));
        }
        request.extensions_mut().insert(connection.clone());
        let answer = self.router.clone().oneshot(request.map(Body::new));
        Either::Right(async {
            let Ok(response) = answer.await;
            response
        })
    }
}
