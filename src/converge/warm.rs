//! Makes warm templates behind what is being done: one at a time, for the kinds of machine that had to boot for want of one, or that are
//! declared to be warm ahead.

use std::sync::{Arc, Mutex, PoisonError};

use setpoint_schema::observed::Machine;
use setpoint_vmm::driver::Driver;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::report::chain;
use crate::task::joined;

/// As many kinds wait to be made. A launch that finds no room for its kind asks again at the next one of it.
const WAITING: usize = 16;

/// Who has warm templates made.
#[derive(Clone)]
pub struct Warmer {
    making: Option<Arc<Making>>,
}

struct Making {
    wanted: mpsc::Sender<Machine>,
    ending: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Warmer {
    /// Has none made.
    #[must_use]
    pub fn off() -> Self {
        Self { making: None }
    }

    /// Has them made by `driver` until [`Self::end`].
    #[must_use]
    pub fn on(driver: Arc<dyn Driver>) -> Self {
        let (wanted, waiting) = mpsc::channel::<Machine>(WAITING);
        let ending = CancellationToken::new();
        let task = tokio::spawn(make(driver, waiting, ending.clone()));
        Self { making: Some(Arc::new(Making { wanted, ending, task: Mutex::new(Some(task)) })) }
    }

    /// Whether any are made.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.making.is_some()
    }

    /// Wants one that machines like this one can begin from. Says whether there was room for the wish.
    pub fn want(&self, machine: &Machine) -> bool {
        self.making.as_ref().is_some_and(|making| making.wanted.try_send(machine.clone()).is_ok())
    }

    /// Makes none any more. The machine that was to become one is ended, for nobody would end it later.
    pub async fn end(&self) {
        let Some(making) = &self.making else { return };
        making.ending.cancel();
        let task = making.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            joined(task.await);
        }
    }
}

async fn make(driver: Arc<dyn Driver>, mut waiting: mpsc::Receiver<Machine>, ending: CancellationToken) {
    while let Some(Some(machine)) = ending.run_until_cancelled(waiting.recv()).await {
        match ending.run_until_cancelled(driver.prewarm(&machine)).await {
            Some(Ok(())) => tracing::debug!(sandbox = %machine.sandbox, "its kind of machine has a warm template"),
            Some(Err(error)) => tracing::warn!(error = %chain(&error), "a warm template could not be made"),
            None => {
                if let Err(error) = driver.clear_up().await {
                    tracing::warn!(error = %chain(&error), "a warm template that was being made was left behind");
                }
            }
        }
    }
}
