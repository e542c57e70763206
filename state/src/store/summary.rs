//! One record about all others: how many there are and the sum of their checksums, as of which commit. It is written with
//! every commit, so that a record that is lost, old or doubled is noticed when the state is opened.

use serde::{Deserialize, Serialize};

use crate::envelope::{Checksum, check, encode_version};

/// The version of the layout as a whole. It grows when a program that knows only the older one could not read the new one.
pub(crate) const FORMAT: u32 = 1;

/// Sorts before, and apart from, the keys of every table.
pub(crate) const KEY: &[u8] = b"\0summary";

const VERSION: u8 = 1;

/// See the file's head.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) format: u32,
    /// Counts commits, from 1.
    pub(crate) generation: u64,
    pub(crate) records: u64,
    /// The exclusive or of the records' checksums.
    pub(crate) sum: Checksum,
}

impl Summary {
    /// The summary of nothing.
    pub(crate) fn empty(generation: u64) -> Self {
        Self { format: FORMAT, generation, records: 0, sum: Checksum::default() }
    }

    /// Takes one record's change into account.
    pub(crate) fn replace(&mut self, old: Option<Checksum>, new: Option<Checksum>) {
        if let Some(old) = old {
            self.sum.toggle(old);
            self.records = self.records.saturating_sub(1);
        }
        if let Some(new) = new {
            self.sum.toggle(new);
            self.records += 1;
        }
    }

    /// Key and envelope.
    pub(crate) fn row(&self) -> (Vec<u8>, Vec<u8>) {
        (KEY.to_vec(), encode_version(VERSION, KEY, self))
    }

    /// Reads the envelope.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        check(KEY, bytes).map_err(|e| e.to_string())?;
        // The envelope's header is checked, so the body begins where it says.
        serde_json::from_slice(&bytes[33..]).map_err(|e| e.to_string())
    }
}
