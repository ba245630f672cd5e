//! Asks the kubelet who holds what. The kubelet's answer is the only ledger: this plugin keeps none of its own.

use crate::allocations::{Holder, Holdings};
use crate::device::DeviceId;
use crate::proto::pod_resources::pod_resources_lister_client::PodResourcesListerClient;
use crate::proto::pod_resources::{ListPodResourcesRequest, ListPodResourcesResponse};
use std::path::Path;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// How long one answer may take. The kubelet answers from memory.
const TIMEOUT: Duration = Duration::from_secs(1);
/// A node with many pods has a longer list than gRPC's default limit allows.
const LARGEST_ANSWER: usize = 32 << 20;

/// A client of the kubelet's pod resources.
#[derive(Clone, Debug)]
pub struct PodResources {
    client: PodResourcesListerClient<Channel>,
}

impl PodResources {
    /// A client that connects when it is first asked, and again whenever the kubelet was away.
    ///
    /// # Errors
    /// If the path cannot be the address of a socket.
    pub fn new(socket: &Path) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?
            .timeout(TIMEOUT)
            .connect_timeout(TIMEOUT);
        let client =
            PodResourcesListerClient::new(endpoint.connect_lazy()).max_decoding_message_size(LARGEST_ANSWER);
        Ok(Self { client })
    }

    /// Who holds our devices now.
    ///
    /// # Errors
    /// If the kubelet doesn't answer.
    pub async fn list(&mut self) -> Result<Holdings, tonic::Status> {
        self.client.list(ListPodResourcesRequest {}).await.map(|answer| holdings(answer.into_inner()))
    }
}

/// Our devices in the kubelet's answer. What another plugin handed out is not looked at.
fn holdings(answer: ListPodResourcesResponse) -> Holdings {
    let mut holders = Vec::new();
    for pod in answer.pod_resources {
        for container in pod.containers {
            for devices in container.devices {
                for id in &devices.device_ids {
                    let Ok(id) = id.parse::<DeviceId>() else { continue };
                    if id.resource() == devices.resource_name {
                        let holder = Holder {
                            namespace: pod.namespace.clone(),
                            pod: pod.name.clone(),
                            container: container.name.clone(),
                        };
                        holders.push((id, holder));
                    }
                }
            }
        }
    }
    holders.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocations::tests::{holder, unit};
    use crate::proto::pod_resources::{ContainerDevices, ContainerResources, PodResources};

    #[test]
    fn only_our_devices_of_our_resources_are_read() {
        let devices = |resource: &str, ids: &[&str]| ContainerDevices {
            resource_name: resource.into(),
            device_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        };
        let answer = ListPodResourcesResponse {
            pod_resources: vec![PodResources {
                name: "a".into(),
                namespace: "ai".into(),
                containers: vec![ContainerResources {
                    name: "main".into(),
                    devices: vec![
                        devices("principium.ai/gpu-6", &["g6u0", "g6u7", "nonsense"]),
                        devices("principium.ai/gpu", &["g2"]),
                        devices("principium.ai/gpu-5", &["g6u1"]),
                        devices("nvidia.com/gpu", &["g1u0", "GPU-1"]),
                    ],
                }],
            }],
        };
        let ours = || holder("a", "main");
        let expected = Holdings::from_iter([
            (unit(6, 0), ours()),
            (unit(6, 7), ours()),
            (DeviceId::Whole { gpu: 2 }, ours()),
        ]);
        assert_eq!(holdings(answer), expected);
    }
}
