//! Makes identities: new ids from the caller's entropy, and digests of what was observed and planned.

use std::io::{self, BufWriter, Write};

use serde::Serialize;
use setpoint_schema::id::{BootNonce, DiskId, SandboxId, SpecDigest, sha256_hex};
use setpoint_schema::name::AppKey;
use setpoint_schema::observed::Observed;
use sha2::{Digest as _, Sha256};

/// Randomness for the ids of one plan. The same entropy gives the same ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entropy(pub [u8; 16]);

impl Entropy {
    /// An id for a new sandbox of `app` that no sandbox in the inventory has.
    pub(super) fn sandbox(self, app: &AppKey, observed: &Observed) -> SandboxId {
        self.unused(app, "sandbox", |id| observed.sandboxes.contains_key(&SandboxId(id.to_owned())), SandboxId)
    }

    /// An id for a new data disk of `app` that no disk in the inventory has.
    pub(super) fn disk(self, app: &AppKey, observed: &Observed) -> DiskId {
        self.unused(app, "disk", |id| observed.disks.contains_key(&DiskId(id.to_owned())), DiskId)
    }

    /// A nonce for the next boot of `sandbox`, which last booted as `previous`.
    pub(super) fn nonce(self, sandbox: &SandboxId, previous: Option<&BootNonce>) -> BootNonce {
        let previous = previous.map_or("", BootNonce::as_str);
        let hash = sha256_hex(&[&self.0, b"boot", sandbox.as_str().as_bytes(), previous.as_bytes()]);
        BootNonce(hash.chars().take(32).collect())
    }

    /// Two ids of eight digits may collide, so a taken one is passed over. The inventory is finite, so this ends.
    fn unused<T>(self, app: &AppKey, what: &str, taken: impl Fn(&str) -> bool, wrap: impl Fn(String) -> T) -> T {
        let key = app.to_string();
        let ids = (0_u64..).map(|attempt| {
            let hash = sha256_hex(&[&self.0, what.as_bytes(), key.as_bytes(), &attempt.to_le_bytes()]);
            format!("{}-{}", app.name, hash.get(..8).unwrap_or(&hash))
        });
        let mut ids = ids.skip_while(|id| taken(id));
        wrap(ids.next().unwrap_or_default())
    }
}

/// The digest of everything that was observed.
pub(super) fn digest_of_observation(observed: &Observed) -> SpecDigest {
    let Observed { host, limits, sandboxes, unrecorded, disks, apps } = observed;
    let sandboxes: Vec<_> = sandboxes.values().map(|s| (&s.record, &s.vm, &s.guest)).collect();
    let disks: Vec<_> = disks.values().collect();
    let apps: Vec<_> = apps.values().collect();
    digest(&(host, limits, sandboxes, unrecorded, disks, apps))
}

/// The digest of anything, hashed as it is written: a plan over a hundred thousand apps is never in memory as text.
pub(super) fn digest(value: &impl Serialize) -> SpecDigest {
    let mut hash = BufWriter::with_capacity(1 << 16, Hash(Sha256::new()));
    serde_json::to_writer(&mut hash, value).expect("hashing cannot fail, and all keys are text");
    let Hash(hash) = hash.into_inner().map_err(io::IntoInnerError::into_error).expect("hashing cannot fail");
    SpecDigest(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

struct Hash(Sha256);

impl Write for Hash {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
