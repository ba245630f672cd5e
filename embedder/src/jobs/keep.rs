//! From the pipeline to the store: chunks as they are made, documents when they are whole.

use super::corpus::{Changes, DocumentRecord, KeptChunk, Place};
use super::record::JobRecord;
use super::run::{Shared, Stop};
use super::store::Store;
use crate::pipeline::{self, ChunkLine, DocumentLine, Line, Made, Settings};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Most lines in one transaction.
const LINES: usize = 256;

/// Keeps what one job makes.
pub(super) struct Keeper {
    shared: Arc<Shared>,
    recipe: String,
    chunker: String,
    /// Documents of which not all chunks are made.
    open: HashMap<String, Vec<(usize, Place, bool)>>,
    changes: Changes,
    counts: Counts,
    ended: bool,
}

/// What is counted with the next transaction.
#[derive(Clone, Copy, Default)]
struct Counts {
    documents: u64,
    chunks: u64,
    embedded: u64,
    reused: u64,
    without_context: u64,
    tokens: u64,
}

impl Keeper {
    pub fn new(shared: Arc<Shared>, settings: Settings) -> Self {
        let config = &shared.tools.config;
        let (recipe, chunker) = (pipeline::whole_recipe(config, settings), pipeline::chunker(settings));
        let (open, changes, counts) = (HashMap::new(), Changes::default(), Counts::default());
        Self { shared, recipe, chunker, open, changes, counts, ended: false }
    }

    /// Takes lines until the last.
    pub async fn keep(mut self, lines: mpsc::Receiver<Line>) -> Result<(), Stop> {
        let kept = self.keep_all(lines).await;
        // Whoever still waits for room would wait for ever.
        self.shared.room.close();
        kept
    }

    async fn keep_all(&mut self, mut lines: mpsc::Receiver<Line>) -> Result<(), Stop> {
        while let Some(line) = lines.recv().await {
            self.take(line);
            let mut taken = 1;
            while taken < LINES
                && let Ok(line) = lines.try_recv()
            {
                self.take(line);
                taken += 1;
            }
            self.commit().await?;
        }
        if self.ended {
            Ok(())
        } else {
            Err(Stop::Failed("the pipeline ended before its last line: see the log".to_owned()))
        }
    }

    fn take(&mut self, line: Line) {
        match line {
            Line::Chunk(chunk) => self.take_chunk(*chunk),
            Line::Document(document) => self.take_document(document),
            Line::Progress(_) => {}
            Line::Summary(_) => self.ended = true,
        }
    }

    fn take_chunk(&mut self, line: ChunkLine) {
        let ChunkLine {
            document_id,
            chunk_id,
            index,
            start,
            end,
            heading_path,
            text,
            context,
            context_truncated,
            context_error,
            made_before,
            tokens,
            vector,
            model: _,
            metadata: _,
        } = line;
        let failed = context_error.is_some();
        if made_before {
            self.counts.reused += 1;
        } else {
            self.counts.embedded += 1;
            self.counts.tokens += tokens as u64;
            self.counts.without_context += u64::from(failed);
            let made = Made { context, context_truncated, tokens, vector };
            let kept = KeptChunk { text, context_error, made };
            self.changes.made.push((document_id.clone(), chunk_id.clone(), kept));
        }
        let place = Place { id: chunk_id, start, end, heading_path };
        self.open.entry(document_id).or_default().push((index, place, failed));
    }

    fn take_document(&mut self, line: DocumentLine) {
        let DocumentLine { document_id: id, title: _, chunks, seconds: _, error } = line;
        let mut places = self.open.remove(&id).unwrap_or_default();
        let Some(incoming) = self.shared.incoming().remove(&id) else { return };
        self.shared.room.add_permits(incoming.room as usize);
        let error = error.or_else(|| {
            (places.len() != chunks).then(|| format!("{} of its {chunks} chunks came", places.len()))
        });
        if let Some(error) = error {
            self.shared.live.note(|record| record.failed(id, error));
            self.shared.tools.metrics.jobs.documents("failed", 1);
            return;
        }
        places.sort_by_key(|(index, ..)| *index);
        self.counts.documents += 1;
        self.counts.chunks += places.len() as u64;
        let config = &self.shared.tools.config;
        let record = DocumentRecord {
            digest: incoming.digest,
            version: incoming.version,
            recipe: self.recipe.clone(),
            source: incoming.source,
            job: self.shared.live.record().id,
            title: incoming.title,
            metadata: incoming.metadata,
            model: config.model_name.clone(),
            model_digest: config.model_digest.clone(),
            chunker: self.chunker.clone(),
            without_context: places.iter().filter(|(_, _, failed)| *failed).count() as u64,
            chunks: places.into_iter().map(|(_, place, _)| place).collect(),
        };
        self.changes.documents.push((id, record));
    }

    async fn commit(&mut self) -> Result<(), Stop> {
        let (changes, counts) = (std::mem::take(&mut self.changes), std::mem::take(&mut self.counts));
        if changes.made.is_empty() && changes.documents.is_empty() {
            return Ok(());
        }
        let change = move |record: &mut JobRecord| {
            let progress = &mut record.progress;
            progress.documents_done += counts.documents;
            progress.chunks += counts.chunks;
            progress.chunks_embedded += counts.embedded;
            progress.chunks_without_context += counts.without_context;
            progress.tokens += counts.tokens;
        };
        let keep = move |store: &Store, job: &JobRecord| store.commit(job, &changes);
        self.shared.live.commit(&self.shared.tools.store, change, keep).await?;
        let metrics = &self.shared.tools.metrics.jobs;
        metrics.documents("processed", counts.documents);
        metrics.chunks("embedded", counts.embedded);
        metrics.chunks("reused", counts.reused);
        self.shared.kept.notify_one();
        Ok(())
    }
}
