//! What a container is given for its devices: one way a node, and only what the kubelet can join from several calls.
//!
//! A pod with two GPUs causes two `Allocate` calls, and of environment variables of the same name only one survives. So
//! devices go by CDI names or device nodes, which are joined; variables are set only where every call says the same, or
//! where a pod asks for one resource.

use crate::device::DeviceId;
use crate::proto::device_plugin::{CdiDevice, ContainerAllocateResponse, DeviceSpec};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// CDI kind of the NVIDIA toolkit's own specification.
const NVIDIA_KIND: &str = "nvidia.com/gpu";
/// CDI kind of the specification that this plugin writes for simulated GPUs.
pub const SIMULATED_KIND: &str = "principium.ai/gpu";
/// The variable that the NVIDIA container runtime reads.
const VISIBLE_DEVICES: &str = "NVIDIA_VISIBLE_DEVICES";
/// Device nodes that every CUDA process needs beside those of its GPUs.
const CONTROL_NODES: [&str; 4] =
    ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset"];

/// How devices get into containers on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Injector {
    /// By names that the container runtime looks up in CDI specifications.
    Cdi {
        /// `vendor.com/class` of the names.
        kind: &'static str,
    },
    /// By device nodes, and the libraries by the NVIDIA container runtime.
    Legacy {
        /// The control nodes that this node has.
        control_nodes: Vec<String>,
    },
}

/// What must be known of a GPU to inject it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injectable {
    /// NVML UUID.
    pub uuid: String,
    /// Number of its device node.
    pub minor: u32,
}

impl Injector {
    /// CDI names of simulated GPUs or of the NVIDIA toolkit.
    #[must_use]
    pub fn cdi(simulated: bool) -> Self {
        Self::Cdi { kind: if simulated { SIMULATED_KIND } else { NVIDIA_KIND } }
    }

    /// Device nodes, with the control nodes that are below `root`.
    #[must_use]
    pub fn legacy(root: &Path) -> Self {
        let exists = |node: &&str| root.join(node.trim_start_matches('/')).exists();
        Self::Legacy { control_nodes: CONTROL_NODES.into_iter().filter(exists).map(str::to_owned).collect() }
    }

    /// The answer for one container. Several units of one GPU are one device.
    ///
    /// # Errors
    /// If a device is of a GPU that this node doesn't have.
    pub fn inject(
        &self,
        devices: &[DeviceId],
        gpus: &BTreeMap<u32, Injectable>,
    ) -> Result<ContainerAllocateResponse, UnknownGpu> {
        let indices: BTreeSet<u32> = devices.iter().map(|device| device.gpu()).collect();
        let gpus: Vec<&Injectable> = indices
            .into_iter()
            .map(|index| gpus.get(&index).ok_or(UnknownGpu(index)))
            .collect::<Result<_, _>>()?;
        Ok(match self {
            Self::Cdi { kind } => ContainerAllocateResponse {
                // Keeps a legacy hook of the container runtime, where there is one, from adding GPUs of its own.
                envs: [(VISIBLE_DEVICES.to_owned(), "void".to_owned())].into(),
                cdi_devices: gpus
                    .iter()
                    .map(|gpu| CdiDevice { name: format!("{kind}={}", gpu.uuid) })
                    .collect(),
                devices: Vec::new(),
            },
            Self::Legacy { control_nodes } => {
                let nodes = gpus.iter().map(|gpu| format!("/dev/nvidia{}", gpu.minor));
                let uuids: Vec<_> = gpus.iter().map(|gpu| gpu.uuid.as_str()).collect();
                ContainerAllocateResponse {
                    // Right for a pod that asks for one resource; a pod with several names its UUIDs itself.
                    envs: [(VISIBLE_DEVICES.to_owned(), uuids.join(","))].into(),
                    cdi_devices: Vec::new(),
                    devices: nodes.chain(control_nodes.iter().cloned()).map(device_node).collect(),
                }
            }
        })
    }
}

fn device_node(path: String) -> DeviceSpec {
    DeviceSpec { container_path: path.clone(), host_path: path, permissions: "rw".to_owned() }
}

/// A device of a GPU that this node doesn't have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("this node has no GPU {0}")]
pub struct UnknownGpu(u32);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocations::tests::unit;

    fn gpus() -> BTreeMap<u32, Injectable> {
        (0..8).map(|index| (index, Injectable { uuid: format!("GPU-{index}"), minor: index + 10 })).collect()
    }

    fn names(response: &ContainerAllocateResponse) -> Vec<&str> {
        response.cdi_devices.iter().map(|device| device.name.as_str()).collect()
    }

    #[test]
    fn a_gpu_is_one_cdi_device_however_many_units_are_asked() {
        for (simulated, expected) in [
            (true, ["principium.ai/gpu=GPU-2", "principium.ai/gpu=GPU-6"]),
            (false, ["nvidia.com/gpu=GPU-2", "nvidia.com/gpu=GPU-6"]),
        ] {
            let devices = [unit(6, 0), unit(6, 1), DeviceId::Whole { gpu: 2 }, unit(6, 7)];
            let response = Injector::cdi(simulated).inject(&devices, &gpus()).unwrap();
            assert_eq!(names(&response), expected);
            assert_eq!(response.envs["NVIDIA_VISIBLE_DEVICES"], "void");
            assert!(response.devices.is_empty());
        }
    }

    #[test]
    fn legacy_gives_device_nodes_that_several_calls_can_join() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("dev")).unwrap();
        std::fs::write(root.path().join("dev/nvidiactl"), "").unwrap();
        let response = Injector::legacy(root.path()).inject(&[unit(6, 0), unit(6, 1)], &gpus()).unwrap();
        let paths: Vec<_> = response.devices.iter().map(|device| device.host_path.as_str()).collect();
        assert_eq!(paths, ["/dev/nvidia16", "/dev/nvidiactl"]);
        assert_eq!(response.envs["NVIDIA_VISIBLE_DEVICES"], "GPU-6");
        assert!(response.cdi_devices.is_empty());
    }

    #[test]
    fn a_gpu_that_is_not_there_is_refused() {
        assert_eq!(Injector::cdi(true).inject(&[unit(9, 0)], &gpus()), Err(UnknownGpu(9)));
    }
}
