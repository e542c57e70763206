//! What is wrong with a declaration and where: one [`Diagnostic`] for each mistake, with the line it stands on.
//!
//! Made by every module here that reads text, and by the loader for what only it can know; shown by the command line, the
//! API and events. All text in it comes from declarations, so it is escaped and bounded here, once.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::name::{AppKey, RepoPath};

/// One mistake in one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    /// The file.
    pub path: RepoPath,
    /// Where in the file, where that is known.
    pub at: Option<Location>,
    /// The line that `at` points into.
    pub excerpt: Option<Excerpt>,
    /// The app that cannot be used because of it; `None` where the mistake belongs to no app in particular.
    pub object: Option<AppKey>,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// A place in a text. Lines and columns count from 1, columns and lengths in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Location {
    /// The line.
    pub line: u32,
    /// The column of the first character.
    pub column: u32,
    /// How many characters, at least 1; it may reach past the end of the line.
    pub length: u32,
}

impl Location {
    /// The first character of a text.
    pub const START: Self = Self { line: 1, column: 1, length: 1 };
}

/// Part of a source line, ready to print: escaped, and cut where the line is long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Excerpt {
    /// The text.
    pub text: String,
    /// How many characters of `text` stand before the mistake.
    pub caret: u32,
    /// How many characters of `text` the mistake takes, at least 1.
    pub width: u32,
}

/// A location with its line, kept where a mistake may be found later, when the text is no longer there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Where.
    pub at: Location,
    /// The line.
    pub excerpt: Excerpt,
}

/// One file's text and name, which locations point into.
#[derive(Debug, Clone, Copy)]
pub struct SourceText<'a> {
    /// The file.
    pub path: &'a RepoPath,
    /// Its whole content.
    pub text: &'a str,
}

impl Diagnostic {
    /// A mistake of the whole file.
    #[must_use]
    pub fn new(path: RepoPath, message: impl AsRef<str>) -> Self {
        Self { path, at: None, excerpt: None, object: None, message: escape(message.as_ref()), hint: None }
    }

    /// The same mistake, at a place.
    #[must_use]
    pub fn at(mut self, place: Place) -> Self {
        self.at = Some(place.at);
        self.excerpt = Some(place.excerpt);
        self
    }

    /// The same mistake, of an app.
    #[must_use]
    pub fn of(mut self, app: AppKey) -> Self {
        self.object = Some(app);
        self
    }

    /// The same mistake, with advice.
    #[must_use]
    pub fn hint(mut self, hint: impl AsRef<str>) -> Self {
        self.hint = Some(escape(hint.as_ref()));
        self
    }

    /// `path:line:column: message`, in one line.
    #[must_use]
    pub fn headline(&self) -> String {
        match self.at {
            Some(at) => format!("{}:{}:{}: {}", escape(self.path.as_str()), at.line, at.column, self.message),
            None => format!("{}: {}", escape(self.path.as_str()), self.message),
        }
    }
}

/// The mistakes of each app. Those that belong to no app are left out.
#[must_use]
pub fn by_app(diagnostics: &[Diagnostic]) -> BTreeMap<AppKey, Vec<&Diagnostic>> {
    let mut apps: BTreeMap<AppKey, Vec<&Diagnostic>> = BTreeMap::new();
    for diagnostic in diagnostics {
        if let Some(app) = &diagnostic.object {
            apps.entry(app.clone()).or_default().push(diagnostic);
        }
    }
    apps
}

/// The headline, the source line with the mistake underlined, and the hint; no newline at the end.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.headline())?;
        if let (Some(at), Some(Excerpt { text, caret, width })) = (self.at, &self.excerpt) {
            let line = at.line.to_string();
            let (margin, before) = (" ".repeat(line.len()), " ".repeat(*caret as usize));
            let carets = "^".repeat(*width as usize);
            write!(f, "\n {margin} |\n {line} | {text}\n {margin} | {before}{carets}")?;
        }
        match &self.hint {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

/// A text that is asked for many of its lines.
#[derive(Debug)]
pub struct Lines<'a> {
    source: SourceText<'a>,
    quotes: Quotes,
    /// Where each line begins, in bytes.
    starts: Vec<usize>,
}

/// Whether lines are quoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quotes {
    Lines,
    Never,
}

impl<'a> SourceText<'a> {
    /// A mistake at a location. For many of them in one text, use [`Lines`].
    #[must_use]
    pub fn diagnostic(self, at: Location, message: impl AsRef<str>) -> Diagnostic {
        Lines::new(self).diagnostic(at, message)
    }
}

impl<'a> Lines<'a> {
    /// Finds the lines of a text. As in YAML, a lone carriage return ends one.
    #[must_use]
    pub fn new(source: SourceText<'a>) -> Self {
        let bytes = source.text.as_bytes();
        let ends_line = |at: usize| bytes[at] == b'\n' || (bytes[at] == b'\r' && bytes.get(at + 1) != Some(&b'\n'));
        let breaks = (0..bytes.len()).filter(|at| ends_line(*at)).map(|at| at + 1);
        // What is sensitive can stand on any line: in a block, behind an alias, in what is no YAML at all.
        let quotes = if has_key(source.text, "sensitive") { Quotes::Never } else { Quotes::Lines };
        // Lines of declarations are some 25 bytes long.
        let mut starts = Vec::with_capacity(bytes.len() / 16 + 4);
        starts.push(0);
        starts.extend(breaks);
        Self { source, quotes, starts }
    }

    /// The file's name.
    #[must_use]
    pub fn path(&self) -> &'a RepoPath {
        self.source.path
    }

    /// Keeps a location together with its line.
    #[must_use]
    pub fn place(&self, at: Location) -> Place {
        let at = self.within(at);
        let excerpt = match self.quotes {
            Quotes::Lines => Excerpt::cut(self.line(at.line), at),
            Quotes::Never => Excerpt::concealed(),
        };
        Place { at, excerpt }
    }

    /// A parser may place the end of a text without a last newline on a line that is not there: that is behind its last character.
    fn within(&self, at: Location) -> Location {
        let last = u32::try_from(self.starts.len()).unwrap_or(u32::MAX);
        if at.line <= last {
            return at;
        }
        let column = self.line(last).chars().count() + 1;
        Location { line: last, column: u32::try_from(column).unwrap_or(u32::MAX), length: 1 }
    }

    /// A mistake at a location.
    #[must_use]
    pub fn diagnostic(&self, at: Location, message: impl AsRef<str>) -> Diagnostic {
        Diagnostic::new(self.source.path.clone(), message).at(self.place(at))
    }

    /// The line of that number, without its break.
    fn line(&self, number: u32) -> &'a str {
        let index = (number as usize).saturating_sub(1);
        let Some(&start) = self.starts.get(index) else { return "" };
        let end = self.starts.get(index + 1).copied().unwrap_or(self.source.text.len());
        self.source.text[start..end].trim_end_matches(['\n', '\r'])
    }
}

/// How much of a long line is shown, and how much of that stands before the mistake. Fits a terminal of 120 columns.
const SHOWN: usize = 100;
const SHOWN_BEFORE: usize = 60;

impl Excerpt {
    /// What stands for a line of a file that has sensitive values.
    pub(crate) fn concealed() -> Self {
        Self { text: "(not shown: the file has sensitive values)".to_owned(), caret: 0, width: 1 }
    }

    fn cut(line: &str, at: Location) -> Self {
        let column = (at.column as usize).saturating_sub(1);
        let first = column.saturating_sub(SHOWN_BEFORE);
        let mistake = column..column.saturating_add(at.length as usize);
        let mut text = String::from(if first > 0 { "…" } else { "" });
        let (mut caret, mut width) = (text.chars().count(), 0);
        let mut rest = line.chars().enumerate().skip(first);
        for (index, c) in rest.by_ref().take(SHOWN) {
            let shown = push_escaped(&mut text, c);
            if index < column {
                caret += shown;
            } else if mistake.contains(&index) {
                width += shown;
            }
        }
        if rest.next().is_some() {
            text.push('…');
        }
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Self { text, caret: small(caret), width: small(width.max(1)) }
    }
}

/// Whether this looks like a key anywhere in a text, whatever language it is in: a word, and a colon or an equals sign behind it.
fn has_key(text: &str, key: &str) -> bool {
    text.match_indices(key).any(|(at, _)| {
        let inside = text[..at].ends_with(|c: char| c.is_alphanumeric() || matches!(c, '-' | '_'));
        let behind = text[at + key.len()..].trim_start_matches(['"', '\'', ' ', '\t']);
        !inside && behind.starts_with([':', '='])
    })
}

/// Makes control and direction-changing characters visible, so that no declaration can repaint a terminal.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        push_escaped(&mut out, c);
    }
    out
}

/// Appends one character, escaped where it has to be, and says how many characters that took.
fn push_escaped(out: &mut String, c: char) -> usize {
    let reorders =
        matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
    if c == '\t' {
        out.push_str("    ");
        return 4;
    }
    if c.is_control() || reorders {
        let escaped = c.escape_default();
        let count = escaped.len();
        out.extend(escaped);
        return count;
    }
    out.push(c);
    1
}

#[cfg(test)]
mod tests;
