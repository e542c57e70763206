//! Who may ask: bearer tokens, of which the configuration holds only hashes.
//!
//! A token is 256 random bits, so that one round of SHA-256 hides it: there is no dictionary to go through.

use std::fmt;
use std::sync::Arc;

use axum::body::Body;
use hyper::header::{AUTHORIZATION, CACHE_CONTROL, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Request, Response, StatusCode};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::problem::{self, problem};

/// What every token begins with, so that scanners for lost secrets can find one.
const PREFIX: &str = "setpoint_";

/// A token that is accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// What people call it.
    pub name: TokenName,
    /// What its text hashes to.
    pub sha256: TokenDigest,
}

/// A token's name: letters, digits, `-`, `_` and `.`, at most 64 of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TokenName(String);

/// The SHA-256 of a token's text.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TokenDigest([u8; 32]);

impl Token {
    /// A new token, and its text, which is kept nowhere else.
    ///
    /// # Errors
    /// When the kernel gives no randomness.
    pub fn generate(name: TokenName) -> std::io::Result<(Self, String)> {
        let mut secret = [0; 32];
        let filled = rustix::rand::getrandom(&mut secret, rustix::rand::GetRandomFlags::empty())?;
        assert_eq!(filled, secret.len(), "the kernel fills up to 256 bytes at once");
        let text = format!("{PREFIX}{}", hex(&secret));
        Ok((Self { name, sha256: TokenDigest::of(&text) }, text))
    }
}

impl TokenName {
    /// Checks a name.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(name: impl Into<String>) -> Result<Self, &'static str> {
        let name = name.into();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if (1..=64).contains(&name.len()) && name.chars().all(plain) {
            Ok(Self(name))
        } else {
            Err("a token's name is 1 to 64 letters, digits, `-`, `_` and `.`")
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TokenDigest {
    fn of(text: &str) -> Self {
        Self(Sha256::digest(text.as_bytes()).into())
    }
}

impl TryFrom<String> for TokenName {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, &'static str> {
        Self::new(name)
    }
}

impl From<TokenName> for String {
    fn from(name: TokenName) -> Self {
        name.0
    }
}

impl std::str::FromStr for TokenName {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, &'static str> {
        Self::new(name)
    }
}

impl fmt::Display for TokenName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl TryFrom<String> for TokenDigest {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        unhex(&text).map(Self).ok_or("not a SHA-256: 64 hexadecimal digits, as `setpoint token new NAME` prints them")
    }
}

impl From<TokenDigest> for String {
    fn from(digest: TokenDigest) -> Self {
        hex(&digest.0)
    }
}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenDigest({}…)", &hex(&self.0)[..8])
    }
}

/// Which tokens are accepted; asked for each request, because that can change.
pub trait Accepted: fmt::Debug + Send + Sync {
    /// Those that are accepted now.
    fn tokens(&self) -> Arc<[Token]>;
}

/// Lets through whoever brings a token that is accepted now; everybody, while none is.
#[derive(Debug, Clone)]
pub struct Guard {
    accepted: Arc<dyn Accepted>,
    /// Paths that need none.
    open: &'static [&'static str],
}

/// What a request that brings no accepted token is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Denial {
    Missing,
    Wrong,
}

impl Guard {
    /// Asks for a token that is accepted, except under the paths `open`.
    #[must_use]
    pub fn new(accepted: impl Accepted + 'static, open: &'static [&'static str]) -> Self {
        Self { accepted: Arc::new(accepted), open }
    }

    /// Lets `request` through, or answers it.
    #[expect(clippy::result_large_err, reason = "the answer is sent at once")]
    pub(super) fn check<B>(&self, request: &Request<B>) -> Result<(), Response<Body>> {
        let tokens = self.accepted.tokens();
        if tokens.is_empty() || self.open.contains(&request.uri().path()) {
            return Ok(());
        }
        let denial = match brought(request) {
            None => Denial::Missing,
            Some(text) => match find(&tokens, text) {
                Some(_) => return Ok(()),
                None => Denial::Wrong,
            },
        };
        Err(denial.into_response())
    }
}

/// The token whose text this is. Every hash is compared in full, so that time tells nothing of any.
fn find<'a>(tokens: &'a [Token], text: &str) -> Option<&'a Token> {
    let TokenDigest(digest) = TokenDigest::of(text);
    let matching = tokens.iter().filter(|token| bool::from(token.sha256.0.ct_eq(&digest)));
    matching.fold(None, |_, token| Some(token))
}

/// The one bearer token of a request (RFC 6750, 2.1).
fn brought<B>(request: &Request<B>) -> Option<&str> {
    let mut values = request.headers().get_all(AUTHORIZATION).iter();
    let (scheme, token) = values.next()?.to_str().ok()?.split_once(' ')?;
    (values.next().is_none() && scheme.eq_ignore_ascii_case("bearer")).then(|| token.trim())
}

impl Denial {
    fn into_response(self) -> Response<Body> {
        let (detail, challenge) = match self {
            Self::Missing => ("this API asks for a token: send `Authorization: Bearer …`", "Bearer realm=\"setpoint\""),
            Self::Wrong => ("this token is not accepted", "Bearer realm=\"setpoint\", error=\"invalid_token\""),
        };
        let mut response = problem::response(&problem(StatusCode::UNAUTHORIZED, detail));
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use tokio::sync::watch;

    use super::*;

    impl Accepted for watch::Receiver<Arc<[Token]>> {
        fn tokens(&self) -> Arc<[Token]> {
            Arc::clone(&self.borrow())
        }
    }

    fn token(name: &str) -> (Token, String) {
        Token::generate(TokenName::new(name).unwrap()).unwrap()
    }

    fn status(guard: &Guard, path: &str, authorization: &[&str]) -> u16 {
        let mut request = Request::get(path);
        for value in authorization {
            request = request.header(AUTHORIZATION, *value);
        }
        guard.check(&request.body(()).unwrap()).map_or_else(|refused| refused.status().as_u16(), |()| 200)
    }

    #[test]
    fn tokens_are_accepted_by_hash_and_follow_the_configuration() {
        let ((first, text), (second, other)) = (token("ci"), token("grafana"));
        let (sender, tokens) = watch::channel(Arc::from([first]));
        let guard = Guard::new(tokens, &["/healthz"]);
        let bearer = format!("Bearer {text}");
        assert_eq!(status(&guard, "/v1/apps", &[]), 401);
        assert_eq!(status(&guard, "/healthz", &[]), 200);
        assert_eq!(status(&guard, "/v1/apps", &[&bearer]), 200);
        assert_eq!(status(&guard, "/v1/apps", &[&format!("bearer {text}")]), 200);
        assert_eq!(status(&guard, "/v1/apps", &[&format!("Bearer {other}")]), 401);
        assert_eq!(status(&guard, "/v1/apps", &[&format!("Basic {text}")]), 401);
        assert_eq!(status(&guard, "/v1/apps", &[&bearer, &bearer]), 401);
        sender.send_replace(Arc::from([second]));
        assert_eq!(status(&guard, "/v1/apps", &[&bearer]), 401);
        sender.send_replace(Arc::from([]));
        assert_eq!(status(&guard, "/v1/apps", &[]), 200);
    }

    #[test]
    fn a_refusal_says_how_to_be_let_in() {
        let challenge = |denial: Denial| {
            let response = denial.into_response();
            response.headers()[WWW_AUTHENTICATE].to_str().unwrap().to_owned()
        };
        assert_eq!(challenge(Denial::Missing), "Bearer realm=\"setpoint\"");
        assert_eq!(challenge(Denial::Wrong), "Bearer realm=\"setpoint\", error=\"invalid_token\"");
    }

    #[test]
    fn the_text_of_a_token_is_nowhere_but_where_it_is_printed() {
        let (token, text) = token("ci");
        assert_eq!(text.len(), PREFIX.len() + 64);
        assert_eq!(TokenDigest::try_from(String::from(token.sha256)).unwrap(), token.sha256);
        assert!(!format!("{token:?}").contains(&text[PREFIX.len()..]));
        assert!(TokenDigest::try_from("00".repeat(31)).is_err());
        assert!(TokenName::new("a b").is_err() && TokenName::new("").is_err());
    }
}
