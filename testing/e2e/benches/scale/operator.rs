//! The operator as a process: its memory, its CPU time, its own metrics.

use anyhow::{Context, Result, bail};
use principium_local_cluster::control_plane::ControlPlane;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Where it serves its metrics.
const ADDRESS: &str = "127.0.0.1:28080";
const PATIENCE: Duration = Duration::from_secs(300);
/// `sysconf(_SC_CLK_TCK)` on every Linux that Kubernetes runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// The running operator.
pub struct Operator {
    process: u32,
}

impl Operator {
    pub fn start(plane: &mut ControlPlane, program: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        command.env("KUBECONFIG", plane.kubeconfig("operator")).args(["--listen", ADDRESS]);
        Ok(Self { process: plane.spawn("principium-operator", &mut command)? })
    }

    /// Waits until its caches are filled.
    pub async fn ready(&self) -> Result<()> {
        let started = Instant::now();
        while !reqwest::get(format!("http://{ADDRESS}/readyz"))
            .await
            .is_ok_and(|answer| answer.status().is_success())
        {
            if started.elapsed() > PATIENCE {
                bail!("the operator is not ready after {} s", PATIENCE.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    /// Resident memory.
    pub fn memory_mib(&self) -> Result<f64> {
        self.status("VmRSS:")
    }

    /// The most resident memory that it ever had.
    pub fn peak_memory_mib(&self) -> Result<f64> {
        self.status("VmHWM:")
    }

    fn status(&self, field: &str) -> Result<f64> {
        let text =
            fs::read_to_string(format!("/proc/{}/status", self.process)).context("the operator has ended")?;
        let line =
            text.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("no {field}"))?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1024.0)
    }

    /// CPU time so far.
    pub fn cpu_seconds(&self) -> Result<f64> {
        let text =
            fs::read_to_string(format!("/proc/{}/stat", self.process)).context("the operator has ended")?;
        let fields = text.rsplit_once(')').context("no name in stat")?.1;
        let ticks: Vec<f64> = fields.split_whitespace().skip(11).take(2).flat_map(str::parse).collect();
        Ok(ticks.iter().sum::<f64>() / TICKS_PER_SECOND)
    }

    /// The plans that it made so far, from its histogram.
    pub async fn plans(&self) -> Result<Plans> {
        let text = reqwest::get(format!("http://{ADDRESS}/metrics")).await?.text().await?;
        let mut plans = Plans::default();
        for line in text.lines() {
            let Some(rest) = line.strip_prefix("principium_operator_plan_duration_seconds_") else {
                continue;
            };
            let Some((name, value)) = rest.rsplit_once(' ') else { continue };
            let value: f64 = value.parse()?;
            if name == "sum" {
                plans.seconds = value;
            } else if let Some(limit) =
                name.strip_prefix("bucket{le=\"").and_then(|rest| rest.strip_suffix("\"}"))
            {
                plans.buckets.push((limit.parse().unwrap_or(f64::INFINITY), value));
            }
        }
        Ok(plans)
    }
}

/// A histogram of times.
#[derive(Default)]
pub struct Plans {
    seconds: f64,
    /// Upper limit in seconds, and how many were below.
    buckets: Vec<(f64, f64)>,
}

impl Plans {
    /// Those that were made since.
    pub fn since(&self, before: &Self) -> Self {
        let buckets = self.buckets.iter().zip(&before.buckets);
        Self {
            seconds: self.seconds - before.seconds,
            buckets: buckets.map(|((limit, now), (_, then))| (*limit, now - then)).collect(),
        }
    }

    pub fn count(&self) -> f64 {
        self.buckets.last().map_or(0.0, |(_, count)| *count)
    }

    pub fn mean_ms(&self) -> f64 {
        self.seconds / self.count().max(1.0) * 1000.0
    }

    /// The upper limit of the bucket in which the 99th of a hundred is.
    pub fn p99_ms(&self) -> f64 {
        let wanted = self.count() * 0.99;
        self.buckets.iter().find(|(_, count)| *count >= wanted).map_or(0.0, |(limit, _)| limit * 1000.0)
    }
}
