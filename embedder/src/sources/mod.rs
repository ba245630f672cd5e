//! Where a job's documents come from beside its request: a folder of a volume, S3-compatible storage, HTTP. What is there
//! is listed first; a document is read only when its version is another than the one that was processed.

mod folder;
mod http;
mod pattern;
mod s3;

pub use http::Hosts;

use crate::objects::{self, Objects};
use globset::GlobSet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Largest document that is read, in bytes. Larger ones fail alone.
pub const LARGEST_DOCUMENT: u64 = 64 << 20;
/// Most documents of one source.
const MOST_DOCUMENTS: usize = 1_000_000;

/// Where documents are.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum SourceSpec {
    /// The files of a folder, and of those inside it.
    Folder {
        /// The folder, in the folder of the volumes.
        path: String,
        /// Only files that fit one of these patterns, such as `**/*.md`. Default: all.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        include: Vec<String>,
        /// No files that fit one of these patterns.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        exclude: Vec<String>,
    },
    /// The objects of a bucket.
    S3 {
        /// `s3://bucket/prefix`.
        url: String,
        /// Only objects whose key after the prefix fits one of these patterns. Default: all.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        include: Vec<String>,
        /// No objects whose key after the prefix fits one of these patterns.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        exclude: Vec<String>,
    },
    /// Single addresses.
    Http {
        /// `http` or `https`; their hosts must be allowed.
        urls: Vec<String>,
    },
}

/// A document that a source has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its id: the path in the folder, the key after the prefix, the URL.
    pub id: String,
    /// What changes when it changes, where that is known before it is read.
    pub version: Option<String>,
}

/// What became of reading a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// It is as it was in the version that was named.
    Unchanged,
    /// Its content.
    Content {
        /// All of it.
        bytes: Vec<u8>,
        /// What changes when it changes.
        version: Option<String>,
    },
}

/// Why a source can't be listed, or a document can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// It may be possible in a while.
    #[error("{0}")]
    Passing(String),
    /// Somebody has to change something.
    #[error("{0}")]
    Lasting(String),
}

/// What sources may reach.
#[derive(Clone, Debug, Default)]
pub struct Reach {
    /// Folders and buckets.
    pub objects: Objects,
    /// Hosts of HTTP.
    pub hosts: Hosts,
}

impl SourceSpec {
    /// What is wrong with it, with what would be right.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::Folder { path, include, exclude } => {
                if path.contains("://") {
                    return Err(format!("source.path is {path:?}: it is a path in the volumes' folder"));
                }
                objects::check("source.path", path)?;
                pattern::filter(include, exclude).map(drop)
            }
            Self::S3 { url, include, exclude } => {
                if !url.starts_with("s3://") {
                    return Err(format!("source.url is {url:?}: it has the form s3://bucket/prefix"));
                }
                objects::check("source.url", url)?;
                pattern::filter(include, exclude).map(drop)
            }
            Self::Http { urls } if urls.is_empty() => Err("source.urls is []: give at least one".to_owned()),
            Self::Http { urls } => urls.iter().try_for_each(|url| http::check(url)),
        }
    }

    /// Tells this place from others: versions of documents hold in one place alone. It is also what tells the documents of a
    /// source from those of others in a corpus, unless its job names it. Patterns are no part of it: what they no longer let
    /// through is gone. All addresses of HTTP are one place, because a list of them that has changed is still the same source.
    pub fn identity(&self) -> String {
        let place = match self {
            Self::Folder { path, .. } => format!("folder {path}"),
            Self::S3 { url, .. } => format!("s3 {url}"),
            Self::Http { .. } => "http".to_owned(),
        };
        let digest: String = Sha256::digest(&place).iter().map(|byte| format!("{byte:02x}")).collect();
        digest[..16].to_owned()
    }

    /// What is let through of all that the place has; `None` for single addresses, which are no place with more in it.
    pub fn filter(&self) -> Result<Option<Filter>, String> {
        match self {
            Self::Folder { include, exclude, .. } | Self::S3 { include, exclude, .. } => {
                pattern::filter(include, exclude).map(Some)
            }
            Self::Http { .. } => Ok(None),
        }
    }

    /// Everything that is there, by id.
    pub async fn list(&self, reach: &Reach) -> Result<Vec<Entry>, SourceError> {
        let mut entries = match self {
            Self::Folder { path, include, exclude } => {
                let filter = pattern::filter(include, exclude).map_err(SourceError::Lasting)?;
                folder::list(&reach.objects, path, filter).await?
            }
            Self::S3 { url, include, exclude } => {
                let filter = pattern::filter(include, exclude).map_err(SourceError::Lasting)?;
                s3::list(&reach.objects, url, filter).await?
            }
            Self::Http { urls } => urls.iter().map(|url| Entry { id: url.clone(), version: None }).collect(),
        };
        entries.sort_by(|one, two| one.id.cmp(&two.id));
        entries.dedup_by(|one, two| one.id == two.id);
        Ok(entries)
    }

    /// Reads a document, unless it is still as in the version `known`.
    pub async fn read(&self, reach: &Reach, entry: &Entry, known: Option<&str>) -> Result<Read, SourceError> {
        if known.is_some() && entry.version.as_deref() == known {
            return Ok(Read::Unchanged);
        }
        match self {
            Self::Folder { path, .. } => folder::read(&reach.objects, path, entry).await,
            Self::S3 { url, .. } => s3::read(&reach.objects, url, entry).await,
            Self::Http { .. } => http::read(&reach.hosts, &entry.id, known).await,
        }
    }
}

/// Which names are let through.
pub struct Filter {
    include: Option<GlobSet>,
    exclude: GlobSet,
}

impl Filter {
    /// Whether a name is let through.
    pub fn takes(&self, name: &str) -> bool {
        self.include.as_ref().is_none_or(|include| include.is_match(name)) && !self.exclude.is_match(name)
    }
}

fn too_many(place: &str) -> SourceError {
    SourceError::Lasting(format!("{place} has more than {MOST_DOCUMENTS} documents: divide it by patterns"))
}

fn too_large(id: &str, bytes: u64) -> SourceError {
    SourceError::Lasting(format!(
        "{id} has {bytes} bytes, and at most {LARGEST_DOCUMENT} are read: divide it, or leave it out"
    ))
}
