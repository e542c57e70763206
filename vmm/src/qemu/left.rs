//! What is left of work that was cut short: telling it from what is being done, and putting an end to it.
//!
//! ```text
//! vms/<sandbox>/begins     its VMM is being given what it begins with. Without anybody at work it will never be whole
//! ```
//!
//! A VMM is left over when its microVM is paused, or begins, and nobody holds `power.lock`. It has changed nothing on its disk, so
//! that ending it loses nothing.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use setpoint_schema::id::SandboxId;
use tokio::time::sleep;

use super::files::{io_error, remove_if_there};
use super::fork::SNAPSHOTS;
use super::saved::{FROM, PowerLock, devices_name};
use super::vm_dir::VmDir;
use super::watch::{self, Life};
use super::{QemuDriver, cgroup};
use crate::driver::Result;

const BEGINS: &str = "begins";
const DEVICES_SUFFIX: &str = ".state";

/// How long ending what is left over takes at most, but for a host that is in trouble.
const ENDING: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

impl QemuDriver {
    /// Ends a VMM that is left over, and removes what a pause leaves unused; what somebody is at work on is neither.
    pub(super) async fn end_left_over(&self, vm: &VmDir) -> Result<()> {
        if !vm.may_be_left_over()? {
            return Ok(());
        }
        if !matches!(watch::life(vm).await?, Life::Running(_)) && !vm.has_earlier()? {
            return Ok(());
        }
        let Some(_lock) = vm.lock_power()? else { return Ok(()) };
        // Whoever was at work may have finished meanwhile.
        if !vm.may_be_left_over()? {
            return Ok(());
        }
        watch::kill(vm).await?;
        if vm.saved()?.is_some() { vm.forget_earlier() } else { Ok(()) }
    }

    /// The same of a sandbox that may not even have a directory.
    pub(super) async fn settle_vm(&self, sandbox: &SandboxId) -> Result<()> {
        self.end_left_over(&self.vm(sandbox)).await
    }

    /// Ends machines that were to become warm templates, and removes what was to become one, or a kept moment, and did not. Nobody
    /// may be making either.
    pub(super) async fn clear_up_all(&self) -> Result<()> {
        let _warming = self.warming.lock().await;
        for vm in VmDir::all(&self.config.dir.join("warm"))? {
            watch::kill(&vm).await?;
            cgroup::release(&vm)?;
            if vm.saved()?.is_none() {
                vm.remove()?;
            }
        }
        for kept in VmDir::all(&self.config.dir.join(SNAPSHOTS))? {
            if kept.saved()?.is_none() && kept.kept_disk()?.is_none() {
                kept.remove()?;
            }
        }
        Ok(())
    }
}

impl VmDir {
    /// From here on a VMM that runs is no microVM yet.
    pub(super) fn begin(&self) -> Result<()> {
        let path = self.file(BEGINS);
        File::create(&path).map(drop).map_err(io_error("create", &path))
    }

    /// From here on it is, or none runs.
    pub(super) fn begun(&self) -> Result<()> {
        let path = self.file(BEGINS);
        remove_if_there(&path).map_err(io_error("remove", &path))
    }

    /// Whether a VMM that runs here has not got all that it begins with.
    pub(super) fn is_beginning(&self) -> Result<bool> {
        let is_there = |name| {
            let path = self.file(name);
            fs::exists(&path).map_err(io_error("inspect", &path))
        };
        Ok(is_there(BEGINS)? || is_there(FROM)?)
    }

    /// Takes the lock as soon as whoever ends what is left over lets go of it; `None` if somebody has it for longer.
    pub(super) async fn lock_power_soon(&self) -> Result<Option<PowerLock>> {
        let until = Instant::now() + ENDING;
        loop {
            match self.lock_power()? {
                None if Instant::now() < until => sleep(LOOK_AGAIN).await,
                result => return Ok(result),
            }
        }
    }

    fn may_be_left_over(&self) -> Result<bool> {
        Ok(self.saved()?.is_some() || self.is_beginning()?)
    }

    /// What the boot that was paused was made from, and what was booted past before it, is of no use to anybody once its VMM has ended.
    pub(super) fn forget_earlier(&self) -> Result<()> {
        self.forget_abandoned()?;
        self.forget_origin()?;
        self.forget_unused_devices();
        Ok(())
    }

    /// Whether a paused microVM has anything of that still.
    fn has_earlier(&self) -> Result<bool> {
        let Some(saved) = self.saved()? else { return Ok(false) };
        Ok(self.images()?.iter().any(|image| *image != saved.snapshot) || !self.unused_devices()?.is_empty())
    }

    /// Removes the states of devices that no saved state names. Those that stay take a few kilobytes and go the next time.
    pub(super) fn forget_unused_devices(&self) {
        if let Err(error) = self.remove_unused_devices() {
            tracing::warn!(vm = %self.path().display(), %error, "states of devices that nothing needs were not removed");
        }
    }

    fn remove_unused_devices(&self) -> Result<()> {
        for path in self.unused_devices()? {
            remove_if_there(&path).map_err(io_error("remove", &path))?;
        }
        Ok(())
    }

    fn unused_devices(&self) -> Result<Vec<PathBuf>> {
        let mut unused = Vec::new();
        let used: BTreeSet<_> = self.saved_snapshots()?.iter().map(devices_name).collect();
        for entry in fs::read_dir(self.path()).map_err(io_error("list", self.path()))? {
            let name = entry.map_err(io_error("list", self.path()))?.file_name().to_string_lossy().into_owned();
            if name.ends_with(DEVICES_SUFFIX) && !used.contains(&name) {
                unused.push(self.file(&name));
            }
        }
        Ok(unused)
    }
}
