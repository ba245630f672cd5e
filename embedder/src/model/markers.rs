//! How a model with one vector a token treats the two sides of a search: markers, the fill of queries and the words of documents
//! that don't count, as sentence-transformers, PyLate or ColBERT wrote it down. Which ids these are, `tokens` knows.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::ModelError;
use super::files::{optional, unsupported};

/// Tokens of a query for which nobody says how many: ColBERT's and PyLate's default.
const QUERY_LENGTH: usize = 32;

/// What is done to queries and documents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Markers {
    /// A token, or a text where the vocabulary has no such token.
    pub(super) query: String,
    pub(super) document: String,
    /// Words whose vectors are left out of documents: punctuation.
    pub(super) skipped: Vec<String>,
    /// The most tokens of a query, the marker and special ones included; the model's maximum for `None`.
    pub(super) query_length: Option<usize>,
    pub(super) fill: Option<Fill>,
}

/// Shorter queries are filled with mask tokens, which have vectors like all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fill {
    /// The token; the tokenizer's mask, or else its end of a text, for `None`.
    pub(super) token: Option<String>,
    /// Tokens of a query that was filled.
    pub(super) length: usize,
    /// Whether tokens attend to the fill. The fill attends to the text in any case.
    pub(super) attended: bool,
}

/// `config.json` of sentence-transformers' module that says which tokens count.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Mask {
    #[serde(default)]
    skiplist_words: Option<Vec<String>>,
    #[serde(default)]
    skiplist_tasks: Option<Vec<String>>,
    #[serde(default)]
    keep_only_token_ids: Option<Vec<u32>>,
}

#[derive(Deserialize, Default)]
struct PyLate {
    query_prefix: Option<String>,
    document_prefix: Option<String>,
    skiplist_words: Option<Vec<String>>,
    query_length: Option<usize>,
    do_query_expansion: Option<bool>,
    attend_to_expansion_tokens: Option<bool>,
    #[serde(default)]
    prompts: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
struct Colbert {
    query_token_id: Option<String>,
    doc_token_id: Option<String>,
    query_maxlen: Option<usize>,
    attend_to_mask_tokens: Option<bool>,
    mask_punctuation: Option<bool>,
}

#[derive(Deserialize, Default)]
struct SentenceTransformers {
    query_length: Option<usize>,
    query_expansion: Option<Expansion>,
}

#[derive(Deserialize)]
struct Expansion {
    strategy: String,
    #[serde(default)]
    attend: bool,
    token: Option<String>,
    length: usize,
}

/// Reads what sentence-transformers (which has a `mask` then), PyLate or ColBERT wrote down; ColBERT's ways where nobody did.
pub(super) fn markers(folder: &Path, mask: Option<&Mask>) -> Result<Markers, ModelError> {
    let pylate: PyLate = optional(folder, "config_sentence_transformers.json")?.unwrap_or_default();
    if let Some(mask) = mask {
        let file: SentenceTransformers = optional(folder, "sentence_bert_config.json")?.unwrap_or_default();
        return native(pylate.prompts, mask, file).map_err(|what| unsupported(folder, what));
    }
    let colbert: Colbert = optional(folder, "artifact.metadata")?.unwrap_or_default();
    let marker = |older: Option<String>, name: &str, colbert: Option<String>, default: &str| {
        older.or_else(|| pylate.prompts.get(name).cloned()).or(colbert).unwrap_or_else(|| default.to_owned())
    };
    let length = pylate.query_length.or(colbert.query_maxlen).unwrap_or(QUERY_LENGTH);
    let attended = pylate.attend_to_expansion_tokens.or(colbert.attend_to_mask_tokens).unwrap_or(false);
    let fills = pylate.do_query_expansion.unwrap_or(true);
    let punctuation = || ('!'..='~').filter(char::is_ascii_punctuation).map(String::from).collect();
    Ok(Markers {
        query: marker(pylate.query_prefix, "query", colbert.query_token_id, "[unused0]"),
        document: marker(pylate.document_prefix, "document", colbert.doc_token_id, "[unused1]"),
        skipped: match (pylate.skiplist_words, colbert.mask_punctuation) {
            (Some(words), _) => words,
            (None, Some(false)) => Vec::new(),
            (None, _) => punctuation(),
        },
        query_length: Some(length),
        fill: fills.then_some(Fill { token: None, length, attended }),
    })
}

/// The newer form: markers are prompts, everything else stands beside the encoder and in the module `mask`.
fn native(
    mut prompts: BTreeMap<String, String>,
    mask: &Mask,
    file: SentenceTransformers,
) -> Result<Markers, String> {
    if mask.skiplist_tasks.as_ref().is_some_and(|tasks| *tasks != ["document"]) {
        return Err(format!("words left out of {:?} (only \"document\" is)", mask.skiplist_tasks));
    }
    if mask.keep_only_token_ids.is_some() {
        return Err("a list of the only tokens that count".to_owned());
    }
    let mut query_length = file.query_length;
    let fill = match file.query_expansion {
        None => None,
        Some(Expansion { strategy, attend, token, length }) => {
            match strategy.as_str() {
                "fixed" => query_length = Some(length),
                "min" => {}
                other => return Err(format!("the filling of queries {other:?}")),
            }
            Some(Fill { token, length, attended: attend })
        }
    };
    Ok(Markers {
        query: prompts.remove("query").unwrap_or_default(),
        document: prompts.remove("document").unwrap_or_default(),
        skipped: mask.skiplist_words.clone().unwrap_or_default(),
        query_length,
        fill,
    })
}

/// The tokenizer's token for words that are to be guessed, or the one that ends a text.
pub(super) fn mask_token(folder: &Path) -> Result<Option<String>, ModelError> {
    special_token(folder, &["mask_token", "eos_token"])
}

/// The tokenizer's token for what its vocabulary does not have.
pub(super) fn unknown_token(folder: &Path) -> Result<Option<String>, ModelError> {
    special_token(folder, &["unk_token"])
}

/// The first of the tokens that the tokenizer has under these names.
fn special_token(folder: &Path, names: &[&str]) -> Result<Option<String>, ModelError> {
    let config: Value = optional(folder, "tokenizer_config.json")?.unwrap_or_default();
    let token = |name: &&str| {
        let token = config.get(*name)?;
        token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
    };
    Ok(names.iter().find_map(token))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(files: &[(&str, Value)], mask: Option<Value>) -> Result<Markers, String> {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(folder.path().join(name), content.to_string()).unwrap();
        }
        let mask = mask.map(|mask| serde_json::from_value(mask).unwrap());
        markers(folder.path(), mask.as_ref()).map_err(|error| error.to_string())
    }

    fn fill(length: usize, attended: bool) -> Option<Fill> {
        Some(Fill { token: None, length, attended })
    }

    #[test]
    fn queries_are_filled_as_each_kind_of_files_says() {
        let pylate = "config_sentence_transformers.json";
        let expansion = |strategy: &str| {
            let expansion = json!({ "strategy": strategy, "attend": true, "token": null, "length": 24 });
            [("sentence_bert_config.json", json!({ "query_length": 48, "query_expansion": expansion }))]
        };
        let cases = [
            ("nobody says anything", read(&[], None), Some(32), fill(32, false)),
            (
                "ColBERT",
                read(
                    &[("artifact.metadata", json!({ "query_maxlen": 64, "attend_to_mask_tokens": true }))],
                    None,
                ),
                Some(64),
                fill(64, true),
            ),
            (
                "PyLate",
                read(&[(pylate, json!({ "query_length": 48, "attend_to_expansion_tokens": true }))], None),
                Some(48),
                fill(48, true),
            ),
            (
                "PyLate without it",
                read(&[(pylate, json!({ "query_length": 48, "do_query_expansion": false }))], None),
                Some(48),
                None,
            ),
            ("sentence-transformers", read(&expansion("fixed"), Some(json!({}))), Some(24), fill(24, true)),
            ("its floor", read(&expansion("min"), Some(json!({}))), Some(48), fill(24, true)),
            ("its plain form", read(&[], Some(json!({}))), None, None),
        ];
        for (name, found, length, fill) in cases {
            let found = found.unwrap();
            assert_eq!((found.query_length, found.fill), (length, fill), "{name}");
        }
        assert!(read(&expansion("longest"), Some(json!({}))).unwrap_err().contains("\"longest\""));
    }

    #[test]
    fn punctuation_is_left_out_unless_the_files_have_words_of_their_own() {
        assert_eq!(read(&[], None).unwrap().skipped.len(), 32);
        let none = [("artifact.metadata", json!({ "mask_punctuation": false }))];
        assert_eq!(read(&none, None).unwrap().skipped, [""; 0]);
        assert_eq!(read(&[], Some(json!({}))).unwrap().skipped, [""; 0]);
        let named = json!({ "skiplist_words": ["!"], "skiplist_tasks": ["document"] });
        assert_eq!(read(&[], Some(named)).unwrap().skipped, ["!"]);
        let both = json!({ "skiplist_tasks": ["query", "document"] });
        assert!(read(&[], Some(both)).unwrap_err().contains("words left out of"));
    }
}
