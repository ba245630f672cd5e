//! Labels of the Node that say what GPUs it has, for the node selectors of people's own pods. Pure.

use principium_api::gpu_node::{Gpu, GpuNodeStatus, Health};
use principium_api::names::{
    NODE_LABEL_CUDA_VERSION, NODE_LABEL_DRIVER_VERSION, NODE_LABEL_GPU_COUNT, NODE_LABEL_GPU_MEMORY,
    NODE_LABEL_GPU_PRODUCT,
};
use std::collections::BTreeMap;

/// Longest value of a label.
const LONGEST: usize = 63;

/// The labels of a node with this status; none where there never was a GPU. Product and memory are told where all GPUs
/// agree.
#[must_use]
pub fn labels(status: &GpuNodeStatus) -> BTreeMap<&'static str, String> {
    // MIG devices are parts of these.
    let gpus: Vec<&Gpu> = status.gpus.iter().filter(|gpu| gpu.mig.is_none()).collect();
    if gpus.is_empty() {
        return BTreeMap::new();
    }
    let count = gpus.iter().filter(|gpu| gpu.health != Health::Lost).count();
    let product = common(&gpus, |gpu| gpu.product.as_str()).map(value);
    let memory = common(&gpus, |gpu| gpu.memory.total).map(|mib| mib.to_string());
    [
        (NODE_LABEL_GPU_COUNT, Some(count.to_string())),
        (NODE_LABEL_GPU_PRODUCT, product),
        (NODE_LABEL_GPU_MEMORY, memory),
        (NODE_LABEL_DRIVER_VERSION, status.driver_version.as_deref().map(value)),
        (NODE_LABEL_CUDA_VERSION, status.cuda_version.as_deref().map(value)),
    ]
    .into_iter()
    .filter_map(|(label, value)| Some((label, value.filter(|value| !value.is_empty())?)))
    .collect()
}

/// What all have in common.
fn common<'gpus, T: PartialEq>(gpus: &[&'gpus Gpu], of: impl Fn(&'gpus Gpu) -> T) -> Option<T> {
    let mut values = gpus.iter().copied().map(of);
    let first = values.next()?;
    values.all(|value| value == first).then_some(first)
}

/// A text as the value of a label: letters, digits, `-`, `_` and `.`, at most 63, a letter or digit at both ends.
fn value(text: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let text: String = text.chars().map(allowed).take(LONGEST).collect();
    text.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use principium_api::gpu_node::{GpuMemoryStatus, MigDevice};

    fn gpu(product: &str, total: u64) -> Gpu {
        Gpu {
            product: product.into(),
            memory: GpuMemoryStatus { total, ..GpuMemoryStatus::default() },
            ..Gpu::default()
        }
    }

    fn node(gpus: Vec<Gpu>) -> GpuNodeStatus {
        GpuNodeStatus {
            driver_version: Some("580.82.07".into()),
            cuda_version: Some("13.0".into()),
            gpus,
            ..GpuNodeStatus::default()
        }
    }

    #[test]
    fn a_node_says_what_it_has() {
        let lost = Gpu { health: Health::Lost, ..gpu("NVIDIA GeForce RTX 3060 Ti", 8192) };
        let part =
            Gpu { mig: Some(MigDevice::default()), ..gpu("NVIDIA GeForce RTX 3060 Ti MIG 1g.2gb", 2048) };
        let labels = labels(&node(vec![gpu("NVIDIA GeForce RTX 3060 Ti", 8192), lost, part]));
        let expected = [
            ("principium.ai/cuda-version", "13.0"),
            ("principium.ai/driver-version", "580.82.07"),
            ("principium.ai/gpu-count", "1"),
            ("principium.ai/gpu-memory", "8192"),
            ("principium.ai/gpu-product", "NVIDIA-GeForce-RTX-3060-Ti"),
        ];
        assert_eq!(labels, expected.map(|(label, value)| (label, value.to_owned())).into());
    }

    #[test]
    fn what_differs_is_not_told_and_a_node_without_gpus_has_no_labels() {
        let mixed = labels(&node(vec![gpu("A", 8192), gpu("B", 8192)]));
        assert!(!mixed.contains_key(NODE_LABEL_GPU_PRODUCT));
        assert_eq!(mixed.get(NODE_LABEL_GPU_MEMORY).map(String::as_str), Some("8192"));
        assert!(labels(&node(Vec::new())).is_empty());
    }

    #[test]
    fn every_product_makes_a_value_that_the_api_server_takes() {
        for (product, expected) in [
            ("NVIDIA RTX™ 6000 (Ada)", "NVIDIA-RTX--6000--Ada"),
            ("  ", ""),
            (&"x".repeat(80), &"x".repeat(63)),
        ] {
            assert_eq!(value(product), expected);
        }
    }
}
