//! How long it takes to plan and commit many Services of two endpoints each, and then one more.
//!
//! ```sh
//! unshare -Urn cargo run --release -p kproxy-rs --example load -- 10000
//! ```

use std::io::Write;
use std::time::{Duration, Instant};

use kproxy_rs::apply::Kernel;
use kproxy_rs::config::LocalClients;
use kproxy_rs::diff::Layouts;
use kproxy_rs::node::Node;
use kproxy_rs::objects::{Event, Key, Objects};
use kproxy_rs::plan::Planner;
use kproxy_rs::service::ServiceName;
use kproxy_rs::table::Layout;
use linux_net::ip::Family;
use serde_json::json;

/// How often one more Service is added, and removed again.
const ROUNDS: u32 = 100;

fn main() -> anyhow::Result<()> {
    let count: u32 = std::env::args().nth(1).map_or(Ok(10_000), |text| text.parse())?;
    let mut out = std::io::stdout();
    let mut objects = Objects::default();
    let mut planner = Planner::new(Node::new("w1"));
    let pods = LocalClients::Networks(vec!["11.0.0.0/8".parse()?]);
    let layout = |family| Layout::new(family, &pods, &[], 14);
    let mut kernel = Kernel::open(Layouts { ipv4: layout(Family::V4), ipv6: layout(Family::V6) })?;

    let start = Instant::now();
    objects.handle_event(Event::Listed((0..count).flat_map(service).collect()));
    let read = start.elapsed();
    planner.update_changed(&mut objects);
    let until_commit = start.elapsed();
    planner.take_change();
    kernel.replace(planner.entries())?;
    let (parsing, planning, committing) =
        (read, until_commit.saturating_sub(read), start.elapsed().saturating_sub(until_commit));
    writeln!(out, "{count} Services: JSON {parsing:.1?}, plan {planning:.1?}, build and commit {committing:.1?}")?;

    let mut total = Duration::ZERO;
    for _ in 0..ROUNDS {
        for event in service(count).map(|(key, value)| Event::Put(key, value)) {
            objects.handle_event(event);
        }
        let start = Instant::now();
        planner.update_changed(&mut objects);
        kernel.change(&planner.take_change())?;
        total += start.elapsed();
        for (key, _) in service(count) {
            objects.handle_event(Event::Deleted(key));
        }
        planner.update_changed(&mut objects);
        kernel.change(&planner.take_change())?;
    }
    writeln!(out, "one more: plan and commit {:.1?}", total / ROUNDS)?;
    Ok(())
}

/// Service number `n` and its slice.
fn service(n: u32) -> [(Key, Vec<u8>); 2] {
    let octets = |n: u32| format!("{}.{}.{}", n >> 16 & 0xff, n >> 8 & 0xff, n & 0xff);
    let (namespace, name) = ("shop".to_owned(), format!("s{n}"));
    let service = json!({"spec": {"clusterIP": format!("100.{}", octets(64 << 16 | n)), "ports": [{"port": 80}]}});
    let slice = json!({"metadata": {"labels": {"kubernetes.io/service-name": name}}, "addressType": "IPv4", "ports": [{"port": 8080}],
        "endpoints": [{"addresses": [format!("11.{}", octets(1 + 2 * n))]}, {"addresses": [format!("11.{}", octets(2 + 2 * n))]}]});
    [
        (Key::Service(ServiceName::new(&namespace, &name)), service.to_string().into_bytes()),
        (Key::Slice { namespace, name: format!("{name}-1") }, slice.to_string().into_bytes()),
    ]
}
