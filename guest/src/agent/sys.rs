//! The system calls for which no safe wrapper exists. Nothing else in this crate is unsafe.

#![expect(unsafe_code, reason = "the one module of system calls; each block says why it is sound")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::ioctl;
use rustix::process::{Gid, Uid};
use rustix::thread::{set_no_new_privs, set_thread_gid, set_thread_groups, set_thread_uid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::Owner;

/// `EXT4_IOC_RESIZE_FS` of the kernel's `fs/ext4/ext4.h`: `_IOW('f', 16, __u64)`.
const EXT4_IOC_RESIZE_FS: ioctl::Opcode = ioctl::opcode::write::<u64>(b'f', 16);

/// Grows the mounted ext4 file system that `mount_point` lies on to `blocks` blocks.
///
/// # Errors
/// The kernel refuses.
pub fn resize_ext4(mount_point: impl AsFd, blocks: u64) -> io::Result<()> {
    // SAFETY: the opcode reads one u64 and nothing else, which is what the setter passes.
    unsafe { ioctl::ioctl(mount_point, ioctl::Setter::<EXT4_IOC_RESIZE_FS, u64>::new(blocks)) }?;
    Ok(())
}

/// Lets the runtime wait for a descriptor to become readable.
///
/// # Errors
/// The runtime cannot take it.
pub fn readable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned, so it stays open and the same for as long as the runtime has it.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?)
}

/// What a child becomes between fork and exec.
#[derive(Debug)]
pub struct Confinement {
    /// The directory that becomes its root.
    pub root: Option<CString>,
    /// Its working directory, inside that root.
    pub directory: CString,
    /// Whom it runs as.
    pub owner: Option<Owner>,
    /// The `cgroup.procs` file of the group it joins.
    pub cgroup: Option<OwnedFd>,
}

/// Makes `command` start its child confined, in a session of its own, unable to gain privileges.
pub fn confine(command: &mut Command, confinement: Confinement) {
    // SAFETY: the closure runs between fork and exec. It makes system calls only and allocates nothing: all it needs was
    // allocated before, and its errors are plain numbers.
    unsafe {
        command.pre_exec(move || {
            let Confinement { root, directory, owner, cgroup } = &confinement;
            rustix::process::setsid()?;
            if let Some(cgroup) = cgroup {
                rustix::io::write(cgroup, b"0")?;
            }
            if let Some(root) = root {
                rustix::process::chroot(root.as_c_str())?;
            }
            rustix::process::chdir(directory.as_c_str())?;
            set_no_new_privs(true)?;
            if let Some(Owner { uid, gid }) = owner {
                set_thread_groups(&[])?;
                set_thread_gid(Gid::from_raw(*gid))?;
                set_thread_uid(Uid::from_raw(*uid))?;
            }
            Ok(())
        });
    }
}
