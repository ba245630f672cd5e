//! One worker for each instance of the pool: finding the instances, following them, leaving the failing ones alone.

use super::{Failure, Pool, prompt};
use crate::ollama;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::task::{AbortHandle, JoinSet};

/// How often the pool's name is looked up while a job runs.
const REFRESH: Duration = Duration::from_secs(10);
/// How long a failing or busy instance is left alone: the first time, and at most.
const LEAVE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
/// How often waiting parts look around when nothing wakes them.
const TICK: Duration = Duration::from_millis(500);
/// How long a job waits for an instance that answers before chunks go on without context.
const PATIENCE: Duration = Duration::from_secs(30);

/// Keeps one worker for every address behind the pool's name, until all is done.
pub(super) async fn supervise(pool: Pool, hosts: Vec<String>) {
    let mut workers = JoinSet::new();
    let mut running: HashMap<SocketAddr, AbortHandle> = HashMap::new();
    let mut looked_up: Option<Instant> = None;
    let mut last_healthy = Instant::now();
    while !pool.done() {
        // Registered before looking, so that a change in between is not missed.
        let changed = pool.shared.changed.notified();
        if looked_up.is_none_or(|when| when.elapsed() > REFRESH) {
            looked_up = Some(Instant::now());
            match ollama::resolve(&hosts).await {
                Ok(found) => pool.state().known = found.into_iter().collect(),
                Err(error) => tracing::warn!(%error, "no news of the Ollama instances"),
            }
            running.retain(|_, worker| !worker.is_finished());
            let known: Vec<SocketAddr> = pool.state().known.iter().copied().collect();
            for address in known {
                running.entry(address).or_insert_with(|| {
                    pool.state().healthy.insert(address);
                    workers.spawn(work(pool.clone(), address))
                });
            }
        }
        if !pool.state().healthy.is_empty() {
            last_healthy = Instant::now();
        } else if last_healthy.elapsed() > PATIENCE {
            give_up_waiting(&pool, &hosts.join(", ")).await;
        }
        // The time is up or something has changed: both mean to look again.
        let _ = tokio::time::timeout(TICK, changed).await;
    }
    workers.abort_all();
}

/// No instance: everything that waits goes on without context.
async fn give_up_waiting(pool: &Pool, hosts: &str) {
    loop {
        let nobody = SocketAddr::from(([0, 0, 0, 0], 0));
        let Some((task, _)) = pool.next(nobody) else { return };
        pool.deliver(task, Err(format!("no Ollama instance behind {hosts} answers"))).await;
    }
}

/// One instance's work: chunk after chunk.
async fn work(pool: Pool, address: SocketAddr) {
    let mut leave = LEAVE.0;
    while !pool.done() && pool.state().known.contains(&address) {
        let changed = pool.shared.changed.notified();
        let Some((task, prepared)) = pool.next(address) else {
            let _ = tokio::time::timeout(TICK, changed).await;
            continue;
        };
        let Some(chunk) = prepared.chunks.get(task.chunk) else { continue };
        match pool.ask(address, task, &prepared.document, chunk).await {
            Ok(answer) => {
                leave = LEAVE.0;
                pool.state().figures.entry(address).or_default().count(&answer);
                let context = prompt::context(&answer.response, answer.done_reason == "length");
                pool.deliver(task, context.ok_or_else(|| format!("{address} gave an empty answer"))).await;
            }
            Err(failure @ (Failure::TooLong(_) | Failure::Refused(_))) => {
                pool.state().figures.entry(address).or_default().failures += 1;
                pool.deliver(task, Err(failure.to_string())).await;
            }
            Err(Failure::Busy(message)) => {
                tracing::debug!(message, "an Ollama instance is busy");
                pool.state().figures.entry(address).or_default().busy += 1;
                pool.hand_back(address, task);
                tokio::time::sleep(leave).await;
                leave = (leave * 2).min(LEAVE.1);
            }
            Err(failure @ (Failure::Unreachable(_) | Failure::Broken(_))) => {
                tracing::warn!(%failure, "an Ollama instance failed");
                fail(&pool, address);
                if matches!(failure, Failure::Unreachable(_)) || pool.may_try_again(task) {
                    pool.hand_back(address, task);
                } else {
                    pool.deliver(task, Err(failure.to_string())).await;
                }
                leave = recover(&pool, address, leave).await;
            }
        }
    }
    let mut state = pool.state();
    state.schedule.give_up(address);
    state.healthy.remove(&address);
}

/// Takes an instance out of the healthy ones, and what it has before it.
fn fail(pool: &Pool, address: SocketAddr) {
    let mut state = pool.state();
    state.figures.entry(address).or_default().failures += 1;
    state.healthy.remove(&address);
    state.schedule.give_up(address);
}

/// Waits until an instance answers a plain question again, is no longer one of the pool's, or all is done; returns how
/// long to leave it alone the next time.
async fn recover(pool: &Pool, address: SocketAddr, mut leave: Duration) -> Duration {
    loop {
        tokio::time::sleep(leave).await;
        leave = (leave * 2).min(LEAVE.1);
        if pool.done() || !pool.state().known.contains(&address) {
            return leave;
        }
        if pool.shared.client.answers(address).await {
            pool.state().healthy.insert(address);
            return leave;
        }
    }
}
