//! What becomes of an Ingestion: whether a run is due, and what its status says. Pure.

use super::job::{Answer, Job};
use crate::conditions::{Progress, updated};
use croner::Cron;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use principium_api::ingestion::{Ingestion, IngestionRun, IngestionStatus};
use std::str::FromStr;

/// Runs in status, where the spec names no number.
const HISTORY: u32 = 5;
/// First wait after a run that failed; doubled up to the longest.
const FIRST_WAIT: SignedDuration = SignedDuration::from_mins(1);
/// Longest wait.
const LONGEST_WAIT: SignedDuration = SignedDuration::from_mins(30);
/// How often a run that goes on is asked for.
const ASK: SignedDuration = SignedDuration::from_secs(5);
/// How often something is looked at that changes by events.
const IDLE: SignedDuration = SignedDuration::from_mins(5);

/// Reasons of conditions.
pub mod reason {
    pub const COMPLETED: &str = "Completed";
    pub const SUSPENDED: &str = "Suspended";
    pub const RUNNING: &str = "Running";
    pub const RUN_FAILED: &str = "RunFailed";
    pub const REFUSED: &str = "Refused";
    pub const INVALID_SCHEDULE: &str = "InvalidSchedule";
    pub const FACTORY_MISSING: &str = "DataFactoryMissing";
    pub const FACTORY_NOT_READY: &str = "DataFactoryNotReady";
    pub const NOT_ANSWERED: &str = "NotAnswered";
}

/// The DataFactory that an Ingestion names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Factory {
    Missing,
    NotReady,
    /// Its base URL.
    Ready(String),
}

/// What a plan is made from.
pub struct Observed<'a> {
    pub resource: &'a Ingestion,
    pub factory: Factory,
    /// What the DataFactory says of the newest run; `None` where it was not asked.
    pub answer: Option<Answer>,
    /// Why the DataFactory does not take this generation.
    pub refused: Option<&'a str>,
}

/// What to do.
#[derive(Debug, PartialEq)]
pub struct Plan {
    /// A job to ask for, by its id.
    pub submit: Option<String>,
    pub status: IngestionStatus,
    pub look_again: SignedDuration,
}

/// Whether a run has not ended.
pub fn open(run: &IngestionRun) -> bool {
    !matches!(run.state.as_str(), "succeeded" | "failed" | "cancelled")
}

/// Decides.
pub fn plan(observed: &Observed<'_>, now: Timestamp) -> Plan {
    let Observed { resource, factory, answer, refused } = observed;
    let spec = &resource.spec;
    let before = resource.status.clone().unwrap_or_default();
    let generation = resource.metadata.generation.unwrap_or_default();
    let suspended = spec.suspend == Some(true);
    let mut runs = before.runs.clone();
    let mut submit = None;
    if let (Some(run), Some(answer)) = (runs.first_mut(), answer) {
        match answer {
            Answer::Job(job) => take(run, job),
            // It was never taken, or the DataFactory has lost its folder: the same id again is the same job.
            Answer::Unknown if open(run) => submit = Some(run.id.clone()),
            Answer::Unknown | Answer::None(_) => {}
        }
    }
    let cron = spec.schedule.as_deref().map(Cron::from_str);
    let schedule = match &cron {
        None => None,
        Some(Ok(cron)) => Some(cron),
        Some(Err(error)) => {
            let message = format!(
                "spec.schedule is {:?}: {error}; it has five fields, such as 0 3 * * *",
                spec.schedule.as_deref().unwrap_or_default()
            );
            let progress = Progress::Stalled { reason: reason::INVALID_SCHEDULE, message };
            return finish(resource, &before, runs, None, &progress, (None, IDLE), now);
        }
    };
    let next = schedule.filter(|_| !suspended).and_then(|cron| after(cron, now));
    let due = if suspended || refused.is_some() { Due::Never } else { due(resource, &runs, schedule, now) };
    if let (Due::Now(run), Factory::Ready(_)) = (&due, factory) {
        submit = Some(run.id.clone());
        runs.insert(0, IngestionRun { generation, start_time: Some(Time(whole(now))), ..(**run).clone() });
        runs.truncate(spec.history_limit.unwrap_or(HISTORY) as usize);
    }
    let wanted = matches!(due, Due::Now(_)) || runs.first().is_some_and(open);
    let name = &spec.data_factory_ref.name;
    let waiting = |reason, message| Progress::Reconciling { reason, message };
    let newest = runs.first();
    let progress = match (factory, newest) {
        _ if refused.is_some() => Progress::Stalled {
            reason: reason::REFUSED,
            message: format!("DataFactory {name} does not take it: {}", refused.unwrap_or_default()),
        },
        (Factory::Missing, _) if wanted => {
            waiting(reason::FACTORY_MISSING, format!("waiting for DataFactory {name}, which does not exist"))
        }
        (Factory::NotReady, _) if wanted => {
            waiting(reason::FACTORY_NOT_READY, format!("waiting for DataFactory {name}, which is not ready"))
        }
        (_, Some(run)) if open(run) => match answer {
            Some(Answer::None(error)) => waiting(
                reason::NOT_ANSWERED,
                format!("DataFactory {name} does not answer, trying again: {error}"),
            ),
            _ => waiting(reason::RUNNING, running(run)),
        },
        (_, Some(run)) if run.state == "failed" && run.generation == generation && !suspended => {
            let again = retry_at(&runs).map(|at| format!("; trying again at {at}")).unwrap_or_default();
            waiting(reason::RUN_FAILED, format!("{}{again}", run.message))
        }
        (_, None) => Progress::Ready { reason: reason::SUSPENDED, message: "nothing is begun".to_owned() },
        (_, Some(run)) if suspended => {
            Progress::Ready { reason: reason::SUSPENDED, message: format!("suspended; {}", ended(run)) }
        }
        (_, Some(run)) => Progress::Ready { reason: reason::COMPLETED, message: ended(run) },
    };
    let again = match (&due, next) {
        _ if runs.first().is_some_and(open) => ASK,
        (Due::At(at), _) => at.duration_since(now).max(SignedDuration::from_secs(1)),
        (_, Some(next)) => next.duration_since(now).max(SignedDuration::from_secs(1)),
        _ => IDLE,
    };
    finish(resource, &before, runs, submit, &progress, (next, again.min(IDLE)), now)
}

fn finish(
    resource: &Ingestion,
    before: &IngestionStatus,
    runs: Vec<IngestionRun>,
    submit: Option<String>,
    progress: &Progress,
    (next, look_again): (Option<Timestamp>, SignedDuration),
    now: Timestamp,
) -> Plan {
    let generation = resource.metadata.generation;
    let done = |run: &IngestionRun| {
        let done = run.documents_done + run.documents_unchanged + run.documents_failed;
        format!("{done}/{}", run.documents)
    };
    let status = IngestionStatus {
        observed_generation: generation,
        conditions: updated(&before.conditions, &progress.verdicts(), generation, now),
        progress: runs.first().map(done).unwrap_or_default(),
        next_run_time: next.map(|next| Time(whole(next))),
        runs,
    };
    Plan { submit, status, look_again }
}

/// When a run is due.
enum Due {
    Never,
    Now(Box<IngestionRun>),
    At(Timestamp),
}

fn due(resource: &Ingestion, runs: &[IngestionRun], schedule: Option<&Cron>, now: Timestamp) -> Due {
    let generation = resource.metadata.generation.unwrap_or_default();
    let uid = resource.metadata.uid.as_deref().unwrap_or_default();
    // The same decision made twice gives the same id, and the DataFactory makes one job of it.
    let run = |suffix: String, scheduled: Option<Timestamp>| {
        Box::new(IngestionRun {
            id: format!("{uid}-{generation}{suffix}"),
            state: "queued".to_owned(),
            scheduled_time: scheduled.map(|at| Time(whole(at))),
            ..IngestionRun::default()
        })
    };
    let Some(newest) = runs.first() else { return Due::Now(run(String::new(), None)) };
    if open(newest) {
        return Due::Never;
    }
    if newest.generation != generation {
        return Due::Now(run(String::new(), None));
    }
    if newest.state == "failed" {
        return match retry_at(runs) {
            Some(at) if at <= now => Due::Now(run(format!("-r{}", at.as_second()), None)),
            Some(at) => Due::At(at),
            None => Due::Never,
        };
    }
    let (Some(cron), Some(last)) = (schedule, began(newest)) else { return Due::Never };
    let Some(mut at) = after(cron, last) else { return Due::Never };
    if at > now {
        return Due::At(at);
    }
    // Of several that were missed, the latest.
    while let Some(later) = after(cron, at).filter(|later| *later <= now) {
        at = later;
    }
    Due::Now(run(format!("-{}", at.as_second()), Some(at)))
}

/// When a failed run is tried again: later after each failure in a row.
fn retry_at(runs: &[IngestionRun]) -> Option<Timestamp> {
    let ended = runs.first()?.completion_time.as_ref()?.0;
    let failures = runs.iter().take_while(|run| run.state == "failed").count();
    let doubled = 1_i32 << failures.saturating_sub(1).min(10);
    Some(ended + (FIRST_WAIT * doubled).min(LONGEST_WAIT))
}

fn began(run: &IngestionRun) -> Option<Timestamp> {
    let scheduled = run.scheduled_time.as_ref().map(|time| time.0);
    scheduled.max(run.start_time.as_ref().map(|time| time.0))
}

fn after(cron: &Cron, time: Timestamp) -> Option<Timestamp> {
    let next = cron.find_next_occurrence(&time.to_zoned(TimeZone::UTC), false);
    next.ok().map(|next| next.timestamp())
}

/// Copies what the DataFactory says of a job.
fn take(run: &mut IngestionRun, job: &Job) {
    let time =
        |ms: Option<i64>| ms.and_then(|ms| Timestamp::from_millisecond(ms).ok()).map(|at| Time(whole(at)));
    let progress = &job.progress;
    run.state.clone_from(&job.state);
    run.start_time = time(job.started_ms).or_else(|| run.start_time.clone());
    run.completion_time = time(job.finished_ms);
    run.documents = progress.documents_total;
    run.documents_done = progress.documents_done;
    run.documents_unchanged = progress.documents_unchanged;
    run.documents_failed = progress.documents_failed;
    run.documents_removed = progress.documents_removed;
    run.chunks = progress.chunks;
    run.tokens = progress.tokens;
    run.seconds = progress.running_ms / 1000;
    run.failures =
        job.failures.iter().take(5).map(|it| format!("{}: {}", it.document_id, it.error)).collect();
    run.message = job.error.clone().unwrap_or_default();
}

fn running(run: &IngestionRun) -> String {
    let done = run.documents_done + run.documents_unchanged + run.documents_failed;
    match (run.state.as_str(), run.message.as_str()) {
        ("queued", _) => "waits for other jobs of the DataFactory".to_owned(),
        (_, "") => format!("{done} of {} documents", run.documents),
        (_, message) => format!("{done} of {} documents; {message}", run.documents),
    }
}

fn ended(run: &IngestionRun) -> String {
    let mut message = format!(
        "{} documents: {} processed, {} unchanged, {} removed; {} chunks in {} s",
        run.documents,
        run.documents_done,
        run.documents_unchanged,
        run.documents_removed,
        run.chunks,
        run.seconds
    );
    if run.documents_failed > 0 {
        message = format!("{message}; {} failed: {}", run.documents_failed, run.failures.join("; "));
    }
    if run.state == "cancelled" { format!("cancelled; {message}") } else { message }
}

/// Kubernetes keeps whole seconds; a finer time would differ from what it gives back.
fn whole(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const START: i64 = 1_800_000_000;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(START + second).unwrap()
    }

    fn ingestion(more: &serde_json::Value) -> Ingestion {
        let mut spec = json!({
            "dataFactoryRef": { "name": "df" },
            "source": { "folder": { "path": "docs" } },
        });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let mut made = Ingestion::new("handbook", serde_json::from_value(spec).unwrap());
        made.metadata.uid = Some("u1".to_owned());
        made.metadata.generation = Some(1);
        made
    }

    fn ready() -> Factory {
        Factory::Ready("http://df".to_owned())
    }

    fn job(state: &str, finished: Option<i64>) -> Answer {
        let body = json!({
            "state": state, "started_ms": START * 1000, "finished_ms": finished.map(|it| (START + it) * 1000),
            "error": (state == "failed").then_some("the sink is away"),
            "failures": [{ "document_id": "a.pdf", "error": "it is locked" }],
            "progress": { "documents_total": 40, "documents_done": 37, "documents_failed": 1, "documents_unchanged": 2,
                "documents_removed": 3, "chunks": 312, "tokens": 5000, "running_ms": 35_400 },
        });
        Answer::Job(Box::new(serde_json::from_value(body).unwrap()))
    }

    /// One pass, whose status the resource then has.
    fn pass(
        resource: &mut Ingestion,
        factory: Factory,
        answer: Option<Answer>,
        second: i64,
    ) -> (Option<String>, String, String) {
        let observed = Observed { resource, factory, answer, refused: None };
        let Plan { submit, status, look_again: _ } = plan(&observed, at(second));
        let truth: Vec<_> = status.conditions.iter().filter(|it| it.status == "True").collect();
        assert_eq!(truth.len(), 1, "exactly one is true: {:?}", status.conditions);
        let (type_, message) = (truth[0].type_.clone(), truth[0].message.clone());
        resource.status = Some(status);
        (submit, type_, message)
    }

    #[test]
    fn it_runs_once_says_how_far_it_is_and_what_came_of_it() {
        let mut resource = ingestion(&json!({}));
        let (submit, type_, message) = pass(&mut resource, Factory::Missing, None, 0);
        assert_eq!((submit, type_.as_str()), (None, "Reconciling"));
        assert!(message.contains("waiting for DataFactory df, which does not exist"), "{message}");
        let (submit, type_, _) = pass(&mut resource, ready(), None, 1);
        assert_eq!((submit.as_deref(), type_.as_str()), (Some("u1-1"), "Reconciling"));
        let (submit, ..) = pass(&mut resource, ready(), Some(Answer::Unknown), 2);
        assert_eq!(submit.as_deref(), Some("u1-1"), "a job that got lost on the way is asked for again");
        let (submit, _, message) = pass(&mut resource, ready(), Some(job("running", None)), 3);
        assert_eq!((submit, message.as_str()), (None, "40 of 40 documents"));
        let (_, type_, message) = pass(&mut resource, ready(), Some(job("succeeded", Some(40))), 41);
        assert_eq!(type_, "Ready");
        assert_eq!(
            message,
            "40 documents: 37 processed, 2 unchanged, 3 removed; 312 chunks in 35 s; 1 failed: a.pdf: it is locked"
        );
        let (submit, type_, _) = pass(&mut resource, ready(), None, 100_000);
        assert_eq!((submit, type_.as_str()), (None, "Ready"), "once is once");
        resource.metadata.generation = Some(2);
        let (submit, ..) = pass(&mut resource, ready(), None, 100_001);
        assert_eq!(submit.as_deref(), Some("u1-2"), "a changed spec is another run");
    }

    #[test]
    fn a_schedule_runs_the_latest_that_is_due_and_not_while_suspended() {
        let mut resource = ingestion(&json!({ "schedule": "0 * * * *", "historyLimit": 2 }));
        pass(&mut resource, ready(), None, 0);
        pass(&mut resource, ready(), Some(job("succeeded", Some(10))), 10);
        let next = resource.status.as_ref().unwrap().next_run_time.clone().unwrap().0;
        assert_eq!((next.as_second() % 3600, next > at(10)), (0, true));
        let (submit, ..) = pass(&mut resource, ready(), None, 20);
        assert_eq!(submit, None);
        resource.spec.suspend = Some(true);
        let late = next.as_second() - START + 2 * 3600 + 5;
        let (submit, type_, message) = pass(&mut resource, ready(), None, late);
        assert_eq!((submit, type_.as_str()), (None, "Ready"));
        assert!(message.starts_with("suspended"), "{message}");
        resource.spec.suspend = None;
        let (submit, ..) = pass(&mut resource, ready(), None, late);
        assert_eq!(
            submit,
            Some(format!("u1-1-{}", next.as_second() + 2 * 3600)),
            "of three missed, the last"
        );
        assert_eq!(resource.status.unwrap().runs.len(), 2, "as many as the history keeps");
    }

    #[test]
    fn a_run_that_fails_is_tried_again_later_and_later() {
        let mut resource = ingestion(&json!({}));
        pass(&mut resource, ready(), None, 0);
        let (_, type_, message) = pass(&mut resource, ready(), Some(job("failed", Some(10))), 10);
        assert_eq!(type_, "Reconciling");
        assert!(message.starts_with("the sink is away; trying again at "), "{message}");
        assert_eq!(pass(&mut resource, ready(), None, 69).0, None);
        let (submit, ..) = pass(&mut resource, ready(), None, 70);
        assert_eq!(submit, Some(format!("u1-1-r{}", START + 70)));
        pass(&mut resource, ready(), Some(job("failed", Some(80))), 80);
        assert_eq!(pass(&mut resource, ready(), None, 199).0, None, "two minutes after the second failure");
        assert!(pass(&mut resource, ready(), None, 200).0.is_some());
    }

    #[test]
    fn what_only_another_spec_mends_is_stalled() {
        let mut resource = ingestion(&json!({ "schedule": "every day" }));
        let (submit, type_, message) = pass(&mut resource, ready(), None, 0);
        assert_eq!((submit, type_.as_str()), (None, "Stalled"));
        assert!(message.contains(r#"spec.schedule is "every day""#), "{message}");
        let resource = ingestion(&json!({}));
        let refused = Some("source.path is \"../x\"");
        let observed = Observed { resource: &resource, factory: ready(), answer: None, refused };
        let Plan { submit, status, .. } = plan(&observed, at(0));
        assert_eq!((submit, status.conditions[2].status.as_str()), (None, "True"));
        assert!(status.conditions[2].message.contains("does not take it: source.path"));
    }
}
