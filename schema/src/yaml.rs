//! YAML in and out. The only module that knows the two YAML libraries: saphyr-parser reads, because it streams located
//! events, so that hostile input is refused before it is in memory; serde_yaml writes.
//!
//! The accepted language is small on purpose: no tags, no merge keys, no keys but text, aliases within a budget. Unquoted
//! scalars mean what YAML 1.2 says, so `no` is text.

mod plain;

use std::borrow::Cow;
use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput};
use serde::Serialize;

use crate::diagnostic::Location;
use crate::node::{Document, Ending, Entry, Mistake, Node, Scalar, ScalarKind, Value};
use crate::quantity::parse_integer;

/// The largest text that is read at all. A declaration is a few hundred bytes; this leaves room for a thousand in a file.
pub const MAX_BYTES: usize = 1 << 20;
/// Values in one file, those that aliases repeat included. Bounds the memory of a tree at some 10 MB.
const MAX_NODES: usize = 100_000;
/// Bytes of text that aliases may repeat in one file.
const MAX_REPEATED_BYTES: usize = 1 << 20;
/// Lists and mappings inside each other; declarations need six.
const MAX_DEPTH: usize = 32;
/// The longest single value: more than any command or variable needs.
const MAX_SCALAR_BYTES: usize = 64 << 10;
/// Mistakes reported of one document before its syntax.
const MAX_MISTAKES: usize = 50;

/// Writes a value as YAML.
///
/// # Errors
/// The value has map keys that are not scalars, or its own serialisation fails.
pub fn to_string(value: &impl Serialize) -> Result<String, WriteError> {
    serde_yaml::to_string(value).map_err(WriteError)
}

/// Why a value cannot be written as YAML.
#[derive(Debug, thiserror::Error)]
#[error("cannot write as YAML")]
pub struct WriteError(#[source] serde_yaml::Error);

/// Reads every document of a text. A text that breaks off gives what came before, and a last document that says so.
#[must_use]
pub fn read(text: &str) -> Vec<Document<'_>> {
    if text.len() > MAX_BYTES {
        return vec![too_long(text)];
    }
    match plain::read(text) {
        Some(document) => vec![document],
        None => read_in_full(text),
    }
}

fn read_in_full(text: &str) -> Vec<Document<'_>> {
    let mut reader = Reader::new(text);
    match reader.run() {
        Ok(()) => {}
        Err(mistake) => reader.cut(mistake),
    }
    reader.documents
}

fn too_long(text: &str) -> Document<'_> {
    let message = format!("{} bytes are more than the {MAX_BYTES} that a declaration file may have", text.len());
    let mistake = Mistake { at: Location::START, message, hint: None };
    Document { root: Node::null(Location::START), mistakes: vec![mistake], ending: Ending::CutBeforeOthers }
}

/// Builds trees from events. Iterative, so that depth is a number to check and not a stack to overflow.
struct Reader<'a> {
    text: &'a str,
    parser: Parser<'a, StrInput<'a>>,
    documents: Vec<Document<'a>>,
    open: Vec<Frame<'a>>,
    /// The finished root of the document being read.
    root: Option<Node<'a>>,
    mistakes: Vec<Mistake>,
    anchors: HashMap<usize, Anchored<'a>>,
    started_on_line: u32,
    nodes: usize,
    repeated_bytes: usize,
}

/// A list or mapping whose end has not come.
struct Frame<'a> {
    at: Location,
    anchor: usize,
    content: Content<'a>,
}

enum Content<'a> {
    Items(Vec<Node<'a>>),
    Entries {
        done: Vec<Entry<'a>>,
        /// The key whose value comes next.
        key: Option<(Cow<'a, str>, Location)>,
    },
}

/// What an anchor names, with its cost to an alias.
struct Anchored<'a> {
    node: Node<'a>,
    cost: Cost,
}

/// What repeating a tree costs.
#[derive(Clone, Copy)]
struct Cost {
    nodes: usize,
    bytes: usize,
    /// Lists and mappings inside each other; none in a scalar.
    depth: usize,
}

type Step<T = ()> = Result<T, Mistake>;

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            text,
            parser: Parser::new_from_str(text),
            documents: Vec::new(),
            open: Vec::new(),
            root: None,
            mistakes: Vec::new(),
            anchors: HashMap::new(),
            started_on_line: 1,
            nodes: 0,
            repeated_bytes: 0,
        }
    }

    fn run(&mut self) -> Step {
        while let Some(event) = self.parser.next_event() {
            let (event, span) = event.map_err(|error| self.syntax(&error))?;
            self.event(event, location(span))?;
        }
        Ok(())
    }

    fn event(&mut self, event: Event<'a>, at: Location) -> Step {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd => Ok(()),
            Event::DocumentStart(_) => {
                self.started_on_line = at.line;
                self.anchors.clear();
                Ok(())
            }
            Event::DocumentEnd => {
                self.finish(Ending::Whole);
                Ok(())
            }
            Event::Alias(anchor) => self.alias(anchor, at),
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_tag(tag.is_some(), at);
                self.scalar(text, style, anchor, at)
            }
            Event::SequenceStart(anchor, tag) => {
                self.refuse_tag(tag.is_some(), at);
                self.open(at, anchor, Content::Items(Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                self.refuse_tag(tag.is_some(), at);
                self.open(at, anchor, Content::Entries { done: Vec::new(), key: None })
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
        }
    }

    fn scalar(&mut self, text: Cow<'a, str>, style: ScalarStyle, anchor: usize, at: Location) -> Step {
        if text.len() > MAX_SCALAR_BYTES {
            return Err(fatal(at, format!("a value of {} bytes is longer than {MAX_SCALAR_BYTES}", text.len())));
        }
        if self.awaits_key() {
            self.key(text, style, at);
            return self.spend(1, at);
        }
        let kind = match style {
            ScalarStyle::Plain => plain_kind(&text),
            ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted | ScalarStyle::Literal | ScalarStyle::Folded => {
                ScalarKind::Text
            }
        };
        self.place(Node { value: Value::Scalar(Scalar { text, kind }), at }, anchor)
    }

    fn awaits_key(&self) -> bool {
        matches!(self.open.last(), Some(Frame { content: Content::Entries { key: None, .. }, .. }))
    }

    fn key(&mut self, text: Cow<'a, str>, style: ScalarStyle, at: Location) {
        if style == ScalarStyle::Plain && text == "<<" {
            let hint = "repeat the fields, or put what apps share into `[defaults]` of setpoint.toml";
            self.mistake(at, "merge keys (`<<`) are not supported".to_owned(), Some(hint.to_owned()));
        } else if text.is_empty() {
            self.mistake(at, "a key is missing before `:`".to_owned(), None);
        }
        if let Some(Frame { content: Content::Entries { key, .. }, .. }) = self.open.last_mut() {
            *key = Some((text, at));
        }
    }

    fn alias(&mut self, anchor: usize, at: Location) -> Step {
        if self.awaits_key() {
            return Err(fatal(at, "a key must be text, not an alias".to_owned()));
        }
        let Some(Anchored { cost, .. }) = self.anchors.get(&anchor) else {
            return Err(fatal(at, "this alias stands inside its own anchor, or in another document".to_owned()));
        };
        let Cost { nodes, bytes, depth } = *cost;
        self.repeated_bytes += bytes;
        if self.repeated_bytes > MAX_REPEATED_BYTES {
            return Err(fatal(at, format!("aliases repeat more than {MAX_REPEATED_BYTES} bytes")));
        }
        self.check_depth(depth, at)?;
        self.spend(nodes, at)?;
        let value = self.anchors[&anchor].node.value.clone();
        self.place(Node { value, at }, 0)
    }

    fn open(&mut self, at: Location, anchor: usize, content: Content<'a>) -> Step {
        if self.awaits_key() {
            return Err(fatal(at, "a key must be text, not a list or a mapping".to_owned()));
        }
        self.check_depth(1, at)?;
        self.open.push(Frame { at, anchor, content });
        Ok(())
    }

    /// Whether a tree of some depth may stand here. What aliases repeat counts too: trees are cloned and dropped recursively.
    fn check_depth(&self, depth: usize, at: Location) -> Step {
        if self.open.len() + depth > MAX_DEPTH {
            return Err(fatal(at, format!("lists and mappings are nested more than {MAX_DEPTH} deep")));
        }
        Ok(())
    }

    fn close(&mut self) -> Step {
        let Some(frame) = self.open.pop() else { return Ok(()) };
        let anchor = frame.anchor;
        let node = self.closed(frame);
        self.place(node, anchor)
    }

    /// The value of a list or mapping, ended where it stands.
    fn closed(&mut self, frame: Frame<'a>) -> Node<'a> {
        let value = match frame.content {
            Content::Items(items) => Value::Sequence(items),
            Content::Entries { mut done, key } => {
                done.extend(key.map(|(key, key_at)| Entry { key, key_at, value: Node::null(key_at) }));
                Value::Mapping(self.without_duplicates(done))
            }
        };
        Node { value, at: frame.at }
    }

    /// Accounts for a finished value and puts it where it belongs.
    fn place(&mut self, node: Node<'a>, anchor: usize) -> Step {
        self.spend(1, node.at)?;
        if anchor > 0 {
            let cost = Cost::of(&node);
            self.spend(cost.nodes, node.at)?;
            self.anchors.insert(anchor, Anchored { node: node.clone(), cost });
        }
        self.attach(node);
        Ok(())
    }

    fn attach(&mut self, node: Node<'a>) {
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Frame { content: Content::Items(items), .. }) => items.push(node),
            Some(Frame { content: Content::Entries { done, key }, .. }) => {
                done.extend(key.take().map(|(key, key_at)| Entry { key, key_at, value: node }));
            }
        }
    }

    /// Keeps the first of equal keys and reports the others.
    fn without_duplicates(&mut self, entries: Vec<Entry<'a>>) -> Vec<Entry<'a>> {
        let mut order: Vec<usize> = (0..entries.len()).collect();
        order.sort_by_key(|&index| &entries[index].key);
        let mut first = 0;
        let mut doubled = vec![false; entries.len()];
        for index in order {
            if index != first && entries[index].key == entries[first].key {
                doubled[index] = true;
                let (again, first) = (&entries[index], &entries[first]);
                let message = format!("`{}` stands here a second time", crate::node::shorten(&again.key));
                let hint = format!("it was given on line {} already", first.key_at.line);
                self.mistake(again.key_at, message, Some(hint));
            } else {
                first = index;
            }
        }
        entries.into_iter().zip(doubled).filter_map(|(entry, doubled)| (!doubled).then_some(entry)).collect()
    }

    fn refuse_tag(&mut self, tagged: bool, at: Location) {
        if tagged {
            self.mistake(at, "tags (`!name`) are not supported".to_owned(), None);
        }
    }

    fn mistake(&mut self, at: Location, message: String, hint: Option<String>) {
        if self.mistakes.len() < MAX_MISTAKES {
            self.mistakes.push(Mistake { at, message, hint });
        }
    }

    fn spend(&mut self, nodes: usize, at: Location) -> Step {
        self.nodes += nodes;
        if self.nodes > MAX_NODES {
            return Err(fatal(at, format!("more than {MAX_NODES} values, those that aliases repeat included")));
        }
        Ok(())
    }

    fn finish(&mut self, ending: Ending) {
        let root = self.root.take().unwrap_or(Node::null(Location { line: self.started_on_line, ..Location::START }));
        self.documents.push(Document { root, mistakes: std::mem::take(&mut self.mistakes), ending });
    }

    /// Ends the document being read at a mistake that hides the rest of the text.
    fn cut(&mut self, mistake: Mistake) {
        let at = mistake.at;
        while let Some(frame) = self.open.pop() {
            let node = self.closed(frame);
            self.attach(node);
        }
        self.mistakes.push(mistake);
        let mut behind = self.text.lines().skip(self.started_on_line.min(at.line) as usize);
        let others = behind.any(|line| line.starts_with("---"));
        self.finish(if others { Ending::CutBeforeOthers } else { Ending::Cut });
    }

    fn syntax(&self, error: &ScanError) -> Mistake {
        let marker = *error.marker();
        let at = location(Span::empty(marker));
        let indent = self.text.lines().nth(at.line.saturating_sub(1) as usize).unwrap_or_default();
        let tabbed = indent.chars().take_while(|c| c.is_whitespace()).any(|c| c == '\t');
        let hint = tabbed.then(|| "indent with spaces, not with tabs".to_owned());
        Mistake { at, message: format!("not YAML: {}", error.info()), hint }
    }
}

fn fatal(at: Location, message: String) -> Mistake {
    Mistake { at, message, hint: None }
}

impl Cost {
    fn of(node: &Node<'_>) -> Self {
        match &node.value {
            Value::Scalar(scalar) => Self { nodes: 1, bytes: scalar.text.len(), depth: 0 },
            Value::Sequence(items) => Self::around(items.iter().map(|item| (0, item))),
            Value::Mapping(entries) => Self::around(entries.iter().map(|entry| (entry.key.len(), &entry.value))),
        }
    }

    /// Of a list or mapping, from the lengths of its keys and its values.
    fn around<'n>(inner: impl Iterator<Item = (usize, &'n Node<'n>)>) -> Self {
        let mut cost = Self { nodes: 1, bytes: 0, depth: 1 };
        for (key_bytes, value) in inner {
            let value = Self::of(value);
            cost.nodes += value.nodes + usize::from(key_bytes > 0);
            cost.bytes += value.bytes + key_bytes;
            cost.depth = cost.depth.max(value.depth + 1);
        }
        cost
    }
}

/// What an unquoted scalar means by the core schema of YAML 1.2, digits after a leading zero being text.
fn plain_kind(text: &str) -> ScalarKind {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => ScalarKind::Null,
        "true" | "True" | "TRUE" | "false" | "False" | "FALSE" => ScalarKind::Bool,
        text if parse_integer(text).is_some() => ScalarKind::Integer,
        text if is_float(text) => ScalarKind::Float,
        _ => ScalarKind::Text,
    }
}

fn is_float(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let special = matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN");
    let octal_like = unsigned.len() > 1 && unsigned.starts_with('0') && unsigned.bytes().all(|b| b.is_ascii_digit());
    let numeric = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    special || (numeric && !octal_like && text.parse::<f64>().is_ok())
}

fn location(span: Span) -> Location {
    let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Location {
        line: small(span.start.line().max(1)),
        column: small(span.start.col() + 1),
        length: small(span.end.index().saturating_sub(span.start.index()).max(1)),
    }
}

#[cfg(test)]
mod tests;
