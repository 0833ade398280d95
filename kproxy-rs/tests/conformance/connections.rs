//! TCP connections that live on.

use crate::support::program::{self, Program, is_ours_only};
use crate::support::traffic::{ask, connect, echoes, greeting, serve_tcp};
use crate::support::{Lab, PATIENCE, eventually, nft_in};
use crate::{HTTP, VIP, is_done, web};

#[test]
fn connections_survive_a_restart_and_new_ones_never_fail() {
    if is_done() {
        return;
    }
    let mut lab = Lab::new(3);
    (1..=2).for_each(|n| serve_tcp(lab.pod(n), 8080));
    lab.serve("web", VIP, &[80], &[1, 2]);
    let to = format!("{VIP}:80");
    eventually("the Service is served", || ask(lab.pod(3), &to).is_ok());
    let stream = connect(lab.pod(3), &to).unwrap();
    greeting(&stream).unwrap();
    let (client, target) = (lab.pod(3).clone(), to.clone());
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let clients = std::thread::spawn(move || {
        let mut connections = 0;
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            ask(&client, &target).unwrap();
            connections += 1;
        }
        connections
    });
    let before = lab.tables();
    lab.kill_proxy();
    lab.start_proxy();
    let status = lab.terminate_proxy();
    assert!(ask(lab.pod(3), &to).is_ok(), "the table serves on its own");
    lab.start_proxy();
    drop(stop);
    assert!(clients.join().unwrap() > 10);
    assert!(echoes(&stream));
    if program::tested() == Program::Ours {
        assert!(status.success());
        assert_eq!(lab.tables(), before, "a Service keeps its id");
    }
}

#[test]
fn nothing_is_left_after_cleanup() {
    if is_done() {
        return;
    }
    let mut lab = web();
    lab.kill_proxy();
    let succeeded = lab.cleanup() && lab.cleanup();
    assert_eq!(lab.nft("list ruleset"), "");
    if !is_ours_only(
        "--cleanup also looks for what its other modes left, and says that it failed where there is no ipset",
    ) {
        assert!(succeeded, "there may be nothing to clean up");
    }
}

#[test]
fn connections_live_on_while_the_other_endpoints_come_and_go() {
    if is_done() {
        return;
    }
    let lab = Lab::new(3);
    (1..=2).for_each(|n| serve_tcp(lab.pod(n), 8080));
    lab.serve("web", VIP, &[80], &[1]);
    let to = format!("{VIP}:80");
    eventually("the Service is served", || ask(&lab.outside, &to).is_ok());
    let stream = connect(&lab.outside, &to).unwrap();
    assert_eq!(greeting(&stream).unwrap().0, "p1");
    for _ in 0..5 {
        lab.serve("web", VIP, &[80], &[2]);
        eventually("p2 alone", || ask(&lab.outside, &to).is_ok_and(|(pod, _)| pod == "p2"));
        lab.serve("web", VIP, &[80], &[1, 2]);
        eventually("p1 too", || ask(&lab.outside, &to).is_ok_and(|(pod, _)| pod == "p1"));
    }
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(echoes(&stream));
}

/// A packet that conntrack cannot place is not translated. If it went on to the client as it is, the client, who knows nobody of that
/// address, would answer with a reset, and that would end the connection. For a client that is masqueraded the worker would do so.
///
/// Source: Kubernetes issue 74839.
#[test]
fn a_packet_out_of_the_window_does_not_reset_its_connection() {
    if is_ours_only("it lets such packets pass, as its iptables mode does not; the connection is reset") || is_done() {
        return;
    }
    let lab = web();
    for from in [lab.pod(2), &lab.outside] {
        let stream = connect(from, HTTP).unwrap();
        greeting(&stream).unwrap();
        // The server's answers leave with another sequence number for a while, a quarter of all numbers or more ahead: what lies behind
        // conntrack takes for a repetition.
        nft_in(lab.pod(1), "add table ip faults");
        nft_in(lab.pod(1), "add chain ip faults out { type filter hook output priority 0 ; }");
        nft_in(lab.pod(1), "add chain ip faults shift");
        nft_in(lab.pod(1), "add rule ip faults out tcp sport 8080 tcp flags & psh == psh counter jump shift");
        for quarter in 0..4_u32 {
            let (first, far) = (quarter << 30, (quarter << 30).wrapping_add(0x7fff_ff00));
            let last = first + 0x3fff_ffff;
            nft_in(
                lab.pod(1),
                &format!("add rule ip faults shift tcp sequence {first}-{last} tcp sequence set {far} accept"),
            );
        }
        let reader = stream.try_clone().unwrap();
        let echo = std::thread::spawn(move || echoes(&reader));
        eventually("some of them have left", || {
            !nft_in(lab.pod(1), "list table ip faults").contains("counter packets 0 bytes 0")
        });
        std::thread::sleep(std::time::Duration::from_millis(300));
        nft_in(lab.pod(1), "delete table ip faults");
        assert!(echo.join().unwrap(), "{}: the answer comes as soon as it is repeated as it should be", from.name());
    }
}
