//! What a client brings along: a token, and whom it trusts. Neither is ever on a command line or in a message.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::header::HeaderValue;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::error::ClientError;

/// The variable that holds a token itself.
const TOKEN_VARIABLE: &str = "SETPOINT_TOKEN";

/// Where a token and the trusted authorities are to be found.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    token_file: Option<PathBuf>,
    ca: Option<PathBuf>,
}

/// A token's text, which shows nowhere.
pub(super) struct Secret(HeaderValue);

impl Credentials {
    /// A file with a token, else `SETPOINT_TOKEN`; a file with authorities, else the system's.
    #[must_use]
    pub fn new(token_file: Option<PathBuf>, ca: Option<PathBuf>) -> Self {
        Self { token_file, ca }
    }

    /// As the environment says, for commands without flags for it.
    #[must_use]
    pub fn from_env() -> Self {
        let path = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Self::new(path("SETPOINT_TOKEN_FILE"), path("SETPOINT_CA"))
    }

    /// The token, if there is one.
    pub(super) fn token(&self) -> Result<Option<Secret>, ClientError> {
        let text = match &self.token_file {
            Some(path) => Some(std::fs::read_to_string(path).map_err(unusable("token file", path))?),
            None => std::env::var(TOKEN_VARIABLE).ok(),
        };
        let Some(text) = text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        let path = self.token_file.clone().unwrap_or_else(|| PathBuf::from(TOKEN_VARIABLE));
        let header = HeaderValue::try_from(format!("Bearer {text}"));
        let mut header = header.map_err(|_| unusable("token file", &path)("it does not hold a token"))?;
        header.set_sensitive(true);
        Ok(Some(Secret(header)))
    }

    /// What makes TLS connections.
    pub(super) fn connector(&self) -> Result<TlsConnector, ClientError> {
        let roots = match &self.ca {
            Some(path) => roots_of(path).map_err(unusable("certificate authorities", path))?,
            None => system_roots(),
        };
        let provider = Arc::new(ring::default_provider());
        let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = versions.expect("ring supports the default versions of TLS");
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

impl Secret {
    pub(super) fn as_header(&self) -> &HeaderValue {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

fn roots_of(path: &Path) -> Result<RootCertStore, Cause> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path)? {
        roots.add(certificate?)?;
    }
    if roots.is_empty() { Err("it holds no certificate".into()) } else { Ok(roots) }
}

/// The system's authorities. Those that cannot be read are passed over: they vouch for nobody.
fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

fn unusable<E: Into<Cause>>(what: &'static str, path: &Path) -> impl FnOnce(E) -> ClientError + use<E> {
    let path = path.to_owned();
    move |source| ClientError::Credential { what, path, source: source.into() }
}
