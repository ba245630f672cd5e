//! A Lease that shows that this node's plugin lives. Who reads `GPUNode` looks at it too: a status that nobody keeps up
//! to date places no pod.

use crate::gpu_node::FIELD_MANAGER;
use crate::http::Vitals;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
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
    let leases: Api<Lease> = Api::namespaced(client, &namespace);
    let name = name(&node_name);
    let mut tick = tokio::time::interval(RENEWAL);
    loop {
        tick.tick().await;
        if !vitals.alive() {
            continue;
        }
        let lease = Lease {
            metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
            spec: Some(LeaseSpec {
                holder_identity: Some(node_name.clone()),
                lease_duration_seconds: Some(DURATION),
                renew_time: Some(MicroTime(Timestamp::now())),
                ..LeaseSpec::default()
            }),
        };
        let params = PatchParams::apply(FIELD_MANAGER).force();
        if let Err(error) = leases.patch(&name, &params, &Patch::Apply(&lease)).await {
            tracing::warn!(lease = name, namespace, %error, "cannot renew the Lease");
        }
    }
}
