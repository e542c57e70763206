//! What a paused microVM is: the records beside its other files, and what must be the same for it to go on.
//!
//! ```text
//! vms/<sandbox>/saved.json         the microVM is paused, whatever else is there: a VMM that still runs is left over from a pause
//!                                  or a resume that was cut short, and has changed nothing since
//!               <snapshot>.state   its devices, as QEMU wrote them
//!               origin.json        what the memory of the boot that runs was made from
//!               abandoned.json     a saved.json that was booted past: its disk has gone on, so it can never be resumed
//!               power.lock         held while the microVM is being paused or resumed
//! ```
//!
//! A guest is frozen from before it is stopped until after `saved.json` is gone again, so that its disk stays as it was saved.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use setpoint_schema::id::{BootNonce, SnapshotId, hex};
use setpoint_schema::observed::{Moment, VmState};
use setpoint_schema::quantity::ByteSize;
use sha2::{Digest as _, Sha256};

use super::files::{io_error, read_json, remove_if_there, write_json};
use super::vm_dir::VmDir;
use crate::driver::{Result, Taken};

pub(super) const SAVED: &str = "saved.json";
pub(super) const ORIGIN: &str = "origin.json";
const ABANDONED: &str = "abandoned.json";
const LOCK: &str = "power.lock";
pub(super) const FROM: &str = "from.json";

/// The form of `saved.json`. Another one is not resumed.
pub(super) const VERSION: u32 = 1;

/// `saved.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedRecord {
    /// [`VERSION`].
    pub version: u32,
    /// The boot that was paused.
    pub nonce: BootNonce,
    /// The image of its memory.
    pub snapshot: SnapshotId,
    /// When.
    pub at: Timestamp,
    /// What it ran on.
    pub shape: Shape,
    /// The SHA-256 of its devices' state, in hex.
    pub devices: String,
    /// What all of it takes on the disk.
    pub bytes: u64,
    /// How long its data disk was, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// Why it could not be resumed, the last time that was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// Of a kept moment, what else is to be told of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<KeptRecord>,
}

/// What there was when a snapshot was taken, and how that went: whoever takes it again is told the same, for the daemon may have died
/// before it had written that down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeptRecord {
    /// As it was said then.
    pub moment: Moment,
    /// How long the microVM stood still, in microseconds.
    pub stopped_us: u64,
    /// How much of its memory it had written, in bytes.
    pub written: u64,
}

impl KeptRecord {
    /// As the trait has it.
    pub fn taken(self, at: Timestamp, bytes: u64) -> Taken {
        let Self { moment, stopped_us, written } = self;
        let (written, bytes) = (ByteSize::bytes(written), ByteSize::bytes(bytes));
        Taken { at, moment, stopped: Duration::from_micros(stopped_us), written, bytes }
    }
}

/// In whole microseconds.
pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// `origin.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OriginRecord {
    /// The boot that runs.
    pub nonce: BootNonce,
    /// The image that its memory was made from.
    pub snapshot: SnapshotId,
}

/// All that a saved state belongs to: under anything else QEMU would not understand it, or the guest go astray.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shape {
    /// QEMU's version.
    pub qemu: String,
    /// Its machine, with all options.
    pub machine: String,
    /// The accelerator.
    pub accel: String,
    /// The processor that the guest sees.
    pub cpu: String,
    /// How many of them.
    pub vcpus: u32,
    /// The guest's memory, in MiB.
    pub memory_mib: u64,
    /// The content of its root, which it has mounted.
    pub template: String,
    /// Its data disk, which it has mounted.
    pub disk: String,
}

impl Shape {
    /// What differs, in words; `None` if nothing does.
    pub fn difference(&self, saved: &Self) -> Option<String> {
        let Self { qemu, machine, accel, cpu, vcpus, memory_mib, template, disk } = self;
        let pairs = [
            ("QEMU", qemu.clone(), saved.qemu.clone()),
            ("the machine", machine.clone(), saved.machine.clone()),
            ("the accelerator", accel.clone(), saved.accel.clone()),
            ("the processor", cpu.clone(), saved.cpu.clone()),
            ("the number of processors", vcpus.to_string(), saved.vcpus.to_string()),
            ("the memory", format!("{memory_mib} MiB"), format!("{} MiB", saved.memory_mib)),
            ("the template", template.clone(), saved.template.clone()),
            ("the data disk", disk.clone(), saved.disk.clone()),
        ];
        pairs
            .into_iter()
            .find(|(_, now, then)| now != then)
            .map(|(what, now, then)| format!("{what} was {then} and is {now}"))
    }
}

impl SavedRecord {
    /// As the trait has it.
    pub fn state(self) -> VmState {
        let Self { nonce, at, bytes, fault, .. } = self;
        VmState::Paused { nonce, since: at, bytes: ByteSize::bytes(bytes), fault }
    }
}

/// Held by whoever pauses or resumes a microVM, in this process or another.
#[derive(Debug)]
pub(super) struct PowerLock {
    _file: File,
}

impl VmDir {
    /// Takes the lock; `None` while somebody else has it.
    pub(super) fn lock_power(&self) -> Result<Option<PowerLock>> {
        let path = self.file(LOCK);
        let mut options = File::options();
        let file = options.create(true).truncate(false).write(true).open(&path).map_err(io_error("open", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(PowerLock { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(io_error("lock", &path)(error.into())),
        }
    }

    /// The saved state, if the microVM is paused.
    pub(super) fn saved(&self) -> Result<Option<SavedRecord>> {
        let path = self.file(SAVED);
        read_json(&path).map_err(io_error("read", &path))
    }

    /// From here on the microVM is paused.
    pub(super) fn write_saved(&self, saved: &SavedRecord) -> Result<()> {
        let path = self.file(SAVED);
        write_json(&path, saved).map_err(io_error("write", &path))?;
        self.sync_names()
    }

    /// From here on the microVM is not paused any more, but runs with a memory that was made from `origin`.
    pub(super) fn commit_resumed(&self, origin: &OriginRecord) -> Result<()> {
        let path = self.file(ORIGIN);
        write_json(&path, origin).map_err(io_error("write", &path))?;
        self.sync_names()?;
        let path = self.file(SAVED);
        fs::remove_file(&path).map_err(io_error("remove", &path))?;
        self.sync_names()
    }

    /// What the memory of the boot `nonce` was made from; nothing if it began with zeros.
    pub(super) fn origin(&self, nonce: &BootNonce) -> Result<Option<SnapshotId>> {
        Ok(self.any_origin()?.filter(|origin| origin.nonce == *nonce).map(|origin| origin.snapshot))
    }

    fn any_origin(&self) -> Result<Option<OriginRecord>> {
        let path = self.file(ORIGIN);
        read_json(&path).map_err(io_error("read", &path))
    }

    /// From here on the microVM is booted from its disk. A saved state is kept, and never resumed.
    pub(super) fn abandon_saved(&self) -> Result<()> {
        let (saved, abandoned, origin) = (self.file(SAVED), self.file(ABANDONED), self.file(ORIGIN));
        // From the first boot on the disk is the microVM's own, wherever it came from.
        let from = self.file(FROM);
        remove_if_there(&from).map_err(io_error("remove", &from))?;
        match fs::rename(&saved, &abandoned) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("rename", &saved)(error)),
            Ok(()) | Err(_) => {}
        }
        remove_if_there(&origin).map_err(io_error("remove", &origin))?;
        self.sync_names()
    }

    /// A newer state was saved: what was booted past is of no use to anybody.
    pub(super) fn forget_abandoned(&self) -> Result<()> {
        let path = self.file(ABANDONED);
        remove_if_there(&path).map_err(io_error("remove", &path))
    }

    /// The images that this microVM needs.
    pub(super) fn images(&self) -> Result<Vec<SnapshotId>> {
        let mut images = self.saved_snapshots()?;
        images.extend(self.any_origin()?.map(|origin| origin.snapshot));
        Ok(images)
    }

    /// The snapshots that it could go on from, and that it was booted past. Looked at in the order in which a state moves on from
    /// one file to the other, so that none is missed on its way.
    pub(super) fn saved_snapshots(&self) -> Result<Vec<SnapshotId>> {
        let saved = self.saved()?;
        let abandoned = self.file(ABANDONED);
        let abandoned: Option<SavedRecord> = read_json(&abandoned).map_err(io_error("read", &abandoned))?;
        Ok(saved.into_iter().chain(abandoned).map(|saved| saved.snapshot).collect())
    }

    /// Where QEMU writes the state of its devices.
    pub(super) fn devices(&self, snapshot: &SnapshotId) -> PathBuf {
        self.file(&devices_name(snapshot))
    }

    /// Makes the names of its files last until after a power cut.
    fn sync_names(&self) -> Result<()> {
        File::open(self.path()).and_then(|dir| dir.sync_all()).map_err(io_error("sync", self.path()))
    }
}

/// The file that QEMU, which runs in the microVM's directory, writes its devices' state to.
pub(super) fn devices_name(snapshot: &SnapshotId) -> String {
    format!("{snapshot}.state")
}

/// A file's SHA-256, in hex.
pub(super) fn checksum(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}
