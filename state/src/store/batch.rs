//! Writes that are carried out all together or not at all.

use crate::envelope::{decode_unchecked, encode};
use crate::error::{Result, StateError};
use crate::record::NewEvent;
use crate::store::engine::Write;
use crate::table::{Inventory, Table, describe, full_key};

/// The largest record, envelope included. Larger ones would be kept in files that the engine never frees.
pub const VALUE_LIMIT: usize = 64 * 1024;

/// Writes for `Store::commit`.
#[derive(Debug, Default)]
pub struct Batch {
    pub(crate) writes: Vec<Write>,
    pub(crate) events: Vec<NewEvent>,
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes one record, new or in place of an older one.
    ///
    /// # Errors
    /// [`StateError::TooLarge`] over [`VALUE_LIMIT`], [`StateError::Unreadable`] when the value does not survive its own JSON.
    pub fn put<T: Inventory>(&mut self, key: &T::Key, value: &T::Value) -> Result<&mut Self> {
        self.writes.push(put::<T>(key, value)?);
        Ok(self)
    }

    /// Removes one record, if there is one.
    pub fn remove<T: Inventory>(&mut self, key: &T::Key) -> &mut Self {
        self.writes.push(remove::<T>(key));
        self
    }

    /// Records an event. It gets its identity and its time when the batch is carried out.
    pub fn event(&mut self, event: NewEvent) -> &mut Self {
        self.events.push(event);
        self
    }
}

/// Records that are written with a turn of the journal.
#[derive(Debug, Default)]
pub struct Rows(pub(crate) Vec<Write>);

impl Rows {
    /// Writes one record, as [`Batch::put`] does.
    ///
    /// # Errors
    /// See [`Batch::put`].
    pub fn put<T: Inventory>(&mut self, key: &T::Key, value: &T::Value) -> Result<&mut Self> {
        self.0.push(put::<T>(key, value)?);
        Ok(self)
    }
}

/// The write of one record.
pub(crate) fn put<T: Table>(key: &T::Key, value: &T::Value) -> Result<Write> {
    let full = full_key::<T>(key);
    let bytes = encode::<T>(&full, value);
    if bytes.len() > VALUE_LIMIT {
        return Err(StateError::TooLarge { what: describe::<T>(key), size: bytes.len(), limit: VALUE_LIMIT });
    }
    // A value whose JSON is not read back would be damage the next time that it is looked at.
    decode_unchecked::<T>(&bytes)
        .map_err(|why| StateError::Unreadable { what: describe::<T>(key), why: why.to_string() })?;
    Ok((full, Some(bytes)))
}

/// The removal of one record.
pub(crate) fn remove<T: Table>(key: &T::Key) -> Write {
    (full_key::<T>(key), None)
}
