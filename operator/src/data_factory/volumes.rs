//! The volumes of a DataFactory's worker beside those of every embedder pod: its own folder, and those of its jobs.

use crate::pod_parts::{
    RunAs, claim_volume, empty_dir, env, host_volume, join, mount, pod_security, read_only,
};
use crate::pods::PodView;
use k8s_openapi::api::core::v1::{ConfigMapVolumeSource, EnvVar, Pod, Volume, VolumeMount};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use principium_api::DataFactorySpec;
use principium_api::storage::{DataVolume, Storage};
use serde_json::Value;
use std::collections::BTreeMap;

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

/// By name, so that a difference names the volume.
pub fn template(spec: &DataFactorySpec) -> Option<BTreeMap<&str, &DataVolume>> {
    let volumes = spec.volumes.as_ref().filter(|volumes| !volumes.is_empty())?;
    Some(volumes.iter().map(|volume| (volume.name.as_str(), volume)).collect())
}

/// Names the folder that a pod keeps jobs and corpora in: another name is another folder. It is that of the template which the
/// pod was made from; the spec may have changed since.
pub fn store(pod: &PodView) -> String {
    let template = pod.template.as_deref().and_then(|text| serde_json::from_str::<Value>(text).ok());
    let storage = |path: &str| template.as_ref()?.pointer(path)?.as_str();
    if let Some(claim) = storage("/storage/persistentVolumeClaim/claimName") {
        return format!("persistentVolumeClaim {claim}");
    }
    if let Some(folder) = storage("/storage/hostPath/path") {
        return format!("{folder} on node {}", pod.node.as_deref().unwrap_or_default());
    }
    format!("pod {}", pod.uid)
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
    if writes_to_the_node(spec) {
        pod.security_context = Some(pod_security(RunAs::Root));
    }
    for container in &mut pod.containers {
        container.volume_mounts.get_or_insert_default().extend(mounts.iter().cloned());
    }
}

/// The kubelet makes a folder of the node for root.
fn writes_to_the_node(spec: &DataFactorySpec) -> bool {
    let storage = spec.storage.as_ref().is_some_and(|storage| storage.host_path.is_some());
    let mut volumes = spec.volumes.iter().flatten();
    storage || volumes.any(|volume| volume.host_path.is_some() && volume.read_only != Some(true))
}

fn storage_volume(storage: Option<&Storage>) -> Volume {
    let Some(storage) = storage else { return empty_dir("data") };
    if let Some(claim) = &storage.persistent_volume_claim {
        return claim_volume("data", &claim.claim_name);
    }
    if let Some(folder) = &storage.host_path {
        return host_volume("data", &folder.path, "DirectoryOrCreate");
    }
    let mut volume = empty_dir("data");
    if let (Some(made), Some(wanted)) = (&mut volume.empty_dir, &storage.empty_dir) {
        made.size_limit = wanted.size_limit.clone().map(Quantity);
    }
    volume
}

fn data_volume(volume: &DataVolume) -> (Volume, VolumeMount) {
    let name = format!("volume-{}", volume.name);
    let mounted = mount(&name, &join(VOLUMES, Some(&volume.name)));
    let writable = volume.config_map.is_none() && volume.read_only != Some(true);
    let mounted = if writable { mounted } else { read_only(mounted) };
    let made = if let Some(claim) = &volume.persistent_volume_claim {
        claim_volume(&name, &claim.claim_name)
    } else if let Some(folder) = &volume.host_path {
        host_volume(&name, &folder.path, "Directory")
    } else if let Some(map) = &volume.config_map {
        let config_map = ConfigMapVolumeSource { name: map.name.clone(), ..ConfigMapVolumeSource::default() };
        Volume { name, config_map: Some(config_map), ..Volume::default() }
    } else {
        // The schema's rule lets none without a source pass.
        empty_dir(&name)
    };
    (made, mounted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{Container, PodSpec};
    use serde_json::json;

    fn built(more: &Value) -> (Value, Vec<String>) {
        let mut spec = json!({"model": {"hub": {"name": "a/b"}}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let spec: DataFactorySpec = serde_json::from_value(spec).unwrap();
        let mut pod = Pod {
            spec: Some(PodSpec {
                containers: vec![Container::default()],
                security_context: Some(pod_security(RunAs::NonRoot)),
                ..PodSpec::default()
            }),
            ..Pod::default()
        };
        add_to(&mut pod, &spec);
        let names = variables(&spec).into_iter().map(|variable| variable.name).collect();
        (serde_json::to_value(pod.spec).unwrap(), names)
    }

    #[test]
    fn a_data_factory_has_a_folder_of_its_own_and_the_volumes_of_its_jobs() {
        let (pod, names) = built(&json!({}));
        assert_eq!(pod["volumes"], json!([{"name": "data", "emptyDir": {}}]));
        assert_eq!(names, ["PRINCIPIUM_DATA_DIR"]);
        let (pod, _) = built(&json!({"storage": {"emptyDir": {"sizeLimit": "1Gi"}}}));
        assert_eq!(pod["volumes"][0]["emptyDir"]["sizeLimit"], "1Gi");
        let (pod, names) = built(&json!({
            "storage": {"persistentVolumeClaim": {"claimName": "corpora"}},
            "volumes": [
                {"name": "docs", "configMap": {"name": "handbook"}},
                {"name": "out", "persistentVolumeClaim": {"claimName": "files"}},
                {"name": "node", "hostPath": {"path": "/srv/docs"}, "readOnly": true},
            ],
        }));
        assert_eq!(
            pod["volumes"],
            json!([
                {"name": "data", "persistentVolumeClaim": {"claimName": "corpora"}},
                {"name": "volume-docs", "configMap": {"name": "handbook"}},
                {"name": "volume-out", "persistentVolumeClaim": {"claimName": "files"}},
                {"name": "volume-node", "hostPath": {"path": "/srv/docs", "type": "Directory"}},
            ])
        );
        assert_eq!(
            pod["containers"][0]["volumeMounts"],
            json!([
                {"name": "data", "mountPath": "/data"},
                {"name": "volume-docs", "mountPath": "/volumes/docs", "readOnly": true},
                {"name": "volume-out", "mountPath": "/volumes/out"},
                {"name": "volume-node", "mountPath": "/volumes/node", "readOnly": true},
            ])
        );
        assert_eq!(names, ["PRINCIPIUM_DATA_DIR", "PRINCIPIUM_VOLUMES"]);
    }

    #[test]
    fn only_one_that_writes_to_a_folder_of_the_node_runs_as_root() {
        let folder = json!({"path": "/srv/x"});
        for (spec, user) in [
            (json!({"storage": {"persistentVolumeClaim": {"claimName": "c"}}}), 65532),
            (json!({"volumes": [{"name": "v", "hostPath": folder, "readOnly": true}]}), 65532),
            (json!({"volumes": [{"name": "v", "hostPath": folder}]}), 0),
            (json!({"storage": {"hostPath": folder}}), 0),
        ] {
            assert_eq!(built(&spec).0["securityContext"]["runAsUser"], user, "{spec}");
        }
    }
}
