//! `GPUNode`: what one node's GPUs are and how they are, written only by the device plugin of that node.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The GPUs of one node. The object has the node's name and is owned by the node; the device plugin writes its status.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "principium.ai",
    version = "v1alpha1",
    kind = "GPUNode",
    plural = "gpunodes",
    shortname = "gn",
    category = "principium",
    status = "GpuNodeStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "The GPUs of one node: what they are, how warm they are, who holds them, and why one is withheld. Written by the device plugin of the node.",
    printcolumn(name = "GPUs", type_ = "integer", json_path = ".status.summary.gpus"),
    printcolumn(name = "Product", type_ = "string", json_path = ".status.summary.product"),
    printcolumn(
        name = "Free",
        type_ = "string",
        json_path = ".status.summary.free",
        description = "Free units of 1 GiB / all units"
    ),
    printcolumn(
        name = "Temperatures",
        type_ = "string",
        json_path = ".status.summary.temperatures",
        description = "°C by index"
    ),
    printcolumn(name = "Withheld", type_ = "string", json_path = ".status.summary.withheld"),
    printcolumn(name = "Driver", type_ = "string", json_path = ".status.driverVersion", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct GpuNodeSpec {}

/// The state of a node's GPUs. Written on meaningful change, not every tick.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GpuNodeStatus {
    /// Version of the NVIDIA driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver_version: Option<String>,
    /// Newest CUDA version that the driver supports, for example `13.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cuda_version: Option<String>,
    /// `true` when the GPUs are simulated.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub simulated: bool,
    /// How containers on this node receive their GPUs.
    #[serde(default)]
    pub injection: Injection,
    /// Every GPU that the node has or had, in order of index.
    #[serde(default)]
    pub gpus: Vec<Gpu>,
    /// Where the pods' requests, the kubelet's list and what was put into containers contradict each other. Always empty
    /// where all is well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disagreements: Vec<Disagreement>,
    /// The same in one line, for `kubectl get`.
    #[serde(default)]
    pub summary: GpuNodeSummary,
    /// What keeps the plugin from measuring at all, for example a missing driver. Absent when it measures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// How containers receive their GPUs. One way a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Injection {
    /// By CDI names; pods say `NVIDIA_VISIBLE_DEVICES=void`.
    #[default]
    #[serde(rename = "CDI")]
    Cdi,
    /// By the NVIDIA container runtime, from `NVIDIA_VISIBLE_DEVICES` with UUIDs.
    Legacy,
}

/// One line about a node.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GpuNodeSummary {
    /// Number of GPUs that are there.
    pub gpus: u32,
    /// Product names, without repetition.
    pub product: String,
    /// Free units of all units, for example `40/64`.
    pub free: String,
    /// Temperatures in °C by index, for example `41 42 93 40`; `-` where there is none.
    pub temperatures: String,
    /// Withheld GPUs with their reasons, for example `2:Overheated`.
    pub withheld: String,
}

/// One GPU.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Gpu {
    /// Index on this node: given by PCI address at first sight and kept. A MIG device has one from 100 on, which shows its
    /// GPU: 402 is MIG device 2 of GPU 3.
    pub index: u32,
    /// NVML UUID.
    pub uuid: String,
    /// Product name, for example `NVIDIA GeForce RTX 3060 Ti`.
    pub product: String,
    /// PCI address, for example `00000000:01:00.0`.
    pub pci_address: String,
    /// Memory.
    pub memory: GpuMemoryStatus,
    /// Units of 1 GiB that the plugin advertises for it: the whole GPU.
    pub units: u32,
    /// Core temperature in °C. Absent when the sensor doesn't answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<u32>,
    /// Limits in force, in °C.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_limits: Option<TemperatureLimits>,
    /// Power drawn, in W.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power: Option<u32>,
    /// What part of a GPU it is, where it is a MIG device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mig: Option<MigDevice>,
    /// Which pods may ask for it.
    #[serde(default)]
    pub view: GpuView,
    /// Whether it works.
    #[serde(default)]
    pub health: Health,
    /// Why its free units are withheld. Absent when they are offered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withheld: Option<Withheld>,
    /// Who holds how much of it, from the kubelet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allocations: Vec<Allocation>,
    /// Processes that use its memory and belong to no pod that holds it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub foreign_processes: Vec<ForeignProcess>,
    /// Pods that hold it and use more of its memory than they hold. They are reported, not ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overuse: Vec<Overuse>,
}

/// What part of a GPU a MIG device is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigDevice {
    /// Index of the GPU that it is a part of.
    pub parent: u32,
    /// NVML's number of the GPU instance.
    pub gpu_instance: u32,
    /// NVML's number of the compute instance in it.
    pub compute_instance: u32,
}

/// Memory of one GPU in MiB, in steps coarse enough that the status is not rewritten all the time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GpuMemoryStatus {
    /// All of it, in MiB.
    pub total: u64,
    /// Used, in MiB.
    pub used: u64,
    /// Free, in MiB.
    pub free: u64,
}

/// Temperatures in °C at which something happens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TemperatureLimits {
    /// Free units are withheld at this temperature and above.
    pub withhold: u32,
    /// Units are offered again below this temperature, after the dwell time.
    pub restore: u32,
    /// NVML: the card slows down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slowdown: Option<u32>,
    /// NVML: the card shuts down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shutdown: Option<u32>,
}

/// The view that a GPU stands in: one at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum GpuView {
    /// `principium.ai/gpu-<index>`, in units of 1 GiB.
    #[default]
    Exact,
    /// `principium.ai/gpu`, whole.
    Generic,
}

/// Whether a GPU works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Health {
    /// It answers and shows no error.
    #[default]
    Healthy,
    /// It failed; `withheld` says how.
    Unhealthy,
    /// It is no longer there.
    Lost,
}

/// Why the free units of a GPU are not offered.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Withheld {
    /// One word.
    pub reason: WithheldReason,
    /// A sentence with the measured value and the limit.
    pub message: String,
    /// Since when, RFC 3339.
    pub since: String,
}

/// The reasons for which a GPU is withheld.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum WithheldReason {
    /// At or above its temperature limit, or not yet below the lower one for the dwell time.
    #[default]
    Overheated,
    /// A critical Xid event.
    Xid,
    /// Fallen off the bus, or no longer there.
    Lost,
    /// Uncorrectable memory errors.
    Ecc,
    /// Processes outside Kubernetes use its memory.
    ForeignProcess,
    /// NVML gives no answer about it.
    Unreadable,
    /// Divided into MIG devices, which are offered in its place.
    Divided,
    /// On its way between `principium.ai/gpu-<index>` and the generic pool: it changes once nobody holds it.
    Moving,
}

/// A container that holds units of a GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Allocation {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Name of the container.
    pub container: String,
    /// Units of 1 GiB.
    pub units: u32,
}

/// A contradiction about who holds a GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Disagreement {
    /// One word.
    pub kind: DisagreementKind,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Name of the container.
    pub container: String,
    /// A sentence with both sides.
    pub message: String,
}

/// What contradicts what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema)]
pub enum DisagreementKind {
    /// The kubelet lists another number of units than the container asks for.
    #[default]
    RequestDiffers,
    /// The kubelet lists one unit for two containers, or a GPU as whole and in units at once.
    HeldTwice,
    /// The container was given another card than the one that has this index now.
    InjectionDiffers,
}

/// A pod that uses more of a GPU's memory than its share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Overuse {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// What it holds, in MiB.
    pub share: u64,
    /// What it uses, in MiB.
    pub used: u64,
}

/// A process that uses a GPU without holding it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ForeignProcess {
    /// Process id on the node.
    pub pid: u32,
    /// Name, where it can be read.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// GPU memory in MiB.
    pub used: u64,
}
