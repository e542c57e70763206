//! Making one layer of many, and a base of layers that have outgrown theirs. Done behind everything else: the memory stays the same,
//! and what it was before stays whole until somebody removes it.

use std::fs;
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use setpoint_schema::id::SnapshotId;

use super::base::NewBase;
use super::image::{Chunk, Image, hash};
use super::pages::{CHUNK, PageMask, bytes, ranges};
use super::restore::Layers;
use super::save::{CHUNKS_PER_LOOK, PACK_WRITE, verify, without_unused_packs};
use super::store::{Fresh, Store, check_id, read_image, read_in_place, read_packed, write_image};
use super::{MemoryError, Result, failed};

/// Packs that an image may have without being merged.
const PACKS: usize = 8;

/// What packs may hold that no image needs, beside once what is needed: rewriting a little to gain less is no gain.
const WASTE: u64 = 4 << 20;

/// What is to become of an image's layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Merge {
    /// They are many, or hold much that is not needed any more: one pack.
    Pack,
    /// They hold more than the base that they differ from: a base, which is mapped and not copied.
    Base,
}

impl Store {
    /// How an image is to be merged, if it is.
    pub fn wants_merging(&self, image: &Image) -> Result<Option<Merge>> {
        let Some(base) = &image.base else { return Ok(None) };
        let needed: u64 = image.chunks.iter().map(|chunk| bytes(chunk.data) as u64).sum();
        if needed > blocks(&self.base_path(base))? {
            return Ok(Some(Merge::Base));
        }
        Ok(self.wants_packing(image)?.then_some(Merge::Pack))
    }

    /// Whether an image lies in too many packs, or in too little of them, whatever it has in comparison with its base.
    pub fn wants_packing(&self, image: &Image) -> Result<bool> {
        let needed: u64 = image.chunks.iter().map(|chunk| bytes(chunk.data) as u64).sum();
        let packs = image.packs.iter().map(|pack| blocks(&self.pack_path(pack)));
        let held: u64 = packs.sum::<Result<u64>>()?;
        Ok(image.packs.len() > PACKS || held > 2 * needed + WASTE)
    }

    /// Writes the same memory as the image `id`, merged. On return it is on the disk and was read again.
    ///
    /// `is_wanted` is asked now and then; once it says no, this ends with [`MemoryError::Cancelled`].
    pub fn merge(&self, image: &Image, how: Merge, id: &SnapshotId, is_wanted: &dyn Fn() -> bool) -> Result<()> {
        check_id(id)?;
        self.create()?;
        let merged = match how {
            Merge::Pack => self.merge_into_pack(image, id, is_wanted)?,
            Merge::Base => self.merge_into_base(image, id, is_wanted)?,
        };
        write_image(self.image_path(id), &merged)?;
        self.sync_names()
    }

    fn merge_into_pack(&self, image: &Image, id: &SnapshotId, is_wanted: &dyn Fn() -> bool) -> Result<Image> {
        let layers = Layers::open(self, image)?;
        let pack = Fresh::create(self.pack_path(id))?;
        let mut out = BufWriter::with_capacity(PACK_WRITE, &pack.file);
        let mut chunks = Vec::with_capacity(image.chunks.len());
        let mut position = 0;
        for (count, chunk) in image.chunks.iter().enumerate() {
            look(count, is_wanted)?;
            let content = layers.read(chunk)?;
            for range in ranges(chunk.data) {
                out.write_all(&content[range]).map_err(failed("write", pack.unfinished()))?;
            }
            chunks.push(Chunk { pack: 0, position, ..chunk.clone() });
            position += bytes(chunk.data) as u64;
        }
        out.flush().map_err(failed("write", pack.unfinished()))?;
        drop(out);
        pack.sync()?;
        verify(&pack.file, pack.unfinished(), &chunks, read_packed)?;
        pack.publish()?;
        Ok(without_unused_packs(Image { packs: vec![id.clone()], chunks, ..image.clone() }))
    }

    fn merge_into_base(&self, image: &Image, id: &SnapshotId, is_wanted: &dyn Fn() -> bool) -> Result<Image> {
        let Some(base) = &image.base else { return Err(self.no_base()) };
        let sums = read_image(&self.sums_path(base))?;
        let path = self.base_path(base);
        let file = fs::File::open(&path).map_err(failed("open", &path))?;
        let layers = Layers::open(self, image)?;
        let mut merged = NewBase::create(self, id, image.memory)?;
        for (count, (below, above)) in side_by_side(&sums.chunks, &image.chunks).enumerate() {
            look(count, is_wanted)?;
            let mut content = Box::new([0; CHUNK]);
            if let Some(below) = below {
                read_below(&file, &path, below, &mut content)?;
            }
            if let Some(above) = above {
                let pages = layers.read(above)?;
                ranges(above.written).for_each(|range| content[range.clone()].copy_from_slice(&pages[range]));
            }
            let number = above.or(below).map_or(0, |chunk| chunk.number);
            merged.put(number, &content, PageMask::MAX)?;
        }
        merged.finish(self, id)
    }

    fn no_base(&self) -> MemoryError {
        MemoryError::Damaged { path: self.dir().to_owned(), what: "an image has no base" }
    }
}

fn look(count: usize, is_wanted: &dyn Fn() -> bool) -> Result<()> {
    if count.is_multiple_of(CHUNKS_PER_LOOK) && !is_wanted() { Err(MemoryError::Cancelled) } else { Ok(()) }
}

/// The pages of a base's chunk in their places, checked.
fn read_below(file: &fs::File, path: &Path, chunk: &Chunk, content: &mut [u8; CHUNK]) -> Result<()> {
    let mut packed = Box::new([0; CHUNK]);
    let pages = read_in_place(file, chunk, &mut packed).map_err(failed("read", path))?;
    if hash(chunk.number, chunk.written, chunk.data, pages) != chunk.hash {
        return Err(MemoryError::Damaged { path: path.to_owned(), what: "a chunk's checksum does not match" });
    }
    let mut at = 0;
    for range in ranges(chunk.data) {
        let length = range.len();
        content[range].copy_from_slice(&pages[at..at + length]);
        at += length;
    }
    Ok(())
}

/// Chunks of two lists, both in order, those of one number together.
fn side_by_side<'a>(
    below: &'a [Chunk],
    above: &'a [Chunk],
) -> impl Iterator<Item = (Option<&'a Chunk>, Option<&'a Chunk>)> {
    let (mut below, mut above) = (below.iter().peekable(), above.iter().peekable());
    std::iter::from_fn(move || {
        let next = [below.peek(), above.peek()].into_iter().flatten().map(|chunk| chunk.number).min()?;
        Some((below.next_if(|chunk| chunk.number == next), above.next_if(|chunk| chunk.number == next)))
    })
}

/// What a file takes on the disk.
fn blocks(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path).map_err(failed("inspect", path))?.blocks() * 512)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing step is a failing test")]

    use std::collections::BTreeSet;
    use std::os::unix::fs::FileExt as _;

    use super::super::pages::{PAGE, Touched};
    use super::super::process::Captured;
    use super::super::save::Pages;
    use super::*;

    const MEMORY: u64 = 4 << 20;

    fn id(number: u32) -> SnapshotId {
        SnapshotId(format!("{number:032x}"))
    }

    /// The first two pages of each of these chunks, filled with a number and with the next one; a zero is a page of zeros.
    fn save(store: &Store, number: u32, chunks: &[(u32, u8)], parent: Option<&Image>) -> Image {
        let touched = chunks.iter().map(|(chunk, _)| Touched { chunk: *chunk, pages: 3 }).collect();
        let pages = |fill: u8| [[fill; PAGE], [fill.saturating_sub(1); PAGE]].concat();
        let content = chunks.iter().flat_map(|(_, fill)| pages(*fill)).collect();
        let captured = Captured { bytes: MEMORY, touched, content };
        store.save(&id(number), Pages::Captured(&captured), parent, &|| true).unwrap()
    }

    /// All of the memory that an image describes.
    fn memory(store: &Store, image: &Image) -> Vec<u8> {
        let mut memory = vec![0; MEMORY as usize];
        let base = fs::File::open(store.base_path(image.base.as_ref().unwrap())).unwrap();
        base.read_exact_at(&mut memory, 0).unwrap();
        let layers = Layers::open(store, image).unwrap();
        for chunk in &image.chunks {
            let (content, begin) = (layers.read(chunk).unwrap(), chunk.number as usize * CHUNK);
            ranges(chunk.written).for_each(|range| {
                memory[begin + range.start..begin + range.end].copy_from_slice(&content[range]);
            });
        }
        memory
    }

    fn merged(store: &Store, image: &Image, how: Merge, number: u32) -> Image {
        store.merge(image, how, &id(number), &|| true).unwrap();
        let merged = store.image(&id(number)).unwrap();
        assert_eq!(memory(store, &merged), memory(store, image));
        merged
    }

    fn used(dir: &Path) -> u64 {
        let files = ["bases", "packs", "images"].into_iter().flat_map(|name| fs::read_dir(dir.join(name)).unwrap());
        files.map(|file| file.unwrap().metadata().unwrap().blocks() * 512).sum()
    }

    #[test]
    fn many_layers_become_one_with_the_same_memory() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().to_owned());
        let all: Vec<_> = (0..40).map(|chunk| (chunk, 9)).collect();
        let mut image = save(&store, 1, &all, None);
        let mut chunks = Vec::new();
        for number in 2..=10 {
            assert_eq!(store.wants_merging(&image).unwrap(), None, "{number}");
            chunks.push((number, u8::try_from(number).unwrap() - 2));
            image = save(&store, number, &chunks, Some(&image));
        }
        // The first layer has nothing but zeros, which lie nowhere.
        assert_eq!(image.packs.len(), 8);
        chunks.push((20, 3));
        image = save(&store, 11, &chunks, Some(&image));
        assert_eq!(store.wants_merging(&image).unwrap(), Some(Merge::Pack));
        let merged = merged(&store, &image, Merge::Pack, 12);
        assert_eq!((merged.packs.clone(), merged.base.clone()), (vec![id(12)], Some(id(1))));
        assert_eq!(store.wants_merging(&merged).unwrap(), None);
    }

    #[test]
    fn layers_that_have_outgrown_their_base_become_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().to_owned());
        let base = save(&store, 1, &[(3, 5), (4, 6), (9, 7)], None);
        // One over the base, one that wipes a part of it out, others beside it.
        let image = save(&store, 2, &[(3, 8), (4, 0), (10, 1), (11, 2), (12, 3), (13, 4)], Some(&base));
        assert_eq!(store.wants_merging(&image).unwrap(), Some(Merge::Base));
        let merged = merged(&store, &image, Merge::Base, 3);
        assert_eq!((merged.base.clone(), merged.chunks.len(), merged.packs.len()), (Some(id(3)), 0, 0));
        // What is read from the disk later is checked against sums that were written for it.
        Store::new(dir.path().to_owned()).check_base(&id(3)).unwrap();
        let refers = store.references([&id(3)]).unwrap();
        store.remove(&store.beyond(&refers).unwrap()).unwrap();
        assert!(!store.base_path(&id(1)).exists() && store.base_path(&id(3)).exists());
        assert_eq!(memory(&store, &merged)[4 * CHUNK], 0, "a page that was wiped out does not come back");
    }

    #[test]
    fn a_damaged_layer_is_not_merged_away() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().to_owned());
        let base = save(&store, 1, &[(3, 5)], None);
        let image = save(&store, 2, &[(3, 8), (4, 2)], Some(&base));
        let file = fs::File::options().write(true).open(store.pack_path(&id(2))).unwrap();
        file.write_all_at(&[77], 17).unwrap();
        for how in [Merge::Pack, Merge::Base] {
            let error = store.merge(&image, how, &id(3), &|| true).unwrap_err();
            assert!(matches!(error, MemoryError::Damaged { .. }), "{error}");
            assert!(store.image(&id(3)).is_err());
        }
    }

    #[test]
    fn disk_use_is_flat_over_many_saves_of_what_changes_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().to_owned());
        let all: Vec<_> = (0..60).map(|chunk| (chunk, 9)).collect();
        let mut image = save(&store, 1, &all, None);
        let mut most = BTreeSet::new();
        for number in 2..200 {
            // A few that change each time, and one that moves on.
            let fill = u8::try_from(number % 200).unwrap();
            let chunks = [(1, fill), (2, fill), (3 + number % 50, fill)];
            let mut last = id(2 * number);
            image = save(&store, 2 * number, &chunks, Some(&image));
            if let Some(how) = store.wants_merging(&image).unwrap() {
                last = id(2 * number + 1);
                image = merged(&store, &image, how, 2 * number + 1);
            }
            let refers = store.references([&last]).unwrap();
            store.remove(&store.beyond(&refers).unwrap()).unwrap();
            most.insert(used(dir.path()));
        }
        let (least, most) = (most.first().unwrap(), most.last().unwrap());
        assert!(*most < least + 256 * 1024, "{least} to {most}");
    }
}
