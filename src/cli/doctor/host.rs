//! Checks of what this machine allows and tells: limits, clock, disk.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use setpoint_vmm::qemu::Probe;

use super::{daemon_process, fail, ok, process, warn};
use crate::cli::age::duration;
use crate::config::Config;

/// API and ingress take up to 1,024 connections each, every one through the ingress has a second one to its guest, and a microVM
/// takes some six.
const ENOUGH_FILES: u64 = 4096;

pub fn open_files(config: &Config) -> Probe {
    let daemon = daemon_process(config);
    let whose = daemon.map_or_else(|| "a daemon started here".to_owned(), |pid| format!("the daemon (process {pid})"));
    match process::open_files(daemon) {
        None => {
            warn("files", format!("the limits of {whose} cannot be read"), "run it as the daemon's user, or as root")
        }
        Some((soft, _)) if soft >= ENOUGH_FILES => ok("files", format!("{whose} may open {soft}")),
        Some((soft, hard)) => {
            let least = ENOUGH_FILES.min(hard);
            let hint = format!("`ulimit -n {least}` before it starts, or LimitNOFILE=65536 in its unit");
            warn("files", format!("{whose} may open {soft}, which many connections or microVMs use up"), hint)
        }
    }
}

/// The daemon takes one instance, and a watch for each folder of refs.
const ENOUGH_INSTANCES: usize = 2;
const ENOUGH_WATCHES: u64 = 1024;

pub fn inotify(_: &Config) -> Probe {
    let limit = |name: &str| {
        let text = fs::read_to_string(format!("/proc/sys/fs/inotify/{name}")).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let (Some(instances), Some(watches)) = (limit("max_user_instances"), limit("max_user_watches")) else {
        return warn("inotify", "this kernel has none", "changes of a local repository are noticed by polling alone");
    };
    let own = process::descriptors().filter(|(pid, link)| link == "anon_inode:inotify" && is_own_user(*pid)).count();
    let left = usize::try_from(instances).unwrap_or(usize::MAX).saturating_sub(own);
    let raise =
        |what: &str| format!("`sysctl fs.inotify.{what}=…` raises it; without, a local repository is only polled");
    if left < ENOUGH_INSTANCES {
        let detail = format!("{own} of this user's {instances} instances are in use");
        warn("inotify", detail, raise("max_user_instances"))
    } else if watches < ENOUGH_WATCHES {
        warn("inotify", format!("a user has {watches} watches in all"), raise("max_user_watches"))
    } else {
        ok("inotify", format!("{left} of {instances} instances are free, {watches} watches"))
    }
}

fn is_own_user(pid: u32) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(format!("/proc/{pid}")).is_ok_and(|process| process.uid() == rustix::process::geteuid().as_raw())
}

/// The store refuses writes below this.
const STORE_STOPS: u64 = 16 << 20;
/// Below this a first kernel, template and disk do not fit.
const TIGHT: u64 = 1 << 30;

pub fn space(config: &Config) -> Probe {
    let existing = config.state.dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let place = existing.display();
    let stat = match rustix::fs::statvfs(existing) {
        Ok(stat) => stat,
        Err(error) => return fail("space", format!("{place}: {error}"), "set `dir` under [state] to a directory"),
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let detail = format!("{} MiB free at {place}", free >> 20);
    let hint = "kernels, templates and data disks live there: make room, or set `dir` under [state]";
    if free < STORE_STOPS {
        fail("space", format!("{detail}: too little to write the state"), hint)
    } else if stat.f_files > 0 && stat.f_favail < 1000 {
        warn("space", format!("{detail}, and room for only {} more files", stat.f_favail), hint)
    } else if free < TIGHT {
        warn("space", detail, hint)
    } else {
        ok("space", detail)
    }
}

/// A clock that is this far off breaks certificates and tokens.
const FAR_OFF: u64 = 60;

pub fn clock(_: &Config) -> Probe {
    const HINT: &str = "set the clock and keep it right, as with `timedatectl set-ntp true`: times of events, retention and \
                        certificates go by it";
    let Ok(now) = SystemTime::now().duration_since(UNIX_EPOCH) else {
        return fail("clock", "it stands before 1970", HINT);
    };
    if let Some(hardware) = hardware_clock() {
        let off = now.as_secs().abs_diff(hardware);
        if off > FAR_OFF && !is_zone_offset(off) {
            let side = if now.as_secs() > hardware { "ahead of" } else { "behind" };
            return warn("clock", format!("it is {} {side} the hardware's", duration(off)), HINT);
        }
    }
    match synchronised() {
        Some(false) => warn("clock", "nothing keeps it synchronised", HINT),
        Some(true) => ok("clock", "synchronised"),
        None => ok("clock", "as the hardware's; whether anything keeps it synchronised is not known here"),
    }
}

/// Seconds since 1970 by the battery-backed clock, where there is one.
fn hardware_clock() -> Option<u64> {
    fs::read_to_string("/sys/class/rtc/rtc0/since_epoch").ok()?.trim().parse().ok()
}

/// Hardware clocks of machines with another system beside Linux keep local time: off by quarters of an hour.
fn is_zone_offset(off: u64) -> bool {
    const QUARTER: u64 = 15 * 60;
    let rest = off % QUARTER;
    (QUARTER / 2..=14 * 3600).contains(&off) && rest.min(QUARTER - rest) <= FAR_OFF
}

/// What systemd says about it; none where systemd does not run.
fn synchronised() -> Option<bool> {
    if !Path::new("/run/systemd/system").exists() {
        return None;
    }
    let mut asked = Command::new("timedatectl");
    asked.args(["show", "--property=NTPSynchronized", "--value"]).stdin(Stdio::null()).stderr(Stdio::null());
    let answer = answer_within(asked, Duration::from_secs(2))?;
    match answer.trim() {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

/// What a program prints, unless it takes too long: one that waits for a bus that is not there must not hold up the rest.
fn answer_within(mut command: Command, time: Duration) -> Option<String> {
    let mut child = command.stdout(Stdio::piped()).spawn().ok()?;
    let started = Instant::now();
    while started.elapsed() < time {
        if child.try_wait().ok()?.is_some() {
            let output = child.wait_with_output().ok()?;
            return Some(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().ok()?;
    child.wait().ok()?;
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hardware_clock_in_local_time_is_not_wrong() {
        assert!(is_zone_offset(3600) && is_zone_offset(5 * 3600 + 45 * 60 - 20) && is_zone_offset(7200 + 30));
        assert!(!is_zone_offset(120) && !is_zone_offset(3600 + 300) && !is_zone_offset(30 * 3600));
    }
}
