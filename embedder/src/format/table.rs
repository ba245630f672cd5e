//! Tables in text: values divided by one character, with a header. A row becomes a block of `name: value` lines, so that
//! a chunk of rows is understood without the header.

use super::{Extracted, Format, Markup, ReadError, check_length};

/// Rows that are looked at to tell a table from other text.
const SAMPLE: usize = 50;
/// Longest value that is likely in a table, in bytes.
const LIKELY: usize = 200;

/// A table as text.
///
/// # Errors
/// When it has no rows, or is longer than a document may be.
pub fn read(text: &str) -> Result<Extracted, ReadError> {
    let malformed = |message: String| ReadError::Malformed { format: Format::Csv, message };
    let delimiter = delimiter(text).unwrap_or_else(|| most_frequent(text));
    let mut reader =
        csv::ReaderBuilder::new().delimiter(delimiter).flexible(true).from_reader(text.as_bytes());
    let header: Vec<String> = reader
        .headers()
        .map_err(|error| malformed(error.to_string()))?
        .iter()
        .map(|name| name.trim().to_owned())
        .collect();
    let mut out = String::new();
    for row in reader.records() {
        let row = row.map_err(|error| malformed(error.to_string()))?;
        let mut block = String::new();
        for (place, value) in row.iter().enumerate().filter(|(_, value)| !value.trim().is_empty()) {
            let name = header.get(place).filter(|name| !name.is_empty()).cloned();
            let name = name.unwrap_or_else(|| format!("column {}", place + 1));
            let value = value.split_whitespace().collect::<Vec<_>>().join(" ");
            block.push_str(&format!("{}{name}: {value}", if block.is_empty() { "" } else { "\n" }));
        }
        if !block.is_empty() {
            out.push_str(if out.is_empty() { "" } else { "\n\n" });
            out.push_str(&block);
        }
        check_length(&out)?;
    }
    let (text, headings, pages) = (out, Vec::new(), Vec::new());
    Ok(Extracted {
        format: Format::Csv,
        encoding: None,
        title: None,
        text,
        markup: Markup::Plain,
        headings,
        pages,
    })
}

/// The delimiter that the first line has most of.
fn most_frequent(text: &str) -> u8 {
    let first = text.lines().next().unwrap_or_default();
    let count = |delimiter: &u8| first.bytes().filter(|byte| byte == delimiter).count();
    [b'|', b'\t', b';', b','].into_iter().max_by_key(count).unwrap_or(b',')
}

/// What divides the values of a table; `None` where the text is none.
pub fn delimiter(text: &str) -> Option<u8> {
    [b'\t', b';', b',', b'|'].into_iter().find(|delimiter| is_table(text, *delimiter))
}

fn is_table(text: &str, delimiter: u8) -> bool {
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .has_headers(false)
        .flexible(true)
        .from_reader(text.as_bytes());
    let rows: Vec<csv::StringRecord> = reader.records().take(SAMPLE).map_while(Result::ok).collect();
    let [header, rest @ ..] = rows.as_slice() else { return false };
    let width = header.len();
    // The last row of a sample may be cut off.
    let same = rest.iter().filter(|row| row.len() == width).count();
    let likely = |value: &str| value.len() <= LIKELY;
    // After a comma that is punctuation there is a space.
    let values: Vec<&str> = rows.iter().flat_map(|row| row.iter().skip(1)).collect();
    let spaced = values.iter().filter(|value| value.starts_with(' ')).count();
    let named = |value: &str| {
        !value.trim().is_empty() && value.len() < 80 && !value.trim().ends_with(['.', ':', '!', '?'])
    };
    width > 1
        && rest.len() + usize::from(width > 2) > 1
        && same + 1 >= rest.len()
        && same * 20 >= rest.len() * 19
        && header.iter().all(named)
        && rows.iter().flat_map(csv::StringRecord::iter).filter(|value| likely(value)).count() * 10
            >= (values.len() + rows.len()) * 9
        && (delimiter != b',' || spaced * 3 < values.len() || width > 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_says_what_its_values_are() {
        let table = read("name;tons;\nVasa;\"1,210\";x\n;;\nMary\n\"Rose; the\nsecond\";700;\n").unwrap();
        assert_eq!(
            table.text,
            "name: Vasa\ntons: 1,210\ncolumn 3: x\n\nname: Mary\n\nname: Rose; the second\ntons: 700"
        );
    }

    #[test]
    fn tables_are_told_from_prose() {
        for (text, expected) in [
            ("a,b\n1,2\n3,4\n", Some(b',')),
            ("a;b;c\n1,5;2;3\n", Some(b';')),
            ("a\tb\n1\t2\n3\t4\n", Some(b'\t')),
            ("Yes, it is.\nNo, it is not.\nWell, who knows.\n", None),
            ("First, second\nthird, fourth\nfifth, sixth\n", None),
            ("one line, with a comma", None),
            ("a b c\nd e f\n", None),
        ] {
            assert_eq!(delimiter(text), expected, "{text}");
        }
    }
}
