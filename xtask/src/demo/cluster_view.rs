//! What the demo reads from the cluster, through `kubectl` as a user would.

use anyhow::{Context, Result, bail};
use console::style;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A resource of ours that the sample declares.
pub struct Resource {
    /// Kind.
    pub kind: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// The cluster as `kubectl` shows it.
pub struct ClusterView {
    access: crate::cluster::Access,
}

impl ClusterView {
    pub fn new(access: crate::cluster::Access) -> Self {
        Self { access }
    }

    /// The path to give to `KUBECONFIG`.
    pub fn kubeconfig(&self) -> String {
        self.access.kubeconfig.display().to_string()
    }

    /// The folder that holds `kubectl`.
    pub fn tool_folder(&self) -> String {
        self.access.kubectl.parent().unwrap_or(Path::new("/")).display().to_string()
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(&self.access.kubectl)
            .env("KUBECONFIG", &self.access.kubeconfig)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("starting {}", self.access.kubectl.display()))?;
        if !output.status.success() {
            bail!("kubectl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text)
            .with_context(|| format!("reading what kubectl {} printed", arguments.join(" ")))
    }

    /// Applies a manifest of the repository and returns the resources of ours in it.
    pub fn apply(&self, manifest: &str) -> Result<Vec<Resource>> {
        let path = crate::root().join(manifest).display().to_string();
        let applied = self.json(&["apply", "--server-side", "-f", &path])?;
        let objects = applied["items"].as_array().cloned().unwrap_or_else(|| vec![applied]);
        let text = |object: &Value, pointer: &str| {
            object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        for object in &objects {
            println!("    {} {}", text(object, "/kind"), text(object, "/metadata/name"));
        }
        Ok(objects
            .iter()
            .filter(|object| text(object, "/apiVersion").starts_with("principium.ai/"))
            .map(|object| Resource {
                kind: text(object, "/kind"),
                namespace: text(object, "/metadata/namespace"),
                name: text(object, "/metadata/name"),
            })
            .collect())
    }

    /// Waits until every resource is Ready for its newest generation; prints each that is, and what the others wait for.
    pub fn wait_until_ready(&self, resources: &[Resource], limit: Duration) -> Result<()> {
        let bar = ProgressBar::new_spinner()
            .with_style(ProgressStyle::with_template("    {spinner:.cyan} {wide_msg}")?);
        bar.enable_steady_tick(Duration::from_millis(120));
        let started = Instant::now();
        let mut open: Vec<&Resource> = resources.iter().collect();
        loop {
            let mut waiting = Vec::new();
            for resource in std::mem::take(&mut open) {
                let Resource { kind, namespace, name } = resource;
                let object = self.json(&["get", kind, "-n", namespace, name])?;
                let ready = condition(&object, "Ready");
                let message = ready["message"].as_str().unwrap_or("not seen by the operator yet");
                let current =
                    object.pointer("/status/observedGeneration") == object.pointer("/metadata/generation");
                if current && ready["status"] == "True" {
                    let title = format!("{kind} {name}");
                    let time = style(format!("{:.1} s", started.elapsed().as_secs_f64())).dim();
                    // The terminal or a file: a bar's own lines are seen on a terminal alone.
                    bar.suspend(|| println!("    {} {title:<26} {message} {time}", style("✓").green()));
                } else if condition(&object, "Stalled")["status"] == "True" {
                    bail!("{kind} {name} can't work as it is: {message}");
                } else {
                    waiting.push(format!("{kind} {name}: {message}"));
                    open.push(resource);
                }
            }
            let Some(first) = waiting.first() else {
                bar.finish_and_clear();
                return Ok(());
            };
            bar.set_message(first.clone());
            if started.elapsed() > limit {
                bail!("not Ready after {} s: {}", limit.as_secs(), waiting.join("; "));
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Every GPUNode, as JSON.
    pub fn gpu_nodes(&self) -> Result<Vec<Value>> {
        Ok(self.json(&["get", "gpunodes"])?["items"].as_array().cloned().unwrap_or_default())
    }

    fn gpu(&self, index: u32) -> Result<Value> {
        self.gpu_nodes()?
            .iter()
            .flat_map(|node| {
                node.pointer("/status/gpus").and_then(Value::as_array).cloned().unwrap_or_default()
            })
            .find(|gpu| gpu["index"] == index)
            .with_context(|| {
                format!("no GPUNode has a GPU {index}; `kubectl get gpunodes` shows what there is")
            })
    }

    /// The pods that hold a GPU, sorted.
    pub fn pods_on_gpu(&self, index: u32) -> Result<Vec<String>> {
        let gpu = self.gpu(index)?;
        let mut pods: Vec<String> = gpu["allocations"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|allocation| allocation["pod"].as_str().map(str::to_owned))
            .collect();
        pods.sort();
        Ok(pods)
    }

    /// Waits until a GPU is withheld, or offered again; returns the reason and how long it took.
    pub fn wait_for_withheld(&self, index: u32, wanted: bool, limit: Duration) -> Result<(String, Duration)> {
        let started = Instant::now();
        loop {
            let gpu = self.gpu(index)?;
            let withheld = gpu.get("withheld").filter(|value| !value.is_null());
            if withheld.is_some() == wanted {
                let message = withheld.and_then(|w| w["message"].as_str()).unwrap_or_default().to_owned();
                return Ok((message, started.elapsed()));
            }
            if started.elapsed() > limit {
                let (wish, state) = if wanted { ("withheld", "offered") } else { ("offered", "withheld") };
                bail!("GPU {index} is still {state} after {} s, it should be {wish}: {gpu}", limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The address of the first resource of a kind, reachable from this machine because it is the node.
    pub fn url(&self, resources: &[Resource], kind: &str, port: u16) -> Result<String> {
        let resource = resources
            .iter()
            .find(|r| r.kind == kind)
            .with_context(|| format!("the sample declares no {kind}"))?;
        let service = self.json(&["get", "service", "-n", &resource.namespace, &resource.name])?;
        let address = service.pointer("/spec/clusterIP").and_then(Value::as_str).unwrap_or_default();
        if address.is_empty() || address == "None" {
            bail!("Service {}/{} has no cluster address", resource.namespace, resource.name);
        }
        Ok(format!("http://{address}:{port}"))
    }
}

fn condition(object: &Value, kind: &str) -> Value {
    object
        .pointer("/status/conditions")
        .and_then(Value::as_array)
        .and_then(|conditions| conditions.iter().find(|condition| condition["type"] == kind))
        .cloned()
        .unwrap_or_default()
}
