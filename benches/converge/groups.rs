//! Control groups like those of a microVM, so that on a busy host both sides of a comparison get the same share of it.

use std::fs;
use std::path::{Path, PathBuf};

/// The limits that Setpoint sets, in both versions of control groups.
const LIMITS: [&str; 6] =
    ["cpu.shares", "cpu.cfs_quota_us", "memory.limit_in_bytes", "cpu.weight", "cpu.max", "memory.max"];

/// Groups of our own, removed when dropped.
pub struct Groups(Vec<PathBuf>);

impl Groups {
    /// Beside each group that a microVM's `cgroup.json` names one with the same limits; none where the microVM has none.
    pub fn like(record: &Path) -> Self {
        let record: serde_json::Value =
            serde_json::from_slice(&fs::read(record).unwrap_or_default()).unwrap_or_default();
        let directories = record["directories"].as_array().into_iter().flatten().filter_map(|path| path.as_str());
        Self(directories.map(|original| beside(Path::new(original))).collect())
    }

    /// Moves a process into them.
    pub fn take(&self, pid: u32) {
        for directory in &self.0 {
            fs::write(directory.join("cgroup.procs"), pid.to_string()).unwrap();
        }
    }
}

fn beside(original: &Path) -> PathBuf {
    let mut name = original.as_os_str().to_owned();
    name.push("-by-hand");
    let directory = PathBuf::from(name);
    fs::create_dir_all(&directory).unwrap();
    for limit in LIMITS {
        if let Ok(value) = fs::read(original.join(limit)) {
            fs::write(directory.join(limit), value).unwrap();
        }
    }
    directory
}

impl Drop for Groups {
    fn drop(&mut self) {
        for directory in &self.0 {
            let _ = fs::remove_dir(directory);
        }
    }
}
