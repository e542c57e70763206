//! How a mistake looks.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;

fn path() -> RepoPath {
    RepoPath::new("apps/blog/app.yaml").unwrap()
}

fn shown(text: &str, line: u32, column: u32, length: u32) -> String {
    let path = path();
    SourceText { path: &path, text }.diagnostic(Location { line, column, length }, "wrong").to_string()
}

#[test]
fn a_diagnostic_shows_place_line_caret_and_hint() {
    let path = path();
    let source = SourceText { path: &path, text: "a: 1\n  memroy: 2\n" };
    let diagnostic =
        source.diagnostic(Location { line: 2, column: 3, length: 6 }, "unknown field").hint("did you mean?");
    insta::assert_snapshot!(diagnostic, @r"
    apps/blog/app.yaml:2:3: unknown field
       |
     2 |   memroy: 2
       |   ^^^^^^
      hint: did you mean?
    ");
}

#[test]
fn a_place_behind_the_last_line_is_the_end_of_the_last_line() {
    insta::assert_snapshot!(shown("a: 1\nb: [", 3, 1, 1), @r"
    apps/blog/app.yaml:2:5: wrong
       |
     2 | b: [
       |     ^
    ");
}

#[test]
fn a_diagnostic_of_a_whole_file_is_one_line() {
    assert_eq!(Diagnostic::new(path(), "declares nothing").to_string(), "apps/blog/app.yaml: declares nothing");
}

#[test]
fn a_long_line_is_cut_around_the_mistake() {
    let line = format!("{}X{}", "a".repeat(500), "b".repeat(500));
    let shown = shown(&line, 1, 501, 1);
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines.iter().all(|line| line.chars().count() < 120), "{shown}");
    let caret = lines[3].chars().position(|c| c == '^').unwrap();
    assert_eq!(lines[2].chars().nth(caret), Some('X'), "{shown}");
}

#[test]
fn control_and_direction_characters_are_escaped_and_the_caret_still_fits() {
    let shown = shown("a\u{1b}[31m\u{202e}\tX", 1, 9, 1);
    assert!(!shown.contains('\u{1b}') && !shown.contains('\u{202e}') && !shown.contains('\t'), "{shown}");
    let lines: Vec<&str> = shown.lines().collect();
    let caret = lines[3].chars().position(|c| c == '^').unwrap();
    assert_eq!(lines[2].chars().nth(caret), Some('X'), "{shown}");
}

#[test]
fn a_place_past_the_end_still_has_a_caret() {
    assert!(shown("a: [", 1, 5, 1).ends_with("    ^"));
    assert!(shown("", 7, 9, 3).ends_with('^'));
}

#[test]
fn lines_end_as_yaml_ends_them() {
    for text in ["one\ntwo\nthree", "one\r\ntwo\r\nthree", "one\rtwo\rthree"] {
        assert!(shown(text, 2, 1, 3).contains(" 2 | two\n"), "{text:?}");
    }
}

#[test]
fn an_underline_ends_with_its_line() {
    assert!(shown("key: >\n  more", 1, 6, 300).ends_with("\n   |      ^"));
}
