//! gitoxide against libgit2, over repositories that git made.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::*;

fn git(dir: &Path, arguments: &[&str], input: &[u8]) {
    let mut child = Command::new("git")
        .arg("-C")
        .arg(dir)
        .args(["-c", "core.fsync=none"])
        .args(arguments)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    assert!(child.wait().unwrap().success(), "git {arguments:?}");
}

/// A bare repository of commits that change a file each, and of files that are much like each other, packed under this configuration.
fn packed(configuration: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    git(dir.path(), &["init", "--quiet", "--bare", "--initial-branch=main"], b"");
    let mut stream = String::new();
    for n in 0..60 {
        stream += "commit refs/heads/main\ncommitter Ada <ada@example.org> 1700000000 +0000\ndata 0\n";
        let lines: String =
            (0..200).map(|line| format!("line {line} of {}\n", if line == n { n } else { 0 })).collect();
        stream += &format!("M 644 inline changing\ndata {}\n{lines}\n", lines.len());
        stream += &format!(
            "M 644 inline apps/app-{n}/app.yaml\ndata {}\n{lines}name: app-{n}\n\n",
            lines.len() + 10 + n.to_string().len()
        );
    }
    git(dir.path(), &["fast-import", "--quiet"], stream.as_bytes());
    let repack = ["repack", "-a", "-d", "-f", "--quiet", "--depth=50", "--window=50"];
    git(dir.path(), &[configuration, &repack].concat(), b"");
    dir
}

/// Every object of a repository, as libgit2 reads it.
fn objects(dir: &Path) -> Vec<(ObjectId, Kind, Vec<u8>)> {
    let git = git2::Repository::open(dir).unwrap();
    let odb = git.odb().unwrap();
    let mut ids = Vec::new();
    odb.foreach(|id| {
        ids.push(*id);
        true
    })
    .unwrap();
    let read = |id: git2::Oid| {
        let object = odb.read(id).unwrap();
        let kind = Kind::from_bytes(object.kind().str().as_bytes()).unwrap();
        (ObjectId::try_from(id.as_bytes()).unwrap(), kind, object.data().to_vec())
    };
    ids.into_iter().map(read).collect()
}

#[test]
fn every_object_is_what_libgit2_reads() {
    for configuration in [&[][..], &["-c", "repack.useDeltaBaseOffset=false"], &["-c", "core.compression=0"]] {
        let dir = packed(configuration);
        let read = Objects::of(dir.path());
        let objects = objects(dir.path());
        assert!(objects.len() > 200, "{}", objects.len());
        for (id, kind, content) in objects {
            assert_eq!(read.read(id, kind, 1 << 20).as_ref(), Some(&content), "{id}");
            assert_eq!(read.size(id, kind), Some(content.len() as u64), "{id}");
        }
    }
}

#[test]
fn what_is_not_wanted_as_it_is_there_is_not_given() {
    let dir = packed(&[]);
    let read = Objects::of(dir.path());
    for (id, kind, content) in objects(dir.path()) {
        let other = if kind == Kind::Blob { Kind::Tree } else { Kind::Blob };
        assert_eq!(read.read(id, other, 1 << 20), None);
        assert_eq!(read.size(id, other), None);
        if !content.is_empty() {
            assert_eq!(read.read(id, kind, content.len() as u64 - 1), None, "{id} is too large");
        }
    }
    assert_eq!(read.read(ObjectId::Sha1([7; 20]), Kind::Blob, 1 << 20), None);
    let nowhere = Objects::of(&dir.path().join("refs"));
    assert_eq!(nowhere.read(ObjectId::Sha1([7; 20]), Kind::Blob, 1 << 20), None);
}

#[test]
fn an_object_beyond_the_bound_is_not_made_room_for() {
    let dir = packed(&[]);
    let zeros = vec![0; MAX_OBJECT_BYTES + 1];
    git(dir.path(), &["hash-object", "-w", "--stdin"], &zeros);
    let large = objects(dir.path()).into_iter().find(|(_, _, content)| content.len() == zeros.len()).unwrap();
    git(dir.path(), &["prune-packed"], b"");
    let read = Objects::of(dir.path());
    assert_eq!(read.size(large.0, large.1), Some(zeros.len() as u64));
    assert_eq!(read.read(large.0, large.1, u64::MAX), None);
}

#[test]
fn a_damaged_pack_or_index_gives_nothing_that_is_not_true() {
    let dir = packed(&[]);
    let objects = objects(dir.path());
    let folder = dir.path().join("objects/pack");
    let files: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    let mut missing = 0;
    for ending in ["pack", "idx"] {
        let file = files.iter().find(|path| path.extension().is_some_and(|end| end == ending)).unwrap();
        let sound = fs::read(file).unwrap();
        for round in 0..150 {
            let mut bytes = sound.clone();
            let at = (round * 7919) % bytes.len();
            bytes[at] ^= 1 << (round % 8);
            // Every tenth is cut off, too.
            bytes.truncate(if round % 10 == 9 { at } else { bytes.len() });
            // A file of its own each time: what is in use stays as it is.
            fs::remove_file(file).unwrap();
            fs::write(file, bytes).unwrap();
            let read = Objects::of(dir.path());
            for (id, kind, content) in &objects {
                match read.read(*id, *kind, 1 << 20) {
                    Some(read) => assert_eq!(read, *content),
                    None => missing += 1,
                }
                read.size(*id, *kind);
            }
        }
        fs::remove_file(file).unwrap();
        fs::write(file, sound).unwrap();
    }
    assert!(missing > 0);
}
