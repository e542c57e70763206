//! Which accelerator QEMU is given, and why.
//!
//! The device node proves nothing: on a host that is itself nested without hardware virtualisation `/dev/kvm` opens, a VM can
//! be made, and its guest hangs for ever. So KVM also needs the processor's own flag.

use std::fs::{self, File};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::sys::time_stamp;

/// What the configuration says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccelChoice {
    /// KVM where it truly works, else emulation.
    #[default]
    Auto,
    /// KVM, whatever the host looks like.
    Kvm,
    /// Emulation.
    Tcg,
}

/// An accelerator of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// The host's processor runs the guest.
    Kvm,
    /// QEMU translates the guest's instructions: slow, and no isolation that QEMU would promise.
    Tcg,
}

impl Accel {
    /// As QEMU spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// An accelerator and the reason for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChosenAccel {
    /// Which.
    pub accel: Accel,
    /// Why, as `/dev/kvm cannot be opened: permission denied`.
    pub reason: String,
}

/// Chooses for this host.
pub(super) fn choose(choice: AccelChoice) -> ChosenAccel {
    match choice {
        AccelChoice::Kvm => ChosenAccel { accel: Accel::Kvm, reason: "configured".to_owned() },
        AccelChoice::Tcg => ChosenAccel { accel: Accel::Tcg, reason: "configured".to_owned() },
        AccelChoice::Auto => {
            let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
            decide(has_virtualisation_flag(&cpuinfo), || {
                File::options().read(true).write(true).open("/dev/kvm").map(drop)
            })
        }
    }
}

fn decide(has_flag: bool, open_kvm: impl FnOnce() -> std::io::Result<()>) -> ChosenAccel {
    let tcg = |reason| ChosenAccel { accel: Accel::Tcg, reason };
    if !has_flag {
        return tcg("the processor shows neither vmx nor svm, so that a guest under /dev/kvm would hang".to_owned());
    }
    match open_kvm() {
        Ok(()) => {
            ChosenAccel { accel: Accel::Kvm, reason: "the processor has vmx or svm, and /dev/kvm opens".to_owned() }
        }
        Err(error) => tcg(format!("/dev/kvm cannot be opened: {error}")),
    }
}

fn has_virtualisation_flag(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split_ascii_whitespace().any(|flag| flag == "vmx" || flag == "svm")
}

/// The rate of the host's time stamp counter, which an emulated guest sees too and cannot measure on a machine without an old
/// timer. Measured once: the frequency in `/proc/cpuinfo` is that of the moment on some processors.
pub(super) fn tsc_khz() -> Option<u64> {
    static MEASURED: OnceLock<Option<u64>> = OnceLock::new();
    *MEASURED.get_or_init(measure_tsc_khz)
}

/// Long enough that the microsecond around each reading is below the drift that Linux corrects by itself (500 ppm).
const MEASURE: Duration = Duration::from_millis(20);

fn measure_tsc_khz() -> Option<u64> {
    let (started, first) = (Instant::now(), time_stamp()?);
    std::thread::sleep(MEASURE);
    let (elapsed, last) = (started.elapsed(), time_stamp()?);
    u64::try_from(u128::from(last.checked_sub(first)?) * 1_000_000 / elapsed.as_nanos()).ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing step is a failing test")]

    use std::io;

    use super::*;

    #[test]
    fn an_open_device_without_the_processor_flag_is_not_believed() {
        assert_eq!(decide(false, || Ok(())).accel, Accel::Tcg);
        assert_eq!(decide(true, || Err(io::ErrorKind::PermissionDenied.into())).accel, Accel::Tcg);
        assert_eq!(decide(true, || Ok(())).accel, Accel::Kvm);
    }

    #[test]
    fn the_flag_is_a_whole_word_of_the_flags_line() {
        assert!(has_virtualisation_flag("model name: x\nflags\t\t: fpu svm tsc\n"));
        assert!(!has_virtualisation_flag("model name: svm\nflags\t\t: fpu svm_lock tsc\n"));
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_measured_rate_is_that_of_a_processor() {
        let khz = measure_tsc_khz().unwrap();
        assert!((500_000..10_000_000).contains(&khz), "{khz}");
    }
}
