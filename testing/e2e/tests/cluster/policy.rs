//! What a device plugin may write, with the rights of a real one: its own node's things only.

use anyhow::{Context, Result};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, Config, ResourceExt};
use principium_api::GPUNode;
use principium_e2e::{World, run};
use principium_local_cluster::NAMESPACE;
use serde_json::{Value, json};

const OTHER: &str = "e2e-other-node";

#[test]
fn a_node_is_labelled_with_its_gpus_and_a_plugin_may_write_nothing_else() -> Result<()> {
    run("policy", |world| async move {
        let name = world.gpu_node().await?.name_any();
        let nodes = Api::<Node>::all(world.client.clone());
        let labels = nodes.get(&name).await?.metadata.labels.unwrap_or_default();
        let label = |name: &str| labels.get(&format!("principium.ai/{name}")).map(String::as_str);
        assert_eq!(label("gpu-count"), Some("8"), "{labels:?}");
        assert_eq!(label("gpu-product"), Some("NVIDIA-GeForce-RTX-3060-Ti"), "{labels:?}");
        assert_eq!(label("gpu-memory"), Some("8192"), "{labels:?}");

        let plugin = plugin(&world).await?;
        let theirs = Api::<Node>::all(plugin.clone());
        let of_node = |fields: Value| async {
            let result = theirs.patch(&name, &PatchParams::default(), &Patch::Merge(fields)).await;
            result.map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(of_node(json!({"metadata": {"labels": {"principium.ai/e2e": "1"}}})).await, Ok(()));
        assert_eq!(of_node(json!({"metadata": {"labels": {"principium.ai/e2e": null}}})).await, Ok(()));
        for (fields, says) in [
            (json!({"metadata": {"labels": {"trusted": "yes"}}}), "labels that begin with principium.ai/"),
            (json!({"metadata": {"labels": {"kubernetes.io/os": null}}}), "labels that begin with"),
            (json!({"metadata": {"annotations": {"a": "b"}}}), "nothing of its node but labels"),
            (json!({"spec": {"unschedulable": true}}), "nothing of its node but labels"),
        ] {
            let refused = of_node(fields.clone()).await.expect_err(&fields.to_string());
            assert!(refused.contains(says), "{fields}: {refused}");
        }

        let other: Node = serde_json::from_value(json!({"metadata": {"name": OTHER}}))?;
        nodes.create(&PostParams::default(), &other).await.context("making a second node")?;
        let label = json!({"metadata": {"labels": {"principium.ai/gpu-count": "9"}}});
        let refused = theirs.patch(OTHER, &PatchParams::default(), &Patch::Merge(label)).await;
        nodes.delete(OTHER, &DeleteParams::default()).await?;
        let refused = refused.expect_err("another node's labels").to_string();
        assert!(refused.contains("only its own node"), "{refused}");

        let lie = GPUNode::new(OTHER, principium_api::gpu_node::GpuNodeSpec::default());
        let made =
            Api::<GPUNode>::all(plugin).patch(OTHER, &PatchParams::apply("e2e"), &Patch::Apply(&lie)).await;
        let refused = made.expect_err("another node's GPUNode").to_string();
        assert!(refused.contains(&format!("may write only gpunodes/{name}")), "{refused}");
        Ok(())
    })
}

/// A client with a token of the running plugin's pod, as the kubelet mounts it.
async fn plugin(world: &World) -> Result<Client> {
    let pods = Api::<Pod>::namespaced(world.client.clone(), NAMESPACE);
    let labels = ListParams::default().labels("app.kubernetes.io/component=device-plugin");
    let pod = pods.list(&labels).await?.items.pop().context("no device plugin runs")?;
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone()).unwrap_or_default();
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: Some(pod.name_any()),
                uid: pod.uid(),
            }),
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let accounts = Api::<ServiceAccount>::namespaced(world.client.clone(), NAMESPACE);
    let made = accounts.create_token_request(&account, &PostParams::default(), &request).await?;
    let token = made.status.and_then(|status| status.token).context("the API server gives no token")?;
    let mut config = Config::infer().await?;
    config.auth_info = kube::config::AuthInfo { token: Some(token.into()), ..Default::default() };
    Ok(Client::try_from(config)?)
}
