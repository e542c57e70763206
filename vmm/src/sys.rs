//! The system calls that Rust calls unsafe, each with the reason why it is sound here. Everything else goes through rustix.

use std::ffi::c_int;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::process::{Signal, set_parent_process_death_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Makes the child die with the thread that spawns it, whatever ends that thread.
pub(crate) fn die_with_parent(command: &mut Command) {
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; this is one prctl and allocates nothing.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
}

/// Makes a descriptor one that can be awaited.
pub(crate) fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor stays the same one, and open, until the value that takes it here is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?)
}

/// What a socket has sent and its other end not read yet: nothing if that is zero. Not in bytes, but in what the kernel keeps them in.
pub(crate) fn unread(socket: BorrowedFd<'_>) -> io::Result<c_int> {
    /// `SIOCOUTQ`, from Linux's `asm-generic/ioctls.h`.
    const OUT_QUEUE: rustix::ioctl::Opcode = 0x5411;
    // SAFETY: the call writes one int, and reads nothing from the process.
    Ok(unsafe { rustix::ioctl::ioctl(socket, rustix::ioctl::Getter::<OUT_QUEUE, c_int>::new()) }?)
}

/// The processor's time stamp counter, or `None` where there is none.
#[must_use]
pub(crate) fn time_stamp() -> Option<u64> {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has the instruction, and Linux does not forbid it to user space.
    return Some(unsafe { core::arch::x86_64::_rdtsc() });
    #[cfg(not(target_arch = "x86_64"))]
    None
}
