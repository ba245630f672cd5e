//! One interactive client over HTTP, alone and beside bulk requests that never end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use principium_embedder::args::{Args, Command};
use principium_embedder::serve;
use serde_json::{Value, json};

use crate::contenders::list;
use crate::percentile;

/// Requests of the interactive client.
const REQUESTS: usize = 150;
/// From one to the next: a person's pace, not a queue of its own.
const PAUSE: Duration = Duration::from_millis(20);

pub fn measure(model: &str, texts: &Value) -> Result<Value> {
    let arguments = ["bench", "serve", "--listen", "127.0.0.1:0", "--model", model];
    let Args { command: Command::Serve(args) } = Args::try_parse_from(arguments)? else {
        anyhow::bail!("not the command serve")
    };
    let service = serve::build(&args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let bulk: Vec<&str> = list(&texts["bulk"]).filter_map(Value::as_str).collect();
    let bulk = json!({ "inputs": bulk }).to_string();
    let short = json!({ "inputs": texts["short"] }).to_string();
    runtime.block_on(async move {
        let listener = tokio::net::TcpListener::bind(args.listen).await?;
        let url = format!("http://{}/embed", listener.local_addr()?);
        tokio::spawn(async move { axum::serve(listener, service.router).await });
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
        Ok(json!({ "alone": row(&alone), "beside_bulk": row(&beside), "bulk_requests": done.load(Ordering::Relaxed) }))
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
