//! Models on candle: the only place that knows tensors, devices and weights. Threads, queues and HTTP are elsewhere.

mod architecture;
mod attention;
mod bert;
mod bert_config;
mod decoders;
mod device;
mod encoders;
mod files;
mod heads;
mod kernels;
mod masked_attention;
mod ops;
mod output;
mod plan;
mod sentence;
mod source;
mod tokens;
mod transformer;
mod weights;

use std::path::PathBuf;
use std::sync::Arc;

pub use device::{Accelerator, accelerators, cuda_compiled};
pub use files::{DenseHead, Heads, ModelFiles, MultiHead, SparseHead};
pub use kernels::name as kernel_name;
pub use output::{Output, Wants, normalize};
pub use sentence::{Pooling, Prompts, SparsePooling};
pub use source::{ModelSource, fetch};
pub use tokens::{Input, Side, TextTokenizer, TokenizeError, Truncation, beginning};

use candle_core::{Device, Tensor};

use architecture::Backbone;
use bert::Bert;
use transformer::Transformer;

/// Why a model can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file that every model has is not there.
    #[error("the model has no {}: a model folder holds config.json, tokenizer.json and safetensors", path.display())]
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
    #[error("the model in {} has the architecture {architecture:?}; supported are {}", folder.display(), architecture::supported())]
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
    loaded: Arc<Loaded>,
}

struct Loaded {
    encoder: Encoder,
    heads: heads::Heads,
}

enum Encoder {
    Bert(Bert),
    Transformer(Transformer),
}

impl Model {
    /// Loads the weights that `files` describe onto `accelerator`'s device, or the CPU.
    pub fn load(files: &ModelFiles, accelerator: Option<&Accelerator>) -> Result<Self, ModelError> {
        let device = device::open(accelerator)?;
        let loaded = Loaded::load(files, &device).map_err(|source| ModelError::Tensor {
            doing: format!("loading {} onto {}", files.folder.display(), device::name(accelerator)),
            source,
        })?;
        Ok(Self { loaded: Arc::new(loaded) })
    }

    /// What each input wants.
    pub fn run(&self, inputs: &[&Input]) -> Result<Vec<Output>, ModelError> {
        self.loaded.run(inputs).map_err(|source| ModelError::Tensor {
            doing: format!(
                "computing {} inputs of {} tokens",
                inputs.len(),
                inputs.iter().map(|it| it.len()).sum::<usize>()
            ),
            source,
        })
    }
}

impl Loaded {
    fn load(files: &ModelFiles, device: &Device) -> candle_core::Result<Self> {
        let root = weights::open(&files.weights, device)?;
        let prefixes = files.family.prefixes();
        let encoder_root = match &files.backbone {
            Backbone::Bert(_) => weights::encoder(&root, prefixes, "embeddings.word_embeddings.weight")?,
            Backbone::Transformer(plan) => {
                weights::encoder(&root, prefixes, &format!("{}.weight", plan.names.words))?
            }
        };
        let encoder = match &files.backbone {
            Backbone::Bert(config) => {
                let renamed = encoder_root.clone().rename_f(config.stored_name).root();
                Encoder::Bert(Bert::load(config, &renamed, device)?)
            }
            Backbone::Transformer(plan) => {
                Encoder::Transformer(Transformer::load(plan, &encoder_root, device)?)
            }
        };
        let words = match &encoder {
            Encoder::Bert(bert) => bert.words(),
            Encoder::Transformer(transformer) => transformer.words(),
        };
        let heads = heads::Heads::load(files, &root, &encoder_root, words)?;
        Ok(Self { encoder, heads })
    }

    fn run(&self, inputs: &[&Input]) -> candle_core::Result<Vec<Output>> {
        if inputs.is_empty() {
            return Ok(Vec::new());
        }
        let states: Tensor = match &self.encoder {
            Encoder::Bert(bert) => bert.encode(inputs)?,
            Encoder::Transformer(transformer) => transformer.encode(inputs)?,
        };
        self.heads.outputs(&states, inputs)
    }
}

/// Reads the tokenizer of the model that `files` describe.
pub fn load_tokenizer(files: &ModelFiles) -> Result<TextTokenizer, ModelError> {
    TextTokenizer::load(files)
}
