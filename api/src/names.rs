//! Names that the operator, the device plugin and the chart must agree on: resources, labels, annotations, ports.

/// The API group of all kinds.
pub const GROUP: &str = "principium.ai";

/// Extended resource of whole GPUs from the generic pool, any of them.
pub const GENERIC_GPU_RESOURCE: &str = "principium.ai/gpu";

/// Extended resource of the GPU with this index on its node; one unit is 1 GiB of the GPU's memory. The name of a MIG
/// device's resource shows the GPU that it is a part of: `principium.ai/gpu-3-mig-0`.
#[must_use]
pub fn gpu_resource(index: u32) -> String {
    match mig_place(index) {
        None => format!("{GENERIC_GPU_RESOURCE}-{index}"),
        Some((parent, number)) => format!("{GENERIC_GPU_RESOURCE}-{parent}-mig-{number}"),
    }
}

/// The index in a resource name made by [`gpu_resource`]; `None` for every other resource.
#[must_use]
pub fn gpu_index(resource: &str) -> Option<u32> {
    let name = resource.strip_prefix("principium.ai/gpu-")?;
    let index = match name.split_once("-mig-") {
        None => name.parse().ok()?,
        Some((parent, number)) => mig_index(parent.parse().ok()?, number.parse().ok()?)?,
    };
    (gpu_resource(index) == resource).then_some(index)
}

/// Indices below this one are GPUs; from it on, each GPU's MIG devices have a hundred of their own.
const FIRST_MIG_INDEX: u32 = 100;

/// Index of a MIG device: the GPU that it is a part of, and its number on that. MIG device 2 of GPU 3 has the index 402.
#[must_use]
pub fn mig_index(parent: u32, number: u32) -> Option<u32> {
    (parent < FIRST_MIG_INDEX && number < FIRST_MIG_INDEX).then_some((parent + 1) * FIRST_MIG_INDEX + number)
}

/// Index of the GPU that a MIG device is a part of, and its number on that; `None` for an index of a GPU.
#[must_use]
pub fn mig_place(index: u32) -> Option<(u32, u32)> {
    Some(((index / FIRST_MIG_INDEX).checked_sub(1)?, index % FIRST_MIG_INDEX))
}

/// Label on every child: the kind of the resource that owns it, in lower case (`ollamapool`).
pub const LABEL_KIND: &str = "principium.ai/kind";
/// Label on every child: the name of the resource that owns it.
pub const LABEL_NAME: &str = "principium.ai/name";
/// Label on a pod: its ordinal within the resource, from 0.
pub const LABEL_ORDINAL: &str = "principium.ai/ordinal";
/// Label on a pod: what it does within the resource (`worker`, `analyzer`, `puller`).
pub const LABEL_ROLE: &str = "principium.ai/role";
/// Standard label that marks the operator's own objects.
pub const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`LABEL_MANAGED_BY`].
pub const MANAGED_BY: &str = "principium-operator";

/// Label of a Node: number of GPUs that are there.
pub const NODE_LABEL_GPU_COUNT: &str = "principium.ai/gpu-count";
/// Label of a Node: product of its GPUs, where they agree.
pub const NODE_LABEL_GPU_PRODUCT: &str = "principium.ai/gpu-product";
/// Label of a Node: memory in MiB of each of its GPUs, where they agree.
pub const NODE_LABEL_GPU_MEMORY: &str = "principium.ai/gpu-memory";
/// Label of a Node: version of the NVIDIA driver.
pub const NODE_LABEL_DRIVER_VERSION: &str = "principium.ai/driver-version";
/// Label of a Node: newest CUDA version that the driver supports.
pub const NODE_LABEL_CUDA_VERSION: &str = "principium.ai/cuda-version";

/// Default port of a DataFactory.
pub const DATA_FACTORY_PORT: u16 = 9000;
/// Default port of a DataFactory's doc analyzer.
pub const DOC_ANALYZER_PORT: u16 = 9100;
/// Default port of a Reranker.
pub const RERANKER_PORT: u16 = 9200;
/// Port on which Ollama listens inside its pod, and the first host port of a pool that asks for host ports.
pub const OLLAMA_PORT: u16 = 11434;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_is_read_as_it_is_written() {
        for (index, resource) in [
            (0, "principium.ai/gpu-0"),
            (63, "principium.ai/gpu-63"),
            (100, "principium.ai/gpu-0-mig-0"),
            (402, "principium.ai/gpu-3-mig-2"),
        ] {
            assert_eq!((gpu_resource(index).as_str(), gpu_index(resource)), (resource, Some(index)));
        }
        for other in
            ["principium.ai/gpu", "principium.ai/gpu-", "principium.ai/gpu-100", "principium.ai/gpu-+1"]
        {
            assert_eq!(gpu_index(other), None, "{other}");
        }
    }

    #[test]
    fn a_mig_devices_index_says_where_it_is() {
        assert_eq!((mig_index(3, 2), mig_place(402), mig_place(99)), (Some(402), Some((3, 2)), None));
        assert_eq!((mig_index(100, 0), mig_index(0, 100)), (None, None));
    }
}
