//! Looks up many keys in order: each is found beside the one before it, and searched for only where it is not.

use std::cmp::Ordering;

use super::Chunk;

/// A place in a shared map, behind the key that was looked up last.
pub struct Finger<'a, K, V> {
    chunks: &'a [Chunk<K, V>],
    chunk: usize,
    place: usize,
}

impl<'a, K: Ord, V> Finger<'a, K, V> {
    pub(super) fn new(chunks: &'a [Chunk<K, V>]) -> Self {
        Self { chunks, chunk: 0, place: 0 }
    }

    /// The value of a key.
    pub fn find(&mut self, key: &K) -> Option<&'a V> {
        let (known, value) = match self.ahead() {
            Some(ahead) => ahead,
            None => return self.search(key),
        };
        match known.cmp(key) {
            Ordering::Equal => {
                self.place += 1;
                Some(value)
            }
            Ordering::Greater if self.behind().is_none_or(|(known, _)| known < key) => None,
            Ordering::Greater | Ordering::Less => self.search(key),
        }
    }

    /// The entry ahead, in the next chunk where this one ends.
    fn ahead(&mut self) -> Option<&'a (K, V)> {
        if self.chunks.get(self.chunk)?.len() <= self.place {
            (self.chunk, self.place) = (self.chunk + 1, 0);
        }
        self.chunks.get(self.chunk)?.get(self.place)
    }

    /// The entry behind, where the place is not the first one.
    fn behind(&self) -> Option<&'a (K, V)> {
        match self.place.checked_sub(1) {
            Some(place) => self.chunks.get(self.chunk)?.get(place),
            None => self.chunks.get(self.chunk.checked_sub(1)?)?.last(),
        }
    }

    fn search(&mut self, key: &K) -> Option<&'a V> {
        let begins_before = |chunk: &Chunk<K, V>| chunk.first().is_some_and(|(first, _)| first <= key);
        self.chunk = self.chunks.partition_point(begins_before).saturating_sub(1);
        let chunk = self.chunks.get(self.chunk)?;
        match chunk.binary_search_by(|(known, _)| known.cmp(key)) {
            Ok(place) => {
                self.place = place + 1;
                chunk.get(place).map(|(_, value)| value)
            }
            Err(place) => {
                self.place = place;
                None
            }
        }
    }
}
