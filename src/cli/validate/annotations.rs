//! Mistakes as GitHub shows them beside the lines of a pull request: one workflow command each.

use std::path::Path;

use setpoint_schema::diagnostic::Diagnostic;

/// One `::error` line for each mistake. `dir` stands before their paths, as seen from the repository's top.
pub fn github(diagnostics: &[Diagnostic], dir: &Path) -> String {
    diagnostics.iter().map(|diagnostic| command(diagnostic, dir)).collect()
}

fn command(diagnostic: &Diagnostic, dir: &Path) -> String {
    let path = dir.join(diagnostic.path.as_str());
    let mut properties = vec![("file", path.display().to_string())];
    if let Some(at) = diagnostic.at {
        properties.push(("line", at.line.to_string()));
        properties.push(("col", at.column.to_string()));
        properties.push(("endColumn", at.column.saturating_add(at.length).to_string()));
    }
    properties.push(("title", title(diagnostic)));
    let properties = properties.iter().map(|(name, value)| format!("{name}={}", property(value)));
    let properties: Vec<_> = properties.collect();
    let message = match &diagnostic.hint {
        Some(hint) => format!("{}\nhint: {hint}", diagnostic.message),
        None => diagnostic.message.clone(),
    };
    format!("::error {}::{}\n", properties.join(","), data(&message))
}

fn title(diagnostic: &Diagnostic) -> String {
    match &diagnostic.object {
        Some(app) => format!("app {app}"),
        None => "declarations".to_owned(),
    }
}

/// A message ends with its line, so that line feeds in it are spelled.
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// A property also ends at commas, and the properties at colons.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use setpoint_schema::diagnostic::{Location, SourceText};

    use super::*;

    #[test]
    fn nothing_that_a_file_says_begins_a_command() {
        let path = "apps/a,b:c%/app.yaml".parse().unwrap();
        let at = Location { line: 1, column: 3, length: 4 };
        let source = SourceText { path: &path, text: "a: bad\n" };
        let mistake = source.diagnostic(at, "100% bad, and\n::error::worse").hint("a\nb");
        assert_eq!(
            github(&[mistake], Path::new("site")),
            "::error file=site/apps/a%2Cb%3Ac%25/app.yaml,line=1,col=3,endColumn=7,title=declarations::\
             100%25 bad, and\\n::error::worse%0Ahint: a\\nb\n"
        );
    }
}
