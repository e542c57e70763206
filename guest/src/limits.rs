//! Every bound of the protocol, with its reason. Both sides use these, so that neither sends what the other refuses.

use std::time::Duration;

/// One decoded message. A status with hundreds of workers, each with a full reason, fits; nothing else comes near.
pub const MESSAGE: usize = 256 * 1024;

/// A message to or from a machine that is nobody's yet. The longest has a few names and a reason in it.
pub const FRAME: usize = 16 * 1024;

/// File content, log output or port data in one message: large enough to amortise a message's cost, small enough that a busy
/// stream does not hold up a status for long.
pub const CHUNK: usize = 64 * 1024;

/// A reason or name inside a status: a person reads it in a table.
pub const TEXT: usize = 1024;

/// A path in the workspace, as long as Linux allows a path to be.
pub const PATH: usize = 4096;

/// The target of a symbolic link, as long as Linux allows it to be.
pub const LINK_TARGET: usize = 4095;

/// The encoded entries of one manifest page. With the longest path an entry still fits under [`MESSAGE`] beside these.
pub const MANIFEST_PAGE: usize = 64 * 1024;

/// The entries of a whole manifest: the source refuses repositories with more files.
pub const MANIFEST_ENTRIES: usize = 200_000;

/// The workers in a status, far above what a microVM can run.
pub const WORKERS: usize = 256;

/// The names of directories that a copy of a disk leaves out: people write them.
pub const LEFT_OUT: usize = 64;

/// Each output stream of an executed command; what comes after is dropped.
pub const EXEC_OUTPUT: usize = 1024 * 1024;

/// What a host reads and throws away before the agent's answer to its handshake: everything that one dead connection can have
/// left in its windows and in QEMU's buffers, several times over.
pub const HANDSHAKE_DISCARD: usize = 16 * 1024 * 1024;

/// HTTP/2 window of one stream: the round trip takes milliseconds under emulation, so that a few chunks keep the link busy.
pub const STREAM_WINDOW: u32 = 256 * 1024;

/// HTTP/2 window of the connection: what a host's stalled reader can make the guest hold, and the reverse.
pub const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// Streams at a time: concurrent requests through the ingress, plus a few of the daemon's own.
pub const STREAMS: u32 = 256;

/// How often each side asks whether the other is still there.
pub const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// How long the other side may take to answer that. A guest under emulation with a busy host needs some of it.
pub const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a call may take that only looks something up or sets something off.
pub const CALL: Duration = Duration::from_secs(20);

/// How long standing still may take: the end of a sync, writing everything to the disk, stopping all processes.
pub const FREEZE: Duration = Duration::from_secs(60);

/// How long growing a file system may take.
pub const GROW: Duration = Duration::from_secs(60);

/// How long bringing a workspace up to date may take: a gigabyte over the slowest link, emulated.
pub const SYNC: Duration = Duration::from_secs(600);

/// `text` with control characters replaced and cut to [`TEXT`] bytes, fit to be shown and stored.
#[must_use]
pub fn bounded_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(TEXT));
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if out.len() + c.len_utf8() > TEXT {
            break;
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_text_is_cut_at_a_character_and_has_no_control_characters() {
        let text = format!("\u{1b}[31m{}", "ä".repeat(TEXT));
        let bounded = bounded_text(&text);
        assert!(bounded.len() <= TEXT && bounded.starts_with(" [31mä"));
    }
}
