//! The cluster: up, down, status. Each can be run at any time and in any state.

mod certificates;
mod cleanup;
pub(crate) mod components;
mod network;
pub mod paths;
mod process;

use crate::cache::Cache;
use crate::progress::step;
use crate::tools::Tools;
use crate::{command, images};
use anyhow::{Context, Result, bail};
use paths::Paths;
use process::Process;
use std::fs;
use std::time::{Duration, Instant};

/// How long a component may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(120);

/// A cluster that is up.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Its programs.
    pub tools: Tools,
    /// Its files.
    pub paths: Paths,
    /// The cache that it lives in.
    pub cache: Cache,
}

/// Starts whatever does not run yet and waits until the node is ready.
///
/// # Errors
/// When this is not root on Linux, another kubelet runs here, or a component does not come up; the error ends with the
/// last lines of its log.
pub fn up(cache: &Cache) -> Result<Cluster> {
    if !rustix::process::geteuid().is_root() {
        bail!("the local cluster runs real containers: run this as root");
    }
    let tools = Tools::ensure(cache)?;
    let paths = Paths::default();
    refuse_foreign_kubelet(&paths)?;
    for folder in [paths.root().join("logs"), paths.root().join("config"), paths.root().join("data")] {
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    }
    fs::create_dir_all(paths::RUN).with_context(|| format!("making {}", paths::RUN))?;
    cleanup::remember_before(&paths)?;
    network::ensure()?;
    certificates::ensure(&paths).context("making the certificates")?;
    let cluster = Cluster { tools, paths, cache: cache.clone() };
    for component in components::ALL {
        match component {
            "kubelet" => cluster.load_pause_image()?,
            "coredns" => cluster.allow_dns()?,
            _ => {}
        }
        cluster.ensure_component(component)?;
    }
    Ok(cluster)
}

/// Stops the cluster and removes all that it left on the machine, but not what was built.
///
/// # Errors
/// When something can't be stopped or removed.
pub fn down() -> Result<()> {
    let paths = Paths::default();
    step("stopping the components", || {
        // The kubelet first, so that it starts nothing again; containerd last, so that containers can still be ended.
        for component in [
            "kubelet",
            "coredns",
            "kube-proxy",
            "kube-scheduler",
            "kube-controller-manager",
            "kube-apiserver",
            "etcd",
        ] {
            if let Some(process) = Process::of(&paths, component) {
                process.stop(Duration::from_secs(10)).with_context(|| format!("stopping {component}"))?;
            }
        }
        cleanup::end_containers()?;
        if let Some(process) = Process::of(&paths, "containerd") {
            process.stop(Duration::from_secs(10)).context("stopping containerd")?;
        }
        Ok(())
    })?;
    step("removing mounts, cgroups, networks and data", || cleanup::remove(&paths))
}

/// One line a component: whether it runs and answers, and where its log is.
///
/// # Errors
/// When the tools were never built.
pub fn status(cache: &Cache) -> Result<()> {
    let paths = Paths::default();
    let Ok(tools) = Tools::existing(cache) else {
        println!("the cluster was never up on this machine; `cargo xtask cluster up` starts it");
        return Ok(());
    };
    for component in components::ALL {
        let state = match Process::of(&paths, component) {
            None => "down".to_owned(),
            Some(process) if components::answers(component, &tools, &paths) => {
                format!("up, process {}", process.pid())
            }
            Some(process) => format!("not answering, process {}", process.pid()),
        };
        println!("{component:<24} {state:<30} {}", paths.log(component).display());
    }
    if paths.kubeconfig().is_file() {
        println!(
            "\nexport KUBECONFIG={}\nexport PATH={}:$PATH",
            paths.kubeconfig().display(),
            tools.path("kubectl")?.with_file_name("").display()
        );
    }
    Ok(())
}

impl Cluster {
    /// A cluster that is up already; starts and builds nothing.
    ///
    /// # Errors
    /// When the tools are missing.
    pub fn existing(cache: &Cache) -> Result<Self> {
        Ok(Self { tools: Tools::existing(cache)?, paths: Paths::default(), cache: cache.clone() })
    }

    /// Stops a component if it runs, starts it again and waits until it answers.
    ///
    /// # Errors
    /// When there is no such component or it does not come up.
    pub fn restart(&self, component: &str) -> Result<()> {
        self.end(component)?;
        self.ensure_component(component)
    }

    /// Stops a component for a while. It is started again when what this returns is dropped.
    ///
    /// # Errors
    /// When there is no such component or it does not end.
    pub fn stop(self, component: &str) -> Result<Stopped> {
        if !components::ALL.contains(&component) {
            bail!("there is no component {component:?}; there are {}", components::ALL.join(", "));
        }
        // Made before it ends, so that it is back also where it does not end in time.
        let stopped = Stopped { cluster: self, component: component.to_owned() };
        stopped.cluster.end(component)?;
        Ok(stopped)
    }

    fn end(&self, component: &str) -> Result<()> {
        Process::of(&self.paths, component).map_or(Ok(()), |process| process.stop(Duration::from_secs(20)))
    }

    /// A `kubectl` with the administrator's rights.
    ///
    /// # Errors
    /// When it is not built.
    pub fn kubectl(&self) -> Result<std::process::Command> {
        let mut kubectl = self.tools.command("kubectl")?;
        kubectl.env("KUBECONFIG", self.paths.kubeconfig());
        Ok(kubectl)
    }

    fn ensure_component(&self, component: &str) -> Result<()> {
        let running = Process::of(&self.paths, component);
        if running.is_some() && components::answers(component, &self.tools, &self.paths) {
            return Ok(());
        }
        step(component, || {
            let process = match running {
                Some(process) => process,
                None => {
                    let mut command = components::command(component, &self.tools, &self.paths)?;
                    Process::start(&self.paths, component, &mut command)?
                }
            };
            let deadline = Instant::now() + START_LIMIT;
            while !components::answers(component, &self.tools, &self.paths) {
                if !process.alive() || Instant::now() > deadline {
                    let why = if process.alive() { "does not answer" } else { "ended" };
                    let log = self.paths.log(component);
                    bail!(
                        "{component} {why}; the end of {}:\n{}",
                        log.display(),
                        tail(&fs::read_to_string(&log).unwrap_or_default())
                    );
                }
                std::thread::sleep(Duration::from_millis(200));
            }
            Ok(())
        })
    }

    fn load_pause_image(&self) -> Result<()> {
        let image = images::pause(self.cache.root(), components::PAUSE_IMAGE)?;
        images::load(std::slice::from_ref(&image), &self.loader()?)
    }

    /// How images get into this cluster.
    ///
    /// # Errors
    /// When `ctr` is not built.
    pub fn loader(&self) -> Result<images::Loader> {
        Ok(images::Loader { ctr: self.tools.path("ctr")?, socket: Paths::containerd_socket() })
    }

    /// Lets the DNS server read Services.
    fn allow_dns(&self) -> Result<()> {
        let role = "apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: system:coredns}
rules:
  - {apiGroups: [''], resources: [services, namespaces, pods], verbs: [list, watch]}
  - {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: system:coredns}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: system:coredns}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: system:coredns}]
";
        let file = self.paths.config("coredns-rbac.yaml");
        fs::write(&file, role)?;
        command::run(self.kubectl()?.args(["apply", "--server-side", "-f"]).arg(file)).map(drop)
    }
}

/// A component that was stopped. It is started again when this is dropped.
#[derive(Debug)]
pub struct Stopped {
    cluster: Cluster,
    component: String,
}

impl Stopped {
    /// Whether it does not run: nobody else has started it meanwhile.
    #[must_use]
    pub fn is_away(&self) -> bool {
        Process::of(&self.cluster.paths, &self.component).is_none()
    }

    /// Starts it again and waits until it answers.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(self) -> Result<()> {
        self.cluster.ensure_component(&self.component)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // Where it runs by now, nothing is done.
        if let Err(error) = self.cluster.ensure_component(&self.component) {
            eprintln!("{} is away: {error:#}", self.component);
        }
    }
}

fn refuse_foreign_kubelet(paths: &Paths) -> Result<()> {
    let ours = Process::of(paths, "kubelet").map(Process::pid);
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if matches!(name.trim(), "kubelet" | "k3s-server" | "k3s" | "rke2") && Some(pid) != ours {
            bail!(
                "process {pid} ({}) is a Kubernetes node of somebody else's: device plugins of two kubelets would meet in {}; \
                 use a machine without one, or install the chart with simulation.enabled=true into that cluster",
                name.trim(),
                paths::KUBELET
            );
        }
    }
    Ok(())
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
