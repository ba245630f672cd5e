//! The sole writer: does what a plan says, and remembers what could not be done.

mod begin;
mod order;

use crate::actions::{Action, Plan, Status, StatusUpdate, Write};
use crate::events::{AFTER, BEFORE, Recorder};
use crate::leader::Term;
use crate::metrics::Metrics;
use crate::pods::MODELS_READY_GATE;
use crate::resource::ResourceKey;
use begin::{PATIENCE, begin};
use hashbrown::HashSet;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{NamespaceResourceScope, ObjectMeta};
use kube::{Api, Client, Resource};
use principium_api::names::{GROUP, MANAGED_BY};
use principium_api::{DataFactory, Ingestion, OllamaPool, Reranker};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Field manager of children.
const CHILDREN: &str = MANAGED_BY;
/// Field manager of status.
const STATUS: &str = "principium-operator-status";
/// First wait after a failed write of an object; doubled up to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Longest wait after a failed write.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Writes to the API server.
pub struct Writer {
    client: Client,
    metrics: Arc<Metrics>,
    recorder: Recorder,
    /// By resource and object: how often it failed in a row, why, and when it may be tried again.
    waiting: BTreeMap<(ResourceKey, String), Wait>,
    /// How long writes of one sort are begun in a pass.
    patience: Duration,
}

struct Wait {
    failures: u32,
    until: Instant,
    message: String,
}

/// What became of a plan.
#[derive(Debug, Default)]
pub struct Applied {
    pub made: Vec<Pod>,
    /// Whether something was left out because the term had ended.
    skipped: bool,
    /// Whether something was left to the next pass.
    left: bool,
    /// When to try again what failed.
    pub retry_after: Option<Duration>,
}

/// Why a write was not done.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("could not {verb} {object}: {}", told(source))]
    Api { verb: &'static str, object: String, source: kube::Error },
    #[error(
        "could not create {object}: one of that name exists and is not of this resource; rename or delete it"
    )]
    Taken { object: String },
}

/// What the API server says, without what kube adds for programmers.
fn told(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        other => other.to_string(),
    }
}

/// What an action did.
enum Done {
    Made(Box<Pod>),
    Otherwise,
}

impl Writer {
    pub fn new(client: Client, metrics: Arc<Metrics>, recorder: Recorder) -> Self {
        Self { client, metrics, recorder, waiting: BTreeMap::new(), patience: PATIENCE }
    }

    /// What could not be written, for the status of each resource. A status that could not be written is left out: it says
    /// nothing about the resource, and is written as soon as it can be.
    pub fn failures(&self) -> BTreeMap<ResourceKey, String> {
        // In reverse, so that of several the first by name is told, every time the same.
        let objects = self.waiting.iter().rev().filter(|((_, object), _)| object != STATUS_OBJECT);
        objects.map(|((key, _), wait)| (key.clone(), wait.message.clone())).collect()
    }

    /// Applies a plan. Deletions and Services come before new pods, so that a Service's name is there when its pods ask
    /// for it. Why pods are made or deleted is told before all of it.
    pub async fn apply(&mut self, plan: Plan, term: &Term) -> Applied {
        let Plan { actions, statuses, notes, targets: _, requeue_after: _, creations: _ } = plan;
        self.forget(&actions, &statuses);
        let (before, mut after) = order::part(notes, actions.iter().filter(|action| self.is_due(action)));
        let (creations, others): (Vec<Action>, Vec<Action>) =
            actions.into_iter().partition(|action| matches!(action.write, Write::CreatePod(_)));
        let mut applied = Applied::default();
        if term.holds() {
            self.recorder.record(before, Timestamp::now(), BEFORE).await;
        }
        self.perform(others, term, &mut applied).await;
        self.perform(creations, term, &mut applied).await;
        self.write_statuses(statuses, term, &mut applied).await;
        after.retain(|note| note.is_true(&applied.made));
        if term.holds() {
            self.recorder.record(after, Timestamp::now(), AFTER).await;
        }
        let failed =
            self.waiting.values().map(|wait| wait.until.saturating_duration_since(Instant::now())).min();
        // A renewal of the Lease that took long may come through yet.
        let skipped = applied.skipped.then_some(FIRST_WAIT);
        let left = applied.left.then_some(Duration::ZERO);
        applied.retry_after = [failed, skipped, left].into_iter().flatten().min();
        applied
    }

    /// What is no longer to be done can no longer fail.
    fn forget(&mut self, actions: &[Action], statuses: &[StatusUpdate]) {
        let actions = actions.iter().map(|action| (action.resource.clone(), action.write.object()));
        let statuses = statuses.iter().map(|update| (update.key.clone(), STATUS_OBJECT.to_owned()));
        let named: HashSet<(ResourceKey, String)> = actions.chain(statuses).collect();
        self.waiting.retain(|key, _| named.contains(key));
    }

    /// Whether it did not fail just now.
    fn is_due(&self, action: &Action) -> bool {
        self.failed_before(&(action.resource.clone(), action.write.object())).is_some()
    }

    async fn perform(&mut self, actions: Vec<Action>, term: &Term, applied: &mut Applied) {
        let key = |action: &Action| (action.resource.clone(), action.write.object());
        let due = self.due(actions, key, applied);
        let client = &self.client;
        let write = move |action: Action| async move {
            let result = perform(client, &action).await;
            (action, result)
        };
        let results = begin(due, term, Instant::now() + self.patience, applied, write).await;
        for (action, result) in results {
            let key = (action.resource, action.write.object());
            match result {
                Ok(done) => {
                    self.metrics.wrote(action.write.verb(), true);
                    self.waiting.remove(&key);
                    if let Done::Made(pod) = done {
                        applied.made.push(*pod);
                    }
                }
                Err(error) => {
                    self.metrics.wrote(action.write.verb(), false);
                    self.failed(key, &error);
                }
            }
        }
    }

    fn failed(&mut self, key: (ResourceKey, String), error: &WriteError) {
        tracing::warn!(resource = %key.0, %error, "a write failed; trying again with back-off");
        let wait = self.waiting.entry(key).or_insert_with(|| Wait {
            failures: 0,
            until: Instant::now(),
            message: String::new(),
        });
        wait.failures = wait.failures.saturating_add(1);
        let factor = 1u32 << (wait.failures - 1).min(10);
        wait.until = Instant::now() + (FIRST_WAIT * factor).min(LONGEST_WAIT);
        wait.message = error.to_string();
    }

    async fn write_statuses(&mut self, updates: Vec<StatusUpdate>, term: &Term, applied: &mut Applied) {
        let key = |update: &StatusUpdate| (update.key.clone(), STATUS_OBJECT.to_owned());
        let due = self.due(updates, key, applied);
        let client = &self.client;
        let write = move |update: StatusUpdate| async move {
            let key = key(&update);
            (key, patch_status(client, update).await)
        };
        let results = begin(due, term, Instant::now() + self.patience, applied, write).await;
        for (key, result) in results {
            match result {
                Ok(()) => {
                    self.metrics.wrote("status", true);
                    self.waiting.remove(&key);
                }
                Err(error) => {
                    self.metrics.wrote("status", false);
                    self.failed(key, &error);
                }
            }
        }
    }
}

/// Names the status among the objects of a resource.
const STATUS_OBJECT: &str = "status";

async fn perform(client: &Client, action: &Action) -> Result<Done, WriteError> {
    let namespace = &action.resource.namespace;
    let failed =
        |source| WriteError::Api { verb: action.write.verb(), object: action.write.object(), source };
    let pods = || Api::<Pod>::namespaced(client.clone(), namespace);
    let services = || Api::<Service>::namespaced(client.clone(), namespace);
    let budgets = || Api::<PodDisruptionBudget>::namespaced(client.clone(), namespace);
    let result = match &action.write {
        Write::CreatePod(pod) => {
            let params = PostParams { field_manager: Some(CHILDREN.to_owned()), ..PostParams::default() };
            match pods().create(&params, pod).await {
                Ok(made) => return Ok(Done::Made(Box::new(made))),
                Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
                    return existing(&pods(), pod, &action.write).await;
                }
                Err(error) => Err(error),
            }
        }
        Write::DeletePod { name, uid } => gone(pods().delete(name, &with_uid(uid)).await.map(|_| ())),
        Write::DeleteService { name, uid } => gone(services().delete(name, &with_uid(uid)).await.map(|_| ())),
        Write::ApplyService { service, ours } => {
            return apply::<Service>(&services(), service, *ours, &action.write).await;
        }
        Write::DeleteBudget { name, uid } => gone(budgets().delete(name, &with_uid(uid)).await.map(|_| ())),
        Write::ApplyBudget { budget, ours } => {
            return apply::<PodDisruptionBudget>(&budgets(), budget, *ours, &action.write).await;
        }
        Write::SetGate { name, uid, open, reason, message, not_before } => {
            let patch = gate(uid, *open, (reason, message), Timestamp::now(), *not_before);
            let params = PatchParams { field_manager: Some(STATUS.to_owned()), ..PatchParams::default() };
            gone(pods().patch_status(name, &params, &Patch::Strategic(patch)).await.map(|_| ()))
        }
    };
    result.map(|()| Done::Otherwise).map_err(failed)
}

/// The pod that has the name already: usually the very one that was to be made, and the cache was behind.
async fn existing(pods: &Api<Pod>, wanted: &Pod, write: &Write) -> Result<Done, WriteError> {
    let name = wanted.metadata.name.as_deref().unwrap_or_default();
    let found = pods.get_opt(name).await;
    let found = found.map_err(|source| WriteError::Api { verb: "read", object: write.object(), source })?;
    match found {
        Some(found) if owner(&found.metadata) == owner(&wanted.metadata) => Ok(Done::Made(Box::new(found))),
        Some(found) if found.metadata.deletion_timestamp.is_none() => {
            Err(WriteError::Taken { object: write.object() })
        }
        // It is ending, or has ended by now: the next pass makes the new one.
        Some(_) | None => Ok(Done::Otherwise),
    }
}

/// Applies a Service or a budget. One that the cache does not show as the resource's own is looked for first: two resources
/// of different kinds may want the same name, and between applies of one field manager there is no conflict.
async fn apply<K>(api: &Api<K>, wanted: &K, ours: bool, write: &Write) -> Result<Done, WriteError>
where
    K: Resource + Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    let failed = |verb, source| WriteError::Api { verb, object: write.object(), source };
    let meta = wanted.meta();
    let name = meta.name.as_deref().unwrap_or_default();
    let mut ours = ours;
    if !ours && let Some(found) = api.get_opt(name).await.map_err(|source| failed("read", source))? {
        // The cache may be behind.
        ours = owner(found.meta()) == owner(meta);
        // What a resource left that had this kind and name before is taken over.
        if !ours && !is_labelled(found.meta(), meta) {
            return Err(WriteError::Taken { object: write.object() });
        }
    }
    // Without force, what somebody else has changed since conflicts.
    let params = PatchParams { force: ours, ..PatchParams::apply(CHILDREN) };
    match api.patch(name, &params, &Patch::Apply(wanted)).await {
        Ok(_) => Ok(Done::Otherwise),
        Err(source) => Err(failed(write.verb(), source)),
    }
}

/// The UID of the resource that an object belongs to.
fn owner(meta: &ObjectMeta) -> Option<&str> {
    meta.owner_references.iter().flatten().next().map(|owner| owner.uid.as_str())
}

/// Whether an object has all labels of another: they name the resource.
fn is_labelled(meta: &ObjectMeta, like: &ObjectMeta) -> bool {
    let label = |name| meta.labels.as_ref().and_then(|labels| labels.get(name));
    like.labels.iter().flatten().all(|(name, value)| label(name) == Some(value))
}

/// Only this pod, not another that has its name by now.
fn with_uid(uid: &str) -> DeleteParams {
    DeleteParams::default().preconditions(Preconditions { uid: Some(uid.to_owned()), resource_version: None })
}

/// What is gone, or another by now, needs nothing done to it.
fn gone(result: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        other => other,
    }
}

fn gate(
    uid: &str,
    open: bool,
    (reason, message): (&str, &str),
    now: Timestamp,
    not_before: Option<Timestamp>,
) -> Value {
    let set = not_before.map_or(now, |started| started.max(now));
    let set = Timestamp::from_second(set.as_second()).unwrap_or(set);
    json!({
        "metadata": {"uid": uid},
        "status": {"conditions": [{
            "type": MODELS_READY_GATE,
            "status": if open { "True" } else { "False" },
            "reason": reason,
            "message": message,
            "lastTransitionTime": set.to_string(),
        }]}
    })
}

async fn patch_status(client: &Client, update: StatusUpdate) -> Result<(), WriteError> {
    match update.status {
        Status::DataFactory(status) => {
            patch::<DataFactory>(client, &update.key, &update.uid, json!(status)).await
        }
        Status::Reranker(status) => patch::<Reranker>(client, &update.key, &update.uid, json!(status)).await,
        Status::OllamaPool(status) => {
            patch::<OllamaPool>(client, &update.key, &update.uid, json!(status)).await
        }
        Status::Ingestion(status) => {
            patch::<Ingestion>(client, &update.key, &update.uid, json!(status)).await
        }
    }
}

async fn patch<K>(client: &Client, key: &ResourceKey, uid: &str, status: Value) -> Result<(), WriteError>
where
    K: Resource<Scope = NamespaceResourceScope> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
    K::DynamicType: Default,
{
    let api: Api<K> = Api::namespaced(client.clone(), &key.namespace);
    let patch = json!({
        "apiVersion": format!("{GROUP}/v1alpha1"),
        "kind": key.kind.name(),
        // With the UID, a resource that was made anew under the same name is left alone.
        "metadata": {"name": key.name, "uid": uid},
        "status": status,
    });
    let params = PatchParams::apply(STATUS).force();
    let result = api.patch_status(&key.name, &params, &Patch::Apply(patch)).await.map(|_| ());
    gone(result).map_err(|source| WriteError::Api {
        verb: "write the status of",
        object: key.to_string(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Kind;
    use axum::body::Bytes;
    use axum::extract::RawQuery;
    use axum::http::StatusCode;
    use axum::response::IntoResponse;
    use axum::routing::get;
    use axum::{Json, Router};
    use kube::Config;
    use tokio::sync::mpsc;

    /// An API server that has this Service, or none, and tells how one is applied.
    async fn server(has: Option<Service>) -> (Api<Service>, mpsc::UnboundedReceiver<String>) {
        let (say, said) = mpsc::unbounded_channel();
        let read = move || async move {
            let none = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "not found", "reason": "NotFound", "code": 404});
            match has {
                Some(has) => Json(json!(has)).into_response(),
                None => (StatusCode::NOT_FOUND, Json(none)).into_response(),
            }
        };
        let applied = move |RawQuery(query): RawQuery, body: Bytes| async move {
            say.send(query.unwrap_or_default()).unwrap();
            body
        };
        let router = Router::new().route("/api/v1/namespaces/demo/services/x", get(read).patch(applied));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let client = Client::try_from(Config::new(address.parse().unwrap())).unwrap();
        (Api::namespaced(client, "demo"), said)
    }

    #[test]
    fn a_gate_is_not_set_before_the_containers_were_started_whatever_the_clock_of_their_node_says() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let now = at("2026-01-01T10:00:00.7Z");
        for (started, set) in [
            (None, "2026-01-01T10:00:00Z"),
            (Some(at("2026-01-01T09:00:00Z")), "2026-01-01T10:00:00Z"),
            (Some(at("2026-01-01T10:05:00Z")), "2026-01-01T10:05:00Z"),
        ] {
            let patch = gate("u", true, ("ModelsAnswer", "the models answer"), now, started);
            assert_eq!(patch["status"]["conditions"][0]["lastTransitionTime"], set);
        }
    }

    #[tokio::test]
    async fn another_resources_service_is_not_taken_over() {
        let service = |kind: &str, uid: &str| -> Service {
            let owner =
                json!({"apiVersion": "principium.ai/v1alpha1", "kind": kind, "name": "x", "uid": uid});
            let labels = json!({"principium.ai/kind": kind, "principium.ai/name": "x"});
            let meta =
                json!({"name": "x", "namespace": "demo", "labels": labels, "ownerReferences": [owner]});
            serde_json::from_value(json!({"metadata": meta})).unwrap()
        };
        let wanted = service("reranker", "u1");
        let write = Write::ApplyService { service: Box::new(wanted.clone()), ours: false };
        for (has, forced) in [
            (None, Some(false)),
            // The cache is behind.
            (Some(service("reranker", "u1")), Some(true)),
            // Of one that was deleted and made again.
            (Some(service("reranker", "u0")), Some(false)),
            (Some(service("datafactory", "u2")), None),
        ] {
            let (api, mut said) = server(has).await;
            let done = apply(&api, &wanted, false, &write).await;
            assert_eq!(matches!(done, Err(WriteError::Taken { .. })), forced.is_none());
            assert_eq!(said.try_recv().ok().map(|query| query.contains("force=true")), forced);
        }
    }

    #[tokio::test]
    async fn what_is_no_longer_to_be_written_is_not_waited_for() -> Result<(), Box<dyn std::error::Error>> {
        let client = Client::try_from(Config::new("http://127.0.0.1:1".parse()?))?;
        let recorder = Recorder::new(client.clone(), "test".to_owned());
        let mut writer = Writer::new(client, Arc::default(), recorder);
        let key = |name: &str| ResourceKey {
            kind: Kind::Reranker,
            namespace: "demo".to_owned(),
            name: name.to_owned(),
        };
        for name in ["there", "gone"] {
            let error = WriteError::Taken { object: String::new() };
            writer.failed((key(name), STATUS_OBJECT.to_owned()), &error);
        }
        let status = Status::Reranker(Box::default());
        let update = StatusUpdate { key: key("there"), uid: String::new(), status };
        writer.forget(&[], &[update]);
        let waiting: Vec<_> = writer.waiting.keys().map(|(key, _)| key.clone()).collect();
        assert_eq!(waiting, [key("there")], "a resource that was deleted would be tried again for ever");
        assert!(writer.failures().is_empty(), "what runs is not ill because its status could not be written");
        let pod = "Pod there-0-1".to_owned();
        writer.failed((key("there"), pod.clone()), &WriteError::Taken { object: pod });
        assert_eq!(writer.failures().into_keys().collect::<Vec<_>>(), [key("there")]);
        Ok(())
    }
}
