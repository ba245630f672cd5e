//! The files of a folder of a volume.

use super::{Entry, Filter, LARGEST_DOCUMENT, MOST_DOCUMENTS, Read, SourceError, too_large, too_many};
use crate::objects::{Location, Objects};
use std::fs;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// Deepest nesting of folders.
const DEEPEST: usize = 64;

pub async fn list(objects: &Objects, path: &str, filter: Filter) -> Result<Vec<Entry>, SourceError> {
    let root = locate(objects, path)?;
    let objects = objects.clone();
    blocking(move || {
        if !objects.contains(&root) {
            return Err(SourceError::Lasting(format!(
                "{} is no folder in the folder of the volumes",
                root.display()
            )));
        }
        let mut entries = Vec::new();
        walk(&objects, &root, "", &filter, &mut entries, DEEPEST)?;
        Ok(entries)
    })
    .await
}

fn walk(
    objects: &Objects,
    folder: &Path,
    prefix: &str,
    filter: &Filter,
    entries: &mut Vec<Entry>,
    depth: usize,
) -> Result<(), SourceError> {
    let failed = |path: &Path, error: &std::io::Error| {
        SourceError::Passing(format!("listing {}: {error}", path.display()))
    };
    for entry in fs::read_dir(folder).map_err(|error| failed(folder, &error))? {
        let entry = entry.map_err(|error| failed(folder, &error))?;
        let name = entry.file_name();
        // Ids are texts; a name that is none can't be one.
        let Some(name) = name.to_str() else { continue };
        // ConfigMaps and Secrets keep their versions in folders that begin like this, and link to the one that holds.
        if name.starts_with("..") {
            continue;
        }
        let path = entry.path();
        let id = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
        let kind = entry.file_type().map_err(|error| failed(&path, &error))?;
        if kind.is_symlink() {
            match path.canonicalize() {
                Ok(_) if objects.contains(&path) => {}
                Ok(_) => continue,
                Err(error) if leads_nowhere(&error) => continue,
                // As below.
                Err(error) => return Err(failed(&path, &error)),
            }
        }
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            // It has gone since.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            // What can't be looked at is there: were it left out, its documents would be taken out of the corpus.
            Err(error) => return Err(failed(&path, &error)),
        };
        if metadata.is_dir() {
            let up = kind.is_symlink() && leads_up(&path, folder).map_err(|error| failed(&path, &error))?;
            if depth > 0 && !up {
                walk(objects, &path, &id, filter, entries, depth - 1)?;
            }
        } else if metadata.is_file() && filter.takes(&id) {
            entries.push(Entry { id, version: version(&metadata) });
            if entries.len() > MOST_DOCUMENTS {
                return Err(too_many(&folder.display().to_string()));
            }
        }
    }
    Ok(())
}

/// Whether a link leads to a folder that it is in itself.
fn leads_up(link: &Path, folder: &Path) -> std::io::Result<bool> {
    Ok(folder.canonicalize()?.starts_with(link.canonicalize()?))
}

/// Whether a link leads to nothing, in a circle, or to what is not ours to see. What fails otherwise may be there.
fn leads_nowhere(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::PermissionDenied)
        || error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

pub async fn read(objects: &Objects, path: &str, entry: &Entry) -> Result<Read, SourceError> {
    let full = locate(objects, path)?.join(&entry.id);
    let (objects, id) = (objects.clone(), entry.id.clone());
    blocking(move || {
        if !objects.contains(&full) {
            return Err(SourceError::Lasting(format!("{id} has gone since it was listed")));
        }
        let failed = |error: std::io::Error| SourceError::Lasting(format!("reading {id}: {error}"));
        let file = fs::File::open(&full).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let mut bytes = Vec::new();
        file.take(LARGEST_DOCUMENT + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > LARGEST_DOCUMENT {
            return Err(too_large(&id, metadata.len()));
        }
        Ok(Read::Content { bytes, version: version(&metadata) })
    })
    .await
}

fn locate(objects: &Objects, path: &str) -> Result<PathBuf, SourceError> {
    match objects.locate(path).map_err(SourceError::Lasting)? {
        Location::Local(path) => Ok(path),
        Location::S3 { .. } => Err(SourceError::Lasting(format!("source.path is {path:?}: it is no folder"))),
    }
}

/// Size and time of the last change, as precise as the file system has it.
fn version(metadata: &fs::Metadata) -> Option<String> {
    let changed = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(format!("{}-{}", changed.as_nanos(), metadata.len()))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(SourceError::Passing(format!("reading a folder: {error}"))))
}

#[cfg(test)]
mod tests {
    use super::super::{Reach, SourceSpec};
    use super::*;
    use std::os::unix::fs::symlink;

    /// As the kubelet mounts a ConfigMap: files are links into the version that holds.
    fn config_map(root: &Path) {
        let version = root.join("map/..2026_01");
        fs::create_dir_all(&version).unwrap();
        fs::write(version.join("a.md"), "# A").unwrap();
        symlink("..2026_01", root.join("map/..data")).unwrap();
        symlink("..data/a.md", root.join("map/a.md")).unwrap();
        fs::create_dir_all(version.join("sub")).unwrap();
        fs::write(version.join("sub/b.txt"), "b").unwrap();
        symlink("..data/sub", root.join("map/sub")).unwrap();
    }

    #[tokio::test]
    async fn what_can_not_be_looked_at_is_not_taken_for_gone() {
        let volumes = tempfile::tempdir().unwrap();
        let deep =
            |name: &str| (0..13).fold(volumes.path().join(name), |folder, _| folder.join("x".repeat(200)));
        for name in ["a", "b"] {
            fs::create_dir_all(deep(name)).unwrap();
        }
        fs::write(volumes.path().join("a/a.md"), "# A").unwrap();
        let reach =
            Reach { objects: Objects { volumes: Some(volumes.path().to_owned()) }, ..Reach::default() };
        let spec = SourceSpec::Folder { path: "a".into(), include: Vec::new(), exclude: Vec::new() };
        assert_eq!(spec.list(&reach).await.unwrap().len(), 1);
        // Now paths are longer than the system takes: a failure that also those meet who may look at everything.
        fs::rename(volumes.path().join("b"), deep("a").join("b")).unwrap();
        let error = spec.list(&reach).await.unwrap_err();
        assert!(
            matches!(&error, SourceError::Passing(message) if message.starts_with("listing ")),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_link_that_can_not_be_looked_at_is_not_taken_for_gone() {
        let volumes = tempfile::tempdir().unwrap();
        let docs = volumes.path().join("docs");
        fs::create_dir_all(&docs).unwrap();
        fs::write(docs.join("a.md"), "# A").unwrap();
        for (target, link) in
            [("none", "gone"), ("circle", "circle"), ("a.md/b", "through"), ("a.md", "b.md")]
        {
            symlink(target, docs.join(link)).unwrap();
        }
        let reach =
            Reach { objects: Objects { volumes: Some(volumes.path().to_owned()) }, ..Reach::default() };
        let spec = SourceSpec::Folder { path: "docs".into(), include: Vec::new(), exclude: Vec::new() };
        let mut ids: Vec<String> =
            spec.list(&reach).await.unwrap().into_iter().map(|entry| entry.id).collect();
        ids.sort();
        assert_eq!(ids, ["a.md", "b.md"]);
        // A name that is longer than the system takes stands for a server that does not answer.
        symlink("x".repeat(300), docs.join("long")).unwrap();
        let error = spec.list(&reach).await.unwrap_err();
        assert!(matches!(&error, SourceError::Passing(message) if message.contains("docs/long")), "{error}");
    }

    #[tokio::test]
    async fn files_are_listed_once_and_links_do_not_lead_out() {
        let volumes = tempfile::tempdir().unwrap();
        config_map(volumes.path());
        symlink(".", volumes.path().join("map/again")).unwrap();
        symlink("/etc/passwd", volumes.path().join("map/out")).unwrap();
        let reach =
            Reach { objects: Objects { volumes: Some(volumes.path().to_owned()) }, ..Reach::default() };
        let spec = SourceSpec::Folder { path: "map".into(), include: Vec::new(), exclude: Vec::new() };
        let entries = spec.list(&reach).await.unwrap();
        let ids: Vec<&str> = entries.iter().map(|entry| entry.id.as_str()).collect();
        assert_eq!(ids, ["a.md", "sub/b.txt"]);
        let Read::Content { bytes, version } = spec.read(&reach, &entries[0], None).await.unwrap() else {
            panic!("it is new");
        };
        assert_eq!((bytes.as_slice(), &version), (b"# A".as_slice(), &entries[0].version));
        assert_eq!(spec.read(&reach, &entries[0], version.as_deref()).await.unwrap(), Read::Unchanged);
        let out = Entry { id: "out".into(), version: None };
        assert!(matches!(spec.read(&reach, &out, None).await, Err(SourceError::Lasting(_))));
        let nowhere = SourceSpec::Folder { path: "none".into(), include: Vec::new(), exclude: Vec::new() };
        let error = nowhere.list(&reach).await.unwrap_err().to_string();
        assert!(error.contains("is no folder in the folder of the volumes"), "{error}");
    }
}
