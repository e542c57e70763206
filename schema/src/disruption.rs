//! What changing a declared field does to a running app, and the differences between two specs.
//!
//! The class of a field is written beside it, in [`declared!`](crate::declared): a field without one is a syntax error.
//! `diff` visits every field because the same macro call defines both.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::env::{MASK, is_masked};

/// How much of a running app a change disturbs, mildest first; a set of changes is as disruptive as its worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Disruption {
    /// Nothing restarts.
    Live,
    /// Workspace files change; processes that ask for it restart.
    Files,
    /// The app's processes restart; the microVM runs on.
    Process,
    /// The microVM boots again; its disk stays.
    Reboot,
    /// The microVM is made anew.
    Replace,
}

/// One field that differs between two specs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldChange {
    /// Where in the declaration, as `resources.memory`.
    pub path: String,
    /// The old value; null where the field was absent.
    pub before: Value,
    /// The new value; null where the field is absent now.
    pub after: Value,
    /// What the change disturbs.
    pub disruption: Disruption,
    /// Whether either value is sensitive. Then both stand as [`MASK`], where they are there at all.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sensitive: bool,
}

/// A declared structure whose fields all carry their class. Implemented by [`declared!`](crate::declared) alone, and by
/// `Option` and `Arc` of such.
pub trait Declared: Serialize + PartialEq {
    /// The worst class among the fields: what adding or removing the whole structure disturbs.
    const WORST: Disruption;

    /// Appends the fields in which `newer` differs, with paths below `path`.
    fn diff(&self, newer: &Self, path: &str, out: &mut Vec<FieldChange>);
}

impl<T: Declared> Declared for Arc<T> {
    const WORST: Disruption = T::WORST;

    fn diff(&self, newer: &Self, path: &str, out: &mut Vec<FieldChange>) {
        T::diff(self, newer, path, out);
    }
}

impl<T: Declared> Declared for Option<T> {
    const WORST: Disruption = T::WORST;

    fn diff(&self, newer: &Self, path: &str, out: &mut Vec<FieldChange>) {
        match (self, newer) {
            (Some(old), Some(new)) => old.diff(new, path, out),
            (None, None) => {}
            (old, new) => diff_leaf(old, new, path, Self::WORST, out),
        }
    }
}

/// A value whose class depends on how it changes: a disk grows in place but shrinks only by being made anew.
pub trait ClassByValue: Serialize + PartialEq {
    /// The worst class that any change of the value can have.
    const WORST: Disruption;

    /// The class of changing `self` into `newer`.
    fn class_of_change(&self, newer: &Self) -> Disruption;
}

/// Appends the change of one field, entry by entry where the field is a map.
pub fn diff_leaf<T: Serialize + PartialEq>(
    before: &T,
    after: &T,
    path: &str,
    disruption: Disruption,
    out: &mut Vec<FieldChange>,
) {
    // Most fields are as they were, and need not be written as JSON to see that.
    if before == after {
        return;
    }
    diff_values(to_value(before), to_value(after), path, disruption, out);
}

fn diff_values(before: Value, after: Value, path: &str, disruption: Disruption, out: &mut Vec<FieldChange>) {
    match (before, after) {
        (before, after) if before == after => {}
        (before, after) if is_masked(&before) || is_masked(&after) => {
            let mask = |value: Value| if value.is_null() { value } else { Value::from(MASK) };
            let (before, after) = (mask(before), mask(after));
            out.push(FieldChange { path: path.to_owned(), before, after, disruption, sensitive: true });
        }
        (Value::Object(mut old), Value::Object(mut new)) => {
            let mut keys: Vec<String> = old.keys().chain(new.keys()).cloned().collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                let (old, new) = (old.remove(&key).unwrap_or(Value::Null), new.remove(&key).unwrap_or(Value::Null));
                diff_values(old, new, &join(path, &key), disruption, out);
            }
        }
        (before, after) => {
            out.push(FieldChange { path: path.to_owned(), before, after, disruption, sensitive: false });
        }
    }
}

/// `path.field`, or `field` at the top.
#[must_use]
pub fn join(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

fn to_value(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("declared values hold only maps with text keys")
}

/// The worse of two classes, usable in constants.
#[must_use]
pub const fn worse(a: Disruption, b: Disruption) -> Disruption {
    if (a as u8) >= (b as u8) { a } else { b }
}

/// Defines a declared structure: each field is `class name: Type = default`, optionally `class name as "yamlName": …`, and
/// `=> check` after the default for a rule beyond the type, a [`Check`](crate::decode::Check).
///
/// The class is `live`, `files`, `process`, `reboot` or `replace`; `nested` for a structure that is itself declared; `by_value`
/// for a type that implements [`ClassByValue`]. From the one list of fields come the structure, its defaults, its differences,
/// its [`Decode`](crate::decode::Decode) and its JSON Schema. `marker "name": Type` behind the structure is a key that is
/// checked and not kept.
#[macro_export]
macro_rules! declared {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {
            $( $(#[$fmeta:meta])* $class:ident $field:ident $(as $rename:literal)? : $ty:ty = $default:expr $(=> $check:expr)? ),* $(,)?
        }
        $(marker $marker:literal : $marker_ty:ty)?
    ) => {
        #[derive(Debug, Clone, PartialEq, Eq, ::serde::Serialize, ::serde::Deserialize, ::schemars::JsonSchema)]
        #[serde(default, deny_unknown_fields)]
        $(#[$meta])*
        $vis struct $name {
            $( $(#[$fmeta])* $(#[serde(rename = $rename)])? pub $field: $ty, )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }

        impl $name {
            /// The names of its fields, as declarations write them.
            pub const FIELDS: &'static [&'static str] =
                &[ $( $crate::declared!(@name $field $($rename)?), )* $( $marker, )? ];
        }

        impl $crate::decode::Decode for $name {
            fn decode(
                node: &$crate::node::Node<'_>,
                cx: &mut $crate::decode::Decoder<'_>,
            ) -> ::std::option::Option<Self> {
                let mut value = Self::default();
                value.overlay(node, cx);
                Some(value)
            }

            fn overlay(&mut self, node: &$crate::node::Node<'_>, cx: &mut $crate::decode::Decoder<'_>) {
                for entry in cx.fields(node, stringify!($name), Self::FIELDS) {
                    $( if entry.key == $crate::declared!(@name $field $($rename)?) {
                        cx.field(entry, &mut self.$field, $crate::declared!(@check $($check)?));
                    } )*
                    $( if entry.key == $marker {
                        cx.field(entry, &mut <$marker_ty>::default(), $crate::check::anything);
                    } )?
                }
            }
        }

        impl $crate::disruption::Declared for $name {
            const WORST: $crate::disruption::Disruption = {
                let worst = $crate::disruption::Disruption::Live;
                $( let worst = $crate::disruption::worse(worst, $crate::declared!(@worst $class $ty)); )*
                worst
            };

            fn diff(&self, newer: &Self, path: &str, out: &mut Vec<$crate::disruption::FieldChange>) {
                // Most fields are as they were, and their paths need not even be spelled out to see that.
                $( if self.$field != newer.$field {
                    let path = $crate::disruption::join(path, $crate::declared!(@name $field $($rename)?));
                    $crate::declared!(@diff $class, &self.$field, &newer.$field, &path, out);
                } )*
            }
        }
    };

    (@name $field:ident) => { stringify!($field) };
    (@name $field:ident $rename:literal) => { $rename };

    (@check) => { $crate::check::anything };
    (@check $check:expr) => { $check };

    (@class live) => { $crate::disruption::Disruption::Live };
    (@class files) => { $crate::disruption::Disruption::Files };
    (@class process) => { $crate::disruption::Disruption::Process };
    (@class reboot) => { $crate::disruption::Disruption::Reboot };
    (@class replace) => { $crate::disruption::Disruption::Replace };

    (@worst nested $ty:ty) => { <$ty as $crate::disruption::Declared>::WORST };
    (@worst by_value $ty:ty) => { <$ty as $crate::disruption::ClassByValue>::WORST };
    (@worst $class:ident $ty:ty) => { $crate::declared!(@class $class) };

    (@diff nested, $old:expr, $new:expr, $path:expr, $out:expr) => {
        $crate::disruption::Declared::diff($old, $new, $path, $out)
    };
    (@diff by_value, $old:expr, $new:expr, $path:expr, $out:expr) => {
        $crate::disruption::diff_leaf(
            $old, $new, $path, $crate::disruption::ClassByValue::class_of_change($old, $new), $out,
        )
    };
    (@diff $class:ident, $old:expr, $new:expr, $path:expr, $out:expr) => {
        $crate::disruption::diff_leaf($old, $new, $path, $crate::declared!(@class $class), $out)
    };
}
