//! The manifests in `examples/` reach Ready as they are, work, and delete cleanly.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use kube::ResourceExt;
use kube::api::{Api, DynamicObject, ListParams};
use principium_api::ingestion::RunState;
use principium_api::{DataFactory, Ingestion, OllamaPool, Reranker};
use principium_e2e::world::{PATIENCE, apply_manifest, eventually, ready, remove_namespace};
use principium_e2e::{World, run};
use serde_json::{Value, json};

/// Applies an example, waits until all of it is Ready, looks at it with `check`, deletes it and looks for what is left.
async fn scenario<F: Future<Output = Result<()>>>(
    world: World,
    file: &str,
    check: impl FnOnce(World) -> F,
) -> Result<()> {
    let path = principium_local_cluster::repository().join("examples").join(file);
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let objects =
        apply_manifest(&world.client, &text).await.with_context(|| format!("applying {}", path.display()))?;
    let namespace =
        objects.iter().find_map(ResourceExt::namespace).context("an example without a namespace")?;
    let world = World { namespace: namespace.clone(), ..world };
    let outcome = async {
        for object in &objects {
            let name = object.name_any();
            match kind(object) {
                "OllamaPool" => drop(ready(&world.api::<OllamaPool>(), &name).await?),
                "DataFactory" => drop(ready(&world.api::<DataFactory>(), &name).await?),
                "Reranker" => drop(ready(&world.api::<Reranker>(), &name).await?),
                "Ingestion" => drop(ready(&world.api::<Ingestion>(), &name).await?),
                _ => {}
            }
        }
        check(world.clone()).await
    }
    .await;

    let ours: Vec<&DynamicObject> = objects.iter().filter(|object| kind(object) != "Namespace").collect();
    for object in &ours {
        let name = object.name_any();
        match kind(object) {
            "OllamaPool" => world.delete::<OllamaPool>(&name).await?,
            "DataFactory" => world.delete::<DataFactory>(&name).await?,
            "Reranker" => world.delete::<Reranker>(&name).await?,
            "Ingestion" => world.delete::<Ingestion>(&name).await?,
            _ => {}
        }
    }
    let leftovers =
        eventually("no pod or service is left of the example, and every GPU is free", PATIENCE, || async {
            let pods = world.api::<Pod>().list(&ListParams::default()).await?.items.len();
            let services = world.api::<Service>().list(&ListParams::default()).await?.items.len();
            let mut held = 0;
            for index in 0..8 {
                held += world.gpu(index).await?.allocations.len();
            }
            Ok((pods + services + held == 0).then_some(()))
        })
        .await;
    if Api::<Namespace>::all(world.client.clone()).get_opt(&namespace).await?.is_some() {
        remove_namespace(&world.client, &namespace).await?;
    }
    outcome?;
    leftovers
}

fn kind(object: &DynamicObject) -> &str {
    object.types.as_ref().map(|types| types.kind.as_str()).unwrap_or_default()
}

/// The indices that one resource holds, pod by pod.
async fn indices(world: &World, name: &str) -> Result<Vec<u32>> {
    let mut all = Vec::new();
    for pod in world.pods_of(name).await? {
        for container in pod.spec.iter().flat_map(|spec| &spec.containers) {
            let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
            all.extend(
                limits
                    .into_iter()
                    .flatten()
                    .filter_map(|(resource, _)| principium_api::names::gpu_index(resource)),
            );
        }
    }
    all.sort_unstable();
    Ok(all)
}

/// The only resource of a kind in the namespace.
async fn only<K>(world: &World) -> Result<K>
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
    K::DynamicType: Default,
{
    world
        .api::<K>()
        .list(&ListParams::default())
        .await?
        .items
        .into_iter()
        .next()
        .context("the example lacks a resource")
}

/// Base URL of a Service, reachable from the test because the node is this machine.
pub async fn url(world: &World, service: &str) -> Result<String> {
    let spec = world.api::<Service>().get(service).await?.spec.unwrap_or_default();
    let port =
        spec.ports.unwrap_or_default().first().map(|port| port.port).context("a Service without a port")?;
    Ok(format!("http://{}:{port}", spec.cluster_ip.unwrap_or_default()))
}

#[test]
fn scenario_a_standard() -> Result<()> {
    run("scenario-a", |world| {
        scenario(world, "scenario-a.yaml", |world| async move {
            assert_eq!(indices(&world, &only::<DataFactory>(&world).await?.name_any()).await?, [0]);
            assert_eq!(indices(&world, &only::<Reranker>(&world).await?.name_any()).await?, [1]);
            Ok(())
        })
    })
}

#[test]
fn scenario_b_enrichment_on_all_gpus() -> Result<()> {
    run("scenario-b", |world| {
        scenario(world, "scenario-b.yaml", |world| async move {
            assert_eq!(
                indices(&world, &only::<OllamaPool>(&world).await?.name_any()).await?,
                [0, 1, 2, 3, 4, 5]
            );
            assert_eq!(
                indices(&world, &only::<DataFactory>(&world).await?.name_any()).await?,
                [0, 1, 2, 3, 4, 5, 6, 7]
            );
            Ok(())
        })
    })
}

#[test]
fn best_of_both_worlds_puts_real_documents_in_context_and_finds_the_right_one() -> Result<()> {
    run("best-of-both", |world| {
        scenario(world, "best-of-both.yaml", |world| async move {
            let pool = only::<OllamaPool>(&world).await?;
            let factory = only::<DataFactory>(&world).await?.name_any();
            let ranker = only::<Reranker>(&world).await?.name_any();
            assert_eq!(indices(&world, &pool.name_any()).await?, [0, 1, 2, 3, 4, 5]);
            assert_eq!(indices(&world, &factory).await?, [6, 7]);
            assert_eq!(indices(&world, &ranker).await?, [7]);
            retrieval(&url(&world, &factory).await?, &url(&world, &ranker).await?).await
        })
    })
}

#[test]
fn an_ingestion_keeps_a_corpus_that_can_be_searched() -> Result<()> {
    run("corpus", |world| {
        scenario(world, "ingestion.yaml", |world| async move {
            let ingestion = only::<Ingestion>(&world).await?;
            let name = ingestion.name_any();
            let status = ingestion.status.context("an Ingestion without a status")?;
            let run = status.runs.first().context("an Ingestion without a run")?;
            assert_eq!((run.state, run.documents_done, run.documents_failed), (RunState::Succeeded, 2, 0));
            let factory = only::<DataFactory>(&world).await?.name_any();
            drop(rustls::crypto::ring::default_provider().install_default());
            let found: Value = reqwest::Client::new()
                .post(format!("{}/v1/search", url(&world, &factory).await?))
                .json(&json!({"corpus": name, "query": "Who approves a large refund?"}))
                .send()
                .await?
                .error_for_status()?
                .json()
                .await?;
            assert_eq!(found["results"][0]["document_id"], "refunds.md", "{found}");
            Ok(())
        })
    })
}

/// Two documents in, a question, and the right passage first.
async fn retrieval(factory: &str, ranker: &str) -> Result<()> {
    drop(rustls::crypto::ring::default_provider().install_default());
    let client = reqwest::Client::new();
    let folder = principium_local_cluster::repository().join("examples/documents");
    let mut documents = Vec::new();
    for name in ["vasa.md", "apollo-13.md"] {
        documents.push(
            json!({"id": name, "format": "markdown", "text": std::fs::read_to_string(folder.join(name))?}),
        );
    }
    let body = client
        .post(format!("{factory}/v1/process"))
        .json(&json!({"documents": documents}))
        .send()
        .await?
        .error_for_status()?;
    let lines: Vec<Value> = body.text().await?.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let chunks: Vec<&Value> = lines.iter().filter(|line| line["type"] == "chunk").collect();
    assert!(chunks.len() >= 6, "only {} chunks", chunks.len());
    for chunk in &chunks {
        assert_eq!(chunk["vector"].as_array().map(Vec::len), Some(384), "{chunk}");
        assert!(
            chunk["context"].as_str().is_some_and(|context| !context.is_empty()),
            "not put in context: {chunk}"
        );
        let document =
            documents.iter().find(|d| d["id"] == chunk["document_id"]).context("an unknown document")?;
        let range = |key: &str| chunk[key].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or_default();
        let original = document["text"].as_str().and_then(|text| text.get(range("start")..range("end")));
        assert_eq!(original, chunk["text"].as_str(), "offsets point at the chunk in the original");
    }
    assert!(lines.last().is_some_and(|line| line["type"] == "summary"), "the last line is the summary");

    let question = "Why did the warship sink on its first voyage?";
    let texts: Vec<&str> = chunks.iter().filter_map(|chunk| chunk["text"].as_str()).collect();
    let ranks: Vec<Value> = client
        .post(format!("{ranker}/rerank"))
        .json(&json!({"query": question, "texts": texts}))
        .send()
        .await?
        .error_for_status()?
        .json()
        .await?;
    let best = ranks[0]["index"].as_u64().and_then(|i| usize::try_from(i).ok()).context("no index")?;
    assert_eq!(chunks[best]["document_id"], "vasa.md", "the reranker prefers the right document");
    Ok(())
}
