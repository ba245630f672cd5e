//! What the files of a model folder say: architecture, pooling, lengths, prompts, digest. No tensor is read here.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::ModelError;

/// The architectures that `bert.rs` computes; named in the error about any other one.
pub const SUPPORTED: &[&str] = &["BertModel", "BertForSequenceClassification"];

/// `config.json` of a BERT.
#[derive(Debug, Clone, Deserialize)]
pub struct BertConfig {
    /// The classes that transformers would use; the first one decides.
    #[serde(default)]
    pub architectures: Vec<String>,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Layers of the encoder.
    pub num_hidden_layers: usize,
    /// Attention heads a layer.
    pub num_attention_heads: usize,
    /// Activation between the two linear layers of the feed-forward part.
    pub hidden_act: String,
    /// Added to the variance in layer normalization.
    pub layer_norm_eps: f64,
    /// Rows of the position table: the most tokens that the weights can take.
    pub max_position_embeddings: usize,
    /// `absolute` is the only kind that is computed.
    #[serde(default)]
    pub position_embedding_type: Option<String>,
    /// Labels of a classifier, by their index as text.
    #[serde(default)]
    pub id2label: BTreeMap<String, String>,
}

/// How the hidden states of a text become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over all tokens.
    Mean,
    /// The state of the first token.
    Cls,
}

impl Pooling {
    /// The name that `/info` shows, as text-embeddings-inference writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
        }
    }
}

/// What a model is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Texts to vectors.
    Embedding(Pooling),
    /// Pairs to one score each; the label's name.
    Reranker(String),
}

/// Everything known about a model before its weights are loaded.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    /// The folder.
    pub folder: PathBuf,
    /// `config.json`.
    pub config: BertConfig,
    /// The first entry of `architectures`.
    pub architecture: String,
    /// Embedding or reranking.
    pub task: Task,
    /// The most tokens of one input, special tokens included.
    pub max_input_length: usize,
    /// Prefixes by name, from `config_sentence_transformers.json`.
    pub prompts: BTreeMap<String, String>,
    /// SHA-256 of the weights, in hexadecimal.
    pub weights_digest: String,
}

impl ModelFiles {
    /// Reads the files of `folder` and refuses what could only be computed wrongly.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        let head: Architectures = required(folder, "config.json")?;
        let architecture = head.architectures.first().cloned().unwrap_or_default();
        if !SUPPORTED.contains(&architecture.as_str()) {
            return Err(ModelError::UnsupportedArchitecture {
                folder: folder.to_owned(),
                architecture: if architecture.is_empty() { head.model_type } else { architecture },
            });
        }
        let config: BertConfig = required(folder, "config.json")?;
        if !matches!(config.hidden_act.as_str(), "gelu") {
            return Err(unsupported(
                folder,
                format!("the activation {:?} (only \"gelu\" is)", config.hidden_act),
            ));
        }
        if let Some(kind) = config.position_embedding_type.as_deref().filter(|kind| *kind != "absolute") {
            return Err(unsupported(
                folder,
                format!("the position embedding {kind:?} (only \"absolute\" is)"),
            ));
        }
        if config.num_attention_heads == 0 || !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            return Err(unsupported(
                folder,
                format!("{} heads for a width of {}", config.num_attention_heads, config.hidden_size),
            ));
        }
        let task = if architecture == "BertForSequenceClassification" {
            reranker(folder, &config)?
        } else {
            Task::Embedding(pooling(folder)?)
        };
        let max_input_length = max_input_length(folder, &config)?;
        let prompts =
            optional::<Prompts>(folder, "config_sentence_transformers.json")?.unwrap_or_default().prompts;
        let weights_digest = digest(&folder.join("model.safetensors"))?;
        Ok(Self {
            folder: folder.to_owned(),
            config,
            architecture,
            task,
            max_input_length,
            prompts,
            weights_digest,
        })
    }
}

#[derive(Deserialize)]
struct Architectures {
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    model_type: String,
}

#[derive(Deserialize, Default)]
struct Prompts {
    #[serde(default)]
    prompts: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct SentenceBert {
    max_seq_length: Option<usize>,
}

#[derive(Deserialize)]
struct TokenizerConfig {
    /// transformers writes 1e30 for "no limit", which is no integer.
    model_max_length: Option<f64>,
}

fn reranker(folder: &Path, config: &BertConfig) -> Result<Task, ModelError> {
    // transformers leaves the labels out where they are the two default ones.
    let labels = if config.id2label.is_empty() { 2 } else { config.id2label.len() };
    match config.id2label.values().next() {
        Some(label) if labels == 1 => Ok(Task::Reranker(label.clone())),
        _ => Err(unsupported(folder, format!("a classifier with {labels} labels (a reranker has one)"))),
    }
}

fn pooling(folder: &Path) -> Result<Pooling, ModelError> {
    let Some(modules) = optional::<Vec<Module>>(folder, "modules.json")? else {
        tracing::warn!(folder = %folder.display(), "no modules.json: pooling by the mean, as sentence-transformers does");
        return Ok(Pooling::Mean);
    };
    let mut pooling = None;
    for module in modules {
        match module.kind.rsplit('.').next().unwrap_or_default() {
            // Vectors are normalized on request, which is the default of every API here.
            "Transformer" | "Normalize" => {}
            "Pooling" => {
                let file = format!("{}/config.json", module.path);
                pooling = Some(read_pooling(folder, &required(folder, &file)?)?);
            }
            other => return Err(unsupported(folder, format!("the sentence-transformers module {other}"))),
        }
    }
    pooling.ok_or_else(|| unsupported(folder, "a modules.json without a Pooling module".to_owned()))
}

fn read_pooling(folder: &Path, modes: &BTreeMap<String, serde_json::Value>) -> Result<Pooling, ModelError> {
    let on: Vec<&str> = modes
        .iter()
        .filter(|(name, value)| name.starts_with("pooling_mode_") && value.as_bool() == Some(true))
        .map(|(name, _)| name.as_str())
        .collect();
    match (on.as_slice(), modes.get("pooling_mode").and_then(|mode| mode.as_str())) {
        (["pooling_mode_mean_tokens"], _) | ([], Some("mean")) => Ok(Pooling::Mean),
        (["pooling_mode_cls_token"], _) | ([], Some("cls")) => Ok(Pooling::Cls),
        (on, mode) => Err(unsupported(
            folder,
            format!("the pooling {on:?} {} (mean or cls is)", mode.unwrap_or_default()),
        )),
    }
}

fn max_input_length(folder: &Path, config: &BertConfig) -> Result<usize, ModelError> {
    let sentence =
        optional::<SentenceBert>(folder, "sentence_bert_config.json")?.and_then(|it| it.max_seq_length);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float cast saturates")]
    let tokenizer = optional::<TokenizerConfig>(folder, "tokenizer_config.json")?
        .and_then(|it| it.model_max_length)
        .map(|length| length as usize);
    let length = sentence.or(tokenizer).unwrap_or(usize::MAX).min(config.max_position_embeddings);
    // Two special tokens and one of text: less can't hold anything.
    if length < 3 {
        Err(unsupported(folder, format!("a maximum length of {length} tokens")))
    } else {
        Ok(length)
    }
}

fn unsupported(folder: &Path, what: String) -> ModelError {
    ModelError::Unsupported { folder: folder.to_owned(), what }
}

fn required<T: DeserializeOwned>(folder: &Path, name: &str) -> Result<T, ModelError> {
    optional(folder, name)?.ok_or_else(|| ModelError::MissingFile { path: folder.join(name) })
}

fn optional<T: DeserializeOwned>(folder: &Path, name: &str) -> Result<Option<T>, ModelError> {
    let path = folder.join(name);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(ModelError::Read { path, source }),
    };
    serde_json::from_slice(&text).map(Some).map_err(|source| ModelError::Parse { path, source })
}

fn digest(path: &Path) -> Result<String, ModelError> {
    let read = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => ModelError::MissingFile { path: path.to_owned() },
        _ => ModelError::Read { path: path.to_owned(), source },
    };
    let mut file = std::fs::File::open(path).map_err(read)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer).map_err(read)?;
        if count == 0 {
            return Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        hasher.update(&buffer[..count]);
    }
}
