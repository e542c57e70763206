//! The status API: what the daemon knows, over HTTP, for reading only.
//!
//! The daemon publishes a [`Snapshot`] after every pass and answers the rest through [`Backend`]. Nothing here can change
//! anything, so that the API needs no credentials on the loopback interface; the guard in front of the routes keeps web
//! pages of strangers away from it.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::{Router, middleware};
use setpoint_schema::name::HostName;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

pub use backend::{Backend, BackendError, Follow, LogStream};
pub use openapi::document as description;
pub use snapshot::{Content, Row, Rows, Snapshot, Table, Version, Versioned};

use crate::http::{self, Limits, Listener};
use entity::Instance;

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
mod routes;
mod snapshot;
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
        let router = self.router();
        let handler = move |request| {
            let answer = router.clone().oneshot(request);
            async {
                let Ok(response) = answer.await;
                response
            }
        };
        http::serve(listener, handler, limits, shutdown).await;
    }

    fn router(self) -> Router {
        let Self { snapshot, backend, hosts } = self;
        let (cache, instance) = (Arc::default(), Instance::begin());
        routes::router(routes::Sources { snapshot, backend, cache, instance })
            .layer(middleware::from_fn_with_state(Arc::new(hosts), guard::guard))
    }
}
