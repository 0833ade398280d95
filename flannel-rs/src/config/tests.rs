//! How command lines and variables are understood.

use super::*;

fn line(arguments: &str) -> Result<Vec<OsString>, ConfigError> {
    normalise(arguments.split_whitespace().map(OsString::from), |_| None)
}

fn config(arguments: &str) -> Result<Config, ConfigError> {
    let line = line(&format!("flannel-rs {arguments}")).unwrap();
    Args::try_parse_from(line).unwrap().try_into()
}

#[test]
fn the_definition_of_the_command_line_is_sound() {
    Args::command().debug_assert();
}

#[test]
fn the_help_teaches() {
    insta::assert_snapshot!(Args::command().term_width(100).render_long_help());
}

#[test]
fn one_dash_or_two_with_a_blank_or_an_equals_sign() {
    for arguments in ["-iface eth1 -v 2", "--iface=eth1 --v=2", "-iface=eth1 -v=2", "--iface eth1 --v 2"] {
        let args = Args::try_parse_from(line(&format!("flannel-rs {arguments}")).unwrap()).unwrap();
        assert_eq!((args.iface, args.verbosity), (vec!["eth1".to_owned()], 2), "{arguments}");
    }
}

#[test]
fn a_boolean_stands_alone_or_takes_its_value_after_an_equals_sign() {
    for (arguments, expected) in [
        ("", false),
        ("-ip-masq", true),
        ("--ip-masq=true", true),
        ("-ip-masq=false", false),
        ("-ip-masq -iface eth0", true),
    ] {
        assert_eq!(config(arguments).unwrap().rules.masquerade, expected, "{arguments}");
    }
    assert!(!config("-iptables-forward-rules=false").unwrap().rules.forward);
}

#[test]
fn the_line_of_the_lab_is_understood() {
    let config = config(
        "--etcd-endpoints http://10.1.0.1:2379,http://10.1.0.2:2379 --iface C0w1-eth0 --subnet-file /x/flannel-subnet.env --ip-masq --healthz-port 8471",
    )
    .unwrap();
    assert_eq!(config.etcd.endpoints, ["http://10.1.0.1:2379", "http://10.1.0.2:2379"]);
    assert_eq!(config.etcd.prefix, "/coreos.com/network");
    assert_eq!(config.interface.names, ["C0w1-eth0"]);
    assert_eq!(config.etcd.tls, None);
    assert_eq!(config.health.unwrap().to_string(), "0.0.0.0:8471");
    assert_eq!(config.renew_margin, Duration::from_hours(1));
}

#[test]
fn the_kubernetes_subnet_manager_is_refused_by_flag_and_by_variable() {
    for arguments in ["-kube-subnet-mgr", "--kube-subnet-mgr=true", "-kubeconfig-file /etc/x"] {
        assert!(matches!(line(arguments), Err(ConfigError::KubeManager { .. })), "{arguments}");
    }
    assert_eq!(line("x --kube-subnet-mgr=false").unwrap(), ["x"]);
    let from_environment = normalise([], |name| (name == "FLANNELD_KUBE_API_URL").then(|| "http://k".into()));
    assert!(from_environment.unwrap_err().to_string().contains("FLANNELD_KUBE_API_URL"));
}

#[test]
fn what_cannot_be_obeyed_is_refused_with_the_remedy() {
    for (arguments, expected) in [
        ("-subnet-lease-renew-margin 0", "use 1 to 1439"),
        ("-subnet-lease-renew-margin 1440", "use 1 to 1439"),
        ("-etcd-endpoints https://10.1.0.1:2379,http://10.1.0.2:2379", "all with https"),
        ("-etcd-cafile ca.pem", "use https"),
        ("-etcd-endpoints https://10.1.0.1:2379 -etcd-certfile c.pem", "etcd-keyfile belong together"),
        ("-etcd-endpoints 10.1.0.1:2379", "has no scheme"),
        ("-etcd-endpoints http://10.1.0.1", "has no host and port"),
        ("-etcd-username root", "give both or neither"),
    ] {
        let error = config(arguments).unwrap_err().to_string();
        assert!(error.contains(expected), "{arguments}: {error}");
    }
}

#[test]
fn a_certificate_authority_alone_is_enough_for_an_encrypted_connection() {
    let tls = |arguments: &str| config(&format!("-etcd-endpoints https://10.1.0.1:2379 {arguments}")).unwrap().etcd.tls;
    assert_eq!(tls("-etcd-cafile ca.pem"), Some(TlsConfig { ca: Some("ca.pem".into()), identity: None }));
    let identity = Some(("c.pem".into(), "k.pem".into()));
    assert_eq!(tls("-etcd-certfile c.pem -etcd-keyfile=k.pem"), Some(TlsConfig { ca: None, identity }));
    assert_eq!(tls(""), Some(TlsConfig { ca: None, identity: None }), "the system's authorities are trusted");
}

#[test]
fn the_interface_is_wished_for_in_flanneld_s_ways() {
    let wishes = config(
        "-iface eth0 -iface 10.0.0.3 -iface-regex=^eth -iface-can-reach 10.1.0.1 -public-ip 1.2.3.4 -public-ipv6 fd00::3",
    );
    let wishes = wishes.unwrap().interface;
    assert_eq!(wishes.names, ["eth0", "10.0.0.3"]);
    assert_eq!(wishes.patterns[0].as_str(), "^eth");
    assert_eq!(wishes.can_reach.unwrap().to_string(), "10.1.0.1");
    assert_eq!(
        (wishes.public_ip.unwrap().to_string(), wishes.public_ipv6.unwrap().to_string()),
        ("1.2.3.4".to_owned(), "fd00::3".to_owned())
    );
}

#[test]
fn a_variable_that_is_set_to_nothing_counts_as_absent() {
    let line = || vec![OsString::from("flannel-rs")];
    // clap reads the process's own environment, in which none of ours is set; an empty one only turns that reading off.
    let empty = |_: &str| Some(OsString::new());
    let args = Args::parse_line(line(), empty).unwrap();
    assert_eq!((args.public_ip, args.healthz_port), (None, 0));
}

#[test]
fn of_a_repeated_flag_the_last_counts_as_in_go_unless_it_is_a_list() {
    let twice = config("-healthz-port 1 -healthz-port 2 -ip-masq -ip-masq=false -iface eth0 -iface eth1").unwrap();
    assert_eq!(twice.health.unwrap().port(), 2);
    assert!(!twice.rules.masquerade);
    assert_eq!(twice.interface.names, ["eth0", "eth1"]);
}
