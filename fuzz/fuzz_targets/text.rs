//! What must hold of every mistake that is found in a text, whatever the text.

use setpoint_schema::diagnostic::Diagnostic;

/// Longer than any message, place and excerpt together: what is shown of hostile text is bounded.
const SHOWN: usize = 64 << 10;

/// Each mistake points into the text and can be printed without harm.
pub fn assert_sound(diagnostics: &[Diagnostic], text: &str) {
    // As in YAML, a lone carriage return ends a line.
    let lines = text.replace("\r\n", "\n").split(['\n', '\r']).count();
    for diagnostic in diagnostics {
        if let Some(at) = diagnostic.at {
            assert!(
                at.line >= 1 && at.line as usize <= lines && at.column >= 1 && at.length >= 1,
                "{at:?} of {lines} lines"
            );
        }
        let shown = diagnostic.to_string();
        assert!(shown.len() <= SHOWN, "{} bytes are shown", shown.len());
        let harmful = |c: char| c.is_control() && c != '\n';
        assert!(!shown.contains(harmful), "{shown:?}");
    }
}
