//! `setpoint doctor`: what this machine has and lacks, with what to do about it.

use std::process::ExitCode;

use setpoint_vmm::qemu::{Probe, ProbeStatus, QemuDriver};

use super::{Failure, print};
use crate::config::{Config, DriverKind};
use crate::source::Repository;
use crate::{daemon, drivers};

pub async fn run(config: Config) -> Result<ExitCode, Failure> {
    let mut probes = match config.vmm.driver {
        DriverKind::Qemu => QemuDriver::probes(&drivers::qemu_config(&config)),
        DriverKind::Sim => Vec::new(),
    };
    probes.push(source(&config));
    probes.push(state(&config));
    for probe in &probes {
        print(&format!("{:<5} {}: {}\n", word(probe.status), probe.name, probe.detail));
        if let Some(hint) = &probe.hint {
            print(&format!("      hint: {hint}\n"));
        }
    }
    let failed = probes.iter().any(|probe| probe.status == ProbeStatus::Fail);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn word(status: ProbeStatus) -> &'static str {
    match status {
        ProbeStatus::Ok => "ok",
        ProbeStatus::Warn => "warn",
        ProbeStatus::Fail => "fail",
    }
}

fn source(config: &Config) -> Probe {
    let probe = |status, detail: String, hint| Probe { name: "source", status, detail, hint };
    let configured = match drivers::source_config(config) {
        Ok(configured) => configured,
        Err(error) => return probe(ProbeStatus::Warn, error.to_string(), error.hint()),
    };
    match Repository::open(&configured).and_then(|repository| repository.poll()) {
        Ok(commit) => probe(ProbeStatus::Ok, format!("branch is at {}", commit.short()), None),
        Err(error) => probe(ProbeStatus::Fail, crate::report::chain(&error), error.hint()),
    }
}

fn state(config: &Config) -> Probe {
    let probe = |status, detail: String, hint| Probe { name: "state", status, detail, hint };
    let dir = config.state.dir.display();
    if let Some(daemon) = daemon::running(&config.state.dir) {
        return probe(ProbeStatus::Ok, format!("{dir}, in use by the daemon (process {})", daemon.pid), None);
    }
    if !config.store_dir().exists() {
        return probe(ProbeStatus::Ok, format!("{dir}, nothing there yet"), None);
    }
    match setpoint_state::Store::snapshot_read(&config.store_dir()) {
        Ok(_) => probe(ProbeStatus::Ok, format!("{dir}, readable"), None),
        Err(error) => probe(ProbeStatus::Fail, crate::report::chain(&error), Some(error.hint())),
    }
}
