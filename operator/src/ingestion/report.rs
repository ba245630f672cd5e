//! The status of an Ingestion: conditions, the line about documents, and Events when a run ends.

use super::factories::Factory;
use super::runs::{Due, retry_at, whole};
use crate::actions::{Plan, Severity};
use crate::conditions::{self, Progress, SINK_AGREED, Verdict, reason};
use crate::observed::Identity;
use jiff::Timestamp;
use principium_api::ingestion::{CorpusSize, IngestionRun, IngestionSpec, IngestionStatus, RunState};
use principium_api::status::condition;

/// What a status is made from.
pub struct Telling<'a> {
    pub id: &'a Identity,
    pub spec: &'a IngestionSpec,
    pub hash: &'a str,
    /// The newest first.
    pub runs: &'a [IngestionRun],
    pub corpus: Option<CorpusSize>,
    pub factory: &'a Factory<'a>,
    pub due: &'a Due,
    /// Whether the others that fill its corpus name its sink.
    pub sink: Option<Verdict>,
    /// Why nothing is heard of the run that is under way.
    pub silent: Option<&'a str>,
    /// What is wrong with the schedule.
    pub invalid: Option<&'a str>,
}

/// How far an Ingestion is.
pub fn progress(told: &Telling<'_>) -> Progress {
    let reconciling = |reason, message| Progress::Reconciling { reason, message };
    if told.id.leaving {
        return reconciling(reason::DELETING, "it is being deleted; its corpus stays".to_owned());
    }
    if let Some(why) = told.invalid {
        return Progress::Stalled { reason: reason::INVALID_SCHEDULE, message: why.to_owned() };
    }
    let newest = told.runs.first();
    if let Some(run) = newest.filter(|run| !run.state.ended()) {
        return under_way(told, run);
    }
    if matches!(told.due, Due::Now(_))
        && let Some(waiting) = waiting(told, &told.spec.data_factory_ref.name)
    {
        return waiting;
    }
    let suspended = told.spec.suspend == Some(true);
    match newest {
        Some(run) if run.state == RunState::Refused && run.spec_hash == told.hash => Progress::Stalled {
            reason: reason::REFUSED,
            message: format!(
                "DataFactory {} can't do it: {}; it is tried again when this spec or the DataFactory changes",
                run.data_factory, run.message
            ),
        },
        Some(run) if run.state == RunState::Failed && run.spec_hash == told.hash && !suspended => {
            let again = retry_at(run);
            reconciling(reason::RUN_FAILED, format!("{}; it is tried again at {again}", run.message))
        }
        Some(run) if suspended => {
            Progress::Ready { reason: reason::SUSPENDED, message: format!("suspended; {}", ended(run)) }
        }
        Some(run) => Progress::Ready { reason: reason::COMPLETED, message: ended(run) },
        None => Progress::Ready {
            reason: reason::SUSPENDED,
            message: "suspended; nothing has been run".to_owned(),
        },
    }
}

/// A run that has not ended. Where the corpus is as the run before it made it, it stays ready.
fn under_way(told: &Telling<'_>, run: &IngestionRun) -> Progress {
    let reconciling = |reason, message| Progress::Reconciling { reason, message };
    if run.spec_hash != told.hash {
        let message = "the spec has changed: the run that was made from the former one is being ended";
        let silent = told.silent.map(|why| format!("; it is asked again: {why}"));
        let same = run.data_factory == told.spec.data_factory_ref.name;
        let waits =
            || waiting(told, &run.data_factory).filter(|_| same).map(|it| format!("; {}", it.why().1));
        let why = silent.or_else(waits).unwrap_or_default();
        return reconciling(reason::UPDATING, format!("{message}{why}"));
    }
    if let Some(waiting) = waiting(told, &run.data_factory) {
        return waiting;
    }
    if let Some(why) = told.silent {
        let message = format!("DataFactory {} is asked again: {why}", run.data_factory);
        return reconciling(reason::DATA_FACTORY_SILENT, message);
    }
    let message = running(run);
    let former = told.runs.iter().find(|run| run.state.ended());
    let holds = former.is_some_and(|former| {
        (&former.spec_hash, &former.store, former.state) == (&run.spec_hash, &run.store, RunState::Succeeded)
    });
    if holds {
        Progress::Ready { reason: reason::RUNNING, message }
    } else {
        reconciling(reason::RUNNING, message)
    }
}

/// That a DataFactory is waited for.
fn waiting(told: &Telling<'_>, name: &str) -> Option<Progress> {
    let (reason, message) = match told.factory {
        Factory::Ready(_) => return None,
        Factory::Missing => (
            reason::DATA_FACTORY_MISSING,
            format!("it waits for DataFactory {}/{name}, which does not exist", told.id.key.namespace),
        ),
        Factory::NotReady(says) => {
            let says = if says.is_empty() { String::new() } else { format!(": {says}") };
            let name = format!("DataFactory {}/{name}", told.id.key.namespace);
            (reason::DATA_FACTORY_NOT_READY, format!("it waits for {name}, which is not ready{says}"))
        }
    };
    Some(Progress::Reconciling { reason, message })
}

/// The status to write; a change of what it says becomes an Event.
pub fn report(
    told: &Telling<'_>,
    before: &IngestionStatus,
    progress: &Progress,
    next: Option<Timestamp>,
    now: Timestamp,
    plan: &mut Plan,
) -> IngestionStatus {
    let (reason, message) = progress.why();
    let verdicts = [progress.verdicts(), told.sink.iter().cloned().collect()].concat();
    let conditions = conditions::updated(&before.conditions, &verdicts, told.id.generation, now);
    // As it is written: a long message is cut.
    let said = |conditions| {
        conditions::before(conditions, condition::READY).map(|it| (it.reason.clone(), it.message.clone()))
    };
    if said(&before.conditions) != said(&conditions) {
        let severity = match reason {
            reason::COMPLETED => Some(Severity::Normal),
            reason::RUN_FAILED | reason::REFUSED | reason::INVALID_SCHEDULE => Some(Severity::Warning),
            _ => None,
        };
        if let Some(severity) = severity {
            plan.note(told.id, severity, reason, message.to_owned());
        }
    }
    let disagreed =
        |conditions| conditions::before(conditions, SINK_AGREED).is_some_and(|it| it.status == "False");
    if let Some(sink) = told.sink.as_ref().filter(|sink| sink.status == Some(false))
        && !disagreed(&before.conditions)
    {
        plan.note(told.id, Severity::Warning, sink.reason, sink.message.clone());
    }
    let succeeded = told.runs.iter().find(|run| run.state == RunState::Succeeded);
    let succeeded = succeeded.and_then(|run| run.completion_time.clone());
    IngestionStatus {
        observed_generation: told.id.generation,
        conditions,
        progress: told.runs.first().map(documents).unwrap_or_default(),
        corpus: told.corpus,
        next_run_time: next.map(whole),
        last_successful_time: succeeded.or_else(|| before.last_successful_time.clone()),
        runs: told.runs.to_vec(),
    }
}

fn looked_at(run: &IngestionRun) -> u64 {
    run.documents_done.saturating_add(run.documents_unchanged).saturating_add(run.documents_failed)
}

fn documents(run: &IngestionRun) -> String {
    format!("{}/{}", looked_at(run), run.documents)
}

fn running(run: &IngestionRun) -> String {
    if run.state == RunState::Queued {
        return format!("it waits for its turn in DataFactory {}", run.data_factory);
    }
    let why = if run.message.is_empty() { String::new() } else { format!("; {}", run.message) };
    format!("{} of {} documents{why}", looked_at(run), run.documents)
}

fn ended(run: &IngestionRun) -> String {
    let IngestionRun { documents, documents_done, documents_unchanged, documents_removed, chunks, .. } = run;
    let mut message = format!(
        "{documents} documents: {documents_done} processed, {documents_unchanged} unchanged, {documents_removed} removed; \
         {chunks} chunks in {} s",
        run.seconds
    );
    if run.documents_failed > 0 {
        message = format!("{message}; {} failed: {}", run.documents_failed, run.failures.join("; "));
    }
    if run.state == RunState::Cancelled { format!("cancelled; {message}") } else { message }
}
