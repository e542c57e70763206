//! The YAML that nearly all declarations are written in, read in one pass: printable ASCII, one document, mappings of plain keys, lists,
//! one-line values, quoted or not, and one-line `{}` and `[]`.
//!
//! Most of a first look at a large repository was a full parser taking such files apart. Whatever else there is to YAML, and every
//! mistake, makes [`read`] give up, which leaves the text to the full parser: here nothing is refused and nothing is guessed. Where
//! this one answers, the answer is that of the full one to the last column; generated texts are held against it.

use std::borrow::Cow;

use crate::diagnostic::Location;
use crate::node::{Document, Ending, Entry, Node, Scalar, ScalarKind, Value};

use super::plain_kind;

/// Larger texts are rare enough to be read the slow way, which counts what it makes.
const MAX_BYTES: usize = 16 << 10;
/// Lists and mappings inside each other; declarations need six.
const MAX_DEPTH: usize = 12;

/// The only document of a text, if that is as plain as described.
pub(super) fn read(text: &str) -> Option<Document<'_>> {
    let is_plain = |byte: u8| byte == b'\n' || (b' '..=b'~').contains(&byte);
    if text.len() > MAX_BYTES || !text.bytes().all(is_plain) {
        return None;
    }
    let mut reader = Reader { lines: lines(text), next: 0 };
    // Blanks at the end of a line, the full parser counts as a part of a quoted value.
    if reader.lines.iter().any(|line| line.text.ends_with(' ')) {
        return None;
    }
    if reader.peek().is_some_and(|line| line.indent == 0 && line.text == "---") {
        reader.next += 1;
    }
    let first = *reader.peek()?;
    let root = reader.mapping(first, 1)?;
    // What is left did not fit in where it stands.
    reader.peek().is_none().then_some(Document { root, mistakes: Vec::new(), ending: Ending::Whole })
}

/// What stands in a line, from its first character to its last.
#[derive(Clone, Copy)]
struct Line<'a> {
    number: u32,
    indent: usize,
    text: &'a str,
}

/// The lines in which there is something beside a comment.
fn lines(text: &str) -> Vec<Line<'_>> {
    let numbered = (1..).zip(text.split('\n'));
    let lines = numbered.map(|(number, line)| {
        let text = line.trim_start_matches(' ');
        Line { number, indent: line.len() - text.len(), text }
    });
    // Lines of declarations are some 25 bytes long.
    let mut found = Vec::with_capacity(text.len() / 16 + 4);
    found.extend(lines.filter(|line| !line.text.is_empty() && !line.text.starts_with('#')));
    found
}

impl<'a> Line<'a> {
    /// The line from a later byte on, as if nothing stood before that.
    fn from(self, at: usize) -> Self {
        Self { indent: self.indent + at, text: &self.text[at..], ..self }
    }

    /// Where its first `length` characters stand.
    fn location(self, length: usize) -> Location {
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Location { line: self.number, column: small(self.indent + 1), length: small(length) }
    }

    fn is_item(self) -> bool {
        self.text == "-" || self.text.starts_with("- ")
    }

    /// The key that it begins with, and the line behind the colon and blanks; nothing is left where the value stands below.
    fn key(self) -> Option<(&'a str, Self)> {
        let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        let inner = |byte: &u8| is_word(byte) || matches!(byte, b'-' | b'.' | b'/');
        let bytes = self.text.as_bytes();
        let length = bytes.iter().take_while(|byte| inner(byte)).count();
        let is_key = bytes.first().is_some_and(is_word) && bytes.get(length) == Some(&b':') && length <= 128;
        let rest = self.text.get(length + 1..).filter(|rest| is_key && (rest.is_empty() || rest.starts_with(' ')))?;
        let blanks = rest.len() - rest.trim_start_matches(' ').len();
        Some((&self.text[..length], self.from(length + 1 + blanks)))
    }
}

struct Reader<'a> {
    lines: Vec<Line<'a>>,
    next: usize,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<&Line<'a>> {
        self.lines.get(self.next)
    }

    /// The mapping that begins with `line`, which is the next one or the end of it. Behind it, the next line is the first that does
    /// not belong to it.
    fn mapping(&mut self, mut line: Line<'a>, depth: usize) -> Option<Node<'a>> {
        let (at, indent) = (line.location(1), line.indent);
        let mut entries: Vec<Entry<'a>> = Vec::with_capacity(4);
        loop {
            let (key, rest) = line.key()?;
            self.next += 1;
            if depth > MAX_DEPTH || entries.iter().any(|entry| entry.key == key) {
                return None;
            }
            let value =
                if rest.text.is_empty() { self.below(indent, depth)? } else { self.value(rest, indent, depth)? };
            entries.push(Entry { key: Cow::Borrowed(key), key_at: line.location(key.len()), value });
            match self.peek() {
                Some(next) if next.indent == indent && !next.is_item() => line = *next,
                Some(_) | None => return Some(Node { value: Value::Mapping(entries), at }),
            }
        }
    }

    /// What stands in the lines below a key that stands at `indent`.
    fn below(&mut self, indent: usize, depth: usize) -> Option<Node<'a>> {
        let line = *self.peek()?;
        match line.is_item() {
            true if line.indent >= indent => self.sequence(line, indent, depth + 1),
            false if line.indent > indent => self.mapping(line, depth + 1),
            true | false => None,
        }
    }

    /// The list that begins with the next line, below a key that stands at `parent`.
    fn sequence(&mut self, first: Line<'a>, parent: usize, depth: usize) -> Option<Node<'a>> {
        let indent = first.indent;
        let mut at = first.location(1);
        let mut items = Vec::new();
        while let Some(line) = self.peek().copied().filter(|line| line.indent == indent && line.is_item()) {
            let rest = line.text.get(1..)?.trim_start_matches(' ');
            if rest.is_empty() || depth > MAX_DEPTH {
                return None;
            }
            let rest = line.from(line.text.len() - rest.len());
            // The full parser places a list that is not indented where its first item's content is.
            if items.is_empty() && indent == parent {
                at = rest.location(1);
            }
            items.push(match rest.key() {
                Some(_) => self.mapping(rest, depth + 1)?,
                None => {
                    self.next += 1;
                    self.value(rest, indent, depth)?
                }
            });
        }
        Some(Node { value: Value::Sequence(items), at })
    }

    /// The value that is the rest of a line, in something that stands at `indent`.
    fn value(&mut self, line: Line<'a>, indent: usize, depth: usize) -> Option<Node<'a>> {
        // What is indented further goes on with the value.
        if self.peek().is_some_and(|next| next.indent > indent) {
            return None;
        }
        let (node, rest) = match line.text.as_bytes().first()? {
            b'{' | b'[' | b'"' | b'\'' => flow(line, depth + 1)?,
            _ => (plain(line, line.text)?, line.from(line.text.len())),
        };
        rest.text.is_empty().then_some(node)
    }
}

/// A plain value outside of brackets: all of a line.
fn plain<'a>(line: Line<'a>, text: &'a str) -> Option<Node<'a>> {
    let bytes = text.as_bytes();
    let begins =
        |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'.' | b'_' | b'$' | b'(' | b'+' | b'~');
    let is_cut = |pair: &[u8]| pair == b": " || pair == b" #";
    if !bytes.first().is_some_and(begins) || bytes.ends_with(b":") || bytes.windows(2).any(is_cut) {
        return None;
    }
    let scalar = Scalar { text: Cow::Borrowed(text), kind: plain_kind(text) };
    Some(Node { value: Value::Scalar(scalar), at: line.location(text.len()) })
}

/// A quoted value, or `{}` or `[]` with all in it, and what is behind.
fn flow(line: Line<'_>, depth: usize) -> Option<(Node<'_>, Line<'_>)> {
    if depth > MAX_DEPTH {
        return None;
    }
    match line.text.as_bytes().first()? {
        b'{' => flow_mapping(line, depth),
        b'[' => flow_sequence(line, depth),
        b'"' => quoted(line, '"'),
        b'\'' => quoted(line, '\''),
        _ => {
            let inner = |byte: &u8| {
                byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'/' | b'+' | b'$' | b'=' | b' ')
            };
            let length = line.text.bytes().take_while(|byte| inner(byte)).count();
            let text = line.text[..length].trim_end_matches(' ');
            Some((plain(line, text)?, line.from(length)))
        }
    }
}

/// A bracket with the blanks behind it, and the line behind these.
fn opened(line: Line<'_>) -> (Location, Line<'_>) {
    let length = line.text.len() - line.text[1..].trim_start_matches(' ').len();
    (line.location(length), line.from(length))
}

/// Whether a value in brackets is followed by another, with the line from there on, or behind the bracket.
enum Behind<'a> {
    Another(Line<'a>),
    Closed(Line<'a>),
}

fn behind(line: Line<'_>, close: u8) -> Option<Behind<'_>> {
    let line = line.from(line.text.len() - line.text.trim_start_matches(' ').len());
    match *line.text.as_bytes().first()? {
        b',' => Some(Behind::Another(opened(line).1)),
        byte if byte == close => Some(Behind::Closed(line.from(1))),
        _ => None,
    }
}

fn flow_mapping(line: Line<'_>, depth: usize) -> Option<(Node<'_>, Line<'_>)> {
    let (at, mut rest) = opened(line);
    let mut entries: Vec<Entry<'_>> = Vec::new();
    if rest.text.starts_with('}') {
        return Some((Node { value: Value::Mapping(entries), at }, rest.from(1)));
    }
    loop {
        let (key, value) = rest.key()?;
        let key_at = rest.location(key.len());
        if entries.iter().any(|entry| entry.key == key) {
            return None;
        }
        let (value, after) = flow(value, depth + 1)?;
        entries.push(Entry { key: Cow::Borrowed(key), key_at, value });
        match behind(after, b'}')? {
            Behind::Another(next) => rest = next,
            Behind::Closed(after) => return Some((Node { value: Value::Mapping(entries), at }, after)),
        }
    }
}

fn flow_sequence(line: Line<'_>, depth: usize) -> Option<(Node<'_>, Line<'_>)> {
    let (at, mut rest) = opened(line);
    let mut items = Vec::new();
    if rest.text.starts_with(']') {
        return Some((Node { value: Value::Sequence(items), at }, rest.from(1)));
    }
    loop {
        let (item, after) = flow(rest, depth + 1)?;
        items.push(item);
        match behind(after, b']')? {
            Behind::Another(next) => rest = next,
            Behind::Closed(after) => return Some((Node { value: Value::Sequence(items), at }, after)),
        }
    }
}

/// Text between quotes, without anything in it that has a meaning of its own there.
fn quoted(line: Line<'_>, quote: char) -> Option<(Node<'_>, Line<'_>)> {
    let inner = &line.text[1..];
    let text = &inner[..inner.find(quote)?];
    let after = line.from(text.len() + 2);
    // As above.
    if text.contains('\\') || after.text.starts_with([quote, ' ']) {
        return None;
    }
    let scalar = Scalar { text: Cow::Borrowed(text), kind: ScalarKind::Text };
    Some((Node { value: Value::Scalar(scalar), at: line.location(text.len() + 2) }, after))
}
