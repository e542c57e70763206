//! The seam between the reconciler and whatever runs microVMs.
//!
//! A driver keeps its VMs outside the daemon: they outlive it, and a new driver over the same directory finds them all by
//! [`Driver::list`]. Every method is idempotent, so that a step that was cut short can be carried out again.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use setpoint_schema::id::{BlobId, BootNonce, DiskId, SandboxId, SnapshotId, TemplateDigest, TreeDigest};
use setpoint_schema::observed::{GuestStatus, Machine, Moment, VmState};
use setpoint_schema::quantity::{ByteSize, Span};
use setpoint_schema::runtime::ProcessSet;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use crate::memory::MemoryError;

/// What went wrong with a microVM, as operation and subject; the cause is the source.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// A file operation of the driver failed.
    #[error("could not {operation} {path}")]
    Io {
        /// What was tried, as `write`.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The VMM did not start, or its monitor refused a command.
    #[error("{vmm} {problem}")]
    Vmm {
        /// Which VMM, as `qemu`.
        vmm: &'static str,
        /// What it said, bounded.
        problem: String,
    },
    /// The guest could not be asked or refused.
    #[error("guest {sandbox} {problem}")]
    Guest {
        /// Which guest.
        sandbox: SandboxId,
        /// What it said or did, bounded.
        problem: String,
    },
    /// A microVM's memory could not be kept or brought back.
    #[error("could not keep or bring back the memory of {sandbox}")]
    Memory {
        /// Whose.
        sandbox: SandboxId,
        /// The cause.
        #[source]
        source: MemoryError,
    },
    /// Something the machine or the host lacks, with what to do about it.
    #[error("{problem}")]
    Unsupported {
        /// What is missing.
        problem: String,
        /// What to do about it.
        hint: String,
    },
}

/// The result of everything here.
pub type Result<T> = std::result::Result<T, VmmError>;

/// Runs microVMs of one kind on this host.
#[async_trait]
pub trait Driver: Send + Sync + 'static {
    /// What it is and what it leans on, for `doctor` and status, as `qemu 7.2.22, accel tcg`.
    fn describe(&self) -> String;

    /// Every microVM that this driver's directory holds, running or not.
    async fn list(&self) -> Result<Vec<Machine>>;

    /// Those that are not among `known`: asked now and then, when nearly all are, so a driver need not look into those.
    async fn list_beyond(&self, known: &BTreeSet<SandboxId>) -> Result<Vec<Machine>> {
        let all = self.list().await?;
        Ok(all.into_iter().filter(|machine| !known.contains(&machine.sandbox)).collect())
    }

    /// What one microVM is doing, asked of its VMM and not of a record.
    async fn observe(&self, sandbox: &SandboxId) -> Result<VmState>;

    /// The processor time that the VMM of a running microVM has taken so far; nothing where none runs, or it cannot be told.
    async fn cpu_time(&self, _sandbox: &SandboxId) -> Result<Option<Duration>> {
        Ok(None)
    }

    /// Resolves when `sandbox` no longer runs the boot `nonce`; at once if it does not now.
    async fn exited(&self, sandbox: &SandboxId, nonce: &BootNonce);

    /// Makes sure that `machine` runs with its nonce; another boot of the same sandbox must have ended before.
    /// Returns when the VMM has accepted the machine, long before the guest is up.
    ///
    /// Where a warm template is there for such a machine, it begins as a copy of that instead of booting.
    async fn launch(&self, machine: &Machine) -> Result<Launched>;

    /// Makes the warm template that machines like this one begin from, unless it is there: boots one that is nobody's, and saves
    /// it. Takes as long as a boot. A driver without warm templates has nothing to do.
    async fn prewarm(&self, _machine: &Machine) -> Result<()> {
        Ok(())
    }

    /// Removes the warm templates that none of these machines could begin from.
    async fn keep_warm(&self, _machines: &[Machine]) -> Result<()> {
        Ok(())
    }

    /// Ends what a launch, a pause or a resume of this microVM that was cut short has left running, while [`observe`](Self::observe)
    /// says that it does not run. What is being done by somebody is left alone.
    async fn settle(&self, _sandbox: &SandboxId) -> Result<()> {
        Ok(())
    }

    /// Ends and removes what belongs to no microVM and was left unfinished: machines that were to become warm templates, snapshots
    /// that were being taken. To be called while nobody makes either.
    async fn clear_up(&self) -> Result<()> {
        Ok(())
    }

    /// Merges what is kept of paused microVMs in many parts, and removes files that nothing needs any more. To be called now and then,
    /// while little else is done; it costs next to nothing when nothing was paused or removed since. Nobody waits for it. Says which
    /// microVMs are kept in another form now.
    async fn tidy(&self, _cancel: &CancellationToken) -> Result<Vec<SandboxId>> {
        Ok(Vec::new())
    }

    /// Pauses a boot: its memory and devices go into files, and only when all of that is on the disk and was read again does it
    /// end. Cut short at any moment, the microVM either runs on, once somebody talks to its [`guest`](Self::guest), or is paused
    /// as a whole. Pausing what is paused is as good as once.
    async fn pause(&self, pause: Pause<'_>) -> Result<Paused>;

    /// Makes a paused microVM go on where it was, as the boot that `machine` names: with the time, the random numbers and the
    /// names of its own before any of its processes runs again. After an error it is paused as before, and
    /// [`observe`](Self::observe) says why.
    ///
    /// A [`launch`](Self::launch) boots a paused microVM from its disk instead. What was saved stays until something else is.
    async fn resume(&self, machine: &Machine) -> Result<()>;

    /// Keeps memory and disk of one moment of a running boot, which goes on, or of a paused microVM, which stays so. Keeping what is
    /// kept is as good as once, and says what was said then.
    async fn take_snapshot(&self, take: Take<'_>) -> Result<Taken>;

    /// Makes sure that `machine` runs with its nonce, begun where the snapshot was taken, with a copy of its disk and an identity of
    /// its own. One whose disk is its own already, because it has begun before, boots from that.
    async fn launch_from(&self, machine: &Machine, snapshot: &SnapshotId) -> Result<()>;

    /// Keeps the data disk of a microVM alone, as it is at one moment. One that runs stands still until QEMU has begun to copy, with its
    /// file system clean; one that is paused or has ended is not started meanwhile. Keeping what is kept is as good as once, and says
    /// what was said then.
    async fn keep_disk(&self, keep: KeepDisk<'_>) -> Result<Taken>;

    /// Makes a data disk as a copy of the one in a snapshot, at least `size` long. One that is there is another try's or a microVM's own,
    /// and stays as it is. [`Guest::leave_out`] is for what the copy is not to have.
    ///
    /// In a snapshot with memory the disk is as after a power cut: what the guest had not written yet is in its memory alone.
    async fn ensure_disk_from(&self, disk: &DiskId, snapshot: &SnapshotId, size: ByteSize) -> Result<()>;

    /// Every snapshot that was kept, with what it takes on the disk.
    async fn list_snapshots(&self) -> Result<Vec<(SnapshotId, ByteSize)>>;

    /// Removes a snapshot. What began from it runs on.
    async fn remove_snapshot(&self, snapshot: &SnapshotId) -> Result<()>;

    /// Ends the microVM now, without asking the guest. Its directory stays.
    async fn kill(&self, sandbox: &SandboxId) -> Result<()>;

    /// Removes the directory, sockets and logs of a microVM that has ended. Data disks are not in there.
    async fn remove(&self, sandbox: &SandboxId) -> Result<()>;

    /// Makes the data disk, or grows it, telling a running VMM. Never shrinks.
    async fn ensure_disk(&self, disk: &DiskId, size: ByteSize, user: Option<&SandboxId>) -> Result<()>;

    /// The length of a data disk, or `None` when there is none.
    async fn disk_size(&self, disk: &DiskId) -> Result<Option<ByteSize>>;

    /// Every data disk that this driver's directory holds.
    async fn list_disks(&self) -> Result<Vec<(DiskId, ByteSize)>>;

    /// Deletes a data disk that nothing uses.
    async fn delete_disk(&self, disk: &DiskId) -> Result<()>;

    /// Whether the template's root image is made.
    async fn has_template(&self, digest: &TemplateDigest) -> Result<bool>;

    /// Makes the template's root image from a directory or tar archive; `None` makes the built-in one.
    async fn make_template(&self, digest: &TemplateDigest, root: Option<TemplateSource>) -> Result<()>;

    /// Connects to the agent of a running microVM and proves that it is the boot `nonce`.
    async fn guest(&self, sandbox: &SandboxId, nonce: &BootNonce) -> Result<Arc<dyn Guest>>;

    /// The last bytes of the guest's console, at most `limit`.
    async fn console_tail(&self, sandbox: &SandboxId, limit: usize) -> Result<Vec<u8>>;
}

/// How a microVM began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Launched {
    /// It ran already.
    Already,
    /// As a copy of its warm template.
    Warm,
    /// By booting.
    Cold(Cold),
}

/// Why a microVM booted rather than begin from a warm template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cold {
    /// There is none; [`Driver::prewarm`] makes one.
    NotWarm,
    /// It could not be used, for this reason, and was given up.
    Failed(String),
}

/// What to pause, and how.
#[derive(Clone, Copy)]
pub struct Pause<'a> {
    /// Which microVM.
    pub sandbox: &'a SandboxId,
    /// Which boot of it.
    pub nonce: &'a BootNonce,
    /// What the saved state is called: never used before, but by an earlier try of this.
    pub snapshot: &'a SnapshotId,
    /// The connection to its agent, which makes it stand still.
    pub agent: &'a dyn Guest,
    /// Cancelled when nobody wants the pause any more. It is looked at until the microVM is paused.
    pub cancel: &'a CancellationToken,
}

/// What to keep a moment of.
#[derive(Clone, Copy)]
pub struct Take<'a> {
    /// Which microVM.
    pub sandbox: &'a SandboxId,
    /// What the snapshot is called: never used before, but by an earlier try of this.
    pub snapshot: &'a SnapshotId,
    /// The connection to the agent of the boot that runs, which makes its processes stand still; none if it is paused.
    pub agent: Option<&'a dyn Guest>,
    /// What there is of it now. Kept with it, because by the next try there may be something else.
    pub moment: &'a Moment,
}

/// What to keep the disk of.
#[derive(Clone, Copy)]
pub struct KeepDisk<'a> {
    /// Which microVM has it.
    pub sandbox: &'a SandboxId,
    /// Which disk.
    pub disk: &'a DiskId,
    /// What the snapshot is called: never used before, but by an earlier try of this.
    pub snapshot: &'a SnapshotId,
    /// The connection to the agent of the boot that runs; none if it is paused or has ended.
    pub agent: Option<&'a dyn Guest>,
    /// As in [`Take`].
    pub moment: &'a Moment,
}

/// A moment that was kept, now or by an earlier try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// When.
    pub at: Timestamp,
    /// What there was then.
    pub moment: Moment,
    /// How long the microVM stood still for it: its processors, or, where only the disk was kept, its processes. Zero for one at rest.
    pub stopped: Duration,
    /// How much of its memory it had written since it began; zero where none was read.
    pub written: ByteSize,
    /// What its files take on the disk.
    pub bytes: ByteSize,
}

/// What became of a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paused {
    /// It is paused.
    Saved {
        /// What its files take on the disk.
        bytes: ByteSize,
    },
    /// It was cancelled in time, and the microVM runs on.
    Cancelled,
}

/// What a template's root image is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplateSource {
    /// A directory on the host, owners and modes as they are.
    Directory(PathBuf),
    /// A tar archive, plain or gzip.
    Tar(PathBuf),
    /// A directory that was written from a repository: everything belongs to root.
    Exported(PathBuf),
}

/// The agent of one boot of one microVM, seen from the host.
///
/// Everything that it answers is a guest's word: bounded, and never trusted beyond this guest.
#[async_trait]
pub trait Guest: Send + Sync {
    /// The boot that was proved at connecting.
    fn nonce(&self) -> &BootNonce;

    /// The guest's status now.
    async fn status(&self) -> Result<Arc<GuestStatus>>;

    /// The guest's status as soon as it differs from `known`, or nothing after `wait` if the guest then answers that it does not.
    async fn status_change(&self, known: &GuestStatus, wait: Span) -> Result<Option<Arc<GuestStatus>>>;

    /// What git put into the workspace, as far as the guest has recorded it.
    async fn manifest(&self) -> Result<Manifest>;

    /// Brings the workspace from one manifest to another by their difference: `changed` arrive in order, `removed` go; files
    /// that git never had stay. The guest records `tree` only when all of it is in place.
    async fn sync(
        &self,
        tree: &TreeDigest,
        changed: BoxStream<'static, Result<WorkspaceFile>>,
        removed: Vec<String>,
    ) -> Result<()>;

    /// Runs `set`: build first where asked, then (re)starts. Returns when accepted; progress shows in the status.
    async fn apply(&self, set: &ProcessSet, build: bool, restart: RestartScope) -> Result<()>;

    /// Grows the data file system to its disk.
    async fn grow_disk(&self) -> Result<()>;

    /// The log of `web`, `build` or a worker: the last `tail` lines, and what follows when `follow`.
    async fn logs(&self, process: &str, tail: u32, follow: bool) -> Result<BoxStream<'static, Result<Vec<u8>>>>;

    /// Runs a command as the unprivileged user in the workspace.
    async fn exec(&self, argv: Vec<String>) -> Result<ExecOutput>;

    /// Connects to a port on the guest's localhost.
    async fn open_port(&self, port: u16) -> Result<Pin<Box<dyn Duplex>>>;

    /// Stops the user's processes where they are, and makes the data file system clean and still, until [`Self::thaw`]. Only the
    /// driver asks for this: what stands still answers hardly anything.
    async fn freeze(&self) -> Result<()>;

    /// The same without the file system.
    async fn freeze_processes(&self) -> Result<()>;

    /// Makes a frozen guest that was restored one of its own: the clock first, then the random numbers, then its names. After an
    /// error it must not be thawed.
    async fn renew(&self, renewal: &Renewal) -> Result<()>;

    /// Removes the directories of these names from the workspace, wherever they are in it, before anything was applied: a disk that is a
    /// copy need not have what can be made again. Once for each snapshot, so that what is made later stays.
    async fn leave_out(&self, snapshot: &SnapshotId, names: &[String]) -> Result<()>;

    /// For which snapshot that was done last.
    async fn left_out(&self) -> Result<Option<SnapshotId>>;

    /// Lets a frozen guest go on.
    async fn thaw(&self) -> Result<()>;

    /// Asks for a clean shutdown. The microVM ends some time after.
    async fn shutdown(&self) -> Result<()>;
}

/// The random bytes that a restored guest is given.
pub const ENTROPY: usize = 64;

/// What a restored guest is from now on. Its clock is set to the host's.
#[derive(Clone, PartialEq, Eq)]
pub struct Renewal {
    /// The boot that it is.
    pub nonce: BootNonce,
    /// Random bytes that nobody else gets.
    pub entropy: [u8; ENTROPY],
    /// Its host name.
    pub hostname: String,
    /// Its machine id, 32 hex digits.
    pub machine_id: String,
    /// The hardware address of its network card.
    pub mac: [u8; 6],
    /// Which guest it is in comparison with the one that was saved.
    pub kin: Kin,
}

/// Which guest a restored one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kin {
    /// The one that was saved.
    Itself,
    /// Another one that begins where that was: what that has logged is not its own.
    Copy,
}

/// A byte stream in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}

/// What git put into a workspace: path to entry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Manifest {
    /// The content that was last received in full.
    pub tree: Option<TreeDigest>,
    /// The files.
    pub files: std::collections::BTreeMap<String, ManifestEntry>,
}

/// One file that git put into a workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestEntry {
    /// Its content.
    pub blob: BlobId,
    /// What it is.
    pub kind: FileKind,
}

/// What a workspace file is, after git's modes 100644, 100755 and 120000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// A plain file.
    Regular,
    /// A file with the execute bits.
    Executable,
    /// A symbolic link; its content is the target.
    Symlink,
}

/// One file on its way into a workspace. Contents are at most as large as the source's blob limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkspaceFile {
    /// Relative path, `/`-separated, no `.` or `..`.
    pub path: String,
    /// Content hash and kind.
    pub entry: ManifestEntry,
    /// The content.
    pub content: Vec<u8>,
}

/// Which processes restart when a process set is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartScope {
    /// None that runs.
    None,
    /// Those with `restart_after_task`.
    AfterTask,
    /// All.
    All,
}

/// What a command printed and how it ended; each stream bounded to 1 MiB, the rest dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// Exit code, or 128 + signal.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}
