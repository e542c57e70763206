//! Tells the service manager how the daemon is: `sd_notify(3)`, which is a datagram with lines of text.
//!
//! Without a service manager, nothing is told. What fails here is the manager's loss and never the daemon's.

use std::ffi::OsString;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

/// The service manager, if there is one. Clones tell the same one.
#[derive(Debug, Clone, Default)]
pub struct Manager {
    link: Option<Arc<Link>>,
    /// A daemon that says nothing for this long is ended.
    watchdog: Option<Duration>,
}

#[derive(Debug)]
struct Link {
    socket: UnixDatagram,
    address: SocketAddr,
}

impl Manager {
    /// The one that the environment names.
    #[must_use]
    pub fn from_env() -> Self {
        let link = std::env::var_os("NOTIFY_SOCKET").and_then(|name| match Link::to(name) {
            Ok(link) => Some(Arc::new(link)),
            Err(error) => {
                tracing::warn!(%error, "the service manager cannot be told anything");
                None
            }
        });
        let text = |name| std::env::var(name).ok();
        let ours = text("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
        let watchdog = text("WATCHDOG_USEC").and_then(|time| time.parse().ok()).filter(|time| ours && *time > 0);
        Self { watchdog: watchdog.map(Duration::from_micros).filter(|_| link.is_some()), link }
    }

    /// The daemon serves, or does so again after a reload.
    pub fn ready(&self) {
        self.tell("READY=1");
    }

    /// How it is, in a line for people.
    pub fn status(&self, line: &str) {
        let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        self.tell(&format!("STATUS={line}"));
    }

    /// It reads its configuration again; [`Self::ready`] ends that.
    pub fn reloading(&self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.tv_sec * 1_000_000 + now.tv_nsec / 1_000));
    }

    /// It ends.
    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// It does what it is there for.
    pub fn beat(&self) {
        self.tell("WATCHDOG=1");
    }

    /// How often [`Self::beat`] is expected, with room for one that comes late; absent when nobody waits for it.
    #[must_use]
    pub fn beat_interval(&self) -> Option<Duration> {
        self.watchdog.map(|time| time / 3)
    }

    fn tell(&self, text: &str) {
        let Some(link) = &self.link else { return };
        if let Err(error) = link.socket.send_to_addr(text.as_bytes(), &link.address) {
            tracing::debug!(%error, text, "the service manager was not told");
        }
    }
}

impl Link {
    fn to(name: OsString) -> std::io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        // A manager that does not read must not hold the loop up.
        socket.set_nonblocking(true)?;
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            name => SocketAddr::from_pathname(OsString::from_vec(name.to_vec()))?,
        };
        Ok(Self { socket, address })
    }
}
