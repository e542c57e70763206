//! The bytes of one record: version, checksum, JSON. The checksum covers the key too, so that a record in another's place is
//! noticed. `store` writes and checks envelopes; `table` says which versions there are.
//!
//! ```text
//! byte 0        version of the record's type, from 1
//! bytes 1..33   SHA-256 over key length, key, version and body
//! bytes 33..    body, JSON
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};
use setpoint_schema::env::revealed;
use sha2::{Digest as _, Sha256};

use crate::table::Table;

const HEADER: usize = 33;

/// Turns the body of one version into that of the next.
pub type Upgrade = fn(serde_json::Value) -> std::result::Result<serde_json::Value, String>;

/// Why a record's bytes are not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Corrupt {
    #[error("is cut short")]
    Short,
    #[error("does not match its checksum")]
    Checksum,
    #[error("has version {found}")]
    TooNew { found: u8 },
    #[error("does not parse: {0}")]
    Body(String),
}

/// A SHA-256, as hex in JSON.
#[derive(Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Checksum([u8; 32]);

impl Checksum {
    /// The hash of a file's content.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Adds a record to, or takes it out of, a sum over a set of records: the order does not matter.
    pub(crate) fn toggle(&mut self, record: Self) {
        self.0.iter_mut().zip(record.0).for_each(|(sum, byte)| *sum ^= byte);
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Checksum> for String {
    fn from(checksum: Checksum) -> Self {
        checksum.to_string()
    }
}

impl TryFrom<String> for Checksum {
    type Error = &'static str;
    fn try_from(hex: String) -> Result<Self, Self::Error> {
        const RULE: &str = "a checksum is 64 hex digits";
        let mut bytes = [0; 32];
        if hex.len() != 64 || !hex.is_ascii() {
            return Err(RULE);
        }
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).map_err(|_| RULE)?;
        }
        Ok(Self(bytes))
    }
}

/// Wraps a value of table `T` for the key it is stored under.
pub(crate) fn encode<T: Table>(key: &[u8], value: &T::Value) -> Vec<u8> {
    encode_version(current_version::<T>(), key, value)
}

/// Wraps a value as a given version.
pub(crate) fn encode_version(version: u8, key: &[u8], value: &impl Serialize) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    // The store is the daemon's own file, and what an app needs to run again comes out of it.
    revealed(|| serde_json::to_writer(&mut bytes, value))
        .expect("records hold only maps with text keys, so they serialise");
    bytes[0] = version;
    let checksum = checksum_of(key, version, &bytes[HEADER..]);
    bytes[1..HEADER].copy_from_slice(&checksum.0);
    bytes
}

/// Reads a value of table `T`, brought to its current version.
pub(crate) fn decode<T: Table>(key: &[u8], bytes: &[u8]) -> Result<T::Value, Corrupt> {
    check(key, bytes)?;
    decode_unchecked::<T>(bytes)
}

/// The same of bytes that were just made, or checked before.
pub(crate) fn decode_unchecked<T: Table>(bytes: &[u8]) -> Result<T::Value, Corrupt> {
    let (Some(version), Some(body)) = (bytes.first().copied(), bytes.get(HEADER..)) else { return Err(Corrupt::Short) };
    let done = match version.checked_sub(1).map(usize::from) {
        Some(done) if done <= T::UPGRADES.len() => done,
        Some(_) | None => return Err(Corrupt::TooNew { found: version }),
    };
    if done == T::UPGRADES.len() {
        return serde_json::from_slice(body).map_err(|e| Corrupt::Body(e.to_string()));
    }
    let old = serde_json::from_slice(body).map_err(|e| Corrupt::Body(e.to_string()))?;
    let new = T::UPGRADES[done..].iter().try_fold(old, |value, upgrade| upgrade(value)).map_err(Corrupt::Body)?;
    serde_json::from_value(new).map_err(|e| Corrupt::Body(e.to_string()))
}

/// Checks a record against its own checksum, and returns its version and that checksum.
pub(crate) fn check(key: &[u8], bytes: &[u8]) -> Result<(u8, Checksum), Corrupt> {
    let stored = stored_checksum(bytes)?;
    let version = bytes[0];
    if checksum_of(key, version, &bytes[HEADER..]) == stored { Ok((version, stored)) } else { Err(Corrupt::Checksum) }
}

/// The checksum that a record carries, unchecked: enough where the record was checked before.
pub(crate) fn stored_checksum(bytes: &[u8]) -> Result<Checksum, Corrupt> {
    let (_, rest) = bytes.split_first().ok_or(Corrupt::Short)?;
    rest.first_chunk().copied().map(Checksum).ok_or(Corrupt::Short)
}

/// The version that this program writes for table `T`.
pub(crate) fn current_version<T: Table>() -> u8 {
    u8::try_from(T::UPGRADES.len() + 1).expect("a table has fewer than 255 versions")
}

fn checksum_of(key: &[u8], version: u8, body: &[u8]) -> Checksum {
    let mut hash = Sha256::new();
    hash.update((key.len() as u64).to_le_bytes());
    hash.update(key);
    hash.update([version]);
    hash.update(body);
    Checksum(hash.finalize().into())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A table whose type has changed twice.
    struct Pets;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Pet {
        name: String,
        legs: u32,
    }

    impl Table for Pets {
        const NAME: &'static str = "pets";
        const UPGRADES: &'static [Upgrade] = &[
            |old| Ok(json!({ "name": old })),
            |mut old| {
                old.as_object_mut().ok_or("not an object")?.insert("legs".to_owned(), Value::from(4));
                Ok(old)
            },
        ];
        type Key = u64;
        type Value = Pet;
    }

    #[test]
    fn every_older_version_is_brought_to_the_current_one() {
        let rex = Pet { name: "rex".into(), legs: 4 };
        let first = encode_version(1, b"k", &json!("rex"));
        let second = encode_version(2, b"k", &json!({ "name": "rex" }));
        let third = encode::<Pets>(b"k", &rex);
        for bytes in [first, second, third] {
            assert_eq!(decode::<Pets>(b"k", &bytes).unwrap(), rex);
        }
    }

    #[test]
    fn a_failing_upgrade_says_why() {
        let bytes = encode_version(2, b"k", &json!("not an object"));
        assert_eq!(decode::<Pets>(b"k", &bytes), Err(Corrupt::Body("not an object".into())));
    }

    #[test]
    fn a_newer_version_is_refused_and_so_is_version_zero() {
        for found in [0, 4, 255] {
            let bytes = encode_version(found, b"k", &json!({}));
            assert_eq!(decode::<Pets>(b"k", &bytes), Err(Corrupt::TooNew { found }));
        }
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_noticed() {
        let bytes = encode::<Pets>(b"k", &Pet { name: "rex".into(), legs: 4 });
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(check(b"k", &flipped), Err(Corrupt::Checksum), "bit {bit}");
        }
        for end in 0..bytes.len() {
            assert!(check(b"k", &bytes[..end]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn a_record_under_another_key_is_noticed() {
        let bytes = encode::<Pets>(b"k", &Pet { name: "rex".into(), legs: 4 });
        assert_eq!(check(b"other", &bytes), Err(Corrupt::Checksum));
    }
}
