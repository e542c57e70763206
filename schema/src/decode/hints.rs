//! Advice on mistakes that people make often. Advice only: nothing is accepted or refused here.

use crate::node::{Node, Scalar, ScalarKind, Value};

/// What the writer of an unknown field may have meant.
pub(super) fn for_unknown_field(structure: &str, field: &str, fields: &[&str]) -> String {
    if let Some(hint) = misplaced(structure, field) {
        return hint.to_owned();
    }
    match nearest(field, fields) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("the fields here are {}", fields.join(", ")),
    }
}

/// Fields that people bring from elsewhere, or put one level too high.
fn misplaced(structure: &str, field: &str) -> Option<&'static str> {
    Some(match (structure, field) {
        ("Runtime", "services" | "processes") => {
            "write the process that answers HTTP as `web:`, the others as `workers:`"
        }
        ("Runtime", "command" | "port" | "health_path") => "it belongs below `web:`",
        ("Runtime", "timeout_seconds") => "it belongs below `build:`",
        ("Runtime", "env" | "environment") => "variables belong in the `env` of app.yaml",
        ("AppSpec", "web" | "workers" | "build" | "command") => "it belongs below `runtime:`, or in sandbox.yaml",
        ("AppSpec", "vcpus" | "cpu" | "cpus" | "memory" | "disk") => {
            "sizes belong below `resources:`, as vcpus, memory and disk"
        }
        ("AppSpec", "ports" | "hosts" | "ingress") => "it belongs below `expose:`",
        ("AppSpec", "image") => "name a template with `template:`",
        ("AppSpec", "replicas") => "an app is one microVM; declare a second app for a second one",
        ("AppSpec", "name" | "team" | "labels" | "annotations" | "uid") => "it belongs below `metadata:`",
        ("AppSpec", "idle" | "onResumeFailure") => "it belongs below `power:`",
        ("AppSpec" | "PowerSpec", "hold") => "it belongs below `wake:`",
        ("PowerSpec", "after" | "action" | "cpuBelow" | "cpu_below") => "it belongs below `power.idle:`",
        ("Resources", "cpu" | "cpus") => "did you mean `vcpus`?",
        ("Web" | "Worker", "env" | "environment") => "variables belong in the `env` of app.yaml",
        ("Web", "health" | "healthcheck") => "did you mean `health_path`?",
        ("Metadata", "namespace") => "did you mean `team`?",
        ("Document", "name" | "team" | "labels" | "annotations" | "uid") => "it belongs below `metadata:`",
        ("Document", "template" | "source" | "runtime" | "resources" | "env" | "expose") => "it belongs below `spec:`",
        ("Document", "status") => "declarations have no status; `setpoint get apps` shows it",
        ("Document", "version" | "web" | "workers" | "build") => {
            "this looks like sandbox.yaml; in app.yaml it belongs below `spec.runtime:`"
        }
        _ => return None,
    })
}

/// What somebody who wrote a value of the wrong type may want to write.
pub(super) fn for_type(node: &Node<'_>, what: &str) -> Option<String> {
    let Value::Scalar(Scalar { text, kind }) = &node.value else { return None };
    let lower = text.to_ascii_lowercase();
    match (what, kind) {
        ("`true` or `false`", _) => match lower.as_str() {
            "true" | "yes" | "on" | "y" | "1" => Some("write `true`".to_owned()),
            "false" | "no" | "off" | "n" | "0" => Some("write `false`".to_owned()),
            _ => None,
        },
        ("text", ScalarKind::Bool | ScalarKind::Integer | ScalarKind::Float) => {
            Some(format!("write `\"{text}\"`, in quotes, for text"))
        }
        ("a size such as `512Mi`", ScalarKind::Integer) => Some(format!("write the unit, as in `{text}Mi`")),
        ("a time such as `90s`", ScalarKind::Integer) => Some(format!("write the unit, as in `{text}s`")),
        ("a share of a processor such as `5%`", ScalarKind::Integer) => {
            Some(format!("write the unit, as in `{text}%`"))
        }
        (what, ScalarKind::Text)
            if what.starts_with("a whole number") && crate::quantity::parse_integer(text).is_some() =>
        {
            Some(format!("write `{text}` without quotes"))
        }
        _ => None,
    }
}

/// Words that people bring from elsewhere, for a field that takes one of a few.
pub(super) fn for_word(text: &str, words: &[&str]) -> Option<String> {
    let is_workload = matches!(text, "Application" | "Deployment" | "Pod" | "Service" | "StatefulSet" | "VM");
    if words.contains(&"App") && is_workload {
        return Some("what runs is `App`; one app is one microVM".to_owned());
    }
    let lower = text.to_lowercase();
    // `monday` for `mon`, and `run` for `running`.
    let abbreviates = |short: &str, long: &str| short.len() >= 3 && long.starts_with(short);
    let longer = || words.iter().copied().find(|word| abbreviates(word, &lower) || abbreviates(&lower, word));
    nearest(text, words).or_else(longer).map(|near| format!("did you mean `{near}`?"))
}

/// The candidate that `word` is probably a slip of.
pub(crate) fn nearest<'c>(word: &str, candidates: &[&'c str]) -> Option<&'c str> {
    let plain = |text: &str| text.replace(['-', '_'], "").to_lowercase();
    // Quadratic below, and nobody mistypes a word this long.
    if word.len() > 64 {
        return None;
    }
    let word = plain(word);
    let most = (word.len() / 3).max(1);
    let near = candidates.iter().filter_map(|candidate| {
        let plain = plain(candidate);
        // Each character of difference in length costs one, and to look at lengths is cheap.
        (plain.len().abs_diff(word.len()) <= most).then(|| (distance(&word, &plain), *candidate))
    });
    let (distance, candidate) = near.min_by_key(|(distance, _)| *distance)?;
    (distance <= most).then_some(candidate)
}

/// How many characters have to be added, removed, changed or swapped with a neighbour to turn `a` into `b`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut two_above = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(two_above[j - 2] + 1);
            }
            row.push(best);
        }
        two_above = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}
