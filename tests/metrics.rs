//! What the daemon counts, against what its dashboard asks for and what its documentation says.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/host.rs"]
mod host;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use host::Host;
use serde_json::Value;

/// A scrape of a daemon to which every counted thing has happened: an app came up, another cannot be launched.
fn scrape() -> String {
    let mut host = Host::sim();
    fs::write(host.state().join("vmm/script.toml"), "[[fault]]\noperation = \"launch\"\nnth = 1\neffect = \"fail\"\n")
        .unwrap();
    host.write_app("blog", "", "hello");
    host.commit("begin");
    host.start();
    host.wait_converged();
    assert_eq!(host.fetch("nobody.localhost", "/").unwrap().status, 404);
    host.api("/v1/status");
    host.api_answer("/metrics").unwrap().body
}

/// The names of all samples' metrics: `_bucket`, `_sum` and `_count` belong to their histogram.
fn families(text: &str) -> BTreeSet<String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let named = types.filter_map(|line| {
        let (name, kind) = line.split_once(' ')?;
        let suffix = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        Some(format!("{name}{suffix}"))
    });
    named.collect()
}

/// Words in `text` that are names of metrics.
fn mentioned(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words.filter(|word| word.starts_with("setpoint_") || word.starts_with("process_"));
    ours.map(|word| word.strip_suffix("_bucket").unwrap_or(word).to_owned()).collect()
}

fn docs(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(file)).unwrap()
}

#[test]
fn the_dashboard_asks_for_what_there_is_and_the_documentation_knows_it_all() {
    let text = scrape();
    let there = families(&text);
    let dashboard: Value = serde_json::from_str(&docs("grafana/setpoint.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().unwrap());
    let asked: BTreeSet<_> = targets.flat_map(|target| mentioned(target["expr"].as_str().unwrap())).collect();
    assert_eq!(asked.difference(&there).collect::<Vec<_>>(), Vec::<&String>::new(), "asked for and not there");
    let documented = mentioned(&docs("metrics.md"));
    assert_eq!(there, documented, "there, against docs/metrics.md\n{text}");
    for name in &asked {
        let sample = text.lines().any(|line| !line.starts_with('#') && line.starts_with(name.as_str()));
        assert!(sample, "{name} has no sample\n{text}");
    }
    assert!(!text.contains("blog"), "no app is named\n{text}");
}

#[test]
fn counts_tell_what_happened() {
    let text = scrape();
    for line in [
        "setpoint_actions_total{kind=\"create\",outcome=\"failed\"} 1",
        "setpoint_actions_total{kind=\"create\",outcome=\"done\"}",
        "setpoint_errors_total{stage=\"launch\"} 1",
        "setpoint_apps{phase=\"ready\"} 1",
        "setpoint_microvms{phase=\"running\"} 1",
        "setpoint_source_up 1",
        "setpoint_source_lag_seconds 0.0",
        "setpoint_http_answers_total{listener=\"ingress\",status=\"4xx\"} 1",
        "setpoint_api_answers_total{route=\"/v1/status\",status=\"200\"}",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}
