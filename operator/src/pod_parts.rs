//! Parts that all pods of the operator are built from: the restricted security context, probes, volumes, variables.

use k8s_openapi::api::core::v1::{
    Capabilities, Container, EmptyDirVolumeSource, EnvVar, ExecAction, HTTPGetAction, HostPathVolumeSource,
    ImageVolumeSource, KeyToPath, PersistentVolumeClaimVolumeSource, PodSecurityContext, PodSpec, Probe,
    ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use principium_api::pod::{ImagePullPolicy, PodSettings};
use std::collections::BTreeMap;

/// The user and group that every container runs as.
const USER: i64 = 65532;

/// Who a pod runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunAs {
    /// As the Pod Security level `restricted` wants it.
    NonRoot,
    /// As root without any capability: for writing to a folder of the node, which the kubelet makes for root.
    Root,
}

/// The security context of a pod.
pub fn pod_security(run_as: RunAs) -> PodSecurityContext {
    let user = match run_as {
        RunAs::NonRoot => USER,
        RunAs::Root => 0,
    };
    PodSecurityContext {
        run_as_non_root: Some(run_as == RunAs::NonRoot),
        run_as_user: Some(user),
        run_as_group: Some(user),
        fs_group: Some(user),
        seccomp_profile: Some(SeccompProfile {
            type_: "RuntimeDefault".to_owned(),
            ..SeccompProfile::default()
        }),
        ..PodSecurityContext::default()
    }
}

/// The security context of every container.
pub fn container_security() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        ..SecurityContext::default()
    }
}

/// A pod's spec with the user's settings, around these containers.
pub fn pod_spec(
    settings: &PodSettings,
    run_as: RunAs,
    containers: Vec<Container>,
    volumes: Vec<Volume>,
) -> PodSpec {
    PodSpec {
        containers,
        volumes: Some(volumes),
        security_context: Some(pod_security(run_as)),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        image_pull_secrets: settings.image_pull_secrets.clone(),
        tolerations: settings.tolerations.clone(),
        priority_class_name: settings.priority_class_name.clone(),
        node_selector: settings.node_selector.clone(),
        ..PodSpec::default()
    }
}

pub fn pull_policy(settings: &PodSettings) -> String {
    match settings.image_pull_policy {
        None | Some(ImagePullPolicy::IfNotPresent) => "IfNotPresent",
        Some(ImagePullPolicy::Always) => "Always",
        Some(ImagePullPolicy::Never) => "Never",
    }
    .to_owned()
}

/// Variables with fixed values.
pub fn env<const N: usize>(pairs: [(&str, String); N]) -> Vec<EnvVar> {
    pairs
        .into_iter()
        .map(|(name, value)| EnvVar { name: name.to_owned(), value: Some(value), value_from: None })
        .collect()
}

/// Adds the user's variables; they replace defaults of the same name.
pub fn with_users_env(mut env: Vec<EnvVar>, settings: &PodSettings) -> Vec<EnvVar> {
    for own in settings.env.iter().flatten() {
        env.retain(|existing| existing.name != own.name);
        env.push(own.clone());
    }
    env
}

/// Sets variables that are not the user's to choose: they replace those of the same name.
pub fn with_own_env(mut env: Vec<EnvVar>, own: Vec<EnvVar>) -> Vec<EnvVar> {
    env.retain(|existing| own.iter().all(|own| own.name != existing.name));
    env.extend(own);
    env
}

/// The user's resources, or small requests and no limits.
pub fn resources(settings: &PodSettings, cpu: &str, memory: &str) -> ResourceRequirements {
    settings.resources.clone().unwrap_or_else(|| {
        let requests = [("cpu", cpu), ("memory", memory)];
        ResourceRequirements {
            requests: Some(
                requests
                    .map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned())))
                    .into_iter()
                    .collect::<BTreeMap<_, _>>(),
            ),
            ..ResourceRequirements::default()
        }
    })
}

/// Asks a port by its name.
pub fn http_probe(path: &str, period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("http".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        failure_threshold: Some(failures),
        timeout_seconds: Some(5),
        ..Probe::default()
    }
}

/// Runs a command in the container.
pub fn exec_probe(command: &[&str], period: i32, failures: i32) -> Probe {
    Probe {
        exec: Some(ExecAction { command: Some(command.iter().map(|&part| part.to_owned()).collect()) }),
        period_seconds: Some(period),
        failure_threshold: Some(failures),
        timeout_seconds: Some(10),
        ..Probe::default()
    }
}

pub fn mount(volume: &str, path: &str) -> VolumeMount {
    VolumeMount { name: volume.to_owned(), mount_path: path.to_owned(), ..VolumeMount::default() }
}

pub fn read_only(mount: VolumeMount) -> VolumeMount {
    VolumeMount { read_only: Some(true), ..mount }
}

pub fn empty_dir(name: &str) -> Volume {
    Volume { name: name.to_owned(), empty_dir: Some(EmptyDirVolumeSource::default()), ..Volume::default() }
}

pub fn image_volume(name: &str, reference: &str, settings: &PodSettings) -> Volume {
    Volume {
        name: name.to_owned(),
        image: Some(ImageVolumeSource {
            reference: Some(reference.to_owned()),
            pull_policy: Some(pull_policy(settings)),
        }),
        ..Volume::default()
    }
}

pub fn claim_volume(name: &str, claim: &str) -> Volume {
    Volume {
        name: name.to_owned(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: claim.to_owned(),
            read_only: None,
        }),
        ..Volume::default()
    }
}

/// One key of a Secret as a file.
pub fn secret_volume(name: &str, secret: &str, key: &str, file: &str) -> Volume {
    Volume {
        name: name.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret.to_owned()),
            items: Some(vec![KeyToPath {
                key: key.to_owned(),
                path: file.to_owned(),
                ..KeyToPath::default()
            }]),
            optional: Some(false),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    }
}

pub fn host_volume(name: &str, path: &str, type_: &str) -> Volume {
    Volume {
        name: name.to_owned(),
        host_path: Some(HostPathVolumeSource { path: path.to_owned(), type_: Some(type_.to_owned()) }),
        ..Volume::default()
    }
}

/// A path inside a mount, from the optional folder that a user gave.
pub fn join(mount: &str, folder: Option<&str>) -> String {
    match folder.map(|folder| folder.trim_matches('/')) {
        None | Some("" | ".") => mount.to_owned(),
        Some(folder) => format!("{mount}/{folder}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::EnvVar;

    #[test]
    fn a_users_variable_replaces_a_default_and_others_are_added() {
        let own =
            |name: &str| EnvVar { name: name.to_owned(), value: Some("own".to_owned()), value_from: None };
        let settings = PodSettings { env: Some(vec![own("A"), own("C")]), ..PodSettings::default() };
        let found =
            with_users_env(env([("A", "default".to_owned()), ("B", "default".to_owned())]), &settings);
        let found: Vec<_> =
            found.iter().map(|env| (env.name.as_str(), env.value.as_deref().unwrap())).collect();
        assert_eq!(found, [("B", "default"), ("A", "own"), ("C", "own")]);
    }

    #[test]
    fn a_folder_is_joined_with_one_slash() {
        for (folder, path) in
            [(None, "/m"), (Some("/"), "/m"), (Some("a/b"), "/m/a/b"), (Some("/a/"), "/m/a")]
        {
            assert_eq!(join("/m", folder), path);
        }
    }
}
