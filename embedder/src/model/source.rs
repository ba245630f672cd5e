//! Where a model comes from: a folder, or a name on the hub that is downloaded into a cache.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use super::ModelError;
use super::weights::{INDEX, PICKLED, PICKLED_INDEX, SINGLE};

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

/// Whether a file is weights of the model as PyTorch pickles them, and its folder among `files` has no others.
fn belongs_pickled(name: &str, files: &[&str]) -> bool {
    let Some(folder) = name.strip_suffix(PICKLED).or_else(|| name.strip_suffix(PICKLED_INDEX)) else {
        return false;
    };
    let beside = |other: &&str| {
        let own = other.strip_prefix(folder).is_some_and(|file| !file.contains('/'));
        own && other.ends_with(".safetensors") && belongs(other)
    };
    belongs(&format!("{folder}{SINGLE}")) && !files.iter().any(beside)
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

/// The model's folder, and the hub's commit where it came from the hub: the newest one of the revision, or the one that was fetched
/// before while the hub does not answer. Blocks while it downloads.
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
    let api = builder.build().map_err(failed)?;
    let revision = source.revision.as_deref().unwrap_or("main");
    let repo =
        |revision: &str| Repo::with_revision(source.model.clone(), RepoType::Model, revision.to_owned());
    let kept = source.cache.clone().map_or_else(Cache::from_env, Cache::new).repo(repo(revision));
    let info = match api.repo(repo(revision)).info() {
        Ok(info) => info,
        Err(error) => {
            let known = if is_away(&error) { complete(&kept, revision) } else { None };
            let Some((folder, commit)) = known else { return Err(failed(error)) };
            tracing::warn!(
                model = source.model,
                commit,
                %error,
                "the hub does not say what is newest: taking what is in the cache"
            );
            return Ok((folder, Some(commit)));
        }
    };
    // All files are those of one commit, however often the branch moves on meanwhile.
    let (commit, folder) = (api.repo(repo(&info.sha)), kept.pointer_path(&info.sha));
    let files: Vec<&str> = info.siblings.iter().map(|file| file.rfilename.as_str()).collect();
    let needed: Vec<&str> =
        files.iter().copied().filter(|name| belongs(name) || belongs_pickled(name, &files)).collect();
    for name in &needed {
        if !folder.join(name).exists() {
            tracing::info!(model = source.model, file = name, "fetching from the hub");
            commit.download(name).map_err(failed)?;
        }
    }
    // Only now, so that the cache never calls half a commit the newest one. One that can't be written to has all files already.
    if complete(&kept, revision).is_none_or(|(newest, _)| newest != folder)
        && let Err(error) = note(&folder, &needed).and_then(|()| kept.create_ref(&info.sha))
    {
        tracing::warn!(model = source.model, %error, "the cache can't take note of the newest commit");
    }
    Ok((folder, Some(info.sha)))
}

/// Whether the hub did not answer, or could not. One that refuses is there, and its word counts.
fn is_away(error: &ApiError) -> bool {
    let ApiError::RequestError(error) = error else { return true };
    !matches!(**error, ureq::Error::StatusCode(status) if status != 429 && status < 500)
}

/// Where the files of a commit are listed that was fetched whole. Only [`fetch`] knows what belongs to a model: others share the cache
/// and fetch what they need, without the pooling or the prompts.
fn list(folder: &Path) -> std::io::Result<PathBuf> {
    let place = || Some(folder.parent()?.parent()?.join("principium").join(folder.file_name()?));
    place().ok_or_else(|| std::io::Error::other(format!("{} is in no cache", folder.display())))
}

/// Takes note of a commit whose `files` are all in the `folder`.
fn note(folder: &Path, files: &[&str]) -> std::io::Result<()> {
    let path = list(folder)?;
    // Under another name first, so that nobody finds half a list.
    let new = path.with_extension(format!("{}.new", std::process::id()));
    std::fs::create_dir_all(path.parent().unwrap_or(folder))?;
    std::fs::write(&new, files.join("\n"))?;
    std::fs::rename(&new, &path)
}

/// The folder and the commit of the revision in the cache, where it was fetched whole and no file is missing.
fn complete(kept: &CacheRepo, revision: &str) -> Option<(PathBuf, String)> {
    // Who asks for a commit needs no ref to it.
    let config = kept.get("config.json").unwrap_or_else(|| kept.pointer_path(revision).join("config.json"));
    let folder = config.parent()?.to_owned();
    let commit = folder.file_name()?.to_str()?.to_owned();
    let files = std::fs::read_to_string(list(&folder).ok()?).ok()?;
    files.lines().all(|file| folder.join(file).exists()).then_some((folder, commit))
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

    #[test]
    fn pickled_weights_are_fetched_where_there_are_no_others() {
        for (name, others, expected) in [
            ("pytorch_model.bin", &["2_Dense/model.safetensors", "adapter.safetensors"][..], true),
            ("pytorch_model.bin.index.json", &["pytorch_model-00001-of-00002.bin"], true),
            ("2_Dense/pytorch_model.bin", &["model.safetensors"], true),
            ("pytorch_model.bin", &["model.safetensors"], false),
            ("pytorch_model.bin", &["model-00001-of-00002.safetensors"], false),
            ("pytorch_model.bin.index.json", &["model-00001-of-00002.safetensors"], false),
            ("2_Dense/pytorch_model.bin", &["2_Dense/model.safetensors"], false),
            ("onnx/pytorch_model.bin", &[], false),
            ("old-pytorch_model.bin", &[], false),
            ("model.bin", &[], false),
        ] {
            assert_eq!(belongs_pickled(name, others), expected, "{name} beside {others:?}");
        }
    }
}
