//! Looking at a state from beside it.

use setpoint_state::{Disks, StateError, Store};

use crate::fixture::{contents, disk, disk_id, options};

#[test]
fn a_snapshot_beside_an_open_store_reads_all_and_changes_no_byte() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with(dir.path(), options()).unwrap();
    store.put::<Disks>(&disk_id("a"), &disk("a", 7)).unwrap();
    let before = contents(dir.path());
    let snapshot = Store::snapshot_read(dir.path()).unwrap();
    assert_eq!(snapshot.all::<Disks>().unwrap(), store.all::<Disks>().unwrap());
    assert_eq!(snapshot.dir(), dir.path());
    assert_eq!(contents(dir.path()), before);
    store.put::<Disks>(&disk_id("a"), &disk("a", 8)).unwrap();
    assert_eq!(snapshot.get::<Disks>(&disk_id("a")).unwrap(), Some(disk("a", 7)), "it stays as it was");
}

#[test]
fn no_state_reads_as_an_empty_one_and_none_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("state");
    let snapshot = Store::snapshot_read(&missing).unwrap();
    assert!(snapshot.all::<Disks>().unwrap().is_empty());
    assert!(!missing.exists());
}

#[test]
fn snapshots_during_commits_are_whole_or_say_that_they_cannot_be_had() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with(dir.path(), options()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..200 {
                store.put::<Disks>(&disk_id(&format!("disk-{}", n % 30)), &disk("x", n)).unwrap();
            }
        });
        for _ in 0..10 {
            match Store::snapshot_read(dir.path()) {
                Ok(snapshot) => drop(snapshot.all::<Disks>().unwrap()),
                Err(StateError::Busy { .. }) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
    });
}
