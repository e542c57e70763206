//! Reads the status API on behalf of commands: one GET per connection, streamed where the answer is endless.

use axum::body::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderName};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use setpoint_schema::wire::{List, Problem};

use crate::daemon::Running;

pub use credentials::Credentials;
use error::Brought;
pub use error::ClientError;
use place::Place;

mod credentials;
mod error;
mod place;

/// A daemon on this machine or in reach.
#[derive(Debug, Clone)]
pub struct Client {
    place: Place,
    credentials: Credentials,
}

/// An answer is at most this long: ten thousand apps are some ten megabytes.
const LONGEST_ANSWER: usize = 64 << 20;

impl Client {
    /// A daemon at `HOST:PORT`, `http://HOST:PORT`, `https://HOST` or `unix:/PATH`, with the credentials of the environment.
    #[must_use]
    pub fn new(server: &str) -> Self {
        Self { place: Place::named(server), credentials: Credentials::from_env() }
    }

    /// The daemon that runs on this machine: over its Unix socket, where it has one that this user may open.
    #[must_use]
    pub fn of(running: &Running) -> Self {
        Self { place: Place::of(running), credentials: Credentials::from_env() }
    }

    /// The same daemon with these credentials.
    #[must_use]
    pub fn with(self, credentials: Credentials) -> Self {
        Self { credentials, ..self }
    }

    /// Where the daemon is, for messages.
    #[must_use]
    pub fn address(&self) -> &str {
        self.place.as_str()
    }

    /// One answer.
    ///
    /// # Errors
    /// When there is none, a refusal, or one that cannot be read.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let response = self.send(path).await?;
        Ok(self.read(response).await?.0)
    }

    /// What an answer says, and its bytes.
    ///
    /// # Errors
    /// When it breaks off or cannot be read.
    pub async fn read<T: DeserializeOwned>(&self, response: Response<Incoming>) -> Result<(T, Bytes), ClientError> {
        let is_json = says(&response, "json");
        let body = self.body(response).await?;
        match serde_json::from_slice(&body) {
            Ok(answer) => Ok((answer, body)),
            Err(error) if is_json => Err(error.into()),
            Err(_) => Err(self.stranger("its answer is not JSON")),
        }
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

    /// One GET, whatever its status.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn exchange(
        &self,
        path: &str,
        headers: &[(HeaderName, &str)],
    ) -> Result<Response<Incoming>, ClientError> {
        let token = self.credentials.token()?;
        let stream = self.place.connect(&self.credentials).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(error))?;
        tokio::spawn(connection);
        let mut request = Request::get(path).header(header::HOST, self.place.host());
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, token.as_header());
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| self.broken(error))?;
        sender.send_request(request).await.map_err(|error| {
            if error.is_parse() { self.stranger("it does not answer in HTTP") } else { self.broken(error) }
        })
    }

    /// The whole body of an answer.
    ///
    /// # Errors
    /// When it breaks off, or is longer than any answer should be.
    pub async fn body(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = Limited::new(response.into_body(), LONGEST_ANSWER).collect().await;
        let broken = |source| ClientError::Broken { address: self.address().to_owned(), source };
        body.map(|body| body.to_bytes()).map_err(broken)
    }

    async fn send(&self, path: &str) -> Result<Response<Incoming>, ClientError> {
        let response = self.exchange(path, &[]).await?;
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        Err(self.refusal(response).await)
    }

    /// What an answer that is not 200 says, as an error.
    pub async fn refusal(&self, response: Response<Incoming>) -> ClientError {
        let status = response.status();
        let (body, token) = match (self.body(response).await, self.credentials.token()) {
            (Ok(body), Ok(token)) => (body, token),
            (Err(error), _) | (_, Err(error)) => return error,
        };
        match (status, serde_json::from_slice::<Problem>(&body)) {
            (StatusCode::UNAUTHORIZED, _) => {
                let brought = if token.is_some() { Brought::Token } else { Brought::Nothing };
                ClientError::Unauthorized { address: self.address().to_owned(), brought }
            }
            (_, Ok(problem)) => ClientError::Refused(problem.detail),
            (_, Err(_)) => self.stranger(format!("it answered {status}")),
        }
    }

    fn broken(&self, source: impl std::error::Error + Send + Sync + 'static) -> ClientError {
        ClientError::Broken { address: self.address().to_owned(), source: Box::new(source) }
    }

    fn stranger(&self, what: impl Into<String>) -> ClientError {
        ClientError::Stranger { address: self.address().to_owned(), what: what.into() }
    }
}

fn says(response: &Response<Incoming>, kind: &str) -> bool {
    let value = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.is_some_and(|value| value.contains(kind))
}
