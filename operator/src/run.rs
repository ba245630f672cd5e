//! The loop: waits for a change, observes, plans, applies.

use crate::apply::Writer;
use crate::args::Args;
use crate::caches::{Caches, Watching};
use crate::clients::Clients;
use crate::events::Recorder;
use crate::leader::{Candidate, Term};
use crate::metrics::Metrics;
use crate::observe::{Assumed, observe};
use crate::observed::Settings;
use crate::plan::plan;
use crate::probe::Prober;
use crate::server::{Health, serve};
use anyhow::Context;
use jiff::Timestamp;
use kube::Client;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

/// Changes come in bursts: one pass for all that come within this time.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// Runs the operator until it is told to stop, or no longer leads.
pub async fn run(args: Args, clients: Clients, stop: CancellationToken) -> anyhow::Result<()> {
    let Args {
        command: _,
        embedder_image,
        ollama_image,
        puller_image,
        require_acceleration,
        watch_namespace,
        listen,
        leader_election,
        namespace,
        name,
        log: _,
        log_json: _,
    } = args;
    let Clients { requests: client, watches } = clients;
    let settings = Arc::new(Settings {
        embedder_image,
        ollama_image,
        puller_image,
        require_acceleration,
        watch_namespace: watch_namespace.clone(),
    });
    let metrics = Arc::new(Metrics::default());
    let ready = Arc::new(AtomicBool::new(false));
    let changed = Arc::new(Notify::new());
    let health = Health { metrics: Arc::clone(&metrics), ready: Arc::clone(&ready) };
    // It answers until the work is done, also while the operator stops.
    let served = CancellationToken::new();
    let _served = served.clone().drop_guard();
    let server = tokio::spawn(serve(listen, health, served));
    let caches = Caches::start(&Watching {
        client: watches,
        namespace: watch_namespace,
        lease_namespace: namespace.clone(),
        changed: Arc::clone(&changed),
        metrics: Arc::clone(&metrics),
    });
    let work = async {
        tokio::select! {
            filled = caches.ready() => filled.context("filling the caches")?,
            () = stop.cancelled() => return Ok(()),
        }
        ready.store(true, Ordering::Release);
        tracing::info!("the caches are filled");
        let mut operator = Operator {
            writer: Writer::new(
                client.clone(),
                Arc::clone(&metrics),
                Recorder::new(client.clone(), name.clone()),
            ),
            prober: Prober::new(Arc::clone(&changed), client.clone()).context("making the HTTP client")?,
            assumed: Assumed::default(),
            client: client.clone(),
            caches: &caches,
            settings,
            metrics: Arc::clone(&metrics),
            changed: &changed,
        };
        if leader_election {
            return lead(&mut operator, client, &namespace, name, &metrics, &stop).await;
        }
        metrics.leads(true);
        let term = Term::unlimited();
        tokio::select! {
            () = operator.work(&term) => {}
            () = stop.cancelled() => {}
        }
        Ok(())
    };
    tokio::select! {
        result = work => result,
        result = server => {
            result.context("the HTTP server")?.with_context(|| format!("listening on {listen}; is the port taken?"))
        }
    }
}

async fn lead(
    operator: &mut Operator<'_>,
    client: Client,
    namespace: &str,
    name: String,
    metrics: &Metrics,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let mut candidate = Candidate::new(client, namespace, name);
    let term = tokio::select! {
        term = candidate.elected() => term,
        () = stop.cancelled() => return Ok(()),
    };
    tracing::info!("this operator leads");
    metrics.leads(true);
    tokio::select! {
        () = operator.work(&term) => {}
        () = candidate.keep(&term) => {}
        () = stop.cancelled() => {}
    }
    metrics.leads(false);
    if stop.is_cancelled() {
        candidate.release().await;
        return Ok(());
    }
    // Starting anew is the simplest way to know nothing that is out of date.
    anyhow::bail!("this operator no longer leads")
}

struct Operator<'a> {
    caches: &'a Caches,
    settings: Arc<Settings>,
    metrics: Arc<Metrics>,
    changed: &'a Notify,
    writer: Writer,
    prober: Prober,
    assumed: Assumed,
    /// For what the caches don't tell.
    client: Client,
}

impl Operator<'_> {
    async fn work(&mut self, term: &Term) {
        loop {
            let again = Instant::now() + self.pass(term).await;
            tokio::select! {
                () = self.changed.notified() => sleep(DEBOUNCE).await,
                () = sleep_until(again) => {}
            }
        }
    }

    /// One pass. Returns when the next is due though nothing changes.
    async fn pass(&mut self, term: &Term) -> Duration {
        const IDLE: Duration = Duration::from_secs(300);
        let now = Timestamp::now();
        self.assumed.forget_seen(&self.caches.pods);
        self.assumed.look_up(&self.client, now).await;
        let failures = self.writer.failures();
        let answers = self.prober.answers();
        let started = std::time::Instant::now();
        let settings = Arc::clone(&self.settings);
        let observed = observe(self.caches, settings, answers, failures, &self.assumed);
        let mut plan = plan(&observed, now);
        self.metrics.planned(started.elapsed());
        self.metrics.count(&observed, &plan);
        tracing::debug!(
            actions = plan.actions.len(),
            statuses = plan.statuses.len(),
            took = ?started.elapsed(),
            "planned"
        );
        // To ask may be to make a job: who no longer leads asks nobody.
        let targets = std::mem::take(&mut plan.targets);
        self.prober.follow(if term.holds() { targets } else { Vec::new() });
        let planned = plan.requeue_after.and_then(|after| Duration::try_from(after).ok());
        let applied = self.writer.apply(plan, term).await;
        for pod in &applied.made {
            self.assumed.made(pod, Timestamp::now());
        }
        let doubt = self.assumed.doubt();
        [planned, applied.retry_after, doubt, Some(IDLE)]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(IDLE)
            .max(DEBOUNCE)
    }
}
