//! JSON lines: each object is a document of its own. Its text is in the first of some usual fields, or made of all of them.

use super::{Extracted, Format, Markup, ReadError, Record, check_length, markdown};
use serde_json::{Map, Value};

/// Fields that hold a document's text, in the order in which they are looked for.
const TEXT: [&str; 6] = ["text", "content", "body", "markdown", "page_content", "contents"];
/// Fields that hold its id.
const ID: [&str; 4] = ["id", "_id", "doc_id", "document_id"];
/// Longest line of which a piece is shown in an error, in characters.
const SHOWN: usize = 60;

/// The documents of a file; a line that is none says why.
///
/// # Errors
/// When there is no line at all.
pub fn read(text: &str) -> Result<Vec<Result<Record, ReadError>>, ReadError> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let records: Vec<_> = lines.map(|(number, line)| record(number + 1, line)).collect();
    match records.is_empty() {
        true => Err(ReadError::Empty { hint: String::new() }),
        false => Ok(records),
    }
}

/// Whether a text is JSON lines, by its first lines, of which some may be broken.
pub fn is_jsonl(text: &str) -> bool {
    let lines = text.lines().filter(|line| !line.trim().is_empty()).take(20);
    let objects: Vec<bool> =
        lines.map(|line| serde_json::from_str::<Map<String, Value>>(line).is_ok()).collect();
    objects.first() == Some(&true) && objects.iter().filter(|it| **it).count() * 4 >= objects.len() * 3
}

fn record(number: usize, line: &str) -> Result<Record, ReadError> {
    let malformed = |message: String| ReadError::Malformed { format: Format::Jsonl, message };
    let mut object: Map<String, Value> = serde_json::from_str(line).map_err(|error| {
        let shown: String = line.chars().take(SHOWN).collect();
        malformed(format!("line {number} is no JSON object ({error}): {shown}"))
    })?;
    let id = ID.iter().find_map(|name| object.remove(*name)).map(|id| plain(&id));
    let title = object.remove("title").map(|title| plain(&title)).filter(|title| !title.is_empty());
    let found = TEXT.iter().find(|name| object.get(**name).is_some_and(Value::is_string));
    let text = match found.and_then(|name| object.remove(*name)) {
        Some(text) => plain(&text),
        // A row of a database: all of its fields are its text, and stay its metadata.
        None => object
            .iter()
            .map(|(name, value)| format!("{name}: {}", plain(value)))
            .collect::<Vec<_>>()
            .join("\n"),
    };
    if text.trim().is_empty() {
        return Err(ReadError::Empty { hint: format!(" in line {number}") });
    }
    check_length(&text)?;
    let headings = markdown::headings(&text);
    let markup = if headings.is_empty() { Markup::Plain } else { Markup::Markdown };
    let metadata = match object.remove("metadata") {
        Some(Value::Object(metadata)) => metadata.into_iter().chain(object).collect(),
        Some(other) => object.into_iter().chain([("metadata".to_owned(), other)]).collect(),
        None => object,
    };
    let content =
        Extracted { format: Format::Jsonl, encoding: None, title, text, markup, headings, pages: Vec::new() };
    Ok(Record { id: Some(id.unwrap_or_else(|| format!("line-{number}"))), content, metadata })
}

/// A value in words.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_line_is_a_document_and_a_wrong_one_fails_alone() {
        let text = "{\"id\":7,\"title\":\"T\",\"text\":\"# A\\n\\na\",\"lang\":\"en\",\"metadata\":{\"k\":1}}\n\n{\"name\":\"Vasa\",\"tons\":1210}\nnonsense\n{\"text\":\" \"}\n";
        let records = read(text).unwrap();
        let first = records[0].as_ref().unwrap();
        assert_eq!((first.id.as_deref(), first.content.title.as_deref()), (Some("7"), Some("T")));
        assert_eq!(Value::Object(first.metadata.clone()), json!({ "k": 1, "lang": "en" }));
        assert_eq!(first.content.heading_path(5), ["A"]);
        let second = records[1].as_ref().unwrap();
        assert_eq!(
            (second.id.as_deref(), second.content.text.as_str()),
            (Some("line-3"), "name: Vasa\ntons: 1210")
        );
        assert!(records[2].as_ref().unwrap_err().to_string().contains("line 4 is no JSON object"));
        assert!(records[3].as_ref().unwrap_err().to_string().contains("no text in line 5"));
        assert!(
            is_jsonl("{}\n{\"a\":1}\n") && !is_jsonl("{\n\"a\":1\n}") && !is_jsonl("[1]") && !is_jsonl("")
        );
    }
}
