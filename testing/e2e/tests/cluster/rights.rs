//! What the operator may do and what its pods need: no more than the work asks for, with rights in one namespace where it is
//! to work in one, and nothing that the Pod Security level `restricted` refuses.

use crate::pods::{data_factory, image, reranker};
use crate::pools::MODEL;
use anyhow::{Context, Result};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::{Namespace, PersistentVolumeClaim, Pod};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use principium_api::status::condition::READY;
use principium_api::{DataFactory, OllamaPool, Reranker};
use principium_e2e::world::remove_namespace;
use principium_e2e::{Release, World, run};
use principium_local_cluster::NAMESPACE;
use serde_json::json;
use std::time::Duration;

const OTHER: &str = "e2e-rights-other";

#[test]
fn an_operator_of_one_namespace_works_there_and_has_no_rights_elsewhere() -> Result<()> {
    run("one-namespace", |world| async move {
        let watch = format!("operator.watchNamespace={}", world.namespace);
        let client = world.client.clone();
        let outcome = Release::existing()?.with(&[&watch], one_namespace(world)).await;
        remove_namespace(&client, OTHER).await?;
        outcome
    })
}

async fn one_namespace(world: World) -> Result<()> {
    let other = World { namespace: OTHER.to_owned(), ..world.clone() };
    let made: Namespace = serde_json::from_value(json!({"metadata": {"name": OTHER}}))?;
    Api::<Namespace>::all(world.client.clone()).create(&PostParams::default(), &made).await?;
    other.apply::<Reranker>(&reranker("elsewhere", "{memory: 2Gi}")).await?;
    world.apply::<Reranker>(&reranker("here", "{memory: 2Gi}")).await?;
    world.ready::<Reranker>("here").await?;
    let untouched = other.api::<Reranker>().get("elsewhere").await?;
    assert!(
        untouched.status.is_none() && other.pods_of("elsewhere").await?.is_empty(),
        "it is not looked after"
    );

    for (verb, resource) in
        [("create", "pods"), ("delete", "pods"), ("patch", "services"), ("watch", "rerankers.principium.ai")]
    {
        assert!(may(&world, verb, resource, &world.namespace).await?, "{verb} {resource} where it works");
        for namespace in [OTHER, "kube-system", ""] {
            assert!(!may(&world, verb, resource, namespace).await?, "{verb} {resource} in {namespace:?}");
        }
    }
    refused_everywhere(&world).await
}

#[test]
fn the_operator_may_do_what_its_work_needs_and_no_more() -> Result<()> {
    run("rights", |world| async move {
        for (verb, resource) in [
            ("create", "pods"),
            ("delete", "pods"),
            ("watch", "nodes"),
            ("patch", "rerankers.principium.ai/status"),
            ("patch", "ingestions.principium.ai/status"),
        ] {
            assert!(may(&world, verb, resource, "").await?, "{verb} {resource}");
        }
        refused_everywhere(&world).await
    })
}

/// What nothing in the operator's work needs, in whatever namespace.
async fn refused_everywhere(world: &World) -> Result<()> {
    for (verb, resource) in [
        ("get", "secrets"),
        ("list", "secrets"),
        ("get", "configmaps"),
        ("create", "pods/exec"),
        ("get", "pods/log"),
        ("update", "pods"),
        ("patch", "nodes"),
        ("create", "serviceaccounts/token"),
        ("patch", "rerankers.principium.ai"),
        ("update", "ollamapools.principium.ai"),
        ("delete", "datafactories.principium.ai"),
        ("update", "ingestions.principium.ai"),
        ("patch", "gpunodes.principium.ai/status"),
        ("create", "roles.rbac.authorization.k8s.io"),
        ("impersonate", "users"),
    ] {
        for namespace in [&world.namespace, NAMESPACE, ""] {
            assert!(!may(world, verb, resource, namespace).await?, "{verb} {resource} in {namespace:?}");
        }
    }
    Ok(())
}

/// Whether the operator's service account may do this; no namespace: in all of them.
async fn may(world: &World, verb: &str, resource: &str, namespace: &str) -> Result<bool> {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
    let attributes = ResourceAttributes {
        group: Some(group.to_owned()),
        resource: Some(resource.to_owned()),
        subresource: Some(subresource.to_owned()),
        verb: Some(verb.to_owned()),
        namespace: Some(namespace.to_owned()),
        ..ResourceAttributes::default()
    };
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(format!("system:serviceaccount:{NAMESPACE}:principium-operator")),
            groups: Some(vec!["system:serviceaccounts".into(), "system:authenticated".into()]),
            resource_attributes: Some(attributes),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let reviews = Api::<SubjectAccessReview>::all(world.client.clone());
    let answer = reviews.create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

#[test]
fn pods_of_the_operator_and_of_all_resources_are_restricted() -> Result<()> {
    run("restricted", |world| async move {
        let enforced = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
        Api::<Namespace>::all(world.client.clone())
            .patch(&world.namespace, &PatchParams::default(), &Patch::Merge(enforced))
            .await?;
        let factory = data_factory("factory", "{devices: [{index: 6}]}")
            + "  enrichment: {ollamaPoolRef: {name: pool}, model: tiny}\n  docAnalyzer: {}\n";
        world.apply::<DataFactory>(&factory).await?;
        world.apply::<Reranker>(&reranker("ranker", "{devices: [{index: 7}]}")).await?;
        let pool = "{apiVersion: principium.ai/v1alpha1, kind: OllamaPool, metadata: {name: pool}, spec: {gpu: {devices: [{index: 0}]}}}";
        world.apply::<OllamaPool>(pool).await?;
        world.ready::<DataFactory>("factory").await?;
        world.ready::<Reranker>("ranker").await?;
        world.ready::<OllamaPool>("pool").await?;
        assert_eq!(world.pods_of("factory").await?.len(), 2, "the worker and the analyzer");
        pods_that_bring_models_are_let_in(&world).await?;

        assert_eq!(admitted(&world, "operator").await?, Ok(()));
        // The one part that needs the node's folders, which also shows that something is enforced here.
        let refused = admitted(&world, "device-plugin").await?.expect_err("host paths are not restricted");
        assert!(refused.contains("restricted") && refused.contains("hostPath"), "{refused}");

        // A pool that asks for what needs more is told so.
        let pool = "{apiVersion: principium.ai/v1alpha1, kind: OllamaPool, metadata: {name: open}, spec: {gpu: {devices: [{index: 1}]}, hostPorts: {start: 21434}}}";
        world.apply::<OllamaPool>(pool).await?;
        let message = world.reason::<OllamaPool>("open", READY, "ApplyFailed").await?;
        assert!(
            message.starts_with("could not create Pod open-0-1: pods \"open-0-1\" is forbidden"),
            "{message}"
        );
        assert!(message.contains("hostPort") && !message.contains("Status {"), "{message}");
        // It is tried again under its name, and so ever slower: with a new one there would be a new message each time.
        let same =
            || async { Ok(world.reason::<OllamaPool>("open", READY, "ApplyFailed").await? == message) };
        world.stays("the one pod that is refused", Duration::from_secs(5), same).await
    })
}

/// Pools whose models come out of an image and, where the store is a claim, by a puller.
async fn pods_that_bring_models_are_let_in(world: &World) -> Result<()> {
    let own = format!(
        "{{name: own, modelfile: {{image: {{reference: '{}'}}}}}}",
        image("principium-model-smollm2-135m")
    );
    let pool = |name: &str, gpu: u32, more: &str| {
        format!(
            "{{apiVersion: principium.ai/v1alpha1, kind: OllamaPool, metadata: {{name: {name}}}, \
             spec: {{gpu: {{devices: [{{index: {gpu}}}]}}, {more}}}}}"
        )
    };
    world.apply::<OllamaPool>(&pool("alone", 2, &format!("models: [{own}]"))).await?;
    // It has no volume, so that nothing is pulled: that the puller is let in is all that is looked at.
    let claim = "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: models}, spec: {accessModes: [ReadWriteOnce], \
                 storageClassName: '', resources: {requests: {storage: 1Gi}}}}";
    world.apply::<PersistentVolumeClaim>(claim).await?;
    let store = "store: {persistentVolumeClaim: {claimName: models}}";
    world
        .apply::<OllamaPool>(&pool("shared", 3, &format!("models: [{{name: '{MODEL}'}}, {own}], {store}")))
        .await?;
    for (name, containers) in
        [("alone", ["store", "model-0", "ollama"]), ("shared", ["store", "model-0", "model-1"])]
    {
        let made = || async { Ok(world.pods_of(name).await?.pop()) };
        let pod = world.eventually(&format!("a pod of the pool {name} is let in"), made).await?;
        let spec = pod.spec.context("a pod without a spec")?;
        let all = spec.init_containers.iter().flatten().chain(&spec.containers);
        assert_eq!(all.map(|container| container.name.as_str()).collect::<Vec<_>>(), containers);
        let mut volumes = spec.volumes.iter().flatten();
        assert!(volumes.any(|volume| volume.image.is_some()), "the model's image of {name}");
    }
    let events = world.api::<Event>().list(&ListParams::default()).await?;
    let refused = events.iter().find(|event| event.reason.as_deref() == Some("ApplyFailed"));
    assert!(refused.is_none(), "{refused:?}");
    Ok(())
}

/// Whether a copy of a part's pod would be let into the test's namespace.
async fn admitted(world: &World, component: &str) -> Result<Result<(), String>> {
    let ours = Api::<Pod>::namespaced(world.client.clone(), NAMESPACE);
    let labels = ListParams::default().labels(&format!("app.kubernetes.io/component={component}"));
    let mut pod = ours.list(&labels).await?.items.pop().with_context(|| format!("no pod of {component}"))?;
    pod.metadata = kube::core::ObjectMeta { name: Some("copy".into()), ..Default::default() };
    pod.status = None;
    if let Some(spec) = &mut pod.spec {
        spec.node_name = None;
        // Not there in this namespace, and not what is looked at.
        spec.service_account_name = None;
        spec.service_account = None;
    }
    let params = PostParams { dry_run: true, ..PostParams::default() };
    let made = world.api::<Pod>().create(&params, &pod).await;
    Ok(made.map(drop).map_err(|error| error.to_string()))
}
