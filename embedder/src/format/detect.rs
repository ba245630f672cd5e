//! Which format some bytes are: by the marks at their beginning, else by how the text is built. Names don't count.

use super::{Format, ReadError, code, decode, jsonl, table};

/// How far into a file its mark may stand.
const MARK: usize = 1024;
/// How much of a text is looked at.
const SAMPLE: usize = 64 << 10;

/// What other files begin with, and what they are.
const OTHERS: [(&[u8], &str); 22] = [
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"RIFF", "a picture, a sound or a film"),
    (b"ID3", "a sound"),
    (b"OggS", "a sound or a film"),
    (b"\x1f\x8b", "compressed with gzip"),
    (b"BZh", "compressed with bzip2"),
    (b"\xfd7zXZ", "compressed with xz"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"\xd0\xcf\x11\xe0", "a file of an Office before 2007 (save it as DOCX or PDF)"),
    (b"{\\rtf", "RTF (save it as DOCX or PDF)"),
    (b"SQLite format 3", "an SQLite database"),
    (b"PAR1", "a Parquet table"),
    (b"\0asm", "a program"),
    (b"%!PS", "PostScript (convert it to PDF)"),
];

/// The format of some bytes.
///
/// # Errors
/// What they are, where that is nothing that can be read.
pub fn detect(bytes: &[u8]) -> Result<Format, ReadError> {
    let unsupported = |found: &str| Err(ReadError::Unsupported { found: found.to_owned() });
    let beginning = &bytes[..bytes.len().min(MARK)];
    if contains(beginning, b"%PDF-") {
        return Ok(Format::Pdf);
    }
    if bytes.starts_with(b"PK\x03\x04") {
        return match () {
            () if contains(bytes, b"word/document.xml") => Ok(Format::Docx),
            () if contains(bytes, b"xl/workbook.xml") => {
                unsupported("a spreadsheet (save each sheet as CSV)")
            }
            () if contains(bytes, b"ppt/presentation.xml") => unsupported("a presentation (save it as PDF)"),
            () if contains(bytes, b"application/epub") => unsupported("an EPUB book"),
            () if contains(bytes, b"opendocument") => {
                unsupported("an OpenDocument file (save it as DOCX or PDF)")
            }
            () => unsupported("a ZIP archive"),
        };
    }
    if let Some((_, found)) = OTHERS.iter().find(|(mark, _)| bytes.starts_with(mark)) {
        // "MZ" and the like may begin a text, too.
        if bytes.contains(&0) || !beginning.is_ascii() || found.contains('(') {
            return unsupported(found);
        }
    }
    let end = bytes.len().min(SAMPLE);
    let text = decode::decode(&bytes[..end - end % 4 * usize::from(end < bytes.len())])?.text;
    Ok(of_text(&text))
}

/// The format of a text.
fn of_text(text: &str) -> Format {
    let text = text.trim_start();
    match () {
        () if is_html(text) => Format::Html,
        () if is_jsonl(text) => Format::Jsonl,
        () if code::language(text).is_some() => Format::Code,
        () if is_markdown(text) => Format::Markdown,
        () if table::delimiter(text).is_some() => Format::Csv,
        () => Format::Text,
    }
}

/// The last line of a sample may be cut off.
fn is_jsonl(text: &str) -> bool {
    text.starts_with('{') && {
        let whole = text
            .rsplit_once('\n')
            .map_or(text, |(whole, _)| if text.len() + 8 > SAMPLE { whole } else { text });
        jsonl::is_jsonl(whole)
    }
}

fn is_html(text: &str) -> bool {
    let mut rest = text;
    // Comments and an XML declaration may come first.
    while let Some(after) = [("<!--", "-->"), ("<?", "?>")].into_iter().find_map(|(open, close)| {
        rest.strip_prefix(open)?.split_once(close).map(|(_, after)| after.trim_start())
    }) {
        rest = after;
    }
    if !rest.starts_with('<') {
        return false;
    }
    let beginning: String = rest.chars().take(2000).collect::<String>().to_ascii_lowercase();
    let whole = ["<!doctype html", "<html", "<head", "<body"].iter().any(|tag| beginning.starts_with(tag));
    let blocks = [
        "</p>",
        "</div>",
        "</h1>",
        "</h2>",
        "</li>",
        "</table>",
        "</ul>",
        "</span>",
        "</article>",
        "</section>",
    ];
    whole || blocks.iter().map(|tag| beginning.matches(tag).count()).sum::<usize>() >= 2
}

/// Marks that plain text hardly has: a heading and one more, or several others.
fn is_markdown(text: &str) -> bool {
    let (mut headings, mut others) = (0, 0);
    let mut previous = "";
    for line in text.lines().take(2000) {
        let trimmed = line.trim();
        let depth = trimmed.len() - trimmed.trim_start_matches('#').len();
        let underline = !previous.is_empty()
            && trimmed.len() >= 3
            && (trimmed.chars().all(|c| c == '=') || trimmed.chars().all(|c| c == '-'));
        if ((1..=6).contains(&depth) && trimmed[depth..].starts_with(' ')) || underline {
            headings += 1;
        }
        let rule = trimmed.starts_with('|') && trimmed.contains("---");
        let fence = trimmed.starts_with("```") || trimmed.starts_with("~~~");
        let link = trimmed.contains("](") || trimmed.contains("**");
        let item = ["- ", "* ", "+ "].iter().any(|mark| trimmed.starts_with(mark));
        others += usize::from(rule || fence) * 2 + usize::from(link) + usize::from(item);
        previous = trimmed;
    }
    headings >= 2 || (headings == 1 && (others >= 1 || text.starts_with("# "))) || others >= 4
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    memchr::memmem::find(bytes, what).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_tells_the_format() {
        for (bytes, format) in [
            (&b"%PDF-1.7\n"[..], Format::Pdf),
            (b"\xef\xbb\xbf\n%PDF-1.4", Format::Pdf),
            (b"PK\x03\x04....word/document.xml", Format::Docx),
            (b"<!DOCTYPE html>\n<p>a", Format::Html),
            (b"<?xml version='1.0'?><!-- x --><html xmlns=''>", Format::Html),
            (b"<div><p>a</p><p>b</p></div>", Format::Html),
            (b"{\"text\":\"a\"}\n{\"text\":\"b\"}\n", Format::Jsonl),
            (b"# Title\n\ntext\n", Format::Markdown),
            (b"A\n---\n\n- a\n- b\n\nB\n---\n", Format::Markdown),
            (b"name,tons\nVasa,1210\nMary Rose,700\n", Format::Csv),
            (b"#!/usr/bin/env python3\nprint('hi')\n", Format::Code),
            (b"use std::fmt;\n\n/// A ship.\npub struct Ship {\n    tons: u32,\n}\n\nimpl Ship {\n    pub fn new(tons: u32) -> Self {\n        Self { tons }\n    }\n}\n", Format::Code),
            (b"The ship sank in 1628, and it lay there for centuries.\n", Format::Text),
            (b"Dear Ms. Roe,\n\n- thank you -\n\nA.\n", Format::Text),
            (b"MZ is how it begins.", Format::Text),
        ] {
            assert_eq!(detect(bytes), Ok(format), "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn what_can_not_be_read_is_named() {
        for (bytes, found) in [
            (&b"\x89PNG\r\n\x1a\n\0\0"[..], "a PNG image"),
            (b"PK\x03\x04..xl/workbook.xml", "a spreadsheet"),
            (b"PK\x03\x04..a.txt", "a ZIP archive"),
            (b"\xd0\xcf\x11\xe0\xa1\xb1", "save it as DOCX"),
            (b"{\\rtf1 hello}", "RTF"),
            (b"\x1f\x8b\x08\0\0\0", "gzip"),
            (b"\x01\x00\x02", "binary data"),
        ] {
            let error = detect(bytes).unwrap_err().to_string();
            assert!(error.contains(found), "{error}");
        }
    }
}
