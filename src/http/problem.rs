//! Refusals as `application/problem+json` (RFC 9457), the same for the status API and the ingress.

use axum::body::Body;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use setpoint_schema::wire::Problem;

/// The problem of one request: `detail` says what is wrong with it.
#[must_use]
pub fn problem(status: StatusCode, detail: impl Into<String>) -> Problem {
    Problem {
        kind: "about:blank".to_owned(),
        title: status.canonical_reason().unwrap_or("Error").to_owned(),
        status: status.as_u16(),
        detail: detail.into(),
        parameter: None,
    }
}

/// The answer that carries a problem.
#[must_use]
pub fn response(problem: &Problem) -> Response<Body> {
    let body = serde_json::to_vec(problem).expect("a problem holds only text and a number");
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(problem.status).expect("problems are made from status codes");
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    response
}
