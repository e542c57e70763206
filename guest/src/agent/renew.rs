//! Becoming a machine of one's own: a restored machine has the clock, the random numbers and the names of the moment that was
//! saved, and so has every other machine that was restored from it. All of it is renewed before any process runs again.

use std::fmt;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::system::sethostname;
use rustix::time::{ClockId, Timespec, clock_settime};

use super::{network, sys};

/// What a restored machine is from now on.
#[derive(Clone, PartialEq, Eq)]
pub struct Renewal {
    /// The time, in nanoseconds since 1970.
    pub unix_nanos: u64,
    /// Random bytes that no other machine got.
    pub entropy: [u8; sys::ENTROPY],
    /// The machine's name.
    pub hostname: String,
    /// What `/etc/machine-id` holds: 32 hex digits.
    pub machine_id: String,
    /// The hardware address of its network card.
    pub mac: [u8; 6],
}

impl fmt::Debug for Renewal {
    /// Without the random bytes: whoever knows them knows the machine's keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { unix_nanos, entropy: _, hostname, machine_id, mac } = self;
        let mut out = f.debug_struct("Renewal");
        out.field("unix_nanos", unix_nanos).field("hostname", hostname).field("machine_id", machine_id);
        out.field("mac", mac).finish_non_exhaustive()
    }
}

/// Each step of renewing a machine.
pub trait Identity: fmt::Debug + Send + Sync {
    /// Sets the clock.
    ///
    /// # Errors
    /// The kernel refuses.
    fn set_clock(&self, unix_nanos: u64) -> io::Result<()>;

    /// Makes the random numbers differ from those of every other machine.
    ///
    /// # Errors
    /// The kernel refuses.
    fn reseed(&self, entropy: [u8; sys::ENTROPY]) -> io::Result<()>;

    /// Changes the machine's names: host name, machine id, hardware address.
    ///
    /// # Errors
    /// The kernel refuses, or a file cannot be written.
    fn rename(&self, renewal: &Renewal) -> io::Result<()>;
}

/// Carries a renewal out, in the one order that is safe. After an error the machine must not go on.
///
/// # Errors
/// The first step that failed, with its name.
pub fn renew(identity: &dyn Identity, renewal: &Renewal) -> Result<(), (&'static str, io::Error)> {
    identity.set_clock(renewal.unix_nanos).map_err(|error| ("set the clock", error))?;
    identity.reseed(renewal.entropy).map_err(|error| ("reseed the random numbers", error))?;
    identity.rename(renewal).map_err(|error| ("rename the machine", error))
}

/// The machine that this agent is the first process of.
#[derive(Debug)]
pub struct ThisMachine {
    hostname: NameFile,
    hosts: NameFile,
    machine_id: NameFile,
    random: File,
    socket: OwnedFd,
}

impl ThisMachine {
    /// The machine whose programs look for its names in `etc`. With [`Ahead::Yes`] the files of its names are made now.
    ///
    /// # Errors
    /// A file cannot be made.
    pub fn of(etc: &Path, ahead: Ahead) -> io::Result<Self> {
        let file = |name| NameFile::of(etc.join(name), ahead);
        let (hostname, hosts, machine_id) = (file("hostname")?, file("hosts")?, file("machine-id")?);
        // Open from the beginning: whoever is restored has the less to do.
        let random = File::options().write(true).open("/dev/random")?;
        Ok(Self { hostname, hosts, machine_id, random, socket: network::any_socket()? })
    }

    /// Gives it its name, for the kernel and for programs.
    ///
    /// # Errors
    /// The kernel refuses, or a file cannot be written.
    pub fn set_hostname(&self, hostname: &str) -> io::Result<()> {
        sethostname(hostname.as_bytes())?;
        self.hostname.write(&format!("{hostname}\n"))?;
        self.hosts.write(&format!("127.0.0.1 localhost {hostname}\n::1 localhost {hostname}\n"))
    }
}

/// Whether files are made before it is known what they will hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ahead {
    /// As good as empty, by a machine that is nobody's yet: whoever it becomes has only to write into them.
    Yes,
    /// When they are written.
    No,
}

/// A file that names the machine.
#[derive(Debug)]
struct NameFile {
    path: PathBuf,
    /// The file, where it was made ahead. Making one in an overlay is ten times the work of writing to it.
    made: Option<File>,
}

impl NameFile {
    fn of(path: PathBuf, ahead: Ahead) -> io::Result<Self> {
        let made = match ahead {
            Ahead::Yes => {
                let file = make(&path)?;
                // With a byte in it, it has its memory already.
                file.write_all_at(b"\n", 0)?;
                Some(file)
            }
            Ahead::No => None,
        };
        Ok(Self { path, made })
    }

    fn write(&self, content: &str) -> io::Result<()> {
        let Some((file, before)) = self.in_place()? else { return replace(&self.path, content) };
        file.write_all_at(content.as_bytes(), 0)?;
        if before.len() > content.len() as u64 { file.set_len(content.len() as u64) } else { Ok(()) }
    }

    /// The file that was made, unless something else has taken its place since.
    fn in_place(&self) -> io::Result<Option<(&File, Metadata)>> {
        let Some(file) = &self.made else { return Ok(None) };
        let made = file.metadata()?;
        match fs::symlink_metadata(&self.path) {
            Ok(there) => Ok(((there.dev(), there.ino()) == (made.dev(), made.ino())).then_some((file, made))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Identity for ThisMachine {
    fn set_clock(&self, unix_nanos: u64) -> io::Result<()> {
        let seconds = i64::try_from(unix_nanos / 1_000_000_000).map_err(io::Error::other)?;
        let nanos = i64::try_from(unix_nanos % 1_000_000_000).map_err(io::Error::other)?;
        Ok(clock_settime(ClockId::Realtime, Timespec { tv_sec: seconds, tv_nsec: nanos })?)
    }

    fn reseed(&self, entropy: [u8; sys::ENTROPY]) -> io::Result<()> {
        sys::reseed(&self.random, entropy)
    }

    fn rename(&self, renewal: &Renewal) -> io::Result<()> {
        self.set_hostname(&renewal.hostname)?;
        self.machine_id.write(&format!("{}\n", renewal.machine_id))?;
        network::set_hardware_address(&self.socket, renewal.mac)
    }
}

/// Writes a file in place of whatever the template has there: a link could lead anywhere.
///
/// # Errors
/// It cannot be written.
pub fn replace(path: &Path, content: &str) -> io::Result<()> {
    make(path)?.write_all_at(content.as_bytes(), 0)
}

/// An empty file in place of whatever was there.
fn make(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    File::options().write(true).create_new(true).open(path)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing step is a failing test")]

    use super::*;

    #[test]
    fn a_file_that_was_made_ahead_is_written_in_place_and_holds_nothing_else() {
        let etc = tempfile::tempdir().unwrap();
        let path = etc.path().join("hostname");
        let file = NameFile::of(path.clone(), Ahead::Yes).unwrap();
        let made = fs::metadata(&path).unwrap();
        for name in ["a-long-name\n", "blog\n"] {
            file.write(name).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), name);
        }
        assert_eq!(fs::metadata(&path).unwrap().ino(), made.ino());
    }

    #[test]
    fn what_has_taken_a_names_place_is_replaced_and_a_link_not_followed() {
        let etc = tempfile::tempdir().unwrap();
        let (path, elsewhere) = (etc.path().join("hosts"), etc.path().join("elsewhere"));
        let file = NameFile::of(path.clone(), Ahead::Yes).unwrap();
        fs::write(&elsewhere, "kept").unwrap();
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        file.write("blog\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "blog\n");
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "kept");
        fs::remove_file(&path).unwrap();
        file.write("again\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "again\n");
    }
}
