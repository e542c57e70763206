//! What /proc says of processes: what holds a descriptor, what limits it has, what it is called.

use std::fs;
use std::path::PathBuf;

/// What a process is called, as `nginx`; `unknown` when it is gone.
pub fn name(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "unknown".to_owned() } else { name.to_owned() }
}

/// Whether a process is this program.
pub fn is_ours(pid: u32) -> bool {
    let program = |path: PathBuf| fs::read_link(path).ok().and_then(|link| link.file_name().map(ToOwned::to_owned));
    let (own, other) = (program("/proc/self/exe".into()), program(format!("/proc/{pid}/exe").into()));
    // An upgrade leaves the running program's file `(deleted)`.
    let is = |name: &std::ffi::OsString| name.to_string_lossy().trim_end_matches(" (deleted)") == "setpoint";
    // What may not be looked into is believed.
    other.is_none_or(|other| is(&other) || own.as_ref() == Some(&other))
}

/// Every process and what its descriptors lead to, as far as this user may look.
pub fn descriptors() -> impl Iterator<Item = (u32, String)> {
    let numbers = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(numbers);
    pids.flat_map(|pid| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let links = open.filter_map(|entry| fs::read_link(entry.path()).ok());
        links.map(move |link| (pid, link.to_string_lossy().into_owned())).collect::<Vec<_>>()
    })
}

/// The process that has this descriptor open.
pub fn holder(descriptor: &str) -> Option<u32> {
    descriptors().find(|(_, link)| link == descriptor).map(|(pid, _)| pid)
}

/// The soft and the hard limit of open files of a process; of this one without a number.
pub fn open_files(pid: Option<u32>) -> Option<(u64, u64)> {
    let process = pid.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
    let limits = fs::read_to_string(format!("/proc/{process}/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let mut numbers = line.split_ascii_whitespace().map(|word| word.parse().unwrap_or(u64::MAX));
    Some((numbers.next()?, numbers.next()?))
}
