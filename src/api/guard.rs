//! What every request to the API passes: read-only methods, a host that a rebound DNS name cannot fake, safe answers.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};
use setpoint_schema::name::HostName;

use super::refusal::Refusal;
use crate::http::target::Target;

/// What answers carry: they are data for programs, so that no browser shall run, frame or guess them.
const SAFE_ANSWER: [(HeaderName, &str); 5] = [
    (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Lets a request through to its route, or refuses it.
pub(super) async fn guard(State(hosts): State<Arc<BTreeSet<HostName>>>, request: Request, next: Next) -> Response {
    let mut response = match check(&request, &hosts) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    };
    // A 304 says what may have changed of an answer that is kept, and that one has all of these.
    if response.status() != StatusCode::NOT_MODIFIED {
        make_safe(response.headers_mut());
    }
    response
}

fn check(request: &Request, hosts: &BTreeSet<HostName>) -> Result<(), Refusal> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Refusal::method());
    }
    let target = Target::of(request).map_err(|error| Refusal::bad_request(error.to_string()))?;
    if is_ours(&target.name, hosts) {
        Ok(())
    } else {
        Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, "this API does not answer under that host name"))
    }
}

/// A stranger's page can make its own name resolve to this machine, but it cannot make the browser send another name; and an
/// address is no name that could be made to resolve anywhere.
fn is_ours(name: &str, hosts: &BTreeSet<HostName>) -> bool {
    name == "localhost" || name.parse::<IpAddr>().is_ok() || hosts.iter().any(|host| host.as_str() == name)
}

fn make_safe(headers: &mut HeaderMap) {
    for (name, value) in SAFE_ANSWER {
        headers.insert(name, HeaderValue::from_static(value));
    }
    // Nobody keeps what has no tag to ask about it with.
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}
