//! The virtio-serial port that joins the agent to its host.
//!
//! The port has no connections of its own, but the kernel tells whether anybody holds the host's end: reading without one gives
//! end of file, and the descriptor polls as hung up. A runtime takes "hung up" for final; here it ends when the next host comes.
//! So the port sits in an epoll instance of its own, and the runtime waits for that.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::sys;

/// The port's name on the host's command line.
pub const PORT_NAME: &str = "setpoint.agent.0";

/// How long the kernel may take to find the port after its driver was loaded.
const APPEARS: Duration = Duration::from_secs(20);

/// The port.
#[derive(Debug)]
pub struct Link {
    port: OwnedFd,
    /// Edge-triggered, so that it is readable only after something about the port changed.
    changes: AsyncFd<OwnedFd>,
}

/// One host's use of the port, from its coming to its leaving.
#[derive(Debug)]
pub struct Connection {
    link: Arc<Link>,
}

impl Link {
    /// Opens the port. It opens once.
    ///
    /// # Errors
    /// There is no such port, or it is in use.
    pub fn open() -> io::Result<Arc<Self>> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let port = rustix::fs::open(find_port(Path::new("/sys/class/virtio-ports"))?, flags, Mode::empty())?;
        let changes = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let events = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(&changes, &port, epoll::EventData::new_u64(0), events)?;
        Ok(Arc::new(Self { port, changes: sys::readable(changes)? }))
    }

    /// Resolves when a host holds the other end.
    ///
    /// # Errors
    /// The port cannot be asked.
    pub async fn host(self: &Arc<Self>) -> io::Result<Connection> {
        while self.is_hung_up()? {
            let mut ready = self.changes.readable().await?;
            self.take_changes()?;
            ready.clear_ready();
        }
        Ok(Connection { link: self.clone() })
    }

    fn is_hung_up(&self) -> io::Result<bool> {
        let mut ports = [PollFd::new(&self.port, PollFlags::IN)];
        poll(&mut ports, Some(&Timespec::default()))?;
        Ok(ports[0].revents().contains(PollFlags::HUP))
    }

    /// Waits until something about the port changed.
    fn poll_change(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut ready = ready!(self.changes.poll_read_ready(cx))?;
        self.take_changes()?;
        ready.clear_ready();
        Poll::Ready(Ok(()))
    }

    /// Makes the epoll instance quiet again until the next change.
    fn take_changes(&self) -> io::Result<()> {
        let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }];
        epoll::wait(self.changes.as_fd(), events.as_mut_slice(), Some(&Timespec::default()))?;
        Ok(())
    }
}

/// Reading and writing try the port first and wait only if it has nothing to give or take, so that neither half loses a change
/// that the other one took. Both are polled by one task.
impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            match rustix::io::read(&self.link.port, buffer.initialize_unfilled()) {
                Ok(count) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::AGAIN) => ready!(self.link.poll_change(cx))?,
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            match rustix::io::write(&self.link.port, data) {
                Ok(count) => return Poll::Ready(Ok(count)),
                // Without a host, writing would wait for the next one.
                Err(Errno::AGAIN) if self.link.is_hung_up()? => {
                    return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
                }
                Err(Errno::AGAIN) => ready!(self.link.poll_change(cx))?,
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The device node of the port called [`PORT_NAME`]. Its number depends on which other devices there are.
fn find_port(class: &Path) -> io::Result<PathBuf> {
    let deadline = Instant::now() + APPEARS;
    loop {
        for entry in fs::read_dir(class).into_iter().flatten().flatten() {
            let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if name.trim() == PORT_NAME {
                return Ok(Path::new("/dev").join(entry.file_name()));
            }
        }
        if Instant::now() >= deadline {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("no virtio-serial port {PORT_NAME}")));
        }
        // The driver learns its ports' names by and by, from the device; nothing that could be waited for announces it.
        std::thread::sleep(Duration::from_millis(5));
    }
}
