//! Serde for types that records hold as text: written as they are displayed, read by the rule for text in declarations, in place
//! and without a copy in between. A state directory and a cache hold hundreds of thousands of them.

use std::fmt;

use serde::de::{Deserializer, Error, Visitor};

/// Implements serde for a type that is displayed, and parsed by its `FromStr` or by the function that is given.
macro_rules! as_text {
    ($name:ident) => {
        $crate::text::as_text!($name, ::std::str::FromStr::from_str);
    };
    ($name:ident, $parse:expr) => {
        impl ::serde::Serialize for $name {
            fn serialize<S: ::serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> ::serde::Deserialize<'de> for $name {
            fn deserialize<D: ::serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::text::deserialize(deserializer, $parse)
            }
        }
    };
}
pub(crate) use as_text;

/// Reads a value from text.
pub(crate) fn deserialize<'de, D, T, R>(deserializer: D, parse: fn(&str) -> Result<T, R>) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    R: fmt::Display,
{
    deserializer.deserialize_str(Parse(parse))
}

struct Parse<T, R>(fn(&str) -> Result<T, R>);

impl<T, R: fmt::Display> Visitor<'_> for Parse<T, R> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.0)(text).map_err(E::custom)
    }
}
