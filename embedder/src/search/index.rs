//! A corpus in memory, as it was at one generation: vectors side by side, words, and which chunk each belongs to.

use super::bm25::Words;
use crate::http::ApiError;
use crate::jobs::{Store, StoreError};
use crate::sinks::Chunk;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use tokio::sync::Mutex;

/// Most chunks of a corpus that is searched here: with 384 numbers each, 300 MB of vectors.
pub const MOST_CHUNKS: u64 = 200_000;
/// Corpora in memory at once.
const CORPORA: usize = 4;
/// Documents that are read at once.
const PAGE: usize = 64;

/// The corpora that were searched last; clones share them.
#[derive(Clone)]
pub struct Indexes {
    /// Digest of the model that embeds queries.
    model: Arc<str>,
    kept: Arc<Mutex<Vec<Arc<Index>>>>,
}

/// What looking for a corpus found.
pub enum Found {
    Index(Arc<Index>),
    NoCorpus,
    TooLarge { chunks: u64 },
}

/// One corpus.
pub struct Index {
    corpus: String,
    generation: u64,
    /// By chunk: its document and its place there.
    chunks: Vec<(u32, u32)>,
    documents: Vec<String>,
    dimension: usize,
    /// The chunks whose vectors are compared, in the order of these.
    compared: Vec<u32>,
    vectors: Vec<f32>,
    pub words: Words,
}

impl Indexes {
    /// Corpora for queries that a model with this digest embeds; none is read yet.
    pub fn new(model_digest: &str) -> Self {
        Self { model: model_digest.into(), kept: Arc::default() }
    }

    /// A corpus as it is now; reads it where it has changed.
    pub async fn get(&self, store: &Arc<Store>, corpus: &str) -> Result<Found, StoreError> {
        // Held while a corpus is read, so that it is not read twice at once; and taken before the work is handed over: whoever
        // waits takes no thread, and what nobody waits for any more is never read.
        let mut kept = self.kept.clone().lock_owned().await;
        let (corpus, model) = (corpus.to_owned(), self.model.clone());
        let find = move |store: &Store| {
            // Only now: the corpus may have changed while others were read.
            let Some(record) = store.corpus(&corpus)? else { return Ok(Found::NoCorpus) };
            if record.chunks > MOST_CHUNKS {
                return Ok(Found::TooLarge { chunks: record.chunks });
            }
            let known = kept.iter().position(|index| index.corpus == corpus);
            let index = match known.map(|place| kept.remove(place)) {
                Some(index) if index.generation == record.generation => index,
                _ => Arc::new(Index::read(store, &corpus, record.generation, &model)?),
            };
            kept.insert(0, index.clone());
            kept.truncate(CORPORA);
            Ok(Found::Index(index))
        };
        store.blocking(find).await
    }
}

impl Index {
    fn new(corpus: &str, generation: u64) -> Self {
        Self {
            corpus: corpus.to_owned(),
            generation,
            chunks: Vec::new(),
            documents: Vec::new(),
            dimension: 0,
            compared: Vec::new(),
            vectors: Vec::new(),
            words: Words::default(),
        }
    }

    fn read(store: &Store, corpus: &str, generation: u64, model: &str) -> Result<Self, StoreError> {
        let mut index = Self::new(corpus, generation);
        let mut after = None;
        loop {
            let mut page = store.document_ids(corpus, after.as_deref(), PAGE)?;
            for id in &page {
                index.add(id, store.chunks(corpus, id)?.unwrap_or_default(), model);
            }
            let Some(last) = page.pop() else { return Ok(index) };
            after = Some(last);
        }
    }

    /// Adds a document. Its words are searched whatever made its vectors.
    fn add(&mut self, id: &str, chunks: Vec<Chunk>, model: &str) {
        let document = u32::try_from(self.documents.len()).unwrap_or(u32::MAX);
        self.documents.push(id.to_owned());
        for (place, chunk) in (0_u32..).zip(chunks) {
            let number = u32::try_from(self.chunks.len()).unwrap_or(u32::MAX);
            self.chunks.push((document, place));
            self.words.add(&searched_text(&chunk));
            // A vector of another model can't be compared, of whatever width it is; the next job of its source makes it anew.
            if chunk.model_digest != model {
                continue;
            }
            if self.dimension == 0 {
                self.dimension = chunk.vector.len();
            }
            if chunk.vector.len() == self.dimension {
                self.compared.push(number);
                self.vectors.extend(chunk.vector);
            }
        }
    }

    /// How many chunks there are.
    pub fn len(&self) -> usize {
        self.chunks.len()
    }

    /// The chunks whose vectors are nearest to one, by the dot product: the cosine where all vectors have length 1, which they
    /// have unless the model is one whose vectors are compared by just that.
    pub fn nearest(&self, vector: &[f32], most: usize) -> Vec<(u32, f32)> {
        if self.dimension == 0 || vector.len() != self.dimension {
            return Vec::new();
        }
        let vectors = self.vectors.chunks_exact(self.dimension);
        let dot = |other: &[f32]| vector.iter().zip(other).map(|(one, two)| one * two).sum::<f32>();
        let mut scored: Vec<(u32, f32)> = self.compared.iter().copied().zip(vectors.map(dot)).collect();
        let better = |one: &(u32, f32), two: &(u32, f32)| two.1.total_cmp(&one.1).then(one.0.cmp(&two.0));
        if scored.len() > most {
            scored.select_nth_unstable_by(most, better);
            scored.truncate(most);
        }
        scored.sort_by(better);
        scored
    }

    /// Some chunks as they are kept, in the order in which they are asked for.
    pub async fn chunks(&self, store: &Arc<Store>, chunks: Vec<u32>) -> Result<Vec<Chunk>, ApiError> {
        let places: Vec<(String, usize)> = chunks
            .iter()
            .filter_map(|chunk| self.chunks.get(*chunk as usize))
            .filter_map(|(document, place)| {
                Some((self.documents.get(*document as usize)?.clone(), *place as usize))
            })
            .collect();
        let corpus = self.corpus.clone();
        let read = move |store: &Store| {
            let mut documents: HashMap<String, Vec<Chunk>> = HashMap::new();
            let mut found = Vec::with_capacity(places.len());
            for (id, place) in places {
                let chunks = match documents.entry(id) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(new) => {
                        let chunks = store.chunks(&corpus, new.key())?.unwrap_or_default();
                        new.insert(chunks)
                    }
                };
                found.push(chunks.get(place).cloned());
            }
            Ok(found)
        };
        let found: Option<Vec<Chunk>> = store.blocking(read).await?.into_iter().collect();
        found.ok_or_else(|| ApiError::unhealthy("the corpus has changed meanwhile: ask again"))
    }
}

/// What words are looked for in, and what a reranker reads: the context and the chunk.
pub fn searched_text(chunk: &Chunk) -> String {
    match &chunk.context {
        Some(context) => format!("{context}\n\n{}", chunk.text),
        None => chunk.text.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::SinkSpec;
    use futures::FutureExt as _;

    #[tokio::test]
    async fn a_corpus_is_read_once_and_nobody_reads_for_those_who_have_left() {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(folder.path()).unwrap());
        let indexes = Indexes::new("d");
        let found = async |corpus: &str| match indexes.get(&store, corpus).await.unwrap() {
            Found::Index(index) => Some(index),
            _ => None,
        };
        assert!(found("c").await.is_none());
        let sink = SinkSpec::Jsonl { path: "c.jsonl".to_owned() };
        for corpus in ["c", "d"] {
            store.set_sink(corpus, Some(&sink)).unwrap();
        }
        // As while another corpus is read.
        let reading = indexes.kept.clone().lock_owned().await;
        assert!(indexes.get(&store, "d").now_or_never().is_none());
        drop(reading);
        let first = found("c").await.unwrap();
        assert!(Arc::ptr_eq(&first, &found("c").await.unwrap()));
        assert_eq!(indexes.kept.lock().await.len(), 1, "the one who asked for the other corpus has left");
    }

    fn chunk(text: &str, model_digest: &str, vector: &[f32]) -> Chunk {
        Chunk {
            chunk_id: text.to_owned(),
            corpus: "c".to_owned(),
            document_id: text.to_owned(),
            title: None,
            index: 0,
            start: 0,
            end: text.len(),
            heading_path: Vec::new(),
            pages: None,
            text: text.to_owned(),
            context: None,
            context_truncated: false,
            context_error: None,
            tokens: 1,
            model: "m".to_owned(),
            model_digest: model_digest.to_owned(),
            chunker: "c".to_owned(),
            metadata: None,
            vector: vector.to_vec(),
        }
    }

    #[test]
    fn what_another_model_has_made_is_found_by_its_words_alone() {
        let mut index = Index::new("c", 0);
        for chunk in [
            chunk("narrow", "old", &[1.0, 1.0]),
            chunk("one", "new", &[0.0, 1.0, 0.0]),
            chunk("wide", "old", &[9.0, 9.0, 9.0]),
            chunk("two", "new", &[1.0, 0.0, 0.0]),
        ] {
            let id = chunk.document_id.clone();
            index.add(&id, vec![chunk], "new");
        }
        let numbers = |found: Vec<(u32, f32)>| found.into_iter().map(|(chunk, _)| chunk).collect::<Vec<_>>();
        assert_eq!(numbers(index.nearest(&[1.0, 0.5, 0.0], 10)), [3, 1]);
        assert_eq!(numbers(index.words.best("narrow", 10)), [0]);
        assert_eq!(numbers(index.words.best("wide", 10)), [2]);
        assert_eq!(index.len(), 4);
    }
}
