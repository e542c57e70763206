//! Data disks: sparse raw files with an ext4 file system, which grow and never shrink.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use setpoint_schema::id::DiskId;
use setpoint_schema::quantity::ByteSize;

use super::files::{beside, io_error, remove_if_there};
use crate::driver::{Result, VmmError};

const SUFFIX: &str = ".img";

/// Below this mke2fs leaves no room for a journal.
pub(super) const SMALLEST: ByteSize = ByteSize::mib(8);

/// What the guest's agent would make on a new disk before it answers, which takes an emulated guest longer than the host.
/// The agent makes what is missing; the app's user is its `APP`.
const LAYOUT: &str = "\
mkdir workspace
set_inode_field workspace uid 1000
set_inode_field workspace gid 1000
mkdir .setpoint
set_inode_field .setpoint mode 040700
mkdir .setpoint/stage
mkdir .setpoint/logs
";

/// What [`Disks::ensure`] found to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ensured {
    /// There was none.
    Created,
    /// It was there, at least as long as wanted.
    Kept,
    /// It was shorter and is still; the caller grows it, through the VMM where one uses it.
    TooShort,
}

/// The directory of data disks.
#[derive(Debug, Clone)]
pub(super) struct Disks {
    directory: PathBuf,
}

impl Disks {
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Where a disk is, or would be.
    pub fn path(&self, disk: &DiskId) -> PathBuf {
        self.directory.join(format!("{disk}{SUFFIX}"))
    }

    /// The length of a disk.
    pub fn size(&self, disk: &DiskId) -> Result<Option<ByteSize>> {
        let path = self.path(disk);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(Some(ByteSize::bytes(metadata.len()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("inspect", &path)(error)),
        }
    }

    /// Every disk, in order.
    pub fn list(&self) -> Result<Vec<(DiskId, ByteSize)>> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error("list", &self.directory)(error)),
        };
        let mut disks = Vec::new();
        for entry in entries {
            let entry = entry.map_err(io_error("list", &self.directory))?;
            let Some(id) = entry.file_name().to_str().and_then(|name| name.strip_suffix(SUFFIX)).map(ToOwned::to_owned)
            else {
                continue;
            };
            let length = entry.metadata().map_err(io_error("inspect", &entry.path()))?.len();
            disks.push((DiskId(id.into()), ByteSize::bytes(length)));
        }
        disks.sort();
        Ok(disks)
    }

    /// Makes a disk where there is none.
    pub fn ensure(&self, disk: &DiskId, size: ByteSize) -> Result<Ensured> {
        match self.size(disk)? {
            Some(present) if present >= size => Ok(Ensured::Kept),
            Some(_) => Ok(Ensured::TooShort),
            None => self.create(&self.path(disk), size.max(SMALLEST)).map(|()| Ensured::Created),
        }
    }

    /// Makes a disk as a copy of another file, sparse as that is. What is there under its name is replaced.
    pub fn copy(&self, disk: &DiskId, from: &Path) -> Result<()> {
        fs::create_dir_all(&self.directory).map_err(io_error("create", &self.directory))?;
        copy_file(from, &self.path(disk), None)
    }

    /// Makes a disk where there is none, as a copy of another file, at least `size` long. Its file system grows inside the guest.
    pub fn ensure_from(&self, disk: &DiskId, from: &Path, size: ByteSize) -> Result<()> {
        if self.size(disk)?.is_some() {
            return Ok(());
        }
        fs::create_dir_all(&self.directory).map_err(io_error("create", &self.directory))?;
        copy_file(from, &self.path(disk), Some(size))
    }

    /// Lengthens a disk that no VMM uses. Its file system grows inside the guest.
    pub fn grow(&self, disk: &DiskId, size: ByteSize) -> Result<()> {
        let path = self.path(disk);
        let file = File::options().write(true).open(&path).map_err(io_error("open", &path))?;
        file.set_len(size.as_bytes()).and_then(|()| file.sync_all()).map_err(io_error("grow", &path))
    }

    /// Deletes a disk.
    pub fn delete(&self, disk: &DiskId) -> Result<()> {
        let path = self.path(disk);
        remove_if_there(&path).map_err(io_error("delete", &path))
    }

    /// A disk appears under its name only when its file system is whole.
    fn create(&self, path: &Path, size: ByteSize) -> Result<()> {
        fs::create_dir_all(&self.directory).map_err(io_error("create", &self.directory))?;
        make_disk(path, size)
    }
}

/// Makes a file of this length with an empty file system, which is no sandbox's.
pub(super) fn make_disk(path: &Path, size: ByteSize) -> Result<()> {
    let temporary = beside(path, "new");
    let file = File::create(&temporary).map_err(io_error("create", &temporary))?;
    file.set_len(size.as_bytes()).map_err(io_error("grow", &temporary))?;
    let mut format = Command::new(tool("mke2fs"));
    // Tables and journal are zero in a sparse file, so that nothing needs writing. Blocks of 4 KiB whatever the size,
    // so that a small disk can grow large.
    format.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-L", "data", "-E"]);
    format.arg("lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0").arg(&temporary);
    run_tool(&mut format)?;
    debugfs(&temporary, LAYOUT)?;
    file.sync_all().map_err(io_error("write", &temporary))?;
    fs::rename(&temporary, path).map_err(io_error("rename", &temporary))
}

/// Copies a whole file, which appears under its name only when all of it is on the disk, and at least as long as `size` says.
pub(super) fn copy_file(from: &Path, to: &Path, size: Option<ByteSize>) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let temporary = beside(to, "new");
    let copy = || {
        let source = File::open(from)?;
        let target = File::options().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
        copy_sparse(&source, &target)?;
        if let Some(size) = size.filter(|size| target.metadata().is_ok_and(|target| target.len() < size.as_bytes())) {
            target.set_len(size.as_bytes())?;
        }
        target.sync_all()?;
        fs::rename(&temporary, to)?;
        to.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    };
    copy().map_err(io_error("copy to", to))
}

/// Gives back the room of what reads as zeros and takes some: QEMU reserves it where it copies a hole. What cannot be given back stays.
pub(super) fn release_holes(file: &File) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
    let length = file.metadata()?.len();
    let mut at = 0;
    while at < length {
        // At the end of a file there is a hole in any case.
        let begin = seek(file, SeekFrom::Hole(at))?;
        let end = match seek(file, SeekFrom::Data(begin)) {
            Ok(end) => end,
            // Nothing but a hole up to the end.
            Err(rustix::io::Errno::NXIO) => length,
            Err(error) => return Err(error.into()),
        };
        if begin < end {
            match fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, begin, end - begin) {
                Ok(()) => {}
                Err(rustix::io::Errno::OPNOTSUPP) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        at = end;
    }
    Ok(())
}

/// Copies all that is no hole; by reference where the file system can.
fn copy_sparse(source: &File, target: &File) -> io::Result<()> {
    use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
    let length = source.metadata()?.len();
    if ioctl_ficlone(target, source).is_ok() {
        return Ok(());
    }
    target.set_len(length)?;
    let mut at = 0;
    while at < length {
        let begin = match seek(source, SeekFrom::Data(at)) {
            Ok(begin) => begin,
            // Nothing but a hole up to the end.
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(source, SeekFrom::Hole(begin))?;
        let (mut from, mut to) = (begin, begin);
        while from < end {
            let count = usize::try_from(end - from).unwrap_or(usize::MAX);
            // Both positions move along.
            if copy_file_range(source, Some(&mut from), target, Some(&mut to), count)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        at = end;
    }
    Ok(())
}

/// A program of e2fsprogs. Its directory is not on every user's PATH.
pub(super) fn tool(name: &str) -> PathBuf {
    ["/usr/sbin", "/sbin", "/usr/bin"]
        .map(|dir| Path::new(dir).join(name))
        .into_iter()
        .find(|path| path.is_file())
        .unwrap_or_else(|| name.into())
}

/// Runs a program to its end.
pub(super) fn run_tool(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| VmmError::Unsupported {
        problem: format!("{name} cannot run: {error}"),
        hint: "install the package e2fsprogs".to_owned(),
    })?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let problem = format!("failed: {}", complaint.trim().lines().last().unwrap_or_default());
    Err(io_error("format", Path::new(&name))(io::Error::other(problem)))
}

/// Has debugfs change an image.
pub(super) fn debugfs(image: &Path, script: &str) -> Result<()> {
    let program = tool("debugfs");
    let mut debugfs = Command::new(&program)
        .args(["-w", "-f", "-"])
        .arg(image)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(io_error("run", &program))?;
    let mut complaints = debugfs.stderr.take().expect("it is piped");
    // Complaints are read beside the writing: neither side waits for the other's full pipe.
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        complaints.read_to_string(&mut text).map(|_| text)
    });
    let mut input = debugfs.stdin.take().expect("it is piped");
    let sent = input.write_all(script.as_bytes());
    drop(input);
    let text = reader.join().map_err(|_| io::Error::other("its output could not be read"));
    let status = debugfs.wait().map_err(io_error("run", &program))?;
    sent.map_err(io_error("run", &program))?;
    let text = text.and_then(|text| text).map_err(io_error("run", &program))?;
    // The first line is its version. It goes on after a command that failed, and says so here alone.
    match text.lines().skip(1).find(|line| !line.trim().is_empty()) {
        None if status.success() => Ok(()),
        complaint => {
            let complaint = complaint.unwrap_or("debugfs failed").to_owned();
            Err(io_error("change files in", image)(io::Error::other(complaint)))
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing step is a failing test")]

    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn disks() -> (tempfile::TempDir, Disks, DiskId) {
        let dir = tempfile::tempdir().unwrap();
        let disks = Disks::new(dir.path().join("disks"));
        (dir, disks, DiskId("blog-1".into()))
    }

    #[test]
    fn a_new_disk_is_sparse_and_its_file_system_is_clean() {
        let (_dir, disks, id) = disks();
        assert_eq!(disks.ensure(&id, ByteSize::gib(5)).unwrap(), Ensured::Created);
        let metadata = fs::metadata(disks.path(&id)).unwrap();
        assert_eq!(metadata.len(), 5 << 30);
        assert!(metadata.blocks() * 512 < 16 << 20, "{} blocks", metadata.blocks());
        let check = Command::new(tool("e2fsck")).arg("-fn").arg(disks.path(&id)).output().unwrap();
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    }

    #[test]
    fn a_new_disk_has_the_directories_that_the_agent_wants() {
        let (_dir, disks, id) = disks();
        disks.ensure(&id, ByteSize::mib(64)).unwrap();
        let mut debugfs = Command::new(tool("debugfs"));
        let listed = debugfs.args(["-R", "ls -l"]).arg(disks.path(&id)).output().unwrap();
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let fields = |name: &str| -> Vec<String> {
            let line = listed.lines().find(|line| line.ends_with(&format!(" {name}"))).unwrap();
            line.split_ascii_whitespace().skip(1).map(ToOwned::to_owned).collect()
        };
        let (workspace, state) = (fields("workspace"), fields(".setpoint"));
        assert_eq!([&workspace[0], &workspace[2], &workspace[3]], ["40755", "1000", "1000"], "{listed}");
        assert_eq!([&state[0], &state[2], &state[3]], ["40700", "0", "0"], "{listed}");
    }

    #[test]
    fn what_reads_as_zeros_takes_no_room_after_it_was_released() {
        let (dir, _, _) = disks();
        let path = dir.path().join("reserved.img");
        let file = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 8192], 1 << 20).unwrap();
        let rest = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 2 << 20, 6 << 20);
        file.set_len(9 << 20).unwrap();
        release_holes(&file).unwrap();
        file.sync_all().unwrap();
        let metadata = file.metadata().unwrap();
        assert_eq!((metadata.len(), metadata.blocks() * 512 < 64 << 10), (9 << 20, true), "{rest:?} {metadata:?}");
        let content = fs::read(&path).unwrap();
        assert_eq!(content.iter().filter(|byte| **byte == 7).count(), 8192);
    }

    #[test]
    fn a_disk_grows_and_never_shrinks() {
        let (_dir, disks, id) = disks();
        disks.ensure(&id, ByteSize::mib(64)).unwrap();
        assert_eq!(disks.ensure(&id, ByteSize::mib(32)).unwrap(), Ensured::Kept);
        assert_eq!(disks.size(&id).unwrap(), Some(ByteSize::mib(64)));
        assert_eq!(disks.ensure(&id, ByteSize::mib(128)).unwrap(), Ensured::TooShort);
        disks.grow(&id, ByteSize::mib(128)).unwrap();
        assert_eq!(disks.list().unwrap(), [(id, ByteSize::mib(128))]);
    }

    #[test]
    fn an_unfinished_disk_is_not_listed_and_not_in_the_way() {
        let (_dir, disks, id) = disks();
        fs::create_dir_all(&disks.directory).unwrap();
        fs::write(beside(&disks.path(&id), "new"), "half").unwrap();
        assert!(disks.list().unwrap().is_empty());
        assert_eq!(disks.ensure(&id, ByteSize::mib(16)).unwrap(), Ensured::Created);
        disks.delete(&id).unwrap();
        assert_eq!(disks.size(&id).unwrap(), None);
    }
}
