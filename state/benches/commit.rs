//! What a durable write costs, beside the least that the disk allows: `cargo bench -p setpoint-state`.
//!
//! The floor, measured anew before each line, is a loop that appends 300 bytes and calls fdatasync on the same file system. Set
//! `TMPDIR` to choose the disk.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot be made ends there")]

#[path = "../../benches/support/figures.rs"]
mod figures;

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use setpoint_schema::id::DiskId;
use setpoint_schema::observed::{DiskRecord, DiskState};
use setpoint_schema::quantity::ByteSize;
use setpoint_state::{Disks, EventKind, NewEvent, Store};

use figures::Table;

const LASTING: Duration = Duration::from_secs(2);

fn main() {
    let dir = tempfile::tempdir().unwrap();
    let columns = ["", "operations a second", "floor", "ratio", "on disk"];
    let mut table = Table::new("writes", "Durable writes, against a loop of write and fdatasync", &columns);
    for writers in [1, 4, 16] {
        let floor = measure(1, |_| floor_write(dir.path()));
        let store = Store::open(&dir.path().join(format!("puts-{writers}"))).unwrap();
        let rate = measure(writers, |writer| {
            let store = store.clone();
            move |n| put(&store, writer, n)
        });
        row(&mut table, &format!("put, {writers} writers"), rate, floor, &store);
    }
    let floor = measure(1, |_| floor_write(dir.path()));
    let store = Store::open(&dir.path().join("events")).unwrap();
    let rate = measure(1, |_| {
        let store = store.clone();
        move |n| drop(store.append_event(NewEvent::new(EventKind::Ready, "bench", n.to_string())).unwrap())
    });
    row(&mut table, "append an event, 1 writer", rate, floor, &store);
    table.print();
    drop(store);
    let begun = Instant::now();
    let store = Store::open(&dir.path().join("events")).unwrap();
    let count = store.events_after(None, usize::MAX).unwrap().len();
    println!("open and check {count} events in {:.0?}", begun.elapsed());
}

fn row(table: &mut Table, name: &str, rate: f64, floor: f64, store: &Store) {
    let kib = store.stats().unwrap().bytes >> 10;
    table.row(&[
        &name,
        &format_args!("{rate:.0}"),
        &format_args!("{floor:.0}"),
        &format_args!("{:.1}", rate / floor),
        &format_args!("{kib} KiB"),
    ]);
}

/// Operations a second, over all writers.
fn measure<W: FnMut(u64) + Send>(writers: u64, make: impl Fn(u64) -> W) -> f64 {
    let begun = Instant::now();
    let operations: u64 = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..writers)
            .map(|writer| {
                let mut write = make(writer);
                scope.spawn(move || {
                    (0..).inspect(|n| write(*n)).take_while(|_| begun.elapsed() < LASTING).count() as u64
                })
            })
            .collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).sum()
    });
    operations as f64 / begun.elapsed().as_secs_f64()
}

fn floor_write(dir: &Path) -> impl FnMut(u64) + Send + use<> {
    let mut file = std::fs::File::create(dir.join("floor")).unwrap();
    move |_| {
        file.write_all(&[0x5a; 300]).unwrap();
        file.sync_data().unwrap();
    }
}

fn put(store: &Store, writer: u64, n: u64) {
    let id = DiskId(format!("disk-{writer}-{}", n % 50).into());
    let app = "blog".parse().unwrap();
    store.put::<Disks>(&id.clone(), &DiskRecord { id, app, size: ByteSize::mib(n), state: DiskState::InUse }).unwrap();
}
