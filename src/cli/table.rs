//! Tables for people: columns as wide as their widest cell, two spaces apart, the last one cut where a terminal ends.

use std::io::IsTerminal as _;

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::style::{self, Paint, Tone};

/// One column.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// What stands above it.
    pub heading: &'static str,
    /// Its least width, for columns whose cells change while one looks.
    pub least: usize,
    /// When it is shown.
    pub shown: Shown,
}

/// When a column is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// Always.
    Always,
    /// With `-o wide`.
    Wide,
}

impl Column {
    /// A column that is always shown.
    #[must_use]
    pub const fn new(heading: &'static str) -> Self {
        Self { heading, least: 0, shown: Shown::Always }
    }

    /// A column that is shown with `-o wide`.
    #[must_use]
    pub const fn wide(heading: &'static str) -> Self {
        Self { heading, least: 0, shown: Shown::Wide }
    }

    /// The same, at least this wide.
    #[must_use]
    pub const fn at_least(self, least: usize) -> Self {
        Self { least, ..self }
    }
}

/// One cell.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// Text, on one line: what would steer a terminal is shown instead of obeyed.
    #[must_use]
    pub fn new(text: impl AsRef<str>) -> Self {
        Self { text: harmless(text.as_ref()), tone: Tone::Plain }
    }

    /// The same in a tone.
    #[must_use]
    pub fn tone(self, tone: Tone) -> Self {
        Self { tone, ..self }
    }

    /// Text where there is one, else `-`.
    #[must_use]
    pub fn or_dash(text: Option<impl AsRef<str>>) -> Self {
        text.map_or_else(|| Self::new("-").tone(Tone::Quiet), Self::new)
    }
}

/// Text that cannot move the cursor, change colours or begin a line.
#[must_use]
pub fn harmless(text: &str) -> String {
    let harmless = |c: char| match c {
        '\n' | '\t' => ' ',
        c if c.is_control() => '\u{fffd}',
        // Text that runs the other way could make a row look like another.
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        c => c,
    };
    text.chars().map(harmless).collect()
}

/// What is written on.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    /// Columns of the terminal; none where lines may be as long as they like.
    pub width: Option<usize>,
    /// Colours.
    pub paint: Paint,
}

impl Page {
    /// Standard output.
    #[must_use]
    pub fn stdout() -> Self {
        let width = std::io::stdout().is_terminal().then(terminal_width).flatten();
        Self { width, paint: style::stdout() }
    }

    /// The same without an end of lines.
    #[must_use]
    pub fn endless(self) -> Self {
        Self { width: None, ..self }
    }
}

fn terminal_width() -> Option<usize> {
    let named = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let asked = || rustix::termios::tcgetwinsize(std::io::stdout()).ok().map(|size| usize::from(size.ws_col));
    named.or_else(asked).filter(|width| *width > 0)
}

/// Columns whose widths only grow, so that lines that come later stand below those that came before.
#[derive(Debug, Clone)]
pub struct Layout {
    columns: Vec<Column>,
    widths: Vec<usize>,
    page: Page,
}

/// The last column keeps this much, however narrow the terminal is.
const LEAST_LAST: usize = 16;

impl Layout {
    /// A table of these columns.
    #[must_use]
    pub fn new(columns: &[Column], page: Page) -> Self {
        let widths = columns.iter().map(|column| column.heading.width().max(column.least)).collect();
        Self { columns: columns.to_vec(), widths, page }
    }

    /// Makes room for `rows`.
    pub fn widen(&mut self, rows: &[Vec<Cell>]) {
        for row in rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.width());
            }
        }
    }

    /// The line above the rows.
    #[must_use]
    pub fn heading(&self) -> String {
        let heading = |column: &Column| Cell::new(column.heading).tone(Tone::Heading);
        self.line(&self.columns.iter().map(heading).collect::<Vec<_>>())
    }

    /// The line of one row.
    #[must_use]
    pub fn line(&self, row: &[Cell]) -> String {
        let mut line = String::new();
        let mut column = 0;
        // Cells that are empty up to the end need no padding before them.
        let end = row.iter().rposition(|cell| !cell.text.is_empty()).map_or(0, |last| last + 1);
        for (index, (cell, width)) in row.iter().zip(&self.widths).take(end).enumerate() {
            if index + 1 == end {
                line.push_str(&self.last(cell, column));
                break;
            }
            line.push_str(&self.page.paint.paint(cell.tone, &cell.text));
            line.push_str(&" ".repeat(width.saturating_sub(cell.text.width()) + 2));
            column += width + 2;
        }
        line.push('\n');
        line
    }

    fn last(&self, cell: &Cell, column: usize) -> String {
        let room = self.page.width.map(|width| width.saturating_sub(column).max(LEAST_LAST));
        let text = room.map_or_else(|| cell.text.clone(), |room| cut(&cell.text, room));
        self.page.paint.paint(cell.tone, &text)
    }
}

/// A whole table; without rows, its heading.
#[must_use]
pub fn table(columns: &[Column], rows: &[Vec<Cell>], page: Page) -> String {
    let mut layout = Layout::new(columns, page);
    layout.widen(rows);
    std::iter::once(layout.heading()).chain(rows.iter().map(|row| layout.line(row))).collect()
}

/// `text` in at most `room` columns, with a sign where something is left out.
fn cut(text: &str, room: usize) -> String {
    if text.width() <= room {
        return text.to_owned();
    }
    let mut width = 0;
    let fits = |c: &char| {
        width += c.width().unwrap_or(0);
        width < room
    };
    let kept: String = text.chars().take_while(fits).collect();
    format!("{}…", kept.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Page = Page { width: None, paint: Paint::Plain };
    const COLUMNS: [Column; 2] = [Column::new("NAME"), Column::new("MESSAGE")];

    fn row(cells: &[&str]) -> Vec<Cell> {
        cells.iter().map(Cell::new).collect()
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [row(&["a", "ready"]), row(&["longer", ""])];
        assert_eq!(table(&COLUMNS, &rows, PLAIN), "NAME    MESSAGE\na       ready\nlonger\n");
    }

    #[test]
    fn a_terminal_cuts_the_last_column_and_a_file_does_not() {
        let rows = [row(&["a", "a message that is rather long"])];
        let narrow = Page { width: Some(24), ..PLAIN };
        assert_eq!(table(&COLUMNS, &rows, narrow), "NAME  MESSAGE\na     a message that is…\n");
        assert!(table(&COLUMNS, &rows, PLAIN).contains("rather long"));
    }

    #[test]
    fn what_a_guest_says_cannot_steer_the_terminal() {
        let rows = [row(&["a", "red \u{1b}[31m\nb  fake"])];
        assert_eq!(table(&COLUMNS, &rows, PLAIN), "NAME  MESSAGE\na     red \u{fffd}[31m b  fake\n");
    }

    #[test]
    fn wide_characters_take_two_columns() {
        let rows = [row(&["名前", "x"]), row(&["abcde", "y"])];
        assert_eq!(table(&COLUMNS, &rows, PLAIN), "NAME   MESSAGE\n名前   x\nabcde  y\n");
    }
}
