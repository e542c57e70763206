//! From the configuration to the parts that touch the world: the driver, the repository, the rendering child.

use std::borrow::Cow;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use setpoint_vmm::driver::{Driver, VmmError};
use setpoint_vmm::qemu::{AccelChoice, MachineType, QemuConfig, QemuDriver};
use setpoint_vmm::sim::SimDriver;

use crate::agent::AGENT;
use crate::config::{Accel, Config, ConfigError, DriverKind};
use crate::source::{SourceConfig, SourceLimits};

/// The driver that the configuration names.
///
/// # Errors
/// When its directory cannot be made or something that it needs is missing.
pub fn driver(config: &Config) -> Result<Arc<dyn Driver>, VmmError> {
    Ok(match config.vmm.driver {
        DriverKind::Qemu => Arc::new(QemuDriver::new(qemu_config(config))?),
        DriverKind::Sim => Arc::new(SimDriver::new(config.vmm_dir())),
    })
}

/// How QEMU is run.
#[must_use]
pub fn qemu_config(config: &Config) -> QemuConfig {
    QemuConfig {
        dir: config.vmm_dir(),
        kernel: config.vmm.kernel.clone(),
        modules: config.vmm.modules.clone(),
        accel: match config.vmm.accel {
            Accel::Auto => AccelChoice::Auto,
            Accel::Kvm => AccelChoice::Kvm,
            Accel::Tcg => AccelChoice::Tcg,
        },
        machine: MachineType::default(),
        network: config.vmm.network,
        qemu: config.vmm.qemu.clone(),
        shim: own_command("vm-shim"),
        agent: Cow::Borrowed(AGENT),
        busybox: config.vmm.busybox.clone(),
    }
}

/// The repository that the configuration names.
///
/// # Errors
/// When it names none.
pub fn source_config(config: &Config) -> Result<SourceConfig, ConfigError> {
    Ok(SourceConfig {
        url: config.source_url()?.to_owned(),
        branch: config.source.branch.clone(),
        path: config.source.path.clone(),
        state_dir: config.state.dir.clone(),
        limits: source_limits(config),
    })
}

/// How much of a revision is read at most.
#[must_use]
pub fn source_limits(config: &Config) -> SourceLimits {
    SourceLimits { files: config.source.max_files, ..SourceLimits::default() }
}

/// The command that renders untrusted declarations in a process of its own.
#[must_use]
pub fn render_child() -> Vec<OsString> {
    own_command(crate::render::CHILD_COMMAND)
}

/// This very binary with a hidden subcommand. The link under /proc stays right when the file is replaced by an upgrade.
fn own_command(subcommand: &str) -> Vec<OsString> {
    let exe = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
    vec![exe.into_os_string(), subcommand.into()]
}
