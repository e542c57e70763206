//! Root images: a directory or tar archive becomes a read-only ext4 image, with owners right even when nobody here is root.
//!
//! A tar archive is unpacked into a staging directory, as whoever runs this, and `mke2fs -d` copies it. Owners and modes that the
//! staging directory could not have are then written into the image's inodes by `debugfs`. The built-in template has no image:
//! a mark says that it was asked for.

mod owners;
mod tarball;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use setpoint_schema::id::TemplateDigest;

use super::disk::{run_tool, tool};
use super::files::{beside, io_error, write_atomic};
use crate::driver::{Result, TemplateSource, VmmError};
use owners::Owners;

/// What a root file system may take, links counted once: larger than any that boots in reasonable time.
const MAX_BYTES: u64 = 16 << 30;

/// How many files it may have: several times a full desktop distribution.
const MAX_ENTRIES: u64 = 2_000_000;

/// The directory of templates.
#[derive(Debug, Clone)]
pub(super) struct Templates {
    directory: PathBuf,
}

/// A template that is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Root {
    /// The one in the initramfs.
    BuiltIn,
    /// A root image.
    Image(PathBuf),
}

impl Templates {
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// What a template's microVMs start from; `None` before it is made.
    pub fn root(&self, digest: &TemplateDigest) -> Option<Root> {
        if self.mark(digest).exists() {
            return Some(Root::BuiltIn);
        }
        let image = self.image(digest);
        image.exists().then_some(Root::Image(image))
    }

    /// Makes a template. It appears under its name only when it is whole.
    pub fn make(&self, digest: &TemplateDigest, source: Option<&TemplateSource>) -> Result<()> {
        if self.root(digest).is_some() {
            return Ok(());
        }
        fs::create_dir_all(&self.directory).map_err(io_error("create", &self.directory))?;
        let Some(source) = source else {
            let mark = self.mark(digest);
            return write_atomic(&mark, b"").map_err(io_error("write", &mark));
        };
        let image = self.image(digest);
        let unfinished = beside(&image, "new");
        match source {
            TemplateSource::Directory(root) => write_image(root, &unfinished, &Owners::default())?,
            TemplateSource::Exported(root) => write_image(root, &unfinished, &Owners::all_root(root)?)?,
            TemplateSource::Tar(archive) => self.write_from_tar(archive, &image, &unfinished)?,
        }
        fs::rename(&unfinished, &image).map_err(io_error("rename", &unfinished))
    }

    fn write_from_tar(&self, archive: &Path, image: &Path, unfinished: &Path) -> Result<()> {
        let staging = beside(image, "staging");
        remove_staging(&staging)?;
        fs::create_dir_all(&staging).map_err(io_error("create", &staging))?;
        let written = tarball::unpack(archive, &staging).and_then(|owners| write_image(&staging, unfinished, &owners));
        written.and(remove_staging(&staging))
    }

    fn image(&self, digest: &TemplateDigest) -> PathBuf {
        self.directory.join(format!("{digest}.img"))
    }

    fn mark(&self, digest: &TemplateDigest) -> PathBuf {
        self.directory.join(format!("{digest}.builtin"))
    }
}

fn remove_staging(staging: &Path) -> Result<()> {
    match fs::remove_dir_all(staging) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io_error("remove", staging)(error)),
        _ => Ok(()),
    }
}

/// Copies a directory tree into a new image and sets owners right.
fn write_image(root: &Path, image: &Path, owners: &Owners) -> Result<()> {
    let size = Size::of(root)?;
    let file = File::create(image).map_err(io_error("create", image))?;
    file.set_len(size.image_bytes()).map_err(io_error("grow", image))?;
    let mut format = Command::new(tool("mke2fs"));
    // Never written, so that it needs neither a journal nor a reserve.
    format.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-O", "^has_journal", "-L", "root", "-N"]);
    format.arg(size.inodes().to_string()).args(["-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", "-d"]);
    run_tool(format.arg(root).arg(image))?;
    owners.write_into(image)?;
    file.sync_all().map_err(io_error("write", image))
}

/// What a directory tree takes.
#[derive(Default)]
struct Size {
    entries: u64,
    bytes: u64,
}

impl Size {
    fn of(root: &Path) -> Result<Self> {
        let mut size = Self::default();
        walk(root, &mut |_, metadata| {
            size.entries += 1;
            // Blocks of 4 KiB, at least one for a directory's or link's content.
            size.bytes += metadata.len().next_multiple_of(4096).max(4096);
            check_limits(root, size.entries, size.bytes)
        })?;
        Ok(size)
    }

    /// With slack for block maps and directories; the image is sparse, so that slack takes no space.
    fn image_bytes(&self) -> u64 {
        (self.bytes + self.bytes / 8 + self.inodes() * 512 + (32 << 20)).next_multiple_of(4096)
    }

    fn inodes(&self) -> u64 {
        self.entries + self.entries / 16 + 256
    }
}

fn check_limits(source: &Path, entries: u64, bytes: u64) -> Result<()> {
    let problem = if entries > MAX_ENTRIES {
        format!("has more than {MAX_ENTRIES} files")
    } else if bytes > MAX_BYTES {
        format!("has more than {} GiB", MAX_BYTES >> 30)
    } else {
        return Ok(());
    };
    Err(refused(source, &problem))
}

/// Calls `visit` with every path under `root`, relative to it, and never follows a link.
fn walk(root: &Path, visit: &mut dyn FnMut(&Path, &fs::Metadata) -> Result<()>) -> Result<()> {
    let mut open = vec![PathBuf::new()];
    while let Some(directory) = open.pop() {
        let path = root.join(&directory);
        for entry in fs::read_dir(&path).map_err(io_error("list", &path))? {
            let entry = entry.map_err(io_error("list", &path))?;
            let relative = directory.join(entry.file_name());
            let metadata = entry.path().symlink_metadata().map_err(io_error("inspect", &entry.path()))?;
            visit(&relative, &metadata)?;
            if metadata.is_dir() {
                open.push(relative);
            }
        }
    }
    Ok(())
}

fn refused(source: &Path, problem: &str) -> VmmError {
    VmmError::Unsupported {
        problem: format!("root file system {} {problem}", source.display()),
        hint: "a template's rootfs is a directory or tar archive of an ordinary Linux system".to_owned(),
    }
}

/// Owner and mode of a file on this host.
fn attributes(metadata: &fs::Metadata) -> owners::Attributes {
    owners::Attributes { uid: metadata.uid(), gid: metadata.gid(), mode: metadata.mode() & 0o7777 }
}

#[cfg(test)]
mod tests;
