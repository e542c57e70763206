//! The command line of QEMU and of the guest's kernel.
//!
//! Effects are in processor seconds of a cold boot to the first process under emulation, which took 2.2 s without the flags and
//! 2.0 s with them (the least of four interleaved runs). What made no difference beside the noise of 0.1 s is left out:
//! `8250.nr_uarts`, `mitigations`, `raid`, `audit`, `lpj`, an uncompressed kernel image, a compressed initramfs.

use std::ffi::OsString;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use setpoint_schema::observed::Machine;

use super::accel::{Accel, tsc_khz};

/// Which of QEMU's machines a guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineType {
    /// No PCI, no firmware to speak of.
    #[default]
    Microvm,
    /// An ordinary PC.
    Q35,
}

/// What guests reach. The way to the apps does not need it: that goes over the agent's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// What this user reaches, by QEMU's user-mode network: the outside, and as 10.0.2.2 also the host's own loopback.
    #[default]
    User,
    /// Nothing.
    None,
}

/// All that goes into a command line.
pub(super) struct CommandLine<'a> {
    pub machine_type: MachineType,
    pub accel: Accel,
    pub network: Network,
    pub machine: &'a Machine,
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// Read-only root image; without one the guest uses the template in its initramfs.
    pub root: Option<PathBuf>,
    pub data: PathBuf,
    pub start: Start,
}

/// What a microVM begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Start {
    /// Its kernel, and memory that is zero.
    Boot,
    /// The same, as nobody's, with a disk that it does not look at.
    Blank {
        /// That disk.
        data: PathBuf,
    },
    /// What is loaded into it through the monitor, over this base.
    Incoming {
        /// The file that its memory maps privately.
        base: PathBuf,
    },
}

impl CommandLine<'_> {
    /// QEMU's arguments, but for the channels that the shim adds (`console`, `agent`, `qmp`).
    pub fn arguments(&self) -> Vec<OsString> {
        let mut arguments = Arguments::default();
        arguments
            // Nothing that was not asked for: no default devices, no user's configuration, no window.
            .flags(&["-nodefaults", "-no-user-config"])
            .option("-display", "none")
            // The guest's reset ends QEMU, so that its end is the daemon's to judge.
            .flags(&["-no-reboot"])
            .option("-name", format!("setpoint-{}", self.machine.sandbox))
            // QEMU opens all it needs before the guest runs: neither new processes nor other privileges after that.
            .option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
            .option("-machine", machine_option(self.machine_type, self.accel))
            .option("-accel", self.accel_option())
            .option("-cpu", cpu(self.accel))
            .option("-smp", self.machine.vcpus.to_string())
            .option("-m", format!("{}M", self.machine.memory_mib))
            .option("-object", self.memory());
        match &self.start {
            Start::Boot | Start::Blank { data: _ } => arguments
                .option("-kernel", &self.kernel)
                .option("-initrd", &self.initramfs)
                .option("-append", self.kernel_command_line()),
            // The devices' state comes without the configuration that a whole migration begins with.
            Start::Incoming { base: _ } => arguments
                .flags(&["-S"])
                .option("-incoming", "defer")
                .option("-global", "migration.send-configuration=off"),
        };
        arguments.option("-serial", "chardev:console");
        if let Some(root) = &self.root {
            arguments.disk("root", root, "readonly=on");
        }
        arguments
            // The host's page cache takes the writes; a flush of the guest is a flush.
            .disk("data", &self.data, "cache=writeback,discard=unmap")
            .option("-device", self.device("virtio-blk", "drive=data,serial=data"));
        if self.root.is_some() {
            arguments.option("-device", self.device("virtio-blk", "drive=root,serial=root"));
        }
        arguments
            .option("-device", self.device("virtio-serial", ""))
            .option("-device", "virtserialport,chardev=agent,name=setpoint.agent.0")
            .option("-netdev", self.network())
            .option("-device", self.device("virtio-net", "netdev=net"))
            .option("-object", "rng-random,id=rng,filename=/dev/urandom")
            .option("-device", self.device("virtio-rng", "rng=rng"));
        arguments.0
    }

    /// The object that is the guest's memory. A pause has to tell what was written: fresh memory is a file without a name, whose
    /// holes were not; of a base, mapped privately, the kernel knows which pages are a copy.
    fn memory(&self) -> String {
        let size = self.machine.memory_mib;
        match &self.start {
            Start::Boot | Start::Blank { data: _ } => format!("memory-backend-memfd,id=m0,size={size}M,share=on"),
            Start::Incoming { base } => {
                let base = base.to_string_lossy().replace(',', ",,");
                format!("memory-backend-file,id=m0,size={size}M,mem-path={base},share=off")
            }
        }
    }

    fn accel_option(&self) -> &'static str {
        match self.accel {
            Accel::Kvm => "kvm",
            // The default cache for translated code may grow to a gigabyte beside the guest's own memory.
            Accel::Tcg => "tcg,thread=multi,tb-size=256",
        }
    }

    fn network(&self) -> &'static str {
        match self.network {
            Network::User => "user,id=net,restrict=off",
            Network::None => "user,id=net,restrict=on",
        }
    }

    fn device(&self, kind: &str, options: &str) -> String {
        let bus = match self.machine_type {
            MachineType::Microvm => "device",
            MachineType::Q35 => "pci",
        };
        if options.is_empty() { format!("{kind}-{bus}") } else { format!("{kind}-{bus},{options}") }
    }

    fn kernel_command_line(&self) -> String {
        let mut words = vec![
            "console=ttyS0".to_owned(),
            // Each console line costs; warnings and a panic still show.
            "quiet".to_owned(),
            // A panicked guest resets at once, which ends QEMU.
            "panic=-1".to_owned(),
            // A reset by triple fault is carried out at once and by every accelerator. Left to itself the kernel tries ACPI, then a
            // keyboard controller that is not there, and at last jumps into the firmware, which runs astray in used memory.
            "reboot=t".to_owned(),
            // So that `inject-nmi` on the monitor makes a hung guest say on its console where it hangs, and ends it.
            // The machine has no port that tells reasons apart, so the kernel takes ours for a bus error.
            "unknown_nmi_panic=1".to_owned(),
            "sysctl.kernel.panic_on_unrecovered_nmi=1".to_owned(),
            // The kernel's self-tests of its ciphers: −0.3 s.
            "cryptomgr.notests".to_owned(),
            // Grace periods by interrupts rather than by waiting: −0.2 s.
            "rcupdate.rcu_expedited=1".to_owned(),
        ];
        if self.accel == Accel::Tcg {
            // Emulation gives no timer interrupt in time for the check, which then stops the boot.
            words.push("no_timer_check".to_owned());
            // The machine has no timer to calibrate against; without this the kernel hangs after "TSC unstable".
            words.extend(tsc_khz().map(|khz| format!("tsc_early_khz={khz}")));
            // It is the host's clock. A busy host makes the kernel's check of it fail, and then the clock has steps of 4 ms.
            words.push("tsc=reliable".to_owned());
        }
        let root = if self.root.is_some() { "disk" } else { "minimal" };
        words.push(format!("setpoint.nonce={}", self.machine.nonce));
        words.push(format!("setpoint.root={root}"));
        words.push(format!("setpoint.hostname={}", self.machine.app.name));
        if let Start::Blank { data: _ } = self.start {
            words.push("setpoint.begin=blank".to_owned());
        }
        words.join(" ")
    }
}

/// The machine with all its options. A description of the machine's state is left out of that state: what is loaded here comes from
/// the same version.
pub(super) fn machine_option(machine_type: MachineType, accel: Accel) -> String {
    let machine = match (machine_type, accel) {
        // Without the old timers and interrupt controllers an emulated guest boots 1.6 s slower.
        (MachineType::Microvm, Accel::Tcg) => "microvm,pit=on,pic=on,rtc=on,isa-serial=on,acpi=on",
        // ACPI stays: the modules find their virtio-mmio devices through it, and a guest powers itself off by it.
        (MachineType::Microvm, Accel::Kvm) => "microvm,pit=off,pic=off,rtc=on,isa-serial=on,acpi=on",
        (MachineType::Q35, _) => "q35,usb=off,smbus=off",
    };
    format!("{machine},memory-backend=m0,suppress-vmdesc=on")
}

/// The processor that guests see.
pub(super) fn cpu(accel: Accel) -> &'static str {
    match accel {
        Accel::Kvm => "host",
        Accel::Tcg => "max",
    }
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn flags(&mut self, names: &[&str]) -> &mut Self {
        self.0.extend(names.iter().map(Into::into));
        self
    }

    fn option(&mut self, name: &str, value: impl Into<OsString>) -> &mut Self {
        self.0.push(name.into());
        self.0.push(value.into());
        self
    }

    /// A raw image. QEMU splits its options at commas, so that one in the path is doubled.
    fn disk(&mut self, id: &str, path: &std::path::Path, options: &str) -> &mut Self {
        let path = path.to_string_lossy().replace(',', ",,");
        self.option("-drive", format!("if=none,id={id},format=raw,file={path},{options}"))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing step is a failing test")]

    use setpoint_schema::id::{BootNonce, DiskId, SandboxId, TemplateDigest};
    use setpoint_schema::name::{AppKey, AppName, Team};

    use super::*;

    fn line(machine_type: MachineType, root: Option<&str>) -> String {
        let machine = Machine {
            sandbox: SandboxId("blog-1".into()),
            app: AppKey::new(Team::default_team(), AppName::new("blog").unwrap()),
            uid: None,
            nonce: BootNonce("ab".into()),
            vcpus: 2,
            memory_mib: 256,
            template: TemplateDigest("t".into()),
            disk: DiskId("blog-1".into()),
        };
        let line = CommandLine {
            machine_type,
            accel: Accel::Tcg,
            network: Network::User,
            machine: &machine,
            kernel: "/k".into(),
            initramfs: "/i".into(),
            root: root.map(Into::into),
            data: "/d,1".into(),
            start: Start::Boot,
        };
        line.arguments().iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_root_image_is_read_only_and_announced_to_the_agent() {
        let with = line(MachineType::Microvm, Some("/r"));
        assert!(with.contains("file=/r,readonly=on") && with.contains("setpoint.root=disk"), "{with}");
        let without = line(MachineType::Microvm, None);
        assert!(!without.contains("serial=root") && without.contains("setpoint.root=minimal"), "{without}");
    }

    #[test]
    fn a_comma_in_a_path_is_no_option() {
        assert!(line(MachineType::Microvm, None).contains("file=/d,,1,"));
    }

    #[test]
    fn every_device_is_on_the_machines_own_bus() {
        assert!(!line(MachineType::Q35, None).contains("virtio-blk-device"));
        assert!(!line(MachineType::Microvm, None).contains("-pci"));
    }
}
