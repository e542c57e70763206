//! The digest of a set of objects that can be kept up to date: a change costs the hash of a small part of the set.

use sha2::{Digest as _, Sha256};

/// A digest in binary.
pub(super) type Hash = [u8; 32];

/// The digests of the objects by their first byte, and the digest of each of those sets. Two equal sets have the same digest,
/// however they came about.
#[derive(Debug, Clone)]
pub(super) struct Tally {
    /// The digests of each part are in order.
    parts: Vec<(Vec<Hash>, Option<Hash>)>,
}

impl Default for Tally {
    fn default() -> Self {
        Self { parts: vec![(Vec::new(), None); 256] }
    }
}

impl Tally {
    /// Puts an object into the set, known by its digest.
    pub fn add(&mut self, object: Hash) {
        let (part, digest) = &mut self.parts[usize::from(object[0])];
        if let Err(place) = part.binary_search(&object) {
            part.insert(place, object);
        }
        *digest = None;
    }

    /// Takes an object out of the set.
    pub fn remove(&mut self, object: &Hash) {
        let (part, digest) = &mut self.parts[usize::from(object[0])];
        if let Ok(place) = part.binary_search(object) {
            part.remove(place);
        }
        *digest = None;
    }

    /// The digest of the set.
    pub fn digest(&mut self) -> Hash {
        let mut whole = Sha256::new();
        for (part, digest) in &mut self.parts {
            whole.update(digest.get_or_insert_with(|| {
                let mut hash = Sha256::new();
                part.iter().for_each(|object| hash.update(object));
                hash.finalize().into()
            }));
        }
        whole.finalize().into()
    }
}
