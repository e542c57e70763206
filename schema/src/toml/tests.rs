//! The same tree as from YAML.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;

#[test]
fn values_know_where_they_stand() {
    let document = read("[defaults.resources]\nmemory = \"5Gi\" # é\nvcpus = 2\n");
    assert_eq!(document.ending, Ending::Whole);
    let resources = document.root.get("defaults").unwrap().get("resources").unwrap();
    let vcpus = resources.entry("vcpus").unwrap();
    assert_eq!(vcpus.key_at, Location { line: 3, column: 1, length: 5 });
    assert_eq!(vcpus.value.at, Location { line: 3, column: 9, length: 1 });
    assert_eq!(resources.get("memory").unwrap().text(), Some("5Gi"));
}

#[test]
fn columns_count_characters() {
    let document = read("[vars]\nnames = [\"é\", \"b\"]\n");
    let second = &document.root.get("vars").unwrap().get("names").unwrap().items()[1];
    assert_eq!(second.at, Location { line: 2, column: 15, length: 3 });
}

#[test]
fn numbers_of_every_radix_come_out_decimal() {
    let document = read("a = 0xff\nb = 1_000\nc = 0o17\n");
    let text = |key: &str| match &document.root.get(key).unwrap().value {
        Value::Scalar(scalar) => scalar.text.to_string(),
        Value::Sequence(_) | Value::Mapping(_) => panic!("{key}"),
    };
    assert_eq!((text("a"), text("b"), text("c")), ("255".into(), "1000".into(), "15".into()));
}

#[test]
fn mistakes_of_syntax_are_located() {
    let document = read("[hosts]\npattern = \n[hosts]\n");
    assert_eq!(document.ending, Ending::Cut);
    assert_eq!(document.mistakes[0].at.line, 2);
    assert!(document.mistakes.iter().any(|mistake| mistake.at.line == 3), "{:?}", document.mistakes);
}

#[test]
fn depth_and_length_are_bounded() {
    assert_eq!(read(&format!("a = {}", "[".repeat(100_000))).ending, Ending::Cut);
    assert_eq!(read(&"#".repeat(MAX_BYTES + 1)).ending, Ending::Cut);
}

proptest::proptest! {
    #[test]
    fn reading_never_panics(text in "([\\[\\]{}=.,#\"'a1\\-+ \n\t\u{e9}]){0,60}") {
        let _ = read(&text);
    }
}
