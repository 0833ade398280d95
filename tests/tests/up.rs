//! `knetsim up` with lines, scripts, other labs and other implementations, and what it says when something is wrong.

use anyhow::Context;
use tests::{installed, knetsim, run, skipped, unique_name};

/// Runs lines in a lab of their own and returns what came of it.
fn up(arguments: &[&str]) -> anyhow::Result<tests::Output> {
    let name = unique_name("up");
    let output = run(knetsim(&["up", "--name", &name])?.args(arguments));
    let _ = std::fs::remove_dir_all(tests::directory_of(&name));
    output
}

#[test]
fn lines_print_their_replies_and_succeed() -> anyhow::Result<()> {
    let output = up(&[
        "-c",
        "C0w1 ping -c1 C0w2",
        "-c",
        "py C0w1.exec_container(\"c1\", \"ping 100.64.10.1 -c 2\")",
        "-c",
        "C0w1 curl -s localhost:8001/svc1",
        "-c",
        "C0e1 curl -s 10.0.0.3:8001/svc2",
        "-c",
        "py C1w1.exec_container(\"c1\", \"curl -s 10.0.0.8:1028\")",
    ])?
    .ok()?;
    for expected in
        ["1 packets transmitted, 1 received", "2 packets transmitted, 2 received", "S1-W", "S2-W", "Directory listing"]
    {
        assert!(output.stdout.contains(expected), "{expected} is missing\n{output}");
    }
    Ok(())
}

#[test]
fn a_line_that_fails_makes_it_fail_and_the_next_still_runs() -> anyhow::Result<()> {
    let output = up(&["-c", "C0w1 sh -c 'exit 3'", "-c", "C0w11 ifconfig", "-c", "sh echo still here"])?;
    assert_eq!(output.status.code(), Some(3), "{output}");
    assert!(output.stdout.contains("still here"), "{output}");
    assert!(output.stderr.contains("did you mean C0w1?"), "{output}");
    Ok(())
}

#[test]
fn a_script_is_run_to_its_end() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let script = directory.path().join("script");
    let sourced = directory.path().join("sourced");
    std::fs::write(&sourced, "sh echo from the sourced file\nexit\nsh echo never\n")?;
    std::fs::write(&script, format!("# a remark\nnodes\nsource {}\nsh echo after\n", sourced.display()))?;
    let output = up(&["--script", script.to_str().context("a path in UTF-8")?])?.ok()?;
    assert!(output.stdout.contains("from the sourced file") && output.stdout.contains("after"), "{output}");
    assert!(!output.stdout.contains("never"), "{output}");
    Ok(())
}

#[test]
fn standard_input_that_is_no_terminal_is_a_script() -> anyhow::Result<()> {
    let mut lab = tests::Lab::boot("stdin", &[])?;
    // A command must not eat the lines behind it.
    assert_eq!(lab.type_line("sh cat")?, "");
    assert_eq!(lab.type_line("sh echo next")?, "next\n");
    assert!(lab.exit()?.success());
    Ok(())
}

#[test]
fn debians_programs_do_the_same_work() -> anyhow::Result<()> {
    let output = up(&[
        "--impl",
        "cni=real,ingress=real,kproxy=nft",
        "-c",
        "C0w1.c1 ping -c 1 100.64.10.1",
        "-c",
        "C0w1 curl -s localhost:8001/svc1",
        "-c",
        "C0w1 curl -s -o /dev/null -w %{http_code} localhost:8001/other",
        "-c",
        "sh ps aux | grep -c '[n]ginx: master'",
        "-c",
        "C0w1 nft list table ip kproxy-static",
        "-c",
        "py C1w1.exec_container(\"c1\", \"curl -s 10.0.0.8:1028\")",
    ])?
    .ok()?;
    for expected in ["1 received", "S1-W", "404", "jhash ip checksum mod 2 map", "Directory listing"] {
        assert!(output.stdout.contains(expected), "{expected} is missing\n{output}");
    }
    Ok(())
}

#[test]
fn a_missing_real_program_is_named_before_anything_is_made() -> anyhow::Result<()> {
    if installed("flanneld") {
        skipped("flanneld is installed here, so it cannot be missing");
        return Ok(());
    }
    let output = up(&["--impl", "flannel=real", "-c", "nodes"])?;
    assert!(!output.status.success());
    assert!(output.stderr.contains("flanneld (of flannel=real)"), "{output}");
    assert!(!output.stderr.contains("topology"), "{output}");
    Ok(())
}

#[test]
fn the_real_flanneld_serves_the_lab_as_ours_does() -> anyhow::Result<()> {
    if !installed("flanneld") {
        skipped("flanneld is not installed; `knetsim doctor` says how to get it");
        return Ok(());
    }
    let output = up(&["--impl", "flannel=real", "-c", "C0w1.c1 ping -c 1 100.64.10.1", "-c", "pingall"])?.ok()?;
    assert!(output.stdout.contains("1 received"), "{output}");
    Ok(())
}

#[test]
fn the_real_router_serves_the_lab_as_ours_does() -> anyhow::Result<()> {
    if !installed("skrouterd") {
        skipped("skrouterd is not installed; `knetsim doctor` says how to get it");
        return Ok(());
    }
    let line = "py C1w1.exec_container(\"c1\", \"curl -s 10.0.0.8:1028\")";
    let output = up(&["--impl", "interconnect=real", "-c", line])?.ok()?;
    assert!(output.stdout.contains("Directory listing"), "{output}");
    Ok(())
}

#[test]
fn an_impossible_lab_is_refused_with_its_place() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("lab.toml");
    let conf = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf");
    let text = std::fs::read_to_string(conf.join("lab.toml"))?.replacen("\"10.0.0.4\"", "\"10.0.0.3\"", 1);
    std::fs::write(&file, text)?;
    std::fs::copy(conf.join("flannel-network-config.json"), directory.path().join("flannel-network-config.json"))?;
    let output = up(&["--lab", file.to_str().context("a path in UTF-8")?, "-c", "nodes"])?;
    assert!(!output.status.success());
    assert!(
        output.stderr.contains("lab.toml:") && output.stderr.contains("10.0.0.3 is taken by another node"),
        "{output}"
    );
    Ok(())
}

#[test]
fn a_failing_start_names_the_step_and_the_node_and_shows_the_log() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let conf = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf");
    let file = directory.path().join("lab.toml");
    std::fs::copy(conf.join("lab.toml"), &file)?;
    // Every agent takes this, but there are two subnets for three workers.
    let config = r#"{"Network": "11.0.0.0/8", "SubnetLen": 20, "SubnetMin": "11.10.0.0", "SubnetMax": "11.10.16.0",
        "Backend": {"Type": "vxlan"}}"#;
    std::fs::write(directory.path().join("flannel-network-config.json"), config)?;
    let output = up(&["--lab", file.to_str().context("a path in UTF-8")?, "-c", "nodes"])?;
    assert!(!output.status.success());
    for expected in ["step \"overlay\" failed", " flannel", "last lines of", "11.10.16.0"] {
        assert!(output.stderr.contains(expected), "{expected} is missing\n{output}");
    }
    assert!(!output.stdout.contains("available nodes"), "{output}");
    Ok(())
}

#[test]
fn a_network_configuration_that_no_agent_takes_is_refused_before_anything_is_made() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let conf = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf");
    let file = directory.path().join("lab.toml");
    std::fs::copy(conf.join("lab.toml"), &file)?;
    let config = r#"{"Network": "11.0.0.0/8", "SubnetLen": 31, "Backend": {"Type": "vxlan"}}"#;
    std::fs::write(directory.path().join("flannel-network-config.json"), config)?;
    let output = up(&["--lab", file.to_str().context("a path in UTF-8")?, "-c", "nodes"])?;
    assert!(!output.status.success());
    for expected in ["flannel-config", "SubnetLen", "31"] {
        assert!(output.stderr.contains(expected), "{expected} is missing\n{output}");
    }
    assert!(!output.stderr.contains("topology"), "{output}");
    Ok(())
}

#[test]
fn another_lab_boots_with_its_own_names_services_and_rates() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("small.toml");
    std::fs::write(
        &file,
        r#"
        [underlay]
        bridge = "u0"
        network = "10.0.0.0/8"
        [pods]
        flannel-config = "flannel.json"
        service-cidr = "100.64.0.0/16"
        [[cluster]]
        name = "C7"
        [[cluster.etcd]]
        name = "e1"
        address = "10.1.0.1"
        [[cluster.worker]]
        name = "a"
        address = "10.0.0.1"
        rate = "50mbit"
        [[cluster.worker]]
        name = "b"
        address = "10.0.0.2"
        [[cluster.container]]
        name = "web"
        worker = "b"
        run = "knetsim serve --port 80 --text hello"
        [[cluster.container]]
        name = "client"
        worker = "a"
        [[cluster.service]]
        name = "web"
        address = "100.64.1.1"
        containers = ["web"]
        ports = [80]
        "#,
    )?;
    std::fs::write(
        directory.path().join("flannel.json"),
        r#"{"Network": "12.0.0.0/8", "SubnetLen": 24, "Backend": {"Type": "vxlan", "VNI": 7}}"#,
    )?;
    let output = up(&[
        "--lab",
        file.to_str().context("a path in UTF-8")?,
        "-c",
        "C7a.client curl -s --retry 20 --retry-delay 0 --retry-all-errors --retry-max-time 10 100.64.1.1",
        "-c",
        "C7a tc qdisc show dev C7a-eth0",
        "-c",
        "C7a ip link show flannel.7",
        // Its endpoints follow: without its container nobody answers, and with a new one somebody does.
        "-c",
        "py C7b.delete_container(\"web\")",
        "-c",
        "sh sleep 0.5",
        "-c",
        "sh ! ip netns exec k7_client curl -s --max-time 2 100.64.1.1",
        "-c",
        "py C7b.create_container(\"web\")",
        "-c",
        "py C7b.exec_container_async(\"web\", \"knetsim serve --port 80 --text anew\")",
        "-c",
        "C7a.client curl -s --retry 20 --retry-delay 0 --retry-all-errors --retry-max-time 10 100.64.1.1",
    ])?
    .ok()?;
    for expected in ["hello", "tbf", "rate 50Mbit", "flannel.7", "anew"] {
        assert!(output.stdout.contains(expected), "{expected} is missing\n{output}");
    }
    Ok(())
}
