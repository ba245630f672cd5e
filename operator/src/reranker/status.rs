//! The status of a Reranker.

use super::{port, replicas};
use crate::actions::{Plan, Question, Status, StatusUpdate, target};
use crate::conditions::{Progress, reason};
use crate::placement::Need;
use crate::pods::{Phase, PodView};
use crate::resource::Role;
use crate::summary::{self, Reporting};
use principium_api::names::RERANKER_PORT;
use principium_api::status::Endpoint;
use principium_api::{Reranker, RerankerStatus};

/// Writes the status into the plan where it differs, and the pods to ask.
pub fn report(with: &Reporting<'_, '_>, resource: &Reranker, plan: &mut Plan) {
    let Reporting { observed, inventory, desired, pods, reports, now } = *with;
    let key = &desired.id.key;
    let assignments = summary::assignments(desired, pods, reports, inventory);
    let runs = |pod: &&PodView| pod.phase == Phase::Running && !pod.leaving;
    let running: Vec<&PodView> =
        reports.iter().filter_map(|report| report.serving.or(report.pod)).filter(runs).collect();
    // Beside pods that serve.
    let successors: Vec<&PodView> = reports
        .iter()
        .filter_map(|report| report.pod.filter(|pod| report.serving.is_some_and(|it| it.uid != pod.uid)))
        .filter(runs)
        .collect();
    let asked = running.iter().chain(&successors);
    plan.targets.extend(asked.filter_map(|pod| target(pod, RERANKER_PORT, Question::Worker)));
    let info = |pod: &PodView| observed.answers.workers.get(&pod.uid);
    let says_of = |pod: &&PodView| summary::says(desired, pod, info(pod));
    let mut says: Vec<Option<bool>> = running.iter().map(says_of).collect();
    // A successor may say why it does not take over.
    says.extend(successors.iter().map(says_of).filter(|says| *says == Some(false)));
    let known = running.iter().any(|pod| summary::remembers(desired, pod));
    let before = || resource.status.as_ref().filter(|_| known).and_then(|status| status.model.clone());
    let acceleration = summary::acceleration(
        Need::of(desired.gpu) != Need::Nothing,
        &says,
        || summary::simulated(inventory, &assignments),
        resource.spec.require_acceleration.unwrap_or(observed.settings.require_acceleration),
    );
    let progress = summary::progress(desired, reports, observed.failures.get(key));
    let progress = progress.filter(|progress| !acceleration.explains(progress)).unwrap_or_else(|| {
        if replicas(resource) == 0 {
            return Progress::Ready {
                reason: reason::SCALED_TO_ZERO,
                message: "no replica is wanted".to_owned(),
            };
        }
        if !acceleration.allows_ready {
            return summary::not_accelerated(&acceleration);
        }
        let message = match summary::withheld(pods, inventory) {
            Some(withheld) => format!("it scores; {withheld}"),
            None => "it scores".to_owned(),
        };
        Progress::Ready { reason: reason::READY, message }
    });
    let existing = pods.iter().filter(|pod| {
        pod.owner.as_deref() == Some(&desired.id.uid)
            && pod.role == Role::Worker
            && !pod.leaving
            && !pod.ended()
    });
    let status = RerankerStatus {
        observed_generation: desired.id.generation,
        conditions: summary::conditions(desired, &progress, &[acceleration.verdict], now, plan),
        replicas: u32::try_from(existing.count()).unwrap_or(u32::MAX),
        selector: summary::selector(key),
        ready_replicas: summary::ready_line(reports),
        gpus: summary::gpus_line(&assignments),
        assignments,
        endpoints: vec![Endpoint {
            name: "reranker".to_owned(),
            url: format!("http://{}.{}.svc:{}", key.name, key.namespace, port(resource)),
        }],
        model: running.iter().find_map(|pod| info(pod)).map(summary::running_model).or_else(before),
        revisions: summary::revisions(desired.revisions, reports),
    };
    if resource.status.as_ref() != Some(&status) {
        let status = Status::Reranker(Box::new(status));
        plan.statuses.push(StatusUpdate { key: key.clone(), uid: desired.id.uid.clone(), status });
    }
}
