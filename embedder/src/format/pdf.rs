//! PDF to text: lines out of placed characters, paragraphs out of lines, headings by the size of their letters, pages.

use super::draft::Draft;
use super::{Extracted, Format, ReadError};
use pdf_extract::{Document, MediaBox, Object, OutputDev, OutputError, Transform, output_doc};
use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Most pages of a document.
const PAGES: usize = 20_000;
/// How much larger than the text around it a heading's letters are.
const LARGER: f64 = 1.15;
/// Longest heading, in characters.
const HEADING: usize = 160;
/// Levels of headings that sizes of letters can tell.
const LEVELS: usize = 4;
/// Most letters that are kept, in bytes of text.
const LETTERS: usize = super::TEXT_LIMIT;

/// What a document says.
///
/// # Errors
/// Why it can't be read.
pub fn read(bytes: &[u8]) -> Result<Extracted, ReadError> {
    // The library panics at much that is wrong in a file.
    let read = catch_unwind(AssertUnwindSafe(|| load(bytes)));
    read.unwrap_or_else(|_| Err(malformed("it is damaged, or uses what this reader does not know")))
}

fn malformed(message: &str) -> ReadError {
    ReadError::Malformed { format: Format::Pdf, message: message.to_owned() }
}

fn load(bytes: &[u8]) -> Result<Extracted, ReadError> {
    let encrypted = || ReadError::Encrypted { format: Format::Pdf };
    let mut document = Document::load_mem(bytes).map_err(|error| match error {
        pdf_extract::Error::Decryption(_) | pdf_extract::Error::InvalidPassword => encrypted(),
        other => malformed(&other.to_string()),
    })?;
    if document.is_encrypted() {
        document.decrypt("").map_err(|_| encrypted())?;
    }
    let pages = document.get_pages().len();
    if pages > PAGES {
        return Err(malformed(&format!("it has {pages} pages, and at most {PAGES} are read")));
    }
    let mut letters = Letters::default();
    output_doc(&document, &mut letters).map_err(|error| match letters.bytes > LETTERS {
        true => ReadError::TooLarge { what: "its text".to_owned(), limit: LETTERS as u64 },
        false => malformed(&error.to_string()),
    })?;
    let extracted = layout(&letters.pages, title(&document))?;
    if extracted.text.trim().is_empty() {
        let hint = format!(": {pages} pages of pictures, which need text recognition (OCR) first");
        return Err(ReadError::Empty { hint });
    }
    Ok(extracted)
}

/// The title in the document's properties.
fn title(document: &Document) -> Option<String> {
    let info = document.trailer.get(b"Info").ok()?;
    let info = document.dereference(info).ok()?.1.as_dict().ok()?;
    let Object::String(title, _) = document.dereference(info.get(b"Title").ok()?).ok()?.1 else {
        return None;
    };
    let utf16 = title.strip_prefix(b"\xfe\xff").map(|rest| {
        let units: Vec<u16> =
            rest.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
        String::from_utf16_lossy(&units)
    });
    Some(utf16.unwrap_or_else(|| title.iter().map(|byte| char::from(*byte)).collect()))
}

/// A line of a page as it is printed.
#[derive(Clone, Debug, Default)]
struct Line {
    text: String,
    /// Height of its letters, in points.
    size: f64,
    /// Place of its first letter from the top, in points.
    top: f64,
    /// Where its last letter ends.
    right: f64,
}

/// Collects lines from the letters of each page.
#[derive(Default)]
struct Letters {
    pages: Vec<Vec<Line>>,
    height: f64,
    bytes: usize,
    new_word: bool,
}

impl OutputDev for Letters {
    fn begin_page(
        &mut self,
        _: u32,
        page: &MediaBox,
        _: Option<(f64, f64, f64, f64)>,
    ) -> Result<(), OutputError> {
        self.height = page.ury;
        self.pages.push(Vec::new());
        Ok(())
    }

    fn end_page(&mut self) -> Result<(), OutputError> {
        Ok(())
    }

    fn output_character(
        &mut self,
        place: &Transform,
        width: f64,
        _: f64,
        font_size: f64,
        letter: &str,
    ) -> Result<(), OutputError> {
        self.bytes += letter.len();
        if self.bytes > LETTERS {
            // Ends the reading; the caller knows why.
            return Err(std::fmt::Error.into());
        }
        let scale = |x: f64, y: f64| x.hypot(y);
        let size = font_size.abs() * scale(place.m21, place.m22);
        let (left, top) = (place.m31, self.height - place.m32);
        let right = left + width * font_size.abs() * scale(place.m11, place.m12);
        let new_word = std::mem::take(&mut self.new_word);
        let Some(lines) = self.pages.last_mut() else { return Ok(()) };
        match lines.last_mut() {
            // Small steps up and down are indices; a step back is another line or column.
            Some(line)
                if (top - line.top).abs() < size.max(line.size) * 0.5 && left > line.right - size * 2.0 =>
            {
                let gap = left - line.right;
                if (gap > size * 0.15 || (new_word && gap > size * 0.1)) && !line.text.ends_with(' ') {
                    line.text.push(' ');
                }
                line.text.push_str(letter);
                line.right = line.right.max(right);
                line.size = line.size.max(size);
            }
            _ => lines.push(Line { text: letter.to_owned(), size, top, right }),
        }
        Ok(())
    }

    fn begin_word(&mut self) -> Result<(), OutputError> {
        self.new_word = true;
        Ok(())
    }

    fn end_word(&mut self) -> Result<(), OutputError> {
        Ok(())
    }

    fn end_line(&mut self) -> Result<(), OutputError> {
        Ok(())
    }
}

/// Makes paragraphs and headings of lines.
fn layout(pages: &[Vec<Line>], title: Option<String>) -> Result<Extracted, ReadError> {
    let body = body_size(pages);
    let levels = heading_sizes(pages, body);
    let repeated = repeated(pages);
    let mut draft = Draft::default();
    for lines in pages {
        draft.page();
        let mut blocks = Blocks { draft: &mut draft, text: String::new(), level: None, last: None };
        let right = lines.iter().map(|line| line.right).fold(0.0, f64::max);
        let count = lines.len();
        for (place, line) in lines.iter().enumerate() {
            let at_edge = place == 0 || place + 1 == count;
            if line.text.trim().is_empty() || (at_edge && repeated.contains_key(&shape(&line.text))) {
                continue;
            }
            let level = (line.text.chars().count() <= HEADING)
                .then(|| levels.iter().position(|size| *size == tenths(line.size)).map(|place| place + 1))
                .flatten();
            blocks.add(line, level, right);
        }
        blocks.end();
        if draft.is_too_long() {
            break;
        }
    }
    draft.finish(Format::Pdf, title)
}

/// The block that is being made of lines.
struct Blocks<'a> {
    draft: &'a mut Draft,
    text: String,
    level: Option<usize>,
    last: Option<Line>,
}

impl Blocks<'_> {
    fn add(&mut self, line: &Line, level: Option<usize>, right: f64) {
        if let Some(last) = &self.last {
            let step = line.top - last.top;
            let near = step >= 0.0 && step < last.size.max(line.size) * 1.7;
            if !near || level != self.level {
                self.end();
            } else if self.text.ends_with('-') && line.text.trim_start().starts_with(char::is_lowercase) {
                // A word that was divided at the end of the line.
                self.text.pop();
            } else {
                // A line that ends early ends on purpose.
                self.text.push(if level.is_some() || last.right > right * 0.75 { ' ' } else { '\n' });
            }
        }
        self.text.push_str(line.text.trim());
        self.level = level;
        self.last = Some(line.clone());
    }

    fn end(&mut self) {
        let text = std::mem::take(&mut self.text);
        match self.level.take() {
            Some(level) => self.draft.heading(level, &text),
            None => self.draft.paragraph(&text),
        }
        self.last = None;
    }
}

/// A size in tenths of a point, so that equal ones are equal.
#[expect(clippy::cast_possible_truncation, reason = "letters are a few points high")]
fn tenths(size: f64) -> i64 {
    (size * 10.0).round() as i64
}

/// The size that most letters have, in tenths of a point.
fn body_size(pages: &[Vec<Line>]) -> i64 {
    let mut letters: BTreeMap<i64, usize> = BTreeMap::new();
    for line in pages.iter().flatten() {
        *letters.entry(tenths(line.size)).or_default() += line.text.len();
    }
    letters.into_iter().max_by_key(|(_, count)| *count).map_or(0, |(size, _)| size)
}

/// The sizes of headings, the largest first.
#[expect(clippy::cast_precision_loss, reason = "letters are a few points high")]
fn heading_sizes(pages: &[Vec<Line>], body: i64) -> Vec<i64> {
    let large = |size: &i64| *size as f64 >= body as f64 * LARGER;
    let mut sizes: Vec<i64> = pages.iter().flatten().map(|line| tenths(line.size)).filter(large).collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    sizes.dedup();
    sizes.truncate(LEVELS);
    sizes
}

/// What stands at the top or the bottom of most pages: running titles and page numbers.
fn repeated(pages: &[Vec<Line>]) -> HashMap<String, usize> {
    let mut found: HashMap<String, usize> = HashMap::new();
    for lines in pages {
        let count = lines.len();
        let edges = lines.iter().enumerate().filter(|(place, _)| *place == 0 || place + 1 == count);
        let mut shapes: Vec<String> = edges.map(|(_, line)| shape(&line.text)).collect();
        shapes.sort_unstable();
        shapes.dedup();
        for shape in shapes {
            *found.entry(shape).or_default() += 1;
        }
    }
    found.retain(|_, count| pages.len() >= 4 && *count * 2 > pages.len());
    found
}

/// A line with its numbers made alike.
fn shape(text: &str) -> String {
    let mut shape = String::new();
    for letter in text.trim().chars() {
        match letter.is_ascii_digit() {
            true if shape.ends_with('0') => {}
            true => shape.push('0'),
            false => shape.push(letter),
        }
    }
    shape
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str, size: f64, top: f64, right: f64) -> Line {
        Line { text: text.into(), size, top, right }
    }

    #[test]
    fn lines_become_paragraphs_and_larger_ones_headings() {
        let page = vec![
            line("The Vasa", 20.0, 50.0, 150.0),
            line("She was built in Stock-", 10.0, 90.0, 500.0),
            line("holm by hundreds of people, and she sank on her", 10.0, 102.0, 500.0),
            line("first day.", 10.0, 114.0, 120.0),
            line("Why she sank", 14.0, 150.0, 150.0),
            line("Too heavy above.", 10.0, 170.0, 130.0),
            line("Too narrow below.", 10.0, 182.0, 140.0),
        ];
        let found = layout(&[page], None).unwrap();
        assert_eq!(
            found.text,
            "# The Vasa\n\nShe was built in Stockholm by hundreds of people, and she sank on her first day.\n\n\
             ## Why she sank\n\nToo heavy above.\nToo narrow below."
        );
    }

    #[test]
    fn running_titles_and_page_numbers_are_left_out() {
        let page = |number: usize| {
            vec![
                line("Annual report", 8.0, 20.0, 150.0),
                line(&format!("Something about the year {}.", 2000 + number * 7), 10.0, 90.0, 300.0),
                line(&format!("Another line of page number {number}."), 10.0, 102.0, 300.0),
                line("And a third.", 10.0, 300.0, 300.0),
                line(&format!("Page {number} of 12"), 8.0, 800.0, 150.0),
            ]
        };
        let pages: Vec<_> = (8..13).map(page).collect();
        let found = layout(&pages, None).unwrap();
        assert!(!found.text.contains("Annual report") && !found.text.contains("of 12"), "{}", found.text);
        assert!(found.text.contains("And a third.") && found.pages.len() == 5);
        assert_eq!(found.page(found.text.rfind("number 9.").unwrap()), Some(2));
    }
}
