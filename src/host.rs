//! What this machine is and has: its name, and the limits on what may run here where the configuration names none.

use std::path::Path;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use setpoint_schema::id::HostId;
use setpoint_schema::observed::Limits;
use setpoint_schema::quantity::ByteSize;

use crate::config;

/// The machine's name.
#[must_use]
pub fn id() -> HostId {
    HostId(rustix::system::uname().nodename().to_string_lossy().into())
}

/// The limits: as configured, else what the host can bear.
///
/// Memory keeps a fifth back for the host, virtual processors may be shared four ways, and disks may take what the file
/// system of `state_dir` holds: they are sparse, so their lengths are promises.
#[must_use]
pub fn limits(configured: &config::Limits, state_dir: &Path) -> Limits {
    let config::Limits { memory, vcpus, disk, sandboxes } = configured;
    Limits {
        memory: memory.unwrap_or_else(|| ByteSize::mib(total_memory().as_mib() * 4 / 5)),
        vcpus: vcpus.unwrap_or_else(|| processors() * 4),
        disk: disk.unwrap_or_else(|| file_system_size(state_dir)),
        sandboxes: sandboxes.unwrap_or(1000),
    }
}

/// Takes as many open files as the host allows: what shells and service managers give by default is less than the connections
/// that the API and the ingress serve.
pub fn allow_many_files() {
    let Rlimit { current: _, maximum } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "could not raise the limit on open files");
    }
}

fn total_memory() -> ByteSize {
    let info = rustix::system::sysinfo();
    ByteSize::bytes(info.totalram as u64 * u64::from(info.mem_unit))
}

fn processors() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

/// The size of the file system that holds `dir` or its nearest existing parent.
fn file_system_size(dir: &Path) -> ByteSize {
    let stat = dir.ancestors().find_map(|dir| rustix::fs::statvfs(dir).ok());
    stat.map_or(ByteSize::gib(10), |stat| ByteSize::bytes(stat.f_blocks.saturating_mul(stat.f_frsize)))
}
