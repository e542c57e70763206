//! Checks of what is left in the state directory: the store, a daemon that ended without a farewell, steps that were begun and not
//! ended, microVMs that nobody looks after.

use std::collections::BTreeSet;

use jiff::Timestamp;
use setpoint_schema::observed::VmState;
use setpoint_state::{Snapshot, StateError, Store};
use setpoint_vmm::qemu::{Probe, ProbeStatus};

use super::{fail, ok, process, warn};
use crate::config::Config;
use crate::ledger::Inventory;
use crate::report::count;
use crate::{daemon, drivers, report};

/// The checks of this module.
pub const NAMES: [&str; 5] = ["state", "daemon", "journal", "machines", "snapshots"];

pub async fn all(config: &Config) -> Vec<Probe> {
    let snapshot = config.store_dir().exists().then(|| Store::snapshot_read(&config.store_dir()));
    let mut findings = vec![state(config, snapshot.as_ref()), beacon(config)];
    if let Some(Ok(snapshot)) = &snapshot {
        findings.push(journal(config, snapshot));
    } else {
        findings.push(ok("journal", "nothing there yet"));
    }
    findings.push(machines(config).await);
    findings.push(snapshots(config).await);
    findings
}

fn state(config: &Config, snapshot: Option<&Result<Snapshot, StateError>>) -> Probe {
    let dir = config.state.dir.display();
    match (daemon::running(&config.state.dir), snapshot) {
        (Some(daemon), Some(Ok(_)) | None) => {
            ok("state", format!("{dir}, in use by the daemon (process {})", daemon.pid))
        }
        (None, None) => ok("state", format!("{dir}, nothing there yet")),
        (None, Some(Ok(snapshot))) => match newest_event(snapshot) {
            Some(at) if at > Timestamp::now() => warn(
                "state",
                format!("{dir}, readable, and its newest event is of {at:.0}, which is yet to come"),
                "the clock has been set back: set it right before the daemon starts",
            ),
            Some(_) | None => ok("state", format!("{dir}, readable")),
        },
        (_, Some(Err(error))) => {
            Probe { name: "state", status: ProbeStatus::Fail, detail: report::chain(error), hint: Some(error.hint()) }
        }
    }
}

fn newest_event(snapshot: &Snapshot) -> Option<Timestamp> {
    snapshot.latest_events(1).ok()?.last().map(|event| event.at)
}

fn beacon(config: &Config) -> Probe {
    match (daemon::last(&config.state.dir), daemon::running(&config.state.dir)) {
        (None, _) => ok("daemon", "none runs on this state"),
        (Some(_), Some(running)) if process::is_ours(running.pid) => {
            ok("daemon", format!("process {}, API on {}", running.pid, running.api))
        }
        (Some(_), Some(running)) => warn(
            "daemon",
            format!("daemon.json names process {}, which is {} now", running.pid, process::name(running.pid)),
            "the daemon was killed, and its number went to another: start it again",
        ),
        (Some(last), None) => warn(
            "daemon",
            format!("daemon.json names process {}, which has ended without a farewell", last.pid),
            "start it again: it takes over the microVMs that run, and ends what was begun",
        ),
    }
}

fn journal(config: &Config, snapshot: &Snapshot) -> Probe {
    let steps = match snapshot.unfinished() {
        Ok(steps) => steps.len(),
        Err(error) => return fail("journal", report::chain(&error), error.hint()),
    };
    match (steps, daemon::running(&config.state.dir)) {
        (0, _) => ok("journal", "every step that was begun has ended"),
        (steps, Some(_)) => ok("journal", format!("{} under way", count(steps, "step"))),
        (steps, None) => warn(
            "journal",
            format!("{} begun and not ended, with no daemon to go on", count(steps, "step")),
            "start the daemon: it looks at each and ends it",
        ),
    }
}

async fn machines(config: &Config) -> Probe {
    let driver = match drivers::driver(config) {
        Ok(driver) => driver,
        Err(error) => return warn("machines", report::chain(&error), "nothing can be said of microVMs without it"),
    };
    let machines = match driver.list().await {
        Ok(machines) => machines,
        Err(error) => {
            return fail("machines", report::chain(&error), "the directory `vmm` of the state must be readable");
        }
    };
    let number = count(machines.len(), "microVM");
    if daemon::running(&config.state.dir).is_some() {
        return ok("machines", format!("{number}, looked after by the daemon"));
    }
    let inventory = if config.store_dir().exists() {
        // A store that cannot be read has its own check.
        Inventory::of_copy(&config.store_dir()).unwrap_or_default()
    } else {
        Inventory::default()
    };
    let recorded: BTreeSet<_> = inventory.sandboxes.iter().map(|sandbox| &sandbox.id).collect();
    let strange: Vec<_> =
        machines.iter().filter(|machine| !recorded.contains(&machine.sandbox)).map(|m| m.sandbox.to_string()).collect();
    if !strange.is_empty() {
        let names = strange.join(", ");
        let hint = "the daemon takes over what is declared and removes the rest when it starts; `setpoint state rebuild` \
                    records them";
        return warn(
            "machines",
            format!("{} that the state does not know: {names}", count(strange.len(), "microVM")),
            hint,
        );
    }
    let mut running = 0;
    for machine in &machines {
        running += usize::from(matches!(driver.observe(&machine.sandbox).await, Ok(VmState::Running { .. })));
    }
    match running {
        0 => ok("machines", format!("{number}, none running")),
        running => warn(
            "machines",
            format!("{} without a daemon", runs(running)),
            "start the daemon: it takes them over as they are",
        ),
    }
}

/// Kept moments that no row knows: the daemon leaves them alone.
async fn snapshots(config: &Config) -> Probe {
    let driver = match drivers::driver(config) {
        Ok(driver) => driver,
        Err(error) => return warn("snapshots", report::chain(&error), "nothing can be said of snapshots without it"),
    };
    let found = match driver.list_snapshots().await {
        Ok(found) => found,
        Err(error) => {
            return fail("snapshots", report::chain(&error), "the directory `vmm` of the state must be readable");
        }
    };
    let inventory = if config.store_dir().exists() {
        Inventory::of_copy(&config.store_dir()).unwrap_or_default()
    } else {
        Inventory::default()
    };
    let recorded: BTreeSet<_> = inventory.snapshots.iter().map(|record| &record.id).collect();
    let strange: Vec<_> = found.iter().filter(|(id, _)| !recorded.contains(id)).map(|(id, _)| id.to_string()).collect();
    if strange.is_empty() {
        return ok("snapshots", count(found.len(), "snapshot"));
    }
    warn(
        "snapshots",
        format!("{} that the state does not know: {}", count(strange.len(), "snapshot"), strange.join(", ")),
        "nobody removes them, since a mistake may be why they are not known: delete their directories below `vmm/snapshots` \
         when they are of no use",
    )
}

fn runs(number: usize) -> String {
    if number == 1 { "1 microVM runs".to_owned() } else { format!("{number} microVMs run") }
}
