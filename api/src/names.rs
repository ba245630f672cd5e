//! Names that the operator, the device plugin and the chart must agree on: resources, labels, annotations, ports.

/// The API group of all kinds.
pub const GROUP: &str = "principium.ai";

/// Extended resource of whole GPUs from the generic pool, any of them.
pub const GENERIC_GPU_RESOURCE: &str = "principium.ai/gpu";

/// Extended resource of the GPU with this index on its node; one unit is 1 GiB of the GPU's memory.
#[must_use]
pub fn gpu_resource(index: u32) -> String {
    format!("{GENERIC_GPU_RESOURCE}-{index}")
}

/// The index in a resource name made by [`gpu_resource`]; `None` for every other resource.
#[must_use]
pub fn gpu_index(resource: &str) -> Option<u32> {
    resource.strip_prefix("principium.ai/gpu-")?.parse().ok()
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
