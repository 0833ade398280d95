//! Connections while the endpoints of their Service are replaced all the time: none may fail.
//!
//! A pod connects to one ClusterIP, one connection after the other, each within less than a second, after which a lost packet would be
//! sent again. Meanwhile etcd gets another EndpointSlice for that Service every few milliseconds: two, three or
//! all of the pods, which all answer, so whatever fails is the proxy's fault. It is the running program that follows, with all the
//! other Services in its table.

use std::{
    net::SocketAddrV4,
    time::{Duration, Instant},
};

use etcd_client::Client;
use linux_net::nft::Nft;
use tokio::sync::oneshot;

use super::{
    pods::{Pods, SERVERS, connect},
    proxy::Proxy,
    services,
};
use crate::cmd::bench::{
    table::{Case, Unit},
    warn,
};

/// The pause between two puts.
const PAUSE: Duration = Duration::from_millis(5);
/// Which of four pods are endpoints, one choice after the other: another number of them, or others.
const CHOICES: [&[usize]; 5] = [&[0, 1], &[1, 2, 3], &[2, 3], &[0, 1, 2, 3], &[0, 3]];

/// Connects so many times to the first Service, and replaces its endpoints meanwhile.
pub(super) async fn measure(
    client: &mut Client,
    proxy: &mut Proxy,
    pods: &Pods,
    connects: u32,
) -> anyhow::Result<[Case; 3]> {
    let mut nft = Nft::open_in(proxy.netns())?;
    let before = nft.generation()?;
    let (finished, mut outcome) = oneshot::channel();
    let connecting = pods.clone();
    std::thread::Builder::new().name("client".to_owned()).spawn(move || {
        // Nobody waits for it when the other side has failed.
        let _ = finished.send(connecting.as_client(|| Ok(connect_all(connects))));
    })?;
    let mut choices = CHOICES.iter().cycle();
    let (errors, time) = loop {
        tokio::select! {
            outcome = &mut outcome => break outcome??,
            () = tokio::time::sleep(PAUSE) => {
                let choice = choices.next().copied().unwrap_or_default();
                let endpoints: Vec<_> = choice.iter().map(|pod| SERVERS[*pod]).collect();
                let (key, value) = services::slice(0, &endpoints);
                client.put(format!("{}{key}", services::PREFIX), value.to_string(), None).await?;
            }
        }
    };
    proxy.check("the end of the connections")?;
    let commits = nft.generation()?.wrapping_sub(before);
    if let Some(first) = errors.first() {
        warn(&format!("of {connects} connections under churn {} failed, the first so: {first}", errors.len()))?;
    }
    let failed = u32::try_from(errors.len())?;
    let case = |what: &str, unit, number: f64| Case::new(&format!("endpoints churn, {what}"), unit, vec![number]);
    Ok([
        case(&format!("errors of {connects} connections"), Unit::Count, failed.into()),
        case("connections", Unit::PerSecond, f64::from(connects) / time.as_secs_f64()),
        case("commits", Unit::PerSecond, f64::from(commits) / time.as_secs_f64()),
    ])
}

/// Connects one time after the other. Returns why some failed, and how long it all took.
fn connect_all(connects: u32) -> (Vec<String>, Duration) {
    let address = SocketAddrV4::new(services::address(0), services::PORT);
    let began = Instant::now();
    let errors = (0..connects).filter_map(|_| connect(address).err()).map(|error| error.to_string()).collect();
    (errors, began.elapsed())
}
