//! DOCX to text: paragraphs, headings by their styles, lists, tables and page breaks of a word processor's document.

use super::draft::Draft;
use super::{Extracted, Format, ReadError};
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};
use std::collections::HashMap;
use std::io::{Cursor, Read};
use zip::ZipArchive;
use zip::result::ZipError;

/// Most bytes that one part of the archive may become.
const PART: u64 = 128 << 20;
/// Levels of headings.
const LEVELS: usize = 9;
/// Deepest chain of styles that are based on others.
const STYLES: usize = 16;

/// What a document says.
///
/// # Errors
/// Why it can't be read.
pub fn read(bytes: &[u8]) -> Result<Extracted, ReadError> {
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|error| malformed(&error.to_string()))?;
    let part = |archive: &mut ZipArchive<Cursor<&[u8]>>, name: &str| match archive.by_name(name) {
        Ok(file) => {
            let mut content = Vec::new();
            // What the archive says of its sizes is not to be trusted.
            file.take(PART + 1)
                .read_to_end(&mut content)
                .map_err(|error| malformed(&format!("unpacking {name}: {error}")))?;
            match content.len() as u64 > PART {
                true => Err(ReadError::TooLarge { what: format!("{name} in it"), limit: PART }),
                false => Ok(Some(String::from_utf8_lossy(&content).into_owned())),
            }
        }
        Err(ZipError::FileNotFound) => Ok(None),
        Err(ZipError::UnsupportedArchive(message)) if message == ZipError::PASSWORD_REQUIRED => {
            Err(ReadError::Encrypted { format: Format::Docx })
        }
        Err(error) => Err(malformed(&format!("unpacking {name}: {error}"))),
    };
    let document = part(&mut archive, "word/document.xml")?
        .ok_or_else(|| malformed("there is no word/document.xml in it"))?;
    let styles =
        part(&mut archive, "word/styles.xml")?.map(|xml| levels(&xml)).transpose()?.unwrap_or_default();
    let title = part(&mut archive, "docProps/core.xml")?.map(|xml| title(&xml)).transpose()?.flatten();
    let mut body = Body { styles, draft: Draft::default(), ..Body::default() };
    body.draft.page();
    body.read(&document)?;
    let extracted = body.draft.finish(Format::Docx, title)?;
    match extracted.text.trim().is_empty() {
        true => Err(ReadError::Empty { hint: String::new() }),
        false => Ok(extracted),
    }
}

fn malformed(message: &str) -> ReadError {
    ReadError::Malformed { format: Format::Docx, message: message.to_owned() }
}

/// Calls `each` with every event of an XML text.
fn events(xml: &str, mut each: impl FnMut(&Event<'_>) -> Result<(), ReadError>) -> Result<(), ReadError> {
    let mut reader = Reader::from_str(xml);
    loop {
        match reader.read_event().map_err(|error| malformed(&format!("its XML: {error}")))? {
            Event::Eof => return Ok(()),
            event => each(&event)?,
        }
    }
}

/// An attribute by its name without a prefix.
fn attribute(element: &BytesStart<'_>, name: &str) -> Option<String> {
    let found = element.attributes().flatten().find(|it| it.key.local_name().into_inner() == name)?;
    Some(found.normalized_value(XmlVersion::Implicit1_0).ok()?.into_owned())
}

/// Text that an event stands for.
fn text_of(event: &Event<'_>) -> Option<String> {
    match event {
        Event::Text(text) => Some(text.xml10_content().into_owned()),
        Event::CData(text) => Some(text.xml10_content().into_owned()),
        Event::GeneralRef(reference) => match reference.resolve_char_ref() {
            Ok(Some(character)) => Some(character.to_string()),
            _ => resolve_predefined_entity(&reference.xml10_content()).map(ToOwned::to_owned),
        },
        _ => None,
    }
}

/// The level of each style that is a heading's, by the style's id. Ids are translated with the program's language, names are not.
fn levels(xml: &str) -> Result<HashMap<String, usize>, ReadError> {
    #[derive(Default)]
    struct Style {
        level: Option<usize>,
        based_on: Option<String>,
    }
    let mut styles: HashMap<String, Style> = HashMap::new();
    let mut id = String::new();
    events(xml, |event| {
        let (Event::Start(element) | Event::Empty(element)) = event else { return Ok(()) };
        let value = || attribute(element, "val");
        let style = styles.entry(id.clone()).or_default();
        match element.local_name().into_inner() {
            "style" => id = attribute(element, "styleId").unwrap_or_default(),
            "name" => {
                let name = value().unwrap_or_default().to_lowercase();
                let number = name.strip_prefix("heading ").and_then(|number| number.parse::<usize>().ok());
                // A word processor has nine of them; what a file may say otherwise is no heading.
                let number = number.filter(|level| (1..=LEVELS).contains(level));
                style.level = style.level.or(if name == "title" { Some(1) } else { number });
            }
            "basedOn" => style.based_on = value(),
            "outlineLvl" => style.level = style.level.or(outline_level(value())),
            _ => {}
        }
        Ok(())
    })?;
    let level = |id: &String| {
        let mut style = styles.get(id)?;
        for _ in 0..STYLES {
            if style.level.is_some() {
                return style.level;
            }
            style = styles.get(style.based_on.as_ref()?)?;
        }
        None
    };
    Ok(styles.keys().filter_map(|id| Some((id.clone(), level(id)?))).collect())
}

/// Outline levels count from 0; the one after the last is body text.
fn outline_level(value: Option<String>) -> Option<usize> {
    value?.parse::<usize>().ok().filter(|level| *level < LEVELS).map(|level| level + 1)
}

/// The title in the document's properties.
fn title(xml: &str) -> Result<Option<String>, ReadError> {
    let (mut inside, mut title) = (false, String::new());
    events(xml, |event| {
        match event {
            Event::Start(element) => inside = element.local_name().into_inner() == "title",
            Event::End(_) => inside = false,
            other if inside => title.extend(text_of(other)),
            _ => {}
        }
        Ok(())
    })?;
    Ok(Some(title).filter(|title| !title.trim().is_empty()))
}

/// The document's body while it is read.
#[derive(Default)]
struct Body {
    styles: HashMap<String, usize>,
    draft: Draft,
    /// Text of the paragraph so far.
    text: String,
    /// Level of the paragraph as a heading.
    level: Option<usize>,
    /// Depth of the paragraph as an item of a list.
    item: Option<usize>,
    in_text: bool,
    /// Open `mc:Fallback`: the same once more for old programs.
    fallback: usize,
    /// Open tables; those inside another are part of its cell.
    tables: usize,
    rows: Vec<Vec<String>>,
}

impl Body {
    fn read(&mut self, xml: &str) -> Result<(), ReadError> {
        events(xml, |event| {
            match event {
                Event::Start(element) => self.start(element, true),
                Event::Empty(element) => self.start(element, false),
                Event::End(element) => self.end(element.local_name().into_inner()),
                other if self.in_text && self.fallback == 0 => self.text.extend(text_of(other)),
                _ => {}
            }
            match self.draft.is_too_long() {
                true => {
                    Err(ReadError::TooLarge { what: "its text".to_owned(), limit: super::TEXT_LIMIT as u64 })
                }
                false => Ok(()),
            }
        })
    }

    fn start(&mut self, element: &BytesStart<'_>, opens: bool) {
        let name = element.local_name().into_inner();
        if name == "Fallback" && opens {
            self.fallback += 1;
        }
        if self.fallback > 0 {
            return;
        }
        let value = || attribute(element, "val");
        match name {
            "t" => self.in_text = opens,
            "tab" | "cr" => self.text.push(' '),
            "noBreakHyphen" => self.text.push('-'),
            "br" if attribute(element, "type").as_deref() == Some("page") => self.break_page(),
            "br" => self.text.push('\n'),
            "lastRenderedPageBreak" => self.break_page(),
            "pStyle" => self.level = value().and_then(|style| self.styles.get(&style).copied()),
            "outlineLvl" => self.level = outline_level(value()).or(self.level),
            "numPr" => self.item = self.item.or(Some(0)),
            "ilvl" => self.item = value().and_then(|level| level.parse().ok()).or(self.item),
            "tbl" if opens => self.tables += 1,
            "tr" if opens && self.tables == 1 => self.rows.push(Vec::new()),
            _ => {}
        }
    }

    fn end(&mut self, name: &str) {
        if self.fallback > 0 {
            self.fallback -= usize::from(name == "Fallback");
            return;
        }
        match name {
            "t" => self.in_text = false,
            "p" if self.tables > 0 => self.text.push(' '),
            "p" => self.end_paragraph(),
            "tc" if self.tables == 1 => {
                let cell = std::mem::take(&mut self.text);
                if let Some(row) = self.rows.last_mut() {
                    row.push(cell);
                }
            }
            "tbl" => {
                self.tables = self.tables.saturating_sub(1);
                if self.tables == 0 {
                    self.draft.table(&std::mem::take(&mut self.rows));
                    self.text.clear();
                    (self.level, self.item) = (None, None);
                }
            }
            _ => {}
        }
    }

    /// A page ends: what has been said of the paragraph stays on the old one.
    fn break_page(&mut self) {
        if self.tables == 0 && self.level.is_none() && !self.text.trim().is_empty() {
            let text = std::mem::take(&mut self.text);
            self.draft.paragraph(&text);
        }
        self.draft.page();
    }

    fn end_paragraph(&mut self) {
        let text = std::mem::take(&mut self.text);
        match (self.level.take(), self.item.take()) {
            (Some(level), _) => self.draft.heading(level, &text),
            (None, Some(depth)) => self.draft.item(depth, "-", &text),
            (None, None) => self.draft.paragraph(text.trim()),
        }
    }
}
