//! The memory of microVMs at rest: which pages of a VMM's process were written, how they are kept in files, and how they come
//! back into another process.
//!
//! This room knows processes, mappings, pages and files. It knows nothing of monitors, sandboxes or guests; the drivers tell it
//! which process holds a guest's memory and when that memory stands still.
//!
//! A guest's memory is an image (`image.rs`): an immutable *base*, which many processes map privately and share as long as they do not
//! write, and the chunks that differ from it, which lie in *packs*. A chunk that did not change since the last image is not
//! written again: its entry points into the pack that holds it already. `docs/snapshots.md` describes the files.
//!
//! ```text
//! <dir>/bases/<id>.ram     a guest's whole memory, sparse, mapped by VMMs
//!       bases/<id>.sum     the checksums of its chunks
//!       packs/<id>.pack    pages that differ from a base
//!       images/<id>.image  which base, and which chunk lies where
//! ```

mod base;
mod image;
mod merge;
mod pages;
mod process;
mod restore;
mod save;
mod store;

use std::io;
use std::path::{Path, PathBuf};

pub(crate) use image::Image;
pub(crate) use merge::Merge;
pub(crate) use process::{Captured, GuestRam, Mapped, Room};
pub(crate) use restore::Loading;
pub(crate) use save::Pages;
pub(crate) use store::Store;

/// Why a memory could not be kept or brought back.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A file operation failed.
    #[error("could not {operation} {path}")]
    Io {
        /// What was tried, as `write`.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file does not hold what was written into it.
    #[error("{path} is damaged: {what}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// How that shows.
        what: &'static str,
    },
    /// The kernel does not let this process look into the VMM's memory.
    #[error("may not look into the memory of process {pid}")]
    Forbidden {
        /// Which process.
        pid: i32,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The process does not have the mapping that it was started with.
    #[error("process {pid} maps no guest memory of {bytes} bytes")]
    NoMapping {
        /// Which process.
        pid: i32,
        /// How much memory the guest has.
        bytes: u64,
    },
    /// Whoever asked for it does not want it any more.
    #[error("saving was cancelled")]
    Cancelled,
}

/// The result of everything here.
pub(crate) type Result<T> = std::result::Result<T, MemoryError>;

/// Wraps the cause of a failed file operation.
fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MemoryError {
    let path = path.to_owned();
    move |source| MemoryError::Io { operation, path, source }
}
