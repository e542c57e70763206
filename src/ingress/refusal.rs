//! What a client reads when there is no answer of an app: a small page for people, a problem document for programs.
//!
//! Reasons can hold a guest's words. They are shown as text, never as markup.

use axum::body::Body;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use setpoint_schema::name::AppKey;
use setpoint_schema::wire::Problem;

use super::ConnectError;
use super::exchange::ExchangeError;
use crate::http::problem::{self, problem};
use crate::http::target::TargetError;

/// When to ask again an app that is not ready, in seconds: often enough for somebody who watches it start.
const RETRY_AFTER_S: &str = "2";

/// Why a request was not answered by an app.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("{0}")]
    Target(#[from] TargetError),
    #[error("this is a reverse proxy: CONNECT leads nowhere")]
    Connect,
    #[error("the only transfer coding that is understood is chunked")]
    TransferCoding,
    // Says nothing of which names there are.
    #[error("no app answers under this host name")]
    UnknownHost,
    #[error("{app} is not ready: {reason}")]
    NotReady { app: AppKey, reason: String },
    #[error("{app} was at rest and is on its way up")]
    Waking { app: AppKey },
    #[error("{app} is at rest, and a request does not wake it")]
    Asleep { app: AppKey },
    #[error("{app} could not be reached: {error}")]
    Unreachable { app: AppKey, error: ConnectError },
    #[error("{app} did not take a connection in time")]
    ConnectTimeout { app: AppKey },
    #[error("{app} gave no answer: {error}")]
    Guest { app: AppKey, error: ExchangeError },
}

/// Who reads a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    /// A browser: whoever names `text/html` as welcome.
    Browser,
    /// Anything else.
    Program,
}

impl Audience {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let accepts = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        if accepts.into_iter().any(|accept| accept.contains("text/html")) { Self::Browser } else { Self::Program }
    }
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::Target(_) | Self::Guest { error: ExchangeError::Client, .. } => StatusCode::BAD_REQUEST,
            Self::Guest { error: ExchangeError::Stalled, .. } => StatusCode::REQUEST_TIMEOUT,
            Self::Connect => StatusCode::METHOD_NOT_ALLOWED,
            Self::TransferCoding => StatusCode::NOT_IMPLEMENTED,
            Self::UnknownHost => StatusCode::NOT_FOUND,
            Self::NotReady { .. } | Self::Waking { .. } | Self::Asleep { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::ConnectTimeout { .. } | Self::Guest { error: ExchangeError::Silent, .. } => {
                StatusCode::GATEWAY_TIMEOUT
            }
            Self::Unreachable { .. }
            | Self::Guest {
                error:
                    ExchangeError::Closed | ExchangeError::Invalid | ExchangeError::UnaskedUpgrade | ExchangeError::Broken,
                ..
            } => StatusCode::BAD_GATEWAY,
        }
    }

    pub(super) fn into_response(self, audience: Audience) -> Response<Body> {
        let problem = problem(self.status(), self.to_string());
        let advice = self.advice();
        let mut response = match audience {
            Audience::Program => problem::response(&problem),
            Audience::Browser => page(&problem, advice.as_ref()),
        };
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if let Some((name, value)) = advice {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }

    /// What the client could do instead.
    fn advice(&self) -> Option<(HeaderName, &'static str)> {
        match self {
            Self::NotReady { .. } | Self::Waking { .. } => Some((header::RETRY_AFTER, RETRY_AFTER_S)),
            Self::Connect => Some((header::ALLOW, "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE")),
            Self::Target(_)
            | Self::TransferCoding
            | Self::UnknownHost
            | Self::Asleep { .. }
            | Self::Unreachable { .. }
            | Self::ConnectTimeout { .. }
            | Self::Guest { .. } => None,
        }
    }
}

fn page(problem: &Problem, advice: Option<&(HeaderName, &'static str)>) -> Response<Body> {
    let Problem { title, status, detail, .. } = problem;
    let (title, detail) = (escape(title), escape(detail));
    // Whoever watches an app start sees it as soon as it is there.
    let refresh = match advice {
        Some((name, seconds)) if *name == header::RETRY_AFTER => {
            format!("<meta http-equiv=\"refresh\" content=\"{seconds}\">")
        }
        Some(_) | None => String::new(),
    };
    let html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">{refresh}<title>{status} {title}</title>\
         <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:40em;margin:15vh auto;padding:0 1em}}</style></head>\
         <body><h1>{status} {title}</h1><p>{detail}</p></body></html>\n"
    );
    let mut response = Response::new(Body::from(html));
    *response.status_mut() = StatusCode::from_u16(*status).expect("problems are made from status codes");
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'"),
    );
    response
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_in_a_reason_is_shown_as_text() {
        assert_eq!(escape("<b onx='\"'>&"), "&lt;b onx=&#39;&quot;&#39;&gt;&amp;");
    }
}
