//! Tries whether an accelerator runs guests at all, for `doctor`: a device node that opens proves nothing.
//!
//! Under KVM a kernel is booted as far as its first line, because there are hosts on which the device opens, a VM is made and a
//! few instructions run, and a kernel hangs for ever. Without a kernel, and under emulation, a firmware of four instructions
//! has to answer, which takes milliseconds.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::accel::Accel;
use super::kernel::Kernel;
use crate::sys;

/// A kernel's first line comes after 0.1 s under KVM that works. One that has said nothing by then never will.
const PATIENCE: Duration = Duration::from_secs(3);

/// What a kernel says first.
const FIRST_WORDS: &str = "Linux version";

/// How a trial went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trial {
    /// The guest answered after this long.
    Ran(Duration),
    /// It did not; what was seen instead.
    Failed(String),
}

/// Runs a guest and ends it again. Leaves nothing behind.
pub(super) fn run(qemu: &Path, accel: Accel, kernel: Option<&Kernel>) -> Trial {
    let tried = match (accel, kernel) {
        (Accel::Kvm, Some(kernel)) => boot(qemu, kernel),
        (Accel::Kvm, None) | (Accel::Tcg, _) => answer(qemu, accel),
    };
    tried.unwrap_or_else(|error| Trial::Failed(format!("it could not be tried: {error}")))
}

/// Boots a kernel under KVM and waits for its first line.
fn boot(qemu: &Path, kernel: &Kernel) -> std::io::Result<Trial> {
    let mut command = bare(qemu, Accel::Kvm);
    command.arg("-kernel").arg(&kernel.image);
    command.args(["-append", "console=ttyS0 earlyprintk=serial,ttyS0,115200 panic=-1", "-serial", "stdio"]);
    let started = Instant::now();
    let mut child = Running(command.stdout(Stdio::piped()).spawn()?);
    let output = child.0.stdout.take().expect("standard output is a pipe");
    let (said, heard) = mpsc::channel();
    std::thread::spawn(move || {
        let mut lines = BufReader::new(output.take(1 << 20)).split(b'\n').map_while(Result::ok);
        let found = lines.any(|line| String::from_utf8_lossy(&line).contains(FIRST_WORDS));
        // Nobody listens any more when it took too long.
        let _ = said.send(found);
    });
    match heard.recv_timeout(PATIENCE) {
        Ok(true) => Ok(Trial::Ran(started.elapsed())),
        Ok(false) => {
            let status = child.0.wait()?;
            Ok(Trial::Failed(format!("QEMU ended at once: {}", child.last_words(status))))
        }
        Err(_) => Ok(Trial::Failed(format!("a kernel said nothing for {} s", PATIENCE.as_secs()))),
    }
}

/// Where a processor begins: sixteen bytes below the end of the firmware.
const RESET_VECTOR: usize = 0xfff0;
/// `mov al, 0x10; out 0xf4, al; hlt; jmp -3`: ends QEMU by its exit device.
const FIRMWARE: [u8; 7] = [0xb0, 0x10, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd];
/// How QEMU ends by that device: the value twice, plus one.
const ANSWER: i32 = 0x10 * 2 + 1;

/// Runs the firmware and waits for its answer.
fn answer(qemu: &Path, accel: Accel) -> std::io::Result<Trial> {
    let firmware = Firmware::write()?;
    let mut command = bare(qemu, accel);
    command.arg("-bios").arg(&firmware.path).args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]);
    let started = Instant::now();
    let mut child = Running(command.stdout(Stdio::null()).spawn()?);
    while started.elapsed() < PATIENCE {
        match child.0.try_wait()? {
            Some(status) if status.code() == Some(ANSWER) => return Ok(Trial::Ran(started.elapsed())),
            Some(status) => return Ok(Trial::Failed(format!("QEMU ended at once: {}", child.last_words(status)))),
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
    Ok(Trial::Failed(format!("a guest of four instructions did not answer within {} s", PATIENCE.as_secs())))
}

/// QEMU without anything, in the machine that guests get.
fn bare(qemu: &Path, accel: Accel) -> Command {
    let cpu = match accel {
        Accel::Kvm => "host",
        Accel::Tcg => "max",
    };
    let mut command = Command::new(qemu);
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-m", "128"]);
    command.args(["-machine", "microvm,isa-serial=on,acpi=on,rtc=on", "-accel", accel.as_str(), "-cpu", cpu]);
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    sys::die_with_parent(&mut command);
    command
}

/// A trial that is going on, ended when it is not looked at any more.
struct Running(Child);

impl Running {
    /// What QEMU said last before it ended like this.
    fn last_words(&mut self, status: ExitStatus) -> String {
        let mut text = String::new();
        if let Some(stderr) = self.0.stderr.take() {
            // What cannot be read is not worth more than the status.
            drop(stderr.take(64 << 10).read_to_string(&mut text));
        }
        let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        if last.is_empty() { status.to_string() } else { format!("{last} ({status})") }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The firmware in a file of its own, gone with the trial.
struct Firmware {
    path: PathBuf,
}

impl Firmware {
    fn write() -> std::io::Result<Self> {
        let mut rom = vec![0xf4; 1 << 16];
        rom[RESET_VECTOR..RESET_VECTOR + FIRMWARE.len()].copy_from_slice(&FIRMWARE);
        let path = std::env::temp_dir().join(format!("setpoint-trial-{}.rom", std::process::id()));
        let mut file = fs::File::options().write(true).create_new(true).open(&path)?;
        let firmware = Self { path };
        std::io::Write::write_all(&mut file, &rom)?;
        Ok(firmware)
    }
}

impl Drop for Firmware {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_of_four_instructions_answers_under_emulation() {
        let qemu = Path::new("qemu-system-x86_64");
        if Command::new(qemu).arg("--version").output().is_err() {
            eprintln!("not tested: there is no QEMU here");
            return;
        }
        let trial = run(qemu, Accel::Tcg, None);
        assert!(matches!(trial, Trial::Ran(_)), "{trial:?}");
    }

    #[test]
    fn a_program_that_is_no_vmm_fails_the_trial_with_its_own_words() {
        let trial = run(Path::new("/bin/false"), Accel::Tcg, None);
        assert_eq!(trial, Trial::Failed("QEMU ended at once: exit status: 1".to_owned()));
        assert!(matches!(run(Path::new("/nowhere"), Accel::Tcg, None), Trial::Failed(_)));
    }
}
