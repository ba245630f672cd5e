//! The one vocabulary for GPUs that every resource uses in `spec.gpu`, and the arithmetic of memory and units.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Which GPUs a resource wants: either `devices` (exactly those), or `count` (the operator chooses).
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.devices) || !has(self.count)")
        .message("gpu.devices and gpu.count exclude each other: name the exact devices, or let the operator choose a count"),
    validation = Rule::new("!has(self.devices) || !(has(self.memory) || has(self.prefer) || has(self.product) || has(self.maxTemperature) || has(self.strategy))")
        .message("gpu.memory, gpu.prefer, gpu.product, gpu.maxTemperature and gpu.strategy belong to gpu.count; with exact devices set devices[].memory instead")
)]
pub struct GpuRequest {
    /// Exactly these GPUs. A UUID is one card wherever it is. An index is the GPU with this index on any node that `nodeSelector`
    /// allows; to hold it on one node, name that there (`kubernetes.io/hostname`). Heat and failures move no running pod off them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub devices: Option<Vec<GpuDevice>>,

    /// How many GPUs the operator chooses: enough free memory, not withheld, coolest first. Default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 64))]
    pub count: Option<u32>,

    /// GPU memory on each chosen GPU, for example `4Gi`. Absent: the whole GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<GpuMemory>,

    /// GPUs taken first where several fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefer: Option<GpuPreference>,

    /// Only GPUs whose product name contains this text, for example `RTX 3060 Ti`. Upper and lower case are equal.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub product: Option<String>,

    /// Only GPUs below this temperature when they are chosen, in °C.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 20, max = 120))]
    pub max_temperature: Option<u32>,

    /// Where a pod goes among GPUs that are equally wanted and equally cool: to the one with the least memory to spare, so that
    /// whole GPUs stay whole (`Pack`), or to the node, and then the GPU, with the fewest pods of this resource, and then to the
    /// emptiest GPU (`Spread`). Default `Pack`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,

    /// What the operator does about a running pod when its GPU is withheld for heat: it stays, and only new pods are kept away
    /// (`Keep`), or it moves to a cooler GPU (`Migrate`). Running pods with exact devices stay. Default `Keep`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_overheat: Option<OnOverheat>,

    /// What the operator does about a running pod when its GPU fails: it is replaced on another GPU, where the request allows
    /// another (`Replace`), or it stays (`Keep`). Default `Replace`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_unhealthy: Option<OnUnhealthy>,
}

/// Rule on the spec of a resource whose pods each hold all of `gpu.devices`. A pool has one device an instance, and two
/// instances may share a GPU, so it has no such rule.
pub(crate) const DEVICES_ONCE: &str = "!has(self.gpu) || !has(self.gpu.devices) || self.gpu.devices.all(d, \
    self.gpu.devices.exists_one(e, has(d.index) ? has(e.index) && e.index == d.index : has(e.uuid) && e.uuid == d.uuid))";
/// What the API server says where [`DEVICES_ONCE`] does not hold.
pub(crate) const DEVICES_ONCE_MESSAGE: &str =
    "gpu.devices names a GPU twice: name it once, with all the memory that a pod needs of it";

/// One exact GPU, by its index on the node or by its UUID.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.index) != has(self.uuid)")
    .message("a device is named by index or by uuid, exactly one of them"))]
pub struct GpuDevice {
    /// Index on its node, as `GPUNode` lists it. MIG devices have indices from 100 on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 9999))]
    pub index: Option<u32>,

    /// NVML UUID, `GPU-…` or `MIG-…`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^(GPU|MIG)-[0-9A-Za-z-]+$"), length(max = 128))]
    pub uuid: Option<String>,

    /// GPU memory, for example `5Gi`. Absent: the whole GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<GpuMemory>,
}

/// GPUs to take first.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GpuPreference {
    /// Indices, most wanted first.
    #[schemars(length(min = 1, max = 64))]
    pub indices: Vec<u32>,
}

/// Where a pod goes among GPUs that are equally wanted and equally cool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema)]
#[schemars(transform = crate::told_by_its_field)]
pub enum Strategy {
    /// To the GPU with the least memory to spare, so that whole GPUs stay whole.
    #[default]
    Pack,
    /// To the node, and then the GPU, that has the fewest pods of this resource, and then to the emptiest GPU.
    Spread,
}

/// What to do about a running pod on a GPU that is withheld for heat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(transform = crate::told_by_its_field)]
pub enum OnOverheat {
    /// The pod stays; only new pods are kept away.
    #[default]
    Keep,
    /// The pod moves to a cooler GPU. Running pods with exact devices stay.
    Migrate,
}

/// What to do about a running pod on a GPU that fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(transform = crate::told_by_its_field)]
pub enum OnUnhealthy {
    /// The pod is replaced on another GPU, where the request allows another.
    #[default]
    Replace,
    /// The pod stays.
    Keep,
}

/// An amount of GPU memory as a Kubernetes quantity (`5Gi`, `5120Mi`, `8G`), kept as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct GpuMemory {
    text: String,
    mib: u64,
}

impl GpuMemory {
    /// The amount in MiB, rounded up.
    #[must_use]
    pub fn mib(&self) -> u64 {
        self.mib
    }

    /// The amount in units of 1 GiB, rounded up: what a pod asks the scheduler for.
    #[must_use]
    pub fn units(&self) -> u32 {
        u32::try_from(self.mib.div_ceil(MIB_PER_UNIT)).unwrap_or(u32::MAX)
    }
}

/// MiB in one unit of a `principium.ai/gpu-<index>` resource.
pub const MIB_PER_UNIT: u64 = 1024;

/// Units of a GPU with this much memory in MiB: the nearest GiB, at least one (8188 MiB is 8).
#[must_use]
pub fn units_of_total(total_mib: u64) -> u32 {
    u32::try_from(((total_mib + MIB_PER_UNIT / 2) / MIB_PER_UNIT).max(1)).unwrap_or(u32::MAX)
}

/// Why a text is no amount of GPU memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an amount of GPU memory: write a whole number and a unit, for example 5Gi or 5120Mi")]
pub struct GpuMemoryError(String);

impl FromStr for GpuMemory {
    type Err = GpuMemoryError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || GpuMemoryError(text.to_owned());
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, suffix) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| error())?;
        let bytes_per: u64 = match suffix {
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            "Ti" => 1 << 40,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            "T" => 1_000_000_000_000,
            _ => return Err(error()),
        };
        let mib = number.checked_mul(bytes_per).ok_or_else(error)?.div_ceil(1 << 20);
        if mib == 0 {
            return Err(error());
        }
        Ok(Self { text: text.to_owned(), mib })
    }
}

impl TryFrom<String> for GpuMemory {
    type Error = GpuMemoryError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<GpuMemory> for String {
    fn from(memory: GpuMemory) -> Self {
        memory.text
    }
}

impl fmt::Display for GpuMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl JsonSchema for GpuMemory {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "GpuMemory".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "maxLength": 16,
            "x-kubernetes-validations": [{
                "rule": "self.matches('^[1-9][0-9]{0,8}(Mi|Gi|Ti|M|G|T)$')",
                "message": "an amount of GPU memory is a whole number and a unit, for example 5Gi or 5120Mi"
            }]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_every_unit_and_rounded_up() {
        for (text, mib, units) in
            [("5Gi", 5120, 5), ("5120Mi", 5120, 5), ("1Mi", 1, 1), ("8G", 7630, 8), ("1Ti", 1_048_576, 1024)]
        {
            let memory: GpuMemory = text.parse().unwrap();
            assert_eq!((memory.mib(), memory.units(), memory.to_string().as_str()), (mib, units, text));
        }
    }

    #[test]
    fn what_is_no_memory_is_refused_with_the_text_and_a_right_example() {
        for text in ["", "5", "Gi", "-1Gi", "0Gi", "5GB", "1.5Gi", "99999999999999Ti"] {
            let error = text.parse::<GpuMemory>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")) && error.contains("5Gi"), "{error}");
        }
    }

    #[test]
    fn a_card_has_the_units_of_the_nearest_gib() {
        for (mib, units) in [(8192, 8), (8188, 8), (24564, 24), (81559, 80), (100, 1)] {
            assert_eq!(units_of_total(mib), units, "{mib} MiB");
        }
    }
}
