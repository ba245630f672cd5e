//! Ingestion: a corpus that follows its source, by jobs of a DataFactory. It places no pods: a pass decides which run is due,
//! writes it into the status, and names the job to ask for; `probe` sees that the DataFactory has it.
//!
//! The status comes first. A run that stands there is asked for until it has ended, under an id that follows from the decision;
//! so nothing that is killed in between makes a run twice, or forgets one.

mod corpora;
mod factories;
mod job;
mod report;
mod runs;

pub use job::{Job, JobAnswer, JobQuestion, JobSaid, JobWish};

use crate::actions::{Plan, Question, Status, StatusUpdate, Target, target};
use crate::observed::{Identity, Observed};
use crate::resource::Kind;
use corpora::Corpora;
use factories::{Factories, Factory, Worker};
use jiff::{SignedDuration, Timestamp};
use job::{build_request, spec_hash};
use principium_api::ingestion::{Ingestion, IngestionRun, IngestionStatus, RunState};
use principium_api::names::DATA_FACTORY_PORT;
use report::{Telling, progress, report};
use runs::{Due, Schedule, due, take};
use std::sync::Arc;

/// Ended runs in a status whose spec names no number.
const HISTORY: u32 = 5;
/// The soonest that a pass is asked for because of the time.
const SOON: SignedDuration = SignedDuration::from_secs(1);

/// Plans all Ingestions.
pub fn plan(observed: &Observed, now: Timestamp, plan: &mut Plan) {
    if observed.ingestions.is_empty() && observed.answers.jobs.is_empty() {
        return;
    }
    let factories = Factories::read(observed);
    let corpora = Corpora::read(observed);
    for resource in &observed.ingestions {
        settle(observed, &factories, &corpora, resource, now, plan);
    }
    end_orphans(observed, &factories, plan);
}

fn settle(
    observed: &Observed,
    factories: &Factories<'_>,
    corpora: &Corpora<'_>,
    resource: &Ingestion,
    now: Timestamp,
    plan: &mut Plan,
) {
    let id = Identity::of(Kind::Ingestion, resource, 0);
    let spec = &resource.spec;
    let before = resource.status.clone().unwrap_or_default();
    let hash = spec_hash(spec);
    let factory = factories.find(&id.key.namespace, &spec.data_factory_ref.name);
    let mut runs = before.runs.clone();
    let (mut silent, mut corpus) = (None, before.corpus);
    if let Some(run) = runs.first_mut().filter(|run| !run.state.ended()) {
        let answer = observed.answers.jobs.get(&id.uid).filter(|answer| answer.job == run.id);
        silent = answer.and_then(|answer| take(run, answer, now));
        corpus = answer.and_then(JobAnswer::corpus).or(corpus);
        if !run.state.ended() && run.spec_hash != hash {
            // It is being ended, also where the former spec comes back meanwhile: that is another run then.
            run.spec_hash.clear();
        }
        let orphaned = run.data_factory != spec.data_factory_ref.name || matches!(factory, Factory::Missing);
        match factories.worker(&id.key.namespace, &run.data_factory) {
            Some(worker) if worker.pod.uid == run.pod_uid => run.store = worker.store(),
            // Nobody will be there to end it. One that is only not ready yet would go on with its job.
            None if !run.state.ended() && run.spec_hash.is_empty() && orphaned => {
                runs::end(run, RunState::Cancelled, "", now);
            }
            _ => {}
        }
    }
    let schedule = Schedule::read(spec.schedule.as_deref());
    let due = match &schedule {
        _ if id.leaving || spec.suspend == Some(true) => Due::Never,
        Err(_) => Due::Never,
        Ok(schedule) => due(&id, &hash, &runs, schedule.as_ref(), &factory, now),
    };
    if let (Due::Now(run), Factory::Ready(worker)) = (&due, &factory) {
        let begun = IngestionRun {
            spec_hash: hash.clone(),
            data_factory: spec.data_factory_ref.name.clone(),
            pod_uid: worker.pod.uid.clone(),
            store: worker.store(),
            start_time: Some(runs::whole(now)),
            ..(**run).clone()
        };
        // What is known of a corpus is of no other one.
        let same = |former: &IngestionRun| (&former.spec_hash, &former.store) == (&hash, &begun.store);
        corpus = corpus.filter(|_| runs.first().is_some_and(same));
        runs.insert(0, begun);
    }
    runs::forget(&mut runs, spec.history_limit.unwrap_or(HISTORY));
    // Asked for once it is written down, and until it has ended; that it is to be ended is written down first, too.
    let is = |a: &IngestionRun, b: &IngestionRun| (&a.id, &a.spec_hash) == (&b.id, &b.spec_hash);
    let written = |run: &&IngestionRun| before.runs.first().is_some_and(|before| is(before, run));
    if let Some(run) = runs.first().filter(written).filter(|run| !run.state.ended() && !id.leaving) {
        let worker = factories.worker(&id.key.namespace, &run.data_factory);
        let wish = if run.spec_hash == hash {
            JobWish::Done(build_request(&run.id, &id.key.namespace, &id.key.name, spec))
        } else {
            JobWish::Ended
        };
        plan.targets.extend(worker.and_then(|worker| ask(&id.uid, &run.id, &worker, wish)));
    }
    let next = schedule.as_ref().ok().and_then(Option::as_ref).filter(|_| spec.suspend != Some(true));
    let next = next.and_then(|schedule| schedule.after(now));
    if let Due::At(at) = due {
        plan.requeue(at.duration_since(now).max(SOON));
    }
    if let Some(next) = next {
        plan.requeue(next.duration_since(now).max(SOON));
    }
    let told = Telling {
        id: &id,
        spec,
        hash: &hash,
        runs: &runs,
        corpus,
        factory: &factory,
        due: &due,
        sink: corpora.sink(resource),
        silent: silent.as_deref(),
        invalid: schedule.as_ref().err().map(String::as_str),
    };
    let progress = progress(&told);
    let status = report(&told, &before, &progress, next, now, plan);
    write(&id, resource.status.as_ref(), status, plan);
}

fn write(id: &Identity, before: Option<&IngestionStatus>, status: IngestionStatus, plan: &mut Plan) {
    if before != Some(&status) {
        let status = Status::Ingestion(Box::new(status));
        plan.statuses.push(StatusUpdate { key: id.key.clone(), uid: id.uid.clone(), status });
    }
}

fn ask(uid: &str, job: &str, worker: &Worker<'_>, wish: JobWish) -> Option<Target> {
    let question = JobQuestion {
        job: job.to_owned(),
        namespace: worker.pod.namespace.clone(),
        pod_uid: worker.pod.uid.clone(),
        key: worker.resource.spec.api_key_secret_ref.clone(),
        wish,
    };
    // A job outlives the container that does it: what was answered holds.
    let target = target(worker.pod, DATA_FACTORY_PORT, Question::Job(Arc::new(question)))?;
    Some(Target { uid: uid.to_owned(), life: 0, ..target })
}

/// Jobs of Ingestions that are gone are ended, where the DataFactory can be asked.
fn end_orphans(observed: &Observed, factories: &Factories<'_>, plan: &mut Plan) {
    for (uid, answer) in &observed.answers.jobs {
        let lives = |resource: &Arc<Ingestion>| {
            resource.metadata.uid.as_deref() == Some(uid) && resource.metadata.deletion_timestamp.is_none()
        };
        if !answer.may_run() || observed.ingestions.iter().any(lives) {
            continue;
        }
        let worker = factories.of_pod(&answer.pod_uid);
        plan.targets.extend(worker.and_then(|worker| ask(uid, &answer.job, &worker, JobWish::Ended)));
    }
}
