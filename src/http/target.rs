//! Which host a request is for. The status API checks it against DNS rebinding, the ingress routes by it.

use hyper::Request;
use hyper::header::HOST;
use hyper::http::uri::Authority;

/// The host that a request names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// As the client wrote it, port included.
    pub authority: String,
    /// For comparing: lower case, without port, brackets or the root's dot.
    pub name: String,
}

/// Why a request names no host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// There is no `Host`.
    #[error("the request names no host")]
    Missing,
    /// There are several `Host`s, which two readers could read differently.
    #[error("the request names its host more than once")]
    Ambiguous,
    /// It is not a host with an optional port.
    #[error("the request's host is not a host name or address")]
    Malformed,
}

impl Target {
    /// The host of `request`: that of an absolute-form target where there is one (RFC 9112, 3.2.2), else of `Host`.
    ///
    /// # Errors
    /// Why it names none.
    pub fn of<B>(request: &Request<B>) -> Result<Self, TargetError> {
        let mut hosts = request.headers().get_all(HOST).iter();
        let host = hosts.next();
        if hosts.next().is_some() {
            return Err(TargetError::Ambiguous);
        }
        let authority = match (request.uri().authority(), host) {
            (Some(authority), _) => authority.clone(),
            (None, Some(host)) => Authority::try_from(host.as_bytes()).map_err(|_| TargetError::Malformed)?,
            (None, None) => return Err(TargetError::Missing),
        };
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(TargetError::Malformed);
        }
        let name = authority.host().trim_start_matches('[').trim_end_matches(']');
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        Ok(Self { authority: authority.as_str().to_owned(), name })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use super::*;

    fn request(uri: &str, hosts: &[&str]) -> Request<()> {
        let mut builder = Request::get(uri);
        for host in hosts {
            builder = builder.header(HOST, *host);
        }
        builder.body(()).unwrap()
    }

    #[test]
    fn port_case_and_root_dot_do_not_matter_for_matching() {
        for host in ["blog.localhost", "Blog.LOCALHOST:8080", "blog.localhost.", "blog.localhost.:80"] {
            assert_eq!(Target::of(&request("/", &[host])).unwrap().name, "blog.localhost", "{host}");
        }
        assert_eq!(Target::of(&request("/", &["[::1]:7878"])).unwrap().name, "::1");
        assert_eq!(Target::of(&request("/", &["Blog.localhost:80"])).unwrap().authority, "Blog.localhost:80");
    }

    #[test]
    fn absolute_form_wins_over_host() {
        assert_eq!(Target::of(&request("http://a.localhost/x", &["b.localhost"])).unwrap().name, "a.localhost");
    }

    #[test]
    fn a_host_that_two_readers_could_read_differently_is_refused() {
        assert_eq!(Target::of(&request("/", &[])), Err(TargetError::Missing));
        assert_eq!(Target::of(&request("/", &["a", "a"])), Err(TargetError::Ambiguous));
        for host in ["", ":80", "a b", "user@a", "a/b", "a,b c"] {
            assert_eq!(Target::of(&request("/", &[host])), Err(TargetError::Malformed), "{host:?}");
        }
    }
}
