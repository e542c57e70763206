//! Control groups for one microVM, where this user may make some: a guest cannot take more of the host than it was given, even
//! if it takes over its VMM. Best effort: where there are none, the VMM runs without, and `doctor` says so.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use setpoint_schema::observed::Machine;

use super::files::{io_error, read_json, write_json};
use super::process::ProcessRecord;
use super::vm_dir::{CGROUP, VmDir};
use crate::driver::Result;

const MOUNT: &str = "/sys/fs/cgroup";

/// What the VMM takes beside the guest's memory: its own, translated code, and the page cache of its disks.
const OVERHEAD_BYTES: u64 = 768 << 20;

/// The window of processor limits, in microseconds, as Linux has it by default.
const PERIOD_US: u64 = 100_000;

/// What one task weighs, by default, in each hierarchy.
const WEIGHT_V1: u64 = 1024;
const WEIGHT_V2: u64 = 100;

/// Which hierarchies there are for this process to make groups in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Hierarchy {
    /// The unified one, below this directory.
    V2(PathBuf),
    /// One per resource.
    V1 { memory: Option<PathBuf>, cpu: Option<PathBuf> },
    /// None that can be written, and why.
    None(String),
}

/// `cgroup.json`: the groups that one microVM has.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Groups {
    directories: Vec<PathBuf>,
}

impl Hierarchy {
    /// Looks where this process is.
    pub fn detect() -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::among(&own, Path::new(MOUNT))
    }

    fn among(own: &str, mount: &Path) -> Self {
        let writable = |path: PathBuf| rustix::fs::access(&path, rustix::fs::Access::WRITE_OK).is_ok().then_some(path);
        if mount.join("cgroup.controllers").exists() {
            let path = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
            let path = below(mount, path);
            return writable(path.clone())
                .map_or_else(|| Self::None(format!("{} cannot be written", path.display())), Self::V2);
        }
        let of = |controller: &str| {
            let line = own.lines().find_map(|line| {
                let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
                controllers.split(',').any(|name| name == controller).then_some(path)
            })?;
            writable(below(&mount.join(controller), line))
        };
        match (of("memory"), of("cpu")) {
            (None, None) => Self::None("no control group can be written".to_owned()),
            (memory, cpu) => Self::V1 { memory, cpu },
        }
    }

    /// In a word, for `describe`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::V2(_) => "v2",
            Self::V1 { .. } => "v1",
            Self::None(_) => "none",
        }
    }

    /// Puts the processes of a microVM into groups with the limits of its machine.
    pub fn confine(&self, vm: &VmDir, machine: &Machine, process: &ProcessRecord) -> io::Result<()> {
        let memory = (machine.memory_mib << 20) + OVERHEAD_BYTES;
        // One processor more than the guest's, for the VMM's own threads.
        let threads = u64::from(machine.vcpus + 1);
        let quota = threads * PERIOD_US;
        // One name a boot: the group of an earlier one may be emptying still.
        let name = format!("setpoint-{}-{}", machine.sandbox, process.qemu.pid);
        let plans: Vec<(PathBuf, Vec<(&str, String)>)> = match self {
            Self::None(_) => return Ok(()),
            Self::V2(parent) => {
                // Refused where the parent holds processes itself; then the limits' files are missing below.
                let _ = fs::write(parent.join("cgroup.subtree_control"), "+memory +cpu");
                let limits = vec![
                    ("memory.max", memory.to_string()),
                    ("cpu.max", format!("{quota} {PERIOD_US}")),
                    // A group weighs as much as one task however many run in it, which on a busy host starves its threads.
                    ("cpu.weight", (threads * WEIGHT_V2).min(10_000).to_string()),
                ];
                vec![(parent.join(name), limits)]
            }
            Self::V1 { memory: memory_parent, cpu } => {
                let memory = memory_parent
                    .as_ref()
                    .map(|p| (p.join(&name), vec![("memory.limit_in_bytes", memory.to_string())]));
                let cpu = cpu.as_ref().map(|parent| {
                    let weight = (threads * WEIGHT_V1).to_string();
                    (parent.join(&name), vec![("cpu.cfs_quota_us", quota.to_string()), ("cpu.shares", weight)])
                });
                memory.into_iter().chain(cpu).collect()
            }
        };
        let groups = Groups { directories: plans.iter().map(|(directory, _)| directory.clone()).collect() };
        write_json(&vm.file(CGROUP), &groups)?;
        for (directory, limits) in plans {
            fs::create_dir_all(&directory)?;
            for (file, value) in limits {
                fs::write(directory.join(file), value)?;
            }
            for pid in [process.shim.pid, process.qemu.pid] {
                fs::write(directory.join("cgroup.procs"), pid.to_string())?;
            }
        }
        Ok(())
    }
}

/// Removes the groups of a microVM whose processes have ended.
pub(super) fn release(vm: &VmDir) -> Result<()> {
    let path = vm.file(CGROUP);
    let groups: Groups = read_json(&path).map_err(io_error("read", &path))?.unwrap_or_default();
    for directory in groups.directories {
        match fs::remove_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("remove", &directory)(error)),
            _ => {}
        }
    }
    Ok(())
}

fn below(mount: &Path, path: &str) -> PathBuf {
    mount.join(path.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing step is a failing test")]

    use super::*;

    #[test]
    fn all_three_kinds_of_hosts_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Hierarchy::among("0::/\n", dir.path()), Hierarchy::None(_)));
        fs::create_dir_all(dir.path().join("memory/a")).unwrap();
        let v1 = Hierarchy::among("4:memory:/a\n1:cpu,cpuacct:/\n0::/\n", dir.path());
        assert_eq!(v1, Hierarchy::V1 { memory: Some(dir.path().join("memory/a")), cpu: None });
        fs::write(dir.path().join("cgroup.controllers"), "memory").unwrap();
        assert_eq!(Hierarchy::among("0::/\n", dir.path()), Hierarchy::V2(dir.path().join("")));
    }
}
