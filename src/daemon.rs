//! Puts the parts together and runs them: the daemon, and the one-time convergence of `setpoint reconcile`.

mod answers;
mod beacon;
mod publish;
mod reload;
mod serve;

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use setpoint_schema::observed::Limits;
use setpoint_state::{StateError, Store};
use setpoint_vmm::driver::{Driver, VmmError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admin::{Admin, AdminSocket};
use crate::config::{Config, ConfigError};
use crate::converge::follow::{Follower, Rewind};
use crate::converge::step::Hands;
use crate::converge::warm::Warmer;
use crate::converge::{Mandate, Pass, Reconciler, behind};
use crate::desired::{Cache, Loader};
use crate::http::{TlsError, UnixSocketError};
use crate::idle::{Keeper, Uses};
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::observe::Observer;
use crate::power::PowerSwitch;
use crate::preview::saved::{CarryOutError, SavedPlan};
use crate::render::Renderer;
use crate::report::{chain, count};
use crate::source::watch::Watcher;
use crate::source::{Repository, SourceConfig, SourceError};
use crate::systemd::Manager;
use crate::task::joined;
use crate::{allocator, drivers, host};

use reload::Live;

pub use beacon::{Beacon, Running, last, running};
pub use reload::{Reloads, SetLog};

/// Why a daemon or a convergence could not begin or had to end; the cause is the source.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store.
    #[error(transparent)]
    State(#[from] StateError),
    /// The repository.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The driver.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// An address to serve on.
    #[error("could not listen on {address} for {what}")]
    Listen {
        /// Which address.
        address: std::net::SocketAddr,
        /// What was to be served.
        what: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The certificate of the status API.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The Unix socket of the status API.
    #[error(transparent)]
    Socket(#[from] UnixSocketError),
    /// A file of the daemon's own.
    #[error("could not {operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl DaemonError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Config(error) => error.hint(),
            Self::State(error) => Some(error.hint()),
            Self::Source(error) => error.hint(),
            Self::Tls(error) => error.hint(),
            Self::Socket(error) => error.hint(),
            Self::Vmm(VmmError::Unsupported { hint, .. }) => Some(hint.clone()),
            Self::Vmm(_) | Self::Io { .. } => None,
            Self::Listen { .. } => {
                Some("another program, or another daemon, has this address: `setpoint doctor` says which".to_owned())
            }
        }
    }
}

/// The parts that a daemon and a one-time convergence share.
struct Parts {
    hands: Hands,
    follower: Follower,
    limits: Limits,
}

impl Parts {
    async fn assemble(config: &Config, rewind: Rewind) -> Result<Self, DaemonError> {
        let ledger = Ledger::new(Store::open(&config.store_dir())?)?;
        let source = Arc::new(open_source(&drivers::source_config(config)?, &ledger).await?);
        let driver = drivers::driver(config)?;
        let metrics = Metrics::default();
        let observer = Observer::new(Arc::clone(&driver));
        let renderer = Renderer::new(drivers::render_child());
        let loader = Loader::with_cache(renderer, Cache::of(&config.state.dir));
        let follower = Follower::start(Arc::clone(&source), loader, ledger.clone(), rewind, metrics.clone()).await?;
        let limits = host::limits(&config.limits, &config.state.dir);
        let warmer = warmer(config, &driver).await;
        let uses = Uses::default();
        Ok(Self { hands: Hands { driver, observer, ledger, source, metrics, warmer, uses }, follower, limits })
    }
}

/// Has warm templates made where that is configured. Elsewhere none is of any use.
async fn warmer(config: &Config, driver: &Arc<dyn Driver>) -> Warmer {
    if let Err(error) = driver.clear_up().await {
        tracing::warn!(error = %chain(&error), "what an earlier daemon left unfinished could not be removed");
    }
    if config.vmm.warm_templates {
        return Warmer::on(Arc::clone(driver));
    }
    if let Err(error) = driver.keep_warm(&[]).await {
        tracing::warn!(error = %chain(&error), "unused warm templates could not be removed");
    }
    Warmer::off()
}

/// Runs the daemon until `shutdown`; its microVMs go on.
///
/// # Errors
/// When it cannot begin, or when its store fails.
pub async fn run(config: Config, reloads: Reloads, shutdown: CancellationToken) -> Result<(), DaemonError> {
    let manager = Manager::from_env();
    config.api.check()?;
    host::allow_many_files();
    let Parts { hands, follower, limits } = Parts::assemble(&config, rewind(&config)).await?;
    let reconciler = Reconciler::new(hands.clone(), config.converge.clone(), limits, follower.followed());
    let reconciler = reconciler.watched_by(manager.clone());
    let in_force = watch::Sender::new(Arc::new(config.clone()));
    let servers = serve::Servers::bind(in_force.subscribe(), &hands, reconciler.passes()).await?;
    let running = Running {
        pid: std::process::id(),
        api: servers.api_address(),
        tls: config.api.tls.is_some(),
        socket: config.api.socket.clone(),
        ingress: servers.ingress_address(),
    };
    let _beacon = Beacon::light(&config.state.dir, &running)?;
    let admin = Admin { ledger: hands.ledger.clone(), observer: hands.observer.clone(), passes: reconciler.passes() };
    let path = config.state.dir.clone();
    let socket = AdminSocket::bind(&path).map_err(|source| DaemonError::Io { operation: "listen in", path, source })?;
    tracing::info!(api = %servers.api_address(), ingress = %servers.ingress_address(), "daemon is up");

    let watcher = Watcher::new(&hands.source, config.source.poll_interval.as_duration());
    let following = tokio::spawn(follower.run(watcher, shutdown.clone()));
    let serving = tokio::spawn(servers.run(shutdown.clone()));
    let administering = tokio::spawn(admin.serve(socket, shutdown.clone()));
    let reporting = tokio::spawn(report_to(manager.clone(), reconciler.passes(), shutdown.clone()));
    let tidying = tokio::spawn(allocator::tidy(hands.ledger.clone(), reconciler.passes(), shutdown.clone()));
    let switch = PowerSwitch { ledger: hands.ledger.clone(), observer: hands.observer.clone() };
    let keeping = tokio::spawn(
        Keeper { uses: hands.uses.clone(), switch, driver: Arc::clone(&hands.driver) }.run(shutdown.clone()),
    );
    let behind = tokio::spawn(behind::run(hands.clone(), reconciler.passes(), shutdown.clone()));
    let live = Live { config: in_force, tuning: reconciler.tuning(), manager: manager.clone() };
    let reloading = tokio::spawn(reloads.run(live, shutdown.clone()));
    let outcome = reconciler.run(shutdown.clone()).await;
    // Whatever ended the loop ends the rest with it.
    shutdown.cancel();
    manager.stopping();
    for task in [following, serving, administering, reporting, tidying, reloading, keeping, behind] {
        joined(task.await);
    }
    hands.warmer.end().await;
    Ok(outcome?)
}

/// Tells the service manager that the daemon is up once the loop has looked around, and then how things are.
async fn report_to(manager: Manager, mut passes: watch::Receiver<Option<Arc<Pass>>>, shutdown: CancellationToken) {
    let mut last = None;
    while let Some(Ok(())) = shutdown.run_until_cancelled(passes.changed()).await {
        let Some(line) = passes.borrow_and_update().as_ref().map(|pass| in_short(pass)) else { continue };
        if last.is_none() {
            manager.ready();
        }
        if last.as_ref() != Some(&line) {
            manager.status(&line);
        }
        last = Some(line);
    }
}

fn in_short(pass: &Pass) -> String {
    let Pass { followed, plan, busy, .. } = pass;
    let trouble = followed.trouble.as_ref().map(|trouble| format!("; source: {}", trouble.message)).unwrap_or_default();
    let (apps, revision) = (count(followed.desired.apps.len(), "app"), followed.desired.revision.short());
    format!(
        "{apps} at {revision}: {} to do, {} under way, {} held{trouble}",
        plan.actions.len(),
        busy.len(),
        plan.held.len()
    )
}

/// Converges once on the branch's tip. Returns the last pass: the world as it was left, and what is left to do.
///
/// # Errors
/// When it cannot begin, or when its store fails.
pub async fn converge_once(
    config: &Config,
    rewind: Rewind,
    shutdown: CancellationToken,
    watch: impl FnMut(&Pass),
) -> Result<Option<Arc<Pass>>, DaemonError> {
    converge(config, Parts::assemble(config, rewind).await?, None, shutdown, watch).await
}

/// Carries out a saved plan, if nothing that it was made from has moved since, and nothing that is not in it. Returns the last
/// pass, as [`converge_once`] does.
///
/// # Errors
/// When the plan is stale, and as [`converge_once`].
pub async fn carry_out(
    config: &Config,
    saved: &SavedPlan,
    shutdown: CancellationToken,
    watch: impl FnMut(&Pass),
) -> Result<Option<Arc<Pass>>, CarryOutError> {
    saved.check_tip(config).await?;
    // From here on nobody else changes what exists: the store is open, and only one process can have it.
    let parts = Parts::assemble(config, Rewind::Refused).await?;
    let followed = Arc::clone(&parts.follower.followed().borrow());
    let mandate = saved.mandate(config, &followed).await?;
    Ok(converge(config, parts, Some(mandate), shutdown, watch).await?)
}

async fn converge(
    config: &Config,
    Parts { hands, follower, limits }: Parts,
    mandate: Option<Mandate>,
    shutdown: CancellationToken,
    mut watch: impl FnMut(&Pass),
) -> Result<Option<Arc<Pass>>, DaemonError> {
    let warmer = hands.warmer.clone();
    let mut reconciler = Reconciler::new(hands, config.converge.clone(), limits, follower.followed());
    if let Some(mandate) = mandate {
        reconciler = reconciler.mandated(mandate);
    }
    let mut passes = reconciler.passes();
    let loop_end = CancellationToken::new();
    let running = tokio::spawn(reconciler.run(loop_end.clone()));
    let began = Timestamp::now();
    let mut last = None;
    while let Some(Ok(())) = shutdown.run_until_cancelled(passes.changed()).await {
        last = passes.borrow_and_update().clone();
        let Some(pass) = &last else { continue };
        watch(pass);
        if settled(pass, began) {
            break;
        }
    }
    loop_end.cancel();
    let ended = joined(running.await);
    warmer.end().await;
    ended?;
    Ok(last)
}

/// Whether waiting longer would change nothing: no work left, and every app ready or out of time.
fn settled(pass: &Pass, began: Timestamp) -> bool {
    use setpoint_plan::model::{Block, Hold};
    let elapsed = pass.at.duration_since(began);
    let out_of_time = |app: &setpoint_schema::name::AppKey| {
        let limit = pass.followed.desired.apps.get(app).map(|app| app.spec.app.timeouts.ready.as_duration());
        limit.is_none_or(|limit| elapsed.unsigned_abs() > limit)
    };
    let waits = pass.plan.held.iter().any(|held| match held.reason {
        Hold::Unready(_) => !out_of_time(&held.app),
        Hold::Suspended
        | Hold::SuspendedHere(_)
        | Hold::PruneDisabled
        | Hold::PruneUnsafe(_)
        | Hold::Stalled(_)
        | Hold::Unresumable(_) => false,
    });
    // A failure ends a one-time convergence once the rest is done; the daemon is who tries again.
    let gives_up = |block: &Block| match block {
        Block::Backoff { .. }
        | Block::Capacity(_)
        | Block::Flapping(_)
        | Block::Repeating { .. }
        | Block::DiskShrink { .. }
        | Block::Window { .. }
        | Block::Unplanned => true,
        Block::Dependency { app, .. } => out_of_time(app) || pass.plan.actions.iter().any(|other| other.app == *app),
        Block::Unhealthy(_) | Block::Dependent(_) | Block::Snapshot { .. } => false,
    };
    let stuck = pass.plan.actions.iter().all(|action| action.blocked.iter().any(gives_up));
    let only_prunes_wait = pass.plan.actions.iter().all(|action| !action.blocked.is_empty()) && !waits;
    pass.busy.is_empty() && !waits && (stuck || only_prunes_wait)
}

/// Opens the repository. One that was followed before and is gone is waited for, so that what runs is looked after meanwhile;
/// one that never was there is a mistake of whoever named it.
async fn open_source(config: &SourceConfig, ledger: &Ledger) -> Result<Repository, DaemonError> {
    let followed_before = ledger.with(|store| store.meta()).await?.source.is_some();
    match Repository::open(config) {
        Err(error) if followed_before => {
            tracing::error!(error = %chain(&error), "repository cannot be opened: what runs is kept, and it is tried again");
            Ok(Repository::expect(config)?)
        }
        opened => Ok(opened?),
    }
}

fn rewind(config: &Config) -> Rewind {
    if config.source.allow_rewind { Rewind::Allowed } else { Rewind::Refused }
}
