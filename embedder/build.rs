//! Compiles the kernels for GPUs, where the feature `cuda` asks for them.

#[cfg(feature = "cuda")]
fn main() -> cudaforge::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    cudaforge::KernelBuilder::new()
        .source_files(["src/model/cuda/attention.cu"])
        .watch(["src/model/cuda/device.cuh"])
        .args(["-std=c++17", "-O3"])
        .build_ptx()?;
    Ok(())
}

#[cfg(not(feature = "cuda"))]
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
