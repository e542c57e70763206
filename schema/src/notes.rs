//! Labels and annotations: what people and programs note on an object.
//!
//! An app's are part of its declaration, of what it is brought to and of what is shown of it, so copies share them.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};

/// Texts by name, cheap to copy. Nobody changes them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Notes(
    /// Absent is empty.
    Option<Arc<BTreeMap<String, String>>>,
);

impl Deref for Notes {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &BTreeMap<String, String> {
        static NOTHING: BTreeMap<String, String> = BTreeMap::new();
        self.0.as_deref().unwrap_or(&NOTHING)
    }
}

impl From<BTreeMap<String, String>> for Notes {
    fn from(notes: BTreeMap<String, String>) -> Self {
        Self((!notes.is_empty()).then(|| Arc::new(notes)))
    }
}

impl<const N: usize> From<[(String, String); N]> for Notes {
    fn from(notes: [(String, String); N]) -> Self {
        BTreeMap::from(notes).into()
    }
}

impl Serialize for Notes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (**self).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Notes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::deserialize(deserializer).map(Self::from)
    }
}

/// The schema is that of any map of texts.
impl schemars::JsonSchema for Notes {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        <BTreeMap<String, String>>::schema_name()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        <BTreeMap<String, String>>::json_schema(generator)
    }
}
