//! Keeping a moment of a paused microVM, which stays so: what its pause saved is a moment already.
//!
//! ```text
//! nobody may resume it ─▶ copy the disk ─▶ name its memory once more, and its devices ─▶ saved.json
//! ```
//!
//! Nothing of its memory is copied: the snapshot's image refers to the same base and packs, which are kept for as long as any image
//! refers to them. Its disk takes no write while it is paused, so that the copy belongs to that memory.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;

use super::files::{io_error, remove_if_there};
use super::pause::{busy_with_power, memory_error};
use super::saved::{KeptRecord, SavedRecord};
use super::vm_dir::VmDir;
use super::{QemuDriver, blocking};
use crate::driver::{Result, Take, Taken, VmmError};
use crate::failpoint::reach;

impl QemuDriver {
    /// Keeps what the pause of a microVM saved.
    pub(super) async fn keep_paused(&self, take: Take<'_>, kept: &VmDir) -> Result<Taken> {
        let Take { sandbox, snapshot, agent: _, moment } = take;
        let vm = self.vm(sandbox);
        let unsaved = || VmmError::Vmm { vmm: "qemu", problem: format!("has no saved memory of {sandbox} to keep") };
        if vm.saved()?.is_none() {
            return Err(unsaved());
        }
        // Who holds this lock keeps everybody else from resuming it, and its image from being replaced by a merged one.
        let _lock = vm.lock_power_soon().await?.ok_or_else(|| busy_with_power(sandbox))?;
        let saved = vm.saved()?.ok_or_else(unsaved)?;
        let machine = vm.machine()?.ok_or_else(unsaved)?;
        let _saving = self.saving.read().await;
        kept.create()?;
        let (at, _) = self.copy_resting(&machine.disk, kept).await?;
        reach("snapshot/memory")?;
        let (store, from, to, failed) =
            (self.memory.clone(), saved.snapshot.clone(), snapshot.clone(), memory_error(&vm));
        let name_again = move || {
            store.name_again(&from, &to)?;
            Ok(store.size(&to)?.as_bytes())
        };
        let memory = blocking(move || name_again().map_err(failed)).await?;
        let devices = link_devices(&vm, &saved, kept, take.snapshot)?;
        let disk = kept.clone();
        let blocks = blocking(move || disk.make_disk_durable()).await?;
        reach("snapshot/record")?;
        let bytes = memory + devices + blocks;
        let known = KeptRecord { moment: moment.clone(), stopped_us: 0, written: 0 };
        let kept_as = Some(known.clone());
        kept.write_kept(&SavedRecord { snapshot: snapshot.clone(), at, bytes, fault: None, kept: kept_as, ..saved })?;
        Ok(known.taken(at, bytes))
    }
}

impl VmDir {
    /// From here on a moment is kept, also after a power cut: the directory that holds it is new, too.
    pub(super) fn write_kept(&self, saved: &SavedRecord) -> Result<()> {
        self.write_saved(saved)?;
        let all = self.path().parent().unwrap_or(self.path());
        File::open(all).and_then(|all| all.sync_all()).map_err(io_error("sync", all))
    }
}

/// Gives the state of the devices, which is never written again, another name. What it takes on the disk.
fn link_devices(
    vm: &VmDir,
    saved: &SavedRecord,
    kept: &VmDir,
    snapshot: &setpoint_schema::id::SnapshotId,
) -> Result<u64> {
    let (from, to) = (vm.devices(&saved.snapshot), kept.devices(snapshot));
    // An earlier try may have come as far as this.
    remove_if_there(&to).map_err(io_error("remove", &to))?;
    fs::hard_link(&from, &to).map_err(io_error("link", &from))?;
    Ok(fs::metadata(&to).map_err(io_error("inspect", &to))?.blocks() * 512)
}
