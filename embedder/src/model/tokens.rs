//! Texts to token ids, with truncation on request. Runs outside of the engine's threads.

use std::collections::HashSet;
use std::sync::Arc;

use tokenizers::{
    Encoding, PostProcessor as _, Tokenizer, TruncationDirection, TruncationParams, TruncationStrategy,
};

use super::ModelError;
use super::files::{ModelFiles, unsupported};
use super::markers::{Markers, mask_token};
use super::output::Wants;

/// One text or pair, ready for the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// Ids of the tokens, special ones included.
    pub ids: Vec<u32>,
    /// 0 for the first text, 1 for the second of a pair.
    pub type_ids: Vec<u32>,
    /// Tokens at the beginning that the pooling leaves out: the prompt, with the special ones before it.
    pub unpooled: usize,
    /// Tokens at the end that no token attends to: the fill of a query.
    pub unseen: usize,
    /// What is to be computed of it.
    pub wants: Wants,
}

/// Which side of a search a text stands on; models with one vector a token mark the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// What is searched for.
    Query,
    /// What is searched in.
    Document,
}

impl Input {
    /// Tokens, special ones included.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no token at all.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

/// What to do with a text that is longer than the model's maximum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Truncation {
    /// Refuse it.
    Refuse,
    /// Drop its end.
    DropEnd,
    /// Drop its beginning.
    DropStart,
}

/// Why a text could not become tokens.
#[derive(Debug, thiserror::Error)]
pub enum TokenizeError {
    /// The text is longer than the model takes, and truncation was not asked for.
    #[error("an input has {tokens} tokens, and the model takes {maximum}: shorten it or set `truncate`")]
    TooLong {
        /// Tokens of the input.
        tokens: usize,
        /// The model's maximum.
        maximum: usize,
    },
    /// The tokenizer makes no token of the text, and adds no special ones.
    #[error("an input has no tokens: the model's tokenizer adds none to the text, and makes none of it")]
    NoTokens,
    /// A token id that the model does not have.
    #[error("the token id {id} is not in the model's vocabulary, which has the ids from 0 to {last}")]
    UnknownId {
        /// The id.
        id: u32,
        /// The vocabulary's last one.
        last: usize,
    },
    /// The tokenizers library failed.
    #[error("tokenizing an input: {0}")]
    Tokenizer(String),
}

/// The part of `text` that its first `most` tokens cover.
pub fn beginning<'a>(tokenizer: &Tokenizer, text: &'a str, most: usize) -> Result<&'a str, TokenizeError> {
    let encoding = tokenizer.encode(text, false).map_err(wrong)?;
    // The first token that is left out begins where the part ends.
    let end = encoding.get_offsets().get(most).map_or(text.len(), |(start, _)| *start);
    Ok(text.get(..end).unwrap_or(text).trim_end())
}

/// The model's tokenizer in the three forms that requests need; clones are cheap.
#[derive(Clone)]
pub struct TextTokenizer {
    plain: Arc<Tokenizer>,
    drop_end: Arc<Tokenizer>,
    drop_start: Arc<Tokenizer>,
    maximum: usize,
    /// Whether the pooling leaves out the tokens of the prompt.
    without_prompt: bool,
    markers: Arc<Markers>,
    /// Ids of the tokens whose vectors are left out of documents.
    skipped: Arc<HashSet<u32>>,
    /// The token that queries are filled with.
    fill: Option<u32>,
}

impl TextTokenizer {
    /// Reads a `tokenizer.json`; padding and truncation that it may contain are replaced.
    pub(super) fn load(files: &ModelFiles) -> Result<Self, ModelError> {
        let path = files.folder.join("tokenizer.json");
        let maximum = files.max_input_length;
        if !path.exists() {
            return Err(ModelError::MissingFile { path });
        }
        let wrap = |error: tokenizers::Error| ModelError::Tokenizer {
            path: path.clone(),
            message: error.to_string(),
        };
        let mut plain = Tokenizer::from_file(&path).map_err(wrap)?;
        plain.with_padding(None);
        plain.with_truncation(None).map_err(wrap)?;
        let truncating = |direction| {
            let mut tokenizer = plain.clone();
            let strategy = TruncationStrategy::LongestFirst;
            let params = TruncationParams { direction, max_length: maximum, strategy, stride: 0 };
            tokenizer.with_truncation(Some(params)).map_err(wrap)?;
            Ok(Arc::new(tokenizer))
        };
        let drop_end = truncating(TruncationDirection::Right)?;
        let drop_start = truncating(TruncationDirection::Left)?;
        let markers = files.heads.multi.as_ref().and_then(|head| head.markers.clone()).unwrap_or_default();
        let skipped = markers.skipped.iter().filter_map(|word| plain.token_to_id(word)).collect();
        let fill = match &markers.fill {
            Some(fill) => Some(fill_id(files, &plain, fill.token.clone())?),
            None => None,
        };
        Ok(Self {
            plain: Arc::new(plain),
            drop_end,
            drop_start,
            maximum,
            without_prompt: files.heads.dense.as_ref().is_some_and(|head| head.without_prompt),
            markers: Arc::new(markers),
            skipped: Arc::new(skipped),
            fill,
        })
    }

    /// The tokenizer without truncation and padding.
    pub fn plain(&self) -> Arc<Tokenizer> {
        Arc::clone(&self.plain)
    }

    /// The most tokens that one input may have, special ones included.
    pub fn maximum(&self) -> usize {
        self.maximum
    }

    /// Tokens of one text.
    pub fn text(&self, text: &str, truncation: Truncation) -> Result<Input, TokenizeError> {
        let encoding = self.with(truncation).encode_fast(text, true);
        self.check(encoding)
    }

    /// Tokens of a text behind a prompt.
    pub fn prompted(&self, prompt: &str, text: &str, truncation: Truncation) -> Result<Input, TokenizeError> {
        let whole = format!("{prompt}{text}");
        let mut input = self.text(&whole, truncation)?;
        if !self.without_prompt || prompt.is_empty() {
            return Ok(input);
        }
        // As sentence-transformers counts it: alone, with the special tokens before it and without one behind it.
        let special = |encoding: &Encoding| encoding.get_special_tokens_mask().last() == Some(&1);
        let alone = self.with(truncation).encode(prompt, true).map_err(wrong)?;
        let prompt = alone.len() - usize::from(special(&alone));
        // What was cut off the beginning was of the prompt.
        let cut = match truncation {
            Truncation::DropStart if input.len() == self.maximum => {
                self.plain.encode_fast(whole, true).map_err(wrong)?.len() - input.len()
            }
            _ => 0,
        };
        // One token stays, so that there is something to pool.
        input.unpooled = prompt.saturating_sub(cut).min(input.len().saturating_sub(1));
        Ok(input)
    }

    /// Tokens of a text behind a prompt with what a model with one vector a token adds on its side: the marker, and the fill
    /// of a query.
    pub fn marked(
        &self,
        prompt: &str,
        text: &str,
        side: Side,
        truncation: Truncation,
    ) -> Result<Input, TokenizeError> {
        let Markers { query, document, query_length, fill, .. } = &*self.markers;
        let (marker, most) = match side {
            Side::Query => (query, query_length.unwrap_or(self.maximum).min(self.maximum)),
            Side::Document => (document, self.maximum),
        };
        let id = self.plain.token_to_id(marker).or_else(|| self.plain.token_to_id(marker.trim()));
        let mut input = match id.filter(|_| !marker.is_empty()) {
            Some(id) => {
                let mut input = self.within(&format!("{prompt}{text}"), most, 1, truncation)?;
                // Behind the first token, which is special.
                let place = input.len().min(1);
                input.ids.insert(place, id);
                input.type_ids.insert(place, 0);
                input
            }
            None if most == self.maximum => self.prompted(&format!("{marker}{prompt}"), text, truncation)?,
            None => self.within(&format!("{marker}{prompt}{text}"), most, 0, truncation)?,
        };
        if let (Side::Query, Some(fill), Some(id)) = (side, fill, self.fill) {
            let missing = fill.length.min(self.maximum).saturating_sub(input.len());
            input.ids.extend(std::iter::repeat_n(id, missing));
            input.type_ids.extend(std::iter::repeat_n(0, missing));
            input.unseen = if fill.attended { 0 } else { missing };
        }
        Ok(input)
    }

    /// Tokens of one text that leave room for `more` among at most `most`.
    fn within(
        &self,
        text: &str,
        most: usize,
        more: usize,
        truncation: Truncation,
    ) -> Result<Input, TokenizeError> {
        let mut encoding = self.plain.encode_fast(text, false).map_err(wrong)?;
        let special = self.plain.get_post_processor().map_or(0, |it| it.added_tokens(false));
        let tokens = encoding.len() + special + more;
        if tokens == 0 {
            return Err(TokenizeError::NoTokens);
        }
        if tokens > most {
            let direction = match truncation {
                Truncation::Refuse => return Err(TokenizeError::TooLong { tokens, maximum: most }),
                Truncation::DropEnd => TruncationDirection::Right,
                Truncation::DropStart => TruncationDirection::Left,
            };
            encoding.truncate(most.saturating_sub(special + more), 0, direction);
        }
        Ok(input(&self.plain.post_process(encoding, None, true).map_err(wrong)?))
    }

    /// Whether the vector of this token is left out of a document.
    pub fn is_skipped(&self, id: u32) -> bool {
        self.skipped.contains(&id)
    }

    /// Tokens of a query and a document.
    pub fn pair(&self, query: &str, document: &str, truncation: Truncation) -> Result<Input, TokenizeError> {
        let encoding = self.with(truncation).encode_fast((query, document), true);
        self.check(encoding)
    }

    /// The text behind token ids, with or without special ones.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, TokenizeError> {
        // The library leaves out what it does not know, and the text would silently be another one.
        if let Some(id) = ids.iter().copied().find(|id| self.plain.id_to_token(*id).is_none()) {
            return Err(TokenizeError::UnknownId {
                id,
                last: self.plain.get_vocab_size(true).saturating_sub(1),
            });
        }
        self.plain.decode(ids, skip_special_tokens).map_err(wrong)
    }

    fn with(&self, truncation: Truncation) -> &Tokenizer {
        match truncation {
            Truncation::Refuse => &self.plain,
            Truncation::DropEnd => &self.drop_end,
            Truncation::DropStart => &self.drop_start,
        }
    }

    fn check(&self, encoding: tokenizers::Result<Encoding>) -> Result<Input, TokenizeError> {
        let encoding = encoding.map_err(wrong)?;
        if encoding.is_empty() {
            return Err(TokenizeError::NoTokens);
        }
        if encoding.len() > self.maximum {
            return Err(TokenizeError::TooLong { tokens: encoding.len(), maximum: self.maximum });
        }
        Ok(input(&encoding))
    }
}

fn input(encoding: &Encoding) -> Input {
    Input {
        ids: encoding.get_ids().to_vec(),
        type_ids: encoding.get_type_ids().to_vec(),
        unpooled: 0,
        unseen: 0,
        wants: Wants::VECTOR,
    }
}

/// The id of the token that queries are filled with.
fn fill_id(files: &ModelFiles, tokenizer: &Tokenizer, named: Option<String>) -> Result<u32, ModelError> {
    let token = match named {
        Some(token) => Some(token),
        None => mask_token(&files.folder)?,
    };
    token.as_deref().and_then(|token| tokenizer.token_to_id(token)).ok_or_else(|| {
        let what = format!("queries filled with the token {token:?}, which its tokenizer does not have");
        unsupported(&files.folder, what)
    })
}

#[expect(clippy::needless_pass_by_value, reason = "it stands in map_err")]
fn wrong(error: tokenizers::Error) -> TokenizeError {
    TokenizeError::Tokenizer(error.to_string())
}
