//! Sees to a job of a DataFactory: asks for it where it is not known, ends it where it is no longer wanted, and says how far it
//! is. Asking twice makes one job, because the request names its id.

use super::Shared;
use super::http::{Http, HttpError};
use super::secrets::{Key, Secrets};
use crate::actions::Target;
use crate::ingestion::{Job, JobAnswer, JobQuestion, JobSaid, JobWish};
use principium_api::ingestion::RunState;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// First wait between questions; doubled up to the longest.
const FIRST: Duration = Duration::from_millis(500);
/// Longest wait between questions about a job that goes on.
const PERIOD: Duration = Duration::from_secs(5);
/// Longest wait until numbers that have changed are told: each time is a write of the status.
const DRIFT: Duration = Duration::from_secs(60);
/// Longest wait while nothing that helps is answered.
const SILENCE: Duration = Duration::from_secs(60);
/// Time for taking a job.
const TAKING: Duration = Duration::from_secs(15);

pub async fn ask(http: Http, secrets: Secrets, target: Target, question: Arc<JobQuestion>, shared: Shared) {
    let (began, mut told) = (Instant::now(), Instant::now());
    let (mut wait, mut last) = (FIRST, None);
    let mut key = None;
    loop {
        let said = look(&http, &secrets, &target.url, &question, &mut key).await;
        let longest = match &said {
            JobSaid::Is(job) if job.state.run().ended() => None,
            JobSaid::Is(_) => Some(PERIOD),
            JobSaid::Silent(error) => {
                tracing::debug!(job = question.job, error, "asking for a job");
                Some(SILENCE)
            }
            JobSaid::Gone | JobSaid::Refused(_) => None,
        };
        if is_news(last.as_ref(), &said) || told.elapsed() >= (began.elapsed() / 4).min(DRIFT) {
            told = Instant::now();
            last = Some(said.clone());
            let answer = JobAnswer { job: question.job.clone(), pod_uid: question.pod_uid.clone(), said };
            shared.job_said(&target.uid, answer);
        }
        // One that has ended changes no more.
        let Some(longest) = longest else { return };
        sleep(wait.min(longest)).await;
        wait = (wait * 2).min(longest);
    }
}

/// Whether more than numbers has changed. Those are told less and less often, the longer a job goes on.
fn is_news(last: Option<&JobSaid>, said: &JobSaid) -> bool {
    match (last, said) {
        (Some(JobSaid::Is(last)), JobSaid::Is(said)) => {
            (last.state, &last.error) != (said.state, &said.error)
        }
        (last, said) => last != Some(said),
    }
}

async fn look(
    http: &Http,
    secrets: &Secrets,
    url: &str,
    question: &JobQuestion,
    key: &mut Option<Key>,
) -> JobSaid {
    if let (None, Some(reference)) = (&key, &question.key) {
        match secrets.read(&question.namespace, reference).await {
            Ok(read) => *key = Some(read),
            Err(error) => return JobSaid::Silent(error.to_string()),
        }
    }
    let known = match &question.wish {
        JobWish::Done(_) => http.get_with(&job_url(url, question), key.as_ref()).await,
        JobWish::Ended => {
            let url = format!("{}/cancel", job_url(url, question));
            http.post_with(&url, &json!({}), TAKING, key.as_ref()).await
        }
    };
    let error = match (known, &question.wish) {
        (Ok(job), wish) => return JobSaid::Is(with_corpus(http, url, job, wish, key.as_ref()).await),
        (Err(HttpError::Status { status: 404, .. }), JobWish::Ended) => return JobSaid::Gone,
        (Err(HttpError::Status { status: 404, .. }), JobWish::Done(body)) => {
            match submit(http, url, body, key.as_ref()).await {
                Ok(job) => return JobSaid::Is(job),
                Err(HttpError::Status { status: 400 | 413 | 422, text, .. }) => {
                    return JobSaid::Refused(text);
                }
                Err(HttpError::Status { status: 404 | 405, .. }) => {
                    return JobSaid::Refused("its image takes no jobs".to_owned());
                }
                Err(error) => error,
            }
        }
        (Err(error), _) => error,
    };
    if matches!(error, HttpError::Status { status: 401, .. }) {
        // It may have been changed since.
        *key = None;
    }
    JobSaid::Silent(error.to_string())
}

/// With what the corpus has, once a job has succeeded. Where that can't be had, it is left out.
async fn with_corpus(
    http: &Http,
    url: &str,
    mut job: Box<Job>,
    wish: &JobWish,
    key: Option<&Key>,
) -> Box<Job> {
    if let JobWish::Done(body) = wish
        && let Some(corpus) = body["corpus"].as_str()
        && job.state.run() == RunState::Succeeded
    {
        job.corpus = http.get_with(&format!("{url}/v1/corpora/{corpus}"), key).await.ok();
    }
    job
}

async fn submit(http: &Http, url: &str, body: &Value, key: Option<&Key>) -> Result<Box<Job>, HttpError> {
    http.post_with(&format!("{url}/v1/jobs"), body, TAKING, key).await
}

fn job_url(url: &str, question: &JobQuestion) -> String {
    format!("{url}/v1/jobs/{}", question.job)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::extract::{Path, State};
    use axum::http::{HeaderMap, StatusCode};
    use axum::routing::{get, post};
    use axum::{Json, Router};
    use principium_api::ingestion::CorpusSize;
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    type Known = Arc<Mutex<BTreeMap<String, &'static str>>>;
    type Answer = (StatusCode, Json<Value>);

    fn job(state: &str) -> Answer {
        (StatusCode::OK, Json(json!({"state": state, "spec": {"anything": 1}, "progress": {"chunks": 3}})))
    }

    fn error(status: StatusCode, text: &str) -> Answer {
        (status, Json(json!({"error": text, "error_type": "Validation"})))
    }

    /// A DataFactory that wants a key, and takes jobs whose corpus is `good`.
    async fn factory() -> (String, Known) {
        let known = Known::default();
        let show = |State(known): State<Known>, headers: HeaderMap, Path(id): Path<String>| async move {
            if headers.get("authorization").is_none_or(|key| key != "Bearer sesame") {
                return error(StatusCode::UNAUTHORIZED, "this server wants an API key");
            }
            match known.lock().unwrap().get(&id) {
                Some(state) => job(state),
                None => error(StatusCode::NOT_FOUND, "there is no such job"),
            }
        };
        let submit = |State(known): State<Known>, Json(body): Json<Value>| async move {
            if body["corpus"] != "good" {
                return error(StatusCode::UNPROCESSABLE_ENTITY, "corpus is \"bad\"");
            }
            known.lock().unwrap().insert(body["id"].as_str().unwrap().to_owned(), "running");
            let (_, body) = job("queued");
            (StatusCode::ACCEPTED, body)
        };
        let cancel = |State(known): State<Known>, Path(id): Path<String>| async move {
            match known.lock().unwrap().get_mut(&id) {
                Some(state) => {
                    *state = "cancelled";
                    job("cancelled")
                }
                None => error(StatusCode::NOT_FOUND, "there is no such job"),
            }
        };
        let router = Router::new()
            .route("/v1/jobs", post(submit))
            .route("/v1/jobs/{id}", get(show))
            .route("/v1/jobs/{id}/cancel", post(cancel))
            .route("/v1/corpora/good", get(|| async { Json(json!({"documents": 2, "chunks": 9})) }))
            .with_state(known.clone());
        (serve(router).await, known)
    }

    async fn serve(router: Router) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        url
    }

    fn question(job: &str, wish: JobWish) -> JobQuestion {
        let (job, namespace) = (job.to_owned(), "demo".to_owned());
        JobQuestion { job, namespace, pod_uid: "p".to_owned(), key: None, wish }
    }

    fn done(job: &str, corpus: &str) -> JobQuestion {
        question(job, JobWish::Done(json!({"id": job, "corpus": corpus})))
    }

    async fn said(url: &str, question: &JobQuestion, key: &mut Option<Key>) -> JobSaid {
        look(&Http::new().unwrap(), &Secrets::nobodys(), url, question, key).await
    }

    fn state(said: &JobSaid) -> Option<RunState> {
        match said {
            JobSaid::Is(job) => Some(job.state.run()),
            _ => None,
        }
    }

    #[test]
    fn numbers_alone_are_no_news() {
        let is = |state: &str, chunks: u64| {
            let job = json!({"state": state, "progress": {"chunks": chunks}});
            JobSaid::Is(Box::new(serde_json::from_value(job).unwrap()))
        };
        let silent = || JobSaid::Silent("busy".to_owned());
        for (last, said, news) in [
            (None, is("running", 1), true),
            (Some(is("running", 1)), is("running", 2), false),
            (Some(is("running", 1)), is("succeeded", 1), true),
            (Some(is("running", 1)), silent(), true),
            (Some(silent()), silent(), false),
            (Some(silent()), is("running", 1), true),
        ] {
            assert_eq!(is_news(last.as_ref(), &said), news, "{last:?} {said:?}");
        }
    }

    #[tokio::test]
    async fn a_job_is_made_once_followed_and_ended() {
        let (url, known) = factory().await;
        let mut key = Some(Key::new("sesame"));
        let found = said(&url, &done("a", "good"), &mut key).await;
        assert_eq!(state(&found), Some(RunState::Queued), "{found:?}");
        let found = said(&url, &done("a", "good"), &mut key).await;
        assert_eq!((state(&found), known.lock().unwrap().len()), (Some(RunState::Running), 1));
        known.lock().unwrap().insert("c".to_owned(), "succeeded");
        let JobSaid::Is(job) = said(&url, &done("c", "good"), &mut key).await else { panic!("no job") };
        assert_eq!(job.corpus, Some(CorpusSize { documents: 2, chunks: 9 }));
        let found = said(&url, &question("a", JobWish::Ended), &mut key).await;
        assert_eq!(state(&found), Some(RunState::Cancelled));
        assert_eq!(said(&url, &question("b", JobWish::Ended), &mut key).await, JobSaid::Gone);
    }

    #[tokio::test]
    async fn what_is_wrong_for_good_is_told_from_what_may_pass() {
        let (url, _) = factory().await;
        let mut key = Some(Key::new("sesame"));
        let refused = said(&url, &done("a", "bad"), &mut key).await;
        assert_eq!(refused, JobSaid::Refused(r#"corpus is "bad""#.to_owned()));
        let mut wrong = Some(Key::new("wrong"));
        let JobSaid::Silent(why) = said(&url, &done("a", "good"), &mut wrong).await else {
            panic!("a wrong key")
        };
        assert!(why.contains("wants an API key") && !why.contains("wrong"), "{why}");
        assert!(wrong.is_none(), "it is read anew the next time");
        let unreadable = JobQuestion {
            key: Some(principium_api::pod::SecretKeyRef { name: "s".to_owned(), key: None }),
            ..done("a", "good")
        };
        let JobSaid::Silent(why) = said(&url, &unreadable, &mut None).await else { panic!("without a key") };
        assert!(why.contains("Secret demo/s"), "{why}");
        let without_jobs = serve(Router::new().route("/info", get(|| async { "{}" }))).await;
        let found = said(&without_jobs, &done("a", "good"), &mut key).await;
        assert!(matches!(found, JobSaid::Refused(_)), "{found:?}");
        let nobody = said("http://127.0.0.1:9", &done("a", "good"), &mut key).await;
        assert!(matches!(nobody, JobSaid::Silent(_)), "{nobody:?}");
    }
}
