//! `[api]`: where the status API listens, and whom it answers.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use setpoint_schema::name::HostName;

use super::ConfigError;
use crate::http::Token;

/// `[api]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Api {
    /// The address of the status API.
    pub listen: SocketAddr,
    /// A Unix socket to answer on as well; its file's permissions say who may ask.
    pub socket: Option<PathBuf>,
    /// Host names to answer under, besides `localhost` and addresses.
    pub hosts: BTreeSet<HostName>,
    /// Speak TLS on the address, with this pair.
    pub tls: Option<TlsFiles>,
    /// Who may ask on the address; everybody who reaches it, if nobody is named.
    pub tokens: Arc<[Token]>,
    /// Listen on any address even so.
    pub insecure: bool,
}

/// A certificate and its key, as PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The certificate, followed by those between it and its authority.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Default for Api {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7878)),
            socket: None,
            hosts: BTreeSet::new(),
            tls: None,
            tokens: Arc::from([]),
            insecure: false,
        }
    }
}

impl Api {
    /// Refuses what would show the API to a network by oversight: on an address that others reach, without tokens everybody
    /// reads, and without TLS everybody on the way reads the tokens.
    ///
    /// # Errors
    /// What it lacks.
    pub fn check(&self) -> Result<(), ConfigError> {
        let mut names = BTreeSet::new();
        if let Some(twice) = self.tokens.iter().find(|token| !names.insert(&token.name)) {
            return Err(ConfigError::SameTokenName(twice.name.clone()));
        }
        let lacks = match (&self.tls, self.tokens.is_empty()) {
            (Some(_), false) => return Ok(()),
            (Some(_), true) => "a token",
            (None, false) => "TLS",
            (None, true) => "TLS and a token",
        };
        if self.insecure || self.listen.ip().to_canonical().is_loopback() {
            return Ok(());
        }
        Err(ConfigError::Exposed { address: self.listen, lacks })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use super::*;

    fn api(text: &str) -> Result<(), String> {
        let api: Api = toml::from_str(text).map_err(|error| error.to_string())?;
        api.check().map_err(|error| error.to_string())
    }

    #[test]
    fn an_address_that_others_reach_wants_tls_and_a_token_or_the_word_for_it() {
        let tls = "tls = { cert = '/c', key = '/k' }";
        let token = format!("tokens = [{{ name = 'ci', sha256 = '{}' }}]", "0a".repeat(32));
        let open = "listen = '0.0.0.0:7878'";
        assert_eq!(api(""), Ok(()));
        assert_eq!(api("listen = '[::1]:80'"), Ok(()));
        let lacks = |what: &str| Err(format!("the status API would listen on 0.0.0.0:7878 without {what}"));
        assert_eq!(api(open), lacks("TLS and a token"));
        assert_eq!(api(&format!("{open}\n{tls}")), lacks("a token"));
        assert_eq!(api(&format!("{open}\n{token}")), lacks("TLS"));
        assert_eq!(api(&format!("{open}\n{tls}\n{token}")), Ok(()));
        assert_eq!(api(&format!("{open}\ninsecure = true")), Ok(()));
    }

    #[test]
    fn tokens_are_checked_where_they_stand() {
        let error = api("tokens = [{ name = 'ci', sha256 = 'beef' }]").unwrap_err();
        assert!(error.contains("not a SHA-256"), "{error}");
        let twice = format!("[[tokens]]\nname = 'ci'\nsha256 = '{}'\n", "00".repeat(32)).repeat(2);
        assert_eq!(api(&twice).unwrap_err(), "two tokens of the status API are called ci");
    }
}
