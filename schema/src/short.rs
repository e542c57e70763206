//! Structures that are mostly one word: `power: paused` is short for `power: {state: paused}`.
//!
//! The word lays itself over that one field, so that what a default says of the others stays. Written out, a structure that says
//! nothing but its word is the word again: plans read as declarations do, and what was recorded as a word is read as one.

use std::borrow::Cow;
use std::ops::{Deref, DerefMut};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::decode::{Decode, Decoder};
use crate::disruption::{Declared, Disruption, FieldChange, join};
use crate::node::{Node, Value};

/// A structure that one of its fields can stand for.
pub trait Shorthand: Declared + Decode + Default + Clone + DeserializeOwned + schemars::JsonSchema {
    /// The field.
    type Word: Decode + Serialize + DeserializeOwned + Clone + schemars::JsonSchema;
    /// Its name.
    const WORD: &'static str;
    /// What the declaration's JSON Schema says of both forms.
    const ABOUT: &'static str;

    /// Its value.
    fn word(&self) -> &Self::Word;

    /// Where it stands.
    fn word_mut(&mut self) -> &mut Self::Word;
}

/// Such a structure, in either form.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Short<T>(pub T);

impl<T: Shorthand> Short<T> {
    /// The structure that says nothing but this.
    pub fn of(word: T::Word) -> Self {
        let mut whole = T::default();
        *whole.word_mut() = word;
        Self(whole)
    }

    fn is_short(&self) -> bool {
        self.0 == Self::of(self.0.word().clone()).0
    }
}

impl<T> Deref for Short<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Short<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T: Shorthand> Decode for Short<T> {
    fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self> {
        let mut value = Self(T::default());
        value.overlay(node, cx);
        Some(value)
    }

    fn overlay(&mut self, node: &Node<'_>, cx: &mut Decoder<'_>) {
        match node.value {
            Value::Mapping(_) => self.0.overlay(node, cx),
            Value::Scalar(_) | Value::Sequence(_) => self.0.word_mut().overlay(node, cx),
        }
    }
}

impl<T: Shorthand> Declared for Short<T> {
    const WORST: Disruption = T::WORST;

    /// A change of the word is shown under the name of the whole, as it is mostly declared.
    fn diff(&self, newer: &Self, path: &str, out: &mut Vec<FieldChange>) {
        let mut changes = Vec::new();
        self.0.diff(&newer.0, path, &mut changes);
        let word = join(path, T::WORD);
        for change in changes.iter_mut().filter(|change| change.path == word) {
            path.clone_into(&mut change.path);
        }
        out.append(&mut changes);
    }
}

/// The forms in JSON.
#[derive(Deserialize)]
#[serde(untagged)]
enum Form<W, T> {
    Word(W),
    Whole(T),
}

impl<T: Shorthand> Serialize for Short<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // What is packed does not say of itself which form it has.
        if serializer.is_human_readable() && self.is_short() {
            self.0.word().serialize(serializer)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de, T: Shorthand> Deserialize<'de> for Short<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !deserializer.is_human_readable() {
            return T::deserialize(deserializer).map(Self);
        }
        Ok(match Form::<T::Word, T>::deserialize(deserializer)? {
            Form::Word(word) => Self::of(word),
            Form::Whole(whole) => Self(whole),
        })
    }
}

impl<T: Shorthand> schemars::JsonSchema for Short<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let forms = [generator.subschema_for::<T::Word>(), generator.subschema_for::<T>()];
        schemars::json_schema!({ "description": T::ABOUT, "anyOf": forms })
    }
}
