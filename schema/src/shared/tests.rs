//! Shared maps against the standard library's.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use super::*;

/// A fixed sequence that looks random, so that a failure shows itself again.
fn numbers(count: usize, below: u32) -> impl Iterator<Item = u32> {
    let next = |seed: &u32| Some(seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    std::iter::successors(Some(7_u32), next).skip(1).map(move |n| (n >> 8) % below).take(count)
}

#[test]
fn a_shared_map_does_what_an_ordered_map_does() {
    let (mut map, mut model) = (SharedMap::new(), BTreeMap::new());
    for (step, key) in numbers(20_000, 700).enumerate() {
        match step % 3 {
            0 | 1 => assert_eq!(map.insert(key, step), model.insert(key, step)),
            _ => assert_eq!(map.remove(&key), model.remove(&key)),
        }
        assert_eq!((map.len(), map.get(&key)), (model.len(), model.get(&key)));
    }
    assert!(map.iter().eq(model.iter()) && map.iter().rev().eq(model.iter().rev()));
    assert!(map.chunks.iter().all(|chunk| (1..=CHUNK).contains(&chunk.len())));
    let built: SharedMap<_, _> = model.iter().rev().map(|(key, value)| (*key, *value)).collect();
    assert_eq!(built, map);
    let half = model.range(351..).collect::<Vec<_>>();
    assert_eq!(map.after(Some(&350)).collect::<Vec<_>>(), half);
}

#[test]
fn a_change_is_not_seen_by_the_copy_before_it() {
    let mut map: SharedMap<_, _> = (0..1000).map(|n| (n, n)).collect();
    let before = map.clone();
    map.insert(500, 0);
    map.remove(&1);
    *map.get_mut(&2).unwrap() = 7;
    assert_eq!((before[&500], before[&1], before[&2], before.len()), (500, 1, 2, 1000));
    let shared = map.chunks.iter().zip(before.chunks.iter()).filter(|(a, b)| Arc::ptr_eq(a, b)).count();
    assert_eq!(shared, before.chunks.len() - 2, "only what changed is copied");
}

#[test]
fn differences_are_those_that_a_comparison_of_all_entries_finds() {
    let mut map: SharedMap<u32, u32> = numbers(3000, 5000).map(|n| (n, n)).collect();
    for round in 0..200 {
        let before = map.clone();
        for key in numbers(300 + round, 5000).skip(300) {
            match key % 3 {
                0 => drop(map.insert(key, key + round as u32)),
                1 => drop(map.remove(&key)),
                _ => drop(map.insert(key.wrapping_mul(31) % 6000, key)),
            }
        }
        let found: Vec<_> = before.differences(&map).map(|(key, difference)| (*key, difference)).collect();
        let keys: std::collections::BTreeSet<_> = before.keys().chain(map.keys()).copied().collect();
        let expected: Vec<_> = keys
            .iter()
            .filter_map(|key| match (before.get(key), map.get(key)) {
                (Some(before), Some(after)) if before != after => Some((*key, Difference::Changed { before, after })),
                (Some(before), None) => Some((*key, Difference::Removed(before))),
                (None, Some(after)) => Some((*key, Difference::Added(after))),
                (Some(_), Some(_)) | (None, None) => None,
            })
            .collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn a_finger_finds_what_a_search_finds_in_whatever_order() {
    let map: SharedMap<u32, u32> = numbers(3000, 5000).map(|n| (n, n)).collect();
    let mut finger = map.finger();
    for key in (0..5001).chain(numbers(5000, 5001)).chain((0..5001).rev()).chain((0..5001).step_by(7)) {
        assert_eq!(finger.find(&key), map.get(&key), "{key}");
    }
    assert_eq!(SharedMap::<u32, u32>::new().finger().find(&1), None);
}

#[test]
fn maps_and_sets_are_written_like_any_other() {
    let map: SharedMap<String, u32> = [("b".to_owned(), 2), ("a".to_owned(), 1)].into();
    assert_eq!(serde_json::to_string(&map).unwrap(), r#"{"a":1,"b":2}"#);
    assert_eq!(serde_json::from_str::<SharedMap<String, u32>>(r#"{"b":2,"a":1}"#).unwrap(), map);
    let set: SharedSet<u32> = [3, 1, 2].into_iter().collect();
    assert_eq!(serde_json::to_string(&set).unwrap(), "[1,2,3]");
    assert_eq!(serde_json::from_str::<SharedSet<u32>>("[2,3,1]").unwrap(), set);
}
