//! `cargo xtask test`: every test, with what they need set up first, and the time of each phase.

use anyhow::Result;
use console::style;
use std::time::Instant;

/// Options of `cargo xtask test`.
#[derive(clap::Args)]
pub struct Test {
    /// Only the tests that need no cluster.
    #[arg(long)]
    unit: bool,
    /// Only the tests whose name contains this.
    filter: Option<String>,
}

impl Test {
    /// Runs the tests.
    pub fn run(&self) -> Result<()> {
        let mut phases: Vec<(&str, f64)> = Vec::new();
        let mut phase = |name: &'static str, work: &mut dyn FnMut() -> Result<()>| {
            println!("\n{}", style(name).bold());
            let started = Instant::now();
            let outcome = work();
            phases.push((name, started.elapsed().as_secs_f64()));
            outcome
        };
        let outcome = (|| {
            phase("models", &mut || crate::cluster::fetch_models())?;
            phase("unit and API tests", &mut || {
                let mut cargo = crate::cargo();
                cargo.args(["test", "--release", "--workspace"]).args(&self.filter);
                crate::run(&mut cargo)
            })?;
            if self.unit {
                return Ok(());
            }
            let mut access = None;
            phase("cluster, images, chart", &mut || {
                access = Some(crate::cluster::install()?);
                Ok(())
            })?;
            phase("end-to-end tests", &mut || {
                let mut cargo = crate::cargo();
                cargo.args([
                    "test",
                    "--release",
                    "--package",
                    "principium-e2e",
                    "--features",
                    "cluster",
                    "--test",
                    "cluster",
                ]);
                // One at a time: they heat and lose the same eight GPUs.
                cargo.args(["--", "--test-threads=1"]).args(&self.filter);
                if let Some(access) = &access {
                    cargo.env("KUBECONFIG", &access.kubeconfig);
                }
                crate::run(&mut cargo)
            })
        })();
        println!("\n{}", style("time by phase").bold());
        for (name, seconds) in phases {
            println!("  {name:<28} {seconds:>7.1} s");
        }
        outcome
    }
}
