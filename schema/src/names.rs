//! Hash maps by names. A first look at a repository looks up each name a dozen times, and the hash of the standard library's maps was a
//! twentieth of all that it took.
//!
//! The names are other people's choice, so that the hash starts from random numbers of each process and of each map: who makes names to
//! collide would have to know these.

/// By names, ids and other short texts.
pub type HashMap<K, V> = std::collections::HashMap<K, V, foldhash::quality::RandomState>;
/// The same, of names alone.
pub type HashSet<K> = std::collections::HashSet<K, foldhash::quality::RandomState>;
