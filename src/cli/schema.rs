//! `setpoint schema`: the JSON Schemas of declaration files, for editors, as this version reads them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use setpoint_schema::json_schema::{SchemaKind, json_schema};

use super::{Failure, print};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which file's schema to print
    #[arg(value_enum, required_unless_present = "write")]
    kind: Option<Kind>,
    /// Write all of them into this directory, as `setpoint init` does into .setpoint/schema
    #[arg(long, value_name = "DIR", conflicts_with = "kind")]
    write: Option<PathBuf>,
}

/// The files that declarations are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// app.yaml
    App,
    /// templates/*.yaml
    Template,
    /// sandbox.yaml
    Sandbox,
    /// setpoint.toml
    #[value(aliases = ["setpoint", "setpoint.toml"])]
    Project,
    /// snapshots/*.yaml
    Snapshot,
}

/// Where a repository of declarations keeps the schemas that its files name.
pub(super) const DIRECTORY: &str = ".setpoint/schema";

pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    if let Some(kind) = args.kind {
        print(&text(kind.into()));
    }
    if let Some(dir) = &args.write {
        for (name, text) in files() {
            write(&dir.join(name), &text)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Every schema with the name of its file.
pub(super) fn files() -> impl Iterator<Item = (&'static str, String)> {
    SchemaKind::ALL.into_iter().map(|kind| (kind.file_name(), text(kind)))
}

/// Writes a file and the directories above it.
pub(super) fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let hint = || Some("name a directory that can be written".to_owned());
    let failed = |error| Failure::new(Unwritable { path: path.to_owned(), source: error }, hint());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    fs::write(path, text).map_err(failed)
}

fn text(kind: SchemaKind) -> String {
    let schema = serde_json::to_string_pretty(&json_schema(kind)).expect("a schema holds only maps with text keys");
    format!("{schema}\n")
}

impl From<Kind> for SchemaKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::App => Self::App,
            Kind::Template => Self::Template,
            Kind::Sandbox => Self::Sandbox,
            Kind::Project => Self::Project,
            Kind::Snapshot => Self::Snapshot,
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("could not write {path}")]
struct Unwritable {
    path: PathBuf,
    #[source]
    source: std::io::Error,
}
