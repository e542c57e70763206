//! Polls that find nothing new, answered before they are taken apart.
//!
//! Whoever polls sends the same request again and again, and almost always the answer is 304. When one is given, this keeps what
//! it rested on: the target, the tag, and the version of all that the target shows. The same target with the same tag at the same
//! version is answered from that alone. Anything out of the ordinary in a request (another tag, several hosts, a stream, an
//! absolute target) goes the long way, which knows all of it.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

use axum::response::Response;
use hyper::header::{ACCEPT, HOST, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH};
use hyper::{Method, Request};
use setpoint_schema::name::HostName;
use tokio::sync::watch;

use super::poll;
use super::snapshot::{Snapshot, Version};

/// How many targets are kept, and how long one may be: a few hundred kB at most, and more than are polled.
const TARGETS: usize = 1024;
const TARGET_BYTES: usize = 256;

/// What was answered with 304 and how to see that it would be again.
#[derive(Default)]
pub(super) struct Repeats(RwLock<HashMap<String, Repeat>>);

/// One target.
struct Repeat {
    tag: HeaderValue,
    basis: Basis,
    route: &'static str,
}

/// The version of all that an answer may rest on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Basis {
    /// Of the snapshot.
    Snapshot(Version),
    /// Of the store's history.
    History(u64),
}

/// Where the newest versions are.
pub(super) struct Newest {
    /// The snapshot's.
    pub(super) snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
    /// The history's.
    pub(super) history: watch::Receiver<u64>,
}

impl Newest {
    fn is(&self, basis: Basis) -> bool {
        match basis {
            Basis::Snapshot(version) => self.snapshot.borrow().as_ref().is_some_and(|now| now.version() == version),
            Basis::History(version) => *self.history.borrow() == version,
        }
    }
}

impl Repeats {
    /// Keeps that `target` was answered with 304 for `tag`.
    pub(super) fn put(&self, target: &str, tag: &HeaderValue, basis: Basis, route: &'static str) {
        if target.len() > TARGET_BYTES {
            return;
        }
        let mut kept = self.0.write().unwrap_or_else(PoisonError::into_inner);
        // Whoever asks for more targets than are kept makes all of them begin anew, which costs what it would cost without.
        if kept.len() >= TARGETS && !kept.contains_key(target) {
            kept.clear();
        }
        kept.insert(target.to_owned(), Repeat { tag: tag.clone(), basis, route });
    }

    /// The 304 for a request that asks again for what is as it was, and the route that it is for.
    pub(super) fn answer<B>(
        &self,
        request: &Request<B>,
        hosts: &BTreeSet<HostName>,
        newest: &Newest,
    ) -> Option<(Response, &'static str)> {
        let headers = request.headers();
        let tag = only(headers, &IF_NONE_MATCH)?;
        let kept = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let repeat = kept.get(request.uri().path_and_query()?.as_str())?;
        let same = repeat.tag == *tag
            && matches!(*request.method(), Method::GET | Method::HEAD)
            && request.uri().authority().is_none()
            && is_plainly_ours(only(headers, &HOST)?, hosts)
            && headers.get_all(ACCEPT).iter().all(is_no_stream)
            && newest.is(repeat.basis);
        same.then(|| (poll::nothing_new(repeat.tag.clone()), repeat.route))
    }
}

/// The value of a header that is there once.
fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// Whether a `Host` is, letter for letter, one that the API answers under; with or without a port.
fn is_plainly_ours(host: &HeaderValue, hosts: &BTreeSet<HostName>) -> bool {
    let Ok(host) = host.to_str() else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() && !port.starts_with('+') => name,
        Some(_) | None => host,
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok() || hosts.iter().any(|ours| ours.as_str() == name)
}

/// Whether what is accepted is surely no stream.
fn is_no_stream(accept: &HeaderValue) -> bool {
    matches!(accept.as_bytes(), b"*/*" | b"application/json")
}
