//! Keeps our lease alive, and puts it back when it is lost.
//!
//! ```text
//!            Grant 24 h                renew                 renew
//!   |------------|---------------------|---------------------|----- …
//!   0         written                 8 h                   16 h
//! ```
//!
//! The lease is renewed at a third of its life, so that two renewals may fail before it is in danger. If it is lost all the same,
//! because etcd was away for a day or somebody deleted the key, the first thing is to create *the same* key again, since pods live
//! on that subnet. When another worker has taken it by then, this one keeps its data plane, says so, reports itself not ready
//! and tries again: to take another subnet while pods are running would cut all of them off.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{error, info, warn};

use crate::error::chain;
use crate::health::Health;
use crate::lease::{OwnLease, Term};
use crate::registry::Registry;

/// The pause after a renewal that failed, as in flanneld.
const RETRY_PAUSE: Duration = Duration::from_mins(1);
/// The pause after an attempt to put the key back that failed: shorter, because other workers have dropped us already.
const RECLAIM_PAUSE: Duration = Duration::from_secs(2);

/// What the keeper is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Renew the lease at this instant; `None` for a reservation, which needs none.
    Renew(Option<Instant>),
    /// Create the key again at this instant.
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

/// Keeps the lease in `own`, and `own` up to date, until the task is dropped.
///
/// Each message on `lost` says that the key was seen to vanish.
pub async fn keep(
    registry: Registry,
    own: watch::Sender<OwnLease>,
    margin: Duration,
    mut lost: mpsc::Receiver<()>,
    health: Health,
) {
    let renew_after =
        |term: Option<Term>| Next::Renew(term.map(|term| Instant::now() + renewal_delay(term.ttl, margin)));
    let mut next = renew_after(own.borrow().term);
    loop {
        let (Next::Renew(due) | Next::Reclaim(due)) = next;
        tokio::select! {
            Some(()) = lost.recv() => next = Next::Reclaim(Some(Instant::now())),
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
                            let term = reclaimed.term;
                            own.send_replace(reclaimed);
                            renew_after(term)
                        }
                        Err(error) => {
                            health.set_lease_held(false);
                            error!(error = %chain(&error), retry = ?RECLAIM_PAUSE, "our lease is lost and could not be put back yet");
                            Next::Reclaim(Some(Instant::now() + RECLAIM_PAUSE))
                        }
                    },
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_renewed_at_a_third_of_its_life_or_earlier_if_the_margin_says_so() {
        let minutes = Duration::from_mins;
        let day = Duration::from_hours(24);
        assert_eq!(renewal_delay(day, minutes(60)), minutes(8 * 60));
        assert_eq!(renewal_delay(day, minutes(1439)), minutes(1));
        assert_eq!(renewal_delay(minutes(30), minutes(60)), minutes(10));
    }
}
