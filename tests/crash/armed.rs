//! No failpoint is reached in the code that no test arms: the code itself says which there are.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::boundaries::SCRIPTED;
use crate::failpoints::{
    DISK_FORK, DISK_SNAPSHOT, FORK, FROM_WARM, MERGE, PAUSE, PAUSED_SNAPSHOT, RESUME, SNAPSHOT, WARM,
};

fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let below = entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] });
    below.filter(|path| path.extension().is_some_and(|suffix| suffix == "rs")).collect()
}

/// What stands between quotes after each `call(` in these sources.
fn named(files: &[PathBuf], call: &str) -> BTreeSet<String> {
    let of = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        let names = text.split(call).skip(1).filter_map(|rest| Some(rest.strip_prefix("(\"")?.split_once('"')?.0));
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    files.iter().flat_map(of).collect()
}

fn under(path: &str) -> Vec<PathBuf> {
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
}

/// Those that are armed with real microVMs, but for what lies between a driver and the store.
fn real() -> BTreeSet<String> {
    let lists: [&[&str]; 10] =
        [&PAUSE, &RESUME, &MERGE, &[WARM], &FROM_WARM, &SNAPSHOT, &DISK_SNAPSHOT, &PAUSED_SNAPSHOT, &FORK, &DISK_FORK];
    let points = lists.into_iter().flatten().filter(|point| !point.ends_with("/halfway"));
    points.map(|point| (*point).to_owned()).collect()
}

#[test]
fn every_failpoint_of_the_drivers_is_armed_by_a_test() {
    let scripted = SCRIPTED.iter().flat_map(|(_, points)| *points).map(|point| (*point).to_owned()).collect();
    let is_of_sim =
        |path: &PathBuf| path.components().any(|part| part.as_os_str() == "sim" || part.as_os_str() == "sim.rs");
    let (sim, qemu): (Vec<_>, Vec<_>) = under("vmm/src").into_iter().partition(is_of_sim);
    assert_eq!(named(&sim, "reach"), scripted, "scripted");
    assert_eq!(named(&qemu, "reach"), real(), "real");
}

/// The names of all steps that a plan can have, and of those that have a failpoint halfway.
pub fn steps() -> (BTreeSet<String>, BTreeSet<String>) {
    let words = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("plan/src/words.rs")).unwrap();
    let (_, after) = words.split_once("impl Step").expect("steps have words");
    let (_, after) = after.split_once("fn name(").expect("steps have names");
    let (name, _) = after.split_once("\n    }\n").expect("it ends");
    let names = name.split("=> \"").skip(1).filter_map(|rest| Some(rest.split_once('"')?.0.to_owned()));
    let in_two = named(&under("src/converge"), "crash_point").into_iter().filter(|step| step != "pass");
    (names.collect(), in_two.collect())
}
