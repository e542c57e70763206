//! `?fields=name,conditions.reason`: a part of an object, for those who poll over a thin line or wait for one thing alone.
//!
//! Which fields there are is what the API's own description says of the type, so that a misspelt one is refused by name even
//! where no object has it just now.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::openapi;
use super::refusal::Refusal;

/// The longest selection. All fields of an app together are a third of it.
pub(super) const MAX_FIELDS: usize = 1024;

/// Which fields of an object to show: of each field all, or again a part.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Fields(BTreeMap<String, Wanted>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Wanted {
    All,
    Part(Fields),
}

impl Fields {
    /// Reads a selection of the fields of a type that the API's description has a schema for.
    pub(super) fn parse(text: &str, type_name: &'static str) -> Result<Self, Refusal> {
        if text.len() > MAX_FIELDS {
            return Err(Refusal::parameter("fields", format!("`fields` must be at most {MAX_FIELDS} characters")));
        }
        let schemas = openapi::schemas();
        let mut fields = Self::default();
        for path in text.split(',') {
            let steps: Vec<&str> = path.split('.').collect();
            if !exists(schemas, &schemas[type_name], &steps) {
                let detail = format!("there is no field `{path}`; the answer without `fields` shows all there are");
                return Err(Refusal::parameter("fields", detail));
            }
            fields.add(&steps);
        }
        Ok(fields)
    }

    fn add(&mut self, steps: &[&str]) {
        let [first, rest @ ..] = steps else { return };
        let part = self.0.entry((*first).to_owned()).or_insert_with(|| Wanted::Part(Self::default()));
        match part {
            // Part of what is shown in full is shown already.
            Wanted::All => {}
            Wanted::Part(_) if rest.is_empty() => *part = Wanted::All,
            Wanted::Part(fields) => fields.add(rest),
        }
    }

    /// The selected part. Of a list it is that part of each item; what an object does not have is left out.
    pub(super) fn of(&self, value: Value) -> Value {
        match value {
            Value::Object(mut all) => {
                let mut part = Map::new();
                for (name, wanted) in &self.0 {
                    if let Some(value) = all.remove(name) {
                        let value = match wanted {
                            Wanted::All => value,
                            Wanted::Part(fields) => fields.of(value),
                        };
                        part.insert(name.clone(), value);
                    }
                }
                Value::Object(part)
            }
            Value::Array(items) => items.into_iter().map(|item| self.of(item)).collect(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value,
        }
    }
}

/// Whether a value that this schema describes can have something under a path.
fn exists(schemas: &Value, schema: &Value, steps: &[&str]) -> bool {
    let [first, rest @ ..] = steps else { return true };
    if let Some(name) = schema["$ref"].as_str().and_then(|target| target.rsplit('/').next()) {
        return exists(schemas, &schemas[name], steps);
    }
    let variants = ["anyOf", "oneOf", "allOf"].into_iter().filter_map(|key| schema[key].as_array()).flatten();
    let named = schema["properties"].get(first);
    let any = schema.get("additionalProperties").filter(|any| any.is_object() && !first.is_empty());
    named.or(any).is_some_and(|field| exists(schemas, field, rest))
        || schema.get("items").is_some_and(|items| exists(schemas, items, steps))
        || variants.into_iter().any(|variant| exists(schemas, variant, steps))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use serde_json::json;

    use super::*;

    fn selected(text: &str) -> Value {
        let app = json!({
            "name": "blog", "phase": "ready", "labels": {"tier": "front", "x": "y"}, "sandbox": null,
            "web": {"process": {"state": "running", "restarts": 1}, "health": {"state": "healthy"}},
            "conditions": [{"type": "Ready", "reason": "Healthy"}, {"type": "Stalled", "reason": "Settled"}]
        });
        Fields::parse(text, "App").unwrap().of(app)
    }

    #[test]
    fn fields_are_shown_whole_or_in_part_and_through_lists() {
        assert_eq!(selected("name"), json!({"name": "blog"}));
        assert_eq!(selected("sandbox,phase"), json!({"sandbox": null, "phase": "ready"}));
        assert_eq!(selected("web.health.state"), json!({"web": {"health": {"state": "healthy"}}}));
        assert_eq!(
            selected("conditions.reason"),
            json!({"conditions": [{"reason": "Healthy"}, {"reason": "Settled"}]})
        );
        assert_eq!(selected("labels.tier"), json!({"labels": {"tier": "front"}}));
        for text in ["labels.x,labels", "labels,labels.x"] {
            assert_eq!(selected(text), json!({"labels": {"tier": "front", "x": "y"}}));
        }
    }

    #[test]
    fn what_no_object_of_the_type_can_have_is_unknown() {
        for text in ["", "nam", "name,", ",name", "name.x", "web.nothing", "web..state", ".", "conditions.0", "labels."]
        {
            assert!(Fields::parse(text, "App").is_err(), "{text:?}");
        }
        for text in ["web.process.reason", "build.reason", "labels.anything", "resources.memory", "web"] {
            assert!(Fields::parse(text, "App").is_ok(), "{text:?}");
        }
    }
}
