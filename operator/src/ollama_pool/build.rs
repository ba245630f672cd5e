//! The pods of an OllamaPool: instances, and pullers that fill a shared store. Both fill a store by the same sequence of
//! containers: a sidecar that serves the store inside the pod, then one container a model.

use super::store::{Store, VOLUME};
use crate::embedder::{env_by_name, settings_template};
use crate::observed::Observed;
use crate::pod_parts::{
    RunAs, container_security, empty_dir, env, exec_probe, http_probe, image_volume, join, mount, pod_spec,
    pull_policy, read_only, resources, with_own_env, with_users_env,
};
use crate::pods::{MODELS_READY_GATE, STORE_ANNOTATION};
use crate::template::Template;
use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, Container, ContainerPort, EnvVar, KeyToPath, Pod, PodReadinessGate,
    ResourceRequirements, Volume,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use principium_api::OllamaPool;
use principium_api::names::OLLAMA_PORT;
use principium_api::ollama_pool::{KvCacheType, OllamaModel};
use principium_api::pod::ConfigMapKeyRef;
use std::collections::BTreeMap;

/// Where a store is mounted.
const MODELS: &str = "/models";
/// Where the store is served inside the pod while it is filled: nobody else can write to it.
const STORE_ADDRESS: &str = "127.0.0.1:11435";
/// Where images have the certificate authorities that everybody trusts.
const PUBLIC_CAS: &str = "/etc/ssl/certs";
/// Where those of the user's registry are mounted, and the volume that they come from.
const REGISTRY_CA: &str = "/etc/principium/registry-ca";
const REGISTRY_CA_VOLUME: &str = "registry-ca";
/// Where a pod says how far it is with pulling a model.
pub const PROGRESS_PORT: u16 = 11436;

/// The name of the container that brings the model at this position of `spec.models`.
pub fn model_container(position: usize) -> String {
    format!("model-{position}")
}

fn image(observed: &Observed, resource: &OllamaPool) -> String {
    resource.spec.pod.image.clone().unwrap_or_else(|| observed.settings.ollama_image.clone())
}

/// The port of the node that an instance takes.
pub fn host_port(resource: &OllamaPool, ordinal: u32) -> Option<u32> {
    resource.spec.host_ports.as_ref().map(|ports| ports.start.saturating_add(ordinal))
}

pub fn instance_template(observed: &Observed, resource: &OllamaPool, ordinal: u32) -> Template {
    let spec = &resource.spec;
    let template = settings_template(&image(observed, resource), &spec.pod)
        .with("settings", &spec.settings)
        .with("hostPort", &host_port(resource, ordinal))
        .with("store", &spec.store);
    match Store::of(resource) {
        // The pod brings the models itself; with a shared store they come and go beneath it.
        Store::Ephemeral => template
            .with("models", &spec.models)
            .with("registryCaConfigMapRef", &spec.registry_ca_config_map_ref),
        Store::Claim(_) | Store::Folder(_) => template,
    }
}

pub fn puller_template(observed: &Observed, resource: &OllamaPool) -> Template {
    let spec = &resource.spec;
    let image = image(observed, resource);
    Template::default()
        .with("image", &image)
        .with("imagePullPolicy", &spec.pod.image_pull_policy)
        .with("imagePullSecrets", &spec.pod.image_pull_secrets)
        .with("tolerations", &spec.pod.tolerations)
        .with("priorityClassName", &spec.pod.priority_class_name)
        .with("env", &env_by_name(&spec.pod))
        .with("store", &spec.store)
        .with("models", &spec.models)
        .with("registryCaConfigMapRef", &spec.registry_ca_config_map_ref)
}

/// Builds an instance, without its name and GPUs.
pub fn build_pod(observed: &Observed, resource: &OllamaPool, ordinal: u32) -> Pod {
    let spec = &resource.spec;
    let name = resource.metadata.name.as_deref().unwrap_or_default();
    let store = Store::of(resource);
    let mut volumes = vec![store.volume(), empty_dir("tmp")];
    let models = mount(VOLUME, MODELS);
    let (init, models) = match store {
        Store::Ephemeral => {
            volumes.extend(registry_ca(resource).into_iter().chain(sources(resource)));
            let mut init = vec![store_container(observed, resource)];
            init.extend(model_containers(observed, resource));
            (Some(init), models)
        }
        Store::Claim(_) | Store::Folder(_) => (None, read_only(models)),
    };
    let container = Container {
        env: Some(with_users_env(serve_env(resource), &spec.pod)),
        ports: Some(vec![ContainerPort {
            name: Some("http".to_owned()),
            container_port: i32::from(OLLAMA_PORT),
            host_port: host_port(resource, ordinal).and_then(|port| i32::try_from(port).ok()),
            ..ContainerPort::default()
        }]),
        resources: Some(resources(&spec.pod, "100m", "512Mi")),
        startup_probe: Some(http_probe("/api/version", 1, 120)),
        readiness_probe: Some(http_probe("/api/version", 5, 3)),
        liveness_probe: Some(http_probe("/api/version", 20, 6)),
        volume_mounts: Some(vec![models, mount("tmp", "/tmp")]),
        ..ollama_container(observed, resource, "ollama", vec!["serve".to_owned()])
    };
    let mut pod_spec = pod_spec(&spec.pod, RunAs::NonRoot, vec![container], volumes);
    pod_spec.init_containers = init;
    pod_spec.hostname = Some(format!("{name}-{ordinal}"));
    pod_spec.subdomain = Some(format!("{name}-instances"));
    pod_spec.readiness_gates = Some(vec![PodReadinessGate { condition_type: MODELS_READY_GATE.to_owned() }]);
    Pod { spec: Some(pod_spec), ..Pod::default() }
}

/// Builds the pod that fills a shared store, without its name and node. It asks for no GPU.
pub fn build_puller(observed: &Observed, resource: &OllamaPool, place: &str) -> Pod {
    let store = Store::of(resource);
    let mut containers = model_containers(observed, resource);
    // The last one is the pod's work: when it is done, so is the pod.
    let last = containers.pop().unwrap_or_else(|| Container {
        env: Some(with_own_env(common_env(), client_env())),
        volume_mounts: Some(vec![mount("tmp", "/tmp")]),
        ..ollama_container(observed, resource, "empty", vec!["list".to_owned()])
    });
    let mut init = vec![store_container(observed, resource)];
    init.extend(containers);
    let mut volumes = vec![store.volume(), empty_dir("tmp")];
    volumes.extend(registry_ca(resource).into_iter().chain(sources(resource)));
    let mut spec = pod_spec(&resource.spec.pod, store.writer(), vec![last], volumes);
    spec.init_containers = Some(init);
    spec.restart_policy = Some("OnFailure".to_owned());
    let mut pod = Pod { spec: Some(spec), ..Pod::default() };
    pod.metadata.annotations = Some(BTreeMap::from([(STORE_ANNOTATION.to_owned(), place.to_owned())]));
    pod
}

fn ollama_container(observed: &Observed, resource: &OllamaPool, name: &str, args: Vec<String>) -> Container {
    Container {
        name: name.to_owned(),
        image: Some(image(observed, resource)),
        image_pull_policy: Some(pull_policy(&resource.spec.pod)),
        args: Some(args),
        security_context: Some(container_security()),
        // Why a pull failed goes into the pod's status, and from there into the pool's.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    }
}

/// Serves the store inside the pod while it is filled.
fn store_container(observed: &Observed, resource: &OllamaPool) -> Container {
    let mut variables = common_env();
    let mut mounts = vec![mount(VOLUME, MODELS), mount("tmp", "/tmp")];
    if resource.spec.registry_ca_config_map_ref.is_some() {
        // Go reads the certificates of all these folders; a file of its own would take the place of the public ones.
        variables.extend(env([("SSL_CERT_DIR", format!("{PUBLIC_CAS}:{REGISTRY_CA}"))]));
        mounts.push(read_only(mount(REGISTRY_CA_VOLUME, REGISTRY_CA)));
    }
    Container {
        restart_policy: Some("Always".to_owned()),
        env: Some(with_own_env(with_users_env(variables, &resource.spec.pod), store_env())),
        startup_probe: Some(exec_probe(&["ollama", "list"], 1, 120)),
        resources: Some(small()),
        volume_mounts: Some(mounts),
        ..ollama_container(observed, resource, "store", vec!["serve".to_owned()])
    }
}

/// One container a model, in the order of the spec.
fn model_containers(observed: &Observed, resource: &OllamaPool) -> Vec<Container> {
    let bring = |(position, model): (usize, &OllamaModel)| {
        let name = model_container(position);
        let variables = with_own_env(with_users_env(common_env(), &resource.spec.pod), client_env());
        let Some(modelfile) = &model.modelfile else {
            return Container {
                image: Some(observed.settings.puller_image.clone()),
                env: Some(variables),
                resources: Some(small()),
                ..ollama_container(observed, resource, &name, pull_args(model))
            };
        };
        let folder = format!("/sources/{position}");
        let path = join(&folder, Some(modelfile.image.path.as_deref().unwrap_or("Modelfile")));
        let args = vec!["create".to_owned(), model.name.clone(), "-f".to_owned(), path];
        Container {
            env: Some(variables),
            resources: Some(small()),
            volume_mounts: Some(vec![mount("tmp", "/tmp"), read_only(mount(&source(position), &folder))]),
            ..ollama_container(observed, resource, &name, args)
        }
    };
    resource.spec.models.iter().enumerate().map(bring).collect()
}

fn pull_args(model: &OllamaModel) -> Vec<String> {
    vec![
        "pull".to_owned(),
        format!("--server=http://{STORE_ADDRESS}"),
        format!("--progress=0.0.0.0:{PROGRESS_PORT}"),
        model.name.clone(),
    ]
}

fn source(position: usize) -> String {
    format!("source-{position}")
}

/// The certificate authorities of the user's registry.
fn registry_ca(resource: &OllamaPool) -> Option<Volume> {
    let ConfigMapKeyRef { name, key } = resource.spec.registry_ca_config_map_ref.as_ref()?;
    let item = KeyToPath {
        key: key.clone().unwrap_or_else(|| "ca.crt".to_owned()),
        path: "ca.crt".to_owned(),
        ..KeyToPath::default()
    };
    let config_map = ConfigMapVolumeSource {
        name: name.clone(),
        items: Some(vec![item]),
        ..ConfigMapVolumeSource::default()
    };
    Some(Volume { name: REGISTRY_CA_VOLUME.to_owned(), config_map: Some(config_map), ..Volume::default() })
}

/// The images that models are created from.
fn sources(resource: &OllamaPool) -> Vec<Volume> {
    let volume = |(position, model): (usize, &OllamaModel)| {
        let image = &model.modelfile.as_ref()?.image;
        Some(image_volume(&source(position), &image.reference, &resource.spec.pod))
    };
    resource.spec.models.iter().enumerate().filter_map(volume).collect()
}

fn small() -> ResourceRequirements {
    let requests = [("cpu", "50m"), ("memory", "128Mi")];
    ResourceRequirements {
        requests: Some(requests.map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned()))).into()),
        ..ResourceRequirements::default()
    }
}

/// What every `ollama` process needs: a home that it can write, and no GPU unless it is given one later.
fn common_env() -> Vec<EnvVar> {
    env([
        ("HOME", "/tmp/home".to_owned()),
        ("OLLAMA_NOPRUNE", "1".to_owned()),
        ("NVIDIA_VISIBLE_DEVICES", "void".to_owned()),
        ("CUDA_VISIBLE_DEVICES", String::new()),
    ])
}

/// What the process that serves the store inside the pod must have.
fn store_env() -> Vec<EnvVar> {
    env([("OLLAMA_HOST", STORE_ADDRESS.to_owned()), ("OLLAMA_MODELS", MODELS.to_owned())])
}

/// What those must have that fill it.
fn client_env() -> Vec<EnvVar> {
    env([("OLLAMA_HOST", STORE_ADDRESS.to_owned())])
}

fn serve_env(resource: &OllamaPool) -> Vec<EnvVar> {
    let settings = resource.spec.settings.clone().unwrap_or_default();
    let mut variables = env([
        ("OLLAMA_HOST", format!("0.0.0.0:{OLLAMA_PORT}")),
        ("OLLAMA_MODELS", MODELS.to_owned()),
        ("OLLAMA_MAX_LOADED_MODELS", "1".to_owned()),
        ("OLLAMA_NUM_PARALLEL", settings.num_parallel.unwrap_or(1).to_string()),
        ("OLLAMA_KEEP_ALIVE", settings.keep_alive.unwrap_or_else(|| "-1".to_owned())),
        ("OLLAMA_CONTEXT_LENGTH", settings.context_length.unwrap_or(4096).to_string()),
    ]);
    // Ollama ignores the type of the cache without flash attention, and says so in its log only.
    let quantized = matches!(settings.kv_cache_type, Some(KvCacheType::Q8 | KvCacheType::Q4));
    if let Some(on) = settings.flash_attention.or(quantized.then_some(true)) {
        variables.extend(env([("OLLAMA_FLASH_ATTENTION", on.to_string())]));
    }
    if let Some(kind) = settings.kv_cache_type {
        let kind = match kind {
            KvCacheType::F16 => "f16",
            KvCacheType::Q8 => "q8_0",
            KvCacheType::Q4 => "q4_0",
        };
        variables.extend(env([("OLLAMA_KV_CACHE_TYPE", kind.to_owned())]));
    }
    if let Some(most) = settings.max_queue {
        variables.extend(env([("OLLAMA_MAX_QUEUE", most.to_string())]));
    }
    if let Some(timeout) = settings.load_timeout {
        variables.extend(env([("OLLAMA_LOAD_TIMEOUT", timeout)]));
    }
    variables.extend(common_env());
    variables
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::Settings;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn observed() -> Observed {
        let settings = Settings {
            ollama_image: "ollama:1".to_owned(),
            puller_image: "operator:1".to_owned(),
            ..Settings::default()
        };
        Observed { settings: Arc::new(settings), ..Observed::default() }
    }

    fn pool(spec: &Value) -> OllamaPool {
        let metadata = json!({"name": "pool", "namespace": "demo"});
        serde_json::from_value(json!({
            "apiVersion": "principium.ai/v1alpha1", "kind": "OllamaPool", "metadata": metadata, "spec": spec
        }))
        .unwrap()
    }

    fn models() -> Value {
        json!([{"name": "tiny"}, {"name": "own", "modelfile": {"image": {"reference": "r/own:1", "path": "sub/Modelfile"}}}])
    }

    fn args(container: &Value) -> String {
        let args: Vec<_> =
            container["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()).collect();
        format!("{}: {}", container["name"].as_str().unwrap(), args.join(" "))
    }

    #[test]
    fn an_instance_with_a_store_of_its_own_brings_its_models_first() {
        let pool = pool(&json!({"models": models(), "hostPorts": {"start": 11434}}));
        let pod = serde_json::to_value(build_pod(&observed(), &pool, 2)).unwrap();
        let spec = &pod["spec"];
        let init: Vec<_> = spec["initContainers"].as_array().unwrap().iter().map(args).collect();
        assert_eq!(
            init,
            [
                "store: serve",
                "model-0: pull --server=http://127.0.0.1:11435 --progress=0.0.0.0:11436 tiny",
                "model-1: create own -f /sources/1/sub/Modelfile"
            ]
        );
        assert_eq!(spec["initContainers"][0]["restartPolicy"], "Always");
        let images: Vec<_> = (0..3).map(|at| spec["initContainers"][at]["image"].as_str().unwrap()).collect();
        assert_eq!(images, ["ollama:1", "operator:1", "ollama:1"]);
        assert_eq!(args(&spec["containers"][0]), "ollama: serve");
        assert_eq!(spec["containers"][0]["ports"][0]["hostPort"], 11436);
        assert_eq!((&spec["hostname"], &spec["subdomain"]), (&json!("pool-2"), &json!("pool-instances")));
        assert_eq!(spec["readinessGates"], json!([{"conditionType": "principium.ai/models-ready"}]));
        assert_eq!(spec["volumes"][2]["image"]["reference"], "r/own:1");
        for container in spec["initContainers"].as_array().unwrap() {
            assert_eq!(container["terminationMessagePolicy"], "FallbackToLogsOnError");
            let asked = container["resources"].to_string();
            assert!(!asked.contains("principium.ai/gpu"), "init containers ask for no GPU: {asked}");
            assert!(container["env"].to_string().contains(r#""NVIDIA_VISIBLE_DEVICES","value":"void""#));
        }
    }

    #[test]
    fn a_shared_store_is_written_by_the_puller_alone() {
        let pool = pool(&json!({"models": models(), "store": {"hostPath": {"path": "/srv/models"}}}));
        let instance = serde_json::to_value(build_pod(&observed(), &pool, 0)).unwrap();
        assert!(instance["spec"]["initContainers"].is_null());
        assert_eq!(instance["spec"]["containers"][0]["volumeMounts"][0]["readOnly"], true);
        assert_eq!(instance["spec"]["securityContext"]["runAsNonRoot"], true);
        let puller = serde_json::to_value(build_puller(&observed(), &pool, "folder:a:/srv/models")).unwrap();
        let spec = &puller["spec"];
        assert_eq!(spec["restartPolicy"], "OnFailure");
        let init: Vec<_> = spec["initContainers"].as_array().unwrap().iter().map(args).collect();
        assert_eq!(
            init,
            ["store: serve", "model-0: pull --server=http://127.0.0.1:11435 --progress=0.0.0.0:11436 tiny"]
        );
        assert_eq!(args(&spec["containers"][0]), "model-1: create own -f /sources/1/sub/Modelfile");
        assert_eq!(spec["securityContext"]["runAsUser"], 0);
        assert_eq!(spec["initContainers"][0]["securityContext"]["capabilities"]["drop"], json!(["ALL"]));
        assert!(!spec.to_string().contains("principium.ai/gpu"));
    }

    #[test]
    fn the_registrys_authorities_are_trusted_where_models_are_pulled_and_nowhere_else() {
        let ca = json!({"name": "trust", "key": "root.pem"});
        let of = |store: Value| {
            let pool =
                pool(&json!({"models": models(), "registryCaConfigMapRef": ca.clone(), "store": store}));
            let built = [build_pod(&observed(), &pool, 0), build_puller(&observed(), &pool, "place")];
            built.map(|pod| serde_json::to_value(pod).unwrap()["spec"].clone())
        };
        let [own, puller] = of(json!({"ephemeral": {}}));
        for spec in [&own, &puller] {
            let store = &spec["initContainers"][0];
            let variable =
                json!({"name": "SSL_CERT_DIR", "value": "/etc/ssl/certs:/etc/principium/registry-ca"});
            assert!(store["env"].as_array().unwrap().contains(&variable), "{store}");
            let mounted =
                json!({"name": "registry-ca", "mountPath": "/etc/principium/registry-ca", "readOnly": true});
            assert!(store["volumeMounts"].as_array().unwrap().contains(&mounted), "{store}");
            let volume = json!({
                "name": "registry-ca",
                "configMap": {"name": "trust", "items": [{"key": "root.pem", "path": "ca.crt"}]}
            });
            assert!(spec["volumes"].as_array().unwrap().contains(&volume), "{spec}");
            assert!(!spec["containers"].to_string().contains("registry-ca"), "{spec}");
        }
        let [instance, _] = of(json!({"hostPath": {"path": "/srv/models"}}));
        assert!(!instance.to_string().contains("registry-ca"), "an instance of a shared store pulls nothing");
    }

    #[test]
    fn settings_become_variables_and_users_variables_win() {
        let pool = pool(&json!({
            "settings": {"contextLength": 8192, "kvCacheType": "q8_0", "numParallel": 2, "maxQueue": 9, "loadTimeout": "9m"},
            "env": [{"name": "OLLAMA_KEEP_ALIVE", "value": "5m"}]
        }));
        let pod = serde_json::to_value(build_pod(&observed(), &pool, 0)).unwrap();
        let env = pod["spec"]["containers"][0]["env"].as_array().unwrap();
        let value =
            |name: &str| env.iter().find(|env| env["name"] == name).unwrap()["value"].as_str().unwrap();
        assert_eq!(value("OLLAMA_CONTEXT_LENGTH"), "8192");
        assert_eq!(value("OLLAMA_FLASH_ATTENTION"), "true", "the type of the cache needs it");
        assert_eq!((value("OLLAMA_MAX_QUEUE"), value("OLLAMA_LOAD_TIMEOUT")), ("9", "9m"));
        assert_eq!(value("OLLAMA_KV_CACHE_TYPE"), "q8_0");
        assert_eq!(value("OLLAMA_NUM_PARALLEL"), "2");
        assert_eq!(value("OLLAMA_KEEP_ALIVE"), "5m");
        assert_eq!(value("OLLAMA_MAX_LOADED_MODELS"), "1");
        assert!(!env.iter().any(|env| env["name"] == "OLLAMA_GPU_OVERHEAD"));
    }

    #[test]
    fn where_the_store_is_served_inside_the_pod_is_not_the_users_to_choose() {
        let pool = pool(&json!({"models": models(), "env": [
            {"name": "OLLAMA_HOST", "value": "0.0.0.0:9"}, {"name": "OLLAMA_MODELS", "value": "/elsewhere"},
            {"name": "HTTPS_PROXY", "value": "http://proxy"}
        ]}));
        let instance = serde_json::to_value(build_pod(&observed(), &pool, 0)).unwrap();
        let puller = serde_json::to_value(build_puller(&observed(), &pool, "place")).unwrap();
        let mut filling: Vec<Value> = Vec::new();
        for containers in [&instance["spec"]["initContainers"], &puller["spec"]["initContainers"]] {
            filling.extend(containers.as_array().unwrap().iter().cloned());
        }
        filling.push(puller["spec"]["containers"][0].clone());
        for container in filling {
            let values = |name: &str| -> Vec<Value> {
                let env = container["env"].as_array().unwrap().iter();
                env.filter(|env| env["name"] == name).map(|env| env["value"].clone()).collect()
            };
            assert_eq!(values("OLLAMA_HOST"), ["127.0.0.1:11435"], "{container}");
            assert_eq!(values("HTTPS_PROXY"), ["http://proxy"], "{container}");
            if container["name"] == "store" {
                assert_eq!(values("OLLAMA_MODELS"), ["/models"]);
            }
        }
    }

    #[test]
    fn models_restart_an_instance_only_where_it_brings_them_itself() {
        let template = |models: Value, store: Value| {
            instance_template(&observed(), &pool(&json!({"models": models, "store": store})), 0)
        };
        let own = json!({"ephemeral": {}});
        let shared = json!({"hostPath": {"path": "/m"}});
        let before = template(json!([{"name": "a"}]), own.clone());
        let after = template(json!([{"name": "b"}]), own);
        assert_eq!(after.differences(Some(before.text())).len(), 1);
        let before = template(json!([{"name": "a"}]), shared.clone());
        let after = template(json!([{"name": "b"}]), shared);
        assert_eq!(after.differences(Some(before.text())), [""; 0]);
    }
}
