//! What host and agent say to each other while a machine is nobody's yet: a few short messages, before HTTP/2 begins on the same stream.
//!
//! ```text
//! host                                        agent
//!  ── start <nonce> ────────────────────────▶  of a handshake, or of the machine itself
//!  ── length (4 bytes, big end first), request ▶
//!  ◀─ length, reply ─────────────────────────  became: from here on the stream is the agent's, as after a handshake
//! ```
//!
//! Every machine that begins from a template goes through this before anything else, and an emulated guest has run none of its code
//! before: HTTP/2 for two messages would be a third of the work until then.

use std::io;

use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::limits;

/// Why a frame could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream failed or ended.
    #[error("could not talk to the guest's blank machine")]
    Io(#[from] io::Error),
    /// It says that it is longer than any may be.
    #[error("a frame of {length} bytes was announced, more than {}", limits::FRAME)]
    TooLong {
        /// What it says.
        length: usize,
    },
    /// It is no message.
    #[error("a frame is not a message")]
    NoMessage(#[source] prost::DecodeError),
}

/// Writes a message at once.
///
/// # Errors
/// The stream fails.
pub async fn write<S: AsyncWrite + Unpin>(stream: &mut S, message: &impl Message) -> io::Result<()> {
    write_after(stream, &[], message).await
}

/// Writes some bytes and a message at once: each write is an interrupt of the other side.
///
/// # Errors
/// The stream fails.
pub async fn write_after<S: AsyncWrite + Unpin>(
    stream: &mut S,
    before: &[u8],
    message: &impl Message,
) -> io::Result<()> {
    let length = u32::try_from(message.encoded_len()).map_err(io::Error::other)?;
    let mut bytes = [before, &length.to_be_bytes()].concat();
    message.encode(&mut bytes).map_err(io::Error::other)?;
    stream.write_all(&bytes).await?;
    stream.flush().await
}

/// Reads a message, and nothing behind it.
///
/// # Errors
/// The stream fails or ends, or what comes is not one.
pub async fn read<M: Message + Default>(stream: &mut (impl AsyncRead + Unpin)) -> Result<M, FrameError> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let length = u32::from_be_bytes(length) as usize;
    if length > limits::FRAME {
        return Err(FrameError::TooLong { length });
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    M::decode(&bytes[..]).map_err(FrameError::NoMessage)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing step is a failing test")]

    use crate::proto::{BlankReply, blank_reply::Answer};

    use super::*;

    fn read_from(mut bytes: &[u8]) -> (Result<BlankReply, FrameError>, usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let read = runtime.block_on(read(&mut bytes));
        (read, bytes.len())
    }

    #[test]
    fn a_frame_is_read_whole_and_what_follows_is_left() {
        let reply = BlankReply { answer: Some(Answer::Refused("no".to_owned())) };
        let mut bytes = Vec::new();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(write_after(&mut bytes, b"", &reply)).unwrap();
        bytes.extend(b"PRI");
        let (read, left) = read_from(&bytes);
        assert_eq!((read.unwrap(), left), (reply, 3));
    }

    #[test]
    fn an_endless_frame_is_refused_before_any_of_it_is_read() {
        let (read, left) = read_from(&[0xff, 0xff, 0xff, 0xff, 1, 2]);
        assert!(matches!(read, Err(FrameError::TooLong { .. })));
        assert_eq!(left, 2);
    }

    #[test]
    fn a_frame_that_is_cut_short_or_is_no_message_is_an_error() {
        assert!(matches!(read_from(&[0, 0, 0, 9, 1]).0, Err(FrameError::Io(_))));
        assert!(matches!(read_from(&[0, 0, 0, 2, 0xff, 0xff]).0, Err(FrameError::NoMessage(_))));
    }
}
