//! Writing a base: a guest's whole memory as a sparse file in which every page has its place, and its checksums beside it.

use std::os::unix::fs::FileExt as _;

use setpoint_schema::id::SnapshotId;

use super::image::{Chunk, Image};
use super::pages::{CHUNK, PageMask, not_zero, ranges};
use super::save::{entry, verify};
use super::store::{Fresh, Store, read_in_place, stamp, write_image};
use super::{Result, failed};

/// A base that is being written, chunk after chunk in order.
pub(super) struct NewBase {
    file: Fresh,
    memory: u64,
    chunks: Vec<Chunk>,
}

impl NewBase {
    /// Begins the base of this name for a guest with so much memory.
    pub fn create(store: &Store, id: &SnapshotId, memory: u64) -> Result<Self> {
        let file = Fresh::create(store.base_path(id))?;
        file.file.set_len(memory).map_err(failed("lengthen", file.unfinished()))?;
        Ok(Self { file, memory, chunks: Vec::new() })
    }

    /// Writes these pages of a chunk; those of zeros are holes.
    pub fn put(&mut self, number: u32, content: &[u8; CHUNK], pages: PageMask) -> Result<()> {
        let data = not_zero(content, pages);
        if data == 0 {
            return Ok(());
        }
        let position = u64::from(number) * CHUNK as u64;
        for range in ranges(data) {
            let at = position + range.start as u64;
            self.file.file.write_all_at(&content[range], at).map_err(failed("write", self.file.unfinished()))?;
        }
        self.chunks.push(entry(number, data, data, content, 0, position));
        Ok(())
    }

    /// Reads all of it again and gives it its name; the image that is this base and nothing else.
    pub fn finish(self, store: &Store, id: &SnapshotId) -> Result<Image> {
        let Self { file, memory, chunks } = self;
        file.sync()?;
        verify(&file.file, file.unfinished(), &chunks, read_in_place)?;
        write_image(store.sums_path(id), &Image { memory, base: None, packs: Vec::new(), chunks })?;
        let file = file.publish()?;
        let stamp = stamp(&file).map_err(failed("inspect", &store.base_path(id)))?;
        store.found_sound(id, stamp);
        Ok(Image { memory, base: Some(id.clone()), packs: Vec::new(), chunks: Vec::new() })
    }
}
