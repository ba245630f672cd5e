//! `embed`: texts of files to JSON lines with their vectors.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use serde::Serialize;

use super::texts::{self, Text};
use super::{CHUNK, CHUNKS, bar, is_read, load, summary};
use crate::args::{EmbedArgs, Role};
use crate::http::{EncodeOptions, Encoded, encode_texts};

/// One line of the output.
#[derive(Serialize)]
struct Line<'a> {
    source: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(flatten)]
    encoded: &'a Encoded,
}

/// Embeds every text of the files.
pub async fn embed(args: &EmbedArgs) -> anyhow::Result<()> {
    let served = load(&args.model, Role::DataFactory).await?;
    let mut output: Box<dyn Write> = match &args.output {
        Some(path) => {
            let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
            Box::new(BufWriter::new(file))
        }
        None => Box::new(BufWriter::new(std::io::stdout())),
    };
    let length = texts::bytes(&args.input.files);
    let progress = match length {
        Some(_) => bar(length, "{bar:40} {bytes}/{total_bytes}, {msg}, {eta} left"),
        None => bar(None, "{spinner} {bytes}, {msg}"),
    };
    let options = EncodeOptions {
        outputs: args.outputs.clone(),
        query: args.query,
        prompt_name: args.prompt_name.clone(),
        // Of the two flags at most one is set: the last.
        normalize: (args.normalize || args.no_normalize).then_some(args.normalize),
        dimensions: args.dimensions,
    };
    let started = Instant::now();
    let (mut texts_done, mut tokens_done) = (0, 0);
    let reading = progress.clone();
    let texts = texts::read(&args.input, &reading);
    let mut chunks = futures::stream::iter(Chunks(texts))
        .map(|chunk| async {
            let chunk: Vec<Text> = chunk?;
            let texts = chunk.iter().map(|text| text.text.clone()).collect();
            let encoded = encode_texts(&served, texts, &options).await?;
            anyhow::Ok((chunk, encoded))
        })
        .buffered(CHUNKS);
    while let Some(chunk) = chunks.next().await {
        let (chunk, (encoded, tokens)) = chunk?;
        if !is_read(write(&mut output, &chunk, &encoded, args.with_text))? {
            return Ok(());
        }
        texts_done += chunk.len();
        tokens_done += tokens;
        progress.set_message(format!("{texts_done} texts"));
    }
    if !is_read(output.flush())? {
        return Ok(());
    }
    progress.finish_and_clear();
    ensure!(texts_done > 0, "there is no text in the files");
    eprintln!("{}", summary(texts_done, tokens_done, started.elapsed().as_secs_f64()));
    Ok(())
}

/// Writes a line for each text.
fn write(
    output: &mut dyn Write,
    texts: &[Text],
    encoded: &[Encoded],
    with_text: bool,
) -> std::io::Result<()> {
    for (text, encoded) in texts.iter().zip(encoded) {
        let shown = with_text.then_some(text.text.as_str());
        let line = Line { source: &text.source, line: text.line, text: shown, encoded };
        serde_json::to_writer(&mut *output, &line)?;
        output.write_all(b"\n")?;
    }
    Ok(())
}

/// Texts in groups, up to the first one that can't be read.
struct Chunks<I>(I);

impl<I: Iterator<Item = anyhow::Result<Text>>> Iterator for Chunks<I> {
    type Item = anyhow::Result<Vec<Text>>;

    fn next(&mut self) -> Option<Self::Item> {
        let chunk: anyhow::Result<Vec<Text>> = self.0.by_ref().take(CHUNK).collect();
        match chunk {
            Ok(texts) if texts.is_empty() => None,
            other => Some(other),
        }
    }
}
