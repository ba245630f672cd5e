//! `cargo xtask demo`: the whole system on real input, on this machine. It tells a story in seven steps and owns no
//! machinery: the cluster is `principium-local-cluster`'s, the work is done by the operator, the plugin and the embedder.

mod cluster_view;
mod documents;
mod tables;

use anyhow::{Context, Result, bail};
use cluster_view::ClusterView;
use console::style;
use principium_local_cluster::images::Optimized;
use std::time::{Duration, Instant};

/// The manifest that the demo applies, below the repository's root.
const SAMPLE: &str = "examples/best-of-both.yaml";
/// The documents that it sends, below the repository's root.
const DOCUMENTS: &str = "examples/documents";
/// The question that it asks of them.
const QUESTION: &str = "How did the astronauts get rid of the carbon dioxide in their cabin?";
/// The GPU that it heats, and the temperatures in °C.
const HEATED_GPU: u32 = 3;
const HOT: u32 = 92;
const COOL: u32 = 44;

/// Options of `cargo xtask demo`.
#[derive(clap::Args)]
pub struct Demo {
    /// Remove the cluster and everything that it left on this machine, instead of showing anything.
    #[arg(long)]
    down: bool,
}

impl Demo {
    /// Runs the demo, or removes it.
    ///
    /// # Errors
    /// When a part cannot be set up or something that is shown does not hold.
    pub fn run(&self) -> Result<()> {
        if self.down {
            return crate::cluster::down();
        }
        let started = Instant::now();
        println!(
            "\n  {}  eight simulated RTX 3060 Ti; everything else is real:\n  Kubernetes, containerd, Helm, Ollama, the models, the documents.",
            style("principium").bold().cyan()
        );

        step(1, "A cluster, the images and the chart");
        let view = ClusterView::new(crate::cluster::install(Optimized::Nothing)?);

        step(2, &format!("kubectl apply -f {SAMPLE}"));
        let applied = Instant::now();
        let resources = view.apply(SAMPLE)?;
        view.wait_until_ready(&resources, Duration::from_secs(600))?;
        println!("    all Ready {} after the apply", seconds(applied.elapsed()));

        step(3, "Who has which GPU");
        print!("{}", tables::gpus(&view.gpu_nodes()?));
        println!(
            "    The two that share GPU 7 hold parts that add up; the scheduler itself refuses one unit more."
        );

        step(4, "Documents in, chunks in context and vectors out");
        let factory = view.url(&resources, "DataFactory", 9000)?;
        let corpus = documents::process(&factory, &crate::root().join(DOCUMENTS))?;

        step(5, "A question");
        let reranker = view.url(&resources, "Reranker", 9200)?;
        documents::ask(&factory, &reranker, &corpus, QUESTION)?;

        step(6, &format!("GPU {HEATED_GPU} runs hot"));
        heat(&view)?;

        step(7, "Yours to try");
        next_steps(&view, &resources, &factory);
        println!("\n    done in {}\n", seconds(started.elapsed()));
        Ok(())
    }
}

/// Heats a GPU that a pod runs on, and shows that it is withheld, that the pod stays, and that the GPU comes back.
fn heat(view: &ClusterView) -> Result<()> {
    let before = view.pods_on_gpu(HEATED_GPU)?;
    set_temperature(view, HOT)?;
    println!("    $ cargo xtask gpu set {HEATED_GPU} --temperature {HOT}");
    let (withheld, after) = view.wait_for_withheld(HEATED_GPU, true, Duration::from_secs(30))?;
    println!("    {} after {}: {withheld}", style("withheld").red().bold(), seconds(after));
    let during = view.pods_on_gpu(HEATED_GPU)?;
    if before != during {
        bail!(
            "the pods on GPU {HEATED_GPU} changed from {before:?} to {during:?}: heat must not touch a running pod"
        );
    }
    println!(
        "    {} keeps running: only free units are withheld, so no new pod comes to a hot GPU",
        before.join(", ")
    );
    set_temperature(view, COOL)?;
    println!("    $ cargo xtask gpu set {HEATED_GPU} --temperature {COOL}");
    let (_, after) = view.wait_for_withheld(HEATED_GPU, false, Duration::from_secs(60))?;
    println!(
        "    {} after {} (it must stay cool for the dwell time first)",
        style("returned").green().bold(),
        seconds(after)
    );
    Ok(())
}

fn set_temperature(view: &ClusterView, celsius: u32) -> Result<()> {
    crate::gpu::set_temperature(HEATED_GPU, celsius).with_context(|| {
        format!(
            "setting the simulated temperature of GPU {HEATED_GPU}; the cluster's kubeconfig is {}",
            view.kubeconfig()
        )
    })
}

fn next_steps(view: &ClusterView, resources: &[cluster_view::Resource], factory: &str) {
    let namespace = resources.first().map_or("default", |resource| resource.namespace.as_str());
    println!("    export KUBECONFIG={}", view.kubeconfig());
    println!("    export PATH={}:$PATH", view.tool_folder());
    for (command, meaning) in [
        ("kubectl get gpunodes".to_owned(), "every GPU of every node"),
        (format!("kubectl -n {namespace} get principium"), "the resources and why they are as they are"),
        (format!("kubectl -n {namespace} get pods -o wide"), "their pods"),
        ("cargo xtask gpu list".to_owned(), "the simulated cards"),
        ("cargo xtask gpu set 5 --lost".to_owned(), "pull one out; --recover puts it back"),
        (format!("curl {factory}/info"), "what the DataFactory says of itself"),
        ("cargo xtask demo --down".to_owned(), "remove everything again"),
    ] {
        println!("    {command:<48} {}", style(meaning).dim());
    }
}

fn step(number: u32, title: &str) {
    println!("\n  {} {}\n", style(number).bold().cyan(), style(title).bold());
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
