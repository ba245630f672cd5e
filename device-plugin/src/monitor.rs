//! Carries values round: from the reader of the GPUs and the kubelet's list, through the decisions, to the servers, the
//! `GPUNode` writer and the metrics. It decides nothing itself, and it is the only one that keeps state.

mod publish;

use crate::agreement::{self, Agreement, Injected};
use crate::allocations::{Holdings, Recent, Released};
use crate::clock::Clock;
use crate::config::Config;
use crate::device::{Identity, Now, Probe, Sample};
use crate::health::{self, Evidence, Extent, Mark, Verdict};
use crate::http::Pulse;
use crate::injection::Injectable;
use crate::metrics::Metrics;
use crate::nvml::Report;
use crate::podresources::PodResources;
use crate::pods::{Pods, Wanted};
use crate::processes::{self, Processes, Usage};
use crate::registry::{Known, Registry, RegistryFile};
use crate::server::Snapshot;
use crate::smooth::Smooth;
use crate::status::NodeView;
use crate::views::Place;
use principium_api::gpu_node::{GpuView, WithheldReason};
use principium_api::names::gpu_resource;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// How often the kubelet is asked who holds what while nothing is held, nothing withheld, and nothing was allocated lately.
const QUIET_POLL: Duration = Duration::from_secs(5);
/// Least time between two such questions while something is held: whoever waits for a GPU waits for the answer too.
const HELD_POLL: Duration = Duration::from_millis(800);
/// Least time between two rounds that allocations cause: a pod with many GPUs is many allocations, and their answers must
/// not wait for rounds.
const BREATH: Duration = Duration::from_millis(200);
/// How long a MIG device must be gone before it is forgotten.
const GONE: Duration = Duration::from_secs(30);
/// Least time for which the driver may say nothing before that counts as silence.
const LEAST_PATIENCE: Duration = Duration::from_secs(5);

/// Where the monitor's values go.
pub struct Outputs {
    /// To the servers.
    pub snapshot: watch::Sender<Arc<Snapshot>>,
    /// To the `GPUNode` writer.
    pub view: watch::Sender<Option<NodeView>>,
    /// To the reader of the node's pods.
    pub wanted_pods: watch::Sender<Wanted>,
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
    /// From the reader of the node's pods.
    pub pods: watch::Receiver<Pods>,
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
    gpus: BTreeMap<u32, Memory>,
    sight: Sight,
    holdings: Option<Holdings>,
    released: Released,
    /// How often the containers that hold something have changed.
    changes: u64,
    /// When the kubelet was asked last, and when it answered last.
    polled: Option<Duration>,
    answered: Option<Duration>,
    agreement: Agreement,
    injected: Option<BTreeMap<u32, Injectable>>,
}

/// What is remembered of one GPU between two rounds.
#[derive(Default)]
struct Memory {
    state: health::State,
    smooth: Smooth,
    place: Option<Place>,
    /// Why it is not offered although nothing is wrong with it.
    aside: Option<(WithheldReason, Mark)>,
    /// Since when a MIG device is no longer there although its GPU is.
    gone_since: Option<Duration>,
}

impl Memory {
    fn verdict(&self) -> Verdict {
        self.state.verdict().set_aside(self.aside.as_ref())
    }
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
        let resumed = |known: &Known| Memory {
            state: health::State::resumed(&known.kept),
            place: known.view.map(Place::new),
            ..Memory::default()
        };
        let gpus = registry.gpus().map(|(index, known)| (index, resumed(known))).collect();
        Self {
            config,
            clock,
            inputs,
            outputs,
            file,
            registry,
            saved: None,
            gpus,
            sight: Sight::Nothing,
            holdings: None,
            released: Released::default(),
            changes: 0,
            polled: None,
            answered: None,
            agreement: Agreement::default(),
            injected: None,
        }
    }

    /// Runs until `stop` is cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut heartbeat = tokio::time::interval(self.config.interval.max(Duration::from_secs(1)));
        let mut breath = tokio::time::Instant::now();
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
                () = allocated(&self.inputs.recent, breath) => {
                    breath = tokio::time::Instant::now() + BREATH;
                    Some(Round::Allocated)
                }
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
        if matches!(report, Report::Died(_)) {
            self.outputs.metrics.reader_restarted();
        }
        self.sight = match report {
            Report::Sample(sample) => {
                self.released.measured(sample.began);
                Sight::Sample(sample, self.clock.now().elapsed)
            }
            Report::Unavailable(reason) | Report::Died(reason) => {
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
            self.forget_parts(now);
            // What is withheld depends on what is in use at this moment.
            if self.verdicts() != before && self.polled != Some(now.elapsed) {
                self.poll(now).await;
            }
        }
        self.publish(&usage, now);
        self.remember();
        // An Xid is evidence once.
        if let Sight::Sample(sample, _) = &mut self.sight {
            sample.xids.clear();
        }
    }

    fn verdicts(&self) -> Vec<Verdict> {
        self.gpus.values().map(Memory::verdict).collect()
    }

    fn poll_is_due(&self, now: Now) -> bool {
        let Some(polled) = self.polled else { return true };
        let withholding = self.gpus.values().any(|gpu| gpu.verdict().extent != Extent::Nothing);
        let pending = !self.inputs.recent.lock().settle(self.holdings.as_ref(), now).is_empty();
        let held = self.holdings.as_ref().is_some_and(|holdings| holdings.devices().next().is_some());
        let pause = if held { HELD_POLL } else { QUIET_POLL };
        withholding || pending || self.agreement.is_doubtful() || now.elapsed.saturating_sub(polled) >= pause
    }

    async fn poll(&mut self, now: Now) {
        match self.inputs.pod_resources.list().await {
            Ok(holdings) => {
                self.released.listed(self.holdings.as_ref(), &holdings, Instant::now());
                if self.holdings.as_ref().map(Holdings::containers) != Some(holdings.containers()) {
                    self.changes += 1;
                }
                self.holdings = Some(holdings);
                self.answered = Some(now.elapsed);
            }
            // What was known stays in force: a kubelet that restarts keeps its pods.
            Err(error) => tracing::debug!(error = error.message(), "the kubelet does not say who holds what"),
        }
        self.polled = Some(now.elapsed);
    }

    /// Whose memory is on each GPU.
    fn usage(&self) -> BTreeMap<u32, Usage> {
        let Sight::Sample(sample, _) = &self.sight else { return BTreeMap::new() };
        let pods = self.inputs.pods.borrow();
        let mut usages = BTreeMap::new();
        for gpu in &sample.gpus {
            let (Some(index), Probe::Answer(reading)) =
                (self.registry.index_of(&gpu.identity.uuid), &gpu.probe)
            else {
                continue;
            };
            let owner = |pid| self.inputs.processes.owner(pid);
            let usage =
                processes::usage(index, &reading.processes, owner, &pods.names, self.holdings.as_ref());
            usages.insert(index, usage);
        }
        usages
    }

    /// Tells the reader of the node's pods what to look for.
    fn ask_for_pods(&self, usage: &BTreeMap<u32, Usage>) {
        let wanted = Wanted {
            uids: usage.values().flat_map(|usage| usage.unknown_pods.iter().cloned()).collect(),
            changes: self.changes,
            doubtful: self.agreement.is_doubtful(),
        };
        self.outputs.wanted_pods.send_if_modified(|last| {
            let changed = *last != wanted;
            *last = wanted;
            changed
        });
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
                    let concerning = sample.xids.iter().filter(|xid| xid.concerns(&known.identity));
                    let xids: Vec<u64> = concerning.map(|xid| xid.code).collect();
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
            let gpu = self.gpus.entry(index).or_default();
            gpu.state = health::step(&gpu.state, &evidence, &self.config.limits_for(&known.identity), now);
            let (temperature, power) = match evidence.probe {
                Probe::Answer(reading) => (reading.temperature, reading.power),
                Probe::Lost | Probe::Silent(_) => (None, None),
            };
            gpu.smooth = gpu.smooth.step(temperature, power);
        }
    }

    /// Forgets MIG devices that were taken apart, once nobody can be given them any more: their places are needed by
    /// others.
    fn forget_parts(&mut self, now: Now) {
        let Sight::Sample(sample, _) = &self.sight else { return };
        let answers = |uuid: &str| {
            sample.gpus.iter().any(|gpu| gpu.identity.uuid == uuid && matches!(gpu.probe, Probe::Answer(_)))
        };
        let listed = |uuid: &str| sample.gpus.iter().any(|gpu| gpu.identity.uuid == uuid);
        let Some(holdings) = &self.holdings else { return };
        let pending = self.inputs.recent.lock().settle(Some(holdings), now);
        let mut forgotten = Vec::new();
        for (index, known) in self.registry.gpus() {
            let gone = known.identity.part.as_ref().is_some_and(|part| answers(&part.of))
                && !listed(&known.identity.uuid)
                && !holdings.is_held(index)
                && !pending.iter().any(|device| device.gpu() == index);
            let gpu = self.gpus.entry(index).or_default();
            gpu.gone_since = gone.then(|| gpu.gone_since.unwrap_or(now.elapsed));
            if gpu.gone_since.is_some_and(|since| now.elapsed.saturating_sub(since) >= GONE) {
                forgotten.push(index);
            }
        }
        for index in forgotten {
            tracing::info!(resource = gpu_resource(index), "the MIG device was taken apart");
            self.registry.forget(index);
            self.gpus.remove(&index);
        }
    }

    /// Writes what a later run must know, if it has changed.
    fn remember(&mut self) {
        for (index, gpu) in &self.gpus {
            self.registry.keep(*index, gpu.state.kept());
            if let Some(place) = gpu.place {
                self.registry.place(*index, place.view);
            }
        }
        if self.saved.as_ref() != Some(&self.registry) {
            // Told once: the next attempt comes with the next change.
            if let Err(error) = self.file.save(&self.registry) {
                tracing::warn!(%error, "after a restart, GPUs may get other indices and failures are forgotten");
            }
            self.saved = Some(self.registry.clone());
        }
    }

    /// Decides in which view each GPU stands, and words why one is in none. `busy`: GPUs of which an allocation is
    /// under way.
    fn place(&mut self, busy: &BTreeSet<u32>, now: Now) {
        for (index, known) in self.registry.gpus() {
            let Identity { uuid, divided, .. } = &known.identity;
            let generic = self.config.is_generic(index, uuid);
            let wanted = if generic { GpuView::Generic } else { GpuView::Exact };
            let free = self.holdings.as_ref().is_some_and(|holdings| !holdings.is_held(index))
                && !busy.contains(&index);
            let gpu = self.gpus.entry(index).or_default();
            let place = gpu.place.unwrap_or(Place::new(wanted));
            let place = place.step(wanted, self.answered.filter(|_| free), now.elapsed);
            gpu.place = Some(place);
            let aside = if *divided {
                Some((WithheldReason::Divided, "divided into MIG devices, which are offered in its place"))
            } else if place.leaving.is_some() {
                Some((
                    WithheldReason::Moving,
                    match wanted {
                        GpuView::Generic => "moves to the generic pool as soon as nobody holds it",
                        GpuView::Exact => "leaves the generic pool as soon as nobody holds it",
                    },
                ))
            } else {
                None
            };
            gpu.aside = aside.map(|(reason, message)| match gpu.aside.take() {
                Some((same, mark)) if same == reason && mark.message == message => (same, mark),
                _ => (reason, Mark { message: message.to_owned(), since: now.wall }),
            });
        }
    }

    /// What contradicts what about who holds the GPUs.
    fn compare(&mut self, injected: &Injected, now: Now) {
        let found = match &self.holdings {
            Some(holdings) => {
                let uuid = |index| {
                    let mut gpus = self.registry.gpus();
                    gpus.find(|(other, _)| *other == index).map(|(_, known)| known.identity.uuid.as_str())
                };
                agreement::contradictions(&self.inputs.pods.borrow().requests, holdings, injected, uuid)
            }
            None => BTreeSet::new(),
        };
        self.agreement.step(found, now.elapsed);
    }
}

/// Waits for an allocation, but not before `earliest`.
async fn allocated(recent: &Recent, earliest: tokio::time::Instant) {
    tokio::time::sleep_until(earliest).await;
    recent.changed().await;
}
