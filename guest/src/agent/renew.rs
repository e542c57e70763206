//! Becoming a machine of one's own: a restored machine has the clock, the random numbers and the names of the moment that was
//! saved, and so has every other machine that was restored from it. All of it is renewed before any process runs again.

use std::fmt;
use std::fs::{self, File};
use std::io;
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
    /// The root directory of the app's side.
    pub root: PathBuf,
}

impl Identity for ThisMachine {
    fn set_clock(&self, unix_nanos: u64) -> io::Result<()> {
        let seconds = i64::try_from(unix_nanos / 1_000_000_000).map_err(io::Error::other)?;
        let nanos = i64::try_from(unix_nanos % 1_000_000_000).map_err(io::Error::other)?;
        Ok(clock_settime(ClockId::Realtime, Timespec { tv_sec: seconds, tv_nsec: nanos })?)
    }

    fn reseed(&self, entropy: [u8; sys::ENTROPY]) -> io::Result<()> {
        sys::reseed(File::options().write(true).open("/dev/random")?, entropy)
    }

    fn rename(&self, renewal: &Renewal) -> io::Result<()> {
        sethostname(renewal.hostname.as_bytes())?;
        let etc = self.root.join("etc");
        write_hostname(&etc, &renewal.hostname)?;
        replace(&etc.join("machine-id"), &format!("{}\n", renewal.machine_id))?;
        network::set_hardware_address(renewal.mac)
    }
}

/// Writes the machine's name where programs look for it.
///
/// # Errors
/// A file cannot be written.
pub fn write_hostname(etc: &Path, hostname: &str) -> io::Result<()> {
    replace(&etc.join("hostname"), &format!("{hostname}\n"))?;
    replace(&etc.join("hosts"), &format!("127.0.0.1 localhost {hostname}\n::1 localhost {hostname}\n"))
}

/// Writes a file in place of whatever the template has there: a link could lead anywhere.
///
/// # Errors
/// It cannot be written.
pub fn replace(path: &Path, content: &str) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    fs::write(path, content)
}
