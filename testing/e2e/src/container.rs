//! A container as the node sees it: its processes, its environment, its device nodes, and what its cgroup lets it open.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Major number of the simulated device nodes.
const MAJOR: u32 = 120;
/// Major number of the nodes that a MIG device has beside its GPU's.
const MIG_MAJOR: u32 = 121;

/// One running container.
pub struct Container {
    /// Its first process, on the node.
    pid: u32,
}

/// What opening a device gave.
#[derive(Debug, PartialEq, Eq)]
pub enum Open {
    /// The cgroup lets it through: the simulated major number has no driver, so the kernel says that there is no such device.
    Allowed,
    /// The cgroup forbids it.
    Denied,
}

impl Container {
    /// The container of this name in a running pod.
    ///
    /// # Errors
    /// When the pod runs no such container on this machine.
    pub fn of(pod: &Pod, name: &str) -> Result<Self> {
        let status = pod
            .status
            .as_ref()
            .and_then(|s| s.container_statuses.as_ref())
            .into_iter()
            .flatten()
            .find(|c| c.name == name);
        let id =
            status.and_then(|c| c.container_id.as_deref()).and_then(|id| id.strip_prefix("containerd://"));
        let id =
            id.with_context(|| format!("pod {:?} has no running container {name}", pod.metadata.name))?;
        for entry in std::fs::read_dir("/proc")? {
            let entry = entry?;
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
            if std::fs::read_to_string(entry.path().join("cgroup")).is_ok_and(|cgroup| cgroup.contains(id)) {
                return Ok(Self { pid });
            }
        }
        anyhow::bail!("no process of container {id} on this machine")
    }

    /// Id of its first process, on the node.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// A value of its first process' status, for example `CapEff`.
    ///
    /// # Errors
    /// When the process is gone, or has no such value.
    pub fn status(&self, name: &str) -> Result<String> {
        let status = std::fs::read_to_string(self.proc("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(|value| value.trim().to_owned()).with_context(|| format!("no {name}"))
    }

    /// Options with which its root file system is mounted.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn root_options(&self) -> Result<BTreeSet<String>> {
        self.mount_options("/")
    }

    /// Options with which it has something mounted at this path.
    ///
    /// # Errors
    /// When the process is gone, or has nothing mounted there.
    pub fn mount_options(&self, path: &str) -> Result<BTreeSet<String>> {
        let mounts = std::fs::read_to_string(self.proc("mountinfo"))?;
        let mount =
            mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|mount| mount[4] == path);
        let mount = mount.with_context(|| format!("nothing is mounted at {path}"))?;
        Ok(mount[5].split(',').map(str::to_owned).collect())
    }

    /// Its environment.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn environment(&self) -> Result<BTreeMap<String, String>> {
        let raw = std::fs::read(self.proc("environ"))?;
        Ok(raw
            .split(|byte| *byte == 0)
            .filter_map(|pair| {
                String::from_utf8_lossy(pair).split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()))
            })
            .collect())
    }

    /// Names of the NVIDIA device nodes in its `/dev`.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn nvidia_nodes(&self) -> Result<BTreeSet<String>> {
        let mut names = BTreeSet::new();
        for entry in std::fs::read_dir(self.proc("root/dev"))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.starts_with("nvidia") {
                names.insert(name);
            }
        }
        Ok(names)
    }

    /// What a process in the container's cgroup gets when it opens the device of a GPU, whether or not the container has
    /// a node for it: a node made by a process that escaped from its `/dev` must not help either.
    ///
    /// # Errors
    /// When the probe can't be made, or fails in a way that is neither.
    pub fn open(&self, index: u32) -> Result<Open> {
        self.open_node(MAJOR, index)
    }

    /// The same for the device of a MIG device.
    ///
    /// # Errors
    /// As for [`Container::open`].
    pub fn open_mig(&self, index: u32) -> Result<Open> {
        self.open_node(MIG_MAJOR, index)
    }

    fn open_node(&self, major: u32, index: u32) -> Result<Open> {
        let folder = std::env::temp_dir().join(format!("principium-e2e-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let node = folder.join(format!("gpu{index}"));
        let _ = std::fs::remove_file(&node);
        let made =
            Command::new("mknod").arg(&node).args(["c", &major.to_string(), &index.to_string()]).status()?;
        anyhow::ensure!(made.success(), "mknod {}", node.display());
        // The shell joins the container's cgroup for as long as it lives and opens the node from there.
        let script = format!(
            "echo $$ > {}/cgroup.procs && exec < {}",
            self.device_cgroup()?.display(),
            node.display()
        );
        let output = Command::new("sh").args(["-c", &script]).env("LC_ALL", "C").output()?;
        std::fs::remove_dir_all(&folder)?;
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        if message.contains("Operation not permitted") {
            Ok(Open::Denied)
        } else if message.contains("No such device or address") {
            Ok(Open::Allowed)
        } else {
            anyhow::bail!("opening GPU {index} from the container's cgroup gave neither answer: {message:?}")
        }
    }

    /// The cgroup that restricts its devices: of the devices controller (v1), or the unified one (v2).
    fn device_cgroup(&self) -> Result<PathBuf> {
        let text = std::fs::read_to_string(self.proc("cgroup"))?;
        let path = |line: &str| line.splitn(3, ':').nth(2).map(|p| p.trim_start_matches('/').to_owned());
        let v1 = text
            .lines()
            .find(|line| line.split(':').nth(1).is_some_and(|c| c.split(',').any(|c| c == "devices")));
        if let Some(path) = v1.and_then(path) {
            return Ok(Path::new("/sys/fs/cgroup/devices").join(path));
        }
        let v2 = text.lines().find(|line| line.starts_with("0::")).and_then(path).context("no cgroup")?;
        Ok(Path::new("/sys/fs/cgroup").join(v2))
    }

    fn proc(&self, file: &str) -> PathBuf {
        Path::new("/proc").join(self.pid.to_string()).join(file)
    }
}
