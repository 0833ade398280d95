//! Keeps our lease alive, puts it back when it is lost, and finds out when somebody else claims it.
//!
//! ```text
//!            Grant 24 h                renew                 renew
//!   |------------|---------------------|---------------------|----- …
//!   0         written                 8 h                   16 h
//! ```
//!
//! The lease is renewed at a third of its life, so that two renewals may fail before it is in danger. One rule stands above all others:
//! *the subnet of a running agent never changes*, because pods live on it.
//!
//! | what happens to our key | what is done |
//! |---|---|
//! | it runs out, or is deleted by hand | the same key is created again, at once |
//! | it is missing after etcd was restored from an older snapshot | the same |
//! | the snapshot is so old that another worker has our subnet by now | the data plane stays, `/readyz` says 503, and we try again: an operator must decide |
//! | another worker writes its own address into it | the same; that worker's key must go first |
//! | an agent with *our* public IP writes it | the younger of the two ends with an error; the elder writes the key again |
//!
//! The last row is two machines with one `--public-ip`, or a cloned machine. Both find the key of "their" worker in etcd and take it up, and
//! flanneld lets them both serve the same subnet. Here an agent writes its key when it takes it up, so the elder hears of it, and answers
//! by writing too. An agent that hears such an answer within [`YOUNG`] of its own start knows that it is the younger.
//!
//! Source: flannel `pkg/subnet/etcd/local_manager.go`, `CompleteLease` (renewal); the rest is ours.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{error, info, warn};

use crate::error::{RegistryError, chain};
use crate::health::Health;
use crate::lease::{Entry, OwnLease, Term};
use crate::peer::OwnKey;
use crate::registry::Registry;

/// The pause after a renewal that failed, as in flanneld.
const RETRY_PAUSE: Duration = Duration::from_mins(1);
/// The pause after an attempt to put the key back that failed: shorter, because other workers have dropped us already. Each further one is
/// twice as long.
const RECLAIM_PAUSE: Duration = Duration::from_secs(2);
/// The longest of these pauses.
const LONGEST_RECLAIM_PAUSE: Duration = Duration::from_secs(30);
/// An agent is the younger one of two until it has run for so long; an answer in etcd takes milliseconds.
pub const YOUNG: Duration = Duration::from_secs(2);
/// Two agents that both think they are the elder, as after a partition, write no more often than this.
const CONTEST_PAUSE: Duration = Duration::from_secs(10);

/// What the keeper is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Renew the lease at this instant; `None` for a reservation, which needs none.
    Renew(Option<Instant>),
    /// Create or write the key again at this instant.
    Reclaim(Option<Instant>),
}

/// How long after a renewal the next one is due: a third of the lease's life, or earlier when `margin` asks for it.
#[must_use]
pub fn renewal_delay(ttl: Duration, margin: Duration) -> Duration {
    // Leases shorter than the margin, as somebody may have granted by hand, are renewed at a third all the same.
    match ttl.saturating_sub(margin) {
        Duration::ZERO => ttl / 3,
        latest => latest.min(ttl / 3),
    }
}

/// Keeps the lease in `own`, and `own` up to date, for ever; `heard` is what the watch says about the key.
///
/// # Errors
///
/// [`RegistryError::Doubled`] when an older agent holds our subnet under our address: this one must end.
pub async fn keep(
    registry: Registry,
    own: watch::Sender<OwnLease>,
    margin: Duration,
    mut heard: mpsc::Receiver<OwnKey>,
    health: Health,
) -> RegistryError {
    let renew_after =
        |term: Option<Term>| Next::Renew(term.map(|term| Instant::now() + renewal_delay(term.ttl, margin)));
    let started = Instant::now();
    let mut contested: Option<Instant> = None;
    let mut pause = RECLAIM_PAUSE;
    let mut next = renew_after(own.borrow().term);
    loop {
        let (Next::Renew(due) | Next::Reclaim(due)) = next;
        tokio::select! {
            Some(news) = heard.recv() => {
                let current = own.borrow().clone();
                let now = Instant::now();
                match judge(&news, &current, now - started) {
                    Verdict::Fine => {}
                    Verdict::GiveWay => {
                        return RegistryError::Doubled { public_ip: current.public_ip(), subnet: current.subnet };
                    }
                    Verdict::Lost => {
                        warn!(subnet = %current.subnet, "our key vanished from etcd; creating it again");
                        health.metrics().leases_lost.inc();
                        next = Next::Reclaim(Some(now));
                    }
                    Verdict::Stale => next = Next::Reclaim(Some(now)),
                    Verdict::Claimed { by_our_double } => {
                        if by_our_double {
                            error!(subnet = %current.subnet, public_ip = %current.public_ip(), "another agent announces our public IP; give one of the two another --public-ip");
                        } else {
                            error!(subnet = %current.subnet, "another worker has written its own address into our key");
                        }
                        health.metrics().leases_contested.inc();
                        let earliest = contested.map_or(now, |last| last + CONTEST_PAUSE).max(now);
                        contested = Some(earliest);
                        next = Next::Reclaim(Some(earliest));
                    }
                }
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                let current = own.borrow().clone();
                next = match (next, current.term) {
                    (Next::Renew(_), None) => Next::Renew(None),
                    (Next::Renew(_), Some(term)) => match registry.keep_alive(term.lease_id).await {
                        Ok(Some(ttl)) => {
                            info!(subnet = %current.subnet, ?ttl, "lease renewed");
                            renew_after(Some(Term { ttl, ..term }))
                        }
                        Ok(None) => {
                            warn!(subnet = %current.subnet, "our lease ran out; creating the same key again");
                            Next::Reclaim(Some(Instant::now()))
                        }
                        Err(error) => {
                            warn!(error = %chain(&error), retry = ?RETRY_PAUSE, "our lease could not be renewed");
                            Next::Renew(Some(Instant::now() + RETRY_PAUSE))
                        }
                    },
                    (Next::Reclaim(_), _) => match registry.reclaim(&current).await {
                        Ok(reclaimed) => {
                            health.set_lease_held(true);
                            pause = RECLAIM_PAUSE;
                            let term = reclaimed.term;
                            own.send_replace(reclaimed);
                            renew_after(term)
                        }
                        Err(error) => {
                            health.set_lease_held(false);
                            error!(error = %chain(&error), retry = ?pause, "our lease is lost and could not be put back yet");
                            let due = Instant::now() + pause;
                            pause = (pause * 2).min(LONGEST_RECLAIM_PAUSE);
                            Next::Reclaim(Some(due))
                        }
                    },
                };
            }
        }
    }
}

/// What news of our key mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It is as we wrote it.
    Fine,
    /// It is gone.
    Lost,
    /// It is ours, but not as we wrote it last: etcd was restored from a snapshot.
    Stale,
    /// Somebody else has written it after us.
    Claimed {
        /// An agent with our address, rather than another worker.
        by_our_double: bool,
    },
    /// An agent with our address, older than we, has written it.
    GiveWay,
}

/// Judges what was heard, `age` after our start.
fn judge(news: &OwnKey, own: &OwnLease, age: Duration) -> Verdict {
    let is_ours = |entry: &Entry| entry.is_held_by(own.public_ip());
    match news {
        OwnKey::Lost => Verdict::Lost,
        OwnKey::Listed(entry) if !is_ours(entry) => Verdict::Claimed { by_our_double: false },
        OwnKey::Listed(entry) if entry.mod_revision == own.mod_revision => Verdict::Fine,
        OwnKey::Listed(_) => Verdict::Stale,
        // An older revision is news of a write before ours.
        OwnKey::Written(entry) if entry.mod_revision <= own.mod_revision => Verdict::Fine,
        OwnKey::Written(entry) if !is_ours(entry) => Verdict::Claimed { by_our_double: false },
        OwnKey::Written(_) if age < YOUNG => Verdict::GiveWay,
        OwnKey::Written(_) => Verdict::Claimed { by_our_double: true },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::{Attributes, PublicAddresses};

    #[test]
    fn a_lease_is_renewed_at_a_third_of_its_life_or_earlier_if_the_margin_says_so() {
        let minutes = Duration::from_mins;
        let day = Duration::from_hours(24);
        assert_eq!(renewal_delay(day, minutes(60)), minutes(8 * 60));
        assert_eq!(renewal_delay(day, minutes(1439)), minutes(1));
        assert_eq!(renewal_delay(minutes(30), minutes(60)), minutes(10));
    }

    #[test]
    fn what_is_heard_of_our_key_is_judged_by_who_wrote_it_and_when() {
        let attributes = |last| Attributes::host_gw(PublicAddresses { ipv4: [10, 0, 0, last].into(), ipv6: None });
        let subnet = "10.5.1.0-24".parse().unwrap();
        let own = OwnLease { subnet, attributes: attributes(3), term: None, mod_revision: 40 };
        let entry =
            |last, mod_revision| Entry { subnet, attributes: Some(attributes(last)), lease_id: 0, mod_revision };
        let (young, old) = (Duration::from_millis(5), Duration::from_mins(1));
        for (news, age, expected) in [
            (OwnKey::Lost, old, Verdict::Lost),
            (OwnKey::Written(entry(3, 40)), old, Verdict::Fine),
            (OwnKey::Written(entry(3, 39)), young, Verdict::Fine),
            (OwnKey::Written(entry(3, 41)), old, Verdict::Claimed { by_our_double: true }),
            (OwnKey::Written(entry(3, 41)), young, Verdict::GiveWay),
            (OwnKey::Written(entry(4, 41)), young, Verdict::Claimed { by_our_double: false }),
            (OwnKey::Listed(entry(3, 40)), old, Verdict::Fine),
            (OwnKey::Listed(entry(3, 7)), young, Verdict::Stale),
            (OwnKey::Listed(entry(4, 7)), old, Verdict::Claimed { by_our_double: false }),
        ] {
            assert_eq!(judge(&news, &own, age), expected, "{news:?} after {age:?}");
        }
    }
}
