//! A map of few entries, for what every app has one of: its variables, its labels.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Index;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};

/// An ordered map in one piece of memory that copies share, and that nobody changes. A `BTreeMap` has room for eleven entries from
/// the first one on, which for two variables or labels is half a kilobyte.
pub struct SmallMap<K, V>(
    /// In the order of keys. Absent is empty.
    Option<Arc<[(K, V)]>>,
);

impl<K, V> SmallMap<K, V> {
    /// An empty map.
    #[must_use]
    pub const fn new() -> Self {
        Self(None)
    }

    /// The number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries().len()
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The entries in key order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&K, &V)> + Clone {
        self.entries().iter().map(|(key, value)| (key, value))
    }

    /// The keys in order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &K> + Clone {
        self.iter().map(|(key, _)| key)
    }

    /// The values in key order.
    pub fn values(&self) -> impl ExactSizeIterator<Item = &V> + Clone {
        self.iter().map(|(_, value)| value)
    }

    fn entries(&self) -> &[(K, V)] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl<K: Ord, V> SmallMap<K, V> {
    /// The value of a key.
    #[must_use]
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let entries = self.entries();
        let place = entries.binary_search_by(|(known, _)| known.borrow().cmp(key)).ok()?;
        entries.get(place).map(|(_, value)| value)
    }

    /// Whether there is an entry for the key.
    #[must_use]
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }
}

impl<K: Ord + Clone, V: Clone> SmallMap<K, V> {
    /// The same entries in a map that can be changed.
    #[must_use]
    pub fn to_map(&self) -> BTreeMap<K, V> {
        self.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// The same with further entries, which take the place of those with equal keys; of several for a key the last one counts.
    #[must_use]
    pub fn with(&self, news: Vec<(K, V)>) -> Self {
        if news.is_empty() {
            return self.clone();
        }
        let mut entries = Vec::with_capacity(self.len() + news.len());
        entries.extend_from_slice(self.entries());
        for (key, value) in news {
            match entries.binary_search_by(|(known, _)| known.cmp(&key)) {
                Ok(place) => entries[place].1 = value,
                Err(place) => entries.insert(place, (key, value)),
            }
        }
        Self(Some(entries.into()))
    }
}

impl<K, V> From<BTreeMap<K, V>> for SmallMap<K, V> {
    fn from(map: BTreeMap<K, V>) -> Self {
        Self((!map.is_empty()).then(|| map.into_iter().collect()))
    }
}

impl<K: Ord, V> FromIterator<(K, V)> for SmallMap<K, V> {
    /// Of several entries for a key the last one counts.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        entries.into_iter().collect::<BTreeMap<_, _>>().into()
    }
}

impl<K: Ord, V, const N: usize> From<[(K, V); N]> for SmallMap<K, V> {
    fn from(entries: [(K, V); N]) -> Self {
        entries.into_iter().collect()
    }
}

impl<K, V> Clone for SmallMap<K, V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K, V> Default for SmallMap<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for SmallMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        let is_same = match (&self.0, &other.0) {
            (Some(entries), Some(others)) => Arc::ptr_eq(entries, others),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        is_same || self.entries() == other.entries()
    }
}

impl<K: Eq, V: Eq> Eq for SmallMap<K, V> {}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SmallMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Ord + Borrow<Q>, V, Q: Ord + ?Sized> Index<&Q> for SmallMap<K, V> {
    type Output = V;

    fn index(&self, key: &Q) -> &V {
        self.get(key).expect("whoever indexes a map knows that the key is in it")
    }
}

impl<K: Serialize, V: Serialize> Serialize for SmallMap<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de, K: Deserialize<'de> + Ord, V: Deserialize<'de>> Deserialize<'de> for SmallMap<K, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::deserialize(deserializer).map(Self::from)
    }
}

/// The schema is that of any map.
impl<K: schemars::JsonSchema, V: schemars::JsonSchema> schemars::JsonSchema for SmallMap<K, V> {
    fn inline_schema() -> bool {
        <BTreeMap<K, V>>::inline_schema()
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        <BTreeMap<K, V>>::schema_name()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        <BTreeMap<K, V>>::json_schema(generator)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    type Numbers = SmallMap<u32, &'static str>;

    #[test]
    fn it_has_the_entries_that_a_btreemap_of_the_same_has() {
        for entries in [vec![], vec![(3, "c")], vec![(3, "c"), (1, "a"), (2, "b"), (1, "z")]] {
            let map: BTreeMap<u32, &str> = entries.iter().copied().collect();
            let small: Numbers = entries.into_iter().collect();
            assert!(small.iter().eq(&map) && small.keys().eq(map.keys()) && small.values().eq(map.values()));
            assert_eq!((small.len(), small.is_empty()), (map.len(), map.is_empty()));
            assert!((0..5).all(|key| small.get(&key) == map.get(&key)));
            assert_eq!(format!("{small:?}"), format!("{map:?}"));
            let json = serde_json::to_string(&small).unwrap();
            assert_eq!(json, serde_json::to_string(&map).unwrap());
            assert_eq!(serde_json::from_str::<SmallMap<u32, String>>(&json).unwrap().len(), map.len());
            assert_eq!(small.to_map(), map);
        }
    }

    #[test]
    fn further_entries_take_the_place_of_those_with_equal_keys() {
        let known = Numbers::from([(1, "a"), (3, "c")]);
        assert_eq!(known.with(vec![(3, "x"), (2, "b"), (3, "z")]), Numbers::from([(1, "a"), (2, "b"), (3, "z")]));
        assert_eq!(known.with(Vec::new()), known);
        assert_eq!(Numbers::new().with(vec![(1, "a")]), Numbers::from([(1, "a")]));
        assert!(Numbers::new().with(Vec::new()).is_empty());
    }

    #[test]
    fn maps_are_equal_when_their_entries_are() {
        let one = Numbers::from([(1, "a"), (2, "b")]);
        assert_eq!(one, one.clone());
        assert_eq!(one, Numbers::from([(2, "b"), (1, "a")]));
        assert_ne!(one, Numbers::from([(1, "a")]));
        assert_ne!(one, Numbers::new());
        assert_eq!(Numbers::new(), Numbers::from(BTreeMap::new()));
    }
}
