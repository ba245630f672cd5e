//! Parquet: one chunk a row, row groups of a bounded size.

use super::Chunk;
use parquet::basic::Compression;
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use std::fs::File;
use std::sync::Arc;

/// Rows of a group: a few tens of MiB, which is held in memory.
const GROUP: usize = 8192;
const SCHEMA: &str = "message chunk {
    required binary chunk_id (STRING);
    required binary corpus (STRING);
    required binary document_id (STRING);
    optional binary title (STRING);
    required int64 index;
    required int64 start;
    required int64 end;
    required group heading_path (LIST) { repeated group list { required binary element (STRING); } }
    optional int64 first_page;
    optional int64 last_page;
    required binary text (STRING);
    optional binary context (STRING);
    required int64 tokens;
    required binary model (STRING);
    required binary model_digest (STRING);
    required binary chunker (STRING);
    optional binary metadata (JSON);
    required group vector (LIST) { repeated group list { required float element; } }
}";

/// A Parquet file that is being written.
pub struct Table {
    writer: SerializedFileWriter<File>,
    rows: Vec<Chunk>,
}

impl Table {
    pub fn begin(file: File) -> Result<Self, String> {
        let begin = || -> Result<_, ParquetError> {
            let properties = WriterProperties::builder()
                .set_compression(Compression::SNAPPY)
                .set_created_by(concat!("principium-embedder ", env!("CARGO_PKG_VERSION")).to_owned())
                .build();
            let schema = Arc::new(parse_message_type(SCHEMA)?);
            SerializedFileWriter::new(file, schema, Arc::new(properties))
        };
        Ok(Self { writer: begin().map_err(|error| failed(&error))?, rows: Vec::new() })
    }

    pub fn add(&mut self, chunk: Chunk) -> Result<(), String> {
        self.rows.push(chunk);
        if self.rows.len() < GROUP { Ok(()) } else { self.write_group() }
    }

    pub fn finish(mut self) -> Result<File, String> {
        if !self.rows.is_empty() {
            self.write_group()?;
        }
        self.writer.into_inner().map_err(|error| failed(&error))
    }

    fn write_group(&mut self) -> Result<(), String> {
        let rows = std::mem::take(&mut self.rows);
        let mut write = || -> Result<(), ParquetError> {
            let mut group = Group(self.writer.next_row_group()?);
            group.texts(rows.iter().map(|row| Some(row.chunk_id.as_str())), false)?;
            group.texts(rows.iter().map(|row| Some(row.corpus.as_str())), false)?;
            group.texts(rows.iter().map(|row| Some(row.document_id.as_str())), false)?;
            group.texts(rows.iter().map(|row| row.title.as_deref()), true)?;
            group.numbers(rows.iter().map(|row| Some(row.index)), false)?;
            group.numbers(rows.iter().map(|row| Some(row.start)), false)?;
            group.numbers(rows.iter().map(|row| Some(row.end)), false)?;
            group.text_lists(rows.iter().map(|row| row.heading_path.as_slice()))?;
            group.numbers(rows.iter().map(|row| row.pages.map(|pages| pages.0)), true)?;
            group.numbers(rows.iter().map(|row| row.pages.map(|pages| pages.1)), true)?;
            group.texts(rows.iter().map(|row| Some(row.text.as_str())), false)?;
            group.texts(rows.iter().map(|row| row.context.as_deref()), true)?;
            group.numbers(rows.iter().map(|row| Some(row.tokens)), false)?;
            group.texts(rows.iter().map(|row| Some(row.model.as_str())), false)?;
            group.texts(rows.iter().map(|row| Some(row.model_digest.as_str())), false)?;
            group.texts(rows.iter().map(|row| Some(row.chunker.as_str())), false)?;
            let metadata: Vec<Option<String>> = rows
                .iter()
                .map(|row| row.metadata.as_ref().map(|it| serde_json::Value::from(it.clone()).to_string()))
                .collect();
            group.texts(metadata.iter().map(Option::as_deref), true)?;
            group.vectors(rows.iter().map(|row| row.vector.as_slice()))?;
            group.0.close()?;
            Ok(())
        };
        write().map_err(|error| failed(&error))
    }
}

/// One row group, whose columns are written in the order of the schema.
struct Group<'a>(SerializedRowGroupWriter<'a, File>);

impl Group<'_> {
    fn column(
        &mut self,
        write: impl FnOnce(&mut ColumnWriter<'_>) -> Result<bool, ParquetError>,
    ) -> Result<(), ParquetError> {
        let mut column = self.0.next_column()?.ok_or_else(|| general("the schema has too few columns"))?;
        if !write(column.untyped())? {
            return Err(general("a column has another type than the schema says"));
        }
        column.close()
    }

    /// Texts; optional ones with a level for each that says whether it is there.
    fn texts<'t>(
        &mut self,
        texts: impl Iterator<Item = Option<&'t str>>,
        optional: bool,
    ) -> Result<(), ParquetError> {
        let texts: Vec<Option<&str>> = texts.collect();
        let levels: Vec<i16> = texts.iter().map(|text| i16::from(text.is_some())).collect();
        let values: Vec<ByteArray> = texts.into_iter().flatten().map(ByteArray::from).collect();
        self.column(|column| {
            let ColumnWriter::ByteArrayColumnWriter(column) = column else { return Ok(false) };
            column.write_batch(&values, optional.then_some(levels.as_slice()), None).map(|_| true)
        })
    }

    /// Numbers; optional ones as optional texts.
    fn numbers(
        &mut self,
        numbers: impl Iterator<Item = Option<usize>>,
        optional: bool,
    ) -> Result<(), ParquetError> {
        let numbers: Vec<Option<usize>> = numbers.collect();
        let levels: Vec<i16> = numbers.iter().map(|number| i16::from(number.is_some())).collect();
        let value = |number| i64::try_from(number).unwrap_or(i64::MAX);
        let values: Vec<i64> = numbers.into_iter().flatten().map(value).collect();
        self.column(|column| {
            let ColumnWriter::Int64ColumnWriter(column) = column else { return Ok(false) };
            column.write_batch(&values, optional.then_some(levels.as_slice()), None).map(|_| true)
        })
    }

    fn text_lists<'t>(&mut self, lists: impl Iterator<Item = &'t [String]>) -> Result<(), ParquetError> {
        let (definition, repetition, values) =
            flatten(lists.map(|list| list.iter().map(|text| ByteArray::from(text.as_str())).collect()));
        self.column(|column| {
            let ColumnWriter::ByteArrayColumnWriter(column) = column else { return Ok(false) };
            column.write_batch(&values, Some(&definition), Some(&repetition)).map(|_| true)
        })
    }

    fn vectors<'t>(&mut self, vectors: impl Iterator<Item = &'t [f32]>) -> Result<(), ParquetError> {
        let (definition, repetition, values) = flatten(vectors.map(<[f32]>::to_vec));
        self.column(|column| {
            let ColumnWriter::FloatColumnWriter(column) = column else { return Ok(false) };
            column.write_batch(&values, Some(&definition), Some(&repetition)).map(|_| true)
        })
    }
}

/// Lists as Parquet stores them: for each element whether it is there (an empty list has none), and whether it goes on with
/// the list before it.
fn flatten<T>(lists: impl Iterator<Item = Vec<T>>) -> (Vec<i16>, Vec<i16>, Vec<T>) {
    let (mut definition, mut repetition, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for list in lists {
        if list.is_empty() {
            definition.push(0);
            repetition.push(0);
        }
        for (place, value) in list.into_iter().enumerate() {
            definition.push(1);
            repetition.push(i16::from(place > 0));
            values.push(value);
        }
    }
    (definition, repetition, values)
}

fn general(message: &str) -> ParquetError {
    ParquetError::General(message.to_owned())
}

fn failed(error: &ParquetError) -> String {
    format!("writing Parquet: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::RowAccessor;

    fn chunk(number: usize) -> Chunk {
        Chunk {
            chunk_id: format!("{number:032x}"),
            corpus: "c".to_owned(),
            document_id: "d".to_owned(),
            title: number.is_multiple_of(2).then(|| format!("Title {number}")),
            index: number,
            start: number * 10,
            end: number * 10 + 9,
            heading_path: (0..number % 3).map(|depth| format!("H{depth}")).collect(),
            pages: (!number.is_multiple_of(5)).then_some((number, number + 1)),
            text: format!("text – {number}"),
            context: None,
            context_truncated: false,
            context_error: None,
            tokens: 7,
            model: "m".to_owned(),
            model_digest: "x".to_owned(),
            chunker: "text:1".to_owned(),
            metadata: None,
            vector: vec![0.5, -0.25, f32::from(u8::try_from(number % 200).unwrap())],
        }
    }

    #[test]
    fn what_is_written_is_read_over_several_groups() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chunks.parquet");
        let mut table = Table::begin(File::create(&path).unwrap()).unwrap();
        let count = GROUP + 3;
        for number in 0..count {
            table.add(chunk(number)).unwrap();
        }
        table.finish().unwrap();
        let reader = SerializedFileReader::new(File::open(&path).unwrap()).unwrap();
        assert_eq!(reader.metadata().num_row_groups(), 2);
        let rows: Vec<_> = reader.get_row_iter(None).unwrap().map(Result::unwrap).collect();
        assert_eq!(rows.len(), count);
        for number in [0, 1, 2, GROUP - 1, GROUP, count - 1] {
            let (row, expected) = (&rows[number], chunk(number));
            assert_eq!(row.get_string(0).unwrap(), &expected.chunk_id);
            assert_eq!(row.get_string(3).ok(), expected.title.as_ref());
            assert_eq!(row.get_long(5).unwrap(), i64::try_from(expected.start).unwrap());
            let headings = row.get_list(7).unwrap();
            assert_eq!(headings.len(), expected.heading_path.len());
            let pages = row.get_long(8).ok().zip(row.get_long(9).ok());
            assert_eq!(pages, expected.pages.map(|(first, last)| (first as i64, last as i64)));
            assert_eq!(row.get_string(10).unwrap(), &expected.text);
            let vector = format!("{:?}", row.get_list(17).unwrap().elements());
            assert_eq!(vector, format!("[Float(0.5), Float(-0.25), Float({:?})]", expected.vector[2]));
        }
    }
}
