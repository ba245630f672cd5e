//! The last step of every pod: its name, owner and labels, and the GPUs that it was given. What a user's settings may not
//! override is written here.

use crate::observed::Identity;
use crate::placement::Placement;
use crate::pods::{FAILURES_ANNOTATION, GPUS_ANNOTATION, REASON_ANNOTATION};
use crate::resource::Role;
use crate::template::{self, Template};
use k8s_openapi::api::core::v1::{
    Affinity, Container, EnvVar, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod,
    ResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use principium_api::gpu::MIB_PER_UNIT;
use principium_api::gpu_node::Injection;
use principium_api::names::{GENERIC_GPU_RESOURCE, GROUP, LABEL_ORDINAL, LABEL_ROLE, gpu_resource};
use serde_json::json;

/// What a pod is finished with.
pub struct Finish<'a> {
    pub id: &'a Identity,
    pub name: &'a str,
    pub role: Role,
    pub ordinal: u32,
    pub template: &'a Template,
    /// Pods before it that failed one after another.
    pub failures: u32,
    pub placement: Option<&'a Placement>,
    pub injection: Injection,
}

/// Finishes a pod. Its first container gets the GPUs, all others none.
pub fn finish(pod: &mut Pod, with: &Finish<'_>) {
    let meta = &mut pod.metadata;
    meta.name = Some(with.name.to_owned());
    meta.namespace = Some(with.id.key.namespace.clone());
    meta.owner_references = Some(vec![owner(with.id)]);
    let labels = meta.labels.get_or_insert_default();
    labels.extend(with.id.key.labels());
    labels.insert(LABEL_ROLE.to_owned(), with.role.label().to_owned());
    labels.insert(LABEL_ORDINAL.to_owned(), with.ordinal.to_string());
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(template::ANNOTATION.to_owned(), with.template.text().to_owned());
    if with.failures > 0 {
        annotations.insert(FAILURES_ANNOTATION.to_owned(), with.failures.to_string());
    }
    if let Some(placement) = with.placement {
        annotations.insert(GPUS_ANNOTATION.to_owned(), json!(placement.gpus).to_string());
        annotations.insert(REASON_ANNOTATION.to_owned(), placement.reason.clone());
    }
    let Some(spec) = &mut pod.spec else { return };
    if let Some(placement) = with.placement {
        spec.affinity = Some(only_on(&placement.node));
    }
    let mut containers = spec.containers.iter_mut();
    if let Some(container) = containers.next() {
        give_gpus(container, with);
    }
    // The NVIDIA runtime gives all GPUs to a container that says nothing, and those that a user's variable names.
    for container in containers.chain(spec.init_containers.iter_mut().flatten()) {
        set_env(container, "NVIDIA_VISIBLE_DEVICES", "void".to_owned());
        set_env(container, "CUDA_VISIBLE_DEVICES", String::new());
    }
}

/// The owner: deleting the resource deletes the pod, and needs no finalizer.
pub fn owner(id: &Identity) -> OwnerReference {
    OwnerReference {
        api_version: format!("{GROUP}/v1alpha1"),
        kind: id.key.kind.name().to_owned(),
        name: id.key.name.clone(),
        uid: id.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(false),
    }
}

/// Requires a node by its name, and leaves the binding to the scheduler.
pub fn only_on(node: &str) -> Affinity {
    only_on_one_of([node])
}

/// Requires one of several nodes by their names; the scheduler chooses.
pub fn only_on_one_of<'n>(nodes: impl IntoIterator<Item = &'n str>) -> Affinity {
    // A term takes the name of one node; of terms one has to hold.
    let term = |node: &str| {
        let by_name = NodeSelectorRequirement {
            key: "metadata.name".to_owned(),
            operator: "In".to_owned(),
            values: Some(vec![node.to_owned()]),
        };
        NodeSelectorTerm { match_fields: Some(vec![by_name]), ..NodeSelectorTerm::default() }
    };
    Affinity {
        node_affinity: Some(NodeAffinity {
            required_during_scheduling_ignored_during_execution: Some(NodeSelector {
                node_selector_terms: nodes.into_iter().map(term).collect(),
            }),
            ..NodeAffinity::default()
        }),
        ..Affinity::default()
    }
}

fn give_gpus(container: &mut Container, with: &Finish<'_>) {
    let gpus = with.placement.map(|placement| placement.gpus.as_slice()).unwrap_or_default();
    let resources = container.resources.get_or_insert_with(ResourceRequirements::default);
    // What was not granted is not asked for, whatever a resource from before the rule against it says.
    for named in [&mut resources.limits, &mut resources.requests].into_iter().flatten() {
        named.retain(|name, _| !name.starts_with(GENERIC_GPU_RESOURCE));
    }
    for gpu in gpus {
        let amount = Quantity(gpu.units.to_string());
        let name = gpu_resource(gpu.index);
        resources.limits.get_or_insert_default().insert(name.clone(), amount.clone());
        resources.requests.get_or_insert_default().insert(name, amount);
    }
    let uuids = gpus.iter().map(|gpu| gpu.uuid.as_str()).collect::<Vec<_>>().join(",");
    // With CDI the devices come by CDI alone; `void` keeps the NVIDIA runtime from adding any by itself. A pod without a
    // GPU gets `void` too: the runtime's default is all of them.
    let visible = match with.injection {
        Injection::Legacy if !gpus.is_empty() => uuids.clone(),
        Injection::Cdi | Injection::Legacy => "void".to_owned(),
    };
    let list: Vec<_> = gpus
        .iter()
        .map(|gpu| {
            json!({"index": gpu.index, "uuid": gpu.uuid, "memoryMiB": u64::from(gpu.units) * MIB_PER_UNIT})
        })
        .collect();
    set_env(container, "NVIDIA_VISIBLE_DEVICES", visible);
    set_env(container, "CUDA_VISIBLE_DEVICES", uuids);
    set_env(container, "PRINCIPIUM_GPUS", json!(list).to_string());
}

/// Sets a variable, whatever it was before.
fn set_env(container: &mut Container, name: &str, value: String) {
    let env = container.env.get_or_insert_default();
    env.retain(|existing| existing.name != name);
    env.push(EnvVar { name: name.to_owned(), value: Some(value), value_from: None });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{Kind, Order, ResourceKey};
    use k8s_openapi::api::core::v1::PodSpec;
    use principium_api::status::AssignedGpu;

    fn finished(injection: Injection, gpus: Vec<AssignedGpu>) -> serde_json::Value {
        let key =
            ResourceKey { kind: Kind::DataFactory, namespace: "demo".to_owned(), name: "df".to_owned() };
        let id = Identity {
            order: Order::new(0, jiff::Timestamp::UNIX_EPOCH, &key),
            uid: "uid-1".to_owned(),
            generation: Some(1),
            created: jiff::Timestamp::UNIX_EPOCH,
            leaving: false,
            key,
        };
        let tampered = EnvVar {
            name: "CUDA_VISIBLE_DEVICES".to_owned(),
            value: Some("GPU-of-another".to_owned()),
            value_from: None,
        };
        let container = |name: &str| Container {
            name: name.to_owned(),
            env: Some(vec![tampered.clone()]),
            ..Container::default()
        };
        let spec = PodSpec {
            containers: vec![container("worker"), container("side")],
            init_containers: Some(vec![container("store")]),
            ..PodSpec::default()
        };
        let mut pod = Pod { spec: Some(spec), ..Pod::default() };
        let placement = Placement { node: "a".to_owned(), gpus, reason: "named".to_owned() };
        let with = Finish {
            id: &id,
            name: "df-0-1",
            role: Role::Worker,
            ordinal: 0,
            template: &Template::default(),
            failures: 0,
            placement: Some(&placement),
            injection,
        };
        finish(&mut pod, &with);
        serde_json::to_value(&pod).unwrap()
    }

    fn two() -> Vec<AssignedGpu> {
        vec![
            AssignedGpu { index: 6, uuid: "GPU-6".to_owned(), units: 8 },
            AssignedGpu { index: 7, uuid: "GPU-7".to_owned(), units: 5 },
        ]
    }

    #[test]
    fn a_pod_asks_for_exactly_its_gpus_on_exactly_its_node() {
        let pod = finished(Injection::Cdi, two());
        let container = &pod["spec"]["containers"][0];
        let units = json!({"principium.ai/gpu-6": "8", "principium.ai/gpu-7": "5"});
        assert_eq!(container["resources"], json!({"limits": units, "requests": units}));
        assert_eq!(
            container["env"],
            json!([
                {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"},
                {"name": "CUDA_VISIBLE_DEVICES", "value": "GPU-6,GPU-7"},
                {"name": "PRINCIPIUM_GPUS", "value":
                    r#"[{"index":6,"memoryMiB":8192,"uuid":"GPU-6"},{"index":7,"memoryMiB":5120,"uuid":"GPU-7"}]"#},
            ]),
            "the user's CUDA_VISIBLE_DEVICES does not survive"
        );
        let terms =
            &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        assert_eq!(
            terms["nodeSelectorTerms"],
            json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}])
        );
        let owner = &pod["metadata"]["ownerReferences"][0];
        assert_eq!((&owner["kind"], &owner["controller"]), (&json!("DataFactory"), &json!(true)));
        assert_eq!(owner["blockOwnerDeletion"], json!(false));
    }

    #[test]
    fn of_several_nodes_each_has_a_term_of_its_own() {
        let affinity = serde_json::to_value(only_on_one_of(["b", "a"])).unwrap();
        let term = |node: &str| {
            let field = json!({"key": "metadata.name", "operator": "In", "values": [node]});
            json!({"matchFields": [field]})
        };
        assert_eq!(
            affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"],
            json!({"nodeSelectorTerms": [term("b"), term("a")]}),
            "the API takes one name in each"
        );
    }

    #[test]
    fn containers_beside_the_first_see_no_gpu_whatever_the_user_says() {
        for injection in [Injection::Cdi, Injection::Legacy] {
            let spec = &finished(injection, two())["spec"];
            for container in [&spec["containers"][1], &spec["initContainers"][0]] {
                assert_eq!(
                    container["env"],
                    json!([
                        {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"},
                        {"name": "CUDA_VISIBLE_DEVICES", "value": ""},
                    ])
                );
                assert!(container["resources"].is_null(), "{container}");
            }
        }
    }

    #[test]
    fn in_legacy_mode_the_runtime_is_told_the_uuids() {
        let pod = finished(Injection::Legacy, two());
        assert_eq!(pod["spec"]["containers"][0]["env"][0]["value"], "GPU-6,GPU-7");
    }

    #[test]
    fn a_pod_without_gpus_sees_none_in_either_mode() {
        for injection in [Injection::Cdi, Injection::Legacy] {
            let env = &finished(injection, Vec::new())["spec"]["containers"][0]["env"];
            assert_eq!(env[0]["value"], "void");
            assert_eq!(env[1]["value"], "");
        }
    }
}
