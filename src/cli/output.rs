//! The forms in which objects are printed: tables for people, and the API's own documents for programs.

use serde::Deserialize;
use serde::de::{DeserializeOwned, Error as _};
use serde_json::Value;

use super::table::{Cell, Column, Page, Shown, table};
use super::{print, print_json};

/// How objects are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// Columns, for people
    #[value(alias = "text")]
    Table,
    /// More columns, and nothing cut
    Wide,
    /// The API's documents, as JSON
    Json,
    /// The same as YAML
    Yaml,
    /// Names alone, one a line
    Name,
}

/// The flags of every verb that shows objects.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Output {
    /// Output format
    #[arg(short = 'o', long = "output", value_enum, default_value = "table", value_name = "FORMAT")]
    pub form: Form,
    /// Leave out the heading of tables
    #[arg(long, visible_alias = "no-headers")]
    pub no_header: bool,
}

/// A document of the API, whole as it came, and what this version understands of it. Documents are printed whole, so that a
/// newer daemon's fields are not lost.
#[derive(Debug, Clone)]
pub struct Object<T> {
    /// As it came.
    pub document: Value,
    /// As it is understood.
    pub typed: T,
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Object<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let document = Value::deserialize(deserializer)?;
        let typed = T::deserialize(&document).map_err(D::Error::custom)?;
        Ok(Self { document, typed })
    }
}

/// A list as the API gives it, in one page.
#[must_use]
pub fn list(items: Vec<Value>) -> Value {
    serde_json::json!({ "items": items, "next": null })
}

/// Prints a document as JSON or YAML.
pub fn print_document(form: Form, document: &Value) {
    match form {
        Form::Yaml => {
            let text = setpoint_schema::yaml::to_string(document).expect("a JSON document has only text keys");
            print(&text);
        }
        Form::Json | Form::Table | Form::Wide | Form::Name => print_json(document),
    }
}

impl Output {
    /// The columns that this form shows.
    #[must_use]
    pub fn columns(self, all: &[Column]) -> Vec<Column> {
        all.iter().filter(|column| self.shows(column)).copied().collect()
    }

    /// The cells of a row that this form shows.
    #[must_use]
    pub fn cells(self, all: &[Column], row: Vec<Cell>) -> Vec<Cell> {
        row.into_iter().zip(all).filter(|(_, column)| self.shows(column)).map(|(cell, _)| cell).collect()
    }

    /// What the table is written on: `wide` never cuts.
    #[must_use]
    pub fn page(self) -> Page {
        if self.form == Form::Wide { Page::stdout().endless() } else { Page::stdout() }
    }

    /// Prints a table of the rows.
    pub fn print_table(self, columns: &[Column], rows: Vec<Vec<Cell>>) {
        let rows: Vec<_> = rows.into_iter().map(|row| self.cells(columns, row)).collect();
        let text = table(&self.columns(columns), &rows, self.page());
        let body = text.split_once('\n').map_or("", |(_, rows)| rows);
        print(if self.no_header { body } else { &text });
    }

    fn shows(self, column: &Column) -> bool {
        match column.shown {
            Shown::Always => true,
            Shown::Wide => self.form == Form::Wide,
        }
    }
}
