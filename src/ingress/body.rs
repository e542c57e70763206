//! Bodies on their way through: one that says whose turn it is and does not wait for ever, one that keeps its connection.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::task::AbortOnDropHandle;

use crate::idle::Use;

/// A request body that tells who is waited for, so that a guest is not blamed for a slow client, and that ends with an error when
/// the client sends nothing for too long.
pub(super) struct Upload {
    inner: Incoming,
    turn: watch::Sender<Turn>,
    patience: Duration,
    /// Runs while the client is waited for.
    end: Option<Pin<Box<Sleep>>>,
}

/// Who is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// The guest, to take more or to answer, since then.
    Guest(Instant),
    /// The client, to send more of its body.
    Client,
}

/// Why a request has no whole body.
#[derive(Debug, thiserror::Error)]
pub(super) enum UploadError {
    #[error("the client's body could not be read")]
    Client(#[source] hyper::Error),
    #[error("the client stopped sending")]
    Stalled,
}

impl Upload {
    /// A body whose client may send nothing for `patience`.
    pub(super) fn new(inner: Incoming, patience: Duration) -> (Self, watch::Receiver<Turn>) {
        let (turn, turns) = watch::channel(Turn::Guest(Instant::now()));
        (Self { inner, turn, patience, end: None }, turns)
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) {
            self.end = None;
            self.turn.send_replace(Turn::Guest(Instant::now()));
            return Poll::Ready(frame.map(|frame| frame.map_err(UploadError::Client)));
        }
        self.turn.send_if_modified(|turn| std::mem::replace(turn, Turn::Client) != Turn::Client);
        let patience = self.patience;
        ready!(self.end.get_or_insert_with(|| Box::pin(sleep(patience))).as_mut().poll(cx));
        Poll::Ready(Some(Err(UploadError::Stalled)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A response body that ends its guest connection, and the use of the app, when it is dropped: at its end, or as soon as the client
/// leaves.
pub(super) struct Download {
    inner: Incoming,
    _kept: (AbortOnDropHandle<()>, Use),
}

impl Download {
    pub(super) fn new(inner: Incoming, kept: (AbortOnDropHandle<()>, Use)) -> Self {
        Self { inner, _kept: kept }
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
