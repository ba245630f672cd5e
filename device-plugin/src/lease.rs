//! A Lease that shows that this node's plugin lives. Who reads `GPUNode` looks at it too: a status that nobody keeps up
//! to date places no pod. The Node owns it, so that it goes with the Node.

use crate::gpu_node::{FIELD_MANAGER, owner};
use crate::http::Vitals;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use std::time::Duration;

/// How often the Lease is renewed.
const RENEWAL: Duration = Duration::from_secs(10);
/// How long it holds without a renewal, in seconds.
const DURATION: i32 = 40;

/// Name of the Lease of a node.
#[must_use]
pub fn name(node_name: &str) -> String {
    format!("principium-gpu-{node_name}")
}

/// Renews the Lease for as long as the monitor comes round.
pub async fn run(client: Client, namespace: String, node_name: String, vitals: Vitals) {
    let leases: Api<Lease> = Api::namespaced(client.clone(), &namespace);
    let nodes: Api<Node> = Api::all(client);
    let name = name(&node_name);
    // UIDs: of the Node, once it is known, and of the Lease as it was renewed last.
    let mut node: Option<String> = None;
    let mut renewed: Option<String> = None;
    let mut tick = tokio::time::interval(RENEWAL);
    loop {
        tick.tick().await;
        if !vitals.alive() {
            continue;
        }
        if node.is_none() {
            match nodes.get_metadata_opt(&node_name).await {
                Ok(Some(found)) => node = found.uid(),
                Ok(None) => {
                    // Without an owner it would stay for ever.
                    tracing::warn!(node = node_name, "there is no such Node, so its Lease is not renewed");
                    continue;
                }
                // The sign of life matters more than who owns it.
                Err(error) => {
                    tracing::warn!(node = node_name, %error, "cannot read the Node, which must own the Lease");
                }
            }
        }
        let owners = node.clone().map(|uid| vec![owner(&node_name, uid)]);
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                owner_references: owners,
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(node_name.clone()),
                lease_duration_seconds: Some(DURATION),
                renew_time: Some(MicroTime(Timestamp::now())),
                ..LeaseSpec::default()
            }),
        };
        let params = PatchParams::apply(FIELD_MANAGER).force();
        match leases.patch(&name, &params, &Patch::Apply(&lease)).await {
            Ok(lease) => {
                let before = std::mem::replace(&mut renewed, lease.uid());
                // A Lease that was made anew may have gone with a Node that was made anew too.
                if before.is_some() && before != renewed {
                    node = None;
                }
            }
            Err(error) => tracing::warn!(lease = name, namespace, %error, "cannot renew the Lease"),
        }
    }
}
