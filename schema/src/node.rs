//! The located tree that every declaration is read into, whatever language it is written in: made by [`crate::yaml`] and
//! [`crate::toml`], consumed by [`crate::decode`].

use std::borrow::Cow;

use crate::diagnostic::Location;

/// One value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Node<'a> {
    /// The value.
    pub value: Value<'a>,
    /// Where it stands; a list or mapping is located at its first line.
    pub at: Location,
}

/// A value as it is written.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// A single value.
    Scalar(Scalar<'a>),
    /// A list.
    Sequence(Vec<Node<'a>>),
    /// Keys, each once, with their values, in the order in which they are written.
    Mapping(Vec<Entry<'a>>),
}

/// A single value: its text, and what that text means in its language.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scalar<'a> {
    /// The text, without quotes.
    pub text: Cow<'a, str>,
    /// What it means.
    pub kind: ScalarKind,
}

/// What the text of a scalar means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScalarKind {
    /// Nothing.
    Null,
    /// True or false.
    Bool,
    /// A whole number.
    Integer,
    /// A number with a fraction or an exponent, an infinity, or not a number.
    Float,
    /// Text, quoted or not.
    Text,
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry<'a> {
    /// The key.
    pub key: Cow<'a, str>,
    /// Where the key stands.
    pub key_at: Location,
    /// The value.
    pub value: Node<'a>,
}

/// A text read into a tree, with what was wrong on the way.
#[derive(Debug, Clone, PartialEq)]
pub struct Document<'a> {
    /// The tree; as much of it as could be read.
    pub root: Node<'a>,
    /// What is wrong with the text, before any meaning is asked for.
    pub mistakes: Vec<Mistake>,
    /// Whether reading came to the document's end.
    pub ending: Ending,
}

/// Something wrong at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Where.
    pub at: Location,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Whether reading came to a document's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It did.
    Whole,
    /// It did not, and no other document can be behind.
    Cut,
    /// It did not, and there seem to be further documents behind.
    CutBeforeOthers,
}

impl<'a> Node<'a> {
    /// Nothing.
    #[must_use]
    pub const fn null(at: Location) -> Self {
        Self { value: Value::Scalar(Scalar { text: Cow::Borrowed(""), kind: ScalarKind::Null }), at }
    }

    /// The key and value of that name, where this is a mapping that has it.
    #[must_use]
    pub fn entry(&self, key: &str) -> Option<&Entry<'a>> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    /// The value of a key, where this is a mapping that has it.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Node<'a>> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// The keys and values, none where this is no mapping.
    #[must_use]
    pub fn entries(&self) -> &[Entry<'a>] {
        match &self.value {
            Value::Mapping(entries) => entries,
            Value::Scalar(_) | Value::Sequence(_) => &[],
        }
    }

    /// The items, none where this is no list.
    #[must_use]
    pub fn items(&self) -> &[Node<'a>] {
        match &self.value {
            Value::Sequence(items) => items,
            Value::Scalar(_) | Value::Mapping(_) => &[],
        }
    }

    /// The text, where this is text.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar(Scalar { text, kind: ScalarKind::Text }) => Some(text),
            Value::Scalar(_) | Value::Sequence(_) | Value::Mapping(_) => None,
        }
    }

    /// Whether this is nothing.
    #[must_use]
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(Scalar { kind: ScalarKind::Null, .. }))
    }

    /// What this is, as a message says it after "found".
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.value {
            Value::Scalar(Scalar { text, kind }) => match kind {
                ScalarKind::Null => "nothing".to_owned(),
                ScalarKind::Bool => format!("the boolean {text}"),
                ScalarKind::Integer | ScalarKind::Float => format!("the number {}", shorten(text)),
                ScalarKind::Text => format!("`{}`", shorten(text)),
            },
            Value::Sequence(_) => "a list".to_owned(),
            Value::Mapping(_) => "a mapping".to_owned(),
        }
    }
}

/// Text as a message quotes it: at most 60 characters.
#[must_use]
pub fn shorten(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(60) {
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
        None => Cow::Borrowed(text),
    }
}
