//! Sensitive values are masked wherever they are written, and told apart all the same.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use super::*;
use crate::disruption::{Disruption, diff_leaf};
use crate::id::SpecDigest;

const TEXT: &str = "correct horse";

fn json_of(value: &EnvValue) -> String {
    serde_json::to_string(value).unwrap()
}

fn read(json: &str) -> EnvValue {
    serde_json::from_str(json).unwrap()
}

#[test]
fn a_sensitive_value_is_masked_unless_it_is_asked_for() {
    let value = EnvValue::sensitive(TEXT);
    assert!(!json_of(&value).contains("horse") && !format!("{value:?}").contains("horse"));
    assert_eq!(revealed(|| json_of(&value)), r#"{"value":"correct horse","sensitive":true}"#);
    assert!(!json_of(&value).contains("horse"), "it is masked again afterwards");
    assert_eq!(json_of(&EnvValue::from("plain")), r#""plain""#);
}

#[test]
fn a_value_is_masked_again_after_a_panic() {
    let value = EnvValue::sensitive(TEXT);
    let panicked = std::panic::catch_unwind(|| revealed(|| panic!("while writing")));
    assert!(panicked.is_err() && !json_of(&value).contains("horse"));
}

#[test]
fn a_masked_value_equals_the_one_that_it_masks_and_no_other() {
    let value = EnvValue::sensitive(TEXT);
    let masked = read(&json_of(&value));
    assert_eq!((&masked, masked.reveal()), (&value, None));
    assert_ne!(masked, EnvValue::sensitive("correct house"));
    assert_ne!(masked, EnvValue::from(TEXT));
    assert_eq!(SpecDigest::of(&masked), SpecDigest::of(&value));
    assert_eq!(revealed(|| SpecDigest::of(&value)), SpecDigest::of(&value), "a spec has one hash, however it is kept");
}

#[test]
fn what_the_store_keeps_is_read_back_whole() {
    for value in [EnvValue::from("a"), EnvValue::sensitive(TEXT)] {
        let kept = read(&revealed(|| json_of(&value)));
        assert_eq!((&kept, kept.reveal()), (&value, value.reveal()));
    }
    assert_eq!(read(r#"{"value": "a", "sensitive": false}"#), EnvValue::from("a"));
}

#[test]
fn differences_say_that_a_sensitive_value_changed_and_not_to_what() {
    let [plain, old, new] = [EnvValue::from("plain"), EnvValue::sensitive("old"), EnvValue::sensitive("new")];
    let changed = |before: &EnvValue, after: &EnvValue| {
        let mut changes = Vec::new();
        diff_leaf(before, after, "env.TOKEN", Disruption::Process, &mut changes);
        changes.into_iter().map(|change| (change.before, change.after, change.sensitive)).collect::<Vec<_>>()
    };
    let masked = || Json::from(MASK);
    for (before, after) in [(&old, &new), (&plain, &new), (&old, &plain)] {
        assert_eq!(changed(before, after), [(masked(), masked(), true)]);
    }
    assert_eq!(changed(&old, &old), []);
    let mut changes = Vec::new();
    diff_leaf(&Json::Null, &serde_json::to_value(&new).unwrap(), "env.TOKEN", Disruption::Process, &mut changes);
    assert_eq!((&changes[0].before, &changes[0].after), (&Json::Null, &masked()));
}
