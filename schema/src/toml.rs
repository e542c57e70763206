//! TOML in: the same located tree as from YAML, so that one decoder serves both. The only module that knows the TOML library.

use std::borrow::Cow;
use std::ops::Range;

use ::toml::Spanned;
use ::toml::de::{DeTable, DeValue};

use crate::diagnostic::Location;
use crate::node::{Document, Ending, Entry, Mistake, Node, Scalar, ScalarKind, Value};

/// The largest text that is read at all. Finding a column takes time with the length of its line.
const MAX_BYTES: usize = 128 << 10;
/// Mistakes of syntax reported of one text.
const MAX_MISTAKES: usize = 50;

/// Reads a text. Its root is a mapping whose keys are in alphabetical order.
#[must_use]
pub fn read(text: &str) -> Document<'_> {
    if text.len() > MAX_BYTES {
        let message = format!("{} bytes are more than the {MAX_BYTES} that this file may have", text.len());
        let mistake = Mistake { at: Location::START, message, hint: None };
        return Document { root: Node::null(Location::START), mistakes: vec![mistake], ending: Ending::Cut };
    }
    let offsets = Offsets::new(text);
    let (table, errors) = DeTable::parse_recoverable(text);
    let mistakes = errors.iter().take(MAX_MISTAKES).map(|error| Mistake {
        at: error.span().map_or(Location::START, |span| offsets.location(span)),
        message: format!("not TOML: {}", error.message()),
        hint: None,
    });
    let mistakes: Vec<Mistake> = mistakes.collect();
    let ending = if mistakes.is_empty() { Ending::Whole } else { Ending::Cut };
    let root = Node { value: offsets.table(table.into_inner()), at: Location::START };
    Document { root, mistakes, ending }
}

/// Turns byte offsets into lines and columns.
struct Offsets<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Offsets<'a> {
    fn new(text: &'a str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self { text, starts: std::iter::once(0).chain(breaks).collect() }
    }

    fn location(&self, span: Range<usize>) -> Location {
        let line = self.starts.partition_point(|start| *start <= span.start);
        let start = self.starts.get(line - 1).copied().unwrap_or_default();
        let characters = |range: Range<usize>| {
            u32::try_from(self.text.get(range).map_or(0, |text| text.chars().count())).unwrap_or(u32::MAX)
        };
        Location {
            line: u32::try_from(line).unwrap_or(u32::MAX),
            column: characters(start..span.start).saturating_add(1),
            length: characters(span).max(1),
        }
    }

    /// The library bounds the depth, at 80.
    fn node(&self, value: Spanned<DeValue<'a>>) -> Node<'a> {
        let at = self.location(value.span());
        let scalar = |text: Cow<'a, str>, kind| Value::Scalar(Scalar { text, kind });
        let value = match value.into_inner() {
            DeValue::String(text) => scalar(text, ScalarKind::Text),
            DeValue::Integer(number) => match i128::from_str_radix(number.as_str(), number.radix()) {
                Ok(decimal) => scalar(decimal.to_string().into(), ScalarKind::Integer),
                Err(_) => scalar(number.as_str().to_owned().into(), ScalarKind::Float),
            },
            DeValue::Float(number) => scalar(number.as_str().to_owned().into(), ScalarKind::Float),
            DeValue::Boolean(value) => scalar(value.to_string().into(), ScalarKind::Bool),
            DeValue::Datetime(time) => scalar(time.to_string().into(), ScalarKind::Text),
            DeValue::Array(items) => Value::Sequence(items.into_iter().map(|item| self.node(item)).collect()),
            DeValue::Table(table) => self.table(table),
        };
        Node { value, at }
    }

    fn table(&self, table: DeTable<'a>) -> Value<'a> {
        let entry = |(key, value): (Spanned<Cow<'a, str>>, Spanned<DeValue<'a>>)| Entry {
            key_at: self.location(key.span()),
            key: key.into_inner(),
            value: self.node(value),
        };
        Value::Mapping(table.into_iter().map(entry).collect())
    }
}

#[cfg(test)]
mod tests;
