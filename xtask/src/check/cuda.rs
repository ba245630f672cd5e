//! Whether the embedder compiles for CUDA, candle's kernels and its own included, on a machine that has neither a card nor NVIDIA's
//! toolkit: the compiler comes from its Python packages, of the versions that the image is built with.
//!
//! That takes a quarter of an hour on two cores. It is done where something that the outcome depends on has changed since it
//! last went well: the digest of that is kept in the repository.

use super::digest::{digits, embedder, is_unchanged, keep, read};
use anyhow::{Context, Result, ensure};
use principium_local_cluster::progress::step;
use principium_local_cluster::{Cache, python};
use sha2::Digest;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The digest of the sources that were last seen to compile.
const VERIFIED: &str = "testing/cuda/verified";
/// What runs on a card; it is compiled, too.
const TESTS: &str = "embedder/tests/cuda.rs";
const CONTAINERFILE: &str = "images/Containerfile";
/// The embedder's own kernels.
const KERNELS: &str = "embedder/src/model/cuda";
const BUILD: &str = "embedder/build.rs";
/// Of the cards that the image can be built for.
const CAPABILITIES: [&str; 5] = ["75", "80", "86", "89", "90"];
/// The one that everything is compiled for.
const CAPABILITY: &str = "86";

/// Compiles it, unless nothing has changed.
pub fn check(cache: &Cache) -> Result<()> {
    let containerfile = read(Path::new(CONTAINERFILE))?;
    let packages: Vec<&str> = containerfile
        .split_whitespace()
        .filter(|word| word.starts_with("nvidia-") && word.contains("=="))
        .collect();
    ensure!(!packages.is_empty(), "{CONTAINERFILE} names no Python packages of NVIDIA");
    let mut hasher = embedder("feature = \"cuda\"", &["candle", "cudarc"])?;
    hasher.update(packages.join(" "));
    let tests = read(Path::new(TESTS))?;
    for file in included(&tests) {
        hasher.update(read(&Path::new(TESTS).with_file_name(file))?);
    }
    hasher.update(tests);
    for file in kernels()? {
        hasher.update(read(&file)?);
    }
    hasher.update(read(Path::new(BUILD))?);
    let digest = digits(hasher);
    if is_unchanged(VERIFIED, &digest) {
        println!("    CUDA: unchanged since the embedder was last seen to compile for it");
        return Ok(());
    }
    let python = step("CUDA: NVIDIA's compiler", || python::environment(cache.root(), "cuda", &packages))?;
    let toolkit = toolkit(&python)?;
    step("CUDA: the embedder's kernels for each capability", || assemble(&toolkit))?;
    let path = std::env::var("PATH").unwrap_or_default();
    let mut cargo = crate::cargo();
    cargo.args([
        "check",
        "--package",
        "principium-embedder",
        "--features",
        "cuda",
        "--lib",
        "--bins",
        "--test",
        "cuda",
    ]);
    cargo.arg("--target-dir").arg(crate::target().join("cuda"));
    cargo.env("CUDA_HOME", &toolkit).env("CUDA_PATH", &toolkit).env("NVCC_CCBIN", "g++");
    cargo.env("CUDA_COMPUTE_CAP", CAPABILITY);
    cargo.env("PATH", format!("{}:{path}", toolkit.join("bin").display()));
    crate::run(&mut cargo).context("the embedder does not compile for CUDA")?;
    keep(VERIFIED, &digest)
}

/// What the kernels are made of, with what starts them on a card.
fn kernels() -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(crate::root().join(KERNELS)).with_context(|| format!("reading {KERNELS}"))?;
    let names = entries.flatten().map(|entry| entry.file_name());
    let for_cards = names.filter(|name| !name.to_string_lossy().starts_with("emulation."));
    let mut files: Vec<PathBuf> = for_cards.map(|name| Path::new(KERNELS).join(name)).collect();
    files.sort();
    Ok(files)
}

/// Compiles the kernels to machine code, of every capability; a program contains them in a form that the driver compiles.
fn assemble(toolkit: &Path) -> Result<()> {
    let folder = crate::target().join("cuda/kernels");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    for capability in CAPABILITIES {
        let mut nvcc = Command::new(toolkit.join("bin/nvcc"));
        nvcc.args([
            "-ccbin",
            "g++",
            "-std=c++17",
            "-O3",
            "-cubin",
            "-arch",
            &format!("sm_{capability}"),
            "-o",
        ]);
        nvcc.arg(folder.join(capability)).arg(crate::root().join(KERNELS).join("attention.cu"));
        crate::run(&mut nvcc)
            .with_context(|| format!("the kernels don't compile for compute capability {capability}"))?;
    }
    Ok(())
}

/// The files that a source has for modules, as it names them.
fn included(source: &str) -> impl Iterator<Item = &str> {
    source.lines().filter_map(|line| line.trim().strip_prefix("#[path = \"")?.strip_suffix("\"]"))
}

/// The folder that a toolkit would be installed in.
fn toolkit(python: &Path) -> Result<PathBuf> {
    let lib = python.ancestors().nth(2).context("an environment of Python")?.join("lib");
    let versions = fs::read_dir(&lib).with_context(|| format!("reading {}", lib.display()))?;
    let mut found = versions.flatten().map(|version| version.path().join("site-packages/nvidia/cu13"));
    found.find(|folder| folder.join("bin/nvcc").is_file()).context("NVIDIA's packages have no nvcc")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_tests_on_a_card_include_is_found() {
        let tests = read(Path::new(TESTS)).unwrap();
        assert_eq!(included(&tests).collect::<Vec<_>>(), ["api/fixture.rs", "api/server.rs"]);
    }

    #[test]
    fn the_kernels_are_found_without_what_runs_them_on_the_cpu() {
        let files = kernels().unwrap();
        let names: Vec<_> = files.iter().filter_map(|file| file.file_name()?.to_str()).collect();
        assert_eq!(names, ["attention.cu", "card.rs", "device.cuh", "mod.rs"]);
    }
}
