//! The objects of a bucket of S3-compatible storage.

use super::{Entry, Filter, LARGEST_DOCUMENT, MOST_DOCUMENTS, Read, SourceError, too_large, too_many};
use crate::objects::{self, Location, Objects};
use futures::TryStreamExt as _;
use object_store::path::Path as Key;
use object_store::{ObjectStore as _, ObjectStoreExt as _};

pub async fn list(objects: &Objects, url: &str, filter: Filter) -> Result<Vec<Entry>, SourceError> {
    let (bucket, prefix) = locate(objects, url)?;
    let store = objects::bucket(&bucket).map_err(SourceError::Lasting)?;
    let base = (!prefix.is_empty()).then(|| Key::from(prefix.as_str()));
    let mut found = store.list(base.as_ref());
    let mut entries = Vec::new();
    while let Some(object) = found.try_next().await.map_err(|error| refused(&bucket, &error))? {
        let key = object.location.as_ref();
        // A folder's own placeholder has no content.
        let Some(id) = under(key, &prefix).filter(|id| !id.is_empty() && object.size > 0) else { continue };
        if filter.takes(id) {
            entries.push(Entry { id: id.to_owned(), version: object.e_tag });
        }
        if entries.len() > MOST_DOCUMENTS {
            return Err(too_many(url));
        }
    }
    Ok(entries)
}

pub async fn read(objects: &Objects, url: &str, entry: &Entry) -> Result<Read, SourceError> {
    let (bucket, prefix) = locate(objects, url)?;
    let store = objects::bucket(&bucket).map_err(SourceError::Lasting)?;
    let key = if prefix.is_empty() { entry.id.clone() } else { format!("{prefix}/{}", entry.id) };
    let key = Key::parse(&key).map_err(|error| SourceError::Lasting(format!("{}: {error}", entry.id)))?;
    let found = store.get(&key).await.map_err(|error| refused(&bucket, &error))?;
    if found.meta.size > LARGEST_DOCUMENT {
        return Err(too_large(&entry.id, found.meta.size));
    }
    let version = found.meta.e_tag.clone();
    let bytes = found.bytes().await.map_err(|error| refused(&bucket, &error))?.to_vec();
    Ok(Read::Content { bytes, version })
}

fn locate(objects: &Objects, url: &str) -> Result<(String, String), SourceError> {
    match objects.locate(url).map_err(SourceError::Lasting)? {
        Location::S3 { bucket, key } => Ok((bucket, key.trim_matches('/').to_owned())),
        Location::Local(_) => {
            Err(SourceError::Lasting(format!("source.url is {url:?}: it has the form s3://bucket/prefix")))
        }
    }
}

/// A key after a prefix that ends where a part of the key does.
fn under<'a>(key: &'a str, prefix: &str) -> Option<&'a str> {
    if prefix.is_empty() { Some(key) } else { key.strip_prefix(prefix)?.strip_prefix('/') }
}

fn refused(bucket: &str, error: &object_store::Error) -> SourceError {
    use object_store::Error::{NotFound, PermissionDenied, Unauthenticated};
    let message = format!("S3 bucket {bucket}: {error}");
    match error {
        NotFound { .. } | PermissionDenied { .. } | Unauthenticated { .. } => SourceError::Lasting(message),
        _ => SourceError::Passing(message),
    }
}
