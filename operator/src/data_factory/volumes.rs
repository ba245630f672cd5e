//! The volumes of a DataFactory's worker beside those of every embedder pod: its own folder, and those of its jobs.

use crate::pod_parts::{claim_volume, empty_dir, env, mount, read_only};
use k8s_openapi::api::core::v1::{ConfigMapVolumeSource, EnvVar, Pod, Volume, VolumeMount};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use principium_api::DataFactorySpec;
use principium_api::data::{DataVolume, Storage};

/// Where jobs and corpora are kept.
const DATA: &str = "/data";
/// Where the volumes of jobs are mounted.
const VOLUMES: &str = "/volumes";

/// The variables that name the folders.
pub fn variables(spec: &DataFactorySpec) -> Vec<EnvVar> {
    let mut variables = env([("PRINCIPIUM_DATA_DIR", DATA.to_owned())]);
    if spec.volumes.as_ref().is_some_and(|volumes| !volumes.is_empty()) {
        variables.extend(env([("PRINCIPIUM_VOLUMES", VOLUMES.to_owned())]));
    }
    variables
}

/// Adds the volumes to a pod of one container.
pub fn add_to(pod: &mut Pod, spec: &DataFactorySpec) {
    let Some(pod) = &mut pod.spec else { return };
    let volumes = pod.volumes.get_or_insert_default();
    volumes.push(storage_volume(spec.storage.as_ref()));
    let mut mounts = vec![mount("data", DATA)];
    for volume in spec.volumes.iter().flatten() {
        let (made, mounted) = data_volume(volume);
        volumes.push(made);
        mounts.push(mounted);
    }
    for container in &mut pod.containers {
        container.volume_mounts.get_or_insert_default().extend(mounts.iter().cloned());
    }
}

fn storage_volume(storage: Option<&Storage>) -> Volume {
    let claim = storage.and_then(|storage| storage.persistent_volume_claim.as_ref());
    if let Some(claim) = claim {
        return claim_volume("data", &claim.claim_name);
    }
    let mut volume = empty_dir("data");
    let limit = storage.and_then(|storage| storage.empty_dir.as_ref()?.size_limit.clone());
    if let Some(folder) = &mut volume.empty_dir {
        folder.size_limit = limit.map(Quantity);
    }
    volume
}

fn data_volume(volume: &DataVolume) -> (Volume, VolumeMount) {
    let name = format!("volume-{}", volume.name);
    let mounted = mount(&name, &format!("{VOLUMES}/{}", volume.name));
    let writable = volume.config_map.is_none() && volume.read_only != Some(true);
    let mounted = if writable { mounted } else { read_only(mounted) };
    let made = match (&volume.persistent_volume_claim, &volume.config_map) {
        (Some(claim), _) => claim_volume(&name, &claim.claim_name),
        (None, Some(map)) => Volume {
            name,
            config_map: Some(ConfigMapVolumeSource {
                name: map.name.clone(),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        },
        // The schema's rule does not let one without a source pass.
        (None, None) => empty_dir(&name),
    };
    (made, mounted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{Container, PodSpec};
    use serde_json::{Value, json};

    fn built(more: &Value) -> (Value, Vec<String>) {
        let mut spec = json!({ "model": { "hub": { "name": "a/b" } } });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let spec: DataFactorySpec = serde_json::from_value(spec).unwrap();
        let mut pod = Pod {
            spec: Some(PodSpec { containers: vec![Container::default()], ..PodSpec::default() }),
            ..Pod::default()
        };
        add_to(&mut pod, &spec);
        let names = variables(&spec).into_iter().map(|variable| variable.name).collect();
        (serde_json::to_value(pod.spec).unwrap(), names)
    }

    #[test]
    fn a_data_factory_has_a_folder_of_its_own_and_the_volumes_of_its_jobs() {
        let (pod, names) = built(&json!({}));
        assert_eq!(pod["volumes"], json!([{ "name": "data", "emptyDir": {} }]));
        assert_eq!(names, ["PRINCIPIUM_DATA_DIR"]);
        let (pod, _) = built(&json!({ "storage": { "emptyDir": { "sizeLimit": "1Gi" } } }));
        assert_eq!(pod["volumes"][0]["emptyDir"]["sizeLimit"], "1Gi");
        let (pod, names) = built(&json!({
            "storage": { "persistentVolumeClaim": { "claimName": "corpora" } },
            "volumes": [
                { "name": "docs", "configMap": { "name": "handbook" } },
                { "name": "out", "persistentVolumeClaim": { "claimName": "files" } },
            ],
        }));
        assert_eq!(
            pod["volumes"],
            json!([
                { "name": "data", "persistentVolumeClaim": { "claimName": "corpora" } },
                { "name": "volume-docs", "configMap": { "name": "handbook" } },
                { "name": "volume-out", "persistentVolumeClaim": { "claimName": "files" } },
            ])
        );
        assert_eq!(
            pod["containers"][0]["volumeMounts"],
            json!([
                { "name": "data", "mountPath": "/data" },
                { "name": "volume-docs", "mountPath": "/volumes/docs", "readOnly": true },
                { "name": "volume-out", "mountPath": "/volumes/out" },
            ])
        );
        assert_eq!(names, ["PRINCIPIUM_DATA_DIR", "PRINCIPIUM_VOLUMES"]);
    }
}
