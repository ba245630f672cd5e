//! JSON lines: one chunk a line.

use super::Chunk;
use std::fs::File;
use std::io::{self, BufWriter, Write as _};

/// A file of JSON lines that is being written.
pub struct Lines(BufWriter<File>);

impl Lines {
    pub fn begin(file: File) -> Self {
        Self(BufWriter::with_capacity(1 << 16, file))
    }

    pub fn add(&mut self, chunk: &Chunk) -> io::Result<()> {
        serde_json::to_writer(&mut self.0, chunk)?;
        self.0.write_all(b"\n")
    }

    pub fn finish(self) -> io::Result<File> {
        self.0.into_inner().map_err(io::IntoInnerError::into_error)
    }
}
