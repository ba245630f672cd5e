//! The resources: a fifth DataFactories of one pod, a fifth OllamaPools, the rest Rerankers.

use crate::{NAMESPACE, workers};
use anyhow::{Result, bail};
use futures::{StreamExt, TryStreamExt};
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, ResourceExt};
use principium_api::status::condition::READY;
use principium_local_cluster::control_plane::ControlPlane;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const KINDS: [&str; 3] = ["DataFactory", "OllamaPool", "Reranker"];
/// Requests under way at once.
const AT_ONCE: usize = 16;
/// How long all pods may take, and how long one.
const PATIENCE: Duration = Duration::from_secs(1800);
/// How many resources are scaled up, one after the other.
const CHANGES: usize = 20;

/// A resource to be made.
pub struct Wanted {
    kind: &'static str,
    name: String,
    pods: u32,
}

/// So many resources that their pods add up.
pub fn plan(resources: u32, pods: u32) -> Vec<Wanted> {
    let single = resources / 5;
    let (others, left) = ((resources - single).max(1), pods.saturating_sub(single));
    (0..resources)
        .map(|number| {
            let kind = match number {
                first if first < single => KINDS[0],
                second if second < 2 * single => KINDS[1],
                _ => KINDS[2],
            };
            let at = number.saturating_sub(single);
            let pods = if kind == KINDS[0] { 1 } else { left / others + u32::from(at < left % others) };
            Wanted { kind, name: format!("r-{number:05}"), pods }
        })
        .collect()
}

pub async fn make(client: &Client, wanted: &[Wanted]) -> Result<()> {
    futures::stream::iter(wanted)
        .map(|wanted| async move {
            let object = wanted.object()?;
            api(client, wanted.kind).create(&PostParams::default(), &object).await?;
            Ok(())
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

impl Wanted {
    fn object(&self) -> Result<DynamicObject> {
        let model = json!({"hub": {"name": "example/model"}});
        let gpu = json!({"count": 1, "memory": "3Gi"});
        let spec = match self.kind {
            "DataFactory" => json!({"model": model, "gpu": {"count": 2}}),
            "OllamaPool" => {
                json!({"instances": self.pods, "gpu": {"count": 1}, "models": [{"name": workers::MODEL}]})
            }
            _ => json!({"model": model, "gpu": gpu, "replicas": self.pods}),
        };
        Ok(serde_json::from_value(json!({
            "apiVersion": "principium.ai/v1alpha1",
            "kind": self.kind,
            "metadata": {"name": self.name, "namespace": NAMESPACE},
            "spec": spec,
        }))?)
    }
}

/// Waits until all of them are Ready.
pub async fn ready(client: &Client, plane: &mut ControlPlane, wanted: &[Wanted]) -> Result<()> {
    let started = Instant::now();
    let mut told = Instant::now();
    loop {
        let (mut ready, mut example) = (0, String::new());
        for kind in KINDS {
            for object in api(client, kind).list(&ListParams::default()).await?.items {
                if is_ready(&object) {
                    ready += 1;
                } else if example.is_empty() {
                    example = format!(
                        "{kind} {}: {}",
                        object.name_any(),
                        object.data["status"]["conditions"][0]["message"]
                    );
                }
            }
        }
        if ready == wanted.len() {
            return Ok(());
        }
        plane.check()?;
        if told.elapsed() > Duration::from_secs(15) {
            println!("      {ready} of {} are Ready; {example}", wanted.len());
            told = Instant::now();
        }
        if started.elapsed() > PATIENCE {
            bail!("only {ready} of {} are Ready; {example}", wanted.len());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Gives some Rerankers one more replica, one after the other, each once the one before is Ready. Returns how many.
pub async fn scale_up(client: &Client, wanted: &[Wanted]) -> Result<usize> {
    let api = api(client, KINDS[2]);
    let chosen: Vec<&Wanted> =
        wanted.iter().filter(|wanted| wanted.kind == KINDS[2]).rev().take(CHANGES).collect();
    for wanted in &chosen {
        let patch = json!({"spec": {"replicas": wanted.pods + 1}});
        api.patch(&wanted.name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        let started = Instant::now();
        while !is_ready(&api.get(&wanted.name).await?) {
            if started.elapsed() > Duration::from_secs(60) {
                bail!("{} is not Ready again", wanted.name);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    Ok(chosen.len())
}

/// Whether a resource is Ready as its spec is now.
fn is_ready(object: &DynamicObject) -> bool {
    let status = &object.data["status"];
    let current = status["observedGeneration"].as_i64() == object.metadata.generation;
    let conditions = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ready = |condition: &Value| condition["type"] == READY && condition["status"] == "True";
    current && conditions.iter().any(ready)
}

fn api(client: &Client, kind: &str) -> Api<DynamicObject> {
    let plural = match kind {
        "DataFactory" => "datafactories",
        "OllamaPool" => "ollamapools",
        _ => "rerankers",
    };
    let resource =
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("principium.ai", "v1alpha1", kind), plural);
    Api::namespaced_with(client.clone(), NAMESPACE, &resource)
}
