//! Bodies on their way through: frame by frame, never collected, each with a clock on its silence.
//!
//! Back-pressure needs no code: hyper asks a body for the next frame only when the socket took the last one, so a slow reader
//! slows the sender down through TCP, and the proxy holds a few buffers per request however large the body is.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use thiserror::Error;
use tokio::time::{Instant, Sleep};

use crate::access::Exchange;
use crate::client::{Conversation, Turn};
use crate::pool::Lease;

/// Why a body broke off.
#[derive(Debug, Error)]
pub enum BodyError {
    /// Nothing came for as long as `timeouts.body_idle`.
    #[error("the body made no progress for {0:?}")]
    Stalled(Duration),
    /// The connection it came from failed.
    #[error(transparent)]
    Source(#[from] hyper::Error),
}

/// An incoming body that fails when it is silent for too long.
#[derive(Debug)]
struct Watched {
    body: Incoming,
    limit: Duration,
    /// Made at the first wait, reset at the later ones: a body that is always ready costs no timer.
    timer: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl Watched {
    fn new(body: Incoming, limit: Duration) -> Watched {
        Watched { body, limit, timer: None, waiting: false }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.waiting = false;
            return Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Source)));
        }
        let deadline = || Instant::now() + self.limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline())));
        if !self.waiting {
            self.waiting = true;
            timer.as_mut().reset(deadline());
        }
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Some(Err(BodyError::Stalled(self.limit))))
    }
}

/// How far the upload of one request is; shared between the body, which hyper owns, and the task that waits for the response.
#[derive(Clone, Debug)]
pub struct Upload(Arc<Mutex<UploadState>>);

/// What is known of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadState {
    /// The backend took the last frame at this time and has asked for no more: it is the backend that is waited for.
    BackendSince(Instant),
    /// The backend wants more: it is the client that is waited for.
    Client,
    /// The whole body has been handed over at this time.
    Complete(Instant),
    /// The client was silent for too long.
    Stalled,
    /// The client's connection failed, or its framing is broken.
    Failed,
}

impl Upload {
    fn new() -> Upload {
        Upload(Arc::new(Mutex::new(UploadState::BackendSince(Instant::now()))))
    }

    /// Where it is.
    #[must_use]
    pub fn state(&self) -> UploadState {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: UploadState) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }
}

/// The body of a request to a backend: the client's, or none.
#[derive(Debug)]
pub struct RequestBody(Option<UploadBody>);

#[derive(Debug)]
struct UploadBody {
    watched: Watched,
    upload: Upload,
    conversation: Conversation,
}

impl RequestBody {
    /// A request without a body, which may be sent twice.
    #[must_use]
    pub fn none() -> RequestBody {
        RequestBody(None)
    }

    /// The client's body, and the view of its progress. `conversation` learns when it was left unread.
    #[must_use]
    pub fn upload(body: Incoming, limit: Duration, conversation: Conversation) -> (RequestBody, Upload) {
        let upload = Upload::new();
        let body = UploadBody { watched: Watched::new(body, limit), upload: upload.clone(), conversation };
        (RequestBody(Some(body)), upload)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(body) = &mut self.0 else { return Poll::Ready(None) };
        let polled = body.watched.poll_frame(cx);
        body.upload.set(match &polled {
            Poll::Pending => UploadState::Client,
            Poll::Ready(None) => UploadState::Complete(Instant::now()),
            Poll::Ready(Some(Ok(_))) if body.watched.body.is_end_stream() => UploadState::Complete(Instant::now()),
            Poll::Ready(Some(Ok(_))) => UploadState::BackendSince(Instant::now()),
            Poll::Ready(Some(Err(BodyError::Stalled(_)))) => UploadState::Stalled,
            Poll::Ready(Some(Err(BodyError::Source(_)))) => UploadState::Failed,
        });
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|body| body.watched.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), |body| body.watched.body.size_hint())
    }
}

impl Drop for UploadBody {
    fn drop(&mut self) {
        if !matches!(self.upload.state(), UploadState::Complete(_)) && !self.watched.body.is_end_stream() {
            self.conversation.left_unread();
        }
    }
}

/// The body of a response to a client. While it lives, the client's turn lasts.
#[derive(Debug)]
pub struct ResponseBody {
    source: Source,
    /// Ends the client's turn when hyper has taken the last of the body, or has given up.
    _turn: Turn,
    exchange: Exchange,
}

#[derive(Debug)]
enum Source {
    /// A few words of the ingress itself.
    Text(Full<Bytes>),
    /// A backend's body, and the connection it comes on.
    Backend { watched: Watched, lease: Option<Lease> },
}

impl ResponseBody {
    /// A text of the ingress itself.
    #[must_use]
    pub fn text(text: String, turn: Turn, exchange: Exchange) -> ResponseBody {
        ResponseBody { source: Source::Text(Full::new(Bytes::from(text))), _turn: turn, exchange }
    }

    /// A backend's body; `lease` goes back to its pool once the body has been read to its end.
    #[must_use]
    pub fn backend(body: Incoming, limit: Duration, lease: Lease, turn: Turn, exchange: Exchange) -> ResponseBody {
        let source = Source::Backend { watched: Watched::new(body, limit), lease: Some(lease) };
        ResponseBody { source, _turn: turn, exchange }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let frame = match &mut this.source {
            Source::Text(text) => {
                ready!(Pin::new(text).poll_frame(cx)).map(|frame| frame.map_err(|never| match never {}))
            }
            Source::Backend { watched, lease } => {
                let frame = ready!(watched.poll_frame(cx));
                if matches!(frame, None | Some(Ok(_)))
                    && (frame.is_none() || watched.body.is_end_stream())
                    && let Some(lease) = lease.take()
                {
                    lease.give_back();
                }
                frame
            }
        };
        match &frame {
            Some(Ok(frame)) => this.exchange.sent(frame.data_ref().map_or(0, Bytes::len)),
            Some(Err(error)) => this.exchange.broke_off(error),
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Text(text) => text.is_end_stream(),
            Source::Backend { watched, .. } => watched.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Text(text) => text.size_hint(),
            Source::Backend { watched, .. } => watched.body.size_hint(),
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        // A body that is empty from the start (HEAD, 204, 304) is never polled.
        if let Source::Backend { watched, lease } = &mut self.source
            && watched.body.is_end_stream()
            && let Some(lease) = lease.take()
        {
            lease.give_back();
        }
    }
}
