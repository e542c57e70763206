//! Header hygiene: what belongs to one hop stays on it, and what a guest reads about its client is our word.

use std::net::IpAddr;

use hyper::HeaderMap;
use hyper::header::{self, HeaderName, HeaderValue};

use super::refusal::Refusal;
use crate::http::target::Target;

/// Headers of one hop (RFC 9110, 7.6.1), with those that older software takes for such.
const HOP_BY_HOP: [HeaderName; 10] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
];

/// What clients could use to lie to a guest about where they come from.
const CLAIMS: [HeaderName; 6] = [
    header::FORWARDED,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-real-ip"),
];

/// Refuses a request body in any coding but plain `chunked`, which is all that the next hop could be told about. hyper has
/// refused contradictions within the framing before.
pub(super) fn check_framing(headers: &HeaderMap) -> Result<(), Refusal> {
    let plain = |value: &HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(only), None) if plain(only) => Ok(()),
        (Some(_), _) => Err(Refusal::TransferCoding),
    }
}

/// The protocol that a request asks to change to. `h2c` is passed over, as RFC 9113 allows: it would carry requests that
/// nobody here reads.
pub(super) fn asked_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let protocol = headers.get(header::UPGRADE)?;
    let asks = tokens(headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    let h2c = tokens(headers, &header::UPGRADE).any(|token| token.eq_ignore_ascii_case("h2c"));
    (asks && !h2c).then(|| protocol.clone())
}

/// Removes what belongs to this hop, the headers that `Connection` lists included. The next hop's framing is hyper's.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let listed: Vec<HeaderName> = tokens(headers, &header::CONNECTION).filter_map(|token| token.parse().ok()).collect();
    if headers.contains_key(header::TRANSFER_ENCODING) {
        // Beside a transfer coding a length means nothing, and the next reader must not find one that says otherwise.
        headers.remove(header::CONTENT_LENGTH);
    }
    for name in HOP_BY_HOP.iter().chain(&listed) {
        headers.remove(name);
    }
}

/// Asks for, or confirms, the change to `protocol` on the next hop.
pub(super) fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol);
}

/// Says that the stream to the next hop is for this request alone.
pub(super) fn set_close(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
}

/// Says where a request comes from, in place of what the client claims. The host stays the one that the client named.
pub(super) fn set_origin(headers: &mut HeaderMap, target: &Target, client: IpAddr) {
    for name in &CLAIMS {
        headers.remove(name);
    }
    let host = HeaderValue::try_from(&target.authority).expect("an authority is made of visible characters");
    let client = HeaderValue::try_from(client.to_canonical().to_string()).expect("an address is visible characters");
    headers.insert(header::HOST, host.clone());
    headers.insert("x-forwarded-for", client);
    headers.insert("x-forwarded-host", host);
    headers.insert("x-forwarded-proto", HeaderValue::from_static("http"));
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn headers_that_connection_lists_stay_on_their_hop() {
        let mut headers =
            map(&[("connection", "close, X-Secret"), ("x-secret", "1"), ("te", "trailers"), ("cookie", "a=b")]);
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers, map(&[("cookie", "a=b")]));
    }

    #[test]
    fn a_length_beside_a_transfer_coding_is_dropped() {
        let mut headers = map(&[("transfer-encoding", "chunked"), ("content-length", "3")]);
        strip_hop_by_hop(&mut headers);
        assert!(headers.is_empty());
    }

    #[test]
    fn only_plain_chunked_is_passed_on() {
        assert!(check_framing(&map(&[])).is_ok());
        assert!(check_framing(&map(&[("transfer-encoding", "Chunked")])).is_ok());
        assert!(check_framing(&map(&[("transfer-encoding", "gzip, chunked")])).is_err());
        let mut twice = map(&[("transfer-encoding", "chunked")]);
        twice.append("transfer-encoding", HeaderValue::from_static("chunked"));
        assert!(check_framing(&twice).is_err());
    }

    #[test]
    fn an_upgrade_needs_both_headers_and_is_never_to_h2c() {
        let asked = |pairs| asked_upgrade(&map(pairs)).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(
            asked(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]),
            Some("websocket".to_owned())
        );
        assert_eq!(asked(&[("upgrade", "websocket")]), None);
        assert_eq!(asked(&[("connection", "upgrade")]), None);
        assert_eq!(asked(&[("connection", "upgrade, http2-settings"), ("upgrade", "h2c")]), None);
    }

    #[test]
    fn what_a_client_claims_about_itself_is_replaced() {
        let mut headers =
            map(&[("x-forwarded-for", "6.6.6.6"), ("forwarded", "for=6.6.6.6"), ("x-real-ip", "6.6.6.6")]);
        let target = Target { authority: "blog.localhost:8080".to_owned(), name: "blog.localhost".to_owned() };
        set_origin(&mut headers, &target, "::ffff:127.0.0.1".parse().unwrap());
        let expected = map(&[
            ("host", "blog.localhost:8080"),
            ("x-forwarded-for", "127.0.0.1"),
            ("x-forwarded-host", "blog.localhost:8080"),
            ("x-forwarded-proto", "http"),
        ]);
        assert_eq!(headers, expected);
    }
}
