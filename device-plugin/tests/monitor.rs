//! The monitor between its neighbors: samples go in by hand, the kubelet's list of holders comes from a real socket, and
//! what the servers and the `GPUNode` writer are given is looked at.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use clap::Parser;
use principium_api::gpu_node::{DisagreementKind, Health, WithheldReason};
use principium_device_plugin::agreement::Asked;
use principium_device_plugin::allocations::{Holder, Recent};
use principium_device_plugin::args::Cli;
use principium_device_plugin::clock::Clock;
use principium_device_plugin::config::{Config, File};
use principium_device_plugin::device::{
    DeviceId, GpuProcess, Identity, Observation, Part, Probe, Reading, Sample, Xid,
};
use principium_device_plugin::http::Pulse;
use principium_device_plugin::metrics::Metrics;
use principium_device_plugin::monitor::{Inputs, Monitor, Outputs};
use principium_device_plugin::nvml::Report;
use principium_device_plugin::podresources::PodResources;
use principium_device_plugin::pods::{Pods, Wanted};
use principium_device_plugin::processes::Processes;
use principium_device_plugin::proto::pod_resources::pod_resources_lister_server::{
    PodResourcesLister, PodResourcesListerServer,
};
use principium_device_plugin::proto::pod_resources::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, ContainerDevices, ContainerResources,
    ListPodResourcesRequest, ListPodResourcesResponse, PodResources as PodOfKubelet,
};
use principium_device_plugin::server::Snapshot;
use principium_device_plugin::status::{GpuState, NodeView};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// A kubelet that lists these devices as held by the pod `ai/holder`.
#[derive(Clone, Default)]
struct Holders(Arc<Mutex<Vec<DeviceId>>>);

#[tonic::async_trait]
impl PodResourcesLister for Holders {
    async fn list(
        &self,
        _: Request<ListPodResourcesRequest>,
    ) -> Result<Response<ListPodResourcesResponse>, Status> {
        let held = self.0.lock().unwrap().clone();
        let devices = held
            .iter()
            .map(|id| ContainerDevices { resource_name: id.resource(), device_ids: vec![id.to_string()] });
        let container = ContainerResources { name: "main".into(), devices: devices.collect() };
        let pod = PodOfKubelet { name: "holder".into(), namespace: "ai".into(), containers: vec![container] };
        Ok(Response::new(ListPodResourcesResponse { pod_resources: vec![pod] }))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<AllocatableResourcesRequest>,
    ) -> Result<Response<AllocatableResourcesResponse>, Status> {
        Err(Status::unimplemented("the plugin does not ask for it"))
    }
}

fn serve_holders(directory: &Path) -> Holders {
    let holders = Holders::default();
    std::fs::create_dir_all(directory.join("pod-resources")).unwrap();
    let listener = UnixListener::bind(directory.join("pod-resources/kubelet.sock")).unwrap();
    let server = Server::builder().add_service(PodResourcesListerServer::new(holders.clone()));
    tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
    holders
}

/// A monitor with two GPUs.
struct Bench {
    reports: mpsc::Sender<Report>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    views: watch::Receiver<Option<NodeView>>,
    pulse: watch::Receiver<Pulse>,
    recent: Arc<Recent>,
    clock: Clock,
    stop: CancellationToken,
    wanted: watch::Receiver<Wanted>,
    pods: watch::Sender<Pods>,
}

impl Bench {
    fn start(directory: &Path) -> Self {
        Self::start_with(directory, &[])
    }

    fn start_with(directory: &Path, more: &[&str]) -> Self {
        let kubelet_dir = directory.to_str().unwrap();
        let cdi_dir = directory.join("cdi");
        let flags = ["plugin", "--node-name=n", "--simulated", "--dwell=0s", "--interval=100ms"];
        let paths = ["--kubelet-dir", kubelet_dir, "--cdi-dir", cdi_dir.to_str().unwrap()];
        let cli = Cli::try_parse_from(flags.into_iter().chain(paths).chain(more.iter().copied())).unwrap();
        let config = Config::new(cli.options, File::default()).unwrap();
        let (reports, received) = mpsc::channel(1);
        let (snapshot, snapshots) = watch::channel(Arc::default());
        let (view, views) = watch::channel(None);
        let (wanted_pods, wanted) = watch::channel(Wanted::default());
        let (pods, pods_read) = watch::channel(Pods::default());
        let (pulse_sender, pulse) = watch::channel(Pulse { at: Instant::now(), message: None });
        let recent = Arc::<Recent>::default();
        let clock = Clock::start();
        let inputs = Inputs {
            reports: received,
            pod_resources: PodResources::new(&config.pod_resources_socket).unwrap(),
            recent: Arc::clone(&recent),
            pods: pods_read,
            processes: Processes::new(true),
        };
        let metrics = Arc::<Metrics>::default();
        let outputs = Outputs { snapshot, view, wanted_pods, pulse: pulse_sender, metrics };
        let stop = CancellationToken::new();
        let monitor = Monitor::new(config, clock, "boot", inputs, outputs);
        tokio::spawn(monitor.run(stop.clone()));
        Self { reports, snapshots, views, pulse, recent, clock, stop, wanted, pods }
    }

    /// Sends a sample and waits until the monitor has taken it in.
    async fn sample(&mut self, gpus: [Probe; 2], xids: Vec<Xid>) {
        let gpus =
            (0..).zip(gpus).map(|(index, probe)| Observation { identity: identity(index), probe }).collect();
        self.report(Report::Sample(Sample { gpus, xids, ..Sample::begin(1) })).await;
    }

    async fn report(&mut self, report: Report) {
        self.views.mark_unchanged();
        self.reports.send(report).await.unwrap();
        soon(self.views.changed()).await.unwrap();
    }

    fn healthy(&self, gpu: u32) -> Vec<u32> {
        let snapshot = self.snapshots.borrow();
        let offers = &snapshot.offers[&format!("principium.ai/gpu-{gpu}")];
        assert_eq!(offers.len(), 8, "no id leaves the list");
        let unit = |id| match id {
            DeviceId::Unit { unit, .. } => unit,
            DeviceId::Whole { .. } => unreachable!("all GPUs are exact"),
        };
        offers.iter().filter(|offer| offer.healthy).map(|offer| unit(offer.id)).collect()
    }

    fn gpu(&self, index: usize) -> GpuState {
        self.views.borrow().as_ref().unwrap().gpus[index].clone()
    }

    fn reason(&self, index: usize) -> Option<WithheldReason> {
        self.gpu(index).verdict.withheld.map(|withheld| withheld.reason)
    }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(5), what).await.expect("it takes too long")
}

fn identity(index: u32) -> Identity {
    Identity {
        uuid: format!("GPU-{index}"),
        pci_address: format!("00000000:{index:02X}:00.0"),
        memory_total_mib: 8192,
        ..Identity::default()
    }
}

fn warm(temperature: u32) -> Probe {
    Probe::Answer(Reading {
        temperature: Some(temperature),
        needs_recovery: Some(false),
        ..Reading::default()
    })
}

fn unit(gpu: u32, unit: u32) -> DeviceId {
    DeviceId::Unit { gpu, unit }
}

const ALL: [u32; 8] = [0, 1, 2, 3, 4, 5, 6, 7];

#[tokio::test]
async fn a_hot_gpu_keeps_what_is_in_use_and_withholds_the_rest_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let holders = serve_holders(directory.path());
    holders.0.lock().unwrap().extend([unit(1, 2), unit(1, 3)]);
    let mut bench = Bench::start(directory.path());
    bench.sample([warm(50), warm(50)], vec![]).await;
    assert_eq!((bench.healthy(0), bench.healthy(1)), (ALL.to_vec(), ALL.to_vec()));

    bench.sample([warm(50), warm(92)], vec![]).await;
    assert_eq!((bench.healthy(0), bench.healthy(1)), (ALL.to_vec(), vec![2, 3]));
    let gpu = bench.gpu(1);
    assert_eq!((gpu.free_units, gpu.withheld_units, gpu.allocations[0].units), (0, 6, 2));
    assert_eq!((bench.reason(1), gpu.verdict.health), (Some(WithheldReason::Overheated), Health::Healthy));

    // The pod ends while the GPU is hot: its units are withheld too.
    holders.0.lock().unwrap().clear();
    bench.sample([warm(50), warm(80)], vec![]).await;
    assert_eq!(bench.healthy(1), [] as [u32; 0]);
    let gpu = bench.gpu(1);
    let told = (gpu.free_units, gpu.withheld_units, gpu.allocations.len());
    assert_eq!(told, (0, 6, 1), "its memory was last measured while the pod ran");

    bench.sample([warm(50), warm(60)], vec![]).await;
    assert_eq!(
        (bench.healthy(1), bench.gpu(1).free_units, bench.gpu(1).allocations),
        (ALL.to_vec(), 8, vec![])
    );
}

#[tokio::test]
async fn nothing_is_withheld_before_the_kubelet_said_what_is_in_use() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(directory.path());
    bench.sample([warm(50), warm(92)], vec![]).await;
    assert_eq!(bench.healthy(1), ALL);
    assert_eq!(bench.reason(1), Some(WithheldReason::Overheated), "and yet it is told");
    serve_holders(directory.path());
    // A client that failed to connect waits a moment before it tries again.
    let start = Instant::now();
    while !bench.healthy(1).is_empty() {
        bench.sample([warm(50), warm(92)], vec![]).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(start.elapsed() < Duration::from_secs(5), "the kubelet's answer is not taken in");
    }
}

#[tokio::test]
async fn a_fresh_allocation_counts_before_the_kubelet_lists_it() {
    let directory = tempfile::tempdir().unwrap();
    serve_holders(directory.path());
    let mut bench = Bench::start(directory.path());
    bench.sample([warm(50), warm(50)], vec![]).await;
    bench.views.mark_unchanged();
    bench.recent.lock().record([(unit(1, 0), "GPU-1".to_owned())], bench.clock.now());
    soon(bench.views.changed()).await.unwrap();
    bench.sample([warm(50), warm(92)], vec![]).await;
    assert_eq!(bench.healthy(1), [0]);
}

#[tokio::test]
async fn a_lost_gpu_and_an_xid_touch_only_their_own_gpu() {
    let directory = tempfile::tempdir().unwrap();
    serve_holders(directory.path());
    let mut bench = Bench::start(directory.path());
    bench.sample([warm(50), Probe::Lost], vec![]).await;
    assert_eq!((bench.healthy(0), bench.healthy(1)), (ALL.to_vec(), vec![]));
    assert_eq!(bench.gpu(1).verdict.health, Health::Lost);

    let xid = |code| vec![Xid { uuid: Some("GPU-0".into()), gpu_instance: None, code }];
    bench.sample([warm(50), Probe::Lost], xid(31)).await;
    assert_eq!(bench.reason(0), None, "an application's own mistake");
    bench.sample([warm(50), Probe::Lost], xid(79)).await;
    assert_eq!((bench.reason(0), bench.healthy(0)), (Some(WithheldReason::Xid), vec![]));
}

#[tokio::test]
async fn a_restarted_plugin_remembers_indices_and_what_it_withheld() {
    let directory = tempfile::tempdir().unwrap();
    serve_holders(directory.path());
    let mut bench = Bench::start(directory.path());
    bench.sample([warm(92), Probe::Lost], vec![]).await;
    bench.stop.cancel();

    let mut bench = Bench::start(directory.path());
    // Only one card answers, and it is between the two limits.
    let only = Observation { identity: identity(0), probe: warm(80) };
    bench.report(Report::Sample(Sample { gpus: vec![only], ..Sample::begin(1) })).await;
    assert_eq!(
        (bench.reason(0), bench.reason(1)),
        (Some(WithheldReason::Overheated), Some(WithheldReason::Lost))
    );
    assert_eq!(bench.gpu(1).identity.uuid, "GPU-1");
}

#[tokio::test]
async fn a_driver_that_is_gone_is_told_and_withholds_after_some_seconds() {
    let directory = tempfile::tempdir().unwrap();
    serve_holders(directory.path());
    let mut bench = Bench::start(directory.path());
    bench.sample([warm(50), warm(50)], vec![]).await;
    bench.report(Report::Unavailable("no driver".into())).await;
    assert_eq!(bench.views.borrow().as_ref().unwrap().message.as_deref(), Some("no driver"));
    assert_eq!(bench.healthy(0), ALL);
    soon(
        bench
            .snapshots
            .wait_for(|snapshot| snapshot.offers["principium.ai/gpu-0"].iter().all(|offer| !offer.healthy)),
    )
    .await
    .unwrap();
    assert_eq!(bench.reason(0), Some(WithheldReason::Unreadable));
    assert_eq!(bench.pulse.borrow().message.as_deref(), Some("no driver"));
}

#[tokio::test]
async fn memory_of_foreign_processes_withholds_as_many_units() {
    let directory = tempfile::tempdir().unwrap();
    serve_holders(directory.path());
    let mut bench = Bench::start(directory.path());
    let processes = vec![GpuProcess { pid: 4_000_000_000, gpu_instance: None, used_mib: 2500 }];
    let used = Probe::Answer(Reading { processes, needs_recovery: Some(false), ..Reading::default() });
    let start = Instant::now();
    while bench.views.borrow().is_none() || bench.healthy(0).len() == 8 {
        bench.sample([used.clone(), warm(50)], vec![]).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(start.elapsed() < Duration::from_secs(5), "the process is not noticed");
    }
    assert_eq!((bench.healthy(0), bench.healthy(1)), (vec![0, 1, 2, 3, 4], ALL.to_vec()));
    assert_eq!(bench.gpu(0).foreign[0].used, 2500);
    bench.sample([warm(50), warm(50)], vec![]).await;
    assert_eq!(bench.healthy(0), ALL);
}

#[tokio::test]
async fn the_cdi_specification_names_every_gpu_also_a_lost_one() {
    let directory = tempfile::tempdir().unwrap();
    serve_holders(directory.path());
    let mut bench = Bench::start(directory.path());
    bench.sample([warm(50), warm(50)], vec![]).await;
    bench.sample([warm(50), Probe::Lost], vec![]).await;
    let text = std::fs::read_to_string(directory.path().join("cdi/principium.ai-gpu.json")).unwrap();
    assert!(text.contains("GPU-0") && text.contains("GPU-1"), "{text}");
}

/// Healthy devices of a resource, and all that the kubelet is told of it.
fn devices(bench: &Bench, resource: &str) -> (usize, usize) {
    let snapshot = bench.snapshots.borrow();
    let offers = snapshot.offers.get(resource).cloned().unwrap_or_default();
    (offers.iter().filter(|offer| offer.healthy).count(), offers.len())
}

/// Sends samples until it is so.
async fn until(bench: &mut Bench, what: &str, patience: Duration, is_so: impl Fn(&Bench) -> bool) {
    let start = Instant::now();
    loop {
        bench.sample([warm(50), warm(50)], vec![]).await;
        if is_so(bench) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(start.elapsed() < patience, "never: {what}");
    }
}

#[tokio::test]
async fn a_gpu_moves_to_the_generic_pool_once_nobody_holds_it_and_back_after_a_restart() {
    let (exact, generic) = ("principium.ai/gpu-1", "principium.ai/gpu");
    let directory = tempfile::tempdir().unwrap();
    let holders = serve_holders(directory.path());
    let mut bench = Bench::start(directory.path());
    bench.sample([warm(50), warm(50)], vec![]).await;
    assert_eq!((devices(&bench, exact), devices(&bench, generic)), ((8, 8), (0, 0)));
    bench.stop.cancel();

    holders.0.lock().unwrap().push(unit(1, 2));
    let mut bench = Bench::start_with(directory.path(), &["--generic-gpus=1"]);
    bench.sample([warm(50), warm(50)], vec![]).await;
    // Held: nothing new of it is given out, what is held stays, and it is in no other view.
    assert_eq!((devices(&bench, exact), devices(&bench, generic)), ((1, 8), (0, 0)));
    assert_eq!(bench.reason(1), Some(WithheldReason::Moving));

    // Free, but somebody was given a unit just now.
    holders.0.lock().unwrap().clear();
    bench.recent.lock().record([(unit(1, 0), "GPU-1".to_owned())], bench.clock.now());
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        bench.sample([warm(50), warm(50)], vec![]).await;
        assert_eq!(devices(&bench, generic), (0, 0));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    holders.0.lock().unwrap().push(unit(1, 0));
    bench.sample([warm(50), warm(50)], vec![]).await;
    holders.0.lock().unwrap().clear();
    until(&mut bench, "GPU 1 is in the pool", Duration::from_secs(10), |bench| {
        devices(bench, generic) == (1, 1)
    })
    .await;
    assert_eq!(devices(&bench, exact), (0, 8), "no id leaves the list");
    assert_eq!((bench.reason(1), bench.gpu(1).free_units), (None, 8));
    bench.stop.cancel();

    // The view in force outlives a restart; the way back takes its time too.
    let mut bench = Bench::start(directory.path());
    bench.sample([warm(50), warm(50)], vec![]).await;
    assert_eq!((devices(&bench, exact), devices(&bench, generic)), ((0, 0), (0, 1)));
    until(&mut bench, "GPU 1 is back", Duration::from_secs(10), |bench| devices(bench, exact) == (8, 8))
        .await;
    assert_eq!(devices(&bench, generic), (0, 1));
}

#[tokio::test]
async fn a_contradiction_about_a_holder_is_told_after_a_while_and_asked_about_again() {
    let directory = tempfile::tempdir().unwrap();
    let holders = serve_holders(directory.path());
    holders.0.lock().unwrap().extend([unit(1, 0), unit(1, 1)]);
    let mut bench = Bench::start(directory.path());
    let holder = Holder { namespace: "ai".into(), pod: "holder".into(), container: "main".into() };
    let asks = |units| {
        let asked =
            Asked { units: BTreeMap::from([("principium.ai/gpu-1".to_owned(), units)]), running: true };
        Pods { requests: BTreeMap::from([(holder.clone(), asked)]), ..Pods::default() }
    };
    bench.pods.send_replace(asks(2));
    bench.sample([warm(50), warm(50)], vec![]).await;
    assert_eq!(bench.wanted.borrow().changes, 1, "somebody holds something");
    assert!(!bench.wanted.borrow().doubtful);

    bench.pods.send_replace(asks(3));
    bench.sample([warm(50), warm(50)], vec![]).await;
    assert!(bench.wanted.borrow().doubtful, "the API server may know better by now");
    assert!(bench.views.borrow().as_ref().unwrap().disagreements.is_empty());
    let told = |bench: &Bench| !bench.views.borrow().as_ref().unwrap().disagreements.is_empty();
    until(&mut bench, "told", Duration::from_secs(20), told).await;
    let said = bench.views.borrow().as_ref().unwrap().disagreements[0].clone();
    assert_eq!((said.pod.as_str(), said.kind), ("holder", DisagreementKind::RequestDiffers));
    assert!(said.message.contains("asks for 3") && said.message.contains("lists 2"), "{}", said.message);
    bench.pods.send_replace(asks(2));
    bench.sample([warm(50), warm(50)], vec![]).await;
    assert!(!told(&bench));
}

#[tokio::test]
async fn who_comes_and_is_forgotten_at_once_is_asked_about_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let holders = serve_holders(directory.path());
    let mut bench = Bench::start(directory.path());
    bench.sample([warm(50), warm(50)], vec![]).await;
    let read = bench.wanted.borrow().changes;
    for held in [vec![unit(1, 0)], vec![]] {
        let before = bench.wanted.borrow().changes;
        *holders.0.lock().unwrap() = held;
        let changed = |bench: &Bench| bench.wanted.borrow().changes > before;
        until(&mut bench, "the change is seen", Duration::from_secs(10), changed).await;
    }
    assert_eq!(
        bench.wanted.borrow().changes,
        read + 2,
        "nobody holds anything again, and it isn't as it was"
    );
}

#[tokio::test]
async fn a_divided_gpu_is_offered_as_its_parts_and_fails_as_one() {
    let directory = tempfile::tempdir().unwrap();
    serve_holders(directory.path());
    let mut bench = Bench::start(directory.path());
    let part = |gpu_instance: u32, probe| Observation {
        identity: Identity {
            uuid: format!("MIG-{gpu_instance}"),
            memory_total_mib: 2048,
            part: Some(Part { of: "GPU-1".into(), gpu_instance, compute_instance: 0 }),
            ..identity(1)
        },
        probe,
    };
    let sample = |probe: &Probe, parts: &[u32], xids| {
        let divided = Identity { divided: !parts.is_empty(), ..identity(1) };
        let whole = [
            Observation { identity: identity(0), probe: warm(50) },
            Observation { identity: divided, probe: probe.clone() },
        ];
        let parts = parts.iter().map(|instance| part(*instance, probe.clone()));
        let gpus = whole.into_iter().chain(parts).collect();
        Report::Sample(Sample { gpus, xids, ..Sample::begin(1) })
    };
    bench.report(sample(&warm(50), &[1, 2], vec![])).await;
    assert_eq!(devices(&bench, "principium.ai/gpu-1"), (0, 8));
    let (first, second) = ("principium.ai/gpu-1-mig-0", "principium.ai/gpu-1-mig-1");
    assert_eq!((devices(&bench, first), devices(&bench, second)), ((2, 2), (2, 2)));
    assert_eq!(bench.reason(1), Some(WithheldReason::Divided));
    assert_eq!((bench.gpu(2).index, bench.gpu(3).index), (200, 201));

    let xid = Xid { uuid: Some("GPU-1".into()), gpu_instance: Some(2), code: 94 };
    bench.report(sample(&warm(50), &[1, 2], vec![xid])).await;
    assert_eq!((devices(&bench, first), devices(&bench, second)), ((2, 2), (0, 2)), "one part's error");
    bench.report(sample(&warm(95), &[1, 2], vec![])).await;
    assert_eq!(devices(&bench, first), (0, 2), "the card's heat");
    assert_eq!(devices(&bench, "principium.ai/gpu-0"), (8, 8));
    bench.report(sample(&Probe::Lost, &[1, 2], vec![])).await;
    assert_eq!(bench.reason(2), Some(WithheldReason::Lost));
}
