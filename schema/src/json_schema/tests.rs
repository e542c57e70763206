//! The checked-in schemas are current, and know the fields that the decoder knows.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::app::{Expose, Resources, Source, Timeouts};
use crate::document::{APP_METADATA_FIELDS, DOCUMENT_FIELDS, SNAPSHOT_METADATA_FIELDS};
use crate::project::Project;
use crate::runtime::{Build, Web, Worker};
use crate::window::Window;

/// `UPDATE=1` writes them anew.
#[test]
fn checked_in_schemas_are_what_the_types_say() {
    for kind in SchemaKind::ALL {
        let path = format!("{}/json/{}", env!("CARGO_MANIFEST_DIR"), kind.file_name());
        let current = format!("{}\n", serde_json::to_string_pretty(&json_schema(kind)).unwrap());
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &current).unwrap();
        }
        let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(checked_in == current, "{path} is stale: run the test again with UPDATE=1");
    }
}

#[test]
fn schemas_have_the_fields_that_the_decoder_reads() {
    let app = json_schema(SchemaKind::App);
    assert_fields(&app, "", DOCUMENT_FIELDS);
    assert_fields(&app, "/definitions/AppMetadata", APP_METADATA_FIELDS);
    assert_fields(&app, "/definitions/AppSpec", AppSpec::FIELDS);
    assert_fields(&app, "/definitions/Source", Source::FIELDS);
    assert_fields(&app, "/definitions/Resources", Resources::FIELDS);
    assert_fields(&app, "/definitions/Expose", Expose::FIELDS);
    assert_fields(&app, "/definitions/Timeouts", Timeouts::FIELDS);
    assert_fields(&app, "/definitions/Runtime", Runtime::FIELDS);
    assert_fields(&app, "/definitions/Window", Window::FIELDS);
    let sandbox = json_schema(SchemaKind::Sandbox);
    assert_fields(&sandbox, "", Runtime::FIELDS);
    assert_fields(&sandbox, "/definitions/Web", Web::FIELDS);
    assert_fields(&sandbox, "/definitions/Build", Build::FIELDS);
    assert_fields(&sandbox, "/definitions/Worker", Worker::FIELDS);
    assert_fields(&json_schema(SchemaKind::Template), "", DOCUMENT_FIELDS);
    let snapshot = json_schema(SchemaKind::Snapshot);
    assert_fields(&snapshot, "", DOCUMENT_FIELDS);
    assert_fields(&snapshot, "/definitions/SnapshotMetadata", SNAPSHOT_METADATA_FIELDS);
    assert_fields(&snapshot, "/definitions/SnapshotSpec", SnapshotSpec::FIELDS);
    assert_fields(&json_schema(SchemaKind::Project), "", Project::FIELDS);
}

#[test]
fn every_field_of_every_schema_is_described() {
    for kind in SchemaKind::ALL {
        assert_described(&json_schema(kind), "");
    }
}

fn assert_fields(schema: &Value, pointer: &str, fields: &[&str]) {
    let properties = schema.pointer(&format!("{pointer}/properties")).and_then(Value::as_object).unwrap();
    let mut expected = fields.to_vec();
    expected.sort_unstable();
    let mut found: Vec<&str> = properties.keys().map(String::as_str).collect();
    found.sort_unstable();
    assert_eq!(found, expected, "at {pointer}");
    assert_eq!(schema.pointer(&format!("{pointer}/additionalProperties")), Some(&Value::Bool(false)), "at {pointer}");
}

fn assert_described(schema: &Value, path: &str) {
    let Value::Object(fields) = schema else { return };
    for (name, field) in fields.get("properties").and_then(Value::as_object).into_iter().flatten() {
        assert!(field.get("description").is_some(), "{path}.{name} has no description");
    }
    for (name, inner) in fields {
        assert_described(inner, &format!("{path}.{name}"));
    }
}
