//! Windows of so many tokens with an overlap, cut between words.

use super::count;
use std::ops::Range;
use tokenizers::Tokenizer;

/// Bytes that are looked at for each token of a window: longer words make smaller windows.
const BYTES_A_TOKEN: usize = 16;

/// The windows of a text.
pub fn split(tokenizer: &Tokenizer, text: &str, most: usize, overlap: usize) -> Vec<Range<usize>> {
    let mut windows: Vec<Range<usize>> = Vec::new();
    let mut start = skip_space(text, 0);
    while start < text.len() {
        let end = window(tokenizer, text, start, most);
        windows.push(start..start + text[start..end].trim_end().len());
        let next = skip_space(text, end);
        if next >= text.len() {
            break;
        }
        // The next window begins with the last words of this one, but always further on than this one.
        start =
            if overlap == 0 { next } else { shared(tokenizer, text, start..end, overlap).unwrap_or(next) };
    }
    windows
}

/// The first place from `from` on that is no space.
fn skip_space(text: &str, from: usize) -> usize {
    from + text[from..].len() - text[from..].trim_start().len()
}

/// Where the longest window from `start` ends.
fn window(tokenizer: &Tokenizer, text: &str, start: usize, most: usize) -> usize {
    let limit = text.floor_char_boundary(start + most * BYTES_A_TOKEN);
    let seen = &text[start..limit.max(start + text[start..].chars().next().map_or(0, char::len_utf8))];
    if start + seen.len() == text.len() && count(tokenizer, seen) <= most {
        return text.len();
    }
    // Places between words; the last word may be cut off.
    let ends: Vec<usize> = word_ends(seen).collect();
    // Tokens of a text grow with it, so that the last fitting place is found by halves.
    let fits = ends.partition_point(|end| count(tokenizer, &seen[..*end]) <= most);
    match fits.checked_sub(1).and_then(|last| ends.get(last)) {
        Some(end) => start + end,
        // One word has too many tokens: it is cut between its letters, of which one always fits.
        None => {
            let letters: Vec<usize> =
                seen.char_indices().map(|(place, letter)| place + letter.len_utf8()).collect();
            let fits = letters.partition_point(|end| count(tokenizer, &seen[..*end]) <= most);
            start + letters[fits.saturating_sub(1).min(letters.len() - 1)]
        }
    }
}

/// Where a window begins that shares at most `overlap` tokens with the one before.
fn shared(tokenizer: &Tokenizer, text: &str, before: Range<usize>, overlap: usize) -> Option<usize> {
    let seen = &text[before.clone()];
    let starts: Vec<usize> =
        word_ends(seen).map(|end| skip_space(seen, end)).filter(|start| *start < seen.len()).collect();
    let too_many = starts.partition_point(|start| count(tokenizer, &seen[*start..]) > overlap);
    starts.get(too_many).map(|start| before.start + start)
}

/// Where each word of a text ends.
fn word_ends(text: &str) -> impl Iterator<Item = usize> + '_ {
    let mut in_word = false;
    let inside = text.char_indices().filter_map(move |(place, letter)| {
        let ended = in_word && letter.is_whitespace();
        in_word = !letter.is_whitespace();
        ended.then_some(place)
    });
    inside.chain(text.ends_with(|letter: char| !letter.is_whitespace()).then_some(text.len()))
}
