//! Runs the kernels for GPUs on the CPU: they are compiled as C++, with `emulation.h` in the place of the card's instructions.

use std::path::Path;
use std::process::Command;
use std::sync::{LazyLock, Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, Layout, Result, Storage, Tensor};
use libloading::Library;

use super::launch::{Addresses, Attend, Launch, Parameters};

type Kernel = unsafe extern "C" fn(Parameters);

/// One kernel at a time: a block's shared memory is the library's.
static LIBRARY: LazyLock<Mutex<Library>> = LazyLock::new(|| Mutex::new(compile()));

#[allow(unsafe_code, reason = "loads a library")]
fn compile() -> Library {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model/cuda");
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("emulation.so");
    let mut compiler = Command::new("c++");
    compiler.args([
        "-std=c++17",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unknown-pragmas",
        "-fPIC",
        "-shared",
    ]);
    let status = compiler.arg("-o").arg(&library).arg(sources.join("emulation.cpp")).status();
    assert!(status.expect("a C++ compiler").success(), "the kernels don't compile as C++");
    // SAFETY: it does nothing when it is loaded.
    unsafe { Library::new(library) }.unwrap()
}

#[allow(unsafe_code, reason = "calls a kernel")]
fn run(launch: &Launch) {
    let library = LIBRARY.lock().unwrap_or_else(PoisonError::into_inner);
    let Launch { kernel, blocks: [columns, rows], threads, parameters } = launch;
    // SAFETY: these are their signatures in `emulation.cpp` and `attention.cu`, and the parameters hold addresses of tensors that
    // outlive the call.
    unsafe {
        let kernel = library.get::<Kernel>(kernel.as_bytes()).unwrap();
        let emulate = library
            .get::<unsafe extern "C" fn(Kernel, *const Parameters, u32, u32, u32)>(b"emulate")
            .unwrap();
        emulate(*kernel, parameters, *columns, *rows, *threads);
    }
}

impl Attend<'_> {
    /// Of tensors in the memory of the CPU.
    pub(in crate::model) fn emulated(&self, parts: [(&CpuStorage, &Layout); 3]) -> Result<CpuStorage> {
        let (tiles, _) = self.tiles.storage_and_layout();
        let slopes = self.slopes.map(Tensor::storage_and_layout);
        let of_cpu = |storage: &Storage| match storage {
            Storage::Cpu(storage) => address(storage, 0),
            _ => panic!("tensors are those of the CPU"),
        };
        let dtype = parts[0].0.dtype();
        let output = Tensor::zeros(self.outputs(), dtype, &candle_core::Device::Cpu)?;
        let at = Addresses {
            parts: parts.map(|(storage, layout)| address(storage, layout.start_offset())),
            output: of_cpu(&output.storage_and_layout().0),
            tiles: of_cpu(&tiles),
            slopes: slopes.as_ref().map(|(slopes, _)| of_cpu(slopes)),
        };
        run(&self.launch(dtype, parts.map(|(_, layout)| layout), &at)?);
        let (output, _) = output.storage_and_layout();
        match &*output {
            Storage::Cpu(output) => Ok(output.clone()),
            _ => panic!("tensors are those of the CPU"),
        }
    }
}

/// Of the number at `offset`.
fn address(storage: &CpuStorage, offset: usize) -> u64 {
    let (start, size) = match storage {
        CpuStorage::U32(numbers) => (numbers.as_ptr() as u64, 4),
        CpuStorage::F32(numbers) => (numbers.as_ptr() as u64, 4),
        CpuStorage::F16(numbers) => (numbers.as_ptr() as u64, 2),
        CpuStorage::BF16(numbers) => (numbers.as_ptr() as u64, 2),
        other => panic!("no kernel reads {:?}", other.dtype()),
    };
    start + (offset * size) as u64
}
