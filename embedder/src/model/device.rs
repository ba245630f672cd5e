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

/// A CUDA device as its driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// The driver's name for it.
    pub uuid: String,
    /// All its memory, in MiB.
    pub memory_mib: u64,
}

/// The CUDA devices that this process sees, by ordinal; none without the feature `cuda` or without a driver. Each is asked as it
/// is taken, and one that can't be asked ends the list.
pub fn visible() -> impl Iterator<Item = Card> {
    #[cfg(feature = "cuda")]
    {
        use candle_core::cuda_backend::cudarc::driver::{CudaContext, DriverError};

        let card = |ordinal| -> Result<Card, DriverError> {
            let context = CudaContext::new(ordinal)?;
            // Signed on some machines.
            let bytes = context.uuid()?.bytes.map(|byte| byte.to_ne_bytes()[0]);
            Ok(Card { uuid: uuid(bytes), memory_mib: context.total_mem()? as u64 >> 20 })
        };
        let count = CudaContext::device_count().ok().and_then(|count| usize::try_from(count).ok());
        let cards = (0..count.unwrap_or_default()).map(card);
        cards.map_while(|card| card.inspect_err(|error| tracing::warn!(%error, "a GPU can't be asked")).ok())
    }
    #[cfg(not(feature = "cuda"))]
    std::iter::empty()
}

/// As NVML writes it.
#[cfg(any(feature = "cuda", test))]
fn uuid(bytes: [u8; 16]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
    format!("GPU-{}", parts.join("-"))
}

/// candle's device; the CPU where no accelerator is meant.
pub(super) fn open(accelerator: Option<&Accelerator>) -> Result<Device, ModelError> {
    let Some(accelerator) = accelerator else { return Ok(Device::Cpu) };
    Device::new_cuda(accelerator.ordinal).map_err(|source| ModelError::Tensor {
        doing: format!("opening {}", name(Some(accelerator))),
        source,
    })
}

/// Whether the kernels of this crate compute on `device`: those are for the CPU. On any other device candle's functions do it.
pub(super) fn has_own_kernels(device: &Device) -> bool {
    #[cfg(test)]
    if tests::GENERAL.get() {
        return false;
    }
    device.is_cpu()
}

/// Whether a GPU computes in bf16: tensor cores, and the kernels, do from compute capability 8.0 on.
pub(super) fn computes_bf16(device: &Device) -> Result<bool, ModelError> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(card) = device {
        let capability = card.cuda_stream().context().compute_capability();
        let (major, _) = capability.map_err(|error| ModelError::Tensor {
            doing: "asking for the compute capability of a GPU".to_owned(),
            source: candle_core::Error::wrap(error),
        })?;
        return Ok(major >= 8);
    }
    Ok(!has_own_kernels(device))
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

#[cfg(test)]
pub(super) mod tests {
    use std::cell::Cell;

    thread_local! {
        pub(super) static GENERAL: Cell<bool> = const { Cell::new(false) };
    }

    /// What `compute` makes on this thread with the functions for any device, which is what a GPU would do.
    pub(in crate::model) fn generally<T>(compute: impl FnOnce() -> T) -> T {
        GENERAL.set(true);
        let made = compute();
        GENERAL.set(false);
        made
    }

    #[test]
    fn a_uuid_is_written_as_nvml_does() {
        let bytes = [0, 0x1f, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0xff];
        assert_eq!(super::uuid(bytes), "GPU-001f0203-0405-0607-0809-0a0b0c0d0eff");
    }
}
