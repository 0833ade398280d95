//! What a link does with each frame of its peer, and what it does not put up with.

use std::time::Instant;

use bytes::BytesMut;

use super::{Event, Identity, Link, MAX_ADDRESSES, MAX_CONTROL_BACKLOG, MAX_STREAMS, Phase, Side};
use crate::control::{Control, ResetReason, VERSION};
use crate::error::LinkError;
use crate::frame::{self, Frame};
use crate::name::{Address, RouterId};

impl Link {
    /// Reads every whole frame in `buffer`; what is left is the beginning of the next.
    ///
    /// # Errors
    ///
    /// [`LinkError`] when the peer breaks the protocol. The link cannot go on: [`Link::close`] it.
    pub fn handle_input(&mut self, now: Instant, buffer: &mut BytesMut) -> Result<(), LinkError> {
        while self.closed().is_none() {
            let Some(frame) = frame::decode(buffer)? else { break };
            self.last_heard = now;
            match (frame, self.phase) {
                (Frame::Control(message), Phase::Established) => self.handle_control(message)?,
                (Frame::Data { stream, payload }, Phase::Established) => self.handle_data(stream, &payload)?,
                (Frame::Control(message), Phase::AwaitingHello { .. } | Phase::Closed(_)) => {
                    self.handle_hello(message)?;
                }
                (Frame::Data { .. }, Phase::AwaitingHello { .. } | Phase::Closed(_)) => {
                    return Err(LinkError::HelloExpected);
                }
            }
        }
        Ok(())
    }

    fn handle_hello(&mut self, message: Control) -> Result<(), LinkError> {
        let Control::Hello { version, router, instance, window_bytes } = message else {
            return Err(LinkError::HelloExpected);
        };
        if version != VERSION {
            return Err(LinkError::Version { theirs: version, ours: VERSION });
        }
        let peer = Identity { router: RouterId::new(&router)?, instance };
        if peer.router == self.local.router {
            return Err(LinkError::OwnRouterId(peer.router));
        }
        self.phase = Phase::Established;
        self.peer_window_bytes = window_bytes;
        self.events.push_back(Event::Established(peer));
        Ok(())
    }

    fn handle_control(&mut self, message: Control) -> Result<(), LinkError> {
        match message {
            Control::Hello { .. } => return Err(LinkError::SecondHello),
            Control::Advertise { sequence: _, more, addresses } => self.handle_addresses(more, &addresses)?,
            Control::Open { stream, address } => self.handle_open(stream, &address)?,
            Control::Opened { stream } => {
                if self.is_live(stream, "Opened")? {
                    self.events.push_back(Event::Opened(stream));
                }
            }
            Control::Window { stream, credit_bytes } => {
                if self.is_live(stream, "Window")? {
                    let honest = self.streams.get_mut(&stream).is_some_and(|state| state.send.grant(credit_bytes));
                    if !honest {
                        return Err(LinkError::CreditOverflow { stream });
                    }
                    self.queue_turn(stream);
                }
            }
            Control::Fin { stream } => {
                if self.is_live(stream, "Fin")? {
                    if let Some(state) = self.streams.get_mut(&stream) {
                        state.receive.finish();
                    }
                    self.events.push_back(Event::Readable(stream));
                }
            }
            Control::Reset { stream, reason } => {
                if self.is_live(stream, "Reset")? {
                    self.streams.remove(&stream);
                    self.events.push_back(Event::Reset(stream, reason));
                }
            }
            Control::Ping { token } => self.pong = Some(token),
            Control::Pong { token: _ } => {} // Being heard is all a pong is for.
            Control::Close { reason } => {
                self.end(reason);
                self.control.clear();
            }
        }
        if self.control.len() > MAX_CONTROL_BACKLOG {
            return Err(LinkError::Backlog(MAX_CONTROL_BACKLOG));
        }
        Ok(())
    }

    fn handle_addresses(&mut self, more: bool, addresses: &[String]) -> Result<(), LinkError> {
        for address in addresses {
            self.arriving.insert(Address::new(address)?);
        }
        if self.arriving.len() > MAX_ADDRESSES {
            return Err(LinkError::TooManyAddresses(MAX_ADDRESSES));
        }
        if !more {
            self.events.push_back(Event::Addresses(std::mem::take(&mut self.arriving)));
        }
        Ok(())
    }

    fn handle_open(&mut self, stream: u32, address: &str) -> Result<(), LinkError> {
        if stream <= self.last_peer_stream || self.is_ours(stream) {
            return Err(LinkError::StreamNumber { stream });
        }
        let address = Address::new(address)?;
        self.last_peer_stream = stream;
        if self.streams.len() >= MAX_STREAMS {
            self.control.push_back(Control::Reset { stream, reason: ResetReason::TooManyStreams });
        } else {
            self.insert(stream);
            self.events.push_back(Event::Incoming { stream, address });
        }
        Ok(())
    }

    fn handle_data(&mut self, stream: u32, payload: &[u8]) -> Result<(), LinkError> {
        if !self.is_live(stream, "data")? {
            return Ok(());
        }
        let Some(state) = self.streams.get_mut(&stream) else { return Ok(()) };
        if state.receive.is_finished() {
            return Err(LinkError::DataAfterFin { stream });
        }
        let was_empty = state.receive.is_empty();
        if !state.receive.store(payload) {
            return Err(LinkError::WindowExceeded { stream });
        }
        if was_empty {
            self.events.push_back(Event::Readable(stream));
        }
        Ok(())
    }

    /// Whether the stream of a frame exists. A frame for one that has ended was sent before the peer knew, and is
    /// dropped.
    fn is_live(&self, stream: u32, what: &'static str) -> Result<bool, LinkError> {
        if self.streams.contains_key(&stream) {
            return Ok(true);
        }
        let was_opened = if stream == 0 {
            false
        } else if self.is_ours(stream) {
            self.next_stream.is_none_or(|next| stream < next)
        } else {
            stream <= self.last_peer_stream
        };
        if was_opened { Ok(false) } else { Err(LinkError::UnknownStream { stream, what }) }
    }

    fn is_ours(&self, stream: u32) -> bool {
        match self.side {
            Side::Connector => !stream.is_multiple_of(2),
            Side::Listener => stream.is_multiple_of(2),
        }
    }
}
