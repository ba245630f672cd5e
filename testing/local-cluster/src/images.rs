//! Container images without Docker: each holds one program with the libraries that it needs, or the files of a model.

mod layout;
mod libraries;

use crate::command::{cargo, run};
use crate::models::ModelFolders;
use anyhow::{Context, Result, bail};
use layout::{Contents, Entry};
pub use layout::{hash, hex};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The registry of the chart's defaults: under these names the images are found on the node and not pulled.
const REGISTRY: &str = "ghcr.io/principium-ai";
/// Version of the images: the chart's `appVersion`.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// User of everything that needs no rights on the node.
const NONROOT: &str = "65532:65532";
/// Libraries that a real driver's `libnvidia-ml.so.1`, mounted from the node, needs of the plugin's image.
const DRIVER_NEEDS: [&str; 5] = ["libc.so.6", "libdl.so.2", "libm.so.6", "libpthread.so.0", "librt.so.1"];

/// How long containerd may take to offer a loaded image to the kubelet.
const OFFERED: Duration = Duration::from_secs(30);

/// What cargo built, by file name.
pub type Programs = BTreeMap<String, PathBuf>;

/// What images are made from.
#[derive(Debug)]
pub struct Inputs {
    /// Root of the repository.
    pub repository: PathBuf,
    /// The models.
    pub models: ModelFolders,
    /// Ollama's program.
    pub ollama: PathBuf,
    /// Root of the cache.
    pub cache: PathBuf,
}

/// An image in a tar file.
#[derive(Clone, Debug)]
pub struct Image {
    /// Full name with tag.
    pub name: String,
    /// Digest of its manifest.
    pub digest: String,
    /// The OCI layout.
    pub tarball: PathBuf,
}

/// How images get into containerd.
#[derive(Clone, Debug)]
pub struct Loader {
    /// `ctr`.
    pub ctr: PathBuf,
    /// containerd's socket.
    pub socket: PathBuf,
}

/// Writes every image, with the programs that [`programs`] built.
///
/// # Errors
/// When a file is missing.
pub fn all(programs: &Programs, inputs: &Inputs) -> Result<Vec<Image>> {
    let artifact = |name: &str| programs.get(name).with_context(|| format!("cargo built no {name}"));
    let write = |image: &str, contents: Contents| -> Result<Image> {
        let name = format!("{REGISTRY}/{image}:{VERSION}");
        let tarball = inputs.cache.join("images").join(format!("{image}.tar"));
        let digest = layout::write(&contents, &name, VERSION, &tarball)?;
        Ok(Image { name, digest, tarball })
    };
    let mut simulator = program("principium-gpu-sim", artifact("principium-gpu-sim")?, "0:0", &[])?;
    let driver = artifact("libprincipium_gpu_sim.so")?;
    simulator.files.extend(parents("usr/lib/principium"));
    simulator.files.insert("usr/lib/principium/libnvidia-ml.so.1".into(), Entry::Copy(driver.clone(), 0o755));
    Ok(vec![
        write(
            "principium-operator",
            program("principium-operator", artifact("principium-operator")?, NONROOT, &[])?,
        )?,
        write(
            "principium-device-plugin",
            program("principium-device-plugin", artifact("principium-device-plugin")?, "0:0", &DRIVER_NEEDS)?,
        )?,
        write(
            "principium-embedder",
            program("principium-embedder", artifact("principium-embedder")?, NONROOT, &[])?,
        )?,
        write("principium-simulator", simulator)?,
        write("principium-ollama", program("ollama", &inputs.ollama, NONROOT, &[])?)?,
        write("principium-model-all-minilm-l6-v2", model(&inputs.models.minilm, "all-MiniLM-L6-v2")?)?,
        write(
            "principium-model-ms-marco-minilm-l12-v2",
            model(&inputs.models.cross_encoder, "ms-marco-MiniLM-L-12-v2")?,
        )?,
        write("principium-model-smollm2-135m", model(&inputs.models.smollm2, "SmolLM2-135M-Instruct")?)?,
    ])
}

/// One digest for a set of images.
#[must_use]
pub fn digest_of_all(images: &[Image]) -> String {
    let all: Vec<&str> = images.iter().map(|image| image.digest.as_str()).collect();
    hex(&Sha256::digest(all.join("\n")))[..16].to_owned()
}

/// Loads images that the node does not have yet, and waits until the kubelet can use them.
///
/// # Errors
/// When containerd does not answer, refuses an image, or does not offer one to the kubelet in time.
pub fn load(images: &[Image], loader: &Loader) -> Result<()> {
    let ctr = |arguments: &[&str]| {
        let mut command = Command::new(&loader.ctr);
        command.arg("-a").arg(&loader.socket).args(["-n", "k8s.io", "images"]).args(arguments);
        command
    };
    let missing = || -> Result<Vec<&Image>> {
        let listed = run(&mut ctr(&["list"]))?;
        let listed: Vec<(&str, &str)> = listed
            .lines()
            .filter_map(|line| {
                let mut columns = line.split_whitespace();
                Some((columns.next()?, columns.nth(1)?))
            })
            .collect();
        // The kubelet's side of containerd keeps a second entry for each image, named by its id; it mounts by that.
        let has = |image: &Image, named: &dyn Fn(&str) -> bool| {
            listed.iter().any(|(name, digest)| *digest == image.digest && named(name))
        };
        Ok(images
            .iter()
            .filter(|image| {
                !has(image, &|name| name == image.name) || !has(image, &|name| name.starts_with("sha256:"))
            })
            .collect())
    };
    for image in missing()? {
        // An entry that is overwritten keeps its labels, and with them containerd makes no second entry for the new image.
        run(&mut ctr(&["rm", &image.name]))?;
        run(ctr(&["import", "--local"]).arg(&image.tarball))
            .with_context(|| format!("loading {}", image.name))?;
    }
    let deadline = Instant::now() + OFFERED;
    loop {
        let missing = missing()?;
        let Some(first) = missing.first() else { return Ok(()) };
        if Instant::now() > deadline {
            bail!("containerd does not offer {} to the kubelet after {} s", first.name, OFFERED.as_secs());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The sandbox image, from a C program of a dozen lines.
///
/// # Errors
/// When it can't be compiled.
pub fn pause(cache: &Path, name: &str) -> Result<Image> {
    let folder = cache.join("images");
    fs::create_dir_all(&folder)?;
    let (source, binary) = (folder.join("pause.c"), folder.join("pause"));
    let text = include_str!("images/pause.c");
    if !binary.is_file() || fs::read_to_string(&source).ok().as_deref() != Some(text) {
        fs::write(&source, text)?;
        run(Command::new("gcc").args(["-static", "-Os", "-s", "-o"]).arg(&binary).arg(&source))?;
    }
    let contents = Contents {
        files: BTreeMap::from([("pause".into(), Entry::Copy(binary, 0o755))]),
        user: "65535:65535".into(),
        entrypoint: vec!["/pause".into()],
        title: "pause".into(),
    };
    let tarball = folder.join("pause.tar");
    let digest = layout::write(&contents, name, "1", &tarball)?;
    Ok(Image { name: name.to_owned(), digest, tarball })
}

/// Which programs are compiled as they are published; the others are as the tests have them, which is faster to compile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Optimized {
    /// None.
    Nothing,
    /// The device plugin and the simulated driver that it loads.
    DevicePlugin,
    /// All of them.
    Everything,
}

/// Builds all programs; returns what cargo made.
///
/// # Errors
/// When they don't compile; the error ends with the compiler's words.
pub fn programs(repository: &Path, optimized: Optimized) -> Result<Programs> {
    let what: &[&str] = match optimized {
        Optimized::Everything => &["--workspace", "--profile", "release"],
        // The whole workspace with one small test, and so with what only tests depend on: with less, cargo would give some
        // dependencies other features than the tests have, and compile them, and all that needs them, once more.
        _ => &["--workspace", "--lib", "--bins", "--test", "reader"],
    };
    let mut built = build(repository, what)?;
    if optimized != Optimized::Nothing {
        // Alone on purpose: without the features that other programs need, they are smaller.
        for target in [["principium-device-plugin", "--bins"], ["principium-gpu-sim", "--lib"]] {
            let [package, target] = target;
            built.extend(build(repository, &["--package", package, target, "--profile", "node"])?);
        }
    }
    Ok(built)
}

fn build(repository: &Path, what: &[&str]) -> Result<Programs> {
    let mut command = cargo(repository);
    command.args(["build", "--quiet", "--message-format=json-render-diagnostics"]).args(what);
    let mut built = BTreeMap::new();
    for line in run(&mut command)?.lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else { continue };
        if message["reason"] != "compiler-artifact" {
            continue;
        }
        for file in message["filenames"].as_array().into_iter().flatten().chain([&message["executable"]]) {
            let Some(path) = file.as_str().map(PathBuf::from) else { continue };
            if let Some(name) = path.file_name() {
                built.insert(name.to_string_lossy().into_owned(), path.clone());
            }
        }
    }
    Ok(built)
}

/// An image of one program.
fn program(name: &str, binary: &Path, user: &str, extra: &[&str]) -> Result<Contents> {
    let mut files = BTreeMap::new();
    for folder in ["usr/bin", "etc/ssl/certs", "lib64", "lib/x86_64-linux-gnu"] {
        files.extend(parents(folder));
    }
    files.insert("tmp".into(), Entry::Folder(0o1777));
    files.insert(
        "etc/passwd".into(),
        Entry::Text("root:x:0:0::/:/none\nnonroot:x:65532:65532::/tmp:/none\n".into()),
    );
    files.insert("etc/group".into(), Entry::Text("root:x:0:\nnonroot:x:65532:\n".into()));
    files.insert("etc/nsswitch.conf".into(), Entry::Text("hosts: files dns\n".into()));
    files.insert(
        "etc/ssl/certs/ca-certificates.crt".into(),
        Entry::Copy("/etc/ssl/certs/ca-certificates.crt".into(), 0o644),
    );
    for (path, source) in libraries::needed(&[binary], extra)? {
        files.insert(path, Entry::Copy(source, 0o755));
    }
    let path = format!("usr/bin/{name}");
    files.insert(path.clone(), Entry::Copy(stripped(binary)?, 0o755));
    Ok(Contents {
        files,
        user: user.to_owned(),
        entrypoint: vec![format!("/{path}")],
        title: name.to_owned(),
    })
}

/// The program without its debug information, beside it.
fn stripped(binary: &Path) -> Result<PathBuf> {
    let target = binary.with_extension("stripped");
    let modified = |path: &Path| fs::metadata(path).and_then(|data| data.modified()).ok();
    if modified(&target) < modified(binary) {
        run(Command::new("strip").arg("-o").arg(&target).arg(binary))?;
    }
    Ok(target)
}

/// An image of a folder's files, to be mounted as an image volume.
fn model(folder: &Path, title: &str) -> Result<Contents> {
    let mut files = BTreeMap::new();
    collect(folder, folder, &mut files)?;
    if files.is_empty() {
        bail!("{} holds no files", folder.display());
    }
    Ok(Contents { files, user: NONROOT.to_owned(), entrypoint: Vec::new(), title: title.to_owned() })
}

fn collect(root: &Path, folder: &Path, files: &mut BTreeMap<String, Entry>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let path = entry?.path();
        let name = path.strip_prefix(root)?.display().to_string();
        if path.is_dir() {
            files.insert(name, Entry::Folder(0o755));
            collect(root, &path, files)?;
        } else {
            files.insert(name, Entry::Copy(path, 0o644));
        }
    }
    Ok(())
}

/// A folder and those above it.
fn parents(path: &str) -> Vec<(String, Entry)> {
    let folders = Path::new(path).ancestors().map(|folder| folder.display().to_string());
    folders.filter(|folder| !folder.is_empty()).map(|folder| (folder, Entry::Folder(0o755))).collect()
}
