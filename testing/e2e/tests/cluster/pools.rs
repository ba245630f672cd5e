//! A pool as on a real machine: models once on the node, and a port of the node and a name of its own for each instance.

use crate::pods::{identity, image, phase, reranker, serves};
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use principium_api::names::LABEL_ROLE;
use principium_api::status::condition::READY;
use principium_api::{OllamaPool, OllamaPoolStatus, Reranker};
use principium_e2e::container::Container;
use principium_e2e::world::PATIENCE;
use principium_e2e::{World, run};
use principium_local_cluster::cluster::paths::{ADDRESS, DOMAIN};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::net::UdpSocket;
use tokio::time::{sleep, timeout};

const INSTANCES: usize = 3;
pub const MODEL: &str = "smollm2:135m";
/// Port of the node for the first instance.
const FIRST_PORT: u16 = 21440;

/// A folder of the node, which is this machine, that nobody has made yet.
pub struct Store(PathBuf);

impl Store {
    pub fn new() -> Self {
        Self(std::env::temp_dir().join(format!("principium-e2e-pools-{}", std::process::id())))
    }

    /// The manifest of a pool whose models are kept there.
    pub fn pool(&self, context: u32) -> String {
        format!(
            r#"
apiVersion: principium.ai/v1alpha1
kind: OllamaPool
metadata: {{name: pool}}
spec:
  instances: {INSTANCES}
  gpu: {{count: 1, memory: 5Gi}}
  models:
    - name: {MODEL}
      modelfile: {{image: {{reference: "{image}"}}}}
  store: {{hostPath: {{path: {store}}}}}
  hostPorts: {{start: {FIRST_PORT}}}
  settings: {{contextLength: {context}}}
"#,
            image = image("principium-model-smollm2-135m"),
            store = self.0.display()
        )
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_pool_with_ports_of_the_node_and_one_store_keeps_its_gpus_while_its_instances_restart() -> Result<()> {
    run("pools", |world| async move {
        let store = Store::new();
        world.apply::<OllamaPool>(&store.pool(1024)).await?;
        let before = world.ready::<OllamaPool>("pool").await?.status.unwrap_or_default();
        let puller = identity(&the_puller(&world).await?);
        let instances = pods(&world, "worker").await?;
        ensure!(instances.len() == INSTANCES, "{} instances", instances.len());
        for (ordinal, pod) in instances.iter().enumerate() {
            let mounted = Container::of(pod, "ollama")?.mount_options("/models")?;
            ensure!(mounted.contains("ro"), "instance {ordinal} can write to the store: {mounted:?}");
            answers_on_its_port(&before, ordinal).await?;
            is_found_by_name(&world, &before, ordinal, pod).await?;
        }

        // Somebody who takes the GPU of an instance as soon as it is free.
        let wanted = before.assignments[1].gpus[0].index;
        let rival = reranker("rival", &format!("{{devices: [{{index: {wanted}, memory: 5Gi}}]}}"));
        world.apply::<Reranker>(&rival).await?;
        let message = world.reason::<Reranker>("rival", READY, "WaitingForGPU").await?;
        ensure!(message.contains("OllamaPool"), "names the holder: {message}");

        world.apply::<OllamaPool>(&store.pool(2048)).await?;
        let least = least_that_serve(&world, &instances).await?;
        assert_eq!(least, INSTANCES - 1, "an instance ends before its successor has its port, one at a time");
        let after = world.ready::<OllamaPool>("pool").await?.status.unwrap_or_default();
        let gpus = |status: &OllamaPoolStatus| {
            status.assignments.iter().map(|assignment| assignment.gpus.clone()).collect::<Vec<_>>()
        };
        assert_eq!(gpus(&after), gpus(&before));
        assert!(world.pods_of("rival").await?.is_empty());
        assert_eq!(identity(&the_puller(&world).await?), puller, "nothing is pulled anew");
        for ordinal in 0..INSTANCES {
            answers_on_its_port(&after, ordinal).await?;
        }

        world.delete::<OllamaPool>("pool").await?;
        world.ready::<Reranker>("rival").await.context("it has waited for nothing else")?;
        let none = || async { Ok(world.pods_of("pool").await?.is_empty().then_some(())) };
        world.eventually("no pod of the pool is left", none).await
    })
}

/// The pods of the pool with this role, by their ordinals.
async fn pods(world: &World, role: &str) -> Result<Vec<Pod>> {
    let mut pods = world.pods_of("pool").await?;
    pods.retain(|pod| pod.labels().get(LABEL_ROLE).is_some_and(|is| is == role));
    Ok(pods)
}

/// The only pod that has filled the store.
async fn the_puller(world: &World) -> Result<Pod> {
    let mut pullers = pods(world, "puller").await?;
    let puller = pullers.pop().context("no puller")?;
    ensure!(pullers.is_empty() && phase(&puller) == "Succeeded", "one puller, and it is done");
    Ok(puller)
}

fn url<'a>(status: &'a OllamaPoolStatus, name: &str) -> Result<&'a str> {
    let mut endpoints = status.endpoints.iter();
    let found = endpoints.find(|endpoint| endpoint.name == name).with_context(|| format!("no {name}"))?;
    Ok(&found.url)
}

/// The model is served where the status says that the node opens a port for the instance.
async fn answers_on_its_port(status: &OllamaPoolStatus, ordinal: usize) -> Result<()> {
    let url = url(status, &format!("instance-{ordinal}-host"))?;
    ensure!(url.ends_with(&format!(":{}", usize::from(FIRST_PORT) + ordinal)), "{url}");
    drop(rustls::crypto::ring::default_provider().install_default());
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build()?;
    let tags: Value = client.get(format!("{url}/api/tags")).send().await?.error_for_status()?.json().await?;
    ensure!(tags["models"][0]["name"] == MODEL, "{url}: {tags}");
    Ok(())
}

/// Inside the cluster the name of the instance in the status is that of its pod.
async fn is_found_by_name(world: &World, status: &OllamaPoolStatus, ordinal: usize, pod: &Pod) -> Result<()> {
    let url = reqwest::Url::parse(url(status, &format!("instance-{ordinal}"))?)?;
    let name = format!("{}.{DOMAIN}", url.host_str().context("a URL without a host")?);
    let ip: Ipv4Addr =
        pod.status.as_ref().and_then(|status| status.pod_ip.as_deref()).context("no address")?.parse()?;
    world
        .eventually(&format!("{name} is {ip}"), || async {
            Ok((address(&name).await? == Some(ip)).then_some(()))
        })
        .await
}

/// The one address that the cluster's DNS server has for a name.
async fn address(name: &str) -> Result<Option<Ipv4Addr>> {
    // A question of type A, as every resolver asks it: number, flags, one question, no records.
    let mut question = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len())?);
        question.extend(label.bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind("0.0.0.0:0").await?;
    socket.connect((ADDRESS, 53)).await?;
    socket.send(&question).await?;
    let mut answer = [0; 512];
    let received = timeout(Duration::from_secs(5), socket.recv(&mut answer)).await;
    let answer = &answer[..received.context("the DNS server is silent")??];
    // The number of records; where there is one, it ends with its address.
    let one = answer.get(6..8) == Some(&[0, 1][..]);
    Ok(answer.last_chunk::<4>().filter(|_| one).map(|last| Ipv4Addr::from(*last)))
}

/// How many instances served at least until all of these had successors that serve.
async fn least_that_serve(world: &World, before: &[Pod]) -> Result<usize> {
    let old: BTreeSet<String> = before.iter().filter_map(ResourceExt::uid).collect();
    let end = Instant::now() + 3 * PATIENCE;
    let mut least = INSTANCES;
    loop {
        let mut pods = pods(world, "worker").await?;
        pods.retain(serves);
        least = least.min(pods.len());
        if pods.len() == INSTANCES && pods.iter().filter_map(ResourceExt::uid).all(|uid| !old.contains(&uid))
        {
            return Ok(least);
        }
        ensure!(Instant::now() < end, "not all of {old:?} have successors that serve");
        sleep(Duration::from_millis(200)).await;
    }
}
