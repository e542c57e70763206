//! Damage to every file of a state, in every way that a disk or a person can do it: the state opens with all that was written,
//! or says that it is damaged. It never opens with less, and never takes the process down.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use setpoint_state::{Disks, EventKind, NewEvent, Outcome, PlanRef, StateError, Store};

use crate::fixture::{app, contents, disk, disk_id, options, restore};

/// A state with some of everything, as files.
fn healthy() -> BTreeMap<PathBuf, Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let store = Store::open_with(dir.path(), options()).unwrap();
        for i in 0..40 {
            let name = format!("disk-{i}");
            store.put::<Disks>(&disk_id(&name), &disk(&name, round)).unwrap();
            store.append_event(NewEvent::new(EventKind::Ready, "r", format!("{round} {i}"))).unwrap();
            let entry = store.journal_begin(&app("blog"), &PlanRef("p".to_owned()), i, "step").unwrap();
            store.journal_end(entry, Outcome::Done).unwrap();
        }
    }
    contents(dir.path())
}

/// How opening went, for a state that must never open with less than everything.
#[derive(Debug, PartialEq, Eq)]
enum Opened {
    Intact,
    Damaged,
}

fn open(dir: &Path, what: &str) -> Opened {
    match Store::open_with(dir, options()) {
        Ok(store) => {
            let disks = store.all::<Disks>().unwrap();
            let intact = disks.len() == 40 && disks.values().all(|disk| disk.size.as_mib() == 2);
            assert!(intact, "{what}: opened with other disks than were written");
            assert_eq!(store.events_after(None, 1000).unwrap().len(), 120, "{what}: opened with other events");
            assert_eq!(store.journal(1000).unwrap().len(), 240, "{what}: opened with another journal");
            Opened::Intact
        }
        Err(error @ StateError::Damaged { .. }) => {
            assert!(error.hint().contains("state rebuild"));
            Opened::Damaged
        }
        Err(error) => panic!("{what}: {error:?}"),
    }
}

fn open_changed(files: &BTreeMap<PathBuf, Vec<u8>>, what: &str) -> Opened {
    let dir = tempfile::tempdir().unwrap();
    restore(files, dir.path());
    open(dir.path(), what)
}

/// The files that hold the state; the lock file holds nothing.
fn meaningful(files: &BTreeMap<PathBuf, Vec<u8>>) -> Vec<PathBuf> {
    files.keys().filter(|name| *name != Path::new("lock")).cloned().collect()
}

#[test]
fn an_untouched_copy_opens_intact() {
    assert_eq!(open_changed(&healthy(), "untouched"), Opened::Intact);
}

#[test]
fn a_truncated_file_is_damage_or_loses_nothing() {
    let healthy = healthy();
    for name in meaningful(&healthy) {
        let length = healthy[&name].len();
        for sixteenth in 0..16 {
            let mut files = healthy.clone();
            let end = length * sixteenth / 16;
            files.get_mut(&name).unwrap().truncate(end);
            open_changed(&files, &format!("{} cut at {end} of {length}", name.display()));
        }
    }
}

#[test]
fn flipped_bits_are_damage_or_change_nothing() {
    let healthy = healthy();
    let mut found = 0;
    for name in meaningful(&healthy) {
        let length = healthy[&name].len();
        for position in (0..24).map(|i| (length * i / 24 + i).min(length - 1)) {
            let mut files = healthy.clone();
            files.get_mut(&name).unwrap()[position] ^= 0x41;
            let opened = open_changed(&files, &format!("{} flipped at {position} of {length}", name.display()));
            found += u32::from(opened == Opened::Damaged);
        }
    }
    assert!(found > 0, "no flip was found at all");
}

#[test]
fn a_missing_file_is_damage_or_loses_nothing() {
    let healthy = healthy();
    for name in meaningful(&healthy) {
        let mut files = healthy.clone();
        files.remove(&name);
        open_changed(&files, &format!("{} missing", name.display()));
    }
}

#[test]
fn a_lost_engine_is_damage_and_not_an_empty_state() {
    let mut files = healthy();
    files.retain(|name, _| !name.starts_with("store"));
    assert_eq!(open_changed(&files, "engine missing"), Opened::Damaged);
}

#[test]
fn an_engine_restored_from_an_older_copy_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open_with(dir.path(), options()).unwrap());
    let old = contents(dir.path());
    let mut files = healthy();
    files.retain(|name, _| !name.starts_with("store"));
    files.extend(old.into_iter().filter(|(name, _)| name.starts_with("store")));
    assert_eq!(open_changed(&files, "engine of yesterday"), Opened::Damaged);
}

#[test]
fn a_snapshot_that_was_never_finished_does_not_stop_the_opening() {
    let mut files = healthy();
    files.insert("store/snap.00000000000000FF.generating".into(), b"half".to_vec());
    assert_eq!(open_changed(&files, "unfinished snapshot"), Opened::Intact);
}

#[test]
fn looking_at_a_damaged_state_says_so_and_changes_nothing() {
    let mut files = healthy();
    files.get_mut(Path::new("generation")).unwrap()[15] ^= 1;
    let dir = tempfile::tempdir().unwrap();
    restore(&files, dir.path());
    assert!(matches!(Store::snapshot_read(dir.path()), Err(StateError::Damaged { .. })));
    assert!(matches!(Store::open_with(dir.path(), options()), Err(StateError::Damaged { .. })));
    files.insert("lock".into(), format!("{}\n", std::process::id()).into_bytes());
    assert_eq!(contents(dir.path())[Path::new("generation")], files[Path::new("generation")]);
}
