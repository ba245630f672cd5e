//! What a container is given for its devices: one way a node, and only what the kubelet can join from several calls.
//!
//! A pod with two GPUs causes two `Allocate` calls, and of environment variables of the same name only one survives. So
//! devices go by CDI names or device nodes, which are joined; variables are set only where every call says the same, or
//! where a pod asks for one resource.

use crate::device::DeviceId;
use crate::proto::device_plugin::{CdiDevice, ContainerAllocateResponse, DeviceSpec};
use principium_api::gpu_node::GpuView;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// CDI kind of the NVIDIA toolkit's own specification.
const NVIDIA_KIND: &str = "nvidia.com/gpu";
/// CDI kind of the specification that this plugin writes for simulated GPUs.
pub const SIMULATED_KIND: &str = "principium.ai/gpu";
/// The variable that the NVIDIA container runtime reads.
const VISIBLE_DEVICES: &str = "NVIDIA_VISIBLE_DEVICES";
/// The driver's list of the device nodes of MIG devices, below the root.
const MIG_MINORS: &str = "proc/driver/nvidia-caps/mig-minors";
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
        /// The driver's list of the device nodes that let a process use a MIG device.
        mig_minors: String,
    },
}

/// What must be known of a GPU to inject it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injectable {
    /// NVML UUID.
    pub uuid: String,
    /// Number of the device node of the GPU, or of the one that it is a part of.
    pub minor: u32,
    /// NVML's numbers of the GPU instance and the compute instance, where it is a MIG device.
    pub instance: Option<(u32, u32)>,
    /// The view in which it may be asked for.
    pub view: GpuView,
}

impl Injectable {
    /// Whether a device of this GPU belongs to the view that the GPU stands in.
    fn stands_as(&self, device: DeviceId) -> bool {
        matches!(
            (device, self.view),
            (DeviceId::Unit { .. }, GpuView::Exact) | (DeviceId::Whole { .. }, GpuView::Generic)
        )
    }
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
        Self::Legacy {
            control_nodes: CONTROL_NODES.into_iter().filter(exists).map(str::to_owned).collect(),
            mig_minors: fs::read_to_string(root.join(MIG_MINORS)).unwrap_or_default(),
        }
    }

    /// The answer for one container. Several units of one GPU are one device.
    ///
    /// # Errors
    /// If a device is of a GPU that this node doesn't have, or of a view that the GPU left.
    pub fn inject(
        &self,
        devices: &[DeviceId],
        gpus: &BTreeMap<u32, Injectable>,
    ) -> Result<ContainerAllocateResponse, InjectionError> {
        let mut of_devices = BTreeMap::new();
        for device in devices {
            let index = device.gpu();
            let gpu = gpus.get(&index).ok_or(InjectionError::UnknownGpu(index))?;
            if !gpu.stands_as(*device) {
                return Err(InjectionError::OtherView(index));
            }
            of_devices.insert(index, gpu);
        }
        let gpus: Vec<&Injectable> = of_devices.into_values().collect();
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
            Self::Legacy { control_nodes, mig_minors } => {
                let nodes: BTreeSet<String> = gpus
                    .iter()
                    .flat_map(|gpu| {
                        let part = gpu.instance.map(|instance| mig_nodes(mig_minors, gpu.minor, instance));
                        [format!("/dev/nvidia{}", gpu.minor)].into_iter().chain(part.unwrap_or_default())
                    })
                    .collect();
                let uuids: Vec<_> = gpus.iter().map(|gpu| gpu.uuid.as_str()).collect();
                ContainerAllocateResponse {
                    // Right for a pod that asks for one resource; a pod with several names its UUIDs itself.
                    envs: [(VISIBLE_DEVICES.to_owned(), uuids.join(","))].into(),
                    cdi_devices: Vec::new(),
                    devices: nodes
                        .into_iter()
                        .chain(control_nodes.iter().cloned())
                        .map(device_node)
                        .collect(),
                }
            }
        })
    }
}

fn device_node(path: String) -> DeviceSpec {
    DeviceSpec { container_path: path.clone(), host_path: path, permissions: "rw".to_owned() }
}

/// The device nodes that let a process use a MIG device, beside its GPU's: lines like `gpu3/gi1/ci0/access 42`.
fn mig_nodes(minors: &str, gpu: u32, (gpu_instance, compute_instance): (u32, u32)) -> Vec<String> {
    let wanted = [
        format!("gpu{gpu}/gi{gpu_instance}/access"),
        format!("gpu{gpu}/gi{gpu_instance}/ci{compute_instance}/access"),
    ];
    let lines = minors.lines().filter_map(|line| line.split_once(' '));
    lines
        .filter(|(name, _)| wanted.iter().any(|wanted| wanted == name))
        .map(|(_, minor)| format!("/dev/nvidia-caps/nvidia-cap{}", minor.trim()))
        .collect()
}

/// Why devices can't be put into a container.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InjectionError {
    /// A device of a GPU that this node doesn't have.
    #[error("this node has no GPU {0}")]
    UnknownGpu(u32),
    /// The GPU moved between `principium.ai/gpu-<index>` and the generic pool.
    #[error("GPU {0} is not offered under this resource any more: it was moved to or from the generic pool")]
    OtherView(u32),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocations::tests::unit;

    fn gpus() -> BTreeMap<u32, Injectable> {
        let gpu = |index, view| Injectable {
            uuid: format!("GPU-{index}"),
            minor: index + 10,
            instance: None,
            view,
        };
        let mut gpus: BTreeMap<_, _> = (0..8).map(|index| (index, gpu(index, GpuView::Exact))).collect();
        gpus.insert(2, gpu(2, GpuView::Generic));
        gpus
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
    fn legacy_gives_a_mig_device_its_gpu_and_its_own_nodes() {
        let root = tempfile::tempdir().unwrap();
        let list = root.path().join(MIG_MINORS);
        std::fs::create_dir_all(list.parent().unwrap()).unwrap();
        let minors = "config 1\nmonitor 2\ngpu3/gi1/access 30\ngpu3/gi1/ci0/access 31\ngpu3/gi2/access 39\ngpu3/gi2/ci0/access 40\n";
        std::fs::write(list, minors).unwrap();
        let part = |instance| Injectable {
            uuid: format!("MIG-{instance}"),
            minor: 3,
            instance: Some((instance, 0)),
            view: GpuView::Exact,
        };
        let gpus = BTreeMap::from([(400, part(1)), (401, part(2))]);
        let response = Injector::legacy(root.path()).inject(&[unit(401, 0), unit(401, 1)], &gpus).unwrap();
        let paths: Vec<_> = response.devices.iter().map(|device| device.host_path.as_str()).collect();
        assert_eq!(paths, ["/dev/nvidia-caps/nvidia-cap39", "/dev/nvidia-caps/nvidia-cap40", "/dev/nvidia3"]);
        assert_eq!(response.envs["NVIDIA_VISIBLE_DEVICES"], "MIG-2");
    }

    #[test]
    fn a_gpu_that_is_not_there_and_a_view_that_it_left_are_refused() {
        for (device, error) in [
            (unit(9, 0), InjectionError::UnknownGpu(9)),
            (unit(2, 0), InjectionError::OtherView(2)),
            (DeviceId::Whole { gpu: 3 }, InjectionError::OtherView(3)),
        ] {
            assert_eq!(Injector::cdi(true).inject(&[device], &gpus()), Err(error));
        }
    }
}
