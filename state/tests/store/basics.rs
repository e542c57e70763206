//! Records, batches, the lock, and what the store refuses.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use setpoint_schema::app::{AppMetadata, AppSpec, DesiredApp, SandboxSpec};
use setpoint_schema::id::{CommitId, DiskId, Generation, SpecDigest, TemplateDigest, TreeDigest};
use setpoint_schema::name::{AppKey, RepoPath};
use setpoint_schema::observed::{AppRecord, DiskRecord, LastGood, Retry};
use setpoint_schema::quantity::ByteSize;
use setpoint_state::{Apps, Batch, Disks, EventKind, NewEvent, StateError, Store, VALUE_LIMIT};

use crate::fixture::{app, disk, disk_id, options};

#[test]
fn what_was_put_is_there_after_reopening_and_what_was_removed_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with(dir.path(), options()).unwrap();
    store.put::<Disks>(&disk_id("a"), &disk("a", 1)).unwrap();
    store.put::<Disks>(&disk_id("b"), &disk("b", 1)).unwrap();
    store.put::<Disks>(&disk_id("b"), &disk("b", 2)).unwrap();
    store.remove::<Disks>(&disk_id("a")).unwrap();
    store.remove::<Disks>(&disk_id("never there")).unwrap();
    drop(store);
    let store = Store::open_with(dir.path(), options()).unwrap();
    assert_eq!(store.get::<Disks>(&disk_id("a")).unwrap(), None);
    assert_eq!(store.all::<Disks>().unwrap(), BTreeMap::from([(disk_id("b"), disk("b", 2))]));
}

#[test]
fn apps_of_different_teams_do_not_share_a_record() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with(dir.path(), options()).unwrap();
    for key in ["blog", "shop/blog", "shop/blog-2"] {
        store.put::<Apps>(&app(key), &app_record(&app(key), "")).unwrap();
    }
    let keys: Vec<String> = store.all::<Apps>().unwrap().keys().map(AppKey::to_string).collect();
    assert_eq!(keys, ["blog", "shop/blog", "shop/blog-2"]);
    assert_eq!(store.get::<Apps>(&app("shop/blog")).unwrap().unwrap().key, app("shop/blog"));
}

#[test]
fn a_value_over_the_cap_is_refused_by_name_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with(dir.path(), options()).unwrap();
    let error = store.put::<Apps>(&app("blog"), &app_record(&app("blog"), &"x".repeat(VALUE_LIMIT))).unwrap_err();
    assert!(matches!(&error, StateError::TooLarge { what, .. } if what == "apps/blog"), "{error}");
    assert!(store.all::<Apps>().unwrap().is_empty());
    store.put::<Apps>(&app("blog"), &app_record(&app("blog"), &"x".repeat(VALUE_LIMIT - 4096))).unwrap();
}

/// A value that is written in another form than it is read in.
#[derive(serde::Serialize, serde::Deserialize)]
struct Lopsided {
    #[serde(rename(serialize = "written", deserialize = "read"))]
    _value: u8,
}

enum Lopsideds {}

impl setpoint_state::Table for Lopsideds {
    const NAME: &'static str = "lopsided";
    type Key = DiskId;
    type Value = Lopsided;
}

impl setpoint_state::Inventory for Lopsideds {}

#[test]
fn a_value_that_would_not_be_read_back_is_refused_before_it_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with(dir.path(), options()).unwrap();
    let error = store.put::<Lopsideds>(&disk_id("a"), &Lopsided { _value: 1 }).unwrap_err();
    assert!(matches!(error, StateError::Unreadable { .. }), "{error}");
    drop(store);
    Store::open_with(dir.path(), options()).unwrap();
}

#[test]
fn a_size_without_a_unit_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with(dir.path(), options()).unwrap();
    let odd = DiskRecord { size: ByteSize::bytes(1001), ..disk("a", 1) };
    store.put::<Disks>(&disk_id("a"), &odd).unwrap();
    assert_eq!(store.get::<Disks>(&disk_id("a")).unwrap(), Some(odd));
}

#[test]
fn a_batch_is_carried_out_whole_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with(dir.path(), options()).unwrap();
    let before = store.stats().unwrap().generation;
    let mut batch = Batch::new();
    batch.put::<Disks>(&disk_id("a"), &disk("a", 1)).unwrap();
    batch.put::<Disks>(&disk_id("b"), &disk("b", 1)).unwrap().remove::<Disks>(&disk_id("a"));
    batch.event(NewEvent::new(EventKind::Created, "new", "made b").app(&app("blog")));
    store.commit(batch).unwrap();
    assert_eq!(store.stats().unwrap().generation, before + 1, "one commit");
    assert_eq!(store.all::<Disks>().unwrap().into_keys().collect::<Vec<_>>(), [disk_id("b")]);
    assert_eq!(store.latest_events(10).unwrap().len(), 1);
}

#[test]
fn writers_at_the_same_time_all_have_their_writes_and_share_commits() {
    const WRITERS: u64 = 8;
    const EACH: u64 = 50;
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with(dir.path(), options()).unwrap();
    let before = store.stats().unwrap().generation;
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let store = store.clone();
            scope.spawn(move || {
                for i in 0..EACH {
                    let name = format!("{writer}-{i}");
                    store.put::<Disks>(&disk_id(&name), &disk(&name, i)).unwrap();
                }
            });
        }
    });
    let names: BTreeSet<_> = (0..WRITERS).flat_map(|w| (0..EACH).map(move |i| disk_id(&format!("{w}-{i}")))).collect();
    assert_eq!(store.all::<Disks>().unwrap().into_keys().collect::<BTreeSet<_>>(), names);
    assert!(store.stats().unwrap().generation - before < WRITERS * EACH, "no two writers ever shared a commit");
}

#[test]
fn a_second_opening_is_refused_with_the_holders_pid_and_succeeds_after_closing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with(dir.path(), options()).unwrap();
    let clone = store.clone();
    drop(store);
    let error = Store::open_with(dir.path(), options()).unwrap_err();
    assert!(matches!(error, StateError::Locked { pid: Some(pid), .. } if pid == std::process::id()), "{error}");
    assert!(!error.hint().is_empty());
    drop(clone);
    Store::open_with(dir.path(), options()).unwrap();
}

#[test]
fn five_hundred_large_records_leave_no_file_beside_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with(dir.path(), options()).unwrap();
    let large = "x".repeat(VALUE_LIMIT - 4096);
    for i in 0..500_u32 {
        let key = app(&format!("app-{}", i % 40));
        store.put::<Apps>(&key, &app_record(&key, &large)).unwrap();
    }
    let blobs = std::fs::read_dir(dir.path().join("store/blobs")).map_or(0, Iterator::count);
    assert_eq!(blobs, 0, "such files are never freed");
    let live = 40 * VALUE_LIMIT as u64;
    let bytes = store.stats().unwrap().bytes;
    assert!(bytes < 40 * live, "{bytes} bytes on disk for {live} live ones");
}

fn app_record(key: &AppKey, annotation: &str) -> AppRecord {
    let annotations = [("note".to_owned(), annotation.to_owned())].into();
    let metadata = AppMetadata { key: key.clone(), uid: None, labels: [].into(), annotations };
    let digest = |text: &str| text.to_owned();
    let spec = SandboxSpec {
        app: AppSpec::default(),
        template: TemplateDigest(digest("t").into()),
        files: TreeDigest(digest("f").into()),
    };
    let path = RepoPath::new("apps/blog/app.yaml").unwrap();
    AppRecord {
        key: key.clone(),
        generation: Generation(1),
        digest: SpecDigest(digest("s").into()),
        last_good: LastGood {
            app: Arc::new(DesiredApp { metadata, spec: spec.into(), path }),
            revision: CommitId("c".repeat(40).into()),
        },
        retry: Retry::default(),
        heals: Vec::new(),
        repeats: Vec::new(),
        suspended: None,
        power: None,
        restored: Vec::new(),
        usage: None,
    }
}
