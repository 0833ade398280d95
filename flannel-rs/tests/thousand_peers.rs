//! A big cluster: a thousand peers at start, at once, and gone at once.

#![expect(clippy::unwrap_used, reason = "the helpers of these tests fail by panicking, as the tests do")]

mod support;

use std::time::{Duration, Instant};

use linux_net::testing::enter_sandbox;
use support::agent::Agent;
use support::lab::{Lab, run_in};
use support::{PREFIX, say, shell, wait_within};

const PEERS: usize = 1000;
/// etcd takes no more operations than this in one transaction.
const OPERATIONS: usize = 100;

/// Room for all: 11.0.16.0/20 to 11.255.240.0/20.
const CONFIG: &str = r#"{"Network": "11.0.0.0/8", "SubnetLen": 20, "Backend": {"Type": "vxlan", "VNI": 100}}"#;
const HOST_GW: &str = r#"{"Network": "11.0.0.0/8", "SubnetLen": 20, "Backend": {"Type": "host-gw"}}"#;

/// The lease of the peer with this number, from 0 on: its subnet, from 11.16.0.0 upwards, and its value.
fn peer(number: usize, is_overlay: bool) -> (String, String) {
    let (second, third) = (16 + number / 16, number % 16 * 16);
    let (high, low) = (number / 200, number % 200 + 20);
    let public_ip = if is_overlay { format!("10.8.{high}.{low}") } else { format!("10.9.0.{low}") };
    let backend = if is_overlay {
        format!(r#""BackendType":"vxlan","BackendData":{{"VNI":100,"VtepMAC":"02:00:00:01:{high:02x}:{low:02x}"}}"#)
    } else {
        r#""BackendType":"host-gw""#.to_owned()
    };
    (format!("11.{second}.{third}.0-20"), format!(r#"{{"PublicIP":"{public_ip}","PublicIPv6":null,{backend}}}"#))
}

/// Writes the leases of all peers, a transaction per hundred.
fn write_peers(lab: &Lab, is_overlay: bool) {
    for batch in 0..PEERS / OPERATIONS {
        let puts = (batch * OPERATIONS..(batch + 1) * OPERATIONS).map(|number| {
            let (subnet, value) = peer(number, is_overlay);
            format!("put {PREFIX}/subnets/{subnet} {value:?}\n")
        });
        let script = format!("\n{}\n\n", puts.collect::<String>());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), script).unwrap();
        shell(&format!(
            "ETCDCTL_API=3 etcdctl --endpoints {} txn < {} > /dev/null",
            lab.etcd.endpoint(),
            file.path().display()
        ));
    }
    assert_eq!(lab.etcd.subnets().len(), PEERS + usize::from(lab.subnet_file(1).exists()));
}

/// How many routes, neighbours and FDB entries there are.
fn counts() -> (usize, usize, usize) {
    let count = |command: &str, mark: &str| {
        run_in(1, command).unwrap_or_default().lines().filter(|line| line.contains(mark)).count()
    };
    (
        count("ip route show dev flannel.100", " onlink"),
        count("ip neigh show dev flannel.100", "PERMANENT"),
        count("bridge fdb show dev flannel.100", " dst "),
    )
}

#[track_caller]
fn wait_for_counts(wanted: usize, limit: Duration) -> Duration {
    let start = Instant::now();
    wait_within(limit, &format!("{wanted} peers"), || (counts() == (wanted, wanted, wanted)).then_some(()));
    start.elapsed()
}

fn start(lab: &Lab) -> Agent {
    lab.start_ready(1, &["--iptables-resync", "60"])
}

#[test]
fn a_thousand_leases_at_start_are_a_thousand_peers_and_few_lines_in_the_log() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::with_config(1, CONFIG);
    write_peers(&lab, true);
    let w1 = start(&lab);
    wait_for_counts(PEERS, Duration::from_secs(2));
    assert!(w1.log_lines() <= 20, "{} lines in the log", w1.log_lines());
    assert!(w1.http("/metrics").1.contains(&format!("flannel_peers {PEERS}")));

    // The device is deleted under all of them.
    let mac = w1.mac();
    w1.run("ip link del flannel.100");
    let took = wait_for_counts(PEERS, Duration::from_secs(5));
    assert_eq!(w1.mac(), mac);
    say(&format!("after the device was deleted, {PEERS} peers were back within {took:?}"));

    // All leases go at once.
    let own = w1.subnet();
    lab.etcd.ctl(&["del", &format!("{PREFIX}/subnets/11.16.0.0-20"), &format!("{PREFIX}/subnets/11.99.0.0-20")]);
    wait_for_counts(0, Duration::from_secs(5));
    assert_eq!(lab.etcd.subnets(), [own]);
    assert!(w1.log_lines() <= 40, "{} lines in the log", w1.log_lines());
}

#[test]
fn a_thousand_leases_that_come_while_the_agent_runs_become_peers() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::with_config(1, CONFIG);
    let w1 = start(&lab);
    let before = w1.log_lines();
    write_peers(&lab, true);
    wait_for_counts(PEERS, Duration::from_secs(5));
    assert!(w1.log_lines() - before <= 60, "{} lines in the log", w1.log_lines());
    // A restart finds them all in place and changes nothing.
    drop(w1);
    let w1 = lab.restart_ready(1, &[]);
    assert_eq!(counts(), (PEERS, PEERS, PEERS));
    assert_eq!(lab.etcd.subnets().len(), PEERS + 1);
    drop(w1);
}

#[test]
fn a_thousand_host_gw_peers_are_a_thousand_routes() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::with_config(1, HOST_GW);
    write_peers(&lab, false);
    let w1 = start(&lab);
    let routes = || w1.run("ip route show dev eth0").lines().filter(|line| line.contains("proto 70")).count();
    wait_within(Duration::from_secs(2), "all routes", || (routes() == PEERS).then_some(()));
    w1.run("ip link set eth0 down; ip link set eth0 up");
    wait_within(Duration::from_secs(5), "all routes again", || (routes() == PEERS).then_some(()));
}
