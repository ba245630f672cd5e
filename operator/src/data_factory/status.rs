//! The status of a DataFactory.

use super::{analyzer_port, analyzer_url, pool, port};
use crate::actions::{Plan, Question, Status, StatusUpdate, target};
use crate::conditions::{self, ENRICHMENT_READY, Progress, Verdict, reason};
use crate::observed::Observed;
use crate::ollama_pool::tagged;
use crate::placement::Need;
use crate::pods::Phase;
use crate::resource::Role;
use crate::summary::{self, Reporting};
use principium_api::names::DATA_FACTORY_PORT;
use principium_api::ollama_pool::OllamaModelState;
use principium_api::status::{Endpoint, condition};
use principium_api::{DataFactory, DataFactoryStatus, OllamaPool};

/// Writes the status into the plan where it differs, and the pods to ask.
pub fn report(with: &Reporting<'_, '_>, resource: &DataFactory, plan: &mut Plan) {
    let Reporting { observed, inventory, desired, pods, reports, now } = *with;
    let key = &desired.id.key;
    let assignments = summary::assignments(desired, pods, reports, inventory);
    let worker = reports
        .iter()
        .find(|report| report.role == Role::Worker)
        .and_then(|report| report.serving.or(report.pod));
    let running = worker.filter(|pod| pod.phase == Phase::Running && !pod.leaving);
    plan.targets.extend(running.and_then(|pod| target(pod, DATA_FACTORY_PORT, Question::Worker)));
    let info = running.and_then(|pod| observed.answers.workers.get(&pod.uid));
    let known = running.is_some_and(|pod| summary::remembers(desired, pod));
    let before = || resource.status.as_ref().filter(|_| known).and_then(|status| status.model.clone());
    let acceleration = summary::acceleration(
        Need::of(desired.gpu) != Need::Nothing,
        &[running.and_then(|pod| summary::says(desired, pod, info))],
        || summary::simulated(inventory, &assignments),
        resource.spec.require_acceleration.unwrap_or(observed.settings.require_acceleration),
    );
    let enrichment = enrichment(observed, resource, &key.namespace);
    let progress = summary::progress(desired, reports, observed.failures.get(key));
    let progress = progress.filter(|progress| !acceleration.explains(progress)).unwrap_or_else(|| {
        if !acceleration.allows_ready {
            return summary::not_accelerated(&acceleration);
        }
        let mut message = "it takes documents".to_owned();
        for more in [
            enrichment
                .as_ref()
                .filter(|verdict| verdict.status != Some(true))
                .map(|verdict| verdict.message.clone()),
            summary::withheld(pods, inventory),
        ]
        .into_iter()
        .flatten()
        {
            message = format!("{message}; {more}");
        }
        Progress::Ready { reason: reason::READY, message }
    });
    let mut more = vec![acceleration.verdict];
    more.extend(enrichment);
    let status = DataFactoryStatus {
        observed_generation: desired.id.generation,
        conditions: summary::conditions(desired, &progress, &more, now, plan),
        gpus: summary::gpus_line(&assignments),
        assignments,
        endpoints: endpoints(&key.namespace, &key.name, resource),
        model: info.map(summary::running_model).or_else(before),
        revisions: summary::revisions(desired.revisions, reports),
    };
    if resource.status.as_ref() != Some(&status) {
        let status = Status::DataFactory(Box::new(status));
        plan.statuses.push(StatusUpdate { key: key.clone(), uid: desired.id.uid.clone(), status });
    }
}

fn endpoints(namespace: &str, name: &str, resource: &DataFactory) -> Vec<Endpoint> {
    let own = Endpoint {
        name: "data-factory".to_owned(),
        url: format!("http://{name}.{namespace}.svc:{}", port(resource)),
    };
    let analyzer = analyzer_port(resource)
        .map(|port| Endpoint { name: "doc-analyzer".to_owned(), url: analyzer_url(namespace, name, port) });
    [Some(own), analyzer].into_iter().flatten().collect()
}

/// Whether the pool can put chunks in context. The DataFactory runs without it, and says so.
fn enrichment(observed: &Observed, resource: &DataFactory, namespace: &str) -> Option<Verdict> {
    let enrichment = resource.spec.enrichment.as_ref()?;
    let reference = &enrichment.ollama_pool_ref;
    let name = format!("OllamaPool {namespace}/{}", reference.name);
    let (status, reason, message) = match pool(observed, namespace, reference) {
        None => (false, reason::POOL_MISSING, format!("enrichment waits for {name}, which does not exist")),
        Some(pool) => match enrichment.model.as_deref().filter(|model| !serves(pool, model)) {
            Some(model) => (false, reason::MODEL_NOT_IN_POOL, not_in_pool(model, &name, pool)),
            None => answering(&name, pool, enrichment.model.as_deref()),
        },
    };
    Some(Verdict { type_: ENRICHMENT_READY, status: Some(status), reason, message })
}

/// Whether any instance of the pool answers, with the model that is asked for: by default the pool's first.
fn answering(name: &str, pool: &OllamaPool, model: Option<&str>) -> (bool, &'static str, String) {
    let status = pool.status.as_ref();
    let model = model.or_else(|| pool.spec.models.first().map(|first| first.name.as_str()));
    if let Some(wanted) = model.map(tagged) {
        let mut found = status
            .into_iter()
            .flat_map(|status| &status.models)
            .filter(|it| tagged(&it.name) == wanted)
            .peekable();
        if found.peek().is_some() && !found.any(|it| it.state == OllamaModelState::Ready) {
            let message =
                format!("enrichment waits for {name}, where the model {wanted} does not answer yet");
            return (false, reason::POOL_NOT_READY, message);
        }
    }
    let ready = status
        .and_then(|status| conditions::before(&status.conditions, condition::READY))
        .is_some_and(|condition| condition.status == "True");
    let instances = status.map(|status| status.ready_instances.as_str()).unwrap_or_default();
    let some = instances.split('/').next().is_some_and(|ready| !matches!(ready, "" | "0"));
    match (ready, some) {
        (true, _) => (true, reason::POOL_READY, format!("{name} is ready")),
        (false, true) => (true, reason::POOL_READY, format!("{instances} instances of {name} are ready")),
        (false, false) => (
            false,
            reason::POOL_NOT_READY,
            format!("enrichment waits for {name}, which has no ready instance"),
        ),
    }
}

/// Whether the pool serves a model, as far as its spec tells: one without `models` may have any in its store.
fn serves(pool: &OllamaPool, model: &str) -> bool {
    let models = &pool.spec.models;
    let wanted = tagged(model);
    models.is_empty() || models.iter().any(|listed| tagged(&listed.name).eq_ignore_ascii_case(&wanted))
}

fn not_in_pool(model: &str, name: &str, pool: &OllamaPool) -> String {
    let listed: Vec<&str> = pool.spec.models.iter().map(|listed| listed.name.as_str()).collect();
    format!(
        "enrichment asks {name} for the model {}, which it does not serve: its models are {}",
        tagged(model),
        listed.join(", ")
    )
}
