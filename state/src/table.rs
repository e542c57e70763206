//! The typed tables: which key and value each holds, and how its older versions are read.

use std::fmt::Display;

use serde::Serialize;
use serde::de::DeserializeOwned;
use setpoint_schema::id::{DiskId, SandboxId, SnapshotId};
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::{AppRecord, DiskRecord, SandboxRecord, SnapshotRecord};

pub use crate::envelope::Upgrade;
use crate::envelope::current_version;
use crate::record::{EventId, EventRecord, JournalBase, JournalEntry, JournalRecord, Meta, PlanRecord, RevisionRecord};
use crate::store::history::PlanFile;

/// A kind of record.
pub trait Table: 'static {
    /// Its name on disk: lower-case letters and hyphens.
    const NAME: &'static str;
    /// How a record of version `i + 1` becomes one of version `i + 2`. The current version is the length plus one: changing the
    /// value's type in a way that older bodies do not parse as means one more upgrade here.
    const UPGRADES: &'static [Upgrade] = &[];
    /// What a record is found by.
    type Key: Key;
    /// What a record holds.
    type Value: Serialize + DeserializeOwned;
}

/// A table that callers write freely; the others are logs, which only grow and are trimmed.
pub trait Inventory: Table {}

/// A key, ordered on disk as in memory.
pub trait Key: Display + Ord + Sized {
    /// Its bytes on disk.
    fn to_bytes(&self) -> Vec<u8>;
    /// The key of these bytes, unless they are not one.
    fn from_bytes(bytes: &[u8]) -> Option<Self>;
}

macro_rules! tables {
    ($( $(#[$doc:meta])* $vis:vis $table:ident = $name:literal: $key:ty => $value:ty; )*) => {
        $(
            $(#[$doc])*
            #[derive(Debug)]
            $vis enum $table {}

            impl Table for $table {
                const NAME: &'static str = $name;
                type Key = $key;
                type Value = $value;
            }
        )*

        /// Every table with the newest version of its records that this program reads.
        pub(crate) fn known_tables() -> Vec<(&'static str, u8)> {
            vec![$( ($table::NAME, current_version::<$table>()) ),*]
        }
    };
}

tables! {
    /// The inventory of sandboxes.
    pub Sandboxes = "sandboxes": SandboxId => SandboxRecord;
    /// The inventory of data disks.
    pub Disks = "disks": DiskId => DiskRecord;
    /// What is remembered of apps.
    pub Apps = "apps": AppKey => AppRecord;
    /// The inventory of snapshots.
    pub Snapshots = "snapshots": SnapshotId => SnapshotRecord;
    /// The newest revisions, by the order of their attempts.
    pub Revisions = "revisions": u64 => RevisionRecord;
    /// The newest events.
    pub Events = "events": EventId => EventRecord;
    /// The newest entries of the step journal.
    pub Journal = "journal": u64 => JournalRecord;
    /// Steps begun and not ended, by their journal entry.
    pub(crate) OpenSteps = "open-steps": u64 => JournalEntry;
    /// The newest plans.
    pub Plans = "plans": u64 => PlanRecord;
    /// What the plans' files hold.
    pub(crate) PlanFiles = "plan-files": u64 => PlanFile;
    /// What there is one of.
    pub(crate) Metas = "meta": Only => Meta;
    /// Where the trimmed journal begins.
    pub(crate) JournalBases = "journal-base": Only => JournalBase;
}

impl Inventory for Sandboxes {}
impl Inventory for Disks {}
impl Inventory for Apps {}
impl Inventory for Snapshots {}

/// The key of the single record of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Only;

impl Display for Only {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("record")
    }
}

impl Key for Only {
    fn to_bytes(&self) -> Vec<u8> {
        Vec::new()
    }
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.is_empty().then_some(Self)
    }
}

impl Key for SandboxId {
    fn to_bytes(&self) -> Vec<u8> {
        self.as_str().as_bytes().to_vec()
    }
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        std::str::from_utf8(bytes).ok().map(|text| Self(text.into()))
    }
}

impl Key for DiskId {
    fn to_bytes(&self) -> Vec<u8> {
        self.as_str().as_bytes().to_vec()
    }
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        std::str::from_utf8(bytes).ok().map(|text| Self(text.into()))
    }
}

impl Key for SnapshotId {
    fn to_bytes(&self) -> Vec<u8> {
        self.0.clone().into_bytes()
    }
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        String::from_utf8(bytes.to_vec()).ok().map(Self)
    }
}

impl Key for AppKey {
    fn to_bytes(&self) -> Vec<u8> {
        format!("{}/{}", self.team, self.name).into_bytes()
    }
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        std::str::from_utf8(bytes).ok()?.parse().ok()
    }
}

impl Key for u64 {
    fn to_bytes(&self) -> Vec<u8> {
        self.to_be_bytes().to_vec()
    }
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self::from_be_bytes)
    }
}

impl Key for EventId {
    fn to_bytes(&self) -> Vec<u8> {
        self.as_ulid().to_bytes().to_vec()
    }
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(ulid::Ulid::from_bytes).map(Self::from)
    }
}

/// The full key of a record on disk.
pub(crate) fn full_key<T: Table>(key: &T::Key) -> Vec<u8> {
    let mut bytes = prefix::<T>();
    bytes.extend(key.to_bytes());
    bytes
}

/// What the full keys of a table begin with, and no others.
pub(crate) fn prefix<T: Table>() -> Vec<u8> {
    let mut bytes = T::NAME.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// The table's name and the key within it.
pub(crate) fn split_key(full: &[u8]) -> Option<(&str, &[u8])> {
    let end = full.iter().position(|byte| *byte == 0)?;
    Some((std::str::from_utf8(&full[..end]).ok()?, &full[end + 1..]))
}

/// How a record is called in messages.
pub(crate) fn describe<T: Table>(key: &T::Key) -> String {
    format!("{}/{key}", T::NAME)
}
