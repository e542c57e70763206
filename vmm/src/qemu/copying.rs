//! A copy of a running microVM's disk as it is at one moment, made by QEMU while the microVM goes on: what it is about to overwrite
//! is copied first.
//!
//! ```text
//! prepare: open the target ─▶ (stopped) begin, held back ─▶ (running) hurry ─▶ finish: wait, let go of the target
//! ```
//!
//! What takes time is done before or after the moment: opening the target, and copying, which would keep QEMU from answering.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use super::qmp::Qmp;
use super::vm_dir::VmDir;
use crate::driver::{Result, VmmError};

/// QEMU's names for the copying, and for what it writes to.
const JOB: &str = "copy";
const TARGET: &str = "kept";

/// Bytes a second at which the copying begins: none to speak of. What the guest overwrites is copied at any rate.
const HELD_BACK: u32 = 1;

/// Between two looks at how far the disk is copied. QEMU's monitor has room for one, so that nobody stays to wait for the event.
const LOOK: Duration = Duration::from_millis(10);

/// Makes ready to copy into `target`, which is there and as long as the disk.
pub(super) async fn prepare(vm: &VmDir, target: &Path) -> Result<()> {
    // One that an earlier try left behind would be in the way.
    abandon(vm).await?;
    let target = json!({ "driver": "file", "node-name": TARGET, "filename": target });
    Qmp::connect(vm).await?.execute("blockdev-add", target).await.map(drop)
}

/// The command that begins the copy, of the disk as it is then.
pub(super) fn begin() -> (&'static str, Value) {
    let backup = json!({
        "job-id": JOB, "device": "data", "target": TARGET, "sync": "full", "speed": HELD_BACK, "auto-dismiss": false,
    });
    ("blockdev-backup", backup)
}

/// Lets the copying go as fast as it can.
pub(super) async fn hurry(vm: &VmDir) -> Result<()> {
    let all = json!({ "device": JOB, "speed": 0 });
    Qmp::connect(vm).await?.execute("block-job-set-speed", all).await.map(drop)
}

/// Waits until QEMU has copied the whole disk, and has let go of the target.
pub(super) async fn finish(vm: &VmDir) -> Result<()> {
    let failed = |problem: &str| VmmError::Vmm { vmm: "qemu", problem: format!("did not copy the disk: {problem}") };
    let end = concluded(vm).await?;
    let_go(vm).await?;
    match end {
        Some(Value::String(error)) => Err(failed(&error)),
        Some(_) => Ok(()),
        None => Err(failed("it has forgotten about it")),
    }
}

/// Ends the copying, if there is any, wherever it has got to.
async fn abandon(vm: &VmDir) -> Result<()> {
    let mut qmp = Qmp::connect(vm).await?;
    let job = copying(&mut qmp).await?;
    if job.as_ref().is_some_and(|job| job["status"] != "concluded") {
        qmp.execute("block-job-cancel", json!({ "device": JOB, "force": true })).await?;
    }
    // The monitor serves one connection at a time.
    drop(qmp);
    if job.is_some() {
        concluded(vm).await?;
    }
    let_go(vm).await
}

/// Ends what a daemon that died had begun, over a connection that is there anyway. Nobody may be copying.
pub(super) async fn end_left_over(vm: &VmDir, mut qmp: Qmp) -> Result<()> {
    if copying(&mut qmp).await?.is_none() {
        return Ok(());
    }
    drop(qmp);
    tracing::warn!(vm = %vm.path().display(), "copy of a disk was cut short; it is given up");
    abandon(vm).await
}

/// [`abandon`] after something else has failed, which is what is to be told.
pub(super) async fn give_up(vm: &VmDir) {
    if let Err(error) = abandon(vm).await {
        tracing::warn!(vm = %vm.path().display(), %error, "copy of a disk that nobody wants was not ended");
    }
}

/// Closes the target.
async fn let_go(vm: &VmDir) -> Result<()> {
    let mut qmp = Qmp::connect(vm).await?;
    let nodes = qmp.execute("query-named-block-nodes", json!({ "flat": true })).await?;
    if nodes.as_array().into_iter().flatten().any(|node| node["node-name"] == TARGET) {
        qmp.execute("blockdev-del", json!({ "node-name": TARGET })).await?;
    }
    Ok(())
}

/// The error of the copying, if it had one, once it has come to its end; nothing if there is no such work.
async fn concluded(vm: &VmDir) -> Result<Option<Value>> {
    loop {
        let mut qmp = Qmp::connect(vm).await?;
        let Some(mut job) = copying(&mut qmp).await? else { return Ok(None) };
        if job["status"] == "concluded" {
            qmp.execute("job-dismiss", json!({ "id": JOB })).await?;
            return Ok(Some(job["error"].take()));
        }
        drop(qmp);
        sleep(LOOK).await;
    }
}

/// The copying as QEMU describes it.
async fn copying(qmp: &mut Qmp) -> Result<Option<Value>> {
    let jobs = qmp.execute("query-jobs", json!({})).await?;
    Ok(jobs.as_array().into_iter().flatten().find(|job| job["id"] == JOB).cloned())
}
