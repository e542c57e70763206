//! Objects of a repository read by many threads, for a first look at a large one.
//!
//! libgit2 takes locks that are one for all handles several times for each object, and makes a decompressor anew for it: half of what
//! reading took on two processors was that. gitoxide's readers share an index of packs and lock nothing.
//!
//! Every object that is given back has been held against its id. Whatever is not to be had is left to libgit2 ([`Objects`] gives
//! nothing back), which says what is damaged: so here nothing is refused.
//!
//! Called by the walk of trees and by snapshots.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

pub(super) use gix_hash::ObjectId;
pub(super) use gix_object::Kind;
use gix_odb::store::init::Options;
use gix_odb::{HandleArc, Header as _};
use gix_pack::Find as _;
use gix_pack::cache::lru::MemoryCappedHashmap;

/// Larger objects take long enough to be anybody's affair, and are nobody's to make us allocate.
const MAX_OBJECT_BYTES: usize = 4 << 20;

/// What one thread keeps of objects that others are made from.
const MAX_BASES_BYTES: usize = 8 << 20;

/// The objects of a repository, as they were when it was looked.
#[derive(Default)]
pub(super) struct Objects {
    store: Option<Arc<gix_odb::Store>>,
    /// Those that nobody reads with at the moment.
    readers: Mutex<Vec<Reader>>,
}

struct Reader {
    handle: HandleArc,
    content: Vec<u8>,
}

impl Objects {
    /// The objects below this git directory.
    pub fn of(git_dir: &Path) -> Self {
        let options = Options { alloc_limit_bytes: Some(MAX_OBJECT_BYTES), ..Options::default() };
        let opened = gix_odb::at_opts(git_dir.join("objects"), gix_hash::Kind::Sha1, None, options);
        let handle = opened.and_then(gix_odb::Handle::into_arc).ok();
        Self { store: handle.map(|handle| handle.store()), readers: Mutex::default() }
    }

    /// The content of an object of this kind and at most so many bytes. None says nothing: libgit2 may have it.
    pub fn read(&self, id: ObjectId, kind: Kind, most: u64) -> Option<Vec<u8>> {
        self.with_reader(|Reader { handle, content }| {
            let (object, _) = handle.try_find(&id, content).ok()??;
            if object.kind != kind || object.data.len() as u64 > most {
                return None;
            }
            object.verify_checksum(&id).ok()?;
            Some(object.data.to_vec())
        })
    }

    /// The size of an object of this kind.
    pub fn size(&self, id: ObjectId, kind: Kind) -> Option<u64> {
        self.with_reader(|reader| {
            let header = reader.handle.try_header(&id).ok()??;
            (header.kind() == kind).then_some(header.size())
        })
    }

    fn with_reader<T>(&self, read: impl FnOnce(&mut Reader) -> Option<T>) -> Option<T> {
        let readers = || self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        let spare = readers().pop();
        let mut reader = match spare {
            Some(reader) => reader,
            None => Reader::of(self.store.as_ref()?),
        };
        let result = read(&mut reader);
        readers().push(reader);
        result
    }
}

impl Reader {
    fn of(store: &Arc<gix_odb::Store>) -> Self {
        let mut handle = HandleArc::from(store.to_handle_arc());
        handle.set_pack_cache(|| Box::new(MemoryCappedHashmap::new(MAX_BASES_BYTES)));
        // What is new since is asked of libgit2.
        handle.refresh_never();
        Self { handle, content: Vec::new() }
    }
}

#[cfg(test)]
mod tests;
