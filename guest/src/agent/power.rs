//! The end of a microVM.

use std::path::Path;

use rustix::fs::sync;
use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};
use rustix::system::{RebootCommand, reboot};

/// Writes everything to disk, lets go of `mounts` (the innermost first) and switches the machine off. Never returns.
pub fn off(mounts: &[&Path]) -> ! {
    sync();
    for mount in mounts {
        // What is still in use is at least made clean on disk; nothing can be done about a refusal this late.
        if unmount(*mount, UnmountFlags::empty()).is_err() {
            let _ = mount_remount(*mount, MountFlags::RDONLY, "");
        }
    }
    let _ = reboot(RebootCommand::PowerOff);
    // A kernel that cannot switch off may still reset, and QEMU takes a reset for the end too.
    let _ = reboot(RebootCommand::Restart);
    panic!("the machine goes on after its end");
}
