//! Operators as local processes, which tests can kill, stop and start, in place of the one that the chart installed.

use crate::proxy::Proxy;
use crate::world::{PATIENCE, eventually};
use crate::{Release, World};
use anyhow::{Context, Result};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::ResourceExt;
use kube::api::{Api, ListParams, PostParams};
use principium_local_cluster::NAMESPACE;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A running operator. It is killed when it is dropped.
pub struct Operator {
    child: Child,
    folder: PathBuf,
}

impl Operator {
    /// Starts one behind a proxy, with the rights of the chart's operator. With `election` it takes part in one.
    ///
    /// # Errors
    /// When the program is not built, or no token is given.
    pub async fn start(world: &World, proxy: &Proxy, name: &str, election: bool) -> Result<Self> {
        Self::launch(world, proxy, name, election, &[]).await
    }

    /// Starts one that leads, with a clock that is off by this much, for example `-1h`.
    ///
    /// # Errors
    /// As [`Operator::start`], or when the library that tells the wrong time is not installed.
    pub async fn start_with_clock(world: &World, proxy: &Proxy, name: &str, off: &str) -> Result<Self> {
        let library = format!("/usr/lib/{}-linux-gnu/faketime/libfaketimeMT.so.1", std::env::consts::ARCH);
        anyhow::ensure!(Path::new(&library).exists(), "{library} is missing: install libfaketime");
        let variables =
            [("LD_PRELOAD", library.as_str()), ("FAKETIME", off), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
        Self::launch(world, proxy, name, true, &variables).await
    }

    async fn launch(
        world: &World,
        proxy: &Proxy,
        name: &str,
        election: bool,
        variables: &[(&str, &str)],
    ) -> Result<Self> {
        let folder =
            std::env::temp_dir().join(format!("principium-e2e-operator-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let accounts = Api::<ServiceAccount>::namespaced(world.client.clone(), NAMESPACE);
        let account = deployment(world).await?.1;
        let token = accounts
            .create_token_request(&account, &PostParams::default(), &TokenRequest::default())
            .await
            .context("asking for a token of the operator")?;
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "x",
            "clusters": [{"name": "x", "cluster": {"server": format!("http://{}", proxy.address)}}],
            "users": [{"name": "x", "user": {"token": token.status.unwrap_or_default().token}}],
            "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        });
        std::fs::write(folder.join("kubeconfig"), kubeconfig.to_string())?;
        let version = env!("CARGO_PKG_VERSION");
        let log = std::fs::File::create(folder.join("log"))?;
        let child = Command::new(program()?)
            .env("KUBECONFIG", folder.join("kubeconfig"))
            .envs(variables.iter().copied())
            .arg(format!("--embedder-image=ghcr.io/principium-ai/principium-embedder:{version}"))
            .arg(format!("--ollama-image=ghcr.io/principium-ai/principium-ollama:{version}"))
            .arg("--require-acceleration=false")
            .arg("--listen=127.0.0.1:0")
            .arg(format!("--leader-election={election}"))
            .arg(format!("--namespace={NAMESPACE}"))
            .arg(format!("--name={name}"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("starting the operator")?;
        Ok(Self { child, folder })
    }

    /// What it logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Sends it a signal by its name, for example `STOP`.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, name: &str) -> Result<()> {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status()?;
        anyhow::ensure!(sent.success(), "kill -s {name} {}", self.child.id());
        Ok(())
    }

    /// Kills it as the kernel would, without a chance to say good-bye.
    ///
    /// # Errors
    /// When that is not allowed.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Whether it has ended by itself.
    ///
    /// # Errors
    /// When that can't be told.
    pub fn ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        // Best effort: it may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Runs a test while the chart's operator is away, and brings it back whatever happens. Helm itself scales it: it would refuse
/// later to change what somebody else has set.
///
/// # Errors
/// The test's own, or that the operator doesn't stop or come back.
pub async fn without_operator<F>(world: &World, test: F) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let pods = Api::<Pod>::namespaced(world.client.clone(), NAMESPACE);
    let selector = ListParams::default().labels("app.kubernetes.io/component=operator");
    let gone = || async { Ok(pods.list(&selector).await?.items.is_empty().then_some(())) };
    let away = async {
        eventually("no operator runs", PATIENCE, gone).await?;
        // A task of its own, so that a failed assertion does not keep the operator away.
        tokio::spawn(test).await.context("the test panicked")?
    };
    Release::existing()?.with(&["operator.replicas=0"], away).await
}

/// Name of the operator's Deployment and of its ServiceAccount.
async fn deployment(world: &World) -> Result<(String, String)> {
    let deployments = Api::<Deployment>::namespaced(world.client.clone(), NAMESPACE);
    let selector = ListParams::default().labels("app.kubernetes.io/component=operator");
    let found =
        deployments.list(&selector).await?.items.into_iter().next().context("no operator is installed")?;
    let account = found.spec.template.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
    Ok((found.name_any(), account.context("the operator has no ServiceAccount")?))
}

/// The operator's program, built beside the tests.
fn program() -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    let folder = here.ancestors().nth(2).context("the test is in no target folder")?;
    let program = folder.join("principium-operator");
    anyhow::ensure!(program.exists(), "{} is missing: run `cargo xtask test` once", program.display());
    Ok(program)
}
