//! Which devices this process computes on. Knows candle's devices, not who asked for them.

use candle_core::Device;

use super::ModelError;

/// One CUDA device that this process may use, by the position that the driver gives it inside the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accelerator {
    /// CUDA ordinal: `CUDA_VISIBLE_DEVICES` decides which card it is.
    pub ordinal: usize,
}

/// Whether this binary was built with CUDA kernels.
pub fn cuda_compiled() -> bool {
    candle_core::utils::cuda_is_available()
}

/// The first `wanted` CUDA devices that can be opened; the error of the first that can't, as text.
pub fn accelerators(wanted: usize) -> (Vec<Accelerator>, Option<String>) {
    if !cuda_compiled() {
        let reason = (wanted > 0).then(|| "this binary was built without the feature `cuda`".to_owned());
        return (Vec::new(), reason);
    }
    let mut found = Vec::new();
    for ordinal in 0..wanted {
        let accelerator = Accelerator { ordinal };
        match open(Some(&accelerator)) {
            Ok(_) => found.push(accelerator),
            Err(error) => return (found, Some(error.to_string())),
        }
    }
    (found, None)
}

/// candle's device; the CPU where no accelerator is meant.
pub(super) fn open(accelerator: Option<&Accelerator>) -> Result<Device, ModelError> {
    let Some(accelerator) = accelerator else { return Ok(Device::Cpu) };
    Device::new_cuda(accelerator.ordinal).map_err(|source| ModelError::Tensor {
        doing: format!("opening {}", name(Some(accelerator))),
        source,
    })
}

/// Threads for the kernels, as many as there are cores where no number is given.
pub(super) fn cores(count: Option<usize>) -> Result<rayon::ThreadPool, ModelError> {
    let builder = rayon::ThreadPoolBuilder::new().thread_name(|index| format!("core-{index}"));
    builder.num_threads(count.unwrap_or(0)).build().map_err(ModelError::Threads)
}

/// `cpu` or `cuda:<ordinal>`.
pub(super) fn name(accelerator: Option<&Accelerator>) -> String {
    accelerator.map_or_else(|| "cpu".to_owned(), |it| format!("cuda:{}", it.ordinal))
}
