//! An OCI image layout in one tar file, made from a list of files: one layer, the same bytes for the same input.

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// What stands at a path of an image.
#[derive(Clone, Debug)]
pub enum Entry {
    /// A folder with this mode.
    Folder(u32),
    /// A copy of a file, with this mode.
    Copy(PathBuf, u32),
    /// A file with this content, mode 0644.
    Text(String),
}

/// An image before it is written.
#[derive(Clone, Debug)]
pub struct Contents {
    /// What it holds, by absolute path without the leading `/`.
    pub files: BTreeMap<String, Entry>,
    /// `USER`.
    pub user: String,
    /// `ENTRYPOINT`.
    pub entrypoint: Vec<String>,
    /// What it is, in a few words.
    pub title: String,
}

/// Writes the layout, unless it is there with the same content; returns the digest of the manifest.
///
/// # Errors
/// When a file can't be read or written.
pub fn write(contents: &Contents, name: &str, version: &str, tarball: &Path) -> Result<String> {
    let key = key(contents, name).with_context(|| format!("reading what goes into {name}"))?;
    let stamp = tarball.with_extension("key");
    if tarball.is_file()
        && let Ok(old) = fs::read_to_string(&stamp)
        && let Some((old_key, digest)) = old.split_once(' ')
        && old_key == key
    {
        return Ok(digest.to_owned());
    }
    if let Some(folder) = tarball.parent() {
        fs::create_dir_all(folder)?;
    }
    let layer_path = tarball.with_extension("layer");
    let layer = layer(contents, &layer_path)?;
    let config = serde_json::to_vec(&json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "User": contents.user,
            "Entrypoint": contents.entrypoint,
            "Env": ["PATH=/usr/bin:/usr/sbin", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"],
            "Labels": {
                "org.opencontainers.image.title": contents.title,
                "org.opencontainers.image.version": version,
                "org.opencontainers.image.licenses": "Apache-2.0",
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
    }))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&config), "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer.digest, "size": layer.size}],
    }))?;
    let manifest_digest = digest(&manifest);
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": manifest_digest,
            "size": manifest.len(),
            "platform": {"architecture": "amd64", "os": "linux"},
            "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": version},
        }],
    }))?;

    let partial = tarball.with_extension("partial");
    let mut archive = tar::Builder::new(io::BufWriter::new(File::create(&partial)?));
    append(&mut archive, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    append(&mut archive, "index.json", 0o644, &index)?;
    append(&mut archive, &blob(&manifest_digest), 0o644, &manifest)?;
    append(&mut archive, &blob(&digest(&config)), 0o644, &config)?;
    archive.append_data(
        &mut header(0o644, layer.size),
        blob(&layer.digest),
        &mut File::open(&layer_path)?,
    )?;
    archive.into_inner()?.flush()?;
    fs::remove_file(&layer_path)?;
    fs::rename(&partial, tarball)?;
    fs::write(stamp, format!("{key} {manifest_digest}"))?;
    Ok(manifest_digest)
}

struct Layer {
    digest: String,
    size: u64,
}

fn layer(contents: &Contents, path: &Path) -> Result<Layer> {
    let mut archive = tar::Builder::new(io::BufWriter::new(File::create(path)?));
    for (name, entry) in &contents.files {
        match entry {
            Entry::Folder(mode) => {
                let mut header = header(*mode, 0);
                header.set_entry_type(tar::EntryType::Directory);
                archive.append_data(&mut header, format!("{name}/"), io::empty())?;
            }
            Entry::Copy(source, mode) => {
                let mut file = File::open(source).with_context(|| format!("opening {}", source.display()))?;
                let size = file.metadata()?.len();
                archive.append_data(&mut header(*mode, size), name, &mut file)?;
            }
            Entry::Text(text) => append(&mut archive, name, 0o644, text.as_bytes())?,
        }
    }
    let mut file = archive.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.flush()?;
    let size = file.stream_position()?;
    Ok(Layer { digest: format!("sha256:{}", hash(&mut File::open(path)?)?), size })
}

/// What the layout depends on.
fn key(contents: &Contents, name: &str) -> Result<String> {
    let mut hasher = Sha256::new();
    hasher.update(format!("{name}\0{}\0{:?}\0{}\0", contents.user, contents.entrypoint, contents.title));
    for (path, entry) in &contents.files {
        hasher.update(path);
        match entry {
            Entry::Copy(source, mode) => {
                let mut file = File::open(source).with_context(|| format!("opening {}", source.display()))?;
                hasher.update(format!("\0{mode}\0{}\0", hash(&mut file)?));
            }
            other => hasher.update(format!("\0{other:?}\0")),
        }
    }
    Ok(hex(&hasher.finalize()))
}

fn header(mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn append(archive: &mut tar::Builder<impl Write>, name: &str, mode: u32, bytes: &[u8]) -> Result<()> {
    let size = u64::try_from(bytes.len())?;
    archive.append_data(&mut header(mode, size), name, bytes).with_context(|| format!("writing {name}"))
}

fn blob(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// SHA-256 of all that can be read, in hexadecimal.
pub fn hash(reader: &mut impl Read) -> Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = reader.read(&mut buffer)?;
        if read == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..read]);
    }
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(text: &str) -> Contents {
        Contents {
            files: BTreeMap::from([
                ("etc".into(), Entry::Folder(0o755)),
                ("etc/name".into(), Entry::Text(text.into())),
            ]),
            user: "1:1".into(),
            entrypoint: vec!["/x".into()],
            title: "test".into(),
        }
    }

    #[test]
    fn the_same_input_gives_the_same_bytes_and_another_input_another_digest() {
        let folder = std::env::temp_dir().join(format!("principium-layout-{}", std::process::id()));
        let write = |text: &str, file: &str| {
            let tarball = folder.join(file);
            let digest = write(&contents(text), "example/test:1", "1", &tarball).unwrap();
            (digest, fs::read(tarball).unwrap())
        };
        let first = write("a", "one.tar");
        assert_eq!(first, write("a", "two.tar"));
        assert_ne!(first.0, write("b", "three.tar").0);
        assert_eq!(write("b", "one.tar").0, write("b", "three.tar").0, "a changed input is written anew");
        fs::remove_dir_all(folder).unwrap();
    }
}
