//! `sandbox.yaml` as text: the same content as `spec.runtime` of an App, in a file of its own, under a version.

use std::collections::HashMap;

use crate::check;
use crate::decode::{Decode as _, Decoder};
use crate::diagnostic::{Diagnostic, Lines, SourceText};
use crate::name::RepoPath;
use crate::node::{Document, Ending, Node};
use crate::runtime::Runtime;
use crate::yaml;

/// Reads a `sandbox.yaml`. The mistakes belong to no app yet: the caller knows whose file it is.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(path: &RepoPath, text: &str) -> Result<Runtime, Vec<Diagnostic>> {
    let lines = Lines::new(SourceText { path, text });
    let mut cx = Decoder::new(&lines);
    let documents = yaml::read(text);
    let mut runtime = Runtime::nothing();
    match documents.as_slice() {
        [Document { root, mistakes, ending: Ending::Whole }] if !root.is_null() || !mistakes.is_empty() => {
            cx.mistakes_of(&documents[0]);
            runtime.overlay(root, &mut cx);
            check_written(root, &runtime, &mut cx);
            cx.require(root, "version", Some("begin the file with `version: 1`"));
        }
        [] | [Document { ending: Ending::Whole, .. }] => {
            let hint = "write `version: 1` and `web:` or `workers:`";
            return Err(vec![Diagnostic::new(path.clone(), "declares nothing").hint(hint)]);
        }
        [first, rest @ ..] => {
            documents.iter().for_each(|document| cx.mistakes_of(document));
            if let Some(second) = rest.first().filter(|_| first.ending == Ending::Whole) {
                cx.error(second.root.at, "a second document begins here, and there must be one only", None);
            }
        }
    }
    let diagnostics = cx.finish();
    if diagnostics.is_empty() { Ok(runtime) } else { Err(diagnostics) }
}

/// The most that a runtime may take as JSON. With the rest of its app it has to fit a record of the store, which is 64 kB.
const MAX_BYTES: usize = 24 << 10;
/// The most workers of one app.
const MAX_WORKERS: usize = 32;

/// Reports what the types cannot: rules between fields, and fields that are there but say nothing.
pub(crate) fn check_written(node: &Node<'_>, runtime: &Runtime, cx: &mut Decoder<'_>) {
    if let Some(web) = node.get("web") {
        cx.within("web", |cx| cx.require(web, "command", None));
    }
    if let Some(workers) = node.get("workers") {
        check_workers(workers, cx);
    }
    if check::json_is_longer(runtime, MAX_BYTES) {
        cx.error(node.at, &format!("takes more than {MAX_BYTES} bytes in all"), Some("put long scripts into files"));
    }
}

fn check_workers(workers: &Node<'_>, cx: &mut Decoder<'_>) {
    let mut first_lines = HashMap::new();
    for name in workers.items().iter().filter_map(|worker| worker.get("name")) {
        let Some(text) = name.text() else { continue };
        if let Some(line) = first_lines.insert(text, name.at.line) {
            let hint = format!("line {line} has it too; processes are addressed by their names");
            cx.error(name.at, &format!("two workers are named `{}`", crate::node::shorten(text)), Some(&hint));
        }
    }
    if workers.items().len() > MAX_WORKERS {
        cx.error(workers.at, &format!("more than {MAX_WORKERS} workers"), None);
    }
}

#[cfg(test)]
mod tests;
