//! Ingestions: corpora of DataFactories that follow their sources. It places no pods, so it has a loop of its own beside that of
//! the other kinds: observe (caches, and the DataFactory's own answer), plan (pure), apply (its job and its status).

mod job;
mod plan;

use crate::caches::{Caches, Guarded, readable};
use crate::leader::Term;
use crate::probe::{Http, HttpError};
use futures::StreamExt;
use jiff::Timestamp;
use job::{Answer, Job, build_request};
use kube::api::{Patch, PatchParams};
use kube::core::DeserializeGuard;
use kube::runtime::reflector;
use kube::runtime::watcher::{self, Config};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client};
use plan::{Factory, Observed, Plan, plan};
use principium_api::names::GROUP;
use principium_api::status::condition;
use principium_api::{DataFactory, Ingestion};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

/// Field manager of status.
const STATUS: &str = "principium-operator-ingestions";
/// Longest wait for a DataFactory's answer.
const ANSWER: Duration = Duration::from_secs(15);
/// How often all are looked at though nothing changes; runs that go on are asked for more often.
const IDLE: Duration = Duration::from_secs(60);
/// Changes come in bursts: one pass for all that come within this time.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// Ingestions looked at at once.
const AT_ONCE: usize = 8;

/// Drives all Ingestions.
pub struct Ingestions {
    client: Client,
    http: Http,
    resources: Guarded<Ingestion>,
    data_factories: Guarded<DataFactory>,
    changed: Arc<Notify>,
    /// Generations that a DataFactory does not take, by UID, and why.
    refused: HashMap<String, (i64, String)>,
}

/// A generation that a DataFactory does not take: UID, generation, why.
type Refusal = (String, (i64, String));

/// What became of asking for a job.
enum Submitted {
    Taken,
    /// Not as it is.
    Refused(String),
    /// Not now.
    Failed(String),
}

impl Ingestions {
    /// Starts the watch.
    pub fn start(client: Client, namespace: Option<&str>, caches: &Caches) -> Result<Self, reqwest::Error> {
        let api: Api<DeserializeGuard<Ingestion>> = match namespace {
            Some(namespace) => Api::namespaced(client.clone(), namespace),
            None => Api::all(client.clone()),
        };
        let (resources, writer) = reflector::store();
        let changed = Arc::new(Notify::new());
        let wake = changed.clone();
        tokio::spawn(async move {
            let events = watch(api, Config::default()).default_backoff().reflect(writer);
            let mut events = std::pin::pin!(events);
            while let Some(event) = events.next().await {
                match event {
                    Ok(watcher::Event::Apply(_) | watcher::Event::Delete(_) | watcher::Event::InitDone) => {
                        wake.notify_one();
                    }
                    Ok(_) => {}
                    Err(error) => tracing::warn!(%error, "watching Ingestions"),
                }
            }
        });
        let data_factories = caches.data_factories.clone();
        Ok(Self { client, http: Http::new()?, resources, data_factories, changed, refused: HashMap::new() })
    }

    /// Works for as long as this operator leads.
    pub async fn work(&mut self, term: &Term) {
        loop {
            let again = self.pass(term).await;
            // The time is up or something has changed: both mean to look again.
            let _ = timeout(again, self.changed.notified()).await;
            sleep(DEBOUNCE).await;
        }
    }

    async fn pass(&mut self, term: &Term) -> Duration {
        let resources = readable(&self.resources);
        self.refused.retain(|uid, (generation, _)| {
            resources.iter().any(|it| {
                it.metadata.uid.as_deref() == Some(uid.as_str())
                    && it.metadata.generation == Some(*generation)
            })
        });
        let this = &*self;
        let passes: Vec<(Duration, Option<Refusal>)> = futures::stream::iter(&resources)
            .filter(|resource| std::future::ready(resource.metadata.deletion_timestamp.is_none()))
            .map(|resource| async move { this.look_at(resource, term).await })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let mut again = IDLE;
        for (after, refused) in passes {
            again = again.min(after);
            self.refused.extend(refused);
        }
        again.max(DEBOUNCE)
    }

    /// One pass over one Ingestion: when to look again, and what was refused.
    async fn look_at(&self, resource: &Ingestion, term: &Term) -> (Duration, Option<Refusal>) {
        let factory = self.factory(resource);
        let newest = resource.status.as_ref().and_then(|status| status.runs.first());
        let answer = match (&factory, newest.filter(|run| plan::open(run))) {
            (Factory::Ready(url), Some(run)) => Some(self.ask(url, &run.id).await),
            _ => None,
        };
        let uid = resource.metadata.uid.clone().unwrap_or_default();
        let refused = self.refused.get(&uid).map(|(_, message)| message.as_str());
        let observed = Observed { resource, factory: factory.clone(), answer, refused };
        let Plan { submit, status, look_again } = plan(&observed, Timestamp::now());
        let again = Duration::try_from(look_again).unwrap_or(IDLE);
        if !term.holds() {
            return (again, None);
        }
        // The status first: a run that is not written down could not be followed.
        if resource.status.as_ref() != Some(&status)
            && let Err(error) = self.write_status(resource, json!(status)).await
        {
            let (namespace, name) = key(resource);
            tracing::warn!(namespace, name, %error, "could not write the status of an Ingestion; trying again");
            return (IDLE.min(again), None);
        }
        let (Some(id), Factory::Ready(url)) = (submit, factory) else { return (again, None) };
        match self.submit(&url, &id, resource).await {
            Submitted::Taken => (Duration::from_secs(1), None),
            Submitted::Refused(message) => {
                (DEBOUNCE, Some((uid, (resource.metadata.generation.unwrap_or_default(), message))))
            }
            Submitted::Failed(error) => {
                let (namespace, name) = key(resource);
                tracing::warn!(namespace, name, error, "a DataFactory took no job; trying again");
                (again, None)
            }
        }
    }

    fn factory(&self, resource: &Ingestion) -> Factory {
        let (namespace, _) = key(resource);
        let wanted = resource.spec.data_factory_ref.name.as_str();
        let found = readable(&self.data_factories).into_iter().find(|it| {
            it.metadata.namespace.as_deref() == Some(namespace) && it.metadata.name.as_deref() == Some(wanted)
        });
        let Some(found) = found else { return Factory::Missing };
        let Some(status) = &found.status else { return Factory::NotReady };
        let ready = status.conditions.iter().any(|it| it.type_ == condition::READY && it.status == "True");
        let url = status.endpoints.iter().find(|endpoint| endpoint.name == "data-factory");
        match url.filter(|_| ready) {
            Some(endpoint) => Factory::Ready(endpoint.url.clone()),
            None => Factory::NotReady,
        }
    }

    async fn ask(&self, url: &str, id: &str) -> Answer {
        match timeout(ANSWER, self.http.get::<Job>(&format!("{url}/v1/jobs/{id}"))).await {
            Ok(Ok(job)) => Answer::Job(Box::new(job)),
            Ok(Err(HttpError::Status { status: 404, .. })) => Answer::Unknown,
            Ok(Err(error)) => Answer::None(error.to_string()),
            Err(_) => Answer::None(format!("no answer within {} s", ANSWER.as_secs())),
        }
    }

    async fn submit(&self, url: &str, id: &str, resource: &Ingestion) -> Submitted {
        let (_, name) = key(resource);
        let body = build_request(id, name, &resource.spec);
        match self.http.post::<Value>(&format!("{url}/v1/jobs"), &body, ANSWER).await {
            Ok(_) => Submitted::Taken,
            Err(HttpError::Status { status: 400 | 409 | 422, text, .. }) => Submitted::Refused(text),
            Err(error) => Submitted::Failed(error.to_string()),
        }
    }

    async fn write_status(&self, resource: &Ingestion, status: Value) -> Result<(), kube::Error> {
        let (namespace, name) = key(resource);
        let api: Api<Ingestion> = Api::namespaced(self.client.clone(), namespace);
        let patch = json!({
            "apiVersion": format!("{GROUP}/v1alpha1"),
            "kind": "Ingestion",
            // With the UID, a resource that was made anew under the same name is left alone.
            "metadata": {"name": name, "uid": resource.metadata.uid},
            "status": status,
        });
        let params = PatchParams::apply(STATUS).force();
        match api.patch_status(name, &params, &Patch::Apply(patch)).await {
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            other => other.map(drop),
        }
    }
}

fn key(resource: &Ingestion) -> (&str, &str) {
    let meta = &resource.metadata;
    (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}
