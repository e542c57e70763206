//! Text of unknown origin within Markdown: shown as it is, and without effect.
//!
//! Everything stands in code, where forges look for no mentions, no references and no links; and what could end the code or
//! the table around it is spelled as an entity.

use setpoint_schema::diagnostic::escape;

/// The most characters of a text in a line of a table.
const IN_LINE: usize = 120;

/// A text as inline code, cut where it is long.
pub(super) fn code(text: &str) -> String {
    let text = escape(&text.replace(['\n', '\r', '\t'], " "));
    let mut out = "<code>".to_owned();
    let mut chars = text.chars();
    for c in chars.by_ref().take(IN_LINE) {
        // Whatever Markdown, HTML or a table could read as its own. Addresses become links after a slash or `www.`.
        let starts_link = (c == '/' && out.ends_with(['/', ':'])) || (c == '.' && out.ends_with("www"));
        if starts_link || "&<>`*_[]|~\\$#@".contains(c) {
            out.push_str(&format!("&#{};", u32::from(c)));
        } else {
            out.push(c);
        }
    }
    if chars.next().is_some() {
        out.push('…');
    }
    out.push_str("</code>");
    out
}

/// A run of backticks that is longer than any in these lines, to fence them with.
pub(super) fn fence<'l>(lines: impl Iterator<Item = &'l str>) -> String {
    let longest = |line: &str| line.split(|c| c != '`').map(str::len).max().unwrap_or_default();
    "`".repeat(lines.map(longest).max().unwrap_or_default().max(2) + 1)
}
