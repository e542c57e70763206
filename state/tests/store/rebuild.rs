//! The way out of damage.

use setpoint_schema::id::HostId;
use setpoint_schema::observed::{DiskState, Intent};
use setpoint_schema::quantity::{ByteSize, Span};
use setpoint_state::{Disks, EventKind, FoundDisk, Rebuild, Sandboxes, StateError, Store};

use crate::fixture::{app, disk, disk_id, machine, options};

fn found() -> Rebuild {
    let disk = |name: &str| FoundDisk { id: disk_id(name), size: ByteSize::gib(1) };
    Rebuild {
        host: HostId("host".into()),
        machines: vec![machine("blog-0000000a", "blog-0000000b")],
        disks: vec![disk("blog-0000000b"), disk("old-shop-0000000c")],
        retain: Span::secs(3600),
    }
}

#[test]
fn a_damaged_state_is_moved_aside_and_recorded_anew() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("state");
    drop(Store::open_with(&dir, options()).unwrap());
    std::fs::write(dir.join("generation"), "nonsense").unwrap();
    assert!(matches!(Store::open_with(&dir, options()), Err(StateError::Damaged { .. })));

    let aside = Store::quarantine(&dir).unwrap();
    assert!(aside.file_name().unwrap().to_string_lossy().starts_with("state.damaged-"));
    assert_eq!(std::fs::read(aside.join("generation")).unwrap(), b"nonsense", "nothing of it is lost");

    let store = Store::open_with(&dir, options()).unwrap();
    store.rebuild(&found()).unwrap();
    let sandbox = store.all::<Sandboxes>().unwrap().into_values().next().unwrap();
    assert_eq!((sandbox.app, sandbox.intent, sandbox.applied), (app("shop/blog"), Intent::Keep, None));
    let used = store.get::<Disks>(&disk_id("blog-0000000b")).unwrap().unwrap();
    assert_eq!((used.app, used.state), (app("shop/blog"), DiskState::InUse));
    let orphan = store.get::<Disks>(&disk_id("old-shop-0000000c")).unwrap().unwrap();
    assert_eq!(orphan.app, app("old-shop"));
    assert!(matches!(orphan.state, DiskState::Retained { .. }), "a disk that nobody uses is kept for a time");
    assert_eq!(store.latest_events(1).unwrap()[0].kind, EventKind::StateRebuilt);
}

#[test]
fn a_state_that_is_in_use_is_not_moved() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("state");
    let _store = Store::open_with(&dir, options()).unwrap();
    assert!(matches!(Store::quarantine(&dir), Err(StateError::Locked { .. })));
    assert!(dir.exists());
}

#[test]
fn a_rebuild_does_not_overwrite_an_inventory() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with(dir.path(), options()).unwrap();
    store.put::<Disks>(&disk_id("a"), &disk("a", 1)).unwrap();
    assert!(matches!(store.rebuild(&found()), Err(StateError::NotEmpty { disks: 1, .. })));
    assert!(store.all::<Sandboxes>().unwrap().is_empty());
}
