//! Every daemon that dies comes back, and its function with it.

use std::time::Duration;

use nix::sys::signal::Signal;
use tests::Lab;

/// How long a function may take to come back.
const BACK_WITHIN: Duration = Duration::from_secs(30);

/// Kills a daemon the hard way and waits until another process does its work.
fn kill_and_await(lab: &mut Lab, node: &str, daemon: &str) -> anyhow::Result<()> {
    let before = lab.daemon_pid(node, daemon)?;
    lab.type_line(&format!("sh kill -{} {before}", Signal::SIGKILL as i32))?;
    tests::eventually(&format!("the return of {node} {daemon}"), BACK_WITHIN, || {
        lab.daemon_pid(node, daemon).is_ok_and(|pid| pid != before)
    })?;
    assert!(lab.said().contains(&format!("{node} {daemon} (pid {before}) was killed by SIGKILL")), "{}", lab.said());
    Ok(())
}

#[test]
fn a_killed_overlay_agent_returns_with_its_subnet() -> anyhow::Result<()> {
    let mut lab = Lab::boot("flannel", &[])?;
    let subnet = lab.type_line("sh cat /tmp/knetsim/C0w1/flannel-subnet.env")?;
    kill_and_await(&mut lab, "C0w1", "flannel")?;
    // A route that somebody deletes comes back only where an agent is at work.
    lab.type_line("C0w1 ip route del $(ip route | grep -m1 flannel.100)")?;
    lab.until("C0w1 ip route", BACK_WITHIN, |routes| routes.matches("dev flannel.100").count() == 2)?;
    assert_eq!(lab.type_line("sh cat /tmp/knetsim/C0w1/flannel-subnet.env")?, subnet);
    lab.until("C0w1.c1 ping -c1 -W1 100.64.10.1", BACK_WITHIN, |output| output.contains("1 received"))?;
    Ok(())
}

#[test]
fn a_killed_service_proxy_returns_and_programs_what_changed() -> anyhow::Result<()> {
    let mut lab = Lab::boot("kproxy", &[])?;
    kill_and_await(&mut lab, "C0w1", "kproxy")?;
    lab.type_line("py C0.kp_vip_add(\"100.64.10.7\", [\"c2\"])")?;
    lab.until("C0w1.c1 ping -c1 -W1 100.64.10.7", BACK_WITHIN, |output| output.contains("1 received"))?;
    Ok(())
}

#[test]
fn a_killed_etcd_member_returns_with_its_data() -> anyhow::Result<()> {
    let mut lab = Lab::boot("etcd", &[])?;
    kill_and_await(&mut lab, "C0e1", "etcd")?;
    lab.until("C0e1 etcdctl endpoint health 2>&1", BACK_WITHIN, |output| output.contains("is healthy"))?;
    let config = lab.type_line("C0e1 etcdctl get /coreos.com/network/config")?;
    assert!(config.contains("\"Network\": \"11.0.0.0/8\""), "{config}");
    // The daemons that watch it go on: a service that is made now is programmed.
    lab.type_line("py C0.kp_vip_add(\"100.64.10.8\", [\"c3\"])")?;
    lab.until("C0w1.c1 ping -c1 -W1 100.64.10.8", BACK_WITHIN, |output| output.contains("1 received"))?;
    Ok(())
}

#[test]
fn a_killed_ingress_and_a_killed_router_return() -> anyhow::Result<()> {
    let mut lab = Lab::boot("ingress", &[])?;
    kill_and_await(&mut lab, "C0w1", "ingress-grp1")?;
    lab.until("C0e1 curl -s 10.0.0.3:8001/svc1", BACK_WITHIN, |output| output.contains("S1-W"))?;
    for node in ["C0w1", "C1w1"] {
        kill_and_await(&mut lab, node, "interconnect")?;
        lab.until("C1w1.c1 curl -s 10.0.0.8:1028", BACK_WITHIN, |output| output.contains("Directory listing"))?;
    }
    Ok(())
}

#[test]
fn an_exposed_container_is_found_again_when_it_is_made_anew() -> anyhow::Result<()> {
    let mut lab = Lab::boot("expose", &[])?;
    lab.type_line("py C0w3.delete_container(\"c4\")")?;
    lab.type_line("py C0w3.create_container(\"c4\")")?;
    lab.type_line("py C0w3.exec_container_async(\"c4\", \"knetsim serve --port 80 --text again\")")?;
    lab.until("C1w1.c1 curl -s --max-time 2 10.0.0.8:1028", BACK_WITHIN, |output| output.contains("again"))?;
    Ok(())
}
