//! The device plugin API for one resource. Answers come from memory: the kubelet waits for them with all its pods.

use crate::allocations::Recent;
use crate::clock::Clock;
use crate::device::DeviceId;
use crate::injection::{Injectable, Injector};
use crate::metrics::Metrics;
use crate::offers::{Offer, Offers};
use crate::preferred::{self, Merit};
use crate::proto::device_plugin::device_plugin_server::DevicePlugin;
use crate::proto::device_plugin::{
    AllocateRequest, AllocateResponse, ContainerPreferredAllocationResponse, Device, DevicePluginOptions,
    Empty, HEALTHY, ListAndWatchResponse, NumaNode, PreStartContainerRequest, PreStartContainerResponse,
    PreferredAllocationRequest, PreferredAllocationResponse, TopologyInfo, UNHEALTHY,
};
use futures::stream::{self, BoxStream, StreamExt};
use principium_api::names::GENERIC_GPU_RESOURCE;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// What the servers answer from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Every device and whether it may be handed out.
    pub offers: Offers,
    /// How each GPU is injected.
    pub gpus: BTreeMap<u32, Injectable>,
    /// What speaks for each GPU.
    pub merits: BTreeMap<u32, Merit>,
}

/// What all resources' servers share.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The newest snapshot.
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    /// Where allocations are recorded.
    pub recent: Arc<Recent>,
    /// How devices get into containers.
    pub injector: Injector,
    /// The clock that allocations are recorded by.
    pub clock: Clock,
    /// Where calls are counted.
    pub metrics: Arc<Metrics>,
}

/// Serves one resource until it is told to stop.
#[derive(Clone, Debug)]
pub struct ResourceServer {
    resource: Arc<str>,
    shared: Shared,
    stop: CancellationToken,
}

impl ResourceServer {
    /// A server for `resource`. When `stop` is cancelled, its streams end.
    #[must_use]
    pub fn new(resource: &str, shared: Shared, stop: CancellationToken) -> Self {
        Self { resource: resource.into(), shared, stop }
    }

    /// Options of this resource: only where GPUs are alike is there a choice to prefer.
    #[must_use]
    pub fn options(resource: &str) -> DevicePluginOptions {
        DevicePluginOptions {
            pre_start_required: false,
            get_preferred_allocation_available: resource == GENERIC_GPU_RESOURCE,
        }
    }

    fn devices(&self, ids: &[String]) -> Result<Vec<DeviceId>, Status> {
        ids.iter()
            .map(|id| {
                id.parse::<DeviceId>().ok().filter(|device| device.resource() == *self.resource).ok_or_else(
                    || Status::invalid_argument(format!("{id:?} is no device of {}", self.resource)),
                )
            })
            .collect()
    }
}

#[tonic::async_trait]
impl DevicePlugin for ResourceServer {
    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(Self::options(&self.resource)))
    }

    type ListAndWatchStream = BoxStream<'static, Result<ListAndWatchResponse, Status>>;

    /// Sends the devices now and after every change. The kubelet writes to disk for each message, so equal ones are
    /// left out; the monitor's pace bounds how often there is another.
    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let resource = Arc::clone(&self.resource);
        let start = (self.shared.snapshot.clone(), None::<Vec<Offer>>);
        let changes = stream::unfold(start, move |(mut snapshot, sent)| {
            let resource = Arc::clone(&resource);
            async move {
                let offers =
                    |snapshot: &Arc<Snapshot>| snapshot.offers.get(&*resource).cloned().unwrap_or_default();
                let changed = |snapshot: &Arc<Snapshot>| sent.as_ref() != Some(&offers(snapshot));
                let now = offers(&*snapshot.wait_for(changed).await.ok()?);
                let message = ListAndWatchResponse { devices: now.iter().map(device).collect() };
                Some((Ok(message), (snapshot, Some(now))))
            }
        });
        let stop = self.stop.clone();
        Ok(Response::new(changes.take_until(stop.cancelled_owned()).boxed()))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let snapshot = self.shared.snapshot.borrow().clone();
        let container_responses = request
            .into_inner()
            .container_requests
            .iter()
            .map(|container| {
                let available = self.devices(&container.available_device_ids)?;
                let must_include = self.devices(&container.must_include_device_ids)?;
                let size = usize::try_from(container.allocation_size).unwrap_or_default();
                let chosen = preferred::choose(&available, &must_include, size, &snapshot.merits);
                let device_ids = chosen.iter().map(ToString::to_string).collect();
                Ok(ContainerPreferredAllocationResponse { device_ids })
            })
            .collect::<Result<_, Status>>()?;
        Ok(Response::new(PreferredAllocationResponse { container_responses }))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        // While this is held, no GPU moves to another view.
        let mut pending = self.shared.recent.lock();
        let snapshot = self.shared.snapshot.borrow().clone();
        let mut all = Vec::new();
        let mut container_responses = Vec::new();
        for container in &request.get_ref().container_requests {
            let devices = self.devices(&container.device_ids)?;
            let response = self
                .shared
                .injector
                .inject(&devices, &snapshot.gpus)
                .map_err(|error| Status::failed_precondition(error.to_string()))?;
            container_responses.push(response);
            let uuid = |device: &DeviceId| snapshot.gpus.get(&device.gpu()).map(|gpu| gpu.uuid.clone());
            all.extend(devices.iter().filter_map(|device| Some((*device, uuid(device)?))));
        }
        tracing::info!(resource = &*self.resource, devices = all.len(), "allocated");
        self.shared.metrics.allocated(&self.resource);
        pending.record(all, self.shared.clock.now());
        Ok(Response::new(AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        _: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Ok(Response::new(PreStartContainerResponse {}))
    }
}

fn device(offer: &Offer) -> Device {
    Device {
        id: offer.id.to_string(),
        health: if offer.healthy { HEALTHY } else { UNHEALTHY }.to_owned(),
        topology: offer.numa_node.map(|node| TopologyInfo { nodes: vec![NumaNode { id: i64::from(node) }] }),
    }
}
