//! What the pods of the embedder image have in common, whatever their role: model, ports, probes, variables.

use crate::observed::Settings;
use crate::pod_parts::{
    RunAs, claim_volume, container_security, empty_dir, env, host_volume, http_probe, image_volume, join,
    mount, pod_spec, pull_policy, read_only, resources, secret_volume, with_users_env,
};
use crate::template::Template;
use k8s_openapi::api::core::v1::{Container, ContainerPort, EnvVar, Pod, Volume};
use principium_api::model::{Dtype, ModelSource};
use principium_api::pod::{PodSettings, SecretKeyRef};
use std::collections::BTreeMap;

/// Whether the pods of a model use a claim. It may be open to one pod only, and then a successor beside its predecessor
/// would wait for it forever.
pub fn uses_claim(model: &ModelSource) -> bool {
    let cache = model.hub.as_ref().and_then(|hub| hub.cache.as_ref());
    model.persistent_volume_claim.is_some()
        || cache.is_some_and(|cache| cache.persistent_volume_claim.is_some())
}

/// Where keys are mounted, each in a folder of its own.
const KEYS: &str = "/var/run/secrets/principium.ai";
/// Where a model that is not downloaded is mounted.
const MODELS: &str = "/models";

/// A pod of the embedder.
pub struct EmbedderPod<'a> {
    pub settings: &'a Settings,
    pub pod: &'a PodSettings,
    /// The value of `PRINCIPIUM_ROLE`.
    pub role: &'a str,
    pub port: u16,
    pub model: Option<&'a ModelSource>,
    pub dtype: Option<Dtype>,
    /// Variables of the role.
    pub env: Vec<EnvVar>,
    pub require_acceleration: bool,
    /// The key that clients must show.
    pub api_key: Option<&'a SecretKeyRef>,
    /// The key that the reranker of searches is shown.
    pub reranker_key: Option<&'a SecretKeyRef>,
}

/// Builds the pod, without its name and GPUs.
pub fn build_embedder_pod(parts: EmbedderPod<'_>) -> Pod {
    let mut all = env([
        ("PRINCIPIUM_ROLE", parts.role.to_owned()),
        ("PRINCIPIUM_LISTEN", format!("0.0.0.0:{}", parts.port)),
        ("PRINCIPIUM_MODEL_CACHE", "/cache".to_owned()),
        ("PRINCIPIUM_REQUIRE_ACCELERATION", parts.require_acceleration.to_string()),
    ]);
    let (cache, run_as) = cache_volume(parts.model);
    let mut volumes = vec![cache, empty_dir("tmp")];
    let mut mounts = vec![mount("cache", "/cache"), mount("tmp", "/tmp")];
    if let Some(model) = parts.model {
        let (volume, variables) = place_model(model, parts.pod);
        all.extend(variables);
        if let Some(volume) = volume {
            volumes.push(volume);
            mounts.push(read_only(mount("model", MODELS)));
        }
    }
    all.extend(
        parts.dtype.into_iter().flat_map(|dtype| env([("PRINCIPIUM_DTYPE", dtype.name().to_owned())])),
    );
    all.extend(parts.env);
    for (name, variable, key) in [
        ("api-key", "PRINCIPIUM_API_KEYS_FILE", parts.api_key),
        ("reranker-key", "PRINCIPIUM_RERANKER_API_KEY_FILE", parts.reranker_key),
    ] {
        let Some(key) = key else { continue };
        let folder = format!("{KEYS}/{name}");
        all.extend(env([(variable, format!("{folder}/key"))]));
        volumes.push(secret_volume(name, &key.name, key.key.as_deref().unwrap_or("api-key"), "key"));
        mounts.push(read_only(mount(name, &folder)));
    }
    let container = Container {
        name: parts.role.to_owned(),
        image: Some(image(parts.settings, parts.pod)),
        image_pull_policy: Some(pull_policy(parts.pod)),
        args: Some(vec!["serve".to_owned()]),
        env: Some(with_users_env(all, parts.pod)),
        ports: Some(vec![ContainerPort {
            name: Some("http".to_owned()),
            container_port: i32::from(parts.port),
            ..ContainerPort::default()
        }]),
        resources: Some(resources(parts.pod, "100m", "512Mi")),
        security_context: Some(container_security()),
        // A model may have to be downloaded first: half an hour.
        startup_probe: Some(http_probe("/ready", 2, 900)),
        readiness_probe: Some(http_probe("/ready", 5, 2)),
        liveness_probe: Some(http_probe("/health", 10, 6)),
        volume_mounts: Some(mounts),
        // Why it ended goes into the pod's status, and from there into the resource's.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    };
    Pod { spec: Some(pod_spec(parts.pod, run_as, vec![container], volumes)), ..Pod::default() }
}

/// The volume for downloads, and who must run to write there: the kubelet makes a folder of the node for root.
fn cache_volume(model: Option<&ModelSource>) -> (Volume, RunAs) {
    let cache = model.and_then(|model| model.hub.as_ref()?.cache.as_ref());
    match cache.map(|cache| (&cache.persistent_volume_claim, &cache.host_path)) {
        Some((Some(claim), _)) => (claim_volume("cache", &claim.claim_name), RunAs::NonRoot),
        Some((None, Some(folder))) => (host_volume("cache", &folder.path, "DirectoryOrCreate"), RunAs::Root),
        Some((None, None)) | None => (empty_dir("cache"), RunAs::NonRoot),
    }
}

fn image(settings: &Settings, pod: &PodSettings) -> String {
    pod.image.clone().unwrap_or_else(|| settings.embedder_image.clone())
}

/// The fields of [`PodSettings`] that a running pod can't take on.
pub fn settings_template(image: &str, pod: &PodSettings) -> Template {
    Template::default()
        .with("image", &image)
        .with("imagePullPolicy", &pod.image_pull_policy)
        .with("imagePullSecrets", &pod.image_pull_secrets)
        .with("nodeSelector", &pod.node_selector)
        .with("tolerations", &pod.tolerations)
        .with("priorityClassName", &pod.priority_class_name)
        .with("resources", &pod.resources)
        .with("env", &env_by_name(pod))
}

/// The user's variables by name, so that a difference names the variable.
pub fn env_by_name(pod: &PodSettings) -> Option<BTreeMap<&str, &EnvVar>> {
    Some(pod.env.as_ref()?.iter().map(|variable| (variable.name.as_str(), variable)).collect())
}

/// The template of an embedder pod, to which its role adds.
pub fn embedder_template(
    settings: &Settings,
    pod: &PodSettings,
    model: Option<&ModelSource>,
    dtype: Option<Dtype>,
) -> Template {
    settings_template(&image(settings, pod), pod).with("model", &model).with("dtype", &dtype)
}

fn place_model(model: &ModelSource, pod: &PodSettings) -> (Option<Volume>, Vec<EnvVar>) {
    if let Some(hub) = &model.hub {
        let mut variables =
            env([("PRINCIPIUM_MODEL", hub.name.clone()), ("PRINCIPIUM_MODEL_NAME", hub.name.clone())]);
        if let Some(revision) = &hub.revision {
            variables.extend(env([("PRINCIPIUM_MODEL_REVISION", revision.clone())]));
        }
        return (None, variables);
    }
    let (volume, folder, name) = if let Some(image) = &model.image {
        let volume = image_volume("model", &image.reference, pod);
        (volume, image.path.as_deref(), name_of_image(&image.reference))
    } else if let Some(claim) = &model.persistent_volume_claim {
        let name = claim.path.as_deref().map_or(claim.claim_name.as_str(), last_part).to_owned();
        (claim_volume("model", &claim.claim_name), claim.path.as_deref(), name)
    } else if let Some(folder) = &model.host_path {
        (host_volume("model", &folder.path, "Directory"), None, last_part(&folder.path).to_owned())
    } else {
        return (None, Vec::new());
    };
    let variables = env([("PRINCIPIUM_MODEL", join(MODELS, folder)), ("PRINCIPIUM_MODEL_NAME", name)]);
    (Some(volume), variables)
}

/// `registry/principium-model-all-minilm-l6-v2:0.1.0` serves `all-minilm-l6-v2`.
fn name_of_image(reference: &str) -> String {
    let without_digest = reference.split('@').next().unwrap_or(reference);
    let last = last_part(without_digest);
    let name = last.split(':').next().unwrap_or(last);
    name.strip_prefix("principium-model-").unwrap_or(name).to_owned()
}

fn last_part(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use principium_api::model::{ClaimModel, HostPathModel, HubModel, ImageModel};
    use serde_json::json;

    fn none() -> ModelSource {
        ModelSource { hub: None, image: None, persistent_volume_claim: None, host_path: None }
    }

    fn built(model: &ModelSource) -> serde_json::Value {
        let settings = Settings { embedder_image: "embedder:1".to_owned(), ..Settings::default() };
        let pod = build_embedder_pod(EmbedderPod {
            settings: &settings,
            pod: &PodSettings::default(),
            role: "reranker",
            port: 9200,
            model: Some(model),
            dtype: None,
            env: Vec::new(),
            require_acceleration: true,
            api_key: None,
            reranker_key: None,
        });
        serde_json::to_value(pod).unwrap()
    }

    fn variable(pod: &serde_json::Value, name: &str) -> Option<String> {
        let env = pod["spec"]["containers"][0]["env"].as_array().unwrap();
        env.iter().find(|env| env["name"] == name).map(|env| env["value"].as_str().unwrap().to_owned())
    }

    #[test]
    fn a_model_comes_from_each_of_its_sources() {
        let hub = HubModel { name: "org/model".to_owned(), revision: Some("abc".to_owned()), cache: None };
        let image = ImageModel {
            reference: "r.example/x/principium-model-mini@sha256:00".to_owned(),
            path: Some("sub".to_owned()),
        };
        let claim = ClaimModel { claim_name: "models".to_owned(), path: Some("a/mini".to_owned()) };
        let folder = HostPathModel { path: "/srv/mini".to_owned() };
        for (model, directory, name, volume) in [
            (ModelSource { hub: Some(hub), ..none() }, "org/model", "org/model", json!(null)),
            (
                ModelSource { image: Some(image), ..none() },
                "/models/sub",
                "principium-model-mini",
                json!({"name": "model", "image":
                    {"reference": "r.example/x/principium-model-mini@sha256:00", "pullPolicy": "IfNotPresent"}}),
            ),
            (
                ModelSource { persistent_volume_claim: Some(claim), ..none() },
                "/models/a/mini",
                "mini",
                json!({"name": "model", "persistentVolumeClaim": {"claimName": "models"}}),
            ),
            (
                ModelSource { host_path: Some(folder), ..none() },
                "/models",
                "mini",
                json!({"name": "model", "hostPath": {"path": "/srv/mini", "type": "Directory"}}),
            ),
        ] {
            let pod = built(&model);
            let name = name.trim_start_matches("principium-model-");
            assert_eq!(variable(&pod, "PRINCIPIUM_MODEL").as_deref(), Some(directory));
            assert_eq!(variable(&pod, "PRINCIPIUM_MODEL_NAME").as_deref(), Some(name));
            assert_eq!(
                pod["spec"]["volumes"].as_array().unwrap().get(2).cloned().unwrap_or_default(),
                volume
            );
        }
    }

    #[test]
    fn keys_are_files_of_their_secrets_and_no_variables() {
        let settings = Settings::default();
        let key = SecretKeyRef { name: "keys".to_owned(), key: None };
        let theirs = SecretKeyRef { name: "theirs".to_owned(), key: Some("k".to_owned()) };
        let pod = build_embedder_pod(EmbedderPod {
            settings: &settings,
            pod: &PodSettings::default(),
            role: "reranker",
            port: 9200,
            model: None,
            dtype: Some(Dtype::Bf16),
            env: Vec::new(),
            require_acceleration: true,
            api_key: Some(&key),
            reranker_key: Some(&theirs),
        });
        let pod = serde_json::to_value(pod).unwrap();
        assert_eq!(variable(&pod, "PRINCIPIUM_DTYPE").as_deref(), Some("bf16"));
        for (place, name, named, secret, key) in [
            (2, "api-key", "PRINCIPIUM_API_KEYS_FILE", "keys", "api-key"),
            (3, "reranker-key", "PRINCIPIUM_RERANKER_API_KEY_FILE", "theirs", "k"),
        ] {
            let folder = format!("/var/run/secrets/principium.ai/{name}");
            assert_eq!(variable(&pod, named), Some(format!("{folder}/key")));
            let secret =
                json!({"secretName": secret, "items": [{"key": key, "path": "key"}], "optional": false});
            assert_eq!(pod["spec"]["volumes"][place], json!({"name": name, "secret": secret}));
            let mount = json!({"name": name, "mountPath": folder, "readOnly": true});
            assert_eq!(pod["spec"]["containers"][0]["volumeMounts"][place], mount);
        }
    }

    #[test]
    fn downloads_are_kept_where_the_cache_is_and_written_by_who_may() {
        let hub = |cache| {
            let hub = HubModel { name: "a/b".to_owned(), revision: None, cache };
            built(&ModelSource { hub: Some(hub), ..none() })
        };
        let claim = principium_api::ollama_pool::ClaimStore { claim_name: "c".to_owned() };
        let folder = principium_api::ollama_pool::HostPathStore { path: "/srv/hub".to_owned() };
        let cache = |claim, folder| {
            Some(principium_api::model::ModelCache { persistent_volume_claim: claim, host_path: folder })
        };
        for (cache, volume, user) in [
            (None, json!({"name": "cache", "emptyDir": {}}), 65532),
            (
                cache(Some(claim), None),
                json!({"name": "cache", "persistentVolumeClaim": {"claimName": "c"}}),
                65532,
            ),
            (
                cache(None, Some(folder)),
                json!({"name": "cache", "hostPath": {"path": "/srv/hub", "type": "DirectoryOrCreate"}}),
                0,
            ),
        ] {
            let pod = hub(cache);
            assert_eq!(pod["spec"]["volumes"][0], volume);
            assert_eq!(pod["spec"]["securityContext"]["runAsUser"], user);
        }
    }

    #[test]
    fn a_pod_meets_the_restricted_pod_security_level() {
        let pod = built(&ModelSource {
            hub: Some(HubModel { name: "a/b".to_owned(), revision: None, cache: None }),
            ..none()
        });
        let spec = &pod["spec"];
        assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
        assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        assert_eq!(spec["automountServiceAccountToken"], false);
        let container = &spec["containers"][0]["securityContext"];
        assert_eq!(
            *container,
            json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}})
        );
        assert!(spec["hostNetwork"].is_null() && spec["containers"][0]["ports"][0]["hostPort"].is_null());
    }
}
