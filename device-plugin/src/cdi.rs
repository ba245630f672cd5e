//! The CDI specification of simulated GPUs: it tells the container runtime which device node a GPU is.
//!
//! The nodes are described by number and exist nowhere on the host. Their major number is one that Linux leaves to
//! experiments, so a container that may open its node meets "no such device", and one that may not, "not permitted".
//! Real GPUs are described by the NVIDIA toolkit, and this module writes nothing.

use crate::injection::{Injectable, SIMULATED_KIND};
use principium_api::names;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::{fs, io::ErrorKind};

/// Name of the specification's file.
const FILE_NAME: &str = "principium.ai-gpu.json";
/// First of the majors "for local and experimental use" (120 to 127) in Linux's list of devices.
const MAJOR: u32 = 120;
/// The next one, for the nodes that a MIG device has beside its GPU's.
const MIG_MAJOR: u32 = 121;

/// Why the specification could not be written or removed.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot {action} the CDI specification {path}: {source}; without it no simulated GPU gets into a container"
)]
pub struct CdiError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Writes the specification of these GPUs, unless it is there already. The caller lists every GPU that a container may
/// still hold: a container that restarts looks its devices up again.
///
/// # Errors
/// If the directory or the file cannot be written.
pub fn write(directory: &Path, gpus: &BTreeMap<u32, Injectable>) -> Result<(), CdiError> {
    let path = directory.join(FILE_NAME);
    let text = format!("{:#}\n", specification(gpus));
    if fs::read_to_string(&path).is_ok_and(|written| written == text) {
        return Ok(());
    }
    let replace = || {
        fs::create_dir_all(directory)?;
        // A name that the container runtime doesn't take for a specification.
        let new = directory.join(format!(".{FILE_NAME}.new"));
        let mut file = fs::File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)
    };
    replace().map_err(|source| CdiError { action: "write", path: path.clone(), source })
}

/// Removes a specification that an earlier, simulated run left.
///
/// # Errors
/// If there is one and it cannot be removed.
pub fn remove(directory: &Path) -> Result<(), CdiError> {
    let path = directory.join(FILE_NAME);
    match fs::remove_file(&path) {
        Err(source) if source.kind() != ErrorKind::NotFound => {
            Err(CdiError { action: "remove", path, source })
        }
        _ => Ok(()),
    }
}

/// The same GPUs give the same text.
fn specification(gpus: &BTreeMap<u32, Injectable>) -> Value {
    let node = |path: String, major: u32, minor: u32| {
        json!({
            "path": path,
            "type": "c",
            "major": major,
            "minor": minor,
            "fileMode": 0o666,
            "permissions": "rw",
        })
    };
    let device = |(index, gpu): (&u32, &Injectable)| {
        let (of, own) = match names::mig_place(*index) {
            None => (*index, None),
            Some((parent, _)) => {
                let path = format!("/dev/nvidia-caps/nvidia-cap{index}");
                (parent, Some(node(path, MIG_MAJOR, *index)))
            }
        };
        let nodes: Vec<Value> =
            [node(format!("/dev/nvidia{of}"), MAJOR, of)].into_iter().chain(own).collect();
        json!({"name": gpu.uuid, "containerEdits": {"deviceNodes": nodes}})
    };
    json!({
        "cdiVersion": "0.5.0",
        "kind": SIMULATED_KIND,
        "devices": gpus.iter().map(device).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use principium_api::gpu_node::GpuView;

    fn gpu(uuid: &str) -> Injectable {
        Injectable { uuid: uuid.to_owned(), minor: 0, instance: None, view: GpuView::Exact }
    }

    fn gpus(uuids: &[&str]) -> BTreeMap<u32, Injectable> {
        (0..).zip(uuids).map(|(index, uuid)| (index, gpu(uuid))).collect()
    }

    fn written(directory: &Path) -> Value {
        serde_json::from_slice(&fs::read(directory.join(FILE_NAME)).unwrap()).unwrap()
    }

    #[test]
    fn each_gpu_is_one_device_with_a_node_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), &gpus(&["GPU-a", "GPU-b"])).unwrap();
        let specification = written(directory.path());
        assert_eq!(specification["kind"], "principium.ai/gpu");
        assert_eq!(specification["devices"][1]["name"], "GPU-b");
        let node = &specification["devices"][1]["containerEdits"]["deviceNodes"][0];
        assert_eq!(
            (&node["path"], &node["type"], &node["major"], &node["minor"]),
            (&json!("/dev/nvidia1"), &json!("c"), &json!(120), &json!(1))
        );
    }

    #[test]
    fn a_mig_device_is_its_gpus_node_and_one_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), &[(3, gpu("GPU-d")), (402, gpu("MIG-x"))].into()).unwrap();
        let specification = written(directory.path());
        let nodes = specification["devices"][1]["containerEdits"]["deviceNodes"].as_array().unwrap();
        let paths: Vec<_> =
            nodes.iter().map(|node| (&node["path"], &node["major"], &node["minor"])).collect();
        assert_eq!(
            paths,
            [
                (&json!("/dev/nvidia3"), &json!(120), &json!(3)),
                (&json!("/dev/nvidia-caps/nvidia-cap402"), &json!(121), &json!(402)),
            ]
        );
    }

    #[test]
    fn an_unchanged_specification_is_not_written_again() {
        let directory = tempfile::tempdir().unwrap();
        let modified = || fs::metadata(directory.path().join(FILE_NAME)).unwrap().modified().unwrap();
        write(directory.path(), &gpus(&["GPU-a"])).unwrap();
        let first = modified();
        write(directory.path(), &gpus(&["GPU-a"])).unwrap();
        assert_eq!(modified(), first);
        write(directory.path(), &gpus(&["GPU-a", "GPU-b"])).unwrap();
        assert_eq!(written(directory.path())["devices"].as_array().unwrap().len(), 2);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_left_over_specification_is_removed_once() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), &gpus(&["GPU-a"])).unwrap();
        remove(directory.path()).unwrap();
        remove(directory.path()).unwrap();
        assert!(!directory.path().join(FILE_NAME).exists());
    }
}
