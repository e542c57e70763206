//! Disks that are full or may not be written. The file systems are small tmpfs mounts, so most of this needs root; it says
//! so where it cannot mount one.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use setpoint_schema::quantity::ByteSize;
use setpoint_state::{Disks, EventKind, NewEvent, Options, StateError, Store};
use tempfile::TempDir;

use crate::fixture::{disk, disk_id};

/// A file system of its own, unmounted when the test ends.
struct Small {
    dir: TempDir,
}

impl Small {
    fn mount(mib: u32) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let size = std::ffi::CString::new(format!("size={mib}m")).unwrap();
        match mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), Some(size.as_c_str())) {
            Ok(()) => Some(Self { dir }),
            Err(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) => {
                eprintln!("not tested: mounting a file system is not allowed here");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The engine's threads may hold its file open for a moment after the store is gone; until then the kernel refuses.
    fn make_read_only(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(error) = mount_remount(self.dir.path(), MountFlags::RDONLY, c"") {
            assert!(error == rustix::io::Errno::BUSY && Instant::now() < deadline, "{error}");
            std::thread::yield_now();
        }
    }

    /// Writes a file until nothing more fits, and returns it.
    fn fill(&self) -> PathBuf {
        let path = self.dir.path().join("ballast");
        let mut file = std::fs::File::create(&path).unwrap();
        while file.write_all(&[0; 64 * 1024]).is_ok() {}
        path
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = unmount(self.dir.path(), UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_refuses_writes_and_serves_reads_until_there_is_room_again() {
    let Some(small) = Small::mount(64) else { return };
    let store = Store::open(&small.state()).unwrap();
    store.put::<Disks>(&disk_id("a"), &disk("a", 1)).unwrap();
    let ballast = small.fill();
    let error = store.put::<Disks>(&disk_id("a"), &disk("a", 2)).unwrap_err();
    assert!(matches!(error, StateError::Full { .. }), "{error}");
    assert_eq!(store.get::<Disks>(&disk_id("a")).unwrap(), Some(disk("a", 1)));
    std::fs::remove_file(ballast).unwrap();
    store.put::<Disks>(&disk_id("a"), &disk("a", 3)).unwrap();
    drop(store);
    let store = Store::open(&small.state()).unwrap();
    assert_eq!(store.get::<Disks>(&disk_id("a")).unwrap(), Some(disk("a", 3)));
}

#[test]
fn opening_on_a_full_disk_says_so() {
    let Some(small) = Small::mount(64) else { return };
    drop(Store::open(&small.state()).unwrap());
    small.fill();
    assert!(matches!(Store::open(&small.state()), Err(StateError::Full { .. })));
}

#[test]
fn a_disk_that_fills_up_inside_a_commit_loses_no_acknowledged_write() {
    let Some(small) = Small::mount(24) else { return };
    let options = Options { reserve: ByteSize::bytes(0), ..Options::default() };
    let store = Store::open_with(&small.state(), options.clone()).unwrap();
    let mut acknowledged = 0;
    let error = loop {
        let mut batch = setpoint_state::Batch::new();
        batch.put::<Disks>(&disk_id("n"), &disk("n", acknowledged + 1)).unwrap();
        for _ in 0..20 {
            batch.event(NewEvent::new(EventKind::Ready, "fill", "x".repeat(1000)));
        }
        match store.commit(batch) {
            Ok(()) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 100_000, "the disk never filled up");
    };
    assert!(matches!(error, StateError::Full { .. }), "{error:?}");
    assert!(store.put::<Disks>(&disk_id("n"), &disk("n", 0)).is_err(), "nothing is written after a failed commit");
    drop(store);
    mount_remount(small.dir.path(), MountFlags::empty(), c"size=96m").unwrap();
    let store = Store::open_with(&small.state(), options).unwrap();
    let found = store.get::<Disks>(&disk_id("n")).unwrap().unwrap().size.as_mib();
    assert!(found == acknowledged || found == acknowledged + 1, "{found} after {acknowledged}");
}

#[test]
fn a_read_only_file_system_says_so_and_can_still_be_looked_at() {
    let Some(small) = Small::mount(64) else { return };
    let store = Store::open(&small.state()).unwrap();
    store.put::<Disks>(&disk_id("a"), &disk("a", 1)).unwrap();
    drop(store);
    small.make_read_only();
    let error = Store::open(&small.state()).unwrap_err();
    assert!(matches!(error, StateError::ReadOnly { .. }), "{error:?}");
    assert!(error.hint().contains(&small.state().display().to_string()));
    let snapshot = Store::snapshot_read(&small.state()).unwrap();
    assert_eq!(snapshot.get::<Disks>(&disk_id("a")).unwrap(), Some(disk("a", 1)));
}

#[test]
fn a_state_below_a_file_is_an_error_with_its_path() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let error = Store::open(&dir.path().join("file/state")).unwrap_err();
    assert!(matches!(&error, StateError::Io { path, .. } if path.ends_with(Path::new("file/state"))), "{error:?}");
}
