//! One template, rendered by minijinja under what limits it has itself: fuel, and a cap on the output.

use std::io::{self, Write};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior, Value};
use serde::{Deserialize, Serialize};

/// Instructions that one file may take: some hundred times what a large, honest declaration needs.
const FUEL: u64 = 1_000_000;
/// Bytes that one file may become.
const MAX_OUTPUT_BYTES: usize = 1 << 20;

/// Why a text did not render.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failure {
    pub message: String,
    pub hint: Option<String>,
    /// Line, column and length in characters, counting from 1.
    pub at: Option<(u32, u32, u32)>,
}

impl Failure {
    /// A failure of the whole file.
    pub fn of_file(message: String) -> Self {
        Self { message, hint: None, at: None }
    }
}

/// What templates see.
pub(super) fn context(vars: &serde_json::Value) -> Value {
    Value::from(Serde(serde_json::json!({ "vars": vars })))
}

/// Renders `text`.
pub(super) fn render(text: &str, context: &Value) -> Result<String, Failure> {
    let environment = environment();
    let template = environment.template_from_str(text).map_err(|error| failure(text, &error))?;
    let mut output = Capped { bytes: Vec::new(), is_full: false };
    match template.render_captured_to(context, &mut output) {
        Ok(_) => {}
        Err(_) if output.is_full => {
            return Err(Failure::of_file(format!("renders to more than {MAX_OUTPUT_BYTES} bytes")));
        }
        Err(error) => return Err(failure(text, &error)),
    }
    String::from_utf8(output.bytes).map_err(|_| Failure::of_file("does not render to UTF-8".to_owned()))
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_syntax(
        SyntaxConfig::builder().keep_trailing_newline(true).build().expect("the default delimiters do not clash"),
    );
    environment.set_fuel(Some(FUEL));
    // Ranges of errors, for pointing at them.
    environment.set_debug(true);
    // Both take a width and allocate as much in one instruction, which no fuel bounds.
    environment.remove_filter("format");
    environment.remove_filter("indent");
    // Shows the whole context, which is of no use in a declaration.
    environment.remove_global("debug");
    environment
}

fn failure(text: &str, error: &minijinja::Error) -> Failure {
    let range = error.range().filter(|range| text.get(range.clone()).is_some());
    let source = range.clone().map(|range| &text[range]);
    let (message, hint) = match (error.kind(), source) {
        (ErrorKind::UndefinedError, Some(source)) => {
            let declared = "`vars` holds what stands under [vars] in setpoint.toml";
            (format!("`{source}` is not defined"), Some(declared.to_owned()))
        }
        (ErrorKind::OutOfFuel, _) => ("takes too many steps to render".to_owned(), None),
        (kind, _) => match error.detail() {
            Some(detail) => (format!("{kind}: {detail}"), None),
            None => (kind.to_string(), None),
        },
    };
    let at = match range {
        Some(range) => Some(position(text, range)),
        None => error.line().map(|line| (small(line), 1, 1)),
    };
    Failure { message, hint, at }
}

fn position(text: &str, range: std::ops::Range<usize>) -> (u32, u32, u32) {
    let before = &text[..range.start];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let first_line = text[range].lines().next().unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    (small(line), small(before[line_start..].chars().count() + 1), small(first_line.chars().count().max(1)))
}

fn small(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// A buffer that refuses to grow beyond the cap.
struct Capped {
    bytes: Vec<u8>,
    is_full: bool,
}

impl Write for Capped {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + data.len() > MAX_OUTPUT_BYTES {
            self.is_full = true;
            return Err(io::Error::other("the output is too large"));
        }
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
