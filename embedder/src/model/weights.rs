//! The files with the weights: which they are, their digest, and how they are opened under the names that a model asks for.
//!
//! They are safetensors, or what PyTorch pickles where there are none. A pickle is a program that builds objects; candle reads
//! of it what tensors are made of, and executes nothing.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use candle_core::pickle::{PthTensors, TensorInfo};
use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::ModelError;
use super::files::{optional, unsupported};

/// The one file of a small model.
pub(super) const SINGLE: &str = "model.safetensors";
/// The table of contents of one that is cut into several.
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// The one file of a model that PyTorch pickled.
pub(super) const PICKLED: &str = "pytorch_model.bin";
/// The table of contents of one that it pickled into several.
pub(super) const PICKLED_INDEX: &str = "pytorch_model.bin.index.json";

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
    if let Some(index) = optional::<Index>(folder, INDEX)? {
        return Ok(index.files().iter().map(|name| folder.join(name)).collect());
    }
    let pickled = folder.join(PICKLED);
    if pickled.exists() {
        return Ok(vec![pickled]);
    }
    if folder.join(PICKLED_INDEX).exists() {
        let what =
            format!("weights pickled into several files (only safetensors and one {PICKLED} are read)");
        return Err(unsupported(folder, what));
    }
    Err(ModelError::MissingFile { path: single })
}

/// The pickle among the files with the weights, which is then the only one.
fn pickle(paths: &[PathBuf]) -> Option<&Path> {
    paths.iter().find(|path| path.extension().is_some_and(|it| it == "bin")).map(PathBuf::as_path)
}

/// Opens weights, which are read as `dtype`, whatever type they are stored in.
#[allow(unsafe_code, reason = "mapping files into memory")]
pub(super) fn open(paths: &[PathBuf], dtype: DType, device: &Device) -> Result<VarBuilder<'static>> {
    if let Some(path) = pickle(paths) {
        let weights = Box::new(Pickled(PthTensors::new(path, None)?));
        return Ok(VarBuilder::from_backend(weights, dtype, device.clone()));
    }
    // SAFETY: the files belong to a model folder that nobody writes to while it is served: an image volume, a read-only
    // mount or a finished download.
    unsafe { VarBuilder::from_mmaped_safetensors(paths, dtype, device) }
}

/// The shapes of the tensors in the files of the model in `folder`, by name.
#[allow(unsafe_code, reason = "mapping files into memory")]
pub(super) fn shapes(
    folder: &Path,
    paths: &[PathBuf],
) -> std::result::Result<BTreeMap<String, Vec<usize>>, ModelError> {
    let failed = |source| ModelError::Tensor {
        doing: format!("reading the sizes of the weights in {}", folder.display()),
        source,
    };
    if let Some(path) = pickle(paths) {
        let tensors = PthTensors::new(path, None).map_err(failed)?;
        let shape = |(name, tensor): (&String, &TensorInfo)| (name.clone(), tensor.layout.dims().to_vec());
        return Ok(tensors.tensor_infos().iter().map(shape).collect());
    }
    // SAFETY: as in `open`.
    let files = unsafe { MmapedSafetensors::multi(paths) }.map_err(failed)?;
    Ok(files.tensors().into_iter().map(|(name, tensor)| (name, tensor.shape().to_vec())).collect())
}

/// A pickle as weights are asked for: candle's own way reads a whole tensor only to say whether it is there.
struct Pickled(PthTensors);

impl SimpleBackend for Pickled {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        init: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        SimpleBackend::get(&self.0, shape, name, init, dtype, device)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        self.0.get_unchecked(name, dtype, device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.tensor_infos().contains_key(name)
    }
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
