//! The programs that the cluster consists of: Debian packages, and Go and Rust programs built once from source.

use crate::cache::Cache;
use crate::command::{cargo, run, succeeds};
use crate::progress::step;
use crate::versions::{GoTool, Versions};
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Where each program lies.
#[derive(Clone, Debug)]
pub struct Tools {
    cache: Cache,
    folders: Vec<PathBuf>,
}

/// Go programs that a cluster needs.
const CLUSTER: [&str; 6] = ["kubernetes", "etcd", "containerd", "cni-plugins", "coredns", "helm"];
/// One more, most of which is C++.
const OLLAMA: &str = "ollama";

impl Tools {
    /// Installs and builds whatever is missing for a cluster.
    ///
    /// # Errors
    /// When a package can't be installed or a program can't be built; the error ends with the compiler's words.
    pub fn ensure(cache: &Cache) -> Result<Self> {
        let versions = Versions::pinned()?;
        install_packages()?;
        let _lock = cache.lock()?;
        let build = |name: &&str| ensure_go(cache, name, versions.go(name)?);
        // The C++ compiler keeps one core busy for minutes, so it has company from the start.
        let (ollama, others) = thread::scope(|scope| {
            let ollama = scope.spawn(|| build(&OLLAMA));
            let others = CLUSTER.iter().map(build).collect::<Result<Vec<PathBuf>>>();
            (ollama.join().unwrap_or_else(|_| bail!("what builds {OLLAMA} has panicked")), others)
        });
        let mut folders = others?;
        folders.push(ollama?);
        Ok(Self { cache: cache.clone(), folders })
    }

    /// What was built before, without building anything.
    ///
    /// # Errors
    /// When something is missing.
    pub fn existing(cache: &Cache) -> Result<Self> {
        let versions = Versions::pinned()?;
        let mut folders = Vec::new();
        for name in CLUSTER.into_iter().chain([OLLAMA]) {
            let folder = cache.tool(name, &versions.go(name)?.version).join("bin");
            if !folder.is_dir() {
                bail!("{name} is not built yet: `cargo xtask cluster up` builds it");
            }
            folders.push(folder);
        }
        Ok(Self { cache: cache.clone(), folders })
    }

    /// The program of this name.
    ///
    /// # Errors
    /// When no tool has one.
    pub fn path(&self, program: &str) -> Result<PathBuf> {
        let found = self.folders.iter().map(|folder| folder.join(program)).find(|path| path.is_file());
        found.with_context(|| format!("no tool in {} has a program {program}", self.cache.root().display()))
    }

    /// A command that runs one of the programs.
    ///
    /// # Errors
    /// When no tool has it.
    pub fn command(&self, program: &str) -> Result<Command> {
        Ok(Command::new(self.path(program)?))
    }

    /// The folder of the CNI plugins.
    ///
    /// # Errors
    /// When they are not built.
    pub fn cni_folder(&self) -> Result<PathBuf> {
        Ok(self.path("bridge")?.parent().map(Path::to_path_buf).unwrap_or_default())
    }

    /// All folders with programs, for `PATH`.
    #[must_use]
    pub fn search_path(&self) -> String {
        let system = std::env::var("PATH").unwrap_or_default();
        let ours = self.folders.iter().map(|folder| folder.display().to_string());
        ours.chain(["/usr/sbin".into(), "/sbin".into(), system]).collect::<Vec<_>>().join(":")
    }
}

/// A Go program that only some commands need, for example `kubeconform`.
///
/// # Errors
/// When it can't be built.
pub fn ensure_extra(cache: &Cache, name: &str) -> Result<PathBuf> {
    let versions = Versions::pinned()?;
    let _lock = cache.lock()?;
    ensure_go(cache, name, versions.go(name)?)
}

/// The folder of a Go program that [`ensure_extra`] would not have to build.
///
/// # Errors
/// When there is no such program, or its recipe can't be read.
pub fn existing_extra(cache: &Cache, name: &str) -> Result<Option<PathBuf>> {
    let versions = Versions::pinned()?;
    let tool = versions.go(name)?;
    let folder = cache.tool(name, &tool.version);
    Ok(is_current(&folder, &recipe(tool)?).then(|| folder.join("bin")))
}

/// All that a Go program is built from, versions included: another text is another program.
///
/// # Errors
/// When there is no such program, or a file that it is built from can't be read.
pub fn extra_recipe(name: &str) -> Result<String> {
    recipe(Versions::pinned()?.go(name)?)
}

/// Folders with CustomResourceDefinitions of other projects, from their Go modules.
///
/// # Errors
/// When a module can't be downloaded.
pub fn crd_folders() -> Result<Vec<PathBuf>> {
    let versions = Versions::pinned()?;
    versions.crds.iter().map(|(module, folder)| Ok(download(module)?.join(folder))).collect()
}

/// The OpenAPI document of the cluster's Kubernetes, from its Go module.
///
/// # Errors
/// When the module can't be downloaded.
pub fn kubernetes_openapi() -> Result<PathBuf> {
    let versions = Versions::pinned()?;
    let kubernetes = versions.go("kubernetes")?;
    let folder = download(&format!("{}@{}", kubernetes.module, kubernetes.version))?;
    Ok(folder.join("api/openapi-spec/swagger.json"))
}

/// A program from crates.io, built once; returns the folder of its binary.
///
/// # Errors
/// When it can't be built.
pub fn ensure_cargo(cache: &Cache, name: &str) -> Result<PathBuf> {
    let versions = Versions::pinned()?;
    let version =
        &versions.cargo.get(name).with_context(|| format!("versions.toml has no [cargo.{name}]"))?.version;
    let _lock = cache.lock()?;
    let folder = cache.tool(name, version);
    once(&folder, version, &format!("building {name} {version}"), |temporary| {
        // The workspace's own settings must not reach a foreign program's build.
        let mut command = cargo(cache.root());
        command.env_remove("RUSTFLAGS").env_remove("CARGO_TARGET_DIR");
        // Unoptimized: such a tool runs for seconds, and optimizing it takes minutes.
        command.args(["install", "--debug", "--locked", "--quiet", "--version", version, name, "--root"]);
        command.arg(temporary);
        run(&mut command).map(drop)
    })?;
    Ok(folder.join("bin"))
}

/// Installs the Debian packages that are missing.
///
/// # Errors
/// When apt-get fails.
pub fn install_packages() -> Result<()> {
    install_debian(&Versions::pinned()?.debian)
}

/// Installs the Debian packages that are missing and that only the tests need.
///
/// # Errors
/// When apt-get fails.
pub fn install_test_packages() -> Result<()> {
    install_debian(&Versions::pinned()?.debian_tests)
}

/// Installs the Debian packages that are missing and that compile C for 64-bit Arm.
///
/// # Errors
/// When apt-get fails.
pub fn install_cross_compiler() -> Result<()> {
    install_debian(&Versions::pinned()?.debian_cross)
}

fn install_debian(packages: &[String]) -> Result<()> {
    /// One at a time: apt-get does not wait for another.
    static APT: Mutex<()> = Mutex::new(());
    let _one = APT.lock().unwrap_or_else(PoisonError::into_inner);
    let missing: Vec<&String> = packages
        .iter()
        .filter(|package| {
            let query = Command::new("dpkg-query").args(["-W", "-f=${Status}", package]).output();
            !query.is_ok_and(|output| String::from_utf8_lossy(&output.stdout) == "install ok installed")
        })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !succeeds(Command::new("apt-get").arg("--version")) {
        let names: Vec<&str> = missing.iter().map(|name| name.as_str()).collect();
        bail!(
            "this machine has no apt-get: install what these Debian packages hold by hand: {}",
            names.join(" ")
        );
    }
    step(&format!("installing {} Debian packages", missing.len()), || {
        let apt = || {
            let mut command = Command::new("apt-get");
            command.env("DEBIAN_FRONTEND", "noninteractive");
            command
        };
        run(apt().args(["update", "-qq"]))?;
        run(apt().args(["install", "-qq", "--no-install-recommends"]).args(missing)).map(drop)
    })
}

fn ensure_go(cache: &Cache, name: &str, tool: &GoTool) -> Result<PathBuf> {
    let folder = cache.tool(name, &tool.version);
    once(&folder, &recipe(tool)?, &format!("building {name} {}", tool.version), |temporary| {
        build_go(tool, temporary)
    })?;
    Ok(folder.join("bin"))
}

fn recipe(tool: &GoTool) -> Result<String> {
    let mut recipe = format!(
        "{:?}",
        (&tool.module, &tool.version, &tool.binaries, &tool.ldflags, &tool.staging, &tool.cflags)
    );
    if let Some(program) = &tool.program {
        recipe.push_str(&fs::read_to_string(beside_versions(program))?);
    }
    Ok(recipe)
}

fn beside_versions(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}

/// Whether a folder was built by this recipe.
fn is_current(folder: &Path, recipe: &str) -> bool {
    fs::read_to_string(folder.join("recipe")).is_ok_and(|old| old == digest(recipe))
}

fn digest(text: &str) -> String {
    Sha256::digest(text).iter().fold(String::new(), |mut digits, byte| {
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}

/// Builds in a folder beside the wanted one and renames it when it is complete, so that a run that is cut off leaves
/// nothing that looks finished. The recipe's digest is kept, so that a changed recipe builds again.
fn once(folder: &Path, recipe: &str, what: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if is_current(folder, recipe) {
        return Ok(());
    }
    let digest = digest(recipe);
    step(what, || {
        let temporary = folder.with_extension("partial");
        let _ = fs::remove_dir_all(&temporary);
        fs::create_dir_all(temporary.join("bin"))?;
        build(&temporary)?;
        fs::write(temporary.join("recipe"), &digest)?;
        let _ = fs::remove_dir_all(folder);
        fs::rename(&temporary, folder).with_context(|| format!("moving {} into place", folder.display()))
    })
}

fn build_go(tool: &GoTool, folder: &Path) -> Result<()> {
    let source = folder.join("source");
    fs::create_dir_all(&source)?;
    let mut manifest = format!("module tools\n\ngo 1.26.0\n\nrequire {} {}\n", tool.module, tool.version);
    match &tool.program {
        Some(program) => {
            fs::copy(beside_versions(program), source.join("main.go"))
                .with_context(|| format!("copying {program}"))?;
        }
        None => {
            for package in &tool.binaries {
                let _ = writeln!(manifest, "tool {}", package.split('=').next().unwrap_or(package));
            }
        }
    }
    if tool.replaces {
        for line in replacements(tool)? {
            let _ = writeln!(manifest, "replace {line}");
        }
    }
    if let Some(staging) = &tool.staging {
        for module in staged_modules(tool)? {
            let _ = writeln!(manifest, "replace {module} => {module} {staging}");
        }
    }
    fs::write(source.join("go.mod"), manifest)?;
    let bin = folder.join("bin");
    // All at once, so that one is linked while another compiles; a file's name can only be given to one alone.
    let (renamed, named): (Vec<&String>, Vec<&String>) =
        tool.binaries.iter().partition(|package| package.contains('='));
    if !named.is_empty() {
        run(build_command(tool, folder)?.arg("-o").arg(bin.join("")).args(named))?;
    }
    for (package, name) in renamed.iter().filter_map(|package| package.split_once('=')) {
        run(build_command(tool, folder)?.arg("-o").arg(bin.join(name)).arg(package))?;
    }
    Ok(())
}

fn build_command(tool: &GoTool, folder: &Path) -> Result<Command> {
    let mut command = go();
    command.current_dir(folder.join("source")).args(["build", "-mod=mod", "-trimpath", "-ldflags"]);
    command.arg(format!("-s -w {}", tool.ldflags).trim());
    match &tool.cflags {
        None => command.env("CGO_ENABLED", "0"),
        Some(flags) => {
            let include = headers(tool, folder)?;
            command
                .env("CGO_ENABLED", "1")
                .envs([("CGO_CFLAGS_ALLOW", ".*"), ("CGO_CXXFLAGS_ALLOW", ".*")])
                .env("CGO_CFLAGS", flags)
                .env("CGO_CXXFLAGS", format!("-I{} {flags}", include.display()))
        }
    };
    Ok(command)
}

/// The modules that a module's own go.mod requires as v0.0.0, because it replaces them by folders of its repository.
fn staged_modules(tool: &GoTool) -> Result<Vec<String>> {
    let folder = download(&format!("{}@{}", tool.module, tool.version))?;
    let text = fs::read_to_string(folder.join("go.mod"))?;
    let lines = text.lines().map(|line| line.trim().trim_start_matches("require "));
    Ok(lines.filter_map(|line| line.strip_suffix(" v0.0.0")).map(str::to_owned).collect())
}

/// The replacements in a module's own go.mod, which Go heeds in the main module only: `module => module version`.
fn replacements(tool: &GoTool) -> Result<Vec<String>> {
    let folder = download(&format!("{}@{}", tool.module, tool.version))?;
    let text = fs::read_to_string(folder.join("go.mod"))?;
    let lines = text.lines().map(|line| line.trim().trim_start_matches("replace "));
    Ok(lines.filter(|line| line.contains(" => ") && !line.starts_with("//")).map(str::to_owned).collect())
}

fn headers(tool: &GoTool, folder: &Path) -> Result<PathBuf> {
    let include = folder.join("include");
    if let Some(header) = &tool.header {
        let target = include.join(&header.folder);
        fs::create_dir_all(&target)?;
        let found = find(&download(&header.module)?, &header.file)?;
        let found = found.with_context(|| format!("{} has no file {}", header.module, header.file))?;
        fs::copy(found, target.join(&header.file))?;
    }
    Ok(include)
}

fn find(folder: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            if let Some(found) = find(&path, name)? {
                return Ok(Some(found));
            }
        } else if path.file_name().is_some_and(|file| file == name) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Downloads a module (`module@version`) and returns its folder.
fn download(module: &str) -> Result<PathBuf> {
    let printed = run(go().args(["mod", "download", "-json", module]))?;
    let answer: serde_json::Value =
        serde_json::from_str(&printed).with_context(|| format!("what go said about {module}"))?;
    answer["Dir"]
        .as_str()
        .map(PathBuf::from)
        .with_context(|| format!("go mod download {module} named no folder"))
}

fn go() -> Command {
    let mut command = Command::new("go");
    // A go.work of the user's, or flags meant for other builds, must not reach these.
    command.env("GOFLAGS", "-buildvcs=false").env("GOWORK", "off");
    command
}
