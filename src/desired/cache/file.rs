//! The files of a cache: read only where nobody else can have written them, and replaced as a whole.

use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

/// Some hundred times what ten thousand apps take. A larger file is not ours.
const MAX_BYTES: u64 = 1 << 30;

/// The content of a file; nothing where it is not there, or not ours.
pub(super) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let found = file.metadata()?;
    let is_ours = found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o022 == 0;
    if !is_ours || found.len() > MAX_BYTES {
        return Ok(None);
    }
    let mut bytes = Vec::with_capacity(usize::try_from(found.len()).unwrap_or(0));
    file.read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Puts a file in the place of what was there. Whoever reads sees the old file or the new one.
pub(super) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let mut temporary = tempfile::NamedTempFile::new_in(directory)?;
    temporary.as_file().set_permissions(fs::Permissions::from_mode(0o600))?;
    temporary.write_all(content)?;
    temporary.persist(path)?;
    Ok(())
}

/// Adds to a file that ends at `end`, as its writer knows; to another one it is an error.
pub(super) fn append(path: &Path, end: u64, content: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().append(true).open(path)?;
    if file.seek(SeekFrom::End(0))? != end {
        return Err(io::Error::other("it was written by somebody else"));
    }
    file.write_all(content)
}

/// This very program, since any change of it may come to other results.
pub(super) fn program() -> Option<String> {
    let program = fs::metadata(std::env::current_exe().ok()?).ok()?;
    Some(format!("{} {} {}.{}", env!("CARGO_PKG_VERSION"), program.len(), program.mtime(), program.mtime_nsec()))
}
