//! What is done behind everything else: layers of the memory of paused microVMs and kept moments are merged, and files that nothing refers to any more are
//! removed.
//!
//! ```text
//! merge:   image ─▶ another image of the same memory ─▶ saved.json names that, unless somebody has been at the microVM meanwhile
//! sweep:   which files does nobody name ─▶ does anybody name one by now, while nobody saves or resumes ─▶ remove
//! ```
//!
//! Neither keeps a pause or a resume waiting: merging holds no lock but for the moment of the last step, and most of a sweep none.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use setpoint_schema::id::{SandboxId, SnapshotId};
use tokio_util::sync::CancellationToken;

use super::files::io_error;
use super::fork::{DISK, SNAPSHOTS};
use super::pause::memory_error;
use super::saved::SavedRecord;
use super::vm_dir::VmDir;
use super::warm::random_id;
use super::{QemuDriver, blocking};
use crate::driver::{Result, VmmError};
use crate::failpoint::reach;
use crate::memory::{Image, MemoryError, Merge, Store};

/// A directory that was changed so shortly before it was looked at may change again without showing another time.
const UNSETTLED: Duration = Duration::from_secs(1);

impl QemuDriver {
    /// Merges and removes what there is to merge and to remove since the last time; which microVMs' saved states are others now.
    pub(super) async fn tidy_up(&self, cancel: &CancellationToken) -> Result<Vec<SandboxId>> {
        if !self.untidy.swap(false, Ordering::Relaxed) {
            return Ok(Vec::new());
        }
        let done = async {
            let merged = self.merge_layers(cancel).await?;
            Ok((merged, self.sweep().await?))
        };
        match done.await {
            Ok((merged, Swept::Whole)) => Ok(merged),
            Ok((merged, Swept::NotNow)) => {
                self.make_untidy();
                Ok(merged)
            }
            Err(error) => {
                self.make_untidy();
                Err(error)
            }
        }
    }

    /// There is something to tidy up.
    pub(super) fn make_untidy(&self) {
        self.untidy.store(true, Ordering::Relaxed);
    }

    async fn merge_layers(&self, cancel: &CancellationToken) -> Result<Vec<SandboxId>> {
        let mut merged = Vec::new();
        for Layered { of, vm, saved, how } in self.layered().await? {
            if cancel.is_cancelled() {
                self.make_untidy();
                break;
            }
            match self.merge(&vm, &saved, how, cancel).await {
                Ok(Switched::Yes) => match of {
                    MemoryOf::Paused => {
                        // Nobody reads them but who resumes it, and that knows of the new one by now.
                        vm.forget_unused_devices();
                        merged.push(SandboxId(vm.name().into()));
                    }
                    // Somebody may be about to begin with the devices by their former name, which takes no room of its own.
                    MemoryOf::Kept => {}
                },
                // It has gone on meanwhile; the next pause has layers of its own.
                Ok(Switched::No) => {}
                Err(VmmError::Memory { source: MemoryError::Cancelled, .. }) => self.make_untidy(),
                // As much as can be read of it is still there, and resuming it says what is wrong.
                Err(error) => {
                    tracing::warn!(vm = %vm.path().display(), %error, "layers of saved memory were not merged")
                }
            }
        }
        Ok(merged)
    }

    /// The paused microVMs and kept moments whose layers are to be merged. What was found to need nothing is not looked at again.
    async fn layered(&self) -> Result<Vec<Layered>> {
        let roots = [(MemoryOf::Paused, "vms"), (MemoryOf::Kept, SNAPSHOTS)];
        let (roots, store) = (roots.map(|(of, name)| (of, self.config.dir.join(name))), self.memory.clone());
        let known = std::mem::take(&mut *self.merged.lock().unwrap_or_else(PoisonError::into_inner));
        let look = move || {
            let (mut layered, mut fine) = (Vec::new(), HashSet::new());
            for (of, root) in roots {
                for vm in VmDir::all(&root)? {
                    // What cannot be read is somebody else's to say.
                    let Ok(Some(saved)) = vm.saved() else { continue };
                    if known.contains(&saved.snapshot) {
                        fine.insert(saved.snapshot);
                        continue;
                    }
                    match store.image(&saved.snapshot).and_then(|image| of.wants_merging(&store, &image)) {
                        Ok(Some(how)) => layered.push(Layered { of, vm, saved, how }),
                        Ok(None) | Err(_) => drop(fine.insert(saved.snapshot)),
                    }
                }
            }
            Ok((layered, fine))
        };
        let (layered, fine) = blocking(look).await?;
        *self.merged.lock().unwrap_or_else(PoisonError::into_inner) = fine;
        Ok(layered)
    }

    async fn merge(&self, vm: &VmDir, saved: &SavedRecord, how: Merge, cancel: &CancellationToken) -> Result<Switched> {
        // Nothing that is read from is removed meanwhile.
        let _saving = self.saving.read().await;
        let (store, id, into) = (self.memory.clone(), saved.snapshot.clone(), SnapshotId(random_id()?));
        let (cancel, failed, new) = (cancel.clone(), memory_error(vm), into.clone());
        let merge = move || {
            store.merge(&store.image(&id)?, how, &new, &|| !cancel.is_cancelled())?;
            Ok(store.size(&new)?.as_bytes())
        };
        let bytes = blocking(move || merge().map_err(failed)).await?;
        self.switch(vm, saved, into, bytes)
    }

    /// Lets a paused microVM or a kept moment have another image of the same memory.
    fn switch(&self, vm: &VmDir, saved: &SavedRecord, into: SnapshotId, memory: u64) -> Result<Switched> {
        use std::os::unix::fs::MetadataExt as _;
        // It may be gone as a whole.
        if vm.saved()?.is_none() {
            return Ok(Switched::No);
        }
        let Some(_lock) = vm.lock_power()? else { return Ok(Switched::No) };
        let Some(now) = vm.saved()?.filter(|now| now.snapshot == saved.snapshot) else { return Ok(Switched::No) };
        let (devices, renamed) = (vm.devices(&saved.snapshot), vm.devices(&into));
        reach("merge/switch")?;
        fs::hard_link(&devices, &renamed).map_err(io_error("link", &devices))?;
        let blocks = fs::metadata(&renamed).map_err(io_error("inspect", &renamed))?.blocks() * 512;
        // Beside the memory and the devices, a kept moment has a disk.
        let disk = fs::metadata(vm.file(DISK)).map_or(0, |disk| disk.blocks() * 512);
        vm.write_saved(&SavedRecord { snapshot: into, bytes: memory + blocks + disk, ..now })?;
        reach("merge/forget")?;
        Ok(Switched::Yes)
    }

    /// Removes what no microVM, warm template or snapshot refers to.
    async fn sweep(&self) -> Result<Swept> {
        let roots = ["vms", "warm", "snapshots"].map(|name| self.config.dir.join(name));
        let store = self.memory.clone();
        let (kept, candidates) = blocking(move || {
            let kept = Kept::by(roots)?;
            let candidates = store.beyond(&store.references(&kept.images).map_err(unswept)?).map_err(unswept)?;
            Ok((kept, candidates))
        })
        .await?;
        if candidates.is_empty() {
            return Ok(Swept::Whole);
        }
        // Waiting for it would keep everybody waiting who comes after.
        let Ok(_alone) = self.saving.try_write() else { return Ok(Swept::NotNow) };
        let store = self.memory.clone();
        blocking(move || {
            let named = store.references(&kept.named_since()?).map_err(unswept)?;
            let unused: Vec<_> = candidates.into_iter().filter(|path| !named.have(path)).collect();
            store.remove(&unused).map_err(unswept)
        })
        .await?;
        Ok(Swept::Whole)
    }
}

/// Whose layers are to be merged.
struct Layered {
    of: MemoryOf,
    vm: VmDir,
    saved: SavedRecord,
    how: Merge,
}

/// Whose memory it is.
#[derive(Debug, Clone, Copy)]
enum MemoryOf {
    /// A paused microVM's.
    Paused,
    /// A kept moment's.
    Kept,
}

impl MemoryOf {
    fn wants_merging(self, store: &Store, image: &Image) -> std::result::Result<Option<Merge>, MemoryError> {
        match self {
            Self::Paused => store.wants_merging(image),
            // The base is shared with the app, and many a moment is kept for no longer than something takes to begin from it. What has
            // outgrown it becomes a base of its own when that is paused.
            Self::Kept => Ok(store.wants_packing(image)?.then_some(Merge::Pack)),
        }
    }
}

/// Whether a microVM or a moment has a merged image now.
enum Switched {
    Yes,
    No,
}

/// How far a sweep came.
enum Swept {
    Whole,
    /// Somebody saves or resumes.
    NotNow,
}

/// Which images are referred to, and how that was known.
struct Kept {
    roots: [PathBuf; 3],
    images: BTreeSet<SnapshotId>,
    /// When each directory was changed last, before it was looked into. Records are replaced as a whole, which shows there.
    looked_at: HashMap<PathBuf, SystemTime>,
}

impl Kept {
    fn by(roots: [PathBuf; 3]) -> Result<Self> {
        let mut this = Self { roots, images: BTreeSet::new(), looked_at: HashMap::new() };
        let settled = SystemTime::now() - UNSETTLED;
        for (vm, changed) in directories(&this.roots)? {
            this.images.extend(vm.images()?);
            if changed < settled {
                this.looked_at.insert(vm.path().to_owned(), changed);
            }
        }
        Ok(this)
    }

    /// The images that directories refer to which were changed since.
    fn named_since(&self) -> Result<BTreeSet<SnapshotId>> {
        let mut images = BTreeSet::new();
        for (vm, changed) in directories(&self.roots)? {
            if self.looked_at.get(vm.path()) != Some(&changed) {
                images.extend(vm.images()?);
            }
        }
        Ok(images)
    }
}

/// Every directory that may refer to images, and when it was changed last.
fn directories(roots: &[PathBuf]) -> Result<Vec<(VmDir, SystemTime)>> {
    let mut directories = Vec::new();
    for root in roots {
        for vm in VmDir::all(root)? {
            match changed(vm.path()) {
                Ok(Some(at)) => directories.push((vm, at)),
                // Removed meanwhile.
                Ok(None) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(directories)
}

fn changed(path: &Path) -> Result<Option<SystemTime>> {
    match fs::metadata(path).and_then(|metadata| metadata.modified()) {
        Ok(at) => Ok(Some(at)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("inspect", path)(error)),
    }
}

fn unswept(source: MemoryError) -> VmmError {
    VmmError::Vmm { vmm: "qemu", problem: format!("left saved memory behind that nothing needs: {source}") }
}
