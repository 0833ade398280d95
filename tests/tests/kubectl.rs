//! The control side of Services: manifests, controllers and the Kubernetes API, asked by our own commands and by kubectl.

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use serde_json::Value;
use tests::{Lab, installed, knetsim, run, skipped};

/// How long the control plane may take for a change on a loaded machine; most take some hundredths of a second.
const PATIENCE: Duration = Duration::from_secs(20);

fn example(name: &str) -> String {
    format!("{}/../conf/examples/{name}.yaml", env!("CARGO_MANIFEST_DIR"))
}

/// The address of a Service.
fn cluster_ip(lab: &mut Lab, service: &str) -> anyhow::Result<String> {
    let object: Value = serde_json::from_str(&lab.type_line(&format!("get service {service} -o json"))?)?;
    Ok(object["spec"]["clusterIP"].as_str().with_context(|| format!("{service} has no address: {object}"))?.to_owned())
}

/// Fetches until as many different answers as there are pods have come.
fn reaches(lab: &mut Lab, from: &str, address: &str, pods: usize) -> anyhow::Result<()> {
    let line = format!(
        "{from} sh -c 'for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do curl -s --max-time 2 {address}; done | sort -u'"
    );
    lab.until(&line, PATIENCE, |answers| answers.lines().filter(|line| !line.is_empty()).count() == pods)?;
    Ok(())
}

#[test]
fn a_deployment_is_scaled_healed_and_deleted_and_traffic_follows() -> anyhow::Result<()> {
    let mut lab = Lab::boot("deploy", &[])?;
    let said = lab.type_line(&format!("apply -f {}", example("deployment")))?;
    assert!(said.contains("deployment.apps/web created") && said.contains("service/web created"), "{said}");
    let address = cluster_ip(&mut lab, "web")?;
    reaches(&mut lab, "C0w1.c1", &address, 3)?;
    // Each worker has one of the three.
    let pods = lab.type_line("get pods -l app=web -o wide")?;
    for worker in ["C0w1", "C0w2", "C0w3"] {
        assert_eq!(pods.matches(worker).count(), 1, "{pods}");
    }
    let said = lab.type_line(&format!("apply -f {}", example("deployment")))?;
    assert!(said.contains("deployment.apps/web unchanged") && said.contains("service/web unchanged"), "{said}");

    lab.type_line("scale deployment web --replicas 5")?;
    reaches(&mut lab, "C0w2.c2", &address, 5)?;
    // From the pods' change, which the slices tell, to the kernel of a worker.
    let metrics = lab.type_line("C0w1 curl -s http://127.0.0.1:10249/metrics")?;
    let programmed =
        metrics.lines().find_map(|line| line.strip_prefix("kubeproxy_network_programming_duration_seconds_count "));
    assert!(programmed.is_some_and(|count| count.trim().parse().is_ok_and(|count: u64| count > 0)), "{metrics}");
    lab.type_line("scale deployment web --replicas 1")?;
    reaches(&mut lab, "C0w2.c2", &address, 1)?;

    // A container that is deleted behind the API's back is replaced, and the next request finds the new one.
    let pods: Value = serde_json::from_str(&lab.type_line("get pods -l app=web -o json")?)?;
    let (pod, worker) = (&pods["items"][0]["metadata"]["name"], &pods["items"][0]["spec"]["nodeName"]);
    let (pod, worker) = (pod.as_str().context("a pod")?.to_owned(), worker.as_str().context("a worker")?.to_owned());
    lab.type_line(&format!("py {worker}.delete_container(\"{pod}\")"))?;
    lab.until("get pods -l app=web", PATIENCE, |pods| pods.contains("1/1") && !pods.contains(&pod))?;
    reaches(&mut lab, "C0w1.c1", &address, 1)?;

    lab.type_line(&format!("delete -f {}", example("deployment")))?;
    lab.until("get pods -l app=web", PATIENCE, |pods| pods.contains("no such objects"))?;
    lab.until("get endpointslices -l kubernetes.io/service-name=web", PATIENCE, |slices| {
        slices.contains("no such objects")
    })?;
    Ok(())
}

#[test]
fn the_labs_own_containers_are_pods_that_a_service_can_select() -> anyhow::Result<()> {
    let mut lab = Lab::boot("own", &[])?;
    let manifest = "{apiVersion: v1, kind: Service, metadata: {name: files}, spec: {selector: {knetsim.io/container: c4}, ports: [{port: 8088, targetPort: 80}]}}";
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("files.yaml");
    std::fs::write(&file, manifest)?;
    // From a second terminal, which enters the lab.
    let output = run(knetsim(&["apply", "--name", lab.name(), "-f"])?.arg(&file))?.ok()?;
    assert!(output.stdout.contains("service/files created"), "{output}");
    let address = cluster_ip(&mut lab, "files")?;
    lab.until(&format!("C0w1.c1 curl -s --max-time 2 {address}:8088"), PATIENCE, |page| {
        page.contains("Directory listing")
    })?;
    lab.type_line("py C0w3.delete_container(\"c4\")")?;
    lab.until("get endpointslices -l kubernetes.io/service-name=files", PATIENCE, |slices| slices.contains("<unset>"))?;
    Ok(())
}

#[test]
fn mistakes_in_a_manifest_are_told_with_their_places_and_nothing_is_made() -> anyhow::Result<()> {
    let mut lab = Lab::boot("wrong", &[])?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("wrong.yaml");
    let service = "apiVersion: v1\nkind: Service\nmetadata:\n  name: first\nspec:\n  ports:\n  - port: 80\n";
    for (text, expected) in [
        (
            format!("{service}---\n{}", service.replace("- port: 80", "- prot: 80")),
            "wrong.yaml:15:5: document 2: spec.ports[0].prot",
        ),
        (service.replace("port: 80", "port: 0"), "wrong.yaml:7:5: document 1: spec.ports[0].port: 0 must be a port"),
        (
            service.replace("spec:", "spec:\n  clusterIP: 100.64.10.1"),
            "wrong.yaml:6:3: document 1: spec.clusterIP: 100.64.10.1 is the address of service default/vip-100-64-10-1",
        ),
    ] {
        std::fs::write(&file, text)?;
        let output = run(knetsim(&["apply", "--name", lab.name(), "-f"])?.arg(&file))?;
        assert!(!output.status.success() && output.stderr.contains(expected), "{expected}\n{output}");
    }
    assert!(!lab.type_line("get services")?.contains("first"));
    Ok(())
}

#[test]
fn every_example_is_taken_as_it_is() -> anyhow::Result<()> {
    let mut lab = Lab::boot("examples", &[])?;
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../conf/examples");
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory)?.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|ending| ending == "yaml"));
    files.sort();
    assert!(files.len() >= 7, "{files:?}");
    for file in &files {
        let said = lab.type_line(&format!("apply -f {}", file.display()))?;
        assert!(said.contains("created") && !said.contains("warning"), "{}: {said}\n{}", file.display(), lab.said());
    }
    // Whatever pods they want run.
    lab.until("get deployments", PATIENCE, |table| {
        table.lines().skip(1).all(|line| {
            line.split_whitespace()
                .nth(1)
                .is_some_and(|ready| ready.split_once('/').is_some_and(|(ready, wanted)| ready == wanted))
        })
    })?;
    reaches(&mut lab, "C0e1", "10.0.0.3:30080", 2)?;
    let several = cluster_ip(&mut lab, "measured")?;
    reaches(&mut lab, "C0w1.c1", &several, 2)?;
    reaches(&mut lab, "C0w1.c1", &format!("{several}:9100"), 2)?;
    let cart = cluster_ip(&mut lab, "cart")?;
    reaches(&mut lab, "C0w1.c1", &cart, 1)?;
    assert_eq!(cluster_ip(&mut lab, "db")?, "None");
    reaches(&mut lab, "C0e1", "10.0.0.4:30090", 1)?;
    for file in files {
        lab.type_line(&format!("delete -f {}", file.display()))?;
    }
    lab.until("get pods", PATIENCE, |pods| {
        pods.lines().skip(1).all(|pod| pod.starts_with('c') || pod.starts_with("ic"))
    })?;
    Ok(())
}

#[test]
fn kubectl_lists_applies_watches_scales_and_deletes() -> anyhow::Result<()> {
    if !installed("kubectl") {
        skipped("kubectl is not installed; `make deps` gets it (Debian package kubernetes-client)");
        return Ok(());
    }
    let mut lab = Lab::boot("kubectl", &[])?;
    let home = tempfile::tempdir()?;
    let kubectl = format!("C0e1 env HOME={} kubectl --server=http://10.1.0.1:8080", home.path().display());
    let nodes = lab.type_line(&format!("{kubectl} get nodes -o wide"))?;
    assert!(nodes.contains("C0w2   Ready    worker") && nodes.contains("11."), "{nodes}");

    // A watch that is open from before the first change to after the last.
    let log = lab.directory().join("watch.log");
    let watch = format!("{kubectl} get endpointslices --watch --output=name > /tmp/knetsim/watch.log 2>&1 &");
    lab.type_line(&watch.replacen("C0e1 ", "C0e1 timeout 60 ", 1))?;

    let said = lab.type_line(&format!("{kubectl} apply -f {}", example("deployment")))?;
    assert!(
        said.contains("deployment.apps/web created") && said.contains("service/web created"),
        "{said}\n{}",
        lab.said()
    );
    let said = lab.type_line(&format!("{kubectl} apply -f {}", example("deployment")))?;
    assert!(said.contains("deployment.apps/web unchanged") && said.contains("service/web unchanged"), "{said}");
    let rollout = format!("{kubectl} rollout status deployment/web --timeout=20s");
    assert!(lab.type_line(&rollout)?.contains("successfully rolled out"));
    let address = cluster_ip(&mut lab, "web")?;
    reaches(&mut lab, "C0w1.c1", &address, 3)?;

    lab.type_line(&format!("{kubectl} scale deployment web --replicas=2"))?;
    reaches(&mut lab, "C0w1.c1", &address, 2)?;
    lab.type_line(&format!("{kubectl} set image deployment/web web=nginx:2"))?;
    assert!(lab.type_line(&rollout)?.contains("successfully rolled out"));
    reaches(&mut lab, "C0w1.c1", &address, 2)?;
    lab.type_line(&format!("{kubectl} label service web tier=front"))?;
    assert!(lab.type_line(&format!("{kubectl} get service -l tier=front"))?.contains("web"));
    let described = lab.type_line(&format!("{kubectl} describe service web"))?;
    // Versions of kubectl differ in the width of their columns.
    let has_address = |line: &str| line.split_whitespace().eq(["IP:", &address]);
    assert!(described.lines().any(has_address), "{described}");

    lab.until(&format!("{kubectl} get endpoints web"), PATIENCE, |table| table.matches(":8080").count() == 2)?;

    let said = lab.type_line(&format!("{kubectl} delete -f {}", example("deployment")))?;
    assert!(said.contains("service \"web\" deleted"), "{said}");
    lab.until(&format!("{kubectl} get pods -l app=web"), PATIENCE, |pods| !pods.contains("web-"))?;
    let watched = std::fs::read_to_string(log)?;
    assert!(
        watched.lines().filter(|line| line.contains("endpointslice.discovery.k8s.io/web-")).count() >= 3,
        "{watched}"
    );
    Ok(())
}

#[test]
fn the_real_kube_proxy_serves_what_is_applied() -> anyhow::Result<()> {
    if !installed("kube-proxy") {
        skipped("kube-proxy is not installed; `knetsim doctor` says how to get it");
        return Ok(());
    }
    let mut lab = Lab::boot("kubeproxy", &["--impl", "kproxy=real"])?;
    lab.type_line(&format!("apply -f {}", example("deployment")))?;
    lab.type_line(&format!("apply -f {}", example("local-traffic")))?;
    let address = cluster_ip(&mut lab, "web")?;
    reaches(&mut lab, "C0w1.c1", &address, 3)?;
    // Only the node that has the pod answers: kube-proxy knows which node it is on.
    reaches(&mut lab, "C0e1", "10.0.0.4:30090", 1)?;
    assert_eq!(lab.type_line("C0e1 curl -s --max-time 1 10.0.0.3:30090")?, "");
    assert!(lab.type_line("C0w1 nft list tables")?.contains("kube-proxy"));
    Ok(())
}
