//! Labs with other backends of the overlay than the default one's.

use anyhow::Context;
use tests::Lab;

/// The default lab with another `Backend` in its network configuration.
fn boot(backend: &str) -> anyhow::Result<Lab> {
    let conf = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf");
    let directory = tempfile::tempdir()?;
    let mut config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(conf.join("flannel-network-config.json"))?)?;
    config["Backend"] = serde_json::from_str(backend)?;
    std::fs::write(directory.path().join("flannel-network-config.json"), config.to_string())?;
    let file = directory.path().join("lab.toml");
    std::fs::copy(conf.join("lab.toml"), &file)?;
    Lab::boot("backend", &["--lab", file.to_str().context("a path in UTF-8")?])
}

/// Both labs come up with all checks passed: a service, the ingress, the interconnect. What is left to see is the way.
fn peers_are_reached_directly(lab: &mut Lab) -> anyhow::Result<()> {
    let routes = lab.type_line("C0w1 ip route show proto 70")?;
    for worker in ["via 10.0.0.4 dev C0w1-eth0", "via 10.0.0.5 dev C0w1-eth0"] {
        assert!(routes.contains(worker), "{worker} is missing:\n{routes}");
    }
    let output = lab.type_line("C0w1.c1 ping -c 2 -i 0.1 100.64.10.1")?;
    assert!(output.contains(" 0% packet loss"), "{output}");
    Ok(())
}

#[test]
fn with_host_gw_workers_are_each_others_routers_and_pods_keep_the_whole_mtu() -> anyhow::Result<()> {
    let mut lab = boot(r#"{"Type": "host-gw"}"#)?;
    peers_are_reached_directly(&mut lab)?;
    assert!(lab.type_line("C0w1.c1 ip link show eth0")?.contains("mtu 1500"));
    assert!(!lab.type_line("C0w1 ip link show type vxlan")?.contains("flannel"));
    Ok(())
}

#[test]
fn with_direct_routing_workers_on_one_link_do_without_vxlan() -> anyhow::Result<()> {
    let mut lab = boot(r#"{"Type": "vxlan", "VNI": 100, "DirectRouting": true}"#)?;
    peers_are_reached_directly(&mut lab)?;
    // The device is there for workers behind a router, of which this lab has none.
    assert!(lab.type_line("C0w1 ip link show type vxlan")?.contains("flannel.100"));
    assert_eq!(lab.type_line("C0w1 bridge fdb show dev flannel.100")?.trim(), "");
    Ok(())
}
