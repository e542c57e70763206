//! TLS for a listener: a certificate and its key from files, read again when they change.
//!
//! The files are looked at when a client connects, at most once a second, so that whatever renews certificates has nobody to
//! tell. A renewed pair that cannot be used is logged, and the one before serves on.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};

use crate::report::chain;

/// Between two looks at the files.
const LOOK: Duration = Duration::from_secs(1);

/// A certificate and its key.
#[derive(Debug)]
pub struct Tls {
    cert: PathBuf,
    key: PathBuf,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    config: Arc<ServerConfig>,
    stamps: [Option<Stamp>; 2],
    looked_at: Instant,
}

/// What changes when a file is written anew or another takes its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    length: u64,
    modified: Option<SystemTime>,
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds nothing of what it should.
    #[error("could not read the TLS {what} {path}")]
    Read {
        /// `certificate` or `key`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: pem::Error,
    },
    /// The two do not go together, or are of a kind that is not supported.
    #[error("the TLS certificate {cert} cannot be used with the key {key}")]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// The cause.
        #[source]
        source: rustls::Error,
    },
}

impl TlsError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Read { .. } => {
                Some("`tls = { cert, key }` under [api] takes PEM files that the daemon may read".to_owned())
            }
            Self::Pair { .. } => {
                Some("the first certificate of the file must be the one that the key belongs to".to_owned())
            }
        }
    }
}

impl Tls {
    /// Reads the pair for the first time.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn load(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let stamps = [stamp(cert), stamp(key)];
        let current = Current { config: Arc::new(read(cert, key)?), stamps, looked_at: Instant::now() };
        Ok(Self { cert: cert.to_owned(), key: key.to_owned(), current: Mutex::new(current) })
    }

    /// What shakes hands with the next client.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.looked_at.elapsed() >= LOOK {
            self.renew(&mut current);
        }
        TlsAcceptor::from(Arc::clone(&current.config))
    }

    fn renew(&self, current: &mut Current) {
        current.looked_at = Instant::now();
        let stamps = [stamp(&self.cert), stamp(&self.key)];
        if stamps == current.stamps {
            return;
        }
        // Not looked at again before the next change: half of a pair that is being replaced is such a state.
        current.stamps = stamps;
        match read(&self.cert, &self.key) {
            Ok(config) => {
                tracing::info!(cert = %self.cert.display(), "TLS certificate was renewed");
                current.config = Arc::new(config);
            }
            Err(error) => {
                tracing::error!(error = %chain(&error), "renewed TLS certificate cannot be used: the one before serves on")
            }
        }
    }
}

fn read(cert: &Path, key: &Path) -> Result<ServerConfig, TlsError> {
    let unreadable = |what, path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::Read { what, path, source }
    };
    let chain = CertificateDer::pem_file_iter(cert).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(unreadable("certificate", cert))?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(unreadable("key", key))?;
    let mismatch = |source| TlsError::Pair { cert: cert.to_owned(), key: key.to_owned(), source };
    let provider = Arc::new(ring::default_provider());
    let versions = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config =
        versions.map_err(mismatch)?.with_no_client_auth().with_single_cert(chain, secret).map_err(mismatch)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn stamp(path: &Path) -> Option<Stamp> {
    let found = fs::metadata(path).ok()?;
    Some(Stamp { inode: found.ino(), length: found.len(), modified: found.modified().ok() })
}
