//! Carries values round: from the reader of the GPUs and the kubelet's list, through the decisions, to the servers, the
//! `GPUNode` writer and the metrics. It decides nothing itself, and it is the only one that keeps state.

use crate::allocations::{Holdings, Recent};
use crate::cdi;
use crate::clock::Clock;
use crate::config::Config;
use crate::device::{Now, Probe, Reading, Sample};
use crate::health::{self, Evidence, Extent, Verdict};
use crate::http::Pulse;
use crate::injection::Injectable;
use crate::metrics::Metrics;
use crate::nvml::Report;
use crate::offers::{self, OfferedGpu};
use crate::podresources::PodResources;
use crate::preferred::Merit;
use crate::processes::{self, PodName, Processes, Usage};
use crate::registry::{Registry, RegistryFile};
use crate::server::Snapshot;
use crate::status::{self, GpuState, NodeView};
use principium_api::gpu_node::GpuView;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// How often the kubelet is asked who holds what while nothing is withheld and nothing was allocated lately.
const QUIET_POLL: Duration = Duration::from_secs(5);
/// Least time for which the driver may say nothing before that counts as silence.
const LEAST_PATIENCE: Duration = Duration::from_secs(5);

/// Where the monitor's values go.
pub struct Outputs {
    /// To the servers.
    pub snapshot: watch::Sender<Arc<Snapshot>>,
    /// To the `GPUNode` writer.
    pub view: watch::Sender<Option<NodeView>>,
    /// To the finder of pods' names.
    pub wanted_pods: watch::Sender<BTreeSet<String>>,
    /// To the health endpoints.
    pub pulse: watch::Sender<Pulse>,
    /// To Prometheus.
    pub metrics: Arc<Metrics>,
}

/// Where they come from.
pub struct Inputs {
    /// From the reader of the GPUs.
    pub reports: mpsc::Receiver<Report>,
    /// From the kubelet.
    pub pod_resources: PodResources,
    /// From the servers.
    pub recent: Arc<Recent>,
    /// From the finder of pods' names.
    pub pod_names: watch::Receiver<BTreeMap<String, PodName>>,
    /// From `/proc`.
    pub processes: Processes,
}

/// The state between two rounds.
pub struct Monitor {
    config: Config,
    clock: Clock,
    inputs: Inputs,
    outputs: Outputs,
    file: RegistryFile,
    registry: Registry,
    /// The registry as it was written last.
    saved: Option<Registry>,
    states: BTreeMap<u32, health::State>,
    sight: Sight,
    holdings: Option<Holdings>,
    polled: Option<Duration>,
    injected: Option<BTreeMap<u32, Injectable>>,
}

/// What is seen of the GPUs.
enum Sight {
    /// Nothing yet.
    Nothing,
    /// The newest sample, and when it came.
    Sample(Sample, Duration),
    /// Why there is none.
    Unavailable(String),
}

/// Why the monitor comes round.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Round {
    /// There is something new about the GPUs.
    Measured,
    /// The kubelet was handed devices.
    Allocated,
}

impl Monitor {
    /// A monitor that goes on from what an earlier run remembered.
    #[must_use]
    pub fn new(config: Config, clock: Clock, boot_id: &str, inputs: Inputs, outputs: Outputs) -> Self {
        let file = RegistryFile::new(&config.state_dir, config.simulated);
        let registry = file.load(boot_id).unwrap_or_else(|error| {
            tracing::warn!(%error, "starting with fresh indices in the order of PCI addresses");
            Registry::new(boot_id.to_owned())
        });
        let states =
            registry.gpus().map(|(index, known)| (index, health::State::resumed(&known.kept))).collect();
        Self {
            config,
            clock,
            inputs,
            outputs,
            file,
            registry,
            saved: None,
            states,
            sight: Sight::Nothing,
            holdings: None,
            polled: None,
            injected: None,
        }
    }

    /// Runs until `stop` is cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut heartbeat = tokio::time::interval(self.config.interval.max(Duration::from_secs(1)));
        loop {
            let round = tokio::select! {
                () = stop.cancelled() => return,
                report = self.inputs.reports.recv() => match report {
                    Some(report) => {
                        self.see(report);
                        Some(Round::Measured)
                    }
                    // The reader never ends before the monitor does.
                    None => return,
                },
                () = self.inputs.recent.changed() => Some(Round::Allocated),
                _ = heartbeat.tick() => self.overdue().then_some(Round::Measured),
            };
            if let Some(round) = round
                && !matches!(self.sight, Sight::Nothing)
            {
                self.round(round).await;
            }
            let message = self.message();
            self.outputs.pulse.send_replace(Pulse { at: Instant::now(), message });
        }
    }

    fn see(&mut self, report: Report) {
        self.sight = match report {
            Report::Sample(sample) => Sight::Sample(sample, self.clock.now().elapsed),
            Report::Unavailable(reason) => {
                if self.message().as_ref() != Some(&reason) {
                    tracing::warn!("{reason}");
                }
                Sight::Unavailable(reason)
            }
        };
    }

    /// Whether a round is due although the reader says nothing.
    fn overdue(&self) -> bool {
        match &self.sight {
            Sight::Nothing => false,
            Sight::Sample(..) => self.unresponsive().is_some(),
            Sight::Unavailable(_) => true,
        }
    }

    /// What keeps the plugin from measuring.
    fn message(&self) -> Option<String> {
        match &self.sight {
            Sight::Nothing => Some("the NVIDIA driver has not answered yet".to_owned()),
            Sight::Sample(..) => self.unresponsive(),
            Sight::Unavailable(reason) => Some(reason.clone()),
        }
    }

    fn unresponsive(&self) -> Option<String> {
        let Sight::Sample(_, at) = &self.sight else { return None };
        let patience = (self.config.interval * 5).max(LEAST_PATIENCE);
        let silent = self.clock.now().elapsed.saturating_sub(*at) >= patience;
        silent.then(|| "the NVIDIA driver does not answer: one of its calls hangs".to_owned())
    }

    async fn round(&mut self, round: Round) {
        let now = self.clock.now();
        let before = self.verdicts();
        if round == Round::Allocated || self.poll_is_due(now) {
            self.poll(now).await;
        }
        let usage = self.usage();
        if round == Round::Measured {
            self.step(&usage, now);
            // What is withheld depends on what is in use at this moment.
            if self.verdicts() != before && self.polled != Some(now.elapsed) {
                self.poll(now).await;
            }
        }
        self.remember();
        self.publish(&usage, now);
        // An Xid is evidence once.
        if let Sight::Sample(sample, _) = &mut self.sight {
            sample.xids.clear();
        }
    }

    fn verdicts(&self) -> Vec<Verdict> {
        self.states.values().map(health::State::verdict).collect()
    }

    fn poll_is_due(&self, now: Now) -> bool {
        let Some(polled) = self.polled else { return true };
        let withholding = self.states.values().any(|state| state.verdict().extent != Extent::Nothing);
        let pending = !self.inputs.recent.settle(self.holdings.as_ref(), now).is_empty();
        withholding || pending || now.elapsed.saturating_sub(polled) >= QUIET_POLL
    }

    async fn poll(&mut self, now: Now) {
        match self.inputs.pod_resources.list().await {
            Ok(holdings) => self.holdings = Some(holdings),
            // What was known stays in force: a kubelet that restarts keeps its pods.
            Err(error) => tracing::debug!(error = error.message(), "the kubelet does not say who holds what"),
        }
        self.polled = Some(now.elapsed);
    }

    /// Whose memory is on each GPU.
    fn usage(&self) -> BTreeMap<u32, Usage> {
        let Sight::Sample(sample, _) = &self.sight else { return BTreeMap::new() };
        let names = self.inputs.pod_names.borrow();
        let mut usages = BTreeMap::new();
        for gpu in &sample.gpus {
            let (Some(index), Probe::Answer(reading)) =
                (self.registry.index_of(&gpu.identity.uuid), &gpu.probe)
            else {
                continue;
            };
            let owner = |pid| self.inputs.processes.owner(pid);
            let usage = processes::usage(index, &reading.processes, owner, &names, self.holdings.as_ref());
            usages.insert(index, usage);
        }
        let unknown: BTreeSet<String> =
            usages.values().flat_map(|usage| usage.unknown_pods.iter().cloned()).collect();
        self.outputs.wanted_pods.send_if_modified(|wanted| {
            let changed = *wanted != unknown;
            *wanted = unknown;
            changed
        });
        usages
    }

    fn step(&mut self, usage: &BTreeMap<u32, Usage>, now: Now) {
        let silent = self.message().map(Probe::Silent);
        if let Sight::Sample(sample, _) = &self.sight {
            self.registry.admit(sample.gpus.iter().map(|gpu| &gpu.identity));
        }
        for (index, known) in self.registry.gpus() {
            let uuid = &known.identity.uuid;
            let (probe, xids, session) = match &self.sight {
                Sight::Sample(sample, _) => {
                    let xids: Vec<u64> = sample
                        .xids
                        .iter()
                        .filter(|xid| xid.uuid.as_ref().is_none_or(|of| of == uuid))
                        .map(|xid| xid.code)
                        .collect();
                    let seen =
                        sample.gpus.iter().find(|gpu| gpu.identity.uuid == *uuid).map(|gpu| &gpu.probe);
                    (seen.unwrap_or(&Probe::Lost), xids, sample.session)
                }
                Sight::Nothing | Sight::Unavailable(_) => (&Probe::Lost, Vec::new(), 0),
            };
            xids.iter().for_each(|xid| self.outputs.metrics.xid(index, uuid, *xid));
            let critical: Vec<u64> =
                xids.into_iter().filter(|xid| !self.config.ignored_xids.contains(xid)).collect();
            let evidence = Evidence {
                probe: silent.as_ref().unwrap_or(probe),
                xids: &critical,
                foreign_mib: usage.get(&index).map_or(0, Usage::foreign_mib),
                session,
            };
            let state = self.states.entry(index).or_default();
            *state = health::step(state, &evidence, &self.config.limits_for(&known.identity), now);
        }
    }

    /// Writes what a later run must know, if it has changed.
    fn remember(&mut self) {
        for (index, state) in &self.states {
            self.registry.keep(*index, state.kept());
        }
        if self.saved.as_ref() != Some(&self.registry) {
            // Told once: the next attempt comes with the next change.
            if let Err(error) = self.file.save(&self.registry) {
                tracing::warn!(%error, "after a restart, GPUs may get other indices and failures are forgotten");
            }
            self.saved = Some(self.registry.clone());
        }
    }

    fn publish(&mut self, usage: &BTreeMap<u32, Usage>, now: Now) {
        let recent = self.inputs.recent.settle(self.holdings.as_ref(), now);
        let in_use =
            self.holdings.as_ref().map(|holdings| holdings.devices().chain(recent).collect::<BTreeSet<_>>());
        let gpus: Vec<(OfferedGpu, GpuState)> = self
            .registry
            .gpus()
            .map(|(index, known)| {
                let identity = &known.identity;
                let verdict = self.states.get(&index).map(health::State::verdict).unwrap_or_default();
                let generic = self.config.is_generic(index, &identity.uuid);
                let view = if generic { GpuView::Generic } else { GpuView::Exact };
                let units = identity.units();
                let offered =
                    OfferedGpu { index, units, view, extent: verdict.extent, numa_node: identity.numa_node };
                let nothing = BTreeSet::new();
                let counted = in_use.as_ref().unwrap_or(&nothing);
                let free_units = offers::free_units(&offered, counted);
                let offered_whole = OfferedGpu { extent: Extent::Nothing, ..offered };
                let allocations = self
                    .holdings
                    .as_ref()
                    .map(|holdings| holdings.allocations(index, units))
                    .unwrap_or_default();
                let usage = usage.get(&index);
                let state = GpuState {
                    index,
                    view,
                    limits: self.config.limits_for(identity),
                    reading: self.reading(&identity.uuid).cloned(),
                    pods: usage
                        .map(|usage| status::pod_memory(&allocations, &usage.holders))
                        .unwrap_or_default(),
                    allocations,
                    free_units,
                    withheld_units: offers::free_units(&offered_whole, counted) - free_units,
                    foreign: usage.map(|usage| usage.foreign.clone()).unwrap_or_default(),
                    verdict,
                    identity: identity.clone(),
                };
                (offered, state)
            })
            .collect();
        let (offered, states): (Vec<_>, Vec<_>) = gpus.into_iter().unzip();
        let injectable = injectable(&states);
        self.describe(&injectable);
        let snapshot = Snapshot {
            offers: offers::offers(&offered, in_use.as_ref()),
            merits: states.iter().map(|gpu| (gpu.index, merit(gpu))).collect(),
            gpus: injectable,
        };
        self.outputs.snapshot.send_if_modified(|last| {
            let changed = **last != snapshot;
            if changed {
                *last = Arc::new(snapshot);
            }
            changed
        });
        let view = self.view(states);
        self.outputs.metrics.observe(&view);
        self.outputs.view.send_replace(Some(view));
    }

    fn reading(&self, uuid: &str) -> Option<&Reading> {
        match &self.sight {
            Sight::Sample(sample, _) if self.unresponsive().is_none() => {
                sample.gpus.iter().find(|gpu| gpu.identity.uuid == uuid).and_then(|gpu| match &gpu.probe {
                    Probe::Answer(reading) => Some(reading),
                    Probe::Lost | Probe::Silent(_) => None,
                })
            }
            _ => None,
        }
    }

    fn view(&self, gpus: Vec<GpuState>) -> NodeView {
        let sample = match &self.sight {
            Sight::Sample(sample, _) => Some(sample),
            Sight::Nothing | Sight::Unavailable(_) => None,
        };
        NodeView {
            driver_version: sample
                .map(|sample| sample.driver_version.clone())
                .filter(|version| !version.is_empty()),
            cuda_version: sample.and_then(|sample| sample.cuda_version.clone()),
            simulated: self.config.simulated,
            injection: self.config.injection,
            message: self.message(),
            gpus,
        }
    }

    /// Keeps the CDI specification of simulated GPUs in step. Every GPU that this node ever had stays in it: a
    /// container that holds a lost one can still be restarted.
    fn describe(&mut self, gpus: &BTreeMap<u32, Injectable>) {
        if self.injected.as_ref() == Some(gpus) {
            return;
        }
        let written = if self.config.simulated {
            cdi::write(&self.config.cdi_dir, gpus)
        } else {
            cdi::remove(&self.config.cdi_dir)
        };
        match written {
            Ok(()) => self.injected = Some(gpus.clone()),
            Err(error) => tracing::warn!(%error, "trying again"),
        }
    }
}

fn injectable(gpus: &[GpuState]) -> BTreeMap<u32, Injectable> {
    gpus.iter()
        .map(|gpu| {
            let minor = gpu.identity.minor.unwrap_or(gpu.index);
            (gpu.index, Injectable { uuid: gpu.identity.uuid.clone(), minor })
        })
        .collect()
}

fn merit(gpu: &GpuState) -> Merit {
    Merit {
        temperature: gpu.reading.as_ref().and_then(|reading| reading.temperature),
        free_mib: gpu.reading.as_ref().map_or(0, |reading| reading.memory_free_mib),
    }
}
