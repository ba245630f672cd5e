//! Where files of sources and sinks are: in the folder of the pod's volumes, or in S3-compatible storage.
//!
//! A job may name a file inside that folder and no other: not the model's, not the process's own.

use object_store::aws::{AmazonS3, AmazonS3Builder};
use std::path::{Component, Path, PathBuf};

const S3: &str = "s3://";

/// What jobs may reach.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// The folder of the volumes; nothing local is reached without one.
    pub volumes: Option<PathBuf>,
}

/// Where a file or a folder is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// Here.
    Local(PathBuf),
    /// In a bucket, with this key or beginning of keys.
    S3 {
        /// The bucket.
        bucket: String,
        /// The key, or what keys begin with.
        key: String,
    },
}

/// What is wrong with a path as such.
pub fn check(field: &str, path: &str) -> Result<(), String> {
    if let Some(rest) = path.strip_prefix(S3) {
        let bucket = rest.split('/').next().unwrap_or_default();
        return if bucket.is_empty() {
            Err(format!("{field} is {path:?}: it names no bucket, as in s3://bucket/key"))
        } else {
            Ok(())
        };
    }
    if path.contains("://") {
        return Err(format!(
            "{field} is {path:?}: it can be a path in the volumes' folder, or s3://bucket/key"
        ));
    }
    if Path::new(path).components().any(|part| part == Component::ParentDir) {
        return Err(format!("{field} is {path:?}: it must not contain '..'"));
    }
    Ok(())
}

impl Objects {
    /// Where a checked path leads.
    pub fn locate(&self, path: &str) -> Result<Location, String> {
        if let Some(rest) = path.strip_prefix(S3) {
            let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
            return Ok(Location::S3 { bucket: bucket.to_owned(), key: key.to_owned() });
        }
        let Some(volumes) = &self.volumes else {
            return Err(format!(
                "{path:?} is in the volumes' folder, and there is none: set PRINCIPIUM_VOLUMES"
            ));
        };
        let full = volumes.join(path);
        if full.starts_with(volumes) {
            Ok(Location::Local(full))
        } else {
            Err(format!("{path:?} is outside of {}, the folder of the volumes", volumes.display()))
        }
    }

    /// Whether a path that exists is in the volumes' folder, wherever links lead.
    pub fn contains(&self, path: &Path) -> bool {
        let inside =
            |volumes: &PathBuf| Some(path.canonicalize().ok()?.starts_with(volumes.canonicalize().ok()?));
        self.volumes.as_ref().and_then(inside).unwrap_or(false)
    }
}

/// A bucket, with the credentials and the endpoint of the standard AWS variables.
pub fn bucket(name: &str) -> Result<AmazonS3, String> {
    crate::tls::install();
    let built = AmazonS3Builder::from_env().with_bucket_name(name).build();
    built.map_err(|error| format!("S3 bucket {name}: {error}; see AWS_REGION, AWS_ENDPOINT_URL and the like"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_leads_into_the_volumes_or_to_a_bucket_and_nowhere_else() {
        let objects = Objects { volumes: Some(PathBuf::from("/volumes")) };
        for (path, expected) in [
            ("docs/a.md", Ok("/volumes/docs/a.md")),
            ("/volumes/docs", Ok("/volumes/docs")),
            ("/etc/passwd", Err("outside of /volumes")),
            ("docs/../../etc", Err("must not contain '..'")),
            ("http://x/y", Err("s3://bucket/key")),
            ("s3:///key", Err("names no bucket")),
        ] {
            let found = check("path", path).and_then(|()| objects.locate(path));
            match expected {
                Ok(full) => assert_eq!(found, Ok(Location::Local(PathBuf::from(full)))),
                Err(says) => {
                    let error = found.unwrap_err();
                    assert!(error.contains(says), "{path}: {error}");
                }
            }
        }
        let s3 = Location::S3 { bucket: "b".to_owned(), key: "k/l".to_owned() };
        assert_eq!(objects.locate("s3://b/k/l"), Ok(s3));
        assert!(Objects::default().locate("a").unwrap_err().contains("PRINCIPIUM_VOLUMES"));
    }

    #[test]
    fn a_link_out_of_the_volumes_is_seen() {
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(outside.path().join("secret"), "x").unwrap();
        std::fs::write(inside.path().join("good"), "x").unwrap();
        std::os::unix::fs::symlink(outside.path().join("secret"), inside.path().join("link")).unwrap();
        let objects = Objects { volumes: Some(inside.path().to_owned()) };
        assert!(objects.contains(&inside.path().join("good")));
        assert!(!objects.contains(&inside.path().join("link")));
    }
}
