//! How the API says no: one problem document for every kind of refusal.

use axum::extract::rejection::QueryRejection;
use axum::response::{IntoResponse, Response};
use hyper::StatusCode;
use hyper::header::{ALLOW, HeaderValue};
use setpoint_schema::name::{AppKey, SnapshotKey};
use setpoint_schema::wire::Problem;

use super::backend::BackendError;
use crate::http::problem::{self, problem};
use crate::report::chain;

/// A refused request.
#[derive(Debug)]
pub(super) struct Refusal(Problem);

impl Refusal {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self(problem(status, detail))
    }

    /// 405, for whatever could be meant to change something.
    pub(super) fn method() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "this API only reads: use GET or HEAD")
    }

    pub(super) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    /// 404, for an app.
    pub(super) fn no_app(key: &AppKey) -> Self {
        Self::not_found(format!("there is no app {key}"))
    }

    /// 404, for a snapshot.
    pub(super) fn no_snapshot(key: &SnapshotKey) -> Self {
        Self::not_found(format!("there is no snapshot {key}"))
    }

    /// 503, while nothing is known.
    pub(super) fn early() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the first pass has not finished yet")
    }

    pub(super) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// What the client is told.
    pub(super) fn problem(&self) -> &Problem {
        &self.0
    }

    /// 400, naming the query parameter at fault.
    pub(super) fn parameter(name: impl Into<String>, detail: impl Into<String>) -> Self {
        let parameter = Some(name.into());
        Self(Problem { parameter, ..problem(StatusCode::BAD_REQUEST, detail) })
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = problem::response(&self.0);
        if response.status() == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}

impl From<BackendError> for Refusal {
    fn from(error: BackendError) -> Self {
        match error {
            BackendError::NotFound(detail) => Self::not_found(detail),
            BackendError::BadParameter { parameter, detail } => Self::parameter(parameter, detail),
            BackendError::Unavailable(detail) => Self::new(StatusCode::SERVICE_UNAVAILABLE, detail),
            BackendError::Failed { .. } => {
                let error = chain(&error);
                tracing::error!(error, "the status API could not answer");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, error)
            }
        }
    }
}

impl From<QueryRejection> for Refusal {
    fn from(rejection: QueryRejection) -> Self {
        Self::bad_request(rejection.body_text())
    }
}
