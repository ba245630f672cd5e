//! Bytes to characters: byte order marks, UTF-8, UTF-16 without a mark, and the code pages of old systems.

use super::{ReadError, TEXT_LIMIT};
use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE};

/// How much of a text is looked at to find its code page, in bytes.
const SAMPLE: usize = 1 << 20;

/// A text and where it came from.
#[derive(Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The characters, without a byte order mark.
    pub text: String,
    /// The encoding's name as the web has it.
    pub encoding: Option<&'static str>,
}

/// The characters of a text.
///
/// # Errors
/// When the bytes are no text, or too many.
pub fn decode(bytes: &[u8]) -> Result<Decoded, ReadError> {
    let encoding =
        encoding(bytes).ok_or_else(|| ReadError::Unsupported { found: "binary data".to_owned() })?;
    if bytes.len() > TEXT_LIMIT {
        return Err(ReadError::TooLarge { what: "the text".to_owned(), limit: TEXT_LIMIT as u64 });
    }
    let (text, encoding, _) = encoding.decode(bytes);
    Ok(Decoded { text: text.into_owned(), encoding: Some(encoding.name()) })
}

/// The encoding of some bytes; `None` where they are no text.
fn encoding(bytes: &[u8]) -> Option<&'static Encoding> {
    if let Some((encoding, _)) = Encoding::for_bom(bytes) {
        return Some(encoding);
    }
    if let Some(encoding) = utf16_without_mark(bytes) {
        return Some(encoding);
    }
    // Hardly any text has control characters.
    let control = |byte: &&u8| matches!(**byte, 0..=8 | 0x0e..=0x1a | 0x1c..=0x1f);
    let sample = &bytes[..bytes.len().min(SAMPLE)];
    if sample.iter().filter(control).count() * 50 > sample.len() {
        return None;
    }
    if std::str::from_utf8(bytes).is_ok() {
        return Some(UTF_8);
    }
    // No text of an old code page has zeros.
    if bytes.contains(&0) {
        return None;
    }
    let mut detector = EncodingDetector::new(Iso2022JpDetection::Deny);
    detector.feed(sample, true);
    Some(detector.guess(None, Utf8Detection::Deny))
}

/// Text in UTF-16 has a zero in most pairs, always on the same side, wherever it is mostly Latin.
fn utf16_without_mark(bytes: &[u8]) -> Option<&'static Encoding> {
    let pairs: Vec<&[u8]> = bytes[..bytes.len().min(SAMPLE)].chunks_exact(2).collect();
    if bytes.len() % 2 == 1 || pairs.len() < 2 {
        return None;
    }
    let zeros = |side: usize| pairs.iter().filter(|pair| pair[side] == 0).count();
    let (high, low) = (zeros(0), zeros(1));
    let mostly = |zeros: usize| zeros * 10 > pairs.len() * 6;
    match () {
        () if mostly(low) && high == 0 => Some(UTF_16LE),
        () if mostly(high) && low == 0 => Some(UTF_16BE),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_every_encoding_become_the_same_characters() {
        let german = "Die Straße führt über die Brücke; Müller und Jäger gehen früh nach Österreich.";
        let russian = "Корабль затонул через несколько минут после спуска на воду.";
        let japanese = "船は港で数分後に沈没した。原因は上部の重さであった。";
        let utf16 = |text: &str, little: bool| -> Vec<u8> {
            let bytes = |unit: u16| if little { unit.to_le_bytes() } else { unit.to_be_bytes() };
            text.encode_utf16().flat_map(bytes).collect()
        };
        let page = |label: &str, text: &str| {
            Encoding::for_label(label.as_bytes()).unwrap().encode(text).0.into_owned()
        };
        let marked = |mark: &[u8], bytes: Vec<u8>| [mark, &bytes].concat();
        for (bytes, text, name) in [
            (german.as_bytes().to_vec(), german, "UTF-8"),
            (marked(b"\xef\xbb\xbf", german.as_bytes().to_vec()), german, "UTF-8"),
            (marked(b"\xff\xfe", utf16(russian, true)), russian, "UTF-16LE"),
            (marked(b"\xfe\xff", utf16(japanese, false)), japanese, "UTF-16BE"),
            (utf16(german, true), german, "UTF-16LE"),
            (utf16(german, false), german, "UTF-16BE"),
            (page("windows-1252", german), german, "windows-1252"),
            (page("windows-1251", russian), russian, "windows-1251"),
            (page("shift_jis", japanese), japanese, "Shift_JIS"),
        ] {
            let decoded = decode(&bytes).unwrap();
            assert_eq!((decoded.text.as_str(), decoded.encoding), (text, Some(name)));
        }
    }

    #[test]
    fn binary_data_is_no_text() {
        for bytes in [&b"\x00\x01\x02\x03"[..], b"abc\x00def\x00\x00", b"\x01\x02\x03\x04\x05 a"] {
            assert!(matches!(decode(bytes), Err(ReadError::Unsupported { .. })), "{bytes:?}");
        }
    }
}
