//! Puts together what the planner plans with: the inventory, and what drivers and agents answered about each row of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{Limits, Machine, Observed, ObservedSandbox, SandboxRecord, VmState};
use setpoint_vmm::driver::{Driver, VmmError};

use crate::host;
use crate::ledger::{Inventory, Ledger};
use crate::observe::{Observer, View};

/// A driver that has not answered about a sandbox after this long is not waited for any more in this pass.
const FIRST_ANSWER: Duration = Duration::from_secs(5);

/// The observed world, and the apps of sandboxes about which the driver has not answered.
pub async fn assemble(
    observer: &Observer,
    inventory: Inventory,
    unrecorded: &[Machine],
    limits: Limits,
) -> (Observed, BTreeSet<AppKey>) {
    let Inventory { sandboxes, disks, apps } = inventory;
    let recorded: BTreeSet<_> = sandboxes.iter().map(|record| record.id.clone()).collect();
    let mut unasked = BTreeSet::new();
    let mut observed = BTreeMap::new();
    for record in sandboxes {
        match answered_view(observer, &record).await {
            Some(View { vm: Some(vm), guest, agent: _ }) => {
                observed.insert(record.id.clone(), ObservedSandbox { record, vm, guest });
            }
            Some(View { vm: None, .. }) | None => {
                unasked.insert(record.app);
            }
        }
    }
    let world = Observed {
        host: host::id(),
        limits,
        sandboxes: observed,
        unrecorded: unrecorded.iter().filter(|machine| !recorded.contains(&machine.sandbox)).cloned().collect(),
        disks: disks.into_iter().map(|disk| (disk.id.clone(), disk)).collect(),
        apps: apps.into_iter().map(|app| (app.key.clone(), app)).collect(),
    };
    (world, unasked)
}

/// A world in which nothing exists yet.
#[must_use]
pub fn nothing(limits: Limits) -> Observed {
    Observed {
        host: host::id(),
        limits,
        sandboxes: BTreeMap::new(),
        unrecorded: Vec::new(),
        disks: BTreeMap::new(),
        apps: BTreeMap::new(),
    }
}

/// Gives the guests of running microVMs time to answer, for somebody who looks only once.
pub async fn let_guests_answer(observer: &Observer, inventory: &Inventory) {
    let answers = inventory.sandboxes.iter().map(|record| async {
        let view = observer.first_view(&record.id).await;
        if matches!(view.vm, Some(VmState::Running { .. })) {
            // What does not answer is part of what is observed.
            drop(observer.answering(&record.id, &record.machine.nonce, FIRST_ANSWER).await);
        }
    });
    futures_util::future::join_all(answers).await;
}

/// MicroVMs that the driver holds and the inventory does not.
///
/// # Errors
/// When either cannot be read.
pub async fn unrecorded(driver: &dyn Driver, ledger: &Ledger) -> Result<Vec<Machine>, UnrecordedError> {
    // The driver first: a microVM is recorded before it is made, so this order cannot see one too few rows.
    let machines = driver.list().await?;
    let inventory = ledger.inventory().await?;
    let recorded: BTreeSet<_> = inventory.sandboxes.into_iter().map(|record| record.id).collect();
    Ok(machines.into_iter().filter(|machine| !recorded.contains(&machine.sandbox)).collect())
}

/// Why unrecorded microVMs could not be looked for.
#[derive(Debug, thiserror::Error)]
pub enum UnrecordedError {
    /// The driver could not list.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// The store could not be read.
    #[error(transparent)]
    State(#[from] setpoint_state::StateError),
}

async fn answered_view(observer: &Observer, record: &SandboxRecord) -> Option<View> {
    let view = observer.view(&record.id);
    if view.vm.is_some() {
        return Some(view);
    }
    tokio::time::timeout(FIRST_ANSWER, observer.first_view(&record.id)).await.ok()
}
