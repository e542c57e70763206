//! Puts together what the planner plans with: the inventory, and what drivers and agents answered about each row of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use setpoint_schema::id::SandboxId;
use setpoint_schema::observed::{GuestState, Limits, Machine, Observed, ObservedSandbox, SandboxRecord, VmState};
use setpoint_vmm::driver::{Driver, VmmError};

use crate::host;
use crate::ledger::{Inventory, Ledger};
use crate::observe::{Observer, View};

/// A driver that has not answered about a sandbox after this long is not waited for any more.
const FIRST_ANSWER: Duration = Duration::from_secs(5);

/// The observed world, and the sandboxes in it about which the driver has not answered.
///
/// Those stand in it as they are recorded and have just begun to boot: so they keep their memory, their disks and their names.
pub async fn assemble(
    observer: &Observer,
    inventory: Inventory,
    unrecorded: &[Machine],
    limits: Limits,
) -> (Observed, BTreeSet<SandboxId>) {
    let Inventory { sandboxes, disks, apps } = inventory;
    let recorded: BTreeSet<_> = sandboxes.iter().map(|record| record.id.clone()).collect();
    let mut unasked = BTreeSet::new();
    let mut observed = BTreeMap::new();
    let views = sandboxes.iter().map(|record| observer.view_after(&record.id, FIRST_ANSWER));
    let views = futures_util::future::join_all(views).await;
    for (record, View { vm, guest, agent: _ }) in sandboxes.into_iter().zip(views) {
        let sandbox = match vm {
            Some(vm) => ObservedSandbox { record, vm, guest },
            None => {
                unasked.insert(record.id.clone());
                presumed(record, observer.now())
            }
        };
        observed.insert(sandbox.record.id.clone(), sandbox);
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

/// A sandbox as it is recorded, for want of an answer.
fn presumed(record: SandboxRecord, now: Timestamp) -> ObservedSandbox {
    let vm = VmState::Running { nonce: record.machine.nonce.clone(), since: now };
    ObservedSandbox { record, vm, guest: GuestState::Connecting { since: now } }
}
