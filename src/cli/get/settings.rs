//! `setpoint get settings [KEY...]`: the configuration that is in force, and what a reload takes up.

use std::process::ExitCode;

use serde_json::Value;

use crate::cli::client::Client;
use crate::cli::output::{self, Form, Output};
use crate::cli::table::{Cell, Column};
use crate::cli::{Failure, follow, print};

const COLUMNS: &[Column] = &[
    Column::new("KEY"),
    Column::new("FROM").at_least("environment".len()),
    Column::new("RELOADS"),
    Column::new("VALUE"),
];

/// Shows settings, all or those whose key is named or lies below a named section.
pub async fn get(client: &Client, names: &[String], output: Output) -> Result<ExitCode, Failure> {
    let document: Option<Value> = follow::find(client, "/v1/settings").await?;
    let Some(document) = document else {
        let hint = "it is of an older version: compare `setpoint version`".to_owned();
        return Err(Failure::new("the daemon does not show its settings", Some(hint)));
    };
    let settings = wanted(&document, names)?;
    match output.form {
        Form::Table | Form::Wide => {
            output.print_table(COLUMNS, settings.iter().map(|setting| cells(setting)).collect())
        }
        Form::Name => settings.iter().for_each(|setting| print(&format!("{}\n", key(setting)))),
        Form::Json | Form::Yaml if names.is_empty() => output::print_document(output.form, &document),
        Form::Json | Form::Yaml => {
            output::print_document(output.form, &output::list(settings.into_iter().cloned().collect()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn wanted<'a>(document: &'a Value, names: &[String]) -> Result<Vec<&'a Value>, Failure> {
    let all: Vec<_> = document["settings"].as_array().into_iter().flatten().collect();
    let meant = |name: &str, setting: &Value| {
        key(setting) == name || key(setting).strip_prefix(name).is_some_and(|rest| rest.starts_with('.'))
    };
    if let Some(name) = names.iter().find(|name| !all.iter().any(|setting| meant(name, setting))) {
        let hint = "`setpoint get settings` lists what there is".to_owned();
        return Err(Failure::new(format!("there is no setting {name}"), Some(hint)));
    }
    let chosen = |setting: &&Value| names.is_empty() || names.iter().any(|name| meant(name, setting));
    Ok(all.into_iter().filter(chosen).collect())
}

fn key(setting: &Value) -> &str {
    setting["key"].as_str().unwrap_or_default()
}

fn cells(setting: &Value) -> Vec<Cell> {
    let value = match &setting["value"] {
        Value::Null => Cell::or_dash(None::<&str>),
        Value::String(text) => Cell::new(text),
        value => Cell::new(value.to_string()),
    };
    let reloads = if setting["reloads"] == true { "yes" } else { "no" };
    vec![Cell::new(key(setting)), Cell::or_dash(setting["origin"].as_str()), Cell::new(reloads), value]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_chosen_by_key_and_by_section() {
        let setting = |key: &str| serde_json::json!({"key": key, "value": 4, "origin": "file", "reloads": true});
        let document =
            serde_json::json!({"settings": [setting("api.listen"), setting("api.tls.cert"), setting("apis.x")]});
        let keys = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            wanted(&document, &names).map(|found| found.into_iter().map(key).collect::<Vec<_>>()).unwrap_or_default()
        };
        assert_eq!(keys(&["api"]), ["api.listen", "api.tls.cert"]);
        assert_eq!(keys(&["apis.x"]), ["apis.x"]);
        assert_eq!((keys(&[]).len(), keys(&["nothing"]).len()), (3, 0));
    }
}
