//! The status of a DataFactory.

use super::{analyzer_port, analyzer_url, pool, port};
use crate::actions::{Plan, Question, Status, StatusUpdate, target};
use crate::conditions::{self, ENRICHMENT_READY, Progress, Verdict, reason};
use crate::observed::Observed;
use crate::placement::Need;
use crate::pods::Phase;
use crate::resource::Role;
use crate::summary::{self, Reporting};
use principium_api::names::DATA_FACTORY_PORT;
use principium_api::status::{Endpoint, condition};
use principium_api::{DataFactory, DataFactoryStatus};

/// Writes the status into the plan where it differs, and the pods to ask.
pub fn report(with: &Reporting<'_, '_>, resource: &DataFactory, plan: &mut Plan) {
    let Reporting { observed, inventory, desired, pods, reports, now } = *with;
    let key = &desired.id.key;
    let assignments = summary::assignments(desired, pods, reports, inventory);
    let worker = reports.iter().find(|report| report.role == Role::Worker).and_then(|report| report.pod);
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
    let reference = &resource.spec.enrichment.as_ref()?.ollama_pool_ref;
    let name = format!("OllamaPool {namespace}/{}", reference.name);
    let (status, reason, message) = match pool(observed, namespace, reference) {
        None => (false, reason::POOL_MISSING, format!("enrichment waits for {name}, which does not exist")),
        Some(pool) => {
            let status = pool.status.as_ref();
            let ready = status
                .and_then(|status| conditions::before(&status.conditions, condition::READY))
                .is_some_and(|condition| condition.status == "True");
            let instances = status.map(|status| status.ready_instances.as_str()).unwrap_or_default();
            let some = instances.split('/').next().is_some_and(|ready| !matches!(ready, "" | "0"));
            match (ready, some) {
                (true, _) => (true, reason::POOL_READY, format!("{name} is ready")),
                (false, true) => {
                    (true, reason::POOL_READY, format!("{instances} instances of {name} are ready"))
                }
                (false, false) => (
                    false,
                    reason::POOL_NOT_READY,
                    format!("enrichment waits for {name}, which has no ready instance"),
                ),
            }
        }
    };
    Some(Verdict { type_: ENRICHMENT_READY, status: Some(status), reason, message })
}
