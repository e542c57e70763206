//! Mistakes as SARIF 2.1.0, the form in which code scanning takes results.

use std::path::Path;

use serde_json::{Value, json};
use setpoint_schema::diagnostic::Diagnostic;

/// The one rule that all mistakes break: their messages say what else there is to know.
const RULE: &str = "declaration";

/// The log of one run. `dir` stands before the paths, as seen from the repository's top.
pub fn sarif(diagnostics: &[Diagnostic], dir: &Path) -> Value {
    let rule = json!({
        "id": RULE,
        "name": "DeclarationMistake",
        "shortDescription": { "text": "A declaration that cannot be carried out" },
        "defaultConfiguration": { "level": "error" },
    });
    let driver = json!({ "name": "setpoint", "version": env!("CARGO_PKG_VERSION"), "rules": [rule] });
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": driver },
            // Columns count characters.
            "columnKind": "unicodeCodePoints",
            "results": diagnostics.iter().map(|diagnostic| result(diagnostic, dir)).collect::<Vec<_>>(),
        }],
    })
}

fn result(diagnostic: &Diagnostic, dir: &Path) -> Value {
    let text = match &diagnostic.hint {
        Some(hint) => format!("{}\nhint: {hint}", diagnostic.message),
        None => diagnostic.message.clone(),
    };
    let path = dir.join(diagnostic.path.as_str());
    let artifact = json!({ "uri": uri(&path.display().to_string()), "uriBaseId": "%SRCROOT%" });
    let mut physical = json!({ "artifactLocation": artifact });
    if let Some(at) = diagnostic.at {
        physical["region"] = json!({
            "startLine": at.line,
            "startColumn": at.column,
            "endColumn": at.column.saturating_add(at.length),
        });
    }
    let mut location = json!({ "physicalLocation": physical });
    if let Some(app) = &diagnostic.object {
        location["logicalLocations"] = json!([{ "fullyQualifiedName": app, "kind": "resource" }]);
    }
    json!({ "ruleId": RULE, "ruleIndex": 0, "level": "error", "message": { "text": text }, "locations": [location] })
}

/// A path as a relative reference: whatever a URI gives a meaning is spelled.
fn uri(path: &str) -> String {
    let spelled = path.bytes().map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    });
    spelled.collect()
}
