//! The files with the weights: which they are, their digest, and how they are opened under the names that a model asks for.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Result};
use candle_nn::VarBuilder;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::ModelError;
use super::files::optional;

/// The one file of a small model.
pub(super) const SINGLE: &str = "model.safetensors";
/// The table of contents of one that is cut into several.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// The part of the index that says which files there are.
#[derive(Deserialize)]
pub(super) struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Index {
    /// The files that the index names, each once.
    pub(super) fn files(&self) -> Vec<String> {
        let mut files: Vec<String> = self.weight_map.values().cloned().collect();
        files.sort_unstable();
        files.dedup();
        files
    }
}

/// The files with the weights of the model in `folder`.
pub(super) fn paths(folder: &Path) -> std::result::Result<Vec<PathBuf>, ModelError> {
    let single = folder.join(SINGLE);
    if single.exists() {
        return Ok(vec![single]);
    }
    match optional::<Index>(folder, INDEX)? {
        Some(index) => Ok(index.files().iter().map(|name| folder.join(name)).collect()),
        None => Err(ModelError::MissingFile { path: single }),
    }
}

/// Opens weights, which are read as `dtype`, whatever type they are stored in.
#[allow(unsafe_code, reason = "mapping files into memory")]
pub(super) fn open(paths: &[PathBuf], dtype: DType, device: &Device) -> Result<VarBuilder<'static>> {
    // SAFETY: the files belong to a model folder that nobody writes to while it is served: an image volume, a read-only
    // mount or a finished download.
    unsafe { VarBuilder::from_mmaped_safetensors(paths, dtype, device) }
}

/// How many numbers the files hold.
#[allow(unsafe_code, reason = "mapping files into memory")]
pub(super) fn numbers(paths: &[PathBuf]) -> Result<usize> {
    // SAFETY: as in `open`.
    let files = unsafe { MmapedSafetensors::multi(paths) }?;
    Ok(files.tensors().iter().map(|(_, tensor)| tensor.shape().iter().product::<usize>()).sum())
}

/// The weights of an encoder, which some checkpoints keep at the root and others under a prefix.
pub(super) fn encoder<'a>(root: &VarBuilder<'a>, prefixes: &[&str], first: &str) -> Result<VarBuilder<'a>> {
    for prefix in std::iter::once(&"").chain(prefixes) {
        let builder = if prefix.is_empty() { root.clone() } else { root.pp(prefix) };
        if builder.contains_tensor(first) {
            return Ok(builder);
        }
    }
    candle_core::bail!("the weights have no {first}, neither at the root nor under {}", prefixes.join(", "))
}

/// SHA-256 over the files, in hexadecimal; that of the file where there is one.
pub(super) fn digest(paths: &[PathBuf]) -> std::result::Result<String, ModelError> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    for path in paths {
        let read = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::NotFound => ModelError::MissingFile { path: path.to_owned() },
            _ => ModelError::Read { path: path.to_owned(), source },
        };
        let mut file = std::fs::File::open(path).map_err(read)?;
        loop {
            match file.read(&mut buffer).map_err(read)? {
                0 => break,
                count => hasher.update(&buffer[..count]),
            }
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
