//! Serves what the loop finds out: the status API, and the ingress to the apps.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::{Api, Backend};
use crate::config::{self, Config, TlsFiles};
use crate::converge::Pass;
use crate::converge::step::Hands;
use crate::daemon::DaemonError;
use crate::daemon::answers::Answers;
use crate::daemon::publish::Publisher;
use crate::http::{Accepted, Guard, Limits, Listener, Tls, Token, UnixSocket};
use crate::ingress::{self, Ingress, Patience, Routes};
use crate::status::Identity;

/// How many events are looked through for how things were before this daemon: all that the store keeps.
const EARLIER: usize = 10_000;

/// The bound addresses, and all that is served on them.
pub(super) struct Servers {
    api: Vec<Listener>,
    api_address: SocketAddr,
    config: watch::Receiver<Arc<Config>>,
    ingress: (TcpListener, SocketAddr),
    identity: Identity,
    hands: Hands,
    passes: watch::Receiver<Option<Arc<Pass>>>,
}

impl Servers {
    /// Binds both addresses, so that a taken one is an error at once.
    pub async fn bind(
        in_force: watch::Receiver<Arc<Config>>,
        hands: &Hands,
        passes: watch::Receiver<Option<Arc<Pass>>>,
    ) -> Result<Self, DaemonError> {
        let config = Arc::clone(&in_force.borrow());
        let (api, api_address) = api_listeners(&config.api, Configured(in_force.clone())).await?;
        let api = api.into_iter().map(|listener| listener.counted(hands.metrics.api_traffic())).collect();
        let ingress = listen(config.ingress.listen, "the ingress").await?;
        let identity = Identity {
            started_at: Timestamp::now(),
            source_url: config.source.url.clone().unwrap_or_default(),
            branch: config.source.branch.clone().unwrap_or_else(|| "HEAD".to_owned()),
            driver: hands.driver.describe(),
            domain: config.ingress.domain.clone(),
            ingress_port: ingress.1.port(),
        };
        Ok(Self { api, api_address, config: in_force, ingress, identity, hands: hands.clone(), passes })
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
        let Self { api, api_address: _, config, ingress: (ingress_listener, _), identity, hands, passes } = self;
        let snapshots = watch::Sender::new(None);
        let hosts = config.borrow().api.hosts.clone();
        let answers = Arc::new(Answers::new(&hands, passes.clone(), snapshots.subscribe(), config));
        // Without them, conditions begin anew; whether the store can be read at all shows elsewhere.
        let earlier = hands.ledger.with(|store| store.latest_events(EARLIER)).await.unwrap_or_default();
        let routes = watch::Sender::new(Arc::new(Routes::default()));
        let backend: Arc<dyn Backend> = answers.clone();
        let api = join_all(api.into_iter().map(|listener| {
            let api = Api { snapshot: snapshots.subscribe(), backend: Arc::clone(&backend), hosts: hosts.clone() };
            api.serve(listener, Limits::default(), shutdown.clone())
        }));
        let ingress_listener = Listener::from(ingress_listener).counted(hands.metrics.ingress_traffic());
        let ingress = Ingress::new(routes.subscribe(), answers, Patience::default()).counted_by(hands.uses.clone());
        let ingress = ingress.serve(ingress_listener, ingress::LIMITS, shutdown.clone());
        let publisher = Publisher::new(identity, &earlier, snapshots, routes, hands);
        // Ten thousand of them are not kept for as long as the daemon runs.
        drop(earlier);
        tokio::join!(api, ingress, publisher.run(passes, shutdown));
    }
}

/// Paths of the status API that need no token: who checks whether the process is alive has no business with the rest.
const OPEN_PATHS: &[&str] = &["/healthz"];

/// The tokens of the configuration in force.
#[derive(Debug)]
struct Configured(watch::Receiver<Arc<Config>>);

impl Accepted for Configured {
    fn tokens(&self) -> Arc<[Token]> {
        Arc::clone(&self.0.borrow().api.tokens)
    }
}

/// The address of the status API, and its Unix socket where one is configured. Tokens are for the address: who may open the
/// socket's file is known to this host already.
async fn api_listeners(config: &config::Api, tokens: Configured) -> Result<(Vec<Listener>, SocketAddr), DaemonError> {
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
