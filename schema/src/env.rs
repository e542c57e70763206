//! The value of an environment variable, plain or sensitive.
//!
//! A sensitive value is masked wherever it is written: as JSON it is the hash of its text, and in `Debug` not even that. The text
//! itself comes out in three places alone, each of which asks for it: the store and the parse cache of the daemon, which are files
//! of its own, and the request to the guest whose process gets it. So that whatever shows plans, observations, events or errors has
//! nothing to forget.
//!
//! Two values are equal when their hashes are. What was masked can therefore be compared with what is declared, which is how a
//! preview beside a daemon sees that a sensitive value changed. It also means that who can read masked values can check a guess.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value as Json, json};
use sha2::{Digest as _, Sha256};

use crate::decode::{Decode, Decoder};
use crate::id::hex;
use crate::node::{Entry, Node, Scalar, ScalarKind, Value};

/// What stands where a sensitive value would.
pub const MASK: &str = "(sensitive value)";

/// The value of an environment variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvValue {
    /// It is shown.
    Plain(String),
    /// It is masked.
    Sensitive(Arc<Secret>),
}

/// A text that is masked.
pub struct Secret {
    sha256: [u8; 32],
    /// Absent where it was read in its masked form.
    text: Option<String>,
}

impl EnvValue {
    /// A value that is masked.
    #[must_use]
    pub fn sensitive(text: impl Into<String>) -> Self {
        let text = text.into();
        Self::Sensitive(Arc::new(Secret { sha256: digest(&text), text: Some(text) }))
    }

    /// The text, for whoever has to hand it on; `None` where all that is known is its hash.
    #[must_use]
    pub fn reveal(&self) -> Option<&str> {
        match self {
            Self::Plain(text) => Some(text),
            Self::Sensitive(secret) => secret.text.as_deref(),
        }
    }
}

impl From<String> for EnvValue {
    fn from(text: String) -> Self {
        Self::Plain(text)
    }
}

impl From<&str> for EnvValue {
    fn from(text: &str) -> Self {
        Self::Plain(text.to_owned())
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.sha256 == other.sha256
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

fn digest(text: &str) -> [u8; 32] {
    // Not the plain hash of the text, which lists of common passwords have.
    Sha256::new().chain_update(b"setpoint sensitive value\0").chain_update(text).finalize().into()
}

/// How sensitive values are written on this thread.
#[derive(Clone, Copy)]
enum Manner {
    Masked,
    Revealed,
}

thread_local! {
    static MANNER: Cell<Manner> = const { Cell::new(Manner::Masked) };
}

/// Writes sensitive values as they are in what `write` serialises: for files of the daemon that it reads its own values back from.
pub fn revealed<T>(write: impl FnOnce() -> T) -> T {
    in_manner(Manner::Revealed, write)
}

/// Masks sensitive values in what `write` serialises, wherever that is done. Hashes of specs are made like this.
pub(crate) fn masked<T>(write: impl FnOnce() -> T) -> T {
    in_manner(Manner::Masked, write)
}

fn in_manner<T>(manner: Manner, write: impl FnOnce() -> T) -> T {
    /// Puts back what was, also when `write` panics.
    struct Before(Manner);
    impl Drop for Before {
        fn drop(&mut self) {
            MANNER.set(self.0);
        }
    }
    let _before = Before(MANNER.replace(manner));
    write()
}

/// The forms in JSON; the first two are those of declarations.
#[derive(Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Form {
    Plain(String),
    Whole { value: String, sensitive: bool },
    Masked { sensitive: bool, sha256: String },
}

/// The forms in what is packed for the parse cache, which nobody else reads.
#[derive(Serialize, Deserialize)]
enum Packed {
    Plain(String),
    Sensitive(String),
}

impl Serialize for EnvValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let packs = !serializer.is_human_readable();
        match self {
            Self::Plain(text) if packs => Packed::Plain(text.clone()).serialize(serializer),
            Self::Plain(text) => serializer.serialize_str(text),
            Self::Sensitive(secret) => match (&secret.text, MANNER.get()) {
                (Some(text), _) if packs => Packed::Sensitive(text.clone()).serialize(serializer),
                (Some(text), Manner::Revealed) => {
                    Form::Whole { value: text.clone(), sensitive: true }.serialize(serializer)
                }
                (None, _) if packs => Err(serde::ser::Error::custom("the text of a sensitive value is not known")),
                (Some(_) | None, _) => {
                    Form::Masked { sensitive: true, sha256: hex(&secret.sha256) }.serialize(serializer)
                }
            },
        }
    }
}

impl<'de> Deserialize<'de> for EnvValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !deserializer.is_human_readable() {
            return Ok(match Packed::deserialize(deserializer)? {
                Packed::Plain(text) => Self::Plain(text),
                Packed::Sensitive(text) => Self::sensitive(text),
            });
        }
        match Form::deserialize(deserializer)? {
            Form::Plain(value) | Form::Whole { value, sensitive: false } => Ok(Self::Plain(value)),
            Form::Whole { value, sensitive: true } => Ok(Self::sensitive(value)),
            Form::Masked { sensitive: _, sha256 } => {
                let sha256 = unhex(&sha256).ok_or_else(|| serde::de::Error::custom("a SHA-256 is 64 hex digits"))?;
                Ok(Self::Sensitive(Arc::new(Secret { sha256, text: None })))
            }
        }
    }
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

/// Whether a declared value, as JSON, is a sensitive one.
pub(crate) fn is_masked(value: &Json) -> bool {
    let Json::Object(fields) = value else { return false };
    fields.len() == 2 && fields.get("sensitive") == Some(&json!(true)) && fields.contains_key("sha256")
}

impl EnvValue {
    /// The fields of the form that says whether it is sensitive.
    pub const FIELDS: &'static [&'static str] = &["value", "sensitive"];
}

impl Decode for EnvValue {
    fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self> {
        if !matches!(node.value, Value::Mapping(_)) {
            return String::decode(node, cx).map(Self::Plain);
        }
        // Whatever is wrong below, a slip in `sensitive` included, it is not said with the value's text.
        cx.conceal();
        cx.fields(node, "EnvValue", Self::FIELDS);
        let text = cx.require(node, "value", None).and_then(|entry| {
            let text = entry.value.text().filter(|text| !text.contains('\0'));
            unquoted(text, entry, "text without NUL characters", "write it in quotes", cx)
        });
        let sensitive = match node.entry("sensitive") {
            None => Some(false),
            Some(entry) => unquoted(truth(&entry.value), entry, "`true` or `false`", "write `true`", cx),
        };
        Some(if sensitive? { Self::sensitive(text?) } else { Self::Plain(text?.to_owned()) })
    }
}

/// What an entry holds, or a mistake that does not quote it, as other mistakes do.
fn unquoted<T>(found: Option<T>, entry: &Entry<'_>, what: &str, hint: &str, cx: &mut Decoder<'_>) -> Option<T> {
    if found.is_none() {
        cx.within(&entry.key, |cx| cx.error(entry.value.at, &format!("expected {what}"), Some(hint)));
    }
    found
}

fn truth(node: &Node<'_>) -> Option<bool> {
    match &node.value {
        Value::Scalar(Scalar { text, kind: ScalarKind::Bool }) => text.parse().ok(),
        Value::Scalar(_) | Value::Sequence(_) | Value::Mapping(_) => None,
    }
}

impl schemars::JsonSchema for EnvValue {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "EnvValue".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "The value of a variable: a text; or a text with whether it is masked wherever the declaration is shown.",
            "anyOf": [
                { "type": "string" },
                {
                    "type": "object",
                    "properties": {
                        "value": { "description": "The text.", "type": "string" },
                        "sensitive": {
                            "description": "Whether plans, the status API, events and messages mask it. It stands in git all the same.",
                            "type": "boolean",
                            "default": false
                        }
                    },
                    "required": ["value"],
                    "additionalProperties": false
                }
            ]
        })
    }
}

#[cfg(test)]
mod tests;
