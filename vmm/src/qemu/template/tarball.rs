//! Unpacks a root file system's tar archive into a directory that it cannot get out of.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek as _};
use std::path::{Component, Path, PathBuf};

use flate2::read::MultiGzDecoder;
use tar::{Archive, Entry, EntryType};

use super::owners::{Attributes, Owners};
use super::{MAX_BYTES, check_limits, refused};
use crate::driver::Result;
use crate::qemu::files::io_error;

/// Unpacks `archive`, plain or gzip, into the empty directory `staging`; what cannot be right there comes back as owners.
pub(super) fn unpack(archive: &Path, staging: &Path) -> Result<Owners> {
    let reader = open(archive).map_err(io_error("read", archive))?;
    // A gzip bomb ends where the limit is, also inside what tar reads by itself.
    let mut tar = Archive::new(reader.take(MAX_BYTES + MAX_BYTES / 8));
    tar.set_preserve_permissions(false);
    tar.set_preserve_mtime(true);
    let mut wanted = BTreeMap::new();
    let (mut entries, mut bytes) = (0, 0);
    for entry in tar.entries().map_err(io_error("read", archive))? {
        let mut entry = entry.map_err(io_error("read", archive))?;
        entries += 1;
        bytes += entry.size();
        check_limits(archive, entries, bytes)?;
        let path = inside(archive, &entry.path().map_err(io_error("read", archive))?)?;
        if path.as_os_str().is_empty() || is_left_out(archive, &path, entry.header().entry_type())? {
            continue;
        }
        let attributes = attributes(&entry).map_err(io_error("read", archive))?;
        unpack_entry(&mut entry, archive, staging, &path)?;
        wanted.insert(path, attributes);
    }
    if wanted.is_empty() {
        return Err(refused(archive, "is empty"));
    }
    Owners::differing(staging, &wanted)
}

fn open(archive: &Path) -> io::Result<Box<dyn Read>> {
    let mut file = File::open(archive)?;
    let mut magic = [0; 2];
    let count = file.read(&mut magic)?;
    file.rewind()?;
    let file = BufReader::new(file);
    if count == 2 && magic == [0x1f, 0x8b] { Ok(Box::new(MultiGzDecoder::new(file))) } else { Ok(Box::new(file)) }
}

/// The path without a leading `/` or `./`; one that leads upwards is refused rather than bent.
fn inside(archive: &Path, path: &Path) -> Result<PathBuf> {
    let mut inside = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => inside.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(refused(archive, &format!("has the path {}, which leads out of it", path.display())));
            }
        }
    }
    Ok(inside)
}

/// Device nodes under `dev` are the guest's kernel's to make. Anywhere else one would be a way around its permissions.
fn is_left_out(archive: &Path, path: &Path, kind: EntryType) -> Result<bool> {
    match kind {
        EntryType::Block | EntryType::Char if path.starts_with("dev") => Ok(true),
        EntryType::Block | EntryType::Char => {
            Err(refused(archive, &format!("has a device node outside of /dev: {}", path.display())))
        }
        // Nothing waits at a pipe that is not there yet: whoever uses it makes it.
        EntryType::Fifo => Ok(true),
        _ => Ok(false),
    }
}

fn attributes(entry: &Entry<'_, impl Read>) -> io::Result<Attributes> {
    let header = entry.header();
    let id = |id: u64| u32::try_from(id).map_err(io::Error::other);
    Ok(Attributes { uid: id(header.uid()?)?, gid: id(header.gid()?)?, mode: header.mode()? & 0o7777 })
}

/// Writes one entry. `unpack_in` refuses to write through a link that leads out of `staging`.
fn unpack_entry(entry: &mut Entry<'_, impl Read>, archive: &Path, staging: &Path, path: &Path) -> Result<()> {
    let target = staging.join(path);
    let kind = entry.header().entry_type();
    let is_old_directory = target.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
    if is_old_directory && !kind.is_dir() {
        return Err(refused(archive, &format!("has {} both as a directory and as a file", path.display())));
    }
    let unpacked = entry.unpack_in(staging).map_err(io_error("unpack", &target))?;
    if !unpacked {
        return Err(refused(archive, &format!("has the path {}, which leads out of it", path.display())));
    }
    make_readable(&target, kind).map_err(io_error("open up", &target))
}

/// Whoever runs this must be able to read all of it, and write into its directories, until it is copied.
fn make_readable(path: &Path, kind: EntryType) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let needed = match kind {
        EntryType::Directory => 0o700,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => 0o600,
        _ => return Ok(()),
    };
    let mode = path.symlink_metadata()?.permissions().mode();
    if mode & needed == needed {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode | needed))
}
