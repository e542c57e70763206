//! What the tests share: small records, and a directory seen as bytes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use setpoint_schema::id::{BootNonce, DiskId, SandboxId, TemplateDigest};
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{DiskRecord, DiskState, Machine};
use setpoint_schema::quantity::ByteSize;
use setpoint_state::Options;

/// Options for tests, which may run on a crowded disk.
pub fn options() -> Options {
    Options { reserve: ByteSize::mib(1), ..Options::default() }
}

pub fn app(name: &str) -> AppKey {
    name.parse().unwrap()
}

pub fn disk_id(name: &str) -> DiskId {
    DiskId(name.into())
}

/// A disk whose size tells one version of it from another.
pub fn disk(name: &str, size: u64) -> DiskRecord {
    DiskRecord { id: disk_id(name), app: app("blog"), size: ByteSize::mib(size), state: DiskState::InUse }
}

pub fn machine(name: &str, disk: &str) -> Machine {
    Machine {
        sandbox: SandboxId(name.into()),
        app: app("shop/blog"),
        uid: None,
        nonce: BootNonce("0".repeat(32).into()),
        vcpus: 1,
        memory_mib: 256,
        template: TemplateDigest("t".into()),
        disk: disk_id(disk),
    }
}

/// Every file below `dir` with its content.
pub fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut left = vec![dir.to_owned()];
    while let Some(next) = left.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else {
                found.insert(path.strip_prefix(dir).unwrap().to_owned(), std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// Writes files as [`contents`] found them into an empty directory.
pub fn restore(contents: &BTreeMap<PathBuf, Vec<u8>>, dir: &Path) {
    for (name, bytes) in contents {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}
