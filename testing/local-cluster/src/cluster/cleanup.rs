//! What the cluster leaves on a machine, and how it is removed: only what was not there before it came.

use super::network;
use super::paths::{KUBELET, Paths, RUN};
use crate::command::{run, succeeds};
use anyhow::{Context, Result};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Folders that Kubernetes, its network and the plugin make at fixed places.
const FOLDERS: [&str; 6] =
    [KUBELET, "/var/lib/cni", "/var/log/pods", "/var/log/containers", "/var/lib/principium", "/var/run/cdi"];
/// nftables tables of kube-proxy and the network plugins.
const TABLES: [&str; 6] = [
    "ip kube-proxy",
    "ip6 kube-proxy",
    "ip cni_hostport",
    "ip6 cni_hostport",
    "inet cni_hostport",
    "inet cni_plugins_masquerade",
];

/// What was there before the cluster.
#[derive(Default, Deserialize, Serialize)]
struct Before {
    folders: Vec<String>,
    tables: Vec<String>,
    forwarding: String,
}

/// Notes what is there, the first time.
pub fn remember_before(paths: &Paths) -> Result<()> {
    let file = paths.root().join("before.json");
    if file.exists() {
        return Ok(());
    }
    let before = Before {
        folders: FOLDERS
            .iter()
            .filter(|folder| Path::new(folder).exists())
            .map(|folder| (*folder).to_owned())
            .collect(),
        tables: tables(),
        forwarding: fs::read_to_string(network::FORWARDING).unwrap_or_default().trim().to_owned(),
    };
    fs::write(&file, serde_json::to_string_pretty(&before)?)
        .with_context(|| format!("writing {}", file.display()))
}

/// Ends every process of every pod, and containerd's shims.
pub fn end_containers() -> Result<()> {
    let socket = Paths::containerd_socket().display().to_string();
    for _ in 0..50 {
        let mut found = false;
        for group in pod_cgroups() {
            for pid in processes_below(&group) {
                found = true;
                kill(pid);
            }
        }
        for entry in fs::read_dir("/proc")?.flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
            if words.first().is_some_and(|program| program.contains("containerd-shim"))
                && words.iter().any(|word| *word == socket)
            {
                found = true;
                kill(pid);
            }
        }
        if !found {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    anyhow::bail!("containers of the cluster do not end even by force")
}

/// Removes mounts, cgroups, the network, rules and files.
pub fn remove(paths: &Paths) -> Result<()> {
    let file = paths.root().join("before.json");
    let before: Before = match fs::read_to_string(&file) {
        Ok(text) => serde_json::from_str(&text).with_context(|| format!("reading {}", file.display()))?,
        // The cluster was never up, or is removed already.
        Err(_) => return Ok(()),
    };
    let data = paths.root().display().to_string();
    unmount_below(&[&data, RUN, KUBELET])?;
    for group in pod_cgroups() {
        remove_cgroup(&group).with_context(|| format!("removing the cgroup {}", group.display()))?;
    }
    network::remove()?;
    for table in tables() {
        if TABLES.contains(&table.as_str()) && !before.tables.contains(&table) {
            run(Command::new("nft").args(["delete", "table"]).args(table.split(' ')))?;
        }
    }
    if before.forwarding == "0" {
        fs::write(network::FORWARDING, "0")?;
    }
    for folder in FOLDERS.iter().filter(|folder| !before.folders.iter().any(|old| old == *folder)) {
        remove_folder(Path::new(folder))?;
    }
    // A folder that somebody else had made loses only what is ours.
    let _ = fs::remove_file("/var/run/cdi/principium.ai-gpu.json");
    remove_folder(Path::new("/var/lib/principium"))?;
    remove_folder(Path::new(RUN))?;
    remove_folder(paths.root())
}

fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", folder.display()))
        }
        _ => Ok(()),
    }
}

fn kill(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// The cgroup of all pods, in each hierarchy (v1) or in the only one (v2).
fn pod_cgroups() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let below = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path().join("kubepods"));
    below.chain([root.join("kubepods")]).filter(|path| path.is_dir() && !path.is_symlink()).collect()
}

fn processes_below(group: &Path) -> Vec<i32> {
    let own = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let mut all: Vec<i32> = own.lines().filter_map(|line| line.parse().ok()).collect();
    for folder in folders(group) {
        all.extend(processes_below(&folder));
    }
    all
}

fn remove_cgroup(group: &Path) -> Result<()> {
    for folder in folders(group) {
        remove_cgroup(&folder)?;
    }
    // A group stays busy for a moment after its last process ended.
    for attempt in 0.. {
        match fs::remove_dir(group) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) if attempt == 50 => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
            Ok(()) => return Ok(()),
        }
    }
    Ok(())
}

fn folders(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect()
}

/// Unmounts all that is mounted below the folders, the deepest first.
fn unmount_below(folders: &[&str]) -> Result<()> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let mut mounts: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|mount| {
            // The folders themselves too: the kubelet's is bound to itself, so that mounts in it reach its containers.
            let within = |rest: &str| rest.is_empty() || rest.starts_with('/');
            folders.iter().any(|folder| mount.strip_prefix(folder).is_some_and(within))
        })
        .collect();
    mounts.sort_by_key(|mount| std::cmp::Reverse(mount.len()));
    for mount in mounts {
        match unmount(mount, UnmountFlags::DETACH) {
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error).with_context(|| format!("unmounting {mount}")),
        }
    }
    Ok(())
}

fn tables() -> Vec<String> {
    if !succeeds(Command::new("nft").arg("--version")) {
        return Vec::new();
    }
    let printed = run(Command::new("nft").args(["list", "tables"])).unwrap_or_default();
    printed
        .lines()
        .filter_map(|line| line.strip_prefix("table "))
        .map(|table| table.trim().to_owned())
        .collect()
}
