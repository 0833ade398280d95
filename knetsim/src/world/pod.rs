//! Pods: containers that were asked for through the API.
//!
//! A pod of the lab is one network namespace, attached as every container is, with the commands of all its containers in it. There
//! are no images: a container without a command is a web server that answers with the pod's name, on every TCP port that it says.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::anyhow;
use k8s_openapi::api::core::v1::Pod;
use linux_net::NetNs;

use super::{PodId, World};
use crate::{
    component,
    lab::{Cluster, Node},
    object,
};

/// The port of the web server of a pod that names none: what a plain `image: nginx` would serve.
const DEFAULT_PORT: u16 = 80;

/// What a pod runs: a program with its arguments, and the port by which one sees that it serves, if one can.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Command {
    words: Vec<String>,
    port: Option<u16>,
}

impl PodId {
    /// The identity of a pod.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        Self {
            namespace: pod.metadata.namespace.clone().unwrap_or_else(|| object::NAMESPACE.to_owned()),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: pod.metadata.uid.clone(),
        }
    }

    /// The name of its container: its own in the namespace `default`, else `NAMESPACE.NAME`.
    #[must_use]
    pub fn container(&self) -> String {
        match self.namespace.as_str() {
            object::NAMESPACE => self.name.clone(),
            namespace => format!("{namespace}.{}", self.name),
        }
    }
}

impl World {
    /// Makes the container of a pod on its worker and starts what it runs; returns its address once its web servers serve.
    ///
    /// # Errors
    ///
    /// When the name is taken, the CNI plugins fail, or a command cannot be started. Nothing is left then.
    pub fn start_pod(&self, cluster: &Cluster, worker: &Node, pod: &Pod) -> anyhow::Result<Ipv4Addr> {
        let id = PodId::of(pod);
        let container = id.container();
        let known = self.containers_of(cluster);
        // It was started before, and only etcd was not told.
        if let Some((_, running)) = known.iter().find(|(_, running)| running.pod == id)
            && let Some(address) = running.address
        {
            return Ok(address);
        }
        let address = self.make_container(cluster, worker, &container, id)?;
        let started = self.start_commands(worker, &container, pod);
        if started.is_err() {
            // The error that counts is the first.
            let _ = self.unmake_container(cluster, worker, &container);
        }
        started.map(|()| address)
    }

    fn start_commands(&self, worker: &Node, container: &str, pod: &Pod) -> anyhow::Result<()> {
        let netns = NetNs::open(&self.container(&worker.name, container)?.netns)?;
        for Command { words, port } in commands(pod) {
            let (program, arguments) = words.split_first().ok_or_else(|| anyhow!("the pod has an empty command"))?;
            // env(1) looks the program up on the lab's PATH.
            let arguments = std::iter::once(program).chain(arguments).cloned().collect();
            let (id, _) = self.start_in_container(&worker.name, container, "/usr/bin/env".into(), arguments, true)?;
            if let Some(port) = port {
                let address = SocketAddr::from(([127, 0, 0, 1], port));
                let what = format!("port {port} is not open");
                component::wait_until_ready(&self.supervisor, &id, &what, || component::accepts(&netns, address))?;
            }
        }
        Ok(())
    }

    /// Stops what a pod runs and removes its container. A pod without one is no error.
    ///
    /// # Errors
    ///
    /// When the CNI plugins fail.
    pub fn stop_pod(&self, cluster: &Cluster, pod: &PodId) -> anyhow::Result<()> {
        let is_its = |known: &PodId| {
            known.name == pod.name && known.namespace == pod.namespace && (known.uid.is_none() || known.uid == pod.uid)
        };
        let known = self.containers_of(cluster);
        let Some((name, running)) = known.into_iter().find(|(_, running)| is_its(&running.pod)) else { return Ok(()) };
        let (_, worker) = self.worker(&running.worker)?;
        self.unmake_container(cluster, worker, &name)
    }

    /// Whether a container of this pod's name is there that the lab made by itself.
    #[must_use]
    pub fn is_own_container(&self, cluster: &Cluster, pod: &PodId) -> bool {
        let is_its = |known: &PodId| known.uid.is_none() && known.name == pod.name && known.namespace == pod.namespace;
        self.containers_of(cluster).iter().any(|(_, running)| is_its(&running.pod))
    }
}

fn commands(pod: &Pod) -> Vec<Command> {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let of = |container: &k8s_openapi::api::core::v1::Container| match &container.command {
        Some(command) if !command.is_empty() => {
            let words = command.iter().chain(container.args.iter().flatten()).cloned().collect();
            vec![Command { words, port: None }]
        }
        _ => {
            let tcp =
                container.ports.iter().flatten().filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
            let mut ports: Vec<u16> = tcp.filter_map(|port| u16::try_from(port.container_port).ok()).collect();
            if container.ports.as_ref().is_none_or(Vec::is_empty) {
                ports.push(DEFAULT_PORT);
            }
            let serve = |port: u16| Command {
                words: ["knetsim", "serve", "--port", &port.to_string(), "--text", &name].map(str::to_owned).to_vec(),
                port: Some(port),
            };
            ports.into_iter().map(serve).collect()
        }
    };
    containers.flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn lines(containers: &Value) -> Vec<String> {
        let pod: Pod =
            serde_json::from_value(json!({ "metadata": { "name": "web-1" }, "spec": { "containers": containers } }))
                .unwrap();
        commands(&pod).into_iter().map(|command| command.words.join(" ")).collect()
    }

    #[test]
    fn a_container_without_a_command_is_a_web_server() {
        assert_eq!(lines(&json!([{ "name": "a", "image": "nginx" }])), ["knetsim serve --port 80 --text web-1"]);
        let ports = json!([{ "name": "a", "ports": [{ "containerPort": 8080 }, { "containerPort": 53, "protocol": "UDP" }, { "containerPort": 9090 }] }]);
        assert_eq!(lines(&ports), ["knetsim serve --port 8080 --text web-1", "knetsim serve --port 9090 --text web-1"]);
    }

    #[test]
    fn a_command_is_run_as_it_stands_there() {
        let containers =
            json!([{ "name": "a", "command": ["sleep"], "args": ["infinity"] }, { "name": "b", "command": ["cat"] }]);
        assert_eq!(lines(&containers), ["sleep infinity", "cat"]);
    }

    #[test]
    fn the_container_of_a_pod_is_named_after_it() {
        let id = |namespace: &str| PodId { namespace: namespace.to_owned(), name: "web-1".to_owned(), uid: None };
        assert_eq!((id("default").container(), id("shop").container()), ("web-1".to_owned(), "shop.web-1".to_owned()));
    }
}
