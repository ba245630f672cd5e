//! Where a model comes from: a folder, or a name on the hub that is downloaded into a cache.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Repo, RepoType};

use super::ModelError;
use super::weights::{INDEX, SINGLE};

/// Files that say what a model is, and heads in files of their own.
const KNOWN: &[&str] = &[
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "artifact.metadata",
    "sparse_linear.pt",
    "colbert_linear.pt",
    SINGLE,
    INDEX,
];

/// Whether a file of a repository belongs to the model: not its other formats.
fn belongs(name: &str) -> bool {
    let shard = |name: &str| name.starts_with("model-") && name.ends_with(".safetensors");
    match name.split_once('/') {
        None => KNOWN.contains(&name) || shard(name),
        // The folders of sentence-transformers' modules: `1_Pooling`, `2_Dense`.
        Some((folder, file)) => {
            folder.split_once('_').is_some_and(|(number, _)| number.parse::<u32>().is_ok())
                && (file == "config.json" || file == SINGLE)
        }
    }
}

/// What was configured.
#[derive(Debug, Clone)]
pub struct ModelSource {
    /// A folder, or a name on the hub such as `sentence-transformers/all-MiniLM-L6-v2`.
    pub model: String,
    /// Branch, tag or commit on the hub; `main` where it is not given.
    pub revision: Option<String>,
    /// Where downloads are kept.
    pub cache: Option<PathBuf>,
}

/// The model's folder, and the hub's commit where it came from the hub. Blocks while it downloads.
pub fn fetch(source: &ModelSource) -> Result<(PathBuf, Option<String>), ModelError> {
    let path = Path::new(&source.model);
    if path.is_dir() {
        return Ok((path.to_owned(), None));
    }
    if path.is_absolute() || source.model.starts_with('.') {
        return Err(ModelError::MissingFile { path: path.join("config.json") });
    }
    let endpoint = std::env::var("HF_ENDPOINT").unwrap_or_else(|_| "https://huggingface.co".to_owned());
    let failed = |error: ApiError| ModelError::Hub {
        name: source.model.clone(),
        endpoint: endpoint.clone(),
        message: error.to_string(),
    };
    let mut builder = ApiBuilder::from_env().with_progress(false).with_retries(3);
    if let Some(cache) = &source.cache {
        builder = builder.with_cache_dir(cache.clone());
    }
    if let Ok(token) = std::env::var("HF_TOKEN") {
        builder = builder.with_token(Some(token));
    }
    let revision = source.revision.clone().unwrap_or_else(|| "main".to_owned());
    let repo = builder.build().map_err(failed)?.repo(Repo::with_revision(
        source.model.clone(),
        RepoType::Model,
        revision,
    ));
    let info = repo.info().map_err(failed)?;
    let mut folder = None;
    for name in info.siblings.iter().map(|file| file.rfilename.as_str()).filter(|name| belongs(name)) {
        tracing::info!(model = source.model, file = name, "fetching from the hub");
        let file = repo.get(name).map_err(failed)?;
        if !name.contains('/') {
            folder = folder.or_else(|| file.parent().map(Path::to_owned));
        }
    }
    folder
        .map(|folder| (folder, Some(info.sha)))
        .ok_or_else(|| ModelError::MissingFile { path: path.join("config.json") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_is_fetched_and_its_other_formats_are_not() {
        for name in [
            "config.json",
            "tokenizer.json",
            "model.safetensors",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "1_Pooling/config.json",
            "2_Dense/model.safetensors",
            "colbert_linear.pt",
        ] {
            assert!(belongs(name), "{name}");
        }
        for name in [
            "pytorch_model.bin",
            "onnx/config.json",
            "onnx/model.safetensors",
            "openvino/model.safetensors",
            "README.md",
            "2_Dense/pytorch_model.bin",
            "original/1_Pooling/config.json",
        ] {
            assert!(!belongs(name), "{name}");
        }
    }
}
