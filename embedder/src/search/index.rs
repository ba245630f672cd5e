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
#[derive(Clone, Default)]
pub struct Indexes(Arc<Mutex<Vec<Arc<Index>>>>);

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
    vectors: Vec<f32>,
    pub words: Words,
}

impl Indexes {
    /// A corpus as it is now; reads it where it has changed.
    pub async fn get(&self, store: &Arc<Store>, corpus: &str) -> Result<Found, StoreError> {
        // Held while a corpus is read, so that it is not read twice at once; and taken before the work is handed over: whoever
        // waits takes no thread, and what nobody waits for any more is never read.
        let mut kept = self.0.clone().lock_owned().await;
        let corpus = corpus.to_owned();
        let find = move |store: &Store| {
            // Only now: the corpus may have changed while others were read.
            let Some(record) = store.corpus(&corpus)? else { return Ok(Found::NoCorpus) };
            if record.chunks > MOST_CHUNKS {
                return Ok(Found::TooLarge { chunks: record.chunks });
            }
            let known = kept.iter().position(|index| index.corpus == corpus);
            let index = match known.map(|place| kept.remove(place)) {
                Some(index) if index.generation == record.generation => index,
                _ => Arc::new(Index::read(store, &corpus, record.generation)?),
            };
            kept.insert(0, index.clone());
            kept.truncate(CORPORA);
            Ok(Found::Index(index))
        };
        store.blocking(find).await
    }
}

impl Index {
    fn read(store: &Store, corpus: &str, generation: u64) -> Result<Self, StoreError> {
        let mut index = Self {
            corpus: corpus.to_owned(),
            generation,
            chunks: Vec::new(),
            documents: Vec::new(),
            dimension: 0,
            vectors: Vec::new(),
            words: Words::default(),
        };
        let mut after = None;
        loop {
            let mut page = store.document_ids(corpus, after.as_deref(), PAGE)?;
            for id in &page {
                index.add(id, store.chunks(corpus, id)?.unwrap_or_default());
            }
            let Some(last) = page.pop() else { return Ok(index) };
            after = Some(last);
        }
    }

    fn add(&mut self, id: &str, chunks: Vec<Chunk>) {
        let document = u32::try_from(self.documents.len()).unwrap_or(u32::MAX);
        self.documents.push(id.to_owned());
        for (place, chunk) in (0_u32..).zip(chunks) {
            if self.dimension == 0 {
                self.dimension = chunk.vector.len();
            }
            // One of an earlier model can't be compared; the next job of its source makes it anew.
            if chunk.vector.len() != self.dimension {
                continue;
            }
            self.chunks.push((document, place));
            self.words.add(&searched_text(&chunk));
            self.vectors.extend(chunk.vector);
        }
    }

    /// How many chunks there are.
    pub fn len(&self) -> usize {
        self.chunks.len()
    }

    /// The chunks whose vectors are nearest to one, by their cosine: all vectors have length 1.
    pub fn nearest(&self, vector: &[f32], most: usize) -> Vec<(u32, f32)> {
        if self.dimension == 0 || vector.len() != self.dimension {
            return Vec::new();
        }
        let vectors = self.vectors.chunks_exact(self.dimension);
        let dot = |other: &[f32]| vector.iter().zip(other).map(|(one, two)| one * two).sum::<f32>();
        let mut scored: Vec<(u32, f32)> = (0..).zip(vectors.map(dot)).collect();
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
        let indexes = Indexes::default();
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
        let reading = indexes.0.clone().lock_owned().await;
        assert!(indexes.get(&store, "d").now_or_never().is_none());
        drop(reading);
        let first = found("c").await.unwrap();
        assert!(Arc::ptr_eq(&first, &found("c").await.unwrap()));
        assert_eq!(indexes.0.lock().await.len(), 1, "the one who asked for the other corpus has left");
    }
}
