//! Identities that Setpoint or git mints: hashes, generations, sandbox and disk ids, boot nonces.

use std::fmt;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Defines a transparent text newtype for an id that this program or git made, so its spelling needs no check. Its text is a
/// `String`; or an `Arc<str>` that copies share, where every app has several copies in rows, observations and plans.
macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        id!($(#[$doc])* $name: String);
    };
    ($(#[$doc:meta])* $name:ident: $text:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(pub $text);

        impl $name {
            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

id!(
    /// A git commit, 40 lower-case hex digits.
    CommitId: Arc<str>
);
id!(
    /// A git blob, 40 lower-case hex digits.
    BlobId
);
id!(
    /// One microVM of one app, as `<app>-<8 hex digits>`: also the name of its directory.
    SandboxId: Arc<str>
);
id!(
    /// One data disk, as `<app>-<8 hex digits>`. It can outlive its sandbox.
    DiskId: Arc<str>
);
id!(
    /// One boot of one microVM, 32 hex digits: whoever answers with another nonce is not the guest that was started.
    BootNonce: Arc<str>
);
id!(
    /// One saved state of one microVM, 32 hex digits: names its files.
    SnapshotId
);
id!(
    /// The machine a daemon runs on, from its host name.
    HostId: Arc<str>
);
id!(
    /// The content of a workspace: hash over path, mode and blob id of every file.
    TreeDigest: Arc<str>
);
id!(
    /// The content that a template's root file system is made from.
    TemplateDigest: Arc<str>
);
id!(
    /// A spec's content, SHA-256 over its canonical JSON, in hex.
    SpecDigest: Arc<str>
);
id!(
    /// What an action does to an app, SHA-256 in hex: the same for the same work done again.
    WorkDigest
);

impl CommitId {
    /// The first ten digits, as people quote commits.
    #[must_use]
    pub fn short(&self) -> &str {
        self.0.get(..10).unwrap_or(&self.0)
    }
}

impl SpecDigest {
    /// The digest of anything that serialises; maps are ordered, so equal values give equal digests.
    #[must_use]
    pub fn of(value: &impl Serialize) -> Self {
        Self(sha256_hex(&[&canonical_json(value)]).into())
    }
}

impl WorkDigest {
    /// The digest of what describes the work.
    #[must_use]
    pub fn of(value: &impl Serialize) -> Self {
        Self(sha256_hex(&[&canonical_json(value)]))
    }
}

/// Counts the changes of one object's spec, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// SHA-256 over length-prefixed parts, in hex, so that no two lists of parts share an encoding.
#[must_use]
pub fn sha256_hex(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex(&hash.finalize())
}

/// Bytes as lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = Vec::with_capacity(2 * bytes.len());
    for byte in bytes {
        text.extend([byte >> 4, byte & 15].map(|digit| DIGITS[usize::from(digit)]));
    }
    String::from_utf8(text).expect("every digit is ASCII")
}

fn canonical_json(value: &impl Serialize) -> Vec<u8> {
    // Most specs fit.
    let mut text = Vec::with_capacity(1 << 10);
    crate::env::masked(|| serde_json::to_writer(&mut text, value))
        .expect("specs hold only maps with text keys, so they serialise");
    text
}
