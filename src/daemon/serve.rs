//! Serves what the loop finds out: the status API, and the ingress to the apps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use setpoint_schema::app::DesiredApp;
use setpoint_schema::name::HostName;
use setpoint_schema::observed::GuestState;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::{Api, Backend, Snapshot};
use crate::config::{self, Config, TlsFiles};
use crate::converge::Pass;
use crate::converge::step::Hands;
use crate::daemon::DaemonError;
use crate::daemon::answers::Answers;
use crate::http::{Guard, Limits, Listener, Tls, Token, UnixSocket};
use crate::ingress::{self, Routes, Upstream};
use crate::ledger::Ledger;
use crate::status::{self, Identity, Report, Reporter};

/// How many events are looked through for how things were before this daemon: all that the store keeps.
const EARLIER: usize = 10_000;

/// The bound addresses, and all that is served on them.
pub(super) struct Servers {
    api: Vec<Listener>,
    api_address: SocketAddr,
    hosts: BTreeSet<HostName>,
    ingress: (TcpListener, SocketAddr),
    identity: Identity,
    hands: Hands,
    passes: watch::Receiver<Option<Arc<Pass>>>,
}

impl Servers {
    /// Binds both addresses, so that a taken one is an error at once.
    pub async fn bind(
        config: &Config,
        hands: &Hands,
        passes: watch::Receiver<Option<Arc<Pass>>>,
        tokens: watch::Receiver<Arc<[Token]>>,
    ) -> Result<Self, DaemonError> {
        let (api, api_address) = api_listeners(&config.api, tokens).await?;
        let ingress = listen(config.ingress.listen, "the ingress").await?;
        let identity = Identity {
            started_at: Timestamp::now(),
            source_url: config.source.url.clone().unwrap_or_default(),
            branch: config.source.branch.clone().unwrap_or_else(|| "HEAD".to_owned()),
            driver: hands.driver.describe(),
            domain: config.ingress.domain.clone(),
            ingress_port: ingress.1.port(),
        };
        let hosts = config.api.hosts.clone();
        Ok(Self { api, api_address, hosts, ingress, identity, hands: hands.clone(), passes })
    }

    /// Where the API is.
    pub fn api_address(&self) -> SocketAddr {
        self.api_address
    }

    /// Where the apps are.
    pub fn ingress_address(&self) -> SocketAddr {
        self.ingress.1
    }

    /// Serves until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { api, api_address: _, hosts, ingress: (ingress_listener, _), identity, hands, passes } = self;
        let answers = Arc::new(Answers::new(&hands, passes.clone()));
        let domain = identity.domain.clone();
        // Without them, conditions begin anew; whether the store can be read at all shows elsewhere.
        let earlier = hands.ledger.with(|store| store.latest_events(EARLIER)).await.unwrap_or_default();
        let reporter = Reporter::new(identity, &earlier);
        let snapshots = watch::Sender::new(None);
        let routes = watch::Sender::new(Arc::new(Routes::default()));
        let backend: Arc<dyn Backend> = answers.clone();
        let api = join_all(api.into_iter().map(|listener| {
            let api = Api { snapshot: snapshots.subscribe(), backend: Arc::clone(&backend), hosts: hosts.clone() };
            api.serve(listener, Limits::default(), shutdown.clone())
        }));
        let ingress = ingress::serve(ingress_listener, routes.subscribe(), answers, shutdown.clone());
        let publisher = Publisher { reporter, domain, snapshots, routes, ledger: hands.ledger };
        tokio::join!(api, ingress, publisher.run(passes, shutdown));
    }
}

/// Turns each pass into a snapshot, routes and events.
struct Publisher {
    reporter: Reporter,
    domain: HostName,
    snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    routes: watch::Sender<Arc<Routes>>,
    ledger: Ledger,
}

impl Publisher {
    async fn run(mut self, mut passes: watch::Receiver<Option<Arc<Pass>>>, shutdown: CancellationToken) {
        let mut until = None;
        loop {
            // Either way the newest pass is told; a pass that time alone changes the report of is told again.
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = passes.changed() => if changed.is_err() { return },
                () = sleep_until(until) => {}
            }
            let pass = passes.borrow_and_update().clone();
            if let Some(pass) = pass {
                until = self.publish(&pass).await;
            }
        }
    }

    async fn publish(&mut self, pass: &Pass) -> Option<Timestamp> {
        let routes = Arc::new(routes_of(pass, &self.domain));
        let now = pass.at.max(Timestamp::now());
        let Report { snapshot, events, until } = self.reporter.report(pass, &routes, now);
        self.routes.send_replace(routes);
        self.snapshots.send_if_modified(|current| {
            let says_more = current.as_ref().is_none_or(|current| !current.says_as_much_as(&snapshot));
            *current = Some(snapshot);
            // Who waits for news is not woken for none.
            says_more
        });
        if !events.is_empty()
            && let Err(error) = self.ledger.note(events, |_| Vec::new()).await
        {
            tracing::error!(error = %crate::report::chain(&error), "events could not be recorded");
        }
        until
    }
}

async fn sleep_until(at: Option<Timestamp>) {
    match at {
        // The report asks whether the time is over, so it is made just after it.
        Some(at) => {
            let left = Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default();
            tokio::time::sleep(left + Duration::from_millis(1)).await;
        }
        None => std::future::pending().await,
    }
}

/// Where each app can be reached, if it answers. One that is not declared any more is served for as long as it is kept: what
/// keeps it may be an error in the declarations, which must not take it away.
fn routes_of(pass: &Pass, domain: &HostName) -> Routes {
    let naming = status::naming(pass, domain);
    let sandboxes: BTreeMap<_, _> =
        pass.observed.sandboxes.values().map(|sandbox| (&sandbox.record.app, sandbox)).collect();
    let upstream = |app: &DesiredApp| match sandboxes.get(&app.metadata.key) {
        None => Upstream::NotReady("there is no microVM yet".to_owned()),
        Some(sandbox) => match &sandbox.guest {
            GuestState::Answering(guest) => match guest.unserved_for(&app.spec) {
                None => Upstream::Ready(sandbox.record.id.clone()),
                Some(reason) => Upstream::NotReady(reason),
            },
            GuestState::Connecting { .. } => Upstream::NotReady("the microVM is booting".to_owned()),
            GuestState::Silent { since } => Upstream::NotReady(format!("the guest has been silent since {since:.0}")),
            GuestState::Absent => Upstream::NotReady("the microVM is not running".to_owned()),
        },
    };
    let declared = &pass.followed.desired.apps;
    let kept = sandboxes.keys().filter(|key| !declared.contains_key(*key));
    let kept = kept.filter_map(|key| Some(&pass.observed.apps.get(*key)?.last_good.app));
    ingress::routes(declared.values().chain(kept).map(|app| (&**app, upstream(app))), &naming)
}

/// Paths of the status API that need no token: who checks whether the process is alive has no business with the rest.
const OPEN_PATHS: &[&str] = &["/healthz"];

/// The address of the status API, and its Unix socket where one is configured. Tokens are for the address: who may open the
/// socket's file is known to this host already.
async fn api_listeners(
    config: &config::Api,
    tokens: watch::Receiver<Arc<[Token]>>,
) -> Result<(Vec<Listener>, SocketAddr), DaemonError> {
    let tls = config.tls.as_ref().map(|TlsFiles { cert, key }| Tls::load(cert, key)).transpose()?;
    let (tcp, address) = listen(config.listen, "the status API").await?;
    let tcp = match tls {
        Some(tls) => Listener::tls(tcp, tls),
        None => Listener::from(tcp),
    };
    let unix = config.socket.as_deref().map(UnixSocket::bind).transpose()?;
    let listeners = [tcp.guarded(Guard::new(tokens, OPEN_PATHS))].into_iter().chain(unix.map(Listener::from));
    Ok((listeners.collect(), address))
}

async fn listen(address: SocketAddr, what: &'static str) -> Result<(TcpListener, SocketAddr), DaemonError> {
    let failed = |source| DaemonError::Listen { address, what, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}
