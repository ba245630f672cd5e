//! The plugin's servers against a kubelet's registration socket, over real Unix sockets and a real gRPC client.
//!
//! The kubelet here only does what a registration is about: it dials back, asks for the options, and forgets everything
//! when it restarts. The real one is in the end-to-end tests.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use principium_api::gpu_node::GpuView;
use principium_device_plugin::allocations::Recent;
use principium_device_plugin::clock::Clock;
use principium_device_plugin::device::DeviceId;
use principium_device_plugin::health::Extent;
use principium_device_plugin::injection::{Injectable, Injector};
use principium_device_plugin::kubelet::Registrar;
use principium_device_plugin::offers::{OfferedGpu, offers};
use principium_device_plugin::preferred::Merit;
use principium_device_plugin::proto::device_plugin::device_plugin_client::DevicePluginClient;
use principium_device_plugin::proto::device_plugin::registration_server::{Registration, RegistrationServer};
use principium_device_plugin::proto::device_plugin::{
    AllocateRequest, ContainerAllocateRequest, ContainerPreferredAllocationRequest, Empty,
    ListAndWatchResponse, PreferredAllocationRequest, RegisterRequest,
};
use principium_device_plugin::server::{Shared, Snapshot};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Response, Status, Streaming};

type Client = DevicePluginClient<Channel>;

/// A kubelet that dials back at once, as the real one does.
struct FakeKubelet {
    directory: PathBuf,
    registered: mpsc::UnboundedSender<RegisterRequest>,
}

#[tonic::async_trait]
impl Registration for FakeKubelet {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        let mut client = connect(&self.directory.join(&request.endpoint)).await;
        client.get_device_plugin_options(Empty {}).await?;
        self.registered.send(request).unwrap();
        Ok(Response::new(Empty {}))
    }
}

async fn connect(socket: &Path) -> Client {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
    DevicePluginClient::new(endpoint.connect().await.unwrap())
}

/// Does what a kubelet does when it starts: empties the directory of files, then listens.
fn start_kubelet(directory: &Path) -> (mpsc::UnboundedReceiver<RegisterRequest>, JoinHandle<()>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_dir() {
            std::fs::remove_file(path).unwrap();
        }
    }
    let (registered, registrations) = mpsc::unbounded_channel();
    let listener = UnixListener::bind(directory.join("kubelet.sock")).unwrap();
    let kubelet = FakeKubelet { directory: directory.to_owned(), registered };
    let task = tokio::spawn(async move {
        let server = Server::builder().add_service(RegistrationServer::new(kubelet));
        server.serve_with_incoming(UnixListenerStream::new(listener)).await.unwrap();
    });
    (registrations, task)
}

fn snapshot(gpus: &[(u32, GpuView, Extent)]) -> Arc<Snapshot> {
    let offered: Vec<_> = gpus
        .iter()
        .map(|(index, view, extent)| OfferedGpu {
            index: *index,
            units: 8,
            view: *view,
            moved: false,
            extent: *extent,
            numa_node: Some(0),
        })
        .collect();
    let injectable = |(index, view, _): &(u32, GpuView, Extent)| {
        let uuid = format!("GPU-{index}");
        (*index, Injectable { uuid, minor: *index, instance: None, view: *view })
    };
    let merit = |gpu| Merit { temperature: Some(50 - gpu), free_mib: 8000, numa_node: Some(0) };
    Arc::new(Snapshot {
        offers: offers(&offered, Some(&BTreeSet::new())),
        gpus: gpus.iter().map(injectable).collect(),
        merits: (0..8).map(|gpu| (gpu, merit(gpu))).collect(),
    })
}

const CALM: [(u32, GpuView, Extent); 2] =
    [(6, GpuView::Exact, Extent::Nothing), (7, GpuView::Exact, Extent::Nothing)];

/// A registrar in a temporary directory.
struct Plugin {
    directory: tempfile::TempDir,
    snapshots: watch::Sender<Arc<Snapshot>>,
    recent: Arc<Recent>,
    registered: watch::Receiver<bool>,
    clock: Clock,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Plugin {
    fn start(first: Arc<Snapshot>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (snapshots, snapshot) = watch::channel(first);
        let recent = Arc::<Recent>::default();
        let clock = Clock::start();
        let shared = Shared {
            snapshot,
            recent: Arc::clone(&recent),
            injector: Injector::cdi(true),
            clock,
            metrics: Arc::default(),
        };
        let (registered_sender, registered) = watch::channel(false);
        let registrar = Registrar::new(directory.path().to_owned(), shared, registered_sender);
        let stop = CancellationToken::new();
        let task = tokio::spawn(registrar.run(stop.clone()));
        Self { directory, snapshots, recent, registered, clock, stop, task }
    }

    async fn client(&self, registration: &RegisterRequest) -> Client {
        connect(&self.directory.path().join(&registration.endpoint)).await
    }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(5), what).await.expect("it takes too long")
}

async fn next(registrations: &mut mpsc::UnboundedReceiver<RegisterRequest>) -> RegisterRequest {
    soon(registrations.recv()).await.unwrap()
}

async fn watch_devices(client: &mut Client) -> Streaming<ListAndWatchResponse> {
    client.list_and_watch(Empty {}).await.unwrap().into_inner()
}

/// IDs of the next message that are healthy.
async fn healthy(stream: &mut Streaming<ListAndWatchResponse>) -> Vec<String> {
    let message = soon(stream.next()).await.unwrap().unwrap();
    message.devices.into_iter().filter(|device| device.health == "Healthy").map(|device| device.id).collect()
}

fn allocate(ids: &[&str]) -> AllocateRequest {
    let device_ids = ids.iter().map(|id| (*id).to_owned()).collect();
    AllocateRequest { container_requests: vec![ContainerAllocateRequest { device_ids }] }
}

#[tokio::test]
async fn each_resource_is_served_before_it_is_registered() {
    let mut plugin = Plugin::start(snapshot(&CALM));
    let (mut registrations, _kubelet) = start_kubelet(plugin.directory.path());
    let [first, second] = [next(&mut registrations).await, next(&mut registrations).await];
    assert_eq!(
        [&*first.resource_name, &*second.resource_name],
        ["principium.ai/gpu-6", "principium.ai/gpu-7"]
    );
    assert_eq!((&*first.version, first.endpoint == second.endpoint), ("v1beta1", false));
    soon(plugin.registered.wait_for(|registered| *registered)).await.unwrap();
    let mut stream = watch_devices(&mut plugin.client(&first).await).await;
    let ids: Vec<_> = (0..8).map(|unit| format!("g6u{unit}")).collect();
    assert_eq!(healthy(&mut stream).await, ids);
}

#[tokio::test]
async fn a_change_is_sent_and_an_equal_state_is_not() {
    let plugin = Plugin::start(snapshot(&CALM));
    let (mut registrations, _kubelet) = start_kubelet(plugin.directory.path());
    let mut client = plugin.client(&next(&mut registrations).await).await;
    let mut stream = watch_devices(&mut client).await;
    assert_eq!(healthy(&mut stream).await.len(), 8);
    // Only the other GPU changes: this stream stays silent.
    plugin.snapshots.send_replace(snapshot(&[CALM[0], (7, GpuView::Exact, Extent::AllFree)]));
    assert!(timeout(Duration::from_millis(200), stream.next()).await.is_err());
    plugin.snapshots.send_replace(snapshot(&[(6, GpuView::Exact, Extent::Units(3)), CALM[1]]));
    assert_eq!(healthy(&mut stream).await, ["g6u0", "g6u1", "g6u2", "g6u3", "g6u4"]);
}

#[tokio::test]
async fn an_allocation_is_answered_with_one_device_a_gpu_and_remembered() {
    let plugin = Plugin::start(snapshot(&CALM));
    let (mut registrations, _kubelet) = start_kubelet(plugin.directory.path());
    let mut client = plugin.client(&next(&mut registrations).await).await;
    let response = client.allocate(allocate(&["g6u0", "g6u3"])).await.unwrap().into_inner();
    let names: Vec<_> =
        response.container_responses[0].cdi_devices.iter().map(|device| &*device.name).collect();
    assert_eq!(names, ["principium.ai/gpu=GPU-6"]);
    let recent = plugin.recent.lock().settle(None, plugin.clock.now());
    assert_eq!(recent, [DeviceId::Unit { gpu: 6, unit: 0 }, DeviceId::Unit { gpu: 6, unit: 3 }].into());
    for foreign in ["g7u0", "g6", "nonsense"] {
        let error = client.allocate(allocate(&["g6u1", foreign])).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{foreign}");
        assert!(error.message().contains(foreign), "{}", error.message());
    }
}

#[tokio::test]
async fn the_generic_pool_prefers_the_coolest() {
    let generic: Vec<_> = (0..4).map(|gpu| (gpu, GpuView::Generic, Extent::Nothing)).collect();
    let plugin = Plugin::start(snapshot(&generic));
    let (mut registrations, _kubelet) = start_kubelet(plugin.directory.path());
    let registration = next(&mut registrations).await;
    assert_eq!(registration.resource_name, "principium.ai/gpu");
    assert!(registration.options.unwrap().get_preferred_allocation_available);
    let request = PreferredAllocationRequest {
        container_requests: vec![ContainerPreferredAllocationRequest {
            available_device_ids: ["g0", "g1", "g3"].map(str::to_owned).into(),
            must_include_device_ids: Vec::new(),
            allocation_size: 2,
        }],
    };
    let mut client = plugin.client(&registration).await;
    let response = client.get_preferred_allocation(request).await.unwrap().into_inner();
    assert_eq!(response.container_responses[0].device_ids, ["g3", "g1"]);
}

#[tokio::test]
async fn a_restarted_kubelet_gets_fresh_sockets_after_the_old_streams_ended() {
    let mut plugin = Plugin::start(snapshot(&CALM));
    let (mut registrations, kubelet) = start_kubelet(plugin.directory.path());
    let old = [next(&mut registrations).await, next(&mut registrations).await];
    let mut client = plugin.client(&old[0]).await;
    let mut stream = watch_devices(&mut client).await;
    assert_eq!(healthy(&mut stream).await.len(), 8);
    soon(plugin.registered.wait_for(|registered| *registered)).await.unwrap();

    kubelet.abort();
    let start = std::time::Instant::now();
    let (mut registrations, _kubelet) = start_kubelet(plugin.directory.path());
    let new = [next(&mut registrations).await, next(&mut registrations).await];
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(new.iter().all(|new| old.iter().all(|old| old.endpoint != new.endpoint)), "{old:?} {new:?}");
    let ended = timeout(Duration::from_millis(1), stream.next()).await.expect("the old stream goes on");
    assert!(!matches!(ended, Some(Ok(_))), "{ended:?}");
    soon(plugin.registered.wait_for(|registered| *registered)).await.unwrap();
    let mut stream = watch_devices(&mut plugin.client(&new[1]).await).await;
    assert_eq!(healthy(&mut stream).await.len(), 8);
}

#[tokio::test]
async fn a_new_gpu_is_registered_and_the_others_are_left_alone() {
    let plugin = Plugin::start(snapshot(&CALM[..1]));
    let (mut registrations, _kubelet) = start_kubelet(plugin.directory.path());
    let mut client = plugin.client(&next(&mut registrations).await).await;
    let mut stream = watch_devices(&mut client).await;
    assert_eq!(healthy(&mut stream).await.len(), 8);
    plugin.snapshots.send_replace(snapshot(&CALM));
    assert_eq!(next(&mut registrations).await.resource_name, "principium.ai/gpu-7");
    assert!(timeout(Duration::from_millis(200), stream.next()).await.is_err(), "the stream of GPU 6 goes on");
    assert!(registrations.try_recv().is_err(), "GPU 6 is not registered again");
}

#[tokio::test]
async fn the_end_closes_the_streams_and_leaves_no_socket() {
    let plugin = Plugin::start(snapshot(&CALM));
    let (mut registrations, _kubelet) = start_kubelet(plugin.directory.path());
    let mut client = plugin.client(&next(&mut registrations).await).await;
    let mut stream = watch_devices(&mut client).await;
    assert_eq!(healthy(&mut stream).await.len(), 8);
    next(&mut registrations).await;
    plugin.stop.cancel();
    assert!(!matches!(soon(stream.next()).await, Some(Ok(_))));
    soon(plugin.task).await.unwrap();
    let left: Vec<_> =
        std::fs::read_dir(plugin.directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["kubelet.sock"]);
}

#[tokio::test]
async fn sockets_of_a_run_that_was_killed_are_removed() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("principium-gpu-6-1.sock"), "").unwrap();
    std::fs::write(directory.path().join("nvidia-gpu.sock"), "").unwrap();
    let shared = Shared {
        snapshot: watch::channel(snapshot(&CALM)).1,
        recent: Arc::default(),
        injector: Injector::cdi(true),
        clock: Clock::start(),
        metrics: Arc::default(),
    };
    let stop = CancellationToken::new();
    stop.cancel();
    Registrar::new(directory.path().to_owned(), shared, watch::channel(false).0).run(stop).await;
    let left: Vec<_> =
        std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["nvidia-gpu.sock"]);
}

#[tokio::test]
async fn a_gpu_that_moved_is_given_out_in_its_new_view_only() {
    let plugin = Plugin::start(snapshot(&CALM));
    let (mut registrations, _kubelet) = start_kubelet(plugin.directory.path());
    let mut exact = plugin.client(&next(&mut registrations).await).await;
    next(&mut registrations).await;
    plugin.snapshots.send_replace(snapshot(&[(6, GpuView::Generic, Extent::Nothing), CALM[1]]));
    let mut generic = plugin.client(&next(&mut registrations).await).await;
    let error = exact.allocate(allocate(&["g6u0"])).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("GPU 6") && error.message().contains("generic pool"), "{error}");
    assert!(plugin.recent.lock().settle(None, plugin.clock.now()).is_empty(), "nothing was given");
    generic.allocate(allocate(&["g6"])).await.unwrap();
}
