//! The ingress: makes what listens inside microVMs reachable under host names.
//!
//! A request is routed by the host that it names to a port on the guest's localhost, over a stream that a [`Connector`]
//! opens through the guest's agent; the guest needs no network for it. The daemon publishes new [`Routes`] after every pass.
//!
//! ```text
//! client ──HTTP/1.1──▶ Target ──▶ Routes ──▶ Connector ──▶ exchange ──▶ guest
//!                        │400      │404/503     │502/504      │502/504
//!                        └─────────┴────── Refusal: a page or a problem document
//! ```

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::{Method, Request, Response};
use setpoint_schema::id::SandboxId;
use setpoint_schema::name::AppKey;
use setpoint_schema::power::{WakeOn, WakeSpec};
use setpoint_vmm::driver::{Duplex, VmmError};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use routes::{Naming, Route, Routes, Unrouted, Upstream, routes, same_hosts};

use crate::http::target::Target;
use crate::http::{self, Connection, Limits, Listener};
use crate::idle::{Use, Uses};
use crate::report::chain;
use refusal::{Audience, Refusal};
use waking::{Turn, Waking};

mod body;
mod exchange;
mod headers;
mod refusal;
mod routes;
mod waking;

/// What clients of apps may take up. A proxy in front of the ingress is one peer, people pause what they stream, and a guest
/// may leave its answer open for as long as somebody listens.
pub const LIMITS: Limits =
    Limits { connections: 4096, per_peer: 2048, stall: Duration::from_secs(300), ..Limits::USUAL };

/// Opens streams into guests. The daemon implements it over its drivers.
#[async_trait]
pub trait Connector: Send + Sync + 'static {
    /// Connects to `port` on the localhost of the guest of `sandbox`.
    async fn open(&self, sandbox: &SandboxId, port: u16) -> Result<Pin<Box<dyn Duplex>>, ConnectError>;

    /// Lets an app that rests run again. Its route shows when it does.
    async fn wake(&self, app: &AppKey);
}

/// Why a guest could not be connected to, in words that are fit for strangers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConnectError(pub String);

impl From<VmmError> for ConnectError {
    /// Passes on what concerns the guest; the host's paths and processes are for the log alone.
    fn from(error: VmmError) -> Self {
        match error {
            VmmError::Guest { problem, .. } => Self(problem),
            VmmError::Io { .. } | VmmError::Vmm { .. } | VmmError::Memory { .. } | VmmError::Unsupported { .. } => {
                tracing::warn!(error = chain(&error), "could not connect into a guest");
                Self("its microVM cannot be connected to".to_owned())
            }
        }
    }
}

/// How long a guest, and the client of one, may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// To take a connection.
    pub connect: Duration,
    /// To begin its answer, after the last of the request has been passed on.
    pub response_head: Duration,
    /// For the client, while the guest is ready to take more of a body: to send some of it.
    pub upload: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            response_head: Duration::from_secs(60),
            upload: Duration::from_secs(60),
        }
    }
}

/// For this long at least after a request has woken an app, others are said that it is on its way.
const RISE: Duration = Duration::from_secs(10);

/// Where a request goes, and that the app is used meanwhile.
struct Found {
    app: AppKey,
    port: u16,
    sandbox: SandboxId,
    using: Use,
}

/// Serves the ingress until `shutdown`, then lets answers that have begun come to their end; upgraded streams end at once.
pub async fn serve(
    listener: impl Into<Listener>,
    routes: watch::Receiver<Arc<Routes>>,
    connector: Arc<dyn Connector>,
    shutdown: CancellationToken,
) {
    Ingress::new(routes, connector, Patience::default()).serve(listener, LIMITS, shutdown).await;
}

/// The ingress with its bounds to choose. [`serve`] takes the usual ones.
#[derive(Clone)]
pub struct Ingress {
    routes: watch::Receiver<Arc<Routes>>,
    connector: Arc<dyn Connector>,
    patience: Patience,
    waking: Waking,
    uses: Uses,
}

impl Ingress {
    /// Serves the newest of `routes`.
    #[must_use]
    pub fn new(routes: watch::Receiver<Arc<Routes>>, connector: Arc<dyn Connector>, patience: Patience) -> Self {
        Self { routes, connector, patience, waking: Waking::default(), uses: Uses::default() }
    }

    /// Says here who uses which app.
    #[must_use]
    pub fn counted_by(self, uses: Uses) -> Self {
        Self { uses, ..self }
    }

    /// As [`serve`].
    pub async fn serve(self, listener: impl Into<Listener>, limits: Limits, shutdown: CancellationToken) {
        let handler = move |request: Request<Incoming>, connection: &Connection| {
            let (ingress, connection) = (self.clone(), connection.clone());
            async move { ingress.answer(request, &connection).await }
        };
        http::serve(listener, handler, limits, shutdown).await;
    }

    async fn answer(&self, request: Request<Incoming>, connection: &Connection) -> Response<Body> {
        let audience = Audience::of(request.headers());
        match self.forward(request, connection).await {
            Ok(response) => response,
            Err(refusal) => refusal.into_response(audience),
        }
    }

    async fn forward(&self, request: Request<Incoming>, connection: &Connection) -> Result<Response<Body>, Refusal> {
        if *request.method() == Method::CONNECT {
            return Err(Refusal::Connect);
        }
        headers::check_framing(request.headers())?;
        let target = Target::of(&request)?;
        let Found { app, port, sandbox, using } = self.find(&target.name).await?;
        let stream = self.open(&app, &sandbox, port).await?;
        exchange::exchange(stream, request, &target, connection, self.patience, using)
            .await
            .map_err(|error| Refusal::Guest { app, error })
    }

    /// The guest that a request is for; one that rests is woken and waited for.
    async fn find(&self, host: &str) -> Result<Found, Refusal> {
        let Route { app, wake, .. } = self.route(host)?;
        // In this order: what the routes say once an app is being used holds for as long as it is.
        let using = self.uses.begin(&app);
        let Route { port, upstream, .. } = self.route(host)?;
        match (upstream, using) {
            (Upstream::Ready(sandbox), Some(using)) => Ok(Found { app, port, sandbox, using }),
            (Upstream::NotReady(_), _) if self.waking.is_expected(&app) => self.awake(host, app, &wake).await,
            (Upstream::NotReady(reason), _) => Err(Refusal::NotReady { app, reason }),
            // One that is just being put to rest counts as asleep already.
            (Upstream::Asleep | Upstream::Ready(_), _) => match wake.on {
                WakeOn::Manual => Err(Refusal::Asleep { app }),
                WakeOn::Request => {
                    self.wake(&app, &wake);
                    self.awake(host, app, &wake).await
                }
            },
        }
    }

    fn route(&self, host: &str) -> Result<Route, Refusal> {
        self.routes.borrow().get(host).ok_or(Refusal::UnknownHost)
    }

    fn wake(&self, app: &AppKey, wake: &WakeSpec) {
        if self.waking.begin(app, wake.hold.as_duration().max(RISE)) == Turn::First {
            let (connector, app) = (Arc::clone(&self.connector), app.clone());
            // On its own: whoever came first may leave, and others wait by then.
            tokio::spawn(async move { connector.wake(&app).await });
        }
    }

    /// Waits for an app that is on its way up.
    async fn awake(&self, host: &str, app: AppKey, wake: &WakeSpec) -> Result<Found, Refusal> {
        let (mut routes, mut turns) = (self.routes.clone(), self.uses.turns());
        let ready = async {
            loop {
                turns.mark_unchanged();
                let using = self.uses.begin(&app);
                let route = routes.borrow_and_update().get(host).ok_or(Refusal::UnknownHost)?;
                if let (Upstream::Ready(sandbox), Some(using)) = (route.upstream, using) {
                    return Ok(Found { app: app.clone(), port: route.port, sandbox, using });
                }
                // Whoever publishes routes is gone only when everything ends.
                tokio::select! {
                    changed = routes.changed() => changed.map_err(|_| Refusal::UnknownHost)?,
                    Ok(()) = turns.changed() => {}
                }
            }
        };
        match timeout(wake.hold.as_duration(), ready).await {
            Ok(found) => {
                self.waking.end(&app);
                found
            }
            Err(_) => Err(Refusal::Waking { app }),
        }
    }

    async fn open(&self, app: &AppKey, sandbox: &SandboxId, port: u16) -> Result<Pin<Box<dyn Duplex>>, Refusal> {
        match timeout(self.patience.connect, self.connector.open(sandbox, port)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(Refusal::Unreachable { app: app.clone(), error }),
            Err(_) => Err(Refusal::ConnectTimeout { app: app.clone() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_paths_are_not_for_strangers() {
        let error = VmmError::Io {
            operation: "connect",
            path: "/var/lib/setpoint/vms/x/agent.sock".into(),
            source: std::io::ErrorKind::NotFound.into(),
        };
        assert!(!ConnectError::from(error).to_string().contains('/'));
    }
}
