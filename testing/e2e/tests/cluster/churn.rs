//! Random churn: resources come, change and go, GPUs heat up and fall off the bus, pods, operator, plugin and kubelet end. At
//! every moment no memory is granted twice; once it is quiet again, everything is Ready in bounded time, and requests,
//! podresources and devices agree. A seed repeats the choices. `cargo xtask soak` runs it for long.

use crate::faults::{nothing_is_granted_twice, requests_podresources_and_devices_agree};
use crate::pods::{data_factory, reranker};
use crate::restarts::restart_part;
use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams};
use principium_api::{DataFactory, OllamaPool, Reranker};
use principium_e2e::container::Container;
use principium_e2e::world::PATIENCE;
use principium_e2e::{World, gpus, run};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Steps between two times of quiet.
const STEPS: usize = 6;
/// GPUs of the local cluster.
const GPUS: u64 = 8;
/// How long everything may take to be Ready once all GPUs are offered.
const LIMIT: Duration = PATIENCE;
/// After several failures within an hour a card must prove itself for minutes before it is offered.
const PROOF: Duration = Duration::from_secs(900);

#[test]
fn whatever_happens_no_memory_is_granted_twice_and_all_come_to_rest() -> Result<()> {
    let number = |variable: &str| std::env::var(variable).ok().map(|text| text.parse::<u64>()).transpose();
    let seed = number("PRINCIPIUM_SOAK_SEED")?.unwrap_or(1);
    let lasts = Duration::from_secs(60 * number("PRINCIPIUM_SOAK_MINUTES")?.unwrap_or(0));
    run("churn", move |world| async move {
        let before = parts(&world).await?.into_iter();
        let mut churn = Churn {
            restarts: before.map(|(_, pod)| (pod.uid().unwrap_or_default(), restarts(&pod))).collect(),
            world,
            random: Random(seed),
            steps: BTreeMap::new(),
            settled: Vec::new(),
            looks: AtomicU64::new(0),
            memory: BTreeMap::new(),
        };
        let started = Instant::now();
        let mut rounds = 0;
        // One round at least, which is the short form.
        while rounds == 0 || started.elapsed() < lasts {
            rounds += 1;
            churn.round().await.with_context(|| format!("round {rounds} with seed {seed}"))?;
        }
        println!(
            "seed {seed}: {rounds} rounds in {:.0} s\n{}",
            started.elapsed().as_secs_f64(),
            churn.told()
        );
        Ok(())
    })
}

struct Churn {
    world: World,
    random: Random,
    /// How often containers of operator and plugin had been started anew before, by the UID of their pod.
    restarts: BTreeMap<String, i32>,
    /// How often each was done.
    steps: BTreeMap<&'static str, u32>,
    /// How long it took after each quiet until all were Ready.
    settled: Vec<Duration>,
    /// How often no memory was granted twice.
    looks: AtomicU64,
    /// The most resident memory of each part, KiB.
    memory: BTreeMap<&'static str, u64>,
}

impl Churn {
    /// Some steps, then quiet.
    async fn round(&mut self) -> Result<()> {
        for _ in 0..STEPS {
            let step = self.step().await?;
            *self.steps.entry(step).or_default() += 1;
            let pause = Duration::from_millis(self.random.below(2500));
            self.watch(pause).await?;
        }
        self.rest().await
    }

    /// What it was.
    async fn step(&mut self) -> Result<&'static str> {
        let gpu = u32::try_from(self.random.below(GPUS))?;
        Ok(match self.random.below(20) {
            0..9 => {
                self.apply().await?;
                "applied"
            }
            9..12 => {
                let name = NAMES[self.random.index(NAMES.len())];
                let (api, gone) = (&self.world, DeleteParams::background());
                // It may not be there.
                let _ = match kind(name) {
                    "DataFactory" => api.api::<DataFactory>().delete(name, &gone).await.map(drop),
                    "OllamaPool" => api.api::<OllamaPool>().delete(name, &gone).await.map(drop),
                    _ => api.api::<Reranker>().delete(name, &gone).await.map(drop),
                };
                "deleted"
            }
            12..14 => {
                gpus::set(gpu, &["--temperature", "93"])?;
                "heated"
            }
            14 => {
                gpus::set(gpu, &["--lost"])?;
                "lost"
            }
            15 => {
                gpus::set(gpu, &["--recover"])?;
                gpus::set(gpu, &["--temperature", "35"])?;
                "recovered"
            }
            16 | 17 => {
                let pods = self.world.api::<Pod>();
                let found = pods.list(&ListParams::default()).await?.items;
                if !found.is_empty() {
                    let name = found[self.random.index(found.len())].name_any();
                    // It may have gone meanwhile.
                    let _ = pods.delete(&name, &DeleteParams::default()).await;
                }
                "pod killed"
            }
            18 => {
                self.during(restart_part(&self.world, "operator")).await?;
                "operator killed"
            }
            _ if self.random.below(2) == 0 => {
                self.during(restart_part(&self.world, "device-plugin")).await?;
                "plugin killed"
            }
            _ => {
                let restart = async {
                    tokio::task::spawn_blocking(|| principium_local_cluster::restart_component("kubelet"))
                        .await?
                        .context("restarting the kubelet")
                };
                self.during(restart).await?;
                "kubelet restarted"
            }
        })
    }

    /// Makes a resource, or gives it another spec. All of them together have room, whatever they ask for; see [`Churn::rest`].
    async fn apply(&mut self) -> Result<()> {
        let name = NAMES[self.random.index(NAMES.len())];
        let (gpu, memory) = (self.random.below(GPUS), 1 + self.random.below(2));
        let spec = match (name, self.random.below(3)) {
            ("whole", _) => format!("{{count: 1, prefer: {{indices: [{gpu}]}}}}"),
            (_, 0) => format!("{{count: 1, memory: {memory}Gi, strategy: Spread}}"),
            (_, 1) if name != "pool" => format!("{{devices: [{{index: {gpu}, memory: {memory}Gi}}]}}"),
            _ => {
                format!("{{count: 1, memory: {memory}Gi, prefer: {{indices: [{gpu}]}}, onOverheat: Migrate}}")
            }
        };
        match kind(name) {
            "DataFactory" => self.world.apply::<DataFactory>(&data_factory(name, &spec)).await.map(drop),
            "OllamaPool" => {
                let instances = 1 + self.random.below(2);
                let pool = format!(
                    "{{apiVersion: principium.ai/v1alpha1, kind: OllamaPool, metadata: {{name: {name}}}, \
                     spec: {{instances: {instances}, gpu: {spec}}}}}"
                );
                self.world.apply::<OllamaPool>(&pool).await.map(drop)
            }
            _ => self.world.apply::<Reranker>(&reranker(name, &spec)).await.map(drop),
        }
    }

    /// All GPUs are well; then everything gets Ready, and everybody says the same of who has what.
    async fn rest(&mut self) -> Result<()> {
        gpus::reset()?;
        let offered = Instant::now();
        while !self.all_offered().await? {
            self.look().await?;
            anyhow::ensure!(offered.elapsed() < PROOF, "not every GPU is offered again");
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        // It may have the GPU that another one names, and then is no wrong reason to wait.
        let whole = self.world.api::<Reranker>();
        let there = whole.get_opt("whole").await?.is_some();
        if there {
            whole.delete("whole", &DeleteParams::background()).await?;
        }
        self.settle().await?;
        if there {
            self.world.apply::<Reranker>(&reranker("whole", "{count: 1}")).await?;
            self.settle().await?;
        }
        requests_podresources_and_devices_agree(&self.world).await?;
        self.parts_are_well().await
    }

    /// No memory is granted twice.
    async fn look(&self) -> Result<()> {
        nothing_is_granted_twice(&self.world).await?;
        self.looks.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Operator and plugin end when they are told to, and never by themselves.
    async fn parts_are_well(&mut self) -> Result<()> {
        for (part, pod) in parts(&self.world).await? {
            let before = self.restarts.get(&pod.uid().unwrap_or_default()).copied().unwrap_or_default();
            anyhow::ensure!(restarts(&pod) == before, "{} ended by itself: {:?}", pod.name_any(), pod.status);
            let resident = Container::of(&pod, part)?.status("VmRSS")?;
            let resident = resident.trim_end_matches(" kB").parse::<u64>().context("VmRSS")?;
            let most = self.memory.entry(part).or_default();
            *most = resident.max(*most);
        }
        Ok(())
    }

    /// What was done and found.
    fn told(&self) -> String {
        let mut settled: Vec<f64> = self.settled.iter().map(Duration::as_secs_f64).collect();
        settled.sort_by(f64::total_cmp);
        let at =
            |share: usize| settled.get((settled.len() * share / 100).min(settled.len().saturating_sub(1)));
        let [median, late, slowest] = [50, 99, 100].map(|share| at(share).copied().unwrap_or_default());
        let steps: Vec<String> = self.steps.iter().map(|(step, count)| format!("{step} {count}")).collect();
        let memory: Vec<String> =
            self.memory.iter().map(|(part, most)| format!("{part} {} MiB", most / 1024)).collect();
        format!(
            "steps: {}\nno memory granted twice: {} looks\nall Ready again: {} times, median {median:.1} s, p99 {late:.1} s, \
             slowest {slowest:.1} s\nmost resident memory: {}",
            steps.join(", "),
            self.looks.load(Ordering::Relaxed),
            settled.len(),
            memory.join(", ")
        )
    }

    /// Waits until everything is Ready.
    async fn settle(&mut self) -> Result<()> {
        let started = Instant::now();
        loop {
            self.look().await?;
            let waiting = self.waiting().await?;
            if waiting.is_empty() {
                break;
            }
            if started.elapsed() > LIMIT {
                bail!("not Ready after {} s: {waiting:?}", LIMIT.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        self.settled.push(started.elapsed());
        Ok(())
    }

    async fn all_offered(&self) -> Result<bool> {
        let gpus = self.world.gpu_node().await?.status.unwrap_or_default().gpus;
        Ok(gpus.len() as u64 == GPUS && gpus.iter().all(|gpu| gpu.withheld.is_none()))
    }

    /// The resources that are not Ready as their spec is now, and pods that have no place in what there is.
    async fn waiting(&self) -> Result<BTreeSet<String>> {
        let mut waiting = BTreeSet::new();
        let mut wanted = 0;
        let world = &self.world;
        macro_rules! look {
            ($kind:ty, $pods:expr) => {
                for found in world.api::<$kind>().list(&ListParams::default()).await?.items {
                    let status = found.status.clone().unwrap_or_default();
                    let ready = status.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
                    if !ready || status.observed_generation != found.metadata.generation {
                        let says = status.conditions.iter().find(|c| c.type_ == "Ready");
                        let says = says.map(|c| format!("{}: {}", c.reason, c.message)).unwrap_or_default();
                        waiting.insert(format!("{} ({says})", found.name_any()));
                    }
                    wanted += $pods(&found);
                }
            };
        }
        look!(DataFactory, |_: &DataFactory| 1);
        look!(Reranker, |_: &Reranker| 1);
        look!(OllamaPool, |found: &OllamaPool| found.spec.instances.unwrap_or(1) as usize);
        let there = world.api::<Pod>().list(&ListParams::default()).await?.items.len();
        if there != wanted {
            waiting.insert(format!("{there} pods instead of {wanted}"));
        }
        Ok(waiting)
    }

    /// Looks all the time for memory that is granted twice while something is done.
    async fn during(&self, work: impl Future<Output = Result<()>>) -> Result<()> {
        let look = async {
            loop {
                // The kubelet and the plugin may be away: the API server, which is asked, is not.
                self.look().await?;
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        };
        tokio::select! {
            done = work => done,
            found = look => found,
        }
    }

    async fn watch(&self, time: Duration) -> Result<()> {
        self.during(async {
            tokio::time::sleep(time).await;
            Ok(())
        })
        .await
    }
}

/// The pods of operator and device plugin.
async fn parts(world: &World) -> Result<Vec<(&'static str, Pod)>> {
    let pods = Api::<Pod>::namespaced(world.client.clone(), principium_local_cluster::NAMESPACE);
    let mut found = Vec::new();
    for part in ["operator", "device-plugin"] {
        let labels = ListParams::default().labels(&format!("app.kubernetes.io/component={part}"));
        found.extend(pods.list(&labels).await?.items.into_iter().map(|pod| (part, pod)));
    }
    Ok(found)
}

/// How often containers of a pod were started anew.
fn restarts(pod: &Pod) -> i32 {
    let containers = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    containers.map(|container| container.restart_count).sum()
}

const NAMES: [&str; 6] = ["one", "two", "three", "whole", "factory", "pool"];

fn kind(name: &str) -> &'static str {
    match name {
        "factory" => "DataFactory",
        "pool" => "OllamaPool",
        _ => "Reranker",
    }
}

/// Numbers that follow from a seed (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }

    fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap_or_default()
    }
}
