//! One stream of a link: a TCP connection's two directions, each with its own credit.
//!
//! *Credit* is what keeps a slow reader from stopping the others. The link is one TCP connection, so a receiver that
//! simply stopped reading it would stop every stream on it. Instead the receiver says, stream by stream, how much it
//! has room for, and the sender holds back what exceeds that:
//!
//! ```text
//!   client → send buffer (≤ 64 KiB) → credit? → link → receive buffer (≤ the window, 256 KiB) → service
//!                                        ▲                                       │ written to the socket
//!                                        └─────────── Window{credit_bytes} ──────┘ (at each half window)
//! ```
//!
//! When the service reads slowly, its socket fills, then the receive buffer, then the credit is used up, then the
//! send buffer fills, and we stop reading the client's socket: TCP's own flow control slows the client down. Neither
//! router ever holds more for the stream than these two buffers.

use bytes::BytesMut;

use crate::frame::MAX_PAYLOAD_BYTES;

/// Credit a receiver gives each stream. At 1 ms of round trip it allows 2 Gbit/s for one stream; skupper-router has 1
/// MiB.
pub(crate) const WINDOW_BYTES: u32 = 256 * 1024;
/// Most bytes read from a socket that wait for their turn on the link.
pub(crate) const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// Most credit a peer may give: enough for any window, and far from overflow.
const MAX_CREDIT_BYTES: u32 = 1 << 30;

/// The direction out of this router.
#[derive(Debug)]
pub(crate) struct SendHalf {
    buffer: BytesMut,
    credit_bytes: u32,
    state: SendState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SendState {
    Open,
    /// The socket has no more; Fin goes out after the buffer.
    Finishing,
    Finished,
}

/// What a stream puts on the link when it is its turn.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Data(BytesMut),
    Fin,
}

impl SendHalf {
    pub(crate) fn new(credit_bytes: u32) -> SendHalf {
        SendHalf { buffer: BytesMut::new(), credit_bytes: credit_bytes.min(MAX_CREDIT_BYTES), state: SendState::Open }
    }

    /// Takes as much of `data` as there is room for, and returns how much that was.
    pub(crate) fn push(&mut self, data: &[u8]) -> usize {
        let taken = data.len().min(SEND_BUFFER_BYTES.saturating_sub(self.buffer.len()));
        self.buffer.extend_from_slice(&data[..taken]);
        taken
    }

    pub(crate) fn has_room(&self) -> bool {
        self.buffer.len() < SEND_BUFFER_BYTES
    }

    pub(crate) fn finish(&mut self) {
        if self.state == SendState::Open {
            self.state = SendState::Finishing;
        }
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.state == SendState::Finished
    }

    /// Whether [`SendHalf::turn`] would give something.
    pub(crate) fn is_ready(&self) -> bool {
        if self.buffer.is_empty() { self.state == SendState::Finishing } else { self.credit_bytes > 0 }
    }

    /// Takes what the next frame of this stream carries: at most a frame's payload, at most the credit.
    pub(crate) fn turn(&mut self) -> Option<Turn> {
        if !self.is_ready() {
            return None;
        }
        if self.buffer.is_empty() {
            self.state = SendState::Finished;
            return Some(Turn::Fin);
        }
        let length = self.buffer.len().min(MAX_PAYLOAD_BYTES).min(self.credit_bytes as usize);
        // The minimum above keeps `length` within the credit's own type.
        self.credit_bytes -= u32::try_from(length).unwrap_or(self.credit_bytes);
        Some(Turn::Data(self.buffer.split_to(length)))
    }

    /// Adds credit; false if the sum is more than any honest peer gives.
    pub(crate) fn grant(&mut self, credit_bytes: u32) -> bool {
        match self.credit_bytes.checked_add(credit_bytes) {
            Some(sum) if sum <= MAX_CREDIT_BYTES => {
                self.credit_bytes = sum;
                true
            }
            _ => false,
        }
    }
}

/// The direction into this router.
#[derive(Debug)]
pub(crate) struct ReceiveHalf {
    buffer: Vec<u8>,
    window_bytes: u32,
    /// What the peer may still send.
    allowance_bytes: u32,
    /// What was written to the socket and not yet given back as credit.
    owed_bytes: u32,
    finished: bool,
}

impl ReceiveHalf {
    pub(crate) fn new(window_bytes: u32) -> ReceiveHalf {
        ReceiveHalf { buffer: Vec::new(), window_bytes, allowance_bytes: window_bytes, owed_bytes: 0, finished: false }
    }

    /// Stores data from the link; false if the peer had no credit for it.
    pub(crate) fn store(&mut self, data: &[u8]) -> bool {
        let Some(rest) = u32::try_from(data.len()).ok().and_then(|length| self.allowance_bytes.checked_sub(length))
        else {
            return false;
        };
        self.allowance_bytes = rest;
        self.buffer.extend_from_slice(data);
        true
    }

    /// Takes all data that has arrived. The buffer's memory goes with it, so that an idle stream holds none.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.buffer)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Notes that `length` bytes were written to the socket. Returns credit to give: at each half window, so that the
    /// sender never runs dry while the reader keeps up, and not more often, so that messages about credit stay few.
    pub(crate) fn written(&mut self, length: usize) -> Option<u32> {
        self.owed_bytes =
            self.owed_bytes.saturating_add(u32::try_from(length).unwrap_or(u32::MAX)).min(self.window_bytes);
        if self.finished || self.owed_bytes < self.window_bytes / 2 {
            return None;
        }
        let credit_bytes = std::mem::take(&mut self.owed_bytes);
        self.allowance_bytes += credit_bytes;
        Some(credit_bytes)
    }

    pub(crate) fn finish(&mut self) {
        self.finished = true;
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.finished
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_waits_for_credit_and_fin_waits_for_data() {
        let mut send = SendHalf::new(3);
        assert_eq!(send.push(b"hello"), 5);
        send.finish();
        assert_eq!(send.turn(), Some(Turn::Data(BytesMut::from("hel"))));
        assert_eq!(send.turn(), None);
        assert!(send.grant(10));
        assert_eq!(send.turn(), Some(Turn::Data(BytesMut::from("lo"))));
        assert_eq!(send.turn(), Some(Turn::Fin));
        assert_eq!(send.turn(), None);
        assert!(send.is_finished());
    }

    #[test]
    fn the_send_buffer_is_bounded_and_a_turn_is_one_frame() {
        let mut send = SendHalf::new(WINDOW_BYTES);
        assert_eq!(send.push(&vec![0; SEND_BUFFER_BYTES + 1]), SEND_BUFFER_BYTES);
        assert!(!send.has_room());
        let Some(Turn::Data(data)) = send.turn() else { panic!("there is data and credit") };
        assert_eq!(data.len(), MAX_PAYLOAD_BYTES);
        assert!(send.has_room());
    }

    #[test]
    fn a_peer_cannot_overflow_the_credit() {
        let mut send = SendHalf::new(u32::MAX);
        assert!(!send.grant(1));
        assert!(!send.grant(u32::MAX));
    }

    #[test]
    fn credit_is_given_back_at_half_a_window_and_never_exceeds_it() {
        let mut receive = ReceiveHalf::new(100);
        assert!(receive.store(&[0; 100]));
        assert!(!receive.store(&[0]), "no credit is left");
        assert_eq!(receive.take().len(), 100);
        assert_eq!(receive.written(49), None);
        assert_eq!(receive.written(1), Some(50));
        assert!(receive.store(&[0; 50]));
        assert!(!receive.store(&[0]));
    }

    #[test]
    fn no_credit_is_given_after_the_end() {
        let mut receive = ReceiveHalf::new(10);
        assert!(receive.store(&[0; 10]));
        receive.finish();
        assert_eq!(receive.written(10), None);
    }
}
