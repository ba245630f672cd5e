//! The status of an OllamaPool: instances, and each model on each of them. Also decides which instances take requests.

use super::build::{PROGRESS_PORT, model_container};
use super::puller::Pulled;
use super::store::Store;
use super::{instances, need};
use crate::actions::{Action, Plan, Question, Status, StatusUpdate, Target, Write, target};
use crate::conditions::{Progress, reason};
use crate::inventory::{Cause, Inventory};
use crate::lifecycle::Report;
use crate::observed::{ModelAnswer, ModelStep, Observed, PullProgress};
use crate::placement::Need;
use crate::pods::{ContainerState, ContainerView, PodView, RESTING};
use crate::resource::Role;
use crate::summary::{self, Reporting};
use principium_api::names::OLLAMA_PORT;
use principium_api::ollama_pool::{OllamaModelState, OllamaModelStatus};
use principium_api::status::Endpoint;
use principium_api::{OllamaPool, OllamaPoolStatus};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Whether an instance serves: it takes requests, or it could and rests because its GPU is hot, or was.
pub fn serves(observed: &Observed, inventory: &Inventory<'_>, resource: &OllamaPool, pod: &PodView) -> bool {
    pod.ready
        || (pod.containers_ready
            && (pod.rests || is_hot(inventory, pod))
            && Instance::of(observed, resource, pod).works())
}

/// An instance and what it answered.
struct Instance<'a> {
    pod: &'a PodView,
    /// Borrowed where this operator has asked it, else from the status.
    answers: Cow<'a, [ModelAnswer]>,
    /// Whether every model of the pool answered on it.
    verified: bool,
    /// Whether it takes requests, and goes on: models that come later come beneath it.
    goes_on: bool,
}

impl<'a> Instance<'a> {
    fn of(observed: &'a Observed, resource: &OllamaPool, pod: &'a PodView) -> Self {
        let answers = answers(observed, resource, pod);
        let verified = resource.spec.models.iter().all(|model| {
            answers.iter().any(|answer| answer.name == model.name && answer.step == ModelStep::Ready)
        });
        let some = |step| answers.iter().any(|answer| answer.step == step);
        let goes_on = pod.gate_is_current && (some(ModelStep::Ready) || !some(ModelStep::Failed))
            || pod.rests && some(ModelStep::Ready);
        Self { pod, goes_on, answers, verified }
    }

    /// Whether it could take requests, by what its models answered.
    fn works(&self) -> bool {
        self.verified || self.goes_on
    }
}

/// What an instance answered. An operator that has just started has asked nobody: then it is as the status says, and ready where
/// the instance was let take requests and runs since.
fn answers<'a>(observed: &'a Observed, resource: &OllamaPool, pod: &PodView) -> Cow<'a, [ModelAnswer]> {
    if let Some(answers) = observed.answers.instances.get(&pod.uid) {
        return Cow::Borrowed(answers);
    }
    let Some(status) = &resource.status else { return Cow::default() };
    // Of this pod, not of the one before it.
    let runs = pod.containers_ready && status.assignments.iter().any(|it| it.pod == pod.name);
    let told = status.models.iter().filter(|model| model.instance == pod.ordinal);
    told.filter_map(|model| before(model, runs, pod.gate_is_current || pod.rests)).collect()
}

/// What the status says that a model answered, on an instance that runs since, or even was let take requests since.
fn before(model: &OllamaModelStatus, runs: bool, serves: bool) -> Option<ModelAnswer> {
    let step = match model.state {
        OllamaModelState::Ready if serves => ModelStep::Ready,
        OllamaModelState::Ready | OllamaModelState::Loading if runs => ModelStep::Loading,
        OllamaModelState::Failed if runs => ModelStep::Failed,
        _ => return None,
    };
    let size_vram = model.size_vram.filter(|_| step == ModelStep::Ready);
    Some(ModelAnswer {
        name: model.name.clone(),
        step,
        digest: model.digest.clone(),
        size: model.size,
        size_vram,
        on_gpu: size_vram.map(|size| size > 0 && model.message.is_none()),
        message: model.message.clone(),
    })
}

fn is_hot(inventory: &Inventory<'_>, pod: &PodView) -> bool {
    let node = pod.node.as_ref().and_then(|node| inventory.nodes.get(node));
    pod.units.keys().any(|index| {
        node.and_then(|node| node.gpu(*index)?.closed.as_ref())
            .is_some_and(|closed| closed.cause == Cause::Overheated)
    })
}

/// Writes the status into the plan where it differs, the instances to ask, and which of them take requests.
pub fn report(
    with: &Reporting<'_, '_>,
    resource: &OllamaPool,
    pulled: &BTreeMap<String, Pulled<'_>>,
    plan: &mut Plan,
) {
    let Reporting { observed, inventory, desired, pods, reports, now } = *with;
    let key = &desired.id.key;
    let own: Vec<&PodView> = pods
        .iter()
        .copied()
        .filter(|pod| {
            pod.owner.as_deref() == Some(&desired.id.uid)
                && pod.role == Role::Worker
                && !pod.leaving
                && !pod.ended()
        })
        .collect();
    let told: Vec<Instance<'_>> = own.iter().map(|pod| Instance::of(observed, resource, pod)).collect();
    ask(resource, &told, plan);
    follow_pulls(resource, pods, &desired.id.uid, plan);
    open_gates(with, &told, plan);
    let assignments = summary::assignments(desired, pods, reports, inventory);
    let models = models(with, resource, pulled);
    let serving = told.iter().filter(|instance| instance.verified);
    let says: Vec<Option<bool>> = serving.map(|instance| in_gpu_memory(resource, instance)).collect();
    let acceleration = summary::acceleration(
        (0..instances(resource)).any(|ordinal| need(resource, ordinal) != Need::Nothing),
        &says,
        || summary::simulated(inventory, &assignments),
        resource.spec.require_acceleration.unwrap_or(observed.settings.require_acceleration),
    );
    let progress = match summary::progress(desired, reports, observed.failures.get(key)) {
        Some(progress) => refined(with, resource, progress, &models),
        None if instances(resource) == 0 => {
            Progress::Ready { reason: reason::SCALED_TO_ZERO, message: "no instance is wanted".to_owned() }
        }
        None if models.iter().any(|model| model.state != OllamaModelState::Ready) => coming(&models)
            .unwrap_or_else(|| {
                let message = "models are still to be pulled".to_owned();
                Progress::Reconciling { reason: reason::PULLING_MODELS, message }
            }),
        None if !acceleration.allows_ready && !resource.spec.models.is_empty() => {
            summary::not_accelerated(&acceleration)
        }
        None => {
            let message = match summary::withheld(&own, inventory) {
                Some(withheld) => format!("all instances answer; {withheld}"),
                None => "all instances answer".to_owned(),
            };
            Progress::Ready { reason: reason::READY, message }
        }
    };
    let status = OllamaPoolStatus {
        observed_generation: desired.id.generation,
        conditions: summary::conditions(desired, &progress, &[acceleration.verdict], now, plan),
        instances: u32::try_from(own.len()).unwrap_or(u32::MAX),
        selector: summary::selector(key),
        ready_instances: summary::ready_line(reports),
        gpus: summary::gpus_line(&assignments),
        model_names: resource
            .spec
            .models
            .iter()
            .map(|model| model.name.as_str())
            .collect::<Vec<_>>()
            .join(","),
        endpoints: endpoints(with, resource),
        assignments,
        models,
        revisions: summary::revisions(desired.revisions, reports),
    };
    if resource.status.as_ref() != Some(&status) {
        let status = Status::OllamaPool(Box::new(status));
        plan.statuses.push(StatusUpdate { key: key.clone(), uid: desired.id.uid.clone(), status });
    }
}

/// Instances whose server runs are asked about their models.
fn ask(resource: &OllamaPool, told: &[Instance<'_>], plan: &mut Plan) {
    if resource.spec.models.is_empty() {
        return;
    }
    let names: Arc<[String]> = resource.spec.models.iter().map(|model| model.name.clone()).collect();
    for Instance { pod, answers, .. } in told.iter().filter(|instance| instance.pod.containers_ready) {
        let Some(target) = target(pod, OLLAMA_PORT, Question::Models(Arc::clone(&names))) else { continue };
        let known = match answers {
            Cow::Borrowed(_) => Vec::new(),
            Cow::Owned(known) => known.clone(),
        };
        plan.targets.push(Target { known, ..target });
    }
}

/// Pods in which a model is being pulled are asked how far they are.
fn follow_pulls(resource: &OllamaPool, pods: &[&PodView], uid: &str, plan: &mut Plan) {
    let models = || resource.spec.models.iter().enumerate().filter(|(_, model)| model.modelfile.is_none());
    let pulls = |pod: &PodView| {
        models().any(|(at, _)| container(pod, at).is_some_and(|found| found.state == ContainerState::Running))
    };
    let own = pods.iter().filter(|pod| pod.owner.as_deref() == Some(uid) && !pod.leaving && !pod.ended());
    plan.targets
        .extend(own.filter(|pod| pulls(pod)).filter_map(|pod| target(pod, PROGRESS_PORT, Question::Pull)));
}

/// An instance takes requests when its models answer, and goes on while one of them does. One on a hot GPU rests, as long as
/// another one takes them: not the pod that succeeds it, nor the one that it succeeds.
fn open_gates(with: &Reporting<'_, '_>, told: &[Instance<'_>], plan: &mut Plan) {
    let cool = |instance: &&Instance<'_>| {
        instance.pod.containers_ready && instance.works() && !is_hot(with.inventory, instance.pod)
    };
    let cool: BTreeSet<u32> = told.iter().filter(cool).map(|instance| instance.pod.ordinal).collect();
    for instance in told {
        let Instance { pod, verified, answers, .. } = instance;
        let works = instance.works();
        let rests = is_hot(with.inventory, pod) && cool.iter().any(|ordinal| *ordinal != pod.ordinal);
        let open = works && !rests;
        // The operator before this one may have let it take requests, or rest, and not come to the status.
        let unasked =
            matches!(answers, Cow::Owned(_)) && !verified && (pod.gate_is_current || pod.rests && !works);
        // One that rests counts as one that serves, and only the reason tells it from one that could not: where that is out of
        // date, a gate that stays closed is closed anew.
        let stale = if pod.rests { !works } else { rests && works && pod.started.is_some() };
        if pod.gate.unwrap_or(false) == open && !stale || unasked {
            continue;
        }
        let (reason, message) = if open {
            ("ModelsAnswer", "the models answer")
        } else if works {
            (RESTING, "its GPU is overheated; other instances take the requests")
        } else {
            ("NotServing", "the models don't answer yet")
        };
        plan.actions.push(Action {
            resource: with.desired.id.key.clone(),
            write: Write::SetGate {
                name: pod.name.clone(),
                uid: pod.uid.clone(),
                open,
                reason,
                message: message.to_owned(),
                not_before: pod.started,
            },
        });
    }
}

/// Whether all models of an instance were in GPU memory, and all of each, when they answered.
fn in_gpu_memory(resource: &OllamaPool, instance: &Instance<'_>) -> Option<bool> {
    if resource.spec.models.is_empty() {
        return None;
    }
    instance.answers.iter().map(|answer| answer.on_gpu).try_fold(true, |all, one| Some(all && one?))
}

/// Says what a start is about, by its models.
fn refined(
    with: &Reporting<'_, '_>,
    resource: &OllamaPool,
    progress: Progress,
    models: &[OllamaModelStatus],
) -> Progress {
    if progress.why().0 != reason::STARTING {
        return progress;
    }
    let message = with.reports.iter().find_map(|report| failing(with.observed, resource, report));
    let failing = message.map(|message| Progress::Reconciling { reason: reason::MODEL_FAILED, message });
    failing.or_else(|| coming(models)).unwrap_or(progress)
}

/// Why the successor of an instance that serves does not take over, where a model failed on it. The models are told as those of
/// the one that serves.
fn failing(observed: &Observed, resource: &OllamaPool, report: &Report<'_>) -> Option<String> {
    let serving = report.serving?;
    let pod = report.pod.filter(|pod| pod.uid != serving.uid)?;
    let answers = observed.answers.instances.get(&pod.uid)?;
    let model = resource.spec.models.iter().find_map(|model| {
        // One that failed is asked again, and says meanwhile what went wrong.
        let failed = |it: &&ModelAnswer| {
            it.step == ModelStep::Failed || it.step == ModelStep::Loading && it.message.is_some()
        };
        answers.iter().filter(|it| it.name == model.name).find(failed)
    })?;
    let why = model.message.as_deref().map(|message| format!(": {message}")).unwrap_or_default();
    Some(format!("failed: model {} on instance {}{why}", model.name, report.ordinal))
}

/// How far the models are that do not answer.
fn coming(models: &[OllamaModelStatus]) -> Option<Progress> {
    let of = |state| models.iter().filter(move |model| model.state == state);
    let told = |model: &OllamaModelStatus| {
        let message = match (&model.message, model.percent) {
            (Some(message), _) => format!(": {message}"),
            (None, Some(percent)) => format!(", {percent} %"),
            (None, None) => String::new(),
        };
        format!("model {} on instance {}{message}", model.name, model.instance)
    };
    for (state, reason, verb) in [
        (OllamaModelState::Failed, reason::MODEL_FAILED, "failed"),
        (OllamaModelState::Pulling, reason::PULLING_MODELS, "being pulled"),
        (OllamaModelState::Loading, reason::LOADING_MODELS, "being loaded"),
    ] {
        if let Some(model) = of(state).next() {
            let more = of(state).count() - 1;
            let more = if more > 0 { format!(" (and {more} more)") } else { String::new() };
            return Some(Progress::Reconciling { reason, message: format!("{verb}: {}{more}", told(model)) });
        }
    }
    None
}

fn models(
    with: &Reporting<'_, '_>,
    resource: &OllamaPool,
    pulled: &BTreeMap<String, Pulled<'_>>,
) -> Vec<OllamaModelStatus> {
    let instances = with.reports.iter().filter(|report| report.role == Role::Worker);
    instances
        .flat_map(|report| {
            let models = resource.spec.models.iter().enumerate();
            models.map(move |(position, model)| {
                model_status(with, resource, pulled, report, position, &model.name)
            })
        })
        .collect()
}

fn model_status(
    with: &Reporting<'_, '_>,
    resource: &OllamaPool,
    pulled: &BTreeMap<String, Pulled<'_>>,
    report: &Report<'_>,
    position: usize,
    name: &str,
) -> OllamaModelStatus {
    let status = |state, message: Option<String>| OllamaModelStatus {
        name: name.to_owned(),
        instance: report.ordinal,
        state,
        message,
        ..OllamaModelStatus::default()
    };
    let pod = report.serving.or(report.pod).filter(|pod| !pod.leaving && !pod.ended());
    let answers = pod.map(|pod| answers(with.observed, resource, pod)).unwrap_or_default();
    let answer = answers.iter().find(|answer| answer.name == name);
    if let Some(answer) = answer.filter(|answer| answer.step != ModelStep::Missing) {
        return answered(report.ordinal, answer);
    }
    let node = report
        .pod
        .and_then(|pod| pod.node.as_ref())
        .or_else(|| report.ahead.as_ref().map(|assignment| &assignment.node));
    let brings = match Store::of(resource) {
        Store::Ephemeral => report.pod,
        Store::Claim(_) | Store::Folder(_) => match node.and_then(|node| pulled.get(node)) {
            Some(Pulled::Waiting(message, None)) => {
                return status(OllamaModelState::Pending, Some(message.clone()));
            }
            Some(Pulled::Waiting(_, Some(puller))) => Some(*puller),
            Some(Pulled::Done) => {
                return status(OllamaModelState::Loading, answer.and_then(|answer| answer.message.clone()));
            }
            None => None,
        },
    };
    let Some((puller, container)) = brings.and_then(|pod| Some((pod, container(pod, position)?))) else {
        return status(OllamaModelState::Pending, None);
    };
    match &container.state {
        ContainerState::Running => {
            let said = with.observed.answers.pulls.get(&puller.uid).filter(|said| said.model == name);
            OllamaModelStatus {
                pulled: said.map(|said| said.completed),
                size: said.map(|said| said.total),
                percent: said.and_then(PullProgress::percent),
                ..status(OllamaModelState::Pulling, None)
            }
        }
        ContainerState::Done => status(OllamaModelState::Loading, None),
        ContainerState::Failed(why) => status(OllamaModelState::Failed, Some(why.clone())),
        ContainerState::Waiting(why, message) if why == "CrashLoopBackOff" || container.restarts > 0 => {
            let message = if message.is_empty() { why.clone() } else { message.clone() };
            status(OllamaModelState::Failed, Some(message))
        }
        ContainerState::Waiting(..) => status(OllamaModelState::Pending, None),
    }
}

fn container(pod: &PodView, position: usize) -> Option<&ContainerView> {
    let name = model_container(position);
    pod.containers.iter().find(|container| container.name == name)
}

fn answered(instance: u32, answer: &ModelAnswer) -> OllamaModelStatus {
    OllamaModelStatus {
        name: answer.name.clone(),
        instance,
        state: match answer.step {
            ModelStep::Missing => OllamaModelState::Pending,
            ModelStep::Loading => OllamaModelState::Loading,
            ModelStep::Ready => OllamaModelState::Ready,
            ModelStep::Failed => OllamaModelState::Failed,
        },
        digest: answer.digest.clone(),
        size: answer.size,
        size_vram: answer.size_vram,
        message: answer.message.clone(),
        pulled: None,
        percent: None,
    }
}

fn endpoints(with: &Reporting<'_, '_>, resource: &OllamaPool) -> Vec<Endpoint> {
    let key = &with.desired.id.key;
    let (namespace, name) = (&key.namespace, &key.name);
    let mut endpoints = vec![Endpoint {
        name: "pool".to_owned(),
        url: format!("http://{name}.{namespace}.svc:{OLLAMA_PORT}"),
    }];
    for report in with.reports.iter().filter(|report| report.role == Role::Worker) {
        let ordinal = report.ordinal;
        endpoints.push(Endpoint {
            name: format!("instance-{ordinal}"),
            url: format!("http://{name}-{ordinal}.{name}-instances.{namespace}.svc:{OLLAMA_PORT}"),
        });
        let node = report.pod.and_then(|pod| pod.node.as_ref());
        let address = |node| with.observed.nodes.get(node)?.address.as_ref();
        if let Some(ports) = &resource.spec.host_ports
            && let Some(address) = node.and_then(address)
        {
            let port = ports.start.saturating_add(ordinal);
            endpoints.push(Endpoint {
                name: format!("instance-{ordinal}-host"),
                url: format!("http://{address}:{port}"),
            });
        }
    }
    endpoints
}
