//! The task that watches one sandbox; [`super`] shows its states.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use setpoint_schema::id::{BootNonce, SandboxId};
use setpoint_schema::observed::{GuestState, GuestStatus, VmState};
use setpoint_schema::quantity::Span;
use setpoint_vmm::driver::{Driver, Guest};
use setpoint_vmm::sim::Clock;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::pace::Pace;
use super::{News, View};

/// An answer that takes this much longer than asked for is silence: a loaded host under emulation stalls for seconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// A driver that has not answered after this long is asked again.
const OBSERVE: Duration = Duration::from_secs(20);
/// Between two failed questions to a driver or an agent.
const RETRY: Duration = Duration::from_millis(250);

pub(super) struct Task {
    pub driver: Arc<dyn Driver>,
    pub clock: Arc<dyn Clock>,
    pub sandbox: SandboxId,
    pub views: watch::Sender<View>,
    pub nudge: Arc<Notify>,
    /// How long the agent may be silent, in milliseconds.
    pub unresponsive: Arc<AtomicU64>,
    pub news: Arc<News>,
    /// What the ticks of all sandboxes are counted from.
    pub origin: Instant,
}

/// Before anything was asked.
pub(super) fn unknown() -> View {
    View { vm: None, guest: GuestState::Absent, agent: None }
}

impl Task {
    /// Runs until it is dropped.
    pub async fn run(&self) {
        loop {
            match tokio::time::timeout(OBSERVE, self.driver.observe(&self.sandbox)).await {
                Ok(Ok(VmState::Running { nonce, since })) => self.follow_running(nonce, since).await,
                Ok(Ok(vm @ (VmState::Absent | VmState::Exited { .. } | VmState::Paused { .. }))) => {
                    self.publish(View { vm: Some(vm), guest: GuestState::Absent, agent: None });
                    self.settle().await;
                    self.nudge.notified().await;
                }
                // An error is not an absence, and neither is silence: the last view stands.
                Ok(Err(error)) => {
                    tracing::warn!(sandbox = %self.sandbox, %error, "driver could not be asked");
                    tokio::time::sleep(RETRY).await;
                }
                Err(_) => tracing::warn!(sandbox = %self.sandbox, "driver does not answer"),
            }
        }
    }

    /// Lets nothing run on that is no microVM any more, or was to become one.
    async fn settle(&self) {
        if let Err(error) = self.driver.settle(&self.sandbox).await {
            tracing::warn!(sandbox = %self.sandbox, %error, "what may be left running was not ended");
        }
    }

    /// Follows one boot until it ends, or until somebody says that it may have.
    async fn follow_running(&self, nonce: BootNonce, since: Timestamp) {
        let vm = VmState::Running { nonce: nonce.clone(), since };
        if self.views.borrow().vm.as_ref() != Some(&vm) {
            let guest = GuestState::Connecting { since: self.clock.now() };
            self.publish(View { vm: Some(vm.clone()), guest, agent: None });
        }
        // Neither branch has a handler that awaits, so a lost race loses only a connection that is made anew.
        tokio::select! {
            () = self.driver.exited(&self.sandbox, &nonce) => {}
            () = self.nudged_away(&vm) => {}
            () = self.follow_guest(&nonce, &vm) => {}
        }
    }

    /// Resolves when a nudge finds the driver answering something else than `vm`.
    async fn nudged_away(&self, vm: &VmState) {
        loop {
            self.nudge.notified().await;
            match tokio::time::timeout(OBSERVE, self.driver.observe(&self.sandbox)).await {
                Ok(Ok(now)) if now == *vm => {}
                Ok(Ok(_) | Err(_)) | Err(_) => return,
            }
        }
    }

    /// Connects to the agent and follows its status, again and again.
    async fn follow_guest(&self, nonce: &BootNonce, vm: &VmState) {
        loop {
            match self.driver.guest(&self.sandbox, nonce).await {
                Ok(agent) => self.follow_status(&agent, nonce, vm).await,
                Err(error) => tracing::debug!(sandbox = %self.sandbox, %error, "agent not reached"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Follows the status of one connection until it fails or falls silent.
    async fn follow_status(&self, agent: &Arc<dyn Guest>, nonce: &BootNonce, vm: &VmState) {
        let Ok(Ok(mut known)) = tokio::time::timeout(PATIENCE, agent.status()).await else { return };
        let mut pace = Pace::new(self.origin, &self.sandbox);
        if !self.takes_in(&known, nonce, agent, vm) {
            return;
        }
        let since = loop {
            let last_answer = self.clock.now();
            let wait = pace.next_wait();
            let question = agent.status_change(&known, wait);
            match tokio::time::timeout(wait.as_duration() + PATIENCE, question).await {
                Ok(Ok(None)) => pace.slow_down(self.longest_wait()),
                Ok(Ok(Some(status))) => {
                    known = status;
                    pace.quicken();
                    if !self.takes_in(&known, nonce, agent, vm) {
                        return;
                    }
                }
                Ok(Err(_)) | Err(_) => break last_answer,
            }
        };
        self.publish(View { vm: Some(vm.clone()), guest: GuestState::Silent { since }, agent: None });
    }

    /// How long an answer may be waited for at most, so that silence is noticed in time.
    fn longest_wait(&self) -> Span {
        let patience = u64::try_from(PATIENCE.as_millis()).unwrap_or(u64::MAX);
        Span::millis(self.unresponsive.load(Ordering::Relaxed).saturating_sub(patience))
    }

    /// Publishes a status, if it is of this boot.
    fn takes_in(&self, status: &Arc<GuestStatus>, nonce: &BootNonce, agent: &Arc<dyn Guest>, vm: &VmState) -> bool {
        if status.nonce != *nonce {
            tracing::warn!(sandbox = %self.sandbox, "agent answers with another boot's nonce");
            return false;
        }
        let guest = GuestState::Answering(Arc::clone(status));
        self.publish(View { vm: Some(vm.clone()), guest, agent: Some(Arc::clone(agent)) });
        true
    }

    /// Publishes a view, and tells the reconciler if it says anything new.
    fn publish(&self, view: View) {
        let news = {
            let old = self.views.borrow();
            old.vm != view.vm || old.guest != view.guest
        };
        self.views.send_replace(view);
        if news {
            self.news.tell(&self.sandbox);
        }
    }
}
