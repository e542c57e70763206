//! The beginning of every connection between host and agent.
//!
//! A serial port has no connections: bytes that were meant for a host that has gone arrive at the next one, and the agent may
//! not even notice the change. So the host says who it is until it hears itself answered, and only then HTTP/2 begins:
//!
//! ```text
//! host                                   agent
//!  ── hello <nonce>, again and again ──▶  whatever came before is thrown away
//!  ◀── ready <nonce>, once ────────────   nothing more is said before the start
//!  ── start <nonce> ───────────────────▶
//!  ◀══ HTTP/2 ═════════════════════════▶
//! ```
//!
//! All lines have one length, so that recognising one takes a window of that length and nothing else.

use std::fmt;
use std::io::{self, Read as _};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, sleep_until};

use crate::limits;

const HELLO: &[u8; VERB] = b"setpoint/1 hello ";
const READY: &[u8; VERB] = b"setpoint/1 ready ";
const START: &[u8; VERB] = b"setpoint/1 start ";
const VERB: usize = 17;
const DIGITS: usize = 32;
const LINE: usize = VERB + DIGITS + 1;

/// How soon the host repeats its hello, doubled each time up to [`SLOWEST_REPEAT`]. The first may reach an agent that still takes
/// it for HTTP/2 of the old connection, as that of a machine that was restored a moment ago.
const FIRST_REPEAT: Duration = Duration::from_millis(5);
/// The longest wait between two hellos, for an agent that is still booting.
const SLOWEST_REPEAT: Duration = Duration::from_millis(250);

/// Distinguishes one connection from all others on the same link: 32 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ConnectionNonce([u8; DIGITS]);

impl ConnectionNonce {
    /// A fresh one, from the kernel's random numbers.
    ///
    /// # Errors
    /// `/dev/urandom` cannot be read.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; DIGITS / 2];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(Self::from_bytes(bytes))
    }

    /// The one that is spelled so.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.as_bytes().try_into().ok()?;
        is_hex(&digits).then_some(Self(digits))
    }

    /// The line with which a host starts what follows the handshake of this nonce.
    #[must_use]
    pub fn start(self) -> [u8; LINE] {
        line(START, &self.0)
    }

    /// The nonce that spells `bytes` in hex.
    #[must_use]
    pub fn from_bytes(bytes: [u8; DIGITS / 2]) -> Self {
        let hex = |half: u8| b"0123456789abcdef"[usize::from(half)];
        let mut digits = [0; DIGITS];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(bytes) {
            pair.copy_from_slice(&[hex(byte >> 4), hex(byte & 15)]);
        }
        Self(digits)
    }
}

impl fmt::Debug for ConnectionNonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

/// Why a connection did not begin.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The stream failed.
    #[error("could not shake hands with the guest agent")]
    Io(#[from] io::Error),
    /// The other side closed the stream.
    #[error("the guest agent's port was closed")]
    Closed,
    /// More than [`limits::HANDSHAKE_DISCARD`] bytes came, and none of them was the answer.
    #[error("the guest sent more than {} bytes instead of an answer", limits::HANDSHAKE_DISCARD)]
    Flood,
    /// The agent went on after its answer, which it must not before the start.
    #[error("the guest agent spoke out of turn")]
    OutOfTurn,
}

/// Begins a connection from the host's side. Waits for the agent as long as the caller lets it.
///
/// # Errors
/// The stream fails or ends, or the guest does not keep to the handshake.
pub async fn host<S>(stream: &mut S, nonce: ConnectionNonce) -> Result<(), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    host_until_ready(stream, nonce).await?;
    stream.write_all(&nonce.start()).await?;
    Ok(stream.flush().await?)
}

/// The same but for the start, which the caller sends with what it starts.
///
/// # Errors
/// The stream fails or ends, or the guest does not keep to the handshake.
pub async fn host_until_ready<S>(stream: &mut S, nonce: ConnectionNonce) -> Result<(), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let hello = line(HELLO, &nonce.0);
    let ready = line(READY, &nonce.0);
    let mut window = Window::default();
    let mut buffer = vec![0; 16 * 1024];
    let mut discarded = 0;
    let mut next_hello = Instant::now();
    let mut wait = FIRST_REPEAT;
    loop {
        // Both arms are safe to drop half-way: a read that did not complete has consumed nothing.
        let count = tokio::select! {
            biased;
            count = stream.read(&mut buffer) => count?,
            () = sleep_until(next_hello) => {
                stream.write_all(&hello).await?;
                stream.flush().await?;
                next_hello = Instant::now() + wait;
                wait = (wait * 2).min(SLOWEST_REPEAT);
                continue;
            }
        };
        if count == 0 {
            return Err(HandshakeError::Closed);
        }
        if let Some(at) = buffer[..count].iter().position(|byte| window.push(*byte) == Some(&ready)) {
            if at + 1 != count {
                return Err(HandshakeError::OutOfTurn);
            }
            return Ok(());
        }
        discarded += count;
        if discarded > limits::HANDSHAKE_DISCARD {
            return Err(HandshakeError::Flood);
        }
    }
}

/// Waits, from the agent's side, for a host to begin a connection, throwing away what an earlier one left behind.
///
/// # Errors
/// The stream fails or ends.
pub async fn agent<S>(stream: &mut S) -> Result<(), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    agent_known(stream, None).await
}

/// The same by an agent that is known to the host: a start with the nonce `known` needs no hello before it.
///
/// # Errors
/// The stream fails or ends.
pub async fn agent_known<S>(stream: &mut S, known: Option<ConnectionNonce>) -> Result<(), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut window = Window::default();
    let mut answered = known.map(|nonce| nonce.0);
    let mut buffer = vec![0; 4 * 1024];
    loop {
        // What follows the start is not the handshake's and must stay in the stream, so from the first answer on no more is read
        // than the next line may take. A host cannot have sent its start before that answer.
        let wanted = if answered.is_some() { window.missing() } else { buffer.len() };
        let count = stream.read(&mut buffer[..wanted]).await?;
        if count == 0 {
            return Err(HandshakeError::Closed);
        }
        for byte in &buffer[..count] {
            let Some((verb, nonce)) = window.push(*byte).and_then(parse) else { continue };
            if verb == HELLO && answered != Some(nonce) {
                stream.write_all(&line(READY, &nonce)).await?;
                stream.flush().await?;
                answered = Some(nonce);
            } else if verb == START && answered == Some(nonce) {
                return Ok(());
            }
        }
    }
}

fn line(verb: &[u8; VERB], nonce: &[u8; DIGITS]) -> [u8; LINE] {
    let mut line = [b'\n'; LINE];
    line[..VERB].copy_from_slice(verb);
    line[VERB..VERB + DIGITS].copy_from_slice(nonce);
    line
}

fn parse(line: &[u8; LINE]) -> Option<(&[u8; VERB], [u8; DIGITS])> {
    let (verb, rest) = line.split_first_chunk::<VERB>()?;
    let nonce = rest.first_chunk::<DIGITS>()?;
    is_hex(nonce).then_some((verb, *nonce))
}

fn is_hex(digits: &[u8; DIGITS]) -> bool {
    digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}

/// The last [`LINE`] bytes of a stream.
struct Window {
    bytes: [u8; LINE],
}

impl Default for Window {
    fn default() -> Self {
        Self { bytes: [0; LINE] }
    }
}

impl Window {
    /// Takes the next byte; the window's content where that byte ends a line.
    fn push(&mut self, byte: u8) -> Option<&[u8; LINE]> {
        self.bytes.copy_within(1.., 0);
        self.bytes[LINE - 1] = byte;
        (byte == b'\n').then_some(&self.bytes)
    }

    /// How many bytes may come before a line could end: as many as the longest beginning of one lacks that these bytes end in.
    fn missing(&self) -> usize {
        let begins = |begun: &[u8]| [HELLO, START].iter().any(|verb| begun.iter().zip(*verb).all(|(a, b)| a == b));
        (1..LINE).find(|missing| begins(&self.bytes[*missing..])).unwrap_or(LINE)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing step is a failing test")]

    use proptest::prelude::*;
    use tokio::io::duplex;

    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(future)
    }

    fn nonce(seed: u8) -> ConnectionNonce {
        ConnectionNonce::from_bytes([seed; 16])
    }

    /// Shakes hands over a pipe that first carries stale bytes in both directions, then sends a message each way.
    async fn meets_after(to_agent: Vec<u8>, to_host: Vec<u8>) {
        let (mut host_end, mut agent_end) = duplex(64);
        let hosting = async {
            host_end.write_all(&to_agent).await.unwrap();
            host(&mut host_end, nonce(7)).await.unwrap();
            host_end.write_all(b"PRI").await.unwrap();
            let mut answer = [0; 3];
            host_end.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"ack");
        };
        let serving = async {
            let (mut reading, mut writing) = tokio::io::split(&mut agent_end);
            // The stale bytes of the agent are written while it already listens, as a port's buffers would deliver them.
            writing.write_all(&to_host).await.unwrap();
            let mut both = tokio::io::join(&mut reading, &mut writing);
            agent(&mut both).await.unwrap();
            let mut first = [0; 3];
            both.read_exact(&mut first).await.unwrap();
            assert_eq!(&first, b"PRI");
            both.write_all(b"ack").await.unwrap();
        };
        tokio::join!(hosting, serving);
    }

    #[test]
    fn two_sides_meet_and_lose_no_byte_that_follows() {
        run(meets_after(Vec::new(), Vec::new()));
    }

    #[test]
    fn lines_of_a_dead_host_are_not_taken_for_this_one() {
        let mut stale = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        stale.extend(line(START, &nonce(1).0));
        stale.extend(line(HELLO, &nonce(1).0));
        run(meets_after(stale, line(READY, &nonce(1).0).to_vec()));
    }

    proptest! {
        #[test]
        fn two_sides_meet_whatever_an_earlier_connection_left(
            to_agent in prop::collection::vec(any::<u8>(), 0..200),
            // The pipe holds 64 bytes and nobody reads while these are written.
            to_host in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            run(meets_after(to_agent, to_host));
        }
    }

    #[test]
    fn a_flooding_guest_is_given_up() {
        run(async {
            let (mut host_end, mut agent_end) = duplex(64 * 1024);
            let flooding = tokio::spawn(async move { while agent_end.write_all(&[b'x'; 4096]).await.is_ok() {} });
            let error = host(&mut host_end, nonce(7)).await.unwrap_err();
            assert!(matches!(error, HandshakeError::Flood), "{error}");
            drop(host_end);
            flooding.await.unwrap();
        });
    }

    #[test]
    fn a_guest_that_speaks_before_the_start_is_refused() {
        run(async {
            let (mut host_end, mut agent_end) = duplex(1024);
            let mut answer = line(READY, &nonce(7).0).to_vec();
            answer.push(b'!');
            agent_end.write_all(&answer).await.unwrap();
            let error = host(&mut host_end, nonce(7)).await.unwrap_err();
            assert!(matches!(error, HandshakeError::OutOfTurn), "{error}");
        });
    }

    #[test]
    fn a_start_with_a_known_nonce_is_enough_whatever_came_before_it() {
        for stale in [&b""[..], b"setpoint/1 st", b"\nsetpoint/1 hello 0123\n", b"sets"] {
            run(async {
                let (mut host_end, mut agent_end) = duplex(1024);
                let sent = [stale, &line(START, &nonce(2).0), &nonce(7).start(), b"after"].concat();
                host_end.write_all(&sent).await.unwrap();
                agent_known(&mut agent_end, Some(nonce(7))).await.unwrap();
                let mut rest = [0; 5];
                agent_end.read_exact(&mut rest).await.unwrap();
                assert_eq!(&rest, b"after");
            });
        }
    }

    #[test]
    fn a_nonce_is_read_as_it_is_written() {
        assert_eq!(ConnectionNonce::parse(&"07".repeat(16)), Some(nonce(7)));
        assert_eq!(ConnectionNonce::parse(&"0G".repeat(16)), None);
        assert_eq!(ConnectionNonce::parse("07"), None);
    }

    #[test]
    fn a_closed_port_ends_the_wait_on_both_sides() {
        run(async {
            let (mut end, other) = duplex(1024);
            drop(other);
            assert!(agent(&mut end).await.is_err());
            assert!(host(&mut end, nonce(7)).await.is_err());
        });
    }

    #[test]
    fn a_host_that_replaces_another_unnoticed_is_answered() {
        run(async {
            let (mut host_end, mut agent_end) = duplex(1024);
            let serving = tokio::spawn(async move { agent(&mut agent_end).await });
            host_end.write_all(&line(HELLO, &nonce(1).0)).await.unwrap();
            host(&mut host_end, nonce(2)).await.unwrap();
            serving.await.unwrap().unwrap();
        });
    }
}
