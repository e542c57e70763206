//! Reads the status API on behalf of commands: one GET per connection, streamed where the answer is endless.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderName};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use setpoint_schema::wire::{List, Problem};
use tokio::net::TcpStream;

/// A daemon on this machine or in reach.
#[derive(Debug, Clone)]
pub struct Client {
    address: String,
}

/// The daemon answers at once or not at all.
const CONNECT: Duration = Duration::from_secs(5);
/// An answer is at most this long: ten thousand apps are some ten megabytes.
const LONGEST_ANSWER: usize = 64 << 20;

/// Why there is no answer; the cause is the source.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("could not reach a daemon at {address}")]
    Unreachable {
        /// Where.
        address: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("connection to the daemon at {address} broke")]
    Broken {
        /// Where.
        address: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The daemon refused.
    #[error("{0}")]
    Refused(String),
    /// The answer is not what this version reads.
    #[error("could not read the daemon's answer")]
    Unreadable(#[from] serde_json::Error),
}

impl ClientError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unreachable { .. } => {
                Some("start one with `setpoint run`, or name another with --server HOST:PORT".to_owned())
            }
            Self::Unreadable(_) => Some("the daemon is of another version: compare `setpoint version`".to_owned()),
            Self::Broken { .. } | Self::Refused(_) => None,
        }
    }
}

impl Client {
    /// A daemon at `HOST:PORT`, with or without `http://`.
    #[must_use]
    pub fn new(server: &str) -> Self {
        let address = server.strip_prefix("http://").unwrap_or(server).trim_end_matches('/');
        Self { address: address.to_owned() }
    }

    /// The daemon at this address.
    #[must_use]
    pub fn local(address: SocketAddr) -> Self {
        Self { address: address.to_string() }
    }

    /// One answer.
    ///
    /// # Errors
    /// When there is none, a refusal, or one that cannot be read.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let response = self.send(path).await?;
        Ok(serde_json::from_slice(&self.body(response).await?)?)
    }

    /// All pages of a list.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, ClientError> {
        let mut items = Vec::new();
        let mut cursor = String::new();
        loop {
            let page: List<T> = self.get(&format!("{path}?limit=1000{cursor}")).await?;
            items.extend(page.items);
            match page.next {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Ok(items),
            }
        }
    }

    /// An answer as it comes; `each` is given every piece.
    ///
    /// # Errors
    /// When it cannot be had or breaks off.
    pub async fn stream(&self, path: &str, mut each: impl FnMut(&[u8])) -> Result<(), ClientError> {
        let mut response = self.send(path).await?;
        while let Some(frame) = response.frame().await {
            let frame = frame.map_err(|error| self.broken(error))?;
            if let Some(data) = frame.data_ref() {
                each(data);
            }
        }
        Ok(())
    }

    async fn send(&self, path: &str) -> Result<Response<Incoming>, ClientError> {
        let response = self.exchange(path, &[]).await?;
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        Err(self.refusal(response).await)
    }

    /// One GET with these headers; the answer may have any status.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn exchange(
        &self,
        path: &str,
        headers: &[(HeaderName, &str)],
    ) -> Result<Response<Incoming>, ClientError> {
        let connect = tokio::time::timeout(CONNECT, TcpStream::connect(&self.address)).await;
        let connect = connect.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        let unreachable = |source| ClientError::Unreachable { address: self.address.clone(), source };
        let stream = connect.map_err(unreachable)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(error))?;
        tokio::spawn(connection);
        let mut request = Request::get(path).header(header::HOST, &self.address);
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| self.broken(error))?;
        sender.send_request(request).await.map_err(|error| self.broken(error))
    }

    /// What an answer that is not 200 says, as an error.
    pub async fn refusal(&self, response: Response<Incoming>) -> ClientError {
        let status = response.status();
        let body = match self.body(response).await {
            Ok(body) => body,
            Err(error) => return error,
        };
        let detail = serde_json::from_slice::<Problem>(&body).map(|problem| problem.detail);
        ClientError::Refused(detail.unwrap_or_else(|_| format!("the daemon answered {status}")))
    }

    /// Where the daemon is, for messages.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The whole body of an answer.
    ///
    /// # Errors
    /// When it breaks off or is too long.
    pub async fn body(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = Limited::new(response.into_body(), LONGEST_ANSWER).collect().await;
        body.map(|body| body.to_bytes()).map_err(|source| ClientError::Broken { address: self.address.clone(), source })
    }

    fn broken(&self, source: impl std::error::Error + Send + Sync + 'static) -> ClientError {
        ClientError::Broken { address: self.address.clone(), source: Box::new(source) }
    }
}
