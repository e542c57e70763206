//! Keeping a memory: what was written goes into new files, and is read again before anybody relies on it.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use setpoint_schema::id::SnapshotId;

use super::base::NewBase;
use super::image::{Chunk, Image, hash};
use super::pages::{CHUNK, PageMask, Touched, bytes, not_zero, ranges};
use super::process::{Captured, GuestRam};
use super::store::{Fresh, Store, check_id, read_packed, write_image};
use super::{MemoryError, Result, failed};

/// Chunks between two looks at whether anybody still wants the result: a few milliseconds' worth.
pub(super) const CHUNKS_PER_LOOK: usize = 64;

/// Packs of one image. They are merged much earlier, behind a pause; where nobody has come to that, the next pack takes all chunks in,
/// so that neither a restore nor what is kept of old packs grows with the number of pauses.
const MOST_PACKS: usize = 32;

/// What is written to a pack at once.
pub(super) const PACK_WRITE: usize = 1 << 20;

impl Store {
    /// Keeps a memory that stands still as the image `id`. `parent` is the image that the process was made from; without one it
    /// began with zeros, and its memory becomes a base of its own. On return everything is on the disk and was read again.
    ///
    /// `is_wanted` is asked now and then; once it says no, this ends with [`MemoryError::Cancelled`], and nothing is kept.
    pub fn save(
        &self,
        id: &SnapshotId,
        pages: Pages<'_>,
        parent: Option<&Image>,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<Image> {
        check_id(id)?;
        self.create()?;
        let source = Source { pages, is_wanted };
        let image = match parent {
            None => self.save_base(id, &source)?,
            Some(parent) => self.save_pack(id, &source, parent)?,
        };
        write_image(self.image_path(id), &image)?;
        self.sync_names()?;
        Ok(image)
    }

    /// The whole memory as a sparse file in which every page has its place.
    fn save_base(&self, id: &SnapshotId, source: &Source<'_>) -> Result<Image> {
        let mut base = NewBase::create(self, id, source.pages.memory())?;
        source.each(|touched, content| base.put(touched.chunk, content, touched.pages))?;
        base.finish(self, id)
    }

    /// What differs from the parent's base: new content into a pack, the rest by reference to the parent's packs.
    fn save_pack(&self, id: &SnapshotId, source: &Source<'_>, parent: &Image) -> Result<Image> {
        let pack = Fresh::create(self.pack_path(id))?;
        let mut packs = parent.packs.clone();
        let own = u32::try_from(packs.len()).expect("layers are merged long before");
        packs.push(id.clone());
        let mut out = BufWriter::with_capacity(PACK_WRITE, &pack.file);
        let (mut chunks, mut fresh) = (Vec::new(), Vec::new());
        let mut position = 0;
        let refers = parent.packs.len() < MOST_PACKS;
        source.each(|touched, content| {
            let data = not_zero(content, touched.pages);
            let made = entry(touched.chunk, touched.pages, data, content, own, position);
            match parent.find(touched.chunk).filter(|known| refers && known.hash == made.hash) {
                Some(known) => chunks.push(known.clone()),
                None => {
                    for range in ranges(data) {
                        out.write_all(&content[range]).map_err(failed("write", pack.unfinished()))?;
                    }
                    position += bytes(data) as u64;
                    fresh.push(made.clone());
                    chunks.push(made);
                }
            }
            Ok(())
        })?;
        out.flush().map_err(failed("write", pack.unfinished()))?;
        drop(out);
        pack.sync()?;
        verify(&pack.file, pack.unfinished(), &fresh, read_packed)?;
        pack.publish().map(drop)?;
        Ok(without_unused_packs(Image { memory: source.pages.memory(), base: parent.base.clone(), packs, chunks }))
    }
}

/// Where written pages are read from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pages<'a> {
    /// The memory of a guest that stands still.
    Still(&'a GuestRam),
    /// A copy of it.
    Captured(&'a Captured),
}

impl Pages<'_> {
    fn memory(self) -> u64 {
        match self {
            Self::Still(ram) => ram.bytes(),
            Self::Captured(captured) => captured.bytes,
        }
    }

    fn touched(self) -> Result<Vec<Touched>> {
        match self {
            Self::Still(ram) => ram.touched(),
            Self::Captured(captured) => Ok(captured.touched.clone()),
        }
    }

    /// Reads the pages of one chunk into their places. Chunks are read in order; `read` bytes were before.
    fn read(self, touched: Touched, read: usize, content: &mut [u8; CHUNK]) -> Result<()> {
        let begin = u64::from(touched.chunk) * CHUNK as u64;
        let mut at = read;
        for range in ranges(touched.pages) {
            let length = range.len();
            match self {
                Self::Still(ram) => ram.read(begin + range.start as u64, &mut content[range])?,
                Self::Captured(captured) => content[range].copy_from_slice(&captured.content[at..at + length]),
            }
            at += length;
        }
        Ok(())
    }
}

/// The memory that is being kept.
struct Source<'a> {
    pages: Pages<'a>,
    is_wanted: &'a dyn Fn() -> bool,
}

impl Source<'_> {
    /// Reads the written pages of each chunk into their places.
    fn each(&self, mut take: impl FnMut(Touched, &[u8; CHUNK]) -> Result<()>) -> Result<()> {
        let mut content = Box::new([0; CHUNK]);
        let mut read = 0;
        for (count, touched) in self.pages.touched()?.into_iter().enumerate() {
            if count % CHUNKS_PER_LOOK == 0 && !(self.is_wanted)() {
                return Err(MemoryError::Cancelled);
            }
            self.pages.read(touched, read, &mut content)?;
            read += bytes(touched.pages);
            take(touched, &content)?;
        }
        Ok(())
    }
}

pub(super) fn entry(
    number: u32,
    written: PageMask,
    data: PageMask,
    content: &[u8; CHUNK],
    pack: u32,
    position: u64,
) -> Chunk {
    let mut pages = Vec::with_capacity(bytes(data));
    ranges(data).for_each(|range| pages.extend_from_slice(&content[range]));
    Chunk { number, written, data, pack, position, hash: hash(number, written, data, &pages) }
}

/// Reads how a file holds the pages of a chunk.
pub(super) type ReadPages = for<'a> fn(&File, &Chunk, &'a mut [u8; CHUNK]) -> std::io::Result<&'a [u8]>;

/// Reads again what was written.
pub(super) fn verify(file: &File, path: &Path, chunks: &[Chunk], read: ReadPages) -> Result<()> {
    let mut content = Box::new([0; CHUNK]);
    for chunk in chunks {
        let pages = read(file, chunk, &mut content).map_err(failed("read", path))?;
        if hash(chunk.number, chunk.written, chunk.data, pages) != chunk.hash {
            return Err(MemoryError::Damaged { path: path.to_owned(), what: "what was written is not what is read" });
        }
    }
    Ok(())
}

/// Forgets packs that no chunk lies in any more, so that they can be removed.
pub(super) fn without_unused_packs(mut image: Image) -> Image {
    let mut places = vec![None; image.packs.len()];
    let mut packs = Vec::new();
    for chunk in image.chunks.iter_mut().filter(|chunk| chunk.data != 0) {
        let known = chunk.pack as usize;
        let place = *places[known].get_or_insert_with(|| {
            packs.push(image.packs[known].clone());
            u32::try_from(packs.len() - 1).expect("there are no more than before")
        });
        chunk.pack = place;
    }
    // Chunks of zeros lie nowhere.
    image.chunks.iter_mut().filter(|chunk| chunk.data == 0).for_each(|chunk| (chunk.pack, chunk.position) = (0, 0));
    image.packs = packs;
    image
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing step is a failing test")]

    use std::fs;
    use std::os::unix::fs::FileExt as _;

    use super::super::pages::PAGE;
    use super::*;

    const MEMORY: u64 = 4 << 20;

    fn id(number: u32) -> SnapshotId {
        SnapshotId(format!("{number:032x}"))
    }

    /// The first page of each of these chunks, filled with a number.
    fn captured(chunks: &[(u32, u8)]) -> Captured {
        let touched = chunks.iter().map(|(chunk, _)| Touched { chunk: *chunk, pages: 1 }).collect();
        let content = chunks.iter().flat_map(|(_, fill)| [*fill; PAGE]).collect();
        Captured { bytes: MEMORY, touched, content }
    }

    fn save(store: &Store, number: u32, chunks: &[(u32, u8)], parent: Option<&Image>) -> Image {
        store.save(&id(number), Pages::Captured(&captured(chunks)), parent, &|| true).unwrap()
    }

    fn packs(dir: &Path) -> usize {
        fs::read_dir(dir.join("packs")).unwrap().count()
    }

    #[test]
    fn a_chunk_that_did_not_change_is_not_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().to_owned());
        let base = save(&store, 1, &[(0, 1), (5, 1)], None);
        assert!(base.chunks.is_empty());
        let first = save(&store, 2, &[(0, 2), (7, 2)], Some(&base));
        let second = save(&store, 3, &[(0, 2), (7, 3)], Some(&first));
        let size = |number| fs::metadata(store.pack_path(&id(number))).unwrap().len();
        assert_eq!((size(2), size(3)), (2 * PAGE as u64, PAGE as u64));
        assert_eq!(second.packs, [id(2), id(3)]);
        assert_eq!(store.image(&id(3)).unwrap(), second);
    }

    #[test]
    fn pages_that_became_zero_are_kept_and_take_no_room() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().to_owned());
        let base = save(&store, 1, &[(0, 1)], None);
        let zeroed = save(&store, 2, &[(0, 0)], Some(&base));
        assert_eq!(zeroed.chunks.iter().map(|chunk| (chunk.written, chunk.data)).collect::<Vec<_>>(), [(1, 0)]);
        assert_eq!(fs::metadata(store.pack_path(&id(2))).unwrap().len(), 0);
    }

    #[test]
    fn packs_are_few_though_nobody_merges_them_and_what_nothing_refers_to_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().to_owned());
        let mut image = save(&store, 1, &[(0, 1)], None);
        let mut chunks = vec![];
        let collect = |kept: &[SnapshotId]| {
            let references = store.references(kept).unwrap();
            store.remove(&store.beyond(&references).unwrap()).unwrap();
        };
        for number in 2..60 {
            chunks.push((number, 1));
            image = save(&store, number, &chunks, Some(&image));
            collect(&[id(number)]);
            assert!(image.packs.len() <= MOST_PACKS + 1 && packs(dir.path()) == image.packs.len(), "{:?}", image.packs);
        }
        assert!(store.base_path(&id(1)).exists());
        collect(&[]);
        assert!(!store.base_path(&id(1)).exists() && packs(dir.path()) == 0);
    }

    #[test]
    fn a_cancelled_save_leaves_no_image() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().to_owned());
        let error = store.save(&id(1), Pages::Captured(&captured(&[(0, 1)])), None, &|| false).unwrap_err();
        assert!(matches!(error, MemoryError::Cancelled));
        assert!(store.image(&id(1)).is_err());
    }

    #[test]
    fn a_damaged_base_is_noticed_once_its_file_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().to_owned());
        save(&store, 1, &[(3, 1)], None);
        store.check_base(&id(1)).unwrap();
        let base = store.base_path(&id(1));
        let file = File::options().write(true).open(&base).unwrap();
        file.write_all_at(&[9], 3 * CHUNK as u64 + 17).unwrap();
        assert!(matches!(Store::new(dir.path().to_owned()).check_base(&id(1)), Err(MemoryError::Damaged { .. })));
    }

    #[test]
    fn a_base_that_was_written_to_is_refused_even_if_its_content_and_times_were_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().to_owned());
        save(&store, 1, &[(3, 1)], None);
        store.check_base(&id(1)).unwrap();
        let file = File::options().write(true).open(store.base_path(&id(1))).unwrap();
        let then = file.metadata().unwrap().modified().unwrap();
        file.write_all_at(&[1], 3 * CHUNK as u64).unwrap();
        file.set_modified(then).unwrap();
        assert!(matches!(store.check_base(&id(1)), Err(MemoryError::Damaged { .. })));
    }
}
