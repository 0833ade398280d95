//! Labs in which a worker runs the real program of a component and its neighbours run ours: what either side writes, the
//! other must understand.

use std::path::PathBuf;

use anyhow::Context;
use tests::{Lab, installed, knetsim, run, skipped, unique_name};

/// A lab file like the default one, in which the worker `C0w2` says `impl = …`.
fn lab_file(directory: &tempfile::TempDir, choice: &str) -> anyhow::Result<PathBuf> {
    let conf = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../conf");
    let text = std::fs::read_to_string(conf.join("lab.toml"))?;
    let address = "address = \"10.0.0.4\"";
    anyhow::ensure!(text.contains(address), "the default lab has no C0w2");
    let file = directory.path().join("mixed.toml");
    std::fs::write(&file, text.replacen(address, &format!("{address}\nimpl = {choice}"), 1))?;
    std::fs::copy(conf.join("flannel-network-config.json"), directory.path().join("flannel-network-config.json"))?;
    Ok(file)
}

/// Boots that lab, checks included.
fn boot(choice: &str) -> anyhow::Result<Lab> {
    let directory = tempfile::tempdir()?;
    let file = lab_file(&directory, choice)?;
    Lab::boot("mixed", &["--lab", file.to_str().context("a path in UTF-8")?])
}

/// The address of a container.
fn address_of(lab: &Lab, worker: &str, container: &str) -> anyhow::Result<String> {
    let status = lab.status()?;
    let containers = status["containers"].as_array().context("the status has no containers")?;
    let found = containers.iter().find(|known| known["worker"] == worker && known["name"] == container);
    Ok(found.and_then(|known| known["address"].as_str()).context("there is no such container")?.to_owned())
}

fn ping(lab: &mut Lab, from: &str, to: &str) -> anyhow::Result<()> {
    let output = lab.type_line(&format!("{from} ping -c 2 -i 0.1 -W 2 {to}"))?;
    anyhow::ensure!(output.contains(" 0% packet loss"), "{from} does not reach {to}:\n{output}");
    Ok(())
}

#[test]
fn a_real_flanneld_and_ours_are_peers_in_one_cluster() -> anyhow::Result<()> {
    if !installed("flanneld") {
        skipped("flanneld is not installed; `knetsim doctor` says how to get it");
        return Ok(());
    }
    let mut lab = boot("{ flannel = \"real\" }")?;
    assert!(lab.said().contains("flannel (rust; real on C0w2) on 6 workers"), "{}", lab.said());
    let status = lab.status()?;
    let program = |node: &str| {
        let daemons = status["daemons"].as_array().into_iter().flatten();
        let mut of = daemons.filter(|daemon| daemon["node"] == node && daemon["daemon"] == "flannel");
        of.next().map(|daemon| daemon["program"].to_string()).unwrap_or_default()
    };
    assert!(program("C0w2").contains("flanneld"), "{}", program("C0w2"));
    assert!(program("C0w1").contains("flannel-rs"), "{}", program("C0w1"));
    // Each sees the other's lease and programs it: three workers, two peers each.
    for worker in ["C0w1", "C0w2", "C0w3"] {
        let routes = lab.type_line(&format!("{worker} ip route show dev flannel.100"))?;
        assert_eq!(routes.matches("onlink").count(), 2, "{worker}:\n{routes}");
    }
    let (ours, real) = (address_of(&lab, "C0w1", "c1")?, address_of(&lab, "C0w2", "c2")?);
    ping(&mut lab, "C0w1.c1", &real)?;
    ping(&mut lab, "C0w2.c2", &ours)?;
    Ok(())
}

#[test]
fn real_plugins_on_one_worker_attach_to_the_same_network_as_ours_on_another() -> anyhow::Result<()> {
    let mut lab = boot("{ cni = \"real\" }")?;
    assert!(lab.said().contains("attached by CNI (rust; real on C0w2)"), "{}", lab.said());
    let (ours, real) = (address_of(&lab, "C0w1", "c1")?, address_of(&lab, "C0w2", "c2")?);
    ping(&mut lab, "C0w1.c1", &real)?;
    ping(&mut lab, "C0w2.c2", &ours)?;
    // What the real plugins attached they detach too, and the name is free again.
    lab.type_line("py C0w2.delete_container(\"c2\")")?;
    lab.type_line("py C0w2.create_container(\"c2\")")?;
    let again = address_of(&lab, "C0w2", "c2")?;
    ping(&mut lab, "C0w1.c1", &again)
}

#[test]
fn static_rules_on_one_worker_stand_beside_the_service_proxy_of_the_others() -> anyhow::Result<()> {
    let mut lab = boot("{ kproxy = \"nft\" }")?;
    assert!(lab.said().contains("kproxy (rust; nft on C0w2) on 6 workers"), "{}", lab.said());
    let table = |lab: &mut Lab, worker: &str| lab.type_line(&format!("{worker} nft list tables"));
    assert!(table(&mut lab, "C0w2")?.contains("kproxy-static"));
    assert!(!table(&mut lab, "C0w1")?.contains("kproxy-static"));
    ping(&mut lab, "C0w2.c2", "100.64.11.1")?;
    ping(&mut lab, "C0w1.c1", "100.64.11.1")?;
    let text = run(&mut knetsim(&["status", "--name", lab.name()])?)?.ok()?.stdout;
    assert!(text.contains("kproxy: rust on C0w1, C0w3, C1w1, C1w2, C1w3; nft on C0w2"), "{text}");
    let status = lab.status()?;
    let nodes = status["nodes"].as_array().context("the status has no nodes")?;
    let choice = |name: &str| nodes.iter().find(|node| node["name"] == name).map(|node| node["impl"]["kproxy"].clone());
    assert_eq!((choice("C0w2"), choice("C0w1")), (Some("nft".into()), Some("rust".into())));
    Ok(())
}

#[test]
fn a_program_that_only_a_worker_needs_is_missed_before_anything_is_made() -> anyhow::Result<()> {
    if installed("flanneld") {
        skipped("flanneld is installed here, so it cannot be missing");
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let file = lab_file(&directory, "{ flannel = \"real\" }")?;
    let (name, file) = (unique_name("mixed"), file.to_str().context("a path in UTF-8")?);
    let output = run(&mut knetsim(&["up", "--name", &name, "--lab", file, "-c", "nodes"])?)?;
    assert!(!output.status.success() && output.stderr.contains("flanneld (of flannel=real)"), "{output}");
    assert!(!output.stderr.contains("topology"), "{output}");
    Ok(())
}
