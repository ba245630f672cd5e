//! Whole files of every format, and files made to do harm.

use super::*;
use std::io::Write as _;
use std::path::Path;
use zip::write::SimpleFileOptions;

/// One of the files that `fixtures/make_documents.py` has written.
fn file(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/documents").join(name)).unwrap()
}

fn only(bytes: &[u8]) -> Extracted {
    let mut records = read(bytes, None).unwrap();
    assert_eq!(records.len(), 1);
    records.remove(0).unwrap().content
}

/// A DOCX of some parts.
fn docx(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, content) in parts {
        archive.start_file(*name, SimpleFileOptions::default()).unwrap();
        archive.write_all(content).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

#[test]
fn the_same_document_in_every_format_has_the_same_headings_and_says_the_same() {
    for (name, format, pages) in [
        ("vasa.md", Format::Markdown, 0),
        ("vasa.html", Format::Html, 0),
        ("vasa.docx", Format::Docx, 2),
        ("vasa.pdf", Format::Pdf, 2),
    ] {
        let found = only(&file(name));
        assert_eq!((found.format, found.pages.len()), (format, pages), "{name}");
        let titles: Vec<(usize, &str)> =
            found.headings.iter().map(|it| (it.level, it.title.as_str())).collect();
        assert_eq!(
            titles,
            [(1, "The warship Vasa"), (2, "Why she sank"), (2, "Salvage")],
            "{name}: {}",
            found.text
        );
        for part in ["She was built in Stockholm", "above the waterline", "Größe: 69 metres", "333 years"] {
            assert!(found.text.contains(part), "{name} does not say {part:?}: {}", found.text);
        }
        let salvage = found.text.find("333 years").unwrap();
        assert_eq!(found.heading_path(salvage), ["The warship Vasa", "Salvage"], "{name}");
        assert_eq!(found.page(salvage), (pages > 0).then_some(2), "{name}");
    }
}

#[test]
fn a_table_and_json_lines_are_read_by_what_they_hold() {
    let table = only(&file("ships.csv"));
    assert_eq!(table.format, Format::Csv);
    assert!(table.text.contains("name: Mary Rose\nbuilt: 1511"), "{}", table.text);
    let records = read(&file("ships.jsonl"), None).unwrap();
    assert_eq!(records.iter().filter(|record| record.is_ok()).count(), 3);
    assert!(records[3].as_ref().unwrap_err().to_string().contains("line 4"));
}

#[test]
fn a_docx_has_the_levels_of_headings_that_word_processors_have() {
    let levels = ["0", "2", "9", "10", "1000000000000000", "99999999999999999999"];
    let (mut styles, mut document) = (String::new(), String::new());
    for level in levels {
        styles += &format!(r#"<w:style w:styleId="s{level}"><w:name w:val="heading {level}"/></w:style>"#);
        document += &format!(r#"<w:p><w:pStyle w:val="s{level}"/><w:t>Level {level}</w:t></w:p>"#);
    }
    let found = only(&docx(&[
        ("word/document.xml", format!("<w:document>{document}</w:document>").as_bytes()),
        ("word/styles.xml", format!("<w:styles>{styles}</w:styles>").as_bytes()),
    ]));
    let headings: Vec<(usize, &str)> =
        found.headings.iter().map(|it| (it.level, it.title.as_str())).collect();
    assert_eq!(headings, [(2, "Level 2"), (9, "Level 9")]);
    assert!(levels.iter().all(|level| found.text.contains(&format!("Level {level}"))), "{}", found.text);
}

#[test]
fn what_can_not_be_read_says_why() {
    let bomb = docx(&[("word/document.xml", &vec![b' '; (128 << 20) + 1])]);
    assert!(bomb.len() < 1 << 20);
    let laughs = "<!DOCTYPE d [<!ENTITY a \"ha\"><!ENTITY b \"&a;&a;&a;\">]><w:document><w:p><w:t>&b;x</w:t></w:p></w:document>";
    assert_eq!(
        only(&docx(&[("word/document.xml", laughs.as_bytes())])).text,
        "x",
        "entities are not expanded"
    );
    for (bytes, says) in [
        (bomb, "word/document.xml in it is larger than 128 MiB"),
        (docx(&[("word/document.xml", b"<w:document><w:p></w:document>")]), "reading it as docx: its XML"),
        (docx(&[("word/document.xml", b"<w:document/>")]), "holds no text"),
        (docx(&[("word/media/word/document.xml", b"x")]), "there is no word/document.xml"),
        (file("vasa.docx")[..2000].to_vec(), "reading it as docx"),
        (file("vasa.pdf")[..300].to_vec(), "reading it as pdf"),
        (b"%PDF-1.4 nothing".to_vec(), "reading it as pdf"),
        (file("scan.pdf"), "1 pages of pictures, which need text recognition"),
        (file("secret.pdf"), "the PDF is encrypted"),
        (b"\x89PNG\r\n\x1a\n\0\0\0".to_vec(), "it is a PNG image"),
        (b" \n ".to_vec(), "holds no text"),
    ] {
        let error = read(&bytes, None).unwrap_err().to_string();
        assert!(error.contains(says), "{error:?} does not say {says:?}");
    }
}
