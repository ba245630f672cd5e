//! The files of sentence-transformers (and of its sparse and multi-vector kin) beside a model: which modules follow the
//! encoder, how states are pooled, how long vectors are and by what they are compared, which prompts there are, how long
//! inputs may be.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::ModelError;
use super::files::{optional, required, unsupported};
use super::markers::Mask;

/// What sentence-transformers notes of the encoder.
const SENTENCE_BERT: &str = "sentence_bert_config.json";
/// What it notes of the whole model.
const WHOLE: &str = "config_sentence_transformers.json";

/// How the hidden states of a text become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over all tokens.
    Mean,
    /// The sum over all tokens, divided by the square root of their number.
    MeanSqrtLength,
    /// The mean with weights that grow by one from token to token.
    WeightedMean,
    /// The largest value of each component.
    Max,
    /// The state of the first token.
    Cls,
    /// The state of the last token.
    LastToken,
}

impl Pooling {
    /// In the order in which sentence-transformers puts those beside one another that older files switch on.
    const ALL: [Self; 6] =
        [Self::Cls, Self::Max, Self::Mean, Self::MeanSqrtLength, Self::WeightedMean, Self::LastToken];

    /// The name that `/info` shows, as text-embeddings-inference writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::MeanSqrtLength => "mean_sqrt_len",
            Self::WeightedMean => "weightedmean",
            Self::Max => "max",
            Self::Cls => "cls",
            Self::LastToken => "last_token",
        }
    }

    /// The key that switches it on in older files.
    fn key(self) -> &'static str {
        match self {
            Self::Mean => "pooling_mode_mean_tokens",
            Self::MeanSqrtLength => "pooling_mode_mean_sqrt_len_tokens",
            Self::WeightedMean => "pooling_mode_weightedmean_tokens",
            Self::Max => "pooling_mode_max_tokens",
            Self::Cls => "pooling_mode_cls_token",
            Self::LastToken => "pooling_mode_lasttoken",
        }
    }
}

/// What follows the pooling, or the encoder where each token has a vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Squash {
    Nothing,
    Tanh,
    Relu,
    Gelu,
}

/// A linear layer of its own folder.
#[derive(Debug, Clone)]
pub(super) struct Dense {
    pub(super) weights: PathBuf,
    /// Width of its output.
    pub(super) width: usize,
    pub(super) squash: Squash,
}

/// How the scores of a masked language model become the weights of words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SparsePooling {
    /// Whether the tokens' weights are added up; else the largest counts.
    pub sum: bool,
    /// Whether the logarithm is taken twice.
    pub twice: bool,
}

/// What `modules.json` lists behind the encoder.
#[derive(Debug, Clone, Default)]
pub(super) struct Modules {
    /// Several stand beside one another in the vector.
    pub(super) pooling: Vec<Pooling>,
    /// Whether the pooling leaves out the tokens of the prompt.
    pub(super) without_prompt: bool,
    pub(super) dense: Vec<Dense>,
    /// Whether the vector is scaled to length 1 behind all of these.
    pub(super) normalized: bool,
    pub(super) sparse: Option<SparsePooling>,
    /// Which of the vectors of tokens count.
    pub(super) mask: Option<Mask>,
}

#[derive(Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct DenseFile {
    out_features: usize,
    #[serde(default)]
    activation_function: String,
    #[serde(default)]
    use_residual: bool,
}

/// Reads `modules.json`; `None` where there is none.
pub(super) fn modules(folder: &Path) -> Result<Option<Modules>, ModelError> {
    let Some(list) = optional::<Vec<Module>>(folder, "modules.json")? else { return Ok(None) };
    let mut modules = Modules::default();
    for module in list {
        let file = format!("{}/config.json", module.path);
        let kind = module.kind.rsplit('.').next().unwrap_or_default();
        if modules.normalized && kind != "MultiVectorMask" {
            return Err(unsupported(folder, format!("the module {kind} behind the normalization")));
        }
        match kind {
            "Transformer" | "MLMTransformer" => {}
            "Normalize" => modules.normalized = true,
            "Pooling" => {
                let file: Value = required(folder, &file)?;
                modules.pooling = read_pooling(folder, &file)?;
                modules.without_prompt = file.get("include_prompt").and_then(Value::as_bool) == Some(false);
            }
            "Dense" => modules.dense.push(read_dense(folder, &module.path, &required(folder, &file)?)?),
            "MultiVectorMask" => modules.mask = Some(required(folder, &file)?),
            "SpladePooling" => modules.sparse = Some(read_splade(folder, &required(folder, &file)?)?),
            other => return Err(unsupported(folder, format!("the sentence-transformers module {other}"))),
        }
    }
    Ok(Some(modules))
}

fn read_pooling(folder: &Path, file: &Value) -> Result<Vec<Pooling>, ModelError> {
    let named = |name: &str| {
        let mode = Pooling::ALL.into_iter().find(|mode| {
            mode.name() == name
                || (name, *mode) == ("lasttoken", Pooling::LastToken)
                || (name, *mode) == ("mean_sqrt_len_tokens", Pooling::MeanSqrtLength)
        });
        mode.ok_or_else(|| unsupported(folder, format!("the pooling {name:?}")))
    };
    let on = |mode: &Pooling| file.get(mode.key()).and_then(Value::as_bool) == Some(true);
    // Newer files name one mode, or several in a list; older ones switch each on or off, which says nothing in newer ones.
    let pooling: Vec<Pooling> = match file.get("pooling_mode") {
        Some(Value::String(name)) => vec![named(name)?],
        Some(Value::Array(names)) => {
            names.iter().filter_map(Value::as_str).map(named).collect::<Result<Vec<_>, _>>()?
        }
        _ => Pooling::ALL.into_iter().filter(on).collect(),
    };
    if pooling.is_empty() {
        return Err(unsupported(folder, format!("a pooling with no known mode switched on: {file}")));
    }
    Ok(pooling)
}

fn read_dense(folder: &Path, path: &str, file: &DenseFile) -> Result<Dense, ModelError> {
    let squash = match file.activation_function.rsplit('.').next().unwrap_or_default() {
        "" | "Identity" => Squash::Nothing,
        "Tanh" => Squash::Tanh,
        "ReLU" => Squash::Relu,
        "GELU" => Squash::Gelu,
        other => return Err(unsupported(folder, format!("the activation {other} of a dense layer"))),
    };
    if file.use_residual {
        return Err(unsupported(folder, "a dense layer with a residual".to_owned()));
    }
    let own = folder.join(path);
    let [weights, pickled] = [super::weights::SINGLE, super::weights::PICKLED].map(|name| own.join(name));
    let found = [&weights, &pickled].into_iter().find(|path| path.is_file()).cloned();
    match found {
        Some(weights) => Ok(Dense { weights, width: file.out_features, squash }),
        None => Err(ModelError::MissingFile { path: weights }),
    }
}

fn read_splade(folder: &Path, file: &Value) -> Result<SparsePooling, ModelError> {
    let text =
        |name: &str, default: &str| file.get(name).and_then(Value::as_str).unwrap_or(default).to_owned();
    let sum = match text("pooling_strategy", "max").as_str() {
        "max" => false,
        "sum" => true,
        other => return Err(unsupported(folder, format!("the sparse pooling {other:?}"))),
    };
    let twice = match text("activation_function", "relu").as_str() {
        "relu" => false,
        "log1p_relu" => true,
        other => return Err(unsupported(folder, format!("the activation {other:?} of a sparse pooling"))),
    };
    Ok(SparsePooling { sum, twice })
}

/// Prefixes that a model was trained with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Prompts {
    /// By name.
    #[serde(default, rename = "prompts")]
    pub by_name: BTreeMap<String, String>,
    /// The name of the one that is used where a request names none.
    #[serde(default, rename = "default_prompt_name")]
    pub default: Option<String>,
}

impl Prompts {
    /// The name of the prompt for a purpose: `query`, `document`, `classification` or `clustering`. Models write some of them
    /// with a capital, and have other words for documents.
    pub fn name_for(&self, purpose: &str) -> Option<&str> {
        let named = |name: &str| self.by_name.keys().find(|known| known.eq_ignore_ascii_case(name));
        let name = match purpose {
            "document" => ["document", "passage", "corpus"].into_iter().find_map(named),
            other => named(other),
        };
        name.map(String::as_str)
    }

    /// What stands before documents: the prompt for them, or the default one.
    pub fn document(&self) -> &str {
        self.text_for("document")
    }

    /// What stands before what is searched for: the prompt for it, or the default one.
    pub fn query(&self) -> &str {
        self.text_for("query")
    }

    fn text_for(&self, purpose: &str) -> &str {
        let name = self.name_for(purpose).or(self.default.as_deref());
        name.and_then(|name| self.by_name.get(name)).map_or("", String::as_str)
    }
}

/// Reads the prompts of `config_sentence_transformers.json`.
pub(super) fn prompts(folder: &Path) -> Result<Prompts, ModelError> {
    Ok(optional(folder, WHOLE)?.unwrap_or_default())
}

/// By what the vectors of a model are compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Similarity {
    /// Their cosine: their length says nothing.
    #[default]
    Cosine,
    /// Their dot product: their length counts.
    Dot,
}

/// Reads `similarity_fn_name` of `config_sentence_transformers.json`. Without one it is the cosine, and any other than the two
/// counts as that: the distances of sentence-transformers order vectors of length 1 as the cosine does, or nearly so.
pub(super) fn similarity(folder: &Path) -> Result<Similarity, ModelError> {
    let file = optional::<Value>(folder, WHOLE)?;
    let name = file.as_ref().and_then(|file| file.get("similarity_fn_name")).and_then(Value::as_str);
    Ok(match name {
        Some("dot" | "dot_product") => Similarity::Dot,
        _ => Similarity::Cosine,
    })
}

/// The part of `sentence_bert_config.json` that says how texts become tokens.
#[derive(Deserialize)]
struct SentenceBert {
    max_seq_length: Option<usize>,
    do_lower_case: Option<bool>,
}

/// Whether texts are put into lower case before anything else, whatever the tokenizer's own file says.
pub(super) fn lower_case(folder: &Path) -> Result<bool, ModelError> {
    let file = optional::<SentenceBert>(folder, SENTENCE_BERT)?;
    Ok(file.and_then(|it| it.do_lower_case) == Some(true))
}

/// The most tokens of an input, as far as the files say it.
pub(super) fn max_length(folder: &Path) -> Result<Option<usize>, ModelError> {
    #[derive(Deserialize)]
    struct Tokenizer {
        /// transformers writes 1e30 for "no limit", which is no integer.
        model_max_length: Option<f64>,
    }
    let sentence = optional::<SentenceBert>(folder, SENTENCE_BERT)?.and_then(|it| it.max_seq_length);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float cast saturates")]
    let tokenizer = optional::<Tokenizer>(folder, "tokenizer_config.json")?
        .and_then(|it| it.model_max_length)
        .map(|length| length as usize);
    Ok(sentence.or(tokenizer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pooling_is_read_in_its_older_and_its_newer_form() {
        let read = |file: Value| read_pooling(Path::new("m"), &file).map_err(|error| error.to_string());
        for mode in Pooling::ALL {
            assert_eq!(
                read(json!({ (mode.key()): true, "pooling_mode_mean_tokens_": false })).unwrap(),
                [mode]
            );
            assert_eq!(read(json!({ "pooling_mode": mode.name() })).unwrap(), [mode]);
        }
        // As sentence-transformers puts them beside one another, in whatever order the file has them.
        let switches = json!({ "pooling_mode_lasttoken": true, "pooling_mode_mean_tokens": true,
            "pooling_mode_max_tokens": true, "pooling_mode_cls_token": true });
        let all = [Pooling::Cls, Pooling::Max, Pooling::Mean, Pooling::LastToken];
        assert_eq!(read(switches).unwrap(), all);
        let list = json!({ "pooling_mode": ["mean", "max"] });
        assert_eq!(read(list).unwrap(), [Pooling::Mean, Pooling::Max]);
        let both = json!({ "pooling_mode": "cls", "pooling_mode_mean_tokens": true });
        assert_eq!(read(both).unwrap(), [Pooling::Cls]);
        assert!(read(json!({ "pooling_mode": "median" })).unwrap_err().contains("the pooling \"median\""));
        assert!(read(json!({ "pooling_mode_mean_tokens": false })).unwrap_err().contains("no known mode"));
    }

    #[test]
    fn length_and_similarity_are_what_the_files_say() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, value: Value| {
            std::fs::write(folder.path().join(name), value.to_string()).unwrap();
        };
        assert!(modules(folder.path()).unwrap().is_none());
        let normalized = |kinds: &[&str]| {
            let module =
                |kind: &&str| json!({ "path": "", "type": format!("sentence_transformers.models.{kind}") });
            write("modules.json", kinds.iter().map(module).collect());
            modules(folder.path()).unwrap().unwrap().normalized
        };
        assert!(!normalized(&["Transformer"]));
        assert!(normalized(&["Transformer", "Normalize"]));

        let read = || similarity(folder.path()).unwrap();
        assert_eq!(read(), Similarity::Cosine, "there is no file");
        let prompts_alone = json!({ "prompts": { "query": "query: " } });
        write(WHOLE, prompts_alone.clone());
        assert_eq!(read(), Similarity::Cosine, "the file says nothing");
        for (name, expected) in [
            (Value::Null, Similarity::Cosine),
            (json!("cosine"), Similarity::Cosine),
            (json!("dot"), Similarity::Dot),
            (json!("dot_product"), Similarity::Dot),
            (json!("euclidean"), Similarity::Cosine),
            (json!("manhattan"), Similarity::Cosine),
            (json!("MaxSim"), Similarity::Cosine),
        ] {
            let mut file = prompts_alone.clone();
            file["similarity_fn_name"] = name.clone();
            write(WHOLE, file);
            assert_eq!(read(), expected, "{name}");
            assert_eq!(prompts(folder.path()).unwrap().query(), "query: ", "{name}");
        }
    }

    #[test]
    fn the_prompt_for_a_purpose_is_found_under_the_names_that_models_give_it() {
        let prompts = |names: &[&str]| Prompts {
            by_name: names.iter().map(|name| ((*name).to_owned(), format!("{name}: "))).collect(),
            default: Some("other".to_owned()),
        };
        for (names, purpose, found) in [
            (&["document", "passage", "query"][..], "document", Some("document")),
            (&["passage", "query"], "document", Some("passage")),
            (&["corpus", "query"], "document", Some("corpus")),
            (&["query", "other"], "document", None),
            (&["passage", "query"], "query", Some("query")),
            (&["Classification", "Clustering"], "classification", Some("Classification")),
            (&["Classification", "Clustering"], "clustering", Some("Clustering")),
            (&["passage"], "clustering", None),
        ] {
            assert_eq!(prompts(names).name_for(purpose), found, "{purpose} among {names:?}");
        }
        assert_eq!(prompts(&["corpus", "other"]).document(), "corpus: ");
        assert_eq!(prompts(&["corpus", "other"]).query(), "other: ");
        assert_eq!(prompts(&["corpus"]).query(), "");
    }
}
