//! How much of a text is encoded. A tokenizer takes some 550 bytes of memory for each character, and a request may be one text of
//! 16 MB of which the model takes the first tokens alone: so only a part is encoded that surely has them.

use std::sync::Mutex;

use tokenizers::{Encoding, Tokenizer};

use super::tokens::{TokenizeError, Truncation, wrong};

/// Bytes that are encoded for each token that is wanted: about twice what a token of prose has. Where they give too few tokens,
/// four times as many are.
const BYTES: usize = 8;
/// The same where too many tokens are an error, which says how many there are as long as that costs little.
const COUNTED_BYTES: usize = 64;
/// What is encoded of such a text in any case.
const COUNTED: usize = 1 << 16;
/// Tokens beyond those that are wanted: the last ones may be those of a word that the part cuts. A part of a word that WordPiece
/// would take for unknown as a whole has at most 100 of them.
const MARGIN: usize = 128;
/// How far from its end a part looks for white space to be cut at.
const NEAR: usize = 256;
/// The most bytes of a text that are encoded: 1 GiB of memory.
const LONGEST: usize = 1 << 21;
/// Parts from this size on are encoded one after another, so that all cores together don't take a multiple of their memory.
const LARGE: usize = 1 << 18;

static ONE_LARGE: Mutex<()> = Mutex::new(());

/// The part of `text` that as many of its tokens cover as are wanted at `most`: the first ones, or the last ones where the start
/// is to be dropped.
pub fn excerpt<'a>(
    tokenizer: &Tokenizer,
    text: &'a str,
    most: usize,
    truncation: Truncation,
) -> Result<&'a str, TokenizeError> {
    let (encoding, left_out) = enough(text, most, truncation, |part| tokenizer.encode(part, false))?;
    let (tokens, offsets) = (encoding.len(), encoding.get_offsets());
    if truncation == Truncation::Refuse && (tokens > most || left_out > 0) {
        return Err(too_long(tokens, most, text.len(), left_out));
    }
    if tokens <= most {
        return Ok(text);
    }
    let kept = match truncation {
        Truncation::DropStart => {
            let start = offsets.get(tokens - most).map_or(text.len(), |(start, _)| left_out + start);
            text.get(start..).map(str::trim_start)
        }
        // The first token that is left out begins where the part ends.
        _ => text.get(..offsets.get(most).map_or(text.len(), |(start, _)| *start)).map(str::trim_end),
    };
    Ok(kept.unwrap_or(text))
}

/// What is wrong with a text of so many `bytes`, some of which may have been left out of its `tokens`.
pub(super) fn too_long(tokens: usize, maximum: usize, bytes: usize, left_out: usize) -> TokenizeError {
    if left_out == 0 {
        TokenizeError::TooLong { tokens, maximum }
    } else {
        TokenizeError::FarTooLong { bytes, maximum }
    }
}

/// The tokens of a text, or of a part of it that has more than `most` of them at the end that stays; and the bytes that were left
/// out. A text that has so few tokens that even [`LONGEST`] bytes of it have no more than `most` is cut there.
pub(super) fn enough(
    text: &str,
    most: usize,
    truncation: Truncation,
    encode: impl Fn(&str) -> tokenizers::Result<Encoding>,
) -> Result<(Encoding, usize), TokenizeError> {
    let needed = most.saturating_add(MARGIN);
    let first = match truncation {
        Truncation::Refuse => needed.saturating_mul(COUNTED_BYTES).max(COUNTED),
        _ => needed.saturating_mul(BYTES),
    };
    let mut bytes = first.min(LONGEST);
    loop {
        let part = part(text, bytes, truncation);
        let alone = (part.len() > LARGE).then(|| ONE_LARGE.lock());
        let encoding = encode(part).map_err(wrong)?;
        drop(alone);
        let left_out = text.len() - part.len();
        if left_out == 0 || encoding.len() >= needed || bytes == LONGEST {
            return Ok((encoding, left_out));
        }
        bytes = bytes.saturating_mul(4).min(LONGEST);
    }
}

/// At most so many `bytes` of a text from the end that stays, up to white space where there is some near. Of white space before a
/// part all stays: tokenizers make other tokens of a piece of it.
fn part(text: &str, bytes: usize, truncation: Truncation) -> &str {
    if text.len() <= bytes {
        return text;
    }
    if truncation == Truncation::DropStart {
        let part = &text[text.ceil_char_boundary(text.len() - bytes)..];
        let near = &part[..part.floor_char_boundary(NEAR)];
        // What stands before the part is not looked at, and may be white space as well.
        let mut before = ' ';
        let place = near.char_indices().find_map(|(place, letter)| {
            let begins = letter.is_whitespace() && !before.is_whitespace();
            before = letter;
            begins.then_some(place)
        });
        return place.map_or(part, |place| &part[place..]);
    }
    let part = &text[..text.floor_char_boundary(bytes)];
    let near = part.ceil_char_boundary(part.len().saturating_sub(NEAR));
    part[near..].rfind(char::is_whitespace).map_or(part, |place| &part[..near + place])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_end_at_white_space_or_between_characters() {
        let long = format!("{} end", "x".repeat(2 * NEAR));
        for (text, bytes, truncation, expected) in [
            ("a hot card", 10, Truncation::DropEnd, "a hot card"),
            ("a hot card", 8, Truncation::DropEnd, "a hot"),
            ("a hot card", 8, Truncation::Refuse, "a hot"),
            ("a hot card", 8, Truncation::DropStart, " card"),
            ("a   hot   card", 12, Truncation::DropStart, "   card"),
            ("a      card", 8, Truncation::DropStart, "    card"),
            ("äöü", 3, Truncation::DropEnd, "ä"),
            ("äöü", 3, Truncation::DropStart, "ü"),
            (long.as_str(), 4, Truncation::DropEnd, "xxxx"),
            (long.as_str(), NEAR, Truncation::DropStart, " end"),
        ] {
            assert_eq!(part(text, bytes, truncation), expected, "{bytes} of {text:?}, {truncation:?}");
        }
    }

    #[test]
    fn as_much_is_encoded_as_has_enough_tokens() {
        // One token for each letter that is no x.
        let encode = |part: &str| {
            let letters = part.chars().filter(|letter| *letter != 'x');
            let token = |letter: char| tokenizers::Token::new(u32::from(letter), String::new(), (0, 0));
            Ok(Encoding::from_tokens(letters.map(token).collect(), 0))
        };
        let encoded = |text: &str, truncation| {
            let (encoding, left_out) = enough(text, 2, truncation, encode).unwrap();
            (encoding.len(), left_out)
        };
        assert_eq!(encoded("abc", Truncation::DropEnd), (3, 0));
        let first = BYTES * (2 + MARGIN);
        assert_eq!(encoded(&"a".repeat(4 * first), Truncation::DropEnd), (first, 3 * first));
        assert_eq!(encoded(&"a".repeat(4 * first), Truncation::Refuse), (4 * first, 0), "it is counted");
        assert_eq!(encoded(&"a".repeat(2 * COUNTED), Truncation::Refuse), (COUNTED, COUNTED));
        let late = format!("{}{}", "x".repeat(first), "a".repeat(4 * first));
        assert_eq!(encoded(&late, Truncation::DropEnd), (3 * first, first), "the part grows");
        assert_eq!(encoded(&late, Truncation::DropStart), (first, 4 * first));
        assert_eq!(encoded(&"x".repeat(LONGEST + 5), Truncation::DropEnd), (0, 5));
    }
}
