//! Starts the kernels on a card.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, DevicePtr, DevicePtrMut, DeviceRepr, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::{CudaDType, CudaStorageSlice, WrapErr};
use candle_core::{CudaDevice, CudaStorage, DType, Layout, Result, Storage};

use super::launch::{Addresses, Attend, Parameters};

/// `attention.cu`, compiled for the capability that the program is built for.
const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/attention.ptx"));

// SAFETY: it is laid out as in C, and numbers of any values are right.
#[allow(unsafe_code, reason = "CUDA copies the bytes")]
unsafe impl DeviceRepr for Parameters {}

impl Attend<'_> {
    /// Of tensors in the memory of one card.
    pub(in crate::model) fn run(&self, parts: [(&CudaStorage, &Layout); 3]) -> Result<CudaStorage> {
        let [(queries, a), (keys, b), (values, c)] = parts;
        let device = queries.device();
        let layouts = [a, b, c];
        match (&queries.slice, &keys.slice, &values.slice) {
            (CudaStorageSlice::F32(q), CudaStorageSlice::F32(k), CudaStorageSlice::F32(v)) => {
                self.start(device, DType::F32, [q, k, v], layouts)
            }
            (CudaStorageSlice::F16(q), CudaStorageSlice::F16(k), CudaStorageSlice::F16(v)) => {
                self.start(device, DType::F16, [q, k, v], layouts)
            }
            (CudaStorageSlice::BF16(q), CudaStorageSlice::BF16(k), CudaStorageSlice::BF16(v)) => {
                self.start(device, DType::BF16, [q, k, v], layouts)
            }
            _ => candle_core::bail!(
                "attention on a GPU is for f32, f16 and bf16, not for {:?}, {:?} and {:?}",
                queries.dtype(),
                keys.dtype(),
                values.dtype()
            ),
        }
    }

    #[allow(unsafe_code, reason = "a kernel is given addresses")]
    fn start<T: CudaDType + DeviceRepr>(
        &self,
        device: &CudaDevice,
        dtype: DType,
        parts: [&CudaSlice<T>; 3],
        layouts: [&Layout; 3],
    ) -> Result<CudaStorage> {
        let stream = device.cuda_stream();
        // SAFETY: the kernel writes every head of every token before anything reads it.
        let mut output = unsafe { device.alloc::<T>(self.outputs())? };
        // Each pointer comes with a guard, which tells the stream of its use when it is dropped: after the start.
        let pointers = parts.map(|part| part.device_ptr(&stream));
        let (to, to_guard) = output.device_ptr_mut(&stream);
        let tiles = self.tiles.storage_and_layout().0;
        let (tiles, tiles_guard) = slice::<u32>(&tiles)?.device_ptr(&stream);
        let slopes = self.slopes.map(|slopes| slopes.storage_and_layout().0);
        let slopes = slopes.as_deref().map(slice::<f32>).transpose()?;
        let slopes = slopes.map(|slopes| slopes.device_ptr(&stream));
        let mut at =
            Addresses { parts: [0; 3], output: to, tiles, slopes: slopes.as_ref().map(|(at, _)| *at) };
        for ((address, (start, _)), layout) in at.parts.iter_mut().zip(&pointers).zip(layouts) {
            *address = start + (layout.start_offset() * size_of::<T>()) as u64;
        }
        let launch = self.launch(dtype, layouts, &at)?;
        let kernel = device.get_or_load_custom_func(&launch.kernel, "attention", PTX)?;
        let [columns, rows] = launch.blocks;
        let config = LaunchConfig {
            grid_dim: (columns, rows, 1),
            block_dim: (launch.threads, 1, 1),
            shared_mem_bytes: 0,
        };
        let mut builder = kernel.builder();
        builder.arg(&launch.parameters);
        // SAFETY: the kernel takes these parameters; the tensors have the rows that the tiles name, and are on this card.
        unsafe { builder.launch(config) }.w()?;
        drop((pointers, to_guard, tiles_guard, slopes));
        Ok(CudaStorage::wrap_cuda_slice(output, device.clone()))
    }
}

fn slice<T: CudaDType>(storage: &Storage) -> Result<&CudaSlice<T>> {
    match storage {
        Storage::Cuda(storage) => storage.as_cuda_slice(),
        other => candle_core::bail!("attention on a GPU reads nothing from {:?}", other.device()),
    }
}
