//! Models on candle: the only place that knows tensors, devices and weights. Threads, queues and HTTP are elsewhere.

mod attention;
mod bert;
mod device;
mod files;
mod kernels;
mod ops;
mod source;
mod tokens;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use device::{Accelerator, accelerators, cuda_compiled};
pub use files::{ModelFiles, Pooling, SUPPORTED, Task};
pub use kernels::name as kernel_name;
pub use source::{ModelSource, fetch};
pub use tokens::{Input, TextTokenizer, TokenizeError, Truncation, beginning};

use bert::Bert;

/// Why a model can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file that every model has is not there.
    #[error("the model has no {}: a model folder holds config.json, tokenizer.json and model.safetensors", path.display())]
    MissingFile {
        /// The file.
        path: PathBuf,
    },
    /// A file could not be read.
    #[error("reading {} of the model: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A JSON file could not be understood.
    #[error("{} of the model is not what was expected: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// The tokenizer could not be loaded.
    #[error("loading {}: {message}", path.display())]
    Tokenizer {
        /// tokenizer.json.
        path: PathBuf,
        /// What the tokenizers library said.
        message: String,
    },
    /// `config.json` names an architecture that is not computed here.
    #[error("the model in {} has the architecture {architecture:?}; supported are {}", folder.display(), SUPPORTED.join(", "))]
    UnsupportedArchitecture {
        /// The model's folder.
        folder: PathBuf,
        /// As written in `config.json`.
        architecture: String,
    },
    /// The architecture is known, but a detail of this model is not.
    #[error("the model in {} uses {what}, which is not supported", folder.display())]
    Unsupported {
        /// The model's folder.
        folder: PathBuf,
        /// The detail, with what is supported.
        what: String,
    },
    /// Weights or devices failed.
    #[error("{doing}: {source}")]
    Tensor {
        /// What was being done.
        doing: String,
        /// What candle said.
        source: candle_core::Error,
    },
    /// The hub could not give the model.
    #[error(
        "fetching the model {name} from {endpoint}: {message}; give a folder or an image volume where the hub can't be reached"
    )]
    Hub {
        /// Name on the hub.
        name: String,
        /// `HF_ENDPOINT` or the public hub.
        endpoint: String,
        /// What went wrong.
        message: String,
    },
}

/// A loaded model on one device. Clones share the weights.
#[derive(Clone)]
pub struct Model {
    bert: Arc<Bert>,
    files: Arc<ModelFiles>,
}

impl Model {
    /// Loads the weights that `files` describe onto `accelerator`'s device, or the CPU.
    pub fn load(files: Arc<ModelFiles>, accelerator: Option<&Accelerator>) -> Result<Self, ModelError> {
        let device = device::open(accelerator)?;
        let bert = Bert::load(&files, &device).map_err(|source| ModelError::Tensor {
            doing: format!(
                "loading {} onto {}",
                files.folder.join("model.safetensors").display(),
                device::name(accelerator)
            ),
            source,
        })?;
        Ok(Self { bert: Arc::new(bert), files })
    }

    /// One pooled, not normalized vector for each input of an embedding model, or one logit (a vector of one) of a reranker.
    pub fn run(&self, inputs: &[&Input]) -> Result<Vec<Vec<f32>>, ModelError> {
        self.bert.run(inputs, &self.files.task).map_err(|source| ModelError::Tensor {
            doing: format!(
                "computing {} inputs of {} tokens",
                inputs.len(),
                inputs.iter().map(|it| it.len()).sum::<usize>()
            ),
            source,
        })
    }
}

/// Reads the tokenizer of the model in `folder`.
pub fn load_tokenizer(folder: &Path, max_input_length: usize) -> Result<TextTokenizer, ModelError> {
    TextTokenizer::load(&folder.join("tokenizer.json"), max_input_length)
}
