//! Over HTTP: one interactive client, alone and beside bulk requests that never end; and the memory of an hour of load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use principium_embedder::args::{Args, Command};
use principium_embedder::serve;
use serde_json::{Value, json};

use crate::contenders::list;
use crate::percentile;

/// Requests of the interactive client.
const REQUESTS: usize = 150;
/// Clients of a load.
const CLIENTS: usize = 4;
/// From one to the next: a person's pace, not a queue of its own.
const PAUSE: Duration = Duration::from_millis(20);

pub fn measure(model: &str, texts: &Value) -> Result<Value> {
    let bulk: Vec<&str> = list(&texts["bulk"]).filter_map(Value::as_str).collect();
    let bulk = json!({ "inputs": bulk }).to_string();
    let short = json!({ "inputs": texts["short"] }).to_string();
    served(model, async |address| {
        let url = format!("{address}/embed");
        let client = reqwest::Client::new();
        let alone = interactive(&client, &url, &short).await?;
        let (running, done) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
        // Two, so that the next request waits in the queue before the last one ends.
        let clients: Vec<_> = (0..2)
            .map(|_| {
                let (running, done) = (Arc::clone(&running), Arc::clone(&done));
                let (client, url, bulk) = (client.clone(), url.clone(), bulk.clone());
                tokio::spawn(async move {
                    while running.load(Ordering::Relaxed) {
                        post(&client, &url, &bulk).await?;
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let beside = interactive(&client, &url, &short).await?;
        running.store(false, Ordering::Relaxed);
        for client in clients {
            client.await??;
        }
        let row = |times: &[f64]| json!({ "p50": percentile(times, 50), "p99": percentile(times, 99) });
        Ok(
            json!({ "alone": row(&alone), "beside_bulk": row(&beside), "bulk_requests": done.load(Ordering::Relaxed) }),
        )
    })
}

/// Requests of several kinds and of all sizes, by several clients without pause; prints the memory each minute, and fails where
/// it grew after the first tenth of the time.
pub fn load(model: &str, texts: &Value, minutes: u32) -> Result<()> {
    let bulk: Vec<String> = list(&texts["bulk"]).filter_map(Value::as_str).map(str::to_owned).collect();
    ensure!(!bulk.is_empty() && minutes > 0, "a load needs texts, and a minute at least");
    served(model, async |address| {
        let (running, done) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let (running, done) = (Arc::clone(&running), Arc::clone(&done));
                let (address, bulk) = (address.clone(), bulk.clone());
                tokio::spawn(async move {
                    let mut client = reqwest::Client::new();
                    while running.load(Ordering::Relaxed) {
                        let number = done.fetch_add(1, Ordering::Relaxed);
                        if number.is_multiple_of(1000) {
                            // Connections come and go as well.
                            client = reqwest::Client::new();
                        }
                        mixed(&client, &address, &bulk, number).await?;
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        let mut memory = Vec::new();
        for minute in 1..=minutes {
            tokio::time::sleep(Duration::from_mins(1)).await;
            ensure!(!clients.iter().any(tokio::task::JoinHandle::is_finished), "a client failed");
            let mib = resident_mib()?;
            println!("minute {minute}: {} requests, {mib} MiB resident", done.load(Ordering::Relaxed));
            memory.push(mib);
        }
        running.store(false, Ordering::Relaxed);
        for client in clients {
            client.await??;
        }
        let (settling, rest) = memory.split_at(memory.len().div_ceil(10));
        let settled = settling.iter().copied().max().unwrap_or_default();
        let most = rest.iter().copied().max().unwrap_or(settled);
        println!(
            "{} requests in {minutes} minutes: {settled} MiB at most in the first tenth, {most} MiB in the rest",
            done.load(Ordering::Relaxed)
        );
        ensure!(most <= settled + settled / 10, "memory grew");
        Ok(())
    })
}

/// The `number`-th request of a load: all kinds in turn, with more and fewer texts.
async fn mixed(client: &reqwest::Client, address: &str, bulk: &[String], number: usize) -> Result<()> {
    let texts = &bulk[..1 + number * 37 % bulk.len()];
    let (path, body, status) = match number % 5 {
        0 => ("embed", json!({ "inputs": texts }), 200),
        1 => ("embed", json!({ "inputs": texts[texts.len() - 1] }), 200),
        2 => ("v1/embeddings", json!({ "input": texts, "model": "any", "encoding_format": "base64" }), 200),
        3 => ("tokenize", json!({ "inputs": texts }), 200),
        _ => ("embed", json!({ "inputs": 7 }), 422),
    };
    let response = client.post(format!("{address}/{path}")).json(&body).send().await?;
    let found = response.status();
    let answer = response.bytes().await?;
    ensure!(found.as_u16() == status, "{found} of /{path}: {}", String::from_utf8_lossy(&answer));
    Ok(())
}

/// Memory of this process, which is the server's and its clients'.
fn resident_mib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim_end_matches("kB").trim().parse().context("VmRSS is no number of kB")?;
    Ok(kib >> 10)
}

/// What `work` makes of a server of `model`, of which it is given the address.
fn served<T>(model: &str, work: impl AsyncFnOnce(String) -> Result<T>) -> Result<T> {
    let arguments = ["bench", "serve", "--listen", "127.0.0.1:0", "--model", model];
    let Args { command: Command::Serve(args) } = Args::try_parse_from(arguments)? else {
        anyhow::bail!("not the command serve")
    };
    let service = serve::build(&args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async move {
        let listener = tokio::net::TcpListener::bind(args.listen).await?;
        let address = format!("http://{}", listener.local_addr()?);
        tokio::spawn(async move { axum::serve(listener, service.router).await });
        work(address).await
    })
}

/// Milliseconds of each request, sorted.
async fn interactive(client: &reqwest::Client, url: &str, body: &str) -> Result<Vec<f64>> {
    let mut times = Vec::with_capacity(REQUESTS);
    for _ in 0..REQUESTS {
        let started = Instant::now();
        post(client, url, body).await?;
        times.push(started.elapsed().as_secs_f64() * 1000.0);
        tokio::time::sleep(PAUSE).await;
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// The client is made before the clock runs: it reads the system's certificates.
async fn post(client: &reqwest::Client, url: &str, body: &str) -> Result<()> {
    let response = client.post(url).body(body.to_owned()).send().await?;
    response.error_for_status().context("a request was refused")?.bytes().await?;
    Ok(())
}
