//! The operator beside a real API server and scheduler with thousands of nodes that kwok stands in for. Prints a table in
//! Markdown; `cargo xtask bench scale` runs it.
//!
//! No container runs: kwok says that pods do, and gives them addresses of this machine, where [`workers`] answers what a
//! DataFactory's, a Reranker's or an Ollama's pod would.

mod audit;
mod fleet;
mod heat;
mod operator;
mod workers;
mod workloads;

use anyhow::{Context, Result, bail};
use audit::Audit;
use clap::Parser;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use operator::Operator;
use principium_local_cluster::command::run;
use principium_local_cluster::control_plane::ControlPlane;
use principium_local_cluster::{Cache, repository};
use rustix::process::{Signal, set_parent_process_death_signal};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// How long the operator is watched while nothing happens.
const IDLE: Duration = Duration::from_secs(30);
/// The namespace of all resources.
pub const NAMESPACE: &str = "scale";

/// Sizes.
#[derive(Parser)]
struct Arguments {
    /// The operator's program.
    #[arg(long)]
    operator: PathBuf,
    /// Nodes of 8 GPUs.
    #[arg(long, default_value_t = 5000)]
    nodes: u32,
    /// DataFactories, Rerankers and OllamaPools.
    #[arg(long, default_value_t = 1000)]
    resources: u32,
    /// Pods of all of them.
    #[arg(long, default_value_t = 10_000)]
    pods: u32,
    /// GPUs that turn hot, one after the other.
    #[arg(long, default_value_t = 100)]
    heats: usize,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    // A connection to every pod on both sides.
    allow_many_files()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    // Whoever ends this early ends what it started, and its folder goes. Of a whole command line of cargo only the first program
    // may be told to end: the end of the one that started this is as good as a signal.
    set_parent_process_death_signal(Some(Signal::TERM))?;
    runtime.block_on(async {
        let mut ended = signal(SignalKind::terminate())?;
        tokio::select! {
            outcome = measure(&arguments) => outcome,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            _ = ended.recv() => bail!("told to end"),
        }
    })
}

async fn measure(arguments: &Arguments) -> Result<()> {
    let Arguments { operator, nodes, resources, pods, heats, bench: _ } = arguments;
    let mut plane = ControlPlane::start(&Cache::from_environment()?)?;
    let client = client(&plane).await?;
    run(plane.kubectl()?.args(["apply", "--server-side", "-f"]).arg(repository().join("crds")))?;
    run(plane.kubectl()?.args(["wait", "crd", "--all", "--for=condition=Established", "--timeout=60s"]))?;
    for namespace in [NAMESPACE, principium_local_cluster::NAMESPACE] {
        run(plane.kubectl()?.args(["create", "namespace", namespace]))?;
    }
    workers::serve().await?;
    told(&format!("making {nodes} nodes"), fleet::make(&client, *nodes)).await?;

    let operator = Operator::start(&mut plane, operator)?;
    told("the operator fills its caches", operator.ready()).await?;
    let empty = operator.memory_mib()?;
    let mut audit = Audit::open(&plane)?;

    let started = Instant::now();
    let planned = workloads::plan(*resources, *pods);
    told(&format!("making {resources} resources of {pods} pods"), workloads::make(&client, &planned)).await?;
    let made = started.elapsed();
    told("all of them get Ready", workloads::ready(&client, &mut plane, &planned)).await?;
    let converged = started.elapsed();
    let requests_all = audit.count()?;
    let (full, cpu) = (operator.memory_mib()?, operator.cpu_seconds()?);

    audit.skip()?;
    let cpu_before = operator.cpu_seconds()?;
    tokio::time::sleep(IDLE).await;
    let (requests_idle, cpu_idle) = (audit.count()?, operator.cpu_seconds()? - cpu_before);

    let plans_before = operator.plans().await?;
    audit.skip()?;
    let changes =
        told("one resource after another is scaled up", workloads::scale_up(&client, &planned)).await?;
    let requests_change = audit.count()?;
    audit.skip()?;
    let mut decisions = told(&format!("{heats} GPUs turn hot"), heat::heat(&client, *heats)).await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let requests_heat = audit.count()?;
    let plans = operator.plans().await?.since(&plans_before);
    let peak = operator.peak_memory_mib()?;
    plane.check()?;

    let gpus = nodes * 8;
    println!(
        "\n| operator, {nodes} nodes with {gpus} GPUs, {resources} resources with {pods} pods | | target |\n|---|---|---|"
    );
    println!(
        "| first resource made → all Ready | {:.1} s, of which {:.1} s were taken by making them | |",
        converged.as_secs_f64(),
        made.as_secs_f64()
    );
    println!("| requests until then | {requests_all}, {:.2} a pod | |", ratio(requests_all.total(), *pods));
    println!("| CPU time of the operator until then | {cpu:.1} s | |");
    println!(
        "| one pass, until it knows what to do, reading the caches included | mean {:.1} ms, p99 ≤ {:.1} ms ({} passes) | |",
        plans.mean_ms(),
        plans.p99_ms(),
        plans.count()
    );
    println!("| GPU hot in GPUNode → decision in the status | {} | p99 ≤ 1 s |", percentiles(&mut decisions));
    println!("| requests for a hot GPU | {} | |", requests_heat.each(decisions.len()));
    println!("| requests for a resource with one more pod | {} | |", requests_change.each(changes));
    println!("| requests while nothing happens, in {} s | {requests_idle} | |", IDLE.as_secs());
    println!("| CPU while nothing happens | {:.1} % of a core | |", cpu_idle / IDLE.as_secs_f64() * 100.0);
    println!(
        "| resident memory | {empty:.0} MiB with the nodes alone, {full:.0} MiB with all pods, {peak:.0} MiB at most | ≤ 250 MiB |"
    );
    Ok(())
}

/// Does something and says how long it took.
async fn told<T>(what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let started = Instant::now();
    let outcome = work.await.with_context(|| what.to_owned())?;
    println!("    {what}: {:.1} s", started.elapsed().as_secs_f64());
    Ok(outcome)
}

async fn client(plane: &ControlPlane) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(plane.kubeconfig("admin"))?;
    Ok(Client::try_from(Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?)?)
}

fn allow_many_files() -> Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("raising the limit of open files")
}

fn ratio(count: usize, of: u32) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / f64::from(of.max(1))
}

fn percentiles(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)].as_secs_f64() * 1000.0;
    format!("p50 {:.0} ms, p99 {:.0} ms ({} times)", at(50), at(99), times.len())
}
