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

/// `FIFREEZE` and `FITHAW` of the kernel's `include/uapi/linux/fs.h`: `_IOWR('X', 119, int)` and 120. Neither reads its argument.
const FIFREEZE: ioctl::Opcode = ioctl::opcode::read_write::<u32>(b'X', 119);
const FITHAW: ioctl::Opcode = ioctl::opcode::read_write::<u32>(b'X', 120);

/// Makes the file system that `mount_point` lies on clean on its disk, and holds every writer up until it is thawed.
///
/// # Errors
/// The kernel refuses, or it is frozen already.
pub fn freeze_file_system(mount_point: impl AsFd) -> io::Result<()> {
    // SAFETY: the opcode takes an argument that the kernel does not look at.
    unsafe { ioctl::ioctl(mount_point, ioctl::Setter::<FIFREEZE, u32>::new(0)) }?;
    Ok(())
}

/// Lets writers go on.
///
/// # Errors
/// The kernel refuses, or it is not frozen.
pub fn thaw_file_system(mount_point: impl AsFd) -> io::Result<()> {
    // SAFETY: the opcode takes an argument that the kernel does not look at.
    unsafe { ioctl::ioctl(mount_point, ioctl::Setter::<FITHAW, u32>::new(0)) }?;
    Ok(())
}

/// As many bytes of entropy as one call takes.
pub const ENTROPY: usize = 64;

/// `struct rand_pool_info` of the kernel's `include/uapi/linux/random.h`.
#[repr(C)]
struct RandPoolInfo {
    entropy_bits: i32,
    bytes: i32,
    content: [u8; ENTROPY],
}

/// `RNDADDENTROPY`: `_IOW('R', 0x03, int[2])`.
const RNDADDENTROPY: ioctl::Opcode = ioctl::opcode::write::<[i32; 2]>(b'R', 0x03);
/// `RNDRESEEDCRNG`: `_IO('R', 0x07)`.
const RNDRESEEDCRNG: ioctl::Opcode = ioctl::opcode::none(b'R', 0x07);

/// Mixes entropy into the kernel's random numbers and makes it derive all further ones from that.
///
/// # Errors
/// The kernel refuses either.
pub fn reseed(random: impl AsFd, content: [u8; ENTROPY]) -> io::Result<()> {
    let info = RandPoolInfo { entropy_bits: ENTROPY as i32 * 8, bytes: ENTROPY as i32, content };
    // SAFETY: the kernel reads two numbers and then as many bytes as the second says, which is the length of the array.
    unsafe { ioctl::ioctl(&random, ioctl::Setter::<RNDADDENTROPY, RandPoolInfo>::new(info)) }?;
    // SAFETY: the opcode takes no argument.
    unsafe { ioctl::ioctl(&random, ioctl::NoArg::<RNDRESEEDCRNG>::new()) }?;
    Ok(())
}

/// `struct ifreq` of the kernel's `include/uapi/linux/if.h`, with a hardware address in it.
#[repr(C)]
struct HardwareAddress {
    interface: [u8; 16],
    family: u16,
    address: [u8; 14],
    unused: [u8; 8],
}

/// `SIOCSIFHWADDR` of the kernel's `include/uapi/linux/sockios.h`.
const SIOCSIFHWADDR: ioctl::Opcode = 0x8924;
/// `ARPHRD_ETHER` of its `if_arp.h`.
const ARPHRD_ETHER: u16 = 1;

/// Gives an Ethernet interface another address. Its name ends in a zero byte.
///
/// # Errors
/// There is none of that name, or the kernel refuses.
pub fn set_hardware_address(socket: impl AsFd, interface: [u8; 16], mac: [u8; 6]) -> io::Result<()> {
    let mut address = [0; 14];
    address[..6].copy_from_slice(&mac);
    let request = HardwareAddress { interface, family: ARPHRD_ETHER, address, unused: [0; 8] };
    // SAFETY: the kernel reads a `struct ifreq`, which has 40 bytes, as this has, and writes nothing.
    unsafe { ioctl::ioctl(socket, ioctl::Setter::<SIOCSIFHWADDR, HardwareAddress>::new(request)) }?;
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
