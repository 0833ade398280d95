//! Runs one [`Link`] over a connection, and gives its streams to the tasks that use them.
//!
//! One task reads the connection, writes it and watches the time, all three at once: two routers that each waited to
//! write before they read could wait for each other for ever. The state machine stands behind a mutex; the tasks of
//! the streams call into it for the moment that copying a buffer takes, and are woken through [`Notify`].

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time;
use tracing::debug;

use crate::control::{CloseReason, ResetReason};
use crate::error::LinkError;
use crate::link::{Event, Identity, Link, Read};
use crate::name::Address;

/// Most bytes read from the connection at a time: some frames.
const READ_BYTES: usize = 64 * 1024;
/// How long a peer may take to read the Close of a link that has failed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What the router must know of a link.
pub(crate) enum Notice {
    /// The peer has said who it is.
    Established(Identity),
    /// The peer has consumers for exactly these addresses.
    Addresses(BTreeSet<Address>),
    /// The peer asks for a connection to a consumer.
    Incoming(LinkStream, Address),
}

/// Why a link ended.
#[derive(Debug)]
pub(crate) enum LinkEnd {
    /// The peer, or we, closed it.
    Closed(CloseReason),
    /// Something went wrong.
    Failed(LinkError),
}

/// Opens streams on a link and speaks for the router on it.
#[derive(Clone)]
pub(crate) struct LinkHandle(Arc<Shared>);

/// One stream of a link. When it is dropped before both directions have ended, it is reset.
pub(crate) struct LinkStream {
    shared: Arc<Shared>,
    id: u32,
    waiter: Arc<Waiter>,
    drop_reason: ResetReason,
}

struct Shared {
    state: Mutex<State>,
    /// There is something to send.
    output: Notify,
    /// What is due has changed, and may be due sooner.
    due: Notify,
}

struct State {
    link: Link,
    waiters: BTreeMap<u32, Arc<Waiter>>,
}

#[derive(Default)]
struct Waiter {
    readable: Notify,
    writable: Notify,
    was_reset: Notify,
    reset: OnceLock<ResetReason>,
}

impl LinkHandle {
    pub(crate) fn new(link: Link) -> LinkHandle {
        let state = Mutex::new(State { link, waiters: BTreeMap::new() });
        LinkHandle(Arc::new(Shared { state, output: Notify::new(), due: Notify::new() }))
    }

    /// Opens a stream to a consumer of `address`.
    pub(crate) fn open(&self, address: &Address) -> Result<LinkStream, ResetReason> {
        let mut state = self.0.lock();
        let id = state.link.open(address);
        let stream = id.map(|id| self.0.stream(&mut state, id));
        drop(state);
        self.0.output.notify_one();
        stream
    }

    /// Tells the peer which addresses there are consumers for here.
    pub(crate) fn advertise(&self, addresses: &BTreeSet<Address>) {
        self.0.lock().link.advertise(addresses);
        self.0.output.notify_one();
    }

    /// Ends the link at once.
    pub(crate) fn close(&self, reason: CloseReason) {
        self.0.lock().link.close(reason);
        self.0.output.notify_one();
    }

    /// Ends the link after its last stream.
    pub(crate) fn close_when_idle(&self, reason: CloseReason) {
        self.0.lock().link.close_when_idle(reason);
        self.0.output.notify_one();
    }

    /// Runs the link over `connection` until it ends; `notify` gets each notice in order.
    pub(crate) async fn drive<S, F>(&self, connection: S, notify: impl Fn(Notice) -> F) -> LinkEnd
    where
        S: AsyncRead + AsyncWrite,
        F: Future<Output = ()>,
    {
        let (reader, writer) = tokio::io::split(connection);
        let mut writing = pin!(self.0.write_all_output(writer));
        let (error, all_written) = tokio::select! {
            result = writing.as_mut() => (result.err(), true),
            error = self.0.read_all_input(reader, notify) => (error, false),
            error = self.0.watch_time() => (Some(error), false),
        };
        let closed = self.0.lock().link.closed();
        if let Some(error) = &error {
            self.0.lock().link.close(error.close_reason());
        }
        if !all_written && !matches!(error, Some(LinkError::Connection(_) | LinkError::UnexpectedEnd)) {
            // The peer is told why; whether it still reads is not our concern.
            self.0.output.notify_one();
            let _unread = time::timeout(CLOSE_TIMEOUT, writing).await;
        }
        self.0.end_streams();
        match (closed, error) {
            (Some(reason), _) => LinkEnd::Closed(reason),
            (None, Some(error)) => LinkEnd::Failed(error),
            (None, None) => LinkEnd::Failed(LinkError::UnexpectedEnd),
        }
    }
}

impl LinkStream {
    /// Sends all of `data`, waiting for room.
    pub(crate) async fn send(&self, mut data: &[u8]) -> Result<(), ResetReason> {
        while !data.is_empty() {
            let taken = self.shared.lock().link.write(self.id, data).ok_or_else(|| self.reset_reason())?;
            if taken > 0 {
                self.shared.output.notify_one();
                data = &data[taken..];
            } else {
                self.waiter.writable.notified().await;
            }
        }
        Ok(())
    }

    /// Ends our direction after what was sent.
    pub(crate) fn finish(&self) {
        self.shared.lock().link.finish(self.id);
        self.shared.output.notify_one();
    }

    /// Waits for bytes; none when the peer's direction has ended.
    pub(crate) async fn receive(&self) -> Result<Option<Vec<u8>>, ResetReason> {
        loop {
            let read = self.shared.lock().link.read(self.id);
            match read {
                Read::Data(data) => return Ok(Some(data)),
                Read::Finished => return Ok(None),
                Read::Gone => return Err(self.reset_reason()),
                Read::Pending => self.waiter.readable.notified().await,
            }
        }
    }

    /// Notes that `length` received bytes are in the socket.
    pub(crate) fn written(&self, length: usize) {
        self.shared.lock().link.written(self.id, length);
        self.shared.output.notify_one();
    }

    /// Tells the peer that the service is connected.
    pub(crate) fn opened(&self) {
        self.shared.lock().link.opened(self.id);
        self.shared.output.notify_one();
    }

    /// Waits until the peer, or the end of the link, resets the stream; for ever if neither does.
    pub(crate) async fn wait_reset(&self) -> ResetReason {
        loop {
            if let Some(reason) = self.waiter.reset.get() {
                return *reason;
            }
            self.waiter.was_reset.notified().await;
        }
    }

    /// Sets what the peer is told if the stream is dropped before its end.
    pub(crate) fn set_drop_reason(&mut self, reason: ResetReason) {
        self.drop_reason = reason;
    }

    /// Lets go of a stream whose both directions have ended for the user: what is still buffered goes out.
    pub(crate) fn complete(self) {
        self.shared.lock().waiters.remove(&self.id);
    }

    fn reset_reason(&self) -> ResetReason {
        self.waiter.reset.get().copied().unwrap_or(ResetReason::LinkDown)
    }
}

impl Drop for LinkStream {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        // A completed stream is no longer among the waiters.
        if state.waiters.remove(&self.id).is_some() {
            state.link.reset(self.id, self.drop_reason);
            drop(state);
            self.shared.output.notify_one();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in another task must not take the link's other streams with it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stream(self: &Arc<Self>, state: &mut State, id: u32) -> LinkStream {
        let waiter = Arc::new(Waiter::default());
        state.waiters.insert(id, Arc::clone(&waiter));
        LinkStream { shared: Arc::clone(self), id, waiter, drop_reason: ResetReason::ConnectionReset }
    }

    /// Feeds the link until it ends, by itself (none) or by an error.
    async fn read_all_input<F: Future<Output = ()>>(
        self: &Arc<Self>,
        mut reader: impl AsyncRead + Unpin,
        notify: impl Fn(Notice) -> F,
    ) -> Option<LinkError> {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(READ_BYTES);
            match reader.read_buf(&mut buffer).await {
                Ok(0) => return Some(LinkError::UnexpectedEnd),
                Ok(_) => {}
                Err(error) => return Some(LinkError::Connection(error.to_string())),
            }
            let (result, notices, closed) = {
                let mut state = self.lock();
                let result = state.link.handle_input(now(), &mut buffer);
                let notices = self.dispatch(&mut state);
                (result, notices, state.link.closed().is_some())
            };
            self.output.notify_one();
            for notice in notices {
                notify(notice).await;
            }
            match result {
                Err(error) => return Some(error),
                Ok(()) if closed => return None,
                Ok(()) => {}
            }
        }
    }

    /// Sends what the link has to send until it is closed and all is sent.
    async fn write_all_output(self: &Arc<Self>, mut writer: impl AsyncWrite + Unpin) -> Result<(), LinkError> {
        let failed = |error: std::io::Error| LinkError::Connection(error.to_string());
        let mut out = BytesMut::new();
        loop {
            let closed = {
                let mut state = self.lock();
                state.link.poll_output(&mut out);
                // Sending makes room in streams, and nothing else that anyone must know.
                drop(self.dispatch(&mut state));
                state.link.closed().is_some()
            };
            if !out.is_empty() {
                writer.write_all(&out).await.map_err(failed)?;
                writer.flush().await.map_err(failed)?;
                out.clear();
            } else if closed {
                return writer.shutdown().await.map_err(failed);
            } else {
                self.output.notified().await;
            }
        }
    }

    /// Lets the link do what is due, until it finds that the peer is dead.
    async fn watch_time(&self) -> LinkError {
        loop {
            let due = self.lock().link.poll_timeout();
            let Some(due) = due else { return std::future::pending().await };
            // Every frame heard puts what is due off, and no one is woken for that; only the first one, Hello, brings
            // it nearer.
            tokio::select! {
                () = time::sleep_until(due.into()) => {}
                () = self.due.notified() => continue,
            }
            let result = self.lock().link.handle_timeout(now());
            self.output.notify_one();
            if let Err(error) = result {
                return error;
            }
        }
    }

    /// Wakes the tasks of streams to which something happened, and returns what the router must know.
    fn dispatch(self: &Arc<Self>, state: &mut State) -> Vec<Notice> {
        let mut notices = Vec::new();
        while let Some(event) = state.link.poll_event() {
            match event {
                Event::Established(peer) => {
                    self.due.notify_one();
                    notices.push(Notice::Established(peer));
                }
                Event::Addresses(addresses) => notices.push(Notice::Addresses(addresses)),
                Event::Incoming { stream, address } => {
                    notices.push(Notice::Incoming(self.stream(state, stream), address));
                }
                Event::Opened(stream) => debug!(stream, "the peer has connected to the service"),
                Event::Readable(stream) => state.wake(stream, |waiter| waiter.readable.notify_one()),
                Event::Writable(stream) => state.wake(stream, |waiter| waiter.writable.notify_one()),
                Event::Reset(stream, reason) => {
                    if let Some(waiter) = state.waiters.remove(&stream) {
                        waiter.end(reason);
                    }
                }
            }
        }
        notices
    }

    /// Resets the streams that the end of the link has cut.
    fn end_streams(&self) {
        let State { link, waiters } = &mut *self.lock();
        waiters.retain(|id, waiter| {
            let is_complete = link.has_stream(*id);
            if !is_complete {
                waiter.end(ResetReason::LinkDown);
            }
            is_complete
        });
    }
}

impl State {
    fn wake(&self, stream: u32, how: impl Fn(&Waiter)) {
        if let Some(waiter) = self.waiters.get(&stream) {
            how(waiter);
        }
    }
}

impl Waiter {
    fn end(&self, reason: ResetReason) {
        // Only the first reason counts.
        let _was_set = self.reset.set(reason);
        self.readable.notify_one();
        self.writable.notify_one();
        self.was_reset.notify_one();
    }
}

/// The runtime's clock, so that tests can hold it.
fn now() -> Instant {
    time::Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame;
    use crate::link::Side;
    use crate::name::RouterId;

    const IDLE: Duration = Duration::from_secs(2);

    fn link(name: &str, side: Side) -> Link {
        Link::new(Identity { router: RouterId::new(name).unwrap(), instance: 1 }, side, IDLE, now())
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_falls_silent_is_given_up_after_the_idle_timeout() {
        let (near, mut far) = tokio::io::duplex(1024);
        let mut hello = BytesMut::new();
        link("B", Side::Listener).poll_output(&mut hello);
        far.write_all(&hello).await.unwrap();
        let started = time::Instant::now();
        let end = LinkHandle::new(link("A", Side::Connector)).drive(near, |_| async {}).await;
        assert!(matches!(end, LinkEnd::Failed(LinkError::Idle(IDLE))), "{end:?}");
        assert_eq!(started.elapsed().as_secs(), IDLE.as_secs());
    }

    #[tokio::test]
    async fn a_peer_that_breaks_the_protocol_is_told_so() {
        let (near, mut far) = tokio::io::duplex(1024);
        let mut wire = BytesMut::new();
        frame::encode_data(1, b"no Hello first", &mut wire);
        far.write_all(&wire).await.unwrap();
        let end = LinkHandle::new(link("A", Side::Connector)).drive(near, |_| async {}).await;
        assert!(matches!(end, LinkEnd::Failed(LinkError::HelloExpected)), "{end:?}");
        let mut answer = BytesMut::new();
        while far.read_buf(&mut answer).await.unwrap() > 0 {}
        let mut close = BytesMut::new();
        frame::encode_control(&crate::control::Control::Close { reason: CloseReason::Protocol }, &mut close);
        assert!(answer.ends_with(&close));
    }
}
