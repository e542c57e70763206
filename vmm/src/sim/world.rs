//! The world of scripted microVMs: a directory that tells the whole truth about them.
//!
//! ```text
//! world/vms/<sandbox>.json        a microVM: its machine, its boots, when and how it ends, what its agent knows
//! world/disks/<disk>.json         a data disk: its size, and what git put onto it
//! world/templates/<digest>.json   a template that has been made
//! world/snapshots/<id>.json       a moment that was kept: a microVM and its disk
//! world/violations.log            what a correct daemon never does, a line each
//! ```
//!
//! Files are replaced atomically under one lock, so several processes can work on a world. What a microVM is doing follows
//! from its file and the time alone. Drivers and tests open the same [`World`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use setpoint_schema::id::{BlobId, BootNonce, DiskId, SandboxId, SnapshotId, TemplateDigest, TreeDigest};
use setpoint_schema::observed::{ExitReason, Machine, VmState};
use setpoint_schema::quantity::{ByteSize, Span};
use tokio::time::Instant;

use super::clock::{Clock, WallClock, after, until};
use super::files::{self, Lock, Stamp, absent_is_none, failed};
use super::script::{self, Phase, Script};
use super::wakes::{Dirs, DiskChanges, Stirs, Wakes};
use super::{REREAD_AFTER, sim_error};
use crate::driver::{FileKind, Result, TemplateSource};

pub use super::guest::Processes;
pub use super::rest::{Counter, Rest};

/// One microVM of the world.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vm {
    /// What it was last launched with.
    pub machine: Machine,
    /// Its boots so far.
    pub launches: u64,
    /// Workspace syncs so far.
    pub syncs: u64,
    /// Process sets applied so far.
    pub applies: u64,
    /// When this boot began.
    pub booted_at: Timestamp,
    /// When this boot's agent begins to answer.
    pub agent_at: Timestamp,
    /// When this boot's agent falls silent.
    pub silent_from: Option<Timestamp>,
    /// When and how this boot ends; past or to come.
    pub end: Option<End>,
    /// What the agent runs.
    pub processes: Option<Processes>,
    /// That it rests, if it does.
    #[serde(default)]
    pub rest: Option<Rest>,
    /// What its memory holds: a counter.
    #[serde(default)]
    pub counter: Counter,
}

/// When and how a boot ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// When.
    pub at: Timestamp,
    /// How.
    pub reason: ExitReason,
}

/// One data disk of the world, with the workspace on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Which disk.
    pub id: DiskId,
    /// Its length.
    pub size: ByteSize,
    /// The length of the file system on it.
    pub filesystem: ByteSize,
    /// The sandbox that was last launched with it.
    pub user: Option<SandboxId>,
    /// The workspace content that was last received in full.
    pub tree: Option<TreeDigest>,
    /// What git put there.
    pub files: BTreeMap<String, File>,
    /// For which snapshot directories were left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<SnapshotId>,
}

/// One file that git put into a workspace; its content is not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// What its content hashes to.
    pub blob: BlobId,
    /// What it is.
    pub kind: FileKind,
}

/// A template that has been made.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Template {
    digest: TemplateDigest,
    source: String,
}

impl Vm {
    /// How the boot ended, if it has by `now`.
    #[must_use]
    pub fn ended(&self, now: Timestamp) -> Option<&ExitReason> {
        self.end.as_ref().filter(|end| self.rest.is_none() && end.at <= now).map(|end| &end.reason)
    }

    /// Whether the boot `nonce` runs at `now`.
    #[must_use]
    pub fn runs(&self, nonce: &BootNonce, now: Timestamp) -> bool {
        self.machine.nonce == *nonce && self.rest.is_none() && self.ended(now).is_none()
    }

    /// Whether the agent answers at `now`, if the microVM runs.
    #[must_use]
    pub fn answers(&self, now: Timestamp) -> bool {
        self.agent_at <= now && self.silent_from.is_none_or(|silent_from| now < silent_from)
    }

    /// When, after `now`, something about it changes by itself.
    pub(super) fn next_change(&self, now: Timestamp) -> Option<Timestamp> {
        if self.rest.is_some() {
            return None;
        }
        let end = self.end.as_ref().map(|end| end.at);
        let processes = self.processes.iter().flat_map(Processes::changes);
        [Some(self.agent_at), self.silent_from, end].into_iter().flatten().chain(processes).filter(|at| *at > now).min()
    }
}

/// A world, opened by a driver or by a test.
#[derive(Clone)]
pub struct World {
    dir: PathBuf,
    clock: Arc<dyn Clock>,
    wakes: Arc<Wakes>,
    seen: Arc<Seen>,
}

/// What was found out about each microVM, and of which content of its file, so that asking again reads nothing.
type Seen = Mutex<HashMap<SandboxId, (Stamp, Boot)>>;

/// What a driver tells of one boot. Few have an end, and few rest.
#[derive(Debug, Clone)]
struct Boot {
    nonce: BootNonce,
    since: Timestamp,
    end: Option<Box<End>>,
    rest: Option<Box<Rest>>,
}

impl Boot {
    fn of(vm: Vm) -> Self {
        let (end, rest) = (vm.end.map(Box::new), vm.rest.map(Box::new));
        Self { nonce: vm.machine.nonce, since: vm.booted_at, end, rest }
    }

    fn state(self, now: Timestamp) -> VmState {
        if let Some(rest) = self.rest {
            return rest.state(self.nonce);
        }
        match self.end.filter(|end| end.at <= now) {
            Some(end) => VmState::Exited { reason: end.reason },
            None => VmState::Running { nonce: self.nonce, since: self.since },
        }
    }
}

/// Looking at the world, and tampering with it.
impl World {
    /// The world of the driver over `dir`. It need not exist yet.
    #[must_use]
    pub fn open(dir: impl Into<PathBuf>) -> Self {
        Self::with_clock(dir.into(), Arc::new(WallClock))
    }

    pub(super) fn with_clock(dir: PathBuf, clock: Arc<dyn Clock>) -> Self {
        Self { dir, clock, wakes: Arc::default(), seen: Arc::default() }
    }

    /// The driver's directory, which holds the world and the script.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The time by this world's clock.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Every microVM, running or not, in the order of their ids.
    pub fn vms(&self) -> Result<Vec<Vm>> {
        files::read_all(&self.vms_dir())
    }

    /// Every microVM that runs now.
    pub fn running(&self) -> Result<Vec<Vm>> {
        let now = self.now();
        Ok(self.vms()?.into_iter().filter(|vm| vm.ended(now).is_none()).collect())
    }

    /// One microVM.
    pub fn vm(&self, sandbox: &SandboxId) -> Result<Option<Vm>> {
        files::read_json(&self.vm_path(sandbox))
    }

    /// Every data disk, in the order of their ids.
    pub fn disks(&self) -> Result<Vec<Disk>> {
        files::read_all(&self.disks_dir())
    }

    /// One data disk.
    pub fn disk(&self, disk: &DiskId) -> Result<Option<Disk>> {
        files::read_json(&self.disk_path(disk))
    }

    /// Every template that has been made.
    pub fn templates(&self) -> Result<Vec<TemplateDigest>> {
        Ok(files::read_all::<Template>(&self.templates_dir())?.into_iter().map(|template| template.digest).collect())
    }

    /// What was done that a correct daemon never does, oldest first.
    pub fn violations(&self) -> Result<Vec<String>> {
        let path = self.violations_path();
        let text = absent_is_none(std::fs::read_to_string(&path)).map_err(failed("read", &path))?;
        Ok(text.unwrap_or_default().lines().map(str::to_owned).collect())
    }

    /// Ends a running microVM now, for this reason.
    pub fn kill(&self, sandbox: &SandboxId, reason: ExitReason) -> Result<()> {
        let now = self.now();
        self.edit(sandbox, |vm| {
            if vm.rest.is_none() && vm.ended(now).is_none() {
                vm.end = Some(End { at: now, reason });
            }
        })
    }

    /// Lets the agent of a microVM fall silent now, while the microVM runs on.
    pub fn silence(&self, sandbox: &SandboxId) -> Result<()> {
        let now = self.now();
        self.edit(sandbox, |vm| vm.silent_from = Some(now))
    }

    /// Changes a microVM in any way; nothing happens if there is none.
    pub fn edit(&self, sandbox: &SandboxId, change: impl FnOnce(&mut Vm)) -> Result<()> {
        let lock = self.lock()?;
        let Some(mut vm) = self.vm(sandbox)? else { return Ok(()) };
        change(&mut vm);
        self.put_vm(&lock, &vm)
    }

    /// Changes a data disk in any way; nothing happens if there is none.
    pub fn edit_disk(&self, disk: &DiskId, change: impl FnOnce(&mut Disk)) -> Result<()> {
        let lock = self.lock()?;
        let Some(mut disk) = self.disk(disk)? else { return Ok(()) };
        change(&mut disk);
        self.put_disk(&lock, &disk)
    }

    /// Replaces the script, once it has been found to be one.
    pub fn set_script(&self, text: &str) -> Result<()> {
        Script::parse(text)?;
        self.lock()?.write(&self.dir.join(script::FILE_NAME), &self.next_path(), text.as_bytes())
    }
}

/// What the driver does.
impl World {
    pub(super) fn state(&self, sandbox: &SandboxId) -> Result<VmState> {
        // The stamp first: a content that is replaced between the two is read anew the next time.
        let stamp = Stamp::of(&self.vm_path(sandbox))?;
        let known = self.seen().get(sandbox).filter(|(seen, _)| Some(*seen) == stamp).map(|(_, boot)| boot.clone());
        if let Some(boot) = known {
            return Ok(boot.state(self.now()));
        }
        let (Some(stamp), Some(vm)) = (stamp, self.vm(sandbox)?) else {
            self.seen().remove(sandbox);
            return Ok(VmState::Absent);
        };
        let boot = Boot::of(vm);
        if stamp.is_settled() {
            self.seen().insert(sandbox.clone(), (stamp, boot.clone()));
        }
        Ok(boot.state(self.now()))
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<SandboxId, (Stamp, Boot)>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The microVMs that are not among `known`.
    pub(super) fn vms_beyond(&self, known: &BTreeSet<SandboxId>) -> Result<Vec<Vm>> {
        let names = files::names(&self.vms_dir())?.into_iter().map(|name| SandboxId(name.into()));
        names.filter(|id| !known.contains(id)).filter_map(|id| self.vm(&id).transpose()).collect()
    }

    /// What tells whether a microVM or its disk is other than before.
    pub(super) fn stamps(&self, sandbox: &SandboxId, disk: &DiskId) -> Result<Option<(Stamp, Stamp)>> {
        let vm = Stamp::of(&self.vm_path(sandbox))?;
        Ok(vm.zip(Stamp::of(&self.disk_path(disk))?))
    }

    /// How many changes of disks have been told of, where they are.
    pub(super) fn disk_changes(&self) -> Option<DiskChanges> {
        self.wakes.disk_changes()
    }

    /// Whether a microVM and its disk are those of these stamps. Of a microVM's file, its watch tells, where there is one.
    pub(super) fn stands(&self, sandbox: &SandboxId, disk: &DiskId, stamps: &(Stamp, Stamp)) -> bool {
        let is = |path: PathBuf, stamp: &Stamp| matches!(Stamp::of(&path), Ok(Some(now)) if now == *stamp);
        (self.wakes.are_watched() || is(self.vm_path(sandbox), &stamps.0)) && is(self.disk_path(disk), &stamps.1)
    }

    /// Hears of every change of the microVM from now on.
    pub(super) fn stirs(&self, sandbox: &SandboxId) -> Stirs {
        self.wakes.subscribe(sandbox, Dirs { vms: &self.vms_dir(), disks: &self.disks_dir() })
    }

    /// Starts a boot, unless it runs already.
    pub(super) fn launch(&self, machine: &Machine, script: &Script) -> Result<()> {
        let lock = self.lock()?;
        let now = self.now();
        let earlier = self.vm(&machine.sandbox)?;
        if let Some(vm) = earlier.as_ref().filter(|vm| vm.rest.is_none() && vm.ended(now).is_none()) {
            // A renamed app's microVM runs on under the name that it was started with.
            let Machine { app, uid, .. } = machine.clone();
            if *machine == (Machine { app, uid, ..vm.machine.clone() }) {
                return Ok(());
            }
            return Err(self.violation(&lock, &format!("launch of {}, of which another boot runs", machine.sandbox))?);
        }
        if !self.has_template(&machine.template)? {
            return Err(self.violation(&lock, &format!("launch of {} without its template", machine.sandbox))?);
        }
        let Some(mut disk) = self.disk(&machine.disk)? else {
            return Err(self.violation(&lock, &format!("launch of {} without its disk", machine.sandbox))?);
        };
        if let Some(user) = self.user_of(&disk)?.filter(|user| *user != machine.sandbox) {
            let what = format!("launch of {} with disk {}, which {user} uses", machine.sandbox, disk.id);
            return Err(self.violation(&lock, &what)?);
        }
        disk.user = Some(machine.sandbox.clone());
        disk.filesystem = disk.size;
        self.put_disk_before_vm(&lock, &disk)?;
        self.put_vm(&lock, &boot(machine, earlier.as_ref(), now, script))
    }

    /// Removes a microVM that has ended.
    pub(super) fn remove(&self, sandbox: &SandboxId) -> Result<()> {
        let lock = self.lock()?;
        let now = self.now();
        if self.vm(sandbox)?.is_some_and(|vm| vm.rest.is_none() && vm.ended(now).is_none()) {
            return Err(self.violation(&lock, &format!("removal of {sandbox}, which runs"))?);
        }
        let is_told = self.wakes.are_watched();
        lock.remove(&self.vm_path(sandbox))?;
        if !is_told {
            self.wakes.wake(sandbox);
        }
        Ok(())
    }

    /// Makes a disk, or grows it.
    pub(super) fn ensure_disk(&self, id: &DiskId, size: ByteSize) -> Result<()> {
        let lock = self.lock()?;
        let (user, tree, left_out) = (None, None, None);
        let new = || Disk { id: id.clone(), size, filesystem: size, user, tree, files: BTreeMap::new(), left_out };
        let mut disk = self.disk(id)?.unwrap_or_else(new);
        disk.size = disk.size.max(size);
        self.put_disk(&lock, &disk)
    }

    /// Deletes a disk that nothing uses.
    pub(super) fn delete_disk(&self, id: &DiskId) -> Result<()> {
        let lock = self.lock()?;
        let Some(disk) = self.disk(id)? else { return Ok(()) };
        if let Some(user) = self.user_of(&disk)? {
            return Err(self.violation(&lock, &format!("deletion of disk {id}, which {user} uses"))?);
        }
        lock.remove(&self.disk_path(id))
    }

    pub(super) fn has_template(&self, digest: &TemplateDigest) -> Result<bool> {
        // It is put there whole, and what it says is for people.
        let path = self.template_path(digest);
        path.try_exists().map_err(failed("look for", &path))
    }

    /// Makes a template; its source has to exist, as for a driver that reads it.
    pub(super) fn make_template(&self, digest: &TemplateDigest, root: Option<&TemplateSource>) -> Result<()> {
        let source = match root {
            None => "built in".to_owned(),
            Some(TemplateSource::Directory(path) | TemplateSource::Tar(path) | TemplateSource::Exported(path)) => {
                std::fs::metadata(path).map_err(failed("read", path))?;
                path.display().to_string()
            }
        };
        if self.has_template(digest)? {
            return Ok(());
        }
        let template = Template { digest: digest.clone(), source };
        self.lock()?.write(&self.template_path(digest), &self.next_path(), &files::to_json(&template))
    }

    /// What a guest's console shows.
    pub(super) fn console(&self, sandbox: &SandboxId) -> Result<String> {
        let Some(vm) = self.vm(sandbox)? else { return Ok(String::new()) };
        let mut text = format!("sim: boot {} of {}\n", vm.machine.nonce, vm.machine.app);
        match vm.ended(self.now()) {
            None => {}
            Some(ExitReason::Panic(line)) => text.push_str(&format!("{line}\n")),
            Some(reason) => text.push_str(&format!("sim: ended, {reason:?}\n")),
        }
        Ok(text)
    }

    /// Resolves when the boot `nonce` does not run; at once if it does not now.
    pub(super) async fn ended(&self, sandbox: &SandboxId, nonce: &BootNonce) {
        let over = |vm: Option<&Vm>, now| (!vm.is_some_and(|vm| vm.runs(nonce, now))).then_some(());
        // A file that cannot be read does not say that the microVM has ended.
        while let Err(error) = self.watch(sandbox, None, |vm, now| Ok(over(vm, now))).await {
            tracing::warn!(%sandbox, %error, "cannot tell whether the microVM runs");
            Box::pin(tokio::time::sleep(REREAD_AFTER)).await;
        }
    }

    /// Looks at a microVM now and whenever something about it has changed, until `look` has found what it looks for or the
    /// deadline has passed.
    pub(super) async fn watch<T>(
        &self,
        sandbox: &SandboxId,
        deadline: Option<Instant>,
        mut look: impl FnMut(Option<&Vm>, Timestamp) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        // Subscribing comes before looking, so that no change falls between the two.
        let mut changes = self.stirs(sandbox);
        loop {
            // What is read is dropped before the wait, which thousands of tasks are in at once.
            let next = match self.look_once(sandbox, &mut look)? {
                Looked::Found(found) => return Ok(Some(found)),
                Looked::Waits { next_change } => next_change,
            };
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Ok(None);
            }
            match next.into_iter().chain(deadline).min() {
                // Either way it is time to look again. Boxed, since most of many waits have no end.
                Some(next) => drop(Box::pin(tokio::time::timeout_at(next, changes.changed())).await),
                None => changes.changed().await,
            }
        }
    }

    fn look_once<T>(
        &self,
        sandbox: &SandboxId,
        look: &mut impl FnMut(Option<&Vm>, Timestamp) -> Result<Option<T>>,
    ) -> Result<Looked<T>> {
        let vm = self.vm(sandbox)?;
        let now = self.now();
        Ok(match look(vm.as_ref(), now)? {
            Some(found) => Looked::Found(found),
            None => {
                let next_change = vm.and_then(|vm| vm.next_change(now));
                Looked::Waits { next_change: next_change.map(|at| Instant::now() + until(at, now)) }
            }
        })
    }

    /// Holds every other writer off; the first one makes the directories.
    pub(super) fn lock(&self) -> Result<Lock> {
        let path = self.world_dir().join("lock");
        if let Some(lock) = Lock::acquire(&path)? {
            return Ok(lock);
        }
        for dir in [self.vms_dir(), self.disks_dir(), self.templates_dir(), self.snapshots_dir()] {
            std::fs::create_dir_all(&dir).map_err(failed("create", &dir))?;
        }
        // Last, so that nobody writes into directories that are still being made.
        Lock::make(&path)?;
        Lock::acquire(&path)?.ok_or_else(|| sim_error(format!("lost {} while it was made", path.display())))
    }

    pub(super) fn put_vm(&self, lock: &Lock, vm: &Vm) -> Result<()> {
        let is_told = self.wakes.are_watched();
        lock.write(&self.vm_path(&vm.machine.sandbox), &self.next_path(), &files::to_json(vm))?;
        if !is_told {
            self.wakes.wake(&vm.machine.sandbox);
        }
        Ok(())
    }

    pub(super) fn put_disk(&self, lock: &Lock, disk: &Disk) -> Result<()> {
        self.put_disk_before_vm(lock, disk)?;
        // The agent's answers speak of the disk.
        disk.user.iter().for_each(|user| self.wakes.wake(user));
        Ok(())
    }

    /// The same where the microVM that uses the disk changes with it, which tells those who wait.
    pub(super) fn put_disk_before_vm(&self, lock: &Lock, disk: &Disk) -> Result<()> {
        lock.write(&self.disk_path(&disk.id), &self.next_path(), &files::to_json(disk))
    }

    /// The running microVM that uses a disk.
    fn user_of(&self, disk: &Disk) -> Result<Option<SandboxId>> {
        let Some(user) = &disk.user else { return Ok(None) };
        let now = self.now();
        let uses = |vm: &Vm| vm.ended(now).is_none() && vm.machine.disk == disk.id;
        Ok(self.vm(user)?.filter(uses).map(|vm| vm.machine.sandbox))
    }

    /// Writes a violation down, and gives the error that refuses it.
    pub(super) fn violation(&self, lock: &Lock, what: &str) -> Result<crate::driver::VmmError> {
        lock.append(&self.violations_path(), &format!("{} {what}", self.now()))?;
        Ok(sim_error(format!("refused: {what}")))
    }

    fn world_dir(&self) -> PathBuf {
        self.dir.join("world")
    }

    fn vms_dir(&self) -> PathBuf {
        self.world_dir().join("vms")
    }

    pub(super) fn snapshots_dir(&self) -> PathBuf {
        self.world_dir().join("snapshots")
    }

    fn disks_dir(&self) -> PathBuf {
        self.world_dir().join("disks")
    }

    fn templates_dir(&self) -> PathBuf {
        self.world_dir().join("templates")
    }

    fn vm_path(&self, sandbox: &SandboxId) -> PathBuf {
        self.vms_dir().join(format!("{sandbox}.json"))
    }

    fn disk_path(&self, disk: &DiskId) -> PathBuf {
        self.disks_dir().join(format!("{disk}.json"))
    }

    fn template_path(&self, digest: &TemplateDigest) -> PathBuf {
        self.templates_dir().join(format!("{digest}.json"))
    }

    fn violations_path(&self) -> PathBuf {
        self.world_dir().join("violations.log")
    }

    /// Where a file stands while it is written.
    pub(super) fn next_path(&self) -> PathBuf {
        self.world_dir().join("next")
    }
}

/// What a look at a microVM came to.
enum Looked<T> {
    Found(T),
    /// Not that. When it changes by itself, if it does.
    Waits {
        next_change: Option<Instant>,
    },
}

/// The next boot of a sandbox, with its fate.
fn boot(machine: &Machine, earlier: Option<&Vm>, now: Timestamp, script: &Script) -> Vm {
    let subject = machine.sandbox.as_str();
    let launches = earlier.map_or(0, |vm| vm.launches) + 1;
    let fate = script.fate(subject, launches);
    let later = |span: Span| after(now, span.as_duration());
    let scripted = || ExitReason::Panic("Kernel panic - not syncing: scripted".to_owned());
    Vm {
        machine: machine.clone(),
        launches,
        syncs: earlier.map_or(0, |vm| vm.syncs),
        applies: earlier.map_or(0, |vm| vm.applies),
        booted_at: now,
        agent_at: after(now, script.duration(Phase::Boot, subject)),
        silent_from: fate.silent_after.map(later),
        end: fate.dies_after.map(|span| End { at: later(span), reason: fate.dies_of.unwrap_or_else(scripted) }),
        processes: None,
        rest: None,
        counter: Counter::from(now),
    }
}
