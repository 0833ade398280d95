//! What can go wrong: with a link, with certificates, with the process. Mistakes in the configuration are
//! [`crate::config::ConfigError`].

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use crate::control::CloseReason;
use crate::frame::FrameError;
use crate::name::{NameError, RouterId};

/// Why a link cannot go on: the peer broke the protocol or fell silent.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum LinkError {
    /// Bytes that are no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A name in a message is none.
    #[error("the peer sent an invalid name: {0}")]
    Name(#[from] NameError),
    /// Something came before Hello.
    #[error("the peer's first frame is not a Hello")]
    HelloExpected,
    /// Hello came twice.
    #[error("the peer sent a second Hello")]
    SecondHello,
    /// No Hello came.
    #[error("the peer sent no Hello within {0:?}")]
    HelloTimeout(Duration),
    /// The peer speaks another version.
    #[error(
        "the peer speaks version {theirs} of the link protocol, this router version {ours}; run the same release on both sides"
    )]
    Version {
        /// The peer's.
        theirs: u16,
        /// Ours.
        ours: u16,
    },
    /// The peer bears our own name.
    #[error("the peer's router id {0} is our own; give each router its own `id`")]
    OwnRouterId(RouterId),
    /// Nothing was heard.
    #[error("nothing was heard from the peer for {0:?}")]
    Idle(Duration),
    /// Open with a number that is not the peer's to give, or not above its last.
    #[error("the peer opened stream {stream}, a number that is not its own or was used before")]
    StreamNumber {
        /// The number.
        stream: u32,
    },
    /// A frame for a stream that never was.
    #[error("{what} for stream {stream}, which was never opened")]
    UnknownStream {
        /// The number.
        stream: u32,
        /// The frame.
        what: &'static str,
    },
    /// More data than there was credit for.
    #[error("data for stream {stream} exceeds the credit given")]
    WindowExceeded {
        /// The stream.
        stream: u32,
    },
    /// Data after Fin.
    #[error("data for stream {stream} after its Fin")]
    DataAfterFin {
        /// The stream.
        stream: u32,
    },
    /// Credit beyond any sense.
    #[error("the credit for stream {stream} overflows")]
    CreditOverflow {
        /// The stream.
        stream: u32,
    },
    /// Too many addresses advertised.
    #[error("the peer advertises more than {0} addresses")]
    TooManyAddresses(usize),
    /// The peer makes us answer and does not read the answers.
    #[error("more than {0} control messages wait for the peer, which does not read them")]
    Backlog(usize),
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Connection(String),
    /// The peer ended the connection without a Close.
    #[error("the peer ended the connection without saying why")]
    UnexpectedEnd,
}

impl LinkError {
    /// What to tell the peer.
    #[must_use]
    pub fn close_reason(&self) -> CloseReason {
        match self {
            LinkError::Version { .. } => CloseReason::Version,
            LinkError::OwnRouterId(_) => CloseReason::DuplicateRouter,
            LinkError::Idle(_) | LinkError::HelloTimeout(_) => CloseReason::Idle,
            LinkError::Frame(_)
            | LinkError::Name(_)
            | LinkError::HelloExpected
            | LinkError::SecondHello
            | LinkError::StreamNumber { .. }
            | LinkError::UnknownStream { .. }
            | LinkError::WindowExceeded { .. }
            | LinkError::DataAfterFin { .. }
            | LinkError::CreditOverflow { .. }
            | LinkError::TooManyAddresses(_)
            | LinkError::Backlog(_)
            | LinkError::Connection(_)
            | LinkError::UnexpectedEnd => CloseReason::Protocol,
        }
    }
}

/// An `sslProfile` that cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file of it cannot be read as PEM, or holds nothing of its kind.
    #[error("sslProfile {profile}: cannot read {attribute} {}", path.display())]
    Read {
        /// Its name.
        profile: String,
        /// Which file.
        attribute: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls_pki_types::pem::Error,
    },
    /// The certificates and the key do not fit together.
    #[error("sslProfile {profile}: {what}")]
    Unusable {
        /// Its name.
        profile: String,
        /// What does not work.
        what: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Why the router cannot start or go on.
#[derive(Debug, Error)]
pub enum RunError {
    /// An `sslProfile` is unusable.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A `listener` cannot listen.
    #[error("cannot listen on {address} ({what})")]
    Listen {
        /// Where.
        address: String,
        /// Which listener of the configuration.
        what: &'static str,
        /// Why not: in use, not an address of this network namespace, or a port below 1024 without the right to it.
        source: io::Error,
    },
    /// The runtime or a signal handler cannot be had.
    #[error("cannot start {what}")]
    Start {
        /// What was being started.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}
