//! `examples/apps` in a repository of a test's own, and a daemon that has converged it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;
use std::process::Command;

use crate::host::Host;

pub fn copy_examples(host: &Host) {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/apps/.");
    let copied = Command::new("cp").arg("-R").arg(examples).arg(host.repo()).status().unwrap();
    assert!(copied.success());
}

/// A daemon that has converged `examples/apps`, one app after the other so that it always happens in the same order.
pub fn daemon_on_examples() -> Host {
    let mut host = Host::sim();
    copy_examples(&host);
    host.commit("examples");
    host.configure(
        "[limits]\nmemory = \"4Gi\"\nvcpus = 16\ndisk = \"10Gi\"\nsandboxes = 20\n[converge]\nconcurrency = 1\n",
    );
    host.start();
    host.wait_converged();
    let ready = |host: &Host| (host.api("/v1/status")["apps"]["ready"] == 6).then_some(());
    host.wait_for("every app to be ready", ready);
    host
}
