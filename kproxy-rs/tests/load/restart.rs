//! The proxy goes and comes while clients ask.

use std::time::Duration;

use crate::support::Lab;
use crate::support::program::{self, Program};
use crate::{is_done, lab, under_load};

/// How often each thing is done.
const ROUNDS: u32 = 3;
/// How long the tables serve on their own.
const ALONE: Duration = Duration::from_millis(200);

#[test]
fn no_request_fails_while_the_proxy_ends_and_starts_again() {
    if is_done() {
        return;
    }
    restart(|lab| {
        lab.terminate_proxy();
    });
}

#[test]
fn no_request_fails_while_the_proxy_is_killed_and_starts_again() {
    if is_done() {
        return;
    }
    restart(Lab::kill_proxy);
}

/// Ends the proxy in some way and starts it again, while clients ask.
fn restart(end: impl Fn(&mut Lab)) {
    let report = under_load(&mut lab(), |lab| {
        for _ in 0..ROUNDS {
            end(lab);
            std::thread::sleep(ALONE);
            lab.start_proxy();
        }
    });
    report.assert_flawless();
}

#[test]
fn no_request_fails_while_the_tables_are_replaced() {
    if is_done() {
        return;
    }
    let mut lab = lab();
    let report = under_load(&mut lab, |lab| {
        for round in 0..ROUNDS {
            lab.kill_proxy();
            // The bit stands in the rules, so those of the former run are of no use.
            lab.settings.masquerade_bit = if round % 2 == 0 { 15 } else { 14 };
            lab.start_proxy();
            std::thread::sleep(ALONE);
        }
    });
    report.assert_flawless();
    if program::tested() == Program::Ours {
        let replaced = lab.proxy_log().matches("made new tables").count();
        assert_eq!(replaced, 1 + ROUNDS as usize, "{}", lab.proxy_log());
    }
}
