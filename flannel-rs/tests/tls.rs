//! etcd over TLS, and with users and passwords.

#![expect(clippy::unwrap_used, reason = "the helpers of these tests fail by panicking, as the tests do")]

mod support;

use linux_net::testing::enter_sandbox;
use support::agent::{Agent, Program};
use support::lab::{CONFIG, ETCD, Lab};
use support::pki::Pki;
use support::wait_for;

/// A lab whose etcd speaks TLS and, perhaps, wants a certificate of its clients.
fn lab(workers: u8, wants_client_certificates: bool) -> Lab {
    let lab = Lab::with_pki(workers, Some(Pki::new(&ETCD.to_string(), wants_client_certificates)));
    lab.etcd.configure(CONFIG);
    lab
}

fn path(path: std::path::PathBuf) -> String {
    path.into_os_string().into_string().unwrap()
}

fn start_with(lab: &Lab, n: u8, flags: &[(&str, String)]) -> Agent {
    let flags: Vec<&str> = flags.iter().flat_map(|(flag, value)| [*flag, value.as_str()]).collect();
    lab.launch(Program::Ours, n, &flags)
}

/// Waits until the log of an agent that cannot get through says why, in one of these words.
fn assert_refused(agent: &Agent, why: &[&str]) {
    wait_for("the agent to say why", || why.iter().any(|why| agent.log().contains(why)).then_some(()));
    assert!(!agent.is_ready());
}

/// flanneld uses TLS only when it has a certificate and a key of its own; with the authority alone it ignores it, and fails.
#[test]
fn with_the_authority_alone_the_agent_trusts_etcd() {
    if !enter_sandbox() {
        return;
    }
    let lab = lab(2, false);
    let ca = path(lab.etcd.pki().ca());
    let w1 = start_with(&lab, 1, &[("--etcd-cafile", ca.clone())]).ready();
    let w2 = start_with(&lab, 2, &[("-etcd-cafile", ca)]).ready();
    wait_for("the peers", || (w1.reaches(&w2) && w2.reaches(&w1)).then_some(()));
    let (key, value) = (w1.subnet(), lab.etcd.value(&w1.subnet()));
    lab.etcd.delete(&key);
    wait_for("the key to be back", || (lab.etcd.value(&key) == value).then_some(()));
}

#[test]
fn with_certificate_and_key_the_agent_is_trusted_by_etcd() {
    if !enter_sandbox() {
        return;
    }
    let lab = lab(1, true);
    let pki = lab.etcd.pki();
    let all = [
        ("--etcd-cafile", path(pki.ca())),
        ("--etcd-certfile", path(pki.client_cert())),
        ("--etcd-keyfile", path(pki.client_key())),
    ];
    start_with(&lab, 1, &all).ready();
    assert_eq!(lab.etcd.subnets(), ["11.10.0.0-20"]);
}

#[test]
fn without_the_certificate_that_etcd_wants_the_agent_says_that_it_was_refused() {
    if !enter_sandbox() {
        return;
    }
    let lab = lab(1, true);
    let agent = start_with(&lab, 1, &[("--etcd-cafile", path(lab.etcd.pki().ca()))]);
    // etcd's alert may be overtaken by the end of the connection; then the agent can only guess.
    assert_refused(&agent, &["BadCertificate", "CertificateRequired", "--etcd-certfile"]);
}

#[test]
fn an_etcd_of_another_authority_is_not_trusted() {
    if !enter_sandbox() {
        return;
    }
    let lab = lab(1, false);
    let other = Pki::new("10.9.0.254", false);
    let agent = start_with(&lab, 1, &[("--etcd-cafile", path(other.ca()))]);
    assert_refused(&agent, &["invalid peer certificate"]);
    assert_eq!(lab.etcd.subnets(), [""; 0]);
}

#[test]
fn an_etcd_that_bears_another_name_is_not_trusted() {
    if !enter_sandbox() {
        return;
    }
    let lab = Lab::with_pki(1, Some(Pki::new("etcd.example", false)));
    let agent = start_with(&lab, 1, &[("--etcd-cafile", path(lab.etcd.pki().ca()))]);
    assert_refused(&agent, &["NotValidForName"]);
}

#[test]
fn a_file_that_is_missing_or_no_certificate_is_named() {
    if !enter_sandbox() {
        return;
    }
    let lab = lab(1, true);
    let (status, log) = start_with(&lab, 1, &[("--etcd-cafile", "/nowhere/ca.pem".to_owned())]).wait();
    assert!(!status.success() && log.contains("/nowhere/ca.pem"), "{log}");
    let key = path(lab.etcd.pki().client_key());
    let (status, log) = start_with(&lab, 1, &[("--etcd-cafile", key.clone())]).wait();
    assert!(!status.success() && log.contains(&key), "{log}");
    let certificate = path(lab.etcd.pki().client_cert());
    let (status, log) = start_with(&lab, 1, &[("--etcd-certfile", certificate)]).wait();
    assert!(!status.success() && log.contains("etcd-keyfile"), "half a pair is refused by name: {log}");
}

#[test]
fn user_and_password_are_used_and_a_wrong_one_is_refused() {
    if !enter_sandbox() {
        return;
    }
    let mut lab = Lab::configured(2);
    lab.etcd.enable_auth("correct");
    let login = |password: &str| [("--etcd-username", "root".to_owned()), ("--etcd-password", password.to_owned())];
    start_with(&lab, 1, &login("correct")).ready();
    assert_eq!(lab.etcd.subnets(), ["11.10.0.0-20"]);
    let agent = start_with(&lab, 2, &login("not-the-password"));
    assert_refused(&agent, &["authentication failed", "invalid user ID or password"]);
    assert!(!agent.log().contains("not-the-password"), "the password is in the log");
}
