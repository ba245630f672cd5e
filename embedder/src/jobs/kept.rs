//! How a chunk is kept: all that its id stands for, in bytes.

use super::corpus::DocumentRecord;
use super::store::{decode, encode};
use crate::pipeline::Made;
use crate::sinks::Chunk;
use serde::{Deserialize, Serialize};

/// A chunk as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptChunk {
    /// The chunk itself.
    pub text: String,
    /// Why there is no context although one was asked for.
    pub context_error: Option<String>,
    /// What was made of it.
    pub made: Made,
}

#[derive(Deserialize, Serialize)]
struct KeptHeader {
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<String>,
    #[serde(default)]
    context_truncated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    context_error: Option<String>,
    tokens: usize,
}

impl KeptChunk {
    /// A JSON header with its length before it, and the vector as little-endian numbers behind it.
    pub(super) fn encode(&self) -> Result<Vec<u8>, redb::Error> {
        let Made { context, context_truncated, tokens, vector } = &self.made;
        let header = KeptHeader {
            text: self.text.clone(),
            context: context.clone(),
            context_truncated: *context_truncated,
            context_error: self.context_error.clone(),
            tokens: *tokens,
        };
        let header = encode(&header)?;
        let length = u32::try_from(header.len())
            .map_err(|_| redb::Error::Corrupted("a chunk of more than 4 GiB".to_owned()))?;
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.extend(vector.iter().flat_map(|number| number.to_le_bytes()));
        Ok(bytes)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, redb::Error> {
        let short = || redb::Error::Corrupted("a chunk is cut off".to_owned());
        let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(short)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (header, vector) = rest.split_at_checked(length).ok_or_else(short)?;
        let KeptHeader { text, context, context_truncated, context_error, tokens } = decode(header)?;
        let (numbers, rest) = vector.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(short());
        }
        let vector = numbers.iter().map(|number| f32::from_le_bytes(*number)).collect();
        Ok(Self { text, context_error, made: Made { context, context_truncated, tokens, vector } })
    }

    /// The chunk with what its document knows of its place `index` there.
    pub(super) fn in_document(
        self,
        corpus: &str,
        id: &str,
        document: &DocumentRecord,
        index: usize,
    ) -> Chunk {
        let place = &document.chunks[index];
        Chunk {
            chunk_id: place.id.clone(),
            corpus: corpus.to_owned(),
            document_id: id.to_owned(),
            title: document.title.clone(),
            index,
            start: place.start,
            end: place.end,
            heading_path: place.heading_path.clone(),
            pages: place.pages,
            text: self.text,
            context: self.made.context,
            context_truncated: self.made.context_truncated,
            context_error: self.context_error,
            tokens: self.made.tokens,
            model: document.model.clone(),
            model_digest: document.model_digest.clone(),
            chunker: document.chunker.clone(),
            metadata: document.metadata.clone(),
            vector: self.made.vector,
        }
    }
}
