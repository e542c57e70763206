//! What is read, what is refused, and that hostile text costs little.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;

use super::*;

fn one(text: &str) -> Node<'_> {
    let mut documents = read(text);
    assert_eq!(documents.len(), 1, "{documents:?}");
    let document = documents.remove(0);
    assert_eq!((document.mistakes, document.ending), (vec![], Ending::Whole));
    document.root
}

fn mistakes(text: &str) -> Vec<String> {
    let mistakes = read(text).into_iter().flat_map(|document| document.mistakes);
    mistakes.map(|m| format!("{}:{} {}", m.at.line, m.at.column, m.message)).collect()
}

fn kind(text: &str) -> Option<ScalarKind> {
    match read(text).into_iter().next()?.root.value {
        Value::Scalar(scalar) => Some(scalar.kind),
        Value::Sequence(_) | Value::Mapping(_) => None,
    }
}

#[test]
fn values_know_where_they_stand() {
    let root = one("metadata:\n  name: blög # comment\n  \"team\": 'red'\n");
    let metadata = root.get("metadata").unwrap();
    let name = metadata.entry("name").unwrap();
    assert_eq!(name.key_at, Location { line: 2, column: 3, length: 4 });
    assert_eq!(name.value.at, Location { line: 2, column: 9, length: 4 });
    assert_eq!(metadata.get("team").unwrap().at, Location { line: 3, column: 11, length: 5 });
}

#[test]
fn words_that_yaml_1_1_misreads_are_text() {
    for text in ["no", "yes", "on", "off", "y", "n", "NO", "12:30:45", "2024-01-01", "0123", "1_000", "0777", "1.2.3"] {
        assert_eq!(kind(text), Some(ScalarKind::Text), "{text}");
    }
}

#[test]
fn quotes_make_text() {
    for text in ["\"true\"", "'1'", "\"\"", "|\n  1", ">\n  null"] {
        assert_eq!(kind(text), Some(ScalarKind::Text), "{text}");
    }
}

#[test]
fn documents_are_separated() {
    let documents = read("a: 1\n---\nb: 2\n");
    assert_eq!(documents.len(), 2);
    assert!(documents[1].root.get("b").is_some());
}

#[test]
fn an_empty_text_has_no_document() {
    assert_eq!(read(""), vec![]);
    assert_eq!(read("# only a comment\n"), vec![]);
}

#[test]
fn a_duplicate_key_is_located_and_the_first_one_counts() {
    let documents = read("a: 1\nb: 2\na: 3\n");
    let [mistake] = documents[0].mistakes.as_slice() else { panic!("{documents:?}") };
    assert_eq!(mistake.at, Location { line: 3, column: 1, length: 1 });
    assert_eq!(mistake.hint.as_deref(), Some("it was given on line 1 already"));
    assert_eq!(documents[0].root.entries().len(), 2);
}

#[test]
fn every_duplicate_is_reported() {
    let found = mistakes("a: {x: 1, x: 2}\na: 1\na: 2\n");
    assert_eq!(found.len(), 3, "{found:?}");
}

#[test]
fn merge_keys_tags_and_keys_that_are_no_text_are_refused() {
    assert_eq!(mistakes("a: &a {b: 1}\nc:\n  <<: *a\n"), ["3:3 merge keys (`<<`) are not supported"]);
    assert_eq!(mistakes("a: !!str 1\n"), ["1:4 tags (`!name`) are not supported"]);
    assert_eq!(mistakes("[a, b]: 1\n"), ["1:1 a key must be text, not a list or a mapping"]);
    assert_eq!(mistakes("a: &a x\n*a : 1\n"), ["2:1 a key must be text, not an alias"]);
}

#[test]
fn aliases_repeat_their_value() {
    let root = one("a: &size 5Gi\nb: *size\n");
    assert_eq!(root.get("b").unwrap().text(), Some("5Gi"));
    assert_eq!(root.get("b").unwrap().at.line, 2);
}

#[test]
fn an_alias_within_its_anchor_is_refused() {
    assert_eq!(mistakes("a: &a [*a]\n").len(), 1);
}

#[test]
fn an_anchor_ends_with_its_document() {
    assert_eq!(mistakes("a: &a 1\n---\nb: *a\n").len(), 1);
}

#[test]
fn a_bomb_of_aliases_is_refused_before_it_grows() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..20 {
        let alias = format!("*a{}", level - 1);
        bomb.push_str(&format!("a{level}: &a{level} [{}]\n", [alias.as_str(); 9].join(", ")));
    }
    let found = mistakes(&bomb);
    assert!(found[0].contains("more than 100000 values"), "{found:?}");
}

#[test]
fn a_long_text_repeated_by_aliases_is_refused() {
    let bomb = format!("a: &a \"{}\"\nb: [{}]\n", "\\\\".repeat(10_000), ["*a"; 1000].join(", "));
    assert!(mistakes(&bomb)[0].contains("aliases repeat more than"));
}

#[test]
fn aliases_do_not_add_up_to_a_tree_deeper_than_is_allowed() {
    let mut bomb = "a0: &a0 [x]\n".to_owned();
    for level in 1..2000 {
        bomb.push_str(&format!("a{level}: &a{level} [*a{}]\n", level - 1));
    }
    assert!(mistakes(&bomb)[0].contains("nested more than 32 deep"));
}

#[test]
fn depth_length_and_number_are_bounded() {
    assert!(mistakes(&"[".repeat(200))[0].contains("nested more than"));
    assert!(mistakes(&"- ".repeat(100_000))[0].contains("nested more than"));
    assert!(mistakes(&format!("[{}]", "x,".repeat(200_000)))[0].contains("more than 100000 values"));
    assert!(mistakes(&format!("a: {}", "x".repeat(70_000)))[0].contains("longer than 65536"));
    assert!(mistakes(&" ".repeat(MAX_BYTES + 1))[0].contains("bytes are more than"));
}

#[test]
fn a_syntax_error_is_located_and_keeps_what_came_before() {
    let documents = read("metadata:\n  name: blog\nspec: [\n");
    let document = &documents[0];
    assert_eq!(document.ending, Ending::Cut);
    assert_eq!(document.mistakes.len(), 1);
    assert_eq!(document.root.get("metadata").unwrap().get("name").unwrap().text(), Some("blog"));
}

#[test]
fn a_syntax_error_before_another_document_says_so() {
    let documents = read("a: 1\n---\nb: [\n---\nc: 3\n");
    assert_eq!(documents[0].ending, Ending::Whole);
    assert_eq!(documents[1].ending, Ending::CutBeforeOthers);
}

#[test]
fn tabs_get_a_hint() {
    let documents = read("a:\n\tb: 1\n");
    assert_eq!(documents[0].mistakes[0].hint.as_deref(), Some("indent with spaces, not with tabs"));
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_first_key() {
    assert!(one("\u{feff}a: 1\n").get("a").is_some());
}

/// What serde_yaml makes of a text that is one unquoted scalar.
fn kind_by_serde(text: &str) -> Option<ScalarKind> {
    match serde_yaml::from_str(text).ok()? {
        serde_yaml::Value::Null => Some(ScalarKind::Null),
        serde_yaml::Value::Bool(_) => Some(ScalarKind::Bool),
        serde_yaml::Value::Number(number) if number.is_f64() => Some(ScalarKind::Float),
        serde_yaml::Value::Number(_) => Some(ScalarKind::Integer),
        serde_yaml::Value::String(_) => Some(ScalarKind::Text),
        serde_yaml::Value::Sequence(_) | serde_yaml::Value::Mapping(_) | serde_yaml::Value::Tagged(_) => None,
    }
}

proptest! {
    #[test]
    fn scalars_mean_what_serde_yaml_makes_of_them(text in "[-+]?(0[xob]?)?[0-9a-fA-F._]{1,8}(e[-+]?[0-9]{1,2})?|true|True|nULL|~|null|yes|[.]inf|[.]nan|[-.]?[.]?[a-zA-Z]{1,4}") {
        prop_assert_eq!(kind(&text), kind_by_serde(&text));
    }

    #[test]
    fn reading_never_panics(text in "([-:?,\\[\\]{}#&*!|>'\"%@`~<a1 \n\t\r\u{feff}\u{e9}]|---\n|<<: |&a |\\*a ){0,60}") {
        let _ = read(&text);
    }

    #[test]
    fn what_is_written_reads_back(value in proptest::collection::btree_map("[a-z]{1,8}", "[\\p{L}\\p{N}\\p{P}\\p{S} ]{0,20}", 0..6)) {
        let text = to_string(&value).unwrap();
        let documents = read(&text);
        let root = &documents[0].root;
        prop_assert_eq!(root.entries().len(), value.len());
        for (key, value) in &value {
            prop_assert_eq!(root.get(key).and_then(Node::text), Some(value.as_str()), "{}", text);
        }
    }
}

/// Documents of what people write, with things in it that only the full parser knows.
fn document() -> impl Strategy<Value = String> {
    let scalar = prop_oneof![
        6 => "[a-z0-9./_-]{1,8}",
        1 => "[a-z0-9:#$ (+~=,'\"&*!|>-]{1,10}",
        1 => "\"[a-z0-9:#{}, '\\\\]{0,6}\"",
        1 => "'[a-z0-9:#{}, \"]{0,6}'",
        1 => prop_oneof![Just("128Mi"), Just("22:30"), Just("0x1f"), Just("1e3"), Just("null"), Just("true"), Just("-"), Just("-1")]
            .prop_map(str::to_owned),
    ];
    let flow = scalar.prop_recursive(3, 12, 3, |inner| {
        let pair = ("[a-z]{1,2}", inner.clone(), prop_oneof![8 => Just(": "), 1 => Just(":"), 1 => Just(" : ")]);
        let pair = pair.prop_map(|(key, value, colon)| format!("{key}{colon}{value}"));
        let comma = prop_oneof![6 => Just(", "), 1 => Just(","), 1 => Just(" , "), 1 => Just(" ")];
        prop_oneof![
            (proptest::collection::vec(pair, 0..4), comma.clone(), " {0,2}")
                .prop_map(|(pairs, comma, blanks)| format!("{{{blanks}{}}}", pairs.join(comma))),
            (proptest::collection::vec(inner, 0..4), comma, " {0,2}")
                .prop_map(|(items, comma, blanks)| format!("[{blanks}{}{blanks}]", items.join(comma))),
        ]
    });
    let line = (
        proptest::sample::select(vec![0_usize, 0, 0, 2, 2, 2, 4, 4, 1, 3]),
        prop_oneof![8 => Just(""), 3 => Just("- "), 1 => Just("-   "), 1 => Just("- - "), 1 => Just("? ")],
        prop_oneof![8 => "[a-z]{1,2}:( {1,2}|)", 1 => Just(String::new()), 1 => "\"a\": |b c: |<<: |a:|: ", 1 => "[a-z]{1,2} : "],
        prop_oneof![5 => flow, 3 => Just(String::new())],
        prop_oneof![9 => Just(""), 1 => Just(" # note"), 1 => Just("  "), 1 => Just("\n\n  # note"), 1 => Just("\n---")],
    );
    let line =
        line.prop_map(|(indent, dash, key, value, end)| format!("{}{dash}{key}{value}{end}", " ".repeat(indent)));
    let begin = prop_oneof![8 => Just(""), 1 => Just("---\n"), 1 => Just("# note\n---\n"), 1 => Just("--- a\n"), 1 => Just("%YAML 1.2\n---\n")];
    let end = prop_oneof![8 => Just("\n"), 1 => Just(""), 1 => Just("\n..."), 1 => Just("\n---\n")];
    (begin, proptest::collection::vec(line, 1..8), end)
        .prop_map(|(begin, lines, end)| format!("{begin}{}{end}", lines.join("\n")))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

    #[test]
    fn what_is_read_in_one_pass_is_what_the_full_parser_reads(text in document()) {
        if let Some(plain) = plain::read(&text) {
            prop_assert_eq!(vec![plain], read_in_full(&text), "{}", text);
        }
    }

    #[test]
    fn so_it_is_of_any_text(text in "(a: |b:|- |\n|\n  |\n    |  |\\{|\\}|, |#|\"|'|:|x|1|\\[|\\]|~|---\n|\\.\\.\\.|&|\\*){0,24}") {
        if let Some(plain) = plain::read(&text) {
            prop_assert_eq!(vec![plain], read_in_full(&text), "{}", text);
        }
    }
}

#[test]
fn what_people_write_is_read_in_one_pass() {
    let app = "# yaml-language-server: $schema=app.json\n---\napiVersion: setpoint/v1\nkind: App\nmetadata:\n  name: blog\n  labels: {tier: web, \
               shard: \"3\"}\n\nspec:\n  # two of them\n  dependsOn: [db, pay/api]\n  env:\n    GREETING: hello from 3\n    URL: http://db/x?y\n  \
               expose:\n    hosts:\n    - www.example.org\n    - 'example.org'\n";
    let sandbox = "version: 1\nweb:\n  command: exec busybox httpd -f -p 3000\nworkers:\n  - name: queue\n    command: sh worker.sh 1\n";
    for text in [app, sandbox] {
        assert_eq!(plain::read(text).map(|document| vec![document]), Some(read_in_full(text)));
    }
}
