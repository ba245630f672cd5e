//! A test's world: a client, a namespace, and waiting.

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind, NamespaceResourceScope};
use kube::{Client, Resource, ResourceExt};
use principium_api::status::{Condition, condition};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::future::Future;
use std::time::{Duration, Instant};

/// How long anything on the cluster may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// One test's access to the cluster.
#[derive(Clone)]
pub struct World {
    /// The client, with the administrator's rights.
    pub client: Client,
    /// A namespace that only this test uses.
    pub namespace: String,
}

/// Runs one test in a fresh namespace with cool, healthy GPUs, and cleans up whatever happens.
///
/// # Errors
/// The test's own error, or that the cluster can't be reached.
pub fn run<T, F>(name: &str, test: T) -> Result<()>
where
    T: FnOnce(World) -> F,
    F: Future<Output = Result<()>> + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let client = Client::try_default().await.context(
            "no cluster: these tests run on the one that `cargo xtask test` starts; for a single test, set KUBECONFIG to what \
             `cargo xtask cluster up` prints",
        )?;
        let world = World { client, namespace: format!("e2e-{name}") };
        crate::gpus::reset()?;
        world.remove_namespace().await?;
        world.create_namespace().await?;
        world.wait_until_idle().await?;
        // A task of its own, so that a failed assertion does not keep the clean-up from running.
        let outcome = tokio::spawn(test(world.clone())).await;
        if !matches!(outcome, Ok(Ok(()))) {
            world.print_state().await;
        }
        crate::gpus::reset()?;
        // The next test waits for the GPUs; that the namespace is gone takes the API server some seconds more.
        delete_namespace(&world.client, &world.namespace).await?;
        match outcome {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(error) => Err(error.into()),
        }
    })
}

impl World {
    async fn create_namespace(&self) -> Result<()> {
        let mut namespace = Namespace::default();
        namespace.metadata.name = Some(self.namespace.clone());
        Api::<Namespace>::all(self.client.clone())
            .create(&PostParams::default(), &namespace)
            .await
            .with_context(|| format!("creating namespace {}", self.namespace))?;
        Ok(())
    }

    async fn remove_namespace(&self) -> Result<()> {
        remove_namespace(&self.client, &self.namespace).await
    }

    /// The objects of one kind in the test's namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Creates or updates an object from YAML, as `kubectl apply --server-side` would.
    ///
    /// # Errors
    /// When the text is no object or the API server refuses it.
    pub async fn apply<K>(&self, yaml: &str) -> Result<K>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Serialize,
        K::DynamicType: Default,
    {
        let value: serde_json::Value = serde_yaml::from_str(yaml)?;
        let name =
            value.pointer("/metadata/name").and_then(|n| n.as_str()).context("metadata.name is missing")?;
        let applied = self
            .api::<K>()
            .patch(name, &PatchParams::apply("principium-e2e").force(), &Patch::Apply(&value))
            .await?;
        Ok(applied)
    }

    /// Deletes an object and waits until it is gone.
    ///
    /// # Errors
    /// When it is still there after [`PATIENCE`].
    pub async fn delete<K>(&self, name: &str) -> Result<()>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
        K::DynamicType: Default,
    {
        let api = self.api::<K>();
        if api.get_opt(name).await?.is_some() {
            api.delete(name, &DeleteParams::default()).await?;
        }
        self.eventually(&format!("{name} is gone"), || async {
            Ok(api.get_opt(name).await?.is_none().then_some(()))
        })
        .await
    }

    /// The pods of one of our resources, oldest first.
    ///
    /// # Errors
    /// When the API server can't be reached.
    pub async fn pods_of(&self, name: &str) -> Result<Vec<Pod>> {
        let selector = format!("{}={name}", principium_api::names::LABEL_NAME);
        let mut pods = self.api::<Pod>().list(&ListParams::default().labels(&selector)).await?.items;
        pods.sort_by_key(ResourceExt::name_any);
        Ok(pods)
    }

    /// Tries `look` until it returns something, and fails with `what` after [`PATIENCE`].
    ///
    /// # Errors
    /// When it never does, or `look` fails.
    pub async fn eventually<T, F: Future<Output = Result<Option<T>>>>(
        &self,
        what: &str,
        look: impl Fn() -> F,
    ) -> Result<T> {
        eventually(what, PATIENCE, look).await
    }

    /// Holds for `time` that `look` returns `true`.
    ///
    /// # Errors
    /// As soon as it doesn't.
    pub async fn stays<F: Future<Output = Result<bool>>>(
        &self,
        what: &str,
        time: Duration,
        look: impl Fn() -> F,
    ) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            if !look().await? {
                bail!("no longer true: {what}");
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Ok(())
    }

    /// Waits until a resource of ours is Ready for its newest generation.
    ///
    /// # Errors
    /// When it isn't after [`PATIENCE`], with its conditions.
    pub async fn ready<K>(&self, name: &str) -> Result<K>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Serialize,
        K::DynamicType: Default,
    {
        ready(&self.api::<K>(), name).await
    }

    /// Whether a resource is Ready for its newest spec.
    ///
    /// # Errors
    /// When it can't be read.
    pub async fn is_ready<K>(&self, name: &str) -> Result<bool>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Serialize,
        K::DynamicType: Default,
    {
        is_ready(&serde_json::to_value(self.api::<K>().get(name).await?)?)
    }

    /// Waits until a condition of a resource has this reason, and returns its message.
    ///
    /// # Errors
    /// When it hasn't after [`PATIENCE`].
    pub async fn reason<K>(&self, name: &str, kind: &str, reason: &str) -> Result<String>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Serialize,
        K::DynamicType: Default,
    {
        let api = self.api::<K>();
        self.eventually(&format!("{name} has {kind} with reason {reason}"), || async {
            let object = serde_json::to_value(api.get(name).await?)?;
            Ok(find_condition(&object, kind)?.filter(|c| c.reason == reason).map(|c| c.message))
        })
        .await
    }

    /// Waits for an Event in the test's namespace whose text contains all of these.
    ///
    /// # Errors
    /// When there is none after [`PATIENCE`].
    pub async fn told(&self, reason: &str, parts: &[&str]) -> Result<()> {
        event(&self.api(), reason, parts).await
    }

    /// Prints what somebody needs who looks at a failed test.
    async fn print_state(&self) {
        let output = tokio::process::Command::new(principium_local_cluster::kubectl())
            .args(["get", "principium,pods,events", "-n", &self.namespace, "-o", "wide"])
            .output()
            .await;
        if let Ok(output) = output {
            eprintln!("--- {} ---\n{}", self.namespace, String::from_utf8_lossy(&output.stdout));
        }
        let nodes = tokio::process::Command::new(principium_local_cluster::kubectl())
            .args(["get", "gpunodes", "-o", "yaml"])
            .output()
            .await;
        if let Ok(output) = nodes {
            eprintln!("{}", String::from_utf8_lossy(&output.stdout));
        }
    }
}

/// See [`World::eventually`].
///
/// # Errors
/// When it never returns something, or `look` fails.
pub async fn eventually<T, F: Future<Output = Result<Option<T>>>>(
    what: &str,
    patience: Duration,
    look: impl Fn() -> F,
) -> Result<T> {
    let end = Instant::now() + patience;
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if Instant::now() > end {
            bail!("not after {} s: {what}", patience.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// See [`World::told`]; for Events of any namespace.
///
/// # Errors
/// When there is none after [`PATIENCE`].
pub async fn event(events: &Api<Event>, reason: &str, parts: &[&str]) -> Result<()> {
    eventually(&format!("an Event {reason} with {parts:?}"), PATIENCE, || async {
        let list = events.list(&ListParams::default()).await?;
        let told = list.iter().any(|event| {
            let note = event.note.as_deref().unwrap_or_default();
            event.reason.as_deref() == Some(reason) && parts.iter().all(|part| note.contains(part))
        });
        Ok(told.then_some(()))
    })
    .await
}

/// See [`World::ready`]; for objects of any kind.
///
/// # Errors
/// When it isn't Ready in time.
pub async fn ready<K>(api: &Api<K>, name: &str) -> Result<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Serialize,
{
    let end = Instant::now() + PATIENCE * 3;
    loop {
        let object = api.get(name).await?;
        let value = serde_json::to_value(&object)?;
        if is_ready(&value)? {
            return Ok(object);
        }
        if Instant::now() > end {
            bail!("{name} is not Ready: {:#}", value["status"]);
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

fn is_ready(object: &serde_json::Value) -> Result<bool> {
    let current = object.pointer("/status/observedGeneration") == object.pointer("/metadata/generation");
    Ok(current && find_condition(object, condition::READY)?.is_some_and(|c| c.status == "True"))
}

fn find_condition(object: &serde_json::Value, kind: &str) -> Result<Option<Condition>> {
    let Some(conditions) = object.pointer("/status/conditions") else { return Ok(None) };
    let conditions: Vec<Condition> = serde_json::from_value(conditions.clone())?;
    Ok(conditions.into_iter().find(|c| c.type_ == kind))
}

/// Deletes a namespace with all that is in it and waits until it is gone.
///
/// # Errors
/// When it is still there after [`PATIENCE`].
pub async fn remove_namespace(client: &Client, name: &str) -> Result<()> {
    delete_namespace(client, name).await?;
    let namespaces = Api::<Namespace>::all(client.clone());
    eventually(&format!("namespace {name} is gone"), PATIENCE, || async {
        Ok(namespaces.get_opt(name).await?.is_none().then_some(()))
    })
    .await
}

/// The same without waiting.
async fn delete_namespace(client: &Client, name: &str) -> Result<()> {
    let namespaces = Api::<Namespace>::all(client.clone());
    if namespaces.get_opt(name).await?.is_some() {
        namespaces.delete(name, &DeleteParams::default()).await?;
    }
    Ok(())
}

/// Applies every document of a manifest file, of any kind, and returns the objects.
///
/// # Errors
/// When the file can't be read or an object is refused.
pub async fn apply_manifest(client: &Client, text: &str) -> Result<Vec<DynamicObject>> {
    use serde::Deserialize;
    // Read whole before the first request: the reader must not be held across an await.
    let documents: Vec<serde_json::Value> =
        serde_yaml::Deserializer::from_str(text).map(Deserialize::deserialize).collect::<Result<_, _>>()?;
    let mut applied = Vec::new();
    for value in documents {
        if value.is_null() {
            continue;
        }
        let object: DynamicObject = serde_json::from_value(value)?;
        let types = object.types.clone().context("an object without apiVersion and kind")?;
        let gvk = GroupVersionKind::try_from(types)?;
        let (resource, _) = kube::discovery::pinned_kind(client, &gvk).await?;
        let api = api_for(client, &resource, object.namespace().as_deref());
        let name = object.name_any();
        let patched = api
            .patch(&name, &PatchParams::apply("principium-e2e").force(), &Patch::Apply(&object))
            .await
            .with_context(|| format!("applying {} {name}", gvk.kind))?;
        applied.push(patched);
    }
    Ok(applied)
}

/// The API of a discovered kind.
#[must_use]
pub fn api_for(client: &Client, resource: &ApiResource, namespace: Option<&str>) -> Api<DynamicObject> {
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, resource),
        None => Api::all_with(client.clone(), resource),
    }
}
