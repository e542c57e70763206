//! The shim's own monitor connection, on which it hears why the VMM shuts down.

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use rustix::fd::BorrowedFd;
use serde::Deserialize;

/// QEMU's messages are a few hundred bytes long.
const MAX_LINE: usize = 64 * 1024;

/// Who asked the VMM to end, after QEMU's `ShutdownCause`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ShutdownCause {
    /// The guest powered itself off.
    GuestShutdown,
    /// The guest reset itself, as it does after a panic.
    GuestReset,
    /// A signal or a monitor command on the host.
    Host,
}

/// Listens for the event `SHUTDOWN`.
pub(super) struct Monitor {
    stream: Option<UnixStream>,
    line: Vec<u8>,
    cause: Option<ShutdownCause>,
}

impl Monitor {
    /// The command leaves the negotiation mode, in which no events are sent; its answer is read with the rest.
    pub fn new(mut stream: UnixStream) -> io::Result<Self> {
        stream.write_all(b"{\"execute\":\"qmp_capabilities\"}\n")?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream: Some(stream), line: Vec::new(), cause: None })
    }

    /// What to wait for, until the VMM has closed its end.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.stream.as_ref().map(UnixStream::as_fd)
    }

    /// Why the VMM shuts down, as far as it said.
    pub fn cause(&self) -> Option<ShutdownCause> {
        self.cause
    }

    /// Takes in what has arrived.
    pub fn read_available(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        while let Some(stream) = &mut self.stream {
            match stream.read(&mut buffer) {
                Ok(0) => self.stream = None,
                Ok(count) => self.take_in(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A VMM that was killed resets the connection.
                Err(_) => self.stream = None,
            }
        }
        Ok(())
    }

    fn take_in(&mut self, data: &[u8]) {
        for byte in data {
            if *byte == b'\n' {
                self.cause = shutdown_cause(&self.line).or(self.cause);
                self.line.clear();
            } else if self.line.len() < MAX_LINE {
                self.line.push(*byte);
            }
        }
    }
}

#[derive(Deserialize)]
struct Event {
    event: String,
    #[serde(default)]
    data: EventData,
}

#[derive(Deserialize, Default)]
struct EventData {
    #[serde(default)]
    reason: String,
}

fn shutdown_cause(line: &[u8]) -> Option<ShutdownCause> {
    let event: Event = serde_json::from_slice(line).ok()?;
    match (event.event.as_str(), event.data.reason.as_str()) {
        ("SHUTDOWN", "guest-shutdown") => Some(ShutdownCause::GuestShutdown),
        ("SHUTDOWN", "guest-reset" | "guest-panic") => Some(ShutdownCause::GuestReset),
        ("SHUTDOWN", _) => Some(ShutdownCause::Host),
        (_, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_shutdown_event_names_a_cause() {
        let greeting = br#"{"QMP": {"version": {}}}"#;
        let reset = br#"{"timestamp": {}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}"#;
        assert_eq!(shutdown_cause(greeting), None);
        assert_eq!(shutdown_cause(reset), Some(ShutdownCause::GuestReset));
    }
}
