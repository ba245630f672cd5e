//! Texts to token ids, with truncation on request. Runs outside of the engine's threads.

use std::collections::HashSet;
use std::sync::Arc;

use tokenizers::normalizers::{Lowercase, Sequence};
use tokenizers::{Encoding, NormalizerWrapper, PostProcessor as _, Token, Tokenizer};

use super::ModelError;
use super::excerpt::{enough, too_long};
use super::files::{ModelFiles, unsupported};
use super::markers::{Markers, mask_token, unknown_token};
use super::output::Wants;
use super::sentence;

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
#[derive(Debug, Clone, thiserror::Error)]
pub enum TokenizeError {
    /// The text is longer than the model takes, and truncation was not asked for.
    #[error("an input has {tokens} tokens, and the model takes {maximum}: shorten it or set `truncate`")]
    TooLong {
        /// Tokens of the input.
        tokens: usize,
        /// The model's maximum.
        maximum: usize,
    },
    /// The same of a text that is so long that its tokens are not counted.
    #[error(
        "an input of {bytes} bytes is too long, as the model takes {maximum} tokens: shorten it or set `truncate`"
    )]
    FarTooLong {
        /// Bytes of the input.
        bytes: usize,
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

/// Tokens of a text, without special ones: all that the model can take, and some more.
#[derive(Debug, Clone)]
pub struct Tokens {
    ids: Vec<u32>,
    /// Bytes of the text.
    bytes: usize,
    /// Bytes at its other end that no tokens were made of.
    left_out: usize,
}

impl Tokens {
    /// The tokens that stay of at most `most`.
    fn kept(&self, most: usize, truncation: Truncation) -> &[u32] {
        let most = most.min(self.ids.len());
        match truncation {
            Truncation::DropStart => &self.ids[self.ids.len() - most..],
            _ => &self.ids[..most],
        }
    }
}

/// The model's tokenizer; clones are cheap. Texts are cut here and not by the library, which would encode them whole and keep what
/// it cuts off.
#[derive(Clone)]
pub struct TextTokenizer {
    plain: Arc<Tokenizer>,
    maximum: usize,
    /// Whether the pooling leaves out the tokens of the prompt.
    without_prompt: bool,
    markers: Arc<Markers>,
    /// Ids of the tokens whose vectors are left out of documents.
    skipped: Arc<HashSet<u32>>,
    /// The token that queries are filled with.
    fill: Option<u32>,
    /// Rows of the model's table of words. Some tokenizers have tokens behind it.
    rows: usize,
    /// The token that stands for those, where the tokenizer has one.
    unknown: Option<u32>,
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
        if sentence::lower_case(&files.folder)? {
            let own = plain.get_normalizer().cloned();
            let all = std::iter::once(NormalizerWrapper::from(Lowercase)).chain(own).collect();
            plain.with_normalizer(Some(Sequence::new(all))).map_err(wrap)?;
        }
        let markers = files.heads.multi.as_ref().and_then(|head| head.markers.clone()).unwrap_or_default();
        let skipped = markers.skipped.iter().filter_map(|word| plain.token_to_id(word)).collect();
        let fill = match &markers.fill {
            Some(fill) => Some(fill_id(files, &plain, fill.token.clone())?),
            None => None,
        };
        // Weights without the table are refused where they are loaded.
        let rows = files.rows()?.unwrap_or(usize::MAX);
        let unknown = unknown_token(&files.folder)?.and_then(|token| plain.token_to_id(&token));
        Ok(Self {
            plain: Arc::new(plain),
            maximum,
            without_prompt: files.heads.dense.as_ref().is_some_and(|head| head.without_prompt),
            markers: Arc::new(markers),
            skipped: Arc::new(skipped),
            fill,
            rows,
            unknown: unknown.filter(|id| (*id as usize) < rows),
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
        self.within(text, self.maximum, 0, truncation)
    }

    /// Tokens of a text behind a prompt.
    pub fn prompted(&self, prompt: &str, text: &str, truncation: Truncation) -> Result<Input, TokenizeError> {
        let whole = format!("{prompt}{text}");
        if !self.without_prompt || prompt.is_empty() {
            return self.text(&whole, truncation);
        }
        let tokens = self.tokens(&whole, self.maximum, truncation)?;
        let mut input = self.cut(&tokens, self.maximum, 0, truncation)?;
        // As sentence-transformers counts it: alone, with the special tokens before it and without one behind it.
        let special = |encoding: &Encoding| encoding.get_special_tokens_mask().last() == Some(&1);
        let alone = self.plain.encode(prompt, true).map_err(wrong)?;
        let prompt_tokens = alone.len() - usize::from(special(&alone));
        // What was cut off the beginning was of the prompt.
        let cut = match truncation {
            Truncation::DropStart if tokens.left_out >= prompt.len() => usize::MAX,
            Truncation::DropStart if input.len() == self.maximum => {
                self.plain.encode_fast(whole, true).map_err(wrong)?.len().saturating_sub(input.len())
            }
            _ => 0,
        };
        // One token stays, so that there is something to pool.
        input.unpooled = prompt_tokens.saturating_sub(cut).min(input.len().saturating_sub(1));
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
        self.cut(&self.tokens(text, most, truncation)?, most, more, truncation)
    }

    /// As many tokens of one text as leave room for `more` among at most `most`, with the special ones.
    fn cut(
        &self,
        tokens: &Tokens,
        most: usize,
        more: usize,
        truncation: Truncation,
    ) -> Result<Input, TokenizeError> {
        let added = self.special(false) + more;
        let count = tokens.ids.len() + added;
        if count == 0 {
            return Err(TokenizeError::NoTokens);
        }
        if truncation == Truncation::Refuse && (count > most || tokens.left_out > 0) {
            return Err(too_long(count, most, tokens.bytes, tokens.left_out));
        }
        self.finish(tokens.kept(most.saturating_sub(added), truncation), None)
    }

    /// Tokens of a text of which a model takes at most `most`. One that the model has no row for counts as unknown or is left out:
    /// it would fail all texts that are computed with it.
    fn tokens(&self, text: &str, most: usize, truncation: Truncation) -> Result<Tokens, TokenizeError> {
        let encode = |part: &str| self.plain.encode_fast(part, false);
        let (encoding, left_out) = enough(text, most, truncation, encode)?;
        let known = |id: &u32| if (*id as usize) < self.rows { Some(*id) } else { self.unknown };
        let ids = encoding.get_ids().iter().filter_map(known).collect();
        Ok(Tokens { ids, bytes: text.len(), left_out })
    }

    /// How many special tokens a text gets, or a pair.
    fn special(&self, pair: bool) -> usize {
        self.plain.get_post_processor().map_or(0, |it| it.added_tokens(pair))
    }

    /// Puts the special tokens around those of a text, or of a pair.
    fn finish(&self, ids: &[u32], other: Option<&[u32]>) -> Result<Input, TokenizeError> {
        let encoding = |ids: &[u32]| {
            let tokens = ids.iter().map(|id| Token::new(*id, String::new(), (0, 0)));
            Encoding::from_tokens(tokens.collect(), 0)
        };
        let (encoding, other) = (encoding(ids), other.map(encoding));
        Ok(input(&self.plain.post_process(encoding, other, true).map_err(wrong)?))
    }

    /// Whether the vector of this token is left out of a document.
    pub fn is_skipped(&self, id: u32) -> bool {
        self.skipped.contains(&id)
    }

    /// Tokens of a query and a document.
    pub fn pair(&self, query: &str, document: &str, truncation: Truncation) -> Result<Input, TokenizeError> {
        self.pair_with(&self.query(query, truncation)?, document, truncation)
    }

    /// Tokens of a query that stands before several documents.
    pub fn query(&self, query: &str, truncation: Truncation) -> Result<Tokens, TokenizeError> {
        self.tokens(query, self.maximum, truncation)
    }

    /// Tokens of a query and a document. The longer of the two is cut first.
    pub fn pair_with(
        &self,
        query: &Tokens,
        document: &str,
        truncation: Truncation,
    ) -> Result<Input, TokenizeError> {
        let document = self.tokens(document, self.maximum, truncation)?;
        let special = self.special(true);
        let count = query.ids.len() + document.ids.len() + special;
        if count == 0 {
            return Err(TokenizeError::NoTokens);
        }
        let left_out = query.left_out + document.left_out;
        if truncation == Truncation::Refuse && (count > self.maximum || left_out > 0) {
            return Err(too_long(count, self.maximum, query.bytes + document.bytes, left_out));
        }
        let most = self.maximum.saturating_sub(special);
        // Beyond the maximum a text is as long as any other: of such a one only a part was encoded.
        let length = |tokens: &Tokens| tokens.ids.len().min(self.maximum);
        let (first, second) = shares(length(query), length(&document), most);
        self.finish(query.kept(first, truncation), Some(document.kept(second, truncation)))
    }

    /// The text behind the token ids of an input, without special ones. Refuses an id that the model has no row for.
    pub fn decode_input(&self, ids: &[u32]) -> Result<String, TokenizeError> {
        match ids.iter().find(|id| **id as usize >= self.rows) {
            Some(id) => Err(TokenizeError::UnknownId { id: *id, last: self.rows.saturating_sub(1) }),
            None => self.decode(ids, true),
        }
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
}

/// How many tokens stay of two texts that together may have `most`, as the tokenizers library cuts the longest first.
fn shares(first: usize, second: usize, most: usize) -> (usize, usize) {
    if first + second <= most {
        return (first, second);
    }
    let short = first.min(second).min(most / 2);
    if first <= second { (short, most - short) } else { (most - short, short) }
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
pub(super) fn wrong(error: tokenizers::Error) -> TokenizeError {
    TokenizeError::Tokenizer(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_of_two_texts_is_cut_first() {
        for (first, second, most, expected) in [
            (3, 4, 7, (3, 4)),
            (3, 40, 10, (3, 7)),
            (40, 3, 10, (7, 3)),
            (40, 50, 11, (5, 6)),
            (50, 40, 11, (6, 5)),
            (0, 9, 4, (0, 4)),
            (5, 5, 0, (0, 0)),
        ] {
            assert_eq!(shares(first, second, most), expected, "{first} and {second} in {most}");
        }
    }
}
