//! The board on which every part of the agent writes what it is doing, and from which hosts read.
//!
//! Its sequence number grows with every change, so that a host can wait for the next one instead of asking again and again.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use crate::limits::bounded_text;
use crate::proto::process_status::State;
use crate::proto::web_status::Health;
use crate::proto::{ProcessStatus, StatusReply, WebStatus};

use super::process::ProcessName;

/// The one status of this agent.
#[derive(Debug)]
pub struct Board {
    status: watch::Sender<StatusReply>,
}

impl Board {
    /// A board that begins with `status`.
    #[must_use]
    pub fn new(mut status: StatusReply) -> Self {
        status.sequence = 1;
        Self { status: watch::Sender::new(status) }
    }

    /// The status now.
    #[must_use]
    pub fn read(&self) -> StatusReply {
        self.status.borrow().clone()
    }

    /// The status as soon as its sequence number is not `known`, or after `wait`.
    pub async fn changed(&self, known: u64, wait: Duration) -> StatusReply {
        // Out of time or changed, the answer is the same: what stands there now.
        let _ = timeout(wait, self.until(|status| status.sequence != known)).await;
        self.read()
    }

    /// Resolves once the status fulfils `condition`; at once if it does now.
    pub async fn until(&self, condition: impl FnMut(&StatusReply) -> bool) {
        self.status.subscribe().wait_for(condition).await.map(drop).expect("the board holds its own sender");
    }

    /// Changes the status. Readers wake only if it differs afterwards.
    pub fn update(&self, change: impl FnOnce(&mut StatusReply)) {
        self.status.send_if_modified(|status| {
            let before = status.clone();
            change(status);
            let changed = *status != before;
            if changed {
                status.sequence = before.sequence + 1;
            }
            changed
        });
    }

    /// Sets one process's state, with the reason for it.
    pub fn set_process(&self, name: &ProcessName, state: State, reason: &str) {
        self.update(|status| {
            if let Some(process) = process_mut(status, name) {
                process.set_state(state);
                process.reason = bounded_text(reason);
            }
        });
    }

    /// Counts one more restart of a process.
    pub fn count_restart(&self, name: &ProcessName) {
        self.update(|status| {
            if let Some(process) = process_mut(status, name) {
                process.restarts = process.restarts.saturating_add(1);
            }
        });
    }

    /// Sets the web process's health.
    pub fn set_health(&self, health: Health, reason: &str) {
        self.update(|status| {
            if let Some(web) = &mut status.web {
                web.set_health(health);
                web.reason = bounded_text(reason);
            }
        });
    }
}

/// Whether the web process runs at the moment.
#[must_use]
pub fn web_runs(status: &StatusReply) -> bool {
    let process = status.web.as_ref().and_then(|web| web.process.as_ref());
    process.is_some_and(|process| process.state() == State::Running)
}

fn process_mut<'a>(status: &'a mut StatusReply, name: &ProcessName) -> Option<&'a mut ProcessStatus> {
    match name {
        ProcessName::Web => {
            let WebStatus { process, .. } = status.web.as_mut()?;
            Some(process.get_or_insert_default())
        }
        ProcessName::Worker(name) => {
            let worker = status.workers.iter_mut().find(|worker| worker.name == *name)?;
            Some(worker.process.get_or_insert_default())
        }
    }
}
