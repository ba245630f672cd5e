//! Models on candle: the only place that knows tensors, devices and weights. Threads, queues and HTTP are elsewhere.

mod architecture;
mod attention;
mod bert;
mod bert_config;
mod cuda;
mod decoders;
mod device;
mod encoders;
mod excerpt;
mod experts;
mod files;
mod heads;
mod kernels;
mod linear;
mod markers;
mod nomic;
mod ops;
mod output;
mod plan;
mod precision;
mod rotary;
mod sentence;
mod source;
mod tokens;
mod transformer;
mod weights;

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

pub use device::{Accelerator, Card, accelerators, cuda_compiled, visible};
pub use excerpt::excerpt;
pub use files::{DenseHead, Footprint, Heads, ModelFiles, MultiHead, SparseHead};
pub use output::{Output, Wants, normalize};
pub use precision::Precision;
pub use sentence::{Pooling, Prompts, Similarity, SparsePooling};
pub use source::{ModelSource, fetch};
pub use tokens::{Input, Side, TextTokenizer, TokenizeError, Tokens, Truncation};

use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;
use rayon::prelude::*;

use architecture::Backbone;
use bert::Bert;
use precision::Place;
use transformer::Transformer;

/// Tokens that a core computes from beginning to end: with fewer it would mostly read weights, with more its cache would not
/// hold what lies between the layers.
const PART: RangeInclusive<usize> = 256..=512;

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
    /// The device does not compute in the number format that was asked for.
    #[error("the number format {wanted} is not computed on {device}: choose {instead}, or auto")]
    Precision {
        /// What was asked for.
        wanted: &'static str,
        /// Where.
        device: &'static str,
        /// What is computed there.
        instead: &'static str,
    },
    /// The system gives no threads.
    #[error("starting the threads that compute: {0}")]
    Threads(rayon::ThreadPoolBuildError),
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

impl ModelError {
    /// Whether a smaller batch may go well where this one did not.
    pub fn is_out_of_memory(&self) -> bool {
        let Self::Tensor { source, .. } = self else { return false };
        // The texts are CUDA's and cuBLAS's, which candle passes on in errors of several kinds.
        let text = source.to_string().to_lowercase().replace('_', " ");
        ["out of memory", "cublas status alloc failed"].iter().any(|says| text.contains(says))
    }
}

/// A loaded model on one device. Clones share the weights.
#[derive(Clone)]
pub struct Model {
    loaded: Arc<Loaded>,
    place: Place,
    /// The threads that compute on the CPU: no others, so that tokenizing large requests does not come between.
    cores: Option<Arc<rayon::ThreadPool>>,
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
    /// Loads the weights that `files` describe onto `accelerator`'s device, or the CPU, to be computed with `precision`.
    pub fn load(
        files: &ModelFiles,
        accelerator: Option<&Accelerator>,
        precision: Precision,
    ) -> Result<Self, ModelError> {
        let place = Place::new(device::open(accelerator)?, precision)?;
        let loaded = Loaded::load(files, &place).map_err(|source| ModelError::Tensor {
            doing: format!("loading {} onto {}", files.folder.display(), device::name(accelerator)),
            source,
        })?;
        let cores = if place.device.is_cpu() { Some(Arc::new(device::cores(None)?)) } else { None };
        Ok(Self { loaded: Arc::new(loaded), place, cores })
    }

    /// The same model on so many threads of its own; only on the CPU does this make a difference.
    pub fn on_cores(&self, count: usize) -> Result<Self, ModelError> {
        let cores = match &self.cores {
            Some(_) => Some(Arc::new(device::cores(Some(count))?)),
            None => None,
        };
        Ok(Self { cores, ..self.clone() })
    }

    /// The number format that is computed in.
    pub fn precision(&self) -> Precision {
        self.place.precision
    }

    /// The instruction set or library that computes.
    pub fn kernel_name(&self) -> &'static str {
        self.place.kernel_name()
    }

    /// Positions that are computed for inputs of `lengths` tokens beyond their tokens.
    pub fn padding(&self, lengths: &[usize]) -> usize {
        attention::padding(lengths, &self.place)
    }

    /// What each input wants.
    pub fn run(&self, inputs: &[&Input]) -> Result<Vec<Output>, ModelError> {
        let results = match &self.cores {
            Some(cores) => cores.install(|| self.loaded.run_in_parts(inputs)),
            None => self.loaded.run(inputs),
        };
        results.map_err(|source| ModelError::Tensor {
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
    fn load(files: &ModelFiles, place: &Place) -> candle_core::Result<Self> {
        let root = weights::open(&files.weights, place.dtype(), &place.device)?;
        let encoder_weights = encoder_root(files, &root)?;
        let encoder = match &files.backbone {
            Backbone::Bert(config) => {
                let renamed = encoder_weights.clone().rename_f(config.stored_name).root();
                Encoder::Bert(Bert::load(config, &renamed, place)?)
            }
            Backbone::Transformer(plan) => {
                Encoder::Transformer(Transformer::load(plan, &encoder_weights, place)?)
            }
        };
        let words = match &encoder {
            Encoder::Bert(bert) => bert.words(),
            Encoder::Transformer(transformer) => transformer.words(),
        };
        // Heads have little to compute, and their results are f32 anyway.
        let root = weights::open(&files.weights, DType::F32, &place.device)?;
        let words = words.to_dtype(DType::F32)?;
        let heads = heads::Heads::load(files, &root, &encoder_root(files, &root)?, &words)?;
        Ok(Self { encoder, heads })
    }

    /// The same on all cores, each of which computes some texts from beginning to end: what lies between the layers stays in
    /// its cache. Cores that have nothing left help with the ops of the others.
    fn run_in_parts(&self, inputs: &[&Input]) -> candle_core::Result<Vec<Output>> {
        let parts = parts(inputs, rayon::current_num_threads());
        let outputs: Vec<_> = parts
            .into_par_iter()
            .with_max_len(1)
            .map(|part| self.run(part))
            .collect::<candle_core::Result<_>>()?;
        Ok(outputs.into_iter().flatten().collect())
    }

    fn run(&self, inputs: &[&Input]) -> candle_core::Result<Vec<Output>> {
        if inputs.is_empty() {
            return Ok(Vec::new());
        }
        let states: Tensor = match &self.encoder {
            Encoder::Bert(bert) => bert.encode(inputs)?,
            Encoder::Transformer(transformer) => transformer.encode(inputs)?,
        };
        self.heads.outputs(&states.to_dtype(DType::F32)?, inputs)
    }
}

/// The inputs one after the other in parts of [`PART`] tokens: fewer in each where there would be too few for the cores.
fn parts<'a, 'i>(inputs: &'a [&'i Input], cores: usize) -> Vec<&'a [&'i Input]> {
    let tokens: usize = inputs.iter().map(|input| input.len()).sum();
    let most = tokens.div_ceil(cores.max(1)).clamp(*PART.start(), *PART.end());
    let mut parts = Vec::new();
    let (mut first, mut taken) = (0, 0);
    for (index, input) in inputs.iter().enumerate() {
        if taken > 0 && taken + input.len() / 2 > most {
            parts.push(&inputs[first..index]);
            (first, taken) = (index, 0);
        }
        taken += input.len();
    }
    parts.push(&inputs[first..]);
    parts
}

/// Where the encoder's weights lie among all.
fn encoder_root<'a>(files: &ModelFiles, root: &VarBuilder<'a>) -> candle_core::Result<VarBuilder<'a>> {
    weights::encoder(root, files.family.prefixes(), &files.backbone.words())
}

/// Reads the tokenizer of the model that `files` describe.
pub fn load_tokenizer(files: &ModelFiles) -> Result<TextTokenizer, ModelError> {
    TextTokenizer::load(files)
}

#[cfg(test)]
mod tests {
    use super::kernels::{Format, Microkernel};
    use super::*;
    use candle_core::Device;
    use std::path::Path;

    fn fixture(name: &str) -> ModelFiles {
        ModelFiles::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models").join(name)).unwrap()
    }

    #[test]
    fn every_architecture_keeps_its_directions_in_bf16_where_f32_would_be_chosen_as_well() {
        for name in [
            "bert",
            "roberta",
            "nomic-bert",
            "nomic-experts",
            "modernbert",
            "gte",
            "jina-v2",
            "qwen3",
            "gemma3",
        ] {
            let files = fixture(name);
            let tokenizer = load_tokenizer(&files).unwrap();
            let texts = [
                "the fan of a hot card",
                "wärme",
                "it is cooled by water where that is not enough, and slowed down",
            ];
            let inputs = texts.map(|text| tokenizer.text(text, Truncation::DropEnd).unwrap());
            let vectors = |place: &Place| {
                let loaded = Loaded::load(&files, place).unwrap();
                loaded.run(&inputs.iter().collect::<Vec<_>>()).unwrap()
            };
            let exact = vectors(&Place::new(Device::Cpu, Precision::F32).unwrap());
            for microkernel in Microkernel::all(Format::Bf16) {
                let place = Place::new(Device::Cpu, Precision::Bf16).unwrap();
                let coarse = vectors(&Place { microkernel, attention_microkernel: microkernel, ..place });
                assert_ne!(coarse, exact, "{name}: nothing was rounded by {}", microkernel.name);
                for (mut coarse, mut exact) in coarse.into_iter().zip(exact.clone()) {
                    normalize(&mut coarse.vector);
                    normalize(&mut exact.vector);
                    let cosine: f32 = coarse.vector.iter().zip(&exact.vector).map(|(a, b)| a * b).sum();
                    assert!(cosine > 0.999, "{name} with {}: cosine {cosine}", microkernel.name);
                }
            }
        }
    }

    #[test]
    fn what_a_gpu_would_compute_is_what_the_kernels_of_the_cpu_do() {
        let folders =
            std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models")).unwrap();
        for folder in folders {
            let files = ModelFiles::read(&folder.unwrap().path()).unwrap();
            let name = files.folder.display();
            let tokenizer = load_tokenizer(&files).unwrap();
            let inputs =
                ["a hot card", "the operator moves the workload to the coolest healthy card", "warm"]
                    .map(|text| tokenizer.text(text, Truncation::DropEnd).unwrap())
                    .map(|input| Input { wants: Wants::VECTOR | Wants::STATES, ..input });
            let compute = |precision| {
                let loaded = Loaded::load(&files, &Place::new(Device::Cpu, precision).unwrap()).unwrap();
                loaded.run(&inputs.iter().collect::<Vec<_>>()).unwrap()
            };
            let numbers = |output: &Output| [&output.vector[..], &output.states.concat()].concat();
            let exact = compute(Precision::F32);
            let general = device::tests::generally(|| compute(Precision::F32));
            let half = device::tests::generally(|| compute(Precision::F16));
            for ((exact, general), half) in exact.iter().zip(&general).zip(&half) {
                assert_eq!(exact.states.len(), general.states.len(), "{name}");
                for ((exact, general), half) in numbers(exact).iter().zip(numbers(general)).zip(numbers(half))
                {
                    assert!((exact - general).abs() < 1e-4, "{name}: {general} instead of {exact}");
                    assert!(
                        (exact - half).abs() < 0.05 * exact.abs().max(1.0),
                        "{name}: {half} in f16, {exact}"
                    );
                }
            }
            assert_ne!(half, exact, "{name}: nothing was rounded");
        }
    }

    #[test]
    fn the_weights_take_as_much_as_the_number_format_needs_however_they_are_stored() {
        let files = fixture("bert");
        let exact = files.footprint(Precision::F32).unwrap();
        let stored = std::fs::metadata(&files.weights[0]).unwrap().len();
        assert!(
            exact.weights < stored && stored < exact.weights + 8192,
            "{exact:?} of {stored} bytes, the rest being names"
        );
        let half = files.footprint(Precision::Bf16).unwrap();
        assert_eq!(half.weights, exact.weights / 2);
        // Of the width 32.
        assert_eq!((exact.token, half.token), (4 * 40 * 32, 2 * 40 * 32));
        assert_eq!(exact.words, 0);
        // The scores of 54 words are f32 in any case; where they are added up, each is a weight before.
        for (name, most) in [("splade-bert", 1), ("splade-sum", 4)] {
            let words = fixture(name).footprint(Precision::Bf16).unwrap().words;
            assert_eq!(words, (most * 4 * heads::BLOCK * 54) as u64, "{name}");
        }
    }

    #[test]
    fn running_out_of_memory_is_told_from_other_errors() {
        for (message, expected) in [
            ("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")", true),
            ("CublasError(CUBLAS_STATUS_ALLOC_FAILED)", true),
            ("CublasError(CUBLAS_STATUS_EXECUTION_FAILED)", false),
            ("DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory access was encountered\")", false),
        ] {
            let source = candle_core::Error::Msg(message.to_owned());
            let error = ModelError::Tensor { doing: "computing".to_owned(), source };
            assert_eq!(error.is_out_of_memory(), expected, "{message}");
        }
    }

    fn lengths(inputs: &[usize], cores: usize) -> Vec<Vec<usize>> {
        let input = |length: &usize| Input {
            ids: vec![0; *length],
            type_ids: vec![0; *length],
            unpooled: 0,
            unseen: 0,
            wants: Wants::default(),
        };
        let inputs: Vec<Input> = inputs.iter().map(input).collect();
        let inputs: Vec<&Input> = inputs.iter().collect();
        parts(&inputs, cores).iter().map(|part| part.iter().map(|input| input.len()).collect()).collect()
    }

    #[test]
    fn a_batch_is_shared_out_among_the_cores_and_a_small_one_is_not() {
        assert_eq!(lengths(&[100, 100], 4), [[100, 100]]);
        assert_eq!(lengths(&[200; 5], 2), [vec![200; 3], vec![200; 2]]);
        assert_eq!(lengths(&[200; 6], 16), [[200], [200], [200], [200], [200], [200]]);
        assert_eq!(lengths(&[3000, 10, 10], 1), [vec![3000], vec![10, 10]]);
        assert_eq!(lengths(&[128; 16], 2), [[128; 4]; 4]);
    }
}
