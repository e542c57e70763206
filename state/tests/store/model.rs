//! The store against a map in memory, reopened at any point.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use setpoint_state::{Batch, Disks, EventKind, NewEvent, Options, Outcome, PlanRef, Store};

use crate::fixture::{app, disk, disk_id, options};

#[derive(Debug, Clone)]
enum Op {
    Put(u8, u64),
    Remove(u8),
    Batch(Vec<(u8, Option<u64>)>),
    Event(String),
    Begin(u32),
    EndOldest,
    Reopen,
}

fn size() -> impl Strategy<Value = u64> {
    0..1_u64 << 40
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0..12_u8;
    prop_oneof![
        4 => (key.clone(), size()).prop_map(|(k, v)| Op::Put(k, v)),
        2 => key.clone().prop_map(Op::Remove),
        2 => vec((key, proptest::option::of(size())), 0..6).prop_map(Op::Batch),
        2 => ".{0,40}".prop_map(Op::Event),
        2 => any::<u32>().prop_map(Op::Begin),
        1 => Just(Op::EndOldest),
        1 => Just(Op::Reopen),
    ]
}

/// What the store should hold.
#[derive(Debug, Default)]
struct Model {
    disks: BTreeMap<u8, u64>,
    events: Vec<String>,
    open: Vec<u32>,
}

const EVENTS: usize = 5;

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_holds_what_a_map_would(ops in vec(op(), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { events: EVENTS, journal: 6, ..options() };
        let mut store = Store::open_with(dir.path(), options.clone()).unwrap();
        let mut model = Model::default();
        for op in ops {
            if matches!(op, Op::Reopen) {
                drop(store);
                store = Store::open_with(dir.path(), options.clone()).unwrap();
            } else {
                carry_out(&store, &mut model, op);
            }
            compare(&store, &model);
        }
    }
}

fn carry_out(store: &Store, model: &mut Model, op: Op) {
    let name = |key: u8| format!("disk-{key}");
    match op {
        Op::Put(key, size) => {
            store.put::<Disks>(&disk_id(&name(key)), &disk(&name(key), size)).unwrap();
            model.disks.insert(key, size);
        }
        Op::Remove(key) => {
            store.remove::<Disks>(&disk_id(&name(key))).unwrap();
            model.disks.remove(&key);
        }
        Op::Batch(writes) => {
            let mut batch = Batch::new();
            for (key, value) in writes {
                match value {
                    Some(size) => {
                        batch.put::<Disks>(&disk_id(&name(key)), &disk(&name(key), size)).unwrap();
                        model.disks.insert(key, size);
                    }
                    None => {
                        batch.remove::<Disks>(&disk_id(&name(key)));
                        model.disks.remove(&key);
                    }
                }
            }
            store.commit(batch).unwrap();
        }
        Op::Event(message) => {
            store.append_event(NewEvent::new(EventKind::Ready, "", message.clone())).unwrap();
            model.events.push(message);
        }
        Op::Begin(step) => {
            store.journal_begin(&app("blog"), &PlanRef("p".to_owned()), step, "step").unwrap();
            model.open.push(step);
        }
        Op::EndOldest => {
            if let Some(oldest) = store.unfinished().unwrap().into_iter().next() {
                store.journal_end(oldest, Outcome::Done).unwrap();
                model.open.remove(0);
            }
        }
        Op::Reopen => unreachable!("reopening is the caller's"),
    }
}

fn compare(store: &Store, model: &Model) {
    let disks: BTreeMap<String, u64> = store
        .all::<Disks>()
        .unwrap()
        .into_iter()
        .map(|(id, disk)| (id.as_str().to_owned(), disk.size.as_mib()))
        .collect();
    let expected: BTreeMap<String, u64> =
        model.disks.iter().map(|(key, size)| (format!("disk-{key}"), *size)).collect();
    assert_eq!(disks, expected);
    let events: Vec<String> = store.latest_events(100).unwrap().into_iter().map(|event| event.message).collect();
    assert_eq!(events, model.events[model.events.len().saturating_sub(EVENTS)..]);
    let open: Vec<u32> = store.unfinished().unwrap().into_iter().map(|entry| entry.step_index).collect();
    assert_eq!(open, model.open);
}
