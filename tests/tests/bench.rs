//! `knetsim bench` measures, and writes what it measured.

use anyhow::Context;
use tests::{installed, knetsim, run, skipped};

#[test]
fn the_overlay_agent_is_measured_beside_flanneld_where_that_is_installed() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let out = directory.path().to_str().context("a path in UTF-8")?;
    let output = run(&mut knetsim(&["bench", "flannel", "--repeat", "1", "--out", out])?)?.ok()?;
    let cases: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(directory.path().join("flannel.json"))?)?;
    let cases = cases.as_array().context("the file holds no list")?;
    let find = |name: &str| cases.iter().find(|case| case["name"] == name).with_context(|| format!("no case {name}"));
    for (what, unit) in [
        ("start to subnet.env", "ms"),
        ("RSS", "MB"),
        ("CPU", "ms"),
        ("1000 leases, start to subnet.env", "ms"),
        ("1000 leases, start to all routes", "ms"),
        ("1000 leases, RSS", "MB"),
        ("a lease's put to its route", "ms"),
        ("1000 leases, a lease's put to its route", "ms"),
    ] {
        let ours = find(&format!("{what}: flannel-rs"))?;
        assert_eq!(ours["unit"], unit, "{ours}");
        assert!(ours["median"].as_f64().is_some_and(|median| median > 0.0), "{ours}");
        assert!(output.stdout.contains(&format!("{what}: flannel-rs")), "{output}");
        if installed("flanneld") {
            assert!(find(&format!("{what}: flanneld"))?["median"].as_f64().is_some(), "{what}");
            assert!(ours["ratio_to_peer"].as_f64().is_some_and(|ratio| ratio > 0.0), "{ours}");
        }
    }
    let puts = find("a lease's put to its route: flannel-rs")?;
    assert_eq!(puts["runs"].as_array().map(Vec::len), Some(30), "{puts}");
    if !installed("flanneld") {
        assert!(output.stderr.contains("flanneld is not installed, so flannel-rs is measured alone"), "{output}");
        skipped("the comparison with flanneld, which is not installed");
    }
    Ok(())
}

#[test]
fn the_cni_plugins_are_measured_beside_the_go_plugins() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let out = directory.path().to_str().context("a path in UTF-8")?;
    run(&mut knetsim(&["bench", "cni", "--repeat", "1", "--out", out])?)?.ok()?;
    let cases: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(directory.path().join("cni.json"))?)?;
    let cases = cases.as_array().context("the file holds no list")?;
    let find = |name: &str| cases.iter().find(|case| case["name"] == name).with_context(|| format!("no case {name}"));
    for what in ["ADD", "dual stack, ADD", "masquerade, ADD", "host port, ADD", "5,000 reservations, ADD", "DEL"] {
        let ours = find(&format!("{what}: cni-plugin"))?;
        let ratio = ours["median"].as_f64().zip(find(&format!("{what}: Go plugins"))?["median"].as_f64());
        let (ours_ms, theirs_ms) = ratio.context("no medians")?;
        assert!(ours_ms > 0.0 && theirs_ms > 0.0, "{ours}");
        assert!(
            ours["ratio_to_peer"].as_f64().is_some_and(|ratio| (ratio - ours_ms / theirs_ms).abs() < 1e-9),
            "{ours}"
        );
        assert_eq!(ours["runs"].as_array().map(Vec::len), Some(6), "{ours}");
    }
    find("VERSION: cni-plugin")?;
    find("VERSION: /bin/true")?;
    Ok(())
}

#[test]
fn the_service_proxy_is_measured_beside_kube_proxy_where_that_is_installed() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let out = directory.path().to_str().context("a path in UTF-8")?;
    let output = run(&mut knetsim(&["bench", "kproxy", "--repeat", "1", "--services", "100", "--out", out])?)?.ok()?;
    let cases: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(directory.path().join("kproxy.json"))?)?;
    let cases = cases.as_array().context("the file holds no list")?;
    let find = |name: &str| cases.iter().find(|case| case["name"] == name).with_context(|| format!("no case {name}"));
    let median = |name: &str| find(name)?["median"].as_f64().with_context(|| format!("{name} has no median"));
    for services in [1, 10, 100, 300] {
        for what in ["JSON to objects", "plan", "commit", "objects to kernel", "a restart finds its table"] {
            assert!(median(&format!("{services} Services, {what}"))? > 0.0, "{output}");
        }
        let [plan, commit, together] =
            ["plan", "commit", "objects to kernel"].map(|what| median(&format!("{services} Services, {what}")));
        let difference = plan? + commit? - together?;
        assert!(difference.abs() < 1e-9, "one run each, so the sum of two is the third: {difference}");
        assert!(find(&format!("{services} Services, commit"))?["ratio_to_peer"].as_f64().is_some(), "nft -f");
    }
    let puts = find("100 Services, put to kernel: kproxy-rs")?;
    assert_eq!(puts["runs"].as_array().map(Vec::len), Some(60), "{puts}");
    for what in ["start to in sync", "RSS", "CPU"] {
        for services in [1, 10, 100] {
            assert!(median(&format!("{services} Services, {what}: kproxy-rs"))? > 0.0, "{output}");
        }
    }
    for what in ["any ClusterIP of 1", "any ClusterIP of 300", "one ClusterIP of 300", "an endpoint itself"] {
        let what = &format!("connect to {what}");
        assert_eq!(find(what)?["runs"].as_array().map(Vec::len), Some(2000), "{what}");
    }
    find("endpoints churn, errors of 1000 connections")?;
    assert!(median("endpoints churn, commits")? > 0.0, "the endpoints did change: {output}");
    if installed("kube-proxy") {
        let theirs = find("10 Services, put to kernel: kube-proxy")?;
        assert_eq!(theirs["runs"].as_array().map(Vec::len), Some(6), "{theirs}");
        assert!(median("connect to one ClusterIP of 10: kube-proxy")? > 0.0, "{output}");
        assert!(find("10 Services, RSS: kproxy-rs")?["ratio_to_peer"].as_f64().is_some(), "{output}");
    } else {
        assert!(output.stderr.contains("kube-proxy is not installed, so kproxy-rs is measured alone"), "{output}");
        skipped("the comparison with kube-proxy, which is not installed");
    }
    Ok(())
}
