//! A shared set: a shared map without values, written as a sequence.

use std::borrow::Borrow;
use std::fmt;

use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};

use super::{Iter, SharedMap};

/// An ordered set that is cheap to copy.
#[derive(Clone, PartialEq, Eq)]
pub struct SharedSet<K>(SharedMap<K, ()>);

impl<K> SharedSet<K> {
    /// An empty set.
    #[must_use]
    pub fn new() -> Self {
        Self(SharedMap::new())
    }

    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The elements in order.
    pub fn iter(&self) -> Keys<'_, K> {
        self.0.iter().map(|(key, ())| key)
    }
}

impl<K: Ord> SharedSet<K> {
    /// Whether it is in the set.
    #[must_use]
    pub fn contains<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.0.contains_key(key)
    }
}

impl<K: Ord + Clone> SharedSet<K> {
    /// Puts it into the set.
    pub fn insert(&mut self, key: K) {
        self.0.insert(key, ());
    }

    /// Takes it out of the set.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
    {
        self.0.remove(key);
    }
}

impl<K> Default for SharedSet<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: fmt::Debug> fmt::Debug for SharedSet<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl<K: Ord> FromIterator<K> for SharedSet<K> {
    fn from_iter<I: IntoIterator<Item = K>>(keys: I) -> Self {
        Self(keys.into_iter().map(|key| (key, ())).collect())
    }
}

impl<'a, K> IntoIterator for &'a SharedSet<K> {
    type Item = &'a K;
    type IntoIter = Keys<'a, K>;

    fn into_iter(self) -> Keys<'a, K> {
        self.iter()
    }
}

/// The elements of a [`SharedSet`] in order.
pub type Keys<'a, K> = std::iter::Map<Iter<'a, K, ()>, fn((&'a K, &'a ())) -> &'a K>;

impl<K: Serialize> Serialize for SharedSet<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de, K: Deserialize<'de> + Ord> Deserialize<'de> for SharedSet<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Vec::deserialize(deserializer)?.into_iter().collect())
    }
}
