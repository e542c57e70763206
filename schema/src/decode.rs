//! From located trees to typed values: overlay on what is there already, every mistake collected, none of them fatal.
//!
//! [`declared!`](crate::declared) writes the [`Decode`] of every declared structure from the field list that also makes its
//! differences and its JSON Schema; `decode/values.rs` has those of single values, lists and maps.

use std::str::FromStr;

use crate::diagnostic::{Diagnostic, Excerpt, Lines, Location};
use crate::name::{AppKey, Team};
use crate::node::{Document, Entry, Node, Scalar, ScalarKind, Value, shorten};

mod hints;
mod values;

pub(crate) use hints::nearest;

/// A value that declarations hold.
pub trait Decode: Sized {
    /// The value that `node` writes, or `None` once the mistake is reported.
    fn decode(node: &Node<'_>, cx: &mut Decoder<'_>) -> Option<Self>;

    /// Lays what `node` says over what is there: a structure field by field, a map key by key, anything else whole.
    fn overlay(&mut self, node: &Node<'_>, cx: &mut Decoder<'_>) {
        if let Some(value) = Self::decode(node, cx) {
            *self = value;
        }
    }
}

/// What a value must be beyond its type: `Ok`, or the rule that it breaks, as in "must be 1 to 64".
pub type Check<T> = fn(&T) -> Result<(), &'static str>;

/// What is known while one document is decoded, and what was found wrong.
#[derive(Debug)]
pub struct Decoder<'a> {
    lines: &'a Lines<'a>,
    /// The app that mistakes belong to.
    object: Option<AppKey>,
    /// The team of apps that are named without one.
    team: Team,
    /// The field being decoded, as `spec.resources.memory`.
    path: String,
    diagnostics: Vec<Diagnostic>,
    /// Whether mistakes are shown with their lines.
    excerpts: Excerpts,
}

/// Whether mistakes are shown with their lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Excerpts {
    Shown,
    Concealed,
}

/// Mistakes reported of one document. More help nobody, and each keeps its line.
const MAX_DIAGNOSTICS: usize = 50;

impl<'a> Decoder<'a> {
    /// Begins a document.
    #[must_use]
    pub fn new(lines: &'a Lines<'a>) -> Self {
        let team = Team::default_team();
        Self { lines, object: None, team, path: String::new(), diagnostics: Vec::new(), excerpts: Excerpts::Shown }
    }

    /// Attributes every further mistake to an app, and resolves names without a team in its team.
    pub fn belongs_to(&mut self, app: AppKey) {
        self.team = app.team.clone();
        self.object = Some(app);
    }

    /// Resolves names without a team in this one.
    pub fn within_team(&mut self, team: &Team) {
        self.team = team.clone();
    }

    /// What was wrong so far, in a sentence.
    #[must_use]
    pub fn summary(&self) -> String {
        match self.diagnostics.as_slice() {
            [] => "it has mistakes".to_owned(),
            [one] => one.headline(),
            [first, rest @ ..] => format!("{} (and {} more)", first.headline(), rest.len()),
        }
    }

    /// The team of apps that are named without one.
    #[must_use]
    pub fn team(&self) -> &Team {
        &self.team
    }

    /// The text being decoded.
    #[must_use]
    pub fn lines(&self) -> &'a Lines<'a> {
        self.lines
    }

    /// Whether anything was wrong so far.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.diagnostics.is_empty()
    }

    /// Everything that was wrong, in the order of the text.
    #[must_use]
    pub fn finish(mut self) -> Vec<Diagnostic> {
        self.diagnostics.sort_by_key(|diagnostic| diagnostic.at);
        if self.excerpts == Excerpts::Concealed {
            let excerpts = self.diagnostics.iter_mut().filter_map(|diagnostic| diagnostic.excerpt.as_mut());
            excerpts.for_each(|excerpt| *excerpt = Excerpt::concealed());
        }
        self.diagnostics
    }

    /// Shows no line of the text with any mistake: what is sensitive stands in it, or may.
    pub fn conceal(&mut self) {
        self.excerpts = Excerpts::Concealed;
    }

    /// Reports what was wrong with the text itself.
    pub fn mistakes_of(&mut self, document: &Document<'_>) {
        for mistake in &document.mistakes {
            self.report(mistake.at, &mistake.message, mistake.hint.as_deref());
        }
    }

    /// Reports a mistake of the field being decoded: `message` follows the field's path.
    pub fn error(&mut self, at: Location, message: &str, hint: Option<&str>) {
        let message = if self.path.is_empty() { message.to_owned() } else { format!("{}: {message}", self.path) };
        self.report(at, &message, hint);
    }

    fn report(&mut self, at: Location, message: &str, hint: Option<&str>) {
        if self.diagnostics.len() >= MAX_DIAGNOSTICS {
            return;
        }
        let mut diagnostic = self.lines.diagnostic(at, message);
        diagnostic.object.clone_from(&self.object);
        self.diagnostics.push(match hint {
            Some(hint) => diagnostic.hint(hint),
            None => diagnostic,
        });
    }

    /// Reports that `node` is not what it has to be.
    pub fn expected(&mut self, node: &Node<'_>, what: &str) {
        let hint = hints::for_type(node, what);
        self.error(node.at, &format!("expected {what}, found {}", node.describe()), hint.as_deref());
    }

    /// A field that has to be there, or a mistake. That `node` is a mapping at all is for [`Self::fields`] to report.
    pub fn require<'n, 't>(&mut self, node: &'n Node<'t>, field: &str, hint: Option<&str>) -> Option<&'n Entry<'t>> {
        let entry = node.entry(field);
        if entry.is_none() && matches!(node.value, Value::Mapping(_)) {
            self.error(node.at, &format!("`{field}` is missing"), hint);
        }
        entry
    }

    /// Decodes within a field, so that mistakes name it.
    pub fn within<T>(&mut self, field: &str, decode: impl FnOnce(&mut Self) -> T) -> T {
        let outer = self.path.len();
        if outer > 0 {
            self.path.push('.');
        }
        self.path.push_str(&shorten(field));
        let value = decode(self);
        self.path.truncate(outer);
        value
    }

    /// The entries of a structure, after reporting those that are no fields of it.
    pub fn fields<'n, 't>(&mut self, node: &'n Node<'t>, structure: &str, fields: &[&str]) -> &'n [Entry<'t>] {
        let entries = self.entries(node);
        for entry in entries.iter().filter(|entry| !fields.contains(&entry.key.as_ref())) {
            let hint = hints::for_unknown_field(structure, &entry.key, fields);
            self.error(entry.key_at, &format!("unknown field `{}`", shorten(&entry.key)), Some(&hint));
        }
        entries
    }

    /// The entries of a mapping, or a mistake.
    pub fn entries<'n, 't>(&mut self, node: &'n Node<'t>) -> &'n [Entry<'t>] {
        match &node.value {
            Value::Mapping(entries) => entries,
            Value::Scalar(_) | Value::Sequence(_) => {
                self.expected(node, "a mapping");
                &[]
            }
        }
    }

    /// Overlays one field of a structure and checks it.
    pub fn field<T: Decode>(&mut self, entry: &Entry<'_>, slot: &mut T, check: Check<T>) {
        self.within(&entry.key, |cx| {
            let before = cx.diagnostics.len();
            if cx.has_value(entry) {
                slot.overlay(&entry.value, cx);
            }
            if cx.diagnostics.len() == before {
                cx.check(&entry.value, slot, check);
            }
        });
    }

    /// Reports a key with nothing behind it: it is anybody's guess whether that means the default, empty, or a lost line.
    pub fn has_value(&mut self, entry: &Entry<'_>) -> bool {
        if entry.value.is_null() {
            self.error(entry.key_at, "has no value", Some("write one (`\"\"` is an empty text), or remove the line"));
        }
        !entry.value.is_null()
    }

    /// The checked value of a field that may be there; `None` without it, or once the mistake is reported.
    pub fn optional<T: Decode>(&mut self, node: &Node<'_>, field: &str, check: Check<T>) -> Option<T> {
        let entry = node.entry(field)?;
        self.within(field, |cx| {
            let value = cx.has_value(entry).then(|| T::decode(&entry.value, cx)).flatten()?;
            cx.check(&entry.value, &value, check);
            Some(value)
        })
    }

    /// The checked value of a field that has to be there; `None` once the mistake is reported.
    pub fn required<T: Decode>(&mut self, node: &Node<'_>, field: &str, check: Check<T>) -> Option<T> {
        self.require(node, field, None)?;
        self.optional(node, field, check)
    }

    /// Checks a value that `node` wrote.
    pub fn check<T>(&mut self, node: &Node<'_>, value: &T, check: Check<T>) {
        if let Err(rule) = check(value) {
            let found = match &node.value {
                Value::Scalar(Scalar { text, .. }) if !text.is_empty() => format!("`{}` ", shorten(text)),
                Value::Scalar(_) | Value::Sequence(_) | Value::Mapping(_) => String::new(),
            };
            self.error(node.at, &format!("{found}{rule}"), None);
        }
    }

    /// The text of a node, or a mistake that says what it should have been.
    pub fn text<'n>(&mut self, node: &'n Node<'_>, what: &str) -> Option<&'n str> {
        match node.text() {
            Some(text) if text.contains('\0') => {
                self.error(node.at, "must not hold a NUL character", None);
                None
            }
            Some(text) => Some(text),
            None => {
                self.expected(node, what);
                None
            }
        }
    }

    /// A value made from text, or a mistake that quotes the text and the rule it breaks.
    pub fn parsed<T: FromStr>(&mut self, node: &Node<'_>, what: &str) -> Option<T>
    where
        T::Err: std::fmt::Display,
    {
        let text = self.text(node, what)?;
        text.parse().map_err(|rule: T::Err| self.error(node.at, &format!("`{}` {rule}", shorten(text)), None)).ok()
    }

    /// One of a few words, or a mistake that lists them.
    pub fn choice<T: Copy>(&mut self, node: &Node<'_>, choices: &[(&str, T)]) -> Option<T> {
        if let Some((_, value)) = choices.iter().find(|(word, _)| node.text() == Some(word)) {
            return Some(*value);
        }
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let listed: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
        let hint = node.text().and_then(|text| hints::for_word(text, &words));
        let message = format!("expected {}, found {}", one_of(&listed), node.describe());
        self.error(node.at, &message, hint.as_deref());
        None
    }

    /// A whole number within the range of its type, or a mistake.
    pub fn integer<T: TryFrom<i128>>(&mut self, node: &Node<'_>, what: &str) -> Option<T> {
        let number = match &node.value {
            Value::Scalar(Scalar { text, kind: ScalarKind::Integer }) => crate::quantity::parse_integer(text),
            Value::Scalar(_) | Value::Sequence(_) | Value::Mapping(_) => None,
        };
        let number = number.and_then(|number| T::try_from(number).ok());
        if number.is_none() {
            self.expected(node, what);
        }
        number
    }
}

/// Words as a sentence lists them: `a`, `b` or `c`.
fn one_of(words: &[String]) -> String {
    match words {
        [first @ .., last] if !first.is_empty() => format!("{} or {last}", first.join(", ")),
        _ => words.concat(),
    }
}

#[cfg(test)]
mod tests;
