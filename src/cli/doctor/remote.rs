//! Checks of a daemon elsewhere, by what its API says.

use setpoint_schema::wire;
use setpoint_vmm::qemu::{Probe, ProbeStatus};

use super::{fail, ok, warn};
use crate::cli::client::{Client, ClientError};
use crate::cli::version::OWN;
use crate::report;
use crate::report::count;

pub async fn all(client: &Client) -> Vec<Probe> {
    let reached = match client.exchange("/healthz", &[]).await {
        Ok(answer) if answer.status().is_success() => ok("reach", format!("{} answers", client.address())),
        Ok(answer) => fail(
            "reach",
            format!("{} answers /healthz with {}", client.address(), answer.status()),
            "something else may listen there: compare the address with `listen` under [api]",
        ),
        Err(error) => return vec![failure("reach", &error)],
    };
    match client.get::<wire::Status>("/v1/status").await {
        Ok(status) => {
            let mut findings = vec![reached, ok("ready", "it has looked around")];
            findings.extend(of_status(&status));
            findings
        }
        Err(error) => vec![reached, failure("ready", &error)],
    }
}

fn of_status(status: &wire::Status) -> [Probe; 4] {
    let version = if status.version == OWN {
        ok("version", format!("{OWN}, as this program"))
    } else {
        let detail = format!("the daemon is {}, this program {OWN}", status.version);
        warn("version", detail, "use the program of the daemon's version: fields may be missing or unknown")
    };
    let source = match &status.source.error {
        None => ok("source", format!("{} can be read", status.source.url)),
        Some(error) => fail("source", error.clone(), "the last good declarations stay in force; mend the source"),
    };
    let wire::AppCounts { total, ready, reconciling, unready, blocked, stalled, resting } = status.apps;
    let bad = unready + blocked + stalled;
    let detail =
        format!("{ready} of {} ready, {reconciling} under way, {resting} resting", count(total as usize, "app"));
    let apps = if bad == 0 {
        ok("apps", detail)
    } else {
        let detail = format!("{detail}, {unready} unready, {blocked} blocked, {stalled} stalled");
        warn("apps", detail, "`setpoint get apps --phase unready,blocked,stalled` says which and why")
    };
    let wire::Limits { memory, vcpus, disk, sandboxes } = status.limits;
    let used = format!(
        "memory {} of {}, vcpus {} of {}, disk {} of {}, sandboxes {} of {}",
        memory.used, memory.total, vcpus.used, vcpus.total, disk.used, disk.total, sandboxes.used, sandboxes.total
    );
    [version, source, apps, ok("limits", used)]
}

fn failure(name: &'static str, error: &ClientError) -> Probe {
    Probe { name, status: ProbeStatus::Fail, detail: report::chain(error), hint: error.hint() }
}
