//! One request to a guest and its answer, both streamed; or, after a 101, a tunnel.
//!
//! Every exchange has a guest stream of its own: opening one costs a message to an agent that is connected already, and a
//! stream that is never used again can carry no answer to the wrong client.

use std::error::Error as _;
use std::future::pending;
use std::pin::{Pin, pin};
use std::time::Duration;

use axum::body::Body;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::HeaderValue;
use hyper::http::Extensions;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::TokioIo;
use setpoint_vmm::driver::Duplex;
use tokio::io::copy_bidirectional;
use tokio::sync::watch;
use tokio::time::sleep_until;
use tokio_util::task::AbortOnDropHandle;

use super::body::{Download, Turn, Upload, UploadError};
use super::{Patience, headers};
use crate::http::Connection;
use crate::http::target::Target;
use crate::idle::Use;

/// The largest head of an answer. More than browsers accept, and little enough to hold one for each client.
const RESPONSE_HEAD_BYTES: usize = 64 << 10;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExchangeError {
    #[error("it closed the connection before it answered")]
    Closed,
    #[error("its answer is not valid HTTP")]
    Invalid,
    #[error("it changed protocols without being asked")]
    UnaskedUpgrade,
    #[error("it did not answer in time")]
    Silent,
    #[error("the connection to it broke")]
    Broken,
    #[error("the request's body could not be read to its end")]
    Client,
    #[error("the request's body stopped coming")]
    Stalled,
}

impl From<hyper::Error> for ExchangeError {
    fn from(error: hyper::Error) -> Self {
        if error.is_incomplete_message() {
            Self::Closed
        } else if error.is_parse() {
            Self::Invalid
        } else if error.is_user() {
            // Of all that we hand to hyper only the client's body can fail.
            match error.source().and_then(|source| source.downcast_ref()) {
                Some(UploadError::Stalled) => Self::Stalled,
                Some(UploadError::Client(_)) | None => Self::Client,
            }
        } else {
            Self::Broken
        }
    }
}

/// Passes `request` on over `stream` and the answer back; the app is being used until all of that is over.
pub(super) async fn exchange(
    stream: Pin<Box<dyn Duplex>>,
    mut request: Request<Incoming>,
    target: &Target,
    connection: &Connection,
    patience: Patience,
    using: Use,
) -> Result<Response<Body>, ExchangeError> {
    let upgrade = Upgrade::asked_by(&mut request);
    let (request, turns) = outbound(request, upgrade.as_ref(), target, connection, patience.upload);
    let (mut guest, driver) =
        http1::Builder::new().max_header_size(RESPONSE_HEAD_BYTES).handshake(TokioIo::new(stream)).await?;
    let driver = AbortOnDropHandle::new(tokio::spawn(async {
        // Its error reaches whoever waits for the answer.
        let _ = driver.with_upgrades().await;
    }));
    let response = head_in_time(guest.send_request(request), turns, patience.response_head).await?;
    match (response.status(), upgrade) {
        (StatusCode::SWITCHING_PROTOCOLS, None) => Err(ExchangeError::UnaskedUpgrade),
        (StatusCode::SWITCHING_PROTOCOLS, Some(upgrade)) => Ok(tunnel(response, upgrade, (driver, using), connection)),
        (_, _) => Ok(inbound(response).map(|body| Body::new(Download::new(body, (driver, using))))),
    }
}

/// A change of protocols that a client asks for.
struct Upgrade {
    protocol: HeaderValue,
    client: OnUpgrade,
}

impl Upgrade {
    fn asked_by(request: &mut Request<Incoming>) -> Option<Self> {
        let protocol = headers::asked_upgrade(request.headers()).filter(|_| request.version() == Version::HTTP_11)?;
        Some(Self { protocol, client: hyper::upgrade::on(request) })
    }
}

fn outbound(
    request: Request<Incoming>,
    upgrade: Option<&Upgrade>,
    target: &Target,
    connection: &Connection,
    patience: Duration,
) -> (Request<Upload>, watch::Receiver<Turn>) {
    let (mut parts, body) = request.into_parts();
    headers::strip_hop_by_hop(&mut parts.headers);
    headers::set_origin(&mut parts.headers, target, connection.peer().ip());
    // The body is read, and thereby asked for, as soon as the guest takes it: nothing is left to expect.
    parts.headers.remove(hyper::header::EXPECT);
    match upgrade {
        Some(upgrade) => headers::set_upgrade(&mut parts.headers, upgrade.protocol.clone()),
        None => headers::set_close(&mut parts.headers),
    }
    parts.uri = parts.uri.path_and_query().cloned().map_or_else(Uri::default, Uri::from);
    parts.version = Version::HTTP_11;
    parts.extensions = Extensions::new();
    let (body, turns) = Upload::new(body, patience);
    (Request::from_parts(parts, body), turns)
}

/// Waits for the head of an answer until it has been the guest's turn for `patience`: a long upload takes the time that it takes.
async fn head_in_time(
    response: impl Future<Output = hyper::Result<Response<Incoming>>>,
    mut turns: watch::Receiver<Turn>,
    patience: Duration,
) -> Result<Response<Incoming>, ExchangeError> {
    let mut response = pin!(response);
    loop {
        // Of a body that is gone, at its end or with the connection, the last turn is the guest's.
        let turn = *turns.borrow_and_update();
        let deadline = match turn {
            Turn::Guest(since) => Some(since + patience),
            Turn::Client => None,
        };
        let over = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => pending().await,
            }
        };
        tokio::select! {
            answered = response.as_mut() => return Ok(answered?),
            () = over => return Err(ExchangeError::Silent),
            Ok(()) = turns.changed() => {}
        }
    }
}

fn inbound<B>(response: Response<B>) -> Response<B> {
    let (mut parts, body) = response.into_parts();
    headers::strip_hop_by_hop(&mut parts.headers);
    // hyper answers each client in the version that it speaks, whatever the guest spoke.
    parts.version = Version::HTTP_11;
    parts.extensions = Extensions::new();
    Response::from_parts(parts, body)
}

/// Confirms the change to the client, then joins the two streams until both have ended.
fn tunnel(
    mut response: Response<Incoming>,
    upgrade: Upgrade,
    kept: (AbortOnDropHandle<()>, Use),
    connection: &Connection,
) -> Response<Body> {
    let guest = hyper::upgrade::on(&mut response);
    let protocol = response.headers().get(hyper::header::UPGRADE).cloned().unwrap_or(upgrade.protocol);
    connection.spawn_tunnel(async move {
        let _kept = kept;
        if let Ok((guest, client)) = tokio::try_join!(guest, upgrade.client) {
            // Either side may break off at any time; there is nobody left to tell.
            let _ = copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(guest)).await;
        }
    });
    let mut response = inbound(response).map(|_| Body::empty());
    headers::set_upgrade(response.headers_mut(), protocol);
    response
}
