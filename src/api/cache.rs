//! Answers that have been put together already, so that many who ask the same cost one, and asking again costs nothing.
//!
//! An answer is kept for its URL together with its *basis*: the version of all that it was made from. While the basis is the
//! same, so is the answer. Where only the basis has moved and the answer says the same, its tag and its bytes stay.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use axum::body::Bytes;
use hyper::Uri;

use super::entity::{Body, Entity, Tag};

/// The most that is kept, in items of lists: ten thousand apps in pages of the usual size, and some more. An item is about a
/// KiB, so that this is some 20 MB when everybody reads everything, and next to nothing when they do not.
const CAPACITY: usize = 16_384;
/// What an answer counts beside its items.
const OVERHEAD: usize = 8;

/// The newest answers, by URL.
#[derive(Default)]
pub(super) struct Cache(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    answers: HashMap<String, Arc<Answer>>,
    weight: usize,
}

/// One answer.
struct Answer {
    basis: u64,
    tag: Tag,
    weight: usize,
    body: Arc<LazyBody>,
}

type LazyBody = LazyLock<Bytes, Body>;

/// An answer that has just been made.
pub(super) struct Made {
    /// Its tag and how its bytes come to be.
    pub(super) entity: Entity,
    /// How many items it has.
    pub(super) items: usize,
}

impl Cache {
    /// The answer for a URL if one is kept that was made from `basis`.
    pub(super) fn get(&self, uri: &Uri, basis: u64) -> Option<Entity> {
        let kept = self.kept();
        let answer = kept.answers.get(key(uri)).filter(|answer| answer.basis == basis)?;
        Some(answer.entity())
    }

    /// Keeps the answer for a URL, made from `basis`.
    pub(super) fn put(&self, uri: &Uri, basis: u64, made: Made) -> Entity {
        let Made { entity: Entity { tag, body }, items } = made;
        let weight = items + OVERHEAD;
        let mut kept = self.kept();
        let before = kept.answers.remove(key(uri));
        kept.weight -= before.as_ref().map_or(0, |before| before.weight);
        let body = match before {
            Some(before) if before.tag == tag => Arc::clone(&before.body),
            Some(_) | None => Arc::new(LazyLock::new(body)),
        };
        let answer = Arc::new(Answer { basis, tag, weight, body });
        let entity = answer.entity();
        if weight <= CAPACITY {
            // Whoever asks for more than there is room for makes everybody begin anew, which costs no more than no cache.
            if kept.weight + weight > CAPACITY {
                *kept = Kept::default();
            }
            kept.weight += weight;
            kept.answers.insert(key(uri).to_owned(), answer);
        }
        entity
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        // Nothing between two changes of it can panic, so what a panic elsewhere left is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Answer {
    fn entity(&self) -> Entity {
        let body = Arc::clone(&self.body);
        Entity { tag: self.tag, body: Box::new(move || LazyLock::force(&body).clone()) }
    }
}

fn key(uri: &Uri) -> &str {
    uri.path_and_query().map_or("/", |target| target.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(text: &'static str, items: usize) -> Made {
        let bytes = Bytes::from_static(text.as_bytes());
        Made { entity: Entity { tag: Tag::of_bytes(&bytes), body: Box::new(move || bytes) }, items }
    }

    fn text(entity: Entity) -> Bytes {
        (entity.body)()
    }

    #[test]
    fn an_answer_holds_for_its_basis_alone() {
        let (cache, uri) = (Cache::default(), Uri::from_static("/v1/apps?limit=1"));
        assert_eq!(text(cache.put(&uri, 1, made("one", 1))), "one");
        assert_eq!(cache.get(&uri, 1).map(text), Some("one".into()));
        assert!(cache.get(&uri, 2).is_none());
        assert!(cache.get(&Uri::from_static("/v1/apps?limit=2"), 1).is_none());
        assert_eq!(text(cache.put(&uri, 2, made("two", 1))), "two");
        assert!(cache.get(&uri, 1).is_none());
    }

    #[test]
    fn an_answer_that_says_the_same_keeps_its_bytes() {
        let (cache, uri) = (Cache::default(), Uri::from_static("/v1/apps"));
        let first = text(cache.put(&uri, 1, made("same", 1)));
        let made_again = Made {
            entity: Entity { tag: Tag::of_bytes(b"same"), body: Box::new(|| unreachable!("the bytes are there")) },
            items: 1,
        };
        assert_eq!(text(cache.put(&uri, 2, made_again)).as_ptr(), first.as_ptr());
    }

    #[test]
    fn what_is_kept_is_bounded_whatever_is_asked_for() {
        let cache = Cache::default();
        for page in 0..100 {
            let uri: Uri = format!("/v1/apps?cursor=a{page}").parse().expect("it is a path and a query");
            cache.put(&uri, 1, made("page", 1000));
            assert!(cache.kept().weight <= CAPACITY);
            assert!(cache.get(&uri, 1).is_some(), "the newest is kept");
        }
        let sum: usize = cache.kept().answers.values().map(|answer| answer.weight).sum();
        assert_eq!(cache.kept().weight, sum);
    }
}
