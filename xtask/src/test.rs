//! `cargo xtask test`: every test, with what they need set up first, and the time of each phase.

use crate::cluster::Access;
use anyhow::{Context, Result, bail};
use console::style;
use principium_local_cluster::command::run;
use principium_local_cluster::images::Optimized;
use principium_local_cluster::progress::step;
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;
use std::thread::{self, ScopedJoinHandle};
use std::time::Instant;

/// Namespaces of the examples, which the demo leaves behind for its user to play with, and the beginning of those that an
/// interrupted test leaves.
const EXAMPLES: [&str; 4] = ["best-of-both", "ingestion", "scenario-a", "scenario-b"];
const TESTS: &str = "e2e-";
/// What may hold GPUs.
const KINDS: &str = "datafactories,ollamapools,rerankers";

/// Options of `cargo xtask test`.
#[derive(clap::Args)]
pub struct Test {
    /// Only the tests that need no cluster.
    #[arg(long)]
    unit: bool,
    /// Run `cargo xtask check` too, beside the end-to-end tests, which mostly wait.
    #[arg(long, conflicts_with = "unit")]
    check: bool,
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
        // Before the compiler puts another file in its place.
        let own = std::env::current_exe().context("looking for this program")?;
        let outcome = thread::scope(|scope| {
            // Long, and only the last tests need it, so it goes on beside the first.
            let mut built = (!self.unit).then(|| scope.spawn(crate::cluster::build_programs));
            // Both at once: one waits for the network while the other computes.
            phase("compiling and fetching", &mut || {
                let fetched = scope.spawn(fetch);
                let mut cargo = crate::cargo();
                let compiled = crate::run(cargo.args(["test", "--workspace", "--no-run"]));
                joined(fetched).and(compiled)
            })?;
            phase("unit and API tests", &mut || {
                let mut cargo = crate::cargo();
                cargo.args(["test", "--workspace"]).args(&self.filter);
                crate::run(&mut cargo)
            })?;
            if self.unit {
                return Ok(());
            }
            phase("programs, left to build", &mut || built.take().map_or(Ok(()), joined))?;
            let mut access = None;
            phase("cluster, images, chart", &mut || {
                let installed = crate::cluster::install(Optimized::Nothing)?;
                clear(&installed)?;
                access = Some(installed);
                Ok(())
            })?;
            let program = end_to_end()?;
            let check = self.check.then(|| crate::check::Beside::start(&own)).transpose()?;
            let tested = phase("end-to-end tests", &mut || {
                let mut tests = Command::new(&program);
                tests.current_dir(crate::root().join("testing/e2e"));
                // One at a time: they heat and lose the same eight GPUs.
                tests.arg("--test-threads=1").args(&self.filter);
                // An error tells its causes in words; the stack of an executor below them only hides them.
                tests.env("RUST_LIB_BACKTRACE", "0");
                if let Some(access) = &access {
                    tests.env("KUBECONFIG", &access.kubeconfig);
                }
                crate::run(&mut tests)
            });
            match check {
                None => tested,
                Some(mut check) => phase("checks, left to do", &mut || check.finish()).and(tested),
            }
        });
        println!("\n{}", style("time by phase").bold());
        for (name, seconds) in phases {
            println!("  {name:<28} {seconds:>7.1} s");
        }
        outcome
    }
}

/// What the tests that need no cluster ask for and is not in the repository.
fn fetch() -> Result<()> {
    crate::cluster::fetch_models()?;
    crate::cluster::fetch_clients()?;
    crate::cluster::fetch_servers()
}

fn joined(thread: ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    thread.join().unwrap_or_else(|_| bail!("a thread has panicked"))
}

/// The end-to-end tests, compiled. They are not run by cargo, which would let nothing else compile until it has looked at all.
fn end_to_end() -> Result<PathBuf> {
    let mut cargo = crate::cargo();
    // The whole workspace again, so that cargo gives the dependencies the same features and compiles none anew.
    cargo.args(["test", "--workspace", "--features", "principium-e2e/cluster", "--test", "cluster"]);
    cargo.args(["--no-run", "--quiet", "--message-format=json-render-diagnostics"]);
    let printed = run(&mut cargo)?;
    let messages = printed.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let program = messages
        .filter(|message| message["target"]["name"] == "cluster")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    program.context("cargo names no program of the end-to-end tests")
}

/// Options of `cargo xtask soak`.
#[derive(clap::Args)]
pub struct Soak {
    /// For how long the churn goes on.
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// Repeats the choices of an earlier run; without it they are new ones.
    #[arg(long)]
    seed: Option<u64>,
    /// The churn alone, without the long forms of the fault tests.
    #[arg(long)]
    churn: bool,
}

impl Soak {
    /// Runs random churn, then the long forms of the fault tests.
    pub fn run(&self) -> Result<()> {
        let Self { minutes, seed, churn } = self;
        principium_local_cluster::tools::install_test_packages()?;
        let access = crate::cluster::install(Optimized::Nothing)?;
        clear(&access)?;
        let mut cargo = crate::cargo();
        cargo.args(["test", "--workspace", "--features", "principium-e2e/cluster", "--test", "cluster"]);
        // What the churn did is told at its end, also where all went well.
        cargo.args(["--", "--test-threads=1", "--nocapture", "churn::"]);
        if !churn {
            cargo.arg("faults::");
        }
        let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
        println!("the churn has the seed {seed}");
        cargo.env("KUBECONFIG", &access.kubeconfig).env("PRINCIPIUM_SOAK", "1");
        cargo
            .env("PRINCIPIUM_SOAK_MINUTES", minutes.to_string())
            .env("PRINCIPIUM_SOAK_SEED", seed.to_string());
        crate::run(&mut cargo)
    }
}

/// Frees the GPUs: the tests need all eight. What the demo or an interrupted test left goes; what somebody else made on
/// this cluster is not touched, but named.
pub fn clear(access: &Access) -> Result<()> {
    let kubectl = |arguments: &[&str]| {
        run(Command::new(&access.kubectl).env("KUBECONFIG", &access.kubeconfig).args(arguments))
    };
    let namespaces = kubectl(&["get", "namespaces", "-o", "name"])?;
    let ours = |name: &str| EXAMPLES.contains(&name) || name.starts_with(TESTS);
    for name in
        namespaces.lines().filter_map(|line| line.strip_prefix("namespace/")).filter(|name| ours(name))
    {
        step(&format!("deleting namespace {name}, left by the demo or an earlier run"), || {
            kubectl(&["delete", "namespace", name, "--ignore-not-found"])
        })?;
    }
    let others = kubectl(&["get", KINDS, "--all-namespaces", "--no-headers"])?;
    if !others.trim().is_empty() {
        bail!(
            "the tests need all eight GPUs of the local cluster; delete these first, or the cluster with \
             `cargo xtask cluster down`:\n{others}"
        );
    }
    Ok(())
}
