//! The kubelets of a cluster: they run the pods that are bound to their workers, and say how they do.
//!
//! ```text
//!  etcd: pod web-1, nodeName C0w2 ──watch──▶ kubelet ──job──▶ thread of C0w2: namespace, CNI ADD, commands
//!  etcd: phase Running, podIP, Ready ◀─────────────────────────────┘ report
//!
//!  etcd: deletionTimestamp          ──watch──▶ kubelet ──job──▶ thread of C0w2: SIGTERM, CNI DEL, namespace
//!  etcd: the pod is gone            ◀──────────────────────────────┘ report
//! ```
//!
//! A real kubelet is a daemon of its worker and asks a container runtime. Here all of them are threads of process 1, which starts
//! and reaps every process of the lab: one that watches, and one for each worker, so that workers work at the same time and each
//! attaches one pod after the other, as a kubelet does.
//!
//! The lab's own containers have pods too, see [`crate::object::pod`]. The kubelet finds them running and lets them be; one
//! that is deleted through the API is stopped like any other.
//!
//! What it leaves out: images, volumes, probes, restart counts, and grace periods: a command has as long from SIGTERM to SIGKILL as every
//! process of the lab. A pod is ready once the web servers that the lab itself put into it serve; with a command of its own, once that
//! is started.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::{Arc, mpsc},
    time::Duration,
};

use anyhow::anyhow;
use k8s_openapi::api::core::v1::Pod;
use linux_net::NetNs;
use serde_json::{Value, json};

use crate::{
    api::{
        failure::Failure,
        kind::Kind,
        registry::{Part, Precondition, Registry, read},
        schema,
        validate::Ranges,
    },
    component::apiserver,
    controller::pods::{is_finished, is_terminating, node_of},
    lab::Cluster,
    object,
    world::{PodId, World},
};

/// The pause before something that failed is tried again: a pod that could not be started, a status that was not written.
const RETRY_PAUSE: Duration = Duration::from_secs(2);
/// The pause after etcd was away.
const AWAY_PAUSE: Duration = Duration::from_millis(200);
/// Reports that wait to be read.
const QUEUE: usize = 64;

/// Starts the kubelets of a cluster.
///
/// # Errors
///
/// When a thread cannot be made, or the node of the API has no namespace.
pub fn start(world: &Arc<World>, cluster: &Cluster) -> anyhow::Result<()> {
    let netns = NetNs::open(&apiserver::node(cluster)?.name)?;
    let (reports, received) = tokio::sync::mpsc::channel(QUEUE);
    let mut workers = BTreeMap::new();
    for worker in &cluster.workers {
        let (jobs, queue) = mpsc::channel();
        let (world, cluster, worker_name, reports) =
            (Arc::clone(world), cluster.clone(), worker.name.clone(), reports.clone());
        std::thread::Builder::new()
            .name(format!("{} kubelet", worker.name))
            .spawn(move || work(&world, &cluster, &worker_name, &queue, &reports))?;
        workers.insert(worker.name.clone(), jobs);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (world, cluster) = (Arc::clone(world), cluster.clone());
    let ranges = Ranges { services: world.lab.pods.service_cidr };
    std::thread::Builder::new().name(format!("{} kubelets", cluster.name)).spawn(move || {
        netns.run(move || {
            runtime.block_on(async move {
                let endpoints: Vec<String> = cluster.etcd_endpoints().split(',').map(str::to_owned).collect();
                // The addresses were checked with the lab, so they are URLs.
                let Ok(registry) = Registry::connect(&endpoints, ranges).await else { return };
                Kubelets { world, cluster, registry, workers, reports, known: BTreeMap::new() }.run(received).await;
            });
        })
    })?;
    Ok(())
}

/// Something for the thread of a worker.
enum Job {
    Start(Box<Pod>),
    Stop(PodId),
}

/// What became of a job, or what is to be looked at again.
enum Report {
    Started(PodId, anyhow::Result<Ipv4Addr>),
    Stopped(PodId, anyhow::Result<()>),
    LookAgain(PodId),
}

/// How far the kubelet is with a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It is being started, or runs.
    Started,
    /// The lab runs it by itself.
    Own,
    /// It is being stopped.
    Stopping,
}

/// What to do about a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    Start,
    Adopt,
    Stop,
    /// The one of this name that runs is another one, of an earlier life: stop that, and start this.
    Replace,
    Nothing,
}

/// Decides from what is known of the pod of this name (its uid and stage), the pod itself, and whether the lab runs it by itself.
fn decide(known: Option<(&Option<String>, Stage)>, pod: &Pod, is_own: bool) -> Decision {
    match known {
        None if is_terminating(pod) => Decision::Stop,
        None if is_own => Decision::Adopt,
        None if is_finished(pod) => Decision::Nothing,
        None => Decision::Start,
        Some((uid, _)) if *uid != pod.metadata.uid => Decision::Replace,
        Some((_, Stage::Started | Stage::Own)) if is_terminating(pod) => Decision::Stop,
        Some((_, Stage::Started | Stage::Own | Stage::Stopping)) => Decision::Nothing,
    }
}

struct Kubelets {
    world: Arc<World>,
    cluster: Cluster,
    registry: Registry,
    /// The jobs of each worker.
    workers: BTreeMap<String, mpsc::Sender<Job>>,
    /// Where reports go, for those that are sent from here.
    reports: tokio::sync::mpsc::Sender<Report>,
    /// By namespace and name: the uid, how far it is, and on which worker.
    known: BTreeMap<(String, String), (Option<String>, Stage, String)>,
}

impl Kubelets {
    async fn run(mut self, mut reports: tokio::sync::mpsc::Receiver<Report>) {
        loop {
            // Whatever went wrong, the list tells what is.
            if self.follow(&mut reports).await.is_err() {
                tokio::time::sleep(AWAY_PAUSE).await;
            }
        }
    }

    async fn follow(&mut self, reports: &mut tokio::sync::mpsc::Receiver<Report>) -> Result<(), Failure> {
        let listing = self.registry.list(Kind::Pod, None).await?;
        let name_of = |object: &Value| {
            let word = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
            (word("namespace"), word("name"))
        };
        let listed: Vec<(String, String)> = listing.objects.iter().map(name_of).collect();
        let gone: Vec<(String, String)> = self.known.keys().filter(|name| !listed.contains(name)).cloned().collect();
        for name in gone {
            self.handle_deleted(&name);
        }
        for object in &listing.objects {
            self.handle_pod(object);
        }
        let mut watch = self.registry.watch(Kind::Pod.prefix(None), listing.revision + 1).await?;
        loop {
            tokio::select! {
                response = watch.message() => {
                    let response = response.ok().flatten().filter(|response| !response.canceled());
                    let Some(response) = response else { return Err(Failure::Unavailable("the watch ended".to_owned())) };
                    for event in response.events() {
                        let Some(pair) = event.kv() else { continue };
                        let name = std::str::from_utf8(pair.key()).ok().and_then(Kind::read_key);
                        match (event.event_type(), name) {
                            (etcd_client::EventType::Put, _) => {
                                if let Some(object) = read(Kind::Pod, pair) {
                                    self.handle_pod(&object);
                                }
                            }
                            (etcd_client::EventType::Delete, Some((_, namespace, name))) => self.handle_deleted(&(namespace, name)),
                            (etcd_client::EventType::Delete, None) => {}
                        }
                    }
                }
                Some(report) = reports.recv() => self.handle_report(report).await,
            }
        }
    }

    fn handle_pod(&mut self, object: &Value) {
        let Ok(pod) = schema::read::<Pod>(object) else { return };
        let Some(worker) = node_of(&pod).map(str::to_owned) else { return };
        let id = PodId::of(&pod);
        let key = (id.namespace.clone(), id.name.clone());
        let known = self.known.get(&key);
        let decision =
            decide(known.map(|(uid, stage, _)| (uid, *stage)), &pod, self.world.is_own_container(&self.cluster, &id));
        let mut stage = |stage| _ = self.known.insert(key.clone(), (id.uid.clone(), stage, worker.clone()));
        match decision {
            Decision::Start => {
                stage(Stage::Started);
                self.give(&worker, Job::Start(Box::new(pod)));
            }
            Decision::Adopt => stage(Stage::Own),
            Decision::Stop => {
                stage(Stage::Stopping);
                self.give(&worker, Job::Stop(id));
            }
            Decision::Replace => {
                self.handle_deleted(&key);
                self.handle_pod(object);
            }
            Decision::Nothing => {}
        }
    }

    /// A pod is no longer in etcd. Of the lab's own ones the lab has taken care.
    fn handle_deleted(&mut self, key: &(String, String)) {
        match self.known.remove(key) {
            Some((uid, Stage::Started, worker)) => {
                let (namespace, name) = key.clone();
                self.give(&worker, Job::Stop(PodId { namespace, name, uid }));
            }
            Some((_, Stage::Own | Stage::Stopping, _)) | None => {}
        }
    }

    fn give(&self, worker: &str, job: Job) {
        // A pod that is bound to a worker that does not exist waits for it for ever, as in Kubernetes.
        if let Some(jobs) = self.workers.get(worker) {
            let _ = jobs.send(job); // the thread ends with the lab only
        }
    }

    async fn handle_report(&mut self, report: Report) {
        let (id, written) = match report {
            Report::Started(id, Ok(address)) => {
                let written = self.write_running(&id, address).await;
                (id, written)
            }
            Report::Started(id, Err(error)) => {
                self.known.remove(&(id.namespace.clone(), id.name.clone()));
                self.look_again(&id);
                let written = self.write_waiting(&id, &format!("{error:#}")).await;
                (id, written)
            }
            Report::Stopped(id, Ok(())) => {
                let only = Precondition { uid: id.uid.clone(), resource_version: None };
                let removed = self.registry.remove(Kind::Pod, &id.namespace, &id.name, &only).await;
                if removed.is_ok() {
                    self.known.remove(&(id.namespace.clone(), id.name.clone()));
                }
                (id, removed.map(drop))
            }
            Report::Stopped(id, Err(_)) => {
                self.known.remove(&(id.namespace.clone(), id.name.clone()));
                (id, Err(Failure::Unavailable("the container is still there".to_owned())))
            }
            Report::LookAgain(id) => {
                if let Ok(object) = self.registry.get(Kind::Pod, &id.namespace, &id.name).await {
                    self.handle_pod(&object);
                }
                return;
            }
        };
        match written {
            // A pod that is gone, or another one by now, has nothing to be said of.
            Ok(()) | Err(Failure::NotFound { .. } | Failure::Conflict { .. }) => {}
            Err(_) => {
                self.known.remove(&(id.namespace.clone(), id.name.clone()));
                self.look_again(&id);
            }
        }
    }

    fn look_again(&self, id: &PodId) {
        let (reports, id) = (self.reports.clone(), id.clone());
        tokio::spawn(async move {
            tokio::time::sleep(RETRY_PAUSE).await;
            let _ = reports.send(Report::LookAgain(id)).await; // the receiver ends with the lab only
        });
    }

    async fn write_running(&self, id: &PodId, address: Ipv4Addr) -> Result<(), Failure> {
        let change = |object: &Value| {
            let worker = self.cluster.workers.iter().find(|worker| object["spec"]["nodeName"] == *worker.name);
            let containers = object["spec"]["containers"].as_array().into_iter().flatten();
            let names: Vec<&str> = containers.filter_map(|container| container["name"].as_str()).collect();
            worker.map(|worker| object::running_status(&names, worker, address))
        };
        self.write_status(id, change).await
    }

    async fn write_waiting(&self, id: &PodId, message: &str) -> Result<(), Failure> {
        let change = |object: &Value| {
            let containers = object["spec"]["containers"].as_array().into_iter().flatten();
            let waiting = json!({ "reason": "CreateContainerError", "message": message });
            let statuses: Vec<Value> = containers
                .map(|container| {
                    json!({ "name": container["name"], "ready": false, "restartCount": 0, "image": "", "imageID": "",
                        "state": { "waiting": waiting } })
                })
                .collect();
            Some(json!({ "phase": "Pending", "containerStatuses": statuses }))
        };
        self.write_status(id, change).await
    }

    async fn write_status(&self, id: &PodId, status: impl Fn(&Value) -> Option<Value>) -> Result<(), Failure> {
        let change = |mut object: Value| {
            if object["metadata"]["uid"].as_str() != id.uid.as_deref() {
                return Err(Failure::NotFound { kind: Kind::Pod, name: id.name.clone() });
            }
            if let Some(status) = status(&object) {
                object["status"] = status;
            }
            Ok(object)
        };
        self.registry.update(Kind::Pod, &id.namespace, &id.name, Part::Status, change).await.map(drop)
    }
}

/// The thread of a worker: one job after the other.
fn work(
    world: &World,
    cluster: &Cluster,
    worker: &str,
    jobs: &mpsc::Receiver<Job>,
    reports: &tokio::sync::mpsc::Sender<Report>,
) {
    for job in jobs {
        let report = match job {
            Job::Start(pod) => {
                let node = cluster.workers.iter().find(|node| node.name == worker);
                let node = node.ok_or_else(|| anyhow!("there is no worker {worker}"));
                Report::Started(PodId::of(&pod), node.and_then(|node| world.start_pod(cluster, node, &pod)))
            }
            Job::Stop(id) => {
                let stopped = world.stop_pod(cluster, &id);
                Report::Stopped(id, stopped)
            }
        };
        if reports.blocking_send(report).is_err() {
            return; // nobody watches any more
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, terminating: bool) -> Pod {
        let mut object = json!({ "metadata": { "name": "web", "uid": uid } });
        if terminating {
            object["metadata"]["deletionTimestamp"] = json!("2026-11-21T12:00:00Z");
        }
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_pod_is_started_once_and_stopped_once() {
        let uid = Some("a".to_owned());
        assert_eq!(decide(None, &pod("a", false), false), Decision::Start);
        assert_eq!(decide(Some((&uid, Stage::Started)), &pod("a", false), false), Decision::Nothing);
        assert_eq!(decide(Some((&uid, Stage::Started)), &pod("a", true), false), Decision::Stop);
        assert_eq!(decide(Some((&uid, Stage::Stopping)), &pod("a", true), false), Decision::Nothing);
        assert_eq!(decide(None, &pod("a", true), false), Decision::Stop);
    }

    #[test]
    fn the_labs_own_containers_are_left_to_the_lab_until_their_pods_are_deleted() {
        let uid = Some("a".to_owned());
        assert_eq!(decide(None, &pod("a", false), true), Decision::Adopt);
        assert_eq!(decide(Some((&uid, Stage::Own)), &pod("a", false), true), Decision::Nothing);
        assert_eq!(decide(Some((&uid, Stage::Own)), &pod("a", true), true), Decision::Stop);
    }

    #[test]
    fn a_pod_that_was_made_anew_under_its_old_name_takes_the_place_of_the_old_one() {
        assert_eq!(decide(Some((&Some("a".to_owned()), Stage::Started)), &pod("b", false), false), Decision::Replace);
    }
}
