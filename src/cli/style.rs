//! Whether output is coloured, and in which tones. Every verb asks here, so that `--no-color`, `NO_COLOR` and `CLICOLOR` mean
//! the same everywhere.

use std::io::IsTerminal;
use std::sync::OnceLock;

/// What a piece of text says about its subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tone {
    /// Nothing in particular.
    #[default]
    Plain,
    /// As it should be.
    Good,
    /// On its way, or held up.
    Busy,
    /// Somebody has to look.
    Bad,
    /// Of little weight.
    Quiet,
    /// A heading.
    Heading,
}

/// How text is put on a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    /// As it is.
    Plain,
    /// With the terminal's colours.
    Colour,
}

/// What `--no-color` said, for the whole process.
static REFUSED: OnceLock<()> = OnceLock::new();

/// Turns colours off for this process, whatever the environment says.
pub fn refuse_colour() {
    REFUSED.get_or_init(|| ());
}

/// How to write on standard output.
#[must_use]
pub fn stdout() -> Paint {
    paint_for(&std::io::stdout())
}

/// How to write on standard error.
#[must_use]
pub fn stderr() -> Paint {
    paint_for(&std::io::stderr())
}

fn paint_for(stream: &impl IsTerminal) -> Paint {
    if REFUSED.get().is_some() {
        return Paint::Plain;
    }
    decide(stream.is_terminal(), |name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
}

/// <https://no-color.org> over <https://bixense.com/clicolors>: off wins over forced, forced over whether it is a terminal.
fn decide(terminal: bool, variable: impl Fn(&str) -> Option<String>) -> Paint {
    let set = |name| variable(name).filter(|value| !value.is_empty());
    let forced = set("CLICOLOR_FORCE").is_some_and(|value| value != "0");
    let off = set("CLICOLOR").is_some_and(|value| value == "0") || set("TERM").is_some_and(|value| value == "dumb");
    match (set("NO_COLOR"), forced, terminal && !off) {
        (Some(_), _, _) | (None, false, false) => Paint::Plain,
        (None, true, _) | (None, false, true) => Paint::Colour,
    }
}

impl Paint {
    /// `text` in this tone.
    #[must_use]
    pub fn paint(self, tone: Tone, text: &str) -> String {
        let code = match (self, tone) {
            (Self::Plain, _) | (Self::Colour, Tone::Plain) => return text.to_owned(),
            (Self::Colour, Tone::Good) => "32",
            (Self::Colour, Tone::Busy) => "33",
            (Self::Colour, Tone::Bad) => "31",
            (Self::Colour, Tone::Quiet) => "2",
            (Self::Colour, Tone::Heading) => "1",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(terminal: bool, variables: &[(&str, &str)]) -> Paint {
        decide(terminal, |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn colour_is_for_terminals_alone_unless_it_is_forced() {
        assert_eq!(decided(true, &[]), Paint::Colour);
        assert_eq!(decided(false, &[]), Paint::Plain);
        assert_eq!(decided(false, &[("CLICOLOR_FORCE", "1")]), Paint::Colour);
        assert_eq!(decided(false, &[("CLICOLOR_FORCE", "0")]), Paint::Plain);
    }

    #[test]
    fn whoever_wants_no_colour_gets_none() {
        assert_eq!(decided(true, &[("NO_COLOR", "1"), ("CLICOLOR_FORCE", "1")]), Paint::Plain);
        assert_eq!(decided(true, &[("NO_COLOR", "")]), Paint::Colour);
        assert_eq!(decided(true, &[("CLICOLOR", "0")]), Paint::Plain);
        assert_eq!(decided(true, &[("TERM", "dumb")]), Paint::Plain);
    }
}
