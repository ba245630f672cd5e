//! The numbers behind `/metrics`: what is counted, and under which names. Nothing is measured here.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::args::Gpu;
use crate::jobs::JobMetrics;

/// Labels of one HTTP request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// The route as declared, never the path that a client sent.
    pub route: &'static str,
    /// HTTP status.
    pub status: u16,
}

/// Labels of one GPU worker or of the CPU.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WorkerLabels {
    /// Position of the worker in this process.
    pub worker: usize,
}

/// Labels of one instance of a language model.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct InstanceLabels {
    /// Its address.
    pub instance: String,
}

/// Labels of tokens of prompts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PromptLabels {
    /// The instance's address.
    pub instance: String,
    /// `evaluated`, or `cached` where the prompt began like the one before.
    pub kind: &'static str,
}

/// What language models did for the document pipeline.
#[derive(Clone, Default)]
pub struct EnrichmentMetrics {
    /// Contexts by instance.
    pub contexts: Family<InstanceLabels, Counter>,
    /// Contexts that were given before and not asked for again.
    pub from_cache: Counter,
    /// Requests that failed, by instance.
    pub failures: Family<InstanceLabels, Counter>,
    /// Requests that an instance turned away.
    pub busy: Family<InstanceLabels, Counter>,
    /// Tokens of prompts, by instance and whether its prefix cache should have had them.
    pub prompt_tokens: Family<PromptLabels, Counter>,
    /// Tokens written, by instance.
    pub output_tokens: Family<InstanceLabels, Counter>,
}

impl EnrichmentMetrics {
    fn register(&self, registry: &mut Registry) {
        let Self { contexts, from_cache, failures, busy, prompt_tokens, output_tokens } = self;
        let registry = registry.sub_registry_with_prefix("enrichment");
        registry.register("contexts", "Contexts of chunks, by instance", contexts.clone());
        registry.register("contexts_from_cache", "Contexts that were given before", from_cache.clone());
        registry.register("failures", "Requests to an instance that failed", failures.clone());
        registry.register("busy", "Requests that an instance turned away", busy.clone());
        registry.register(
            "prompt_tokens",
            "Tokens of prompts, evaluated or (by the common beginning with the prompt before) cached",
            prompt_tokens.clone(),
        );
        registry.register("output_tokens", "Tokens that an instance wrote", output_tokens.clone());
    }
}

/// Labels of one route.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RouteLabels {
    /// The route as declared.
    pub route: &'static str,
}

/// Labels of one card that was given.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct GpuLabels {
    /// Index on the node.
    pub gpu: u32,
    /// The driver's name for the card.
    pub uuid: String,
}

impl GpuLabels {
    /// The labels of `gpu`.
    pub fn of(gpu: &Gpu) -> Self {
        Self { gpu: gpu.index, uuid: gpu.uuid.clone() }
    }
}

/// All metrics of this process.
pub struct Metrics {
    registry: Registry,
    /// Requests by route and status.
    pub requests: Family<RequestLabels, Counter>,
    /// From the request's arrival to its answer, in seconds.
    pub request_duration: Family<RouteLabels, Histogram>,
    /// From an input's arrival in the queue to its batch, in seconds.
    pub queue_duration: Histogram,
    /// Computation of one batch, in seconds.
    pub batch_duration: Histogram,
    /// Inputs of a batch.
    pub batch_inputs: Histogram,
    /// Tokens of a batch.
    pub batch_tokens: Histogram,
    /// Tokens computed, by worker.
    pub tokens: Family<WorkerLabels, Counter>,
    /// Positions computed beyond the tokens, by worker: what padding wastes.
    pub padding: Family<WorkerLabels, Counter>,
    /// Batches that failed, by worker; what another worker computed then is among them.
    pub batch_failures: Family<WorkerLabels, Counter>,
    /// Inputs whose client was gone before their turn.
    pub cancelled: Counter,
    /// Inputs that wait.
    pub queue_inputs: Gauge,
    /// Requests refused because the queue was full.
    pub overloaded: Counter,
    /// 1 where the GPUs that were given are used.
    pub accelerated: Gauge<f64, AtomicU64>,
    /// What language models did.
    pub enrichment: EnrichmentMetrics,
    /// Those of jobs.
    pub jobs: JobMetrics,
    /// °C of each card that was given and answers.
    pub gpu_temperature: Family<GpuLabels, Gauge>,
    /// Bytes in use of each card, by whomever.
    pub gpu_memory_used: Family<GpuLabels, Gauge>,
    /// Bytes of each card that are this process's share.
    pub gpu_share: Family<GpuLabels, Gauge>,
}

fn seconds() -> Histogram {
    Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0])
}

impl Default for Metrics {
    fn default() -> Self {
        let sizes = || Histogram::new((0..16).map(|power| f64::from(1_u32 << power)));
        let mut metrics = Self {
            registry: Registry::with_prefix("principium_embedder"),
            requests: Family::default(),
            request_duration: Family::new_with_constructor(seconds as fn() -> Histogram),
            queue_duration: seconds(),
            batch_duration: seconds(),
            batch_inputs: sizes(),
            batch_tokens: sizes(),
            tokens: Family::default(),
            padding: Family::default(),
            batch_failures: Family::default(),
            cancelled: Counter::default(),
            queue_inputs: Gauge::default(),
            overloaded: Counter::default(),
            accelerated: Gauge::default(),
            gpu_temperature: Family::default(),
            gpu_memory_used: Family::default(),
            gpu_share: Family::default(),
            enrichment: EnrichmentMetrics::default(),
            jobs: JobMetrics::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let Self {
            registry,
            requests,
            request_duration,
            queue_duration,
            batch_duration,
            batch_inputs,
            batch_tokens,
            tokens,
            padding,
            batch_failures,
            cancelled,
            queue_inputs,
            overloaded,
            accelerated,
            gpu_temperature,
            gpu_memory_used,
            gpu_share,
            enrichment,
            jobs,
        } = self;
        enrichment.register(registry);
        jobs.register(registry);
        registry.register("requests", "HTTP requests by route and status", requests.clone());
        let unit = || Unit::Seconds;
        let help = "Time from a request's arrival to its answer";
        registry.register_with_unit("request_duration", help, unit(), request_duration.clone());
        registry.register_with_unit(
            "queue_duration",
            "Time that an input waits for its batch",
            unit(),
            queue_duration.clone(),
        );
        registry.register_with_unit(
            "batch_duration",
            "Computation of one batch",
            unit(),
            batch_duration.clone(),
        );
        registry.register("batch_inputs", "Inputs of a batch", batch_inputs.clone());
        registry.register("batch_tokens", "Tokens of a batch", batch_tokens.clone());
        registry.register("tokens", "Tokens computed", tokens.clone());
        registry.register(
            "padding",
            "Positions that attention computed beyond the tokens: in 16 bits a GPU computes multiples of 16 of each text; none elsewhere",
            padding.clone(),
        );
        registry.register(
            "batch_failures",
            "Batches that failed; another worker may have computed their inputs then",
            batch_failures.clone(),
        );
        registry.register(
            "cancelled_inputs",
            "Inputs whose client was gone before their turn",
            cancelled.clone(),
        );
        registry.register("queue_inputs", "Inputs that wait for a batch", queue_inputs.clone());
        registry.register(
            "overloaded_requests",
            "Requests refused because the queue was full",
            overloaded.clone(),
        );
        registry.register(
            "accelerated",
            "1 where the model runs on the GPUs that were given",
            accelerated.clone(),
        );
        registry.register_with_unit(
            "gpu_temperature",
            "Temperature of a card that was given",
            Unit::Celsius,
            gpu_temperature.clone(),
        );
        registry.register_with_unit(
            "gpu_memory_used",
            "Memory in use of a card that was given, by whomever",
            Unit::Bytes,
            gpu_memory_used.clone(),
        );
        registry.register_with_unit(
            "gpu_memory_share",
            "This process's share of the memory of a card",
            Unit::Bytes,
            gpu_share.clone(),
        );
    }

    /// The text that Prometheus reads.
    pub fn render(&self) -> Result<String, std::fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }
}
