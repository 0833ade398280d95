//! Both ends of a link in one hand: requests and bytes in, frames and events out, and a clock that only the test moves.

use proptest::prelude::*;

use super::*;
use crate::frame::{Frame, MAX_PAYLOAD_BYTES};
use crate::name::MAX_NAME_BYTES;
use crate::stream::SEND_BUFFER_BYTES;

const IDLE: Duration = Duration::from_secs(8);

#[test]
fn both_sides_say_hello_and_learn_who_the_other_is() {
    let mut pair = Pair::new();
    pair.exchange();
    assert_eq!(pair.a.poll_event(), Some(Event::Established(identity("B"))));
    assert_eq!(pair.b.poll_event(), Some(Event::Established(identity("A"))));
}

#[test]
fn a_stream_is_opened_used_both_ways_and_forgotten() {
    let mut pair = Pair::established();
    let id = pair.a.open(&address("web:80")).unwrap();
    assert_eq!(pair.a.write(id, b"request"), Some(7));
    pair.a.finish(id);
    assert_eq!(
        frames(&output(&mut pair.a)),
        [
            control(Control::Open { stream: 1, address: "web:80".into() }),
            data(1, b"request"),
            control(Control::Fin { stream: 1 })
        ]
    );
    // The same again, this time delivered.
    let mut pair = Pair::established();
    let id = pair.a.open(&address("web:80")).unwrap();
    pair.a.write(id, b"request");
    pair.a.finish(id);
    pair.exchange();
    assert_eq!(
        events(&mut pair.b),
        [Event::Incoming { stream: 1, address: address("web:80") }, Event::Readable(1), Event::Readable(1)]
    );
    assert_eq!(pair.b.read(1), Read::Data(b"request".to_vec()));
    assert_eq!(pair.b.read(1), Read::Finished);
    pair.b.opened(1);
    pair.b.write(1, b"answer");
    pair.b.finish(1);
    pair.exchange();
    assert_eq!(events(&mut pair.a), [Event::Opened(1), Event::Readable(1), Event::Readable(1)]);
    assert_eq!(pair.a.read(1), Read::Data(b"answer".to_vec()));
    assert_eq!(pair.a.read(1), Read::Finished);
    assert_eq!((pair.a.read(1), pair.b.read(1)), (Read::Gone, Read::Gone));
}

#[test]
fn the_side_that_dialled_numbers_odd_and_the_other_even() {
    let mut pair = Pair::established();
    let x = address("x");
    assert_eq!((pair.a.open(&x), pair.a.open(&x)), (Ok(1), Ok(3)));
    assert_eq!((pair.b.open(&x), pair.b.open(&x)), (Ok(2), Ok(4)));
}

#[test]
fn streams_take_turns_frame_by_frame() {
    let mut pair = Pair::established();
    let ids = [0, 1].map(|_| pair.a.open(&address("x")).unwrap());
    for id in ids {
        pair.a.write(id, &vec![0; 3 * MAX_PAYLOAD_BYTES]);
    }
    let turns: Vec<u32> = frames(&output(&mut pair.a)).iter().filter_map(stream_of_data).collect();
    assert_eq!(turns, [1, 3, 1, 3, 1, 3]);
}

#[test]
fn a_stream_that_is_not_read_stops_at_its_window_and_the_others_go_on() {
    let mut pair = Pair::established();
    let (slow, fast) = (pair.a.open(&address("slow")).unwrap(), pair.a.open(&address("fast")).unwrap());
    let mut sent = 0;
    loop {
        let taken = pair.a.write(slow, &vec![0; SEND_BUFFER_BYTES]).unwrap();
        if taken == 0 {
            break;
        }
        sent += taken;
        pair.exchange();
    }
    assert_eq!(sent, WINDOW_BYTES as usize + SEND_BUFFER_BYTES, "the window and the send buffer");
    events(&mut pair.a);

    for _ in 0..20 {
        assert_eq!(pair.a.write(fast, &vec![1; SEND_BUFFER_BYTES]), Some(SEND_BUFFER_BYTES));
        pair.exchange();
        let Read::Data(data) = pair.b.read(fast) else { panic!("the fast stream stands still") };
        pair.b.written(fast, data.len());
        pair.exchange();
    }

    let Read::Data(data) = pair.b.read(slow) else { panic!("there is a window of data") };
    assert_eq!(data.len(), WINDOW_BYTES as usize);
    pair.b.written(slow, data.len());
    pair.exchange();
    assert!(events(&mut pair.a).contains(&Event::Writable(slow)));
}

#[test]
fn a_reset_reaches_the_other_side_and_late_frames_are_dropped() {
    let mut pair = Pair::established();
    let id = pair.a.open(&address("x")).unwrap();
    pair.exchange();
    events(&mut pair.b);
    pair.b.reset(id, ResetReason::ConnectFailed);
    pair.a.write(id, b"on its way");
    pair.exchange();
    assert_eq!(events(&mut pair.a), [Event::Reset(id, ResetReason::ConnectFailed)]);
    assert_eq!(events(&mut pair.b), []);
    assert_eq!(pair.a.write(id, b"more"), None);
}

#[test]
fn a_large_set_of_addresses_comes_in_parts_and_is_told_once() {
    let mut pair = Pair::established();
    let set: BTreeSet<Address> = (0..1000).map(|number| address(&format!("{number:0>MAX_NAME_BYTES$}"))).collect();
    pair.a.advertise(&set);
    let empty = BTreeSet::new();
    pair.a.advertise(&empty);
    pair.exchange();
    assert_eq!(events(&mut pair.b), [Event::Addresses(set), Event::Addresses(empty)]);
}

#[test]
fn a_silent_peer_is_asked_and_then_given_up() {
    let mut pair = Pair::established();
    pair.now += IDLE / 4;
    assert_eq!(pair.a.poll_timeout(), Some(pair.now));
    pair.a.handle_timeout(pair.now).unwrap();
    assert_eq!(frames(&output(&mut pair.a)), [control(Control::Ping { token: 1 })]);
    pair.now += IDLE * 3 / 4;
    assert_eq!(pair.a.handle_timeout(pair.now), Err(LinkError::Idle(IDLE)));
}

#[test]
fn a_peer_that_answers_pings_lives_for_ever() {
    let mut pair = Pair::established();
    for _ in 0..100 {
        pair.now = pair.a.poll_timeout().unwrap();
        pair.a.handle_timeout(pair.now).unwrap();
        pair.exchange();
    }
    assert_eq!(pair.a.closed(), None);
}

#[test]
fn a_peer_without_hello_is_given_up() {
    let now = Instant::now();
    let mut link = Link::new(identity("A"), Side::Connector, IDLE, now);
    assert_eq!(link.poll_timeout(), Some(now + HELLO_TIMEOUT));
    assert_eq!(link.handle_timeout(now + HELLO_TIMEOUT), Err(LinkError::HelloTimeout(HELLO_TIMEOUT)));
}

#[test]
fn what_breaks_the_protocol_is_named() {
    let open = |stream| Control::Open { stream, address: "x".into() };
    let long = || frame::MAX_PAYLOAD_BYTES;
    let cases: Vec<(Vec<Frame>, LinkError)> = vec![
        (vec![control(open(1))], LinkError::StreamNumber { stream: 1 }),
        (vec![control(open(4)), control(open(2))], LinkError::StreamNumber { stream: 2 }),
        (vec![data(2, b"x")], LinkError::UnknownStream { stream: 2, what: "data" }),
        (vec![control(Control::Fin { stream: 1 })], LinkError::UnknownStream { stream: 1, what: "Fin" }),
        (vec![control(Control::Fin { stream: 0 })], LinkError::UnknownStream { stream: 0, what: "Fin" }),
        (
            std::iter::once(control(open(2))).chain((0..17).map(|_| data(2, &vec![0; long()]))).collect(),
            LinkError::WindowExceeded { stream: 2 },
        ),
        (
            vec![control(open(2)), control(Control::Fin { stream: 2 }), data(2, b"x")],
            LinkError::DataAfterFin { stream: 2 },
        ),
        (
            vec![control(open(2)), control(Control::Window { stream: 2, credit_bytes: u32::MAX })],
            LinkError::CreditOverflow { stream: 2 },
        ),
        (vec![control(hello("B", VERSION))], LinkError::SecondHello),
    ];
    for (sent, error) in cases {
        let mut pair = Pair::established();
        assert_eq!(pair.a.handle_input(pair.now, &mut wire(&sent)), Err(error));
    }
}

#[test]
fn a_peer_of_our_own_name_or_another_version_is_refused() {
    let now = Instant::now();
    let first = |message| {
        let mut link = Link::new(identity("A"), Side::Connector, IDLE, now);
        link.handle_input(now, &mut wire(&[control(message)])).unwrap_err()
    };
    assert_eq!(first(hello("A", VERSION)), LinkError::OwnRouterId(RouterId::new("A").unwrap()));
    assert_eq!(first(hello("B", 9)), LinkError::Version { theirs: 9, ours: VERSION });
    assert_eq!(first(Control::Ping { token: 1 }), LinkError::HelloExpected);
}

#[test]
fn a_link_that_closes_when_idle_sends_everything_first_and_what_arrived_can_still_be_read() {
    let mut pair = Pair::established();
    let id = pair.a.open(&address("x")).unwrap();
    pair.a.finish(id);
    pair.exchange();
    events(&mut pair.b);
    assert_eq!(pair.b.read(id), Read::Finished);
    pair.b.write(id, b"the last words");
    pair.b.finish(id);
    pair.b.close_when_idle(CloseReason::ShuttingDown);
    pair.exchange();
    assert_eq!(pair.a.closed(), Some(CloseReason::ShuttingDown));
    assert_eq!(pair.a.read(id), Read::Data(b"the last words".to_vec()));
    assert_eq!(pair.a.read(id), Read::Finished);
}

#[test]
fn a_closed_link_drops_streams_that_are_not_complete() {
    let mut pair = Pair::established();
    let id = pair.a.open(&address("x")).unwrap();
    pair.exchange();
    pair.b.close(CloseReason::ShuttingDown);
    pair.exchange();
    assert_eq!(pair.a.read(id), Read::Gone);
    assert_eq!(pair.a.open(&address("x")), Err(ResetReason::LinkDown));
}

#[test]
fn used_up_stream_numbers_end_the_link() {
    let mut pair = Pair::established();
    pair.a.next_stream = Some(u32::MAX);
    assert_eq!(pair.a.open(&address("x")), Ok(u32::MAX));
    assert_eq!(pair.a.open(&address("x")), Err(ResetReason::LinkDown));
    assert_eq!(pair.a.closed(), Some(CloseReason::StreamsUsedUp));
}

#[test]
fn a_peer_that_pings_and_never_reads_makes_no_queue_grow() {
    let mut pair = Pair::established();
    let pings: Vec<Frame> = (0..1000).map(|token| control(Control::Ping { token })).collect();
    pair.a.handle_input(pair.now, &mut wire(&pings)).unwrap();
    assert_eq!(frames(&output(&mut pair.a)), [control(Control::Pong { token: 999 })]);
}

fn any_frame() -> impl Strategy<Value = Frame> {
    // Few numbers, so that frames often meet a stream that lives.
    let stream = || 0u32..12;
    prop_oneof![
        stream().prop_map(|stream| control(Control::Open { stream, address: "x".into() })),
        stream().prop_map(|stream| control(Control::Opened { stream })),
        stream().prop_map(|stream| control(Control::Fin { stream })),
        stream().prop_map(|stream| control(Control::Reset { stream, reason: ResetReason::ConnectionReset })),
        (stream(), any::<u32>()).prop_map(|(stream, credit_bytes)| control(Control::Window { stream, credit_bytes })),
        (1u32..12, 1usize..MAX_PAYLOAD_BYTES).prop_map(|(stream, length)| data(stream, &vec![0; length])),
        any::<u64>().prop_map(|token| control(Control::Ping { token })),
    ]
}

proptest! {
    #[test]
    fn whatever_a_peer_sends_a_stream_holds_no_more_than_its_window(
        sent in prop::collection::vec(any_frame(), 1..80)
    ) {
        let mut pair = Pair::established();
        let ours = pair.a.open(&address("x")).unwrap();
        pair.a.write(ours, b"some data");
        for frame in sent {
            if pair.a.handle_input(pair.now, &mut wire(&[frame])).is_err() {
                break;
            }
            output(&mut pair.a);
        }
        for stream in 0..12 {
            if let Read::Data(data) = pair.a.read(stream) {
                prop_assert!(data.len() <= WINDOW_BYTES as usize);
            }
        }
    }
}

/// `a` has dialled `b`.
struct Pair {
    a: Link,
    b: Link,
    now: Instant,
}

impl Pair {
    fn new() -> Pair {
        let now = Instant::now();
        let link = |name, side| Link::new(identity(name), side, IDLE, now);
        Pair { a: link("A", Side::Connector), b: link("B", Side::Listener), now }
    }

    fn established() -> Pair {
        let mut pair = Pair::new();
        pair.exchange();
        events(&mut pair.a);
        events(&mut pair.b);
        pair
    }

    /// Carries bytes both ways until neither side has any.
    fn exchange(&mut self) {
        loop {
            let (mut to_b, mut to_a) = (output(&mut self.a), output(&mut self.b));
            if to_b.is_empty() && to_a.is_empty() {
                break;
            }
            self.b.handle_input(self.now, &mut to_b).unwrap();
            self.a.handle_input(self.now, &mut to_a).unwrap();
        }
    }
}

fn identity(name: &str) -> Identity {
    Identity { router: RouterId::new(name).unwrap(), instance: 1 }
}

fn address(text: &str) -> Address {
    Address::new(text).unwrap()
}

fn hello(router: &str, version: u16) -> Control {
    Control::Hello { version, router: router.into(), instance: 1, window_bytes: WINDOW_BYTES }
}

fn control(message: Control) -> Frame {
    Frame::Control(message)
}

fn data(stream: u32, payload: &[u8]) -> Frame {
    Frame::Data { stream, payload: payload.to_vec().into() }
}

fn stream_of_data(frame: &Frame) -> Option<u32> {
    match frame {
        Frame::Data { stream, .. } => Some(*stream),
        Frame::Control(_) => None,
    }
}

/// All that the link sends now.
fn output(link: &mut Link) -> BytesMut {
    let mut all = BytesMut::new();
    loop {
        let mut out = BytesMut::new();
        link.poll_output(&mut out);
        if out.is_empty() {
            return all;
        }
        all.extend_from_slice(&out);
    }
}

fn events(link: &mut Link) -> Vec<Event> {
    std::iter::from_fn(|| link.poll_event()).collect()
}

fn frames(bytes: &BytesMut) -> Vec<Frame> {
    let mut bytes = bytes.clone();
    std::iter::from_fn(|| frame::decode(&mut bytes).unwrap()).collect()
}

fn wire(frames: &[Frame]) -> BytesMut {
    let mut out = BytesMut::new();
    for frame in frames {
        match frame {
            Frame::Control(message) => frame::encode_control(message, &mut out),
            Frame::Data { stream, payload } => frame::encode_data(*stream, payload, &mut out),
        }
    }
    out
}
