//! Which pod a process belongs to, from its cgroup; and so which memory on a GPU is somebody else's.

use crate::allocations::Holdings;
use crate::device::GpuProcess;
use principium_api::gpu_node::ForeignProcess;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

/// Inode of the first PID namespace of a machine, the one whose process ids NVML tells.
const HOST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Namespace and name of a pod.
pub type PodName = (String, String);

/// Who a process belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The pod with this UID.
    Pod(String),
    /// No pod; the process has this name.
    Outside(String),
    /// It is gone, or can't be looked at.
    Unknown,
}

/// Looks at the node's processes.
#[derive(Clone, Debug)]
pub struct Processes {
    root: PathBuf,
    sees_host: bool,
    simulated: bool,
}

impl Processes {
    /// Looks at `/proc`. Simulated processes need not exist there.
    #[must_use]
    pub fn new(simulated: bool) -> Self {
        let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        let sees_host = namespace.as_os_str() == HOST_PID_NAMESPACE;
        if !sees_host && !simulated {
            tracing::warn!(
                "not in the node's PID namespace (hostPID): memory of processes outside Kubernetes is not seen"
            );
        }
        Self { root: PathBuf::from("/proc"), sees_host, simulated }
    }

    /// Who the process belongs to.
    #[must_use]
    pub fn owner(&self, pid: u32) -> Owner {
        let directory = self.root.join(pid.to_string());
        match self.sees_host.then(|| fs::read_to_string(directory.join("cgroup"))) {
            Some(Ok(cgroup)) => pod_uid(&cgroup).map_or_else(
                || {
                    let name = fs::read_to_string(directory.join("comm")).unwrap_or_default();
                    Owner::Outside(name.trim_end().to_owned())
                },
                Owner::Pod,
            ),
            _ if self.simulated => Owner::Outside("simulated".to_owned()),
            _ => Owner::Unknown,
        }
    }
}

/// The UID of the pod whose cgroup this is: `…/pod<uid>/…` with cgroupfs, `…-pod<uid_>.slice/…` with systemd.
fn pod_uid(cgroup: &str) -> Option<String> {
    cgroup.lines().flat_map(|line| line.split('/')).find_map(|component| {
        let component = component.strip_suffix(".slice").unwrap_or(component);
        let (before, uid) = component.rsplit_once("pod")?;
        let uid = uid.replace('_', "-");
        let is_uid = uid.len() >= 32 && uid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        ((before.is_empty() || before.ends_with('-')) && is_uid).then_some(uid)
    })
}

/// What the processes of one GPU come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Those that belong to no pod that holds the GPU, in order of process id.
    pub foreign: Vec<ForeignProcess>,
    /// GPU memory in MiB of each pod that holds the GPU and has processes on it.
    pub holders: BTreeMap<PodName, u64>,
    /// UIDs of pods whose names are not known yet. Their processes are not counted until they are.
    pub unknown_pods: BTreeSet<String>,
}

impl Usage {
    /// Memory of all foreign processes, in MiB.
    #[must_use]
    pub fn foreign_mib(&self) -> u64 {
        self.foreign.iter().map(|process| process.used).sum()
    }
}

/// Sorts the processes of GPU `index` by who they belong to. A pod counts as a holder while it is not known who holds
/// what: memory is called somebody else's only when that is certain.
#[must_use]
pub fn usage(
    index: u32,
    processes: &[GpuProcess],
    owner: impl Fn(u32) -> Owner,
    pods: &BTreeMap<String, PodName>,
    holdings: Option<&Holdings>,
) -> Usage {
    let mut usage = Usage::default();
    for GpuProcess { pid, used_mib, .. } in processes.iter().copied() {
        let name = match owner(pid) {
            Owner::Unknown => continue,
            Owner::Outside(name) => name,
            Owner::Pod(uid) => match (pods.get(&uid), holdings) {
                (None, _) => {
                    usage.unknown_pods.insert(uid);
                    continue;
                }
                (Some(_), None) => continue,
                (Some(name @ (namespace, pod)), Some(holdings)) if holdings.holds(namespace, pod, index) => {
                    *usage.holders.entry(name.clone()).or_default() += used_mib;
                    continue;
                }
                (Some((namespace, pod)), Some(_)) => format!("pod {namespace}/{pod}"),
            },
        };
        usage.foreign.push(ForeignProcess { pid, name, used: used_mib });
    }
    usage.foreign.sort_by_key(|process| process.pid);
    usage
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocations::tests::{holder, unit};

    const UID: &str = "0b5e7c1d-5a4b-4a58-9f0e-3a1c2b3d4e5f";

    #[test]
    fn a_pods_uid_is_found_in_every_shape_of_cgroup() {
        let systemd = UID.replace('-', "_");
        for cgroup in [
            format!("0::/kubepods/burstable/pod{UID}/4f5e"),
            format!("0::/kubepods/pod{UID}/4f5e"),
            format!(
                "12:memory:/kubepods/besteffort/pod{UID}/4f5e\n1:name=systemd:/kubepods/besteffort/pod{UID}/4f5e"
            ),
            format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{systemd}.slice/cri-containerd-4f5e.scope"
            ),
            format!("0::/kubepods.slice/kubepods-pod{systemd}.slice/cri-containerd-4f5e.scope"),
            format!("0::/../../pod{UID}/4f5e"),
            format!("0::/kubelet/kubepods/burstable/pod{UID}/4f5e"),
        ] {
            assert_eq!(pod_uid(&cgroup).as_deref(), Some(UID), "{cgroup}");
        }
    }

    #[test]
    fn what_is_no_pod_has_no_uid() {
        for cgroup in [
            "0::/",
            "0::/user.slice/user-1000.slice/session-2.scope",
            "0::/system.slice/podman.service",
            "0::/machine.slice/libpod-4f5e4f5e4f5e4f5e4f5e4f5e4f5e4f5e4f5e4f5e4f5e4f5e4f5e4f5e4f5e4f5e.scope",
            "0::/kubepods/burstable",
        ] {
            assert_eq!(pod_uid(cgroup), None, "{cgroup}");
        }
    }

    #[test]
    fn memory_is_foreign_only_when_that_is_certain() {
        let processes: Vec<_> = (1..=5)
            .map(|pid| GpuProcess { pid, gpu_instance: None, used_mib: u64::from(pid) * 100 })
            .collect();
        let owner = |pid| match pid {
            1 => Owner::Outside("Xorg".into()),
            2 => Owner::Pod("holder".into()),
            3 => Owner::Pod("intruder".into()),
            4 => Owner::Pod("new".into()),
            _ => Owner::Unknown,
        };
        let name = |pod: &str| ("ai".to_owned(), pod.to_owned());
        let pods = BTreeMap::from([("holder".to_owned(), name("a")), ("intruder".to_owned(), name("b"))]);
        let holdings =
            Holdings::from_iter([(unit(3, 0), holder("a", "main")), (unit(4, 0), holder("b", "main"))]);

        let pids = |usage: &Usage| usage.foreign.iter().map(|process| process.pid).collect::<Vec<_>>();
        let known = usage(3, &processes, owner, &pods, Some(&holdings));
        assert_eq!((pids(&known), known.foreign_mib()), (vec![1, 3], 400));
        assert_eq!(known.foreign[1].name, "pod ai/b");
        assert_eq!(known.holders, BTreeMap::from([(name("a"), 200)]));
        assert_eq!(known.unknown_pods, BTreeSet::from(["new".to_owned()]));
        assert_eq!(
            pids(&usage(4, &processes, owner, &pods, Some(&holdings))),
            [1, 2],
            "held on another GPU only"
        );
        assert_eq!(pids(&usage(3, &processes, owner, &pods, None)), [1], "holders are not known");
    }
}
