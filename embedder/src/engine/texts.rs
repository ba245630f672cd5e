//! The engine as the document pipeline sees it: texts in, vectors out that can be compared, waiting while the queue is full.

use futures::future::BoxFuture;

use super::Engine;
use crate::batch::Kind;
use crate::model::{Input, Output, Prompts, Similarity, TextTokenizer, Truncation, normalize};
use crate::pipeline::{EmbedTexts, Embedding, Purpose};

/// Embeds texts with the prompts that the model has for them.
pub struct PipelineEmbedder {
    /// Computes.
    pub engine: Engine,
    /// Tokenizes.
    pub tokenizer: TextTokenizer,
    /// What the model was trained to see before texts.
    pub prompts: Prompts,
    /// By what vectors are compared: they keep their length where it counts, and have length 1 elsewhere.
    pub similarity: Similarity,
}

impl EmbedTexts for PipelineEmbedder {
    fn embed(&self, texts: Vec<String>, purpose: Purpose) -> BoxFuture<'_, Result<Vec<Embedding>, String>> {
        Box::pin(async move {
            let (prompt, kind) = match purpose {
                Purpose::Document => (self.prompts.document(), Kind::Documents),
                Purpose::Query => (self.prompts.query(), Kind::Interactive),
            };
            let (tokenizer, prompt) = (self.tokenizer.clone(), prompt.to_owned());
            let tokenize = move || {
                texts
                    .iter()
                    .map(|text| tokenizer.prompted(&prompt, text, Truncation::DropEnd))
                    .collect::<Result<Vec<_>, _>>()
            };
            let inputs = tokio::task::spawn_blocking(tokenize)
                .await
                .map_err(|error| format!("tokenizing: {error}"))?
                .map_err(|error| error.to_string())?;
            let tokens: Vec<usize> = inputs.iter().map(Input::len).collect();
            // A document is a long job: it waits where an interactive client is told to come back.
            let outputs = self.engine.run_patiently(kind, inputs).await.map_err(|error| error.to_string())?;
            let embedding = |((Output { mut vector, .. }, _), tokens)| {
                if self.similarity == Similarity::Cosine {
                    normalize(&mut vector);
                }
                Embedding { vector, tokens }
            };
            Ok(outputs.into_iter().zip(tokens).map(embedding).collect())
        })
    }

    fn capacity(&self) -> usize {
        self.engine.capacity()
    }
}
