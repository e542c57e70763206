//! Why there is no answer, and what to do about it.

use std::io;
use std::path::PathBuf;

use tokio_rustls::rustls::{self, CertificateError};

/// Why there is no answer; the cause is the source.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("could not reach a daemon at {address}")]
    Unreachable {
        /// Where.
        address: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The two could not agree on TLS.
    #[error("could not make a TLS connection to {address}")]
    Tls {
        /// Where.
        address: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A credential that was named cannot be used.
    #[error("could not read the {what} {path}")]
    Credential {
        /// `token file` or `certificate authorities`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The daemon wants a token, or another one.
    #[error("the daemon at {address} {brought}")]
    Unauthorized {
        /// Where.
        address: String,
        /// What it was shown.
        brought: Brought,
    },
    /// The connection broke.
    #[error("connection to the daemon at {address} broke")]
    Broken {
        /// Where.
        address: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Somebody answers who is no daemon of ours.
    #[error("what listens at {address} is not a Setpoint status API: {what}")]
    Stranger {
        /// Where.
        address: String,
        /// How that shows.
        what: String,
    },
    /// The daemon refused.
    #[error("{0}")]
    Refused(String),
    /// The answer is not what this version reads.
    #[error("could not read the daemon's answer")]
    Unreadable(#[from] serde_json::Error),
}

/// What a daemon that refuses was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Brought {
    /// No token.
    Nothing,
    /// A token.
    Token,
}

impl std::fmt::Display for Brought {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Nothing => "asks for a token",
            Self::Token => "does not accept this token",
        })
    }
}

impl ClientError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Unreachable { address, source } => unreachable_hint(address, source),
            Self::Tls { source, .. } => return tls_hint(source),
            Self::Broken { .. } | Self::Refused(_) => return None,
            Self::Credential { .. } => {
                "name a file that can be read with --token-file or --ca, a token in the one and PEM in the other"
            }
            Self::Unauthorized { brought: Brought::Nothing, .. } => {
                "pass --token-file FILE or set SETPOINT_TOKEN; `setpoint token new NAME` makes a token"
            }
            Self::Unauthorized { brought: Brought::Token, .. } => {
                "compare with `tokens` under [api] of the daemon's configuration; `setpoint token new NAME` makes another"
            }
            Self::Stranger { .. } => {
                "the status API is on port 7878 unless `listen` under [api] says otherwise; with TLS it is https://"
            }
            Self::Unreadable(_) => "the daemon is of another version: compare `setpoint version`",
        };
        Some(hint.to_owned())
    }
}

fn unreachable_hint(address: &str, source: &io::Error) -> &'static str {
    match (address.starts_with("unix:"), source.kind()) {
        (true, io::ErrorKind::PermissionDenied) => "the socket is open to the daemon's user and group: join that group",
        (_, io::ErrorKind::InvalidInput) => "write --server as HOST:PORT, http://HOST:PORT, https://HOST or unix:/PATH",
        (_, _) => "start one with `setpoint run`, or name another with --server HOST:PORT",
    }
}

fn tls_hint(source: &io::Error) -> Option<String> {
    let cause = source.get_ref()?.downcast_ref::<rustls::Error>()?;
    let hint = match cause {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "pass the authority that signed the daemon's certificate with --ca FILE"
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "name the daemon with --server https://NAME as its certificate does",
        rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "renew the daemon's certificate, and compare the clocks"
        }
        rustls::Error::InvalidCertificate(_) => {
            "a daemon needs a certificate of its own, no authority's: with its name as subjectAltName, and CA:FALSE"
        }
        rustls::Error::InvalidMessage(_) => "it does not speak TLS there: try http://",
        _ => return None,
    };
    Some(hint.to_owned())
}
