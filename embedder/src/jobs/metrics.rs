//! What is counted of jobs.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SinkLabel {
    sink: &'static str,
}

/// Numbers about jobs.
#[derive(Default)]
pub struct JobMetrics {
    /// Jobs that have not ended.
    pub open: Gauge,
    ended: Family<StateLabel, Counter>,
    documents: Family<OutcomeLabel, Counter>,
    chunks: Family<OutcomeLabel, Counter>,
    delivered: Family<SinkLabel, Counter>,
    sink_failures: Family<SinkLabel, Counter>,
}

impl JobMetrics {
    /// Adds them to those of the process.
    pub fn register(&self, registry: &mut Registry) {
        let Self { open, ended, documents, chunks, delivered, sink_failures } = self;
        registry.register("jobs_open", "Jobs that wait or run", open.clone());
        registry.register("jobs_ended", "Jobs that ended, by state", ended.clone());
        let help = "Documents of jobs: processed, failed, removed";
        registry.register("job_documents", help, documents.clone());
        registry.register("job_chunks", "Chunks of jobs: embedded, or reused as they were", chunks.clone());
        registry.register("sink_chunks", "Chunks that sinks took or removed", delivered.clone());
        registry.register("sink_failures", "Requests to sinks that failed", sink_failures.clone());
    }

    /// Counts a job that ended.
    pub fn ended(&self, state: &'static str) {
        self.ended.get_or_create(&StateLabel { state }).inc();
    }

    /// Counts documents.
    pub fn documents(&self, outcome: &'static str, count: u64) {
        self.documents.get_or_create(&OutcomeLabel { outcome }).inc_by(count);
    }

    /// Counts chunks.
    pub fn chunks(&self, outcome: &'static str, count: u64) {
        self.chunks.get_or_create(&OutcomeLabel { outcome }).inc_by(count);
    }

    /// Counts chunks that a sink took or removed.
    pub fn delivered(&self, sink: &'static str, count: u64) {
        self.delivered.get_or_create(&SinkLabel { sink }).inc_by(count);
    }

    /// Counts a request to a sink that failed.
    pub fn sink_failed(&self, sink: &'static str) {
        self.sink_failures.get_or_create(&SinkLabel { sink }).inc();
    }
}
