//! The nodes of the benchmark.

use anyhow::Result;
use futures::{StreamExt, TryStreamExt};
use kube::Client;
use principium_e2e::stand_in;

/// Requests under way at once.
const AT_ONCE: usize = 16;

/// Makes this many nodes.
pub async fn make(client: &Client, nodes: u32) -> Result<()> {
    futures::stream::iter(0..nodes)
        .map(|node| async move { stand_in::make(client, &format!("node-{node:05}"), node).await })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}
