//! A MAC address that is not the one announced.
//!
//! Reports: flannel #1788, #1795, #533.

use std::time::Duration;

use linux_net::testing::enter_sandbox;

use crate::start;
use crate::support::lab::Lab;
use crate::support::{shell, wait_for, wait_within};

/// The value of a lease of worker 2 as a peer.
fn lease(mac: &str) -> String {
    format!(
        r#"{{"PublicIP":"10.9.0.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":100,"VtepMAC":"{mac}"}}}}"#
    )
}

const OLD: &str = "02:00:00:00:00:0a";
const NEW: &str = "02:00:00:00:00:0b";

/// udev and `NetworkManager` have rules that give devices a MAC address. flanneld compares only when it makes the device, so the lease goes
/// on announcing an address that the device does not answer to (seen).
#[test]
fn a_mac_that_somebody_changed_is_set_back_to_the_one_announced() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::configured(2);
    let (w1, w2) = (start(&lab, 1), start(&lab, 2));
    wait_for("the peer", || w1.reaches(&w2).then_some(()));
    let mac = w1.mac();
    for other in ["02:00:00:00:00:01", "02:00:00:00:00:02"] {
        w1.run(&format!("ip link set flannel.100 address {other}"));
        wait_within(Duration::from_secs(1), "the announced MAC, with the peer", || {
            (w1.mac() == mac && w1.reaches(&w2)).then_some(())
        });
    }
    assert!(lab.etcd.value(&w1.subnet()).contains(&mac.unwrap()));
}

/// flanneld appends the new FDB entry and leaves the former one (seen).
#[test]
fn a_peer_with_a_new_mac_loses_its_old_fdb_entry() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::configured(2);
    let w1 = start(&lab, 1);
    for mac in [OLD, NEW] {
        lab.etcd.put("11.20.0.0-20", &lease(mac));
        wait_for("the peer", || (w1.entries_towards("11.20.0.0", mac, "10.9.0.2") == 3).then_some(()));
    }
    wait_for("the former MAC to go", || {
        (!w1.run("bridge fdb show dev flannel.100; ip neigh").contains(OLD)).then_some(())
    });
}

/// As above, when the change is found at start.
#[test]
fn a_peer_that_changed_its_mac_while_the_agent_was_down_loses_its_old_fdb_entry() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::configured(2);
    lab.etcd.put("11.20.0.0-20", &lease(OLD));
    let w1 = start(&lab, 1);
    wait_for("the peer", || (w1.entries_towards("11.20.0.0", OLD, "10.9.0.2") == 3).then_some(()));
    drop(w1);
    lab.etcd.put("11.20.0.0-20", &lease(NEW));
    let w1 = start(&lab, 1);
    wait_for("the peer", || (w1.entries_towards("11.20.0.0", NEW, "10.9.0.2") == 3).then_some(()));
    wait_for("the former MAC to go", || {
        (!w1.run("bridge fdb show dev flannel.100; ip neigh").contains(OLD)).then_some(())
    });
}

/// After a reboot there is no device, and no subnet file in `/run`. flanneld finds its subnet by its address, but draws a new MAC
/// address, which every peer has to learn (seen).
#[test]
fn a_rebooted_worker_has_its_subnet_and_its_mac_again() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::configured(2);
    let (w2, w1) = (start(&lab, 2), start(&lab, 1));
    wait_for("the peer", || w2.reaches(&w1).then_some(()));
    let (subnet, mac, value) = (w1.subnet(), w1.mac(), lab.etcd.value(&w1.subnet()));
    drop(w1);
    shell("ip -n w1 link del flannel.100");
    std::fs::remove_file(lab.subnet_file(1)).unwrap();
    let w1 = start(&lab, 1);
    assert_eq!((w1.subnet(), w1.mac(), lab.etcd.value(&subnet)), (subnet.clone(), mac, value));
    assert!(w2.reaches(&w1) && w1.reaches(&w2));
}

/// The device of a former run bears another MAC address than the lease announces. Whichever is kept, device, lease and peers must agree
/// at the end. flanneld writes the device's address into the lease, and its peers keep the former FDB entry beside the new one (seen).
#[test]
fn at_start_lease_and_device_are_brought_to_one_mac() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::configured(2);
    let (w2, w1) = (start(&lab, 2), start(&lab, 1));
    drop(w1);
    shell("ip -n w1 link set flannel.100 address 02:00:00:00:00:0c");
    let w1 = start(&lab, 1);
    wait_for("one MAC in lease, device and peer", || {
        let mac = w1.mac()?;
        (lab.etcd.value(&w1.subnet()).contains(&mac) && w2.reaches(&w1)).then_some(())
    });
}
