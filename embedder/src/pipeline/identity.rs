//! Ids of documents and chunks. They depend on the content alone, so that whoever keeps vectors sees what has changed.

use super::PipelineConfig;
use super::chunk::Chunk;
use super::document::Document;
use super::request::Settings;
use crate::model::Similarity;
use sha2::{Digest, Sha256};
use std::collections::HashMap;

/// The id of a document that came without one.
pub fn document_id(content: &[u8]) -> String {
    format!("sha256-{}", &digest(&[content])[..16])
}

/// What a chunk's vector depends on beside its document and its text: another recipe gives other vectors, and so other ids.
pub fn recipe(config: &PipelineConfig, enrich: bool) -> String {
    let ollama = config.ollama.as_ref().filter(|_| enrich);
    let most_tokens = ollama.map(|ollama| ollama.context_max_tokens.to_string());
    let mut parts = vec![config.model_digest.as_bytes()];
    if let (Some(ollama), Some(most_tokens)) = (ollama, &most_tokens) {
        parts.extend([ollama.model.as_bytes(), most_tokens.as_bytes()]);
        // The usual instruction leaves ids what they were before it could be changed.
        parts.extend(ollama.prompt.as_deref().map(str::as_bytes));
    }
    // Vectors of length 1 leave ids what they were before there were others.
    if config.similarity == Similarity::Dot {
        parts.push(b"similarity: dot");
    }
    digest(&parts)
}

/// All that a document's chunks depend on beside the document itself.
pub fn whole_recipe(config: &PipelineConfig, settings: Settings) -> String {
    let chunker = settings.chunker(settings.cut.chunker.name());
    digest(&[recipe(config, settings.enrich).as_bytes(), chunker.as_bytes()])
}

/// The ids of a document's chunks. A chunk's place is no part of them, so that a change at the top of a document leaves the
/// ids of all other chunks alone; equal chunks of a document are numbered.
pub fn chunk_ids(document: &Document, chunks: &[Chunk], recipe: &str) -> Vec<String> {
    let mut seen: HashMap<&str, u64> = HashMap::new();
    let id = |chunk: &Chunk| {
        let text = &document.text()[chunk.start..chunk.end];
        let occurrence = seen.entry(text).or_default();
        *occurrence += 1;
        let id =
            digest(&[document.id.as_bytes(), text.as_bytes(), recipe.as_bytes(), &occurrence.to_le_bytes()]);
        id[..32].to_owned()
    };
    chunks.iter().map(id).collect()
}

/// SHA-256 of some parts, in hexadecimal.
fn digest(parts: &[&[u8]]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        // With their lengths, so that no two lists of parts look alike.
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Extracted;
    use crate::pipeline::chunk::{self, Chunker, Cut};
    use crate::pipeline::tests::config;
    use std::collections::HashSet;

    fn ids(text: &str, recipe: &str) -> Vec<String> {
        let content = Extracted::plain(text.to_owned());
        let cut = Cut { chunker: Chunker::Auto, most: 4, overlap: 0 };
        let chunks = chunk::split(&chunk::tests::words(), &content, cut).unwrap();
        chunk_ids(&Document { id: "d".into(), title: None, content, metadata: None }, &chunks, recipe)
    }

    #[test]
    fn an_edit_at_the_top_changes_no_later_id() {
        let (before, after) =
            (ids("One two.\n\nThree four.\n\nFive six.", "r"), ids("Zero.\n\nThree four.\n\nFive six.", "r"));
        assert_eq!(before.len(), 3);
        assert_ne!(before[0], after[0]);
        assert_eq!(before[1..], after[1..]);
    }

    #[test]
    fn equal_chunks_of_a_document_have_ids_of_their_own() {
        let ids = ids("One two three.\n\nOne two three.\n\nOne two three.", "r");
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 3, "{ids:?}");
    }

    #[test]
    fn what_changes_the_vector_changes_the_id() {
        let (plain, enriched) = (config(false), config(true));
        let mut other_model = plain.clone();
        other_model.model_digest = "other".into();
        let mut other_length = plain.clone();
        other_length.similarity = Similarity::Dot;
        let mut other_llm = enriched.clone();
        other_llm.ollama.as_mut().unwrap().model = "other".into();
        let recipes = [
            recipe(&plain, false),
            recipe(&other_model, false),
            recipe(&other_length, false),
            recipe(&enriched, true),
            recipe(&other_llm, true),
        ];
        let first: HashSet<String> =
            recipes.iter().map(|recipe| ids("One two three.", recipe).remove(0)).collect();
        assert_eq!(first.len(), recipes.len());
        assert_eq!(
            recipe(&enriched, false),
            recipe(&plain, false),
            "an LLM that is not asked changes nothing"
        );
    }
}
