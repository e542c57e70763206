//! Makes warm templates behind what is being done: one at a time, for the kinds of machine that had to boot for want of one.

use std::sync::Arc;

use setpoint_schema::observed::Machine;
use setpoint_vmm::driver::Driver;
use tokio::sync::mpsc;

use crate::report::chain;

/// As many kinds wait to be made. A launch that finds no room for its kind asks again at the next one of it.
const WAITING: usize = 16;

/// Who has warm templates made.
#[derive(Clone)]
pub struct Warmer {
    wanted: Option<mpsc::Sender<Machine>>,
}

impl Warmer {
    /// Has none made.
    #[must_use]
    pub fn off() -> Self {
        Self { wanted: None }
    }

    /// Has them made by `driver` until nobody can ask for one any more.
    #[must_use]
    pub fn on(driver: Arc<dyn Driver>) -> Self {
        let (wanted, mut waiting) = mpsc::channel::<Machine>(WAITING);
        tokio::spawn(async move {
            while let Some(machine) = waiting.recv().await {
                match driver.prewarm(&machine).await {
                    Ok(()) => tracing::debug!(sandbox = %machine.sandbox, "its kind of machine has a warm template"),
                    Err(error) => tracing::warn!(error = %chain(&error), "a warm template could not be made"),
                }
            }
        });
        Self { wanted: Some(wanted) }
    }

    /// Wants one that machines like this one can begin from.
    pub fn want(&self, machine: &Machine) {
        // Without room there is somebody before this one, and a later launch asks again.
        if let Some(wanted) = &self.wanted {
            let _ = wanted.try_send(machine.clone());
        }
    }
}
