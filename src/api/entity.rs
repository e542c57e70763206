//! What a URL names at one moment, and how a client says which state of it it has: entity tags and `If-None-Match`.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use axum::body::Bytes;
use hyper::header::{HeaderMap, HeaderValue, IF_NONE_MATCH};
use ulid::Ulid;

use super::snapshot::Version;

/// What a URL names at one moment. Its body is made only if somebody needs it.
pub(super) struct Entity {
    pub(super) tag: Tag,
    pub(super) body: Body,
}

/// Makes the bytes of an entity.
pub(super) type Body = Box<dyn FnOnce() -> Bytes + Send>;

/// Tells the states of one entity apart, within one life of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tag(u64);

impl Tag {
    /// Of something whose versions are known. A version belongs to one object alone, so those of a page tell which objects
    /// are on it and what each says.
    pub(super) fn of_versions(versions: impl Iterator<Item = Version>, more: usize) -> Self {
        let mut hash = DefaultHasher::new();
        versions.for_each(|version| version.hash(&mut hash));
        more.hash(&mut hash);
        Self(hash.finish())
    }

    /// Of something of which only the bytes are known.
    pub(super) fn of_bytes(bytes: &[u8]) -> Self {
        let mut hash = DefaultHasher::new();
        hash.write(bytes);
        Self(hash.finish())
    }
}

impl From<Version> for Tag {
    fn from(version: Version) -> Self {
        Self(version.0)
    }
}

/// One life of the daemon: versions begin anew with each, and tags of different lives must not meet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Instance(u64);

impl Instance {
    /// A life that begins now.
    pub(super) fn begin() -> Self {
        // The lower half of what is random in it.
        Self(Ulid::generate().random() as u64)
    }

    /// The tag as clients see it, with its quotes.
    pub(super) fn write(self, tag: Tag) -> String {
        format!("\"{:016x}-{:x}\"", self.0, tag.0)
    }
}

/// A tag as a header.
pub(super) fn header(tag: &str) -> HeaderValue {
    HeaderValue::from_str(tag).expect("tags are hex digits in quotes")
}

/// Which states of an entity a client has already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Known {
    /// It did not say.
    Nothing,
    /// Those with these tags.
    Tags(Vec<String>),
    /// `*`: any that there is.
    Any,
}

impl Known {
    /// What `If-None-Match` says. Comparison is weak there (RFC 9110, 13.1.2), so that a `W/` which a proxy has put in front
    /// does not count. What cannot be read names no state.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut tags = Vec::new();
        for value in headers.get_all(IF_NONE_MATCH) {
            let Ok(text) = value.to_str() else { continue };
            if text.trim() == "*" {
                return Self::Any;
            }
            // None of our tags holds a comma; a stranger's that does is cut up and matches nothing either way.
            let tag = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
            tags.extend(text.split(',').map(tag));
        }
        if tags.is_empty() { Self::Nothing } else { Self::Tags(tags) }
    }

    /// Whether the client has the state with this tag.
    pub(super) fn covers(&self, tag: &str) -> bool {
        match self {
            Self::Nothing => false,
            Self::Tags(tags) => tags.iter().any(|known| known == tag),
            Self::Any => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(values: &[&'static str]) -> Known {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(IF_NONE_MATCH, HeaderValue::from_static(value));
        }
        Known::of(&headers)
    }

    #[test]
    fn tags_are_read_from_lists_and_repeated_headers_and_weak_ones_count_the_same() {
        for values in [&[r#""a""#][..], &[r#""x", "a""#], &[r#"W/"a""#], &[r#""x""#, r#" W/"y" ,"a""#], &["*"]] {
            assert!(known(values).covers(r#""a""#), "{values:?}");
        }
        for values in [&[][..], &[r#""b""#], &["a"], &[""], &[r#""a"#], &[r#""*""#]] {
            assert!(!known(values).covers(r#""a""#), "{values:?}");
        }
    }

    #[test]
    fn a_page_has_another_tag_when_anything_on_it_differs() {
        let tag = |versions: &[u64], more| Tag::of_versions(versions.iter().copied().map(Version), more);
        assert_eq!(tag(&[1, 2], 0), tag(&[1, 2], 0));
        for (versions, more) in [(&[1, 2][..], 1), (&[2, 1], 0), (&[1], 0), (&[1, 2, 3], 0), (&[], 0)] {
            assert_ne!(tag(versions, more), tag(&[1, 2], 0), "{versions:?} {more}");
        }
    }

    #[test]
    fn two_lives_of_a_daemon_share_no_tag() {
        let tag = Tag::from(Version(7));
        assert_ne!(Instance::begin().write(tag), Instance::begin().write(tag));
    }
}
