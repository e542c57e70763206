//! The directory that holds memories: names, whole replacement of files, checking, and removing what nothing refers to.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use setpoint_schema::id::SnapshotId;
use setpoint_schema::quantity::ByteSize;

use super::image::{Chunk, Image, hash, is_id};
use super::pages::{CHUNK, bytes, ranges};
use super::{MemoryError, Result, failed};

const BASES: &str = "bases";
const PACKS: &str = "packs";
const IMAGES: &str = "images";

/// No image describes more: its guest would have 4 TiB, all of it changed.
const MAX_IMAGE: u64 = 4 << 30;

/// The store over one directory. Clones share what they know of it.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    dir: PathBuf,
    /// Bases that were found to be as they were written, by the file's identity then.
    sound: Arc<Mutex<HashMap<SnapshotId, Stamp>>>,
}

/// What changes when a file is written or replaced, and cannot be set back: the time is that of the last change, which the kernel sets
/// alone.
type Stamp = (u64, u64, i64, i64);

impl Store {
    /// The store over `dir`. It is made by the first save.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, sound: Arc::default() }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file that VMMs map for a base.
    pub fn base_path(&self, id: &SnapshotId) -> PathBuf {
        self.dir.join(BASES).join(format!("{id}.ram"))
    }

    pub(super) fn sums_path(&self, id: &SnapshotId) -> PathBuf {
        self.dir.join(BASES).join(format!("{id}.sum"))
    }

    pub(super) fn pack_path(&self, id: &SnapshotId) -> PathBuf {
        self.dir.join(PACKS).join(format!("{id}.pack"))
    }

    pub(super) fn image_path(&self, id: &SnapshotId) -> PathBuf {
        self.dir.join(IMAGES).join(format!("{id}.image"))
    }

    /// Makes the directories, for their owner alone.
    pub(super) fn create(&self) -> Result<()> {
        for name in [BASES, PACKS, IMAGES] {
            let path = self.dir.join(name);
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed("create", &path))?;
        }
        Ok(())
    }

    /// The image of this name.
    pub fn image(&self, id: &SnapshotId) -> Result<Image> {
        read_image(&self.image_path(id))
    }

    /// Gives an image another name besides. Both refer to the same base and packs, which stay for as long as either is wanted.
    pub fn name_again(&self, id: &SnapshotId, name: &SnapshotId) -> Result<()> {
        check_id(name)?;
        write_image(self.image_path(name), &self.image(id)?)?;
        self.sync_names()
    }

    /// What an image's files take on the disk, as the file system counts it. What other images refer to as well counts too.
    pub fn size(&self, id: &SnapshotId) -> Result<ByteSize> {
        let image = self.image(id)?;
        let base = image.base.iter().flat_map(|base| [self.base_path(base), self.sums_path(base)]);
        let packs = image.packs.iter().map(|pack| self.pack_path(pack));
        let sizes = base.chain(packs).chain([self.image_path(id)]).map(|path| -> Result<u64> {
            let metadata = fs::metadata(&path).map_err(failed("inspect", &path))?;
            Ok(metadata.blocks() * 512)
        });
        Ok(ByteSize::bytes(sizes.sum::<Result<u64>>()?))
    }

    /// Checks a base against its sums, once. QEMU has it open for writing, though it never writes: a base that was written to since is
    /// the work of a VMM that is not QEMU's any more, whatever is in it now.
    pub(super) fn check_base(&self, id: &SnapshotId) -> Result<()> {
        let path = self.base_path(id);
        let file = File::open(&path).map_err(failed("open", &path))?;
        let now = stamp(&file).map_err(failed("inspect", &path))?;
        match self.sound.lock().unwrap_or_else(PoisonError::into_inner).get(id) {
            Some(then) if *then == now => return Ok(()),
            Some(_) => return Err(MemoryError::Damaged { path, what: "it was written to after it was kept" }),
            None => {}
        }
        // From here on the first write to any page changes the time, also one through a mapping that was written through before.
        file.sync_all().map_err(failed("sync", &path))?;
        let before = stamp(&file).map_err(failed("inspect", &path))?;
        let sums = read_image(&self.sums_path(id))?;
        let damaged = |what| MemoryError::Damaged { path: path.clone(), what };
        if before.1 != sums.memory {
            return Err(damaged("it has another length"));
        }
        let mut content = Box::new([0; CHUNK]);
        for chunk in &sums.chunks {
            let pages = read_in_place(&file, chunk, &mut content).map_err(failed("read", &path))?;
            if hash(chunk.number, chunk.written, chunk.data, pages) != chunk.hash {
                return Err(damaged("a chunk's checksum does not match"));
            }
        }
        if stamp(&file).map_err(failed("inspect", &path))? != before {
            return Err(damaged("it was written to while it was checked"));
        }
        self.found_sound(id, before);
        Ok(())
    }

    pub(super) fn found_sound(&self, id: &SnapshotId, stamp: Stamp) {
        self.sound.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), stamp);
    }

    /// What these images refer to. One that is not there refers to nothing; one that cannot be read could refer to anything, and is
    /// an error.
    pub fn references<'a>(&self, images: impl IntoIterator<Item = &'a SnapshotId>) -> Result<References> {
        let mut references = References::default();
        for id in images {
            references.images.insert(id.clone());
            let path = self.image_path(id);
            if path.exists() {
                let image = read_image(&path)?;
                references.bases.extend(image.base);
                references.packs.extend(image.packs);
            }
        }
        Ok(references)
    }

    /// Every file that is not among `references`, those that are being written with them.
    pub fn beyond(&self, references: &References) -> Result<Vec<PathBuf>> {
        let mut beyond = Vec::new();
        for name in [IMAGES, PACKS, BASES] {
            let dir = self.dir.join(name);
            let entries = match fs::read_dir(&dir) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed("list", &dir)(error)),
            };
            for entry in entries {
                let path = entry.map_err(failed("list", &dir))?.path();
                if !references.have(&path) {
                    beyond.push(path);
                }
            }
        }
        Ok(beyond)
    }

    /// Removes files that nothing refers to. Nothing may be saved or brought back meanwhile.
    pub fn remove(&self, files: &[PathBuf]) -> Result<()> {
        for path in files {
            crate::qemu::files::remove_if_there(path).map_err(failed("remove", path))?;
        }
        self.sound.lock().unwrap_or_else(PoisonError::into_inner).retain(|base, _| self.base_path(base).exists());
        Ok(())
    }

    /// Makes the names that files got last until after a power cut.
    pub(super) fn sync_names(&self) -> Result<()> {
        for name in [BASES, PACKS, IMAGES] {
            let path = self.dir.join(name);
            File::open(&path).and_then(|dir| dir.sync_all()).map_err(failed("sync", &path))?;
        }
        Ok(())
    }
}

/// What images refer to.
#[derive(Debug, Default)]
pub(crate) struct References {
    images: BTreeSet<SnapshotId>,
    packs: BTreeSet<SnapshotId>,
    bases: BTreeSet<SnapshotId>,
}

impl References {
    /// Whether a file of the store is among them.
    pub fn have(&self, path: &Path) -> bool {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let (stem, suffix) = name.split_once('.').unwrap_or((&name, ""));
        let used = match suffix {
            "image" => &self.images,
            "pack" => &self.packs,
            "ram" | "sum" => &self.bases,
            // Unfinished, or nobody's.
            _ => return false,
        };
        used.contains(&SnapshotId(stem.to_owned()))
    }
}

/// The suffix of what is being written.
const NEW: &str = "new";

/// A file that gets its name when it is whole and on the disk.
pub(super) struct Fresh {
    pub file: File,
    path: PathBuf,
    unfinished: PathBuf,
}

impl Fresh {
    pub fn create(path: PathBuf) -> Result<Self> {
        let unfinished = crate::qemu::files::beside(&path, NEW);
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(&unfinished).map_err(failed("create", &unfinished))?;
        Ok(Self { file, path, unfinished })
    }

    /// Where it is as long as it is not whole.
    pub fn unfinished(&self) -> &Path {
        &self.unfinished
    }

    /// Waits until the content is on the disk.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(failed("sync", &self.unfinished))
    }

    /// Gives it its name.
    pub fn publish(self) -> Result<File> {
        fs::rename(&self.unfinished, &self.path).map_err(failed("rename", &self.unfinished))?;
        Ok(self.file)
    }
}

/// Writes an image, so that it is whole or not there.
pub(super) fn write_image(path: PathBuf, image: &Image) -> Result<()> {
    let encoded = image.encode();
    let mut fresh = Fresh::create(path)?;
    fresh.file.write_all(&encoded).map_err(failed("write", fresh.unfinished()))?;
    fresh.sync()?;
    fresh.publish().map(drop)
}

pub(super) fn read_image(path: &Path) -> Result<Image> {
    let file = File::open(path).map_err(failed("open", path))?;
    let length = file.metadata().map_err(failed("inspect", path))?.len();
    if length > MAX_IMAGE {
        return Err(MemoryError::Damaged { path: path.to_owned(), what: "it is too long" });
    }
    let mut content = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut content, 0).map_err(failed("read", path))?;
    Image::decode(&content).map_err(|what| MemoryError::Damaged { path: path.to_owned(), what })
}

/// The identity of a file's present content.
pub(super) fn stamp(file: &File) -> io::Result<Stamp> {
    let metadata = file.metadata()?;
    Ok((metadata.ino(), metadata.len(), metadata.ctime(), metadata.ctime_nsec()))
}

/// The pages of a base's chunk, one behind the other.
pub(super) fn read_in_place<'a>(file: &File, chunk: &Chunk, content: &'a mut [u8; CHUNK]) -> io::Result<&'a [u8]> {
    let mut at = 0;
    for range in ranges(chunk.data) {
        let part = &mut content[at..at + range.len()];
        at += range.len();
        file.read_exact_at(part, chunk.position + range.start as u64)?;
    }
    Ok(&content[..at])
}

/// The pages of a pack's chunk, one behind the other.
pub(super) fn read_packed<'a>(file: &File, chunk: &Chunk, content: &'a mut [u8; CHUNK]) -> io::Result<&'a [u8]> {
    let part = &mut content[..bytes(chunk.data)];
    file.read_exact_at(part, chunk.position)?;
    Ok(part)
}

/// Refuses an id that is none: it becomes a part of paths.
pub(super) fn check_id(id: &SnapshotId) -> Result<()> {
    if is_id(id) {
        Ok(())
    } else {
        Err(MemoryError::Damaged { path: id.as_str().into(), what: "it is no name of a snapshot" })
    }
}
