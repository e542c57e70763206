//! The host's end of a microVM's port, which is held while its memory is read.
//!
//! A stopped VMM still serves its port: it takes what the host sends and puts it into buffers in the guest's memory, and it goes on
//! with what the guest had sent once the host reads (QEMU's `virtio-serial-bus.c` asks neither in `write_to_port` nor in
//! `flush_queued_data` whether the machine runs, as its network cards do; an opened or closed connection is a message to the guest, too).
//! One byte between the saving of the devices and the copying of the pages, and the two do not belong together: the queue's places are
//! in the devices' state. So while both are taken nobody sends, reads, connects or leaves:
//!
//! ```text
//! nobody sends ─▶ QEMU has taken what was sent ─▶ nobody reads ─▶ stop … devices and memory are taken ─▶ all go on
//! ```

use std::collections::HashMap;
use std::io;
use std::mem::take;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::vm_dir::{AGENT_SOCKET, VmDir};
use crate::driver::{Result, VmmError};
use crate::sys;

/// How long a guest may take to make room for what was sent already.
const TAKING: Duration = Duration::from_secs(2);
/// Between two looks at that, of which no event tells. Hardly ever a second one is needed.
const LOOK: Duration = Duration::from_millis(1);

/// The ports of this process by their microVM's directory: whoever connects and whoever saves find the same one.
static PORTS: LazyLock<Mutex<HashMap<PathBuf, Weak<Port>>>> = LazyLock::new(Mutex::default);

/// One microVM's port.
#[derive(Debug, Default)]
struct Port {
    state: Mutex<State>,
    /// Something about who holds it, or is connecting, has changed.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    held: Held,
    connecting: usize,
    /// Connections that are open, by number.
    open: HashMap<u64, Arc<UnixStream>>,
    opened: u64,
    /// Those that were to be closed while it was held.
    leaving: Vec<Arc<UnixStream>>,
    waiting: Vec<Waker>,
}

/// What nobody may do now.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Held {
    /// All goes on.
    #[default]
    Nothing,
    /// Sending, connecting and leaving.
    Sending,
    /// Reading, too.
    All,
}

/// Holds a port until it is dropped.
#[derive(Debug)]
pub(super) struct Hold {
    port: Arc<Port>,
}

/// A connection to the agent.
#[derive(Debug)]
pub(super) struct Connection {
    port: Arc<Port>,
    number: u64,
    stream: Arc<UnixStream>,
}

impl VmDir {
    /// Connects to the agent, once nobody holds its port.
    pub(super) async fn connect_agent(&self) -> io::Result<Connection> {
        let port = Port::of(self);
        port.begin_connecting().await;
        let stream = self.connect(AGENT_SOCKET).await;
        let mut state = port.state();
        state.connecting -= 1;
        let connected = stream.map(|stream| {
            let (number, stream) = (state.opened, Arc::new(stream));
            state.opened += 1;
            state.open.insert(number, Arc::clone(&stream));
            Connection { port: Arc::clone(&port), number, stream }
        });
        drop(state);
        port.changed.notify_waiters();
        connected
    }

    /// Lets nobody near the port until what this gives is dropped. The guest runs yet: it must take what it was sent already.
    pub(super) async fn hold_port(&self) -> Result<Hold> {
        let hold = Hold { port: Port::of(self) };
        hold.port.state().held = Held::Sending;
        let until = Instant::now() + TAKING;
        while !hold.port.is_taken().map_err(|error| untaken(self, &error.to_string()))? {
            if Instant::now() > until {
                return Err(untaken(self, "it takes nothing from its port"));
            }
            sleep(LOOK).await;
        }
        hold.port.state().held = Held::All;
        Ok(hold)
    }
}

impl Port {
    fn of(vm: &VmDir) -> Arc<Self> {
        let mut ports = PORTS.lock().unwrap_or_else(PoisonError::into_inner);
        ports.retain(|_, port| port.strong_count() > 0);
        let known = ports.get(vm.path()).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let port = Arc::default();
            ports.insert(vm.path().to_owned(), Arc::downgrade(&port));
            port
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn begin_connecting(&self) {
        loop {
            // Before it is looked at, so that no change falls between.
            let changed = self.changed.notified();
            {
                let mut state = self.state();
                if state.held == Held::Nothing {
                    state.connecting += 1;
                    return;
                }
            }
            changed.await;
        }
    }

    /// Whether nobody is about to connect, and QEMU has read all that was sent.
    fn is_taken(&self) -> io::Result<bool> {
        let state = self.state();
        if state.connecting > 0 {
            return Ok(false);
        }
        for stream in state.open.values().chain(&state.leaving) {
            if sys::unread(stream.as_fd())? > 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl State {
    /// Has the task wait if this is what it may not do now.
    fn may(&mut self, when: impl Fn(Held) -> bool, cx: &Context<'_>) -> Poll<()> {
        if when(self.held) {
            return Poll::Ready(());
        }
        if !self.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            self.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.port.state();
        state.held = Held::Nothing;
        let (waiting, leaving) = (take(&mut state.waiting), take(&mut state.leaving));
        drop(state);
        drop(leaving);
        waiting.into_iter().for_each(Waker::wake);
        self.port.changed.notify_waiters();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut state = self.port.state();
        let stream = state.open.remove(&self.number);
        if state.held != Held::Nothing {
            state.leaving.extend(stream);
        }
    }
}

impl Connection {
    /// Sends while the port is locked, so that nobody who holds it by then can miss it.
    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        send: impl Fn(&UnixStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut state = self.port.state();
            std::task::ready!(state.may(|held| held == Held::Nothing, cx));
            match send(&self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
            drop(state);
            std::task::ready!(self.stream.poll_write_ready(cx))?;
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut state = self.port.state();
            std::task::ready!(state.may(|held| held != Held::All, cx));
            match self.stream.try_read(buffer.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(count) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
            }
            drop(state);
            std::task::ready!(self.stream.poll_read_ready(cx))?;
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send(cx, |stream| stream.try_write(data))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, |stream| stream.try_write_vectored(data))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// A connection ends with its drop, which waits for who holds the port.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn untaken(vm: &VmDir, problem: &str) -> VmmError {
    VmmError::Vmm { vmm: "qemu", problem: format!("cannot keep the memory of {} now: {problem}", vm.name()) }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing step is a failing test")]

    use setpoint_schema::id::SandboxId;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixListener;
    use tokio::time::timeout;

    use super::*;

    /// A directory with a port, what listens there as QEMU does, and a connection.
    async fn port() -> (tempfile::TempDir, VmDir, UnixListener, Connection, UnixStream) {
        let dir = tempfile::tempdir().unwrap();
        let vm = VmDir::of(dir.path(), &SandboxId("blog-1".into()));
        vm.create().unwrap();
        let listener = UnixListener::bind(vm.file(AGENT_SOCKET)).unwrap();
        let ours = vm.connect_agent().await.unwrap();
        let (qemus, _) = listener.accept().await.unwrap();
        (dir, vm, listener, ours, qemus)
    }

    /// Whether it is not done within a time in which it would be done if it could.
    async fn waits<T>(work: impl Future<Output = T>) -> bool {
        timeout(Duration::from_millis(50), work).await.is_err()
    }

    #[tokio::test]
    async fn nobody_sends_reads_connects_or_leaves_while_a_port_is_held() {
        let (_dir, vm, listener, mut ours, mut qemus) = port().await;
        ours.write_all(b"before").await.unwrap();
        let mut before = [0; 6];
        qemus.read_exact(&mut before).await.unwrap();
        qemus.write_all(b"answer").await.unwrap();
        let hold = vm.hold_port().await.unwrap();
        assert!(waits(ours.write_all(b"meanwhile")).await && waits(ours.read_u8()).await);
        let other = tokio::spawn({
            let vm = vm.clone();
            async move { vm.connect_agent().await }
        });
        drop(ours);
        assert!(waits(qemus.read_u8()).await && waits(listener.accept()).await, "something reached the machine");
        drop(hold);
        // It has left without having read what was there.
        assert!(matches!(qemus.read(&mut before).await, Ok(0) | Err(_)));
        listener.accept().await.unwrap();
        other.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn who_waits_for_a_held_port_goes_on_when_it_is_let_go() {
        let (_dir, vm, _listener, mut ours, mut qemus) = port().await;
        qemus.write_all(b"x").await.unwrap();
        let hold = vm.hold_port().await.unwrap();
        let echo = tokio::spawn(async move {
            let byte = ours.read_u8().await.unwrap();
            ours.write_u8(byte).await.unwrap();
        });
        assert!(waits(qemus.read_u8()).await);
        drop(hold);
        assert_eq!(qemus.read_u8().await.unwrap(), b'x');
        echo.await.unwrap();
    }

    #[tokio::test]
    async fn a_port_is_not_held_before_what_was_sent_is_taken() {
        let (_dir, vm, _listener, mut ours, mut qemus) = port().await;
        ours.write_all(b"on its way").await.unwrap();
        let mut taken = [0; 10];
        let read = async {
            sleep(Duration::from_millis(30)).await;
            qemus.read_exact(&mut taken).await
        };
        let (hold, read) = tokio::join!(vm.hold_port(), read);
        assert_eq!((hold.is_ok(), read.unwrap()), (true, 10));
        drop(hold);
        ours.write_all(b"nobody reads it").await.unwrap();
        let error = vm.hold_port().await.unwrap_err();
        assert!(error.to_string().contains("takes nothing"), "{error}");
        ours.write_all(b"and all goes on").await.unwrap();
    }
}
