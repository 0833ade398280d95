//! Container runtimes of the field as clients: podman and containerd run a container on our plugins, and nothing stays of it.
//!
//! They need real root, so an ordinary user's run says that it skips them.

#![expect(clippy::unwrap_used, reason = "the helpers of these tests fail by panicking, as the tests do")]

mod support;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use linux_net::testing::enter_sandbox_as_root;
use serde_json::{Value, json};
use support::{install_ours, sh, succeeds};

/// Moves the test into a sandbox with real root; `false` where the test is over or skipped.
fn enter() -> bool {
    enter_sandbox_as_root().unwrap_or_else(|| {
        let _ = writeln!(std::io::stderr(), "SKIPPED: container runtimes need real root; run the tests as root");
        false
    })
}

/// A directory for everything that a runtime writes, with a root file system of one program in it.
struct Scratch {
    dir: tempfile::TempDir,
    plugins: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        for below in ["bin", "proc", "sys", "dev", "etc", "tmp", "run", "www"] {
            fs::create_dir_all(root.join(below)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).expect("the package busybox-static is there (`make deps`)");
        for applet in ["sh", "ip", "httpd", "nc"] {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        fs::write(root.join("www/index.html"), "hello from the container\n").unwrap();
        fs::create_dir(dir.path().join("net")).unwrap();
        Self { dir, plugins: install_ours() }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    /// Writes the network `lab`: masquerade, host ports, firewall, tuning.
    fn write_conflist(&self) {
        let ipam = json!({
            "type": "host-local", "dataDir": self.path("ipam"),
            "ranges": [[{"subnet": "10.88.7.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]
        });
        let list = json!({
            "cniVersion": "1.0.0", "name": "lab",
            "plugins": [
                {"type": "bridge", "bridge": "cni9", "isGateway": true, "ipMasq": true, "hairpinMode": true,
                 "capabilities": {"ips": true, "mac": true}, "ipam": ipam},
                {"type": "portmap", "capabilities": {"portMappings": true}},
                {"type": "firewall"},
                {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}}
            ]
        });
        fs::write(self.path("net/10-lab.conflist"), list.to_string()).unwrap();
    }

    /// Asserts that of any container nothing is left: no reservation, no veth, no element of a table.
    fn assert_clean(&self) {
        let reservations: Vec<_> = fs::read_dir(self.path("ipam/lab"))
            .map(|dir| dir.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
            .unwrap_or_default();
        let reservations: Vec<_> = reservations.into_iter().filter(|name| name.starts_with("10.")).collect();
        assert!(reservations.is_empty(), "{reservations:?}");
        let links = support::ip("", "link show type veth");
        assert_eq!(links, json!([]));
        let rules = sh("nft list ruleset");
        assert!(!rules.contains("10.88.7.2") && !rules.contains("CNI-"), "{rules}");
    }
}

/// Waits until a command succeeds.
fn wait_for(what: &str, line: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !succeeds(line) {
        assert!(Instant::now() < deadline, "no {what} after 20 s: {line}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Ends the process with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn podman_runs_a_container_with_a_host_port_and_removes_it() {
    if !enter() {
        return;
    }
    let scratch = Scratch::new();
    scratch.write_conflist();
    let settings = format!(
        "[network]\nnetwork_backend=\"cni\"\ncni_plugin_dirs=[{:?}]\nnetwork_config_dir={:?}\n\
         [engine]\nruntime=\"runc\"\ncgroup_manager=\"cgroupfs\"\nevents_logger=\"file\"\n\
         [containers]\ndefault_ulimits=[\"nofile=1024:1024\",\"nproc=1024:1024\"]\n",
        scratch.plugins.path(),
        scratch.path("net"),
    );
    let settings_file = scratch.path("containers.conf");
    fs::write(&settings_file, settings).unwrap();
    let podman = format!(
        "CONTAINERS_CONF={} podman --root {} --runroot {} --storage-driver vfs",
        settings_file.display(),
        scratch.path("storage").display(),
        scratch.path("podman-run").display()
    );
    if !succeeds(&format!("{podman} info --format '{{{{.Host.NetworkBackend}}}}' | grep -q cni")) {
        let _ = writeln!(std::io::stderr(), "SKIPPED: this podman has no CNI backend (4.x has it)");
        return;
    }
    let root = scratch.path("root");
    let run = |arguments: &str| {
        let line = format!("{podman} run -d {arguments} --network lab --rootfs {}", root.display());
        sh(&format!("{line} /bin/httpd -f -p 80 -h /www")).trim().to_owned()
    };
    let inspect = |id: &str| -> Value {
        let text = sh(&format!("{podman} inspect {id} --format '{{{{json .NetworkSettings.Networks.lab}}}}'"));
        serde_json::from_str(&text).unwrap()
    };

    let id = run("-p 8080:80");
    let seen = inspect(&id);
    assert_eq!((&seen["IPAddress"], &seen["Gateway"]), (&json!("10.88.7.2"), &json!("10.88.7.1")));
    let address = support::ip("", "-4 addr show cni9")[0]["addr_info"][0]["local"].clone();
    assert_eq!(address, "10.88.7.1");
    wait_for("web server", "curl -sf -m 1 http://10.88.7.2/");
    for url in ["http://10.88.7.1:8080/", "http://127.0.0.1:8080/"] {
        assert_eq!(sh(&format!("curl -sf -m 5 {url}")), "hello from the container\n", "{url}");
    }
    let request = "printf \"GET / HTTP/1.0\\r\\n\\r\\n\" | nc -w 5 10.88.7.1 8080";
    let from_inside = sh(&format!("{podman} exec {id} /bin/sh -c '{request}'"));
    assert!(from_inside.ends_with("\r\n\r\nhello from the container\n"), "its own host port: {from_inside}");
    assert_eq!(
        sh(&format!("{podman} exec {id} /bin/sh -c 'read x < /proc/sys/net/ipv4/conf/eth0/arp_filter; echo $x'")),
        "1\n"
    );

    // podman asks for an address twice, in CNI_ARGS and in runtimeConfig.ips.
    let second = run("--ip 10.88.7.77 --mac-address 02:00:00:00:00:77");
    let seen = inspect(&second);
    assert_eq!((&seen["IPAddress"], &seen["MacAddress"]), (&json!("10.88.7.77"), &json!("02:00:00:00:00:77")));
    sh(&format!("{podman} network disconnect lab {second}"));
    sh(&format!("{podman} network connect lab {second}"));
    sh(&format!("{podman} rm -f -t 0 {second} {id}"));
    scratch.assert_clean();
    assert!(!succeeds("curl -s -m 1 http://10.88.7.1:8080/"));
}

#[test]
fn containerd_runs_a_container_and_a_del_without_namespace_leaves_nothing() {
    if !enter() {
        return;
    }
    let scratch = Scratch::new();
    scratch.write_conflist();
    // `ctr --cni` knows two directories only; both are replaced, in this mount namespace.
    sh("mount -t tmpfs tmpfs /opt && mkdir -p /opt/cni/bin");
    let etc = scratch.path("etc");
    sh(&format!("cp -a /etc {0} && mkdir -p {0}/cni/net.d && mount --bind {0} /etc", etc.display()));
    sh(&format!("mount --bind {} /opt/cni/bin", scratch.plugins.path().display()));
    sh(&format!("mount --bind {} /etc/cni/net.d", scratch.path("net").display()));
    let settings = format!(
        "version = 2\nroot = {:?}\nstate = \"/run/containerd\"\n\
         disabled_plugins = [{}]\n[grpc]\naddress = \"/run/containerd.sock\"\n",
        scratch.path("containerd"),
        [
            "grpc.v1.cri",
            "snapshotter.v1.btrfs",
            "snapshotter.v1.zfs",
            "snapshotter.v1.aufs",
            "snapshotter.v1.devmapper"
        ]
        .map(|plugin| format!("\"io.containerd.{plugin}\""))
        .join(", "),
    );
    let settings_file = scratch.path("containerd.toml");
    fs::write(&settings_file, settings).unwrap();
    let log = fs::File::create(scratch.path("containerd.log")).unwrap();
    let mut daemon = Command::new("containerd");
    daemon.arg("--config").arg(&settings_file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let _daemon = Running(daemon.spawn().expect("containerd is there (`make deps` installs it)"));
    let ctr = "ctr -a /run/containerd.sock";
    wait_for("containerd", &format!("{ctr} version"));
    let seen =
        sh(&format!("{ctr} run --rm --cni --rootfs {} c1 /bin/ip -4 addr show eth0", scratch.path("root").display()));
    assert!(seen.contains("inet 10.88.7.2/24"), "{seen}");
    wait_for("end of the container's veth", "! ip -o link show type veth | grep -q .");
    scratch.assert_clean();
}
