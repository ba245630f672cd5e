//! The device plugin of the local cluster, measured from the kubelet's side. Prints a table in Markdown.

use anyhow::{Context, Result, bail};
use principium_api::names::gpu_resource;
use principium_device_plugin::proto::device_plugin::device_plugin_client::DevicePluginClient;
use principium_device_plugin::proto::device_plugin::{AllocateRequest, ContainerAllocateRequest};
use principium_device_plugin::proto::pod_resources::AllocatableResourcesRequest;
use principium_device_plugin::proto::pod_resources::pod_resources_lister_client::PodResourcesListerClient;
use principium_e2e::gpus;
use principium_local_cluster::restart_component;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};
use tonic::transport::{Channel, Endpoint};

const KUBELET: &str = "/var/lib/kubelet";
/// The GPU that is heated, and the one whose units are allocated; nobody else holds them.
const HEATED: u32 = 5;
const ALLOCATED: u32 = 0;
/// For how long the plugin is watched while nothing happens.
const IDLE: Duration = Duration::from_secs(60);
const WARM_UP: usize = 500;
const CALLS: usize = 10_000;
const HEATS: usize = 10;
const RESTARTS: usize = 5;
/// For how long a GPU must be cool until it is offered again: the chart's default.
const DWELL: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(60);
/// `sysconf(_SC_CLK_TCK)` on every Linux that Kubernetes runs on.
const TICKS_PER_SECOND: f64 = 100.0;

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    gpus::reset()?;
    let outcome = runtime.block_on(measure());
    gpus::reset()?;
    outcome
}

async fn measure() -> Result<()> {
    let mut kubelet = Kubelet::new()?;
    kubelet.until("all GPUs are offered", |units| units.iter().sum::<usize>() == 64).await?;

    let process = plugin()?;
    let before = cpu_seconds(&process)?;
    tokio::time::sleep(IDLE).await;
    let idle = (cpu_seconds(&process)? - before) / IDLE.as_secs_f64();
    let memory = resident_mib(&process)?;

    let mut allocate = allocate().await?;
    let (mut hot, mut cool) = (Vec::new(), Vec::new());
    for _ in 0..HEATS {
        gpus::set(HEATED, &["--temperature", "92"])?;
        hot.push(kubelet.until("the hot GPU is withheld", |units| units[HEATED as usize] == 0).await?);
        gpus::set(HEATED, &["--temperature", "40"])?;
        let offered = kubelet.until("the cool GPU is offered", |units| units[HEATED as usize] == 8).await?;
        cool.push(offered.saturating_sub(DWELL));
    }
    let mut registered = Vec::new();
    for _ in 0..RESTARTS {
        registered.push(kubelet.restart().await?);
    }

    println!("\n| device plugin, 8 GPUs | p50 | p99 | target |\n|---|---|---|---|");
    println!("| resident memory | {memory:.1} MiB | | ≤ 12 MiB |");
    println!("| CPU at idle | {:.2} % of a core | | |", idle * 100.0);
    row("`Allocate`, 8 units, over the socket", &mut allocate, "p99 ≤ 1 ms");
    row("sensor hot → not allocatable at the kubelet", &mut hot, "≤ 2 s");
    row("sensor cool → allocatable, without the dwell time", &mut cool, "≤ 5 s");
    row("kubelet.sock made → all resources registered and offered", &mut registered, "≤ 1 s");
    Ok(())
}

fn row(what: &str, times: &mut [Duration], target: &str) {
    times.sort_unstable();
    let at = |share: usize| {
        let time = times[(times.len() * share / 100).min(times.len() - 1)];
        format!("{:.3} ms", time.as_secs_f64() * 1000.0)
    };
    println!("| {what} ({} times) | {} | {} | {target} |", times.len(), at(50), at(99));
}

/// The kubelet's own view of the devices.
struct Kubelet {
    client: PodResourcesListerClient<Channel>,
}

impl Kubelet {
    fn new() -> Result<Self> {
        Ok(Self {
            client: PodResourcesListerClient::new(
                endpoint(&Path::new(KUBELET).join("pod-resources/kubelet.sock"))?.connect_lazy(),
            ),
        })
    }

    /// Units of each GPU that the kubelet would give to a pod.
    async fn units(&mut self) -> Result<Vec<usize>> {
        let answer =
            self.client.get_allocatable_resources(AllocatableResourcesRequest {}).await?.into_inner();
        let of = |index| {
            let resource = gpu_resource(index);
            let devices = answer.devices.iter().filter(|devices| devices.resource_name == resource);
            devices.map(|devices| devices.device_ids.len()).sum()
        };
        Ok((0..8).map(of).collect())
    }

    /// How long it takes until the units are as wanted.
    async fn until(&mut self, what: &str, wanted: impl Fn(&[usize]) -> bool) -> Result<Duration> {
        let started = Instant::now();
        loop {
            if self.units().await.is_ok_and(|units| wanted(&units)) {
                return Ok(started.elapsed());
            }
            if started.elapsed() > PATIENCE {
                bail!("{what}: not within {} s", PATIENCE.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Restarts the kubelet; the time from its new registration socket to all devices being there again.
    async fn restart(&mut self) -> Result<Duration> {
        let socket = Path::new(KUBELET).join("device-plugins/kubelet.sock");
        let made = || fs::metadata(&socket).and_then(|file| file.modified()).ok();
        let old = made();
        let restart = tokio::task::spawn_blocking(|| restart_component("kubelet"));
        let started = Instant::now();
        let new = loop {
            match made() {
                Some(time) if Some(time) != old => break time,
                _ if started.elapsed() > PATIENCE => bail!("the kubelet makes no {}", socket.display()),
                _ => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        };
        self.until("all GPUs are offered again", |units| units.iter().sum::<usize>() == 64).await?;
        let took = SystemTime::now().duration_since(new)?;
        restart.await??;
        Ok(took)
    }
}

/// Times of single `Allocate` calls, one after the other over one connection, as the kubelet makes them.
async fn allocate() -> Result<Vec<Duration>> {
    let mut client = DevicePluginClient::new(endpoint(&socket()?)?.connect().await?);
    let device_ids = (0..8).map(|unit| format!("g{ALLOCATED}u{unit}")).collect();
    let request = AllocateRequest { container_requests: vec![ContainerAllocateRequest { device_ids }] };
    let mut times = Vec::with_capacity(CALLS);
    for call in 0..WARM_UP + CALLS {
        let request = request.clone();
        let started = Instant::now();
        client.allocate(request).await?;
        if call >= WARM_UP {
            times.push(started.elapsed());
        }
    }
    Ok(times)
}

/// The plugin's socket of one GPU.
fn socket() -> Result<PathBuf> {
    let prefix = format!("principium-gpu-{ALLOCATED}-");
    let folder = Path::new(KUBELET).join("device-plugins");
    let found = fs::read_dir(&folder)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)));
    found.with_context(|| format!("no {prefix}*.sock in {}", folder.display()))
}

fn endpoint(socket: &Path) -> Result<Endpoint> {
    Ok(Endpoint::from_shared(format!("unix://{}", socket.display()))?)
}

/// The plugin's folder in `/proc`.
fn plugin() -> Result<PathBuf> {
    let is_plugin = |folder: &Path| {
        let line = fs::read(folder.join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0)
            .next()
            .is_some_and(|program| program.ends_with(b"/principium-device-plugin"))
    };
    let mut folders = fs::read_dir("/proc")?.flatten().map(|entry| entry.path());
    folders.find(|folder| is_plugin(folder)).context("no principium-device-plugin runs on this machine")
}

/// CPU time of a process so far, from `/proc/<pid>/stat`.
fn cpu_seconds(process: &Path) -> Result<f64> {
    let stat = fs::read_to_string(process.join("stat"))?;
    let fields = stat.rsplit_once(')').context("no name in stat")?.1;
    let ticks: Vec<f64> = fields.split_whitespace().skip(11).take(2).flat_map(str::parse).collect();
    Ok(ticks.iter().sum::<f64>() / TICKS_PER_SECOND)
}

/// Resident memory of a process, from `/proc/<pid>/status`.
fn resident_mib(process: &Path) -> Result<f64> {
    let status = fs::read_to_string(process.join("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}
