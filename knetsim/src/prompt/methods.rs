//! The methods that a call of the prompt can use: those of the original's workers and clusters, and a few of Mininet's nodes.

use std::{net::SocketAddrV4, process::ExitStatus};

use anyhow::{Context, anyhow, bail};

use super::{
    call::{Call, Method, Value},
    line::{did_you_mean, substitute},
};
use crate::{
    lab::{Cluster, Ingress, IngressPath, Node},
    world::World,
};

/// What `help py` adds.
pub(super) const HELP: &str = r#"
    py C0w1.exec_container("c1", "ping 11.10.0.2 -c 5")    run a command in a container
    py C0w1.exec_container_async("c1", "CMD")              start one and leave it running
    py C0w1.create_container("c10")                        make a container, attached by CNI
    py C0w1.delete_container("c10")                        remove it
    py C0.kp_vip_add("100.64.10.1", ["c2", "c3"])          a virtual address with static endpoints
    py C0.get("w1").run_ingress("grp1", 8001, [{"path": "/svc1", "endpoint": "100.64.11.1:8000"}])
    py C0w1.IP()    py C0w1.cmd("ip route")
"#;

/// The methods of a node.
pub(super) const NODE_METHODS: [&str; 7] =
    ["exec_container", "exec_container_async", "create_container", "delete_container", "run_ingress", "cmd", "IP"];
/// The methods of a cluster.
pub(super) const CLUSTER_METHODS: [&str; 2] = ["get", "kp_vip_add"];

/// What a call gave.
pub(super) enum Answer {
    /// Something to print.
    Text(String),
    /// A command ran, and has printed what it had to say.
    Ended(ExitStatus),
}

/// What a method can be called on.
enum Object<'a> {
    Cluster(&'a Cluster),
    Node(&'a Cluster, &'a Node),
    Answer(Answer),
}

/// Carries out a call.
pub(super) fn carry_out(world: &World, call: &Call) -> anyhow::Result<Answer> {
    let mut object = receiver(world, &call.receiver)?;
    for method in &call.methods {
        object = match object {
            Object::Cluster(cluster) => on_cluster(world, cluster, method)?,
            Object::Node(cluster, node) => Object::Answer(on_node(world, cluster, node, method)?),
            Object::Answer(_) => {
                bail!("nothing can be called on the result of a call; .{} stands behind one", method.name)
            }
        };
    }
    match object {
        Object::Answer(answer) => Ok(answer),
        Object::Cluster(cluster) => Ok(Answer::Text(format!("cluster {}", cluster.name))),
        Object::Node(_, node) => Ok(Answer::Text(format!("node {} {}", node.name, node.address))),
    }
}

fn receiver<'a>(world: &'a World, name: &str) -> anyhow::Result<Object<'a>> {
    if let Some(cluster) = world.lab.clusters.iter().find(|cluster| cluster.name.as_str() == name) {
        return Ok(Object::Cluster(cluster));
    }
    if let Some((cluster, node)) = world.node(name) {
        return Ok(Object::Node(cluster, node));
    }
    let nodes = world.lab.nodes().map(|(_, node)| node.name.clone());
    let clusters = world.lab.clusters.iter().map(|cluster| cluster.name.to_string());
    bail!("there is no node or cluster {name:?}{}", did_you_mean(name, nodes.chain(clusters)))
}

fn on_cluster<'a>(world: &World, cluster: &'a Cluster, method: &Method) -> anyhow::Result<Object<'a>> {
    let arguments = Arguments(method);
    match method.name.as_str() {
        "get" => {
            let [name] = arguments.named(["name"], "get(\"w1\")")?;
            let name = string(name)?;
            let node =
                cluster.worker(name).or_else(|| cluster.etcd.iter().find(|node| node.name == cluster.name.node(name)));
            let node = node.ok_or_else(|| {
                let known = cluster
                    .workers
                    .iter()
                    .chain(&cluster.etcd)
                    .map(|node| node.name[cluster.name.as_str().len()..].to_owned());
                let known: Vec<String> = known.collect();
                anyhow!("cluster {} has no node {name:?}; it has {}", cluster.name, known.join(", "))
            })?;
            Ok(Object::Node(cluster, node))
        }
        "kp_vip_add" => {
            let [address, containers] =
                arguments.named(["vip", "cnames"], "kp_vip_add(\"100.64.10.1\", [\"c2\", \"c3\"])")?;
            world.add_vip(cluster, string(address)?, &strings(containers)?)?;
            Ok(Object::Answer(Answer::Text(String::new())))
        }
        other => Err(unknown_method(other, "a cluster", &CLUSTER_METHODS)),
    }
}

fn on_node(world: &World, cluster: &Cluster, node: &Node, method: &Method) -> anyhow::Result<Answer> {
    let arguments = Arguments(method);
    match method.name.as_str() {
        "exec_container" => {
            let [container, command] = arguments.named(["name", "cmd"], "exec_container(\"c1\", \"ifconfig\")")?;
            let netns = world.netns(&node.name, Some(string(container)?))?;
            Ok(Answer::Ended(world.run_foreground(&netns, &substitute(string(command)?, world))?))
        }
        "exec_container_async" => {
            let [container, command] = arguments.named(["name", "cmd"], "exec_container_async(\"c1\", \"CMD\")")?;
            let log =
                world.exec_container_async(&node.name, string(container)?, &substitute(string(command)?, world))?;
            Ok(Answer::Text(format!("runs in the background; its output goes to {}", log.display())))
        }
        "create_container" => {
            let [name] = arguments.named(["name"], "create_container(\"c10\")")?;
            let address = world.create_container(&node.name, string(name)?)?;
            Ok(Answer::Text(address.to_string()))
        }
        "delete_container" => {
            let [name] = arguments.named(["name"], "delete_container(\"c10\")")?;
            world.delete_container(&node.name, string(name)?)?;
            Ok(Answer::Text(String::new()))
        }
        "run_ingress" => {
            let usage = "run_ingress(\"grp1\", 8001, [{\"path\": \"/svc1\", \"endpoint\": \"100.64.11.1:8000\"}])";
            let [name, port, paths] = arguments.named(["name", "port", "config"], usage)?;
            world.worker(&node.name)?;
            let ingress = ingress(&node.name, string(name)?, port, paths)?;
            world.run_ingress(&ingress)?;
            Ok(Answer::Text(format!("listens on {}:{}", node.address, ingress.port)))
        }
        "cmd" => {
            let [command] = arguments.named(["cmd"], "cmd(\"ip route\")")?;
            let netns = world.netns(&node.name, None)?;
            Ok(Answer::Ended(world.run_foreground(&netns, &substitute(string(command)?, world))?))
        }
        "IP" => {
            let [] = arguments.named([], "IP()")?;
            Ok(Answer::Text(node.address.to_string()))
        }
        "get" | "kp_vip_add" => {
            bail!("{} is a method of a cluster: write {}.{}(…)", method.name, cluster.name, method.name)
        }
        other => Err(unknown_method(other, "a node", &NODE_METHODS)),
    }
}

fn unknown_method(name: &str, of: &str, known: &[&str]) -> anyhow::Error {
    let suggestion = did_you_mean(name, known.iter().map(|name| (*name).to_owned()));
    anyhow!("{of} has no method {name:?}{suggestion} (it has {})", known.join(", "))
}

/// The arguments of a method, to be matched with its parameters.
struct Arguments<'a>(&'a Method);

impl<'a> Arguments<'a> {
    /// One value for each parameter, given by position or by name.
    fn named<const N: usize>(&self, parameters: [&str; N], usage: &str) -> anyhow::Result<[&'a Value; N]> {
        let Method { name, arguments, named } = self.0;
        let mut values: [Option<&Value>; N] = [None; N];
        if arguments.len() > N {
            bail!("{name} takes {N} arguments, not {}; usage: {usage}", arguments.len() + named.len());
        }
        for (slot, value) in values.iter_mut().zip(arguments) {
            *slot = Some(value);
        }
        for (keyword, value) in named {
            let Some(index) = parameters.iter().position(|parameter| parameter == keyword) else {
                bail!("{name} has no parameter {keyword}; it has {}; usage: {usage}", parameters.join(", "));
            };
            if values[index].replace(value).is_some() {
                bail!("{name} got {keyword} twice; usage: {usage}");
            }
        }
        let missing: Vec<&str> =
            parameters.iter().zip(&values).filter(|(_, value)| value.is_none()).map(|(name, _)| *name).collect();
        if !missing.is_empty() {
            bail!("{name} lacks {}; usage: {usage}", missing.join(", "));
        }
        Ok(values.map(|value| value.unwrap_or(&Value::None)))
    }
}

fn string(value: &Value) -> anyhow::Result<&str> {
    match value {
        Value::Str(text) => Ok(text),
        other => bail!("{other} is a {}; a string like \"c1\" is wanted", other.type_name()),
    }
}

fn strings(value: &Value) -> anyhow::Result<Vec<String>> {
    match value {
        Value::List(values) => values.iter().map(|value| string(value).map(str::to_owned)).collect(),
        other => bail!("{other} is a {}; a list like [\"c2\", \"c3\"] is wanted", other.type_name()),
    }
}

fn ingress(worker: &str, name: &str, port: &Value, paths: &Value) -> anyhow::Result<Ingress> {
    let Value::Int(number) = port else { bail!("{port} is a {}; a port number is wanted", port.type_name()) };
    let port = u16::try_from(*number).ok().filter(|port| *port > 0);
    let port = port.ok_or_else(|| anyhow!("{number} is no port; write a number from 1 to 65535"))?;
    let name_fits = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if !name_fits || name.len() > 63 {
        bail!("ingress name {name:?} must be 1 to 63 letters, digits or '-', like grp1");
    }
    let Value::List(paths) = paths else {
        bail!("{paths} is a {}; a list of {{\"path\": …, \"endpoint\": …}} is wanted", paths.type_name())
    };
    let paths = paths.iter().map(ingress_path).collect::<anyhow::Result<_>>()?;
    Ok(Ingress { name: name.to_owned(), worker: worker.to_owned(), port, paths })
}

fn ingress_path(value: &Value) -> anyhow::Result<IngressPath> {
    let Value::Dict(entries) = value else {
        bail!(
            "{value} is a {}; {{\"path\": \"/svc1\", \"endpoint\": \"100.64.11.1:8000\"}} is wanted",
            value.type_name()
        )
    };
    let mut path = None;
    let mut endpoint = None;
    for (key, value) in entries {
        match key.as_str() {
            "path" => path = Some(string(value)?.to_owned()),
            "endpoint" => {
                let text = string(value)?;
                let address: SocketAddrV4 = text
                    .parse()
                    .with_context(|| format!("endpoint {text:?} is no ADDRESS:PORT, like 100.64.11.1:8000"))?;
                endpoint = Some(address);
            }
            other => bail!("a path has no key {other:?}; it has path and endpoint"),
        }
    }
    let path = path.ok_or_else(|| anyhow!("{value} has no \"path\""))?;
    if !path.starts_with('/') {
        bail!("path {path:?} must begin with /");
    }
    Ok(IngressPath { path, endpoint: endpoint.ok_or_else(|| anyhow!("{value} has no \"endpoint\""))? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn method(text: &str) -> Method {
        Call::parse(&format!("C0.{text}")).unwrap().methods.remove(0)
    }

    #[test]
    fn arguments_come_by_position_or_by_name() {
        let method = method("f('a', cnames=['b'])");
        let [address, containers] = Arguments(&method).named(["vip", "cnames"], "usage").unwrap();
        assert_eq!(string(address).unwrap(), "a");
        assert_eq!(strings(containers).unwrap(), ["b"]);
    }

    #[test]
    fn wrong_arguments_are_answered_with_the_usage() {
        let table = [
            ("f()", "f lacks vip, cnames"),
            ("f('a', 'b', 'c')", "takes 2 arguments, not 3"),
            ("f('a', vip='b')", "got vip twice"),
            ("f('a', names='b')", "has no parameter names"),
        ];
        for (text, expected) in table {
            let method = method(text);
            let error = Arguments(&method).named(["vip", "cnames"], "USAGE").unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("USAGE"), "{text}: {error}");
        }
    }

    #[test]
    fn an_ingress_is_read_from_its_dict() {
        let read = |text: &str| {
            let method = method(&format!("f({text})"));
            ingress("C0w1", "grp1", &Value::Int(8001), &method.arguments[0]).map_err(|error| format!("{error:#}"))
        };
        let fine = read("[{'path': '/svc1', 'endpoint': '100.64.11.1:8000'}]").unwrap();
        assert_eq!(fine.paths[0].endpoint.to_string(), "100.64.11.1:8000");
        assert!(read("[{'path': 'svc1', 'endpoint': '1.1.1.1:1'}]").unwrap_err().contains("must begin with /"));
        assert!(read("[{'path': '/svc1', 'endpoint': 'web'}]").unwrap_err().contains("no ADDRESS:PORT"));
        assert!(read("[{'path': '/svc1'}]").unwrap_err().contains("no \"endpoint\""));
        assert!(read("['/svc1']").unwrap_err().contains("is a string"));
    }
}
