//! The first stage of a job: a document is read, and what it says is cut into chunks.

use super::about::About;
use super::chunk::{self, Chunk, Chunker, Cut, semantic};
use super::document::{Document, Rejected, Source};
use super::enrich::Prepared;
use super::identity::chunk_ids;
use super::{EmbedTexts, PipelineConfig, Purpose};
use crate::format::Record;
use futures::stream::{self, StreamExt as _};
use serde_json::Value;
use std::sync::Arc;

/// Sentences in one call of the embedder: what is computed of a document is never held for all of them.
const PAGE: usize = 256;

/// Prepares the documents of one job.
#[derive(Clone)]
pub struct Preparer {
    /// The configuration.
    pub config: Arc<PipelineConfig>,
    /// Tells how far apart sentences are.
    pub embedder: Arc<dyn EmbedTexts>,
    /// How to cut.
    pub cut: Cut,
    /// What else a chunk's vector depends on.
    pub recipe: Arc<str>,
    /// Whether what can be seen of a document is told.
    pub describe: bool,
}

/// Levels of metadata: of what has more, stores and sinks could write what no reader of JSON takes, whose limit is about 128.
const DEEPEST: usize = 64;

/// The levels of objects and arrays that hold these values.
fn deepest<'a>(values: impl Iterator<Item = &'a Value>) -> usize {
    let levels = |value: &Value| match value {
        Value::Object(fields) => deepest(fields.values()),
        Value::Array(values) => deepest(values.iter()),
        _ => 0,
    };
    1 + values.map(levels).max().unwrap_or(0)
}

impl Preparer {
    /// The documents in a source, at least one: formats like JSON lines hold several.
    pub async fn prepare(&self, source: Source) -> Vec<Result<Arc<Prepared>, Rejected>> {
        let Source { id, title, bytes, format, metadata } = source;
        let rejected = |error: String| Rejected { id: id.clone(), title: title.clone(), error };
        let records = match self.config.reader.read(bytes, format).await {
            Ok(records) => records,
            Err(error) => return vec![Err(rejected(error.to_string()))],
        };
        let mut prepared = Vec::with_capacity(records.len());
        for record in records {
            let record = record.map_err(|error| rejected(error.to_string()));
            prepared.push(match record {
                Ok(Record { id: own, content, metadata: fields }) => {
                    let mut metadata = metadata.clone();
                    if !fields.is_empty() {
                        metadata.get_or_insert_default().extend(fields);
                    }
                    let id = own.map_or_else(|| id.clone(), |own| format!("{id}#{own}"));
                    let title = title.clone().or_else(|| content.title.clone());
                    match metadata.as_ref().map_or(0, |fields| deepest(fields.values())) {
                        ..=DEEPEST => self.cut(Document { id, title, content, metadata }).await,
                        levels => {
                            let error =
                                format!("metadata has {levels} levels: it can have {DEEPEST} at most");
                            Err(Rejected { id, title, error })
                        }
                    }
                }
                Err(rejected) => Err(rejected),
            });
        }
        if prepared.is_empty() {
            prepared.push(Err(rejected("the document holds no text".to_owned())));
        }
        prepared
    }

    /// Cuts one document, beside the threads that serve.
    async fn cut(&self, document: Document) -> Result<Arc<Prepared>, Rejected> {
        let (id, title) = (document.id.clone(), document.title.clone());
        let rejected = |error: String| Rejected { id, title, error };
        let document = Arc::new(document);
        let chunks = match self.cut.chunker {
            Chunker::Semantic => self.cut_by_meaning(&document).await,
            _ => {
                let (document, cut) = (document.clone(), self.cut);
                self.beside(move |config| chunk::split(&config.tokenizer, &document.content, cut))
                    .await
                    .flatten()
            }
        };
        match chunks {
            Ok(chunks) if chunks.is_empty() => Err(rejected("the document holds no text".to_owned())),
            Ok(chunks) => {
                let chunk_ids = chunk_ids(&document, &chunks, &self.recipe);
                let chunker = self.cut.chunker.for_document(&document.content);
                let looked_at = self.describe.then(|| document.clone());
                match self.beside(move |_| looked_at.map(|document| About::of(&document.content))).await {
                    Ok(about) => Ok(Arc::new(Prepared { document, about, chunker, chunks, chunk_ids })),
                    Err(error) => Err(rejected(error)),
                }
            }
            Err(error) => Err(rejected(error)),
        }
    }

    async fn cut_by_meaning(&self, document: &Arc<Document>) -> Result<Vec<Chunk>, String> {
        let most = self.cut.most;
        let text = document.clone();
        let units = self.beside(move |config| semantic::units(&config.tokenizer, text.text(), most)).await?;
        let texts = |start: usize| -> Vec<String> {
            let page = &units[start..units.len().min(start + PAGE)];
            page.iter().map(|(unit, _)| document.text()[unit.clone()].to_owned()).collect()
        };
        let calls =
            (0..units.len()).step_by(PAGE).map(|start| self.embedder.embed(texts(start), Purpose::Document));
        // All devices have a batch to compute and another one ready.
        let tokens = PAGE * semantic::unit_tokens(most).max(1);
        let at_once = (2 * self.embedder.capacity()).div_ceil(tokens).max(2);
        let mut calls = stream::iter(calls).buffered(at_once);
        let mut neighbors = semantic::Neighbors::default();
        while let Some(embedded) = calls.next().await {
            let embedded = embedded.map_err(|error| format!("comparing its sentences: {error}"))?;
            embedded.into_iter().for_each(|embedding| neighbors.add(embedding.vector));
        }
        drop(calls);
        if neighbors.units() != units.len() {
            return Err(format!("{} vectors came for {} sentences", neighbors.units(), units.len()));
        }
        let document = document.clone();
        self.beside(move |config| {
            let fits = |part: std::ops::Range<usize>| {
                chunk::count(&config.tokenizer, &document.text()[part]) <= most
            };
            Chunk::all(&document.content, semantic::group(&units, &neighbors, most, fits))
        })
        .await
    }

    /// Does some work on a thread that may be busy for long.
    async fn beside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&PipelineConfig) -> T + Send + 'static,
    ) -> Result<T, String> {
        let config = self.config.clone();
        let done = tokio::task::spawn_blocking(move || work(&config));
        done.await.map_err(|error| format!("cutting it failed: {error}"))
    }
}
