//! The state machine of one link: bytes, time and requests in; bytes and events out.
//!
//! No socket, clock or task is in here, so a test can hold both ends of a link in its hands. `transport` is what runs
//! one over TLS. Nothing above this module knows frames: it speaks of streams and addresses. Another link protocol
//! (AMQP 1.0, which skupper-router speaks) is a second type with these same methods and [`Event`]s.
//!
//! ```text
//!                 handle_input(bytes)   handle_timeout(now)
//!                          │                  │
//!                          ▼                  ▼
//!   open, write,  ┌─────────────────────────────────┐  poll_event: Established, Addresses, Incoming,
//!   read, finish, │ Hello? → streams, credit, turns │ ───────────► Opened, Readable, Writable, Reset
//!   reset ───────►└─────────────────────────────────┘
//!                          │                  │
//!                          ▼                  ▼
//!                 poll_output(bytes)     poll_timeout
//! ```

mod input;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::BytesMut;

use crate::control::{CloseReason, Control, ResetReason, VERSION};
use crate::error::LinkError;
use crate::frame;
use crate::name::{Address, RouterId};
use crate::stream::{ReceiveHalf, SendHalf, Turn, WINDOW_BYTES};

/// How long a peer may take from the connection to its Hello.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Most streams on one link at a time, of both sides together. With both buffers full a stream needs 320 KiB.
pub const MAX_STREAMS: usize = 65_536;
/// Most addresses a peer may advertise.
pub const MAX_ADDRESSES: usize = 65_536;
/// Most control messages that wait for a peer that does not read; one that lets more gather is cut off.
const MAX_CONTROL_BACKLOG: usize = 4 * MAX_STREAMS;
/// Addresses in one Advertise: 60 × (255 bytes + 3 for the length) is just below the 16,384 of a frame.
const ADDRESSES_PER_FRAME: usize = 60;
/// Output is handed out in pieces of about this size: a few frames, so that a new message soon gets its turn.
const OUTPUT_BYTES: usize = 64 * 1024;

/// Which side this router is on. It decides who numbers streams odd, nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It dialled the link (a `connector`): odd streams.
    Connector,
    /// It was dialled (a `listener`): even streams.
    Listener,
}

/// Who a router is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its name.
    pub router: RouterId,
    /// When its process started, in Unix milliseconds.
    pub instance: u64,
}

/// What happened on the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer said Hello; streams may be opened.
    Established(Identity),
    /// The peer has consumers for these addresses, and no others.
    Addresses(BTreeSet<Address>),
    /// The peer asks for a connection to a consumer of `address`.
    Incoming {
        /// The new stream.
        stream: u32,
        /// What is wanted.
        address: Address,
    },
    /// The consumer of a stream that we opened is connected.
    Opened(u32),
    /// A stream that had nothing to read has data, or its end.
    Readable(u32),
    /// A stream whose send buffer was full has room.
    Writable(u32),
    /// The peer gave up a stream; it is gone.
    Reset(u32, ResetReason),
}

/// What [`Link::read`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// Bytes, at least one.
    Data(Vec<u8>),
    /// Nothing yet; [`Event::Readable`] will come.
    Pending,
    /// The peer has sent all it will.
    Finished,
    /// There is no such stream (any more).
    Gone,
}

/// One link to one peer, from connection to end.
#[derive(Debug)]
pub struct Link {
    local: Identity,
    idle_timeout: Duration,
    phase: Phase,
    streams: BTreeMap<u32, Stream>,
    side: Side,
    /// The number for our next stream, none when all are used up.
    next_stream: Option<u32>,
    /// The highest number the peer has used. Frames for a lower one that is not in `streams` belong to a stream that
    /// has ended.
    last_peer_stream: u32,
    peer_window_bytes: u32,
    control: VecDeque<Control>,
    /// Set when the link is to end after its last stream.
    closing: Option<CloseReason>,
    /// Streams with something to send, in the order of their turns. Each is in here at most once.
    turns: VecDeque<u32>,
    events: VecDeque<Event>,
    advertised: u64,
    arriving: BTreeSet<Address>,
    last_heard: Instant,
    last_ping: Instant,
    pings: u64,
    /// At most one pong waits: a peer that pings faster than it reads gets the last one.
    pong: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    AwaitingHello { deadline: Instant },
    Established,
    Closed(CloseReason),
}

#[derive(Debug)]
struct Stream {
    send: SendHalf,
    receive: ReceiveHalf,
    /// Whether the stream is in `turns`.
    queued: bool,
    /// Whether [`Link::read`] has told the end of the peer's direction.
    end_was_read: bool,
}

impl Link {
    /// A link whose connection has just been made. Our Hello is its first output.
    ///
    /// A peer from which nothing comes for `idle_timeout` is taken for dead; it is asked (Ping) after a quarter of
    /// that.
    #[must_use]
    pub fn new(local: Identity, side: Side, idle_timeout: Duration, now: Instant) -> Link {
        let hello = Control::Hello {
            version: VERSION,
            router: local.router.to_string(),
            instance: local.instance,
            window_bytes: WINDOW_BYTES,
        };
        Link {
            local,
            idle_timeout,
            phase: Phase::AwaitingHello { deadline: now + HELLO_TIMEOUT },
            streams: BTreeMap::new(),
            side,
            next_stream: Some(match side {
                Side::Connector => 1,
                Side::Listener => 2,
            }),
            last_peer_stream: 0,
            peer_window_bytes: 0,
            control: VecDeque::from([hello]),
            closing: None,
            turns: VecDeque::new(),
            events: VecDeque::new(),
            advertised: 0,
            arriving: BTreeSet::new(),
            last_heard: now,
            last_ping: now,
            pings: 0,
            pong: None,
        }
    }

    /// Does what is due: asks a silent peer whether it lives.
    ///
    /// # Errors
    ///
    /// [`LinkError::HelloTimeout`] and [`LinkError::Idle`] when the peer has been silent too long.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), LinkError> {
        match self.phase {
            Phase::AwaitingHello { deadline } if now >= deadline => Err(LinkError::HelloTimeout(HELLO_TIMEOUT)),
            Phase::Established if now >= self.last_heard + self.idle_timeout => Err(LinkError::Idle(self.idle_timeout)),
            Phase::Established if now >= self.next_ping() => {
                self.last_ping = now;
                self.pings += 1;
                self.control.push_back(Control::Ping { token: self.pings });
                Ok(())
            }
            Phase::AwaitingHello { .. } | Phase::Established | Phase::Closed(_) => Ok(()),
        }
    }

    /// When [`Link::handle_timeout`] is to be called next; never for a closed link.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.phase {
            Phase::AwaitingHello { deadline } => Some(deadline),
            Phase::Established => Some(self.next_ping().min(self.last_heard + self.idle_timeout)),
            Phase::Closed(_) => None,
        }
    }

    /// Appends frames to `out` until it holds some 64 KiB or there is nothing to send: first what was said about the
    /// link and its streams, then one data frame of each stream in turn.
    pub fn poll_output(&mut self, out: &mut BytesMut) {
        if let Some(token) = self.pong.take() {
            frame::encode_control(&Control::Pong { token }, out);
        }
        while out.len() < OUTPUT_BYTES {
            if let Some(message) = self.control.pop_front() {
                frame::encode_control(&message, out);
            } else if let Some(id) = self.turns.pop_front() {
                self.take_turn(id, out);
            } else if let Some(reason) = self.closing.take_if(|_| self.streams.is_empty()) {
                self.close(reason);
            } else {
                break;
            }
        }
    }

    /// The next thing that happened, in order.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Why the link has ended, by [`Link::close`] or by the peer's Close; none while it lives.
    #[must_use]
    pub fn closed(&self) -> Option<CloseReason> {
        match self.phase {
            Phase::Closed(reason) => Some(reason),
            Phase::AwaitingHello { .. } | Phase::Established => None,
        }
    }

    /// Tells the peer for which addresses we have consumers.
    pub fn advertise(&mut self, addresses: &BTreeSet<Address>) {
        self.advertised += 1;
        let mut rest: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        loop {
            let later = rest.split_off(rest.len().min(ADDRESSES_PER_FRAME));
            let more = !later.is_empty();
            self.control.push_back(Control::Advertise { sequence: self.advertised, more, addresses: rest });
            if !more {
                break;
            }
            rest = later;
        }
    }

    /// Opens a stream to a consumer of `address`.
    ///
    /// # Errors
    ///
    /// The reason why the link cannot carry one more.
    pub fn open(&mut self, address: &Address) -> Result<u32, ResetReason> {
        if self.phase != Phase::Established {
            return Err(ResetReason::LinkDown);
        }
        if self.streams.len() >= MAX_STREAMS {
            return Err(ResetReason::TooManyStreams);
        }
        let Some(id) = self.next_stream else {
            self.close(CloseReason::StreamsUsedUp);
            return Err(ResetReason::LinkDown);
        };
        self.next_stream = id.checked_add(2);
        self.insert(id);
        self.control.push_back(Control::Open { stream: id, address: address.to_string() });
        Ok(id)
    }

    /// Tells the peer that the consumer of a stream it opened is connected.
    pub fn opened(&mut self, stream: u32) {
        if self.streams.contains_key(&stream) {
            self.control.push_back(Control::Opened { stream });
        }
    }

    /// Takes as much of `data` for sending as the stream has room for. When that is not all, [`Event::Writable`] will
    /// come. None when there is no such stream (any more).
    pub fn write(&mut self, stream: u32, data: &[u8]) -> Option<usize> {
        let taken = self.streams.get_mut(&stream)?.send.push(data);
        self.queue_turn(stream);
        Some(taken)
    }

    /// Ends our direction of the stream, after what was written.
    pub fn finish(&mut self, stream: u32) {
        if let Some(state) = self.streams.get_mut(&stream) {
            state.send.finish();
            self.queue_turn(stream);
        }
    }

    /// Takes what has arrived on the stream.
    pub fn read(&mut self, stream: u32) -> Read {
        let Some(state) = self.streams.get_mut(&stream) else { return Read::Gone };
        if !state.receive.is_empty() {
            return Read::Data(state.receive.take());
        }
        if !state.receive.is_finished() {
            return Read::Pending;
        }
        state.end_was_read = true;
        self.retire(stream);
        Read::Finished
    }

    /// Notes that `length` bytes of those read have gone to the socket, so that the peer gets credit for more.
    pub fn written(&mut self, stream: u32, length: usize) {
        if let Some(credit_bytes) = self.streams.get_mut(&stream).and_then(|state| state.receive.written(length)) {
            self.control.push_back(Control::Window { stream, credit_bytes });
        }
    }

    /// Gives a stream up, dropping what waits in it.
    pub fn reset(&mut self, stream: u32, reason: ResetReason) {
        if self.streams.remove(&stream).is_some() {
            self.control.push_back(Control::Reset { stream, reason });
        }
    }

    /// Ends the link: a Close is the last thing to send.
    pub fn close(&mut self, reason: CloseReason) {
        if self.closed().is_none() {
            self.end(reason);
            self.control.push_back(Control::Close { reason });
        }
    }

    /// Ends the link once the last stream has; until then new ones are still possible, so the caller opens none.
    pub fn close_when_idle(&mut self, reason: CloseReason) {
        self.closing = Some(reason);
    }

    /// Whether a stream can still be used: it lives, or all of it has arrived and only waits to be read.
    #[must_use]
    pub fn has_stream(&self, stream: u32) -> bool {
        self.streams.contains_key(&stream)
    }

    /// Drops the streams that are not complete. What has arrived of the others can still be read.
    fn end(&mut self, reason: CloseReason) {
        self.phase = Phase::Closed(reason);
        self.streams.retain(|_, state| state.send.is_finished() && state.receive.is_finished());
        self.turns.clear();
    }

    fn next_ping(&self) -> Instant {
        self.last_heard.max(self.last_ping) + self.idle_timeout / 4
    }

    fn insert(&mut self, id: u32) {
        let state = Stream {
            send: SendHalf::new(self.peer_window_bytes),
            receive: ReceiveHalf::new(WINDOW_BYTES),
            queued: false,
            end_was_read: false,
        };
        self.streams.insert(id, state);
    }

    fn queue_turn(&mut self, id: u32) {
        if let Some(state) = self.streams.get_mut(&id)
            && !state.queued
            && state.send.is_ready()
        {
            state.queued = true;
            self.turns.push_back(id);
        }
    }

    fn take_turn(&mut self, id: u32, out: &mut BytesMut) {
        let Some(state) = self.streams.get_mut(&id) else { return };
        state.queued = false;
        let had_room = state.send.has_room();
        match state.send.turn() {
            Some(Turn::Data(data)) => frame::encode_data(id, &data, out),
            Some(Turn::Fin) => frame::encode_control(&Control::Fin { stream: id }, out),
            None => return,
        }
        if !had_room {
            self.events.push_back(Event::Writable(id));
        }
        self.queue_turn(id);
        self.retire(id);
    }

    /// Forgets a stream of which both directions have ended and been read.
    fn retire(&mut self, id: u32) {
        if self.streams.get(&id).is_some_and(|state| state.send.is_finished() && state.end_was_read) {
            self.streams.remove(&id);
        }
    }
}
