//! What a GPU is and what was measured on it: plain data that every other module speaks.

use principium_api::gpu::units_of_total;
use principium_api::names;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// What stays the same about a GPU while its driver runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// NVML UUID.
    pub uuid: String,
    /// PCI address in NVML's form, `00000000:01:00.0`.
    pub pci_address: String,
    /// Product name.
    pub product: String,
    /// All memory, in MiB.
    pub memory_total_mib: u64,
    /// Number of the device node, `/dev/nvidia<minor>`.
    pub minor: Option<u32>,
    /// NUMA node.
    pub numa_node: Option<u32>,
    /// Temperature in °C at which the card slows down.
    pub slowdown_temperature: Option<u32>,
    /// Temperature in °C at which the card switches itself off.
    pub shutdown_temperature: Option<u32>,
    /// `true`: it is divided into MIG devices, and nothing can compute on it itself.
    #[serde(default)]
    pub divided: bool,
    /// What part of which GPU it is, where it is a MIG device.
    #[serde(default)]
    pub part: Option<Part>,
}

/// The place of a MIG device on its GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Part {
    /// UUID of the GPU.
    pub of: String,
    /// NVML's number of the GPU instance.
    pub gpu_instance: u32,
    /// NVML's number of the compute instance in it.
    pub compute_instance: u32,
}

impl Identity {
    /// Units of 1 GiB that the whole GPU has.
    #[must_use]
    pub fn units(&self) -> u32 {
        units_of_total(self.memory_total_mib)
    }

    /// What no two GPUs of a node have in common, and a new card in the same slot has too.
    #[must_use]
    pub fn slot(&self) -> String {
        let Self { pci_address, part, .. } = self;
        match part {
            None => pci_address.clone(),
            Some(Part { gpu_instance, compute_instance, .. }) => {
                format!("{pci_address}/{gpu_instance}/{compute_instance}")
            }
        }
    }
}

/// One GPU at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Which GPU.
    pub identity: Identity,
    /// How it answered.
    pub probe: Probe,
}

/// How a GPU answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// With values.
    Answer(Reading),
    /// It has fallen off the bus.
    Lost,
    /// Not, for another reason.
    Silent(String),
}

/// Measured values. What a card doesn't support is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Core temperature in °C.
    pub temperature: Option<u32>,
    /// Memory in use in MiB, the driver's reserve not counted.
    pub memory_used_mib: u64,
    /// Memory that can still be allocated, in MiB.
    pub memory_free_mib: u64,
    /// Power drawn, in W.
    pub power: Option<u32>,
    /// Share of time in which a kernel ran, in percent.
    pub utilization: Option<u32>,
    /// Why the card slows itself down.
    pub slowdown: Slowdown,
    /// Uncorrectable memory errors since the driver was loaded.
    pub uncorrectable_errors: Option<u64>,
    /// Whether the driver asks for a reset or a reboot; absent where the driver can't say.
    pub needs_recovery: Option<bool>,
    /// Processes that use the GPU.
    pub processes: Vec<GpuProcess>,
}

/// For what a card slows itself down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slowdown {
    /// The card itself, to protect itself from heat.
    pub hardware_heat: bool,
    /// The driver, to keep the temperature at its target.
    pub software_heat: bool,
    /// To stay within its power limit, or because the power supply asks for it.
    pub power: bool,
}

impl Slowdown {
    /// Whether heat is a reason.
    #[must_use]
    pub fn by_heat(self) -> bool {
        self.hardware_heat || self.software_heat
    }
}

/// A process on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuProcess {
    /// Process id on the node.
    pub pid: u32,
    /// The GPU instance that it runs in, on a divided GPU.
    pub gpu_instance: Option<u32>,
    /// GPU memory in MiB.
    pub used_mib: u64,
}

/// An Xid event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xid {
    /// UUID of the GPU; absent when the driver didn't say which.
    pub uuid: Option<String>,
    /// The GPU instance, where it is about a part of a divided GPU.
    pub gpu_instance: Option<u32>,
    /// The code.
    pub code: u64,
}

impl Xid {
    /// Whether it is about this GPU or MIG device: what is about a whole GPU is about all of its parts.
    #[must_use]
    pub fn concerns(&self, identity: &Identity) -> bool {
        let Some(uuid) = &self.uuid else { return true };
        match &identity.part {
            None => *uuid == identity.uuid && self.gpu_instance.is_none(),
            Some(part) => *uuid == part.of && self.gpu_instance.is_none_or(|of| of == part.gpu_instance),
        }
    }
}

/// All GPUs of the node at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When the reading began: every value is of a later moment.
    pub began: Instant,
    /// Version of the driver.
    pub driver_version: String,
    /// Newest CUDA version that the driver supports, for example `13.0`.
    pub cuda_version: Option<String>,
    /// Number of times that the driver had to be opened so far. It changes when the driver was away.
    pub session: u64,
    /// The GPUs that the driver knows.
    pub gpus: Vec<Observation>,
    /// Xid events since the last sample.
    pub xids: Vec<Xid>,
}

impl Sample {
    /// A reading that begins now, of a driver that was opened `session` times.
    #[must_use]
    pub fn begin(session: u64) -> Self {
        Self {
            began: Instant::now(),
            driver_version: String::new(),
            cuda_version: None,
            session,
            gpus: Vec::new(),
            xids: Vec::new(),
        }
    }
}

/// The moment of a decision, given to pure functions instead of a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Time since an arbitrary start, which no one sets back.
    pub elapsed: Duration,
    /// The time that people read.
    pub wall: jiff::Timestamp,
}

/// A device that the kubelet hands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceId {
    /// One unit of 1 GiB of a GPU: `g3u5`.
    Unit {
        /// Index of the GPU.
        gpu: u32,
        /// Number of the unit, from 0.
        unit: u32,
    },
    /// A whole GPU of the generic pool: `g3`.
    Whole {
        /// Index of the GPU.
        gpu: u32,
    },
}

impl DeviceId {
    /// Index of the GPU that the device is, or is a part of.
    #[must_use]
    pub fn gpu(self) -> u32 {
        match self {
            Self::Unit { gpu, .. } | Self::Whole { gpu } => gpu,
        }
    }

    /// The resource that the device belongs to.
    #[must_use]
    pub fn resource(self) -> String {
        match self {
            Self::Unit { gpu, .. } => names::gpu_resource(gpu),
            Self::Whole { .. } => names::GENERIC_GPU_RESOURCE.to_owned(),
        }
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unit { gpu, unit } => write!(f, "g{gpu}u{unit}"),
            Self::Whole { gpu } => write!(f, "g{gpu}"),
        }
    }
}

/// A device ID that this plugin never gave out.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no device of this plugin: its devices look like g3u5 (a unit of GPU 3) or g3 (the whole GPU)"
)]
pub struct UnknownDevice(String);

impl FromStr for DeviceId {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let rest = text.strip_prefix('g')?;
            let id = match rest.split_once('u') {
                Some((gpu, unit)) => Self::Unit { gpu: gpu.parse().ok()?, unit: unit.parse().ok()? },
                None => Self::Whole { gpu: rest.parse().ok()? },
            };
            // Only the form that the plugin itself writes: no signs, no leading zeros.
            (id.to_string() == text).then_some(id)
        };
        parse().ok_or_else(|| UnknownDevice(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_they_are_written() {
        for (id, text, resource) in [
            (DeviceId::Unit { gpu: 3, unit: 5 }, "g3u5", "principium.ai/gpu-3"),
            (DeviceId::Unit { gpu: 12, unit: 79 }, "g12u79", "principium.ai/gpu-12"),
            (DeviceId::Unit { gpu: 402, unit: 1 }, "g402u1", "principium.ai/gpu-3-mig-2"),
            (DeviceId::Whole { gpu: 3 }, "g3", "principium.ai/gpu"),
        ] {
            assert_eq!(
                (id.to_string().as_str(), text.parse(), id.resource().as_str()),
                (text, Ok(id), resource)
            );
        }
    }

    #[test]
    fn foreign_ids_are_refused() {
        for text in ["", "g", "g3u", "gu5", "3u5", "g03u5", "g+3", "g3u5u1", "GPU-1234"] {
            assert!(text.parse::<DeviceId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn ids_are_unique_across_all_resources_of_a_node() {
        let ids: std::collections::BTreeSet<_> = (0..64)
            .flat_map(|gpu| {
                (0..80).map(move |unit| DeviceId::Unit { gpu, unit }).chain([DeviceId::Whole { gpu }])
            })
            .map(|id| id.to_string())
            .collect();
        assert_eq!(ids.len(), 64 * 81);
    }
    #[test]
    fn an_xid_is_about_a_gpu_with_all_of_its_parts_or_about_one_part() {
        let gpu = |uuid: &str| Identity { uuid: uuid.into(), ..Identity::default() };
        let part = |gpu_instance| Identity {
            part: Some(Part { of: "GPU-a".into(), gpu_instance, compute_instance: 0 }),
            ..gpu("MIG-x")
        };
        let all = [gpu("GPU-a"), gpu("GPU-b"), part(1), part(2)];
        for (uuid, gpu_instance, expected) in [
            (Some("GPU-a"), None, [true, false, true, true]),
            (Some("GPU-a"), Some(2), [false, false, false, true]),
            (Some("GPU-b"), None, [false, true, false, false]),
            (None, None, [true, true, true, true]),
        ] {
            let xid = Xid { uuid: uuid.map(str::to_owned), gpu_instance, code: 79 };
            assert_eq!(all.each_ref().map(|identity| xid.concerns(identity)), expected, "{xid:?}");
        }
    }
}
