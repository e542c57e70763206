//! What parent and child say to each other: JSON behind its length, first the variables, then text for text.

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::engine::Failure;

/// The longest message: the largest text, should JSON have to escape all of it.
pub(super) const MAX_FRAME_BYTES: usize = 8 << 20;

/// What the parent asks.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// Use these variables from now on.
    Vars(serde_json::Value),
    /// Render this.
    Render(String),
}

/// What the child answers, one for each request.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    Ready,
    Rendered(String),
    Failed(Failure),
}

impl From<Result<String, Failure>> for Reply {
    fn from(result: Result<String, Failure>) -> Self {
        match result {
            Ok(text) => Self::Rendered(text),
            Err(failure) => Self::Failed(failure),
        }
    }
}

pub(super) fn write(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(&body)?;
    to.flush()
}

pub(super) fn read<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_FRAME_BYTES {
        return Err(io::Error::other("the message is too long"));
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}
