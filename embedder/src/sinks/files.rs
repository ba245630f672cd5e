//! Files, in the volumes' folder or in S3: a complete new one takes the place of the one before it, so that a reader never
//! sees half of one.

use super::jsonl::Lines;
use super::parquet::Table;
use super::{Chunk, SinkError, SinkServers, SinkSpec};
use crate::objects::{self, Location};
use object_store::ObjectStoreExt as _;
use object_store::path::Path as Key;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Bytes that are sent to S3 at a time: its smallest part of an upload is 5 MiB.
const PART: usize = 8 << 20;
/// Parts under way at once.
const PARTS: usize = 4;

/// A file that is being written.
pub struct Snapshot {
    target: Location,
    partial: PathBuf,
    format: Format,
}

enum Format {
    Lines(Lines),
    Table(Box<Table>),
}

impl Snapshot {
    /// Begins the file of a sink. Blocks.
    pub fn begin(spec: &SinkSpec, servers: &SinkServers) -> Result<Self, SinkError> {
        let (SinkSpec::Jsonl { path } | SinkSpec::Parquet { path }) = spec else {
            return Err(SinkError::Lasting(format!("the sink {} is no file", spec.name())));
        };
        let target = servers.objects.locate(path).map_err(SinkError::Lasting)?;
        let partial = match &target {
            Location::Local(target) => {
                let folder = target.parent().unwrap_or(target);
                fs::create_dir_all(folder).map_err(|error| failed(folder, &error))?;
                if !servers.objects.contains(folder) {
                    let message = format!("{} is outside of the folder of the volumes", folder.display());
                    return Err(SinkError::Lasting(message));
                }
                let name = target.file_name().unwrap_or_default().to_string_lossy();
                folder.join(format!(".{name}.partial"))
            }
            Location::S3 { .. } => servers.scratch.join("upload.partial"),
        };
        let file = File::create(&partial).map_err(|error| failed(&partial, &error))?;
        let format = match spec {
            SinkSpec::Parquet { .. } => {
                Format::Table(Box::new(Table::begin(file).map_err(SinkError::Lasting)?))
            }
            _ => Format::Lines(Lines::begin(file)),
        };
        Ok(Self { target, partial, format })
    }

    /// Adds a chunk. Blocks.
    pub fn add(&mut self, chunk: Chunk) -> Result<(), SinkError> {
        let added = match &mut self.format {
            Format::Lines(lines) => lines.add(&chunk).map_err(|error| failed(&self.partial, &error)),
            Format::Table(table) => table.add(chunk).map_err(SinkError::Passing),
        };
        if added.is_err() {
            // What can't be finished only takes room.
            let _ = fs::remove_file(&self.partial);
        }
        added
    }

    /// Finishes the file and puts it in its place.
    pub async fn publish(self) -> Result<(), SinkError> {
        let Self { target, partial, format } = self;
        let finish = move || -> Result<PathBuf, SinkError> {
            let file = match format {
                Format::Lines(lines) => lines.finish().map_err(|error| failed(&partial, &error))?,
                Format::Table(table) => table.finish().map_err(SinkError::Passing)?,
            };
            file.sync_all().map_err(|error| failed(&partial, &error))?;
            Ok(partial)
        };
        let partial = tokio::task::spawn_blocking(finish)
            .await
            .map_err(|error| SinkError::Passing(format!("writing a file: {error}")))??;
        match target {
            Location::Local(target) => fs::rename(&partial, &target).map_err(|error| failed(&target, &error)),
            Location::S3 { bucket, key } => {
                let sent = upload(&partial, &bucket, &key).await;
                let _ = fs::remove_file(&partial);
                sent
            }
        }
    }
}

async fn upload(file: &Path, bucket: &str, key: &str) -> Result<(), SinkError> {
    use tokio::io::AsyncReadExt as _;
    let store = objects::bucket(bucket).map_err(SinkError::Lasting)?;
    let key = Key::parse(key).map_err(|error| SinkError::Lasting(format!("s3://{bucket}/{key}: {error}")))?;
    let refused = |error: object_store::Error| objects_error(bucket, &error);
    let mut reader = tokio::fs::File::open(file).await.map_err(|error| failed(file, &error))?;
    let upload = store.put_multipart(&key).await.map_err(refused)?;
    let mut upload = object_store::WriteMultipart::new_with_chunk_size(upload, PART);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = reader.read(&mut buffer).await.map_err(|error| failed(file, &error))?;
        if read == 0 {
            break;
        }
        upload.wait_for_capacity(PARTS).await.map_err(refused)?;
        upload.write(&buffer[..read]);
    }
    upload.finish().await.map(drop).map_err(refused)
}

/// What an S3 server refuses for good, and what may pass.
fn objects_error(bucket: &str, error: &object_store::Error) -> SinkError {
    use object_store::Error::{NotFound, PermissionDenied, Unauthenticated};
    let message = format!("S3 bucket {bucket}: {error}");
    match error {
        NotFound { .. } | PermissionDenied { .. } | Unauthenticated { .. } => SinkError::Lasting(message),
        _ => SinkError::Passing(message),
    }
}

fn failed(path: &Path, error: &std::io::Error) -> SinkError {
    use std::io::ErrorKind::{NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem};
    let message = format!("{}: {error}", path.display());
    match error.kind() {
        NotADirectory | NotFound | PermissionDenied | ReadOnlyFilesystem => SinkError::Lasting(message),
        _ => SinkError::Passing(message),
    }
}
