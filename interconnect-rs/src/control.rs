//! What routers say to each other about the link and its streams.
//!
//! A [`Control`] message travels as the payload of a control frame ([`crate::frame`]), encoded by bincode in its
//! standard configuration: the number of the variant as a varint, then the fields in order; integers as varints (one
//! byte below 251), text and lists with their length before them. The order of variants and of fields is therefore
//! the protocol: new ones go to the end, and any other change raises [`VERSION`].

use std::fmt;

use bincode::{Decode, Encode};

/// Version of the link protocol. Routers of different versions do not link.
pub const VERSION: u16 = 1;

/// One message about the link or about one of its streams.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Control {
    /// First message in each direction; nothing may come before it.
    Hello {
        /// [`VERSION`] of the sender.
        version: u16,
        /// The sender's router id.
        router: String,
        /// Start time of the sender's process in Unix milliseconds: tells a restarted router from a second one of the
        /// same name.
        instance: u64,
        /// Credit in bytes that the other side has at the start of every stream.
        window_bytes: u32,
    },
    /// All addresses that the sender has consumers for. Replaces what was advertised before. Sent at once after
    /// [`Control::Hello`] and at every change; a set too large for one frame comes in parts.
    Advertise {
        /// One more at every change; all parts of a set bear the same.
        sequence: u64,
        /// Another part of the set follows.
        more: bool,
        /// The addresses of this part.
        addresses: Vec<String>,
    },
    /// Asks for a connection to a consumer of `address`. Data may follow at once, within the initial credit.
    Open {
        /// The new stream: odd from the side that dialled the link, even from the other; each greater than the last.
        stream: u32,
        /// The service wanted.
        address: String,
    },
    /// The connection to the consumer stands.
    Opened {
        /// The stream.
        stream: u32,
    },
    /// The other side may send `credit_bytes` more: so many have been written to the socket here.
    Window {
        /// The stream.
        stream: u32,
        /// Bytes to add to the credit.
        credit_bytes: u32,
    },
    /// No more data from the sender; the other direction goes on (TCP's FIN).
    Fin {
        /// The stream.
        stream: u32,
    },
    /// The stream is over in both directions, and data may be lost (TCP's RST).
    Reset {
        /// The stream.
        stream: u32,
        /// Why.
        reason: ResetReason,
    },
    /// Asks for a [`Control::Pong`] with the same token.
    Ping {
        /// Any number.
        token: u64,
    },
    /// Answer to [`Control::Ping`].
    Pong {
        /// The number of the ping.
        token: u64,
    },
    /// Last message of a link: the sender closes the connection after it.
    Close {
        /// Why.
        reason: CloseReason,
    },
}

/// Why a stream ended before both sides had finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ResetReason {
    /// No `tcpConnector` here offers the address.
    NoConsumer,
    /// The service behind the `tcpConnector` cannot be connected to.
    ConnectFailed,
    /// The TCP connection at the sender's end was reset or failed.
    ConnectionReset,
    /// The link already carries as many streams as the sender allows.
    TooManyStreams,
    /// The `tcpListener` or `tcpConnector` of the stream was taken out of the configuration.
    Removed,
    /// The sender is being stopped.
    ShuttingDown,
    /// The link itself is gone. Never on the wire.
    LinkDown,
}

/// Why a router closes a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum CloseReason {
    /// It is being stopped.
    ShuttingDown,
    /// The other side's router id is its own, or that of a router that started later.
    DuplicateRouter,
    /// It speaks another [`VERSION`].
    Version,
    /// It received what the protocol does not allow.
    Protocol,
    /// It has heard nothing for the idle time-out.
    Idle,
    /// Its stream numbers are used up; the next link starts anew.
    StreamsUsedUp,
}

impl ResetReason {
    /// The reason in one word, for logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ResetReason::NoConsumer => "no-consumer",
            ResetReason::ConnectFailed => "connect-failed",
            ResetReason::ConnectionReset => "connection-reset",
            ResetReason::TooManyStreams => "too-many-streams",
            ResetReason::Removed => "removed",
            ResetReason::ShuttingDown => "shutting-down",
            ResetReason::LinkDown => "link-down",
        }
    }

    /// Whether the stream never reached a service. skupper-router then ends the client's connection with an orderly
    /// EOF; a stream that was cut later is reset, so that the client does not take a part for the whole.
    #[must_use]
    pub fn never_connected(self) -> bool {
        match self {
            ResetReason::NoConsumer | ResetReason::ConnectFailed | ResetReason::TooManyStreams => true,
            ResetReason::ConnectionReset | ResetReason::Removed | ResetReason::ShuttingDown | ResetReason::LinkDown => {
                false
            }
        }
    }
}

impl fmt::Display for ResetReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CloseReason::ShuttingDown => "the router is being stopped",
            CloseReason::DuplicateRouter => "another router has the same id; give each router its own `id`",
            CloseReason::Version => "the routers speak different versions of the link protocol",
            CloseReason::Protocol => "a frame broke the link protocol",
            CloseReason::Idle => "nothing was heard for the idle time-out",
            CloseReason::StreamsUsedUp => "the stream numbers are used up",
        })
    }
}
