//! A control plane without nodes, for measurements of scale: etcd, API server, scheduler, and kwok in place of all kubelets. It
//! has a folder and ports of its own beside those of the local cluster, and ends with the value that stands for it.

use crate::cache::Cache;
use crate::command::succeeds;
use crate::tools::{self, Tools};
use anyhow::{Context, Result, bail};
use rcgen::KeyPair;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Port of the API server on loopback.
const API_PORT: u16 = 26443;
const ETCD_PORT: u16 = 22379;
const ETCD_PEER_PORT: u16 = 22380;
const SCHEDULER_PORT: u16 = 20259;
const START_LIMIT: Duration = Duration::from_secs(60);

/// Addresses that kwok gives to pods: all of them are this machine, so that whoever asks a pod is answered by what listens on
/// the pod's port here.
const POD_CIDR: &str = "127.64.0.0/10";
/// Whose requests are written to the audit log, with the groups of a service account.
pub const AUDITED: &str = "system:serviceaccount:principium-system:principium-operator";

/// A running control plane.
pub struct ControlPlane {
    folder: PathBuf,
    tools: Tools,
    running: Vec<(&'static str, Child)>,
}

impl ControlPlane {
    /// Starts everything in a new folder below the system's folder of temporary files.
    ///
    /// # Errors
    /// When a program is not built, or does not come up; with the end of its log.
    pub fn start(cache: &Cache) -> Result<Self> {
        let tools = Tools::ensure(cache)?;
        let kwok = tools::ensure_extra(cache, "kwok")?.join("kwok");
        let folder = std::env::temp_dir().join(format!("principium-scale-{}", std::process::id()));
        fs::create_dir_all(folder.join("logs"))?;
        let mut plane = Self { folder, tools, running: Vec::new() };
        plane.write_configuration()?;
        plane.start_etcd()?;
        plane.start_api_server()?;
        let kubeconfig = plane.kubeconfig("admin");
        let mut scheduler = plane.tools.command("kube-scheduler")?;
        scheduler.arg(format!("--config={}", plane.file("scheduler.yaml").display()));
        scheduler.args(["--bind-address=127.0.0.1", &format!("--secure-port={SCHEDULER_PORT}")]);
        plane.spawn("kube-scheduler", &mut scheduler)?;
        let mut command = Command::new(kwok);
        command.args(["--manage-all-nodes", "--node-lease-duration-seconds=0", "--node-ip=127.0.0.1"]);
        command
            .arg(format!("--cidr={POD_CIDR}"))
            .arg(format!("--config={}", plane.file("kwok.yaml").display()));
        command.arg(format!("--kubeconfig={}", kubeconfig.display()));
        plane.spawn("kwok", &mut command)?;
        Ok(plane)
    }

    /// Kubeconfig of `admin`, or of `operator`, whose requests are audited.
    #[must_use]
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.file(&format!("{user}.kubeconfig"))
    }

    /// A line of JSON for each request of [`AUDITED`] that has been answered.
    #[must_use]
    pub fn audit_log(&self) -> PathBuf {
        self.folder.join("logs/audit.log")
    }

    /// A `kubectl` with the administrator's rights.
    ///
    /// # Errors
    /// When it is not built.
    pub fn kubectl(&self) -> Result<Command> {
        let mut kubectl = self.tools.command("kubectl")?;
        kubectl.env("KUBECONFIG", self.kubeconfig("admin"));
        Ok(kubectl)
    }

    /// Starts a program that ends with the control plane, and returns its process id.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn spawn(&mut self, name: &'static str, command: &mut Command) -> Result<u32> {
        let log = self.log(name);
        let file = File::create(&log).with_context(|| format!("making {}", log.display()))?;
        // setpriv(1) becomes the program, with the wish to end when this process does, however that ends.
        let mut bound = Command::new("setpriv");
        bound.args(["--pdeathsig", "KILL"]).arg(command.get_program()).args(command.get_args());
        for (variable, value) in command.get_envs() {
            if let Some(value) = value {
                bound.env(variable, value);
            }
        }
        let child = bound.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).spawn();
        let child = child.with_context(|| format!("starting {name}"))?;
        let id = child.id();
        self.running.push((name, child));
        Ok(id)
    }

    /// Fails if a program has ended.
    ///
    /// # Errors
    /// With the program's name and the end of its log.
    pub fn check(&mut self) -> Result<()> {
        for (name, child) in &mut self.running {
            if let Some(status) = child.try_wait()? {
                let text = fs::read_to_string(self.folder.join("logs").join(format!("{name}.log")))?;
                let lines: Vec<&str> = text.lines().collect();
                bail!("{name} ended with {status}:\n{}", lines[lines.len().saturating_sub(10)..].join("\n"));
            }
        }
        Ok(())
    }

    fn start_etcd(&mut self) -> Result<()> {
        let (client, peer) =
            (format!("http://127.0.0.1:{ETCD_PORT}"), format!("http://127.0.0.1:{ETCD_PEER_PORT}"));
        let mut etcd = self.tools.command("etcd")?;
        etcd.args([
            "--name=scale",
            "--unsafe-no-fsync",
            "--log-level=warn",
            "--quota-backend-bytes=8589934592",
        ]);
        etcd.arg(format!("--data-dir={}", self.file("etcd").display()));
        etcd.arg(format!("--listen-client-urls={client}")).arg(format!("--advertise-client-urls={client}"));
        etcd.arg(format!("--listen-peer-urls={peer}")).arg(format!("--initial-advertise-peer-urls={peer}"));
        etcd.arg(format!("--initial-cluster=scale={peer}"));
        self.spawn("etcd", &mut etcd).map(drop)
    }

    fn start_api_server(&mut self) -> Result<()> {
        let file = |name: &str| self.file(name).display().to_string();
        let mut server = self.tools.command("kube-apiserver")?;
        for (flag, value) in [
            ("etcd-servers", format!("http://127.0.0.1:{ETCD_PORT}")),
            ("bind-address", "127.0.0.1".into()),
            // Never used: nobody in this cluster asks for the Service `kubernetes`.
            ("advertise-address", "192.0.2.1".into()),
            ("endpoint-reconciler-type", "none".into()),
            ("secure-port", API_PORT.to_string()),
            ("cert-dir", file("certificates")),
            ("token-auth-file", file("tokens.csv")),
            ("authorization-mode", "AlwaysAllow".into()),
            // There is no controller manager that would make service accounts, and none that would take the taint off a node.
            ("disable-admission-plugins", "ServiceAccount,TaintNodesByCondition".into()),
            ("service-account-issuer", "https://scale.invalid".into()),
            ("service-account-key-file", file("service-account.pub")),
            ("service-account-signing-key-file", file("service-account.key")),
            ("service-cluster-ip-range", "10.97.0.0/16".into()),
            ("audit-policy-file", file("audit-policy.yaml")),
            ("audit-log-path", self.audit_log().display().to_string()),
            ("profiling", "false".into()),
        ] {
            server.arg(format!("--{flag}={value}"));
        }
        self.spawn("kube-apiserver", &mut server)?;
        let deadline = Instant::now() + START_LIMIT;
        while !succeeds(self.kubectl()?.args(["--request-timeout=3s", "get", "--raw", "/readyz"])) {
            self.check()?;
            if Instant::now() > deadline {
                bail!(
                    "the API server does not answer; PRINCIPIUM_KEEP=1 keeps its log in {}",
                    self.folder.display()
                );
            }
            std::thread::sleep(Duration::from_millis(300));
        }
        Ok(())
    }

    fn write_configuration(&self) -> Result<()> {
        let write = |name: &str, text: &str| {
            fs::write(self.file(name), text).with_context(|| format!("writing {name}"))
        };
        let key = KeyPair::generate()?;
        write("service-account.key", &key.serialize_pem())?;
        write("service-account.pub", &key.public_key_pem())?;
        let groups = "system:serviceaccounts,system:serviceaccounts:principium-system";
        write("tokens.csv", &format!("admin,admin,1,system:masters\noperator,{AUDITED},2,\"{groups}\"\n"))?;
        for user in ["admin", "operator"] {
            let text = format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: scale\ncontexts: [{{name: scale, context: {{cluster: scale, \
                 user: {user}}}}}]\nclusters: [{{name: scale, cluster: {{server: 'https://127.0.0.1:{API_PORT}', \
                 insecure-skip-tls-verify: true}}}}]\nusers: [{{name: {user}, user: {{token: {user}}}}}]\n"
            );
            write(&format!("{user}.kubeconfig"), &text)?;
        }
        let policy = format!(
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n  - {{level: Metadata, users: \
             ['{AUDITED}']}}\n  - {{level: None}}\n"
        );
        write("audit-policy.yaml", &policy)?;
        let scheduler = format!(
            "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\nleaderElection: {{leaderElect: \
             false}}\nclientConnection: {{kubeconfig: '{}', qps: 5000, burst: 5000}}\n",
            self.kubeconfig("admin").display()
        );
        write("scheduler.yaml", &scheduler)?;
        write("kwok.yaml", KWOK)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.join("logs").join(format!("{name}.log"))
    }

    /// The folder of everything, logs included.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        for (_, child) in self.running.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
        // The logs are what one looks at after a failure.
        if std::env::var_os("PRINCIPIUM_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// What kwok does in place of kubelets: a pod that is bound runs and is ready at once; one that is deleted is gone at once.
const KWOK: &str = r#"kind: KwokConfiguration
apiVersion: config.kwok.x-k8s.io/v1alpha1
options:
  nodePlayStageParallelism: 4
  nodeLeaseParallelism: 4
  podPlayStageParallelism: 16
  podsOnNodeSyncParallelism: 16
---
# kwok looks after pods only on nodes that it looks after, and after nodes only if there is something to do: these are ready.
kind: Stage
apiVersion: kwok.x-k8s.io/v1alpha1
metadata: {name: node}
spec:
  resourceRef: {apiGroup: v1, kind: Node}
  selector:
    matchExpressions:
      - {key: .metadata.deletionTimestamp, operator: Exists}
  next: {delete: true}
---
kind: Stage
apiVersion: kwok.x-k8s.io/v1alpha1
metadata: {name: run}
spec:
  resourceRef: {apiGroup: v1, kind: Pod}
  selector:
    matchExpressions:
      - {key: .metadata.deletionTimestamp, operator: DoesNotExist}
      - {key: .spec.nodeName, operator: Exists}
      - {key: .status.phase, operator: In, values: [Pending]}
  next:
    statusTemplate: |
      {{ $now := Now | Quote }}
      phase: Running
      startTime: {{ $now }}
      hostIP: 127.0.0.1
      hostIPs: [{ip: 127.0.0.1}]
      {{ $addresses := PodIPsWith .spec.nodeName false .metadata.uid .metadata.name .metadata.namespace }}
      podIP: {{ index $addresses 0 | Quote }}
      podIPs: [{ip: {{ index $addresses 0 | Quote }}}]
      conditions:
      - {type: Initialized, status: "True", lastTransitionTime: {{ $now }}}
      - {type: ContainersReady, status: "True", lastTransitionTime: {{ $now }}}
      - {type: Ready, status: "True", lastTransitionTime: {{ $now }}}
      initContainerStatuses:
      {{ range .spec.initContainers }}
      - name: {{ .name | Quote }}
        image: {{ .image | Quote }}
        imageID: ""
        ready: true
        restartCount: 0
        {{ if eq .restartPolicy "Always" }}
        started: true
        state: {running: {startedAt: {{ $now }}}}
        {{ else }}
        state: {terminated: {exitCode: 0, reason: Completed, startedAt: {{ $now }}, finishedAt: {{ $now }}}}
        {{ end }}
      {{ end }}
      containerStatuses:
      {{ range .spec.containers }}
      - name: {{ .name | Quote }}
        image: {{ .image | Quote }}
        imageID: ""
        ready: true
        started: true
        restartCount: 0
        state: {running: {startedAt: {{ $now }}}}
      {{ end }}
---
kind: Stage
apiVersion: kwok.x-k8s.io/v1alpha1
metadata: {name: end}
spec:
  resourceRef: {apiGroup: v1, kind: Pod}
  selector:
    matchExpressions:
      - {key: .metadata.deletionTimestamp, operator: Exists}
  next: {delete: true}
"#;
