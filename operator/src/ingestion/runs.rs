//! The runs of an Ingestion: when one is due, what becomes of it, which are kept. Pure.

use super::factories::Factory;
use super::job::{Job, JobAnswer, JobSaid};
use crate::observed::Identity;
use croner::{Cron, Weekday};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use principium_api::ingestion::{IngestionRun, RunState};
use std::str::FromStr;

/// First wait after a run that failed; doubled up to the longest.
const FIRST_WAIT: SignedDuration = SignedDuration::from_mins(1);
/// Longest wait.
const LONGEST_WAIT: SignedDuration = SignedDuration::from_mins(30);
/// Failed documents that are shown.
const FAILURES: usize = 5;
/// Longest text about one of them, in characters.
const LONGEST_FAILURE: usize = 200;
/// Longest message of a run, in characters.
const LONGEST_MESSAGE: usize = 500;

const WEEK: [Weekday; 7] = [
    Weekday::Monday,
    Weekday::Tuesday,
    Weekday::Wednesday,
    Weekday::Thursday,
    Weekday::Friday,
    Weekday::Saturday,
    Weekday::Sunday,
];

/// When to look for changes.
pub struct Schedule(Cron);

impl Schedule {
    /// Reads a cron expression; what is wrong with it, in a sentence.
    pub fn read(text: Option<&str>) -> Result<Option<Self>, String> {
        let Some(text) = text else { return Ok(None) };
        let wrong = |why: &str| {
            format!("spec.schedule is {text:?}: {why}; five fields are wanted, for example 0 3 * * *")
        };
        if text.split_whitespace().count() != 5 {
            return Err(wrong("it does not have five fields"));
        }
        let schedule = Cron::from_str(text).map(Self).map_err(|error| wrong(&error.to_string()))?;
        if !schedule.comes() {
            return Err(wrong("that time never comes"));
        }
        Ok(Some(schedule))
    }

    /// Whether any time of any day fits. Looking for the next time that never comes would take seconds, in every pass.
    fn comes(&self) -> bool {
        /// One without and one with a 29th of February: what the last days of a month are depends on it.
        const YEARS: [i32; 2] = [2023, 2024];
        let pattern = &self.0.pattern;
        // A list without entries is none.
        if pattern.minutes.values().is_empty() || pattern.hours.values().is_empty() {
            return false;
        }
        let months = (1..=12).filter(|month| pattern.month_match(*month).unwrap_or_default());
        // Every day of either falls on every day of the week, within forty years.
        let mut days = months.flat_map(|month| (1..=31).map(move |day| (month, day)));
        days.any(|(month, day)| {
            YEARS.into_iter().any(|year| {
                let on = |weekday| pattern.day_match(year, month, day, weekday).unwrap_or_default();
                WEEK.into_iter().any(on)
            })
        })
    }

    pub fn after(&self, time: Timestamp) -> Option<Timestamp> {
        let next = self.0.find_next_occurrence(&time.to_zoned(TimeZone::UTC), false);
        next.ok().map(|next| next.timestamp())
    }

    /// The last time that was due by now.
    fn last(&self, now: Timestamp) -> Option<Timestamp> {
        let last = self.0.find_previous_occurrence(&now.to_zoned(TimeZone::UTC), true);
        last.ok().map(|last| last.timestamp())
    }
}

/// When a run is due.
pub enum Due {
    Never,
    /// All of it that does not depend on who does it.
    Now(Box<IngestionRun>),
    At(Timestamp),
}

/// Decides whether a run is due. The same decision made twice gives the same id, and the DataFactory makes one job of it.
pub fn due(
    id: &Identity,
    hash: &str,
    runs: &[IngestionRun],
    schedule: Option<&Schedule>,
    factory: &Factory<'_>,
    now: Timestamp,
) -> Due {
    let run = |suffix: &str| IngestionRun {
        id: format!("{}-{}{suffix}", id.uid, id.generation.unwrap_or_default()),
        ..IngestionRun::default()
    };
    let Some(newest) = runs.first() else { return Due::Now(Box::new(run(""))) };
    if !newest.state.ended() {
        return Due::Never;
    }
    if newest.spec_hash != hash {
        return Due::Now(Box::new(run("")));
    }
    if newest.state == RunState::Failed {
        let at = retry_at(newest);
        let retry = || IngestionRun {
            retries: newest.retries.saturating_add(1),
            ..run(&format!("-r{}", at.as_second()))
        };
        return if at <= now { Due::Now(Box::new(retry())) } else { Due::At(at) };
    }
    if let Factory::Ready(worker) = factory {
        // A pod with other settings may do what the one before it refused; one with another folder has no corpus.
        let refused = newest.state == RunState::Refused && worker.pod.uid != newest.pod_uid;
        if refused || worker.store() != newest.store {
            return Due::Now(Box::new(run(&format!("-{}", worker.pod.uid))));
        }
    }
    if newest.state == RunState::Refused {
        return Due::Never;
    }
    let Some(schedule) = schedule else { return Due::Never };
    let began = newest.scheduled_time.as_ref().max(newest.start_time.as_ref()).map(|time| time.0);
    match schedule.last(now) {
        Some(last) if began.is_none_or(|began| last > began) => Due::Now(Box::new(IngestionRun {
            scheduled_time: Some(whole(last)),
            ..run(&format!("-{}", last.as_second()))
        })),
        _ => schedule.after(now).map_or(Due::Never, Due::At),
    }
}

/// When a failed run is tried again: later after each failure in a row.
pub fn retry_at(run: &IngestionRun) -> Timestamp {
    let ended = run.completion_time.as_ref().or(run.start_time.as_ref()).map(|time| time.0);
    let wait = (FIRST_WAIT * (1_i32 << run.retries.min(10))).min(LONGEST_WAIT);
    ended.unwrap_or_default().checked_add(wait).unwrap_or(Timestamp::MAX)
}

/// Copies what was answered about a run; why nothing was, where that is so.
pub fn take(run: &mut IngestionRun, answer: &JobAnswer, now: Timestamp) -> Option<String> {
    match &answer.said {
        JobSaid::Is(job) => {
            run.pod_uid.clone_from(&answer.pod_uid);
            copy(run, job, now);
        }
        JobSaid::Gone => end(run, RunState::Cancelled, "", now),
        JobSaid::Refused(why) => {
            run.pod_uid.clone_from(&answer.pod_uid);
            end(run, RunState::Refused, why, now);
        }
        JobSaid::Silent(why) => return Some(why.clone()),
    }
    None
}

/// Ends a run that nothing more will be heard of.
pub fn end(run: &mut IngestionRun, state: RunState, message: &str, now: Timestamp) {
    run.state = state;
    run.message = shortened(message, LONGEST_MESSAGE);
    run.completion_time = Some(whole(now));
}

fn copy(run: &mut IngestionRun, job: &Job, now: Timestamp) {
    // Clocks differ: what a DataFactory says lies between what is known here and now.
    let begun = run.start_time.as_ref().map_or(now, |time| time.0).min(now);
    let time = |ms: Option<i64>| Timestamp::from_millisecond(ms?).ok().map(|at| whole(at.clamp(begun, now)));
    let Job { state, started_ms, finished_ms, error, failures, progress, corpus: _ } = job;
    run.state = state.run();
    run.message = shortened(error.as_deref().unwrap_or_default(), LONGEST_MESSAGE);
    run.start_time = time(*started_ms).or_else(|| run.start_time.clone());
    // A retry counts from here, so a job that has ended has an end.
    run.completion_time = run.state.ended().then(|| time(*finished_ms).unwrap_or_else(|| whole(now)));
    run.documents = progress.documents_total;
    run.documents_done = progress.documents_done;
    run.documents_unchanged = progress.documents_unchanged;
    run.documents_failed = progress.documents_failed;
    run.documents_removed = progress.documents_removed;
    run.chunks = progress.chunks;
    run.tokens = progress.tokens;
    run.seconds = progress.running_ms / 1000;
    let told = failures.iter().take(FAILURES);
    run.failures = told
        .map(|failure| shortened(&format!("{}: {}", failure.document_id, failure.error), LONGEST_FAILURE))
        .collect();
}

/// Forgets the oldest runs that have ended.
pub fn forget(runs: &mut Vec<IngestionRun>, limit: u32) {
    let open = runs.iter().take_while(|run| !run.state.ended()).count();
    runs.truncate(open + usize::try_from(limit).unwrap_or(usize::MAX));
}

fn shortened(text: &str, longest: usize) -> String {
    text.chars().take(longest).collect()
}

/// Kubernetes keeps whole seconds; a finer time would differ from what it gives back.
pub fn whole(time: Timestamp) -> Time {
    Time(Timestamp::from_second(time.as_second()).unwrap_or(time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_never_comes_is_no_schedule_and_every_other_one_comes() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let never =
            ["0 0 30 2 *", "0 0 31 4,6,9,11 *", "0 0 1 * +1#2", "0 0 , * *", "0 0 * , *", "0 0 * * ,"];
        let without_entries = [", * * * *", "0 , * * *", ", 3 * * *", ",, , , , ,"];
        for text in never.into_iter().chain(without_entries) {
            let error = Schedule::read(Some(text)).err().unwrap();
            assert!(error.contains("never comes"), "{error}");
        }
        let rare = ["0 0 29 2 *", "0 0 30 2 1", "0 0 L * *", "0 0 * 2 1#5", "0 0 29 2 +1", "0 0 L 2 +1#4"];
        for text in rare.into_iter().chain(["* * * * *", "0 3 * * 1-5", ",5 3,, * * *"]) {
            let schedule = Schedule::read(Some(text)).unwrap().unwrap();
            assert!(schedule.after(now).unwrap() > now && schedule.last(now).unwrap() <= now, "{text}");
        }
    }
}
