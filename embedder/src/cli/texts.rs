//! Texts of local files: lines, fields of JSON lines, or whole files.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use indicatif::ProgressBar;
use serde_json::Value;

use crate::args::InputFlags;

/// One text, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Text {
    pub(super) source: String,
    /// Counted from one; absent where the whole file is the text.
    pub(super) line: Option<usize>,
    pub(super) text: String,
}

/// The bytes of all files together, where they have a size.
pub(super) fn bytes(files: &[PathBuf]) -> Option<u64> {
    files
        .iter()
        .map(|path| std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file))
        .map(|it| Some(it?.len()))
        .sum()
}

/// The texts of all files, one after another; `progress` is moved by the bytes that are read.
pub(super) fn read<'a>(
    flags: &'a InputFlags,
    progress: &'a ProgressBar,
) -> impl Iterator<Item = anyhow::Result<Text>> + 'a {
    flags.files.iter().flat_map(move |path| match texts(path, flags, progress) {
        Ok(texts) => texts,
        Err(error) => Box::new(std::iter::once(Err(error))),
    })
}

type Texts<'a> = Box<dyn Iterator<Item = anyhow::Result<Text>> + 'a>;

fn texts<'a>(path: &'a Path, flags: &'a InputFlags, progress: &'a ProgressBar) -> anyhow::Result<Texts<'a>> {
    let source = path.display().to_string();
    let standard = source == "-";
    let reader: Box<dyn BufRead> = if standard {
        Box::new(BufReader::new(std::io::stdin()))
    } else {
        Box::new(BufReader::new(File::open(path).with_context(|| format!("opening {source}"))?))
    };
    if flags.whole_files {
        let mut text = String::new();
        let mut reader = reader;
        reader.read_to_string(&mut text).with_context(|| format!("reading {source}, which must be UTF-8"))?;
        progress.inc(text.len() as u64);
        return Ok(Box::new(std::iter::once(Ok(Text { source, line: None, text }))));
    }
    let json = path.extension().is_some_and(|extension| extension == "jsonl" || extension == "ndjson");
    // Standard input has no name to tell its form by; the flag does.
    let field = flags.field.as_deref().or(json.then_some("text"));
    let lines = reader.lines().zip(1..).map(move |(line, number)| {
        let line = line.with_context(|| format!("reading line {number} of {source}, which must be UTF-8"))?;
        progress.inc(line.len() as u64 + 1);
        let text = match field {
            Some(field) if !line.trim().is_empty() => {
                from_json(&line, field).with_context(|| format!("line {number} of {source}"))?
            }
            _ => line,
        };
        Ok(Text { source: source.clone(), line: Some(number), text })
    });
    Ok(Box::new(lines.filter(|text| !text.as_ref().is_ok_and(|text| text.text.trim().is_empty()))))
}

fn from_json(line: &str, field: &str) -> anyhow::Result<String> {
    let value: Value = serde_json::from_str(line).context("is not JSON")?;
    match value.get(field) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => bail!("{field} is {other}, not a text"),
        None => bail!("has no field {field:?}: name the one with the text with --field"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_lines_fields_or_files() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).unwrap();
            folder.path().join(name)
        };
        let plain = write("a.txt", "one\n\n  \ntwo\r\n");
        let json = write("b.jsonl", "{\"text\":\"three\"}\n\n{\"text\":\"four\",\"body\":\"five\"}\n");
        let wrong = write("c.jsonl", "{\"body\":5}\n");
        let all = |files: &[&PathBuf], field: Option<&str>, whole_files: bool| {
            let files = files.iter().map(|path| (*path).clone()).collect();
            let flags = InputFlags { files, field: field.map(str::to_owned), whole_files };
            let progress = ProgressBar::hidden();
            let texts = read(&flags, &progress).collect::<anyhow::Result<Vec<_>>>();
            let texts = texts.map(|list| list.into_iter().map(|it| (it.line, it.text)).collect::<Vec<_>>());
            texts.map_err(|error| format!("{error:#}"))
        };
        let owned = |list: &[(Option<usize>, &str)]| -> Vec<(Option<usize>, String)> {
            list.iter().map(|(line, text)| (*line, (*text).to_owned())).collect()
        };
        assert_eq!(
            all(&[&plain, &json], None, false).unwrap(),
            owned(&[(Some(1), "one"), (Some(4), "two"), (Some(1), "three"), (Some(3), "four")])
        );
        assert_eq!(all(&[&plain], None, true).unwrap(), owned(&[(None, "one\n\n  \ntwo\r\n")]));
        assert!(all(&[&json], Some("body"), false).unwrap_err().contains("line 1 of"));
        assert!(all(&[&wrong], Some("body"), false).unwrap_err().ends_with("body is 5, not a text"));
        assert!(all(&[&wrong], None, false).unwrap_err().contains("name the one with the text with --field"));
        assert!(all(&[&folder.path().join("none")], None, false).unwrap_err().contains("opening"));
        assert_eq!(bytes(&[plain, json]), Some(13 + 48));
    }
}
