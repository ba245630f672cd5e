//! The device plugin of the local cluster, measured from the kubelet's side, beside NVIDIA's own plugin on the same
//! simulated driver and the same kubelet. Prints a table in Markdown.

use anyhow::{Context, Result, bail};
use principium_api::names::gpu_resource;
use principium_device_plugin::proto::device_plugin::device_plugin_client::DevicePluginClient;
use principium_device_plugin::proto::device_plugin::{AllocateRequest, ContainerAllocateRequest};
use principium_e2e::plugin::{KUBELET, Kubelet, endpoint, process};
use principium_e2e::{World, gpus};
use principium_gpu_sim::{LIBRARY_NAME, load, state_path, update};
use principium_local_cluster::restart_component;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

/// Names NVIDIA's plugin; without it only ours is measured.
const PEER_VARIABLE: &str = "PRINCIPIUM_BENCH_PEER";
const PEER_RESOURCE: &str = "nvidia.com/gpu";
const PEER_SOCKET: &str = "nvidia-gpu.sock";
/// The GPU that is heated and lost, and the one whose units are allocated; nobody else holds them.
const HEATED: u32 = 5;
const ALLOCATED: u32 = 0;
/// For how long the plugins are watched while nothing happens.
const IDLE: Duration = Duration::from_secs(60);
const WARM_UP: usize = 500;
const CALLS: usize = 10_000;
const HEATS: usize = 10;
const LOSSES: usize = 3;
const RESTARTS: usize = 5;
/// For how long a sensor is noisy.
const NOISE: Duration = Duration::from_secs(600);
/// For how long it was before that is counted: the step from idle to noise must not count.
const SETTLING: Duration = Duration::from_secs(600);
/// For how long a GPU must be cool until it is offered again: the chart's default.
const DWELL: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(60);
/// What a plugin that doesn't react is given.
const PEER_PATIENCE: Duration = Duration::from_secs(15);
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
    let world = World { client: kube::Client::try_default().await?, namespace: "default".to_owned() };
    let mut node = Node { kubelet: Kubelet::new()? };
    node.until("all GPUs are offered", PATIENCE, |devices| ours(devices) == 64).await?;
    let peer = Peer::start()?;
    if peer.is_some() {
        let registered = |devices: &Devices| theirs(devices) == 8;
        node.until("NVIDIA's plugin is registered", PATIENCE, registered).await?;
    }

    let plugin = process("principium-device-plugin")?;
    let processes = [Some(plugin), peer.as_ref().map(Peer::process)];
    let before = processes.each_ref().map(|process| process.as_deref().map(cpu_seconds));
    tokio::time::sleep(IDLE).await;
    let mut idle = [None, None];
    let mut memory = [None, None];
    for (place, (process, before)) in processes.iter().zip(before).enumerate() {
        let (Some(process), Some(before)) = (process, before) else { continue };
        idle[place] = Some((cpu_seconds(process)? - before?) / IDLE.as_secs_f64() * 100.0);
        memory[place] = Some(Memory::of(process)?);
    }

    let units = (0..8).map(|unit| format!("g{ALLOCATED}u{unit}")).collect();
    let mut allocate = [Some(allocations(&our_socket()?, units).await?), None];
    if peer.is_some() {
        let uuid = load(&state_path())?.gpus[ALLOCATED as usize].uuid.clone();
        let socket = Path::new(KUBELET).join("device-plugins").join(PEER_SOCKET);
        allocate[1] = Some(allocations(&socket, vec![uuid]).await?);
    }
    let reactions = node.reactions(peer.is_some()).await?;
    let mut registered = node.restarts(peer.is_some()).await?;
    let writes = writes_an_hour(&world).await?;

    println!("\n| device plugin, 8 GPUs | principium p50 | p99 | NVIDIA p50 | p99 | ratio | target |");
    println!("|---|---|---|---|---|---|---|");
    let mib = |memory: &Option<Memory>| memory.as_ref().map(|memory| memory.resident);
    value("resident memory, MiB", [mib(&memory[0]), mib(&memory[1])], "≤ 12");
    let own = |memory: &Option<Memory>| memory.as_ref().map(|memory| memory.own);
    value("of it own data, MiB", [own(&memory[0]), own(&memory[1])], "");
    value("CPU at idle, % of a core", idle, "");
    times("`Allocate` of a GPU, over the socket", &mut allocate, "p99 ≤ 1 ms");
    let Reactions { mut hot, mut cool, mut lost, mut back } = reactions;
    times("sensor hot → not allocatable at the kubelet", &mut hot, "≤ 2 s");
    times("sensor cool → allocatable, without the dwell time", &mut cool, "≤ 5 s");
    times("GPU lost → not allocatable", &mut lost, "≤ 2 s");
    times("GPU recovered → allocatable (proof 2 s, then 4, 8)", &mut back, "");
    times("kubelet.sock made → registered and offered", &mut registered, "≤ 1 s");
    println!("| GPUNode writes an hour, noisy sensors on 8 GPUs | {writes:.0} | | | | | |");
    Ok(())
}

/// Devices at the kubelet, by resource.
type Devices = BTreeMap<String, usize>;
/// Times of both plugins; none where one doesn't react at all.
type Both = [Option<Vec<Duration>>; 2];

struct Reactions {
    hot: Both,
    cool: Both,
    lost: Both,
    back: Both,
}

fn ours(devices: &Devices) -> usize {
    (0..8).filter_map(|index| devices.get(&gpu_resource(index))).sum()
}

fn theirs(devices: &Devices) -> usize {
    devices.get(PEER_RESOURCE).copied().unwrap_or_default()
}

fn value(what: &str, values: [Option<f64>; 2], target: &str) {
    let text = |value: Option<f64>| value.map(|value| format!("{value:.2}")).unwrap_or_default();
    let ratio = match values {
        [Some(ours), Some(theirs)] => format!("{:.2}", ours / theirs),
        _ => String::new(),
    };
    println!("| {what} | {} | | {} | | {ratio} | {target} |", text(values[0]), text(values[1]));
}

fn times(what: &str, both: &mut Both, target: &str) {
    both.iter_mut().flatten().for_each(|times| times.sort_unstable());
    let at = |times: &Option<Vec<Duration>>, share: usize| {
        let times = times.as_ref()?;
        times.get((times.len() * share / 100).min(times.len().checked_sub(1)?)).map(Duration::as_secs_f64)
    };
    let text =
        |time: Option<f64>| time.map_or_else(|| "never".to_owned(), |time| format!("{:.3} ms", time * 1e3));
    let [ours, theirs] = both.each_ref();
    let count = ours.as_ref().map_or(0, Vec::len);
    let ratio = match (at(ours, 50), at(theirs, 50)) {
        (Some(ours), Some(theirs)) => format!("{:.2}", ours / theirs),
        _ => String::new(),
    };
    println!(
        "| {what} ({count} times) | {} | {} | {} | {} | {ratio} | {target} |",
        text(at(ours, 50)),
        text(at(ours, 99)),
        text(at(theirs, 50)),
        text(at(theirs, 99)),
    );
}

/// The node as the kubelet sees it.
struct Node {
    kubelet: Kubelet,
}

impl Node {
    /// How long it takes until the devices are as wanted.
    async fn until(
        &mut self,
        what: &str,
        patience: Duration,
        wanted: impl Fn(&Devices) -> bool,
    ) -> Result<Duration> {
        let started = Instant::now();
        loop {
            if self.kubelet.allocatable().await.is_ok_and(|devices| wanted(&devices)) {
                return Ok(started.elapsed());
            }
            if started.elapsed() > patience {
                bail!("{what}: not within {} s", patience.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Heats and loses a GPU again and again. What NVIDIA's plugin says is looked at each time, and has as long.
    async fn reactions(&mut self, with_peer: bool) -> Result<Reactions> {
        let heated = gpu_resource(HEATED);
        let gone = |devices: &Devices| !devices.contains_key(&heated);
        let there = |devices: &Devices| devices.get(&heated) == Some(&8);
        let fewer = |devices: &Devices| theirs(devices) < 8;
        let (mut hot, mut cool, mut lost, mut back) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut peer_hot, mut peer_lost) = (Vec::new(), Vec::new());
        for round in 0..HEATS {
            gpus::set(HEATED, &["--temperature", "92"])?;
            hot.push(self.until("the hot GPU is withheld", PATIENCE, gone).await?);
            if with_peer && round == 0 {
                peer_hot.extend(self.until("", PEER_PATIENCE, fewer).await.ok());
            }
            gpus::set(HEATED, &["--temperature", "40"])?;
            let offered = self.until("the cool GPU is offered", PATIENCE, there).await?;
            cool.push(offered.saturating_sub(DWELL));
        }
        for round in 0..LOSSES {
            gpus::set(HEATED, &["--lost"])?;
            lost.push(self.until("the lost GPU is withheld", PATIENCE, gone).await?);
            if with_peer && round == 0 {
                peer_lost.extend(self.until("", PEER_PATIENCE, fewer).await.ok());
            }
            gpus::set(HEATED, &["--recover"])?;
            back.push(self.until("the GPU is back", PATIENCE, there).await?);
        }
        let peer = |times: Vec<Duration>| Some(times).filter(|times| !times.is_empty());
        let (peer_hot, peer_lost) = (peer(peer_hot), peer(peer_lost));
        // What was never taken away never comes back.
        Ok(Reactions {
            hot: [Some(hot), peer_hot],
            cool: [Some(cool), None],
            lost: [Some(lost), peer_lost],
            back: [Some(back), None],
        })
    }

    /// Restarts the kubelet; the times from its new registration socket to all devices being there again.
    async fn restarts(&mut self, with_peer: bool) -> Result<Both> {
        let socket = Path::new(KUBELET).join("device-plugins/kubelet.sock");
        let made = || fs::metadata(&socket).and_then(|file| file.modified()).ok();
        let (mut all_ours, mut all_theirs) = (Vec::new(), Vec::new());
        for _ in 0..RESTARTS {
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
            // Whoever comes first, both are waited for.
            let (mut at_ours, mut at_theirs) = (None, None);
            while at_ours.is_none() || (with_peer && at_theirs.is_none()) {
                let devices = self.kubelet.allocatable().await.unwrap_or_default();
                let took = SystemTime::now().duration_since(new)?;
                at_ours = at_ours.or((ours(&devices) == 64).then_some(took));
                at_theirs = at_theirs.or((theirs(&devices) == 8).then_some(took));
                anyhow::ensure!(took < PATIENCE, "not all devices are back: {devices:?}");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            all_ours.extend(at_ours);
            all_theirs.extend(at_theirs);
            restart.await??;
        }
        Ok([Some(all_ours), with_peer.then_some(all_theirs)])
    }
}

/// How often the GPUNode is written in an hour while every sensor of eight GPUs is noisy.
async fn writes_an_hour(world: &World) -> Result<f64> {
    make_noise(SETTLING).await?;
    let before = writes(world).await?;
    let started = Instant::now();
    make_noise(NOISE).await?;
    let written = writes(world).await? - before;
    Ok(written * 3600.0 / started.elapsed().as_secs_f64())
}

/// Lets every sensor flicker for this long.
async fn make_noise(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    let mut noise: u32 = 1;
    while Instant::now() < end {
        update(&state_path(), |state| {
            for gpu in &mut state.gpus {
                let mut next = |span: u32| {
                    noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (noise >> 16) % span
                };
                (gpu.temperature, gpu.power) = (58 + next(5), 120 + next(61));
                gpu.memory_used_mib = u64::from(3000 + next(200));
            }
            Ok(())
        })?;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}

async fn writes(world: &World) -> Result<f64> {
    let name = "principium_gpunode_writes_total{outcome=\"success\"} ";
    let metrics = world.plugin_metrics().await?;
    Ok(metrics.iter().find_map(|line| line.strip_prefix(name)).context("no count of writes")?.parse()?)
}

/// NVIDIA's plugin as a process of this machine, on the simulated driver.
struct Peer {
    process: Child,
    folder: PathBuf,
}

impl Peer {
    fn start() -> Result<Option<Self>> {
        let Some(program) = std::env::var_os(PEER_VARIABLE) else { return Ok(None) };
        let folder = std::env::temp_dir().join(format!("principium-bench-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let here = std::env::current_exe()?;
        let library = here.ancestors().nth(2).context("no target folder")?.join("libprincipium_gpu_sim.so");
        fs::copy(&library, folder.join(LIBRARY_NAME))
            .with_context(|| format!("copying {}", library.display()))?;
        let log = fs::File::create(folder.join("log"))?;
        let process = Command::new(program)
            .args([
                "--device-discovery-strategy=nvml",
                "--device-list-strategy=envvar",
                "--mig-strategy=none",
            ])
            .env("LD_LIBRARY_PATH", &folder)
            .env("PRINCIPIUM_SIM_STATE", state_path())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("starting NVIDIA's plugin")?;
        Ok(Some(Self { process, folder }))
    }

    /// Its folder in `/proc`.
    fn process(&self) -> PathBuf {
        Path::new("/proc").join(self.process.id().to_string())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_file(Path::new(KUBELET).join("device-plugins").join(PEER_SOCKET));
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Times of single `Allocate` calls, one after the other over one connection, as the kubelet makes them.
async fn allocations(socket: &Path, device_ids: Vec<String>) -> Result<Vec<Duration>> {
    let mut client = DevicePluginClient::new(endpoint(socket)?.connect().await?);
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

/// Our plugin's socket of one GPU.
fn our_socket() -> Result<PathBuf> {
    let prefix = format!("principium-gpu-{ALLOCATED}-");
    let folder = Path::new(KUBELET).join("device-plugins");
    let found = fs::read_dir(&folder)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)));
    found.with_context(|| format!("no {prefix}*.sock in {}", folder.display()))
}

/// CPU time of a process so far, from `/proc/<pid>/stat`.
fn cpu_seconds(process: &Path) -> Result<f64> {
    let stat = fs::read_to_string(process.join("stat"))?;
    let fields = stat.rsplit_once(')').context("no name in stat")?.1;
    let ticks: Vec<f64> = fields.split_whitespace().skip(11).take(2).flat_map(str::parse).collect();
    Ok(ticks.iter().sum::<f64>() / TICKS_PER_SECOND)
}

/// Memory of a process in MiB, from `/proc/<pid>/status`.
struct Memory {
    resident: f64,
    /// What no file stands behind.
    own: f64,
}

impl Memory {
    fn of(process: &Path) -> Result<Self> {
        let status = fs::read_to_string(process.join("status"))?;
        let mib = |name: &str| -> Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such line")?;
            let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
            Ok(kib / 1024.0)
        };
        Ok(Self { resident: mib("VmRSS:")?, own: mib("RssAnon:")? })
    }
}
