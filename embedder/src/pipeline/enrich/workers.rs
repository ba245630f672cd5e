//! One worker for each instance of the pool: finding the instances, following them, leaving the failing and the slow ones alone.

use super::held::Said;
use super::{Pool, prompt};
use crate::metrics::InstanceLabels;
use crate::ollama::Failure;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::task::{AbortHandle, JoinSet};

/// How often waiting parts look around when nothing wakes them.
const TICK: Duration = Duration::from_millis(500);

/// Keeps one worker for every address behind the pool's name, until all is done.
pub(super) async fn supervise(pool: Pool) {
    let timing = pool.shared.config.timing;
    let mut workers = JoinSet::new();
    let mut running: HashMap<SocketAddr, AbortHandle> = HashMap::new();
    let mut looked_up: Option<Instant> = None;
    let mut last_healthy = Instant::now();
    while !pool.done() {
        // Registered before looking, so that a change in between is not missed.
        let changed = pool.shared.changed.notified();
        if looked_up.is_none_or(|when| when.elapsed() > timing.refresh) {
            looked_up = Some(Instant::now());
            match pool.shared.client.find().await {
                Ok(found) => pool.state().known = found.into_iter().collect(),
                Err(error) => tracing::warn!(%error, "no news of the Ollama instances"),
            }
        }
        // A worker that has panicked is replaced; what it held was handed back.
        running.retain(|_, worker| !worker.is_finished());
        let known: Vec<SocketAddr> = pool.state().known.iter().copied().collect();
        for address in known {
            running.entry(address).or_insert_with(|| {
                pool.state().healthy.insert(address);
                workers.spawn(work(pool.clone(), address))
            });
        }
        let abandoned = std::mem::take(&mut pool.state().abandoned);
        for (task, why) in abandoned {
            pool.deliver(task, Err(why)).await;
        }
        let (healthy, stalled) = {
            let state = pool.state();
            (!state.healthy.is_empty(), state.flight.is_empty() && state.progress.elapsed() > timing.stalled)
        };
        let hosts = pool.shared.config.hosts_in_words();
        if healthy {
            last_healthy = Instant::now();
        } else if last_healthy.elapsed() > timing.unreachable {
            give_up_waiting(&pool, &format!("no Ollama instance behind {hosts} answers")).await;
        }
        if stalled && healthy {
            let seconds = timing.stalled.as_secs();
            give_up_waiting(
                &pool,
                &format!("every Ollama instance behind {hosts} has been too busy for {seconds} s"),
            )
            .await;
        }
        // The time is up or something has changed: both mean to look again.
        let _ = tokio::time::timeout(TICK, changed).await;
    }
    workers.abort_all();
}

/// No instance: everything that waits goes on without context.
async fn give_up_waiting(pool: &Pool, why: &str) {
    loop {
        let nobody = SocketAddr::from(([0, 0, 0, 0], 0));
        let Some(task) = pool.state().schedule.next(nobody, |_, _| true) else { return };
        pool.deliver(task, Err(why.to_owned())).await;
    }
}

/// One instance's work: chunk after chunk.
async fn work(pool: Pool, address: SocketAddr) {
    let timing = pool.shared.config.timing;
    let labels = InstanceLabels { instance: address.to_string() };
    let metrics = &pool.shared.metrics;
    let (mut leave, mut rest) = (timing.leave.0, timing.leave.0);
    while !pool.done() && pool.state().known.contains(&address) {
        let changed = pool.shared.changed.notified();
        let Some(held) = pool.take(address) else {
            let _ = tokio::time::timeout(TICK, changed).await;
            continue;
        };
        match held.ask().await {
            Ok(Said::Before(context)) => {
                pool.state().from_cache += 1;
                metrics.from_cache.inc();
                held.deliver(Ok(context)).await;
            }
            Ok(Said::Now(answer, prompt)) => {
                leave = timing.leave.0;
                let prompt = pool.shared.count(address, &answer, prompt);
                let took = held.since();
                let context = prompt::context(&answer.response, answer.done_reason == "length");
                held.deliver(context.ok_or_else(|| format!("{address} gave an empty answer"))).await;
                let slow = {
                    let mut state = pool.state();
                    state.pace.observe(address, took, prompt);
                    state.pace.is_slow(address)
                };
                rest = if slow { be_left_alone(&pool, address, rest).await } else { timing.leave.0 };
            }
            Err(failure @ (Failure::TooLong(_) | Failure::Refused(_))) => {
                pool.state().figures(address).failures += 1;
                metrics.failures.get_or_create(&labels).inc();
                held.deliver(Err(failure.to_string())).await;
            }
            Err(Failure::Busy { message, retry_after }) => {
                tracing::debug!(message, "an Ollama instance is busy");
                pool.state().figures(address).busy += 1;
                metrics.busy.get_or_create(&labels).inc();
                held.hand_back();
                tokio::time::sleep(retry_after.unwrap_or(leave).min(timing.leave.1)).await;
                leave = (leave * 2).min(timing.leave.1);
            }
            Err(failure @ (Failure::Unreachable(_) | Failure::Broken(_))) => {
                tracing::warn!(%failure, "an Ollama instance failed");
                metrics.failures.get_or_create(&labels).inc();
                {
                    let mut state = pool.state();
                    state.figures(address).failures += 1;
                    state.healthy.remove(&address);
                    // Nobody is slow beside one that is gone.
                    state.pace.forget(address);
                }
                match failure {
                    Failure::Unreachable(_) => held.hand_back(),
                    failure => held.broke(&failure.to_string()),
                }
                leave = recover(&pool, address, leave).await;
            }
        }
    }
    let mut state = pool.state();
    state.schedule.give_up(address);
    state.healthy.remove(&address);
    state.pace.forget(address);
}

/// A slow instance gives what it has before it to the others and is left alone for a while; returns how long the next time.
async fn be_left_alone(pool: &Pool, address: SocketAddr, rest: Duration) -> Duration {
    tracing::warn!(%address, "an Ollama instance is much slower than the others");
    {
        let mut state = pool.state();
        state.figures(address).slow += 1;
        state.schedule.give_up(address);
    }
    pool.shared.changed.notify_waiters();
    tokio::time::sleep(rest).await;
    (rest * 2).min(pool.shared.config.timing.leave.1)
}

/// Waits until an instance answers a plain question again, is no longer one of the pool's, or all is done; returns how
/// long to leave it alone the next time.
async fn recover(pool: &Pool, address: SocketAddr, mut leave: Duration) -> Duration {
    let most = pool.shared.config.timing.leave.1;
    loop {
        tokio::time::sleep(leave).await;
        leave = (leave * 2).min(most);
        if pool.done() || !pool.state().known.contains(&address) {
            return leave;
        }
        if pool.shared.client.answers(address).await {
            pool.state().healthy.insert(address);
            return leave;
        }
    }
}
