//! Errors and numbers as people read them: one line for logs and records, `error:` / `caused by:` / `hint:` on a terminal.

use std::error::Error;

/// An error and its causes in one line.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    for cause in causes(error) {
        let cause = cause.to_string();
        // Transparent wrappers repeat their source's words.
        if !line.ends_with(&cause) {
            line.push_str(": ");
            line.push_str(&cause);
        }
    }
    line
}

/// `1 app`, `2 apps`.
#[must_use]
pub fn count(number: usize, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

/// An error for standard error, its causes on lines of their own.
#[must_use]
pub fn page(error: &(dyn Error + 'static), hint: Option<&str>) -> String {
    let mut page = format!("error: {error}");
    for cause in causes(error) {
        page.push_str(&format!("\ncaused by: {cause}"));
    }
    if let Some(hint) = hint {
        page.push_str(&format!("\nhint: {hint}"));
    }
    page
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = error.source();
    std::iter::from_fn(move || {
        let cause = next?;
        next = cause.source();
        Some(cause)
    })
}
