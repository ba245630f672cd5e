//! Python environments of our own in the cache: the distribution's Python may have no pip.

use crate::command::run;
use anyhow::Result;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The clients that `embedder/tests/clients.py` asks with. langchain-huggingface is not among them: since 1.2.2 it takes no URL.
pub const CLIENTS: [&str; 8] = [
    "openai==3.57.0",
    "cohere==7.3.1",
    "huggingface_hub==1.33.0",
    "langchain-openai==1.7.4",
    "llama-index-embeddings-text-embeddings-inference==0.6.0",
    "llama-index-postprocessor-jinaai-rerank==0.6.0",
    "llama-index-postprocessor-tei-rerank==0.6.0",
    "openapi-spec-validator==0.9.0",
];

/// The S3-compatible server that the tests store to and read from.
pub const STORAGE: [&str; 1] = ["moto[server,s3]==5.2.5"];

/// The Python of the environment `name`, in which `requirements` are installed.
///
/// # Errors
/// When Python is missing or a package can't be had.
pub fn environment(cache: &Path, name: &str, requirements: &[&str]) -> Result<PathBuf> {
    let folder = cache.join("venvs").join(name);
    let python = folder.join("bin/python");
    let stamp = folder.join("requirements");
    let wanted = requirements.join(" ");
    let installed = fs::read_to_string(&stamp).ok();
    // What was begun and not finished is begun anew: pip does not mend packages that are half there.
    if !python.is_file() || (installed.is_none() && !requirements.is_empty()) {
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    }
    if !requirements.is_empty() && installed.as_ref() != Some(&wanted) {
        if installed.is_some() {
            fs::remove_file(&stamp)?;
        }
        run(pip(&python)
            .args(["install", "--quiet", "--disable-pip-version-check", "--no-compile"])
            .args(requirements))?;
        fs::write(stamp, wanted)?;
    }
    Ok(python)
}

/// pip of an environment.
pub fn pip(python: &Path) -> Command {
    let mut pip = Command::new(python);
    pip.args(["-m", "pip"]);
    pip
}
