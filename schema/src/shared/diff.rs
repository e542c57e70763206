//! What differs between two shared maps. Chunks that both hold are passed over without a look at their entries.

use std::cmp::Ordering;
use std::sync::Arc;

use super::Chunk;

/// How the entry of one key differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference<'a, V> {
    /// Only the newer map has it.
    Added(&'a V),
    /// Only the older map has it.
    Removed(&'a V),
    /// Both have it, with different values.
    Changed {
        /// The older map's.
        before: &'a V,
        /// The newer map's.
        after: &'a V,
    },
}

/// The differences between two maps, in key order.
pub struct Differences<'a, K, V> {
    older: Cursor<'a, K, V>,
    newer: Cursor<'a, K, V>,
}

/// A place between two entries: what is left of a chunk, and the chunks behind it.
struct Cursor<'a, K, V> {
    rest: &'a [(K, V)],
    chunks: &'a [Chunk<K, V>],
}

impl<'a, K, V> Cursor<'a, K, V> {
    /// Enters the next chunk where one has been left behind, and returns the entry ahead.
    fn peek(&mut self) -> Option<&'a (K, V)> {
        while self.rest.is_empty() {
            let (chunk, behind) = self.chunks.split_first()?;
            (self.rest, self.chunks) = (chunk, behind);
        }
        self.rest.first()
    }

    fn advance(&mut self) {
        self.rest = self.rest.split_first().map_or(&[], |(_, rest)| rest);
    }
}

impl<'a, K: Ord, V: PartialEq> Differences<'a, K, V> {
    pub(super) fn new(older: &'a [Chunk<K, V>], newer: &'a [Chunk<K, V>]) -> Self {
        Self { older: Cursor { rest: &[], chunks: older }, newer: Cursor { rest: &[], chunks: newer } }
    }

    /// Goes on to the first chunks that are not shared, where both sides are between chunks.
    fn pass_over_shared(&mut self) {
        if !self.older.rest.is_empty() || !self.newer.rest.is_empty() {
            return;
        }
        let pairs = self.older.chunks.iter().zip(self.newer.chunks);
        let shared = pairs.take_while(|(old, new)| Arc::ptr_eq(old, new)).count();
        self.older.chunks = &self.older.chunks[shared..];
        self.newer.chunks = &self.newer.chunks[shared..];
    }
}

impl<'a, K: Ord, V: PartialEq> Iterator for Differences<'a, K, V> {
    type Item = (&'a K, Difference<'a, V>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            self.pass_over_shared();
            let order = match (self.older.peek(), self.newer.peek()) {
                (None, None) => return None,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((old, _)), Some((new, _))) => old.cmp(new),
            };
            match order {
                Ordering::Less => {
                    let (key, value) = self.older.peek()?;
                    self.older.advance();
                    return Some((key, Difference::Removed(value)));
                }
                Ordering::Greater => {
                    let (key, value) = self.newer.peek()?;
                    self.newer.advance();
                    return Some((key, Difference::Added(value)));
                }
                Ordering::Equal => {
                    let ((_, before), (key, after)) = (self.older.peek()?, self.newer.peek()?);
                    self.older.advance();
                    self.newer.advance();
                    if before != after {
                        return Some((key, Difference::Changed { before, after }));
                    }
                }
            }
        }
    }
}
