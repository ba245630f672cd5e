//! Starts every part of the plugin with the channels between them, and ends them in order.

use crate::allocations::Recent;
use crate::clock::Clock;
use crate::config::Config;
use crate::gpu_node::Writer;
use crate::http::{self, Pulse, Vitals};
use crate::injection::Injector;
use crate::kubelet::Registrar;
use crate::metrics::Metrics;
use crate::monitor::{Inputs, Monitor, Outputs};
use crate::nvml::Reader;
use crate::podresources::PodResources;
use crate::processes::Processes;
use crate::server::{Shared, Snapshot};
use crate::{lease, pods, registry};
use anyhow::Context;
use principium_api::gpu_node::Injection;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long the parts may take to end.
const GRACE: Duration = Duration::from_secs(5);

/// Runs the plugin until it is told to end.
///
/// # Errors
/// If something is missing that no waiting brings: an address to listen on, or the way to the API server.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let clock = Clock::start();
    let metrics: Arc<Metrics> = Arc::default();
    let recent: Arc<Recent> = Arc::default();
    let stop = CancellationToken::new();

    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("cannot listen on {} for /metrics, /healthz and /readyz", config.listen))?;
    let client = client().await?;

    // One report at a time: the reader waits for the monitor rather than run ahead of it.
    let (report, reports) = mpsc::channel(1);
    let (snapshot, snapshots) = watch::channel(Arc::new(Snapshot::default()));
    let (view, views) = watch::channel(None);
    let (wanted_pods, pods_wanted) = watch::channel(pods::Wanted::default());
    let (pods_read, pods) = watch::channel(pods::Pods::default());
    let (pulse, pulses) = watch::channel(Pulse { at: Instant::now(), message: Some("starting".to_owned()) });
    let (registered, registration) = watch::channel(false);

    let reader = Reader { library: config.nvml_library.clone(), interval: config.interval };
    std::thread::Builder::new()
        .name("nvml".to_owned())
        .spawn(move || reader.run(&report))
        .context("cannot start the thread that reads the GPUs")?;

    // A part that ends although nobody told it to takes the process with it, so that the kubelet starts it anew and
    // everybody sees it.
    let mut parts = JoinSet::new();
    let vitals = Vitals { pulse: pulses, registered: registration, metrics: Arc::clone(&metrics) };
    let web = http::router(vitals.clone());
    parts.spawn(async move {
        if let Err(error) = axum::serve(listener, web).await {
            tracing::error!(%error, "the metrics endpoint ended");
        }
    });

    let writer = Writer::new(&client, config.node_name.clone(), config.node_labels, Arc::clone(&metrics));
    parts.spawn(writer.run(views));
    match config.lease_namespace.clone() {
        Some(namespace) => {
            parts.spawn(lease::run(client.clone(), namespace, config.node_name.clone(), vitals));
        }
        None => {
            tracing::warn!("no --lease-namespace, so there is no Lease that shows that this plugin lives");
        }
    }
    parts.spawn(pods::run(client, config.node_name.clone(), pods_wanted, pods_read));

    let shared = Shared {
        snapshot: snapshots,
        recent: Arc::clone(&recent),
        injector: match config.injection {
            Injection::Cdi => Injector::cdi(config.simulated),
            Injection::Legacy => Injector::legacy(Path::new("/")),
        },
        clock,
        metrics: Arc::clone(&metrics),
    };
    let registrar = Registrar::new(config.device_plugins_dir.clone(), shared, registered);
    let registrar = tokio::spawn(registrar.run(stop.clone()));

    let inputs = Inputs {
        reports,
        pod_resources: PodResources::new(&config.pod_resources_socket).with_context(|| {
            format!("{} cannot be a socket's address", config.pod_resources_socket.display())
        })?,
        recent,
        pods,
        processes: Processes::new(config.simulated),
    };
    let outputs = Outputs { snapshot, view, wanted_pods, pulse, metrics };
    let monitor = Monitor::new(config, clock, &registry::boot_id(), inputs, outputs);
    parts.spawn(monitor.run(stop.clone()));

    tokio::select! {
        signal = ended_by_signal() => tracing::info!(signal = signal?, "ending"),
        ended = parts.join_next() => match ended {
            Some(Err(error)) => anyhow::bail!("a part of the plugin ended unexpectedly: {error}"),
            _ => anyhow::bail!("a part of the plugin ended unexpectedly"),
        },
    }
    stop.cancel();
    // The kubelet must see the streams end, or it takes the next run for a second plugin.
    if tokio::time::timeout(GRACE, registrar).await.is_err() {
        tracing::warn!("the servers did not end in time");
    }
    Ok(())
}

/// A client of the API server. It connects when it is used: an API server that is away is waited for.
async fn client() -> anyhow::Result<kube::Client> {
    let mut config = kube::Config::infer()
        .await
        .context("cannot find the API server: neither a service account nor a kubeconfig is there")?;
    config.read_timeout = Some(Duration::from_secs(30));
    // Counted from the request, not from when its connection was used before.
    config.reset_reader_on_write = true;
    kube::Client::try_from(config).context("cannot make a client of the API server")
}

async fn ended_by_signal() -> anyhow::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}
