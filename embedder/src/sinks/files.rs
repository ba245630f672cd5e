//! Files, in the volumes' folder or in S3: a complete new one takes the place of the one before it, so that a reader never
//! sees half of one.

use super::jsonl::Lines;
use super::parquet::Table;
use super::{Chunk, SinkError, SinkServers, SinkSpec};
use crate::objects::{self, Location};
use object_store::ObjectStoreExt as _;
use object_store::path::Path as Key;
use sha2::{Digest as _, Sha256};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes that are sent to S3 at a time: its smallest part of an upload is 5 MiB.
const PART: usize = 8 << 20;
/// Parts under way at once.
const PARTS: usize = 4;
/// What ends the name of a file that is not yet in its place.
const PARTIAL: &str = ".partial";
/// Digits before that, which are each job's own.
const DIGITS: usize = 16;
/// A partial file that has not changed for so long is nobody's any more.
const ABANDONED: Duration = Duration::from_secs(60 * 60);

/// A file that is being written.
pub struct Snapshot {
    target: Location,
    partial: Partial,
    format: Format,
}

/// A file that is not yet in its place. One that never comes there only takes room, and goes.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

enum Format {
    Lines(Lines),
    Table(Box<Table>),
}

impl Snapshot {
    /// Begins the file of a sink for a job, by what no other job is called. Blocks.
    pub fn begin(spec: &SinkSpec, servers: &SinkServers, job: &str) -> Result<Self, SinkError> {
        let (SinkSpec::Jsonl { path } | SinkSpec::Parquet { path }) = spec else {
            return Err(SinkError::Lasting(format!("the sink {} is no file", spec.name())));
        };
        let target = servers.objects.locate(path).map_err(SinkError::Lasting)?;
        // Each job has its own: what blocks goes on for a while when its job is cancelled, and the next one has begun.
        let digest: String =
            Sha256::digest(job).iter().take(DIGITS / 2).map(|byte| format!("{byte:02x}")).collect();
        let (folder, name) = match &target {
            Location::Local(target) => {
                let folder = target.parent().unwrap_or(target);
                fs::create_dir_all(folder).map_err(|error| failed(folder, &error))?;
                if !servers.objects.contains(folder) {
                    let message = format!("{} is outside of the folder of the volumes", folder.display());
                    return Err(SinkError::Lasting(message));
                }
                let name = target.file_name().unwrap_or_default().to_string_lossy();
                (folder, format!(".{name}."))
            }
            Location::S3 { .. } => (servers.scratch.as_path(), "upload.".to_owned()),
        };
        remove_abandoned(folder, &name);
        let partial = folder.join(format!("{name}{digest}{PARTIAL}"));
        let file = File::create(&partial).map_err(|error| failed(&partial, &error))?;
        let partial = Partial(partial);
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
        match &mut self.format {
            Format::Lines(lines) => lines.add(&chunk).map_err(|error| failed(&self.partial.0, &error)),
            Format::Table(table) => table.add(chunk).map_err(SinkError::Passing),
        }
    }

    /// Finishes the file and puts it in its place.
    pub async fn publish(self) -> Result<(), SinkError> {
        let Self { target, partial, format } = self;
        let finish = move || -> Result<Partial, SinkError> {
            let file = match format {
                Format::Lines(lines) => lines.finish().map_err(|error| failed(&partial.0, &error))?,
                Format::Table(table) => table.finish().map_err(SinkError::Passing)?,
            };
            file.sync_all().map_err(|error| failed(&partial.0, &error))?;
            Ok(partial)
        };
        let partial = tokio::task::spawn_blocking(finish)
            .await
            .map_err(|error| SinkError::Passing(format!("writing a file: {error}")))??;
        match target {
            Location::Local(target) => {
                fs::rename(&partial.0, &target).map_err(|error| failed(&target, &error))
            }
            Location::S3 { bucket, key } => upload(&partial.0, &bucket, &key).await,
        }
    }
}

/// Removes partial files whose names begin like this and whose processes were killed before they could. Younger ones may be
/// written still.
fn remove_abandoned(folder: &Path, name: &str) {
    // What can't be removed only takes room.
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let file = entry.file_name();
        let digits = file.to_str().and_then(|it| it.strip_prefix(name)?.strip_suffix(PARTIAL));
        // Names of other sinks may begin like this as well.
        let partial =
            digits.is_some_and(|it| it.len() == DIGITS && it.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let changed = || entry.metadata().and_then(|metadata| metadata.modified()).ok();
        let old = || changed().and_then(|changed| changed.elapsed().ok()).is_some_and(|age| age > ABANDONED);
        if partial && old() {
            let _ = fs::remove_file(entry.path());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::Objects;

    fn chunk(text: &str) -> Chunk {
        Chunk {
            chunk_id: "0".repeat(32),
            corpus: "c".to_owned(),
            document_id: "d".to_owned(),
            title: None,
            index: 0,
            start: 0,
            end: text.len(),
            heading_path: Vec::new(),
            pages: None,
            text: text.to_owned(),
            context: None,
            context_truncated: false,
            context_error: None,
            tokens: 1,
            model: "m".to_owned(),
            model_digest: "d".to_owned(),
            chunker: "text".to_owned(),
            metadata: None,
            vector: vec![1.0],
        }
    }

    #[tokio::test]
    async fn what_a_cancelled_job_still_writes_is_in_no_file_of_another() {
        let volumes = tempfile::tempdir().unwrap();
        let objects = Objects { volumes: Some(volumes.path().to_owned()) };
        let servers = SinkServers { objects, ..SinkServers::default() };
        let spec = SinkSpec::Jsonl { path: "c.jsonl".to_owned() };
        let begin = |job: &str| Snapshot::begin(&spec, &servers, job).unwrap();
        let mut before = begin("before");
        before.add(chunk("old")).unwrap();
        let mut next = begin("next");
        next.add(chunk("new")).unwrap();
        let mut after = begin("after");
        after.add(chunk("old")).unwrap();
        next.publish().await.unwrap();
        drop((before, after));
        let text = fs::read_to_string(volumes.path().join("c.jsonl")).unwrap();
        assert!(text.lines().count() == 1 && text.contains("new"), "{text}");
        let left: Vec<_> =
            fs::read_dir(volumes.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["c.jsonl"], "what was not published is gone");
    }
    #[test]
    fn what_a_killed_process_left_half_written_goes_after_a_while() {
        let volumes = tempfile::tempdir().unwrap();
        let objects = Objects { volumes: Some(volumes.path().to_owned()) };
        let servers = SinkServers { objects, ..SinkServers::default() };
        let spec = SinkSpec::Jsonl { path: "c.jsonl".to_owned() };
        let old = std::time::SystemTime::now() - 2 * ABANDONED;
        for (name, changed) in [
            (".c.jsonl.0123456789abcdef.partial", Some(old)),
            (".c.jsonl.fedcba9876543210.partial", None),
            (".c.jsonl.x.0123456789abcdef.partial", Some(old)),
            ("c.jsonl", Some(old)),
        ] {
            let file = File::create(volumes.path().join(name)).unwrap();
            if let Some(changed) = changed {
                file.set_modified(changed).unwrap();
            }
        }
        drop(Snapshot::begin(&spec, &servers, "job").unwrap());
        let left = fs::read_dir(volumes.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut left: Vec<_> = left.collect();
        left.sort();
        let expected =
            [".c.jsonl.fedcba9876543210.partial", ".c.jsonl.x.0123456789abcdef.partial", "c.jsonl"];
        assert_eq!(left, expected);
    }
}
