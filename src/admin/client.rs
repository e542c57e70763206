//! Asks the admin socket on behalf of commands.

use std::io;
use std::path::{Path, PathBuf};

use axum::body::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use setpoint_schema::name::AppKey;

use super::{PATIENCE, Refusal, Verb, socket};

/// Answers name one app.
const LONGEST_ANSWER: usize = 64 << 10;

/// Why the daemon did not do what was asked; the cause is the source.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Nobody listens.
    #[error("could not reach a daemon through {path}")]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The connection broke, or the answer is not what this version reads.
    #[error("could not read the daemon's answer from {path}")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The daemon refused.
    #[error("{detail}")]
    Refused {
        /// Why.
        detail: String,
        /// What to do about it.
        hint: Option<String>,
    },
}

impl AdminError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unreachable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("run this as the daemon's user, or as root".to_owned())
            }
            Self::Unreachable { .. } => {
                Some("run this on the daemon's machine, with its --state-dir or --config".to_owned())
            }
            Self::Broken { .. } => Some("the daemon may be of another version: compare `setpoint version`".to_owned()),
            Self::Refused { detail: _, hint } => hint.clone(),
        }
    }
}

/// Asks the daemon that has this state directory, and waits until it is done.
///
/// # Errors
/// When it cannot be asked, or refuses.
pub async fn ask<T: DeserializeOwned>(state_dir: &Path, app: &AppKey, verb: Verb) -> Result<T, AdminError> {
    ask_with(state_dir, app, verb, "").await
}

/// The same with what stands behind `?`.
///
/// # Errors
/// Likewise.
pub async fn ask_with<T: DeserializeOwned>(
    state_dir: &Path,
    app: &AppKey,
    verb: Verb,
    query: &str,
) -> Result<T, AdminError> {
    let target = format!("/v1/apps/{}/{}/{}{query}", app.team, app.name, verb.as_str());
    let path = socket::path(state_dir);
    let unreachable = |source| AdminError::Unreachable { path: path.clone(), source };
    let stream = socket::connect(state_dir).await.map_err(unreachable)?;
    let answer = tokio::time::timeout(PATIENCE, exchange(TokioIo::new(stream), target)).await;
    let broken = |source| AdminError::Broken { path: path.clone(), source };
    let (status, body) = answer.unwrap_or_else(|late| Err(late.into())).map_err(broken)?;
    if status == StatusCode::OK {
        return serde_json::from_slice(&body).map_err(|error| broken(error.into()));
    }
    Err(match serde_json::from_slice::<Refusal>(&body) {
        Ok(Refusal { problem, hint }) => AdminError::Refused { detail: problem.detail, hint },
        Err(_) => AdminError::Refused { detail: format!("the daemon answered {status}"), hint: None },
    })
}

async fn exchange(
    stream: TokioIo<tokio::net::UnixStream>,
    target: String,
) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    tokio::spawn(connection);
    let request = Request::post(target).header(header::HOST, "localhost").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    Ok((status, Limited::new(response.into_body(), LONGEST_ANSWER).collect().await?.to_bytes()))
}
