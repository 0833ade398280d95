//! How the link's byte stream is cut into frames.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |     type      |       length of the payload in bytes          |
//! +---------------+-----------------------------------------------+
//! |                           stream                              |
//! +---------------------------------------------------------------+
//! |  payload: at most 16,384 bytes ...
//! +-----------------------------------
//! ```
//!
//! Integers of the header are big-endian. Type 0 is a control frame: stream 0, payload one [`Control`] message in
//! bincode. Type 1 is a data frame: the payload is the TCP bytes themselves, so that bulk data is never parsed.
//!
//! The limit of 16 KiB (that of skupper-router's frames, and of a TLS record) is what lets many streams take turns:
//! it is the longest that a short message waits behind one stream's bulk data. It also bounds what a peer can make us
//! allocate.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;

use crate::control::Control;

/// Bytes before the payload: type 1, length 3, stream 4.
pub const HEADER_BYTES: usize = 8;
/// Most bytes of payload in one frame.
pub const MAX_PAYLOAD_BYTES: usize = 16 * 1024;

const TYPE_CONTROL: u8 = 0;
const TYPE_DATA: u8 = 1;

/// The first bytes of a peer that speaks AMQP 1.0, as skupper-router does.
const AMQP_PREFACE: &[u8] = b"AMQP";

/// bincode's standard encoding, refusing any message that claims to need more than a frame can hold.
const BINCODE: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<MAX_PAYLOAD_BYTES>,
> = bincode::config::standard().with_limit::<MAX_PAYLOAD_BYTES>();

/// One frame of the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A message about the link or a stream.
    Control(Control),
    /// Bytes of a stream.
    Data {
        /// The stream, never 0.
        stream: u32,
        /// 1 to [`MAX_PAYLOAD_BYTES`] bytes.
        payload: Bytes,
    },
}

/// Bytes that are no frame. The link cannot go on after it: where the next frame begins is unknown or not to be
/// trusted.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    /// The peer speaks the protocol of skupper-router.
    #[error("the peer speaks AMQP, which this router does not; link it to another interconnect-rs")]
    Amqp,
    /// A type other than 0 and 1.
    #[error("unknown frame type {0:#04x}; is the peer an interconnect-rs, and does it use TLS exactly when we do?")]
    Type(u8),
    /// The payload is longer than a frame may be.
    #[error("a frame of {0} bytes is longer than the {MAX_PAYLOAD_BYTES} allowed")]
    TooLong(usize),
    /// A frame with no payload, or a control frame for a stream, or data for stream 0.
    #[error("frame type {kind} with stream {stream} and {length} bytes makes no sense")]
    Header {
        /// Its type.
        kind: u8,
        /// Its stream.
        stream: u32,
        /// The length of its payload.
        length: usize,
    },
    /// The payload of a control frame is no control message.
    #[error("a control frame cannot be read: {0}")]
    Control(String),
}

/// Takes the first frame off `buffer`, or nothing if it is not all there yet.
///
/// Nothing is allocated for a frame before its length has been checked; a data frame's payload shares `buffer`'s
/// memory.
///
/// # Errors
///
/// [`FrameError`] for bytes that cannot be a frame, as soon as that is certain.
pub fn decode(buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    let Some(&kind) = buffer.first() else { return Ok(None) };
    if kind > TYPE_DATA {
        return if buffer.starts_with(AMQP_PREFACE) {
            Err(FrameError::Amqp)
        } else if buffer.len() < AMQP_PREFACE.len() && AMQP_PREFACE.starts_with(buffer) {
            Ok(None)
        } else {
            Err(FrameError::Type(kind))
        };
    }
    let Some(mut header) = buffer.get(..HEADER_BYTES) else { return Ok(None) };
    // A length of three bytes always fits, on any machine.
    let length = (header.get_u32() & 0x00ff_ffff) as usize;
    let stream = header.get_u32();
    if length > MAX_PAYLOAD_BYTES {
        return Err(FrameError::TooLong(length));
    }
    if length == 0 || (kind == TYPE_CONTROL) != (stream == 0) {
        return Err(FrameError::Header { kind, stream, length });
    }
    if buffer.len() < HEADER_BYTES + length {
        return Ok(None);
    }
    buffer.advance(HEADER_BYTES);
    let payload = buffer.split_to(length);
    if kind == TYPE_DATA {
        return Ok(Some(Frame::Data { stream, payload: payload.freeze() }));
    }
    let (message, used) =
        bincode::decode_from_slice(&payload, BINCODE).map_err(|error| FrameError::Control(error.to_string()))?;
    if used != length {
        return Err(FrameError::Control(format!("{} bytes too many", length - used)));
    }
    Ok(Some(Frame::Control(message)))
}

/// Appends a control frame to `out`.
///
/// # Panics
///
/// When the message is longer than a frame: texts in it are names of at most [`crate::name::MAX_NAME_BYTES`], and
/// lists are cut by whoever makes the message.
pub fn encode_control(message: &Control, out: &mut BytesMut) {
    let payload =
        bincode::encode_to_vec(message, BINCODE).expect("control messages hold plain integers, names and short lists");
    put(TYPE_CONTROL, 0, &payload, out);
}

/// Appends a data frame to `out`.
///
/// # Panics
///
/// When `payload` is empty or longer than [`MAX_PAYLOAD_BYTES`], or `stream` is 0.
pub fn encode_data(stream: u32, payload: &[u8], out: &mut BytesMut) {
    assert!(stream != 0 && !payload.is_empty(), "a data frame has a stream and at least a byte");
    put(TYPE_DATA, stream, payload, out);
}

fn put(kind: u8, stream: u32, payload: &[u8], out: &mut BytesMut) {
    assert!(payload.len() <= MAX_PAYLOAD_BYTES, "a frame holds at most {MAX_PAYLOAD_BYTES} bytes");
    out.reserve(HEADER_BYTES + payload.len());
    out.put_u8(kind);
    out.put_uint(payload.len() as u64, 3);
    out.put_u32(stream);
    out.put_slice(payload);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::control::{CloseReason, ResetReason};

    #[test]
    fn the_bytes_of_every_control_frame_are_known() {
        let known: [(Control, &[u8]); 10] = [
            (
                Control::Hello { version: 1, router: "C0".into(), instance: 1000, window_bytes: 262_144 },
                &[0, 0, 0, 13, 0, 0, 0, 0, 0, 1, 2, b'C', b'0', 251, 0xe8, 0x03, 252, 0, 0, 4, 0],
            ),
            (
                Control::Advertise { sequence: 2, more: false, addresses: vec!["web:80".into()] },
                &[0, 0, 0, 11, 0, 0, 0, 0, 1, 2, 0, 1, 6, b'w', b'e', b'b', b':', b'8', b'0'],
            ),
            (Control::Open { stream: 1, address: "a".into() }, &[0, 0, 0, 4, 0, 0, 0, 0, 2, 1, 1, b'a']),
            (Control::Opened { stream: 1 }, &[0, 0, 0, 2, 0, 0, 0, 0, 3, 1]),
            (Control::Window { stream: 1, credit_bytes: 9 }, &[0, 0, 0, 3, 0, 0, 0, 0, 4, 1, 9]),
            (Control::Fin { stream: 2 }, &[0, 0, 0, 2, 0, 0, 0, 0, 5, 2]),
            (Control::Reset { stream: 2, reason: ResetReason::ConnectFailed }, &[0, 0, 0, 3, 0, 0, 0, 0, 6, 2, 1]),
            (Control::Ping { token: 7 }, &[0, 0, 0, 2, 0, 0, 0, 0, 7, 7]),
            (Control::Pong { token: 7 }, &[0, 0, 0, 2, 0, 0, 0, 0, 8, 7]),
            (Control::Close { reason: CloseReason::DuplicateRouter }, &[0, 0, 0, 2, 0, 0, 0, 0, 9, 1]),
        ];
        for (message, bytes) in known {
            let mut out = BytesMut::new();
            encode_control(&message, &mut out);
            assert_eq!(&out[..], bytes, "{message:?}");
            assert_eq!(decode(&mut out), Ok(Some(Frame::Control(message))));
            assert!(out.is_empty());
        }
    }

    #[test]
    fn the_bytes_of_a_data_frame_are_known() {
        let mut out = BytesMut::new();
        encode_data(0x0102_0304, b"hi", &mut out);
        assert_eq!(&out[..], [1, 0, 0, 2, 1, 2, 3, 4, b'h', b'i']);
        assert_eq!(decode(&mut out), Ok(Some(Frame::Data { stream: 0x0102_0304, payload: Bytes::from_static(b"hi") })));
    }

    #[test]
    fn malformed_frames_are_named() {
        let error = |bytes: &[u8]| decode(&mut BytesMut::from(bytes)).unwrap_err();
        assert_eq!(error(b"AMQP\x03\x01\x00\x00"), FrameError::Amqp);
        assert_eq!(error(b"GET / HTTP/1.1"), FrameError::Type(b'G'));
        assert_eq!(error(&[1, 0, 0x40, 1, 0, 0, 0, 1]), FrameError::TooLong(16_385));
        assert_eq!(error(&[1, 0xff, 0xff, 0xff, 0, 0, 0, 1]), FrameError::TooLong(0x00ff_ffff));
        assert_eq!(error(&[1, 0, 0, 1, 0, 0, 0, 0, 9]), FrameError::Header { kind: 1, stream: 0, length: 1 });
        assert_eq!(error(&[0, 0, 0, 1, 0, 0, 0, 5, 9]), FrameError::Header { kind: 0, stream: 5, length: 1 });
        assert_eq!(error(&[1, 0, 0, 0, 0, 0, 0, 5]), FrameError::Header { kind: 1, stream: 5, length: 0 });
        assert_eq!(error(&[0, 0, 0, 3, 0, 0, 0, 0, 7, 7, 7]), FrameError::Control("1 bytes too many".into()));
        assert!(matches!(error(&[0, 0, 0, 1, 0, 0, 0, 0, 99]), FrameError::Control(_)));
    }

    #[test]
    fn a_list_that_claims_to_be_huge_is_refused_before_it_is_allocated() {
        // Advertise, sequence 0, no more, then a list of 2^32 - 1 addresses in a frame of eight bytes.
        let bytes = [0, 0, 0, 8, 0, 0, 0, 0, 1, 0, 0, 252, 0xff, 0xff, 0xff, 0xff];
        let FrameError::Control(text) = decode(&mut BytesMut::from(&bytes[..])).unwrap_err() else { panic!() };
        assert_eq!(text, "LimitExceeded");
    }

    #[test]
    fn a_frame_is_not_taken_before_it_is_whole() {
        let mut whole = BytesMut::new();
        encode_control(&Control::Open { stream: 3, address: "web:80".into() }, &mut whole);
        for length in 0..whole.len() {
            let mut part = BytesMut::from(&whole[..length]);
            assert_eq!(decode(&mut part), Ok(None));
            assert_eq!(part.len(), length);
        }
    }

    fn any_frame() -> impl Strategy<Value = Frame> {
        let stream = 1u32..;
        prop_oneof![
            (stream.clone(), prop::collection::vec(any::<u8>(), 1..600))
                .prop_map(|(stream, payload)| Frame::Data { stream, payload: payload.into() }),
            (stream.clone(), "[a-z]{1,12}:[0-9]{1,5}")
                .prop_map(|(stream, address)| Frame::Control(Control::Open { stream, address })),
            (any::<u64>(), any::<bool>(), prop::collection::vec("[a-z.:0-9]{1,20}", 0..60)).prop_map(
                |(sequence, more, addresses)| Frame::Control(Control::Advertise { sequence, more, addresses })
            ),
            (stream, any::<u32>())
                .prop_map(|(stream, credit_bytes)| Frame::Control(Control::Window { stream, credit_bytes })),
            (any::<u16>(), "[A-Za-z0-9]{1,9}", any::<u64>(), any::<u32>()).prop_map(
                |(version, router, instance, window_bytes)| {
                    Frame::Control(Control::Hello { version, router, instance, window_bytes })
                }
            ),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_however_it_is_cut(
            frames in prop::collection::vec(any_frame(), 1..8), cut in 1usize..50
        ) {
            let mut wire = BytesMut::new();
            for frame in &frames {
                match frame {
                    Frame::Control(message) => encode_control(message, &mut wire),
                    Frame::Data { stream, payload } => encode_data(*stream, payload, &mut wire),
                }
            }
            let (mut received, mut buffer) = (Vec::new(), BytesMut::new());
            for piece in wire.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = decode(&mut buffer).unwrap() {
                    received.push(frame);
                }
            }
            prop_assert_eq!(received, frames);
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = decode(&mut buffer) {}
        }

        #[test]
        fn a_random_control_payload_never_panics(bytes in prop::collection::vec(any::<u8>(), 1..300)) {
            let mut buffer = BytesMut::new();
            put(TYPE_CONTROL, 0, &bytes, &mut buffer);
            prop_assert!(!matches!(decode(&mut buffer), Ok(None)));
        }
    }
}
