//! What the sandboxes are doing, asked of their drivers and agents and kept up to date by events.
//!
//! Each sandbox has one watcher task. It asks the driver, waits for the microVM's end on an event, connects to the agent, and
//! follows the agent's status by long polls whose silence is noticed. The reconciler reads the newest [`View`]s; steps that wait
//! for a guest wait on the same channel.
//!
//! ```text
//!            ┌────────────── exit event ──────────────┐
//!            ▼                                        │
//!   ask driver ──running──▶ connecting ──hello──▶ answering ⇄ silent
//!        └──absent, exited──▶ wait for a nudge
//! ```

mod pace;
mod watcher;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jiff::Timestamp;
use setpoint_schema::app::Timeouts;
use setpoint_schema::id::{BootNonce, SandboxId};
use setpoint_schema::observed::{GuestState, VmState};
use setpoint_schema::quantity::Span;
use setpoint_vmm::driver::{Driver, Guest};
use setpoint_vmm::sim::{Clock, WallClock};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// The newest that is known of one sandbox.
#[derive(Clone)]
pub struct View {
    /// What the driver said, once it has been asked.
    pub vm: Option<VmState>,
    /// What the agent said.
    pub guest: GuestState,
    /// The agent's connection, while it answers.
    pub agent: Option<Arc<dyn Guest>>,
}

impl View {
    /// The connection to the agent of this very boot, if it answers.
    #[must_use]
    pub fn answering(&self, nonce: &BootNonce) -> Option<Arc<dyn Guest>> {
        match &self.guest {
            GuestState::Answering(status) if status.nonce == *nonce => self.agent.clone(),
            _ => None,
        }
    }
}

/// Watches sandboxes. Clones share the watchers.
#[derive(Clone)]
pub struct Observer {
    shared: Arc<Shared>,
}

struct Shared {
    driver: Arc<dyn Driver>,
    clock: Arc<dyn Clock>,
    /// Held only to look up or change the map, never across an await.
    watchers: Mutex<HashMap<SandboxId, Watcher>>,
    news: Arc<News>,
    /// What the ticks on which questions end are counted from.
    origin: Instant,
}

/// Which views have changed, for the one who takes them in.
#[derive(Default)]
struct News {
    sandboxes: Mutex<BTreeSet<SandboxId>>,
    arrived: Notify,
}

impl News {
    fn tell(&self, sandbox: &SandboxId) {
        held(&self.sandboxes).insert(sandbox.clone());
        self.arrived.notify_one();
    }
}

struct Watcher {
    view: watch::Receiver<View>,
    since: Instant,
    nudge: Arc<Notify>,
    unresponsive: Arc<AtomicU64>,
    _task: AbortOnDropHandle<()>,
}

impl Observer {
    /// Watches nothing yet.
    #[must_use]
    pub fn new(driver: Arc<dyn Driver>) -> Self {
        Self::with_clock(driver, Arc::new(WallClock))
    }

    /// The same by another clock, for tests that pause time.
    #[must_use]
    pub fn with_clock(driver: Arc<dyn Driver>, clock: Arc<dyn Clock>) -> Self {
        let shared = Shared { driver, clock, watchers: Mutex::default(), news: Arc::default(), origin: Instant::now() };
        Self { shared: Arc::new(shared) }
    }

    /// The time by which everything is observed, planned and recorded.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.shared.clock.now()
    }

    /// Resolves after any view has changed since the last call.
    pub async fn changed(&self) {
        self.shared.news.arrived.notified().await;
    }

    /// The sandboxes whose views have changed since this was asked last.
    #[must_use]
    pub fn take_changed(&self) -> BTreeSet<SandboxId> {
        std::mem::take(&mut held(&self.shared.news.sandboxes))
    }

    /// The newest view of a sandbox, which is watched from now on.
    #[must_use]
    pub fn view(&self, sandbox: &SandboxId) -> View {
        self.subscribe(sandbox).borrow().clone()
    }

    /// The first view of a sandbox in which its driver has answered.
    pub async fn first_view(&self, sandbox: &SandboxId) -> View {
        let mut views = self.subscribe(sandbox);
        let answered = views.wait_for(|view| view.vm.is_some()).await.map(|view| view.clone());
        answered.unwrap_or_else(|_| watcher::unknown())
    }

    /// The newest view of a sandbox, for which its driver has time to answer until it has been watched for `patience`.
    pub async fn view_after(&self, sandbox: &SandboxId, patience: Duration) -> View {
        let mut views = self.subscribe(sandbox);
        let since = self.watchers().get(sandbox).map_or_else(Instant::now, |watcher| watcher.since);
        // Without an answer, what there is is the view.
        drop(tokio::time::timeout_at(since + patience, views.wait_for(|view| view.vm.is_some())).await);
        views.borrow().clone()
    }

    /// Asks the driver anew, after something was done to the microVM.
    pub fn nudge(&self, sandbox: &SandboxId) {
        if let Some(watcher) = self.watchers().get(sandbox) {
            watcher.nudge.notify_one();
        }
    }

    /// Asks the driver anew about every sandbox, however quiet it is.
    pub fn nudge_all(&self) {
        self.watchers().values().for_each(|watcher| watcher.nudge.notify_one());
    }

    /// How long the agent of a sandbox may be silent before its guest counts as hung: a quiet agent is asked often enough for that.
    pub fn set_unresponsive(&self, sandbox: &SandboxId, limit: Span) {
        if let Some(watcher) = self.watchers().get(sandbox) {
            watcher.unresponsive.store(limit.as_millis(), Ordering::Relaxed);
        }
    }

    /// Watches a sandbox no longer.
    pub fn forget(&self, sandbox: &SandboxId) {
        self.watchers().remove(sandbox);
    }

    /// The agent of the boot `nonce`, as soon as it answers.
    ///
    /// # Errors
    /// Why it cannot answer any more, or that `timeout` has passed.
    pub async fn answering(
        &self,
        sandbox: &SandboxId,
        nonce: &BootNonce,
        timeout: Duration,
    ) -> Result<Arc<dyn Guest>, String> {
        if let Some(agent) = self.view(sandbox).answering(nonce) {
            return Ok(agent);
        }
        self.nudge(sandbox);
        let answer = self.await_answer(sandbox, nonce);
        let late = |_| Err(format!("the agent did not answer within {} s", timeout.as_secs()));
        tokio::time::timeout(timeout, answer).await.unwrap_or_else(late)
    }

    async fn await_answer(&self, sandbox: &SandboxId, nonce: &BootNonce) -> Result<Arc<dyn Guest>, String> {
        let mut views = self.subscribe(sandbox);
        loop {
            let view = views.borrow_and_update().clone();
            if let Some(agent) = view.answering(nonce) {
                return Ok(agent);
            }
            // Right after a launch the view can still be of the boot before, so its end counts only if the driver agrees.
            if ended(&view) && !self.runs(sandbox, nonce).await {
                return Err("the microVM ended before its agent answered".to_owned());
            }
            views.changed().await.map_err(|_| "the sandbox is not watched any more".to_owned())?;
        }
    }

    async fn runs(&self, sandbox: &SandboxId, nonce: &BootNonce) -> bool {
        match self.shared.driver.observe(sandbox).await {
            Ok(VmState::Running { nonce: running, .. }) => running == *nonce,
            Ok(VmState::Absent | VmState::Exited { .. } | VmState::Paused { .. }) => false,
            // Not knowing is no reason to give up: the timeout is.
            Err(_) => true,
        }
    }

    fn subscribe(&self, sandbox: &SandboxId) -> watch::Receiver<View> {
        let mut watchers = self.watchers();
        let watcher = watchers.entry(sandbox.clone()).or_insert_with(|| self.spawn(sandbox.clone()));
        watcher.view.clone()
    }

    fn spawn(&self, sandbox: SandboxId) -> Watcher {
        let (sender, view) = watch::channel(watcher::unknown());
        let nudge = Arc::new(Notify::new());
        let unresponsive = Arc::new(AtomicU64::new(Timeouts::default().unresponsive.as_millis()));
        let task = watcher::Task {
            driver: Arc::clone(&self.shared.driver),
            clock: Arc::clone(&self.shared.clock),
            sandbox,
            views: sender,
            nudge: Arc::clone(&nudge),
            unresponsive: Arc::clone(&unresponsive),
            news: Arc::clone(&self.shared.news),
            origin: self.shared.origin,
        };
        let task = AbortOnDropHandle::new(tokio::spawn(async move { task.run().await }));
        Watcher { view, since: Instant::now(), nudge, unresponsive, _task: task }
    }

    fn watchers(&self) -> MutexGuard<'_, HashMap<SandboxId, Watcher>> {
        held(&self.shared.watchers)
    }
}

/// What these locks guard is never left half changed, so a panic elsewhere does not poison it.
fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Whether the driver has said that the microVM does not run.
fn ended(view: &View) -> bool {
    matches!(view.vm, Some(VmState::Absent | VmState::Exited { .. } | VmState::Paused { .. }))
}
