//! The components of the cluster in the order in which they start: how each is run and configured, and how one sees
//! that it works.

use super::paths::{
    ADDRESS, API_PORT, BRIDGE, DOMAIN, ETCD_PEER_PORT, ETCD_PORT, KUBELET, NODE, POD_CIDR, Paths, RUN,
    SERVICE_CIDR,
};
use crate::tools::Tools;
use anyhow::{Context, Result};
use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Names in the order of start.
pub const ALL: [&str; 8] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "containerd",
    "kubelet",
    "kube-proxy",
    "coredns",
];

/// The sandbox image of every pod.
pub const PAUSE_IMAGE: &str = "principium.local/pause:1";

/// The command that runs a component; writes its configuration files first.
///
/// # Errors
/// When a file can't be written, or there is no such component.
pub fn command(component: &str, tools: &Tools, paths: &Paths) -> Result<Command> {
    let pki = |file: &str| paths.pki(file).display().to_string();
    let kubeconfig = paths.component_kubeconfig(component).display().to_string();
    let data = paths.data(component);
    fs::create_dir_all(&data).with_context(|| format!("making {}", data.display()))?;
    let data = data.display().to_string();
    let mut command = tools.command(component)?;
    match component {
        "etcd" => {
            let client = format!("http://127.0.0.1:{ETCD_PORT}");
            let peer = format!("http://127.0.0.1:{ETCD_PEER_PORT}");
            command.args(["--name=principium", "--unsafe-no-fsync", "--log-level=warn"]);
            command.arg(format!("--data-dir={data}"));
            command
                .arg(format!("--listen-client-urls={client}"))
                .arg(format!("--advertise-client-urls={client}"));
            command
                .arg(format!("--listen-peer-urls={peer}"))
                .arg(format!("--initial-advertise-peer-urls={peer}"));
            command.arg(format!("--initial-cluster=principium={peer}"));
        }
        "kube-apiserver" => {
            command.args([
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction",
                "--allow-privileged=true",
            ]);
            command.args(["--kubelet-preferred-address-types=InternalIP", "--profiling=false"]);
            command.args(["--service-account-issuer=https://kubernetes.default.svc.cluster.local"]);
            for (flag, value) in [
                ("etcd-servers", format!("http://127.0.0.1:{ETCD_PORT}")),
                ("bind-address", ADDRESS.into()),
                ("advertise-address", ADDRESS.into()),
                ("secure-port", API_PORT.to_string()),
                ("service-cluster-ip-range", SERVICE_CIDR.into()),
                ("client-ca-file", pki("ca.crt")),
                ("tls-cert-file", pki("apiserver.crt")),
                ("tls-private-key-file", pki("apiserver.key")),
                ("kubelet-certificate-authority", pki("ca.crt")),
                ("kubelet-client-certificate", pki("apiserver-kubelet-client.crt")),
                ("kubelet-client-key", pki("apiserver-kubelet-client.key")),
                ("service-account-key-file", pki("service-account.pub")),
                ("service-account-signing-key-file", pki("service-account.key")),
            ] {
                command.arg(format!("--{flag}={value}"));
            }
        }
        "kube-controller-manager" => {
            command.args([
                "--leader-elect=false",
                "--bind-address=127.0.0.1",
                "--use-service-account-credentials=true",
            ]);
            command.arg(format!("--kubeconfig={kubeconfig}"));
            command.arg(format!("--authentication-kubeconfig={kubeconfig}"));
            command.arg(format!("--authorization-kubeconfig={kubeconfig}"));
            command.arg(format!("--root-ca-file={}", pki("ca.crt")));
            command.arg(format!("--service-account-private-key-file={}", pki("service-account.key")));
        }
        "kube-scheduler" => {
            command.args(["--leader-elect=false", "--bind-address=127.0.0.1"]);
            command.arg(format!("--kubeconfig={kubeconfig}"));
            command.arg(format!("--authentication-kubeconfig={kubeconfig}"));
            command.arg(format!("--authorization-kubeconfig={kubeconfig}"));
        }
        "containerd" => {
            write_cni(paths)?;
            let config = paths.config("containerd.toml");
            write(&config, &containerd(&data, tools, paths)?)?;
            command.arg("--config").arg(config);
            // containerd starts its shims by name.
            command.env("PATH", tools.search_path());
        }
        "kubelet" => {
            let config = paths.config("kubelet.yaml");
            write(&config, &kubelet(paths))?;
            command.arg(format!("--config={}", config.display())).arg(format!("--kubeconfig={kubeconfig}"));
            command.arg(format!("--node-ip={ADDRESS}")).arg(format!("--hostname-override={NODE}"));
            command.arg(format!("--root-dir={KUBELET}"));
            command.env("PATH", tools.search_path());
        }
        "kube-proxy" => {
            let config = paths.config("kube-proxy.yaml");
            write(&config, &kube_proxy(&kubeconfig))?;
            command.arg(format!("--config={}", config.display()));
            command.env("PATH", tools.search_path());
        }
        "coredns" => {
            let config = paths.config("Corefile");
            write(&config, &corefile(&kubeconfig))?;
            command.arg("-conf").arg(config);
        }
        _ => anyhow::bail!("there is no component {component:?}; there are {}", ALL.join(", ")),
    }
    Ok(command)
}

/// Whether a component answers.
#[must_use]
pub fn answers(component: &str, tools: &Tools, paths: &Paths) -> bool {
    let port = |address: &str, port: u16| {
        address.parse().is_ok_and(|ip| {
            TcpStream::connect_timeout(&std::net::SocketAddr::new(ip, port), Duration::from_millis(500))
                .is_ok()
        })
    };
    let api = |arguments: &[&str]| {
        let Ok(mut kubectl) = tools.command("kubectl") else { return None };
        let output = kubectl
            .env("KUBECONFIG", paths.kubeconfig())
            .args(["--request-timeout=3s"])
            .args(arguments)
            .output()
            .ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    match component {
        "etcd" => port("127.0.0.1", ETCD_PORT),
        "kube-apiserver" => api(&["get", "--raw", "/readyz"]).is_some_and(|answer| answer == "ok"),
        // The default service account is the controller manager's first work; without it no pod can be made.
        "kube-controller-manager" => api(&["get", "serviceaccount", "default", "-n", "default"]).is_some(),
        "kube-scheduler" => port("127.0.0.1", 10259),
        "containerd" => tools.command("ctr").is_ok_and(|mut ctr| {
            crate::command::succeeds(ctr.arg("-a").arg(Paths::containerd_socket()).args([
                "--connect-timeout",
                "2s",
                "version",
            ]))
        }),
        "kubelet" => {
            let ready =
                r#"{range .status.conditions[?(@.type=="Ready")]}{.status} {.lastHeartbeatTime}{end}"#;
            let path = format!("jsonpath={ready}");
            port("127.0.0.1", 10248)
                && api(&["get", "node", NODE, "-o", &path]).is_some_and(|answer| {
                    // What the kubelet said before it was started is no answer: after a reboot it is wrong.
                    answer.split_once(' ').is_some_and(|(status, heartbeat)| {
                        status == "True" && heartbeat.parse().is_ok_and(|said| said_since_start(paths, said))
                    })
                })
        }
        "kube-proxy" => port("127.0.0.1", 10249),
        "coredns" => port("127.0.0.1", 18181),
        _ => false,
    }
}

/// Whether the kubelet said something after its start; what it says has no fractions of a second.
fn said_since_start(paths: &Paths, said: jiff::Timestamp) -> bool {
    let started = fs::metadata(paths.process("kubelet")).and_then(|file| file.modified());
    let started = started.ok().and_then(|time| jiff::Timestamp::try_from(time).ok());
    started.is_some_and(|started| said.as_second() >= started.as_second())
}

fn containerd(data: &str, tools: &Tools, paths: &Paths) -> Result<String> {
    let runc = ["/usr/sbin/runc", "/usr/bin/runc"].into_iter().find(|path| Path::new(path).is_file());
    Ok(format!(
        r#"version = 3
root = "{data}"
state = "{RUN}/containerd"

[grpc]
address = "{socket}"

[plugins."io.containerd.internal.v1.opt"]
path = "{data}/opt"

[plugins."io.containerd.nri.v1.nri"]
disable = true

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE_IMAGE}"

[plugins."io.containerd.cri.v1.runtime"]
enable_cdi = true
cdi_spec_dirs = ["/etc/cdi", "/var/run/cdi"]
# Machines without CAP_SYS_RESOURCE may not lower the score below their own.
restrict_oom_score_adj = true
# Below our own folder, so that nothing of anybody else's is near when the cluster is removed.
netns_mounts_under_state_dir = true

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{cni}"]
conf_dir = "{conf}"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "{runc}"
SystemdCgroup = false
"#,
        socket = Paths::containerd_socket().display(),
        cni = tools.cni_folder()?.display(),
        conf = paths.config("cni").display(),
        runc = runc.context("runc is neither in /usr/sbin nor in /usr/bin")?,
    ))
}

/// The pod network: a bridge, and host ports. Both backends are nftables, in tables of their own.
fn write_cni(paths: &Paths) -> Result<()> {
    let data = paths.data("cni");
    let text = format!(
        r#"{{
  "cniVersion": "1.0.0",
  "name": "{BRIDGE}",
  "plugins": [
    {{
      "type": "bridge",
      "bridge": "{BRIDGE}",
      "isDefaultGateway": true,
      "hairpinMode": true,
      "ipMasq": true,
      "ipMasqBackend": "nftables",
      "ipam": {{
        "type": "host-local",
        "dataDir": "{}",
        "ranges": [[{{"subnet": "{POD_CIDR}", "gateway": "{ADDRESS}"}}]]
      }}
    }},
    {{"type": "portmap", "backend": "nftables", "capabilities": {{"portMappings": true}}}}
  ]
}}
"#,
        data.display()
    );
    write(&paths.config("cni").join("10-principium.conflist"), &text)
}

fn kubelet(paths: &Paths) -> String {
    format!(
        r#"apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {{enabled: false}}
  webhook: {{enabled: true}}
  x509: {{clientCAFile: "{ca}"}}
authorization: {{mode: Webhook}}
tlsCertFile: "{certificate}"
tlsPrivateKeyFile: "{key}"
clusterDNS: ["{ADDRESS}"]
clusterDomain: {DOMAIN}
containerRuntimeEndpoint: unix://{socket}
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
localStorageCapacityIsolation: false
# Images are loaded, not pulled: one that is thrown away does not come back.
imageGCHighThresholdPercent: 100
imageMinimumGCAge: 0s
evictionHard: {{memory.available: "0%", nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%", imagefs.inodesFree: "0%"}}
shutdownGracePeriod: 0s
logging: {{verbosity: 1}}
"#,
        ca = paths.pki("ca.crt").display(),
        certificate = paths.pki("kubelet-server.crt").display(),
        key = paths.pki("kubelet-server.key").display(),
        socket = Paths::containerd_socket().display(),
    )
}

fn kube_proxy(kubeconfig: &str) -> String {
    format!(
        r#"apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {{kubeconfig: "{kubeconfig}"}}
hostnameOverride: {NODE}
clusterCIDR: {POD_CIDR}
mode: nftables
conntrack: {{maxPerCore: 0}}
# Answers between two pods of one bridge would go past the node and keep their untranslated addresses.
nftables: {{masqueradeAll: true}}
metricsBindAddress: 127.0.0.1:10249
healthzBindAddress: 127.0.0.1:10256
"#
    )
}

fn corefile(kubeconfig: &str) -> String {
    let upstream = fs::read_to_string("/etc/resolv.conf")
        .is_ok_and(|text| text.lines().any(|line| line.starts_with("nameserver")));
    let forward = if upstream { "    forward . /etc/resolv.conf\n" } else { "" };
    format!(
        ".:53 {{
    bind {ADDRESS}
    errors
    ready 127.0.0.1:18181
    kubernetes {DOMAIN} in-addr.arpa ip6.arpa {{
        kubeconfig {kubeconfig}
        ttl 2
    }}
{forward}    cache 2
}}
"
    )
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
