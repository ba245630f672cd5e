//! What the files of a model folder say: architecture, what can be had of it, lengths, similarity, prompts, digest. No
//! tensor's numbers are read here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::ModelError;
use super::architecture::{self, Backbone, Family, Top};
use super::heads::BLOCK;
use super::markers::{Markers, markers};
use super::precision::Precision;
use super::sentence::{self, Dense, Modules, Pooling, Prompts, Similarity, SparsePooling};
use super::weights;

/// Everything known about a model before its weights are loaded.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    /// The folder.
    pub folder: PathBuf,
    /// The first entry of `architectures`.
    pub architecture: String,
    /// What can be had of an input.
    pub heads: Heads,
    /// The most tokens of one input, special tokens included.
    pub max_input_length: usize,
    /// Prefixes, from `config_sentence_transformers.json`.
    pub prompts: Prompts,
    /// By what vectors are compared where they are kept, from the same file. The dot product only where vectors have a length of
    /// their own: at length 1 it is the cosine.
    pub similarity: Similarity,
    /// SHA-256 of the weights, in hexadecimal.
    pub weights_digest: String,
    pub(super) family: Family,
    pub(super) backbone: Backbone,
    pub(super) weights: Vec<PathBuf>,
    /// What a classifier looks at, where its configuration says it.
    pub(super) classifier_pooling: Option<Pooling>,
}

/// What can be had of an input, besides the hidden states.
#[derive(Debug, Clone, Default)]
pub struct Heads {
    /// One vector for the whole text.
    pub dense: Option<DenseHead>,
    /// Scores for labels; the labels in their order.
    pub labels: Option<Vec<String>>,
    /// Weights of words.
    pub sparse: Option<SparseHead>,
    /// One vector a token.
    pub multi: Option<MultiHead>,
}

impl Heads {
    /// The names of what is there, as requests name it.
    pub fn outputs(&self) -> Vec<&'static str> {
        let dense = self.dense.is_some().then_some("dense");
        let sparse = self.sparse.is_some().then_some("sparse");
        let multi = self.multi.is_some().then_some("multi_vector");
        [dense, sparse, multi].into_iter().flatten().collect()
    }
}

/// How the states become one vector.
#[derive(Debug, Clone)]
pub struct DenseHead {
    /// Several stand beside one another.
    pub pooling: Vec<Pooling>,
    /// Width of the vector.
    pub width: usize,
    /// Whether the model scales it to length 1.
    pub normalized: bool,
    /// Whether the tokens of the prompt are left out.
    pub(super) without_prompt: bool,
    pub(super) layers: Vec<Dense>,
}

/// Where the weights of words come from.
#[derive(Debug, Clone)]
pub enum SparseHead {
    /// A masked language model's scores of the whole vocabulary.
    MaskedLm(SparsePooling),
    /// A weight for each token of the text, from a file of its own.
    Tokens(PathBuf),
}

/// Where the vectors of tokens come from, and which tokens count.
#[derive(Debug, Clone)]
pub struct MultiHead {
    /// Width of the vectors.
    pub width: usize,
    pub(super) layers: Projection,
    pub(super) markers: Option<Markers>,
}

/// What the tensors of a model take on a GPU, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Footprint {
    /// The weights.
    pub weights: u64,
    /// One token of a batch.
    pub token: u64,
    /// The scores of all words for as many tokens as are scored at once, where a masked language model weighs words.
    pub words: u64,
}

/// The linear layer between a token's state and its vector.
#[derive(Debug, Clone)]
pub(super) enum Projection {
    /// `linear` among the model's own weights: ColBERT.
    Linear,
    /// Layers of their own folders: PyLate.
    Dense(Vec<Dense>),
    /// `colbert_linear.pt`: BGE-M3, which leaves out the first token.
    File(PathBuf),
}

#[derive(Deserialize)]
struct Classes {
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    model_type: String,
}

impl ModelFiles {
    /// Width of the state of a token.
    pub fn width(&self) -> usize {
        self.backbone.width()
    }

    /// What is taken on a GPU that computes with `precision`, in whatever type the weights are stored.
    pub fn footprint(&self, precision: Precision) -> Result<Footprint, ModelError> {
        let shapes = weights::shapes(&self.folder, &self.weights)?;
        let numbers: usize = shapes.values().map(|shape| shape.iter().product::<usize>()).sum();
        let weights = precision.bytes() * numbers;
        // About forty numbers for each one of the width. Attention keeps no scores.
        let token = precision.bytes() * 40 * self.width();
        // Each step from scores to weights is a tensor of its own where they are added up; the largest are found among the scores.
        let tensors = match &self.heads.sparse {
            Some(SparseHead::MaskedLm(SparsePooling { sum: true, .. })) => 4,
            Some(SparseHead::MaskedLm(_)) => 1,
            _ => 0,
        };
        let words = tensors * 4 * BLOCK * self.rows_in(&shapes).unwrap_or_default();
        Ok(Footprint { weights: weights as u64, token: token as u64, words: words as u64 })
    }

    /// Rows of the table of words: ids from there on have no vector. `None` for weights without the table, which can't be loaded.
    pub(super) fn rows(&self) -> Result<Option<usize>, ModelError> {
        Ok(self.rows_in(&weights::shapes(&self.folder, &self.weights)?))
    }

    fn rows_in(&self, shapes: &BTreeMap<String, Vec<usize>>) -> Option<usize> {
        let words = self.backbone.words();
        let prefixed = self.family.prefixes().iter().map(|prefix| format!("{prefix}.{words}"));
        std::iter::once(words.clone()).chain(prefixed).find_map(|name| shapes.get(&name)?.first().copied())
    }

    /// Reads the files of `folder` and refuses what could only be computed wrongly.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        let config: Value = required(folder, "config.json")?;
        let parse_error = |message| unsupported(folder, message);
        let classes: Classes = parse(&config).map_err(parse_error)?;
        let architecture = classes.architectures.first().cloned().unwrap_or_default();
        let Some((family, top)) = architecture::class(&architecture) else {
            return Err(ModelError::UnsupportedArchitecture {
                folder: folder.to_owned(),
                architecture: if architecture.is_empty() { classes.model_type } else { architecture },
            });
        };
        let backbone = family.backbone(&config).map_err(parse_error)?;
        let weights = weights::paths(folder)?;
        let heads = heads(folder, &config, &weights, top, &backbone)?;
        let max_input_length = max_input_length(folder, backbone.positions())?;
        let similarity = match &heads.dense {
            Some(DenseHead { normalized: false, .. }) => sentence::similarity(folder)?,
            _ => Similarity::Cosine,
        };
        Ok(Self {
            folder: folder.to_owned(),
            architecture,
            heads,
            max_input_length,
            prompts: sentence::prompts(folder)?,
            similarity,
            weights_digest: weights::digest(&weights)?,
            family,
            backbone,
            weights,
            classifier_pooling: match config.get("classifier_pooling").and_then(Value::as_str) {
                Some("mean") => Some(Pooling::Mean),
                _ => None,
            },
        })
    }
}

fn heads(
    folder: &Path,
    config: &Value,
    weights: &[PathBuf],
    top: Top,
    backbone: &Backbone,
) -> Result<Heads, ModelError> {
    let modules = sentence::modules(folder)?;
    let mut heads = Heads::default();
    if top == Top::Classifier {
        let named = labels(config);
        heads.labels = Some(if named.is_empty() { unnamed_labels(folder, weights)? } else { named });
        return Ok(heads);
    }
    let width = backbone.width();
    match (top, modules) {
        (_, Some(Modules { sparse: Some(pooling), .. })) if top == Top::MaskedLm => {
            heads.sparse = Some(SparseHead::MaskedLm(pooling));
        }
        (_, Some(Modules { sparse: Some(_), .. })) => {
            return Err(unsupported(
                folder,
                "a sparse pooling of what is no masked language model".to_owned(),
            ));
        }
        (_, Some(Modules { pooling, without_prompt, dense, normalized, .. })) if !pooling.is_empty() => {
            let pooled = width * pooling.len();
            let width = dense.last().map_or(pooled, |last| last.width);
            heads.dense = Some(DenseHead { pooling, width, normalized, without_prompt, layers: dense });
        }
        (Top::Colbert, modules) => {
            let markers = Some(markers(folder, modules.and_then(|modules| modules.mask).as_ref())?);
            let shapes = weights::shapes(folder, weights)?;
            let width = shapes.get("linear.weight").and_then(|shape| shape.first()).copied().unwrap_or(width);
            heads.multi = Some(MultiHead { width, layers: Projection::Linear, markers });
        }
        (_, Some(Modules { dense, mask, .. })) if !dense.is_empty() => {
            let markers = Some(markers(folder, mask.as_ref())?);
            let width = dense.last().map_or(width, |last| last.width);
            heads.multi = Some(MultiHead { width, layers: Projection::Dense(dense), markers });
        }
        (_, Some(_)) => {
            return Err(unsupported(folder, "a modules.json without a pooling".to_owned()));
        }
        (Top::MaskedLm, None) => {
            let pooling = SparsePooling { sum: false, twice: false };
            heads.sparse = Some(SparseHead::MaskedLm(pooling));
        }
        (_, None) => {
            tracing::warn!(folder = %folder.display(), "no modules.json: pooling by the mean, as sentence-transformers does");
            let pooling = vec![Pooling::Mean];
            heads.dense = Some(DenseHead {
                pooling,
                width,
                normalized: true,
                without_prompt: false,
                layers: Vec::new(),
            });
        }
    }
    // BGE-M3 has all three in one model.
    let beside = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());
    if let Some(path) = beside("sparse_linear.pt") {
        heads.sparse = Some(SparseHead::Tokens(path));
    }
    if let Some(path) = beside("colbert_linear.pt") {
        heads.multi = Some(MultiHead { width, layers: Projection::File(path), markers: None });
    }
    Ok(heads)
}

/// The labels that the configuration gives a classifier, in the order of its outputs.
fn labels(config: &Value) -> Vec<String> {
    let named: BTreeMap<usize, String> = config
        .get("id2label")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(id, label)| Some((id.parse().ok()?, label.as_str()?.to_owned())))
        .collect();
    named.into_values().collect()
}

/// The labels of a classifier whose configuration has none, as transformers names them: of the two that it takes for granted, or of
/// the one of a reranker that is to be loaded with `num_labels=1`. The weights say which.
fn unnamed_labels(folder: &Path, weights: &[PathBuf]) -> Result<Vec<String>, ModelError> {
    let shapes = weights::shapes(folder, weights)?;
    let last = ["classifier.out_proj.weight", "classifier.weight"].iter().find_map(|name| shapes.get(*name));
    let outputs = last.and_then(|shape| shape.first()).copied().unwrap_or(2);
    Ok((0..outputs).map(|id| format!("LABEL_{id}")).collect())
}

fn max_input_length(folder: &Path, positions: usize) -> Result<usize, ModelError> {
    let length = sentence::max_length(folder)?.unwrap_or(usize::MAX).min(positions);
    // Two special tokens and one of text: less can't hold anything.
    if length < 3 {
        Err(unsupported(folder, format!("a maximum length of {length} tokens")))
    } else {
        Ok(length)
    }
}

pub(super) fn unsupported(folder: &Path, what: String) -> ModelError {
    ModelError::Unsupported { folder: folder.to_owned(), what }
}

/// A configuration as the fields that one family needs; in words what is missing.
pub(super) fn parse<T: DeserializeOwned>(config: &Value) -> Result<T, String> {
    T::deserialize(config).map_err(|error| format!("a config.json that is not what was expected ({error})"))
}

pub(super) fn required<T: DeserializeOwned>(folder: &Path, name: &str) -> Result<T, ModelError> {
    optional(folder, name)?.ok_or_else(|| ModelError::MissingFile { path: folder.join(name) })
}

pub(super) fn optional<T: DeserializeOwned>(folder: &Path, name: &str) -> Result<Option<T>, ModelError> {
    let path = folder.join(name);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(ModelError::Read { path, source }),
    };
    serde_json::from_slice(&text).map(Some).map_err(|source| ModelError::Parse { path, source })
}
