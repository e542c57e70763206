//! What this host offers to microVMs, for `doctor`: each thing that is leant on, whether it is there and works, and what to do
//! if not.

use std::fs::{self, File};
use std::path::Path;

use serde::Serialize;

use super::accel::{Accel, AccelChoice, ChosenAccel};
use super::cgroup::Hierarchy;
use super::initramfs::Busybox;
use super::kernel::Kernel;
use super::trial::{self, Trial};
use super::{QemuConfig, accel, disk, find_qemu, kernel, modules};
use crate::driver::VmmError;

/// Below this a first kernel, template and disk do not fit.
const MIN_FREE_BYTES: u64 = 1 << 30;

/// How one thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProbeStatus {
    /// As it should be.
    Ok,
    /// Works, with something to know.
    Warn,
    /// MicroVMs do not run like this.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Probe {
    /// What, as `kernel`.
    pub name: &'static str,
    /// How it stands.
    pub status: ProbeStatus,
    /// What was found.
    pub detail: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Probe {
    fn new(name: &'static str, status: ProbeStatus, detail: impl Into<String>, hint: Option<&str>) -> Self {
        Self { name, status, detail: detail.into(), hint: hint.map(ToOwned::to_owned) }
    }

    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self::new(name, ProbeStatus::Ok, detail, None)
    }

    fn failed(name: &'static str, error: VmmError) -> Self {
        match error {
            VmmError::Unsupported { problem, hint } => Self::new(name, ProbeStatus::Fail, problem, Some(&hint)),
            other => Self::new(name, ProbeStatus::Fail, other.to_string(), None),
        }
    }
}

/// Looks at everything; changes nothing. Tries out the accelerator, which takes some seconds where guests hang.
pub(super) fn all(config: &QemuConfig) -> Vec<Probe> {
    vec![
        qemu(config),
        accelerator(config),
        guest_kernel(config),
        busybox(config),
        mke2fs(),
        control_groups(),
        ptrace(),
        free_space(&config.dir),
    ]
}

fn qemu(config: &QemuConfig) -> Probe {
    match find_qemu(config.qemu.as_deref()) {
        Ok(found) => Probe::ok("qemu", format!("{} {}", found.path.display(), found.version)),
        Err(error) => Probe::failed("qemu", error),
    }
}

/// Says what the driver would choose, and tries it. Where it would choose emulation although the device opens, KVM is tried
/// too: that is the host on which people wonder.
fn accelerator(config: &QemuConfig) -> Probe {
    let chosen = accel::choose(config.accel);
    let Ok(qemu) = find_qemu(config.qemu.as_deref()) else { return untried(&chosen) };
    let kernel = found_kernel(config).ok().flatten();
    let try_out = |accel| trial::run(&qemu.path, accel, kernel.as_ref());
    match (chosen.accel, try_out(chosen.accel)) {
        (Accel::Kvm, Trial::Ran(after)) => {
            Probe::ok("accel", format!("kvm: {}; a guest ran within {} ms", chosen.reason, after.as_millis()))
        }
        (Accel::Kvm, Trial::Failed(why)) => Probe::new(
            "accel",
            ProbeStatus::Fail,
            format!("kvm: {}, but no guest runs under it: {why}", chosen.reason),
            Some("set `accel = \"tcg\"` under [vmm], or run on a machine whose hypervisor passes virtualisation on"),
        ),
        (Accel::Tcg, Trial::Failed(why)) => Probe::new(
            "accel",
            ProbeStatus::Fail,
            format!("tcg (emulation): no guest runs: {why}"),
            Some("reinstall the package qemu-system-x86, or set `qemu` under [vmm]"),
        ),
        (Accel::Tcg, Trial::Ran(_)) => match (config.accel, File::options().read(true).write(true).open("/dev/kvm")) {
            (AccelChoice::Auto, Ok(_)) => opens_without_flag(&chosen, &try_out(Accel::Kvm)),
            (AccelChoice::Auto | AccelChoice::Kvm | AccelChoice::Tcg, _) => untried(&chosen),
        },
    }
}

/// `/dev/kvm` opens, and the processor shows no virtualisation.
fn opens_without_flag(chosen: &ChosenAccel, kvm: &Trial) -> Probe {
    match kvm {
        Trial::Failed(why) => Probe::new(
            "accel",
            ProbeStatus::Warn,
            format!("tcg (emulation): /dev/kvm opens, but no guest runs under it: {why}"),
            Some(SLOW),
        ),
        Trial::Ran(_) => Probe::new(
            "accel",
            ProbeStatus::Warn,
            format!("tcg (emulation): {}; yet a guest ran under KVM when it was tried just now", chosen.reason),
            Some("`accel = \"kvm\"` under [vmm] insists on it"),
        ),
    }
}

const SLOW: &str = "guests run slowly, and QEMU promises no isolation under emulation: run trusted code only";

fn untried(chosen: &ChosenAccel) -> Probe {
    match chosen.accel {
        Accel::Kvm => Probe::ok("accel", format!("kvm: {}", chosen.reason)),
        Accel::Tcg => Probe::new("accel", ProbeStatus::Warn, format!("tcg (emulation): {}", chosen.reason), Some(SLOW)),
    }
}

fn found_kernel(config: &QemuConfig) -> Result<Option<Kernel>, VmmError> {
    kernel::find(config.kernel.as_deref(), config.modules.as_deref(), &config.dir.join("kernels"))
}

fn guest_kernel(config: &QemuConfig) -> Probe {
    match found_kernel(config) {
        Ok(Some(kernel)) => match modules::load(&kernel, config.machine) {
            Ok(_) => Probe::ok("kernel", format!("{} ({}), with virtio", kernel.image.display(), kernel.version)),
            Err(error) => Probe::failed("kernel", error),
        },
        Ok(None) => Probe::new(
            "kernel",
            ProbeStatus::Warn,
            "none yet; the distribution's is fetched at the first launch",
            Some("without a network: install linux-image-cloud-amd64, or set `kernel` under [vmm]"),
        ),
        Err(error) => Probe::failed("kernel", error),
    }
}

fn busybox(config: &QemuConfig) -> Probe {
    match Busybox::find(config.busybox.as_deref()).and_then(|path| Busybox::read(&path).map(|_| path)) {
        Ok(path) => Probe::ok("busybox", path.display().to_string()),
        Err(error) => Probe::failed("busybox", error),
    }
}

fn mke2fs() -> Probe {
    let (mke2fs, debugfs) = (disk::tool("mke2fs"), disk::tool("debugfs"));
    if mke2fs.is_absolute() && debugfs.is_absolute() {
        return Probe::ok("mke2fs", mke2fs.display().to_string());
    }
    Probe::new("mke2fs", ProbeStatus::Fail, "mke2fs or debugfs is missing", Some("install the package e2fsprogs"))
}

fn control_groups() -> Probe {
    match Hierarchy::detect() {
        Hierarchy::None(reason) => Probe::new(
            "cgroups",
            ProbeStatus::Warn,
            format!("none: {reason}"),
            Some("run the daemon in a delegated group, as with Delegate=yes of systemd, to have VMMs bounded"),
        ),
        found @ (Hierarchy::V1 { .. } | Hierarchy::V2(_)) => Probe::ok("cgroups", found.as_str()),
    }
}

/// Copy-on-write snapshots read the memory of a VMM that an earlier daemon started.
fn ptrace() -> Probe {
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    match scope.trim() {
        "" | "0" => Probe::ok("ptrace", "not restricted"),
        _ if rustix::process::geteuid().is_root() => Probe::ok("ptrace", "restricted, but not for root"),
        scope => Probe::new(
            "ptrace",
            ProbeStatus::Warn,
            format!("kernel.yama.ptrace_scope is {scope}"),
            Some("snapshots of a microVM that an earlier daemon started take the slower way"),
        ),
    }
}

fn free_space(dir: &Path) -> Probe {
    let existing = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(existing) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let detail = format!("{} MiB free at {}", free >> 20, existing.display());
            if free >= MIN_FREE_BYTES {
                Probe::ok("space", detail)
            } else {
                Probe::new("space", ProbeStatus::Warn, detail, Some("kernels, templates and data disks live there"))
            }
        }
        Err(error) => Probe::new("space", ProbeStatus::Fail, format!("{}: {error}", existing.display()), None),
    }
}
